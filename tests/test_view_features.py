from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from browser import FRAMES, Watched, chromium, needs_chromium
from fabricate import make_run
from fabricate_inside import EPOCHS, make_findings, panel, projected
from pellucid.errors import RunError
from pellucid.figures.projections import common_limits
from pellucid.findings import ProjectionFinding
from pellucid.report.template import render_template
from pellucid.run import Run
from pellucid.views import Room, View, bundle, features, to_json
from sent import unpacked

CLASSES = ("cat", "<script>alert(1)</script>", "owl")
COLOURS = ("#c03020", "#20c030", "#2030c0")


def finding(name: str = "pca-last") -> ProjectionFinding:
    return ProjectionFinding(name, f"{name} of the features.", [panel(epoch) for epoch in EPOCHS])


def pictures(labels: np.ndarray) -> features.Tiles:
    """Pictures of one colour, that of their class."""
    return lambda places: [PIL.Image.new("RGB", (32, 32), COLOURS[labels[i]]) for i in places]


def of(count: int = 60, names: Sequence[str] = ("pca-last", "tsne"), room: Room | None = None, *, tiles: bool = True, noise: bool = False) -> View:
    points, labels = projected(count, len(CLASSES))
    random = np.random.default_rng(0)
    noisy: features.Tiles = lambda places: [PIL.Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in places]  # noqa: E731
    shown = (noisy if noise else pictures(labels)) if tiles else None
    return features.of_arrays(
        [(finding(name), points) for name in names], labels, CLASSES, files=[f"val/{i:03d}.jpg" for i in range(count)], tiles=shown, room=room
    )


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_points_are_those_of_the_projection_to_half_a_level_on_both_axes() -> None:
    view, (points, labels) = of(), projected(60, len(CLASSES))
    (left, right), (below, above) = common_limits(points.astype(np.float64))
    level = max(right - left, above - below) / features.LEVELS
    for projection in view["projections"]:
        high = unpacked(projection["high"]).astype(int)
        found = unpacked(projection["low"]).astype(int) + 256 * np.stack([high % 16, high // 16], -1)
        assert np.abs(found * level + (left, below) - points).max() <= 0.5001 * level
        assert projection["span"] == [round((right - left) / level), round((above - below) / level)]
    assert [view["classes"][i] for i in unpacked(view["labels"])] == [CLASSES[i] for i in labels]


def test_numbers_of_a_panel_are_whole_again_with_what_all_share() -> None:
    from pellucid.views import encoding

    shown = of()["projections"][0]
    for i, one in enumerate(shown["panels"]):
        whole = {**shown["measures"][0], **one["numbers"][0]}
        assert whole == {**(encoding.number(panel(EPOCHS[i]).knn_accuracy) or {}), "name": "k-NN accuracy"}


def test_each_tile_of_the_atlas_is_the_picture_of_its_point() -> None:
    view, (_, labels) = of(), projected(60, len(CLASSES))
    atlas = view["atlas"]
    sheet = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(atlas["src"].split(",")[1]))).convert("RGB"), np.int64)
    for i, label in enumerate(labels):
        y, x = i // atlas["columns"] * atlas["side"] + atlas["side"] // 2, i % atlas["columns"] * atlas["side"] + atlas["side"] // 2
        assert sheet[y, x].argmax() == label


@pytest.mark.parametrize(("room", "said"), [
    (Room(points=40), ["40 of 60 points are here, evenly spaced; the numbers are of all. `pellucid explore` shows all."]),
    (Room(bytes=12_000), ["The pictures of the points did not fit; `pellucid explore` shows all."]),
])  # fmt: skip
def test_what_does_not_fit_is_left_out_and_said(room: Room, said: list[str]) -> None:
    view = of(room=room, noise=True)
    assert view["notes"] == said
    assert len(to_json(view)) <= room.bytes


