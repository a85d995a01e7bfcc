"""Strips of words and the figures of a captioning, on fabricated findings; layers against the definition of one."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from fabricate_captions import caption_finding, make_run, make_words, maps_of, word_scores
from fabricate_inside import photo
from pellucid import figures
from pellucid.caption_readings import caption_charts, extremes, patches_note, picture_view, query_note, word_maps
from pellucid.errors import RunError, UsageError
from pellucid.figures import words
from pellucid.figures.overlays import MAP_COLOURS, stretched
from pellucid.figures.words import IS_NOT, ground, layer
from pellucid.run import DONE, RUNNING
from pellucid.word_findings import WORD_ARRAYS, FoundWord

SIZE = (60, 80)


def texts(figure: Figure) -> str:
    return "\n".join(artist.get_text() for artist in figure.findobj(Text) if isinstance(artist, Text)).replace("\\$", "$")


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("view", [(0.0, 0.0, 60.0, 80.0), (0.0, 10.0, 60.0, 60.0), (7.5, 12.25, 40.0, 51.0)])
def test_a_layer_lies_over_its_ground_by_the_root_of_the_attention(view: tuple[float, float, float, float]) -> None:
    picture, values = photo(*SIZE), np.random.default_rng(0).random((4, 5))
    over = PIL.Image.fromarray(layer(SIZE, values, view, most=float(values.max())))
    found = np.asarray(PIL.Image.alpha_composite(PIL.Image.fromarray(ground(picture, view)).convert("RGBA"), over).convert("RGB"))
    share = np.sqrt(np.clip(stretched(values / values.max(), SIZE, view), 0.0, 1.0))[..., None]
    below, weight = ground(picture, view), 0.1 + 0.7 * share  # of the colour, over grey
    mixed = (1 - weight) * below + weight * 255 * matplotlib.colormaps[MAP_COLOURS](share[..., 0])[..., :3]
    top, left, height, width = view
    inside = np.s_[round(top) + 1 : round(top + height) - 1, round(left) + 1 : round(left + width) - 1]
    assert np.abs(found - mixed)[inside].max() <= 5  # rounded to whole numbers on the way
    assert np.array_equal(found[:, : max(0, round(left) - 1)], below[:, : max(0, round(left) - 1)])  # nothing lies over what the model did not see


def test_all_words_of_a_picture_share_one_scale() -> None:
    finding = caption_finding(0, SIZE, "one two", scored=False)
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 1], maps[1, 1, 1] = 0.8, 0.2
    strong, weak = figures.word_overlays(photo(*SIZE), finding, maps)
    (alone,) = figures.word_overlays(photo(*SIZE), caption_finding(0, SIZE, "one", scored=False), maps[:1])
    at = (22, 32)  # the middle of patch (1, 1) of the view, which begins at column 10
    assert np.abs(strong[at].astype(int) - alone[at]).max() <= 3
    assert weak[at].astype(int).sum() < strong[at].astype(int).sum() - 100
    (on_its_own,) = figures.word_overlays(photo(*SIZE), caption_finding(0, SIZE, "two", scored=False), maps[1:])
    assert np.abs(weak.astype(int) - on_its_own).max() > 60


def test_overlays_have_the_resolution_of_the_picture_and_fit_a_smaller_copy() -> None:
    finding = caption_finding(0, (600, 800))
    for size in ((600, 800), (300, 400)):
        assert [each.shape for each in figures.word_overlays(photo(*size), finding, maps_of(finding))] == [(*size, 3)] * 7
    assert picture_view(finding, photo(300, 400)) == (0.0, 50.0, 300.0, 300.0)
    with pytest.raises(UsageError, match=r"expected a picture of 600 x 800 pixels or a smaller copy, got 300 x 300"):
        figures.word_overlays(photo(300, 300), finding, maps_of(finding))


def test_maps_that_do_not_fit_the_words_are_refused() -> None:
    finding = caption_finding(0, SIZE)
    for maps in (maps_of(finding)[:-1], maps_of(finding)[:, :3], -maps_of(finding), np.full((7, 4, 4), np.nan)):
        with pytest.raises(UsageError, match=r"val/00000.png: expected a map \(gh, gw\) = \(4, 4\) of finite numbers >= 0 for each of 7 words"):
            figures.words_strip(photo(*SIZE), finding, maps)


# ── the strip ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_word_has_a_panel_with_its_query_and_its_numbers() -> None:
    finding = caption_finding(0, SIZE)
    figure = figures.words_strip(photo(*SIZE), finding, maps_of(finding), how="the mean of two layers", scores=word_scores())
    shown = panels(figure)
    assert [axes.get_title(loc="left") for axes in shown] == ["photo", *(word.text for word in finding.words)]
    below = [axes.get_xlabel() for axes in shown]
    assert below[1] == "after the start"
    assert below[3] == "after “red”\nmass 0.4300 (centre 0.0200)\npointing 0.0000 (centre 0.0200)"  # by the word's own thing, not the mean of all nouns
    assert len({spec.rowspan.start for axes in shown if (spec := axes.get_subplotspec()) is not None}) == 2  # eight panels wrap
    drawn = figures.word_overlays(photo(*SIZE), finding, maps_of(finding))
    assert all(np.array_equal(np.asarray(axes.images[0].get_array()), tile) for axes, tile in zip(shown[1:], drawn, strict=True))


def test_the_strip_says_its_query_what_it_is_not_its_scale_and_its_measures() -> None:
    finding = caption_finding(0, SIZE)
    said = texts(figures.words_strip(photo(*SIZE), finding, maps_of(finding), how="the mean of two layers", scores=word_scores())).replace("\n", " ")
    most = maps_of(finding).max()
    for sentence in (
        "Its query is the word before", IS_NOT, "It is the mean of two layers.", f"from 0 (dark) to {most:.4f} (bright)", "4 x 4 patches", "0.0625 on each",
        "at most 2e-07 from one pass", "Nouns of val, n = 300: pointing 0.6000 against uniform 0.1100, centre 0.2600", "Colour words of val", finding.caption,
    ):  # fmt: skip
        assert sentence in said
    bar = figures.words_strip(photo(*SIZE), finding, maps_of(finding)).axes[-1]
    assert bar.get_ylabel() == "attention on one patch"
    assert bar.get_ylim() == pytest.approx((0.0, float(most)))


def test_unmeasured_words_are_said_to_be_unmeasured() -> None:
    finding = caption_finding(0, SIZE, scored=False)
    figure = figures.words_strip(photo(*SIZE), finding, maps_of(finding))
    assert "Not measured: nobody says where the things of these pictures are." in texts(figure)
    assert "mass" not in texts(figure)
    assert "centre prior" not in texts(figure)


@pytest.mark.parametrize("caption", ["", "<script>$x_1$ _hidden", "كلب أسود", "狗 跑", "\x00 a", "long" * 40, "word " * 9])
def test_no_caption_breaks_the_strip(tmp_path: Path, caption: str) -> None:
    finding = caption_finding(0, SIZE, caption)
    (file,) = figures.save(figures.words_strip(photo(*SIZE), finding, maps_of(finding)), tmp_path / "strip", ("png",), dpi=20)
    with PIL.Image.open(file) as drawn:
        assert drawn.width > 100


def test_letters_that_the_font_lacks_are_squares_and_others_stay() -> None:
    finding = caption_finding(0, SIZE, "狗 dog")
    assert [axes.get_title(loc="left") for axes in panels(figures.words_strip(photo(*SIZE), finding, maps_of(finding)))] == ["photo", "□", "dog"]


def test_a_map_of_zeros_is_dark_and_no_division_by_zero() -> None:
    finding = caption_finding(0, SIZE, "one")
    (tile,) = figures.word_overlays(photo(*SIZE), finding, np.zeros((1, 4, 4)))
    inside = np.s_[:, 12:68]  # of the view; black has a tenth of the weight
    assert np.abs(tile[inside] - 0.9 * ground(photo(*SIZE), finding.view)[inside]).max() <= 3


def test_equal_strips_are_equal_bytes_in_all_formats(tmp_path: Path) -> None:
    finding = caption_finding(0, SIZE, "a ring")
    for one, two in zip(
        *(figures.save(figures.words_strip(photo(*SIZE), finding, maps_of(finding)), tmp_path / copy / "strip", dpi=40) for copy in ("one", "two")), strict=True
    ):
        assert one.read_bytes() == two.read_bytes()
        assert one.stat().st_size > 1000


# ── the figures of a run ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One format of each figure; that there are three is the business of `save`."""
    monkeypatch.setattr(words, "save", functools.partial(figures.save, formats=("png",), dpi=30))


