"""Losses over masks, as sums that are divided by the weight of the whole window.

Logits are (B, C, H, W); targets are (B, H, W) class indices, int64 or uint8, with one value (`ignored`) for pixels that count nowhere. Two kinds of terms:

- of pixels (cross_entropy, poly1, focal, poly1_focal): a sum over the valid pixels; its weight is their number, or the sum of their class weights.
- of images (dice, lovasz): one value for each image with a valid pixel; its weight is the number of such images. Both are ratios of sums over pixels, and a
  ratio over a whole batch is no sum over its parts: the gradient would depend on how the batch is cut into micro-batches. So they are taken per image.

A recipe's loss is a sum of terms with different weights, and the loop divides by one number. `window_weights` gives that number, and `pixel_loss` scales
each term so that the division makes it factor * sum / its own weight. An image without a valid pixel adds exactly 0, to the loss and to its gradient.

Everything is computed in float32, or float64 where the logits are. Sums stay in that type too: torch adds in blocks, and over the 8 million pixels of 32 masks
its float32 sum is right to the last digit, where one running sum is off by 0.6 percent. Only operations with a deterministic form on CUDA are used: the
log-probability of the label comes from nll_loss without a reduction (its sum and mean use atomicAdd), the cumulative sums of lovasz are of integers, its order
is put back by indices that are unique. docs/losses.md has the equations on one page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.errors import DataError, UsageError, did_you_mean

NOWHERE = -1  # label of an ignored pixel within this file; no class has it


@dataclass(frozen=True)
class Term:
    """One term of the loss and its factor. epsilon: poly1, poly1_focal; gamma: focal, poly1_focal."""

    name: str
    weight: float = 1.0
    epsilon: float = 1.0
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in PIXEL_TERMS and self.name not in IMAGE_TERMS:
            known = [*PIXEL_TERMS, *IMAGE_TERMS]
            raise UsageError(f"{self.name!r} is no loss over masks; there are {', '.join(known)}.{did_you_mean(self.name, known)}")


@dataclass(frozen=True)
class Weights:
    """What a window's sums are divided by. pixels: valid pixels, or their class weights; images: those with a valid pixel; total: what the loop divides by."""

    pixels: float
    images: float
    total: float


@dataclass(frozen=True)
class Labelled:
    """What the terms of pixels are made of, each (B, H, W) and 0 where the pixel is ignored.

    log_p: log-probability of the label; weight: its class weight, or 1; cross_entropy: with class weights and label smoothing.
    """

    log_p: Tensor
    weight: Tensor
    cross_entropy: Tensor

    @property
    def miss(self) -> Tensor:
        """(B, H, W) 1 - p of the label; at least the smallest normal number, because 0 ** gamma has no finite gradient for gamma < 1."""
        return (-torch.expm1(self.log_p)).clamp(min=torch.finfo(self.log_p.dtype).tiny)


def window_weights(targets: Tensor, terms: Sequence[Term], *, ignored: int, class_weights: Tensor | None) -> Weights:
    """Weights of a whole window, all its micro-batches together, from its (n, H, W) targets.

    total is that of the pixels where a term is of pixels, else that of the images; 1 where nothing counts, so that the loss is 0 and not 0 / 0.
    Raises DataError for a target that has no class weight.
    """
    valid = targets != ignored
    pixels, images = float(torch.count_nonzero(valid)), float(torch.count_nonzero(valid.flatten(1).any(1)))
    if class_weights is not None and pixels:
        counts = torch.bincount(targets[valid])
        if len(counts) > len(class_weights):
            raise DataError(_beyond(targets, len(class_weights), ignored))
        pixels = float((counts * class_weights[: len(counts)].to(counts.device, torch.float64)).sum())
    total = pixels if any(term.name in PIXEL_TERMS for term in terms) else images
    return Weights(pixels, images, total or 1.0)


