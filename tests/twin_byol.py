"""Steps of BYOL from the paper's equations (Grill et al. 2020, sec. 3), on plain float64 tensors: none of our modules, no layer, no optimiser.

The network is the smallest that has all kinds of parts: a convolution without bias, BatchNorm, ReLU and a mean over the pixels. Names are those of
`models.self_supervised.Byol` around `backbone()`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

EPSILON, RUNNING = 1e-5, 0.1  # of BatchNorm: beside the variance, and the share of a batch in the running statistics
ONLINE, TARGET = ("backbone", "projector"), ("target.0", "target.1")
CHANNELS = 5


def backbone() -> nn.Module:
    """What the twin computes by hand."""
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@dataclass
class TwinByol:
    """state: {name: tensor} of the module, float64, moved by every step. rule: how a gradient becomes a step."""

    state: dict[str, Tensor]
    momentum: float
    rule: Literal["sgd", "lars"]
    lr: float
    weight_decay: float
    inertia: float = 0.9  # momentum of the optimiser
    trust: float = 0.001
    _moving: dict[str, Tensor] = field(default_factory=dict)

    def step(self, packs: Sequence[tuple[Tensor, Tensor]], k: int, total: int) -> float:
        """The mean loss over the images of all packs; afterwards the state is that after step k (from 0) of `total`."""
        trained = [name for name in self.state if not name.startswith("target.") and "running" not in name and "num_batches" not in name]
        for name in trained:
            self.state[name] = self.state[name].detach().requires_grad_()
        loss = sum((self._loss(*pack) for pack in packs), start=torch.zeros((), dtype=torch.float64)) / sum(len(first) for first, _ in packs)
        gradients = torch.autograd.grad(loss, [self.state[name] for name in trained])
        for name, gradient in zip(trained, gradients, strict=True):
            self.state[name] = self._moved(name, self.state[name].detach(), gradient)
        self._follow(k, total)
        return loss.item()

    def _loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Sum over images of |q(z) / |q(z)| - z' / |z'||^2, both ways (eq. 2 and below)."""
        predictions = [self._perceptron("predictor", self._projected(view, ONLINE)) for view in (first, second)]
        targets = [self._projected(view, TARGET).detach() for view in (first, second)]
        total = torch.zeros((), dtype=torch.float64)
        for prediction, target in zip(predictions, targets[::-1], strict=True):
            for q, z in zip(prediction, target, strict=True):
                total = total + ((q / q.pow(2).sum().sqrt() - z / z.pow(2).sum().sqrt()) ** 2).sum()
        return total

    def _projected(self, images: Tensor, network: tuple[str, str]) -> Tensor:
        stem, projector = network
        B, _, H, W = images.shape
        padded = torch.zeros(B, 3, H + 2, W + 2, dtype=torch.float64)
        padded[:, :, 1:-1, 1:-1] = images
        convolved = torch.zeros(B, CHANNELS, H, W, dtype=torch.float64)
        for row in range(3):
            for column in range(3):
                tap = self.state[f"{stem}.0.weight"][:, :, row, column]  # (C, 3)
                convolved = convolved + torch.einsum("bchw,dc->bdhw", padded[:, :, row : row + H, column : column + W], tap)
        features = self._normalized(f"{stem}.1", convolved).clamp(min=0).sum(dim=(2, 3)) / (H * W)
        return self._perceptron(projector, features)

    def _perceptron(self, name: str, x: Tensor) -> Tensor:
        """Linear, BatchNorm, ReLU, and linear without a bias (sec. 3.3)."""
        hidden = x @ self.state[f"{name}.0.weight"].T + self.state[f"{name}.0.bias"]
        return self._normalized(f"{name}.1", hidden).clamp(min=0) @ self.state[f"{name}.3.weight"].T

    def _normalized(self, name: str, x: Tensor) -> Tensor:
        """Batch normalisation (Ioffe and Szegedy 2015, alg. 1) over the images and pixels of this call alone."""
        columns = x.transpose(0, 1).flatten(1)  # (C, n)
        n = columns.shape[1]
        mean = columns.sum(dim=1) / n
        variance = ((columns - mean[:, None]) ** 2).sum(dim=1) / n
        for kind, value in (("mean", mean), ("var", variance * n / (n - 1))):
            self.state[f"{name}.running_{kind}"] = (1 - RUNNING) * self.state[f"{name}.running_{kind}"] + RUNNING * value.detach()
        self.state[f"{name}.num_batches_tracked"] = self.state[f"{name}.num_batches_tracked"] + 1
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = self.state[f"{name}.weight"] / (variance + EPSILON).sqrt()
        return (x - mean.view(shape)) * scale.view(shape) + self.state[f"{name}.bias"].view(shape)

    def _moved(self, name: str, weight: Tensor, gradient: Tensor) -> Tensor:
        """A weight after its step. Biases and BatchNorm, the vectors, know neither decay nor adaptation (sec. 3.3)."""
        if weight.ndim > 1:
            decayed = gradient + self.weight_decay * weight
            local = self.trust * weight.norm() / (gradient.norm() + self.weight_decay * weight.norm())  # You et al. 2017, alg. 1
            gradient = decayed * local if self.rule == "lars" else decayed
        self._moving[name] = self.inertia * self._moving.get(name, torch.zeros_like(weight)) + gradient
        return weight - self.lr * self._moving[name]

    def _follow(self, k: int, total: int) -> None:
        """target <- tau target + (1 - tau) online (eq. 1), tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2 (sec. 3.3)."""
        tau = 1 - (1 - self.momentum) * (math.cos(math.pi * k / total) + 1) / 2
        for stem, target in zip(ONLINE, TARGET, strict=True):
            for name in [name for name in self.state if name.startswith(f"{target}.") and name.endswith(("weight", "bias"))]:
                self.state[name] = tau * self.state[name] + (1 - tau) * self.state[stem + name.removeprefix(target)]
