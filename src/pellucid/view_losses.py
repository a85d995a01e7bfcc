"""Losses of self-supervised pre-training: what two views of each image say of each other. One value for each image; the loop divides their sum.

In float32 at least, whatever the precision of the forward pass.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def _precise(values: Tensor) -> Tensor:
    """In float32, or in float64 where it was."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _products(rows: Tensor, others: Tensor) -> Tensor:
    """(B, M) of rows (B, P) with others (M, P), in their own precision: autocast would multiply matrices in 16 bits."""
    device = rows.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():  # meta has none
        return rows @ others.T


def negative_cosine(predictions: Tensor, projections: Tensor) -> Tensor:
    """(B,) minus the cosine of predictions (B, P) with projections (B, P) (Chen and He 2021, eq. 1)."""
    return -F.cosine_similarity(_precise(predictions), _precise(projections), dim=1)


def squared_distance(predictions: Tensor, projections: Tensor) -> Tensor:
    """(B,) squared distance of the unit vectors of predictions (B, P) and projections (B, P): 2 - 2 cos (Grill et al. 2020, eq. 2)."""
    return 2 + 2 * negative_cosine(predictions, projections)


def contrastive(first: Tensor, second: Tensor, temperature: float, *, keys: tuple[Tensor, Tensor] | None = None, offset: int = 0) -> Tensor:
    """(B,) NT-Xent of projections (B, P) of two views: the mean of its two cross-entropies, each view against all others (Chen et al. 2020, eq. 1).

    keys: the projections (M, P) of both views of all images that count as the others, where they are more than these; `offset` is the row of the first
    of these images among them. An image's own view is left out of its denominator.
    """
    first, second = F.normalize(_precise(first), dim=1), F.normalize(_precise(second), dim=1)
    others = (first, second) if keys is None else tuple(F.normalize(_precise(key), dim=1) for key in keys)
    rows = torch.arange(len(first), device=first.device) + offset  # of these images among the keys
    losses = []
    for own, (same, other) in ((first, others), (second, others[::-1])):
        similar = _products(own, same) / temperature  # (B, M): with the same view of other images
        similar = similar.scatter(1, rows[:, None], float("-inf"))  # an image is no other of itself
        logits = torch.cat([_products(own, other) / temperature, similar], dim=1)  # (B, 2 M); the positive stands in column `rows`
        losses.append(F.cross_entropy(logits, rows, reduction="none"))
    return (losses[0] + losses[1]) / 2
