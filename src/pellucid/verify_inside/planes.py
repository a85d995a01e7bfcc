"""The numbers under a projection once more, in float64, from the snapshots' features and the coordinates: plain loops, SciPy and scikit-learn.

Training finds neighbours by distances in float32. Where two of them lie closer together than float32 can tell, either order is right, and the number is
known only to lie between two bounds: `Bounds` holds both, and they are equal wherever no such pair matters. Votes and ties follow what `how` of each
number says: of classes with equal votes that of the nearest, at equal distance the earlier row.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import euclidean_distances

MOST_POINTS = 5_000  # beyond, the distances of all pairs take over 200 MB in float64
ROUNDING = 16 * float(np.finfo(np.float32).eps)  # of |a|^2 + |b|^2: how far a squared distance in float32 may be off

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Bounds:
    """A number lies between `low` and `high`; `value` is what float64 gives."""

    value: float
    low: float
    high: float

    def hold(self, reported: float, slack: float) -> bool:
        return self.low - slack <= reported <= self.high + slack


@dataclass(frozen=True)
class Near:
    """The k nearest of one point. order: (k,) rows in order. sure: those that belong to them for certain, maybe: those among which the other `spots` are.

    steady: whether the order of the first k is certain too.
    """

    order: list[int]
    sure: set[int]
    maybe: set[int]
    spots: int
    steady: bool


# ── neighbours ────────────────────────────────────────────────────────────────────────────────────────────────


def centred(points: NDArray[np.floating]) -> Floats:
    """(n, D) float64 around their mean; zero where all points are equal up to rounding."""
    x = points.astype(np.float64)
    mean = x.mean(axis=0)
    away: Floats = x - mean
    return away if np.abs(away).max(initial=0.0) > 1e-12 * np.abs(mean).max(initial=0.0) else np.zeros_like(x)


@dataclass(frozen=True)
class Distances:
    """squared: (n, n) between n points. Training's may be off by a share of themselves where it subtracts coordinates, else of the lengths (n,)."""

    squared: Floats
    lengths: Floats | None

    def unsure(self, row: int) -> Floats:
        """(n,) how far the squared distances of a point may be off in float32."""
        return ROUNDING * (self.squared[row] if self.lengths is None else self.lengths[row] + self.lengths)


def in_space(points: Floats) -> Distances:
    """Of features (n, D)."""
    return Distances(euclidean_distances(points, squared=True), (points**2).sum(axis=1))


def on_plane(plane: Floats) -> Distances:
    """Of coordinates (n, 2)."""
    return Distances(cdist(plane, plane, "sqeuclidean"), None)


def neighbours(distances: Distances, k: int) -> list[Near]:
    """The neighbours of each of n points."""
    return [_nearest(row, squared, distances.unsure(row), k) for row, squared in enumerate(distances.squared)]


def _nearest(row: int, squared: Floats, unsure: Floats, k: int) -> Near:
    others = np.argsort(squared, kind="stable")  # the earlier row first
    others = others[others != row]
    order, edge = [int(i) for i in others[:k]], others[k - 1]
    blurred = [bool(squared[b] - squared[a] <= unsure[a] + unsure[b]) for a, b in pairwise(others[: k + 1])]
    if len(others) == k or not blurred[-1]:  # the k-th is told from the next
        return Near(order, set(order), set(), 0, not any(blurred))
    tied = np.flatnonzero(np.abs(squared - squared[edge]) <= unsure + unsure[edge])
    maybe = {int(i) for i in tied if i != row}
    sure = {i for i in order if i not in maybe}
    return Near(order, sure, maybe, k - len(sure), False)


# ── the numbers ───────────────────────────────────────────────────────────────────────────────────────────────


def knn_accuracy(space: list[Near], labels: Ints) -> Bounds:
    """Leave one out: the share of points whose class most of their neighbours bear."""
    right, surely, perhaps = 0, 0, 0
    for row, near in enumerate(space):
        own = int(labels[row])
        right += _vote([int(labels[i]) for i in near.order]) == own
        outcomes = {_vote([int(labels[i]) for i in near.order]) == own} if near.steady else _possible(near, labels, own)
        surely += outcomes == {True}
        perhaps += True in outcomes
    n = len(labels)
    return Bounds(right / n, surely / n, perhaps / n)


def _vote(votes: list[int]) -> int:
    counts = Counter(votes)
    return next(label for label in votes if counts[label] == max(counts.values()))


def _possible(near: Near, labels: Ints, own: int) -> set[bool]:
    """Which outcomes a vote may have whose voters or whose order are not certain."""
    sure = Counter(int(labels[i]) for i in near.sure)
    maybe = Counter(int(labels[i]) for i in near.maybe)
    least = {c: sure[c] + max(0, near.spots - (len(near.maybe) - maybe[c])) for c in sure | maybe}
    most = {c: sure[c] + min(near.spots, maybe[c]) for c in sure | maybe}
    others_most = max((most[c] for c in most if c != own), default=0)
    if least.get(own, 0) > others_most:
        return {True}
    if any(least[c] > most.get(own, 0) for c in least if c != own):
        return {False}
    return {True, False}


