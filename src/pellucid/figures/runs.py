"""Figures of a run's numbers: curves, learning rate, confusion, reliability, overview, mistakes. Images are (H, W, 3) uint8 RGB; fractions lie in [0, 1].

width: of the whole figure in inches, on paper (`style.fitted`); None: its own, for screens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL.Image import Image

from pellucid.errors import UsageError
from pellucid.figures.style import BOLD_LETTERS, COLOURS, DASHES, LARGEST, LETTERS, SMALLEST, STYLE, fitted, in_line, panel_layout, plain_text, save, shortened
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


def learning_curves(loss: Sequence[Curve], accuracy: Sequence[Curve], *, width: float | None = None) -> Figure:
    """Loss and accuracy by epoch beside each other; a side without a point is left out."""
    sides = [(curves, name) for curves, name in ((loss, "loss (nats)"), (accuracy, "accuracy")) if any(c.points for c in curves)]
    if not sides:
        raise ValueError("no curve has a point")
    rows, columns, size = panel_layout(len(sides), (4.2, 3.0), width, least=2.4)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        for i, (curves, name) in enumerate(sides):
            draw_lines(figure.add_subplot(rows, columns, i + 1), curves, x_label="epoch", y_label=name)
    return fitted(figure, width)


def learning_rate_curve(curve: Curve, *, width: float | None = None) -> Figure:
    """The learning rate by step."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=panel_layout(1, (4.2, 3.0), width, least=2.4)[2], layout="constrained")
        draw_lines(figure.add_subplot(), [curve], x_label="step", y_label="learning rate")
    return fitted(figure, width)


