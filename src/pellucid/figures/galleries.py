"""Pictures in lines with words below each: neighbours, views, hardest images, captions. Pictures are (H, W, 3) uint8 RGB, None where none was kept.

width: of the whole figure in inches, on paper (`style.fitted`); None: its own, for screens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pellucid.errors import UsageError
from pellucid.figures.style import BOLD_LETTERS, LETTERS, NOTES, STYLE, fitted, in_line, plain_text, shortened

MOST_LINES = 5  # of words below a picture
LEAST, OWN = 0.82, 1.3  # inches of a picture: the least on paper, and where no width is asked for
_LINE = 0.115  # inches


@dataclass(frozen=True)
class Tile:
    """A picture and the sentences below it, each on lines of its own. likeness: whether it is as it should be, which colours the words; None: neither."""

    image: NDArray[np.uint8] | None
    said: Sequence[str]
    likeness: bool | None = None


def gallery(lines: Sequence[Sequence[Tile]], *, title: str, note: str = "", least: float = LEAST, width: float | None = None) -> Figure:
    """Each line of pictures on a line of its own, or on several where each would have less than `least` inches. UsageError without a picture."""
    longest = max(map(len, lines), default=0)
    if not longest:
        raise UsageError("expected at least one picture to draw, got none")
    across = OWN * longest if width is None else width
    columns = longest if width is None else in_line(longest, width, least=least)
    cut = [list(line[i : i + columns]) for line in lines for i in range(0, len(line), columns)]
    side = across / columns
    said = [[_wrapped(tile.said, max(8, int(side * LETTERS))) for tile in line] for line in cut]
    tall = [side * max(_aspect(tile) for tile in line) + _LINE * (1 + max(text.count("\n") for text in texts)) for line, texts in zip(cut, said, strict=True)]
    heading, below = textwrap.fill(title, int(BOLD_LETTERS * across)), textwrap.fill(note, int(LETTERS * across))
    height = sum(tall) + 0.06 * len(tall) + 0.2 + 0.17 * heading.count("\n") + 0.12 * (below.count("\n") + 2 if note else 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(across, height), layout="constrained")
        figure.suptitle(plain_text(heading), x=0.01, ha="left", fontsize=9, fontweight="bold")
        if note:
            figure.supxlabel(plain_text(below), x=0.01, ha="left", fontsize=NOTES)
        grid = figure.subplots(len(cut), columns, squeeze=False, height_ratios=tall)
        for axes_line, line, texts in zip(grid, cut, said, strict=True):
            for axes in axes_line[len(line) :]:
                axes.set_axis_off()
            for axes, tile, text in zip(axes_line, line, texts, strict=False):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                image = np.full((3, 3, 3), 235, np.uint8) if tile.image is None else tile.image
                axes.imshow(image, interpolation="nearest" if tile.image is None else "antialiased")
                colour = {None: "black", True: "#006b4a", False: "#b03a00"}[tile.likeness]
                axes.set_xlabel(plain_text(text), fontsize=6, color=colour, labelpad=2)
    return fitted(figure, width)


def _aspect(tile: Tile) -> float:
    return 1.0 if tile.image is None else tile.image.shape[0] / tile.image.shape[1]


def _wrapped(said: Sequence[str], letters: int) -> str:
    """The sentences on lines of at most so many letters, MOST_LINES of them; the last one ends in an ellipsis where some are left out."""
    lines = [line for text in said for line in textwrap.wrap(text, letters)]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], shortened(f"{lines[MOST_LINES - 1]}  ", len(lines[MOST_LINES - 1]) + 1)]
    return "\n".join(lines)
