"""The attention of every patch of a few pictures, in every layer and head, as bytes that fit a page: what `attention_findings` keeps.

Rows are recorded a chunk of patches at a time, so that memory is bounded whatever the grid. Of a model whose attention is too large first the heads are
averaged, then the layers with the finest grid are left out, then all but the last third; each is said in the notes. Attention whose keys lie on another
grid than its queries, or outside an image, has no such picture and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import pellucid
from pellucid.attention_findings import ATTENTION_BYTES, ATTENTION_PICTURES, STEPS, AttentionFindings, KeptAttention, KeptLayer
from pellucid.errors import UsageError
from pellucid.inside.attention import Record, attention_modules, record
from pellucid.inside.attribution import examining
from pellucid.inside.survey import device_of

LEAST_PICTURES = 4  # with every head, before heads are averaged: fewer pictures show less than a mean over heads
CHUNK_BYTES = 64_000_000  # of rows that are recorded at once

HOW = (
    "attention weights of every patch to every patch, each row in steps of 1/255 of its largest weight; what a row gives to tokens without a place "
    "(class token, registers, padding) stands beside it"
)


@dataclass(frozen=True)
class _Seen:
    """An attention layer that has a picture: as it ran for one image."""

    module: str
    heads: int
    grid: tuple[int, int]
    keys: int
    class_token: bool

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def size(self, *, averaged: bool) -> int:
        """Bytes of its arrays of one picture."""
        heads, q = 1 if averaged else self.heads, self.patches
        return heads * (q * q + 8 * q + (4 * q if self.class_token else 0))


@dataclass(frozen=True)
class Plan:
    """What is kept: of which layers, heads averaged or not, of how many pictures; notes say what is left out."""

    layers: list[_Seen]
    averaged: bool
    pictures: int
    notes: list[str]

    @property
    def size(self) -> int:
        """Bytes of all arrays before they are packed."""
        return self.pictures * sum(layer.size(averaged=self.averaged) for layer in self.layers)

    @property
    def findings(self) -> AttentionFindings:
        """The record that stands beside the arrays."""
        kept = [KeptLayer(layer.module, 1 if self.averaged else layer.heads, self.averaged, layer.grid) for layer in self.layers]
        classed = any(layer.class_token for layer in self.layers)
        return AttentionFindings(pellucid.__version__, HOW, kept, list(range(self.pictures)), classed, self.notes)


def whole_attention(
    model: nn.Module, inputs: Tensor, *, most_bytes: int = ATTENTION_BYTES, progress: Callable[[str, int, int], None] | None = None
) -> tuple[KeptAttention | None, list[str]]:
    """(the attention of the first of (n, 3, H, W) normalised images, None where there is none to keep; lines that say why there is none).

    A model without attention gives no line. The model is put back as it was.
    """
    told = progress or (lambda what, done, of: None)
    device = device_of(model)
    plan, why = planned(model, inputs[:1], len(inputs), most_bytes=most_bytes)
    if plan is None:
        return None, why
    with examining(model) as plain, torch.no_grad():
        arrays: dict[str, np.ndarray] = {}
        for i in range(plan.pictures):
            told("attention of patches", i, plan.pictures)
            arrays |= _of_picture(plain, inputs[i : i + 1].to(device), i, plan)
        told("attention of patches", plan.pictures, plan.pictures)
    return KeptAttention(plan.findings, arrays), []  # type: ignore[arg-type]


def planned(model: nn.Module, image: Tensor, pictures: int, *, most_bytes: int = ATTENTION_BYTES) -> tuple[Plan | None, list[str]]:
    """(what is kept of the attention in so many pictures, None where there is none to keep; lines that say why).

    From sizes alone: any image (1, 3, H, W) will do.
    """
    with examining(model) as plain, torch.no_grad():
        try:
            layers, notes = _layers(plain, image.to(device_of(model)))
        except UsageError as error:
            return None, [f"no attention of patches is kept: {error}"] if attention_modules(plain) else []
    plan = _fitting(layers, min(pictures, ATTENTION_PICTURES), most_bytes) if layers else None
    if plan is None:
        why = "; ".join(notes) or f"one picture of its last layer alone takes more than {most_bytes / 1e6:.0f} MB"
        return None, [f"no attention of patches is kept: {why}"]
    if plan.pictures < pictures:
        notes.append(f"attention of patches is kept of the first {plan.pictures} of {pictures} pictures")
    return replace(plan, notes=[*notes, *plan.notes]), []


def _layers(plain: nn.Module, image: Tensor) -> tuple[list[_Seen], list[str]]:
    """The layers whose queries and keys are the patches of one grid, in the order of the computation, and a note on the others."""
    with record(plain, rows=[0]) as recording:
        plain(image)
    ran = [r.module for r in recording.records]
    layers, other = [], []
    for r in recording.records:
        if r.kind == "self" and r.geometry.grid is not None and r.geometry == r.queries and ran.count(r.module) == 1:
            layers.append(_Seen(r.module, r.heads, r.geometry.grid, r.weights.shape[-1], r.geometry.class_token is not None))
        elif r.module not in other:
            other.append(r.module)
    shown = f"{', '.join(other[:3])}{f' and {len(other) - 3} more' if len(other) > 3 else ''}"
    return layers, [f"{shown}: queries and keys are not the patches of one grid, or it runs more than once; not kept"] if other else []


# ── what fits ─────────────────────────────────────────────────────────────────────────────────────────────────


def _fitting(layers: Sequence[_Seen], pictures: int, most_bytes: int) -> Plan | None:
    """The largest part of the attention that fits: every head of 4 pictures or more, means over heads, coarser grids, the last third, the last layer."""
    least = min(LEAST_PICTURES, pictures)
    grids = sorted({layer.patches for layer in layers}, reverse=True)
    coarser = [[layer for layer in layers if layer.patches < largest] for largest in grids[:-1]]
    thirds = list(layers[-max(1, len(layers) // 3) :])
    tries = [(list(layers), False, least), (list(layers), True, least), *((own, False, least) for own in coarser)]
    tries += [(thirds, False, least), (thirds, True, 1), (thirds[-1:], True, 1)]
    for own, averaged, fewest in tries:
        fit = min(pictures, most_bytes // sum(layer.size(averaged=averaged) for layer in own))
        if fit >= fewest:
            return Plan(own, averaged, fit, _left_out(layers, own, averaged, most_bytes))
    return None


def _left_out(layers: Sequence[_Seen], own: Sequence[_Seen], averaged: bool, most_bytes: int) -> list[str]:
    """What does not fit, in words."""
    notes = []
    if averaged:
        notes.append(f"heads are averaged: those of every layer take more than {most_bytes / 1e6:.0f} MB")
    if len(own) < len(layers):
        grids = sorted({layer.grid for layer in layers if layer not in own}, reverse=True)
        of = ", ".join(f"{h} x {w}" for h, w in grids)
        kept = "the last layer is" if len(own) == 1 else f"the last {len(own)} layers are"
        notes.append(f"of {len(layers)} layers {kept} kept: the others, on {of} patches, would take more than {most_bytes / 1e6:.0f} MB")
    return notes


# ── one picture ───────────────────────────────────────────────────────────────────────────────────────────────


def _of_picture(plain: nn.Module, image: Tensor, i: int, plan: Plan) -> dict[str, np.ndarray]:
    """The arrays of picture i. Layers of one grid are recorded together."""
    arrays: dict[str, np.ndarray] = {}
    for grid in dict.fromkeys(layer.grid for layer in plan.layers):
        own = [(place, layer) for place, layer in enumerate(plan.layers) if layer.grid == grid]
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {place: [] for place, _ in own}
        patches = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
        cost = sum(4 * layer.heads * layer.keys for _, layer in own)
        size = max(1, CHUNK_BYTES // cost)
        for start in range(0, len(patches), size):
            found = _recorded(plain, image, patches[start : start + size], [layer for _, layer in own], plan.averaged)
            for place, layer in own:
                parts[place].append(_on_patches(found[layer.module]))
        for place, _ in own:
            rows, rest = (torch.cat(both, dim=1) for both in zip(*parts[place], strict=True))
            arrays |= _quantised(rows, rest, f"{i}/{place}")
    classed = [(place, layer) for place, layer in enumerate(plan.layers) if layer.class_token]
    if classed:
        found = _recorded(plain, image, "class", [layer for _, layer in classed], plan.averaged)
        arrays |= {f"class/{i}/{place}": found[layer.module].on_grid()[0, :, 0].flatten(1).float().cpu().numpy() for place, layer in classed}
    return arrays


def _recorded(plain: nn.Module, image: Tensor, rows: object, layers: Sequence[_Seen], averaged: bool) -> dict[str, Record]:
    """{module: its record} of one forward pass."""
    with record(plain, rows=rows, layers=[layer.module for layer in layers], heads="mean" if averaged else "each") as recording:  # type: ignore[arg-type]
        plain(image)
    wanted = {layer.module for layer in layers}
    return {r.module: r for r in recording.records if r.module in wanted}


def _on_patches(r: Record) -> tuple[Tensor, Tensor]:
    """((h, R, k) weights to the patches, (h, R) what went elsewhere)."""
    rows = r.on_grid()[0].flatten(2)
    if r.by_patch:  # in windows only padding is no patch
        return rows, (1.0 - rows.sum(-1)).clamp_min(0.0)
    return rows, r.weights[0, :, :, : len(r.geometry.prefix)].sum(-1)


def _quantised(rows: Tensor, rest: Tensor, where: str) -> dict[str, np.ndarray]:
    """The arrays of (h, q, k) weights: bytes that are shares of the largest of each row, and that largest."""
    scale = rows.amax(-1)
    shares = rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    return {
        f"rows/{where}": (shares * STEPS).round().to(torch.uint8).cpu().numpy(),
        f"scale/{where}": scale.float().cpu().numpy(),
        f"rest/{where}": rest.float().cpu().numpy(),
    }
