"""The lines of metrics.jsonl as curves: what was measured, against the epoch or the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_POINTS = 1000  # more than a screen has pixels to show


@dataclass(frozen=True)
class Curve:
    """One line of a chart. `style` counts through colours and dash patterns.

    Points whose y is None, NaN or infinite are gaps.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int = 0

    @property
    def pieces(self) -> list[list[tuple[float, float]]]:
        """The (x, y) points between gaps."""
        found: list[list[tuple[float, float]]] = [[]]
        for x, y in zip(self.x, self.y, strict=True):
            if y is not None and math.isfinite(y):
                found[-1].append((x, y))
            elif found[-1]:
                found.append([])
        return [piece for piece in found if piece]

    @property
    def points(self) -> list[tuple[float, float]]:
        return [point for piece in self.pieces for point in piece]


def curve(lines: Iterable[Mapping[str, Any]], *, kind: str, value: str, against: str, name: str, style: int = 0) -> Curve:
    """The values of one kind of line; empty where there are none. Every k-th point of a curve longer than MAX_POINTS, and its last."""
    points = [(line[against], line.get(value)) for line in lines if line.get("kind") == kind]
    if len(points) > MAX_POINTS:
        every = -(-len(points) // MAX_POINTS)
        points = [*points[:-1:every], points[-1]]
    return Curve(name, [x for x, _ in points], [y for _, y in points], style)


def by_epoch(lines: Sequence[Mapping[str, Any]], value: str) -> list[Curve]:
    """`loss` or `accuracy` of train and val, those that have a point."""
    curves = [curve(lines, kind=kind, value=value, against="epoch", name=kind, style=i) for i, kind in enumerate(("train", "val"))]
    return [c for c in curves if c.points]


def learning_rate(lines: Sequence[Mapping[str, Any]], *, name: str = "learning rate", style: int = 0) -> Curve:
    """The rate by step; from the epochs' own lines where no finer ones were kept."""
    fine = curve(lines, kind="lr", value="lr", against="step", name=name, style=style)
    return fine if fine.points else curve(lines, kind="train", value="lr", against="step", name=name, style=style)
