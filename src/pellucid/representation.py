"""What a set of representations is worth: how projections lie on the sphere, what features say of classes, and whether a pre-training has collapsed.

    spread              of unit vectors over the dimensions: 1 on the whole sphere, 0 in one point (Chen and He 2021, sec. 4.1 and fig. 2)
    effective_rank      how many directions carry weight (Roy and Vetterli 2007; as RankMe, Garrido et al. 2023)
    alignment           how far two views of an image lie apart (Wang and Isola 2020, eq. 1)
    uniformity          how evenly points fill the sphere (Wang and Isola 2020, eq. 2)
    knn_votes           classes by the most similar images of a bank (Wu et al. 2018, sec. 3.4)
    fit_probe           classes by logistic regression on the standardised features of a bank
    diagnose            what the numbers of the epochs say, in words

Pure functions of arrays, in float64 whatever comes in; no torch. Collapse shows in the *projections* first, often only there, so spread, rank, alignment and
uniformity are of those; k-NN and probe are of the backbone's features, which is what leaves. A number that is 0/0 is NaN, never 0 or 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from pellucid.intervals import LEVEL, Interval, wilson
from pellucid.run import rounded

Floats = NDArray[np.float64]

_BLOCK = 1 << 22  # similarities in one block: 32 MiB
_DECIMALS = 12  # of a cosine: copies of a bank image are equally near, wherever they stand in a matrix product

STRENGTHS = (0.3, 3.0, 30.0)  # of the probe, the strongest penalty first: C = strength / D
HELD_OUT = 5  # every fifth image of each class of the bank chooses among them
PROBE_STEPS = 1000  # of L-BFGS, at most
PROBE_GRADIENT, CHOICE_GRADIENT = 1e-5, 1e-4  # largest slope of the mean loss at which it has converged, and at which a strength is judged
ABSENT_BELOW = 50.0  # nats: a class that the bank lacks lies that far below the least likely one that it has

COLLAPSED_SPREAD = 0.3  # healthy runs keep about 0.8 to 0.95, collapsed ones 0.06 to 0.26
COLLAPSED_RANK = 0.02  # a rank below 1 + 0.02 * dimensions
CLIMBING = 1.05  # times the highest before: what rises like that is on its way from a network that began low, not collapsed
SETTLED_STEPS = 30  # before, BatchNorm's running statistics (momentum 0.1) hold more than 0.9^30 = 4 % of their initial values and say little of the weights
RANKED_DIMS = 256  # of more dimensions no more count: a rank is of few images, and never higher than their number
FLAT_EPOCHS, FLAT_EVALUATIONS = 5, 3  # before features are called flat: epochs, and settled k-NN evaluations
USEFUL_GAIN = 0.05  # of k-NN accuracy: less is hardly worth the hours of a pre-training; some 600 images tell whether it is there (interval +- 0.03 to 0.06)


# ── on the sphere ─────────────────────────────────────────────────────────────────────────────────────────────


def unit_rows(points: NDArray[Any]) -> Floats:
    """(n, D) float64 rows of length 1; rows of zeros stay zeros. ValueError for anything but a table."""
    rows = np.asarray(points, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"expected a table (points, dimensions), got shape {rows.shape}")
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = rows / np.where(largest == 0, 1.0, largest)  # squares of what is left neither overflow nor vanish
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1.0, lengths))


def spread(projections: NDArray[Any]) -> float:
    """In [0, 1]: mean over the dimensions of the standard deviation of the unit vectors (n, P), times sqrt(P); NaN for fewer than two.

    1 where directions are spread evenly over the sphere, 0 where all are one (Chen and He 2021, sec. 4.1: the std of an isotropic unit vector is 1/sqrt(P)).
    """
    points = unit_rows(projections)
    return float(points.std(axis=0).mean() * math.sqrt(points.shape[1])) if len(points) > 1 else math.nan


def effective_rank(points: NDArray[Any]) -> float:
    """In [1, min(n, D)]: exp of the entropy of the singular values, which are divided by their sum (Roy and Vetterli 2007, def. 1); NaN without a direction.

    Of unit vectors, so that a few long rows do not speak for all, and *not* centred, as RankMe (Garrido et al. 2023, eq. 1): of a cloud that shrank to one
    point beside the origin, centring would leave only the noise around that point, which has full rank.
    """
    values = np.linalg.svd(unit_rows(points), compute_uv=False)
    if not values.sum() > 0:
        return math.nan
    shares = values / values.sum()
    there = shares[shares > 0]
    return float(np.exp(-(there * np.log(there)).sum()))


def alignment(first: NDArray[Any], second: NDArray[Any]) -> float:
    """In [0, 4]: mean squared distance of the unit vectors of two views (n, P) of the same images; 0 is best, NaN of none (Wang and Isola 2020, eq. 1)."""
    one, other = unit_rows(first), unit_rows(second)
    if one.shape != other.shape:
        raise ValueError(f"expected two views of the same images, got shapes {one.shape} and {other.shape}")
    return float(np.square(one - other).sum(axis=1).mean()) if len(one) else math.nan


def uniformity(points: NDArray[Any], *, t: float = 2.0) -> float:
    """In [-4 t, 0]: log of the mean of exp(-t |x - y|^2) over all pairs of unit vectors; lower is more even, NaN without a pair.

    Wang and Isola 2020, eq. 2 with their t. The pairs are made block by block, so memory grows with n and not with n squared.
    """
    rows = unit_rows(points)
    n = len(rows)
    if n < 2:
        return math.nan
    lengths, total = np.square(rows).sum(axis=1), 0.0
    for block in _blocks(n, n):
        squared = lengths[block, None] + lengths[None, block.start :] - 2 * rows[block] @ rows[block.start :].T
        kernel = np.exp(-t * np.maximum(squared, 0.0))
        total += float(np.triu(kernel, k=1).sum())  # columns begin at the block's own first row: above the diagonal is i < j
    return float(np.log(total / (n * (n - 1) / 2)))


def _blocks(n: int, width: int) -> Iterator[slice]:
    """Slices that cover n rows, each of as many as fit a block of that width."""
    rows = max(1, _BLOCK // max(1, width))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


# ── classes ───────────────────────────────────────────────────────────────────────────────────────────────────


def knn_votes(queries: NDArray[Any], bank: NDArray[Any], bank_labels: NDArray[np.int64], num_classes: int, neighbours: int, temperature: float) -> Floats:
    """(n, C) votes, each row sums to 1: of the k most similar of the bank, each gives its class exp(cosine / temperature) (Wu et al. 2018, eq. 13).

    queries: (n, D); bank: (m, D) with labels (m,). k is cut to m; of equally similar ones the lower row of the bank counts. The predicted class is the
    argmax, of equals the first.
    """
    _check(queries, bank, bank_labels, num_classes)
    if neighbours < 1 or not temperature > 0:
        raise ValueError(f"expected at least one neighbour and a temperature above 0, got {neighbours} and {temperature}")
    points, others, m = unit_rows(queries), unit_rows(bank), len(bank)
    of_class = np.eye(num_classes)[bank_labels]  # (m, C)
    k, votes = min(neighbours, m), np.empty((len(points), num_classes))
    for block in _blocks(len(points), m):
        cosines = np.round(points[block] @ others.T, _DECIMALS)  # (b, m)
        last = np.partition(cosines, m - k, axis=1)[:, m - k, None]  # of the k-th most similar
        above, level = cosines > last, cosines == last
        chosen = above | (level & (np.cumsum(level, axis=1) <= k - above.sum(axis=1, keepdims=True)))
        # Dividing all votes of a query by the greatest changes no share and keeps exp in its range.
        weights = np.where(chosen, np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature), 0.0)
        votes[block] = weights @ of_class / weights.sum(axis=1, keepdims=True)
    return votes


@dataclass(frozen=True)
class LinearProbe:
    """logits: (n, C) float64 of the queries. strength: C D of the penalty that was chosen, NaN of one class alone. note: how, for a Measurement's `how`."""

    logits: Floats
    strength: float
    note: str


