"""Verification of the small pictures that a run keeps: pictures of mistakes, and atlases of many tiles, made anew from the data and compared.

A picture that was packed as WEBP is compared with one that was packed the same way: other versions decode and pack a little differently. Masks are PNG and
must be the same to the pixel. The two views of a pre-training's images are drawn at random in training: their files are only compared with their hashes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy.special import softmax

from pellucid.atlas import COLUMNS, GREY, QUALITY, read_tiles, tile_of
from pellucid.attention_findings import ATTENTION, ATTENTION_ARRAYS
from pellucid.data.dataset import Dataset
from pellucid.errors import PellucidError
from pellucid.mask_findings import hardest_rows
from pellucid.neighbour_findings import NEIGHBOUR_ARRAYS, NEIGHBOUR_ATLAS, NEIGHBOURS
from pellucid.palettes import coloured
from pellucid.predictions import FeaturePredictions, Predictions
from pellucid.readings import nearest, neighboured_rows
from pellucid.run import FEW_THUMBNAILS, THUMBNAIL_SIDE, THUMBNAILS, Run
from pellucid.verify_masks import Opened

Line = tuple[str, bool, str]
EXACT = 1e-9  # of a confidence: sums in another order
PICTURED = 8.0  # mean difference of a picture, of 255: other versions decode and pack a little differently
VIEW_FILES = (ATTENTION, ATTENTION_ARRAYS, NEIGHBOURS, NEIGHBOUR_ARRAYS, NEIGHBOUR_ATLAS)
_NAME = re.compile(r"(?P<row>\d{6,})(?P<ending>\.webp|-truth\.png|-predicted\.png|-near-(?P<near>[1-9]\d*)\.webp|-view-[12]\.webp)")


def keeps_views(run: Run) -> bool:
    """Whether a run is of a version that keeps what views show, and then has all of it. Earlier ones have no trace of it: neither setting, file nor hash."""
    places = [run.probe_atlas, *(run.inside / name for name in VIEW_FILES)]
    hashed, inside = run.record.files, run.recipe.inside
    traced = any(name.startswith("thumbnails/") for name in hashed) or any(path.is_file() or str(path.relative_to(run.path)) in hashed for path in places)
    return traced or (inside is not None and "attention" in inside.model_fields_set)


# ── atlases ───────────────────────────────────────────────────────────────────────────────────────────────────


def atlas_faults(
    path: Path, side: int, tiles: int, places: Sequence[int], pictures: Sequence[NDArray[np.uint8]], names: Sequence[str]
) -> tuple[list[str], float]:
    """(what is wrong with an atlas of so many tiles, whose tiles at `places` should show the pictures; the largest mean difference of a tile, of 255)."""
    across, down = min(COLUMNS, tiles), math.ceil(tiles / COLUMNS)
    with PIL.Image.open(path, formats=("WEBP",)) as opened:
        if opened.size != (side * across, side * down):
            return [f"it is {opened.width} x {opened.height} pixels, expected {across} x {down} tiles of {side}"], math.inf
    kept = read_tiles(path, side, [*places, *range(tiles, across * down)])
    wanted = _packed([tile_of(picture, side) for picture in pictures], side)
    away = [_apart(a, b) for a, b in zip(kept, wanted, strict=False)]
    faults = [f"{name}: its picture differs by {value:.0f} of 255 in the mean" for name, value in zip(names, away, strict=True) if value > PICTURED]
    empty = PIL.Image.new("RGB", (side, side), GREY)
    return faults + [f"a picture behind the last of {tiles:,}" for tile in kept[len(places) :] if _apart(tile, empty) > PICTURED][:1], max(away, default=0.0)


def _packed(tiles: list[PIL.Image.Image], side: int) -> list[PIL.Image.Image]:
    """Tiles after they were packed as a run packs them."""
    across = min(COLUMNS, len(tiles))
    whole = PIL.Image.new("RGB", (side * across, side * math.ceil(len(tiles) / across)), GREY)
    boxes = [(i % across * side, i // across * side) for i in range(len(tiles))]
    for tile, box in zip(tiles, boxes, strict=True):
        whole.paste(tile, box)
    read = _webp(whole)
    return [read.crop((left, top, left + side, top + side)) for left, top in boxes]


def _webp(picture: PIL.Image.Image) -> PIL.Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    with PIL.Image.open(buffer) as opened:
        return opened.convert("RGB")


def _apart(a: PIL.Image.Image, b: PIL.Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())


# ── pictures of mistakes ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Shown:
    """The pictures of one split. dataset: as it is today, None where it is not here."""

    run: Run
    split: str
    dataset: Dataset | None

    @cached_property
    def opened(self) -> Opened:
        return Opened.of(self.run)

    @cached_property
    def features(self) -> FeaturePredictions:
        return self.run.feature_predictions(self.split)


def thumbnail_checks(run: Run, dataset: Dataset | None) -> list[Line]:
    """The lines about thumbnails/: each file has a hash, the rows are those that belong there, and the pictures are those of the data where it is here."""
    files, hashed, whole, lines = run.thumbnail_files, run.record.files, keeps_views(run), []
    if whole:
        names = [str(path.relative_to(run.path)) for path in files]
        lines += [(f"file {name}", False, f"MISMATCH run.json: it holds no hash of {name}") for name in names if name not in hashed]
    for split in run.data.splits:
        shown = _Shown(run, split, dataset if dataset is not None and _same_rows(run, split, dataset) else None)
        lines += _of_split(shown, [path for path in files if path.parent == run.thumbnails / split], whole=whole and split != "train")
    stray = [path for path in files if path.parent not in [run.thumbnails / split for split in run.data.splits]]
    return lines + [("pictures", False, f"MISMATCH {path.relative_to(run.path)}: a picture of no split") for path in stray]


def _same_rows(run: Run, split: str, dataset: Dataset) -> bool:
    """Whether a row of the split is still the same file; where it is not, the check of the data names the files."""
    return split in dataset.splits and list(dataset.splits[split].names) == [file for file, _, _ in run.samples(split)]


def _of_split(shown: _Shown, files: list[Path], *, whole: bool) -> list[Line]:
    what = f"pictures of {shown.split}"
    try:
        faults = _row_faults(shown, files) if whole else []
        faults += [fault for path in files if shown.dataset is not None and (fault := _fault(shown, path, shown.dataset))]
    except (PellucidError, LookupError, OSError, TypeError, ValueError, PIL.Image.DecompressionBombError) as error:
        faults = [f"they cannot be compared: {error}"]
    if faults:
        more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
        return [(what, False, f"MISMATCH {what}: {'; '.join(faults[:6])}{more}")]
    return [(what, True, f"ok {what}: {len(files):,} files of thumbnails/ are made of the data")] if files and shown.dataset is not None else []


def _row_faults(shown: _Shown, files: list[Path]) -> list[str]:
    """What is wrong with the rows that have a picture."""
    run, split = shown.run, shown.split
    rows = [int(path.stem) for path in files if path.suffix == ".webp" and path.stem.isdecimal()]
    most = THUMBNAILS.get(run.recipe.task, FEW_THUMBNAILS)
    if run.recipe.task == "classification":
        p = run.predictions(split)
        confidence = dict(enumerate(softmax(p.logits.astype(np.float64), axis=1).max(axis=1)))
        return mistake_faults(p, sorted(rows, key=lambda row: -confidence.get(row, 0.0)), most)
    if run.recipe.task == "captioning":  # as many of the worst as of the best
        n = len(run.samples(split))
        half = min(most // 2, n // 2) or n
        wanted = half + min(half, n - half)
        return [] if len(rows) == wanted else [f"{len(rows)} of {wanted}"]
    if run.recipe.task == "segmentation":
        chosen = hardest_rows(run.mask_predictions(split), most, shown.opened.rule.void_classes)
    else:
        chosen = neighboured_rows(shown.features.labels) if len(shown.features.bank) else np.empty(0, np.int64)
    return [] if rows == sorted(chosen.tolist()) else [f"rows {rows}, expected {sorted(chosen.tolist())}"]


def mistake_faults(p: Predictions, rows: list[int], most: int) -> list[str]:
    """What is wrong with rows that should be the `most` most confident mistakes, the most confident first."""
    confidence = softmax(p.logits.astype(np.float64), axis=1).max(axis=1)
    mistaken = set(np.flatnonzero(p.logits.argmax(axis=1) != p.labels).tolist())
    if odd := [row for row in rows if row not in mistaken or rows.count(row) > 1]:
        return [f"row {odd[0]} is no mistake or stands there twice"]
    told = confidence[rows]
    faults = ["they are not in the order of their confidence"] if (told[:-1] < told[1:] - EXACT).any() else []
    if len(rows) != (wanted := min(most, len(mistaken))):
        return [*faults, f"{len(rows)} of {len(mistaken)} mistakes, expected {wanted}"]
    others = [confidence[row] for row in mistaken - set(rows)]
    return [*faults, "a more confident mistake is missing"] if others and max(others) > told.min() + EXACT else faults


def _fault(shown: _Shown, path: Path, dataset: Dataset) -> str:
    """What is wrong with one file beside the data; "" where nothing is."""
    name = _NAME.fullmatch(path.name)
    if name is None or int(name["row"]) >= len(dataset.splits[shown.split]):
        return f"{path.name}: belongs to no image"
    if name["ending"].startswith("-view-"):
        return ""
    wanted, allowed = _wanted(shown, int(name["row"]), name["ending"], int(name["near"] or 0), dataset)
    with PIL.Image.open(path, formats=("WEBP", "PNG")) as opened:
        if opened.size != wanted.size:
            return f"{path.name}: {opened.width} x {opened.height} pixels, expected {wanted.width} x {wanted.height}"
        away = _apart(opened.convert("RGB"), wanted)
    return f"{path.name}: differs by {away:.2g} of 255 in the mean" if away > allowed else ""


def _wanted(shown: _Shown, row: int, ending: str, near: int, dataset: Dataset) -> tuple[PIL.Image.Image, float]:
    """(the picture that belongs into a file, how far that may be away in the mean)."""
    split = dataset.splits[shown.split]
    if near:
        found = shown.features
        places, _ = nearest(found.features[row : row + 1], found.bank)
        picture = dataset.splits["train"].open(int(found.bank_rows[places[0][near - 1]]))
    else:
        picture = split.open(row)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    if ending.endswith(".webp"):
        return _webp(picture), PICTURED
    mask = split.masks.open(row) if ending == "-truth.png" and split.masks is not None else shown.opened.predicted(shown.split, split.names[row])
    small = PIL.Image.fromarray(mask).resize(picture.size, PIL.Image.Resampling.NEAREST)
    return PIL.Image.fromarray(coloured(np.asarray(small), shown.opened.mask_format.colours)), 0.0
