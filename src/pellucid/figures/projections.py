"""Figures of features on a plane, one panel for each epoch with the numbers that the eye cannot see under it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from pellucid.figures.style import COLOURS, LETTERS, NOTES, STYLE, fitted, in_line, plain_text
from pellucid.findings import Panel
from pellucid.readings import NAMED, Limits, checked_projection, common_limits, named_classes
from pellucid.run import rounded

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # eight beside seven colours: a pair comes back after 56 classes
OTHERS = "other classes"
_TURNS = 4
_VECTOR_POINTS = 3000  # of a panel; beyond it the points of an SVG or a PDF are a picture


def projection_figure(
    coordinates: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    panels: Sequence[Panel],
    how: str,
    limits: Limits | None = None,
    *,
    width: float | None = None,
) -> Figure:
    """Panels of one projection over epochs, on the same axes.

    coordinates: (E, p, 2); labels: (p,) whole numbers below len(classes); panels: E of them, for the numbers below.
    limits: ((x low, x high), (y low, y high)); by default those of `common_limits`. `how` is written on the figure.
    width: of the whole figure in inches, on paper; the legend stands below the panels then.
    """
    points, of = checked_projection(coordinates, labels, classes, panels)
    (left, right), (low, high) = common_limits(points) if limits is None else limits
    columns = min(len(panels), 4) if width is None else in_line(len(panels), width, least=1.7)
    rows = -(-len(panels) // columns)
    below = -(-min(len(np.unique(of)), NAMED + 1) // in_line(6, width or 1.0, least=1.1))  # lines of the legend
    how = textwrap.fill(how, 42 * columns + 10 if width is None else int(LETTERS * width))
    size = (3.4 * columns + 1.5, 4.2 * rows + 0.6)
    if width is not None:
        size = (width, rows * (width / columns + 1.2) + 0.15 * (below + 1) + 0.12 * (how.count("\n") + 2))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        cells = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in cells.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, panel, plane in zip(cells.flat, panels, points, strict=False):
            _points(axes, plane, of, classes)
            axes.set(xlim=(left, right), ylim=(low, high), aspect="equal", title=f"epoch {panel.epoch}", xlabel=_numbers(panel, narrow=width is not None))
            axes.xaxis.label.set_fontsize(8 if width is None else NOTES)
            axes.grid(False)
            axes.tick_params(labelsize=7)
        place: Any = {"loc": "outside right upper"} if width is None else {"loc": "outside upper left", "ncols": in_line(6, width, least=1.1)}
        figure.legend(*cells.flat[0].get_legend_handles_labels(), **place, fontsize=7, title="class", markerscale=1.6)
        figure.supxlabel(plain_text(how), x=0.01, ha="left", fontsize=8 if width is None else NOTES)
    return fitted(figure, width)


def _points(axes: Axes, plane: NDArray[np.float64], labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    size = float(np.clip(12000 / len(plane), 5, 28))
    named, flat = named_classes(labels, len(classes)), len(plane) > _VECTOR_POINTS
    looks = [(i, COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], classes[i]) for k, i in enumerate(named)]
    rest = np.where(np.isin(labels, named), labels, -1)
    if (rest == -1).any():
        looks.append((-1, "#b5bac0", ".", OTHERS))
    for i, colour, marker, name in looks:
        label = plain_text(name if len(name) <= 24 else f"{name[:23]}…")
        axes.scatter([], [], s=size, c=colour, marker=marker, linewidths=0, label=label)  # what the legend shows
        for turn in range(_TURNS):  # in turns, so that no class lies over all the others
            mine = plane[turn::_TURNS][rest[turn::_TURNS] == i]
            axes.scatter(mine[:, 0], mine[:, 1], s=size, c=colour, marker=marker, alpha=0.75, linewidths=0, rasterized=flat, zorder=2 + turn / _TURNS)


def _numbers(panel: Panel, *, narrow: bool) -> str:
    knn = panel.knn_accuracy
    if narrow:
        between = "" if knn.interval is None else f"\n{rounded(knn.interval[0], knn.unit)} to {rounded(knn.interval[1], knn.unit)}, n = {knn.n:,}"
        silhouettes = f"silhouette: features {panel.silhouette or 'n/a'}\nplane {panel.plane_silhouette or 'n/a'}"
        return f"k-NN accuracy {knn}{between}\n{silhouettes}\nneighbours kept {panel.neighbours_kept}\ntrustworthiness {panel.trustworthiness}"
    between = "" if knn.interval is None else f" ({rounded(knn.interval[0], knn.unit)} to {rounded(knn.interval[1], knn.unit)})"
    return (
        f"k-NN accuracy {knn}{between}, n = {knn.n:,}\nsilhouette: features {panel.silhouette or 'n/a'}, plane {panel.plane_silhouette or 'n/a'}\n"
        f"neighbours kept {panel.neighbours_kept}, trustworthiness {panel.trustworthiness}"
    )
