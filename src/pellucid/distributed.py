"""Many processes that train one model under torchrun: who they are, and the few things that they say to each other.

Each process takes its share of every window, sums its gradient, and the sums are added up over all processes, so that
N processes give the gradient of one. This is plain torch.distributed and not DistributedDataParallel: DDP reduces during
the backward pass, where a process that runs out of memory leaves the others waiting for ever, and it regroups its
buckets after the first step, so that a resumed run of three processes or more would sum in another order than an
unbroken one. Here the reduction follows the backward pass, in buckets that never change (docs/decisions.md).

A group of one (`ALONE`) says nothing to anybody and costs nothing.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pellucid.errors import PellucidError, UsageError

BUCKET_BYTES = 25 * 2**20
PATIENCE = datetime.timedelta(minutes=60)  # the first process may decode a data set while the others wait


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. rank in [0, size); local: number on this machine, of local_size."""

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place; all processes get the same bits."""
        if self.alone:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with others_may_end():
                dist.all_reduce(flat)
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def largest(self, *values: float) -> list[float]:
        """Of each value the largest that a process has; values are small numbers on the host."""
        if self.alone:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        with others_may_end():
            dist.all_reduce(together, op=dist.ReduceOp.MAX)
        return together.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process in order of rank, for the first; [] elsewhere."""
        if self.alone:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        with others_may_end():
            dist.gather_object(value, values)
        return values or []

    def told(self, value: Any) -> Any:
        """The value of the first process, everywhere."""
        if self.alone:
            return value
        box = [value]
        with others_may_end():
            dist.broadcast_object_list(box)
        return box[0]

    def wait(self) -> None:
        """Until every process has come here."""
        self.largest(0.0)

    @contextmanager
    def one_at_first(self) -> Iterator[None]:
        """The block runs in the first process of each machine, then in the others: what it downloads or decodes is there for them."""
        if not self.alone and self.local != 0:
            self.wait()
        yield
        if not self.alone and self.local == 0:
            self.wait()

    def share(self, n: int, least: int = 1) -> tuple[int, int]:
        """(start, stop) of this process in n things: contiguous, sizes at most one apart.

        Where there are fewer than `least` for each process, the last processes get none.
        """
        takers = max(1, min(self.size, n // least))
        if self.rank >= takers:
            return n, n
        return self.rank * n // takers, (self.rank + 1) * n // takers


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those that torchrun started, connected for the block; ALONE without torchrun.

    Host tensors travel by gloo, device tensors by NCCL. A group that the caller has set up already is used as it is.
    """
    if dist.is_available() and dist.is_initialized():
        yield _this_process()
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} are not set. Start several processes with torchrun.")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield _this_process()
    finally:
        dist.destroy_process_group()


def _this_process() -> Processes:
    return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, as many of one dtype and device as fit into a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        number = tensor.numel() * tensor.element_size()
        if bucket and (size + number > BUCKET_BYTES or tensor.dtype != bucket[0].dtype or tensor.device != bucket[0].device):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += number
    if bucket:
        yield bucket


@contextmanager
def others_may_end() -> Iterator[None]:
    """A broken connection means that another process of the run has ended; it has said why."""
    try:
        yield
    except RuntimeError as error:  # dist.DistError is one
        if not any(word in str(error).lower() for word in ("connection", "peer", "socket", "timed out", "timeout", "gloo", "nccl", "abort")):
            raise
        raise PellucidError(f"another process of this run ended, so this one stops too ({str(error).splitlines()[0]})") from None
