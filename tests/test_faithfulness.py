"""The measures beside a map: against expected values over all tie-breakings, trusted libraries, and the traps that others fell into."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from pellucid.errors import UsageError
from pellucid.findings import Findings, Score, load_findings, verdict
from pellucid.inside import faithfulness
from pellucid.inside.faithfulness import (
    BASELINES,
    HOW,
    MEASURES,
    PatchTarget,
    centre_prior,
    patch_target,
    rank_correlation,
    score,
    score_maps,
    shuffled,
)
from pellucid.intervals import bootstrap


def target_of(inside: np.ndarray, valid: np.ndarray | None = None) -> PatchTarget:
    valid = np.ones_like(inside, dtype=bool) if valid is None else valid
    return PatchTarget(inside.astype(bool) & valid, valid, inside.astype(np.float64))


def left_half(gh: int = 4, gw: int = 4) -> PatchTarget:
    return target_of(np.arange(gw)[None].repeat(gh, 0) < gw // 2)


# ── the target on patches ─────────────────────────────────────────────────────────────────────────────────────


def slow_target(mask: np.ndarray, grid: tuple[int, int]) -> PatchTarget:
    """From the definition: the area of every pixel in every patch, as fractions."""
    (H, W), (gh, gw) = mask.shape, grid
    valid, target, share = np.zeros(grid, bool), np.zeros(grid, bool), np.zeros(grid, object)
    for i, j in np.ndindex(gh, gw):
        counted = on_target = Fraction(0)
        for y, x in np.ndindex(H, W):
            height = min(Fraction((i + 1) * H, gh), y + 1) - max(Fraction(i * H, gh), y)
            width = min(Fraction((j + 1) * W, gw), x + 1) - max(Fraction(j * W, gw), x)
            area = max(height, 0) * max(width, 0)
            counted += area * (mask[y, x] != 255)
            on_target += area * (mask[y, x] == 1)
        valid[i, j] = counted >= Fraction(H * W, gh * gw) / 2
        share[i, j] = on_target / counted if counted else Fraction(0)
        target[i, j] = valid[i, j] and counted > 0 and share[i, j] >= Fraction(1, 2)
    largest = max((share[i, j] for i, j in np.ndindex(gh, gw) if valid[i, j]), default=0)
    if not target.any() and largest > 0:
        target = valid & (share == largest)
    return PatchTarget(target, valid, share.astype(np.float64))


@pytest.mark.parametrize(("size", "grid"), [((12, 12), (3, 3)), ((7, 10), (3, 4)), ((5, 11), (2, 3)), ((3, 4), (5, 6)), ((9, 8), (1, 1))])
@pytest.mark.parametrize("chances", [(0.5, 0.4, 0.1), (0.2, 0.2, 0.6), (0.9, 0.1, 0.0), (0.97, 0.03, 0.0)])
def test_a_target_counts_the_exact_area_of_every_pixel(size: tuple[int, int], grid: tuple[int, int], chances: tuple[float, ...]) -> None:
    mask = np.random.default_rng(3).choice(np.array([0, 1, 255], np.uint8), size, p=chances)
    found, expected = patch_target(mask, grid), slow_target(mask, grid)
    np.testing.assert_array_equal(found.valid, expected.valid)
    np.testing.assert_array_equal(found.target, expected.target)
    np.testing.assert_allclose(found.share, expected.share, atol=1e-15)


def test_a_small_object_is_never_nothing() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[9:11, 9:10], mask[20, 20] = 1, 1
    found = patch_target(mask, (4, 4))
    assert np.argwhere(found.target).tolist() == [[1, 1]]  # the patch with two pixels, not that with one
    assert found.share[1, 1] == 2 / 64
    mask[20, 21] = 1
    assert np.argwhere(patch_target(mask, (4, 4)).target).tolist() == [[1, 1], [2, 2]]  # equal shares: both


def test_ignored_pixels_count_nowhere_and_patches_of_them_are_not_valid() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4], mask[:4, 2:4] = 1, 255  # half ignored, the rest target
    mask[4:, 4:] = 255
    mask[4, 4] = 1  # a target pixel in a patch that does not count
    found = patch_target(mask, (2, 2))
    assert found.valid.tolist() == [[True, True], [True, False]]
    assert found.target.tolist() == [[True, False], [False, False]]
    assert found.share[0, 0] == 1.0


@pytest.mark.parametrize("value", [0, 255])
def test_an_image_without_a_target_has_no_measure(value: int) -> None:
    target = patch_target(np.full((8, 8), value, np.uint8), (4, 4))
    assert not target.target.any()
    assert all(math.isnan(measure(np.ones((4, 4)), target)) for measure in MEASURES.values())


@pytest.mark.parametrize("mask", [np.full((4, 4), 2), np.zeros((4, 4, 3)), np.zeros((0, 4))])
def test_something_that_is_no_mask_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(UsageError, match="expected a mask"):
        patch_target(mask, (2, 2))


# ── measures ──────────────────────────────────────────────────────────────────────────────────────────────────


def first_patch(order: np.ndarray, values: np.ndarray, inside: np.ndarray) -> float:
    return float(inside[order[0]])


def first_k(order: np.ndarray, values: np.ndarray, inside: np.ndarray) -> float:
    return float(inside[order[: inside.sum()]].mean())


def kept_overlap(order: np.ndarray, values: np.ndarray, inside: np.ndarray) -> float:
    kept: list[int] = []
    for patch in order:  # until 60 % is held
        kept.append(patch)
        if values[kept].sum() >= 0.6 * values.sum() - 1e-12:
            break
    target = set(np.flatnonzero(inside).tolist())
    return len(target & set(kept)) / len(target | set(kept))


@pytest.mark.parametrize(("name", "once"), [("pointing", first_patch), ("rank", first_k), ("iou", kept_overlap)])
def test_ties_count_as_the_mean_over_all_orders(name: str, once: Callable[..., float]) -> None:
    random = np.random.default_rng(0)
    tied = 0
    for _ in range(12):
        values, inside = random.integers(0, 3, 6).astype(float), random.random(6) < 0.5
        if not inside.any() or not values.any():
            continue
        found = [
            once(np.array(sorted(range(6), key=lambda i, tie=tie: (-values[i], tie[i]))), values, inside)  # type: ignore[misc]
            for tie in itertools.permutations(range(6))
        ]
        tied += len(set(found)) > 1
        assert MEASURES[name](values.reshape(2, 3), target_of(inside.reshape(2, 3))) == pytest.approx(np.mean(found), abs=1e-12)
    assert tied >= 3  # the order did matter


def test_iou_of_a_large_uniform_map_is_the_expected_one() -> None:
    """Against scipy's hypergeometric distribution where factorials leave the range of floats."""
    target = target_of(np.arange(1024).reshape(32, 32) < 300)
    drawn = scipy.stats.hypergeom(1024, 300, 615)  # 615 is the fewest of 1,024 equal patches that hold 60 %
    x = np.arange(301)
    assert faithfulness.iou(np.full((32, 32), 0.1), target) == pytest.approx(float((drawn.pmf(x) * x / (915 - x)).sum()), rel=1e-9)


