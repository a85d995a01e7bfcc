"""Training images that a picture can be compared with, as typed records: `neighbours.json`, `.npz` and `.webp`. Needs no torch.

The bank is m training images, evenly over the classes; arrays of neighbours.npz:

    features             (m, D) float16, or float32 where half precision is too small: penultimate features by the final weights
    rows                 (m,) int64 of the training split, ascending; labels: (m,) int64
    mistakes/<split>     (n, D) of the same kind: features of the mistakes of a split, in the order of the record

neighbours.webp is an atlas of the m pictures in that order, tiles of 64 pixels. Similarity is the cosine of two rows of features, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pellucid.errors import RunError
from pellucid.findings import CLOSED
from pellucid.readings import nearest
from pellucid.records import read_arrays, read_record, write_arrays, write_json

NEIGHBOURS, NEIGHBOUR_ARRAYS, NEIGHBOUR_ATLAS = "neighbours.json", "neighbours.npz", "neighbours.webp"
NEIGHBOUR_SIDE = 64  # pixels of a tile of the atlas
NEAREST = 6  # of each mistake
_FLOATS = ("float16", "float32")


@dataclass(frozen=True)
class Neighbour:
    """A training image: its place in the bank, and the cosine of its features and those of the picture it is near to, in [-1, 1]."""

    __pydantic_config__ = CLOSED

    index: int
    cosine: float


@dataclass(frozen=True)
class Near:
    """The training images most like one picture of a split, the most similar first; of equally similar ones the earlier row."""

    __pydantic_config__ = CLOSED

    row: int
    near: list[Neighbour]


@dataclass
class NeighbourFindings:
    """n of `of` images of `split`, by name in `files`; how: in words. mistakes: {split: the mistakes with a thumbnail, the most confident first}."""

    __pydantic_config__ = CLOSED

    pellucid: str
    split: str
    n: int
    of: int
    how: str
    files: list[str]
    mistakes: dict[str, list[Near]] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptNeighbours:
    """The findings with the bank. mistakes: {split: (n, D)}."""

    findings: NeighbourFindings
    features: NDArray[np.floating[Any]]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    mistakes: dict[str, NDArray[np.floating[Any]]] = field(default_factory=dict)

    def save(self, folder: Path) -> list[Path]:
        """Write record and arrays into the folder, the record last; the files. Equal findings give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        own = {f"mistakes/{split}": features for split, features in self.mistakes.items()}
        write_arrays(folder / NEIGHBOUR_ARRAYS, {"features": self.features, "rows": self.rows, "labels": self.labels, **own}, compressed=True)
        write_json(folder / NEIGHBOURS, self.findings)
        return [folder / NEIGHBOURS, folder / NEIGHBOUR_ARRAYS]


def nearest_kept(features: NDArray[Any], bank: NDArray[Any], most: int = NEAREST) -> list[list[Neighbour]]:
    """For each of (n, D) features the `most` images of the bank (m, D) with the largest cosine, of equal ones those that come first in the bank."""
    places, cosines = nearest(features, bank, most)
    return [[Neighbour(int(i), float(c)) for i, c in zip(*row, strict=True)] for row in zip(places, cosines, strict=True)]


def how_compared(selected: str, n: int, of: int) -> str:
    """How n of `of` training images are compared, in words; selected: whose weights, as the run says it."""
    return f"cosine of penultimate features by the final weights, {selected}, in float64; {n:,} of {of:,} training images, evenly over the classes"


_NEIGHBOURS = TypeAdapter(NeighbourFindings)


def has_neighbours(folder: Path) -> bool:
    """Whether training images to compare with were kept in a folder of findings."""
    return (folder / NEIGHBOURS).is_file()


def load_neighbours(folder: Path) -> KeptNeighbours:
    """The training images kept in a folder of findings. RunError names the file and the key that is missing or was changed."""
    path, arrays_path = folder / NEIGHBOURS, folder / NEIGHBOUR_ARRAYS
    if not path.is_file():
        raise RunError(f"{path}: expected training images to compare with; there is no such file. `inside: {{neighbours: 2000}}` keeps them.")
    findings = read_record(path, _NEIGHBOURS)
    if not 0 < findings.n <= findings.of or len(findings.files) != findings.n:
        raise RunError(f"{path}: files: expected the names of {findings.n:,} of {findings.of:,} images, got {len(findings.files):,}; the file was changed")
    arrays = read_arrays(arrays_path, "neighbours")
    expected = {"features": ("finite", (findings.n, -1)), "rows": ("int64", (findings.n,)), "labels": ("int64", (findings.n,))}
    expected |= {f"mistakes/{split}": ("finite", (len(near), -1)) for split, near in findings.mistakes.items()}
    width = arrays["features"].shape[-1] if "features" in arrays and arrays["features"].ndim else 0
    for key, (kind, shape) in expected.items():
        shape = tuple(width if size < 0 else size for size in shape)
        if key not in arrays:
            raise RunError(f"{arrays_path}: {key}: the array is missing; the file was changed")
        a = arrays[key]
        right = a.dtype.name in _FLOATS and bool(np.isfinite(a).all()) if kind == "finite" else a.dtype.name == kind
        if not right or a.shape != shape:
            raise RunError(f"{arrays_path}: {key}: expected {kind} numbers {shape}; got {a.dtype} {a.shape}. The file was changed.")
    if stray := next((key for key in arrays if key not in expected), None):
        raise RunError(f"{arrays_path}: {stray}: belongs to nothing in {NEIGHBOURS}; the file was changed")
    rows, labels = arrays["rows"], arrays["labels"]
    if rows[0] < 0 or rows[-1] >= findings.of or not (np.diff(rows) > 0).all() or labels.min() < 0:
        raise RunError(f"{arrays_path}: rows: expected ascending rows of {findings.of:,} images and labels from 0; the file was changed")
    for split, found in findings.mistakes.items():
        for near in found:
            if near.row < 0 or any(not 0 <= one.index < findings.n or not -1 - 1e-9 <= one.cosine <= 1 + 1e-9 for one in near.near):
                raise RunError(f"{path}: mistakes.{split}: row {near.row}: expected places below {findings.n:,} and cosines; the file was changed")
    own = {split: arrays[f"mistakes/{split}"] for split in findings.mistakes}
    return KeptNeighbours(findings, arrays["features"], rows, labels, own)
