"""The whole attention of a few pictures, as typed records: `attention.json` beside `attention.npz`. Needs no torch.

Of picture i of `Findings.images` and layer l of `AttentionFindings.layers`, with h heads and q = k = gh * gw patches, row by row:

    rows/<i>/<l>     (h, q, k) uint8: attention of query patch q to key patch k; 255 is the largest of its row
    scale/<i>/<l>    (h, q) float32: that largest weight, so that rows * scale / 255 are weights of the model to within half a step
    rest/<i>/<l>     (h, q) float32: what of a row went to tokens without a place: class token, registers, padding of windows
    class/<i>/<l>    (h, k) float32: the class token's weights to the patches; absent where the layer has no class token
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pellucid.errors import RunError
from pellucid.findings import CLOSED
from pellucid.records import read_arrays, read_record, write_arrays, write_json

ATTENTION, ATTENTION_ARRAYS = "attention.json", "attention.npz"
ATTENTION_PICTURES = 8  # pictures at most
ATTENTION_BYTES = 24_000_000  # of all arrays together, before they are compressed
STEPS = 255  # of a row's largest weight


@dataclass(frozen=True)
class KeptLayer:
    """One attention layer: path of its module, heads that were kept (1 where they are averaged), grid of patches (rows, columns)."""

    __pydantic_config__ = CLOSED

    module: str
    heads: int
    averaged: bool
    grid: tuple[int, int]

    @property
    def patches(self) -> int:
        return math.prod(self.grid)


@dataclass
class AttentionFindings:
    """What was kept of the attention of some pictures. how: in words; pictures: places in `Findings.images`; notes: what was left out and why."""

    __pydantic_config__ = CLOSED

    pellucid: str
    how: str
    layers: list[KeptLayer]
    pictures: list[int]
    class_token: bool
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path, arrays: dict[str, NDArray[np.generic]]) -> list[Path]:
        """Write both files into the folder, the record last; the files. Equal findings give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(folder / ATTENTION_ARRAYS, arrays, compressed=True)
        write_json(folder / ATTENTION, self)
        return [folder / ATTENTION, folder / ATTENTION_ARRAYS]


@dataclass(frozen=True)
class KeptAttention:
    """The findings with their arrays, whose keys and shapes fit them."""

    findings: AttentionFindings
    arrays: dict[str, NDArray[np.generic]]

    def weights(self, picture: int, layer: int) -> NDArray[np.float64]:
        """(h, q, k) attention weights of a picture (place in Findings.images) and a layer (place in `layers`), as they were kept."""
        rows, scale = self.arrays[f"rows/{picture}/{layer}"], self.arrays[f"scale/{picture}/{layer}"]
        return rows.astype(np.float64) / STEPS * scale.astype(np.float64)[:, :, None]


_ATTENTION = TypeAdapter(AttentionFindings)


def has_attention(folder: Path) -> bool:
    """Whether the attention of pictures was kept in a folder of findings."""
    return (folder / ATTENTION).is_file()


def load_attention(folder: Path, images: int | None = None) -> KeptAttention:
    """The attention kept in a folder of findings. images: how many the findings have. RunError names the file and the key that is missing or was changed."""
    path = folder / ATTENTION
    if not path.is_file():
        raise RunError(f"{path}: expected the attention of some pictures; there is no such file. `inside: {{attention: true}}` keeps it.")
    findings = read_record(path, _ATTENTION)
    if not findings.layers or not findings.pictures or len(set(findings.pictures)) < len(findings.pictures):
        raise RunError(f"{path}: expected at least one layer and pictures that each stand there once; the file was changed")
    if min(findings.pictures) < 0 or (images is not None and max(findings.pictures) >= images):
        raise RunError(f"{path}: pictures: expected places below {images} in the findings, got {findings.pictures}; the file was changed")
    if fault := next((layer for layer in findings.layers if layer.heads < 1 or min(layer.grid) < 1), None):
        raise RunError(f"{path}: layers: {fault.module} has {fault.heads} heads on {fault.grid[0]} x {fault.grid[1]} patches; the file was changed")
    arrays: dict[str, NDArray[np.generic]] = dict(read_arrays(folder / ATTENTION_ARRAYS, "attention"))
    wanted = _expected(findings)
    for key, (dtype, shape) in wanted.items():
        if key not in arrays and not key.startswith("class/"):
            raise RunError(f"{folder / ATTENTION_ARRAYS}: {key}: the array is missing; the file was changed")
        if key in arrays and (arrays[key].dtype != dtype or arrays[key].shape != shape or not _shares(arrays[key])):
            got = f"{arrays[key].dtype} {arrays[key].shape}"
            raise RunError(f"{folder / ATTENTION_ARRAYS}: {key}: expected {dtype} {shape}, shares from 0 to 1; got {got}. The file was changed.")
    if stray := next((key for key in arrays if key not in wanted), None):
        raise RunError(f"{folder / ATTENTION_ARRAYS}: {stray}: belongs to no picture and layer of {ATTENTION}; the file was changed")
    return KeptAttention(findings, arrays)


def _expected(findings: AttentionFindings) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{key: (dtype, shape)} of the arrays that may stand beside the record."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for i in findings.pictures:
        for j, layer in enumerate(findings.layers):
            h, q = layer.heads, layer.patches
            found[f"rows/{i}/{j}"] = ("uint8", (h, q, q))
            found[f"scale/{i}/{j}"] = found[f"rest/{i}/{j}"] = ("float32", (h, q))
            if findings.class_token:
                found[f"class/{i}/{j}"] = ("float32", (h, q))
    return found


def _shares(array: NDArray[np.generic]) -> bool:
    """Whether an array holds shares: bytes, or finite numbers from 0 to 1 (float32 may round beyond)."""
    if array.dtype == np.uint8:
        return True
    return bool(np.isfinite(array).all() and array.min(initial=0.0) >= 0 and array.max(initial=0.0) <= 1 + 1e-4)
