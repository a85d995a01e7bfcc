"""The view of masks over epochs: its data is what the run kept, and by mouse and keyboard every pixel can be asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from browser import FRAMES, SLOW_PICTURE, Watched, chromium, needs_chromium
from fabricate_segmentation import CLASSES, EPOCHS, keep_masks, make_segmentation, mask_format
from pellucid.errors import RunError
from pellucid.figures.masks import RIGHT, WRONG
from pellucid.mask_findings import PICTURES, load_kept_masks, reduced_mask
from pellucid.palettes import IGNORED
from pellucid.report import write_report
from pellucid.run import Run, rounded
from pellucid.views import EXPLORER, Room, View, bundle, masks, to_json
from sent import unpacked

ROOM = Room(bytes=800_000)


def made(folder: Path, room: Room = ROOM) -> View:
    view = masks.of_folder(folder, room)
    assert view is not None
    return view


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_arrays_of_the_view_are_those_of_the_run(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=2)
    view = made(tmp_path)
    for i, picture in enumerate(view["pictures"]):
        kept = load_kept_masks(tmp_path, findings, i)
        assert np.array_equal(unpacked(picture["predicted"]), kept.predicted)
        assert np.array_equal(unpacked(picture["confidence"]), kept.confidence)
        assert kept.truth is not None
        assert np.array_equal(unpacked(picture["truth"]), kept.truth)
        assert (picture["file"], picture["size"]) == (findings.pictures[i].file, [64, 96])
    assert view["epochs"] == [f"epoch {epoch}" for epoch in EPOCHS]
    assert view["notes"] == []
    assert len(view["pictures"]) == 2
    assert "last epoch" in view["how"]


@pytest.mark.parametrize(("num", "title"), [(1, "Predicted mask"), (2, "Predicted masks")])
def test_masks_of_one_epoch_without_truth_speak_of_no_epochs_and_no_errors(tmp_path: Path, num: int, title: str) -> None:
    keep_masks(tmp_path, num=num, epochs=EPOCHS[-1:], unmasked=range(num))
    view = made(tmp_path)
    assert (view["title"], "error" in view["how"]) == (title, False)
    keep_masks(tmp_path, num=num, epochs=EPOCHS[:2], unmasked=[0])
    view = made(tmp_path)
    assert (view["title"], "error" in view["how"]) == ("Masks over epochs", num > 1)


def test_classes_have_the_colours_of_the_masks_and_those_that_occur_are_known(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=1)
    view = made(tmp_path)
    assert [c["name"] for c in view["classes"]] == list(CLASSES)
    assert [[int(c["colour"][k : k + 2], 16) for k in (1, 3, 5)] for c in view["classes"]] == mask_format().colours.tolist()
    kept = load_kept_masks(tmp_path, findings, 0)
    assert kept.truth is not None
    assert view["occurring"] == sorted(({*kept.truth.ravel().tolist()} | {*kept.predicted.ravel().tolist()}) - {IGNORED})


def test_every_epoch_has_its_numbers_and_its_mean_confidence(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=1)
    kept, (picture,) = load_kept_masks(tmp_path, findings, 0), made(tmp_path)["pictures"]
    assert kept.truth is not None
    for e, numbers in enumerate(picture["numbers"]):
        right = [kept.confidence[e][k] / 255 for k in np.ndindex(kept.truth.shape) if kept.truth[k] == kept.predicted[e][k]]
        wrong = [kept.confidence[e][k] / 255 for k in np.ndindex(kept.truth.shape) if kept.truth[k] not in (IGNORED, kept.predicted[e][k])]
        own = findings.pictures[0].epochs[e]
        assert [n["text"] for n in numbers] == [str(own.pixel_accuracy), str(own.miou), rounded(float(np.mean(right))), rounded(float(np.mean(wrong)))]


def test_photograph_without_a_mask_has_neither_truth_nor_numbers(tmp_path: Path) -> None:
    keep_masks(tmp_path, num=1, unmasked=(0,))
    (picture,) = made(tmp_path)["pictures"]
    assert picture["truth"] is None
    assert picture["numbers"] == [[None] * 4] * len(EPOCHS)


def test_what_does_not_fit_is_reduced_or_left_out_and_said(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=2, size=(192, 288), epochs=tuple(range(10)), noise=0.5)
    whole = made(tmp_path, EXPLORER)
    assert (len(whole["pictures"]), len(whole["epochs"]), whole["notes"]) == (2, 10, [])
    size = len(to_json(whole).encode())
    less = made(tmp_path, Room(bytes=size // 2))
    assert len(to_json(less).encode()) <= size // 2
    assert (less["epochs"][0], less["epochs"][-1], len(less["pictures"])) == ("before training", "epoch 9", 2)
    shape = less["pictures"][0]["predicted"]["shape"]
    assert any(f"{len(less['epochs'])} of 10 kept epochs are here, evenly spaced" in note for note in less["notes"])
    assert any(f"at most {max(shape)} pixels on the long side" in note for note in less["notes"]) == (max(shape) < 288)
    least = made(tmp_path, Room(bytes=1))
    assert len(least["pictures"]) == 1
    assert "1 of 2 pictures are here; `pellucid explore` shows all." in least["notes"]
    truth = load_kept_masks(tmp_path, findings, 0).truth
    assert truth is not None
    assert np.array_equal(unpacked(least["pictures"][0]["truth"]), reduced_mask(truth, 240))


def test_epochs_are_spread_with_both_ends() -> None:
    assert masks.spread(3, 6) == [0, 1, 2]
    assert masks.spread(20, 3) == [0, 10, 19]
    assert masks.spread(1, 6) == [0]


def test_picture_that_is_gone_is_said_and_an_exchanged_one_is_an_error(tmp_path: Path) -> None:
    keep_masks(tmp_path, num=2)
    (tmp_path / PICTURES / "0.webp").write_bytes(b"no picture")
    (tmp_path / PICTURES / "1.webp").unlink()
    assert [(p["photo"], p["missing"]) for p in made(tmp_path)["pictures"]] == [(None, "picture cannot be read"), (None, "no picture was kept")]
    PIL.Image.new("RGB", (64, 96)).save(tmp_path / PICTURES / "1.webp")
    with pytest.raises(RunError, match=r"1\.webp: expected a picture of 64 x 96 pixels, got 96 x 64; the folder was changed"):
        made(tmp_path)


def test_a_run_that_kept_no_masks_has_no_view(tmp_path: Path) -> None:
    assert masks.build(make_segmentation(tmp_path / "run"), ROOM) is None


def test_the_script_has_the_colours_of_the_error_figures() -> None:
    source = bundle.source("masks.js")
    assert f"RIGHT = pixel{RIGHT};" in source
    assert f"WRONG = pixel{WRONG};" in source


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_segmentation(tmp_path_factory.mktemp("masks") / "run", n=2)
    keep_masks(run.inside, num=3, unmasked=(2,))
    write_report(run)
    return run


def said(run: Run, i: int, e: int, x: int, y: int) -> str:
    """What the page says of a pixel."""
    findings = made(run.inside)
    picture = findings["pictures"][i]
    predicted, sure = unpacked(picture["predicted"])[e, y, x], unpacked(picture["confidence"])[e, y, x]
    truth = None if picture["truth"] is None else unpacked(picture["truth"])[y, x]
    known = "" if truth is None else "ignored, " if truth == IGNORED else f"{'right' if truth == predicted else 'wrong'}, truth {CLASSES[truth]}, "
    return f"Row {y + 1}, column {x + 1}: {known}predicted {CLASSES[predicted]}, confidence {sure / 255:.4f}"


@needs_chromium
def test_masks_answer_to_mouse_and_keyboard(run: Run, browser: Any) -> None:
    watched = Watched(browser)
    page = watched.open(run.report_file, "masks")
    view = page.locator('[data-view="masks"] .moving')
    canvas, readout = view.locator("canvas").nth(2), view.locator(".readout")
    box = canvas.bounding_box()
    canvas.hover(position={"x": 30.4 / 96 * box["width"], "y": 10.4 / 64 * box["height"]})
    assert readout.inner_text() == said(run, 0, 2, 30, 10)
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    assert readout.inner_text() == said(run, 0, 2, 29, 20)
    assert page.locator('.unseen[role="status"]').text_content() == said(run, 0, 2, 29, 20)
    for _ in range(9):
        page.keyboard.press("Shift+ArrowDown")
    assert readout.inner_text() == said(run, 0, 2, 29, 63)  # the last row, which is ignored
    assert "ignored" in readout.inner_text()
    view.get_by_label("Epoch", exact=True).focus()
    page.keyboard.press("Home")
    assert readout.inner_text() == said(run, 0, 0, 29, 63)
    numbers = made(run.inside)["pictures"][0]["numbers"]
    cells = re.split(r"\s+", view.locator("tbody tr").first.inner_text())
    assert cells == ["pixel", "accuracy", numbers[0][0]["text"], numbers[-1][0]["text"]]
    watched.keep("masks")
    view.get_by_label("Picture", exact=True).select_option(index=2)
    view.locator(".masks-panels figure[hidden]").nth(1).wait_for(state="attached")
    assert view.locator(".masks-panels figure[hidden]").count() == 2
    assert "Not measured: this picture has no mask" in view.inner_text()
    assert (watched.errors, len(watched.requests)) == ([], 1)


SHADES = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, found = {}; for (let i = 0; i < d.length; i += 4) { const k = [d[i], d[i + 1], d[i + 2]].join(); found[k] = (found[k] ?? 0) + 1; } return found; }"


@needs_chromium
def test_panels_show_the_classes_alone_and_over_the_image(run: Run, browser: Any) -> None:
    watched = Watched(browser)
    page = watched.open(run.report_file, "masks")
    view = page.locator('[data-view="masks"] .moving')
    truth, errors = (view.locator("canvas").nth(k) for k in (1, 3))
    page.evaluate(FRAMES)
    colours = [",".join(map(str, colour)) for colour in mask_format().colours.tolist()]
    whole = truth.evaluate(SHADES)
    assert whole[colours[0]] > sum(whole.get(colour, 0) for colour in colours[1:]) > 0
    assert whole["160,160,160"] > 0  # stripes of ignored pixels
    wrong = errors.evaluate(SHADES)
    assert wrong[",".join(map(str, RIGHT))] > wrong[",".join(map(str, WRONG))] > 0
    legend = view.get_by_role("group", name="Show one class alone").get_by_role("button")
    legend.nth(0).focus()
    page.keyboard.press("Enter")
    assert legend.nth(0).get_attribute("aria-pressed") == "true"
    page.evaluate(FRAMES)
    alone = truth.evaluate(SHADES)
    assert alone[colours[0]] == whole[colours[0]]
    assert not any(alone.get(colour) for colour in colours[1:])
    assert set(errors.evaluate(SHADES)) == {",".join(map(str, colour)) for colour in (RIGHT, WRONG, (90, 90, 90), (160, 160, 160), (225, 225, 225))}
    page.keyboard.press("Enter")
    assert legend.nth(0).get_attribute("aria-pressed") == "false"
    view.get_by_label("Opacity over the image").focus()
    page.keyboard.press("Home")
    page.evaluate(FRAMES)
    assert errors.evaluate(SHADES).get(",".join(map(str, RIGHT)), 0) < wrong[",".join(map(str, RIGHT))] / 20  # the image alone
    assert [error for error in watched.errors if "getImageData" not in error] == []  # the test itself reads pixels back


@needs_chromium
def test_saved_state_brings_back_what_was_seen_and_paper_has_the_still_pictures(run: Run, browser: Any, tmp_path: Path) -> None:
    text = run.report_file.read_text(encoding="utf-8")
    before = '<script type="application/json" id="data-masks">{"view":'
    assert before in text
    saved = tmp_path / "saved.html"
    saved.write_text(
        text.replace(before, before.replace('{"view"', '{"state":{"picture":1,"epoch":1,"opacity":5,"alone":0,"at":[8,7]},"view"')), encoding="utf-8"
    )
    watched = Watched(browser, viewport={"width": 360, "height": 740}, color_scheme="dark", reduced_motion="reduce")
    page = watched.open(saved, "masks")
    view = page.locator('[data-view="masks"] .moving')
    assert view.locator(".readout").inner_text() == said(run, 1, 1, 7, 8)
    assert view.locator("output").all_inner_texts() == ["epoch 3", "50 %"]
    assert view.get_by_role("button", name=CLASSES[0]).get_attribute("aria-pressed") == "true"
    assert view.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert [c.get_attribute("role") for c in view.locator("canvas").all()] == ["application"] * 5
    assert all("scenes-val-000001.png" in str(c.get_attribute("aria-label")) for c in view.locator("canvas").all())
    assert [c.get_attribute("tabindex") for c in view.locator("canvas").all()] == ["0"] + ["-1"] * 4
    assert view.locator(".ramp").evaluate("e => getComputedStyle(e).backgroundImage").startswith("linear-gradient(90deg, rgb(68, 1, 84)")
    watched.keep("masks-360-dark")
    page.emulate_media(media="print")
    assert not view.is_visible()
    assert page.locator('[data-view="masks"] .still').is_visible()
    assert watched.errors == []


@needs_chromium
def test_a_picture_that_comes_late_does_not_take_the_place_of_the_one_chosen_since(run: Run, browser: Any) -> None:
    watched = Watched(browser)
    page = watched.open(run.report_file, "masks")
    chosen = page.locator('[data-view="masks"]').get_by_label("Picture", exact=True)
    page.evaluate(SLOW_PICTURE)
    chosen.select_option(index=2)
    chosen.select_option(index=1)
    page.evaluate("window.decoded")
    page.evaluate(FRAMES)
    assert chosen.input_value() in page.locator('[data-view="masks"] .moving > h3').inner_text()
    assert watched.errors == []
