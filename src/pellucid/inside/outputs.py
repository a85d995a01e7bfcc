"""What a model hands out, as logits: libraries return tensors, tuples, mappings or output objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import UsageError


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: the tensor itself, `.logits`, `["logits"]`, `["out"]`, or the first tensor of a tuple."""
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(output, Mapping):
        for key in ("logits", "out"):
            if isinstance(output.get(key), Tensor):
                return torch.as_tensor(output[key])
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UsageError(f"expected a model that returns logits (a tensor, .logits, or a tuple that starts with them), got {type(output).__name__}")
