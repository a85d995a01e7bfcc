"""The bench's own parts: statistics, tables, clocks, witnesses, and that it runs without peers. Its numbers are not tested here."""

from __future__ import annotations

import base64
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import zlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from browser import needs_chromium
from conftest import REPOSITORY


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """A module of bench/ by name, imported as its scripts import each other."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_a_spread_is_median_and_quartiles(bench) -> None:
    spread = bench("peers").Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.median, spread.low, spread.high, spread.n) == (3.0, 2.0, 4.0, 5)
    alone = bench("peers").Spread.of([7.0])
    assert (alone.median, alone.low, alone.high, alone.n) == (7.0, 7.0, 7.0, 1)
    with pytest.raises(ValueError, match="at least one value"):
        bench("peers").Spread.of([])


def test_a_table_has_the_cells_of_its_header(bench) -> None:
    table = bench("peers").markdown_table
    assert table(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        table(["a", "b"], [["1"]])


def test_the_machine_is_named_with_versions(bench) -> None:
    assert re.search(rf"^\d+ cores, .+; torch {re.escape(importlib.metadata.version('torch'))}, .*python \d", bench("peers").machine())


def test_the_clock_leaves_the_warm_up_out_and_counts_blocks(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = bench("loops")
    now = iter(range(10_000))
    seconds: list[int] = []
    monkeypatch.setattr(loops.time, "perf_counter", lambda: seconds.append(next(now)) or float(clock._step) ** 2)
    monkeypatch.setattr(loops.time, "process_time", lambda: float(clock._step))
    clock = loops.Clock(101, 4)  # warm-up of 20 steps, then blocks of 20
    for _ in range(101):
        clock.tick()
    found = clock.blocks()
    assert found["cpu"] == [1e6] * 4
    assert found["wall"] == [(b**2 - a**2) / 20 * 1e6 for a, b in ((20, 40), (40, 60), (60, 80), (80, 100))]
    assert len(seconds) == 5


def test_costs_compare_each_round_with_the_base_beside_it(bench) -> None:
    loops, steps = bench("loops"), bench("steps")
    ours = "Pellucid, bar and log"

    def one(value: float) -> dict[str, list[float]]:
        return {"wall": [2 * value] * 3, "cpu": [value] * 3}

    found = steps.costs({loops.BARE: [one(100.0), one(300.0), one(200.0)], ours: [one(130.0), one(330.0), one(230.0)]})
    assert found[loops.BARE].cpu_over is None
    assert found[ours].cpu_over.median == found[ours].cpu_over.low == 30.0  # the drift of the machine cancels
    assert found[ours].wall_over.median == 60.0
    assert found[ours].cpu.n == 9
    table = steps.table(found, {"Fabric, neither bar nor log": "not installed"})
    assert f"| {ours} | 230 (130 to 330) | 460 (260 to 660) | +30 (+30 to +30) | +60 (+60 to +60) |" in table
    assert "| Fabric, neither bar nor log | not installed |" in table


def test_a_missing_peer_is_a_row_that_says_how_to_install_it(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, exactness, peers = bench("steps"), bench("exactness"), bench("peers")
    for module in (steps, exactness):
        monkeypatch.setattr(module, "is_installed", lambda name: False)
    name = "Lightning, bar and CSV log"
    found, absent = steps.measure([name], rounds=1, steps=10, blocks=1)
    assert not found
    assert f"| {name} | not installed (`make bench`" in steps.table(found, absent)
    assert exactness.filled("Lightning") == dict.fromkeys(exactness.CASES, peers.INSTALL)
    assert "[bench]" in peers.INSTALL


def test_peers_are_not_imported_with_the_scripts() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY / 'bench')!r}); import steps, exactness; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'lightning', 'accelerate', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_quick_run_prints_the_table_of_steps() -> None:
    wanted = ["bare loop", "Pellucid, bar and log"]
    only = [part for name in wanted for part in ("--only", name)]
    done = subprocess.run([sys.executable, REPOSITORY / "bench" / "steps.py", "--quick", *only], capture_output=True, text=True, check=True, timeout=300)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert set(wanted) <= set(rows)
    number = r"[+-]?\d+ \([+-]?\d+ to [+-]?\d+\)"
    assert re.fullmatch(rf"\| bare loop \| {number} \| {number} \|  \|  \|", rows["bare loop"])
    assert re.fullmatch(rf"\| Pellucid, bar and log \| {number} \| {number} \| {number} \| {number} \|", rows["Pellucid, bar and log"])


def test_a_loop_that_fails_is_a_row_with_its_last_word(bench) -> None:
    steps = bench("steps")
    found, absent = steps.measure(["bare loop"], rounds=1, steps=40, blocks=0)  # blocks of no length
    assert not found
    assert absent == {"bare loop": "failed: ZeroDivisionError: integer division or modulo by zero"}


def test_the_witness_sees_samples_and_the_gradient_of_a_step(bench) -> None:
    witness = bench("witness")
    images, labels = witness.scenes(12)
    module = witness.network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with witness.Watch(images) as watch:
        for rows in ([3, 1, 7, 5], [0, 2]):
            optimizer.zero_grad()
            for row in rows:  # micro-batches of one, each weighted by its share
                (F.cross_entropy(module(witness.inputs(images)[[row]]), labels[[row]]) / len(rows)).backward()
            optimizer.step()
    assert [step.rows for step in watch.steps] == [[3, 1, 7, 5], [0, 2]]
    for step in watch.steps:
        expected = witness.gradient(step.network, witness.inputs(images)[step.rows].double(), labels[step.rows])
        assert witness.relative_error(step.gradient, expected) < 1e-6
        assert witness.relative_error(step.gradient / 2, expected) == pytest.approx(0.5, abs=1e-6)
    assert witness.seen(watch.rows, 12) == "0 / 6"
    assert witness.seen([0, 0, 1], 4) == "1 / 2"
    module(witness.inputs(images))
    optimizer.step()
    assert len(watch.steps) == 2, "hooks leave with the block"


def test_the_sam_gradient_is_that_at_the_perturbed_weights(bench) -> None:
    witness = bench("witness")
    module = nn.Linear(1, 2, bias=False).double()
    before = module.weight.detach().clone()
    x, y = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([0])

    def by_hand(weight: torch.Tensor) -> torch.Tensor:
        p = (x @ weight.T).softmax(1)
        return ((p - torch.tensor([[1.0, 0.0]])).T @ x).flatten()

    g = by_hand(before)
    found = witness.sam_gradient(module, x, y, 0.1)
    assert torch.allclose(found, by_hand(before + 0.1 * (g / g.norm())[:, None]), rtol=1e-12)


def test_equal_bits_and_their_absence_have_words(bench) -> None:
    witness = bench("witness")
    assert witness.same([b"a", b"a"]) == "equal bits"
    assert witness.same(["a", "b", "b"]) == "2 different results of 3"
    a, b = witness.network(), witness.network()
    assert witness.bits(a) == witness.bits(b)
    with torch.no_grad():
        next(b.parameters()).view(-1)[0] += 1e-6
    assert witness.bits(a) != witness.bits(b)


# ── views ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def views(bench):
    """bench/views.py; skipped by name without playwright."""
    pytest.importorskip("playwright.sync_api", reason="no playwright: make install")
    return bench("views")


def seen(views: ModuleType, *, size: int = 900_000, painted: float = 100.0, step: float = 30.0) -> object:
    return views.Seen(size, [painted, painted, 9 * painted], [step] * 3, [step / 3] * 3)


def test_a_view_that_is_too_large_or_too_slow_is_missed_by_name(views) -> None:
    bare = {(views.BARE, mode): seen(views) for mode in views.MODES}
    good = {**bare, (views.OURS, "dots"): seen(views, painted=120.0), (views.OURS, "thumbnails"): seen(views, step=36.0)}
    assert [what for what, holds in views.verdicts(good) if not holds] == []
    bad = {**bare, (views.OURS, "dots"): seen(views, painted=121.0), (views.OURS, "thumbnails"): seen(views, size=1_000_001, step=37.0)}
    assert [what for what, holds in views.verdicts(bad) if not holds] == [
        "dots: painted 1.21 times the bare canvas (121 against 100 ms), at most 1.2",
        "thumbnails: 1.00 MB, at most 1",
        "thumbnails: step at 60 Hz, two frames, 1.23 times the bare canvas (37 against 30 ms), at most 1.2; "
        "frames unlimited 1.23 times the bare canvas (12 against 10 ms), without a bound",
    ]
    table = views.table({**bad, ("plotly", "dots"): seen(views, painted=300.0)}, ["Altair"])
    assert "| plotly | dots | 0.90 | 300.0 (300.0 to 1500.0), 3.00 x | 30.0 (30.0 to 30.0), 1.00 x |" in table
    assert "| Altair |  | not installed (`make bench`) |" in table


def test_ratios_are_of_a_round_so_that_the_drift_of_the_machine_cancels(views) -> None:
    assert views.ratio([120.0, 360.0, 240.0], [100.0, 300.0, 200.0]) == pytest.approx(1.2)


def test_fabricated_points_are_the_same_for_all_pages(bench) -> None:
    pages = bench("view_pages")
    points, again = pages.Points.fabricated(30, 3), pages.Points.fabricated(30, 3)
    assert (points.places == again.places).all()
    assert (points.places.shape, points.images.shape) == ((3, 30, 2), (30, 24, 24, 3))
    assert (points.places.min(), points.places.max()) == (0.0, 1.0)
    whole = np.rint(points.places * 65535).astype("<u2").tobytes()
    assert base64.b64encode(whole).decode() in pages.bare(points, thumbnails=True)
    levels = decoded(pages.pellucid(points, thumbnails=False))
    (left, below), span = points.places.min((0, 1)), np.ptp(points.places, (0, 1)).max()
    assert np.abs((points.places - (left, below)) / span - (levels - levels.min((0, 1))) / np.ptp(levels, (0, 1)).max()).max() < 1 / 2000


def decoded(page: str) -> np.ndarray:
    """(E, p, 2) the places that a page of Pellucid holds, in levels."""
    held = re.search(r'<script type="application/json" id="data-features">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    [plane] = json.loads(held[1])["view"]["projections"]

    def unpacked(array: dict[str, Any]) -> np.ndarray:
        raw = base64.b64decode(array["base64"])
        return np.frombuffer(zlib.decompress(raw, -15) if array.get("deflate") else raw, array["dtype"]).reshape(array["shape"]).astype(np.int64)

    high = unpacked(plane["high"])
    return unpacked(plane["low"]) + 256 * np.stack([high % 16, high // 16], -1)


@needs_chromium
@pytest.mark.browser
@pytest.mark.proof
def test_painted_and_a_step_are_seen_in_the_pixels_and_a_page_that_stands_still_is_an_error(views) -> None:
    clock, pages = views.clock, views.pages
    points = pages.Points.fabricated(60, 3)
    moves, stands = pages.bare(points, thumbnails=False), pages.bare(points, thumbnails=False).replace("draw(to, to, 1)", "0")
    with clock.browsers() as (_, browser):
        with clock.opened(browser, clock.Page(moves, "canvas.drawn", last=2)) as tab:
            assert 0 < clock.painted(tab) < 20_000
            found = clock.steps(tab)
            assert len(found) == 2
            assert min(found) > 0
        with (
            clock.opened(browser, clock.Page(stands, "canvas.drawn", last=2)) as tab,
            pytest.raises(RuntimeError, match="step 1 of the slider changed nothing"),
        ):
            clock.steps(tab)


@needs_chromium
@pytest.mark.browser
@pytest.mark.proof
def test_a_quick_run_of_the_views_prints_tables_and_verdicts(views, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["views.py", "--quick"])
    code, said = views.main(), capsys.readouterr().out
    assert code == (1 if "MISSED" in said else 0)
    assert re.search(r"^\| Pellucid \| thumbnails \| 0\.\d\d \| \d", said, re.MULTILINE)
    assert len(re.findall("^(?:holds|MISSED): ", said, re.MULTILINE)) == 9


def test_the_pages_of_the_views_are_still_made(bench, tmp_path) -> None:
    pages = bench("view_pages")
    points = pages.Points.fabricated(12, 2)
    for thumbnails in (False, True):
        assert 'data-view="features"' in pages.pellucid(points, thumbnails=thumbnails)
        assert "<canvas" in pages.bare(points, thumbnails=thumbnails)
    assert 'data-view="attention"' in pages.attention_page(tmp_path, side=3, heads=2, layers=2)
