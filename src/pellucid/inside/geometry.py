"""Where tokens lie on the image: the grid of patches, what stands before it (class, distillation, register tokens), shifted windows.

A model does not say how its tokens are ordered. It is read off the run: the patch embedding is the convolution whose feature map has as many places
as there are tokens, but for those that parameters of the model hold: these come first and are named by them. Swin's windows follow from the block's
window and shift (Liu et al. 2103.14030, section 3.2), in the order in which timm, torchvision and transformers cut them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.inside.intercept import Sight

WORDS = re.compile(r"decoder|(?<!con)text|language|bert|gpt", re.IGNORECASE)  # in the path of modules whose tokens are words
# The kinds of tokens before the patches, in the order in which they stand, by the names of the parameters that hold them.
PREFIX = {
    "class": ("cls_token", "class_token", "class_embedding", "cls"),
    "distillation": ("dist_token", "distillation_token"),
    "register": ("reg_token", "reg_tokens", "register_token", "register_tokens", "registers"),
}


@dataclass(frozen=True)
class Windows:
    """A feature map of `grid` cut into windows of `size` after a roll by `shift`; `padded_first` says whether padding came before the roll."""

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int]
    padded_first: bool

    @property
    def counts(self) -> tuple[int, int]:
        """Windows down and across."""
        return math.ceil(self.grid[0] / self.size[0]), math.ceil(self.grid[1] / self.size[1])

    def places(self) -> np.ndarray:
        """(windows, tokens of a window, 2) int64: row and column of each token on the grid; -1 for padding."""
        rows, columns = (self._axis(axis) for axis in (0, 1))
        (down, across), (height, width) = self.counts, self.size
        y = np.broadcast_to(rows.reshape(down, 1, height, 1), (down, across, height, width))
        x = np.broadcast_to(columns.reshape(1, across, 1, width), (down, across, height, width))
        both = np.stack([y, x], axis=-1).reshape(down * across, height * width, 2)
        return np.where((both < 0).any(axis=-1, keepdims=True), -1, both)

    def _axis(self, axis: int) -> np.ndarray:
        """Where each place of the rolled and padded axis comes from; -1 for padding."""
        length, shift = self.grid[axis], self.shift[axis]
        padded = self.counts[axis] * self.size[axis]
        at = np.arange(padded)
        source = (at + shift) % (padded if self.padded_first else length)
        return np.where((source >= length) | ((at >= length) & (not self.padded_first)), -1, source)


@dataclass(frozen=True)
class Geometry:
    """How the keys of an attention lie: `prefix` names the tokens before the patches, `grid` is (rows, columns) of patches.

    grid is None for tokens that lie on no image (words) or whose order is unknown. A class token that is asked alone, apart from the patches,
    has its keys in this order too.
    """

    tokens: int
    grid: tuple[int, int] | None = None
    prefix: tuple[str, ...] = ()
    windows: Windows | None = None

    @property
    def class_token(self) -> int | None:
        """Place of the class token among the tokens."""
        return self.prefix.index("class") if "class" in self.prefix else None

    def on_grid(self, weights: Tensor, *, mean: bool = False) -> Tensor:
        """(…, K) attention over keys -> (…, gh, gw) over patches, prefix left out. Windows: (B windows, h, R, K) -> (B, h, R, gh, gw).

        mean: the rows are means over the patches of each window, which then count as many as they are.
        """
        if self.grid is None:
            raise ValueError("these tokens lie on no image")
        if self.windows is not None:
            real = torch.from_numpy((self.windows.places()[..., 0] >= 0).sum(1))
            return self._windows_on_grid(weights, real / real.sum() if mean else None)
        return weights[..., len(self.prefix) :].unflatten(-1, self.grid)

    def _windows_on_grid(self, weights: Tensor, shares: Tensor | None = None) -> Tensor:
        assert self.windows is not None
        assert self.grid is not None
        places = torch.from_numpy(self.windows.places()).to(weights.device)
        count, tokens, _ = places.shape
        split = weights.unflatten(0, (-1, count))  # (B, windows, h, R, K)
        if shares is not None:
            split = split * shares.to(split)[:, None, None, None]
        B, _, h, R, _ = split.shape
        flat = torch.where(places[..., 0] >= 0, places[..., 0] * self.grid[1] + places[..., 1], math.prod(self.grid))  # padding into a spare place
        out = split.new_zeros((B, h, R, math.prod(self.grid) + 1))
        out.index_add_(-1, flat.reshape(-1), split.permute(0, 2, 3, 1, 4).reshape(B, h, R, count * tokens))
        return out[..., :-1].unflatten(-1, self.grid)


def prefix_tokens(model: nn.Module) -> tuple[str, ...]:
    """The tokens that a model puts before its patches, by the parameters that hold them: ("class",), ("class", "register", …) or ()."""
    counts = dict.fromkeys(PREFIX, 0)
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        for kind, names in PREFIX.items():
            if last in names and not counts[kind] and parameter.dim() <= 3:
                counts[kind] = 1 if parameter.dim() == 1 else parameter.shape[-2]
    if counts["class"] == 2 and not counts["distillation"]:  # PiT keeps both in one parameter
        counts |= {"class": 1, "distillation": 1}
    return tuple(kind for kind, count in counts.items() for _ in range(count))


def geometry_of(sight: Sight, modules: tuple[str, ...], tokens: int, declared: tuple[str, ...], *, batch: int | None = None) -> Geometry:
    """The geometry of `tokens` keys or queries of an attention that ran inside `modules` (paths, outermost first).

    Only where a feature map leaves just the declared tokens before the patches, or none. batch: that of the attention, which for an image's own
    tokens is that of the feature map; another one means windows that are not known here.
    """
    windows = _windows(sight, modules, tokens)
    if windows is not None:
        return Geometry(tokens, windows.grid, (), windows)
    for left in (len(declared), 0):
        for _, (height, width), images in reversed(sight.maps):
            if tokens - height * width == left and height * width > 1 and batch in (None, images):
                return Geometry(tokens, (height, width), declared if left else ())
    return Geometry(tokens)


def _windows(sight: Sight, modules: tuple[str, ...], tokens: int) -> Windows | None:
    """The windows of the nearest Swin block around; None outside of one."""
    for path in reversed(modules):
        module = sight.modules[path]
        name = type(module).__name__
        if not (hasattr(module, "window_size") and hasattr(module, "shift_size") and ("Swin" in name or "ShiftedWindow" in name)):
            continue
        grid = _block_grid(module, sight.inputs.get(path, []))
        size, shift = _pair(module.window_size), _pair(module.shift_size)
        if grid is None or size[0] * size[1] != tokens:
            continue
        padded_first = not type(module).__module__.startswith("timm.")
        if type(module).__module__.startswith("torchvision."):  # an axis of one window is not shifted
            padded = tuple(math.ceil(g / s) * s for g, s in zip(grid, size, strict=True))
            shift = tuple(0 if s >= p else by for s, p, by in zip(size, padded, shift, strict=True))  # type: ignore[assignment]
        return Windows(grid, size, shift, padded_first)
    return None


def _block_grid(module: nn.Module, inputs: list[Any]) -> tuple[int, int] | None:
    """(height, width) of a block's feature map: of (B, H, W, C), or stated beside (B, N, C)."""
    for seen in inputs:
        if isinstance(seen, tuple) and len(seen) == 4:
            return seen[1], seen[2]
        if isinstance(seen, tuple) and len(seen) == 2:
            return seen
    return None


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if not isinstance(value, (tuple, list)) else (int(value[0]), int(value[1]))
