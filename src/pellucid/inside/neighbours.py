"""Who lies near whom: exact neighbours of n points, and the numbers made of them that stand under a projection.

    neighbourhood      the k nearest of every point, and the silhouette of the labels (Rousseeuw 1987)
    knn_votes          leave-one-out majority vote of the k nearest
    kept               share of the nearest in feature space that are among the nearest on the plane
    trustworthiness    how far in feature space lie those that the plane shows as near (Venna and Kaski 2001)

Distances are Euclidean, in float32, of points that were centred first: of many columns as |a|^2 + |b|^2 - 2ab, of up to three by
subtraction. They are made block by block, so memory grows with n and not with n squared. Nothing is approximate beyond that rounding.
At equal distance the lower row comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 1 << 23  # distances in one block: 32 MiB
_ROUNDING = 8 * torch.finfo(torch.float32).eps  # of |a|^2 + |b|^2: a squared distance below it is that of equal points


@dataclass(frozen=True)
class Neighbourhood:
    """indices: (n, k) int64 rows, nearest first, the point itself left out; distances: (n, k) float32; silhouette in [-1, 1], None where undefined."""

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]
    silhouette: float | None


def centred(points: NDArray[np.floating]) -> Tensor:
    """(n, D) float32 around their mean, which is taken in float64; exactly zero where all points are equal up to rounding."""
    exact = torch.from_numpy(np.array(points, dtype=np.float64))
    mean = exact.mean(dim=0)
    exact -= mean
    if exact.abs().max() <= 1e-12 * mean.abs().max():  # float16 and float32 are exact in float64: only the mean rounds
        exact.zero_()
    return exact.float()


def neighbourhood(points: Tensor, labels: NDArray[np.int64], *, k: int) -> Neighbourhood:
    """The k < n nearest of each of the (n, D) float32 `points`, and the mean silhouette of the labels.

    s = (b - a) / max(a, b), a the mean distance to the own class, b that to the nearest other one; 0 where the class has one
    member. None with fewer than two classes, or with as many as points.
    """
    n = len(points)
    classes, of_row = np.unique(labels, return_inverse=True)
    own = torch.from_numpy(of_row.astype(np.int64))
    members = torch.nn.functional.one_hot(own, len(classes)).float()  # (n, C)
    defined, total = 1 < len(classes) < n, 0.0
    indices, distances = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start, squared in _blocks(points):
        stop = start + len(squared)
        nearest, order = _smallest(squared, k)
        indices[start:stop], distances[start:stop] = order.numpy(), nearest.sqrt_().numpy()
        if defined:
            squared[torch.arange(len(squared)), torch.arange(start, stop)] = 0.0
            total += float(_silhouettes(squared.sqrt_() @ members, members.sum(dim=0), own[start:stop]).sum())
    return Neighbourhood(indices, distances, total / n if defined else None)


def knn_votes(indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the label that most of the (n, k) neighbours bear; of labels with equally many votes, that of the nearest."""
    votes = labels[indices]
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)  # (n, k): how many bear the label of neighbour j
    return np.take_along_axis(votes, counts.argmax(axis=1)[:, None], axis=1)[:, 0]  # argmax takes the first, which is the nearest


def kept(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) share of the k rows in `before` that are among the k of `after`, in [0, 1]; both (n, k)."""
    return (before[:, :, None] == after[:, None, :]).any(axis=2).mean(axis=1)


def trustworthiness(points: Tensor, plane_neighbours: NDArray[np.int64]) -> float:
    """In [0, 1]: 1 where all of the (n, k) nearest on the plane are among the k nearest of the (n, D) `points` too; k < n / 2.

    1 - 2 / (n k (2n - 3k - 1)) * sum of max(0, r - k), r the rank in feature space of a neighbour on the plane (Venna and Kaski
    2001, eq. 4, as in scikit-learn). Points at equal distance share the best rank.
    """
    n, k = plane_neighbours.shape
    shown, excess = torch.from_numpy(plane_neighbours), 0
    for start, squared in _blocks(points):
        asked = squared.gather(1, shown[start : start + len(squared)]).numpy()  # (b, k)
        for row, thresholds in zip(squared.numpy(), asked, strict=True):  # 20 times faster than the same over whole blocks
            ranks = (np.count_nonzero(row < threshold) + 1 for threshold in thresholds)
            excess += sum(max(0, int(rank) - k) for rank in ranks)
    return 1.0 - 2.0 * excess / (n * k * (2 * n - 3 * k - 1))


def _blocks(points: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, squared distances (b, n) of b rows to all points), infinite from a point to itself."""
    n, D = points.shape
    rows, norms = max(1, _BLOCK // n), points.square().sum(dim=1)
    for start in range(0, n, rows):
        block = points[start : start + rows]
        if D <= 3:
            squared = torch.zeros(len(block), n)
            for axis in range(D):
                squared += (block[:, axis, None] - points[:, axis]).square_()
        else:
            lengths = norms[start : start + rows, None] + norms
            squared = torch.addmm(lengths, block, points.T, alpha=-2.0)
            squared.masked_fill_(squared <= lengths.mul_(_ROUNDING), 0.0)
        squared[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        yield start, squared


def _smallest(squared: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row (b, k), ascending, and their columns, the lower column first among equals."""
    values, columns = squared.topk(k + 1, dim=1, largest=False)  # one more shows whether the last was one of several; the point itself is the n-th
    tied = (values.diff(dim=1) == 0.0).any(dim=1).nonzero()[:, 0]
    if len(tied):
        again, order = squared[tied].sort(dim=1, stable=True)
        values[tied], columns[tied] = again[:, : k + 1], order[:, : k + 1]
    return values[:, :k].contiguous(), columns[:, :k]


def _silhouettes(sums: Tensor, sizes: Tensor, own: Tensor) -> Tensor:
    """(b,) silhouettes from the sums of distances to the members of each class (b, C), class sizes (C,) and own classes (b,)."""
    index = own[:, None]
    inside = sums.gather(1, index)[:, 0] / (sizes[own] - 1).clamp(min=1)
    outside = (sums / sizes).scatter(1, index, torch.inf).min(dim=1).values
    score = (outside - inside) / torch.maximum(inside, outside).clamp(min=torch.finfo(torch.float32).tiny)
    return score.masked_fill(sizes[own] == 1, 0.0).double()
