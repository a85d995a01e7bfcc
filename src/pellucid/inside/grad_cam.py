"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of convolutional networks, ViTs and Swin; the layer is found by itself.

The paper reads the last convolutional map before pooling. Where the image lies in tokens, the same two equations run over the
patches alone: prefix tokens have no place in the image. In a ViT that reads its class token, patches behind the last attention have a
gradient of exactly zero, so the last layer that has one is taken (the last block's first norm) and one that has none is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.attribution import Attribution, Logits, check_given, class_scores, examining, trace_of
from pellucid.inside.layers import kept_output
from pellucid.inside.outputs import logits_of


def grad_cam(model: nn.Module, images: Tensor, *, targets: Tensor | None = None, layer: str | None = None, logits: Logits = logits_of) -> Attribution:
    """Where a layer speaks for the target class: values (B, gh, gw) on the layer's own grid.

    Eq. 1: alpha_k is the mean over positions of the gradient of the logit at channel k; eq. 2: ReLU of the sum over k of alpha_k A_k.
    No targets: the predicted class. `layer` is a module's path; of a module that runs more than once, the last call is read.
    UsageError: a layer that does not exist, holds no map of the image, or has no gradient at any patch; each says which would do.
    """
    check_given(images, targets)
    with examining(model) as inner:
        trace = trace_of(inner, images, targets, logits)
        name = trace.best if layer is None else layer
        arrangement = trace.arrangement(name)
        with kept_output(inner, name) as kept:
            scores, chosen, _ = class_scores(inner, images.detach().clone().requires_grad_().clone(), targets, logits)
        activations = kept[-1]
        gradient = torch.autograd.grad(scores.sum(), activations, allow_unused=True)[0] if activations.requires_grad else None
        if gradient is None or not bool(arrangement.patches(gradient).any()):
            raise UsageError(
                f"layer {name!r} gives no Grad-CAM: the gradient of the class logit is exactly zero at every patch "
                f"(behind the last attention only the class token is read). {trace.best!r} would do."
            )
        patches, slopes = arrangement.patches(activations.detach()), arrangement.patches(gradient)  # (B, gh, gw, C)
        alpha = slopes.mean(dim=(1, 2), keepdim=True)  # eq. 1
        values = torch.relu((alpha * patches).sum(dim=-1))  # eq. 2
    how = f"Grad-CAM of the logit at {name}, {arrangement.grid[0]} x {arrangement.grid[1]}"
    if arrangement.prefix:
        how += f", {arrangement.prefix} prefix token{'s' if arrangement.prefix > 1 else ''} left out"
    return Attribution(values.float().cpu().numpy(), name, chosen.cpu().numpy(), "Grad-CAM", how)
