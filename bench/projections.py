"""Seconds and trustworthiness of a projection of three epochs: Pellucid's chain of t-SNE beside scikit-learn's TSNE, epoch by epoch.

The features are drawn: 10,000 points of 768 features, of ten classes. Six hidden coordinates, the same in every epoch, are bent into all
features by sines whose directions turn over the epochs; the classes' centres move apart, from within the noise to clusters; Gaussian
noise is added anew in each epoch. Both libraries look at all 768 features, with perplexity 30 and all cores; scikit-learn has its
defaults (PCA start, Barnes-Hut, 1,000 iterations). Its planes are not turned onto each other; Pellucid's are.

Rounds are interleaved: A, B in one, B, A in the next. "with its numbers" is the whole of `inside.project`: neighbours, layouts, and the k-NN accuracy,
silhouettes, kept neighbours and trustworthiness under each panel. "layouts" leaves out what scikit-learn does not compute (those
numbers). Trustworthiness (10 neighbours, scikit-learn's definition) is computed by the same code for both; with --points up to 4,000 also by
scikit-learn, and the bench stops if they differ.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE, trustworthiness

from peers import Spread, machine, markdown_table
from pellucid.inside import neighbours as near
from pellucid.inside import projection
from pellucid.runtime import num_cores

WIDTH, CLASSES, HIDDEN, EPOCHS, NEIGHBOURS, PERPLEXITY = 768, 10, 6, 3, 10, 30
GOAL = 5.0

Features = list[NDArray[np.float32]]


def drawn(points: int, seed: int) -> tuple[Features, NDArray[np.int64]]:
    """EPOCHS arrays (points, WIDTH) and labels (points,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, points)
    hidden = random.standard_normal((points, HIDDEN))
    early, late = random.standard_normal((2, HIDDEN, WIDTH))
    centres = random.standard_normal((CLASSES, WIDTH))
    features = []
    for time_of in np.linspace(0.0, 1.0, EPOCHS):
        curved = np.sin(0.5 * hidden @ (early * np.cos(time_of) + late * np.sin(time_of)))
        noise = 0.5 * random.standard_normal((points, WIDTH))
        features.append((curved + (0.1 + 0.5 * time_of) * centres[labels] + noise).astype(np.float32))
    return features, labels


def ours(features: Features, labels: NDArray[np.int64], seed: int) -> tuple[float, float, list[float]]:
    """Seconds of the whole, seconds without the numbers under the panels, trustworthiness of each epoch."""
    spent, real = 0.0, projection._panel

    def timed(*given: object) -> object:
        nonlocal spent
        begun = time.perf_counter()
        panel = real(*given)  # type: ignore[arg-type]
        spent += time.perf_counter() - begun
        return panel

    projection._panel = timed  # type: ignore[assignment]
    try:
        begun = time.perf_counter()
        found = projection.project(features, labels, epochs=range(1, EPOCHS + 1), method="tsne", perplexity=PERPLEXITY, neighbours=NEIGHBOURS, seed=seed)
        whole = time.perf_counter() - begun
    finally:
        projection._panel = real
    return whole, whole - spent, [trust(x, plane) for x, plane in zip(features, found.coordinates, strict=True)]


def theirs(features: Features, seed: int) -> tuple[float, list[float]]:
    """Seconds of scikit-learn's TSNE of every epoch, trustworthiness of each."""
    begun = time.perf_counter()
    planes = [TSNE(perplexity=PERPLEXITY, random_state=seed, n_jobs=-1).fit_transform(x) for x in features]
    return time.perf_counter() - begun, [trust(x, plane) for x, plane in zip(features, planes, strict=True)]


def trust(features: NDArray[np.float32], plane: NDArray[np.float32]) -> float:
    shown = near.neighbourhood(near.centred(plane), np.zeros(len(plane), np.int64), k=NEIGHBOURS).indices
    value = near.trustworthiness(near.centred(features), shown)
    if len(plane) <= 4000 and abs(value - trustworthiness(features, plane, n_neighbors=NEIGHBOURS)) > 1e-5:
        raise SystemExit("trustworthiness differs from scikit-learn's: the comparison would mean nothing")
    return value


def seconds(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.1f}" if spread.n == 1 else f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000, help="2000: under a minute, does it work")
    parser.add_argument("--rounds", type=int, default=3, help="each about three times scikit-learn's time for one epoch")
    args = parser.parse_args()
    torch.set_num_threads(num_cores())
    whole, layouts, sklearn, trusts = [], [], [], ([], [])  # type: ignore[var-annotated]
    for round_ in range(args.rounds):
        features, labels = drawn(args.points, seed=200 + round_)
        for name in ("ours", "theirs") if round_ % 2 == 0 else ("theirs", "ours"):
            if name == "ours":
                total, alone, found = ours(features, labels, round_)
                whole.append(total)
                layouts.append(alone)
                trusts[0].append(found)
            else:
                total, found = theirs(features, round_)
                sklearn.append(total)
                trusts[1].append(found)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("openTSNE", "scikit-learn", "numpy", "scipy"))
    print(f"{machine()}; {versions}; load {os.getloadavg()[0]:.1f}")
    print(f"\n{args.points:,} points of {WIDTH} features, {EPOCHS} epochs, {args.rounds} rounds: median and quartiles of seconds, mean trustworthiness\n")
    ratio = [b / a for a, b in zip(whole, sklearn, strict=True)]
    ratio_layouts = [b / a for a, b in zip(layouts, sklearn, strict=True)]
    cells = [[f"{value:.4f}" for value in np.mean(found, axis=0)] for found in trusts]
    header = ["", "seconds, all epochs", "scikit-learn / this", *[f"trustworthiness, epoch {e + 1}" for e in range(EPOCHS)]]
    rows = [
        ["Pellucid, with its numbers", seconds(whole), seconds(ratio), *cells[0]],
        ["Pellucid, layouts", seconds(layouts), seconds(ratio_layouts), *cells[0]],
        ["scikit-learn, layouts", seconds(sklearn), "1", *cells[1]],
    ]
    print(markdown_table(header, rows))
    lower = [e + 1 for e in range(EPOCHS) if np.mean(trusts[0], axis=0)[e] < np.mean(trusts[1], axis=0)[e]]
    print(f"\nAt least {GOAL:g} times faster with its numbers: {'yes' if Spread.of(ratio).median >= GOAL else 'no'}; layouts: ", end="")
    print(f"{'yes' if Spread.of(ratio_layouts).median >= GOAL else 'no'}; trustworthiness lower in epochs: {lower or 'none'}.")


if __name__ == "__main__":
    main()
