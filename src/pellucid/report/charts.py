"""Arrays -> inline SVG that follows the page's light and dark colours; every text is escaped.

Colours are classes (`s0`, `s1`, …) that style.css maps to the Okabe-Ito palette; dash patterns are the second channel,
so that curves stay apart in black and white. Text is drawn at about the size of the page's own on a phone and on a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pellucid.readings import Calibration, Curve
from pellucid.run import rounded
from pellucid.study_readings import Band, Dots

NUM_COLOURS = 7
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MARKS = (  # circle, square, triangle, diamond: the second channel of dots
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.5 -3.5H3.5V3.5H-3.5Z",
    "M0 -4.5L4.3 3.4H-4.3Z",
    "M0 -5L4.2 0L0 5L-4.2 0Z",
)
LONGEST_NAME = 20  # letters of a class beside a dot chart; the whole name is its title
MARKED = 12  # a curve of at most so many points shows each of them

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 46


@dataclass(frozen=True)
class _Axes:
    """The plot's rectangle: data -> SVG units (x to the right, y down)."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int = WIDTH
    height: int = HEIGHT

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, steps of 1, 2 or 5 times a power of ten (Heckbert 1990)."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"expected finite low <= high, got {low} and {high}")
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, or a spread that a float can hardly hold
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    step = _nice_step((high - low) / (most - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Built from whole multiples and cleaned of binary dust, so that 0.30000000000000004 is 0.3.
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5):
        if rough <= factor * power * (1 + 1e-9):
            return factor * power
    return 10 * power


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    unit: str,
    whole_x: bool = True,
    levels: Sequence[Curve] = (),
    shown: tuple[float, float] | None = None,
    shaded_below: float | None = None,
) -> Markup:
    """Curves with axes, ticks and names as SVG; the legend is separate (`legend`). `unit` is that of y, for the spoken summary.

    levels: further lines, without a dot at their points. shown: (low, high) of y that is shown at least. shaded_below: y below which the ground is shaded.
    """
    points = [point for curve in [*curves, *levels] for point in curve.points]
    if not points:
        raise ValueError(f"{title}: no curve has a point")
    xs = ticks(min(x for x, _ in points), max(x for x, _ in points))
    heights = [*(y for _, y in points), *(shown or ())]
    ys = ticks(min(heights), max(heights))
    if whole_x:  # there is no half epoch
        xs = [x for x in xs if x == int(x)]
    lowest, highest = min(x for x, _ in points), max(x for x, _ in points)
    if lowest == highest:
        xs, lowest, highest = [lowest], lowest - 1, highest + 1
    axes = _Axes(lowest, highest, ys[0], ys[-1])
    drawn = [_ground(shaded_below, axes)] if shaded_below is not None else []
    drawn.append(_frame(axes, [x for x in xs if lowest <= x <= highest], ys, x_label, y_label))
    drawn += [_polyline(level, axes, dots=False) for level in levels]
    drawn += [_polyline(curve, axes) for curve in curves]
    return _svg(Markup("").join(drawn), label=f"{title}. {_summary([*curves, *levels], unit)}")


def band_chart(bands: Sequence[Band], *, title: str, x_label: str, y_label: str, unit: str) -> Markup:
    """Means over seeds as lines, each over the area between the lowest and the highest seed; settings of different length end where they end."""
    points = [point for band in bands for curve in (band.low, band.high) for point in curve.points]
    lowest, highest = min(x for x, _ in points), max(x for x, _ in points)
    ys = ticks(min(y for _, y in points), max(y for _, y in points))
    xs = [x for x in ticks(lowest, highest) if x == int(x) and lowest <= x <= highest]  # there is no half epoch
    if lowest == highest:
        xs, lowest, highest = [lowest], lowest - 1, highest + 1
    axes = _Axes(lowest, highest, ys[0], ys[-1])
    drawn = [_frame(axes, xs, ys, x_label, y_label)]
    drawn += [_area(band, axes) for band in bands if band.seeds > 1]
    drawn += [_polyline(band.mean, axes) for band in bands]
    return _svg(Markup("").join(drawn), label=f"{title}. {_summary([band.mean for band in bands], unit)}")


