"""A large image by overlapping tiles with blended seams, in bounded memory.

Neighbouring tiles have a band in common. Across it the weight of one falls from 1 to 0 while that of the other rises: not at all in the outer quarters
of the band, linearly in its middle half. A tile's outermost pixels, whose surroundings the network did not see, therefore count for nothing. Weights of
all tiles add up to 1 at every pixel; at the borders of the image they are 1 up to the edge.

The result equals the network on the whole image (to rounding) when
- nothing that decides on a pixel lies further away than a quarter of the band (the radius of the network's receptive field),
- every tile starts at a multiple of the network's stride: true when image minus tile is one too (of 32, the coarsest stride in use), and else of all
  tiles but the last of a row or column, which end at the image's edge,
- no side of the image is shorter than the tile (such a side is padded: then the network on the padded image is equalled),
- no layer looks at the whole tile; `sees_everything` lists those that do, and
- the network is in evaluation mode.
Otherwise it is another, usually close, prediction: each pixel is still judged from at least a quarter of a band around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from pellucid.errors import UsageError

ALIGNMENT = 32
# Adaptive pooling to at most this many cells on a side is taken over regions whose size is that of the tile.
_POOLED = 6
_GLOBAL = re.compile(
    r"Attention|Attn|SqueezeEx|^SE(Module|Layer|Block)?$|EffectiveSE|GlobalContext|GlobalResponseNorm|FilterResponseNorm|EvoNorm|^PSPBlock$|^PAB$"
)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of the tiles along a side of `length` pixels, evenly spread; the first is 0, the last tile ends at the edge.

    overlap: least share of `tile` that neighbours have in common, in [0, 1). Starts are multiples of 32 except the last, as far as tiles that advance by
    less than 32 pixels allow it. Raises UsageError for a tile or an overlap that cannot be.
    """
    if length < 1 or tile < 1:
        raise UsageError(f"tiles: expected a length and a tile of at least 1 pixel, got {length} and {tile}.")
    if not 0 <= overlap < 1 or math.ceil(overlap * tile) >= tile:
        raise UsageError(f"tiles: expected an overlap in [0, 1) that lets a tile of {tile} pixels advance, got {overlap:g}. A quarter (0.25) is usual.")
    if length <= tile:
        return [0]
    step = tile - math.ceil(overlap * tile)
    alignment = ALIGNMENT if step >= ALIGNMENT else 1
    step -= step % alignment
    last = length - tile
    gaps = math.ceil(last / step)
    # Rounded up, not down, no gap is longer than the step: ceil(x + gap) - ceil(x) <= step, a multiple of the alignment, and so is what is left.
    starts = [math.ceil(i * last / gaps / alignment) * alignment for i in range(gaps)]
    return sorted({start for start in starts if start < last} | {last})


def tile_weights(length: int, tile: int, starts: list[int]) -> Tensor:
    """(len(starts), tile) float32: what each tile along a side counts at each of its pixels; the sum over the tiles is 1 at every pixel."""
    weights = torch.ones(len(starts), tile, dtype=torch.float64)
    for i, (one, other) in enumerate(pairwise(starts)):
        band = one + tile - other
        rising = (((torch.arange(band, dtype=torch.float64) + 0.5) / max(band, 1) - 0.25) / 0.5).clamp(0, 1)
        weights[i, tile - band :] *= 1 - rising
        weights[i + 1, :band] *= rising
    total = torch.zeros(max(length, starts[-1] + tile), dtype=torch.float64)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + tile] += row
    return torch.stack([row / total[start : start + tile] for start, row in zip(starts, weights, strict=True)]).float()


