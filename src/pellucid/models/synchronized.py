"""BatchNorm whose statistics are taken over all processes of a run, for any model as it is.

Within `synchronized_batch_norm` every call of torch.nn.functional.batch_norm in training mode, whichever layer makes it,
takes mean and variance over the images of all processes together (count, mean and sum of squares of each are gathered
once, and combined by Chan, Golub and LeVeque 1983, eq. 2.1), and its gradient adds up what the others say of the shared
statistics. N processes then compute what one process computes on the whole (Ioffe and Szegedy 2015, alg. 1).

torch.nn.SyncBatchNorm does the same on GPUs alone, replaces the layers (and so loses the activation that timm's
BatchNormAct2d holds), and has no way for a process to take part without an image.

Slower than a fused kernel: some ten elementwise operations in float32 and two small messages for each layer and pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pellucid.distributed import others_may_end


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) with statistics over all processes; without scale and shift.

    counted: whether this process's images count; a process without images of its own takes part with one that does not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, counted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.ndim)]
        values = x if x.dtype == torch.float64 else x.float()
        count = values.numel() // values.shape[1] if counted else 0
        mean = values.mean(dims)
        squares = (values - _column(mean, x)).square().sum(dims)
        own = torch.cat([mean * bool(counted), squares * bool(counted), mean.new_tensor([float(count)])])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        with others_may_end():
            dist.all_gather(every, own)
        means, sums, counts = (part.double() for part in torch.stack(every).split([len(mean), len(mean), 1], dim=1))
        total = counts.sum()
        if total <= 1:
            raise ValueError("Expected more than 1 value per channel when training, over all processes together")
        joint = (means * counts).sum(0) / total
        var = (sums.sum(0) + (counts * (means - joint).square()).sum(0)) / total
        mean, var = joint.to(mean.dtype), var.to(mean.dtype)
        inverse = torch.rsqrt(var + eps)
        out = (values - _column(mean, x)) * _column(inverse, x)
        ctx.save_for_backward(out, inverse)
        ctx.total, ctx.counted, ctx.dtype = float(total), counted, x.dtype
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        out, inverse = ctx.saved_tensors
        gradient = gradients[0].to(out.dtype)
        dims = [0, *range(2, out.ndim)]
        sums = torch.stack([gradient.sum(dims), (gradient * out).sum(dims)]) * bool(ctx.counted)
        with others_may_end():
            dist.all_reduce(sums)
        shared = (_column(sums[0], out) + out * _column(sums[1], out)) / ctx.total * bool(ctx.counted)  # an image that does not count moves no statistic
        return ((gradient - shared) * _column(inverse, out)).to(ctx.dtype), None, None


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    counted: bool = True,
) -> Tensor:
    """F.batch_norm over all processes; the running statistics follow the joint ones, the variance without bias."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    out, mean, var, total = _Normalize.apply(input, eps, counted)  # type: ignore[no-untyped-call]
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
    if weight is not None:
        out = out * _column(weight.to(out.dtype), out)
    if bias is not None:
        out = out + _column(bias.to(out.dtype), out)
    return out.to(input.dtype)


class _Synchronized(TorchFunctionMode):
    def __init__(self, counted: bool) -> None:
        super().__init__()
        self._counted = counted

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return batch_norm(*args, **(kwargs or {}), counted=self._counted)
        return func(*args, **(kwargs or {}))


_active: list[bool] = []  # `counted` of each block that is entered


@contextmanager
def synchronized_batch_norm(*, counted: bool = True) -> Iterator[None]:
    """Within the block BatchNorm in training mode takes its statistics over all processes; each must pass the same layers.

    counted=False: the images of this process do not count, it only takes part.
    """
    _active.append(counted)
    try:
        with _Synchronized(counted):
            yield
    finally:
        _active.pop()


def as_now() -> AbstractContextManager[None]:
    """A block in which BatchNorm is synchronised if it is now: for what is computed again in the backward pass.

    There the block's own mode is off, because torch switches a function mode off within the call that it handles.
    """
    return synchronized_batch_norm(counted=_active[-1]) if _active else nullcontext()


class _Gather(torch.autograd.Function):
    """Rows of all processes behind each other; the gradient of a process's rows is the sum of what all processes say of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: counts[rank]] = rows[: counts[rank]]
        every = [torch.empty_like(padded) for _ in counts]
        with others_may_end():
            dist.all_gather(every, padded)
        ctx.counts, ctx.rank, ctx.own = counts, rank, len(rows)
        return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        gradient = gradients[0].contiguous()
        with others_may_end():
            dist.all_reduce(gradient)
        start, count = sum(ctx.counts[: ctx.rank]), ctx.counts[ctx.rank]
        own = gradient.new_zeros(ctx.own, *gradient.shape[1:])
        own[:count] = gradient[start : start + count]
        return own, None, None


def of_all_processes(rows: Tensor) -> tuple[Tensor, int]:
    """(rows (M, ...) of all processes that count, index of this one's first) where BatchNorm is synchronised, else the rows (B, ...) themselves and 0.

    A process whose images do not count finds its own behind those of the others.
    """
    if not _active:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    with others_may_end():
        dist.all_gather(counts, torch.tensor([len(rows) if _active[-1] else 0], device=rows.device))
    sizes, rank = [int(count) for count in counts], dist.get_rank()
    every: Tensor = _Gather.apply(rows, sizes, rank)  # type: ignore[no-untyped-call]
    if not _active[-1]:
        return torch.cat([every, rows.detach()]), sum(sizes)
    return every, sum(sizes[:rank])
