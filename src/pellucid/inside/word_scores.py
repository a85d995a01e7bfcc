"""How far the map of a word can be believed where somebody says where its thing is: the measures of `faithfulness` over words. numpy alone.

A word has a target where it names a thing of its picture: the patches of the thing's mask, of all of them where it names several. The caption is what the
model said; a word for something that the picture does not hold has no target, is in no score and is counted.

Words are not images: several words of one picture share its encoder, its caption and often their place. So an interval resamples pictures, each with all
its words, and a word's shuffled baseline takes the targets of words of other pictures alone. The number itself is the mean over words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from pellucid.errors import UsageError
from pellucid.findings import Score
from pellucid.inside.faithfulness import BASELINES, FEWEST, HOW, MASS_KEPT, MEASURES, PatchTarget, centre_prior
from pellucid.intervals import LEVEL
from pellucid.run_records import Measurement
from pellucid.word_findings import FEWEST_SHIFTS, PAIRS, SHIFTS

CHOSEN = "chosen"
DRAWS = 1000  # resamples of an interval
AT_ONCE = 1 << 20  # drawn pictures

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Named(Protocol):
    """Something in a picture: its names in lower case by their kind, and its mask (H, W) bool."""

    @property
    def names(self) -> Mapping[str, Set[str]]: ...

    @property
    def mask(self) -> np.ndarray: ...


@dataclass(frozen=True)
class PlacedWord:
    """A word that names things. word: its index in the caption; kind: noun or color; mask: (H, W) bool, where they are, None where the picture has none."""

    word: int
    kind: str
    mask: np.ndarray | None


@dataclass(frozen=True)
class ScoredWord:
    """A word with its target. picture: number of its picture. maps: (1 + L, gh, gw) float, that of the chosen layers and heads, then that of each layer.

    random: the same of the model with random weights, None where there is none.
    """

    picture: int
    kind: str
    maps: np.ndarray
    target: PatchTarget
    random: np.ndarray | None = None


# ── words and things ──────────────────────────────────────────────────────────────────────────────────────────


def known_names(things: Sequence[Named]) -> dict[str, set[str]]:
    """{kind: every name} of the things of many pictures."""
    found: dict[str, set[str]] = {}
    for thing in things:
        for kind, names in thing.names.items():
            found.setdefault(kind, set()).update(names)
    return found


def things_of(words: Sequence[str], things: Sequence[Named], known: Mapping[str, Set[str]] | None = None) -> list[PlacedWord]:
    """The words of a caption that name things of its picture, in their order, kind by kind; case does not count.

    A name of several words (fire hydrant) is found where they follow each other, the longest first, and stands at its last word. known: {kind: names} of things
    of all pictures: a word for one that this picture does not hold comes with mask None.
    """
    lower = [word.lower() for word in words]
    here: dict[str, dict[str, list[np.ndarray]]] = {}
    for thing in things:
        for kind, names in thing.names.items():
            for name in names:
                here.setdefault(kind, {}).setdefault(name, []).append(np.asarray(thing.mask, dtype=bool))
    found = []
    for kind in dict.fromkeys([*here, *(known or {})]):
        places = here.get(kind, {})
        for last, name in _mentions(lower, {*places, *(known or {}).get(kind, set())}):
            masks = places.get(name)
            found.append(PlacedWord(last, kind, np.logical_or.reduce(masks) if masks else None))
    return found


def _mentions(words: Sequence[str], names: Set[str]) -> list[tuple[int, str]]:
    """(index of the last word, name) of every name among the words, the longest first, none inside another."""
    longest = max((len(name.split()) for name in names), default=0)
    found, i = [], 0
    while i < len(words):
        for length in range(min(longest, len(words) - i), 0, -1):
            name = " ".join(words[i : i + length])
            if name in names:
                found.append((i + length - 1, name))
                i += length
                break
        else:
            i += 1
    return found


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────


def score_words(
    words: Sequence[ScoredWord], *, split: str, seed: int, note: str = ""
) -> tuple[dict[str, dict[str, list[Score]]], dict[str, Floats]]:  # fmt: skip
    """({layer: {kind: a Score for each of MEASURES}}, the arrays `scores/<layer>/<kind>/<measure>` and `random/…` of `word_findings`).

    Layers are "chosen" and the numbers of the layers. Words whose maps are NaN, which `merged` gives beyond a caption, are in no number.
    """
    scores: dict[str, dict[str, list[Score]]] = {}
    arrays: dict[str, Floats] = {}
    there = [word for word in words if np.isfinite(word.maps).all()]
    for kind in dict.fromkeys(word.kind for word in there):
        of = [word for word in there if word.kind == kind]
        stack = np.stack([word.maps for word in of])  # (m, 1 + L, gh, gw)
        random = None if any(word.random is None for word in of) else np.stack([word.random for word in of if word.random is not None])
        targets, pictures = [word.target for word in of], [word.picture for word in of]
        for row, layer in enumerate([CHOSEN, *map(str, range(stack.shape[1] - 1))]):
            name = kind if layer == CHOSEN else f"{kind}, layer {layer}"
            others = None if random is None else random[:, row]
            found, values, of_random = score_kind(name, stack[:, row], targets, pictures, random_maps=others, split=split, seed=seed, note=note)
            scores.setdefault(layer, {})[kind] = found
            arrays |= {f"scores/{layer}/{kind}/{measure}": x for measure, x in values.items()}
            arrays |= {f"random/{layer}/{kind}/{measure}": x for measure, x in of_random.items()}
    return scores, arrays


def score_kind(
    name: str,
    maps: ArrayLike,
    targets: Sequence[PatchTarget],
    pictures: Sequence[int],
    *,
    random_maps: ArrayLike | None = None,
    split: str,
    seed: int,
    note: str = "",
) -> tuple[list[Score], dict[str, Floats], dict[str, Floats]]:
    """(a Score for each of MEASURES that some word has, {measure: (m,) float64}, the same of the random maps; NaN where a word has no target).

    maps, random_maps: (m, gh, gw) >= 0 of m words; pictures: (m,) which picture each belongs to.
    """
    stack, owners = _stack(maps, targets, pictures), np.asarray(pictures)
    grid = (stack.shape[1], stack.shape[2])
    rivals: dict[str, Floats] = {"uniform": np.broadcast_to(np.ones(grid), stack.shape), "centre": np.broadcast_to(centre_prior(grid), stack.shape)}
    if random_maps is not None:
        rivals["random model"] = _stack(random_maps, targets, pictures)
    scores, found, random = [], {}, {}
    pairs = _pairs(targets, owners)
    for measure in MEASURES:
        found[measure] = _each(measure, stack, targets)
        others = {rival: _each(measure, rival_maps, targets) for rival, rival_maps in rivals.items()}
        others["shuffled"] = _judged_by_others(measure, stack, targets, pairs)
        if "random model" in others:
            random[measure] = others["random model"]
        baselines = {key: others[key] for key in BASELINES if key in others}
        scores += _score(
            name, measure, found[measure], baselines, owners, how=f"{HOW[measure]}; {grid[0]} x {grid[1]} patches", split=split, seed=seed, note=note
        )
    return scores, found, random


def _each(measure: str, maps: Floats, targets: Sequence[PatchTarget]) -> Floats:
    """(m,) float64 what MEASURES[measure] gives of each map, all at once where every patch counts; NaN where a word has no target."""
    if not len(targets):
        return np.empty(0)
    values, inside = maps.reshape(len(maps), -1), np.stack([target.target.ravel() for target in targets])
    if not all(target.valid.all() for target in targets) or maps.shape[1:] != targets[0].target.shape or not np.isfinite(values).all() or (values < 0).any():
        function = MEASURES[measure]
        return np.array([function(one, target) for one, target in zip(maps, targets, strict=True)], dtype=np.float64)
    values = np.where(values.any(1, keepdims=True), values, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(inside.any(1), _AT_ONCE[measure](values, inside), math.nan)
    return found


def _pointing(values: Floats, inside: Bools) -> Floats:
    most = values == values.max(1, keepdims=True)
    return (most & inside).sum(1) / most.sum(1)


def _mass(values: Floats, inside: Bools) -> Floats:
    return (values * inside).sum(1) / values.sum(1)


def _auc(values: Floats, inside: Bools) -> Floats:
    num_in, num_out = inside.sum(1), (~inside).sum(1)
    return ((rankdata(values, axis=1) * inside).sum(1) - num_in * (num_in + 1) / 2) / (num_in * num_out)  # 0 / 0 where the target fills the view


def _rank(values: Floats, inside: Bools) -> Floats:
    num = inside.sum(1)
    above, tied = _first(values, np.maximum(num, 1))
    return ((inside & above).sum(1) + (num - above.sum(1)) * (inside & tied).sum(1) / tied.sum(1)) / num


def _iou(values: Floats, inside: Bools) -> Floats:
    cumulative = np.cumsum(-np.sort(-values, axis=1), axis=1)
    num = np.minimum((cumulative < MASS_KEPT * cumulative[:, -1:] * (1 - 1e-9)).sum(1) + 1, values.shape[1])
    above, tied = _first(values, num)
    taken = above | tied
    found = (inside & taken).sum(1) / (inside | taken).sum(1)
    for row in np.flatnonzero(taken.sum(1) > num):  # ties of which a part is taken: an expected value
        whole = PatchTarget(inside[row][None], np.ones((1, inside.shape[1]), dtype=bool), inside[row][None].astype(np.float64))
        found[row] = MEASURES["iou"](values[row][None], whole)
    return found


def _first(values: Floats, num: NDArray[np.int64]) -> tuple[Bools, Bools]:
    """(above, tied), each (m, K): which patches are surely among the num largest of their map, and which share the last one's value."""
    last = np.take_along_axis(-np.sort(-values, axis=1), num[:, None] - 1, axis=1)
    return values > last, values == last


