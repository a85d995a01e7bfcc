"""Losses as sums over samples together with the weight they carry.

Here those over labels; `pixel_losses` has those over masks. A loss returns (sum, weight) and never a mean: the loop divides
by the weight of the whole window, so that the gradient does not depend on how a batch is cut into micro-batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -100  # in the place of a token that is not there


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """(B, C) float32 one-hot targets of (B,) labels."""
    return F.one_hot(labels, num_classes).to(torch.float32)


def cross_entropy(logits: Tensor, targets: Tensor, *, class_weights: Tensor | None, label_smoothing: float) -> Tensor:
    """Sum over the batch of -sum_c w_c t'_c log p_c with t' = (1 - eps) t + eps / C (Szegedy et al. 2016, eq. 7).

    logits: (B, C); targets: (B, C) rows that sum to 1 (one-hot, or mixed by mixup and CutMix). Computed in float32.
    Divided by `target_weight(targets)` it equals torch's weighted mean for hard targets; for soft targets torch divides
    by B instead, which gives a rare class less than its weight.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    smoothed = targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[1]
    if class_weights is not None:
        smoothed = smoothed * class_weights
    return -(smoothed * log_p).sum()


def token_cross_entropy(logits: Tensor, tokens: Tensor, *, label_smoothing: float) -> Tensor:
    """Sum over the tokens of `cross_entropy` with hard targets; PADDING in their place count nowhere.

    logits: (R, T, V); tokens: (R, T) int64. Computed in float32.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), ignore_index=PADDING, reduction="sum", label_smoothing=label_smoothing)


def target_weight(targets: Tensor, class_weights: Tensor | None) -> float:
    """Sum over the batch of sum_c w_c t_c: what the summed loss is divided by; B without class weights."""
    if class_weights is None:
        return float(targets.shape[0])
    return float((targets * class_weights).sum(dtype=torch.float64))


def balanced_class_weights(counts: Tensor) -> Tensor:
    """(C,) float32 weights n / (C_present * n_c): inverse frequency, mean 1 over the samples; absent classes get 0."""
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp(min=1).double())
    return torch.where(present, weights, torch.zeros_like(weights)).float()
