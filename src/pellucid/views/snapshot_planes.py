"""The features that a training kept so far on a plane, before it ends and leaves its findings. NumPy and SciPy only.

The plane is that of `pca-each` of `inside.projection`: the two principal directions of each epoch, turned or mirrored onto the epoch before. Nothing of an
epoch depends on a later one, so that what is seen while a run trains stays where it is as epochs come. Not here: the numbers under a plane and the other
projections, which a training computes at its end.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pellucid.run import Probe, Run

MOST_EPOCHS = 60  # that are read for a view; more are left out evenly
MOST_FITTED = 2048  # images, or features, that directions are fitted on: exact where one of the two is not more
_LEAST_POINTS = 4  # as in inside.projection
_REMEMBERED = 4 * MOST_EPOCHS  # planes of single snapshots: a new one is not the reason to compute the others again

Plane = NDArray[np.float64]


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the indices below `count`, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def has_planes(run: Run) -> bool:
    """Whether a run has snapshots with the features of enough images. RunError where its probe was changed."""
    return bool(run.snapshot_epochs) and len(run.probe().rows) >= _LEAST_POINTS


def planes_so_far(run: Run) -> tuple[Probe, list[int], NDArray[np.float32]]:
    """(probe, E epochs, (E, p, 2)): where the p images of the probe lie at those epochs that were kept; at most MOST_EPOCHS. RunError names a damaged file."""
    kept = run.snapshot_epochs
    epochs = [kept[i] for i in evenly(len(kept), MOST_EPOCHS)]
    found: list[Plane] = []
    for epoch in epochs:
        at = run.snapshot_file(epoch).stat()
        plane = _plane(run.path, epoch, (at.st_mtime_ns, at.st_size))
        found.append(turned(plane, found[-1]) if found else plane)
    return run.probe(), epochs, np.stack(found).astype(np.float32)


@functools.lru_cache(maxsize=_REMEMBERED)
def _plane(folder: Path, epoch: int, at: tuple[int, int]) -> Plane:
    """The plane of one snapshot. at: what tells its file from an earlier one of the same name."""
    features = Run(folder).snapshot(epoch).features
    assert features is not None, "the probe has images"
    return principal(features)


def principal(features: NDArray[np.floating]) -> Plane:
    """(n, 2): features (n, D) around their mean, along the two directions of the largest variance; 0 along one that is not there.

    Of the smaller of covariance (D, D) and Gram matrix (n, n), of MOST_FITTED evenly spaced rows where both are larger than that. The largest entry of a
    direction is positive.
    """
    import scipy.linalg  # the explorer starts without

    x = features.astype(np.float64)
    x -= x.mean(axis=0)
    n, D = x.shape
    some = x if min(n, D) <= MOST_FITTED else x[evenly(n, MOST_FITTED)]
    covariance = len(some) >= D
    matrix = some.T @ some if covariance else some @ some.T
    size = len(matrix)
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[max(0, size - 2), size - 1])  # ascending
    plane = np.zeros((n, 2))
    for axis, (value, vector) in enumerate(zip(values[::-1], vectors.T[::-1], strict=True)):
        if value > 1e-12 * values[-1] and values[-1] > 0:
            direction = vector if covariance else some.T @ vector / np.sqrt(value)
            plane[:, axis] = x @ direction * np.sign(direction[np.abs(direction).argmax()])
    return plane


def turned(moving: Plane, fixed: Plane) -> Plane:
    """`moving` (n, 2), around its mean, under the rotation or reflection that brings its rows nearest to those of `fixed` (Schönemann 1966)."""
    centred = moving - moving.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ (fixed - fixed.mean(axis=0)))
    found: Plane = centred @ (left @ right)
    return found
