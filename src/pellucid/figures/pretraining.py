"""Figures of a pre-training: its loss, what the features are worth over the epochs, and whether the projections collapse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pellucid.figures.runs import draw_lines, learning_rate_curve
from pellucid.figures.style import COLOURS, DASHES, STYLE, fitted, panel_layout, save
from pellucid.readings import Chart, learning_rate, pretraining_charts
from pellucid.run import Run

COLLAPSE = ("spread", "rank")  # charts of the projections, where a collapse shows first
ON_THE_SPHERE = ("alignment", "uniformity")
GROUND = "#b03a00"  # of the region called collapse


def chart_figure(charts: Sequence[Chart], *, width: float | None = None) -> Figure:
    """Charts beside each other, each with its levels and the region called collapse. ValueError without a point. width: in inches, on paper."""
    if not charts or not all(any(curve.points for curve in chart.curves) for chart in charts):
        raise ValueError("no curve has a point")
    named = 0 if width is None else max(len(chart.levels) + len(chart.curves) for chart in charts if chart.levels) if any(c.levels for c in charts) else 0
    rows, columns, size = panel_layout(len(charts), (4.4, 3.1), width, least=2.8)
    size = (size[0], size[1] + rows * 0.13 * named)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        for i, chart in enumerate(charts):
            _draw(figure.add_subplot(rows, columns, i + 1), chart, beside=width is None)
    return fitted(figure, width)


def collapse_figure(charts: Sequence[Chart]) -> Figure:
    """Spread and effective rank of the projections beside each other. ValueError where they were not watched."""
    return chart_figure([chart for chart in charts if chart.name in COLLAPSE])


def write_pretraining_figures(run: Run) -> list[Path]:
    """Draw what the epochs of a pre-training say into its figures/ folder and return the files; what the run does not have is left out."""
    lines, data, recipe = run.metrics(), run.data, run.recipe
    assert recipe.method is not None, "the schema gives every pre-training its method"
    charts = pretraining_charts(lines, run.measurements, method=recipe.method.name, num_classes=len(data.classes))
    groups = {"loss": ("loss",), "knn_accuracy": ("knn_accuracy",), "collapse": COLLAPSE, "alignment_uniformity": ON_THE_SPHERE}
    files = []
    for name, wanted in groups.items():
        if chosen := [chart for chart in charts if chart.name in wanted]:
            files += save(chart_figure(chosen), run.figures / name)
    rate = learning_rate(lines)
    return files + (save(learning_rate_curve(rate), run.figures / "learning_rate") if rate.points else [])


def _draw(axes: Axes, chart: Chart, *, beside: bool) -> None:
    """beside: the names of the lines stand among them; on paper, where they would lie over them, below."""
    for level in chart.levels:
        colour, dash = COLOURS[level.style % len(COLOURS)], DASHES[level.style % len(DASHES)]
        axes.plot(*zip(*level.points, strict=True), color=colour, linestyle=dash, linewidth=1.3, label=level.name)
    draw_lines(axes, chart.curves, x_label="epoch", y_label=chart.y_label)
    axes.set_title(chart.title)
    low, high = axes.get_ylim()
    if chart.shown is not None:
        low, high = min(low, chart.shown[0]), max(high, chart.shown[1])
    if chart.collapsed is not None:
        axes.axhspan(low, chart.collapsed, color=GROUND, alpha=0.12, linewidth=0)
        axes.annotate("collapse", (0.99, 0.02), xycoords="axes fraction", ha="right", va="bottom", color=GROUND, fontsize=8)
    axes.set_ylim(low, high)
    if chart.levels and beside:
        axes.legend(fontsize=8)
    elif chart.levels:
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.22), borderaxespad=0.0)