def test_auc_agrees_with_scikit_learn_also_with_ties() -> None:
    random = np.random.default_rng(1)
    for levels in (3, 1000):
        values, inside = random.integers(0, levels, (6, 7)).astype(float), random.random((6, 7)) < 0.3
        assert faithfulness.auc(values, target_of(inside)) == pytest.approx(roc_auc_score(inside.ravel(), values.ravel()), abs=1e-12)


def test_auc_of_a_target_that_fills_the_view_does_not_exist() -> None:
    full = target_of(np.ones((3, 3)))
    assert math.isnan(faithfulness.auc(np.eye(3), full))
    assert faithfulness.pointing(np.eye(3), full) == 1.0


def test_mass_is_the_share_of_the_sum_over_patches_that_count() -> None:
    valid = np.array([[True, True], [True, False]])
    assert faithfulness.mass([[1.0, 2.0], [5.0, 100.0]], target_of(np.array([[1, 1], [0, 0]]), valid)) == 3 / 8


@pytest.mark.parametrize("name", MEASURES)
def test_patches_that_do_not_count_change_nothing(name: str) -> None:
    random = np.random.default_rng(2)
    values, inside, valid = random.random((4, 5)), random.random((4, 5)) < 0.5, random.random((4, 5)) < 0.7
    changed = np.where(valid, values, 1e6)
    target = target_of(inside, valid)
    assert MEASURES[name](values, target) == MEASURES[name](changed, target)


@pytest.mark.parametrize("name", MEASURES)
def test_a_perfect_map_scores_one_and_its_opposite_nothing(name: str) -> None:
    target = target_of(np.arange(10).reshape(2, 5) < 5)
    assert MEASURES[name](target.target.astype(float), target) == pytest.approx(1.0 if name != "iou" else 3 / 5)  # 60 % of it lies in 3 of 5 patches
    assert MEASURES[name]((~target.target).astype(float), target) == 0.0


@pytest.mark.parametrize("name", MEASURES)
def test_measures_do_not_know_the_scale(name: str) -> None:
    values, target = np.random.default_rng(5).random((4, 4)), left_half()
    assert MEASURES[name](values * 1e-7, target) == pytest.approx(MEASURES[name](values, target), abs=1e-12)


