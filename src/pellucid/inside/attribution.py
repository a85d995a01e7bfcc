"""How much each part of an image adds to the score of a class: the record, integrated gradients and occlusion.

The score is always the logit (before softmax). Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) and occlusion
(Zeiler and Fergus 2014, arXiv 1311.2901) are computed by captum, in pieces of a stated size so that memory stays bounded. Grad-CAM stands in
grad_cam.py, relevance through attention in relevance.py. A call leaves the model as it was: mode, gradients, hooks, random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.faithfulness import overlaps
from pellucid.inside.layers import Trace, traced
from pellucid.inside.outputs import logits_of

Logits = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Attribution:
    """A map for each image, and what it was made from.

    values (B, gh, gw) float32, >= 0; targets (B,) int64, the class that is explained. `layer` is the module that was read, "image" where
    none was. Of integrated gradients also, in logits and both (B,) float64: `logit_change`, f(x) - f(baseline), and
    `completeness_gap`, by how much the attributions of an image sum to more than that (0 if the integral were exact; eq. 4 of the paper).
    """

    values: NDArray[np.float32]
    layer: str
    targets: NDArray[np.int64]
    method: str
    how: str
    logit_change: NDArray[np.float64] | None = None
    completeness_gap: NDArray[np.float64] | None = None


@contextmanager
def examining(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with gradients on, whatever the caller set; afterwards each module's mode is what it was.

    Of a compiled model it is the module inside: hooks that are added after `torch.compile` would never be called.
    """
    inner = getattr(model, "_orig_mod", model)
    modes = [(module, module.training) for module in inner.modules()]
    try:
        inner.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield inner
    finally:
        for module, training in modes:
            module.training = training


def check_given(images: Tensor, targets: Tensor | None) -> None:
    """UsageError for images that are not (B, C, H, W) in floating point, or targets that are not one class index for each."""
    if images.dim() != 4 or len(images) == 0 or not images.is_floating_point():
        raise UsageError(f"images: expected normalised images (B, 3, H, W) in floating point, got {tuple(images.shape)} {images.dtype}")
    if targets is not None and (targets.shape != (len(images),) or targets.is_floating_point() or targets.dtype == torch.bool):
        raise UsageError(f"targets: expected the index of one class for each of {len(images)} images, got {tuple(targets.shape)} {targets.dtype}")


def class_scores(model: nn.Module, images: Tensor, targets: Tensor | None, logits: Logits) -> tuple[Tensor, Tensor, int]:
    """Logit of each image's target (B,), the targets (B,) int64, the number of classes. No targets: the predicted classes.

    UsageError for logits that are not (B, classes), and for a target that is none of the classes.
    """
    found = logits(model(images))
    if found.dim() != 2 or len(found) != len(images):
        raise UsageError(f"expected logits of shape ({len(images)}, classes), got {tuple(found.shape)}; pass logits= to reduce them to one row an image")
    classes = found.shape[1]
    chosen = found.detach().argmax(dim=1) if targets is None else targets.to(found.device, torch.int64)
    if int(chosen.min()) < 0 or int(chosen.max()) >= classes:
        raise UsageError(f"targets: expected classes from 0 to {classes - 1}, got {int(chosen.min())} to {int(chosen.max())}")
    return found.gather(1, chosen[:, None])[:, 0], chosen, classes


def trace_of(model: nn.Module, images: Tensor, targets: Tensor | None, logits: Logits) -> Trace:
    """The layers of a pass of the first image, with the gradient of its target's logit."""
    first = None if targets is None else targets[:1].repeat(2)
    leaf = images[:1].detach().clone().requires_grad_()  # of frozen parameters too, the gradient runs through the activations
    with torch.enable_grad():
        return traced(model, leaf, lambda x: class_scores(model, x, first, logits)[::2])


