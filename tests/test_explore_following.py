"""The explorer beside runs that change: what follows them by itself, what waits until a person asks, and what a damaged run leaves of the others."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import chromium, needs_chromium
from explored import Client, serving
from fabricate import make_run
from pellucid.errors import RunError
from pellucid.explore.live import Shelf
from pellucid.run import Probe, Run
from pellucid.views import snapshot_planes
from pellucid.views.snapshot_planes import planes_so_far
from test_explore import opened


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [another(tmp_path_factory.mktemp("runs") / name, size).path for name, size in (("one", 16), ("two", 32))]


def another(path: Path, batch_size: int, **how: Any) -> Run:
    """A run that is a row of its own: it differs in more than the seed."""
    return make_run(path, n=60, thumbnails=4, overrides=[f"train.batch_size={batch_size}"], **how)


def moved_on(run: Run, epoch: int) -> None:
    """Another epoch of a run that trains."""
    run.append_metrics([{"kind": "val", "epoch": epoch, "step": 4 * epoch, "loss": 0.4321, "accuracy": 0.77, "seconds": 0.2}])
    record = run.record
    record.epoch, record.step = epoch, 4 * epoch
    run.write_record(record)


# ── what it answers ──────────────────────────────────────────────────────────────────────────────────────────────


def names(view: dict[str, Any]) -> list[str]:
    return sorted(row["cells"][0][0] for row in view["rows"])


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("run.json", "not readable as JSON of a run"),
        ("resolved.yaml", "resolved.yaml"),
        ("metrics.jsonl", "expected a JSON object"),
        ("predictions/val.npz", "cannot be read as predictions"),
    ],
)
def test_a_damaged_run_is_left_out_of_compare_and_named(two: list[Path], tmp_path: Path, file: str, why: str) -> None:
    third = another(tmp_path / "third", 8).path
    whole = (third / file).read_bytes()
    shelf = Shelf([*two, third])
    assert names(json.loads(shelf.comparison(""))["view"]) == ["one", "third", "two"]
    (third / file).write_text("{torn\n{torn")
    view = json.loads(shelf.comparison(""))["view"]
    assert names(view) == ["one", "two"]
    assert view["notes"][0].startswith(f"Left out, as it cannot be read: {third / file}")
    assert why in view["notes"][0]
    with pytest.raises(RunError, match="None of these runs can be read"):
        shelf.comparison("2")
    (third / file).write_bytes(whole)
    assert names(json.loads(shelf.comparison(""))["view"]) == ["one", "third", "two"]


def test_a_run_that_is_not_safe_is_left_out_of_compare_until_it_is(two: list[Path], tmp_path: Path) -> None:
    third = another(tmp_path / "third", 8).path
    shelf, link = Shelf([*two, third]), third / "thumbnails" / "val" / "secret.webp"  # in a folder that no version looks into
    link.symlink_to(tmp_path)
    assert f"{link}: a link that leads out of the run folder" in json.loads(shelf.comparison(""))["view"]["notes"][0]
    link.unlink()
    assert names(json.loads(shelf.comparison(""))["view"]) == ["one", "third", "two"]


def test_a_run_that_begins_while_the_list_is_made_is_in_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text('{"runs": ["seed-1", "seed-2"]}')
    make_run(tmp_path / "seed-1", n=20)
    shelf = Shelf([tmp_path])

    class Between:
        """A lock after which another question, which comes at that moment, finds a new run."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            if not (tmp_path / "seed-2").exists():
                make_run(tmp_path / "seed-2", n=20, seed=2)
                shelf.refresh()
            self._lock.release()

    shelf._lock = Between()  # type: ignore[assignment]
    assert [entry["name"] for entry in shelf.listed()] == ["seed-1"]
    assert [entry["name"] for entry in shelf.listed()] == ["seed-1", "seed-2"]


def test_mistakes_are_offered_where_something_was_predicted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "growing", status="running")
    assert (run.path / "predictions").is_dir()
    shelf = Shelf([run.path])
    assert shelf.listed()[0]["views"] == ["overview"]
    shutil.copy(make_run(tmp_path / "done", n=20).predictions_file("val"), run.predictions_file("val"))
    assert shelf.listed()[0]["views"] == ["overview", "mistakes"]


def training(path: Path, epochs: int, points: int = 40, wide: int = 12) -> Run:
    """A run that trains and kept the features of some images, whose classes part, after each of its epochs."""
    run = make_run(path, n=60)
    record = run.record
    record.status, record.measurements = "running", []
    run.write_record(record)
    shutil.rmtree(run.path / "predictions")
    (run.path / "predictions").mkdir()
    run.snapshots.mkdir()
    run.write_probe(Probe("val", np.arange(points), np.arange(points) % 3))
    for epoch in range(1, epochs + 1):
        keep_features(run, epoch, points, wide)
    return run


