"""The page of a captioning, on fabricated runs: numbers beside baselines, sameness, best and worst, words over pictures."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from fabricate_captions import NUMBERS, caption_finding, described, make_run, make_words, maps_of, word_scores
from fabricate_inside import measured, photo
from pellucid import figures
from pellucid.caption_scores import cider_d, never_produced
from pellucid.errors import RunError
from pellucid.findings import verdict
from pellucid.report import captions, render
from pellucid.report.captions import NumberRow, beats, searched, sharing
from pellucid.run import RUNNING, Run
from pellucid.schema.captioning import GenerationSection
from pellucid.views.words import finding_of, place
from pellucid.word_findings import NOUN, WordsFindings
from test_report import HOSTILE, Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return render(run)


def section(page: str, name: str, *, text: bool = True) -> str:
    """The HTML of a section, or its text."""
    found = re.search(rf'<section id="{name}".*?</section>', page, flags=re.DOTALL)
    assert found is not None, name
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", found[0]))) if text else found[0]


def tiles_of(html: str) -> list[PIL.Image.Image]:
    """The pictures of strips, in order: of each the photograph, then one a word."""
    return [PIL.Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'<img src="data:image/webp;base64,([^"]*)"', html)]


def test_the_page_is_one_well_formed_offline_file(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    assert len(page) < 5_000_000
    assert {attributes["type"] for attributes in parsed.named("script")} == {"application/json", "module"}
    assert not re.search(r"https?://", re.sub(r"base64,[A-Za-z0-9+/=]*", "", page))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in ("captions", "words", "samples", "vocabulary")} <= {str(a.get("href")) for a in parsed.named("a")}
    assert all(attributes.get("alt") for attributes in parsed.named("img"))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_number_stands_beside_both_baselines(page: str) -> None:
    text = section(page, "captions")
    for name in ("CIDEr-D", "BLEU-1", "BLEU-4", "METEOR*", "ROUGE-L", "exact match", "token accuracy", "distinct over all", "length", "loss"):
        assert name in text
    for value, _, frequent, near in NUMBERS.values():
        assert f"{value:.4f} {value - 0.05:.4f} – {value + 0.05:.4f}" in text
        assert all(f"{other:.4f}" in text for other in (frequent, near) if other is not None)
    assert "CIDEr-D, 2.4000, is above that of the most frequent caption (0.3000) and the caption of the nearest training picture (0.9000)" in text
    assert "By beam search with 3 beams, length penalty 0.8" in text
    assert "no run of 3 tokens twice; at most 40 tokens" in text
    assert "words of 60 training captions; a caption has at most 40 tokens, its end among them." in text


@pytest.mark.parametrize(
    ("found", "frequent", "near", "expected"),
    [
        (0.8, 0.4, None, "BLEU-4, 0.8000, is above that of the most frequent caption (0.4000), beyond their intervals."),
        (0.8, 0.4, 0.75, "is not shown to be above every baseline: it is above that of the most frequent caption (0.4000), not to be told from that of the capt"),
        (0.1, 0.4, 0.12, "it is below that of the most frequent caption (0.4000), not to be told from that of the caption of the nearest"),
        (0.8, None, None, ""),
    ],
)  # fmt: skip
def test_the_sentence_follows_from_the_intervals(found: float, frequent: float | None, near: float | None, expected: str) -> None:
    beside = [None if value is None else measured("bleu_4", value, interval=0.05) for value in (frequent, near)]
    said = beats(NumberRow("BLEU-4", measured("bleu_4", found, interval=0.05), beside))
    assert expected in said
    assert bool(said) == bool(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "Greedily: the likeliest token each time; at most 9 tokens"),
        ({"num_beams": 4, "length_penalty": -1.0}, "4 beams, length penalty -1 (log probability over length to this power, below 0 favours shorter)"),
        ({"num_beams": 2, "length_penalty": 0.0, "min_length": 3}, "length penalty 0 (log probability over length to this power); at least 3 tokens"),
    ],
)
def test_the_search_is_said_in_words(settings: dict[str, float], expected: str) -> None:
    assert expected in searched(GenerationSection.model_validate(settings), 9)


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_caption_for_all_pictures_is_an_alert_at_the_top(tmp_path: Path) -> None:
    page = render(make_run(tmp_path / "run", found=dict.fromkeys(range(40), "a red ring"), words=False))
    said = "Every one of the 40 pictures got the same caption: “a red ring”. The model does not look at the picture."
    assert page.index(said) < page.index('id="captions"')
    assert "40 of 40" in section(page, "vocabulary")


def test_sharing_is_a_fault_only_where_the_own_captions_differ() -> None:
    own = [[f"caption {i}"] for i in range(100)]
    nearly = [f"caption {i % 4}" for i in range(100)]
    assert "Nearly the same caption for every picture: 4 captions for 100 pictures" in sharing(nearly, own)[1]
    assert sharing(nearly, [[text] for text in nearly]) == (
        "4 distinct captions for 100 pictures (0.0400); the first own captions of these pictures are 4.",
        "",
    )
    assert sharing(["a"] * 100, [["b"]] * 100)[1] == ""  # pictures that all look alike
    assert sharing(["a"] * 9, own[:9])[1] == ""  # too few to tell
    assert sharing([f"caption {i % 11}" for i in range(100)], own)[1] == ""


def test_the_commonest_captions_and_the_words_never_said_have_their_counts(tmp_path: Path) -> None:
    found = dict.fromkeys(range(30), "a red ring") | {i: f"green {i}" for i in range(30, 40)}
    run = make_run(tmp_path / "run", found=found, words=False)
    text = section(render(run), "vocabulary")
    assert "11 distinct captions for 40 pictures (0.2750)" in text
    assert "a red ring 30 of 40" in text
    assert "green 31" not in text  # found once
    never = never_produced(list(found.values()), list(run.captions("val").values()), 30)
    assert ("above", 40) in never
    assert all(f"{word} {count}" in text for word, count in never)


def test_best_and_worst_are_those_of_cider_with_their_own_captions(run: Run, page: str) -> None:
    found = [described(i, i % 2) for i in range(40)]
    scores = cider_d(found, [[described(i)] for i in range(40)])
    html = section(page, "samples", text=False)
    worst, best = (re.findall(r'class="said">([^<]*)<', part) for part in html.split("<h3>Best</h3>"))
    assert len(worst) == len(best) == captions.MOST_SHOWN
    assert worst == [found[row] for row in np.argsort(scores, kind="stable")[:8]]
    assert best == [found[row] for row in np.argsort(-scores, kind="stable")[:8]]
    lowest = int(np.argmin(scores))
    text = section(page, "samples")
    assert f"{found[lowest]} CIDEr-D of the picture {scores[lowest]:.4f} {described(lowest)} val/{lowest:05d}.png" in text
    assert f"CIDEr-D of the picture {scores.max():.4f}" in text


def test_among_equal_captions_those_with_a_picture_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", found=dict.fromkeys(range(40), "nothing"), thumbnails=range(20, 28), words=False)
    worst = section(render(run), "samples", text=False).split("<h3>Best</h3>")[0]
    assert re.findall(r"<img [^>]*alt=\"val/(\d+)", worst) == [f"{row:05d}" for row in range(20, 28)]
    assert "no picture was kept" not in worst


def test_one_picture_has_no_best_and_no_worst(tmp_path: Path) -> None:
    assert "Of one picture there is no best and no worst." in section(render(make_run(tmp_path / "run", n=1, thumbnails=[], words=False)), "samples")


@pytest.mark.parametrize("caption", [HOSTILE, "كلب أسود يركض", "word " * 400, "", "x" * 900, '"><img src=x onerror=alert(1)>'])
def test_no_caption_breaks_the_page(tmp_path: Path, caption: str) -> None:
    run = make_run(tmp_path / "run", found={0: caption, 1: caption}, references={0: [caption or "a", HOSTILE]}, words=False)
    make_words(run.inside, findings=[replace(caption_finding(0, (60, 80), caption[:60]), references=[caption], file=HOSTILE)])
    page = render(run)
    parsed = Page(page)
    assert not parsed.open
    assert {attributes["type"] for attributes in parsed.named("script")} == {"application/json", "module"}
    assert all(attributes.get("src", "").startswith("data:") for attributes in parsed.named("img"))  # type: ignore[union-attr]
    assert parsed.text.count(caption.strip()[:50]) >= 3
    assert re.search(r'<h3 dir="auto"', page)


def test_an_unfinished_run_has_curves_and_no_captions(tmp_path: Path) -> None:
    page = render(make_run(tmp_path / "run", status=RUNNING))
    assert "not finished" in page
    assert not re.search(r'id="(captions|words|samples)"', page)
    assert all(title in section(page, "curves") for title in ("Loss", "Token accuracy", "CIDEr-D on val", "Exact match on val", "Learning rate"))


def test_the_data_has_pictures_and_tokens_and_no_classes(page: str) -> None:
    assert "pictures with captions" in section(page, "data")
    assert "class" not in section(page, "data")
    assert "scenes, 20 tokens" in Page(page).text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,caption\nval/00000.png,a\n", r"val.csv: val/00001.png has no caption or no captions of its own; the run was changed"),
        ("file,text\nval/00000.png,a\n", r"val.csv: expected a table of file and caption: KeyError\('caption'\); the file was changed"),
        ("file,caption\na,b\na,c\n", r"val.csv: expected a caption for each file, and each file once; the file was changed"),
        ("file,caption\na\n", r"val.csv: expected a caption for each file, and each file once; the file was changed"),
    ],
)
def test_a_table_of_captions_that_was_changed_is_named(tmp_path: Path, text: str, said: str) -> None:
    run = make_run(tmp_path / "run", words=False)
    (run.path / "predictions" / "val.csv").write_text(text)
    with pytest.raises(RunError, match=said):
        render(run)
    (run.path / "predictions" / "val.csv").unlink()
    with pytest.raises(RunError, match=r"val.csv: the file is missing"):
        render(run)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_word_has_its_map_query_numbers_and_a_spoken_place(page: str) -> None:
    html = section(page, "words", text=False)
    finding = caption_finding(0, (60, 80))
    first = html[: html.index("</article>")]
    assert len(tiles_of(first)) == 1 + len(finding.words)
    text = section(first + "</section>", "words")
    assert "a after the start" in text
    for word, before in zip(finding.words[1:], finding.words, strict=False):
        assert f"{word.text} after “{before.text}”" in text
    assert "ring after “red” mass 0.4300 (centre 0.0200) pointing 0.0000 (centre 0.0200)" in text  # by the word's own thing, not the mean of all nouns
    assert "Below a word in brackets: the centre prior" in text
    assert "on the patches" not in text
    row, column = np.unravel_index(int(maps_of(finding)[0].argmax()), (4, 4))
    assert row == 0
    assert f'alt="“a”, after the start: the map is highest at the top{" left" if column == 0 else ""} of what' in first


def test_the_picture_under_a_word_is_the_overlay_of_the_figures(tmp_path: Path) -> None:
    smooth = np.stack([np.linspace(20, 230, 80)] * 60)[..., None].repeat(3, axis=2).astype(np.uint8)
    finding = caption_finding(0, (60, 80), "red ring")
    run = make_run(tmp_path / "run", words=False)
    make_words(run.inside, findings=[finding], photos=[smooth])
    _, *tiles = tiles_of(section(render(run), "words", text=False))
    for tile, expected in zip(tiles, figures.word_overlays(smooth, finding, maps_of(finding)), strict=True):
        assert np.abs(np.asarray(tile.convert("RGB")).astype(int) - expected).mean() < 6  # of 255; both are lossy


def test_strips_take_no_more_than_a_megabyte(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", words=False)
    noise = [np.random.default_rng(i).integers(0, 256, (240, 360, 3)).astype(np.uint8) for i in range(3)]
    make_words(run.inside, findings=[caption_finding(i, (240, 360), "ring " * 90) for i in range(3)], photos=noise)
    found = captions.read_words(run, room=10**9)
    assert found is not None
    assert 1 <= len(found.strips) < 3
    assert sum(strip.bytes for strip in found.strips) <= captions.MAX_STRIP_BYTES or len(found.strips) == 1


@pytest.mark.parametrize(
    ("where", "said"), [((0, 0), "at the top left"), ((1, 2), "at the right"), ((2, 1), "at the bottom"), ((1, 1), "in the middle"), ((0, 1), "at the top")]
)
def test_the_spoken_place_is_where_the_map_is_highest(where: tuple[int, int], said: str) -> None:
    values = np.zeros((3, 3))
    values[where] = 1.0
    assert place(values) == said


def test_pieces_and_attention_beside_the_patches_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", words=False)
    finding = caption_finding(0, (60, 80), "two skis above", scored=False)
    words = [replace(word, tokens=span, query="##s", share=0.75) for word, span in zip(finding.words, ((0, 1), (1, 3), (3, 4)), strict=True)]
    make_words(run.inside, findings=[replace(finding, words=words)], scored=False)
    text = section(render(run), "words")
    assert "of a word of several pieces the later ones were looked for with its first ones read." in text
    assert "above after “skis” on the patches 0.7500" in text
    assert "##s" not in text
    assert "Of a word's attention 0.7500 is on the patches" in text


def test_scores_of_words_stand_beside_baselines_with_verdicts_and_layers(page: str) -> None:
    text = section(page, "words")
    for scores in word_scores().values():
        for score in scores:
            assert f"{score.value}" in text
            assert verdict(score)[0] in text
            assert all(str(m) in text for m in score.baselines.values())
    assert "Nouns (300 of val): mass 0.4000 (centre prior 0.2600), pointing 0.6000 (centre prior 0.2600)." in text
    assert (
        "Their maps lie on the thing that the word names more than every baseline does. Of the layers, layer 1 of 2 has the most mass on it (0.5000)." in text
    )
    assert "Colour words (300 of val): mass 0.0500" in text
    assert "are not shown to lie on the thing more than the baselines do: they do not say where the thing is." in text
    assert "layer 1 of 2 layer 2 of 2 centre" in text
    assert "12 nouns that are not in the picture have no target." in text
    assert "neither why the model chose the word nor where the thing is" in text


@pytest.mark.parametrize(
    ("pointing", "mass", "said"),
    [
        (0.6, 0.6, "lie on the thing that the word names more than every baseline does"),
        (0.6, 0.26, "by mass they do not"),
        (0.26, 0.26, "are not shown to lie on the thing more"),
        (0.1, 0.1, "lie on the thing less than a baseline does"),
    ],
)
def test_the_finding_of_a_kind_follows_from_both_measures(pointing: float, mass: float, said: str) -> None:
    def moved(value: float, measure: str) -> list[object]:
        return [s for s in word_scores(value + {"pointing": 0.0, "mass": 0.2}[measure])[NOUN] if s.measure == measure]

    findings = WordsFindings("0.1.0", "m", "w", "how", ["a"], [0], scores={"chosen": {NOUN: [*moved(pointing, "pointing"), *moved(mass, "mass")]}})  # type: ignore[list-item]
    assert said in finding_of(findings, NOUN)
    assert finding_of(WordsFindings("0.1.0", "m", "w", "how", ["a"], [0], scores={"chosen": {NOUN: []}}), NOUN) == ""


def test_words_without_places_are_said_to_be_unmeasured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", words=False)
    make_words(run.inside, scored=False)
    text = section(render(run), "words")
    assert "where the data says where things are, and here it does not" in text
    assert "(centre" not in text


def test_pictures_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", words=False)
    noise = [np.random.default_rng(i).integers(0, 256, (240, 360, 3)).astype(np.uint8) for i in range(3)]
    make_words(run.inside, findings=[caption_finding(i, (240, 360), "red ring") for i in range(3)], photos=noise)
    whole = captions.read_words(run, room=4_000_000)
    assert whole is not None
    assert len(whole.strips) == 3
    some = captions.read_words(run, room=whole.strips[0].bytes + whole.strips[1].bytes)
    assert some is not None
    assert len(some.strips) == 2
    least = captions.read_words(run, room=0)
    assert least is not None
    assert len(least.strips) == 1


def test_a_picture_that_is_gone_is_said_in_its_place_and_a_wrong_one_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    picture = run.inside / "images" / "0.webp"
    picture.write_bytes(b"no picture")
    assert "picture cannot be read" in section(render(run), "words")
    picture.unlink()
    assert "no picture was kept" in section(render(run), "words")
    PIL.Image.fromarray(photo(30, 90)).save(picture)
    with pytest.raises(RunError, match=r"0.webp: val/00000.png: expected a picture of 60 x 80 pixels or a smaller copy, got 30 x 90; the folder was changed"):
        render(run)
