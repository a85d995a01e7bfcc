"""Activation checkpointing of any model as it is: blocks keep their input alone and compute the rest again in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost". Memory falls to one input for each block and the inside
of one block; a step computes its forward pass twice. The gradient has the same bits: dropout draws again what it drew
(torch keeps the generator's state), and the running statistics of BatchNorm, which a second pass would move twice, are
put back after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pellucid.models.synchronized import as_now
from pellucid.models.weights import under

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def blocks(module: nn.Module) -> list[str]:
    """Paths of the repeated parts: members of Sequentials and ModuleLists that have parts themselves.

    Of nested ones the outermost that is no mere stage, that is, does not hold a list of further blocks.
    """
    return list(_blocks(module, ""))


def _blocks(module: nn.Module, path: str) -> Iterator[str]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        member = isinstance(module, _CONTAINERS) and type(child) not in _CONTAINERS
        if member and _depth(child) >= 1 and len(list(child.modules())) > 2 and any(True for _ in child.parameters()) and not _is_stage(child):
            yield child_path
        else:
            yield from _blocks(child, child_path)


def _is_stage(module: nn.Module) -> bool:
    return any(_depth(member) >= 2 for part in module.modules() if isinstance(part, _CONTAINERS) for member in part.children())


def _depth(module: nn.Module) -> int:
    """Levels of parts below a module."""
    return max((1 + _depth(child) for child in module.children()), default=0)


def recompute_blocks(module: nn.Module, untrained: Sequence[str] = ()) -> list[str]:
    """Let every block of the module compute its activations again in the backward pass; their paths, [] when it has no blocks.

    untrained: paths of parts that have no backward pass, and whose blocks are left as they are.
    """
    found = [path for path in blocks(module) if not under(path, untrained)]
    for path in found:
        block = module.get_submodule(path)
        block.forward = _recomputed(block, block.forward)  # type: ignore[method-assign]
    return found


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _second_pass(block, as_now())), **kwargs)

    return again


@contextmanager
def _second_pass(block: nn.Module, surroundings: AbstractContextManager[None]) -> Iterator[None]:
    """The second pass stands in what the first one stood in, and leaves running statistics as they are."""
    saved = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        with surroundings:
            yield
    finally:
        for buffer, old in saved:
            buffer.data.copy_(old)  # .data: autograd has them on its list, though training mode does not read them
