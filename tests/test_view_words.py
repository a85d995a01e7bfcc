"""The view of words: its data is what the folder holds, and each word and patch can be asked for by mouse and by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from browser import FRAMES, SLOW_PICTURE, Watched, chromium, needs_chromium
from fabricate_captions import caption_finding, make_run, make_words, maps_of, word_scores
from pellucid.errors import RunError
from pellucid.findings import verdict
from pellucid.report import write_report
from pellucid.run import Run, rounded
from pellucid.views import EXPLORER, Room, View, to_json, words
from pellucid.word_findings import NOUN, WORD_ARRAYS, load_words
from sent import unpacked
from test_report import HOSTILE

ROOM = Room(bytes=800_000)


def made(folder: Path, room: Room = ROOM) -> View:
    view = words.of_folder(folder, room)
    assert view is not None
    return view


def keep_layers(folder: Path, scale: float = 0.5) -> list[NDArray[np.float32]]:
    """Add the maps of two layers to a folder of words: of layer l the drawn maps times scale ** l, mirrored."""
    with np.load(folder / WORD_ARRAYS) as arrays:
        held = dict(arrays)
    layers = [np.stack([held[f"maps/{i}"][:, :, ::-1] * scale**k for k in range(2)]).astype(np.float32) for i in range(len(held))]
    np.savez(folder / WORD_ARRAYS, **held, **{f"layers/{i}": maps for i, maps in enumerate(layers)})  # type: ignore[arg-type]  # mypy takes a name for an option
    return layers


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_of_the_view_are_those_of_the_folder(tmp_path: Path) -> None:
    findings = make_words(tmp_path)
    layers = keep_layers(tmp_path)
    view = made(tmp_path)
    assert view["sets"] == ["drawn maps (mean of all 2 layers)", "layer 1 of 2", "layer 2 of 2"]
    for i, (picture, finding) in enumerate(zip(view["pictures"], findings.images, strict=True)):
        expected = np.concatenate([maps_of(finding)[None], layers[i]]).astype(np.float64)
        found = unpacked(picture["maps"]) / 65535 * np.array(picture["most"])[:, None, None, None]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5  # under the last digit that is shown
        assert unpacked(picture["maps"]).max(axis=(1, 2, 3)).tolist() == [65535] * 3
        height, width = finding.size
        assert picture["view"] == pytest.approx([finding.view[0] / height, finding.view[1] / width, finding.view[2] / height, finding.view[3] / width])
        assert picture["grid"] == list(finding.grid)


def test_each_word_has_its_query_place_and_scores_beside_the_centre_prior(tmp_path: Path) -> None:
    make_words(tmp_path, findings=[caption_finding(0, (60, 80), "a red ring")])
    first, red, ring = made(tmp_path)["pictures"][0]["words"]
    assert (first["after"], red["after"], ring["after"]) == ("after the start", "after “a”", "after “red”")
    assert first["scores"] == []
    assert ring["scores"] == [["mass", "0.4300", "0.0200"], ["pointing", "0.0000", "0.0200"]]
    assert first["place"] == words.place(maps_of(caption_finding(0, (60, 80), "a red ring"))[0].astype(np.float64))


def test_words_say_where_the_view_has_them_and_not_where_tiles_have_them(tmp_path: Path) -> None:
    found = make_words(tmp_path)
    said, tiles = made(tmp_path)["how"], words.how(found, below=True)
    assert "below" not in said.lower()
    assert "the word before, which stands behind “after”" in said
    assert "Beside a word's numbers stand those of the centre prior" in said
    assert "which stands below it" in tiles
    assert "Below a word in brackets: the centre prior" in tiles


def test_scores_of_the_set_stand_beside_their_baselines_with_verdicts(tmp_path: Path) -> None:
    make_words(tmp_path)
    view = made(tmp_path)
    whole, by_layer = view["tables"]
    assert "over 300 pictures of val" in whole["caption"]
    assert [head["text"] for head in whole["heads"]] == ["words, measure", "value", "uniform", "centre", "shuffled", "random model", "verdict"]
    scores = [score for of in word_scores().values() for score in of]
    for row, score in zip(whole["rows"], scores, strict=True):
        assert row[1]["text"] == str(score.value)
        assert row[2:-1] == [str(m) for m in score.baselines.values()]
        assert row[-1] == verdict(score)[0]
    assert [row[0] for row in by_layer["rows"]] == ["nouns, mass", "nouns, pointing", "colour words, mass", "colour words, pointing"]
    assert view["sentences"] == [words.finding_of(load_words(tmp_path), kind) for kind in word_scores()]
    assert view["sentences"][0].startswith("Nouns (300 of val): mass ")


def test_words_without_places_are_said_to_be_unmeasured(tmp_path: Path) -> None:
    make_words(tmp_path, scored=False)
    view = made(tmp_path)
    assert "where the data says where things are, and here it does not" in view["how"]
    assert (view["tables"], view["sentences"]) == ([], [])
    assert not any(word["scores"] for picture in view["pictures"] for word in picture["words"])


def test_what_does_not_fit_is_left_out_layers_first_and_said(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (90, 120, 3)).astype(np.uint8) for i in range(3)]
    findings = [caption_finding(i, (90, 120), "red ring " * 12, grid=(24, 24)) for i in range(3)]
    random = [np.random.default_rng(i).random((24, 24, 24)).astype(np.float32) for i in range(3)]
    make_words(tmp_path, findings=findings, photos=noise, maps=random)
    enough = len(to_json(made(tmp_path, EXPLORER)).encode()) + 4000  # without layers
    keep_layers(tmp_path)
    whole = made(tmp_path, EXPLORER)
    assert len(whole["sets"]) == 3
    assert "did not fit" not in " ".join(whole["notes"])
    less = made(tmp_path, Room(bytes=enough))
    assert (len(less["sets"]), len(less["pictures"])) == (1, 3)
    assert "The maps of single layers did not fit; `pellucid explore` shows all." in less["notes"]
    assert len(to_json(less).encode()) <= enough
    assert len(made(tmp_path, Room(bytes=1))["pictures"]) == 1
    assert "1 of 3 pictures are here" in " ".join(made(tmp_path, Room(bytes=1))["notes"])


@pytest.mark.parametrize("fault", ["shape", "negative"])
def test_changed_maps_of_layers_are_named(tmp_path: Path, fault: str) -> None:
    make_words(tmp_path, findings=[caption_finding(0, (60, 80), "red ring")])
    keep_layers(tmp_path)
    with np.load(tmp_path / WORD_ARRAYS) as arrays:
        held = dict(arrays)
    held["layers/0"] = held["layers/0"][:1] if fault == "shape" else -held["layers/0"]
    np.savez(tmp_path / WORD_ARRAYS, **held)
    with pytest.raises(RunError, match=r"words\.npz: layers/0: expected finite numbers of at least 0 of shape \(2, 2, 4, 4\); got float32 .* was changed"):
        made(tmp_path)


def test_picture_that_is_gone_is_said_and_a_wrong_one_is_an_error(tmp_path: Path) -> None:
    make_words(tmp_path, findings=[caption_finding(0, (60, 80), "red ring")])
    file = tmp_path / "images" / "0.webp"
    file.unlink()
    assert made(tmp_path)["pictures"][0]["missing"] == "no picture was kept"
    PIL.Image.new("RGB", (90, 30)).save(file)
    with pytest.raises(RunError, match=r"0\.webp: .*expected a picture of 60 x 80 pixels or a smaller copy, got 30 x 90; the folder was changed"):
        made(tmp_path)


def test_no_word_and_no_picture_are_views_too(tmp_path: Path) -> None:
    make_words(tmp_path / "one", findings=[caption_finding(0, (60, 80), "")])
    assert made(tmp_path / "one")["pictures"][0]["words"] == []
    make_words(tmp_path / "none", findings=[])
    assert made(tmp_path / "none")["pictures"] == []
    assert words.of_folder(tmp_path, ROOM) is None


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("words") / "run", words=False)
    make_words(
        run.inside, findings=[caption_finding(0, (60, 80)), caption_finding(1, (90, 50), f"red {HOSTILE.replace(' ', '')}"), caption_finding(2, (60, 60), "")]
    )
    keep_layers(run.inside)
    write_report(run)
    return run


def said(run: Run, i: int, of: int, word: int, x: int, y: int) -> str:
    """What the page says of a patch."""
    picture = made(run.inside)["pictures"][i]
    weight = unpacked(picture["maps"])[of, word, y, x] / 65535 * picture["most"][of]
    return f"Row {y + 1} of 4, column {x + 1} of 4: {rounded(float(weight))} of the attention of “{picture['words'][word]['text']}”"


@needs_chromium
def test_words_and_patches_answer_to_mouse_and_keyboard(run: Run, browser: Any) -> None:
    watched = Watched(browser)
    page = watched.open(run.report_file, "words")
    view = page.locator('[data-view="words"] .moving')
    canvas, readout = view.locator("canvas"), view.locator(".readout")
    row = view.get_by_role("group", name="Word whose map is shown").get_by_role("button")
    finding = caption_finding(0, (60, 80))
    assert row.all_inner_texts() == ["photo", *(word.text for word in finding.words)]
    row.nth(3).click()
    assert row.nth(3).get_attribute("aria-pressed") == "true"
    assert "ring after “red”" in view.inner_text()
    assert view.locator("table").first.locator("tbody tr").all_inner_texts() == ["mass\t0.4300\t0.0200", "pointing\t0.0000\t0.0200"]
    box = canvas.bounding_box()  # of 80 x 60 the model saw the middle square, x from 10 to 70
    canvas.hover(position={"x": 45 / 80 * box["width"], "y": 20 / 60 * box["height"]})
    assert readout.inner_text() == said(run, 0, 0, 2, 2, 1)
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert readout.inner_text() == said(run, 0, 0, 2, 3, 2)
    assert page.locator('.unseen[role="status"]').text_content() == said(run, 0, 0, 2, 3, 2)
    row.nth(3).focus()
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text() == said(run, 0, 0, 1, 3, 2)
    assert page.evaluate("document.activeElement.textContent") == "red"
    assert [b.get_attribute("tabindex") for b in row.all()].count("0") == 1
    view.get_by_label("Maps", exact=True).select_option(index=2)
    assert readout.inner_text() == said(run, 0, 2, 1, 3, 2)
    watched.keep("words")
    page.keyboard.press("Tab")
    assert "How far the maps can be believed" in view.inner_text()
    assert (watched.errors, len(watched.requests)) == ([], 1)


@needs_chromium
def test_hostile_words_are_text_and_a_picture_without_words_is_its_photograph(run: Run, browser: Any) -> None:
    watched = Watched(browser, viewport={"width": 360, "height": 740}, color_scheme="dark", reduced_motion="reduce")
    page = watched.open(run.report_file, "words")
    view = page.locator('[data-view="words"] .moving')
    scripts = page.locator("script").count()
    view.get_by_label("Picture", exact=True).select_option(index=1)
    hostile = HOSTILE.replace(" ", "")
    view.get_by_role("button", name=hostile).click()
    assert page.locator("script").count() == scripts
    assert hostile in str(view.locator("canvas").get_attribute("aria-label"))
    assert view.locator("summary", has_text="own captions").is_visible()
    assert view.evaluate("e => e.scrollWidth <= e.clientWidth")
    watched.keep("words-360-dark")
    view.get_by_label("Picture", exact=True).select_option(index=2)
    view.get_by_role("heading", name="no word").wait_for()
    assert str(view.locator("canvas").get_attribute("aria-label")).endswith("00002.png, the photograph")
    page.emulate_media(media="print")
    assert not view.is_visible()
    assert page.locator('[data-view="words"] .still').is_visible()
    assert watched.errors == []


@needs_chromium
def test_a_picture_without_captions_of_its_own_has_no_list_of_them(run: Run, browser: Any, tmp_path: Path) -> None:
    alone = tmp_path / "alone.html"
    alone.write_text(re.sub(r'"references":\[[^]]*\]', '"references":[]', run.report_file.read_text(encoding="utf-8")), encoding="utf-8")
    view = (page := Watched(browser)).open(alone, "words").locator('[data-view="words"] .moving')
    assert view.locator(".readout").is_visible()
    assert not view.locator("summary", has_text="own captions").is_visible()
    assert page.errors == []


@needs_chromium
def test_saved_state_brings_back_the_word(run: Run, browser: Any, tmp_path: Path) -> None:
    before = '<script type="application/json" id="data-words">{"view":'
    text = run.report_file.read_text(encoding="utf-8")
    assert before in text
    saved = tmp_path / "saved.html"
    saved.write_text(text.replace(before, before.replace('{"view"', '{"state":{"picture":0,"set":1,"word":4,"at":[3,1]},"view"')), encoding="utf-8")
    watched = Watched(browser)
    page = watched.open(saved, "words")
    assert page.locator('[data-view="words"] .readout').inner_text() == said(run, 0, 1, 4, 1, 3)
    assert page.locator('[data-view="words"] [aria-pressed="true"]').inner_text() == caption_finding(0, (60, 80)).words[4].text
    assert (watched.errors, NOUN in run.inside.joinpath("words.json").read_text()) == ([], True)


@needs_chromium
def test_a_picture_that_comes_late_does_not_take_the_place_of_the_one_chosen_since(run: Run, browser: Any) -> None:
    watched = Watched(browser)
    page = watched.open(run.report_file, "words")
    chosen = page.locator('[data-view="words"]').get_by_label("Picture", exact=True)
    page.evaluate(SLOW_PICTURE)
    chosen.select_option(index=1)
    chosen.select_option(index=2)
    page.evaluate("window.decoded")
    page.evaluate(FRAMES)
    assert page.locator('[data-view="words"] .moving > h3').inner_text() == "no word", "that of the third picture"
    assert watched.errors == []
