"""The gradient of t-SNE in time that grows with the points and the plane's area: how openTSNE is told to push points apart.

All n^2 pairs push each other with K^2 d, K = 1 / (1 + |d|^2). As the gradient of K is -2 K^2 d, that force is -1/2 of the gradient of one
potential, the sum of K over all points; and the potential is one convolution on a grid. Points are spread onto the grid by cubic
B-splines, the kernel is divided by the splines' own transform so that both ends interpolate, and the potential and its gradient
are read off with the same splines. FIt-SNE (Linderman et al. 2019) does this with four convolutions and polynomials in place of one and
splines; what a point's own mass adds on the grid is taken away again. Few points are summed pair by pair. The pull along the neighbours is
openTSNE's own.
No sum depends on the number of threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

_SPACING = 0.5  # of the grid; the kernel's half-width is 1
_FEW = 400  # points: pair by pair is as fast, and exact
_MAX_CELLS = 1000  # along a side: a layout wider than 500 gets a coarser grid

Floats = NDArray[np.float64]


def gradient(embedding: Floats, affinities: Any, dof: float, *, n_jobs: int = 1, should_eval_error: bool = False, **_: Any) -> tuple[float, Floats]:
    """(Kullback-Leibler divergence, its gradient (n, 2)) as openTSNE's optimiser asks for them: `negative_gradient_method=gradient`.

    affinities: (n, n) sparse, sum 1; the divergence is 0 unless asked for. The factor 4 of the gradient is in openTSNE's learning rate.
    """
    from openTSNE import _tsne  # compiled; the same call that openTSNE's two own gradients make

    points = np.ascontiguousarray(embedding, dtype=np.float64).view(np.ndarray)
    potential, push = repulsion(points, workers=n_jobs)
    normaliser = max(float(potential.sum()), np.finfo(np.float64).tiny)  # Z
    found = -push / normaliser
    pull = {"num_threads": n_jobs, "should_eval_error": should_eval_error}
    total, divergence = _tsne.estimate_positive_gradient_nn(affinities.indices, affinities.indptr, affinities.data, points, points, found, dof, **pull)
    return (divergence + total * np.log(normaliser) if should_eval_error else 0.0), found


def repulsion(points: Floats, *, workers: int = 1) -> tuple[Floats, Floats]:
    """Sums over all other points j of K(i, j) (n,), and of K(i, j)^2 (y_i - y_j) (n, 2), for (n, 2) points."""
    if len(points) <= _FEW:
        away = points[:, None] - points  # (n, n, 2)
        kernel = 1.0 / (1.0 + (away**2).sum(axis=2))
        return kernel.sum(axis=1) - 1.0, (kernel[:, :, None] ** 2 * away).sum(axis=1)
    low = points.min(axis=0)
    extent = float((points.max(axis=0) - low).max())
    spacing = max(_SPACING, extent / _MAX_CELLS)
    size = _grid_size(int(extent / spacing))
    place = (points - low) / spacing + 1.0
    cell = np.floor(place).astype(np.int64)
    weights, slopes = _splines(place - cell)  # (n, 2, 4) each
    nodes = cell[:, :, None] + np.arange(-1, 3)
    flat = (nodes[:, 0, :, None] * size + nodes[:, 1, None, :]).reshape(-1, 16)
    spread = _outer(weights[:, 0], weights[:, 1])  # (n, 16)
    mass = np.bincount(flat.ravel(), spread.ravel(), minlength=size * size).reshape(size, size)
    transform, own = _kernel(size, spacing)
    field = scipy.fft.irfft2(scipy.fft.rfft2(mass, workers=workers) * transform, s=(size, size), workers=workers)
    around = field.ravel()[flat] - spread @ own  # (n, 16): what the others make of the nodes around a point
    slope = [(around * _outer(*pair)).sum(axis=1) for pair in ((slopes[:, 0], weights[:, 1]), (weights[:, 0], slopes[:, 1]))]
    return (around * spread).sum(axis=1), np.stack(slope, axis=1) * (-0.5 / spacing)


def _outer(rows: Floats, columns: Floats) -> Floats:
    """(n, 16) products of (n, 4) and (n, 4)."""
    return (rows[:, :, None] * columns[:, None, :]).reshape(-1, 16)


def _grid_size(cells: int) -> int:
    """Nodes along a side: twice the layout's, so that the convolution does not wrap, and few different values, so that kernels are used again."""
    least = 2 * (cells + 5) + 16  # the splines' inverse reaches a dozen nodes further
    return int(scipy.fft.next_fast_len(-(-least // 32) * 32, real=True))


@lru_cache(maxsize=4)
def _kernel(size: int, spacing: float) -> tuple[NDArray[np.complex128], Floats]:
    """(size, size // 2 + 1) transform of K on the grid, divided by that of the B-spline at whole numbers, (2 + cos) / 3, once for
    each end and axis; and what it is between the 16 nodes around a point, (16, 16)."""
    steps = np.arange(size)
    away = np.minimum(steps, size - steps) * spacing
    spline = (2.0 + np.cos(2.0 * np.pi * steps / size)) / 3.0
    transform = scipy.fft.rfft2(1.0 / (1.0 + away[:, None] ** 2 + away**2)) / (spline[:, None] * spline[: size // 2 + 1]) ** 2
    rows, columns = np.divmod(np.arange(16), 4)
    return transform, scipy.fft.irfft2(transform, s=(size, size))[rows[:, None] - rows, columns[:, None] - columns]


def _splines(t: Floats) -> tuple[Floats, Floats]:
    """Cubic B-splines of the four nodes around a point at t in [0, 1) past the second, and their slopes; (..., 4) each, sums 1 and 0."""
    u = 1.0 - t
    weights = np.stack([u**3, 3 * t**3 - 6 * t**2 + 4, 3 * u**3 - 6 * u**2 + 4, t**3], axis=-1) / 6.0
    slopes = np.stack([-(u**2), 3 * t**2 - 4 * t, 4 * u - 3 * u**2, t**2], axis=-1) / 2.0
    return weights, slopes
