"""Attention of any PyTorch model, recorded while it runs: `with record(model) as rec: model(images)`.

The model is neither edited nor subclassed, keeps its fused kernels and gives the same bits (`intercept` says how). Only the wanted query
rows are computed, so memory grows with rows and not with the square of the tokens. An attention module that ran and was not seen is an
error that names it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.errors import UsageError, did_you_mean
from pellucid.inside.calls import AttentionCall
from pellucid.inside.geometry import WORDS, Geometry, geometry_of, prefix_tokens
from pellucid.inside.intercept import ATTENTION, NO_ATTENTION, Sight, watching

ROWS = ("class", "last", "mean", "all")
CHUNK = 64  # query rows at once where only a mean of them or of their heads is kept

Rows = Literal["class", "last", "mean", "all"] | Sequence[int] | Sequence[tuple[int, int]]
Layers = Literal["last"] | str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class Record:
    """The attention of one layer in one forward pass.

    weights: (B, h, R, K) float32 on the model's device, h = 1 for the mean of the heads; each row sums to 1 over the keys (0 where a mask hides all, NaN
    for queries that padding removed). In windows, B is that of the images times their windows, except for given patches.
    module: path of the module. call: number of its forward pass, which is the step of a decoder; index: of several attentions within one.
    kind: "self" or "cross". rows: the query positions, or "mean" or "all". geometry: where the keys lie; queries: where the queries lie.
    """

    module: str
    call: int
    index: int
    kind: str
    weights: Tensor
    rows: tuple[int, ...] | Literal["mean", "all"]
    geometry: Geometry
    queries: Geometry
    by_patch: bool = False  # rows of given patches, gathered from the windows that hold them

    @property
    def heads(self) -> int:
        """Number of heads, that of the queries where keys are shared."""
        return self.weights.shape[1]

    def on_grid(self) -> Tensor:
        """(B, h, R, gh, gw): attention over the patches of the image, tokens before the patches left out."""
        if self.by_patch:
            return _patches_on_grid(self)
        return self.geometry.on_grid(self.weights, mean=self.rows == "mean")


@dataclass
class Recording:
    """What `record` hands out: the records in the order of the computation."""

    records: list[Record] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """Paths of the recorded modules, in the order in which they first ran."""
        return list(dict.fromkeys(r.module for r in self.records))

    def of(self, module: str) -> list[Record]:
        """The records of one module, by its path."""
        found = [r for r in self.records if r.module == module]
        if not found:
            raise UsageError(f"no attention of {module!r} was recorded.{did_you_mean(module, self.layers)} Recorded: {', '.join(self.layers) or 'nothing'}.")
        return found


@contextmanager
def record(
    model: nn.Module, rows: Rows = "class", layers: Layers = None, *, heads: Literal["each", "mean"] = "each", ignore: Sequence[str] = ()
) -> Iterator[Recording]:
    """Record attention of `model` while the block runs.

    rows: which queries. "class" the class token's; "last" the last one's, which at a decoding step is the word being found; "mean" the mean over all patches;
    "all"; a sequence of token positions (negative from the end); or of patches (row, column).
    layers: None for all; "last"; numbers of attention modules in the model's order (negative from the end); paths, or patterns such as "blocks.*.attn".
    heads: "each", or their "mean" as one head, which needs less memory for many rows. ignore: patterns of attention modules that need not be seen.

    Raises UsageError when the block ends: an attention module ran and was not seen, a wanted layer never ran, or nothing was recorded; and before, when the
    model has no class token.
    """
    declared = prefix_tokens(model)
    _check_rows(rows, declared)
    wanted = _wanted(model, layers)
    recording = Recording()
    states: list[Sight] = []

    def on_call(call: AttentionCall) -> None:
        if wanted is None or any(fnmatch.fnmatchcase(path, pattern) for pattern in wanted for path in (call.module, *call.modules)):
            found = _recorded(_Averaged(call) if heads == "mean" else call, states[0], rows, declared)
            if found is not None:
                recording.records.append(found)

    with watching(model, on_call) as sight:
        states.append(sight)
        yield recording
    _check_coverage(sight, recording, wanted, ignore, rows)


def attention_modules(model: nn.Module) -> list[str]:
    """Paths of the modules that are called attention and hold no other that is, in the model's order."""
    named = [path for path, m in model.named_modules() if ATTENTION.search(type(m).__name__) and not NO_ATTENTION.search(type(m).__name__)]
    leaves = [path for path in named if not any(other.startswith(f"{path}.") for other in named)]
    return [".".join(part for part in path.split(".") if part != "_orig_mod") for path in leaves]


# ── one attention ─────────────────────────────────────────────────────────────────────────────────────────────


class _Averaged:
    """An attention call whose heads are averaged, a few rows at a time."""

    def __init__(self, call: AttentionCall) -> None:
        self._call = call
        self.module, self.call, self.index, self.kind, self.modules = call.module, call.call, call.index, call.kind, call.modules
        self.shape = (call.shape[0], 1, *call.shape[2:])

    def probabilities(self, rows: Tensor | None = None) -> Tensor:
        """(B, 1, R, K) float32."""
        wanted = torch.arange(self.shape[2]) if rows is None else rows
        return torch.cat([self._call.probabilities(part).mean(1, keepdim=True) for part in wanted.split(CHUNK)], dim=2)


