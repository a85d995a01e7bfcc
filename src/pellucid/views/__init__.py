"""What a page shows of a run, as data: each view is a function of a run that gives JSON, drawn by the module of the same name in web/.

Report and explorer share the views, their data and their scripts. Reading only: NumPy, SciPy and Pillow, no torch, no network; `compare` alone lays maps over
pictures itself, for which it loads matplotlib where there are some.

A view is a dict of JSON: `title`, one line that says what is seen; `notes`, sentences for readers on what is left out, and on what a run does not
keep and which line of the recipe keeps it; and what the view's own module documents. A number is `encoding.number(Measurement)`, an array
`encoding.array`, a picture a data URI; a bare float stands only where a script draws with it and shows it to nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pellucid.run import Run

View = dict[str, Any]
FULLER = "`pellucid explore` shows all."  # how a note ends that says what has no room


@dataclass(frozen=True)
class Room:
    """What one view may take: points of a plane, and bytes of text of everything in it. What does not fit is said in `notes`, with FULLER."""

    points: int = 2000
    bytes: int = 900_000


EXPLORER = Room(points=20_000, bytes=24_000_000)
Builder = Callable[[Run, Room], View | None]


def views() -> dict[str, Builder]:
    """The views by name, in the order of the pages; a builder gives None where the task has no such view or the run kept nothing of it."""
    from pellucid.views import attention, curves, features, masks, mistakes, overview, positions, words

    return {
        "overview": overview.build,
        "curves": curves.build,
        "features": features.build,
        "attention": attention.build,
        "positions": positions.build,
        "masks": masks.build,
        "words": words.build,
        "mistakes": mistakes.build,
    }


def size(part: object) -> int:
    """Bytes that a view, or a part of it, takes in a page: the measure of a Room."""
    return len(to_json(part).encode("utf-8", "backslashreplace"))


def to_json(view: object) -> str:
    """A view as text that may stand inside a script element of a page: no `<` in it, no NaN."""
    return json.dumps(view, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
