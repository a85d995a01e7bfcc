"""Figures of a run's numbers: curves, learning rate, confusion, reliability, overview. Images are (H, W, 3) uint8 RGB; fractions lie in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL.Image import Image

from pellucid.figures.style import COLOURS, DASHES, STYLE, plain_text, save
from pellucid.readings import Calibration, Curve, by_epoch, calibrate, confusion_counts, learning_rate
from pellucid.run import Run, rounded

NUMBERED_CLASSES = 12  # up to here a confusion matrix shows its counts
NAMED_CLASSES = 40  # and up to here the names of its classes


@dataclass(frozen=True)
class Shown:
    """An image with what the model said of it: `confidence` is the probability of `prediction`."""

    image: NDArray[np.uint8]
    label: str
    prediction: str
    confidence: float


def learning_curves(loss: Sequence[Curve], accuracy: Sequence[Curve]) -> Figure:
    """Loss and accuracy by epoch beside each other; a side without a point is left out."""
    sides = [(curves, name) for curves, name in ((loss, "loss (nats)"), (accuracy, "accuracy")) if any(c.points for c in curves)]
    if not sides:
        raise ValueError("no curve has a point")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(sides), 3.0), layout="constrained")
        for i, (curves, name) in enumerate(sides):
            draw_lines(figure.add_subplot(1, len(sides), i + 1), curves, x_label="epoch", y_label=name)
    return figure


def learning_rate_curve(curve: Curve) -> Figure:
    """The learning rate by step."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.0), layout="constrained")
        draw_lines(figure.add_subplot(), [curve], x_label="step", y_label="learning rate")
    return figure


def compare_curves(curves: Sequence[Curve], *, y_label: str, x_label: str = "epoch") -> Figure:
    """Curves of several runs over each other; curves of one style share a name in the legend."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        draw_lines(figure.add_subplot(), curves, x_label=x_label, y_label=y_label)
    return figure


def confusion_matrix(counts: ArrayLike, classes: Sequence[str]) -> Figure:
    """Counts (C, C), row = label and column = prediction; the shade is the share of the label's samples."""
    side = 1.8 + min(max(0.42 * len(classes), 2.2), 8.0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side, side), layout="constrained")
        _matrix(figure.add_subplot(), np.asarray(counts), classes)
    return figure


def reliability_diagram(calibration: Calibration) -> Figure:
    """Accuracy of each confidence bin against the diagonal, with the number of samples in each bin below."""
    edges, counts = np.asarray(calibration.edges), np.asarray(calibration.counts)
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.8, 4.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        above.bar(middles, np.nan_to_num(calibration.accuracies), widths * 0.94, color=COLOURS[0])
        above.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"calibration error {calibration.error}, n = {counts.sum():,}")
        below.bar(middles, counts, widths * 0.94, color="#9aa4b0")
        below.set(xlabel="confidence", ylabel="samples")
    return figure


def overview(shown: Sequence[Shown], loss: Sequence[Curve], accuracy: Sequence[Curve], counts: ArrayLike, classes: Sequence[str], *, title: str) -> Figure:
    """One wide picture of a run: up to eight images with predictions, its curves and its confusion matrix."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13.0, 4.3), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        parts: Any = figure.subfigures(1, 3, width_ratios=(5.2, 3.4, 4.4))
        pictures, curves, matrix = parts
        grid = pictures.subplots(2, 4, squeeze=False)
        for axes, item in zip(grid.flat, [*shown[:8], *[None] * 8], strict=False):
            axes.set_axis_off()
            if item is not None:
                right = item.prediction == item.label
                axes.imshow(item.image)
                note = f"{item.prediction} {rounded(item.confidence)}" + ("" if right else f"\n(is {item.label})")
                axes.set_title(note, fontsize=8, fontweight="normal", color="#006b4a" if right else "#b03a00", loc="center")
        upper, lower = curves.subplots(2, 1, sharex=True)
        draw_lines(upper, loss, x_label="", y_label="loss (nats)")
        draw_lines(lower, accuracy, x_label="epoch", y_label="accuracy")
        _matrix(matrix.subplots(), np.asarray(counts), classes)
    return figure


def write_run_figures(run: Run, samples: Callable[[str, int], Image] | None = None) -> list[Path]:
    """Draw what a run holds into its figures/ folder and return the files: curves, learning rate, and for each split confusion and reliability.

    samples: (split, row) -> the picture itself; with it there is an overview with eight pictures as well.
    """
    lines, files = run.metrics(), []
    loss, accuracy, rate = by_epoch(lines, "loss"), by_epoch(lines, "accuracy"), learning_rate(lines)
    if loss or accuracy:
        files += save(learning_curves(loss, accuracy), run.figures / "learning_curves")
    if rate.points:
        files += save(learning_rate_curve(rate), run.figures / "learning_rate")
    classes = run.data.classes if run.prediction_splits else []
    for split in run.prediction_splits:
        predictions = run.predictions(split)
        if not len(predictions.labels):
            continue
        probabilities = predictions.probabilities()
        predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        counts = confusion_counts(predictions.labels, predicted, len(classes))
        files += save(confusion_matrix(counts, classes), run.figures / f"confusion_{split}")
        bins = calibrate(confidence, predicted == predictions.labels, split=split, seed=run.recipe.seed)
        files += save(reliability_diagram(bins), run.figures / f"reliability_{split}")
        if samples is not None and split == run.prediction_splits[0]:
            rows = np.linspace(0, len(predicted) - 1, 8).astype(int)
            shown = [
                Shown(np.asarray(samples(split, int(r))), classes[predictions.labels[r]], classes[predicted[r]], float(confidence[r])) for r in np.unique(rows)
            ]
            title = f"{run.name}: accuracy {rounded(float((predicted == predictions.labels).mean()))} on {split}, n = {len(predicted):,}"
            files += save(overview(shown, loss, accuracy, counts, classes, title=title), run.figures / "overview")
    return files


def draw_lines(axes: Axes, curves: Sequence[Curve], *, x_label: str, y_label: str) -> None:
    """Draw curves into axes, with a legend where there are several."""
    named: set[tuple[str, int]] = set()
    for curve in curves:
        x = np.asarray(curve.x, dtype=np.float64)
        y = np.array([np.nan if value is None else value for value in curve.y], dtype=np.float64)  # NaN draws a gap
        dash = DASHES[curve.style % len(DASHES)]
        label = "_nolegend_" if (curve.name, curve.style) in named else plain_text(curve.name)
        axes.plot(x, y, color=COLOURS[curve.style % len(COLOURS)], linestyle=dash, marker="o" if len(x) <= 12 else None, markersize=3, label=label)
        named.add((curve.name, curve.style))
    axes.set(xlabel=x_label, ylabel=y_label)
    if len(named) > 1:
        axes.legend(fontsize=8)


def _matrix(axes: Axes, counts: NDArray[np.int64], classes: Sequence[str]) -> None:
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="label")
    if len(classes) <= NAMED_CLASSES:
        names = [plain_text(name if len(name) <= 18 else f"{name[:17]}…") for name in classes]
        size = 8 if len(classes) <= NUMBERED_CLASSES else 6
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(classes)), names, fontsize=size)
    axes.tick_params(length=0)
    if len(classes) <= NUMBERED_CLASSES:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=7, color="white" if share[i, j] > 0.55 else "black")
