"""What really happened in a training: hooks of torch that record samples and gradients, and the gradient by definition, in float64.

bench/exactness.py puts every loop under them; none of them is asked for anything or knows that it is watched.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

SIDE = 32  # pixels
NETWORK = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}

# ── what all of them train, and its definition ────────────────────────────────────────────────────────────────


def scenes(n: int) -> tuple[np.ndarray, Tensor]:
    """(n, 32, 32, 3) uint8 drawn scenes, all different, and (n,) labels: Pellucid's training split of that size under seed 1."""
    from pellucid.data.sources import load_dataset
    from pellucid.recipe import DataSection

    split = load_dataset(DataSection(source="scenes", train=n, image_size=SIDE), seed=1).splits["train"]
    return np.stack([np.asarray(split.open(row)) for row in range(n)]), torch.from_numpy(split.labels)


def inputs(images: np.ndarray) -> Tensor:
    """(n, 3, 32, 32) float32 in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def network() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=6, img_size=SIDE, **NETWORK)


def gradient(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy at the module's weights, flat."""
    parameters = list(module.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(module(x), y), parameters)])


def sam_gradient(module: nn.Module, x: Tensor, y: Tensor, rho: float) -> Tensor:
    """The gradient at w + rho g / |g| (Foret et al. 2021, eq. 2); the module is left there."""
    g = gradient(module, x, y)
    with torch.no_grad():
        moved = nn.utils.parameters_to_vector(module.parameters()) + rho * g / g.norm()
        nn.utils.vector_to_parameters(moved, module.parameters())
    return gradient(module, x, y)


@dataclass(frozen=True)
class Step:
    """An optimiser step: rows of the samples since the step before, the gradient that it took (flat, float64), the network before it."""

    rows: list[int]
    gradient: Tensor
    network: nn.Module


class Watch:
    """Records every optimiser step in its `with` block, whoever takes it."""

    def __init__(self, images: np.ndarray, on_step: Callable[[int], None] = lambda step: None) -> None:
        self._row_of = {image.tobytes(): row for row, image in enumerate(images)}
        self._on_step = on_step
        self._rows: list[int] = []
        self._network: nn.Module | None = None
        self._before: nn.Module | None = None
        self.steps: list[Step] = []

    def __enter__(self) -> Watch:
        self._handles = [nn.modules.module.register_module_forward_pre_hook(self._forward), register_optimizer_step_post_hook(self._step)]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, VisionTransformer) and module.training and not arguments[0].is_meta:
            pixels = (arguments[0].detach().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
            if not self._rows:
                self._network, self._before = module, copy.deepcopy(module).double()
            self._rows += [self._row_of[image.tobytes()] for image in pixels]

    def _step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # After the step, because some run forward and backward inside of it, as its closure; the gradients are still there.
        assert self._network is not None
        assert self._before is not None
        flat = torch.cat([p.grad.flatten().double() for p in self._network.parameters() if p.grad is not None])
        self.steps.append(Step(self._rows, flat, self._before))
        self._rows = []
        self._on_step(len(self.steps))

    @property
    def rows(self) -> list[int]:
        """The samples of all steps, in order."""
        return [row for step in self.steps for row in step.rows]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def beside_definition(step: Step, images: np.ndarray, labels: Tensor) -> str:
    """Relative error of a step's gradient, and its size over that of the definition."""
    x, y = inputs(images)[step.rows].double(), labels[step.rows]
    expected = gradient(step.network, x, y)
    return f"error {relative_error(step.gradient, expected):.1e}, size {float(step.gradient.norm() / expected.norm()):.2f}"


def seen(rows: Iterable[int], n: int) -> str:
    """Samples of an epoch over n that were seen more than once / never."""
    counts = Counter(rows)
    return f"{sum(count > 1 for count in counts.values())} / {n - len(counts)}"


def same(values: Sequence[Any]) -> str:
    different = len(set(values))
    return "equal bits" if different == 1 else f"{different} different results of {len(values)}"


def bits(module: nn.Module) -> str:
    return hashlib.blake2b(b"".join(p.detach().numpy().tobytes() for p in module.parameters()), digest_size=8).hexdigest()
