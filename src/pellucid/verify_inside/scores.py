"""The measures of maps once more, from their definitions: loops over patches in float64, scikit-learn and SciPy. Shares no line with `inside`.

Ties are expected values: of tied maxima the share on the target, of a tied last place every number of target patches that may be drawn, with its
probability. A map of zeros counts as a uniform one. What each measure means stands in `inside.faithfulness`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.stats
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

MEASURES = ("pointing", "mass", "rank", "iou", "auc")
AREAS = ("deletion", "insertion")
FEWEST = 20  # images that have an interval
KEPT_MASS, SIGMA = 0.6, 0.25
ALL_PAIRS, SHIFTS = 50, 20
RESAMPLES = 1000

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def wide(values: Any) -> Floats:
    """An array in float64."""
    return np.asarray(values, np.float64)


# ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def target_of(mask: NDArray[np.uint8] | None, grid: tuple[int, int]) -> tuple[Bools, Bools]:
    """(target, valid), both (gh, gw), of a mask (H, W) of 0, 1 and 255: exact areas, in pieces so small that each lies in one patch and one pixel."""
    if mask is None:
        return np.zeros(grid, bool), np.ones(grid, bool)
    counted, on_target = _area(mask != 255, grid), _area(mask == 1, grid)
    valid, target = np.zeros(grid, bool), np.zeros(grid, bool)
    share = np.zeros(grid)
    for place in np.ndindex(grid):
        valid[place] = counted[place] >= mask.size / 2  # a patch has as many pieces as the mask has pixels
        share[place] = on_target[place] / counted[place] if counted[place] else 0.0
        target[place] = valid[place] and counted[place] > 0 and share[place] >= 0.5
    largest = max((share[place] for place in np.ndindex(grid) if valid[place]), default=0.0)
    if not target.any() and largest > 0:
        target = valid & (share == largest)
    return target, valid


def _area(pixels: Bools, grid: tuple[int, int]) -> NDArray[np.int64]:
    """(gh, gw) number of pieces that are True, each pixel cut into gh x gw pieces."""
    (H, W), (gh, gw) = pixels.shape, grid
    rows = pixels.astype(np.int64).repeat(gh, axis=0).reshape(gh, H, W).sum(axis=1)
    return rows.repeat(gw, axis=1).reshape(gh, gw, W).sum(axis=2)


# ── one map ───────────────────────────────────────────────────────────────────────────────────────────────────


def measured(relevance: Floats, target: Bools, valid: Bools) -> dict[str, float]:
    """Each of MEASURES of one map (gh, gw); NaN where it is not defined."""
    values = [float(v) for v in relevance[valid]]
    inside = [bool(t) for t in target[valid]]
    if not any(inside):
        return dict.fromkeys(MEASURES, math.nan)
    if not any(values):
        values = [1.0] * len(values)
    largest = max(values)
    maxima = [mark for value, mark in zip(values, inside, strict=True) if value == largest]
    on_target = sum(value for value, mark in zip(values, inside, strict=True) if mark)
    size = sum(inside)
    surely, drawn = _first(values, inside, size)
    return {
        "pointing": sum(maxima) / len(maxima),
        "mass": on_target / sum(values),
        "rank": sum(p * (surely + x) for x, p in drawn) / size,
        "iou": _iou(values, inside),
        "auc": math.nan if size == len(inside) else float(roc_auc_score(inside, values)),
    }


def _first(values: list[float], inside: list[bool], num: int) -> tuple[int, list[tuple[int, float]]]:
    """Of the num largest: how many lie surely on the target, and (x, probability) of x more among those tied at the last place."""
    last = sorted(values, reverse=True)[num - 1]
    above = [mark for value, mark in zip(values, inside, strict=True) if value > last]
    tied = [mark for value, mark in zip(values, inside, strict=True) if value == last]
    places = num - len(above)
    if len(tied) == 1 or not any(tied):
        return sum(above), [(int(any(tied)), 1.0)]
    if all(tied):
        return sum(above), [(places, 1.0)]
    marked, free, orders = tied.count(True), tied.count(False), math.comb(len(tied), places)
    ways = {x: math.comb(marked, x) * math.comb(free, places - x) for x in range(min(places, marked) + 1) if places - x <= free}
    return sum(above), [(x, count / orders) for x, count in ways.items()]


def _iou(values: list[float], inside: list[bool]) -> float:
    ordered = sorted(values, reverse=True)
    total = sum(ordered)
    num, held = 0, 0.0
    while held < KEPT_MASS * total * (1 - 1e-9):  # up to rounding, so that a share of exactly 60 % is enough
        held += ordered[num]
        num += 1
    surely, drawn = _first(values, inside, num)
    return sum(p * (surely + x) / (num + sum(inside) - surely - x) for x, p in drawn)


def spearman(first: Floats, second: Floats) -> float:
    """Spearman's correlation of two maps over their patches; NaN where one is constant."""
    a, b = first.ravel(), second.ravel()
    if (a == a[0]).all() or (b == b[0]).all():
        return math.nan
    return float(scipy.stats.spearmanr(a, b).statistic)


def map_artefacts(relevance: Floats) -> dict[str, float]:
    """{"largest_patch", "entropy"} of a map (gh, gw)."""
    values = [float(v) for v in relevance.ravel()]
    total = sum(values)
    shares = [v / total for v in values] if total > 0 else [1 / len(values)] * len(values)
    entropy = float(scipy.stats.entropy(shares) / math.log(len(shares))) if len(shares) > 1 else 1.0
    return {"largest_patch": max(shares), "entropy": min(max(entropy, 0.0), 1.0)}


# ── all maps ──────────────────────────────────────────────────────────────────────────────────────────────────