def tiled(
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    tile: tuple[int, int],
    overlap: float,
    batch_size: int,
    seen: Callable[[Tensor], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """(first row, strip (C, rows, W)) of the blended logits of `image` (3, H, W), top to bottom, float32, on the device of what `forward` gives.

    forward: logits (b, C, h, w) of tiles (b, 3, h, w). seen: is handed each tile's logits (C, h, w), row by row of tiles. An image that is smaller than
    the tile is padded with zeros (its mean colour) at the bottom and right, and the logits cropped back. C x h x W numbers are kept between strips and
    twice as many while one is handed out, beside the `batch_size` tiles at work. Tiles are added in the same order for every batch_size: the bits
    differ only as far as `forward` gives one tile others in another batch. Raises UsageError for settings that cannot be, and where `forward` does not
    give logits of its input's size.
    """
    if batch_size < 1:
        raise UsageError(f"tiles: expected a batch_size of at least 1, got {batch_size}.")
    height, width = image.shape[-2:]
    image = nn.functional.pad(image, (0, max(0, tile[1] - width), 0, max(0, tile[0] - height)))
    tops, lefts = tile_starts(height, tile[0], overlap), tile_starts(width, tile[1], overlap)
    down, across = tile_weights(height, tile[0], tops), tile_weights(width, tile[1], lefts)
    band: Tensor | None = None  # C, h, W: rows of the image from `top` on
    for i, top in enumerate(tops):
        for left, columns, logits in _row_of_tiles(forward, image, top, lefts, across, tile, batch_size):
            if seen is not None:
                seen(logits)
            if band is None:
                band = logits.new_zeros(logits.shape[0], tile[0], image.shape[-1], dtype=torch.float32)
            weights = down[i, :, None] * columns
            band[..., left : left + tile[1]] += logits * weights.to(logits.device)  # float32, as the weights are
        assert band is not None  # there is at least one tile in a row
        finished = tops[i + 1] - top if i + 1 < len(tops) else tile[0]
        yield top, band[:, : min(finished, height - top), :width]
        following = torch.zeros_like(band)
        following[:, : tile[0] - finished] = band[:, finished:]
        band = following


def _row_of_tiles(
    forward: Callable[[Tensor], Tensor], image: Tensor, top: int, lefts: list[int], across: Tensor, tile: tuple[int, int], batch_size: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first column, weights (w,) across, logits (C, h, w)) of the tiles that start at row `top`, left to right."""
    for first in range(0, len(lefts), batch_size):
        starts = lefts[first : first + batch_size]
        logits = forward(torch.stack([image[:, top : top + tile[0], left : left + tile[1]] for left in starts]))
        if logits.ndim != 4 or logits.shape[0] != len(starts) or tuple(logits.shape[-2:]) != tuple(tile):
            raise UsageError(f"tiles: expected logits ({len(starts)}, C, {tile[0]}, {tile[1]}) of as many tiles, got {tuple(logits.shape)}.")
        yield from zip(starts, across[first : first + batch_size], logits, strict=True)


def sees_everything(module: nn.Module) -> list[str]:
    """Paths of the outermost parts that look at the whole tile, or are tied to its grid: with them tiles cannot equal the whole image.

    These are adaptive poolings to at most 6x6 cells, attention (also in windows, which start at the tile's corner), squeeze-and-excitation, and
    normalisations whose mean and variance are those of the tile: over groups of channels (smp's FPN), over each channel without running statistics, and
    of filter responses. Told by type and class name; what a model does outside of its layers is not seen.
    """
    found: list[str] = []
    for path, part in module.named_modules():
        if _is_global(part) and not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found


def _is_global(part: nn.Module) -> bool:
    if isinstance(part, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        sides = part.output_size if isinstance(part.output_size, tuple | list) else (part.output_size,)
        return any(side is not None and side <= _POOLED for side in sides)
    if isinstance(part, nn.GroupNorm):  # timm's are of this type
        return True
    if isinstance(part, nn.modules.batchnorm._NormBase):  # of batches and of instances
        return part.running_mean is None
    # smp's Attention is an empty shell where a decoder has none: what has no parameters does not count.
    named = _GLOBAL.search(type(part).__name__) is not None
    return named and any(True for _ in part.parameters())