def test_a_uniform_map_does_not_win_the_pointing_game() -> None:
    """The trap: with the first or any of the tied maxima as the point, a map that says nothing scores 1.0."""
    target = target_of(np.arange(64).reshape(8, 8) < 16)
    assert faithfulness.pointing(np.ones((8, 8)), target) == 0.25
    assert faithfulness.mass(np.ones((8, 8)), target) == 0.25
    assert faithfulness.rank(np.ones((8, 8)), target) == 0.25
    assert faithfulness.auc(np.ones((8, 8)), target) == 0.5


@pytest.mark.parametrize("name", MEASURES)
def test_a_map_of_zeros_counts_as_a_uniform_one(name: str) -> None:
    assert MEASURES[name](np.zeros((4, 4)), left_half()) == MEASURES[name](np.ones((4, 4)), left_half())


@pytest.mark.parametrize("wrong", [np.full((4, 4), math.nan), -np.ones((4, 4))])
def test_values_that_are_no_relevance_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(UsageError, match="finite values >= 0"):
        faithfulness.mass(wrong, left_half())


def test_a_map_on_another_grid_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a map on the grid of its target, \(4, 4\); got \(5, 4\)"):
        faithfulness.mass(np.ones((5, 4)), left_half())


# ── baselines ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_centre_prior_is_a_gaussian_with_exact_symmetry() -> None:
    prior = centre_prior((7, 10))
    np.testing.assert_array_equal(prior, prior[::-1])
    np.testing.assert_array_equal(prior, prior[:, ::-1])
    y, x = (0.5 / 7 - 0.5) / 0.25, (2.5 / 10 - 0.5) / 0.25
    assert prior[0, 2] == pytest.approx(math.exp(-(y * y + x * x) / 2))
    assert centre_prior((3, 3))[1, 1] == 1.0


def drawn(n: int, grid: tuple[int, int] = (4, 5), seed: int = 0) -> tuple[np.ndarray, list[PatchTarget]]:
    """Maps and targets of n images; the maps know something of their targets."""
    random = np.random.default_rng(seed)
    targets = [target_of(random.random(grid) < random.uniform(0.2, 0.6)) for _ in range(n)]
    maps = np.stack([random.random(grid) + 0.5 * target.target for target in targets]).astype(np.float32)
    return maps, targets


def test_shuffled_is_the_mean_over_the_masks_of_all_other_images_that_have_one() -> None:
    maps, targets = drawn(5)
    targets[3] = target_of(np.zeros((4, 5)))
    found = shuffled(faithfulness.mass, maps, targets)
    for i in (0, 1, 2, 4):
        assert found[i] == pytest.approx(np.mean([faithfulness.mass(maps[i], targets[j]) for j in (0, 1, 2, 4) if j != i]))
    assert math.isnan(found[3])
    assert np.isnan(shuffled(faithfulness.mass, maps[:1], targets[:1])).all()


def test_of_many_images_shuffled_takes_fixed_shifts() -> None:
    maps, targets = drawn(60, (2, 3), seed=4)
    targets = [target if target.target.any() else target_of(np.eye(2, 3)) for target in targets]
    count = itertools.count()

    def counted(relevance: np.ndarray, target: PatchTarget) -> float:
        next(count)
        return faithfulness.mass(relevance, target)

    found = shuffled(counted, maps, targets)  # type: ignore[arg-type]
    assert next(count) == 60 * faithfulness.SHIFTS
    everything = [np.mean([faithfulness.mass(maps[i], targets[j]) for j in range(60) if j != i]) for i in range(60)]
    assert found.mean() == pytest.approx(np.mean(everything), abs=0.01)


# ── all images ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def scored() -> tuple[list[Score], dict[str, np.ndarray], np.ndarray, list[PatchTarget]]:
    maps, targets = drawn(30)
    targets[2], targets[7] = target_of(np.zeros((4, 5))), target_of(np.ones((4, 5)))
    random_maps = np.random.default_rng(9).random(maps.shape)
    return *score_maps("attention", maps, targets, random_maps=random_maps, split="val", seed=7, note="final weights"), maps, targets


def test_every_measure_has_a_score_with_its_baselines(scored: tuple) -> None:
    scores, values, maps, targets = scored
    assert [found.measure for found in scores] == list(MEASURES) == list(values) == list(HOW)
    for found in scores:
        x = np.array([MEASURES[found.measure](m, t) for m, t in zip(maps, targets, strict=True)])
        np.testing.assert_array_equal(values[found.measure], x)
        n = 28 if found.measure == "auc" else 29  # one image has no target, that of another fills it
        assert found.value.name == f"{found.measure}[attention]"
        assert (found.value.n, found.value.seed, found.value.split, found.value.unit) == (n, 7, "val", "fraction")
        assert found.value.value == pytest.approx(np.nanmean(x))
        assert found.value.interval is not None
        assert found.value.interval[0] <= found.value.value <= found.value.interval[1]
        assert found.value.interval_how == f"95 % bootstrap interval over {n} samples (1,000 resamples)"
        assert found.value.how.startswith(HOW[found.measure])
        assert found.value.how.endswith("; final weights")
        assert list(found.baselines) == list(BASELINES)
        assert all(b.n == n and b.name == f"{found.measure}[attention, {name}]" for name, b in found.baselines.items())


