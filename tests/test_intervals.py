from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from pellucid import intervals


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (1, 7), (7, 7), (186, 372), (350, 372), (9_999, 10_000)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    found = intervals.wilson(successes, n)
    assert found.pair == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.how == f"95 % Wilson interval over {n:,} samples"


def test_wilson_stays_inside_the_unit_interval_and_keeps_its_width() -> None:
    none, all_ = intervals.wilson(0, 20), intervals.wilson(20, 20)
    assert none.low == 0.0
    assert none.high > 0.1
    assert all_.high == 1.0
    assert all_.low < 0.9


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 4), (0, 0)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        intervals.wilson(successes, n)


def test_mean_interval_agrees_with_scipy() -> None:
    values = np.array([0.912, 0.921, 0.9055, 0.9302, 0.918])
    expected = scipy.stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    assert intervals.mean(values).pair == pytest.approx(expected, abs=1e-12)


def test_mean_interval_of_one_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 values"):
        intervals.mean([0.9])


def test_welch_agrees_with_scipy() -> None:
    first, second = [0.93, 0.94, 0.925], [0.90, 0.915, 0.88, 0.91]
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert intervals.welch(first, second).pair == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_welch_of_values_without_spread_is_the_difference() -> None:
    assert intervals.welch([0.5, 0.5], [0.25, 0.25]).pair == (0.25, 0.25)


def test_paired_interval_agrees_with_a_bootstrap_over_samples() -> None:
    random = np.random.default_rng(0)
    first = random.random(2000) < 0.9
    second = np.where(random.random(2000) < 0.05, ~first, first)
    resampled = intervals.bootstrap(lambda rows: first[rows].mean() - second[rows].mean(), 2000, draws=4000, seed=1)
    assert intervals.paired(first, second).pair == pytest.approx(resampled.pair, abs=1.5e-3)


def test_paired_interval_follows_agresti_and_min() -> None:
    """The four cells with half a sample more in each, from the definition."""
    first, second = np.array([1, 1, 1, 1, 0, 0, 1, 0]), np.array([1, 1, 0, 0, 1, 0, 0, 0])
    difference = list((first - second).astype(float))
    cells = difference * 2 + [0.0, 0.0, 1.0, -1.0]  # every count doubled, so that the halves become whole samples
    n, mean, deviation = len(first) + 2, np.mean(cells), np.std(cells)
    half = scipy.stats.norm.ppf(0.975) * deviation / np.sqrt(n)
    assert intervals.paired(first, second).pair == pytest.approx((mean - half, mean + half), abs=1e-12)


def test_paired_interval_is_not_a_point_when_the_runs_never_disagree() -> None:
    found = intervals.paired(np.ones(50), np.ones(50))
    assert found.low < 0.0 < found.high


def test_paired_interval_refuses_rows_of_unequal_length() -> None:
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(2,\)"):
        intervals.paired([1, 0, 1], [1, 0])


def test_paired_shares_of_one_seed_are_the_paired_interval() -> None:
    random = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.9):
        first, second = random.random(80) < share, random.random(80) < 0.5
        assert intervals.paired_shares(first.astype(float), second.astype(float)) == intervals.paired(first, second)
    assert intervals.paired_shares(np.ones(3), np.zeros(3)).high == 1.0
    assert intervals.paired_shares(np.zeros(3), np.ones(3)).low == -1.0
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(2,\)"):
        intervals.paired_shares([0.5, 0, 1], [1, 0.5])


def test_paired_shares_cover_the_difference_as_often_as_they_say() -> None:
    """Images that are hard for both and three seeds: about 95 of 100 intervals hold the true difference."""
    random, covered, draws = np.random.default_rng(3), 0, 600
    for _ in range(draws):
        ease = random.normal(size=(1, 150))
        first = (ease + 0.5 + random.normal(size=(3, 150)) > 0).mean(axis=0)
        second = (ease + random.normal(size=(3, 150)) > 0).mean(axis=0)
        covered += intervals.paired_shares(first, second).covers(float(scipy.stats.norm.cdf(0.5 / np.sqrt(2))) - 0.5)
    assert 0.93 <= covered / draws <= 0.98


def test_bootstrap_is_a_function_of_its_seed_and_covers_macro_f1() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 3, 150)
    predicted = np.where(random.random(150) < 0.2, random.integers(0, 3, 150), labels)

    def macro_f1(rows: np.ndarray) -> float:
        return float(f1_score(labels[rows], predicted[rows], average="macro"))

    found = intervals.bootstrap(macro_f1, 150, draws=200, seed=5)
    assert found == intervals.bootstrap(macro_f1, 150, draws=200, seed=5)
    assert found != intervals.bootstrap(macro_f1, 150, draws=200, seed=6)
    assert found.covers(macro_f1(np.arange(150)))
    assert 0.02 < found.high - found.low < 0.25


def test_bootstrap_of_a_mean_agrees_with_the_t_interval() -> None:
    values = np.random.default_rng(4).normal(size=500)
    resampled = intervals.bootstrap(lambda rows: float(values[rows].mean()), 500, draws=2000)
    assert resampled.pair == pytest.approx(intervals.mean(values, of="samples").pair, abs=0.01)


def test_paired_bootstrap_is_narrower_than_two_alone_and_says_its_seed() -> None:
    random = np.random.default_rng(7)
    hard = random.normal(size=60)
    first, second = hard + 0.1 * random.normal(size=60) + 0.2, hard + 0.1 * random.normal(size=60)
    found = intervals.paired_bootstrap(lambda rows: float(first[rows].mean() - second[rows].mean()), 60, seed=3)
    assert found.how == "95 % paired bootstrap interval over the same 60 images (1,000 resamples, seed 3)"
    assert found.pair == pytest.approx(intervals.mean(first - second).pair, abs=0.01)
    alone = intervals.welch(first, second)
    assert found.high - found.low < (alone.high - alone.low) / 5


def test_resamples_without_the_number_are_left_out_and_counted() -> None:
    """A class that one of eight samples has: every resample without that sample has no number for it."""
    rare = np.array([1.0] + [np.nan] * 7)

    def of_rare(rows: np.ndarray) -> float:
        there = rare[rows][~np.isnan(rare[rows])]
        return float(there.mean()) if len(there) else float("nan")

    found = intervals.bootstrap(of_rare, 8, draws=500)
    random = np.random.Generator(np.random.PCG64(0))
    there = sum(bool((random.integers(0, 8, size=8) == 0).any()) for _ in range(500))
    assert found.pair == (1.0, 1.0)
    assert found.how == f"95 % bootstrap interval over 8 samples ({there} of 500 resamples)"
    assert 250 < there < 400, "1 - (7/8)^8 of them"
    with pytest.raises(ValueError, match="none of 500 has it"):
        intervals.bootstrap(lambda rows: float("nan"), 8, draws=500)