def keep_features(run: Run, epoch: int, points: int = 40, wide: int = 12) -> None:
    random = np.random.default_rng(epoch)
    centres = np.random.default_rng(0).normal(size=(3, wide))
    run.write_snapshot(epoch, 4 * epoch, {"features": (epoch * centres[np.arange(points) % 3] + random.normal(size=(points, wide))).astype(np.float16)})


@pytest.mark.parametrize(("points", "wide"), [(40, 12), (12, 40), (5, 1)])
def test_planes_of_a_run_that_trains_are_those_of_its_end(tmp_path: Path, points: int, wide: int) -> None:
    from pellucid.inside.projection import project

    run = training(tmp_path / "growing", 3, points, wide)
    probe, epochs, planes = planes_so_far(run)
    features = [run.snapshot(epoch).features for epoch in (1, 2, 3)]
    at_its_end = project([f for f in features if f is not None], probe.labels, epochs=epochs, method="pca", fit="each", seed=1)
    assert epochs == [1, 2, 3]
    np.testing.assert_allclose(planes, at_its_end.coordinates, atol=1e-4 * np.abs(planes).max())
    keep_features(run, 4, points, wide)
    np.testing.assert_array_equal(planes_so_far(run)[2][:3], planes)  # what was seen stays where it is


def test_directions_of_very_many_wide_features_are_those_of_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 2)) @ random.normal(size=(2, 80)) + 1e-3 * random.normal(size=(300, 80))
    exact = snapshot_planes.principal(features)
    monkeypatch.setattr(snapshot_planes, "MOST_FITTED", 50)
    near = snapshot_planes.turned(snapshot_planes.principal(features), exact)
    np.testing.assert_allclose(near, exact, atol=0.01 * np.abs(exact).max())


def test_equal_features_lie_in_one_place() -> None:
    assert not snapshot_planes.principal(np.ones((5, 3), np.float16)).any()


def test_features_of_a_run_that_trains_are_offered_as_soon_as_it_kept_some(tmp_path: Path) -> None:
    run = training(tmp_path / "growing", 0)
    shelf = Shelf([run.path])
    assert shelf.listed()[0]["views"] == ["overview"]
    keep_features(run, 1)
    assert shelf.listed()[0]["views"] == ["overview", "features"]
    view = json.loads(shelf.view("0", "features"))["view"]
    (projection,) = view["projections"]
    assert (projection["panels"], projection["measures"], len(view["files"])) == ([{"epoch": 1, "numbers": []}], [], 40)
    run.snapshot_file(1).write_bytes(b"torn")
    with pytest.raises(RunError, match=r"epoch-0001\.npz"):
        shelf.view("0", "features")


def test_few_of_very_many_epochs_are_drawn_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_planes, "MOST_EPOCHS", 3)
    view = json.loads(Shelf([training(tmp_path / "growing", 7).path]).view("0", "features"))["view"]
    assert [panel["epoch"] for panel in view["projections"][0]["panels"]] == [1, 4, 7]
    assert "3 of the 7 epochs that were kept are here, evenly spaced." in view["notes"]


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def client(two: list[Path]) -> Iterator[Client]:
    with serving(*two) as found:
        yield found


@needs_chromium
@pytest.mark.browser
def test_a_run_that_trains_moves_on_without_reload(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "growing", status="running")
    with serving(run.path) as client:
        watched, page = opened(browser, client)
        page.get_by_text("running, epoch 3 of 6").first.wait_for()
        page.evaluate("window.same = document.querySelector('main section')")
        run.append_metrics([{"kind": "val", "epoch": 4, "step": 16, "loss": 0.4321, "accuracy": 0.77, "seconds": 0.2}])
        record = run.record
        record.epoch, record.step = 4, 16
        run.write_record(record)
        page.get_by_text("running, epoch 4 of 6").first.wait_for(timeout=10_000)
        assert page.evaluate("window.same === document.querySelector('main section')")
        (run.path / "run.json").write_text("{")
        page.get_by_role("heading", name="This cannot be shown").wait_for(timeout=10_000)
        assert "not readable as JSON of a run" in page.locator("main [role=alert]").inner_text()
        run.write_record(record)
        page.locator("main section").wait_for(timeout=10_000)
        assert [error for error in watched.errors if "422" not in error] == []


