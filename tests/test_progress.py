"""Progress for people who look at a log: few lines, on stderr."""

from __future__ import annotations

import pytest

from pellucid import progress
from pellucid.progress import Progress


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_plain_lines_come_every_few_seconds_with_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    tell = Progress()
    for done in range(1, 13):
        tell("training: step", done, 12, "loss 0.5")
        clock.now += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "training: step 6/12, 6 s left  loss 0.5",
        "training: step 11/12, 1 s left  loss 0.5",
        "training: step 12/12  loss 0.5",
    ]


def test_a_job_of_less_than_a_second_says_nothing_each_time_it_comes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    tell = Progress()
    for _ in range(5):
        tell("evaluating val", 1, 2)
        clock.now += 0.5
        tell("evaluating val", 2, 2)
        clock.now += 2.0
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Progress(quiet=True)
    tell("x", 1, 1)
    tell.line("y")
    assert capsys.readouterr().err == ""
