"""Comparing a recording with weights that were found another way; the controls fail where heads or rows are mixed up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.inside.attention import Recording, record

CLOSE = 1e-5


def images(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size)


def sharpen(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights so large that heads and rows differ plainly."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.12)
    return model.eval()


def compare(recording: Recording, oracle: dict[str, list[Tensor]]) -> float:
    """Largest difference from {module: weights (B, h, N, K) of each call}; the controls fail where heads or rows are mixed up."""
    assert set(recording.layers) == set(oracle)
    worst = 0.0
    for module, expected in oracle.items():
        found = recording.of(module)
        assert [r.call for r in found] == list(range(len(expected)))
        for r, e in zip(found, expected, strict=True):
            assert r.weights.dtype == torch.float32
            assert r.weights.shape == e.shape, (module, r.weights.shape, e.shape)
            worst = max(worst, float((r.weights - e).abs().max()))
            assert float((r.weights.sum(-1) - 1).abs().max()) < CLOSE
            if e.shape[1] > 1:
                assert float((r.weights - e.roll(1, dims=1)).abs().max()) > 100 * CLOSE, f"{module}: the heads cannot be told apart"
            if e.shape[2] > 1 and e.shape[3] > 1:
                assert float((r.weights - e.roll(1, dims=2)).abs().max()) > 100 * CLOSE, f"{module}: the rows cannot be told apart"
    return worst


def check(model: nn.Module, oracle: Callable[[nn.Module], dict[str, list[Tensor]]], run: Callable[[nn.Module], Any]) -> Recording:
    """Run plainly, run recorded, compare outputs bit for bit and weights with the oracle; returns the recording of all rows."""
    with torch.no_grad():
        plain = run(model)
        with record(model, rows="all") as recording:
            seen = run(model)
    for a, b in zip(tensors(plain), tensors(seen), strict=True):
        assert torch.equal(a, b), "the outputs changed"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert compare(recording, oracle(copy.deepcopy(model))) < CLOSE
    return recording


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output if isinstance(output, (tuple, list)) else []
    return [t for v in values for t in tensors(v)]


def dropouts(pattern: str, run: Callable[[nn.Module], Any]) -> Callable[[nn.Module], dict[str, list[Tensor]]]:
    """An oracle from the model's own explicit path: what enters the dropout behind the softmax, by module path."""

    def oracle(model: nn.Module) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for m in model.modules():
            if hasattr(m, "fused_attn"):
                m.fused_attn = False
        for path, m in model.named_modules():
            if path.endswith(pattern):
                owner = path.rsplit(".", 1)[0]
                m.register_forward_hook(lambda _, args, out, owner=owner: found.setdefault(owner, []).append(args[0].float().clone()))
        with torch.no_grad():
            run(model)
        return found

    return oracle