@needs_chromium
@pytest.mark.browser
def test_a_view_of_what_is_kept_changes_only_when_a_person_asks(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "growing", n=20)
    record = run.record
    record.status = "running"
    run.write_record(record)
    with serving(run.path) as client:
        watched, page = opened(browser, client)
        page.get_by_role("link", name="Mistakes").click()
        page.locator("main:not([aria-busy]) h2:focus").wait_for()
        page.evaluate("window.same = document.querySelector('main section')")
        run.snapshots.mkdir()
        run.snapshot_file(1).write_bytes(b"")
        page.get_by_text("The run kept something new (epoch 6).").wait_for(timeout=10_000)
        assert page.evaluate("window.same === document.querySelector('main section')")
        page.get_by_role("button", name="Load this view again").press("Enter")
        page.locator(".offer").wait_for(state="detached")
        page.locator("main:not([aria-busy]) h2:focus").wait_for()
        assert not page.evaluate("window.same === document.querySelector('main section')")
        assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_an_update_that_failed_is_said_and_tried_again(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "growing", status="running")
    with serving(run.path) as client:
        watched, page = opened(browser, client)
        page.route("**/views/overview", lambda route: route.fulfill(status=422, json={"error": "metrics.jsonl: cannot be read"}))
        moved_on(run, 4)
        said = page.locator("#head").get_by_text("metrics.jsonl: cannot be read")
        said.wait_for(timeout=10_000)
        for _ in range(2):  # the run does not change any more, and still the fault stands
            with page.expect_response("**/views/overview"):
                pass
        assert said.count() == 1
        assert "epoch 3 of 6" in page.locator("main").inner_text()
        page.unroute("**/views/overview")
        page.locator("main").get_by_text("epoch 4 of 6").first.wait_for(timeout=10_000)
        said.wait_for(state="detached", timeout=10_000)
        assert [error for error in watched.errors if "422" not in error] == []


@needs_chromium
@pytest.mark.browser
def test_compare_says_that_a_run_moved_on_and_loads_it_when_asked(browser: Any, two: list[Path], tmp_path: Path) -> None:
    run = another(tmp_path / "growing", 8, status="running")
    with serving(two[0], run.path) as client:
        watched, page = opened(browser, client)
        page.get_by_role("link", name="Compare").click()
        page.locator("main:not([aria-busy]) h2:focus").wait_for()
        assert page.locator(".offer").count() == 0
        moved_on(run, 4)
        offer = page.locator(".offer")
        offer.get_by_text("The runs moved on since this was made.").wait_for(timeout=10_000)
        button = page.get_by_role("button", name="Load this view again")
        button.focus()
        moved_on(run, 5)
        for _ in range(2):
            with page.expect_response("**/api/runs"):
                pass
        assert offer.count() == 1
        assert button.evaluate("(one) => document.activeElement === one")
        record = run.record
        record.status = "failed"
        run.write_record(record)
        button.press("Enter")
        offer.wait_for(state="detached")
        page.locator("main:not([aria-busy]) h2:focus").wait_for()
        page.locator("main .badge", has_text="failed").wait_for()
        assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_compare_without_a_damaged_run_says_so(browser: Any, two: list[Path], tmp_path: Path) -> None:
    broken = another(tmp_path / "broken", 8).path
    with serving(*two, broken) as client:
        whole = (broken / "run.json").read_text()
        (broken / "run.json").write_text("{")
        watched, page = opened(browser, client)
        page.get_by_role("link", name="Compare").click()
        page.get_by_text(f"Left out, as it cannot be read: {broken / 'run.json'}").wait_for()
        assert page.locator("table.rows tbody tr").count() == 2
        assert page.locator(".state").inner_text() == "3 runs, of which 1 cannot be read"
        (broken / "run.json").write_text(whole)
        page.get_by_text("The runs moved on since this was made.").wait_for(timeout=10_000)
        assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_compare_remembers_the_run_and_every_run_can_be_chosen_from_it(browser: Any, client: Client) -> None:
    watched, page = opened(browser, client)
    runs = page.get_by_label("Run", exact=True)
    runs.select_option(index=1)
    page.get_by_role("heading", name="two", level=1).wait_for()
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("heading", name="Runs side by side").wait_for()
    for _ in range(2):
        assert runs.evaluate("(list) => list.selectedOptions[0].textContent") == "all of them"
        page.get_by_role("link", name="Overview").click()
        page.get_by_role("heading", name="two", level=1).wait_for()
        assert page.url.endswith("#/1/overview")
        page.go_back()
        page.get_by_role("heading", name="Runs side by side").wait_for()
        page.reload()
        page.get_by_role("heading", name="Runs side by side").wait_for()
    runs.select_option(index=0)
    page.get_by_role("heading", name="one", level=1).wait_for()
    assert page.url.endswith("#/0/overview")
    assert runs.evaluate("(list) => list.selectedIndex") == 0
    assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_features_of_a_run_that_trains_move_over_the_epochs_so_far(browser: Any, tmp_path: Path) -> None:
    run = training(tmp_path / "growing", 1)
    with serving(run.path) as client:
        watched, page = opened(browser, client)
        assert page.locator("nav a").all_inner_texts() == ["Overview", "Features"]
        page.get_by_role("link", name="Features").click()
        page.get_by_text("Epochs kept so far: 1.").wait_for()
        page.locator("canvas.plane").wait_for()
        keep_features(run, 2)
        keep_features(run, 3)
        page.get_by_role("button", name="Load this view again").click(timeout=10_000)
        page.get_by_text("Epochs kept so far: 3.").wait_for()
        page.get_by_role("slider", name="Epoch").press("Home")
        page.get_by_text("epoch 1", exact=True).wait_for()
        watched.keep("explore-features-while-training")
        assert not watched.errors