@pytest.mark.usefixtures("quick")
def test_a_run_gets_curves_strips_and_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", words=False)
    make_words(run.inside, findings=[caption_finding(i, SIZE, "red ring") for i in range(4)])
    names = [str(path.relative_to(run.figures)) for path in figures.write_caption_figures(run)]
    expected = ["learning_curves", "captions", "learning_rate", *(f"words/{i:03d}-{i:05d}" for i in range(3)), "word_scores"]
    assert names == [f"{name}.png" for name in expected]
    assert all((run.figures / name).stat().st_size > 1000 for name in names)


@pytest.mark.usefixtures("quick")
def test_an_unfinished_run_without_words_gets_its_curves_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status=RUNNING)
    assert {path.stem for path in figures.write_caption_figures(run)} == {"learning_curves", "captions", "learning_rate"}


def test_curves_stand_against_captions_that_need_no_network(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status=DONE)
    charts = {chart.name: chart for chart in caption_charts(run.metrics(), run.measurements)}
    assert list(charts) == ["loss", "token_accuracy", "cider", "exact_match"]
    assert charts["cider"].curves[0].y == pytest.approx([0.6, 1.2, 1.8, 2.4])
    assert [(level.name, level.y, level.x) for level in charts["cider"].levels] == [
        ("most frequent caption", (0.3, 0.3), (1, 4)), ("caption of the nearest training picture", (0.9, 0.9), (1, 4)),
    ]  # fmt: skip
    assert [(c.name, c.y[0]) for c in charts["token_accuracy"].curves] == [("train", 0.2), ("val", 0.19)]
    assert caption_charts([], {}) == []