def fit_probe(bank: NDArray[Any], bank_labels: NDArray[np.int64], queries: NDArray[Any], num_classes: int) -> LinearProbe:
    """Logistic regression (scikit-learn, L-BFGS) on the bank's features, asked about the queries, which it never saw; deterministic.

    Features (m, D) and (n, D) are standardised by the bank's mean and deviation; one that is constant there is 0. The penalty |w|^2 / (2 C) has
    C = strength / D: weights of the size that it expects give logits of variance `strength`, whatever D. The strength is the one of STRENGTHS with the
    lowest log loss on every fifth image of each class of the bank after a fit to the rest, weaker penalties being tried until it rises; then the whole bank
    is fitted. Classes that the bank lacks get logits ABSENT_BELOW under the lowest of the others. Where L-BFGS stopped unconverged, the note says so.
    """
    _check(queries, bank, bank_labels, num_classes)
    present, own = np.unique(bank_labels, return_inverse=True)
    m, D = bank.shape
    features, asked = _standardised(np.asarray(bank, np.float64), np.asarray(queries, np.float64))
    if len(present) == 1:
        found, strength = np.zeros((len(asked), 1)), math.nan
        note = f"nothing was fitted: all {m:,} images of the bank are of class {present[0]}"
    else:
        strength, held_out = _strength(features, own)
        found, steps, converged = _fitted(features, own, asked, strength, PROBE_GRADIENT)
        chosen = f"chosen of {len(STRENGTHS)} on {held_out:,} of them" if held_out else "no class has the five images to choose it"
        note = f"logistic regression on {m:,} images x {D:,} standardised features, L2 with C = {strength:g} / {D:,} ({chosen}), "
        note += f"converged in {steps:,} steps of L-BFGS" if converged else f"NOT converged in {steps:,} steps of L-BFGS"
    logits = np.repeat(found.min(axis=1, keepdims=True) - ABSENT_BELOW, num_classes, axis=1)
    logits[:, present] = found
    return LinearProbe(logits, strength, note)


