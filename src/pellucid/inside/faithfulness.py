"""How far a map can be believed where a mask says what it should show: five measures, each beside its baselines. numpy alone.

    pointing   Zhang et al. 2016 (1608.00507)        does the maximum lie on the target
    mass       Arras et al. 2020 (2003.07258)        how much of the map lies on the target
    rank       Arras et al. 2020 (2003.07258)        do the first K patches lie on the target, K being its size
    iou        Caron et al. 2021 (2104.14294)        overlap of the target with the patches that hold 60 % of the map
    auc        Mann and Whitney 1947                 is a patch on the target above one beside it

All is counted at the map's own resolution, in patches: a map scaled up to pixels would be scored for its interpolation. Patches of
equal value count as fractions, as the expected value when ties are broken at random; a map that says nothing cannot win by the order
of its patches. A map that is zero everywhere says nothing and counts as a uniform one. Maps are >= 0 and of any scale.

A number alone says little, for photographers put things in the middle. So each stands beside that of a uniform map, of a centre prior, of the
same map judged by the masks of other images, and of the same model with random weights. Images without a mask: `deletion.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pellucid.errors import UsageError
from pellucid.findings import Score
from pellucid.intervals import Interval, bootstrap
from pellucid.run import Measurement

TARGET, IGNORED = 1, 255  # in a mask; 0 is neither
MASS_KEPT = 0.6  # share of the map's mass that `iou` keeps, as DINO does
CENTRE_SIGMA = 0.25  # of the centre prior, as a share of the grid's height and width
MOST_SHUFFLED = 50  # images; with more, shuffled masks are SHIFTS cyclic shifts and not all other images
SHIFTS = 20
FEWEST = 20  # images; of 8 the percentile bootstrap of a mean holds it in 0.87 of cases instead of 0.95, of 24 in 0.93

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PatchTarget:
    """A mask at patch resolution. target: (gh, gw) bool, inside valid; valid: (gh, gw) bool, patches that count;
    share: (gh, gw) float64 in [0, 1], the target's part of each patch's pixels that are not ignored, 0 where there is none."""

    target: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    share: Floats


def patch_target(mask: ArrayLike, grid: tuple[int, int]) -> PatchTarget:
    """The target of a mask on a grid (height, width) of patches.

    mask: (H, W) integers in the model's view, 1 target, 0 not, 255 ignored. A pixel that two patches cut counts with its area in each, exactly,
    so H and W need not be divisible by the grid. A patch is valid when at least half of it is not ignored, and on the target when at
    least half of the rest is. When no valid patch reaches half, the valid patches with the largest share are the target, so that a
    small object is never nothing. Without a target pixel in any valid patch there is no target. UsageError for other values or shapes.
    """
    pixels = np.asarray(mask)
    if pixels.ndim != 2 or not pixels.size or min(grid) < 1 or not np.isin(pixels, (0, TARGET, IGNORED)).all():
        found = np.unique(pixels)[:8].tolist()
        raise UsageError(
            f"expected a mask (H, W) of 0, {TARGET} and {IGNORED} and a grid of at least one patch; got {pixels.shape}, grid {grid}, values {found}"
        )
    down, across = (overlaps(size, num) for size, num in zip(pixels.shape, grid, strict=True))
    counted = down @ (pixels != IGNORED) @ across.T  # (gh, gw), in units of which a patch has H * W: whole numbers, exact in float64
    on_target = down @ (pixels == TARGET) @ across.T
    valid = 2 * counted >= pixels.size
    share = on_target / np.maximum(counted, 1)
    target = valid & (2 * on_target >= counted)
    largest = float(share[valid].max(initial=0.0))
    if not target.any() and largest > 0.0:
        target = valid & (share == largest)
    return PatchTarget(target, valid, share)


def overlaps(size: int, num: int) -> Floats:
    """(num, size) overlap of each of num equal parts of a line of `size` pixels with each pixel, in pixels / num; whole numbers."""
    parts, pixels = np.arange(num)[:, None] * size, np.arange(size)[None] * num
    return np.clip(np.minimum(parts + size, pixels + num) - np.maximum(parts, pixels), 0, None).astype(np.float64)


# ── one map, one target ───────────────────────────────────────────────────────────────────────────────────────


def pointing(relevance: ArrayLike, target: PatchTarget) -> float:
    """The share of the map's maxima, all that are tied, on the target. A uniform map scores the target's share of the area."""
    values, inside = _patches(relevance, target)
    return float(inside[values == values.max()].mean()) if inside.any() else math.nan


def mass(relevance: ArrayLike, target: PatchTarget) -> float:
    """The share of the map's sum on the target."""
    values, inside = _patches(relevance, target)
    return float(values[inside].sum() / values.sum()) if inside.any() else math.nan


