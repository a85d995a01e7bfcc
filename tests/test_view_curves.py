from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fabricate_captions
from browser import FRAMES, Watched, chromium, needs_chromium
from fabricate import make_run
from fabricate_segmentation import make_segmentation
from pellucid.readings import Chart, Curve
from pellucid.report import charts, render
from pellucid.report.template import render_template
from pellucid.run import Run, rounded
from pellucid.views import Room, bundle, curves, overview, to_json


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_curves_hold_what_the_run_wrote(run: Run) -> None:
    view = curves.build(run, Room())
    assert view is not None
    loss = next(chart for chart in view["charts"] if chart["name"] == "loss")
    written = [(line["epoch"], line["loss"]) for line in run.metrics() if line["kind"] == "val"]
    val = next(of for of in loss["curves"] if of["name"] == "val")
    assert [(x, pytest.approx(y)) for x, y in zip(val["x"], val["y"], strict=True)] == written
    assert [rounded(y) for y in val["y"]] == [rounded(y) for _, y in written]


def test_every_task_has_its_own_charts(tmp_path: Path) -> None:
    found = {}
    for name, made in {
        "classes": make_run(tmp_path / "a"), "masks": make_segmentation(tmp_path / "b"), "words": fabricate_captions.make_run(tmp_path / "c")
    }.items():  # fmt: skip
        view = curves.build(made, Room())
        assert view is not None
        found[name] = [chart["title"] for chart in view["charts"]]
    assert found["classes"] == ["Loss", "Accuracy", "Learning rate"]
    assert {"Loss", "Pixel accuracy", "mIoU"} <= set(found["masks"])
    assert {"Loss", "Token accuracy", "CIDEr-D on val"} <= set(found["words"])


def test_page_and_view_show_the_same_charts(run: Run) -> None:
    page, view = render(run), curves.build(run, Room())
    assert view is not None
    assert all(f"<strong>{chart['title']}</strong>" in page for chart in view["charts"])


def test_long_curves_keep_their_last_point_and_the_view_says_what_is_left_out() -> None:
    long = Curve("a", list(range(950)), [0.123456789 * i for i in range(950)])
    view = curves.of_charts([(Chart("loss", "Loss", [long], "loss", "nats", "", []), "epoch")], Room(bytes=5_000))
    found = view["charts"][0]["curves"][0]
    assert len(found["x"]) <= 201
    assert found["x"][-1] == 949
    assert view["notes"] == ["Of a curve at most 200 points are here, evenly spaced; `pellucid explore` shows all."]


def test_gaps_stay_gaps() -> None:
    broken = Curve("a", [1, 2, 3], [0.5, float("nan"), None])
    view = curves.of_charts([(Chart("loss", "Loss", [broken], "loss", "nats", "", []), "epoch")], Room())
    assert view["charts"][0]["curves"][0]["y"] == [0.5, None, None]


def test_overview_has_every_number_and_never_verifies(run: Run) -> None:
    view = overview.build(run, Room())
    assert [number["text"] for number in view["numbers"]] == [str(m) for m in run.record.measurements]
    assert view["headline"] == view["numbers"][0]
    assert view["promise"]["text"] == f"Not verified yet: pellucid verify {run.path}"
    assert not run.verify_file.exists()
    assert json.loads(to_json(view))["curves"]["charts"]
    changed = {one["key"] for group in view["settings"] for one in group["settings"] if one["changed"]}
    assert "task" in changed


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(browser: Any, folder: Path, name: str, view: dict[str, Any], *, script: str = "", **options: Any) -> tuple[Watched, Any]:
    """A page with one view; script: further lines of the page's module."""
    text = render_template("page.html", views={name: view}).replace("<footer>", f'<main id="content"><div data-view="{name}"></div></main><footer>')
    if script:
        whole = bundle.script("report")
        text = text.replace(bundle.integrity(whole), "'unsafe-inline'").replace(whole, bundle.joined((*bundle.MODULES, "report")) + script)
    file = folder / f"{name}.html"
    file.write_text(text, encoding="utf-8")
    watched = Watched(browser, **options)
    return watched, watched.open(file, name)


