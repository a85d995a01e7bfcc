"""A segmenter as something that scores whole images, so that every map that asks why an image has a class can ask why its pixels have one.

The score of a class is the mean of its logit over the pixels that the model gives to it: Seg-Grad-CAM (Vinogradova, Dibrov, Myers 2020, eq. 2, with the set M
the predicted pixels of the class; a mean instead of a sum, which only scales a map). A class that no pixel has is scored over all pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pellucid.inside.attribution import class_scores, examining, trace_of
from pellucid.inside.layers import hooked, kept_output
from pellucid.inside.outputs import logits_of

HOW = "score of a class: the mean of its logit over the pixels predicted as that class (Seg-Grad-CAM)"


class PixelScores(nn.Module):
    """Images (B, 3, H, W) -> scores (B, C) by a module whose logits are (B, C, H, W)."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.training = segmenter.training

    def forward(self, images: Tensor) -> Tensor:
        """(B, C): a class without a predicted pixel has its mean over all of them."""
        logits = self.segmenter(images)
        if isinstance(logits, tuple):  # in training mode with an auxiliary classifier
            logits = logits[0]
        classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
        own = (logits.detach().argmax(1, keepdim=True) == classes).to(logits.dtype)  # (B, C, H, W)
        own = torch.where(own.sum((2, 3), keepdim=True) > 0, own, torch.ones_like(own))
        return (logits * own).sum((2, 3)) / own.sum((2, 3))  # (B, C)


def backbone_layer(model: PixelScores, image: Tensor, backbone: str) -> str | None:
    """Path of the layer at the end of the backbone (a path in the segmenter) that the scores read, by one image (1, 3, H, W): where Grad-CAM looks.

    The paper reads the end of the encoder: behind it a decoder's maps grow into the prediction itself. It is the last part of the backbone whose own output,
    not a list of stages, holds a map of the image and has a gradient at its patches. None where the backbone has no such part.
    """
    whole: set[str] = set()

    def keep(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            whole.add(name)

    with examining(model) as inner:
        with hooked(inner, keep):
            trace = trace_of(inner, image, None, logits_of)
        own = f"segmenter.{backbone}"
        for name in reversed([name for name in trace.layers if backbone and (name == own or name.startswith(f"{own}.")) and name in whole]):
            arrangement = trace.layers[name].arrangement
            if arrangement is None or not trace.layers[name].offered:
                continue
            with kept_output(inner, name) as kept:
                scores, _, _ = class_scores(inner, image.detach().clone().requires_grad_().clone(), None, logits_of)
            gradient = torch.autograd.grad(scores.sum(), kept[-1], allow_unused=True)[0] if kept[-1].requires_grad else None
            if gradient is not None and bool(arrangement.patches(gradient).any()):
                return name
    return None