def rank(relevance: ArrayLike, target: PatchTarget) -> float:
    """The share of the K most relevant patches on the target, K being its number of patches."""
    values, inside = _patches(relevance, target)
    if not inside.any():
        return math.nan
    num = int(inside.sum())
    above, tied = _first(values, num)
    return float((inside[above].sum() + (num - above.sum()) * inside[tied].mean()) / num)


def iou(relevance: ArrayLike, target: PatchTarget) -> float:
    """Intersection over union of the target and the smallest set of patches that holds 60 % of the map's sum.

    Of t patches tied at the set's last value, u of them on the target, the set takes r at random, so x of the u with the hypergeometric
    probability C(u, x) C(t - u, r - x) / C(t, r): what comes back is the expected value over x. 60 % holds up to rounding (1e-9).
    """
    values, inside = _patches(relevance, target)
    if not inside.any():
        return math.nan
    cumulative = np.cumsum(np.sort(values)[::-1])
    num = min(int(np.searchsorted(cumulative, MASS_KEPT * cumulative[-1] * (1 - 1e-9))) + 1, len(values))
    above, tied = _first(values, num)
    drawn, probabilities = _hypergeometric(int(tied.sum()), int(inside[tied].sum()), num - int(above.sum()))
    common = int(inside[above].sum()) + drawn
    return float((probabilities * common / (num + int(inside.sum()) - common)).sum())


def auc(relevance: ArrayLike, target: PatchTarget) -> float:
    """The probability that a patch on the target is above one beside it, ties as 1/2; NaN where the target fills the view."""
    values, inside = _patches(relevance, target)
    num_in, num_out = int(inside.sum()), int((~inside).sum())
    if num_in == 0 or num_out == 0:
        return math.nan
    return float((_mid_ranks(values)[inside].sum() - num_in * (num_in + 1) / 2) / (num_in * num_out))


def _patches(relevance: ArrayLike, target: PatchTarget) -> tuple[Floats, NDArray[np.bool_]]:
    """(values, on the target) of the valid patches; a map of zeros becomes one of ones."""
    array = np.asarray(relevance, dtype=np.float64)
    if array.shape != target.valid.shape:
        raise UsageError(f"expected a map on the grid of its target, {target.valid.shape}; got {array.shape}. Make the target for the map's own grid.")
    values = array[target.valid]
    if not np.isfinite(values).all() or (values < 0).any():
        raise UsageError("expected a map of finite values >= 0; take the magnitude or the positive part first, and say which")
    return (values if values.any() else np.ones_like(values)), target.target[target.valid]


