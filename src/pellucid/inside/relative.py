"""Relative-position biases: what a head adds to the logit of a query and a key for the offset between their places.

Table:     Swin (Liu 2021, eq. 4), BEiT (Bao 2021): one learned number for each head and offset.
Network:   Swin v2 (Liu 2022, eq. 3): 16 sigmoid(MLP(log-spaced offset)); timm's "cr" and "rw" kinds leave the sigmoid out.

Biases made from the query (MViT v2, SAM's rel_pos_h and rel_pos_w) have no table; those of LeViT, TensorFlow's MaxViT and timm's
swinv2_cr are laid out otherwise and are not read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_NETWORKS = ("cpb_mlp", "continuous_position_bias_mlp")  # timm and torchvision, transformers
_MARKS = ("relative_position_bias_table", *_NETWORKS, "rel_coords_log", "rel_pos_h", "attention_biases", "meta_mlp")


def is_relative(model: nn.Module) -> bool:
    """Whether any layer adds a bias by relative position, readable here or not."""
    return any(getattr(module, mark, None) is not None for module in model.modules() for mark in _MARKS)


def bias_tables(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """{module path: (h, 2 wh - 1, 2 ww - 1) float32} for windows of wh x ww, in the unit of the logits.

    At [head, r, c] is the bias of a query that lies r - (wh - 1) rows below and c - (ww - 1) columns right of its key: the middle is the bias
    of a place with itself. Entries of a table for class tokens (BEiT's last three) are left out.
    """
    found = {}
    for path, module in model.named_modules():
        values = _bias(module)
        if values is not None:
            found[path] = values.permute(2, 0, 1).float().cpu().numpy()
    return found


def _bias(module: nn.Module) -> Tensor | None:
    """(2 wh - 1, 2 ww - 1, h) of one layer, None where it has none in a form that is known."""
    table = getattr(module, "relative_position_bias_table", None)
    if isinstance(table, Tensor) and table.ndim == 2:
        return _laid_out(table.detach(), getattr(module, "window_size", None))
    for name in _NETWORKS:
        network, coordinates = getattr(module, name, None), getattr(module, "relative_coords_table", None)
        if isinstance(network, nn.Module) and isinstance(coordinates, Tensor):
            return 16 * torch.sigmoid(_evaluated(network, coordinates)[0])  # Swin v2's code; the paper leaves the 16 out
    network, coordinates = getattr(module, "mlp", None), getattr(module, "rel_coords_log", None)
    if isinstance(network, nn.Module) and isinstance(coordinates, Tensor):
        values = _evaluated(network, coordinates)
        return 16 * torch.sigmoid(values) if getattr(module, "mode", "") == "swin" else values
    return None


def _laid_out(table: Tensor, window: Any) -> Tensor | None:
    """(offsets and extra entries, h) -> (2 wh - 1, 2 ww - 1, h); rows run fastest over columns."""
    if isinstance(window, int):
        window = (window, window)
    if isinstance(window, (tuple, list)) and len(window) == 2:
        tall, wide = 2 * int(window[0]) - 1, 2 * int(window[1]) - 1
    else:  # torchvision's MaxViT keeps no window_size
        tall = wide = math.isqrt(len(table))
    if not 0 <= len(table) - tall * wide <= 3:
        return None
    return table[: tall * wide].reshape(tall, wide, -1)


@torch.no_grad()
def _evaluated(network: nn.Module, coordinates: Tensor) -> Tensor:
    """The network's output with its dropout off; its modes are left as they were."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        return torch.as_tensor(network(coordinates)).detach()
    finally:
        for module in training:
            module.training = True
