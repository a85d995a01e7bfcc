"""Position embeddings: the cosine similarity of every position with every other, as a grid of grids (Dosovitskiy 2020, fig. 7).

The embedding is found by its name among the parameters and buffers of any timm, torchvision or transformers model; rows before the
patches (class, distillation, register tokens) are dropped by count. Models that hold their positions otherwise say so: relative
ones (Swin, BEiT) hand out the bias that they add to the logits, rotary ones (EVA-02, DINOv3) turn queries and keys and hold nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pellucid.errors import UsageError, did_you_mean
from pellucid.inside import relative

Grid = tuple[int, int]

NAMES = ("pos_embed", "pos_embedding", "position_embedding", "position_embeddings", "positional_embedding", "pos_emb", "absolute_pos_embed")
MAX_PREFIX = 16  # rows before the patches: a class token, a distillation token, registers
MAX_PREFIX_GUESSED = 5  # where no part of the model tells its grid: more left-over rows may as well mean another grid
MAX_POSITIONS = 10_000  # whose similarities are 400 MB
_NOT_OF_IMAGES = re.compile(r"text|decoder|language", re.IGNORECASE)  # parts of a model whose positions are those of words, or of an output
_ROTARY = re.compile(r"Rotary|RoPE|Rope")
_ANTIALIASED = ("timm.", "transformers.models.dinov2_with_registers.")  # libraries that interpolate with antialias


@dataclass(frozen=True)
class Positions:
    """What a model knows of places before it looks.

    similarity: (gh, gw, gh, gw) float32 in [-1, 1], at [i, j] the map of position (row i, column j); None where there is no embedding.
    kind: "learned", "fixed" (sine-cosine), "interpolated" (either, on another grid than the stored one), "relative", "rotary" or "none".
    parameter: path of the embedding, "" for none; prefix: rows dropped in front; grid: (rows, columns) of `similarity`.
    bias: {module path: (h, 2 wh - 1, 2 ww - 1) float32}, see `relative.bias_tables`; empty where the model adds none. how: a sentence.
    """

    similarity: NDArray[np.float32] | None
    kind: str
    parameter: str
    prefix: int
    grid: Grid | None
    bias: dict[str, NDArray[np.float32]]
    how: str


def position_similarity(model: nn.Module, *, grid: Grid | None = None, parameter: str | None = None) -> Positions:
    """Cosine similarity of every position embedding with every other, or in words why there is none.

    grid: (rows, columns) to show. By default that of the stored embedding, as the model says it (patch_embed.grid_size, or image size over
    patch size); on another one the embedding is interpolated as the model's library does. Where the model does not tell, the stored
    embedding is read on `grid` if its rows fit, or else as a square, which `how` says. parameter: path of the embedding, where its name is not one of NAMES.

    UsageError: no such parameter; rows that are no grid; a grid of more than MAX_POSITIONS.
    """
    if grid is not None and (len(grid) != 2 or min(grid) < 1):
        raise UsageError(f"expected a grid (rows, columns) of at least 1 x 1, got {grid}")
    bias, is_relative = relative.bias_tables(model), relative.is_relative(model)
    found = _find(model) if parameter is None else [_named(model, parameter)]
    rotary = any(_ROTARY.search(type(module).__name__) for module in model.modules())
    if not found:
        return _without(bias, is_relative=is_relative, rotary=rotary)
    path, stored = found[0]
    rows, stored_grid, prefix, told = _rows(model, path, stored, grid)
    shown = stored_grid if grid is None else grid
    if math.prod(shown) > MAX_POSITIONS:
        raise UsageError(f"{path}: the similarities of {shown[0]} x {shown[1]} positions do not fit; give a grid of at most {MAX_POSITIONS:,} positions")
    kind = "fixed" if _is_fixed(model, path, rows) else "learned"
    how = f"Cosine similarity of {path}: {kind}, {stored_grid[0]} x {stored_grid[1]} positions of {rows.shape[1]} numbers"
    how += {0: "", 1: "; the first row belongs to no patch and is left out"}.get(prefix, f"; the first {prefix} rows belong to no patch and are left out")
    how += "" if told else "; the model does not tell its grid, so the rows were read as this one"
    if shown != stored_grid:
        antialias = _owner(model, path).startswith(_ANTIALIASED)
        rows, kind = interpolate(rows, stored_grid, shown, antialias=antialias), "interpolated"
        how += f"; interpolated to {shown[0]} x {shown[1]} (bicubic, {'with' if antialias else 'without'} antialias, as the model's library does)"
    how += "".join(f". {also}" for also in _besides(found[1:], bias, rotary=rotary)) + "."
    return Positions(_cosines(rows, shown), kind, path, prefix, shown, bias, how)


def interpolate(rows: Tensor, old: Grid, new: Grid, *, antialias: bool) -> Tensor:
    """Embeddings (old gh * old gw, D) on another grid, (new gh * new gw, D) float32: bicubic, corners not aligned."""
    image = rows.float().reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, gh, gw)
    return F.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=antialias).permute(0, 2, 3, 1).flatten(0, 2)


def _cosines(rows: Tensor, grid: Grid) -> NDArray[np.float32]:
    # An embedding of zeros has no direction: its similarity is 0, with itself as well.
    unit = F.normalize(rows.double(), dim=1, eps=1e-12)
    return (unit @ unit.T).clamp(-1.0, 1.0).float().cpu().numpy().reshape(*grid, *grid)


# ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _find(model: nn.Module) -> list[tuple[str, Tensor]]:
    """(path, value) of what is named like a position embedding of images, in the model's order."""
    rotary = {path for path, module in model.named_modules() if _ROTARY.search(type(module).__name__)}
    found = []
    for path, value in [*model.named_parameters(), *model.named_buffers()]:
        *above, name = path.split(".")
        if name == "weight" and above and isinstance(model.get_submodule(".".join(above)), nn.Embedding):
            name = above[-1]
        inside_rotary = any(".".join(above[: i + 1]) in rotary for i in range(len(above)))
        if re.sub(r"_\d+$", "", name) in NAMES and value.ndim in (2, 3, 4) and not inside_rotary and not any(_NOT_OF_IMAGES.search(part) for part in above):
            found.append((path, value.detach()))
    return found


