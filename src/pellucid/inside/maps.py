"""Attention as maps over the image: the picture that people show, for any model with patches.

`attention_map` takes one layer (the last by default), its heads averaged or apart, for the class token or, where there is none, the mean
over patches. `attention_rollout` follows attention through all layers (Abnar and Zuidema 2005.00928, section 3). A map
is float32 (B, gh, gw), sums to 1 and leaves tokens before the patches out; their share is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.attention import Layers, Record, record
from pellucid.inside.attribution import examining
from pellucid.inside.geometry import WORDS, prefix_tokens

CLASS, MEAN = "class token", "mean of the patches"


@dataclass(frozen=True)
class AttentionMap:
    """Maps of a batch of images.

    values: (B, gh, gw) float32, or (B, h, gh, gw) with heads apart; each map sums to 1, a map without any mass is 0.
    prefix_share: (B,) or (B, h) float32, the attention that went to tokens before the patches, in [0, 1].
    layer: path of the module, or "all layers". query: "class token" or "mean of the patches". how: a sentence.
    """

    values: np.ndarray
    prefix_share: np.ndarray
    layer: str
    query: str
    how: str


def attention_map(model: nn.Module, images: Tensor, *, layer: Layers = "last", heads: bool = False, query: str | None = None) -> AttentionMap:
    """The attention of one layer over the patches of (B, 3, H, W) normalised images.

    layer: "last", a number of an attention module, or its path. heads: each head apart. query: "class token" or "mean of the patches"; default: the
    class token where the model has one. Runs in eval mode without gradient; the model's mode is restored. UsageError where the layer's tokens lie on no image.
    """
    chosen = query or (CLASS if "class" in prefix_tokens(model) else MEAN)
    if chosen not in (CLASS, MEAN):
        raise UsageError(f"query: expected {CLASS!r} or {MEAN!r}, got {chosen!r}")
    if layer is None or isinstance(layer, (list, tuple)):
        raise UsageError("layer: expected one layer: 'last', a number or a path")
    with (
        examining(model) as plain,
        torch.no_grad(),
        record(plain, rows="class" if chosen == CLASS else "mean", layers=None if layer == "last" else layer) as recording,
    ):
        plain(images)
    found = [r for r in recording.records if r.geometry.grid is not None and r.kind == "self"]
    if not found:
        named = ", ".join(dict.fromkeys(r.module for r in recording.records))
        raise UsageError(f"no layer attends from patches to patches of an image, or the order of its tokens is not known: {named}. Use grad_cam.")
    weights, share = patch_weights(found[-1], len(images))
    if not heads:
        weights, share = weights.mean(1), share.mean(1)
    values = _shares(weights)
    averaged = "each head" if heads else f"mean of {found[-1].heads} heads"
    return AttentionMap(values.cpu().numpy(), share.cpu().numpy(), found[-1].module, chosen, f"attention of {found[-1].module}, {averaged}, query: {chosen}")


def attention_layers(model: nn.Module, images: Tensor, *, query: str | None = None) -> list[AttentionMap]:
    """The maps of every layer, heads apart, as `attention_map` gives them; layers on different grids, as of Swin, too."""
    chosen = query or (CLASS if "class" in prefix_tokens(model) else MEAN)
    with examining(model) as plain, torch.no_grad(), record(plain, rows="class" if chosen == CLASS else "mean") as recording:
        plain(images)
    found = []
    for r in recording.records:
        if r.geometry.grid is None or r.kind != "self":
            continue
        weights, share = patch_weights(r, len(images))
        values = _shares(weights)
        found.append(AttentionMap(values.cpu().numpy(), share.cpu().numpy(), r.module, chosen, f"attention of {r.module}, each head, query: {chosen}"))
    if not found:
        raise UsageError("no layer of this model has patches of an image as its tokens")
    return found


def attention_rollout(model: nn.Module, images: Tensor) -> AttentionMap:
    """Attention rollout (Abnar and Zuidema 2005.00928, eq. 1): the product over layers of (A + I) / 2, A the mean over heads, its class-token row.

    Without a class token, the mean over the rows of patches. Each factor's rows sum to 1, so the product's do. Computed as row times matrix, from the
    last layer down; the attention of all layers, heads averaged, is in memory: layers x tokens squared. UsageError for windowed models
    and those whose layers differ in tokens.
    """
    prefix = prefix_tokens(model)
    with examining(model) as plain, torch.no_grad(), record(plain, rows="all", heads="mean") as recording:
        plain(images)
    layers = [r for r in recording.records if r.kind == "self" and not any(WORDS.search(part) for part in r.module.split("."))]
    if not layers or any(r.geometry.windows is not None or r.geometry.grid is None for r in layers):
        raise UsageError("attention rollout needs layers that all attend over the same patches; windows and other resolutions do not. Use grad_cam.")
    tokens = layers[0].weights.shape[-1]
    other = next((r for r in layers if r.weights.shape[-2:] != (tokens, tokens)), None)
    if other is not None:
        shape = " x ".join(map(str, other.weights.shape[-2:]))
        raise UsageError(f"attention rollout needs the same {tokens} tokens in every layer; {other.module} attends {shape}. Use grad_cam.")
    before = len(layers[0].geometry.prefix)
    row = torch.zeros((len(images), 1, tokens), device=images.device)
    row[:, :, prefix.index("class") if "class" in prefix else slice(before, None)] = 1.0 if "class" in prefix else 1.0 / (tokens - before)
    for r in reversed(layers):
        row = (row @ r.weights[:, 0] + row) / 2
    share = row[:, 0, :before].sum(-1)
    weights = layers[0].geometry.on_grid(row)[:, 0]
    query = CLASS if "class" in prefix else MEAN
    values = _shares(weights)
    how = f"attention rollout through {len(layers)} layers, mean of heads, residual counted half, query: {query}"
    return AttentionMap(values.cpu().numpy(), share.cpu().numpy(), "all layers", query, how)


def patch_weights(r: Record, batch: int) -> tuple[Tensor, Tensor]:
    """((B, h, gh, gw) attention over patches, (B, h) share of the tokens before them) of a record with one row."""
    if r.geometry.grid is None:
        raise UsageError(f"{r.module}: its {r.geometry.tokens} tokens lie on no image, or their order is not known")
    on_grid = r.on_grid()[:, :, 0]
    if r.geometry.windows is not None:
        return on_grid, torch.zeros(on_grid.shape[:2], device=on_grid.device)
    if len(on_grid) != batch:
        raise UsageError(f"{r.module} ran on {len(on_grid)} images, expected {batch}: it attends within windows that are not known here")
    return on_grid, r.weights[:, :, 0, : len(r.geometry.prefix)].sum(-1)


def _shares(weights: Tensor) -> Tensor:
    """Maps as shares of their sum; a map without mass stays 0."""
    return weights / weights.sum((-1, -2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