def _check(queries: NDArray[Any], bank: NDArray[Any], labels: NDArray[np.int64], num_classes: int) -> None:
    """ValueError unless queries (n, D), a bank (m, D) of at least one and its labels (m,) fit each other."""
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1] or labels.shape != (len(bank),) or not len(bank):
        raise ValueError(f"expected queries (n, D), a bank (m, D) and its labels (m,), got {queries.shape}, {bank.shape} and {labels.shape}")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"expected labels from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")


def _standardised(bank: Floats, queries: Floats) -> tuple[Floats, Floats]:
    """Both by the bank's mean and deviation."""
    mean, deviation = bank.mean(axis=0), bank.std(axis=0)
    varies = deviation > 1e-12 * np.abs(bank).max(axis=0)  # the mean rounds: a constant may have a deviation of 1e-17
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    return (bank - mean) * scale, (queries - mean) * scale


def _strength(features: Floats, own: NDArray[np.int64]) -> tuple[float, int]:
    """The strength with the lowest log loss on the held-out images of the bank, and how many those are; the middle one where no class has five."""
    place = np.empty(len(own), np.int64)  # of an image among those of its class
    for c in np.unique(own):
        place[own == c] = np.arange((own == c).sum())
    held = place % HELD_OUT == HELD_OUT - 1
    if not held.any():
        return STRENGTHS[len(STRENGTHS) // 2], 0
    best, least = STRENGTHS[0], math.inf
    for strength in STRENGTHS:
        logits, _, _ = _fitted(features[~held], own[~held], features[held], strength, CHOICE_GRADIENT)
        loss = float(-log_softmax(logits, axis=1)[np.arange(len(logits)), own[held]].mean())
        if loss > least:
            break
        best, least = strength, loss
    return best, int(held.sum())


def _fitted(features: Floats, own: NDArray[np.int64], asked: Floats, strength: float, gradient: float) -> tuple[Floats, int, bool]:
    """(logits (n, C), steps, whether they were enough) of a fit; every class 0 .. C - 1, at least two, is among `own`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    two = own.max() == 1  # scikit-learn then fits one column, the log odds w, of which two columns -w/2 and w/2 have half the penalty
    model = LogisticRegression(C=(1 + two) * strength / features.shape[1], solver="lbfgs", tol=gradient, max_iter=PROBE_STEPS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, own)
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in told)
    weights, bias = model.coef_, model.intercept_
    if two:
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return asked @ weights.T + bias, int(model.n_iter_.max()), converged


# ── what the epochs say ───────────────────────────────────────────────────────────────────────────────────────


def diagnose(history: Sequence[Mapping[str, Any]], *, remedies: str) -> tuple[str, ...]:
    """What is wrong *now* and since when, a sentence each; () while all is well, and before SETTLED_STEPS.

    history: for each epoch that was measured so far, in order, `epoch`, `step`, `spread`, `rank`, `num_dims` and `num_images` of the projections and, where
    k-NN was asked, `knn_accuracy` over `knn_n` images and `chance`. Epoch 0 is the network that training began with: the others are compared with it, and it
    is never an alarm itself. remedies: what helps the method against a collapse. Collapse is told from its commoner cousin, features that stay as good
    as those of epoch 0 though the projections are healthy.
    """
    watched = [line for line in history if _watched(line)]
    since = _since(watched, _collapsed(watched))
    if since is not None:
        return (_collapse_line(watched, since, remedies),)
    begun = next((line for line in history if line["epoch"] == 0 and _has_knn(line)), None)
    evaluated = [line for line in history if _settled(line) and _has_knn(line)]
    if begun is None or len(evaluated) < FLAT_EVALUATIONS or evaluated[-1]["epoch"] < FLAT_EPOCHS or not watched:
        return ()
    gain = _gain(evaluated[-1], begun)
    if not (gain.high < USEFUL_GAIN or evaluated[-1]["knn_accuracy"] <= begun["knn_accuracy"]):
        return ()  # it may well be useful: so few images cannot tell
    since = _since(evaluated, [_gain(line, begun).low <= 0 for line in evaluated])
    return (_flat_line(watched[-1], begun, evaluated[-1], since),) if since is not None else ()


def _settled(line: Mapping[str, Any]) -> bool:
    """Whether enough steps were taken to judge the network."""
    return bool(line["step"] >= SETTLED_STEPS)


def _watched(line: Mapping[str, Any]) -> bool:
    """Whether spread and rank are numbers: not so where projections diverged."""
    return all(line[name] is not None and math.isfinite(line[name]) for name in ("spread", "rank"))


def _collapsed(watched: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each epoch, whether it is settled and spread or rank are that of a collapse and do not climb."""
    found = []
    for i, line in enumerate(watched):
        least = {"spread": COLLAPSED_SPREAD, "rank": least_rank(line)}
        before = {name: max((earlier[name] for earlier in watched[:i]), default=0.0) for name in least}
        found.append(_settled(line) and any(line[name] < least[name] and line[name] <= CLIMBING * before[name] for name in least))
    return found


def least_rank(line: Mapping[str, Any]) -> float:
    """The rank below which projections of `num_dims` dimensions of `num_images` images have collapsed; RANKED_DIMS images where a line does not say."""
    return 1.0 + COLLAPSED_RANK * min(line["num_dims"], line.get("num_images", RANKED_DIMS), RANKED_DIMS)


def _has_knn(line: Mapping[str, Any]) -> bool:
    return line.get("knn_accuracy") is not None and bool(line.get("knn_n"))


def _since(lines: Sequence[Mapping[str, Any]], holds: Sequence[bool]) -> int | None:
    """The epoch from which on something held without a break until the last of the lines; None where it does not hold of that."""
    if not holds or not holds[-1]:
        return None
    broken = [i for i, held in enumerate(holds) if not held]
    return int(lines[broken[-1] + 1 if broken else 0]["epoch"])


def _gain(now: Mapping[str, Any], before: Mapping[str, Any]) -> Interval:
    """The interval of a difference of two k-NN accuracies, from the Wilson intervals of each (Newcombe 1998, method 10).

    As if the images were not the same: which of them were right is not in a history, so it is rather too wide than too narrow.
    """
    (p, low, high), (q, other_low, other_high) = (_proportion(line) for line in (now, before))
    down, up = math.hypot(p - low, other_high - q), math.hypot(high - p, q - other_low)
    return Interval(p - q - down, p - q + up, f"{100 * LEVEL:g} % Newcombe interval over {int(now['knn_n']):,} images")


def _proportion(line: Mapping[str, Any]) -> tuple[float, float, float]:
    n = int(line["knn_n"])
    right = round(line["knn_accuracy"] * n)
    interval = wilson(right, n)
    return right / n, interval.low, interval.high


def _collapse_line(watched: Sequence[Mapping[str, Any]], since: int, remedies: str) -> str:
    now, begun = watched[-1], next((line for line in watched if line["epoch"] == 0), None)
    before = f" (before the first step {rounded(begun['spread'])} and {rounded(begun['rank'])})" if begun is not None else ""
    return (
        f"collapse: since epoch {since} the projections of different images are nearly the same and say little of an image; in epoch {now['epoch']} "
        f"their spread is {rounded(now['spread'])} and their effective rank {rounded(now['rank'])} of {now['num_dims']:,} dimensions{before}. "
        f"Healthy is a spread of at least {COLLAPSED_SPREAD:g}, usually above 0.8, and a rank of at least {least_rank(now):.1f}. "
        f"What helps: {remedies}."
    )


def _flat_line(watched: Mapping[str, Any], begun: Mapping[str, Any], now: Mapping[str, Any], since: int) -> str:
    gain = _gain(now, begun)
    if gain.high < 0:
        known = "the features have become worse"
    elif gain.high < USEFUL_GAIN:
        known = f"a gain of {USEFUL_GAIN:g} is ruled out"
    else:
        known = f"no gain is seen, but one of {rounded(gain.high)} cannot be ruled out with {int(now['knn_n']):,} images"
    chance = f", chance {rounded(now['chance'])}" if now.get("chance") is not None else ""
    return (
        f"flat features, not collapse: the spread of the projections is healthy ({rounded(watched['spread'])}), but since epoch {since} no evaluation shows "
        f"the k-NN accuracy above that of the network that training began with: {rounded(now['knn_accuracy'])} in epoch {now['epoch']}, before the first step "
        f"{rounded(begun['knn_accuracy'])}{chance}; difference {rounded(gain.low)} to {rounded(gain.high)} ({gain.how}): {known}. "
        "What helps: more epochs, other augmentations (stronger crops and colour), no shortcut on which two views agree (such as a background that is "
        "one image's own), another learning rate."
    )