@needs_chromium
def test_arrow_keys_read_the_values_and_the_pointer_finds_the_same(browser: Any, tmp_path: Path, run: Run) -> None:
    view = curves.build(run, Room())
    assert view is not None
    watched, page = opened(browser, tmp_path, "curves", view)
    chart, said = page.locator("canvas.chart").first, page.locator("[data-at]").first
    chart.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    of = {one["name"]: one for one in view["charts"][0]["curves"]}
    assert said.inner_text() == f"epoch {of['train']['x'][1]}: train {rounded(of['train']['y'][1])} · val {rounded(of['val']['y'][1])}"
    assert page.locator("p.unseen").inner_text() == said.inner_text()
    page.keyboard.press("End")
    last, box = said.inner_text(), chart.bounding_box()
    page.keyboard.press("Escape")
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 40)
    assert said.inner_text() == last
    assert not watched.errors


@needs_chromium
@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}], ids=["light", "dark", "phone"])
def test_legend_hides_a_line_from_picture_and_words(browser: Any, tmp_path: Path, run: Run, options: dict[str, Any]) -> None:
    view = curves.build(run, Room())
    assert view is not None
    watched, page = opened(browser, tmp_path, "curves", view, **options)
    chart, train = page.locator("canvas.chart").first, page.get_by_role("button", name="train").first
    whole = chart.screenshot()
    train.press("Enter")
    assert train.get_attribute("aria-pressed") == "false"
    page.evaluate(FRAMES)
    assert chart.screenshot() != whole
    chart.press("ArrowRight")
    assert "train" not in page.locator("[data-at]").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    watched.keep(f"curves-{'-'.join(options) or 'light'}")
    assert not watched.errors


@needs_chromium
def test_what_is_folded_on_the_screen_is_open_on_paper(browser: Any, tmp_path: Path, run: Run) -> None:
    watched, page = opened(browser, tmp_path, "overview", overview.build(run, Room()))
    folded = "[...document.querySelectorAll('details:not([open]) table')].map((table) => table.checkVisibility())"
    assert not any(page.evaluate(folded))
    page.evaluate("document.querySelectorAll('[data-view] .moving').forEach((part) => (part.className = 'still'))")  # as a saved view has it
    page.emulate_media(media="print")
    found = page.evaluate(folded)
    assert found
    assert all(found)
    assert not watched.errors


@needs_chromium
def test_ticks_are_those_of_the_static_charts(browser: Any, tmp_path: Path, run: Run) -> None:
    view = curves.build(run, Room())
    assert view is not None
    _, page = opened(browser, tmp_path, "curves", view, script="\nwindow.plotTicks = plotTicks;")
    for low, high in [(0, 1), (0.1, 0.73), (-3.2, 8), (1e-5, 4e-4), (5, 5), (0, 0), (12, 2300), (0.699, 0.701)]:
        assert page.evaluate("([low, high]) => window.plotTicks(low, high)", [low, high]) == pytest.approx(charts.ticks(low, high), abs=1e-12)


@needs_chromium
def test_new_epochs_move_the_curves_and_leave_the_focus_where_it_is(browser: Any, tmp_path: Path, run: Run) -> None:
    view = overview.build(run, Room())
    script = "\nconst held = JSON.parse(document.getElementById('data-overview').textContent).view, box = document.body.appendChild(h('div'));"
    script += "window.begun = mountOverview(box, held, { live: true }, {}).then((made) => (window.made = made, box.id = 'own'));"
    watched, page = opened(browser, tmp_path, "overview", view, script=script)
    page.locator("#own").wait_for()
    chart = page.locator("#own canvas.chart").first
    chart.focus()
    page.keyboard.press("End")
    was = page.locator("#own [data-at]").first.inner_text()
    later = json.loads(to_json(view))
    for of in later["curves"]["charts"][0]["curves"]:
        of["x"].append(of["x"][-1] + 1)
        of["y"].append(0.0625)
    later["facts"][-1][1] = "17"
    page.evaluate("(later) => window.made.update(later)", later)
    assert page.evaluate("document.activeElement === document.querySelector('#own canvas.chart')")
    assert page.locator("#own [data-at]").first.inner_text() == was
    page.keyboard.press("End")
    assert "0.0625" in page.locator("#own [data-at]").first.inner_text()
    assert "17" in page.locator("#own dl").first.inner_text()
    watched.keep("overview", full_page=True)
    assert not watched.errors
