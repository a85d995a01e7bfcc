"""Points on a plane -> inline SVG: a colour and a shape for each class, coordinates as whole numbers, one path for each class.

Colours and shapes are numbered as those of `figures.projections`, so that page and paper agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

SIDE = 600  # SVG units of a panel
NUM_COLOURS = 7  # s0 to s6 of style.css
OTHER = -1  # the style of classes without one of their own
TURNS = 8  # in which the classes are drawn
_EDGE = 12

# A shape from its centre, of half-width r: filled, except those whose outline is the mark.
_SHAPES = (
    ("disc", "h0"),  # a round cap makes it a disc
    ("fill", "m-{r}-{r}h{d}v{d}h-{d}z"),
    ("fill", "m0-{r}l{r} {d}h-{d}z"),
    ("fill", "m0-{r}l{r} {r}-{r} {r}-{r}-{r}z"),
    ("fill", "m0 {r}l{r}-{d}h-{d}z"),
    ("thin", "m-{r} 0h{d}m-{r}-{r}v{d}"),
    ("thin", "m-{r}-{r}l{d} {d}m0-{d}l-{d} {d}"),
    ("thin", "m-{r} 0h{d}m-{r}-{r}v{d}m-{h}-{down}l{e} {e}m0-{e}l-{e} {e}"),
)


def styles(labels: NDArray[np.int64], named: Sequence[int]) -> NDArray[np.int64]:
    """(p,): the place of each label among the named classes, OTHER for the rest."""
    place = np.full(1 + max(labels.max(), *named), OTHER)
    place[list(named)] = np.arange(len(named))
    return place[labels]


def plane(points: NDArray[np.float64], style: NDArray[np.int64], limits: tuple[tuple[float, float], tuple[float, float]], *, label: str) -> Markup:
    """A panel of points (p, 2) inside limits ((x low, x high), (y low, y high)), y upwards, one unit as long in x as in y."""
    low = np.array([limits[0][0], limits[1][0]])
    span = np.array([limits[0][1], limits[1][1]]) - low
    scale = (SIDE - 2 * _EDGE) / span.max()
    at = (points - low - span / 2) * scale + SIDE / 2
    at[:, 1] = SIDE - at[:, 1]
    whole = np.rint(at).astype(np.int64)
    radius = 8 if len(points) <= 500 else 5
    # In turns, so that no class lies over all the others; within a turn OTHER comes first.
    turns = [turn for turn in np.array_split(np.arange(len(whole)), TURNS) if len(turn)]
    paths = [_path(whole[turn][style[turn] == i], int(i), radius) for turn in turns for i in np.unique(style[turn])]
    frame = Markup('<rect class="grid" fill="none" x="1" y="1" width="{0}" height="{0}"/>').format(SIDE - 2)
    body = Markup("").join([frame, *paths])
    return Markup('<svg class="chart plane" viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}</svg>').format(SIDE, label, body)


def legend(names: Sequence[str], *, others: int) -> Markup:
    """The classes beside their marks, as an HTML list; `others` classes share the last line."""
    marks = [(name, i) for i, name in enumerate(names)]
    if others:
        marks.append((f"{others} other {'class' if others == 1 else 'classes'}", OTHER))
    items = [
        Markup('<li><svg class="chart mark" viewBox="0 0 24 24" aria-hidden="true">{}</svg>{}</li>').format(_path(np.array([[12, 12]]), i, 8), name)
        for name, i in marks
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _path(points: NDArray[np.int64], style: int, radius: int) -> Markup:
    if style == OTHER:
        kind, shape, radius, colour = "disc", "h0", max(radius // 2, 2), "other"
    else:
        (kind, shape), colour = _SHAPES[style % len(_SHAPES)], f"s{style % NUM_COLOURS}"
    half = radius // 2
    shape = shape.format(r=radius, d=2 * radius, h=half, e=2 * half, down=radius + half)
    width = {"disc": 2 * radius, "thin": max(radius // 3, 2), "fill": 0}[kind]
    return Markup('<path class="{} {}" stroke-width="{}" d="{}"/>').format(kind, colour, width, "".join(f"M{x} {y}{shape}" for x, y in points.tolist()))