def neighbours_kept(space: list[Near], plane: list[Near], k: int) -> Bounds:
    """The mean share of the k nearest in feature space among the k nearest on the plane."""
    value, low, high = 0.0, 0.0, 0.0
    for a, b in zip(space, plane, strict=True):
        value += len(set(a.order) & set(b.order)) / k
        certain = len(a.sure & b.sure)
        low += certain / k
        high += min(k, len((a.sure | a.maybe) & (b.sure | b.maybe))) / k
    n = len(space)
    return Bounds(value / n, low / n, high / n)


def trustworthiness(space: Distances, plane: list[Near], k: int) -> Bounds:
    """Venna and Kaski 2001, eq. 4; the rank of a point is 1 more than the number of those nearer."""
    n = len(plane)
    value, least, most = 0, 0, 0
    for row, near in enumerate(plane):
        squared, unsure = space.squared[row].copy(), space.unsure(row)
        squared[row] = np.inf
        asked = sorted(near.sure | near.maybe | set(near.order))
        rank = {i: int((squared < squared[i]).sum()) + 1 for i in asked}
        low = {i: max(0, int((squared + unsure < squared[i] - unsure[i]).sum()) + 1 - k) for i in asked}
        high = {i: max(0, int((squared - unsure < squared[i] + unsure[i]).sum()) - k) for i in asked}  # it counts itself among them
        high = {i: max(high[i], rank[i] - k) for i in asked}  # where nothing is unsure, not even itself
        value += sum(max(0, rank[i] - k) for i in near.order)
        least += sum(low[i] for i in near.sure) + sum(sorted(low[i] for i in near.maybe)[: near.spots])
        most += sum(high[i] for i in near.sure) + sum(sorted((high[i] for i in near.maybe), reverse=True)[: near.spots])
    whole = n * k * (2 * n - 3 * k - 1) / 2
    return Bounds(1 - value / whole, 1 - most / whole, 1 - least / whole)


def silhouette(distances: Distances, labels: Ints) -> Bounds | None:
    """The mean silhouette by scikit-learn, with what float32 distances may change of it; None where it is not defined."""
    classes, own = np.unique(labels, return_inverse=True)
    if not 1 < len(classes) < len(labels):
        return None
    if not distances.squared.any():
        return Bounds(0.0, 0.0, 0.0)
    between = np.sqrt(distances.squared)
    value = float(silhouette_score(between, labels, metric="precomputed"))
    members = np.eye(len(classes))[own]
    slack = 0.0
    for row, squared in enumerate(distances.squared):
        error = np.sqrt(squared + distances.unsure(row)) - between[row]  # of one distance; means of distances are no worse off than the mean of it
        error[row] = 0.0
        means, errors = (x @ members / members.sum(axis=0) for x in (between[row], error))
        slack += min(2.0, 4 * float(errors.max()) / max(float(means.max()), 1e-300))
    slack /= len(labels)
    return Bounds(value, value - slack, value + slack)


# ── planes ────────────────────────────────────────────────────────────────────────────────────────────────────


def principal_planes(features: list[NDArray[np.floating]], name: str) -> tuple[list[Floats], float]:
    """((n, 2) planes of each epoch by scikit-learn, how far float32 and nearly equal variances may turn them, as a share of their size).

    name: "pca-last" or "pca-each". The first plane of pca-each and the two axes of pca-last may be mirrored.
    """
    points = [centred(x) for x in features]
    if name == "pca-last":
        directions, unsure = _directions(points[-1])
        return [x @ directions for x in points], unsure
    planes: list[Floats] = []
    worst = 0.0
    for x in points:
        directions, unsure = _directions(x)
        plane = x @ directions
        if planes:
            spread = scipy.linalg.svdvals(plane.T @ planes[-1])
            unsure += ROUNDING * spread[0] / spread[1] if spread[1] > 0 else math.inf  # how sure the turn is
            plane = plane @ scipy.linalg.orthogonal_procrustes(plane, planes[-1])[0]
        planes.append(plane)
        worst = max(worst, unsure)
    return planes, worst


def _directions(points: Floats) -> tuple[Floats, float]:
    """((D, 2) the two principal directions, 0 where there is none; how far they may turn)."""
    n, D = points.shape
    directions = np.zeros((D, 2))
    if not points.any():
        return directions, 0.0
    fitted = PCA(min(3, n, D), svd_solver="full" if n <= D else "covariance_eigh").fit(points)
    variances = [*fitted.explained_variance_.tolist(), 0.0, 0.0, 0.0]
    found = [axis for axis in range(2) if variances[axis] > 1e-12 * variances[0]]
    for axis in found:
        directions[:, axis] = fitted.components_[axis]
    gap = min(variances[axis] - variances[axis + 1] for axis in found)
    return directions, ROUNDING * variances[0] / gap if gap > 0 else math.inf


def largest_difference(found: Floats, wanted: Floats) -> float:
    """Largest difference of (E, n, 2) coordinates, each axis mirrored as fits best, as a share of the largest coordinate."""
    size = max(float(np.abs(wanted).max(initial=0.0)), 1e-300)
    by_axis = [min(float(np.abs(found[..., a] - sign * wanted[..., a]).max(initial=0.0)) for sign in (1, -1)) for a in range(2)]
    return max(by_axis) / size