def pixel_loss(
    logits: Tensor,
    targets: Tensor,
    terms: Sequence[Term],
    *,
    ignored: int,
    class_weights: Tensor | None,
    label_smoothing: float,
    weights: Weights,
) -> Tensor:
    """() loss of a micro-batch, summed: divided by `weights.total` and added up over the window it is sum_k factor_k * sum_k / weight_k.

    logits: (B, C, H, W); targets: (B, H, W), int64 or uint8; class_weights: (C,) of the terms of pixels; label_smoothing: of cross_entropy and the
    cross-entropy within poly1; weights: of the whole window (`window_weights`). float32, or float64 where the logits are.
    Raises UsageError for shapes that do not fit, DataError for a target that is no class (terms of pixels on a GPU: CUDA's own assertion).
    """
    _check_shapes(logits, targets, class_weights)
    log_p = F.log_softmax(logits, dim=1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    valid = targets != ignored
    of_images = [term for term in terms if term.name in IMAGE_TERMS]
    if of_images or not targets.is_cuda:  # asking a GPU means waiting for it: only where its counts are waited for anyway
        lowest, highest = targets.masked_fill(~valid, 0).aminmax()
        if lowest < 0 or highest >= logits.shape[1]:
            raise DataError(_beyond(targets, logits.shape[1], ignored))
    labels = targets.long().masked_fill(~valid, NOWHERE)
    sums = []
    of_pixels = [term for term in terms if term.name in PIXEL_TERMS]
    if of_pixels:
        labelled = _labelled(log_p, labels, valid, class_weights, label_smoothing)
        scale = weights.total / weights.pixels if weights.pixels else 0.0
        sums += [PIXEL_TERMS[term.name](labelled, term).sum() * (term.weight * scale) for term in of_pixels]
    if of_images:
        scale = weights.total / weights.images if weights.images else 0.0
        sums.append(_image_terms(log_p.exp(), labels, of_images) * scale)
    return torch.stack(sums).sum()


def kept_floats(terms: Sequence[Term], num_classes: int) -> int:
    """float32 numbers that autograd keeps for each pixel of a batch, by the tensors of the functions below; the test counts them as they run."""
    C, names = num_classes, {term.name for term in terms}
    image = 2 * C if names & IMAGE_TERMS.keys() else 0
    lovasz = -(-C // 4) + (C if "dice" in names else 0) if "lovasz" in names else 0  # signs are bytes
    return C + sum(_KEPT.get(name, 0) for name in names) + image + lovasz


def check_terms(terms: Sequence[Term], *, class_weights: Tensor | None, label_smoothing: float) -> None:
    """Raises UsageError where a setting would do nothing: class weights without a term of pixels, label smoothing without a cross-entropy."""
    names = ", ".join(term.name for term in terms)
    if not terms:
        raise UsageError("a loss needs at least one term")
    if class_weights is not None and all(term.name in IMAGE_TERMS for term in terms):
        raise UsageError(
            f"class weights are for {', '.join(PIXEL_TERMS)}; {names} gives every class of an image the same share: add one of those, or leave them out"
        )
    if label_smoothing and not any(term.name in SMOOTHED for term in terms):
        raise UsageError(f"label smoothing is for {' and '.join(SMOOTHED)}; {names} would not see it: add one of those, or set it to 0")


def median_frequency_weights(pixels: Tensor) -> Tensor:
    """(C,) float32 weights median(freq) / freq_c, the median over the classes that occur; absent classes get 0.

    pixels: (n, C) labelled pixels of each class in each image. freq_c is the share of class c in the images that show it, not in all of them
    (Eigen and Fergus 2015, section 6.3.2), so that a class is not taken for rare because few images have it.
    """
    totals = pixels.sum(0)  # (C,)
    present = totals > 0
    if not present.any():
        return torch.zeros(pixels.shape[1])
    shown_in = ((pixels > 0) * pixels.sum(1, keepdim=True)).sum(0)  # (C,) all labelled pixels of the images with class c
    frequency = totals[present].double() / shown_in[present]
    weights = torch.zeros(pixels.shape[1])
    weights[present] = (frequency.quantile(0.5) / frequency).float()  # quantile, not median, which takes the lower of the middle two
    return weights


def _labelled(log_p: Tensor, labels: Tensor, valid: Tensor, class_weights: Tensor | None, smoothing: float) -> Labelled:
    """Of each pixel what its label's terms need. log_p: (B, C, H, W)."""
    of_label = -F.nll_loss(log_p, labels, ignore_index=NOWHERE, reduction="none")  # (B, H, W); 0 where ignored
    weight = valid.to(log_p.dtype)
    if class_weights is not None:
        class_weights = class_weights.to(log_p)
        weight = weight * class_weights[labels.clamp(min=0)]
    cross_entropy = -weight * of_label
    if smoothing:
        # (1 - eps) one-hot + eps / C (Szegedy et al. 2016, eq. 7); class weights go with the class of each summand, as in torch.
        spread = (log_p if class_weights is None else log_p * class_weights[:, None, None]).sum(1)
        cross_entropy = (1.0 - smoothing) * cross_entropy - smoothing / log_p.shape[1] * torch.where(valid, spread, 0.0)
    return Labelled(of_label, weight, cross_entropy)


def _cross_entropy(pixels: Labelled, _: Term) -> Tensor:
    """(B, H, W) -w log p_t."""
    return pixels.cross_entropy


def _poly1(pixels: Labelled, term: Term) -> Tensor:
    """(B, H, W) w (-log p_t + epsilon (1 - p_t)) (Leng et al. 2022, eq. 6)."""
    return pixels.cross_entropy + term.epsilon * pixels.weight * pixels.miss


def _focal(pixels: Labelled, term: Term) -> Tensor:
    """(B, H, W) -w (1 - p_t)^gamma log p_t (Lin et al. 2017, eq. 4)."""
    return -pixels.weight * pixels.miss**term.gamma * pixels.log_p


def _poly1_focal(pixels: Labelled, term: Term) -> Tensor:
    """(B, H, W) focal + w epsilon (1 - p_t)^(gamma + 1) (Leng et al. 2022, Poly-1 of the focal loss)."""
    return _focal(pixels, term) + term.epsilon * pixels.weight * pixels.miss ** (term.gamma + 1.0)


def _image_terms(p: Tensor, labels: Tensor, terms: Sequence[Term]) -> Tensor:
    """() sum over images and terms of factor * mean over the classes in the image's mask. p: (B, C, H, W) probabilities.

    One class of one image at a time: it stays in the cache, and a class that is not in the mask costs nothing.
    """
    B, C = p.shape[:2]
    places = (labels + 1).flatten(1) + (C + 1) * torch.arange(B, device=labels.device)[:, None]  # ignored pixels come first of each image
    counts = torch.bincount(places.flatten(), minlength=B * (C + 1)).view(B, C + 1)[:, 1:].tolist()
    values = []
    for of_classes, label, count in zip(p.flatten(2).unbind(0), labels.flatten(1), counts, strict=True):
        valid, rows = (label != NOWHERE).to(p.dtype), of_classes.unbind(0)
        present = [c for c, n in enumerate(count) if n]
        losses = []
        for c in present:
            hits = label == c
            losses += [term.weight * IMAGE_TERMS[term.name](rows[c], hits, valid, count[c]) for term in terms]
        # Without a valid pixel 0, and still part of the graph.
        values.append(torch.stack(losses).sum() / len(present) if present else of_classes[:, :0].sum())
    return torch.stack(values).sum()


def _dice(p: Tensor, hits: Tensor, valid: Tensor, count: int) -> Tensor:
    """() 1 - 2 sum p t / (sum p + sum t) over the valid pixels of an image (Milletari et al. 2016, without squares).

    Nothing is added to numerator or denominator: a class that is in the mask has sum t >= 1.
    """
    return 1.0 - 2.0 * (p * hits.to(p.dtype)).sum() / ((p * valid).sum() + count)


def _lovasz(p: Tensor, hits: Tensor, valid: Tensor, count: int) -> Tensor:
    """() Lovász extension of the Jaccard loss, at the errors |t - p| of a class in an image (Berman et al. 2018, algorithm 1)."""
    errors = torch.where(hits, 1.0 - p, p)
    with torch.no_grad():  # within one order of the errors the extension is linear, and this vector g is its gradient
        # The bits of a float >= 0 are ordered like the float, and integers are sorted some eight times faster. Equal errors keep the order of the pixels.
        falling = errors.view(torch.int32 if errors.dtype == torch.float32 else torch.int64).bitwise_not()
        order = falling.masked_fill_(valid == 0, 0).sort(stable=True).indices  # ignored pixels go last
        hit = hits.gather(0, order)
        missed = hit.cumsum(0)  # int64: exact, and deterministic on a GPU
        union = (torch.arange(count + 1, count + 1 + len(order), device=order.device) - missed).to(p.dtype)
        # What a pixel adds to 1 - intersection / union, without the difference of two numbers near 1: one of the class takes
        # 1 from the intersection, any other adds 1 to the union. An ignored one finds an empty intersection and adds 0.
        adds = torch.where(hit, 1.0 / union, (count - missed) / (union * (union - 1.0)))
        g = torch.empty_like(adds).scatter_(0, order, adds)
    return (errors * g).sum()


def _check_shapes(logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> None:
    if logits.ndim != 4 or targets.shape != (logits.shape[0], *logits.shape[2:]):
        raise UsageError(f"a loss over masks takes logits (B, C, H, W) and targets (B, H, W), got {tuple(logits.shape)} and {tuple(targets.shape)}")
    if targets.dtype not in (torch.int64, torch.uint8):
        raise UsageError(f"targets are class indices, int64 or uint8, got {targets.dtype}")
    if class_weights is not None and class_weights.shape != (logits.shape[1],):
        raise UsageError(f"class_weights holds one number for each of {logits.shape[1]} classes, got {tuple(class_weights.shape)}")


def _beyond(targets: Tensor, num_classes: int, ignored: int) -> str:
    """Message that names the targets that are no class, with their pixels."""
    values, counts = targets.unique(return_counts=True)
    wrong = [f"{value} ({n} pixels)" for value, n in zip(values.tolist(), counts.tolist(), strict=True) if value != ignored and not 0 <= value < num_classes]
    return f"targets hold {', '.join(wrong[:10])}; with {num_classes} classes they go from 0 to {num_classes - 1}, and {ignored} where a pixel is ignored"


# Names as recipes give them.
PIXEL_TERMS: dict[str, Callable[[Labelled, Term], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "poly1": _poly1,
    "focal": _focal,
    "poly1_focal": _poly1_focal,
}
IMAGE_TERMS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {"dice": _dice, "lovasz": _lovasz}
SMOOTHED = ("cross_entropy", "poly1")
_KEPT = {"cross_entropy": 3, "poly1": 6, "focal": 9, "poly1_focal": 13, "dice": 1}  # besides the logarithms of all classes
