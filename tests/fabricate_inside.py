"""Findings of looking inside, fabricated: records, arrays and photos as `pellucid inside` leaves them, in milliseconds and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.findings import ARRAYS, IMAGES, Findings, ImageFinding, MapKind, Panel, PositionsFinding, ProjectionFinding, Score
from pellucid.run import Measurement

METHODS = {"attention": (4, 6), "grad_cam": (2, 3)}
EPOCHS = [1, 3, 6]


def measured(name: str, value: float, *, n: int = 300, interval: float | None = None) -> Measurement:
    """A fraction, with an interval of plus and minus `interval`."""
    between = None if interval is None else (value - interval, value + interval)
    return Measurement(name, value, "fraction", "val", n, 1, f"mean of {name}", between, "" if interval is None else "95 % bootstrap interval over 300 samples")


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A drawn photo (height, width, 3) uint8: a sky that brightens downwards, with a disc."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([60 + 120 * y / height, 90 + 60 * x / width, 200 - 90 * y / height], axis=-1)
    disc = (y - height * (0.4 + 0.02 * seed)) ** 2 + (x - width * (0.35 + 0.03 * seed)) ** 2 < (0.2 * height) ** 2
    pixels[disc] = (230, 190, 60)
    return pixels.astype(np.uint8)


def blob(grid: tuple[int, int], row: float, column: float) -> NDArray[np.float32]:
    """A map on a grid that sums to 1, highest at the fraction (row, column) of its sides."""
    y, x = np.mgrid[0 : grid[0], 0 : grid[1]]
    near = np.exp(-(((y + 0.5) / grid[0] - row) ** 2 + ((x + 0.5) / grid[1] - column) ** 2) / 0.03)
    return (near / near.sum()).astype(np.float32)


def image_finding(i: int, size: tuple[int, int]) -> ImageFinding:
    """The i-th image; its view is the middle square."""
    side = float(min(size))
    view = ((size[0] - side) / 2, (size[1] - side) / 2, side, side)
    scores = {method: {"pointing_game": float(i % 2), "relevance_mass": 0.4 + 0.01 * i} for method in METHODS}
    flags = ["attention: 41 % of it lies on prefix tokens."] if i == 0 else []
    return ImageFinding(f"val/{i:05d}_cat.jpg", size, view, "cat", "dog" if i % 3 == 0 else "cat", 0.91, scores, {}, flags)


def all_scores() -> list[Score]:
    """Three measures of two methods, deletion better when low; attention beats every baseline in one of them and misses the centre prior in another."""
    found = []
    baselines = {"uniform": 0.31, "centre": 0.52, "shuffled": 0.3, "random model": 0.29}
    for method, value in (("attention", 0.71), ("grad_cam", 0.5)):
        for measure, shift in (("pointing_game", 0.0), ("relevance_mass", -0.3)):
            found.append(_score(method, measure, value + shift, baselines, higher_is_better=True))
        found.append(_score(method, "deletion", value - 0.3, {"random model": 0.5}, higher_is_better=False))
    return found


def _score(method: str, measure: str, value: float, baselines: dict[str, float], *, higher_is_better: bool) -> Score:
    beside = {name: measured(f"{measure}[{name}]", number, interval=0.02) for name, number in baselines.items()}
    margins = {name: measured(f"{measure}[{method} - {name}]", value - number, interval=0.05) for name, number in baselines.items()}
    return Score(method, measure, measured(f"{measure}[{method}]", value, interval=0.05), beside, higher_is_better, margins)


def panel(epoch: int) -> Panel:
    """Numbers that grow with the epoch."""
    names = {"knn_accuracy": 0.3, "silhouette": -0.05, "plane_silhouette": -0.04, "neighbours_kept": 0.4, "trustworthiness": 0.8}
    return Panel(epoch, **{name: measured(name, start + 0.03 * epoch, interval=0.02 if name == "knn_accuracy" else None) for name, start in names.items()})


def projected(num_points: int, num_classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Coordinates (E, p, 2) whose classes part over the epochs, and labels (p,)."""
    random = np.random.default_rng(3)
    labels = random.integers(0, num_classes, num_points)
    angle = 2 * np.pi * labels / num_classes
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    planes = [centres * epoch + random.normal(size=(num_points, 2)) for epoch in EPOCHS]
    return np.stack(planes).astype(np.float32), labels


def similarity(grid: tuple[int, int]) -> NDArray[np.float32]:
    """(gh, gw, gh, gw): falls with the distance of two positions, 1 with itself."""
    gh, gw = grid
    y, x = np.mgrid[0:gh, 0:gw]
    distance = (y[..., None, None] - y) ** 2 / gh**2 + (x[..., None, None] - x) ** 2 / gw**2
    near: NDArray[np.float32] = (1.4 * np.exp(-3 * distance) - 0.4).astype(np.float32)
    return near


def make_findings(
    folder: Path,
    *,
    num_images: int = 3,
    sizes: tuple[tuple[int, int], ...] = ((120, 160), (150, 100)),
    num_points: int = 300,
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
    grid: tuple[int, int] = (6, 6),
    changed: dict[str, Any] | None = None,
) -> Findings:
    """Write findings.json, arrays.npz and images/ into `folder`; `changed` puts other arrays in (None takes one away)."""
    findings = Findings("0.1.0", "timm/vit_tiny_patch16_224", "final.safetensors", epochs=list(EPOCHS), classes=list(classes))
    arrays: dict[str, Any] = {}
    (folder / IMAGES).mkdir(parents=True)
    for i in range(num_images):
        size = sizes[i % len(sizes)]
        findings.images.append(image_finding(i, size))
        PIL.Image.fromarray(photo(*size, seed=i)).save(folder / IMAGES / f"{i}.webp", quality=90)
    for method, shape in METHODS.items():
        findings.maps.append(MapKind(method, "blocks.11.attn", shape, f"{method} of the last layer, mean of the heads"))
        arrays[f"maps/{method}"] = np.stack([blob(shape, 0.4 + 0.02 * i, 0.35 + 0.03 * i) for i in range(num_images)])
    findings.scores = all_scores()
    for name in ("pca_last", "tsne"):
        coordinates, labels = projected(num_points, len(classes))
        arrays[f"projection/{name}"], arrays["probe/labels"] = coordinates, labels
        findings.projections.append(ProjectionFinding(name, f"{name} of {num_points} features of 192 numbers.", [panel(epoch) for epoch in EPOCHS]))
    arrays["positions"] = similarity(grid)
    findings.positions = PositionsFinding("learned", f"Cosine similarity of pos_embed, {grid[0]} x {grid[1]} positions, 1 prefix row left out.", grid)
    findings.notes = ["Random model: the same network with seed 2."]
    for key, value in (changed or {}).items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = value
    np.savez(folder / ARRAYS, **arrays)
    findings.save(folder)
    return findings
