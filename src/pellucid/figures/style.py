"""What every figure shares: type, colours, widths, and how a figure becomes files.

Colours are Okabe and Ito's, with dashes as the second channel. A figure has a width of its own, for screens; asked for another, in inches, it is laid out
anew for it: fewer panels in a line, lines of text broken earlier, type of SMALLEST to LARGEST points. Nothing drawn is scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
SMALLEST, LARGEST = 6.0, 8.0  # points of type on paper; journals ask for 5 to 7 and for 8 in headings
LETTERS, BOLD_LETTERS = 18.0, 13.0  # of a line, an inch: of notes in 6.5 points, of a bold heading in 8
NOTES = 6.5  # points of the sentences below a figure on paper

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "pellucid",  # else the ids of an SVG differ from run to run
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def save(figure: Figure, path: Path, formats: Sequence[str] = ("png", "svg", "pdf"), *, dpi: int = 160) -> list[Path]:
    """Write `path` with each format's ending and return the files. Without dates, so that the same figure gives the same bytes."""
    # Dates are the only thing that would differ between two equal files; PNG's metadata has none to leave out.
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}}
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it stays where it is: laid out again for each format takes most of the time
        for kind in formats:
            file = path.with_name(f"{path.name}.{kind}")
            figure.savefig(file, format=kind, dpi=dpi, metadata=undated.get(kind))
            written.append(file)
    return written


def panel_layout(count: int, panel: tuple[float, float], width: float | None, *, least: float) -> tuple[int, int, tuple[float, float]]:
    """(rows, columns, (width, height) of the figure in inches) of `count` panels of one kind, each of size `panel` where no width is asked for.

    Without a width all are in one line; with one as many as have `least` inches each, of at most their own height and at least two thirds of it.
    """
    if width is None:
        return 1, count, (panel[0] * count, panel[1])
    columns = in_line(count, width, least=least)
    rows = -(-count // columns)
    return rows, columns, (width, rows * min(panel[1], max(2 / 3 * panel[1], width / columns * panel[1] / panel[0])))


def in_line(count: int, width: float, *, least: float) -> int:
    """How many of `count` panels stand beside each other where each has `least` inches: at least one, and lines of about one length."""
    most = max(1, min(count, int(width / least + 1e-9)))
    return -(-count // -(-count // most)) if count else 1


def fitted(figure: Figure, width: float | None) -> Figure:
    """The figure with type for paper where a width was asked for: SMALLEST to LARGEST points."""
    for text in figure.findobj(Text) if width is not None else ():
        assert isinstance(text, Text)
        text.set_fontsize(float(np.clip(text.get_fontsize(), SMALLEST, LARGEST)))
    for axes in figure.axes if width is not None else ():
        for axis in (axes.xaxis, axes.yaxis):  # ticks that are made while drawing as well
            axis.set_tick_params(labelsize=float(np.clip(min((label.get_fontsize() for label in axis.get_ticklabels()), default=7.0), SMALLEST, 7.0)))
    return figure


def over_the_edge(figure: Figure) -> dict[str, float]:
    """By how many inches what was laid out reaches over each edge that it reaches over, by more than a point."""
    figure.draw_without_rendering()
    (left, bottom), (right, top) = figure.get_tightbbox().get_points().tolist()  # type: ignore[call-arg]  # the stub asks for a renderer
    width, height = figure.get_size_inches().tolist()
    reached = {"left": -left, "right": right - width, "lower": -bottom, "upper": top - height}
    return {edge: inches for edge, inches in reached.items() if inches > 1 / 72}


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def plain_text(name: str) -> str:
    """A name that matplotlib draws as it is: `$` would start a formula, a leading `_` hides a legend entry."""
    name = name.replace("$", r"\$")
    return f"\u200b{name}" if name.startswith("_") else name
