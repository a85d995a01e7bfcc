"""Features of one probe set at several epochs -> planes that can be compared, each with the numbers that the eye cannot see.

    pca-last    the two principal directions of the last epoch, applied to every epoch
    pca-each    those of each epoch, turned or mirrored onto the epoch before (orthogonal Procrustes, Schönemann 1966)
    tsne        openTSNE's optimiser (van der Maaten and Hinton 2008) as a chain forward in time: an epoch starts from the layout of the one before

Nothing of an epoch depends on a later one, but for pca-last, whose name says so. A chain that goes backward, from the last layout to the
first, can show classes in features that are noise: what a layout starts from, it may keep. The chain forward starts each epoch from the
shape of the one before, made small, so that points may still change places: a trial from the layout at full size kept what was no
longer true (trustworthiness 0.956 instead of 0.997 in the third of three drawn epochs). The price is that points move about as
far from epoch to epoch as in fresh layouts turned onto each other. Each epoch is centred on its own mean, and the scale is kept:
all panels share their axes.

Not done: labels are never used to place a point, and `transform` into another layout is not offered, as it keeps few neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid import intervals
from pellucid.errors import UsageError
from pellucid.findings import Panel, ProjectionFinding
from pellucid.inside import neighbours as near
from pellucid.inside.repulsion import gradient
from pellucid.run import Measurement

_START = 3.0  # standard deviation of what t-SNE starts from, in the units of its layout
_JITTER = 0.01  # of the start, so that points in one place can part
# Iterations and exaggeration, slackened step by step: 30 at 4 and then none gave a trustworthiness of 0.964 where this gives 0.976 (1,500 points).
# 12 and more draws the layout of weak clusters into one point.
_PHASES = ((30, 4.0), (50, 2.0), (50, 1.6), (50, 1.3), (160, 1.0))
_LEAST_POINTS = 4
_INVENTED = 0.05  # in silhouette: what a plane may show over the features before `how` says so

Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """coordinates: (E, n, 2) float32, row i the same probe sample in every epoch.

    limits: (left, right, bottom, top), the same for all panels; a unit is as long on both axes. `how` is for readers.
    """

    name: str
    epochs: list[int]
    coordinates: NDArray[np.float32]
    how: str
    limits: tuple[float, float, float, float]
    panels: list[Panel]

    def finding(self) -> ProjectionFinding:
        """What findings.json holds of it; the coordinates go to arrays.npz under its name."""
        return ProjectionFinding(self.name, self.how, self.panels)


def project(
    features: Sequence[NDArray[np.floating]],
    labels: NDArray[np.integer],
    *,
    epochs: Sequence[int],
    method: Literal["pca", "tsne"],
    fit: Literal["last", "each"] = "last",
    perplexity: float = 30.0,
    seed: int,
    split: str = "val",
    neighbours: int = 10,
) -> Projection:
    """The probe's features on a plane at each of E epochs, in order of time.

    features: E arrays (n, D), float16 or wider, computed in float32; the same samples in the same rows. D may differ but for pca-last.
    labels: (n,), for the numbers alone. `fit` is PCA's. With few points perplexity falls to (n - 1) / 3 and neighbours to below n / 2;
    what was taken stands in `how` and in that of each number. The same seed and libraries give the same bits for one thread and for two. UsageError names
    the epoch whose features cannot be used.
    """
    classes = np.asarray(labels).astype(np.int64)
    _check(features, classes, epochs, method, fit, perplexity, neighbours)
    points = [near.centred(np.asarray(x)) for x in features]
    n = len(classes)
    perplexity, k = min(perplexity, (n - 1) / 3), min(neighbours, (n - 1) // 2)
    searched = min(n - 1, max(k, int(3 * perplexity) if method == "tsne" else 0))
    known = [near.neighbourhood(x, classes, k=searched) for x in points]
    if method == "tsne":
        name, planes, how = "tsne", _tsne_chain(points, known, perplexity, seed), _TSNE.format(perplexity=perplexity)
    elif fit == "last":
        name, planes, how = "pca-last", _pca_last(points), _PCA_LAST
    else:
        name, planes, how = "pca-each", _pca_each(points), _PCA_EACH
    coordinates = np.stack(planes).astype(np.float32)
    about = _About(name, k, split, seed)
    panels = [_panel(about, *each, classes) for each in zip(epochs, points, known, coordinates, strict=True)]
    return Projection(name, [int(e) for e in epochs], coordinates, how + _warning(panels[0]), _limits(coordinates), panels)


_PCA_LAST = (
    "PCA fitted on the last epoch: its two principal directions, applied to every epoch after centring each on its own mean. "
    "Directions chosen with the last epoch in view may show early what they were chosen for."
)
_PCA_EACH = "PCA fitted on each epoch, centred on its own mean, then turned or mirrored (orthogonal Procrustes) onto the epoch before, never onto a later one."
_TSNE = (
    "t-SNE (openTSNE, perplexity {perplexity:g}, exact neighbours) as a chain forward in time: the first epoch starts from its own PCA, each later "
    "one from the layout of the epoch before, made small, and is turned onto it (orthogonal Procrustes); no epoch sees a later one."
)


def _check(
    features: Sequence[NDArray[np.floating]], labels: NDArray[np.int64], epochs: Sequence[int], method: str, fit: str, perplexity: float, neighbours: int
) -> None:
    if method not in ("pca", "tsne") or fit not in ("last", "each"):
        raise UsageError(f'expected method "pca" or "tsne" and fit "last" or "each", got {method!r} and {fit!r}')
    if not features or len(features) != len(epochs) or list(epochs) != sorted(set(epochs)):
        raise UsageError(f"expected features of at least one epoch and as many epochs, ascending; got {len(features)} for epochs {list(epochs)}")
    if labels.ndim != 1 or len(labels) < _LEAST_POINTS:
        raise UsageError(f"expected labels (n,) of at least {_LEAST_POINTS} probe samples, got shape {labels.shape}; a larger probe set is needed")
    if not (perplexity >= 1 and math.isfinite(perplexity)) or neighbours < 1:
        raise UsageError(f"expected perplexity and neighbours of at least 1, got {perplexity} and {neighbours}")
    for epoch, x in zip(epochs, features, strict=True):
        if x.ndim != 2 or len(x) != len(labels) or x.shape[1] == 0:
            raise UsageError(f"epoch {epoch}: expected features (n, D) of the same n = {len(labels)} probe samples at every epoch, got shape {x.shape}")
        if bad := int((~np.isfinite(x)).any(axis=1).sum()):
            raise UsageError(
                f"epoch {epoch}: features of {bad} of {len(x)} probe samples are NaN or infinite (in half precision beyond 65,504); none can be placed"
            )
        if method == "pca" and fit == "last" and x.shape[1] != features[-1].shape[1]:
            raise UsageError(f"epoch {epoch}: {x.shape[1]} features, the last epoch has {features[-1].shape[1]}; its directions fit none but its own number")


# ── PCA ───────────────────────────────────────────────────────────────────────────────────────────────────────


def principal_directions(points: Tensor) -> Tensor:
    """(D, 2) float64 orthonormal directions of the largest variance of centred (n, D) points; the largest entry of each is positive.

    From the smaller of covariance (D, D) and Gram matrix (n, n). Where there is no second direction, or none at all, its column is 0.
    """
    x = points.double()
    n, D = x.shape
    directions = torch.zeros(D, 2, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(x.T @ x if n >= D else x @ x.T)  # ascending
    for axis in range(min(2, len(values))):
        value, vector = values[-1 - axis], vectors[:, -1 - axis]
        if value > 1e-12 * values[-1] and values[-1] > 0:
            direction = vector if n >= D else x.T @ vector / value.sqrt()
            directions[:, axis] = direction * direction[direction.abs().argmax()].sign()
    return directions


def procrustes(moving: Plane, fixed: Plane) -> Plane:
    """`moving` (n, 2), centred, under the rotation or reflection that brings its rows nearest to those of `fixed` (Schönemann 1966); never scaled."""
    centred = moving - moving.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ (fixed - fixed.mean(axis=0)))
    turned: Plane = centred @ (left @ right)
    return turned


def _pca(points: Tensor) -> Plane:
    return (points.double() @ principal_directions(points)).numpy()


def _pca_last(points: Sequence[Tensor]) -> list[Plane]:
    directions = principal_directions(points[-1])
    return [(x.double() @ directions).numpy() for x in points]


def _pca_each(points: Sequence[Tensor]) -> list[Plane]:
    planes = [_pca(points[0])]
    for x in points[1:]:
        planes.append(procrustes(_pca(x), planes[-1]))
    return planes


# ── t-SNE ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _tsne_chain(points: Sequence[Tensor], known: Sequence[near.Neighbourhood], perplexity: float, seed: int) -> list[Plane]:
    """A layout for each epoch; that of an epoch without a single distance between points is their one place."""
    planes: list[Plane] = []
    for x, neighbourhood in zip(points, known, strict=True):
        if not bool(x.any()):
            planes.append(np.zeros((len(x), 2)))
            continue
        begun = bool(planes) and bool(planes[-1].any())
        layout = tsne(neighbourhood, start=planes[-1] if begun else _pca(x), perplexity=perplexity, seed=seed)
        planes.append(procrustes(layout, planes[-1]) if begun else layout)
    return planes


def tsne(known: near.Neighbourhood, *, start: Plane, perplexity: float, seed: int) -> Plane:
    """(n, 2) layout of n points from their int(3 perplexity) nearest, all others if there are fewer, starting at `start` (n, 2) made small."""
    import openTSNE  # slow to import, and PCA does without
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    jobs, n = torch.get_num_threads(), len(start)
    nearest = min(n - 1, int(3 * perplexity))
    index = PrecomputedNeighbors(known.indices[:, :nearest], known.distances[:, :nearest].astype(np.float64))
    affinities = openTSNE.affinity.PerplexityBasedNN(knn_index=index, perplexity=perplexity, n_jobs=jobs)
    small = (start - start.mean(axis=0)) / start.std(axis=0).max() * _START
    # The last bits of a sum may depend on the number of threads, and t-SNE would make more of them.
    small = small.astype(np.float32) + _JITTER * np.random.Generator(np.random.PCG64(seed)).standard_normal(small.shape)
    layout = openTSNE.TSNEEmbedding(small, affinities, negative_gradient_method=gradient, n_jobs=jobs)
    for iterations, exaggeration in _PHASES:
        # n / exaggeration (Belkina et al. 2019), but enough to spread few points in so many steps
        layout = layout.optimize(iterations, exaggeration=exaggeration, learning_rate=max(200.0, n / exaggeration), momentum=0.8)
    return np.array(layout, dtype=np.float64)


# ── the numbers under a panel ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _About:
    """What all numbers of a projection share."""

    name: str
    k: int
    split: str
    seed: int


def _panel(about: _About, epoch: int, points: Tensor, known: near.Neighbourhood, plane: NDArray[np.float32], labels: NDArray[np.int64]) -> Panel:
    n, k, space = len(labels), about.k, known.indices[:, : about.k]
    shown = near.neighbourhood(torch.from_numpy(plane), labels, k=k)
    right = int((near.knn_votes(space, labels) == labels).sum())
    interval = intervals.wilson(right, n)

    def score(measure: str, value: float | None, how: str, *, of_plane: bool) -> Measurement | None:
        place = f"{about.name}, epoch {epoch}" if of_plane else f"epoch {epoch}"
        return None if value is None else Measurement(f"{measure}[{place}]", value, "score", about.split, n, about.seed, how)

    def fraction(measure: str, value: float, how: str) -> Measurement:
        return Measurement(f"{measure}[{about.name}, epoch {epoch}]", value, "fraction", about.split, n, about.seed, how)

    knn_how = f"leave one out, majority of the {k} nearest in feature space (Euclidean); of classes with equal votes that of the nearest"
    silhouette_how = "mean silhouette of the classes (Rousseeuw 1987), Euclidean, in [-1, 1], "
    return Panel(
        epoch=int(epoch),
        knn_accuracy=Measurement(
            f"knn_accuracy[epoch {epoch}]", right / n, "fraction", about.split, n, about.seed, knn_how, interval=interval.pair, interval_how=interval.how
        ),
        silhouette=score("silhouette", known.silhouette, silhouette_how + "in feature space", of_plane=False),
        plane_silhouette=score("plane_silhouette", shown.silhouette, silhouette_how + "on the plane", of_plane=True),
        neighbours_kept=fraction(
            "neighbours_kept",
            float(near.kept(space, shown.indices).mean()),
            f"mean share of the {k} nearest in feature space among the {k} nearest on the plane",
        ),
        trustworthiness=fraction(
            "trustworthiness",
            near.trustworthiness(points, shown.indices),
            f"Venna and Kaski 2001 over the {k} nearest on the plane; 1 is best, about 0.5 chance",
        ),
    )


def _warning(first: Panel) -> str:
    """A sentence where the first panel shows the classes further apart than they are."""
    if first.silhouette is None or first.plane_silhouette is None or first.plane_silhouette.value <= first.silhouette.value + _INVENTED:
        return ""
    seen, true = first.plane_silhouette, first.silhouette
    return f" The first panel parts classes more than the features do: silhouette {seen} on the plane, {true} in feature space."


def _limits(coordinates: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of one square around all epochs with a margin of a twentieth; of side 2 where all is one point."""
    flat = coordinates.reshape(-1, 2).astype(np.float64)
    low, high = flat.min(axis=0), flat.max(axis=0)
    half = 0.55 * float((high - low).max()) or 1.0
    x, y = (low + high) / 2
    return float(x - half), float(x + half), float(y - half), float(y + half)