def compare_curves(curves: Sequence[Curve], *, y_label: str, x_label: str = "epoch", width: float | None = None) -> Figure:
    """Curves of several runs over each other; curves of one style share a name in the legend."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=panel_layout(1, (6.4, 4.0), width, least=2.4)[2], layout="constrained")
        draw_lines(figure.add_subplot(), curves, x_label=x_label, y_label=y_label)
    return fitted(figure, width)


def confusion_matrix(counts: ArrayLike, classes: Sequence[str], *, width: float | None = None) -> Figure:
    """Counts (C, C), row = label and column = prediction; the shade is the share of the label's samples.

    With a width, counts and names for which a cell is too small are left out, and the axes say how many classes there are.
    """
    side = 1.8 + min(max(0.42 * len(classes), 2.2), 8.0)
    size = (side, side) if width is None else (width, min(side, width))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        _matrix(figure.add_subplot(), np.asarray(counts), classes, None if width is None else size[1])
    return fitted(figure, width)


def reliability_diagram(calibration: Calibration, *, width: float | None = None) -> Figure:
    """Accuracy of each confidence bin against the diagonal, with the number of samples in each bin below."""
    edges, counts = np.asarray(calibration.edges), np.asarray(calibration.counts)
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=panel_layout(1, (3.8, 4.4), width, least=2.4)[2], layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        above.bar(middles, np.nan_to_num(calibration.accuracies), widths * 0.94, color=COLOURS[0])
        above.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"calibration error {calibration.error}, n = {counts.sum():,}")
        below.bar(middles, counts, widths * 0.94, color="#9aa4b0")
        below.set(xlabel="confidence", ylabel="samples")
    return fitted(figure, width)


def overview(
    shown: Sequence[Shown],
    loss: Sequence[Curve],
    accuracy: Sequence[Curve],
    counts: ArrayLike,
    classes: Sequence[str],
    *,
    title: str,
    width: float | None = None,
) -> Figure:
    """One wide picture of a run: up to eight images with predictions, its curves and its confusion matrix; with a width the three stand below each other."""
    if width is not None:
        return _narrow_overview(shown[:8], (loss, accuracy), np.asarray(counts), classes, title=title, width=width)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13.0, 4.3), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        parts: Any = figure.subfigures(1, 3, width_ratios=(5.2, 3.4, 4.4))
        pictures, curves, matrix = parts
        grid = pictures.subplots(2, 4, squeeze=False)
        for axes, item in zip(grid.flat, [*shown[:8], *[None] * 8], strict=False):
            axes.set_axis_off()
            if item is not None:
                _shown(axes, item)
        upper, lower = curves.subplots(2, 1, sharex=True)
        draw_lines(upper, loss, x_label="", y_label="loss (nats)")
        draw_lines(lower, accuracy, x_label="epoch", y_label="accuracy")
        _matrix(matrix.subplots(), np.asarray(counts), classes)
    return figure


def mistakes_gallery(shown: Sequence[Shown], *, title: str, width: float | None = None) -> Figure:
    """Pictures with what was predicted of each, the confidence and its label below; titled `title`. UsageError without a picture."""
    if not shown:
        raise UsageError("expected at least one picture to draw, got none")
    across = 9.0 if width is None else width
    columns = in_line(len(shown), across, least=0.82) if width is not None else min(len(shown), 8)
    side = across / max(columns, 3)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(across, -(-len(shown) // columns) * (side + 0.32) + 0.45), layout="constrained")
        figure.suptitle(plain_text(textwrap.fill(title, int(BOLD_LETTERS * across))), x=0.01, ha="left", fontsize=10, fontweight="bold")
        grid = figure.subplots(-(-len(shown) // columns), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, item in zip(grid.flat, shown, strict=False):
            _shown(axes, item, letters=int(side * LETTERS))
    return fitted(figure, width)


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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half epoch, and no half step
    if len(named) > 1:
        axes.legend(fontsize=8)


def _shown(axes: Axes, item: Shown, *, letters: int = 0) -> None:
    """A picture with what was said of it above; letters: of a line, longer ones are cut, 0: none is."""
    right = item.prediction == item.label
    axes.imshow(item.image)
    said, is_ = item.prediction, f"(is {item.label})"
    if letters:
        said, is_ = shortened(said, max(letters - 6, 4)), f"(is {shortened(item.label, max(letters - 5, 4))})"
    note = f"{said} {rounded(item.confidence)}" + ("" if right else f"\n{is_}")
    note = note if not letters else plain_text(note)
    axes.set_title(note, fontsize=SMALLEST if letters else 8, fontweight="normal", color="#006b4a" if right else "#b03a00", loc="center")


def _narrow_overview(
    shown: Sequence[Shown], curves: Sequence[Sequence[Curve]], counts: NDArray[np.int64], classes: Sequence[str], *, title: str, width: float
) -> Figure:
    """The overview on paper: pictures, below them the curves, and the matrix beside or below these."""
    columns = in_line(8, width, least=0.82)
    rows, side, wide = -(-len(shown) // columns), width / columns, width >= 5.0
    title = textwrap.fill(title, int(BOLD_LETTERS * width))
    pictures, matrix = rows * (side + 0.3), min(width / 2 if wide else width, 3.6)
    heights = [pictures, matrix] if wide else [pictures, 3.4, matrix]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights) + 0.2 * (title.count("\n") + 1)), layout="constrained")
        figure.suptitle(plain_text(title), x=0.01, ha="left", fontsize=LARGEST, fontweight="bold")
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        lower: Any = parts[1].subfigures(1, 2) if wide else parts[1:]
        grid = parts[0].subplots(max(rows, 1), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, item in zip(grid.flat, shown, strict=False):
            _shown(axes, item, letters=int(side * LETTERS))
        above, below = lower[0].subplots(2, 1, sharex=True)
        draw_lines(above, curves[0], x_label="", y_label="loss (nats)")
        draw_lines(below, curves[1], x_label="epoch", y_label="accuracy")
        _matrix(lower[1].subplots(), counts, classes, matrix)
    return fitted(figure, width)


def _matrix(axes: Axes, counts: NDArray[np.int64], classes: Sequence[str], side: float | None = None) -> None:
    """side: of the axes with its names in inches, where what does not fit into a cell is to be left out."""
    size = 8 if len(classes) <= NUMBERED_CLASSES else 6
    cell = np.inf if side is None else 72 * (side - 0.45 - 0.07 * min(max(map(len, classes), default=0), 18)) / max(len(classes), 1)  # in points
    named = len(classes) <= NAMED_CLASSES and cell >= SMALLEST * 1.1
    widest = max((len(f"{count:,}") for count in counts.flat), default=0)
    numbered, digits = len(classes) <= NUMBERED_CLASSES, float(np.clip(cell / (0.66 * max(widest, 1)), 0, 7))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="label")
    if named:
        names = [plain_text(shortened(name, 18)) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(classes)), names, fontsize=size)
    elif side is not None:
        axes.set(xlabel=f"prediction ({len(classes)} classes, in their order)", ylabel=f"label ({len(classes)} classes)")
    axes.tick_params(length=0)
    if numbered and digits >= SMALLEST:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=digits, color="white" if share[i, j] > 0.55 else "black")