def test_scores_are_drawn_for_each_kind_and_layer_beside_baselines(tmp_path: Path) -> None:
    figure = figures.word_scores_figure(make_words(tmp_path / "inside"))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["pointing", "mass", "rank"]
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    drawn = "drawn maps (mean of all 2 layers)"
    assert rows == [f"{kind}, {of}" for kind in ("nouns", "colour words") for of in (drawn, "layer 1 of 2", "layer 2 of 2")]
    (legend,) = figure.legends
    assert {"uniform", "centre", "shuffled", "random model"} <= {text.get_text() for text in legend.get_texts()}
    with pytest.raises(UsageError, match="at least one score"):
        figures.word_scores_figure(make_words(tmp_path / "other", scored=False))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_maps_that_were_changed_are_named(tmp_path: Path) -> None:
    findings = make_words(tmp_path)
    assert [maps.shape for maps in word_maps(tmp_path, findings)] == [(7, 4, 4)] * 4
    for changed in (np.ones((6, 4, 4), np.float32), -np.ones((7, 4, 4), np.float32), np.ones((7, 4, 4), np.int64)):
        with np.load(tmp_path / WORD_ARRAYS) as arrays:
            kept = dict(arrays)
        np.savez(tmp_path / WORD_ARRAYS, **(kept | {"maps/2": changed}))
        with pytest.raises(RunError, match=r"words.npz: maps/2: expected finite numbers of at least 0 of shape \(7, 4, 4\); got .* The file was changed."):
            word_maps(tmp_path, findings)
    (tmp_path / WORD_ARRAYS).unlink()
    with pytest.raises(RunError, match=r"words.npz: the file is missing"):
        word_maps(tmp_path, findings)