_AT_ONCE = {"pointing": _pointing, "mass": _mass, "rank": _rank, "iou": _iou, "auc": _auc}


def _pairs(targets: Sequence[PatchTarget], owners: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(word, another) with a target each and of different pictures: all of few words; of many those of evenly spread cyclic shifts, PAIRS in all or so."""
    rows = [i for i, target in enumerate(targets) if target.target.any()]
    n = len(rows)
    most = min(SHIFTS, max(FEWEST_SHIFTS, PAIRS // max(n, 1)))
    shifts = range(1, n) if n - 1 <= most else sorted(set(np.linspace(1, n - 1, most + 2).round().astype(int)[1:-1].tolist()))
    return [(row, other) for place, row in enumerate(rows) for shift in shifts if owners[row] != owners[other := rows[(place + shift) % n]]]


def _judged_by_others(measure: str, maps: Floats, targets: Sequence[PatchTarget], pairs: Sequence[tuple[int, int]]) -> Floats:
    """(m,) for each word the mean of the measure of its map over the targets of others; NaN where it has no target or no other."""
    words = np.array([word for word, _ in pairs], dtype=np.int64)
    values = _each(measure, maps[words], [targets[other] for _, other in pairs])
    there = np.isfinite(values)
    sums, counts = (np.bincount(words[there], weights, len(targets)) for weights in (values[there], None))
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def _score(
    name: str, measure: str, values: Floats, baselines: Mapping[str, Floats], owners: NDArray[np.int64], *, how: str, split: str, seed: int, note: str
) -> list[Score]:  # fmt: skip
    """One Score, or none where no word has the measure. A baseline counts the words that have both it and the value; its margin is over the same."""

    def number(label: str, x: Floats, text: str) -> Measurement:
        there = np.isfinite(x)
        pictures, place = np.unique(owners[there], return_inverse=True)
        over = f"mean over {_count(int(there.sum()), 'word')} of {_count(len(pictures), 'picture')}"
        interval = _over_pictures(x[there], place, len(pictures))
        return Measurement(
            label, float(x[there].mean()), "fraction", split, int(there.sum()), seed, "; ".join(filter(None, [text, over, note])), *(interval or ())
        )

    if not np.isfinite(values).any():
        return []
    rivals = {rival: np.where(np.isfinite(values), x, math.nan) for rival, x in baselines.items()}
    rivals = {rival: x for rival, x in rivals.items() if np.isfinite(x).any()}
    numbers = {rival: number(f"{measure}[{name}, {rival}]", x, f"{how}; of {BASELINES[rival]}") for rival, x in rivals.items()}
    margins = {rival: number(f"{measure}[{name}] - {rival}", values - x, f"paired difference to {BASELINES[rival]}") for rival, x in rivals.items()}
    return [Score(name, measure, number(f"{measure}[{name}]", values, how), numbers, True, margins)]


def _over_pictures(values: Floats, place: NDArray[np.int64], n: int) -> tuple[tuple[float, float], str] | None:
    """(the bootstrap interval of the mean over words when n pictures are drawn, each with all its words; how); None of fewer than FEWEST pictures.

    What `intervals.bootstrap` gives of this mean, many draws at once: a model of twelve layers has a thousand such intervals.
    """
    if n < FEWEST:
        return None
    sums, counts = np.bincount(place, values, n), np.bincount(place, minlength=n)
    random = np.random.Generator(np.random.PCG64(0))
    means = []
    for part in np.array_split(np.arange(DRAWS), math.ceil(DRAWS * n / AT_ONCE)):
        rows = random.integers(0, n, size=(len(part), n))
        means.append(sums[rows].sum(1) / counts[rows].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return (float(low), float(high)), f"{100 * LEVEL:g} % bootstrap interval over {n:,} pictures, each with all its words ({DRAWS:,} resamples)"


def _stack(maps: ArrayLike, targets: Sequence[PatchTarget], pictures: Sequence[int]) -> Floats:
    stack = np.asarray(maps, dtype=np.float64)
    if stack.ndim != 3 or not len(stack) or not len(stack) == len(targets) == len(pictures):
        raise UsageError(f"expected maps (m, gh, gw) of at least one word, with {len(targets)} targets and {len(pictures)} pictures; got {stack.shape}")
    return stack


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