@torch.no_grad()
def _scores_in_parts(model: nn.Module, images: Tensor, targets: Tensor | None, logits: Logits, batch_size: int) -> tuple[Tensor, Tensor]:
    """`class_scores` of any number of images, `batch_size` at a time: scores (B,) and targets (B,)."""
    parts = images.split(batch_size)
    wanted = [None] * len(parts) if targets is None else targets.split(batch_size)
    found = [class_scores(model, part, some, logits) for part, some in zip(parts, wanted, strict=True)]
    return torch.cat([scores for scores, _, _ in found]), torch.cat([chosen for _, chosen, _ in found])


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    *,
    targets: Tensor | None = None,
    steps: int = 32,
    internal_batch_size: int = 8,
    baseline: float | Tensor = 0.0,
    logits: Logits = logits_of,
) -> Attribution:
    """The size of what each pixel adds to the logit on the way from the baseline to the image: values (B, H, W).

    Eq. 1 of the paper by a Gauss-Legendre rule of `steps` points. A pixel's share is the sum over its channels, so that completeness
    holds over pixels, and then its absolute value, as captum draws it: evidence against the class counts too. Baseline 0 is the mean
    image where images are normalised; a Tensor broadcasts to (C, H, W). At most `internal_batch_size` images are in memory at a time.
    Where `completeness_gap` is not small against `logit_change`, the rule was too coarse for this model: raise `steps`.
    """
    from captum.attr import IntegratedGradients  # slow to import

    check_given(images, targets)
    _at_least_one(steps=steps, internal_batch_size=internal_batch_size)
    with examining(model) as inner:
        images = images.detach()
        scores, chosen = _scores_in_parts(inner, images, targets, logits, internal_batch_size)
        start = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).expand(images.shape[1:])[None]  # (1, C, H, W)
        with torch.no_grad():
            at_start = logits(inner(start))[0]
        method = IntegratedGradients(lambda x: logits(inner(x)))
        maps, sums = [], []
        for image, target in zip(images.split(1), chosen.tolist(), strict=True):
            found = method.attribute(image.clone(), baselines=start, target=target, n_steps=steps, internal_batch_size=internal_batch_size)
            maps.append(found.detach().sum(dim=1).abs())  # (1, H, W)
            sums.append(found.detach().cpu().double().sum())  # on the CPU: not every device has float64
        change = scores.cpu().double() - at_start[chosen].cpu().double()
        gap = torch.stack(sums) - change
    how = f"absolute sum over channels of integrated gradients, {steps} Gauss-Legendre steps from the baseline, of the logit"
    return Attribution(_array(torch.cat(maps)), "image", chosen.cpu().numpy(), "integrated gradients", how, change.numpy(), gap.numpy())


def occlusion(
    model: nn.Module,
    images: Tensor,
    *,
    targets: Tensor | None = None,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    baseline: float | Tensor = 0.0,
    logits: Logits = logits_of,
) -> Attribution:
    """By how much the logit falls where a window of the image is covered with the baseline: values (B, gh, gw), the rises cut to 0.

    `window` and `stride` are pixels, (height, width) or one for both. Without a window it is the patch of a model that reads patches, else
    a fourteenth of the shorter side; without a stride, the window. Where windows overlap, a pixel has the mean over the windows
    that cover it (captum). The grid has a cell for each stride, H / stride rounded; a cell is the mean over its area.
    The paper draws the probability; the logit is what the other methods here explain. One forward pass of `batch_size` images at a time.
    """
    from captum.attr import Occlusion  # slow to import

    check_given(images, targets)
    _at_least_one(batch_size=batch_size)
    with examining(model) as inner, torch.no_grad():
        images = images.detach()
        _, chosen = _scores_in_parts(inner, images, targets, logits, batch_size)
        size = (images.shape[2], images.shape[3])
        shape = _pair("window", window, size) if window is not None else _default_window(inner, images, chosen, logits)
        step = _pair("stride", stride, shape) if stride is not None else shape
        cover = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).expand(images.shape[1:])[None]
        method, channels = Occlusion(lambda x: logits(inner(x))), images.shape[1]
        falls = [
            method.attribute(
                image.clone(),
                sliding_window_shapes=(channels, *shape),
                strides=(channels, *step),
                baselines=cover,
                target=target,
                perturbations_per_eval=batch_size,
            )[:, 0]  # (1, H, W); every channel has the same, as a window covers all of them
            for image, target in zip(images.split(1), chosen.tolist(), strict=True)
        ]
    grid = (max(1, round(size[0] / step[0])), max(1, round(size[1] / step[1])))
    cell = size[0] / grid[0] * size[1] / grid[1]
    values = np.maximum(pooled(_array(torch.cat(falls)), grid) / cell, 0).astype(np.float32)
    how = f"fall of the logit when {shape[0]} x {shape[1]} pixels are covered with the baseline, every {step[0]} x {step[1]} pixels, rises cut to 0"
    return Attribution(values, "image", chosen.cpu().numpy(), "occlusion", how)


def pooled(values: NDArray[np.floating], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Sums of (B, H, W) over the equal cells of a grid, (B, gh, gw) float32; a pixel on an edge is shared by area, so that the mass is kept."""
    _at_least_one(rows=grid[0], columns=grid[1])
    rows, columns = (overlaps(pixels, cells) / cells for pixels, cells in zip(values.shape[1:], grid, strict=True))
    return np.einsum("gy,byx,kx->bgk", rows, values.astype(np.float64), columns, optimize=True).astype(np.float32)


def _default_window(model: nn.Module, images: Tensor, targets: Tensor, logits: Logits) -> tuple[int, int]:
    """A patch of a model that reads patches, else a fourteenth of the shorter side, in pixels (height, width)."""
    height, width = images.shape[2], images.shape[3]
    grid = trace_of(model, images, targets, logits).patch_grid
    side = max(1, min(height, width) // 14)
    return (height // grid[0], width // grid[1]) if grid is not None else (side, side)


def _pair(name: str, given: int | tuple[int, int], most: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an option in pixels. UsageError outside 1 … most."""
    height, width = (given, given) if isinstance(given, int) else given
    if not (1 <= height <= most[0] and 1 <= width <= most[1]):
        raise UsageError(f"{name}: expected 1 to {most[0]} x {most[1]} pixels, got {height} x {width}")
    return height, width


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"{name}: expected at least 1, got {number}")


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.detach().float().cpu().numpy()