def test_epochs_go_before_points_and_the_first_and_the_last_stay() -> None:
    random = np.random.default_rng(0)
    planes = [(ProjectionFinding("tsne", "t-SNE", [panel(epoch) for epoch in range(1, 21)]), random.normal(size=(20, 200, 2)))]
    whole = features.of_arrays(planes, np.zeros(200, np.int64), ["cat"])
    view = features.of_arrays(planes, np.zeros(200, np.int64), ["cat"], room=Room(bytes=len(to_json(whole)) // 2))
    epochs = [one["epoch"] for one in view["projections"][0]["panels"]]
    assert len(epochs) < 20
    assert (epochs[0], epochs[-1]) == (1, 20)
    assert unpacked(view["projections"][0]["low"]).shape == (len(epochs), 200, 2)
    assert view["notes"] == [f"{len(epochs)} of 20 epochs are here, evenly spaced; the numbers are of all. `pellucid explore` shows all."]


def test_pictures_get_smaller_before_anything_goes() -> None:
    whole = len(to_json(of(noise=True)))
    view = of(noise=True, room=Room(bytes=int(0.8 * whole)))
    assert view["atlas"]["side"] == 24
    assert not view["notes"]


def test_room_of_nothing_leaves_the_fewest_points_rather_than_none() -> None:
    view = of(count=400, room=Room(bytes=10), tiles=False)
    assert len(view["files"]) == features.FEWEST_POINTS
    assert "100 of 400 points are here" in view["notes"][0]


def test_a_run_without_projections_has_no_view(tmp_path: Path) -> None:
    assert features.build(make_run(tmp_path / "run"), Room()) is None


def test_a_run_that_kept_no_pictures_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_findings(run.inside)
    view = features.build(run, Room())
    assert view is not None
    assert view["atlas"] is None
    assert "`inside.features`" in view["notes"][0]


def test_a_probe_of_other_labels_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_findings(run.inside)
    run.snapshots.mkdir()
    np.savez(run.snapshots / "probe.npz", split=np.array("val"), rows=np.arange(300), labels=np.zeros(300, np.int64))
    with pytest.raises(RunError, match=r"probe\.npz: expected the labels of probe/labels in .*, got others"):
        features.build(Run(run.path), Room())


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


def page_of(folder: Path, view: View, state: dict[str, Any] | None = None) -> Path:
    """A page with the view alone."""
    text = render_template("page.html", views={"features": view}).replace("<footer>", '<main id="content"><div data-view="features"></div></main><footer>')
    if state is not None:
        text = text.replace(f'{{"view":{to_json(view)}}}', to_json({"view": view, "state": state}))
    file = folder / "features.html"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(browser: Any, folder: Path, *, state: dict[str, Any] | None = None, **options: Any) -> tuple[Watched, Any]:
    watched = Watched(browser, **options)
    return watched, watched.open(page_of(folder, of(), state), "features")


@needs_chromium
def test_keyboard_alone_reads_points_chooses_and_clears(browser: Any, tmp_path: Path) -> None:
    watched, page = opened(browser, tmp_path)
    page.locator("canvas.plane").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator(".pointed").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert "val/" in first
    assert page.locator(".pointed").inner_text() != first
    assert "val/" in page.locator("p.unseen").inner_text()
    page.keyboard.press("Enter")
    assert "1 picture chosen" in page.locator(".moving").first.inner_text()
    page.keyboard.press("Escape")
    assert "1 picture chosen" not in page.locator(".moving").first.inner_text()
    page.get_by_role("button", name="Choose what is in view").press("Enter")
    assert "60 pictures chosen" in page.locator(".moving").first.inner_text()
    page.locator("canvas.plane").focus()
    page.keyboard.type("+++")
    page.keyboard.press("Shift+ArrowLeft")
    page.get_by_role("button", name="Choose what is in view").press("Enter")
    page.locator("strong", has_text="60 pictures chosen").wait_for(state="detached")
    watched.keep("features-keyboard")
    assert not watched.errors
    assert len(watched.requests) == 1


@needs_chromium
def test_a_box_lists_its_pictures_with_files_classes_and_counts(browser: Any, tmp_path: Path) -> None:
    watched, page = opened(browser, tmp_path)
    box = page.locator("canvas.plane").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=3)
    page.mouse.up()
    rows = page.locator("table tbody tr").all_inner_texts()
    listed = page.locator(".gallery li").all_inner_texts()
    assert 0 < len(listed) < 60
    assert sum(int(row.split()[-1]) for row in rows) == len(listed)
    assert all("val/" in text for text in listed)
    page.get_by_role("button", name="Clear").press("Enter")
    assert page.evaluate("document.activeElement.className") == "plane", "the button is gone, the focus is not"
    assert not watched.errors


@needs_chromium
def test_the_right_button_chooses_nothing(browser: Any, tmp_path: Path) -> None:
    watched, page = opened(browser, tmp_path)
    box = page.locator("canvas.plane").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=3)
    page.mouse.up(button="right")
    page.locator("canvas.plane").focus()
    page.keyboard.press("ArrowRight")
    page.mouse.down(button="right")
    page.mouse.up(button="right")
    assert page.locator("strong", has_text="chosen").count() == 0
    page.keyboard.press("Enter")
    assert page.locator("strong", has_text="1 picture chosen").count() == 1
    assert not watched.errors


@needs_chromium
def test_what_lies_over_the_edge_of_the_plane_is_cut_there(browser: Any) -> None:
    put = re.search(r"(?ms)^function featuresPut.*?^}", bundle.source("features.js"))
    assert put is not None
    page = Watched(browser).page
    found = page.evaluate(
        """([put, places]) => places.map(([x, y]) => {
          const image = (width, height, value) => ({ width, height, all: new Uint32Array(width * height).fill(value) });
          const to = image(7, 5, 0);
          new Function(`return ${put}`)()(image(8, 6, 0xff0000ff), 2, 1, 4, to, x, y);
          return [...to.all].flatMap((pixel, i) => (pixel ? [i] : []));
        })""",
        [put[0], places := [(x, y) for x in (-9, -1, 0, 3, 6, 8, 20) for y in (-9, -1, 0, 2, 5, 6, 20)]],
    )
    for (x, y), pixels in zip(places, found, strict=True):
        assert pixels == [7 * row + column for row in range(5) for column in range(7) if -2 <= column - x < 2 and -2 <= row - y < 2]


