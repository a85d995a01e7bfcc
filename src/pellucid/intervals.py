"""Intervals at 95 %: how far a reported number could lie from what another sample or seed would give.

Which one answers which question:
    wilson       one proportion over n samples (Wilson 1927)
    mean         a mean of independent values, such as one number from several seeds (Student's t)
    welch        the difference of two such means, of unequal variance (Welch 1947)
    paired       the difference of two accuracies over the *same* samples (Agresti and Min 2005)
    paired_shares      the same of the mean accuracy of several seeds: of each sample the share of seeds that was right
    bootstrap    any statistic of samples, such as macro F1 (percentile method, Efron 1979)
    paired_bootstrap   the difference of such a statistic between two models on the *same* samples

An interval over samples says nothing about other seeds, and one over seeds nothing about other samples: `how` says which it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """`low` and `high` in the unit of the number they belong to, and in words what was computed over what."""

    low: float
    high: float
    how: str

    @property
    def pair(self) -> tuple[float, float]:
        return self.low, self.high

    def covers(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Interval:
    """The Wilson score interval of the proportion successes / n, inside [0, 1] (Wilson 1927).

    Unlike the normal approximation it keeps its width at proportions of 0 and 1.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"expected 0 <= successes <= n and n > 0, got {successes} of {n}")
    z, p = _normal_quantile(level), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else float(centre - half)  # exactly 0 and 1 at the ends, where rounding would leave 1e-17
    high = 1.0 if successes == n else float(centre + half)
    return Interval(low, high, f"{_percent(level)} Wilson interval over {n:,} samples")


def mean(values: ArrayLike, *, of: str = "seeds", level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of at least two independent values; `of` names what they are, for `how`."""
    x = _values(values, least=2)
    half = float(_t_quantile(level, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(float(x.mean()) - half, float(x.mean()) + half, f"{_percent(level)} t interval over {len(x):,} {of}")


def welch(first: ArrayLike, second: ArrayLike, *, of: str = "seeds", level: float = LEVEL) -> Interval:
    """The interval of mean(first) - mean(second) with unequal variances (Welch 1947); at least two values on each side."""
    a, b = _values(first, least=2), _values(second, least=2)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    difference, how = float(a.mean() - b.mean()), f"{_percent(level)} Welch interval over {len(a)} and {len(b)} {of}"
    if va + vb == 0:
        return Interval(difference, difference, how)
    # Welch-Satterthwaite degrees of freedom.
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(_t_quantile(level, freedom) * np.sqrt(va + vb))
    return Interval(difference - half, difference + half, how)


def paired(first: ArrayLike, second: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The interval of accuracy(first) - accuracy(second), where both hold whether the same n samples were right.

    The normal approximation over per-sample differences after adding half a sample to each of the four cells (right or
    wrong in either), which keeps the interval honest when the two rarely disagree (Agresti and Min 2005).
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"expected two equally long rows of right and wrong, got shapes {a.shape} and {b.shape}")
    return paired_shares(a, b, level=level)


def paired_shares(first: ArrayLike, second: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The interval of mean(first) - mean(second), where both hold for the same n samples the share of seeds that was right, (n,) in [0, 1].

    Agresti and Min's interval for shares: half a sample in each of four cells is one sample of difference +1 and one of -1, each of half weight, and one of
    0. With one seed it is `paired`.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"expected two equally long rows of shares, got shapes {a.shape} and {b.shape}")
    differences, n = a - b, len(a) + 2.0
    difference = float(differences.sum()) / n
    half = _normal_quantile(level) * np.sqrt((float(np.square(differences).sum()) + 1) / n - difference**2) / np.sqrt(n)
    low, high = float(max(-1.0, difference - half)), float(min(1.0, difference + half))
    return Interval(low, high, f"{_percent(level)} paired interval over the same {len(a):,} samples")


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], n: int, *, of: str = "samples", draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> Interval:
    """The percentile interval of `statistic(indices)` over resamples of n samples with replacement (Efron 1979).

    indices: (n,) int64 rows, some of them repeated. The same seed gives the same interval. `of` names the samples, for `how`.
    """
    low, high, used = _percentiles(statistic, n, draws, seed, level)
    return Interval(low, high, f"{_percent(level)} bootstrap interval over {n:,} {of} ({used} resamples)")


def paired_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], n: int, *, of: str = "images", draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> Interval:
    """The percentile interval of a difference between two models over resamples of the n samples that both were measured on.

    statistic(indices) is the number of the first minus that of the second, both on the same drawn samples, so that what makes a sample hard for both falls
    out of the difference. `of` names the samples, for `how`, which states the seed of the resamples too.
    """
    low, high, used = _percentiles(statistic, n, draws, seed, level)
    return Interval(low, high, f"{_percent(level)} paired bootstrap interval over the same {n:,} {of} ({used} resamples, seed {seed})")


def _percentiles(statistic: Callable[[NDArray[np.int64]], float], n: int, draws: int, seed: int, level: float) -> tuple[float, float, str]:
    """(low, high) of a statistic over resamples of n samples, and how many resamples that were.

    A resample without the number (a rare class that none of its samples has: NaN) says nothing of how large the number is and is left out, which the text says.
    """
    if n < 1 or draws < 1:
        raise ValueError(f"expected at least one sample and one draw, got n = {n} and draws = {draws}")
    random = np.random.Generator(np.random.PCG64(seed))
    found = np.array([statistic(random.integers(0, n, size=n)) for _ in range(draws)], dtype=np.float64)
    there = found[~np.isnan(found)]
    if not len(there):
        raise ValueError(f"expected a statistic that some resample has; none of {draws:,} has it")
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), f"{draws:,}" if len(there) == draws else f"{len(there):,} of {draws:,}"


def _values(values: ArrayLike, *, least: int) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < least:
        raise ValueError(f"expected a row of at least {least} values, got shape {x.shape}")
    return x


def _normal_quantile(level: float) -> float:
    return float(ndtri((1 + level) / 2))


def _t_quantile(level: float, freedom: float) -> float:
    return float(stdtrit(freedom, (1 + level) / 2))


def _percent(level: float) -> str:
    return f"{100 * level:g} %"