def _recorded(call: AttentionCall | _Averaged, sight: Sight, rows: Rows, declared: tuple[str, ...]) -> Record | None:
    """The record of an attention; None where it has no such rows (class tokens of words)."""
    B, _, N, K = call.shape
    words = any(WORDS.search(path) for path in call.modules)
    # Words are no patches, however many they are; what they look at in cross-attention may be, once for each beam.
    queries = Geometry(N) if words else geometry_of(sight, call.modules, N, declared, batch=B)
    keys = queries if N == K and call.kind == "self" else Geometry(K) if words and call.kind == "self" else geometry_of(sight, call.modules, K, declared)
    chosen: tuple[int, ...] | Literal["mean", "all"]
    if rows == "class":
        place = None if words else _class_row(N, queries, keys, declared, windowed=_images(sight, B) != B)
        if place is None:
            return None
        chosen, weights = (place,), call.probabilities(torch.tensor([place]))
    elif rows == "all":
        chosen, weights = "all", call.probabilities()
    elif rows == "mean":
        chosen, weights = "mean", _window_means(call, queries) if queries.windows is not None else _mean(call, range(len(queries.prefix), N))
    elif rows == "last":
        chosen, weights = (N - 1,), call.probabilities(torch.tensor([N - 1]))
    else:
        return _given(call, rows, queries, keys)  # type: ignore[arg-type]
    return Record(call.module, call.call, call.index, call.kind, weights, chosen, keys, queries)


def _images(sight: Sight, otherwise: int) -> int:
    """How many images the present pass has, by its first convolution."""
    return sight.maps[0][2] if sight.maps else otherwise


def _class_row(count: int, queries: Geometry, keys: Geometry, declared: tuple[str, ...], *, windowed: bool) -> int | None:
    """Where the class token stands among the queries; alone where it is asked apart from the patches.

    Where the patches' layout is not known the token's place is: tokens before the patches stand first. None in windows.
    """
    if count == 1 and keys.grid is not None:
        return 0
    if queries.grid is not None:
        return queries.class_token
    return declared.index("class") if count > len(declared) and not windowed else None


def _mean(call: AttentionCall | _Averaged, rows: range) -> Tensor:
    """(B, h, 1, K): the mean over query rows, a few at a time; without those that padding removed, which are NaN."""
    total = torch.zeros(())
    there = torch.zeros(())
    for start in range(rows.start, rows.stop, CHUNK):
        part = call.probabilities(torch.arange(start, min(start + CHUNK, rows.stop)))
        present = ~part[..., :1].isnan()
        total = part.masked_fill(~present, 0.0).sum(2, keepdim=True) + total.to(part.device)
        there = present.sum(2, keepdim=True) + there.to(part.device)
    return total / there


def _window_means(call: AttentionCall | _Averaged, geometry: Geometry) -> Tensor:
    """(B windows, h, 1, K): the mean over the patches of each window, padding left out; 0 in a window of padding alone."""
    assert geometry.windows is not None
    weights = call.probabilities()
    real = torch.from_numpy(geometry.windows.places()[..., 0] >= 0).to(weights)  # (windows, K)
    share = real / real.sum(1, keepdim=True).clamp_min(1)
    return (weights.unflatten(0, (-1, len(real))) * share[:, None, :, None]).sum(3, keepdim=True).flatten(0, 1)


def _given(call: AttentionCall | _Averaged, rows: Sequence[int] | Sequence[tuple[int, int]], queries: Geometry, keys: Geometry) -> Record | None:
    N = call.shape[2]
    positions = []
    for row in rows:
        if isinstance(row, tuple):
            if queries.grid is None:
                return None
            if not (0 <= row[0] < queries.grid[0] and 0 <= row[1] < queries.grid[1]):
                raise UsageError(f"rows: patch {row} lies outside the grid of {queries.grid[0]} x {queries.grid[1]} patches of {call.module}")
            positions.append(row[0] * queries.grid[1] + row[1] + len(queries.prefix))
        elif not -N <= row < N:
            raise UsageError(f"rows: {call.module} has {N} queries, there is no row {row}")
        else:
            positions.append(row % N)
    if queries.windows is not None and any(isinstance(row, tuple) for row in rows):
        return _window_rows(call, tuple(positions), queries)
    return Record(call.module, call.call, call.index, call.kind, call.probabilities(torch.tensor(positions)), tuple(positions), keys, queries)


