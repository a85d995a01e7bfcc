"""What every figure shares: type, colours, and how a figure becomes files.

Colours are Okabe and Ito's, with dashes as the second channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")

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


def plain_text(name: str) -> str:
    """A name that matplotlib draws as it is: `$` would start a formula, a leading `_` hides a legend entry."""
    name = name.replace("$", r"\$")
    return f"\u200b{name}" if name.startswith("_") else name
