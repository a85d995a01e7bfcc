"""Networks of self-supervised pre-training: a backbone, a projector behind it, and what a method puts beside them.

`module(images)` gives the backbone's features (B, D), which is what a pre-trained network is used for; `module(first, second)` the loss (B,) of two
views of each image; `module.projections(images)` what the loss compares. Heads are those of the papers; BatchNorm keeps torch's settings (momentum
0.1, epsilon 1e-5), which are theirs too. The target of BYOL begins as a copy of the online network.

  Byol      Grill et al. 2020: online and target network, predictor, the target a moving average of the online one
  SimClr    Chen et al. 2020: two views of an image among all views of the batch
  SimSiam   Chen and He 2021: predictor and stopped gradient
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from pellucid.models.synchronized import of_all_processes
from pellucid.view_losses import contrastive, negative_cosine, squared_distance


def perceptron(widths: Sequence[int], *, last_norm: bool = False, last_scale: bool = True, hidden_bias: bool = True, last_bias: bool = False) -> nn.Sequential:
    """Linear layers between `widths`, each but the last with BatchNorm and ReLU.

    last_norm: BatchNorm behind the last one too, last_scale: with scale and shift. Biases stand where the paper's code has them.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=hidden_bias), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_scale))
    return nn.Sequential(*layers)


def target_momentum(start: float, step: int, total_steps: int) -> float:
    """Share of the target that step `step` (from 0) of `total_steps` keeps: 1 - (1 - start) (cos(pi k / K) + 1) / 2 (Grill et al. 2020, sec. 3.3)."""
    return 1.0 - (1.0 - start) * (math.cos(math.pi * step / total_steps) + 1.0) / 2.0


class SelfSupervised(nn.Module, ABC):
    """A backbone that gives (B, D), and a projector; a method adds its loss."""

    # Paths of parts that no gradient moves.
    untrained: tuple[str, ...] = ()
    backbone: nn.Module
    projector: nn.Module

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor, second: Tensor | None = None) -> Tensor:
        """Features (B, D) of images (B, 3, H, W); of two views of each the loss (B,), float32."""
        return self.backbone(images) if second is None else self.loss(images, second)

    def projections(self, images: Tensor) -> Tensor:
        """(B, P) projections of images (B, 3, H, W), not normalised."""
        return self.projector(self.backbone(images))

    @abstractmethod
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) float32 loss of two views of each image."""

    def after_step(self, step: int, total_steps: int) -> None:
        """Move what no gradient moves, after the optimiser's step `step` (from 0) of a run of `total_steps`."""


class Byol(SelfSupervised):
    """Bootstrap your own latent. The views go through each network one after the other, so that BatchNorm never sees both.

    predictor_hidden None: no predictor. stop_gradient False: the online network stands on both sides and gradients flow through both; there is no target.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        projector_hidden: int,
        projector_output: int,
        predictor_hidden: int | None,
        momentum: float,
        stop_gradient: bool,
    ) -> None:
        super().__init__(backbone, perceptron([num_features, projector_hidden, projector_output]))
        hidden = predictor_hidden
        self.predictor = nn.Identity() if hidden is None else perceptron([projector_output, hidden, projector_output])
        self.momentum = momentum
        self.target: nn.Sequential | None = deepcopy(nn.Sequential(self.backbone, self.projector)) if stop_gradient else None
        self.untrained = ("target",) if stop_gradient else ()
        if self.target is not None:
            self.target.requires_grad_(False)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) the squared distances of both predictions from the other view's target, added up (eq. 2 and below it)."""
        projected = self.projections(first), self.projections(second)
        if self.target is None:
            targets = projected
        else:
            with torch.no_grad():  # in training mode: the target's BatchNorm takes the statistics of its own batch
                targets = self.target(first), self.target(second)
        return squared_distance(self.predictor(projected[0]), targets[1]) + squared_distance(self.predictor(projected[1]), targets[0])

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """target <- momentum target + (1 - momentum) online, of parameters (eq. 1); running statistics stay the target's own."""
        if self.target is not None:
            online: list[Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
            torch._foreach_lerp_(list(self.target.parameters()), online, 1.0 - target_momentum(self.momentum, step, total_steps))


class SimClr(SelfSupervised):
    """A simple framework for contrastive learning. Both views go through the network as one batch, as in the paper's code.

    Under `models.synchronized` an image is told from those of all processes. The projector's last BatchNorm has a scale and a shift; in the authors' code it
    has no shift (`center=False`).
    """

    def __init__(self, backbone: nn.Module, num_features: int, *, projector_hidden: int | None, projector_output: int, temperature: float) -> None:
        super().__init__(backbone, perceptron([num_features, projector_hidden or num_features, projector_output], last_norm=True))
        self.temperature = temperature

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) the mean of the two cross-entropies of each image (eq. 1)."""
        one, two = self.projections(torch.cat([first, second])).chunk(2)
        keys, offset = of_all_processes(torch.stack([one, two], dim=1))  # (M, 2, P)
        return contrastive(one, two, self.temperature, keys=(keys[:, 0], keys[:, 1]), offset=offset)


class SimSiam(SelfSupervised):
    """Simple Siamese networks: each view's prediction is compared with the other's projection, which no gradient moves."""

    def __init__(
        self, backbone: nn.Module, num_features: int, *, projector_hidden: int, projector_output: int, predictor_hidden: int | None, stop_gradient: bool
    ) -> None:
        widths = [num_features, projector_hidden, projector_hidden, projector_output]
        super().__init__(backbone, perceptron(widths, last_norm=True, last_scale=False, hidden_bias=False))
        hidden = predictor_hidden
        self.predictor = nn.Identity() if hidden is None else perceptron([projector_output, hidden, projector_output], hidden_bias=False, last_bias=True)
        self.stop_gradient = stop_gradient

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) half the sum of both negative cosines (eq. 2 and 4)."""
        projected = self.projections(first), self.projections(second)
        targets = tuple(projection.detach() for projection in projected) if self.stop_gradient else projected
        return (negative_cosine(self.predictor(projected[0]), targets[1]) + negative_cosine(self.predictor(projected[1]), targets[0])) / 2
