"""What a model knows of positions: how alike the embeddings of two places are, and the biases that attention adds for a distance.

The view is {title, how, notes, sheets}; a sheet is a table of small maps, `columns` of them a line:

    {name, what, columns, grid (gh, gw), values uint8 (m, gh, gw), low, high, scale, labels (m names), origin (row, column), key, sits}

A value of byte v is low + v / 255 (high - low), which scale says in words; place (0, 0) of a map is called row origin[0], column origin[1] of `key`;
sits has for each map its own place in it, [row, column] or null.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import RunError
from pellucid.findings import ARRAYS, FINDINGS, Findings, load_findings
from pellucid.run import Run, rounded
from pellucid.views import FULLER, Room, View, size
from pellucid.views.encoding import array

BIAS = "bias/"


def build(run: Run, room: Room) -> View | None:
    """What the model of a run knows of positions."""
    return of_folder(run.inside, room)


def has_positions(folder: Path, found: Findings) -> bool:
    """Whether findings of a folder hold something of positions that can be drawn. RunError where the arrays were changed."""
    from pellucid.report.inside import Arrays

    return found.positions is not None and (found.positions.grid is not None or bool(Arrays(folder / ARRAYS).names(BIAS)))


def of_folder(folder: Path, room: Room) -> View | None:
    """The view of a folder of findings; None where nothing of positions can be drawn. RunError where its files were changed.

    What has no room is left out: tables of bias first, the last layers stay longest, then maps of positions, evenly.
    """
    from pellucid.report.inside import Arrays

    if not (folder / FINDINGS).is_file() or (found := load_findings(folder).positions) is None:
        return None
    arrays = Arrays(folder / ARRAYS)
    tables = arrays.names(BIAS)
    if found.grid is None and not tables:
        return None
    view: View = {"title": f"Positions: {found.kind}", "how": found.how, "notes": [], "sheets": []}
    left = room.bytes - size(view) - 500
    if found.grid is not None:
        sheet, note = _similarity(arrays.similarity(found.grid), left)
        left -= size(sheet)
        view["sheets"].append(sheet)
        view["notes"] += [note] if note else []
    biases: list[dict[str, Any]] = []
    for key in reversed(tables):
        biases.append(_bias(key.removeprefix(BIAS), _checked(arrays[key], key)))
        left -= size(biases[-1]) + 1
        if left < 0 and (view["sheets"] or len(biases) > 1):
            biases.pop()
            view["notes"].append(f"Tables of bias of the last {len(biases)} of {len(tables)} layers; {FULLER}")
            break
    view["sheets"] += reversed(biases)
    return view


def _similarity(values: NDArray[np.float32], room: int) -> tuple[dict[str, Any], str]:
    """The grid of grids, and what of it is not drawn: of every position, or of every second, third, ... in both directions, its similarity with all."""
    gh, gw = values.shape[:2]
    for step in range(1, max(gh, gw) + 1):
        rows, columns = range((gh - 1) % step // 2, gh, step), range((gw - 1) % step // 2, gw, step)
        sits = [[row, column] for row in rows for column in columns]
        chosen = values[np.ix_(rows, columns)].reshape(-1, gh, gw)
        sheet = _sheet("similarity", "cosine similarity of two positions", chosen, columns=len(columns), low=float(values.min()), high=1.0)
        sheet |= {"labels": [f"position row {row + 1}, column {column + 1}" for row, column in sits], "origin": [1, 1], "key": "position", "sits": sits}
        if size(sheet) <= room or len(sits) == 1:
            break
    return sheet, "" if step == 1 else f"The maps of {len(sits)} of {gh * gw:,} positions are drawn, evenly spaced; {FULLER}"


def _bias(module: str, table: NDArray[np.float32]) -> dict[str, Any]:
    """The relative-position bias (h, 2 wh - 1, 2 ww - 1) of one layer, a map for each head."""
    heads, height, width = table.shape
    sheet = _sheet(f"bias of {module}", "bias added to attention", table, columns=math.ceil(math.sqrt(heads)), low=float(table.min()), high=float(table.max()))
    labels = [f"head {i + 1}" for i in range(heads)]
    return sheet | {"labels": labels, "origin": [-(height // 2), -(width // 2)], "key": "distance", "sits": [None] * heads}


def _sheet(name: str, what: str, values: NDArray[np.float32], *, columns: int, low: float, high: float) -> dict[str, Any]:
    span = high - low
    levels = np.rint(255 * np.clip((values - low) / span, 0, 1)) if span > 0 else np.zeros_like(values)
    found = {"name": name, "what": what, "columns": columns, "grid": list(values.shape[1:]), "values": array(levels.astype(np.uint8))}
    return found | {"low": low, "high": high, "scale": f"Dark is {rounded(low)}, bright is {rounded(high)}; values are kept to within {rounded(span / 510)}."}


def _checked(table: NDArray[Any], key: str) -> NDArray[np.float32]:
    if table.ndim != 3 or not table.size or table.dtype.kind != "f" or not np.isfinite(table).all():
        raise RunError(f"{ARRAYS}: {key}: expected finite numbers (heads, rows, columns), got {table.dtype} {table.shape}; the file was changed")
    return table.astype(np.float32)
