"""What a segmenter says of an image at the image's own size, in bounded memory, and how that compares with its mask.

An image goes through the model in the form in which it is stored (`data.fit`): in one pass where that is exactly `data.image_size`, else in overlapping
tiles of that size (`models.tiles`). Bars of `fit: pad` are cut off, the logits are brought to the size of the mask by bilinear interpolation, and only
then does each pixel take its largest class: scores are those of the mask as it was drawn, not of a shrunken copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pellucid.data.augment import Images, normalized
from pellucid.data.images import content_box
from pellucid.models.tiles import tiled
from pellucid.models.upsampling import upsampled_strips
from pellucid.overlap import pixel_confusion
from pellucid.palettes import IGNORED
from pellucid.predictions import CONFIDENCE_BINS

STRIP = 2**24  # numbers of a strip of logits at the size of the mask
Size = tuple[int, int]
Strip = tuple[int, Tensor]  # (first row, (C, rows, W) float32)
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """How an image reaches the model: the recipe's data.image_size, fit and resize_size, mean and std of RGB in [0, 1], scoring.tile_overlap."""

    size: Size
    fit: str
    resize_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    overlap: float


@dataclass
class FullSize:
    """The prediction for one image of (H, W) pixels. mask: uint8 class indices. confidence: float32, the probability of the predicted class.

    loss: sum over valid pixels in nats, NaN where logits are not finite; calibration: (15, 3), as in run.MaskPredictions; 0 without a mask to compare with.
    """

    mask: np.ndarray
    confidence: np.ndarray
    loss: float = 0.0
    calibration: np.ndarray = field(default_factory=lambda: np.zeros((CONFIDENCE_BINS, 3)))
    digest: bytes = bytes(16)

    def confusion(self, truth: np.ndarray, num_classes: int) -> np.ndarray:
        """(C + 1, C) int64: pixels of each class of the mask, ignored last, by predicted class."""
        return pixel_confusion(truth, self.mask, num_classes)


def predict_images(forward: Forward, images: Images, sizes: Sequence[Size], view: View, truths: Sequence[np.ndarray] | None = None) -> Iterator[FullSize]:
    """The prediction for each stored image at its own size (H, W); truths: their masks, with which they are compared.

    forward: normalised (b, 3, h, w) -> float32 logits (b, C, h, w). Images of exactly view.size go through it together.
    """
    whole = [i for i, shape in enumerate(images.shapes) if tuple(shape) == view.size]
    together = forward(normalized(torch.stack([images.view(i) for i in whole]), mean=view.mean, std=view.std)) if whole else None
    for i, size in enumerate(sizes):
        digest = hashlib.blake2b(digest_size=16)

        def seen(logits: Tensor, digest: hashlib.blake2b = digest) -> None:
            digest.update(logits.contiguous().cpu().numpy().tobytes())

        if together is not None and i in whole:
            logits = together[whole.index(i)]
            seen(logits)
            strips = _own_size(logits, size, view)
        else:
            strips = _tiled(forward, images.view(i), size, view, seen)
        found = _read(strips, size, None if truths is None else truths[i])
        found.digest = digest.digest()
        yield found


def _own_size(logits: Tensor, size: Size, view: View) -> Iterator[Strip]:
    """Strips at the image's own size of the logits (C, h, w) of its whole stored form."""
    top, left, height, width = content_box(size, view.size, view.fit, view.resize_size)
    return upsampled_strips(logits[:, top : top + height, left : left + width], size, most_elements=STRIP)


def _tiled(forward: Forward, pixels: Tensor, size: Size, view: View, seen: Callable[[Tensor], None]) -> Iterator[Strip]:
    """The same by tiles of view.size over stored pixels (3, H', W') uint8."""
    image = normalized(pixels[None], mean=view.mean, std=view.std)[0]
    strips = tiled(forward, image, tile=view.size, overlap=view.overlap, batch_size=1, seen=seen)
    if tuple(image.shape[1:]) == tuple(size):
        return strips
    return _own_size(torch.cat([rows for _, rows in strips], dim=1), size, view)


def _read(strips: Iterator[Strip], size: Size, truth: np.ndarray | None) -> FullSize:
    found = FullSize(np.empty(size, np.uint8), np.empty(size, np.float32))
    finite = True
    for top, logits in strips:
        rows = slice(top, top + logits.shape[1])
        best, predicted = logits.max(dim=0)  # (rows, W)
        total = torch.logsumexp(logits, dim=0)
        found.mask[rows] = predicted.to(torch.uint8).cpu().numpy()
        found.confidence[rows] = (best - total).exp().clamp(max=1.0).cpu().numpy()
        finite = finite and bool(torch.isfinite(total).all())
        if truth is not None:
            labels = torch.from_numpy(truth[rows].astype(np.int64)).to(logits.device)
            valid = labels != IGNORED
            own = logits.gather(0, labels.clamp(max=len(logits) - 1)[None])[0]
            found.loss += float(torch.where(valid, total - own, 0.0).sum(dtype=torch.float64))
    if truth is not None:
        valid = truth != IGNORED
        found.calibration = calibration_of(found.confidence[valid], (found.mask == truth)[valid])
    if not finite:
        found.loss = float("nan")
    return found


def calibration_of(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(15, 3) float64 of pixels (n,): in bins (k/15, (k+1)/15] of the confidence their number, the sum of confidence, and how many are right.

    As for images, confidence is rounded to 12 decimals first, so that 1/3 falls into one bin on every machine (`tasks.classification`).
    """
    confidence = confidence.astype(np.float64).round(12)
    bins = np.searchsorted(np.arange(1, CONFIDENCE_BINS) / CONFIDENCE_BINS, confidence, side="left")
    parts = [np.bincount(bins, weights, minlength=CONFIDENCE_BINS) for weights in (None, confidence, right.astype(np.float64))]
    return np.stack(parts, axis=1).astype(np.float64)