def dot_chart(dots: Dots, *, title: str) -> Markup:
    """A line for each class with a mark for each setting on it; the axis from 0 to 1 stands above and below."""
    left, row, top = 150, 19, 24
    height = top + row * len(dots.classes) + 24
    x: Callable[[float], float] = lambda value: left + value * (WIDTH - left - RIGHT)  # noqa: E731
    drawn: list[Markup] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x(tick), top - 4, height - 20))
        for y in (top - 10, height - 6):
            drawn.append(Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x(tick), y, _tick_text(tick, [1.0])))
    for i, name in enumerate(dots.classes):
        middle = top + row * (i + 0.5)
        shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        drawn.append(Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>').format(left - 10, middle + 4, shown, name))
        if span := dots.span(i):
            drawn.append(Markup('<path class="axis" stroke-opacity=".45" d="M{:.1f} {:.1f}H{:.1f}"/>').format(x(span[0]), middle, x(span[1])))
        for setting, values in dots.values.items():
            value = values[i]
            if value is not None:
                said = f"{name}, {setting}: {rounded(value)}"
                drawn.append(_mark(x(value), middle, dots.style[setting], Markup("<title>{}</title>").format(said)))
    spoken = f"{title}. {len(dots.classes)} classes in {len(dots.values)} settings: {', '.join(dots.values)}."
    return _svg(Markup("").join(drawn), label=spoken, height=height)


def dot_legend(dots: Dots) -> Markup:
    """The settings of a dot chart beside the mark of each, as an HTML list that wraps."""
    sample = Markup('<svg class="chart key" viewBox="0 0 28 8" aria-hidden="true">{}</svg>')
    items = [Markup("<li>{}{}</li>").format(sample.format(_mark(14.0, 4.0, dots.style[name], Markup(""))), name) for name in dots.values]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def legend(curves: Sequence[Curve]) -> Markup:
    """The names of curves beside a sample of each line, as an HTML list that wraps."""
    items = []
    for curve in curves:
        sample = Markup('<svg class="chart key" viewBox="0 0 28 8" aria-hidden="true"><path d="M1 4H27" {}/></svg>').format(_stroke(curve.style))
        items.append(Markup("<li>{}{}</li>").format(sample, curve.name))
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def reliability_chart(calibration: Calibration, *, of: str = "samples") -> Markup:
    """Accuracy of each confidence bin as bars, with the diagonal of perfect calibration; the bars' width is their bin, `of` what is counted."""
    axes = _Axes(0.0, 1.0, 0.0, 1.0, height=330)
    grid = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    drawn = [_frame(axes, grid, grid, "confidence", "accuracy")]
    most = max(max(calibration.counts), 1)
    for low, high, count, accuracy in zip(calibration.edges, calibration.edges[1:], calibration.counts, calibration.accuracies, strict=False):
        if not count:
            continue
        left, right, top, floor = axes.x(low), axes.x(high), axes.y(accuracy), axes.y(0.0)
        drawn.append(
            Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"><title>{}</title></rect>').format(
                left + 1, top, right - left - 2, floor - top, 0.25 + 0.75 * count / most,
                f"confidence {low:.2f} to {high:.2f}: {count:,} {of}, accuracy {rounded(accuracy)}",
            )
        )  # fmt: skip
    start, end = (axes.x(0.0), axes.y(0.0)), (axes.x(1.0), axes.y(1.0))
    drawn.append(Markup('<path class="ideal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(*start, *end))
    n = sum(calibration.counts)
    return _svg(Markup("").join(drawn), label=f"Reliability diagram. Accuracy against confidence in {len(calibration.counts)} bins, {n:,} {of}.", height=330)


def bar_strip(counts: Sequence[int], names: Sequence[str], *, label: str) -> Markup:
    """One small bar for each class, in class order, with no axes: the shape of a distribution."""
    most, width, height = max(max(counts, default=0), 1), 420, 64
    step = width / max(len(counts), 1)
    gap = 0.15 * step if step > 3 else 0.0
    bars = [
        Markup('<rect class="bar" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>').format(
            i * step + gap, height - height * count / most, step - 2 * gap, height * count / most, f"{name}: {count:,}"
        )
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    return Markup('<svg class="chart strip" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, Markup("").join(bars)
    )


def _svg(body: Markup, *, label: str, height: int = HEIGHT) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, height, label, body)


def _frame(axes: _Axes, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> Markup:
    """Grid, ticks with their numbers, and the names of both axes."""
    left, right, floor = axes.x(axes.x_low), axes.x(axes.x_high), axes.y(axes.y_low)
    parts: list[Markup] = []
    for y in ys:
        at = axes.y(y)
        kind = "axis" if y == ys[0] else "grid"
        parts.append(Markup('<path class="{}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(kind, left, at, right))
        parts.append(Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(left - 7, at + 4, _tick_text(y, ys)))
    for x in xs:
        at = axes.x(x)
        parts.append(Markup('<path class="axis" d="M{:.1f} {:.1f}v4"/>').format(at, floor))
        parts.append(Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(at, floor + 18, _tick_text(x, xs)))
    middle_x, middle_y = (left + right) / 2, (axes.y(axes.y_high) + floor) / 2
    parts.append(Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(middle_x, axes.height - 7, x_label))
    turned = Markup('<text class="name" transform="translate(13 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>')
    parts.append(turned.format(middle_y, y_label))
    return Markup("").join(parts)


def _ground(below: float, axes: _Axes) -> Markup:
    """The shaded region below a value."""
    top, floor, left, right = axes.y(min(below, axes.y_high)), axes.y(axes.y_low), axes.x(axes.x_low), axes.x(axes.x_high)
    shape = Markup('<rect class="ground" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(left, top, right - left, max(0.0, floor - top))
    return shape + Markup('<text class="ground-name" x="{:.1f}" y="{:.1f}" text-anchor="end">collapse</text>').format(right - 6, floor - 6)


def _polyline(curve: Curve, axes: _Axes, *, dots: bool = True) -> Markup:
    pieces = [" ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in piece) for piece in curve.pieces]
    path = "".join(f"M{piece.replace(' ', 'L')}" for piece in pieces)
    drawn = Markup('<path d="{}" {}><title>{}</title></path>').format(path, _stroke(curve.style), curve.name)
    if dots and len(curve.points) <= MARKED:
        colour = f"s{curve.style % NUM_COLOURS}"
        drawn += Markup("").join(Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(colour, axes.x(x), axes.y(y)) for x, y in curve.points)
    return drawn


def _area(band: Band, axes: _Axes) -> Markup:
    there = [f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in band.high.points]
    back = [f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in reversed(band.low.points)]
    text = f"{band.name}: lowest to highest of {band.seeds} seeds"
    return Markup('<path class="band s{}" d="M{}Z"><title>{}</title></path>').format(band.mean.style % NUM_COLOURS, "L".join(there + back), text)


def _mark(x: float, y: float, style: int, title: Markup) -> Markup:
    """A small filled shape around (x, y); colours and shapes repeat together only after 28."""
    shape = MARKS[style % len(MARKS)]
    return Markup('<path class="dot s{}" transform="translate({:.1f} {:.1f})" d="{}">{}</path>').format(style % NUM_COLOURS, x, y, shape, title)


def _stroke(style: int) -> Markup:
    """Class and dash pattern: neighbours differ in both, and the pairs repeat only after 28 (7 colours, 4 patterns)."""
    dash = DASHES[style % len(DASHES)]
    return Markup('class="line s{}" stroke-dasharray="{}"').format(style % NUM_COLOURS, dash or "none")


def _tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick's own number, which is round already, written like its neighbours: 0.2, 1,500, 2e-4."""
    largest = max(abs(tick) for tick in ticks)
    if value == 0:
        return "0"
    if largest < 0.01 or largest >= 1e7:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.10g}"


def _summary(curves: Sequence[Curve], unit: str) -> str:
    spoken = [f"{c.name}: from {rounded(c.points[0][1], unit)} to {rounded(c.points[-1][1], unit)}" for c in curves if c.points]
    return "; ".join(spoken) + "."