def test_scores_are_records_that_a_file_keeps(scored: tuple, tmp_path: Path) -> None:
    Findings("0", "model", "weights", scores=scored[0]).save(tmp_path)
    assert load_findings(tmp_path).scores == scored[0]


def test_baselines_are_scored_like_the_map(scored: tuple) -> None:
    scores, _, maps, targets = scored
    expected = np.nanmean([faithfulness.mass(centre_prior((4, 5)), target) for target in targets])
    assert scores[1].baselines["centre"].value == pytest.approx(expected)
    assert scores[1].baselines["uniform"].value == pytest.approx(np.mean([t.target.mean() for t in targets if t.target.any()]))
    assert scores[1].baselines["shuffled"].value == pytest.approx(np.nanmean(shuffled(faithfulness.mass, maps, targets)))
    assert "masks of other images" in scores[1].baselines["shuffled"].how


def test_margins_are_paired_differences_with_their_own_interval(scored: tuple) -> None:
    scores, values, _, targets = scored
    rival = np.array([faithfulness.mass(m, t) for m, t in zip(np.random.default_rng(9).random((30, 4, 5)), targets, strict=True)])
    differences = (values["mass"] - rival)[np.isfinite(values["mass"])]
    margin = scores[1].margins["random model"]
    assert margin.value == pytest.approx(differences.mean())
    assert margin.interval == pytest.approx(bootstrap(lambda rows: float(differences[rows].mean()), len(differences)).pair)
    assert set(scores[1].margins) == set(scores[1].baselines)


def test_without_any_target_there_is_no_score() -> None:
    scores, values = score_maps("attention", np.ones((3, 2, 2)), [target_of(np.zeros((2, 2)))] * 3, split="val", seed=1)
    assert scores == []
    assert all(np.isnan(x).all() and x.shape == (3,) for x in values.values())


def test_one_image_has_no_shuffled_masks_and_no_interval() -> None:
    maps, targets = drawn(1)
    scores, _ = score_maps("attention", maps, targets, split="images", seed=1)
    assert set(scores[0].baselines) == {"uniform", "centre"}
    assert scores[0].value.interval is None
    assert verdict(scores[1])[1] == "open"


def test_maps_and_targets_of_different_number_are_refused() -> None:
    with pytest.raises(UsageError, match=r"for each of 2 targets, stacked; got shape \(3, 4, 5\)"):
        score_maps("attention", np.ones((3, 4, 5)), drawn(2)[1], split="val", seed=1)


def judged(values: np.ndarray, higher_is_better: bool = True, **baselines: np.ndarray) -> tuple[str, str]:
    return verdict(score("attention", "pointing", values, baselines, how="", split="val", seed=0, higher_is_better=higher_is_better)[0])


def test_a_paired_difference_is_found_where_the_intervals_of_the_means_overlap() -> None:
    baseline = np.random.default_rng(0).random(40)
    assert judged(baseline + 0.05, centre=np.where(np.arange(40) == 3, math.nan, baseline))[1] == "better"
    assert judged(baseline - 0.05, centre=baseline)[1] == "worse"
    assert judged(baseline, centre=baseline) == (f"cannot be told from the centre prior ({baseline.mean():.4f})", "open")
    assert judged(baseline[:19] + 0.05, centre=baseline[:19])[1] == "open"  # too few for an interval


def test_the_verdict_names_the_centre_prior_and_the_hardest_baseline() -> None:
    wave = np.linspace(-0.02, 0.02, 20)
    said = judged(0.5 + wave, uniform=0.2 + wave, centre=0.4 + wave, shuffled=0.6 + wave)
    assert said == ("beats the centre prior (0.4000); is worse than the masks of other images (0.6000), the hardest baseline", "worse")
    assert judged(0.5 + wave, False, uniform=0.9 + wave, centre=0.4 + wave) == ("is worse than the centre prior (0.4000)", "worse")
    assert judged(0.3 + wave, False, uniform=0.9 + wave, centre=0.4 + wave) == ("beats the centre prior (0.4000)", "better")


@pytest.mark.parametrize("levels", [4, 10_000])
def test_rank_correlation_agrees_with_scipy(levels: int) -> None:
    random = np.random.default_rng(levels)
    maps, others = random.integers(0, levels, (2, 3, 5, 6)).astype(float)
    maps[2] = 1.0
    found = rank_correlation(maps, others)
    assert found[:2] == pytest.approx([scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps[:2], others[:2], strict=True)])
    assert math.isnan(found[2])
