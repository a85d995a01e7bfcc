"""Bilinear up-sampling as two matrix products, so that its gradient is the same in every run.

The backward pass of torch's own (F.interpolate, mode bilinear) adds with atomics on CUDA, in an order that changes from run to run. Here the weights of
the source rows and columns stand in two small matrices, y = R x Cᵀ, whose backward pass is again two products; cuBLAS computes these in one order under
the settings of a deterministic run. The weights come from integer arithmetic: each is exact to one rounding, whatever the size.

Numbers of fewer than 32 bits are computed in float32 with autocast off: a bfloat16 has 8 bits, which is less than the steps between neighbouring pixels
of an up-sampled logit need. `bilinear` returns float32 then; `deterministic_bilinear` gives the library's layers back the type that they handed in.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pellucid.errors import UsageError

_SIGNATURE = inspect.signature(F.interpolate)


def bilinear(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """`x` (B, C, h, w) or (C, h, w) at `size` (H, W), like F.interpolate(mode="bilinear"), in float32 at least.

    align_corners: whether the outermost samples lie on the outermost samples of `x`, not inside the outermost pixels. Down-sampling does not average.
    """
    _check(x, size)
    height, width = x.shape[-2:]
    with _without_autocast(x):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if (height, width) == tuple(size):
            return x
        rows = _weights(height, size[0], slice(None), align_corners, x)
        columns = _weights(width, size[1], slice(None), align_corners, x)
        return rows @ (x @ columns.mT)  # B, C, H, W


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """On the meta device, where memory is counted, there is none to switch off."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def upsampled_strips(logits: Tensor, size: tuple[int, int], *, most_elements: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, strip (C, rows, W)) of `logits` (C, h, w) at `size` (H, W), top to bottom, float32 at least.

    A strip has at most `most_elements` numbers, or one row. Up to rounding it is what `bilinear` computes; at their own size the logits come as they are.
    """
    _check(logits, size)
    channels, height, width = logits.shape
    rows_at_once = max(1, most_elements // (channels * size[1]))
    for top in range(0, size[0], rows_at_once):
        rows = slice(top, min(top + rows_at_once, size[0]))
        yield top, logits[:, rows] if (height, width) == tuple(size) else _strip(logits, size, rows)


def _strip(logits: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """The rows of the up-sampled map, computed from the few rows of `logits` (C, h, w) that they lie between."""
    height, width = logits.shape[-2:]
    first, last = (min(max((2 * row + 1) * height - size[0], 0) // (2 * size[0]), height - 1) for row in (rows.start, rows.stop - 1))
    between = slice(first, min(last + 2, height))
    with _in_full_precision(logits):
        source = logits[:, between].to(torch.promote_types(logits.dtype, torch.float32))
        columns = _weights(width, size[1], slice(None), False, source)
        return _weights(height, size[0], rows, False, source)[:, between] @ (source @ columns.mT)  # C, rows, W


def _in_full_precision(x: Tensor) -> AbstractContextManager[Any]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()  # none for tensors without numbers (meta)


def _check(x: Tensor, size: tuple[int, int]) -> None:
    if x.ndim not in (3, 4) or not x.is_floating_point() or min(x.shape[-2:]) < 1 or min(size) < 1:
        raise UsageError(f"up-sampling: expected floats (B, C, h, w) or (C, h, w) and a size of at least 1x1, got {x.dtype} {tuple(x.shape)} to {tuple(size)}.")


def _weights(before: int, after: int, wanted: slice, align_corners: bool, like: Tensor) -> Tensor:
    """(n, before): how much of each of `before` samples goes into the `wanted` ones of `after` samples."""
    position = torch.arange(after, device=like.device)[wanted]
    if align_corners:  # i (before - 1) / (after - 1)
        numerator, denominator = position * (before - 1), max(after - 1, 1)
    else:  # (i + 1/2) before / after - 1/2, and the edge's own value beyond the edge
        numerator, denominator = ((2 * position + 1) * before - after).clamp(min=0), 2 * after
    lower = numerator // denominator
    share = (numerator % denominator).to(like.dtype) / denominator
    last = lower >= before - 1
    lower, share = lower.clamp(max=before - 1)[:, None], torch.where(last, 0, share)[:, None]
    source = torch.arange(before, device=like.device)
    return (source == lower) * (1 - share) + (source == lower + 1) * share


# ── in place of the library's ──
class _Deterministic(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate:
            given = _SIGNATURE.bind(*args, **kwargs)
            given.apply_defaults()
            if given.arguments["mode"] == "bilinear":
                return _instead(**given.arguments)
        return func(*args, **kwargs)


def _instead(
    input: Tensor,
    size: int | tuple[int, int] | None,
    scale_factor: float | tuple[float, float] | None,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
    **_: Any,
) -> Tensor:
    """`bilinear` for the arguments of F.interpolate."""
    if antialias:
        raise UsageError("antialiased bilinear resizing inside the model has no deterministic backward pass on CUDA. Choose another model.")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    else:
        scales = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
        exact = [length * scale for length, scale in zip(input.shape[-2:], scales, strict=True)]  # type: ignore[operator]
        height, width = math.floor(exact[0]), math.floor(exact[1])
        if (height, width) != tuple(exact) and not (align_corners or recompute_scale_factor):
            raise UsageError(
                f"bilinear resizing of {input.shape[-2]}x{input.shape[-1]} by the factor {scales} gives no whole pixels, and its gradient is not "
                "deterministic on CUDA. Choose another image_size."
            )
    return bilinear(input, (height, width), align_corners=bool(align_corners)).to(input.dtype)


_active: list[None] = []  # one for each block that is entered


@contextmanager
def deterministic_bilinear() -> Iterator[None]:
    """Within the block F.interpolate(mode="bilinear"), whichever layer calls it, is `bilinear`, in the type of its input.

    UsageError inside for what has no counterpart: antialiasing, and a factor that does not give whole pixels.
    """
    _active.append(None)
    try:
        with _Deterministic():
            yield
    finally:
        _active.pop()


def as_now() -> AbstractContextManager[None]:
    """A block in which up-sampling is deterministic if it is now: for what is computed again in the backward pass."""
    return deterministic_bilinear() if _active else nullcontext()
