"""Every kind of map of a model under one name: a method, a model and images -> maps (n, gh, gw) that sum to 1.

A model has the maps that fit it: attention where it attends over patches, rollout and relevance where all its layers attend over the same
ones, Grad-CAM where a layer keeps the image's layout. `fitting` tries them on one image and says why one is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.errors import UsageError, did_you_mean
from pellucid.inside.attention import record
from pellucid.inside.attribution import Attribution, examining, integrated_gradients, occlusion, pooled
from pellucid.inside.geometry import prefix_tokens
from pellucid.inside.grad_cam import grad_cam
from pellucid.inside.intercept import ATTENTION
from pellucid.inside.layers import kept_output, tensor_in
from pellucid.inside.maps import AttentionMap, attention_map, attention_rollout
from pellucid.inside.relevance import relevance

USUAL = ("attention", "rollout", "relevance", "grad_cam")  # tried when nobody says which
COARSE = 14  # patches across the shorter side on which maps of single pixels are scored where the model has no grid of its own
BATCH = 8


@dataclass(frozen=True)
class Mapped:
    """Maps of one method for n images: values (n, gh, gw) float32 >= 0, each sums to 1 or is 0 throughout.

    layer: what was read. how: a sentence. targets: (n,) int64 the classes that are explained, None where the method asks for none.
    prefix_share: (n,) attention that went to tokens before the patches. norms: (n, gh, gw) L2 norms of the patch tokens that leave the layer's block.
    """

    method: str
    values: np.ndarray
    layer: str
    how: str
    targets: np.ndarray | None = None
    prefix_share: np.ndarray | None = None
    norms: np.ndarray | None = None


def maps_of(method: str, model: nn.Module, images: Tensor, *, targets: Tensor | None = None, layer: str | None = None, batch_size: int = BATCH) -> Mapped:
    """The maps of (n, 3, H, W) normalised images. targets: (n,) classes to explain, default: the predicted ones. layer: instead of the method's own choice.

    UsageError where the method does not fit the model; its message says why.
    """
    if method not in METHODS:
        raise UsageError(f"there is no map {method!r}.{did_you_mean(method, METHODS)} Maps: {', '.join(METHODS)}.")
    parts = []
    device = device_of(model)
    for start in range(0, len(images), batch_size):
        chosen = None if targets is None else targets[start : start + batch_size]
        parts.append(METHODS[method](model, images[start : start + batch_size].to(device), chosen, layer))
    first = parts[0]
    return Mapped(
        method, _shares(np.concatenate([p.values for p in parts])), first.layer, first.how,
        *(None if getattr(first, name) is None else np.concatenate([getattr(p, name) for p in parts]) for name in ("targets", "prefix_share", "norms")),
    )  # fmt: skip


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one without."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def fitting(model: nn.Module, image: Tensor, wanted: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """(methods that fit the model, a line for each that does not), tried on one image (1, 3, H, W).

    wanted: methods that must fit: UsageError for one that does not. Without it the usual four are tried; UsageError when none fits.
    """
    if wanted is not None:
        for method in wanted:
            maps_of(method, model, image)
        return list(wanted), []
    found, left_out = [], []
    for method in USUAL:
        try:
            maps_of(method, model, image)
            found.append(method)
        except UsageError as error:
            left_out.append(f"no {method}: {error}")
    if not found:
        raise UsageError("no map fits this model: " + "; ".join(left_out))
    return found, left_out


def _attention(model: nn.Module, images: Tensor, targets: Tensor | None, layer: str | None) -> Mapped:
    found = attention_map(model, images, layer=layer or "last")
    return Mapped("attention", found.values, found.layer, found.how, prefix_share=found.prefix_share, norms=_patch_norms(model, images, found))


def _rollout(model: nn.Module, images: Tensor, targets: Tensor | None, layer: str | None) -> Mapped:
    if layer is not None:
        raise UsageError("rollout goes through all layers; it takes no layer")
    found = attention_rollout(model, images)
    return Mapped("rollout", found.values, found.layer, found.how, prefix_share=found.prefix_share)


def _relevance(model: nn.Module, images: Tensor, targets: Tensor | None, layer: str | None) -> Mapped:
    if layer is not None:
        raise UsageError("relevance goes through all layers; it takes no layer")
    return _attributed(relevance(model, images, targets=targets))


def _grad_cam(model: nn.Module, images: Tensor, targets: Tensor | None, layer: str | None) -> Mapped:
    return _attributed(grad_cam(model, images, targets=targets, layer=layer))


def _integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor | None, layer: str | None) -> Mapped:
    found = _attributed(integrated_gradients(model, images, targets=targets))
    return Mapped(found.method, pooled(found.values, _coarse(images)), found.layer, found.how, found.targets)


def _occlusion(model: nn.Module, images: Tensor, targets: Tensor | None, layer: str | None) -> Mapped:
    found = _attributed(occlusion(model, images, targets=targets))
    return Mapped(found.method, found.values, found.layer, found.how, found.targets)


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor | None, str | None], Mapped]] = {
    "attention": _attention,
    "rollout": _rollout,
    "relevance": _relevance,
    "grad_cam": _grad_cam,
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
}


def _attributed(found: Attribution) -> Mapped:
    return Mapped(found.method, found.values, found.layer, found.how, found.targets)


def _coarse(images: Tensor) -> tuple[int, int]:
    """A grid of about COARSE patches across the shorter side; each patch at least one pixel."""
    height, width = images.shape[-2:]
    side = max(1, min(height, width) // COARSE)
    return height // side, width // side


def _shares(values: np.ndarray) -> np.ndarray:
    """Maps as shares of their sum, float32; a map without mass stays 0."""
    totals = values.astype(np.float64).sum((1, 2), keepdims=True)
    return (values / np.where(totals > 0, totals, 1.0)).astype(np.float32)


def _patch_norms(model: nn.Module, images: Tensor, found: AttentionMap) -> np.ndarray | None:
    """(B, gh, gw) norms of the patch tokens behind the block of an attention layer; None where they do not lie in its order (windows)."""
    inner = getattr(model, "_orig_mod", model)
    named = dict(inner.named_modules())
    parts = found.layer.split(".")
    around = [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
    block = next(
        (path for path in around if path in named and not ATTENTION.search(path.rsplit(".", 1)[-1]) and not isinstance(named[path], nn.ModuleList)), None
    )
    if block is None:
        return None
    with examining(inner), torch.no_grad(), kept_output(inner, block) as kept:
        inner(images)
    tokens = tensor_in(kept[-1]) if kept else None
    gh, gw = found.values.shape[-2:]
    before = len(prefix_tokens(inner))
    if tokens is None or tokens.dim() != 3 or tokens.shape[1] != gh * gw + before:
        return None
    return np.asarray(tokens[:, before:].float().norm(dim=-1).unflatten(1, (gh, gw)).cpu().numpy())


def heads_of(model: nn.Module, images: Tensor, *, layer: str | int | None = None) -> tuple[np.ndarray, list[str]]:
    """((L, n, h, gh, gw) float32 attention maps of every head, paths of the L layers): of all layers with the grid of the last one, or of one layer."""
    rows = "class" if "class" in prefix_tokens(model) else "mean"
    with examining(model) as plain, torch.no_grad(), record(plain, rows=rows, layers=layer) as recording:  # type: ignore[arg-type]
        plain(images)
    on_image = [r for r in recording.records if r.geometry.grid is not None and r.kind == "self"]
    if not on_image:
        raise UsageError("no layer of this model attends over the patches of an image")
    last = on_image[-1]
    same = [r for r in on_image if r.geometry.grid == last.geometry.grid and r.heads == last.heads]
    values = np.stack([r.on_grid()[:, :, 0].cpu().numpy() for r in same])
    totals = values.sum((-1, -2), keepdims=True)
    return (values / np.where(totals > 0, totals, 1.0)).astype(np.float32), [r.module for r in same]