@needs_chromium
def test_what_a_point_is_stands_once_beside_the_title_of_the_view(browser: Any, tmp_path: Path) -> None:
    _, page = opened(browser, tmp_path)
    assert of()["title"] not in page.locator(".moving").first.inner_text()
    assert page.get_by_text(of()["about"]).count() == 1


@needs_chromium
def test_hostile_class_names_are_text(browser: Any, tmp_path: Path) -> None:
    watched, page = opened(browser, tmp_path)
    assert page.get_by_role("button", name=CLASSES[1]).count() == 1
    assert not watched.errors


@needs_chromium
def test_epoch_moves_the_points_and_the_numbers_and_stands_still_without_motion(browser: Any, tmp_path: Path) -> None:
    watched, page = opened(browser, tmp_path, reduced_motion="reduce")
    canvas, slider = page.locator("canvas.plane"), page.get_by_role("slider", name="Epoch")
    last, told = canvas.screenshot(), page.locator("dl").first.inner_text()
    slider.focus()
    page.keyboard.press("Home")
    page.evaluate(FRAMES)
    first = canvas.screenshot()
    assert first != last
    assert slider.get_attribute("aria-valuetext") == f"epoch {EPOCHS[0]}"
    assert page.locator("dl").first.inner_text() != told
    page.evaluate(FRAMES)
    assert canvas.screenshot() == first
    assert not watched.errors


@needs_chromium
def test_legend_dims_the_others_and_pictures_replace_dots(browser: Any, tmp_path: Path) -> None:
    watched, page = opened(browser, tmp_path, reduced_motion="reduce")
    canvas, one = page.locator("canvas.plane"), page.get_by_role("button", name="cat")
    shots = [canvas.screenshot()]
    one.press("Enter")
    shots.append(canvas.screenshot())
    assert one.get_attribute("aria-pressed") == "true"
    one.press("Enter")
    page.get_by_role("checkbox", name="Pictures").press("Space")
    shots.append(canvas.screenshot())
    assert len(set(shots)) == 3
    watched.keep("features-pictures")
    assert not watched.errors


@needs_chromium
@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 740}}, {"color_scheme": "dark"}], ids=["phone", "dark"])
def test_saved_state_brings_back_what_was_seen(browser: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    state = {"plane": 1, "epoch": 0, "pictures": True, "zoom": 2, "lit": [0], "chosen": [3, 5]}
    watched, page = opened(browser, tmp_path, state=state, **options)
    assert "2 pictures chosen" in page.locator(".moving").first.inner_text()
    assert page.get_by_role("slider", name="Epoch").input_value() == "0"
    assert page.get_by_role("checkbox", name="Pictures").is_checked()
    assert page.get_by_role("combobox", name="Plane").input_value() == "t-SNE"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    watched.keep(f"features-{'dark' if 'color_scheme' in options else 'phone'}", full_page=True)
    assert not watched.errors


@needs_chromium
@pytest.mark.parametrize("broken", ["projections", "atlas"])
def test_a_view_that_fails_gives_its_still_picture_back(browser: Any, tmp_path: Path, broken: str) -> None:
    view = of() | {"projections": []}
    if broken == "atlas":  # which is read after the first picture was drawn
        view = of() | {"atlas": {"src": "data:image/webp;base64,AAAA", "side": 24, "columns": 8}}
    file = page_of(tmp_path, view)
    file.write_text(
        file.read_text("utf-8").replace('<div data-view="features">', '<div data-view="features"><div class="still">on paper</div>'), encoding="utf-8"
    )
    watched = Watched(browser)
    page = watched.open(file)
    page.locator('[data-view="features"]:not(.coming)').wait_for()
    page.locator("canvas.plane").wait_for(state="detached")
    assert page.get_by_text("on paper").is_visible()
    assert "the view features could not be drawn" in watched.errors[0]


@needs_chromium
def test_without_scripts_and_on_paper_the_still_picture_is_seen(browser: Any, tmp_path: Path) -> None:
    file = page_of(tmp_path, of())
    file.write_text(
        file.read_text("utf-8").replace('<div data-view="features">', '<div data-view="features"><div class="still">on paper</div>'), encoding="utf-8"
    )
    assert Watched(browser, java_script_enabled=False).open(file).get_by_text("on paper").is_visible()
    page = Watched(browser).open(file, "features")
    still = page.get_by_text("on paper")
    assert not still.is_visible()
    page.emulate_media(media="print")
    assert still.is_visible()
    assert not page.locator("canvas.plane").is_visible()


def test_the_view_is_json() -> None:
    assert json.loads(to_json(of()))["projections"][0]["name"] == "pca-last"
