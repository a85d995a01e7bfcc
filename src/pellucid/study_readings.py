"""What the charts of a study show, read from its runs: curves over seeds and the numbers of single classes. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.readings import Curve, curve

CURVES = ("accuracy", "miou", "knn_accuracy", "loss")  # what stands for a number that no evaluation during training has, the first one that is there


@dataclass(frozen=True)
class Band:
    """A number by epoch over the seeds of a setting: the mean, and the lowest and highest of them; all three have the same epochs."""

    name: str
    mean: Curve
    low: Curve
    high: Curve
    seeds: int


@dataclass(frozen=True)
class Dots:
    """The numbers of single classes in several settings. values: {setting: a number for each of `classes`, None where there is none}, in [0, 1].

    style counts through colours, dash patterns and marks; the same setting has the same one in every chart.
    """

    family: str
    classes: tuple[str, ...]
    values: dict[str, tuple[float | None, ...]]
    style: dict[str, int]

    def span(self, index: int) -> tuple[float, float] | None:
        """The lowest and highest number of a class; None where no setting has one."""
        found = [value for row in self.values.values() if (value := row[index]) is not None]
        return (min(found), max(found)) if found else None


def band(name: str, runs: Sequence[Sequence[Mapping[str, Any]]], value: str, *, style: int = 0) -> Band | None:
    """The band of one validation number over runs that differ in their seed, None without a point. runs: the lines of metrics.jsonl of each.

    An epoch counts where every run has a finite number for it, so that the mean never jumps because a seed ended earlier.
    """
    points = [dict(curve(lines, kind="val", value=value, against="epoch", name=name).points) for lines in runs]
    epochs = sorted(set.intersection(*map(set, points))) if points else []
    if not epochs:
        return None
    table = np.array([[of_run[epoch] for epoch in epochs] for of_run in points])  # (seeds, epochs)
    mean, low, high = (Curve(name, epochs, row.tolist(), style) for row in (table.mean(axis=0), table.min(axis=0), table.max(axis=0)))
    return Band(name, mean, low, high, len(points))


def charted_value(runs: Sequence[Sequence[Mapping[str, Any]]], measured: str) -> str | None:
    """The name of the validation number to draw: the measured one, else the first of CURVES that any run has; None without one."""
    there = {key for lines in runs for line in lines if line.get("kind") == "val" for key, value in line.items() if value is not None}
    return next((name for name in (measured, *CURVES) if name in there), None)


def sorted_dots(dots: Dots, baseline: str) -> Dots:
    """The classes by the baseline's number, highest first; those that it lacks by the mean of the others, behind them."""
    base = dots.values.get(baseline, (None,) * len(dots.classes))

    def rank(index: int) -> tuple[bool, float, int]:
        value = base[index]
        others = [found for row in dots.values.values() if (found := row[index]) is not None]
        return value is None, -(value if value is not None else float(np.mean(others)) if others else -1.0), index

    order = sorted(range(len(dots.classes)), key=rank)
    values = {name: tuple(row[i] for i in order) for name, row in dots.values.items()}
    return Dots(dots.family, tuple(dots.classes[i] for i in order), values, dots.style)