def centre(grid: tuple[int, int]) -> Floats:
    """(gh, gw) Gaussian in the middle of the view."""
    prior = np.zeros(grid)
    for y, x in np.ndindex(grid):  # as fractions, so that patches equally far from the middle are ties
        down, across = (Fraction(2 * place + 1 - num, 2 * num) for place, num in ((y, grid[0]), (x, grid[1])))
        prior[y, x] = math.exp(-float(down**2 + across**2) / (2 * SIGMA**2))
    return prior


def table(maps: NDArray[np.floating], targets: Bools, valid: Bools) -> dict[str, Floats]:
    """{measure: (n,)} of n maps, each with its own target."""
    rows = [measured(wide(m), t, v) for m, t, v in zip(maps, targets, valid, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in MEASURES}


def shuffled_table(maps: NDArray[np.floating], targets: Bools, valid: Bools) -> dict[str, Floats]:
    """{measure: (n,)}: the mean for each map over the targets of the other images that have one; of evenly spread shifts where there are many."""
    with_target = [i for i in range(len(maps)) if targets[i].any()]
    n = len(with_target)
    steps = list(range(1, n)) if n <= ALL_PAIRS else [int(s) for s in np.linspace(1, n - 1, SHIFTS).round()]
    found = {name: np.full(len(maps), math.nan) for name in MEASURES}
    for place, i in enumerate(with_target):
        others = [with_target[(place + step) % n] for step in steps]
        rows = [measured(wide(maps[i]), targets[j], valid[j]) for j in others]
        for name in MEASURES:
            known = [row[name] for row in rows if not math.isnan(row[name])]
            if known:
                found[name][i] = sum(known) / len(known)
    return found


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


def mean_and_interval(values: Floats) -> tuple[float, int, tuple[float, float] | None]:
    """(mean, n, 95 % bootstrap interval of the mean) of the values that are not NaN; no interval for fewer than FEWEST."""
    known = values[np.isfinite(values)]
    if len(known) < FEWEST:
        return math.fsum(known) / len(known), len(known), None
    means = known[_resamples(len(known))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return math.fsum(known) / len(known), len(known), (float(low), float(high))


@lru_cache(maxsize=8)
def _resamples(n: int) -> NDArray[np.int64]:
    """(RESAMPLES, n) rows, drawn as `intervals.bootstrap` draws them, once for all numbers over n images."""
    random = np.random.Generator(np.random.PCG64(0))
    return np.stack([random.integers(0, n, size=n) for _ in range(RESAMPLES)])


def numbers(values: Floats, baselines: Mapping[str, Floats]) -> dict[str, Floats]:
    """The values behind each number of one Score: "value", each baseline, and its margin as "- <baseline>"; those that no image has left out."""
    found = {"value": values}
    for name, other in baselines.items():
        both = np.where(np.isfinite(values), other, math.nan)
        if np.isfinite(both).any():
            found[name], found[f"- {name}"] = both, values - both
    return found


# ── deletion and insertion ────────────────────────────────────────────────────────────────────────────────────


def areas(model: nn.Module, image: Tensor, relevance: Floats, target: int, *, most_steps: int) -> dict[str, float]:
    """{"deletion", "insertion"} of one image (1, 3, H, W): the mean over orders of tied patches of the area under the probability of the target.

    Deletion: patches become 0, the most relevant first. Insertion: patches of the blurred image (Gaussian of 5 % of the shorter side) become sharp.
    """
    sigma = 0.05 * min(image.shape[-2:])
    blurred = scipy.ndimage.gaussian_filter(
        image.double().cpu().numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, *[max(1, math.ceil(3 * sigma))] * 2)
    )
    soft = torch.from_numpy(blurred).to(image)
    orders = _orders(relevance.ravel())
    ends = {"deletion": (image, torch.zeros_like(image)), "insertion": (soft, image)}
    return {name: sum(_area_under(model, *pair, relevance.shape, order, target, most_steps) for order in orders) / len(orders) for name, pair in ends.items()}


def _orders(values: Floats) -> list[list[int]]:
    """Four orders of the patches, the largest value first; equal ones by two fixed draws and their reverses. One where no two are equal."""
    random = np.random.Generator(np.random.PCG64(0))
    draws = [random.permutation(len(values)) for _ in range(2)]
    ties = [tie for draw in draws for tie in (draw, len(values) - 1 - draw)]
    return [[int(i) for i in np.lexsort((tie, -values))] for tie in (ties if len(set(values.tolist())) < len(values) else ties[:1])]


@torch.no_grad()
def _area_under(model: nn.Module, before: Tensor, after: Tensor, grid: Sequence[int], order: list[int], target: int, most_steps: int) -> float:
    H, W = before.shape[-2:]
    num = len(order)
    steps = min(most_steps, num)
    counts = [(2 * s * num + steps) // (2 * steps) for s in range(steps + 1)]  # moved patches after each step, rounded
    rows = [int((y + 0.5) * grid[0] / H) for y in range(H)]
    columns = [int((x + 0.5) * grid[1] / W) for x in range(W)]
    place = torch.empty(num, dtype=torch.int64)
    place[torch.tensor(order)] = torch.arange(num)
    when = place.view(grid[0], grid[1])[rows][:, columns].to(before.device)  # (H, W): the place of each pixel's patch in the order
    stages = torch.cat([torch.where(when < count, after, before) for count in counts])
    probability = _logits(model(stages)).double().softmax(dim=1)[:, target].tolist()
    return sum((probability[s] + probability[s + 1]) / 2 * (counts[s + 1] - counts[s]) / num for s in range(steps))


def _logits(output: object) -> Tensor:
    assert isinstance(output, Tensor), f"a classifier of a run returns logits, got {type(output).__name__}"
    return output
