"""Figures of a study: learning curves over seeds, and the numbers of single classes in every setting. Fractions lie in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pellucid.figures.style import COLOURS, DASHES, STYLE, fitted, panel_layout, plain_text
from pellucid.study_readings import Band, Dots

MARKERS = ("o", "s", "^", "D")
LONGEST_NAME = 24  # letters of a class beside its dots


def study_curves(bands: Sequence[Band], *, y_label: str, x_label: str = "epoch", width: float | None = None) -> Figure:
    """The mean over seeds of each setting over the area between its lowest and highest seed. ValueError without a band."""
    if not bands:
        raise ValueError("expected one or more settings with a curve")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=panel_layout(1, (6.4, 4.0), width, least=2.4)[2], layout="constrained")
        axes = figure.add_subplot()
        for band in bands:
            style, x = band.mean.style, np.asarray(band.mean.x, dtype=np.float64)
            colour, dash = COLOURS[style % len(COLOURS)], DASHES[style % len(DASHES)]
            if band.seeds > 1:
                low, high = (np.asarray(curve.y, dtype=np.float64) for curve in (band.low, band.high))
                axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
            label = plain_text(f"{band.name} ({band.seeds} {'seed' if band.seeds == 1 else 'seeds'})")
            axes.plot(
                x, np.asarray(band.mean.y, dtype=np.float64), color=colour, linestyle=dash, marker="o" if len(x) <= 12 else None, markersize=3, label=label
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8)
    return fitted(figure, width)


def class_dots(dots: Dots, *, width: float | None = None) -> Figure:
    """A line for each class with a mark for each setting, the first class on top. ValueError without a class."""
    if not dots.classes:
        raise ValueError("expected one or more classes")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4 if width is None else width, 1.2 + 0.2 * len(dots.classes)), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(dots.classes))
        for i in rows:
            if span := dots.span(int(i)):
                axes.plot(span, (i, i), color="#c3c9d0", linewidth=1, zorder=1)
        for name, values in dots.values.items():
            style = dots.style[name]
            x = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            axes.scatter(x, rows, s=20, color=COLOURS[style % len(COLOURS)], marker=MARKERS[style % len(MARKERS)], label=plain_text(name), zorder=2)
        names = [plain_text(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…") for name in dots.classes]
        axes.set_yticks(rows, names, fontsize=7)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(dots.classes) - 0.4, -0.6), xlabel=f"{dots.family}, mean over seeds")
        axes.grid(axis="x")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        columns = min(len(dots.values), 6 if width is None else max(1, int(width / 1.6)))
        figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=columns)
    return fitted(figure, width)