def _named(model: nn.Module, path: str) -> tuple[str, Tensor]:
    known = dict([*model.named_parameters(), *model.named_buffers()])
    if path not in known:
        raise UsageError(f"{path}: expected the path of a parameter or buffer of the model.{did_you_mean(path, known)}")
    return path, known[path].detach()


def _rows(model: nn.Module, path: str, stored: Tensor, grid: Grid | None) -> tuple[Tensor, Grid, int, bool]:
    """An embedding (N, D), (1, N, D), (1, gh, gw, D) or (1, D, gh, gw) as its patch rows (gh * gw, D), their grid, the rows dropped in front,
    and whether the model told the grid."""
    told = list(_told_grids(model, path))
    if stored.ndim == 4 and stored.shape[0] == 1:
        image = stored[0] if _channels_last(stored, told) else stored[0].permute(1, 2, 0)  # (gh, gw, D)
        size = (image.shape[0], image.shape[1])
        if size not in (*told, grid) and size[0] != size[1]:  # NesT's (1, blocks, rows of a block, D) looks like an image
            raise UsageError(f"{path}: shape {tuple(stored.shape)} is no grid that the model tells; if it is one, give it: grid=({size[0]}, {size[1]})")
        return image.flatten(0, 1), size, 0, True
    if stored.ndim not in (2, 3) or stored.shape[:-2] not in ((), (1,)):
        raise UsageError(f"{path}: expected a position embedding of shape (N, D), (1, N, D) or (1, gh, gw, D), got {tuple(stored.shape)}")
    rows = stored.flatten(0, -2)
    side = math.isqrt(len(rows))
    guesses = [*([grid] if grid else []), (side, side)]
    for candidates, most in ((told, MAX_PREFIX), (guesses, MAX_PREFIX_GUESSED)):
        for candidate in candidates:
            prefix = len(rows) - math.prod(candidate)
            if 0 <= prefix <= most:
                return rows[prefix:], candidate, prefix, candidates is told
    tried = ", ".join(f"{gh} x {gw}" for gh, gw in dict.fromkeys([*told, *guesses]))
    raise UsageError(
        f"{path}: {len(rows)} rows are no grid of patches after a few rows for class, distillation and register tokens (tried {tried}); "
        "give the one that it was stored on: grid=(rows, columns)"
    )