def _first(values: Floats, num: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(above, tied): which patches are surely among the num largest, and which share the last one's value."""
    last = np.partition(values, len(values) - num)[len(values) - num]
    return values > last, values == last


def _hypergeometric(total: int, marked: int, drawn: int) -> tuple[NDArray[np.int64], Floats]:
    """(x, probability) of x marked among `drawn` of `total`, by the ratio of neighbours, whose factorials cancel."""
    x = np.arange(max(0, drawn - (total - marked)), min(marked, drawn) + 1)
    now = x[:-1]
    ratios = np.log((marked - now) * (drawn - now)) - np.log((now + 1) * (total - marked - drawn + now + 1))
    logs = np.concatenate([[0.0], np.cumsum(ratios)])
    weights = np.exp(logs - logs.max())
    return x, weights / weights.sum()


def _mid_ranks(values: Floats) -> Floats:
    """Ranks from 1 to len(values), equal values sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


Measure = Callable[[ArrayLike, PatchTarget], float]
MEASURES: dict[str, Measure] = {"pointing": pointing, "mass": mass, "rank": rank, "iou": iou, "auc": auc}
HOW = {
    "pointing": "share of the map's maxima on the target (pointing game, Zhang et al. 2016)",
    "mass": "share of the map's sum on the target (relevance mass accuracy, Arras et al. 2020)",
    "rank": "share of the K most relevant patches on the target of K patches (relevance rank accuracy, Arras et al. 2020)",
    "iou": "intersection over union of the target and the fewest patches that hold 60 % of the map's sum (Caron et al. 2021)",
    "auc": "probability that a patch on the target is above one beside it, ties as 1/2 (Mann and Whitney 1947)",
}
BASELINES = {
    "uniform": "a map that is the same everywhere",
    "centre": f"a Gaussian in the middle of the view, sigma {CENTRE_SIGMA:g} of its height and width, whatever the image shows",
    "shuffled": "the same map judged by the masks of other images",
    "random model": "the same kind of map of the same model with random weights (one draw)",
}


# ── baselines ─────────────────────────────────────────────────────────────────────────────────────────────────


def centre_prior(grid: tuple[int, int]) -> Floats:
    """(gh, gw) float64 centred Gaussian of sigma CENTRE_SIGMA of each side, its largest value at most 1.

    The squared distance is a whole number, so that patches equally far from the middle are ties, which rounding would break.
    """
    gh, gw = grid
    down, across = (2 * np.arange(gh) + 1 - gh) * gw, (2 * np.arange(gw) + 1 - gw) * gh
    squared = down[:, None] ** 2 + across[None] ** 2  # times (2 gh gw)^2
    return np.exp(-squared / (2 * (2 * gh * gw * CENTRE_SIGMA) ** 2))


def shuffled(measure: Measure, maps: Floats, targets: Sequence[PatchTarget]) -> Floats:
    """(n,) for each map the mean of the measure over the targets of other images; NaN for an image without a target or without others.

    Images without a target lend none. All others up to MOST_SHUFFLED images, which is exact; beyond, those of SHIFTS evenly spread cyclic shifts.
    """
    found = np.full(len(maps), math.nan)
    rows = [i for i, target in enumerate(targets) if target.target.any()]
    n = len(rows)
    shifts = range(1, n) if n <= MOST_SHUFFLED else np.linspace(1, n - 1, SHIFTS).round().astype(int).tolist()
    for place, row in enumerate(rows):
        values = np.array([measure(maps[row], targets[rows[(place + shift) % n]]) for shift in shifts])
        if np.isfinite(values).any():
            found[row] = np.nanmean(values)
    return found


# ── all images ────────────────────────────────────────────────────────────────────────────────────────────────


def score_maps(
    method: str,
    maps: ArrayLike,
    targets: Sequence[PatchTarget],
    *,
    random_maps: ArrayLike | None = None,
    split: str,
    seed: int,
    note: str = "",
) -> tuple[list[Score], dict[str, Floats]]:
    """(a Score for each of MEASURES, {measure: (n,) float64, NaN where an image has none}).

    maps, random_maps: (n, gh, gw); `random_maps` are those of the same model with random weights. A measure that no image has gets no Score;
    with one image only, nothing is shuffled. `note` ends every `how`: whose weights, which masks.
    """
    stack = _stack(maps, len(targets))
    grid = (stack.shape[1], stack.shape[2])
    rivals: dict[str, Floats] = {"uniform": np.broadcast_to(np.ones(grid), stack.shape), "centre": np.broadcast_to(centre_prior(grid), stack.shape)}
    if random_maps is not None:
        rivals["random model"] = _stack(random_maps, len(targets))
    scores, found = [], {}
    for name, measure in MEASURES.items():
        found[name] = _each(measure, stack, targets)
        others = {rival: _each(measure, rival_maps, targets) for rival, rival_maps in rivals.items()}
        others["shuffled"] = shuffled(measure, stack, targets)
        how = f"{HOW[name]}; {grid[0]} x {grid[1]} patches"
        scores += score(method, name, found[name], {k: others[k] for k in BASELINES if k in others}, how=how, split=split, seed=seed, note=note)
    return scores, found


def score(
    method: str,
    measure: str,
    values: Floats,
    baselines: Mapping[str, Floats],
    *,
    how: str,
    split: str,
    seed: int,
    note: str = "",
    unit: str = "fraction",
    higher_is_better: bool = True,
) -> list[Score]:
    """One Score, or none where no image has the measure. values and baselines: (n,) float64, NaN where an image has none.

    Each number is a mean with its bootstrap interval over images, from FEWEST images on. A baseline counts the images that have both it and the
    value; its margin is the mean of value minus baseline over them, with the interval of the pairs.
    """

    def number(name: str, x: Floats, text: str) -> Measurement:
        x = x[np.isfinite(x)]
        interval = _mean_interval(x)
        pair, pair_how = (interval.pair, interval.how) if interval else (None, "")
        return Measurement(name, float(x.mean()), unit, split, len(x), seed, "; ".join(filter(None, [text, note])), pair, pair_how)

    if not np.isfinite(values).any():
        return []
    rivals = {name: np.where(np.isfinite(values), x, math.nan) for name, x in baselines.items()}
    numbers = {name: number(f"{measure}[{method}, {name}]", x, f"{how}; of {BASELINES[name]}") for name, x in rivals.items() if np.isfinite(x).any()}
    margins = {name: number(f"{measure}[{method}] - {name}", values - rivals[name], f"paired difference to {BASELINES[name]}") for name in numbers}
    return [Score(method, measure, number(f"{measure}[{method}]", values, how), numbers, higher_is_better, margins)]


def _mean_interval(values: Floats) -> Interval | None:
    return bootstrap(lambda rows: float(values[rows].mean()), len(values)) if len(values) >= FEWEST else None


def _each(measure: Measure, maps: Floats, targets: Sequence[PatchTarget]) -> Floats:
    return np.array([measure(relevance, target) for relevance, target in zip(maps, targets, strict=True)], dtype=np.float64)


def _stack(maps: ArrayLike, n: int) -> Floats:
    stack = np.asarray(maps, dtype=np.float64)
    if stack.ndim != 3 or len(stack) != n:
        raise UsageError(f"expected a map (gh, gw) for each of {n} targets, stacked; got shape {stack.shape}")
    return stack


def rank_correlation(maps: ArrayLike, others: ArrayLike) -> Floats:
    """(n,) float64 in [-1, 1]: Spearman's correlation of each map with its other over patches, ties with their mean rank.

    maps, others: (n, gh, gw), on one grid. NaN where either is constant. With the maps of random weights it is Adebayo et al.'s sanity check.
    """
    first, second = np.asarray(maps, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if first.ndim != 3 or first.shape != second.shape:
        raise UsageError(f"expected two stacks of maps (n, gh, gw) on one grid, got {first.shape} and {second.shape}")
    found = np.full(len(first), math.nan)
    for row, pair in enumerate(zip(first, second, strict=True)):
        a, b = (_mid_ranks(x.ravel()) - (x.size + 1) / 2 for x in pair)
        if a.any() and b.any():
            found[row] = np.clip(a @ b / math.sqrt(float(a @ a) * float(b @ b)), -1.0, 1.0)
    return found
