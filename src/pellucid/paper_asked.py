"""What a figure on paper is asked for: its width, and which picture, epoch, split or layer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pellucid.errors import UsageError, did_you_mean
from pellucid.run import Run

# Widths of one and of two columns in Nature's guide to figures; those of IEEE (88.9 and 182 mm) and Elsevier (90 and 190 mm) differ by a few millimetres.
COLUMN, PAGE = 89.0, 183.0
NARROWEST, WIDEST = 80.0, 420.0  # millimetres; below, text of 6 points no longer fits beside its panels
INCH = 25.4


@dataclass(frozen=True)
class Asked:
    """width: millimetres. picture: of those that were looked at, from 1. epoch: that alone. split: of predictions. layer: of attention, from 1.

    None: what is usual for the figure.
    """

    width: float = COLUMN
    picture: int | None = None
    epoch: int | None = None
    split: str | None = None
    layer: int | None = None

    @property
    def inches(self) -> float:
        return self.width / INCH


def millimetres(width: str) -> float:
    """The width that `column`, `page` or `<N>mm` names. UsageError for anything else."""
    if width in ("column", "page"):
        return COLUMN if width == "column" else PAGE
    found = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]{1,4})?) ?mm", width.strip())
    if found is None or not NARROWEST <= float(found[1]) <= WIDEST:
        raise UsageError(f"--width: expected column ({COLUMN:g} mm), page ({PAGE:g} mm) or {NARROWEST:g}mm to {WIDEST:g}mm, got {width!r}")
    return float(found[1])


def split_of(run: Run, asked: Asked) -> str:
    """The split that is asked for, or the first with predictions. UsageError names those that there are."""
    splits = run.prediction_splits
    if asked.split is not None and asked.split not in splits:
        raise UsageError(f"--split: the run has predictions of {', '.join(splits)}, got {asked.split!r}.{did_you_mean(asked.split, splits)}")
    return asked.split or splits[0]