def _channels_last(stored: Tensor, told: list[Grid]) -> bool:
    """Whether (1, a, b, c) is (1, gh, gw, D): by the grid that the model tells, by the square, and last by the larger side, which is D's."""
    _, a, b, c = stored.shape
    last, first = (a, b), (b, c)
    if (last in told) != (first in told):
        return last in told
    if (a == b) != (b == c):
        return a == b
    return c >= a


def _told_grids(model: nn.Module, path: str) -> Iterator[Grid]:
    """Grids that the modules around a parameter tell, nearest first: `grid_size` of their patch embedding, or image size over patch size."""
    parts = path.split(".")[:-1]
    for i in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:i]))
        config = getattr(module, "config", None)
        around = [getattr(module, name, None) for name in ("patch_embed", "patch_embeddings")]
        for teller in (*around, module, config, getattr(config, "vision_config", None)):
            if size := _pair(getattr(teller, "grid_size", None)):
                yield size
            image, patch = _pair(getattr(teller, "image_size", None)), _pair(getattr(teller, "patch_size", None))
            if image and patch:
                yield image[0] // patch[0], image[1] // patch[1]


def _pair(value: Any) -> Grid | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return int(value[0]), int(value[1])
    return None


def _is_fixed(model: nn.Module, path: str, rows: Tensor) -> bool:
    """Whether nobody trained it: a buffer, or a frozen parameter of sine-cosine pairs, each row of which has squared norm D / 2.

    Frozen alone says nothing: people freeze whole models.
    """
    trained = dict(model.named_parameters()).get(path)
    if trained is None:
        return True
    squared = rows.double().square().sum(dim=1)
    return not trained.requires_grad and bool((squared - rows.shape[1] / 2).abs().max() <= 1e-3 * rows.shape[1])


def _owner(model: nn.Module, path: str) -> str:
    """Python module of the class that holds a parameter; of the one above for an nn.Embedding."""
    parts = path.split(".")[:-1]
    while parts and type(model.get_submodule(".".join(parts))).__module__.startswith("torch.nn"):
        parts.pop()
    return type(model.get_submodule(".".join(parts))).__module__


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _besides(others: list[tuple[str, Tensor]], bias: dict[str, NDArray[np.float32]], *, rotary: bool) -> Iterator[str]:
    if others:
        yield f"Not shown: {', '.join(path for path, _ in others)}"
    if bias:
        yield f"The model also adds a relative-position bias in {len(bias)} layers"
    if rotary:
        yield "The model also turns its queries and keys by their place (rotary)"


def _without(bias: dict[str, NDArray[np.float32]], *, is_relative: bool, rotary: bool) -> Positions:
    if is_relative:
        unread = ", made from the queries (as MViT does) or laid out in a way that is not read here: there is no table to show"
        shown = f"; shown is the bias of each head by offset in {len(bias)} layers" if bias else unread
        return Positions(None, "relative", "", 0, None, bias, f"The model has no position embedding: it adds a relative-position bias to its logits{shown}.")
    if rotary:
        how = "The model has no position embedding: it turns its queries and keys by their place (rotary). There is nothing to show."
        return Positions(None, "rotary", "", 0, None, {}, how)
    how = f"No position embedding was found: no parameter or buffer is named {', '.join(NAMES)}, no layer is known to be relative or rotary. "
    how += "A model without attention needs none; an embedding of another name is taken by its path: parameter=..."
    return Positions(None, "none", "", 0, None, {}, how)
