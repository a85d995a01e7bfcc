"""The curves of a run, of all four tasks: what training wrote after its epochs, as charts that can be pointed at.

The view holds charts [{name, title, x_label, y_label, unit, note, curves, levels, shown, collapsed}]; curves and levels are [{name, style, x, y}], where null
in y is a gap; the other fields are those of `readings.Chart`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.caption_readings import caption_charts
from pellucid.readings import Chart, Curve, by_epoch, curve, learning_rate, pretraining_charts
from pellucid.run import Run
from pellucid.views import FULLER, Room, View, size

POINTS = (1000, 500, 200, 100)  # most of a curve, the first that has room
DIGITS = 10  # of a value: more than are ever shown


def build(run: Run, room: Room) -> View | None:
    """The view of a run; None where nothing was written yet."""
    found = run_charts(run)
    return of_charts(found, room) if found else None


def of_charts(charts: Sequence[tuple[Chart, str]], room: Room) -> View:
    """The view of charts, each with the name of its x axis."""
    for most in POINTS:
        view: View = {
            "title": "What training wrote, epoch by epoch",
            "notes": [f"Of a curve at most {most:,} points are here, evenly spaced; {FULLER}"] if most < POINTS[0] else [],
            "charts": [_chart(chart, x_label, most) for chart, x_label in charts],
        }
        if size(view) <= room.bytes:
            break
    return view


def run_charts(run: Run) -> list[tuple[Chart, str]]:
    """(chart, name of its x axis) of a run, by what its task watches, the learning rate last; those without a point are left out."""
    lines, recipe = run.metrics(), run.recipe
    if recipe.task == "pretraining":
        assert recipe.method is not None, "the schema gives every pre-training its method"
        num_classes = len(run.data.classes) if run.has_data else 1
        found = pretraining_charts(lines, run.measurements, method=recipe.method.name, num_classes=num_classes)
    elif recipe.task == "captioning":
        found = caption_charts(lines, run.measurements)
    else:
        found = _plain_charts(lines, accuracy="Pixel accuracy" if recipe.task == "segmentation" else "Accuracy")
    rate = learning_rate(lines)
    rates = [(Chart("learning_rate", "Learning rate", [rate], "learning rate", "rate", "", []), "step")] if rate.points else []
    return [(chart, "epoch") for chart in found] + rates


def _plain_charts(lines: Sequence[Mapping[str, Any]], *, accuracy: str) -> list[Chart]:
    """Of a classification or a segmentation; `accuracy` is what its share of right things is called."""
    miou = curve(lines, kind="val", value="miou", against="epoch", name="val", style=1)
    wanted = [
        Chart("loss", "Loss", by_epoch(lines, "loss"), "loss (nats)", "nats", "", []),
        Chart("accuracy", accuracy, by_epoch(lines, "accuracy"), accuracy.lower(), "fraction", "", []),
        Chart("miou", "mIoU", [miou] if miou.points else [], "mIoU", "fraction", "", []),
    ]
    return [chart for chart in wanted if chart.curves]


def _chart(chart: Chart, x_label: str, most: int) -> dict[str, Any]:
    return {
        "name": chart.name,
        "title": chart.title,
        "x_label": x_label,
        "y_label": chart.y_label,
        "unit": chart.unit,
        "note": chart.note,
        "curves": [_curve(of, most) for of in chart.curves if of.points],
        "levels": [_curve(of, most) for of in chart.levels],
        "shown": chart.shown,
        "collapsed": chart.collapsed,
    }


def _curve(of: Curve, most: int) -> dict[str, Any]:
    """Every k-th point of a longer curve and its last."""
    places = list(range(len(of.x)))
    if len(places) > most:
        places = [*places[: -1 : -(-len(places) // most)], places[-1]]
    return {"name": of.name, "style": of.style, "x": [of.x[i] for i in places], "y": [_short(of.y[i]) for i in places]}


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
