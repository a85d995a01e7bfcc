"""Runs side by side, as a view: the table, lines over axes, curves, and pictures that two runs kept, as data and in a browser."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Watched, chromium, needs_chromium
from fabricate import make_run
from fabricate_inside import make_findings
from fabricate_segmentation import keep_masks, make_segmentation
from pellucid.compare import compare as compared
from pellucid.compare import to_html
from pellucid.errors import UsageError
from pellucid.report.comparison import short_keys
from pellucid.run import Run
from pellucid.views import Room, compare, to_json

ROOM = Room(bytes=1_500_000)


def rates(folder: Path, count: int) -> list[Run]:
    """Runs of growing skill whose learning rates span decades."""
    return [
        make_run(folder / f"run-{i:03d}", skill=1.0 + 4 * i / count, seed=1, overrides=[f"train.phases.0.optimizer.lr={1e-5 * 10 ** (4 * i / count):.3g}"])
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return rates(tmp_path_factory.mktemp("compare"), 4)


def test_the_table_has_the_rows_of_the_comparison(runs: list[Run]) -> None:
    view, found = compare.of_runs(runs, ROOM), compared(runs)
    assert [row["cells"][0][0] for row in view["rows"]] == [row.name for row in found.rows]
    assert [row["cells"][1] for row in view["rows"]] == [[str(row.measurement), row.measurement.value] for row in found.rows if row.measurement]
    heads = [column["text"] for column in view["columns"]]
    assert heads == ["run", "val/accuracy", "interval", "spread", "over", "difference", "its interval", "lr"]
    assert all(len(row["cells"]) == len(heads) for row in view["rows"])
    assert [row["marks"] for row in view["rows"]][-1] == ["baseline"]
    assert all(row["words"].startswith(of.words) for row, of in zip(view["rows"], found.rows, strict=True))


def test_an_unknown_baseline_is_named(runs: list[Run]) -> None:
    with pytest.raises(UsageError, match="--baseline no-run: not among the compared runs"):
        compare.of_runs(runs, ROOM, baseline="no-run")


# ── axes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_numbers_over_a_decade_lie_by_their_logarithm() -> None:
    found = compare.axis("lr", ["0.001", "0.1", "0.01", "0.0001"])
    assert found["name"] == "lr, logarithmic"
    assert found["at"] == pytest.approx([1 / 3, 1, 2 / 3, 0], abs=1e-3)
    assert [text for _, text in found["ticks"]] == ["0.0001", "0.001", "0.01", "0.1"]


def test_numbers_below_a_decade_lie_by_their_size() -> None:
    found = compare.axis("size", ["64", "–", "96", "128"])
    assert found["name"] == "size"
    assert found["at"] == [0, None, 0.5, 1]


def test_texts_are_steps_in_the_order_in_which_they_come() -> None:
    found = compare.axis("model", ["vit", "fcn", "vit", "unet"])
    assert found["at"] == [0, 0.5, 0, 1]
    assert found["ticks"] == [[0, "vit"], [0.5, "fcn"], [1, "unet"]]


def test_numbers_among_texts_keep_their_order_and_texts_follow() -> None:
    found = compare.axis("train", ["800", "/data/train", "1500", "1000", "folder"])
    assert found["at"] == [0, 0.75, 0.5, 0.25, 1]
    assert [text for _, text in found["ticks"]] == ["800", "1000", "1500", "/data/train", "folder"]


def test_a_short_key_says_what_it_is_of() -> None:
    keys = ["train.phases.0.optimizer.lr", "train.phases.0.schedule.name", "train.phases.0.epochs", "inside.epochs", "inside.name", "name"]
    assert list(short_keys(keys).values()) == ["lr", "schedule.name", "phases.0.epochs", "inside.epochs", "inside.name", "name"]


def test_one_value_stands_in_the_middle() -> None:
    assert compare.axis("lr", ["0.1", "0.1"])["at"] == [0.5, 0.5]


def test_what_was_measured_lies_by_its_size() -> None:
    found = compare.axis("val/accuracy", ["0.0500", "0.5000", "0.7250"], of_settings=False)
    assert (found["name"], found["at"]) == ("val/accuracy", [0.0, 0.6667, 1.0])


def test_zero_keeps_an_axis_from_being_logarithmic() -> None:
    assert compare.axis("decay", ["0", "0.001", "0.1"])["name"] == "decay"


def test_ticks_of_many_values_are_few_and_apart() -> None:
    ticks = compare.axis("x", [str(i) for i in range(100)])["ticks"]
    places = [place for place, _ in ticks]
    assert 2 < len(ticks) <= compare.MOST_TICKS
    assert min(b - a for a, b in itertools.pairwise(places)) >= compare.APART
    assert (places[0], places[-1]) == (0, 1)


# ── curves and pictures ──────────────────────────────────────────────────────────────────────────────────────────


def test_curves_are_the_lines_of_metrics(runs: list[Run]) -> None:
    view = compare.of_runs(runs, ROOM)
    assert [chart["title"] for chart in view["charts"]] == ["Validation accuracy", "Validation loss", "Training loss"]
    best = compared(runs).rows[0]
    line = view["charts"][1]["curves"][0]
    expected = [(one["epoch"], one["loss"]) for one in best.runs[0].metrics() if one["kind"] == "val"]
    assert (line["name"], line["row"], line["x"]) == (best.name, 0, [epoch for epoch, _ in expected])
    assert line["y"] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_the_chart_of_the_compared_number_is_the_first(runs: list[Run], tmp_path: Path) -> None:
    masks = make_segmentation(tmp_path / "masks")
    charts = compare.of_runs([*runs, masks], ROOM, metric="val/accuracy")["charts"]
    assert [chart["title"] for chart in charts] == ["Validation accuracy", "Validation mIoU", "Validation loss", "Training loss"]
    assert [chart["y"] for chart in charts] == ["accuracy", "mIoU", "loss (nats)", "loss (nats)"]
    assert compare.of_runs(runs, ROOM, metric="val/loss")["charts"][0]["title"] == "Validation loss"


def test_pictures_with_maps_come_before_mistakes_of_more_runs(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, skill=0.5, thumbnails=30, seed=1, overrides=[f"train.batch_size={8 * (i + 1)}"]) for i, name in enumerate(("a", "b", "c"))
    ]
    for run in runs[:2]:
        make_findings(run.inside)
    pictures = compare.of_runs(runs, ROOM)["pictures"]
    maps = [any(side["maps"] for side in one["sides"].values()) for one in pictures]
    assert maps[:3] == [True] * 3
    assert not any(maps[3:])
    assert len(pictures[3]["sides"]) == 3
    assert len(pictures) == compare.MOST_PICTURES


def test_a_score_of_one_picture_says_which_way_is_up_and_that_its_baseline_is_a_mean(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=1, overrides=[f"train.batch_size={size}"]) for name, size in (("a", 8), ("b", 4))]
    for run in runs:
        found = make_findings(run.inside)
        found.images[0].scores["attention"] = {"relevance_mass": 0.4, "deletion": 0.123}
        found.save(run.inside)
    name, _, said = compare.of_runs(runs, ROOM)["pictures"][0]["sides"]["0"]["maps"][0]
    assert (name, said) == (
        "attention",
        "relevance mass 0.4000 (the centre prior 0.5200), deletion, lower is better: 0.1230 (the model with random weights 0.5000). "
        "In brackets: mean over 300 pictures.",
    )


def test_a_mistake_of_two_runs_stands_side_by_side(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, skill=0.5, seed=seed, thumbnails=30, overrides=[f"train.batch_size={8 * seed}"]) for name, seed in (("one", 1), ("two", 2))
    ]
    kept = [{run.predictions("val").files[int(path.stem)] for path in (run.thumbnails / "val").glob("*.webp")} for run in runs]
    pictures = compare.of_runs(runs, ROOM)["pictures"]
    assert {one["file"] for one in pictures} <= kept[0] & kept[1]
    assert len(pictures) == min(len(kept[0] & kept[1]), compare.MOST_PICTURES) > 0
    rows = [row.runs[0] for row in compared(runs).rows]
    for one in pictures:
        for i, side in one["sides"].items():
            predictions = rows[int(i)].predictions("val")
            row = predictions.probabilities()[predictions.files.index(one["file"])]
            assert side["lines"] == [f"prediction {('cat', 'dog', 'owl')[row.argmax()]} {row.max():.4f}"]


def test_masks_of_two_runs_stand_beside_the_truth(tmp_path: Path) -> None:
    runs = [make_segmentation(tmp_path / name, overrides=[f"train.batch_size={size}"]) for name, size in (("one", 8), ("two", 4))]
    for run, noise in zip(runs, (0.1, 0.5), strict=True):
        keep_masks(run.inside, noise=noise)
    pictures = compare.of_runs(runs, ROOM)["pictures"]
    assert len(pictures) == 3
    assert all(one["truth"].startswith("data:image/png") for one in pictures)
    masks = [one["sides"][side]["maps"][0] for one in pictures for side in "01"]
    assert all(name == "predicted mask" and "mIoU of the picture" in measure for name, _, measure in masks)
    assert len({uri for _, uri, _ in masks}) == 6


def test_another_picture_of_the_same_name_is_not_the_same_picture(tmp_path: Path) -> None:
    runs = [make_segmentation(tmp_path / name, overrides=[f"train.batch_size={size}"]) for name, size in (("one", 8), ("two", 4))]
    for run in runs:
        keep_masks(run.inside)
    shutil.copy(runs[0].inside / "masks" / "1.webp", runs[0].inside / "masks" / "0.webp")
    assert [one["file"] for one in compare.of_runs(runs, ROOM)["pictures"]] == ["scenes-val-000001.png", "scenes-val-000002.png"]


def test_runs_without_a_common_picture_say_so(runs: list[Run]) -> None:
    assert any("No two of these runs kept the same picture" in note for note in compare.of_runs(runs, ROOM)["notes"])


@pytest.mark.proof
def test_a_hundred_runs_take_seconds_and_stay_in_their_room(tmp_path: Path) -> None:
    first = make_run(tmp_path / "run-000", thumbnails=8, skill=1.0)
    runs = [first]
    for i in range(1, 100):
        shutil.copytree(first.path, tmp_path / f"run-{i:03d}")
        file = tmp_path / f"run-{i:03d}" / "resolved.yaml"
        file.write_text(file.read_text().replace("batch_size: 16", f"batch_size: {16 + i}", 1))
        runs.append(Run(file.parent))
    found = compared(runs)
    begun = time.perf_counter()
    view = compare.of_comparison(found, ROOM)
    assert time.perf_counter() - begun < 3
    assert len(view["rows"]) == 100
    assert len(to_json(view)) < ROOM.bytes
    assert "The curves are those of the first 7 of 100 rows that have some, until rows are chosen in the table." in view["notes"]


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@needs_chromium
def test_columns_sort_and_a_pressed_run_is_chosen_everywhere(runs: list[Run], browser: Any, tmp_path: Path) -> None:
    (tmp_path / "compare.html").write_text(to_html(compared(runs)))
    watched = Watched(browser)
    page = watched.open(tmp_path / "compare.html", "compare")
    names = lambda: page.locator(".moving tbody th button").all_inner_texts()  # noqa: E731
    rates = {row.name: float(row.settings["train.phases.0.optimizer.lr"]) for row in compared(runs).rows}
    head = page.get_by_role("columnheader", name="lr")
    head.get_by_role("button").press("Enter")
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert names() == sorted(rates, key=lambda name: rates[name])
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert names() == sorted(rates, key=lambda name: -rates[name])
    assert page.locator(".moving .legend button").count() == 4
    lines = page.locator("canvas.parallel")
    lines.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".moving .reading").first.inner_text().startswith(names()[0])
    lines.dispatch_event("pointerleave", {"pointerType": "touch"})
    assert page.locator(".moving .reading").first.inner_text().startswith(names()[0]), "a lifted finger leaves what it pointed at"
    page.keyboard.press("Enter")
    assert page.locator(".moving tbody button").first.get_attribute("aria-pressed") == "true"
    lines.dispatch_event("pointerleave", {"pointerType": "mouse"})
    assert not page.locator(".moving .reading").first.inner_text().startswith(names()[0])
    assert page.locator("tr.lit").count() == 1
    assert "to" in (page.locator("canvas.chart").get_attribute("aria-label") or "")
    assert page.locator(".moving .legend button").count() <= 1, "the curves are those of the chosen run"
    watched.keep("compare", full_page=True)
    assert watched.errors == []
    assert len(watched.requests) == 1


@needs_chromium
def test_two_masks_of_one_picture_are_chosen_by_name(browser: Any, tmp_path: Path) -> None:
    runs = [make_segmentation(tmp_path / name, overrides=[f"train.batch_size={size}"]) for name, size in (("one", 8), ("two", 4))]
    for run, noise in zip(runs, (0.1, 0.5), strict=True):
        keep_masks(run.inside, noise=noise)
    (tmp_path / "compare.html").write_text(to_html(compared(runs)))
    watched = Watched(browser, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = watched.open(tmp_path / "compare.html", "compare")
    page.get_by_label("Picture").select_option("scenes-val-000002.png")
    assert page.locator(".moving .beside img").count() == 4, "photograph, truth, and a mask of each run"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    watched.keep("compare-masks", full_page=True)
    assert watched.errors == []


@needs_chromium
def test_a_chart_of_a_number_that_the_chosen_run_lacks_says_so(runs: list[Run], browser: Any, tmp_path: Path) -> None:
    masks = make_segmentation(tmp_path / "masks")
    (tmp_path / "compare.html").write_text(to_html(compared([*runs, masks], metric="val/accuracy")))
    watched = Watched(browser)
    page = watched.open(tmp_path / "compare.html", "compare")
    note = page.get_by_text("None of the chosen runs has this number.")
    chart, number = page.locator("canvas.chart"), page.get_by_label("Number", exact=True)
    assert number.input_value() == "Validation accuracy"
    number.select_option("Validation mIoU")
    chart.hover()  # while there are curves
    assert note.count() == 0
    page.locator(".moving tbody").get_by_role("button", name="run-000").press("Enter")
    assert note.is_visible()
    chart.hover(position={"x": 80, "y": 80})
    chart.focus()
    for key in ("ArrowRight", "ArrowLeft", "End", "Escape"):
        page.keyboard.press(key)
    number.select_option("Validation accuracy")
    assert note.count() == 0
    chart.hover(position={"x": 90, "y": 80})
    assert watched.errors == []


@needs_chromium
def test_what_differences_mean_stands_under_a_table_of_low_rows(runs: list[Run], browser: Any, tmp_path: Path) -> None:
    found = compared(runs)
    (tmp_path / "compare.html").write_text(to_html(found))
    page = Watched(browser).open(tmp_path / "compare.html", "compare")
    said = page.locator(".moving .words dd").all_inner_texts()
    assert [text.startswith(row.words) for text, row in zip(said, found.rows, strict=True)] == [True] * len(runs)
    assert all(line.bounding_box()["height"] < 60 for line in page.locator(".moving tbody tr").all())


@needs_chromium
@pytest.mark.parametrize("shown", [".still", ".moving"])  # paper shows the still table; that of the explorer is the moving one
def test_no_column_is_cut_on_paper(shown: str, browser: Any, tmp_path: Path) -> None:
    changes = [
        "train.batch_size=8",
        "train.phases.0.optimizer.lr=0.0003",
        "data.train=1234",
        "train.phases.0.epochs=3",
        "augment.rotation=3",
    ]
    classes = [f"a class of a long name {i}" for i in range(12)]
    wide = [make_run(tmp_path / "one", n=200, classes=classes), make_run(tmp_path / ("long" * 15), n=200, classes=classes, overrides=changes)]
    (tmp_path / "compare.html").write_text(to_html(compared(wide)))
    watched = Watched(browser, viewport={"width": 688, "height": 970})  # an A4 page within its margins
    page = watched.open(tmp_path / "compare.html", "compare")
    page.emulate_media(media="print")
    page.evaluate(
        "(shown) => document.querySelectorAll('.still, .moving').forEach((one) => one.style.setProperty('display', one.matches(shown) ? 'grid' : 'none', 'important'))",
        shown,
    )
    ends = page.evaluate(
        "[...document.querySelectorAll('.rows td')].filter((cell) => cell.checkVisibility()).map((cell) => cell.getBoundingClientRect().right)"
    )
    assert len(ends) > 2 * (6 + len(changes))
    assert max(ends) <= 688
    rate = page.locator(f"{shown} .rows td", has_text="0.0003").first
    assert rate.evaluate("cell => getComputedStyle(cell, '::before').content") == '"lr"', "its head stands over it"
    assert not page.locator(f"{shown} thead").first.is_visible()
    assert page.locator("#classes td").first.evaluate("cell => getComputedStyle(cell, '::before').content") == f'"{classes[0]}"'
    watched.keep(f"compare-paper-{shown[1:]}", full_page=True)
