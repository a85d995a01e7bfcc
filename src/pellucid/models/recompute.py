"""Activation checkpointing of any model as it is: blocks keep their input alone and compute the rest again in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost". Memory falls to one input for each block and the inside
of one block; a step computes its forward pass twice. The gradient has the same bits: dropout draws again what it drew
(torch keeps the generator's state), and the running statistics of BatchNorm, which a second pass would move twice, are
put back after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def blocks(module: nn.Module) -> list[str]:
    """Paths of the repeated parts: members of plain Sequentials and ModuleLists that have parts themselves, the outermost of them."""
    return list(_blocks(module, ""))


def _blocks(module: nn.Module, path: str) -> Iterator[str]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        compound = sum(1 for part in child.modules() if not any(True for _ in part.children())) > 1
        if type(module) in _CONTAINERS and type(child) not in _CONTAINERS and compound and any(True for _ in child.parameters()):
            yield child_path
        else:
            yield from _blocks(child, child_path)


def recompute_blocks(module: nn.Module) -> list[str]:
    """Let every block of the module compute its activations again in the backward pass; their paths, [] when it has no blocks."""
    found = blocks(module)
    for path in found:
        block = module.get_submodule(path)
        block.forward = _recomputed(block, block.forward)  # type: ignore[method-assign]
    return found


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_kept(block)), **kwargs)

    return again


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """The second pass leaves running statistics as they are."""
    saved = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, old in saved:
            buffer.data.copy_(old)  # .data: autograd has them on its list, though training mode does not read them
