"""The measures of captions equal published implementations and their own twin written from the definitions, and have a number for every input."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torchmetrics.text import BLEUScore

from conftest import REPOSITORY
from pellucid.caption_scores import bleu, caption_scores, cider_d, distinct, exact_matches, meteor, most_frequent, never_produced, rouge_l, tokens_of
from pellucid.porter import stem
from pellucid.verify_caption_numbers import recompute_captions, recompute_distinct, recompute_most_frequent

GOLDEN = json.loads((REPOSITORY / "tests" / "golden" / "caption_scores.json").read_text(encoding="utf-8"))
SETS = sorted(GOLDEN["sets"])
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider_d", "exact_match", "length")
Captions = tuple[list[str], list[list[str]]]


def drawn(
    seed: int, pictures: int, most: int, vocabulary: Sequence[str] = ("a", "dog", "dogs", "runs", "running", "red", "snow.", "boy's", "Runs", "-", "")
) -> Captions:
    """Random captions of 0 to 8 words, some the same as a reference, some empty, with 1 to `most` references each."""
    draw = random.Random(seed)

    def caption() -> str:
        return " ".join(draw.choice(vocabulary) for _ in range(draw.randrange(9)))

    references = [[caption() for _ in range(draw.randint(1, most))] for _ in range(pictures)]
    return [draw.choice(own) if draw.random() < 0.2 else caption() for own in references], references


# ── published implementations ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SETS)
def test_bleu_is_pycocoevalcaps_but_for_its_constants(name: str) -> None:
    made = GOLDEN["sets"][name]
    theirs = [made["values"][f"bleu_{k}"] for k in range(1, 5)]
    # It adds 1e-15 to matches and 1e-9 to all n-grams of an order, of which there are hundreds here.
    assert bleu(made["candidates"], made["references"]) == pytest.approx(theirs, rel=1e-11, abs=0)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("metric", [cider_d, rouge_l, meteor], ids=lambda metric: metric.__name__)
def test_scores_of_each_picture_are_the_published_ones(metric: Callable, name: str) -> None:
    made = GOLDEN["sets"][name]
    np.testing.assert_allclose(metric(made["candidates"], made["references"]), made["each"][metric.__name__], rtol=0, atol=1e-14)
    assert caption_scores(made["candidates"], made["references"]).values()[metric.__name__] == pytest.approx(made["values"][metric.__name__], rel=1e-14, abs=0)


def test_the_golden_captions_hold_what_is_hard() -> None:
    assert len(SETS) == 2
    assert sum(len(made["candidates"]) for made in GOLDEN["sets"].values()) == 120
    for made in GOLDEN["sets"].values():
        assert "" in made["candidates"]
        assert all(0 < value < 10 for value in made["values"].values())
        assert 0 in made["each"]["meteor"]
        assert 0 in made["each"]["rouge_l"]
        assert len(set(made["each"]["cider_d"])) > 20
    assert GOLDEN["versions"] == {"nltk": "3.10.4", "pycocoevalcap": "1.2"}


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_torchmetrics(order: int) -> None:
    made = GOLDEN["sets"]["photographs"]
    # torchmetrics takes the first of two references equally near in length, we the shorter: sorted by length these are the same. It computes in float32.
    words = [" ".join(tokens_of(text)) for text in made["candidates"]]
    references = [sorted((" ".join(tokens_of(text)) for text in own), key=lambda text: len(text.split())) for own in made["references"]]
    theirs = float(BLEUScore(n_gram=order)(words, references))
    assert bleu(made["candidates"], made["references"], order)[-1] == pytest.approx(theirs, rel=3e-6, abs=0)
    assert torch.get_default_dtype() == torch.float32


def test_stems_are_nltks() -> None:
    assert len(GOLDEN["stems"]) > 130
    assert {word: stem(word) for word in GOLDEN["stems"]} == GOLDEN["stems"]


def test_words_are_those_of_the_treebank_tokeniser_without_punctuation() -> None:
    assert len(GOLDEN["words"]) == 12
    assert {text: tokens_of(text) for text in GOLDEN["words"]} == GOLDEN["words"]


# ── the twin ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("most", [1, 5])
def test_every_number_is_that_of_its_definition(seed: int, most: int) -> None:
    captions = drawn(seed, pictures=(2, 7, 40)[seed % 3], most=most)
    scores, again = caption_scores(*captions), recompute_captions(*captions, draws=0)
    assert tuple(again.values) == NAMES
    assert set(scores.values()) == set(NAMES)
    assert scores.values() == pytest.approx(again.values, rel=0, abs=1e-12)
    np.testing.assert_allclose(scores.cider_d, again.cider_d, rtol=0, atol=1e-12)


def test_the_numbers_of_the_golden_captions_are_those_of_their_definitions() -> None:
    for made in GOLDEN["sets"].values():
        again = recompute_captions(made["candidates"], made["references"], draws=0)
        assert caption_scores(made["candidates"], made["references"]).values() == pytest.approx(again.values, rel=0, abs=1e-12)


def test_intervals_are_percentiles_over_drawn_pictures() -> None:
    captions = drawn(3, pictures=30, most=3)
    scores, again = caption_scores(*captions).intervals(seed=5), recompute_captions(*captions, seed=5).intervals
    assert set(scores) == set(again) == set(NAMES)
    for name, interval in scores.items():
        assert interval.pair == pytest.approx(again[name], rel=0, abs=1e-12)
    assert scores["bleu_1"].how == "95 % bootstrap interval over 30 pictures (1,000 resamples)"
    assert caption_scores(*captions).intervals(seed=6)["bleu_1"].pair != scores["bleu_1"].pair


def test_an_interval_is_that_of_numbers_computed_anew_of_each_resample() -> None:
    candidates, references = drawn(4, pictures=12, most=2)
    whole, drawn_rows = caption_scores(candidates, references), np.random.Generator(np.random.PCG64(0))
    found = []
    for _ in range(40):
        rows = drawn_rows.integers(0, 12, size=12)
        found.append(bleu([candidates[i] for i in rows], [references[i] for i in rows], 2)[1])
    assert whole.intervals(seed=0, draws=40)["bleu_2"].pair == pytest.approx(np.quantile(found, [0.025, 0.975]), rel=0, abs=1e-12)


def test_intervals_cover_their_numbers_and_have_a_width() -> None:
    scores = caption_scores(*drawn(8, pictures=60, most=5))
    values = scores.values()
    for name, interval in scores.intervals().items():
        assert interval.low < values[name] < interval.high, name


def counted_never_produced(candidates: Sequence[str], references: Sequence[Sequence[str]], most: int) -> list[tuple[str, int]]:
    """The commonest words of the references that no candidate has, with how often they occur there."""
    words = sorted(word for own in references for text in own for word in tokens_of(text))
    runs: list[list[str | int]] = []
    for word in words:
        if runs and runs[-1][1] == word:
            runs[-1][0] = int(runs[-1][0]) - 1
        else:
            runs.append([-1, word])
    said = " ".join(["", *(word for text in candidates for word in tokens_of(text)), ""])
    return [(str(word), -int(count)) for count, word in sorted(runs) if f" {word} " not in said][:most]


@pytest.mark.parametrize("seed", range(6))
def test_what_a_set_says_is_that_of_its_definition(seed: int) -> None:
    candidates, references = drawn(seed, pictures=25, most=4)
    every = [text for own in references for text in own]
    assert distinct(candidates) == recompute_distinct(candidates)
    assert never_produced(candidates[:3], references, 4) == counted_never_produced(candidates[:3], references, 4)
    assert most_frequent(every) == recompute_most_frequent(every)
    once = list({tuple(tokens_of(text)): text for text in every}.values())
    assert most_frequent(once) == recompute_most_frequent(once)


# ── numbers worked by hand ────────────────────────────────────────────────────────────────────────────────────


def test_bleu_clips_and_punishes_brevity() -> None:
    # The example of Papineni et al. 2002: "the" seven times, twice in a reference.
    assert bleu(["the the the the the the the"], [["The cat is on the mat.", "There is a cat on the mat."]], 1) == [pytest.approx(2 / 7)]
    assert bleu(["the cat"], [["the cat is here"]], 2) == [pytest.approx(np.exp(1 - 4 / 2))] * 2
    assert bleu(["a b c"], [["a b", "a b c d"]], 1) == [pytest.approx(1.0)], "of lengths 2 and 4, equally near, the shorter"


def test_bleu_of_an_order_without_a_match_is_zero() -> None:
    assert bleu(["a b x c d"], [["a b y c d"]]) == [pytest.approx(0.8), pytest.approx(np.sqrt(0.8 * 0.5)), 0.0, 0.0]


def test_rouge_takes_precision_and_recall_from_different_references() -> None:
    found = rouge_l(["a b c d"], [["a b c d e f g h", "a b"]])[0]  # precision 4/4 of the first, recall 2/2 of the second
    assert found == pytest.approx(1.0)
    assert rouge_l(["d c b a"], [["a b c d"]])[0] == pytest.approx(0.25)


def test_meteor_of_a_caption_that_is_its_reference() -> None:
    assert meteor(["one two three four"], [["one two three four"]])[0] == pytest.approx(1 - 0.5 / 4**3)
    assert meteor(["dogs running"], [["dog run"]])[0] == pytest.approx(1 - 0.5 / 2**3), "stems match"
    assert meteor(["dogs"], [["hounds"]])[0] == 0, "synonyms do not"


def test_cider_of_words_that_every_picture_has_is_zero() -> None:
    assert cider_d(["a dog", "a cat"], [["a dog"], ["a cat"]]).tolist() == pytest.approx([5.0, 5.0]), "one and two words of four orders"
    assert cider_d(["a", "a"], [["a dog"], ["a cat"]]).tolist() == [0.0, 0.0]


def test_cider_of_a_single_picture_is_zero() -> None:
    assert cider_d(["a dog runs home"], [["a dog runs home"]]).tolist() == [0.0]


def test_a_word_said_again_and_again_is_worth_no_more_in_cider() -> None:
    references = [["red dog"], ["blue cat"]]
    once, often = (cider_d([text, "blue cat"], references)[0] for text in ("red dog", "red red red red dog"))
    assert often < once


def test_exact_matches_ignore_case_and_punctuation_but_not_words() -> None:
    captions = ["A red circle.", "a red circle", "red a circle", ""]
    assert exact_matches(captions, [["a red circle"], ["a blue ring", "A red circle !"], ["a red circle"], [""]]).tolist() == [True, True, False, False]


# ── inputs at the edge ────────────────────────────────────────────────────────────────────────────────────────


def test_no_pictures_have_numbers_that_are_zero() -> None:
    scores = caption_scores([], [])
    assert scores.values() == dict.fromkeys(scores.values(), 0.0)
    assert set(scores.values()) == set(NAMES)
    assert scores.intervals() == {}
    assert recompute_captions([], []).values == scores.values()
    assert bleu([], []) == [0.0] * 4
    assert not len(cider_d([], []))
    assert not len(meteor([], []))
    assert not len(rouge_l([], []))
    assert distinct([]) == 0.0
    assert never_produced([], [], 5) == []
    assert most_frequent([]) == recompute_most_frequent([]) == ""


@pytest.mark.parametrize("text", ["", "  ", "...", "."])
def test_empty_captions_score_zero_whatever_their_references(text: str) -> None:
    captions = ([text, text, text], [["a dog"], [text], [text, "a cat"]])
    assert set(caption_scores(*captions).values().values()) == {0.0}
    assert set(recompute_captions(*captions, draws=0).values.values()) == {0.0}
    assert all(interval.pair == (0.0, 0.0) for interval in caption_scores(*captions).intervals(draws=20).values())


def test_a_resample_of_empty_captions_alone_has_numbers() -> None:
    captions = (["", "", "a dog"], [["a dog"], ["a dog"], ["a dog"]])
    scores, again = caption_scores(*captions).intervals(), recompute_captions(*captions).intervals
    assert scores["bleu_1"].low == 0.0
    assert scores["bleu_1"].high == pytest.approx(again["bleu_1"][1], abs=1e-12)


def test_captions_that_do_not_fit_their_references_are_named() -> None:
    with pytest.raises(ValueError, match="expected the references of each of 2 captions, got those of 1"):
        caption_scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"expected caption 1 as text with a list of at least one reference, got 'b' with \[\]"):
        cider_d(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="expected caption 0 as text with a list of at least one reference, got 'a' with 'a dog'"):
        meteor(["a"], ["a dog"])
    with pytest.raises(ValueError, match=r"expected caption 0 as text with a list of at least one reference, got \['a', 'dog'\]"):
        rouge_l([["a", "dog"]], [["a dog"]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="expected an order from 1 to 4, got 5"):
        bleu(["a"], [["a"]], 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A (very) [big] {dog} …", ["a", "very", "big", "dog"]),
        ("“Quoted” ‘words’ – and — dashes", ["quoted", "words", "and", "dashes"]),
        ("the man’s hat", ["the", "man", "'s", "hat"]),
        ("un chien très drôle, à côté d'une forêt", ["un", "chien", "très", "drôle", "à", "côté", "d'une", "forêt"]),
        ("Ein Mädchen läuft!", ["ein", "mädchen", "läuft"]),
        ("एक कुत्ता दौड़ता है", ["एक", "कुत्ता", "दौड़ता", "है"]),
        ("20 % & #7 @home", ["20", "%", "&", "#", "7", "@", "home"]),
        ("either/or", ["either", "/", "or"]),
        ("a\tnew\nline", ["a", "new", "line"]),
        ("''", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert tokens_of(text) == words
    assert tokens_of(" ".join(words)) == words, "cutting words again changes nothing"


# ── what a set says ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_caption_for_every_picture_shows_in_distinct() -> None:
    assert distinct(["A dog.", "a dog", "a dog !", "A DOG"]) == 0.25
    assert distinct(["a dog", "a cat"]) == 1.0


def test_words_that_are_never_produced_are_named_with_their_counts() -> None:
    references = [["a red dog runs", "the red dog"], ["a blue cat", "a cat , red ."]]
    assert never_produced(["a cat"], references, 3) == [("red", 3), ("dog", 2), ("blue", 1)]


def test_the_most_frequent_caption_is_one_that_was_written() -> None:
    assert most_frequent(["A cat", "a dog .", "A dog", "a bird"]) == "A dog"
    assert most_frequent(["b x", "a y", "b x", "a y", "c z"]) == "a y", "of equally common ones the first in sorted order"
    assert most_frequent(iter(["only"])) == "only"


def test_where_no_caption_occurs_twice_the_most_typical_stands_in() -> None:
    captions = ["zebra crossing", "a dog runs in snow", "a dog runs in grass", "a dog sleeps in snow", "an apple"]
    assert most_frequent(captions) == "a dog runs in snow"


# ── the house ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_scores_and_their_twin_need_no_torch() -> None:
    script = "import sys, pellucid.caption_scores, pellucid.verify_caption_numbers; print(sorted({'torch', 'transformers', 'nltk'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