def test_pictures_that_are_gone_or_of_another_shape_are_named(tmp_path: Path) -> None:
    findings = make_words(tmp_path / "inside")
    picture = tmp_path / "inside" / "images" / "0.webp"
    PIL.Image.new("RGB", (30, 90)).save(picture)
    with pytest.raises(RunError, match=r"inside: val/00000.png: expected a picture of 60 x 80 pixels .* the folder was changed"):
        figures.write_word_strips(tmp_path / "inside", findings, tmp_path / "out", most=1)
    picture.write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"0.webp: the picture of the words cannot be read"):
        figures.write_word_strips(tmp_path / "inside", findings, tmp_path / "out", most=1)


@pytest.mark.usefixtures("quick")
def test_strips_take_photographs_in_place_of_copies(tmp_path: Path) -> None:
    findings = make_words(tmp_path, findings=[replace(caption_finding(0, (120, 160), "a ring"), file="../odd name.jpg")], photos=[photo(60, 80)])
    (tmp_path / "images" / "0.webp").unlink()
    (file,) = figures.write_word_strips(tmp_path, findings, tmp_path / "out", most=5, photos=[photo(120, 160)])
    assert file == tmp_path / "out" / "000-odd_name.png"


def test_extremes_share_no_row_and_prefer_pictures_among_equals() -> None:
    scores = np.array([0.0, 2.0, 0.0, 1.0, 0.0, 2.0])
    assert extremes(scores, 2) == ([0, 2], [1, 5])
    assert extremes(scores, 2, shown={4, 5}) == ([4, 0], [5, 1])
    assert extremes(scores, 9) == ([0, 2, 4], [1, 5, 3])
    assert extremes(scores[:1], 9) == ([], [])


def test_a_measure_without_its_centre_prior_is_not_shown() -> None:
    finding = caption_finding(0, SIZE, "ring")
    finding = replace(finding, words=[FoundWord("ring", (0, 1), "start", "animal", 1.0, {"mass": 0.9})])
    assert "mass" not in panels(figures.words_strip(photo(*SIZE), finding, maps_of(finding), scores=word_scores()))[1].get_xlabel()


def test_a_word_stands_behind_the_whole_word_before_and_later_pieces_are_said() -> None:
    finding = caption_finding(0, SIZE, "two skis above", scored=False)
    spans, read = ((0, 1), (1, 3), (3, 4)), ("[CLS]", "two", "##s")
    pieces = replace(finding, words=[replace(word, tokens=span, query=query) for word, span, query in zip(finding.words, spans, read, strict=True)])
    figure = figures.words_strip(photo(*SIZE), pieces, maps_of(pieces))
    assert [axes.get_xlabel() for axes in panels(figure)[1:]] == ["after the start", "after “two”", "after “skis”"]
    assert "of a word of several pieces the later ones were looked for with its first ones read" in texts(figure).replace("\n", " ")
    assert query_note([finding]).endswith("the word itself was not known yet.")
    assert "several pieces" in query_note([finding, pieces])


def test_attention_that_is_on_no_patch_is_said() -> None:
    finding = caption_finding(0, SIZE, "two skis", scored=False)
    some = replace(finding, words=[replace(word, share=share) for word, share in zip(finding.words, (0.4132, 0.9995), strict=True)])
    figure = figures.words_strip(photo(*SIZE), some, maps_of(some))
    assert [axes.get_xlabel() for axes in panels(figure)[1:]] == ["after the start\non the patches 0.4132", "after “two”"]
    assert "Of a word's attention 0.4132 to 0.9995 is on the patches" in texts(figure).replace("\n", " ")
    assert patches_note(finding) == ""
    assert "on the patches" not in texts(figures.words_strip(photo(*SIZE), finding, maps_of(finding)))
