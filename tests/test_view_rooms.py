"""No view takes more than its room: bytes are counted, not letters; long names are shortened; what is left out is said, and what was never kept is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fabricate import make_run
from fabricate_inside import make_findings, panel
from fabricate_segmentation import keep_masks, make_segmentation
from pellucid.findings import ProjectionFinding
from pellucid.report import write_report
from pellucid.report.page import MOST_BYTES
from pellucid.run import Run
from pellucid.views import FULLER, Room, encoding, features, mistakes, size, to_json, views

LETTERS = ("x", "ä", "猫", "<")


def test_size_is_that_of_the_bytes_in_the_page() -> None:
    assert [size(letter * 200) for letter in LETTERS] == [202, 402, 602, 1202]
    assert size("\udc80") == len(to_json("\udc80").encode("utf-8", "backslashreplace"))


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    assert encoding.name("a" * 200) == "a" * 200
    short = encoding.name("begin" + "-" * 300 + "end.jpg")
    assert (len(short), short[:6], short[-8:]) == (200, "begin-", "-end.jpg")
    assert encoding.names(["a" * 300, "b"], 10_000)[1] == "b"
    assert size(encoding.names([f"{i:03d}" + "ä" * 300 for i in range(1000)], 50_000)) <= 50_000


@pytest.mark.parametrize("letter", LETTERS)
def test_views_of_a_classification_hold_their_room_with_a_thousand_classes_and_long_names(letter: str, tmp_path: Path) -> None:
    classes = [f"{i:04d}{letter * 296}" for i in range(1000)]
    run = make_run(tmp_path / "run", classes=classes, n=1500, skill=1.0, file="{split}/{i:05d}" + letter * 240, thumbnails=3)
    for room in (200_000, 500_000):
        view = mistakes.build(run, Room(bytes=room))
        assert view is not None
        assert room // 3 < size(view) <= room
        assert any(note.endswith(FULLER) for note in view["notes"])
        assert view["items"][0]["pictures"][0][1] is not None  # one picture in any case
    assert run.data.classes == classes  # shortened in the view alone


@pytest.mark.parametrize("letter", LETTERS)
def test_features_hold_their_room_whatever_the_names_are(letter: str) -> None:
    random, p = np.random.default_rng(0), 2000
    plane = (ProjectionFinding("pca-last", "how", [panel(1)]), random.normal(size=(1, p, 2)).astype(np.float32))
    labels, classes = np.sort(random.integers(0, 1000, p)), [f"{i}{letter * 300}" for i in range(1000)]
    view = features.of_arrays([plane], labels, classes, files=[f"{i}{letter * 300}" for i in range(p)], room=Room(bytes=300_000))
    assert 100_000 < size(view) <= 300_000
    assert max(map(len, view["files"])) == 200


def test_every_view_holds_its_room_but_for_one_picture(tmp_path: Path) -> None:
    classified = make_run(tmp_path / "classified", thumbnails=4)
    make_findings(classified.path / "inside")
    segmented = make_segmentation(tmp_path / "segmented")
    keep_masks(segmented.path / "inside")
    for run in (classified, segmented):
        for name, build in views().items():
            if name != "overview" and (view := build(run, Room(bytes=40_000))) is not None:
                shown = len(view["pictures"] if "pictures" in view else view.get("items", []))
                assert size(view) <= 40_000 or shown == 1, name


def test_a_picture_that_was_never_kept_is_not_one_without_room(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", skill=1.0, n=200, thumbnails=6)
    whole = mistakes.build(run, Room(bytes=10_000_000))
    assert whole is not None
    assert {item["missing"] for item in whole["items"]} == {"", "no picture was kept"}
    items = [mistakes._item(f"{i}", "", [], [("picture", uri)], "" if uri else "no picture was kept") for i, uri in enumerate(["x" * 900, "x" * 900, None])]
    found, _, notes = mistakes._fitted(items, [], 1600)
    assert [item["missing"] for item in found] == ["", "left out to keep the page small", "no picture was kept"]
    assert notes == [f"1 pictures have no room here; {FULLER}"]


def test_a_report_of_a_thousand_classes_with_long_names_stays_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", classes=[f"{i:04d}" + "ä" * 296 for i in range(1000)], n=3000, skill=1.0, file="{split}/{i:05d}" + "y" * 240)
    assert write_report(Run(run.path)).stat().st_size <= MOST_BYTES


def test_views_of_what_was_kept_need_no_matplotlib(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", thumbnails=2)
    make_findings(run.path / "inside")
    code = "import sys; sys.modules['matplotlib'] = None; from pellucid.run import Run; from pellucid.views import Room, views\n"
    code += f"print([name for name, build in views().items() if build(Run({str(run.path)!r}), Room()) is not None])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.strip()) == (0, "['overview', 'curves', 'features', 'attention', 'positions', 'mistakes']"), found.stderr