def _window_rows(call: AttentionCall | _Averaged, patches: tuple[int, ...], geometry: Geometry) -> Record:
    """Rows of given patches, each from the window that holds it: weights (B, h, R, K)."""
    assert geometry.windows is not None
    assert geometry.grid is not None
    places = geometry.windows.places()
    flat = places[..., 0] * geometry.grid[1] + places[..., 1]
    split = call.probabilities().unflatten(0, (-1, len(places)))  # (B, windows, h, K, K)
    found = []
    for patch in patches:
        window, token = np.nonzero((places[..., 0] >= 0) & (flat == patch))
        found.append(split[:, int(window[0]), :, int(token[0])])
    return Record(call.module, call.call, call.index, call.kind, torch.stack(found, dim=2), patches, geometry, geometry, by_patch=True)


def _patches_on_grid(r: Record) -> Tensor:
    """(B, h, R, gh, gw) of rows that are given patches of a windowed layer."""
    windows, grid = r.geometry.windows, r.geometry.grid
    assert windows is not None
    assert grid is not None
    places = torch.from_numpy(windows.places())
    flat = torch.where(places[..., 0] >= 0, places[..., 0] * grid[1] + places[..., 1], -1)
    out = r.weights.new_zeros((*r.weights.shape[:3], grid[0] * grid[1] + 1))
    for i, patch in enumerate(int(row) for row in r.rows):
        window = int(torch.nonzero((flat - patch == 0).any(1))[0])
        out[:, :, i].index_add_(-1, flat[window].remainder(grid[0] * grid[1] + 1).to(out.device), r.weights[:, :, i])
    return out[..., :-1].unflatten(-1, grid)


# ── what was asked for, and whether it was seen ───────────────────────────────────────────────────────────────


def _check_rows(rows: Rows, declared: tuple[str, ...]) -> None:
    if isinstance(rows, str):
        if rows not in ROWS:
            raise UsageError(f"rows: expected one of {', '.join(ROWS)}, token positions or patches (row, column); got {rows!r}.{did_you_mean(rows, ROWS)}")
        if rows == "class" and "class" not in declared:
            raise UsageError('rows="class": the model has no class token (no parameter of that name). Use rows="mean", over all patches, or positions.')
    elif not rows:
        raise UsageError("rows: expected at least one position")


def _wanted(model: nn.Module, layers: Layers) -> list[str] | None:
    """Patterns of the wanted paths; None for all."""
    if layers is None:
        return None
    given = [layers] if isinstance(layers, (str, int)) else list(layers)
    modules = attention_modules(model)
    paths = [".".join(p for p in path.split(".") if p != "_orig_mod") for path, _ in model.named_modules()]
    found = []
    for layer in given:
        if layer == "last" or isinstance(layer, int):
            number = -1 if layer == "last" else int(layer)
            if not modules:
                raise UsageError("layers: the model has no module that is called attention. Is it a convolutional network? Use grad_cam, or give paths.")
            if not -len(modules) <= number < len(modules):
                raise UsageError(f"layers: the model has {len(modules)} attention modules, there is no number {number}")
            found.append(modules[number])
        elif not fnmatch.filter(paths, str(layer)):
            raise UsageError(f"layers: the model has no module {layer!r}.{did_you_mean(str(layer), paths)} Attention modules: {_few(modules)}.")
        else:
            found.append(str(layer))
    return found


def _check_coverage(sight: Sight, recording: Recording, wanted: list[str] | None, ignore: Sequence[str], rows: Rows) -> None:
    unseen = {path: kind.__name__ for path, kind in sight.unseen().items() if not any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore)}
    if wanted is not None:
        unseen = {p: k for p, k in unseen.items() if any(fnmatch.fnmatchcase(p, pattern) or p.startswith(f"{pattern}.") for pattern in wanted)}
    if unseen:
        named = _few([f"{path} ({kind})" for path, kind in unseen.items()])
        raise UsageError(
            f"attention that ran could not be recorded: {named}. It reaches its values by another way than scaled_dot_product_attention, "
            "multi-head attention or softmax and a product: flex_attention, an own kernel, TorchScript or another thread. Choose an implementation that "
            'does (transformers: attn_implementation="sdpa" or "eager"; timm: set_fused_attn), or leave these layers out by name with ignore=[...].'
        )
    idle = [pattern for pattern in wanted or [] if not any(fnmatch.fnmatchcase(path, pattern) for path in (*sight.seen, *sight.passes))]
    if recording.records and not idle:
        return
    if recording.records:
        raise UsageError(f"layers: {_few(idle)} never ran inside the block. Recorded: {_few(recording.layers)}.")
    if sight.scripted:
        raise UsageError(f"nothing was recorded: {_few(sorted(sight.scripted)) or 'the model'} is TorchScript, which hands nothing out. Load the Python model.")
    if not sight.passes:
        raise UsageError("nothing was recorded: the model did not run inside the block. Call it there, in the same thread.")
    if sight.seen:
        what = "of a class token on an image" if rows == "class" else f"for rows {rows!r}"
        raise UsageError(f'nothing was recorded: attention ran in {_few(sorted(sight.seen))}, but none {what}. Give positions, or rows="mean".')
    raise UsageError("nothing was recorded: no attention ran in this model. Is it a convolutional network? Use grad_cam.")


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
