"""Scores of the maps of words: against a slow twin, intervals over pictures, targets of other pictures, words matched to things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from pellucid.data.dataset import Thing
from pellucid.errors import UsageError
from pellucid.findings import Score
from pellucid.inside import word_scores
from pellucid.inside.faithfulness import MEASURES, PatchTarget, centre_prior, patch_target
from pellucid.inside.word_scores import ScoredWord, known_names, score_kind, score_words, things_of
from pellucid.intervals import bootstrap

GRID = (4, 5)


def square(row: int, column: int, size: tuple[int, int] = (16, 20)) -> np.ndarray:
    """A mask of one patch of GRID."""
    mask = np.zeros(size, dtype=bool)
    mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    return mask


def drawn(pictures: int, seed: int = 0) -> tuple[np.ndarray, list[PatchTarget], list[int], np.ndarray]:
    """Maps (m, gh, gw) that lean to their targets, targets, pictures (one to three words each), maps of random weights."""
    random = np.random.default_rng(seed)
    owners = [p for p in range(pictures) for _ in range(1 + p % 3)]
    targets = [patch_target(square(int(random.integers(4)), int(random.integers(5))).astype(int), GRID) for _ in owners]
    maps = random.random((len(owners), *GRID)) + np.stack([0.8 * target.share for target in targets])
    return maps, targets, owners, random.random((len(owners), *GRID))


def mean_of(x: np.ndarray, rows: np.ndarray) -> float:
    return float(x[rows].mean())


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    return {score.measure: score for score in scores}


def test_every_number_is_that_of_a_slow_twin() -> None:
    maps, targets, owners, random = drawn(8)
    scores, values, of_random = score_kind("noun", maps, targets, owners, random_maps=random, split="val", seed=3, note="by hand")
    assert list(by_name(scores)) == list(MEASURES)
    for measure, function in MEASURES.items():
        score = by_name(scores)[measure]
        own = [function(m, t) for m, t in zip(maps, targets, strict=True)]
        assert np.allclose(values[measure], own)
        strange = [function(m, t) for m, t in zip(random, targets, strict=True)]
        assert np.allclose(of_random[measure], strange)
        others = [
            np.mean([function(maps[i], targets[j]) for j in range(len(owners)) if owners[j] != owners[i]]) for i in range(len(owners))
        ]  # of other pictures, all of them: there are few
        expected: dict[str, Sequence[float]] = {
            "uniform": [function(np.ones(GRID), t) for t in targets], "centre": [function(centre_prior(GRID), t) for t in targets],
            "shuffled": others, "random model": strange,
        }  # fmt: skip
        assert score.value.value == pytest.approx(np.mean(own), abs=1e-12)
        assert score.value.name == f"{measure}[noun]"
        assert score.value.n == len(owners)
        assert list(score.baselines) == ["uniform", "centre", "shuffled", "random model"]
        for rival, x in expected.items():
            assert score.baselines[rival].value == pytest.approx(np.mean(x), abs=1e-12), (measure, rival)
            assert score.margins[rival].value == pytest.approx(np.mean(own) - np.mean(x), abs=1e-12)
        assert f"mean over {len(owners)} words of 8 pictures; by hand" in score.value.how
        assert score.value.interval is None  # of 8 pictures none is given


def test_maps_that_lean_to_their_things_beat_every_baseline_and_others_do_not() -> None:
    maps, targets, owners, random = drawn(60)
    scores, _, _ = score_kind("noun", maps, targets, owners, random_maps=random, split="val", seed=0)
    chance, _, _ = score_kind("noun", random, targets, owners, random_maps=maps, split="val", seed=0)
    for measure in ("mass", "pointing", "rank", "auc"):
        for rival, margin in by_name(scores)[measure].margins.items():
            assert margin.interval is not None
            assert margin.interval[0] > 0, (measure, rival)
        assert by_name(chance)[measure].margins["random model"].value < 0


def test_an_interval_draws_pictures_with_all_their_words() -> None:
    """One word repeated in its picture makes the interval no narrower, which it would if words were drawn."""
    maps, targets, owners, _ = drawn(30)
    alone = [owners.index(p) for p in range(30)]
    once, values, _ = score_kind("noun", maps[alone], [targets[i] for i in alone], list(range(30)), split="val", seed=0)
    many, _, _ = score_kind(
        "noun", maps[np.repeat(alone, 4)], [targets[i] for i in alone for _ in range(4)], np.repeat(range(30), 4).tolist(), split="val", seed=0
    )
    for measure in MEASURES:
        a, b = by_name(once)[measure].value, by_name(many)[measure].value
        assert b.n == 4 * a.n
        assert a.interval == pytest.approx(b.interval, abs=1e-12)
        x = values[measure]
        assert a.interval == pytest.approx(bootstrap(partial(mean_of, x), 30).pair, abs=1e-12)
    assert "30 pictures, each with all its words" in by_name(many)["mass"].value.interval_how


def test_a_word_is_never_judged_by_the_target_of_its_own_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    _, targets, owners, _ = drawn(40)
    pairs = word_scores._pairs(targets, np.asarray(owners))
    assert all(owners[a] != owners[b] for a, b in pairs)
    assert {a for a, _ in pairs} == set(range(len(owners)))
    assert max(sum(a == i for a, _ in pairs) for i in range(len(owners))) <= word_scores.SHIFTS
    monkeypatch.setattr(word_scores, "PAIRS", 40)  # of many words each is judged by a few
    few = word_scores._pairs(targets, np.asarray(owners))
    assert len(few) <= word_scores.FEWEST_SHIFTS * len(owners)
    assert {a for a, _ in few} == set(range(len(owners)))
    maps, targets, _, _ = drawn(4)
    scores, _, _ = score_kind("noun", maps, targets, [0] * len(targets), split="val", seed=0)  # one picture has no others
    assert "shuffled" not in scores[0].baselines


def test_scores_stand_by_layer_and_kind_with_their_arrays() -> None:
    maps, targets, owners, random = drawn(6)
    words = [
        ScoredWord(p, kind, np.stack([m, m**2, m**3]), t, np.stack([r, r, r]))
        for kind in ("noun", "color")
        for p, m, t, r in zip(owners, maps, targets, random, strict=True)
    ]
    missing = ScoredWord(0, "noun", np.full((3, *GRID), np.nan), targets[0], np.ones((3, *GRID)))
    scores, arrays = score_words([*words, missing], split="val", seed=0)
    assert list(scores) == ["chosen", "0", "1"]
    assert all(list(of) == ["noun", "color"] for of in scores.values())
    assert [scores[layer]["color"][0].method for layer in scores] == ["color", "color, layer 0", "color, layer 1"]
    assert by_name(scores["1"]["noun"])["mass"].value.value == pytest.approx(np.mean([MEASURES["mass"](m**3, t) for m, t in zip(maps, targets, strict=True)]))
    assert scores["chosen"]["noun"][0].value.n == len(owners)  # a map beyond the caption is in no number
    assert arrays["scores/chosen/noun/mass"].shape == arrays["random/1/color/auc"].shape == (len(owners),)
    assert len(arrays) == 2 * 3 * 2 * len(MEASURES)
    plain, some = score_words([ScoredWord(w.picture, w.kind, w.maps, w.target) for w in words], split="val", seed=0)
    assert "random model" not in plain["chosen"]["noun"][0].baselines
    assert not any(key.startswith("random") for key in some)
    assert score_words([], split="val", seed=0) == ({}, {})


def test_a_word_without_a_target_is_nan_and_in_no_mean() -> None:
    maps, targets, owners, _ = drawn(5)
    targets[2] = patch_target(np.zeros((16, 20), int), GRID)
    scores, values, _ = score_kind("noun", maps, targets, owners, split="val", seed=0)
    assert math.isnan(values["mass"][2])
    assert {m.n for s in scores for m in (s.value, *s.baselines.values(), *s.margins.values())} == {len(owners) - 1}
    with pytest.raises(UsageError, match=r"expected maps \(m, gh, gw\) of at least one word, with 9 targets and 8 pictures; got \(9, 4, 5\)"):
        score_kind("noun", maps, targets, owners[:-1], split="val", seed=0)


@pytest.mark.parametrize("measure", list(MEASURES))
def test_all_words_at_once_give_what_each_alone_gives(measure: str) -> None:
    """Ties, maps of zeros, a target that fills the view and none at all among them."""
    random = np.random.default_rng(1)
    maps = random.random((60, *GRID))
    maps[:30] = random.integers(0, 3, (30, *GRID))
    maps[3] = 0.0
    wide = [random.random((16, 20)) < share for share in np.linspace(0.1, 0.9, 58)]
    targets = [patch_target(mask.astype(int), GRID) for mask in (*wide, np.ones((16, 20)), np.zeros((16, 20)))]
    expected = [MEASURES[measure](one, target) for one, target in zip(maps, targets, strict=True)]
    assert np.allclose(word_scores._each(measure, maps, targets), expected, atol=1e-12, rtol=0, equal_nan=True)
    cut = np.zeros((16, 20), int)
    cut[:4], cut[4:8, 4:12] = 255, 1
    targets[5] = patch_target(cut, GRID)  # a row of patches that do not count
    expected[5] = MEASURES[measure](maps[5], targets[5])
    assert np.allclose(word_scores._each(measure, maps, targets), expected, atol=1e-12, rtol=0, equal_nan=True)
    with pytest.raises(UsageError, match=r"finite values >= 0"):
        word_scores._each(measure, -1 - maps, targets)


# ── words and things ──────────────────────────────────────────────────────────────────────────────────────────


def thing(kinds: dict[str, set[str]], mask: np.ndarray) -> Thing:
    return Thing({kind: frozenset(names) for kind, names in kinds.items()}, mask)


def test_a_word_has_the_masks_of_all_things_that_it_names() -> None:
    here = [thing({"noun": {"circle"}, "color": {"red"}}, square(0, 0)), thing({"noun": {"square"}, "color": {"red"}}, square(2, 3))]
    found = things_of(["a", "Red", "circle", "above", "a", "red", "square"], here)
    assert [(w.word, w.kind) for w in found] == [(2, "noun"), (6, "noun"), (1, "color"), (5, "color")]
    masks = {(w.word, w.kind): w.mask for w in found if w.mask is not None}
    assert np.array_equal(masks[2, "noun"], square(0, 0))
    assert np.array_equal(masks[1, "color"], square(0, 0) | square(2, 3))
    assert things_of(["a", "dog"], here) == []
    assert things_of([], here) == things_of(["a"], []) == []


def test_a_word_for_a_thing_that_the_picture_does_not_hold_has_no_mask() -> None:
    here = [thing({"noun": {"circle"}, "color": {"red"}}, square(0, 0))]
    known = known_names([*here, thing({"noun": {"star"}, "color": {"blue"}}, square(1, 1))])
    assert known == {"noun": {"circle", "star"}, "color": {"red", "blue"}}
    found = things_of(["a", "blue", "star", "above", "a", "red", "circle"], here, known)
    assert [(w.word, w.kind, w.mask is None) for w in found] == [(2, "noun", True), (6, "noun", False), (1, "color", True), (5, "color", False)]


def test_a_name_of_several_words_is_found_whole_at_its_last_word() -> None:
    here = [thing({"noun": {"teddy bear", "teddy bears"}}, square(0, 0)), thing({"noun": {"bear", "bears"}}, square(3, 4))]
    found = things_of(["a", "bear", "and", "a", "teddy", "bear"], here)
    assert [w.word for w in found] == [1, 5]
    assert np.array_equal(found[0].mask, square(3, 4))  # type: ignore[arg-type]
    assert np.array_equal(found[1].mask, square(0, 0))  # type: ignore[arg-type]
