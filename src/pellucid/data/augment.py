"""Batched augmentation of decoded uint8 images on the device that holds them, from the crop to the normalised batch.

Order: crop (random resized, random with zero padding, or centre) · horizontal flip · vertical flip · rotation · colour
jitter · grayscale · Gaussian blur · solarize · normalise · random erasing. The distributions and the arithmetic are those
of torchvision.transforms.v2, which is the oracle of the tests, operation by operation. Two things differ: an image is
rounded to 8 bits once, after the crop, and all else is float32 in [0, 1]; and each operation is split in two, a function
that draws its parameters (numpy, from `draws.uniforms`) and one that applies given parameters (torch).

An image gets the same bits whatever else is in its batch, whatever its position, and for any number of CPU threads: the
tensor operations below work element by element without fused multiply-add, on one image at a time, or add integers.
`mix_pair` blends whole images of a window with their partners (mixup, CutMix).
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pellucid.data.draws import Floats, Integers, beta, integers, uniforms
from pellucid.errors import DataError
from pellucid.recipe import AugmentSection

Mask = NDArray[np.bool_]
Size = tuple[int, int]  # (height, width) in pixels

TRIES = 10  # of a random rectangle before its fallback, as in torchvision
BLUR_SIGMA = 0.1, 2.0  # pixels
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # fraction of the image, height / width (Zhong et al. 2020)
GRAY_WEIGHTS = 0.2989, 0.587, 0.114  # ITU-R BT.601, rounded as in torchvision


@dataclass(frozen=True)
class Images:
    """Decoded images of any sizes behind each other. flat: uint8, each image (H, W, 3) row by row; shapes: their (H, W)."""

    flat: Tensor
    shapes: list[Size]

    def __len__(self) -> int:
        return len(self.shapes)

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(height * width * 3 for height, width in self.shapes)]

    def view(self, index: int) -> Tensor:
        """Image `index` as uint8 (3, H, W) in channels-last memory, without a copy."""
        start, stop = self._starts[index : index + 2]
        return self.flat[start:stop].view(*self.shapes[index], 3).permute(2, 0, 1)

    def to(self, device: torch.device | str) -> Images:
        """The same images on `device`, still uint8; from pinned memory the copy does not block."""
        return Images(self.flat.to(device, non_blocking=True), self.shapes)


# ── crops: uint8 images of any sizes -> uint8 (B, 3, H, W). A box is (top, left, height, width) in pixels. ────────


def center_boxes(shapes: Sequence[Size], size: Size) -> Integers:
    """(n, 4) boxes of `size` in the middle of each image; half pixels round to even, as in torchvision's CenterCrop."""
    rest = np.array(shapes, np.int64).reshape(-1, 2) - size
    return _boxes(np.rint(rest / 2), size)


def draw_crop(u: Floats, shapes: Sequence[Size], size: Size, padding: int) -> Integers:
    """(n, 4) boxes of `size` anywhere in each image with `padding` pixels around it; u (n, 2). Corners may be negative."""
    room = np.array(shapes, np.int64).reshape(-1, 2) + 2 * padding - size
    return _boxes(integers(u, room + 1) - padding, size)


def draw_resized_crop(u: Floats, shapes: Sequence[Size], scale: Sequence[float], ratio: Sequence[float]) -> Integers:
    """(n, 4) boxes with a fraction of the area from `scale` and width / height log-uniform in `ratio`; u (n, 22).

    The first of ten rectangles that fits (Szegedy et al. 2015); else the largest central one within `ratio`.
    """
    H, W = np.array(shapes, np.int64).reshape(-1, 2).T
    width, height = _rectangles(u, H * W, scale, ratio)
    fits = (width > 0) & (width <= W[:, None]) & (height > 0) & (height <= H[:, None])
    first = fits.argmax(axis=1)[:, None]
    h, w = np.take_along_axis(height, first, 1)[:, 0], np.take_along_axis(width, first, 1)[:, 0]
    top, left = integers(u[:, -2], H - h + 1), integers(u[:, -1], W - w + 1)
    for i in np.flatnonzero(~fits.any(axis=1)):
        h[i], w[i] = min(H[i], round(W[i] / ratio[0])), min(W[i], round(H[i] * ratio[1]))
        top[i], left[i] = (H[i] - h[i]) // 2, (W[i] - w[i]) // 2
    return np.stack([top, left, h, w], axis=1)


def draw_erasing(u: Floats, size: Size) -> Integers:
    """(n, 4) boxes smaller than the image, the first of ten that fits; u (n, 22). Without area where none fits."""
    H, W = size
    height, width = _rectangles(u, np.full(len(u), H * W), ERASED_AREA, ERASED_RATIO)
    fits = (height < H) & (width < W)
    first = fits.argmax(axis=1)[:, None]
    some = fits.any(axis=1)
    h, w = (np.where(some, np.take_along_axis(side, first, 1)[:, 0], 0) for side in (height, width))
    return np.stack([integers(u[:, -2], H - h + 1), integers(u[:, -1], W - w + 1), h, w], axis=1)


def crop(images: Images, boxes: Integers) -> Tensor:
    """uint8 (B, 3, H, W), the boxes (all of one size) of the images; what lies outside an image is 0.

    An image without a pixel in its box gives zeros.
    """
    H, W = (int(side) for side in boxes[0, 2:])
    out = images.flat.new_zeros(len(images), 3, H, W)
    for i, (top, left) in enumerate(boxes[:, :2].tolist()):
        inside = images.view(i)[:, max(top, 0) : max(top + H, 0), max(left, 0) : max(left + W, 0)]
        down, right = max(-top, 0), max(-left, 0)
        out[i, :, down : down + inside.shape[1], right : right + inside.shape[2]] = inside
    return out


def resized_crop(images: Images, boxes: Integers, size: Size, interpolation: str) -> Tensor:
    """uint8 (B, 3, H, W), the boxes of the images resized to `size` with an antialiased bilinear or bicubic filter.

    On the CPU torch resizes uint8 itself (fixed-point weights); elsewhere in float32, rounded: they differ by one level.
    """
    native = images.flat.device.type == "cpu"
    out = torch.empty(len(images), 3, *size, dtype=torch.uint8 if native else torch.float32, device=images.flat.device)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        part = images.view(i)[None, :, top : top + height, left : left + width]
        out[i] = F.interpolate(part if native else part.float(), size=size, mode=interpolation, antialias=True, align_corners=False)[0]
    return out if native else out.round_().clamp_(0, 255).to(torch.uint8)


def _boxes(corners: NDArray[Any], size: Size) -> Integers:
    return np.hstack([corners, np.broadcast_to(size, corners.shape)]).astype(np.int64)


def _rectangles(u: Floats, area: Any, scale: Sequence[float], ratio: Sequence[float]) -> tuple[Integers, Integers]:
    """Two sides (n, TRIES) of random rectangles: area uniform in scale * area, first / second log-uniform in ratio."""
    target = np.reshape(area, (-1, 1)) * (scale[0] + u[:, :TRIES] * (scale[1] - scale[0]))
    aspect = np.exp(math.log(ratio[0]) + u[:, TRIES : 2 * TRIES] * (math.log(ratio[1]) - math.log(ratio[0])))
    return np.rint(np.sqrt(target * aspect)).astype(np.int64), np.rint(np.sqrt(target / aspect)).astype(np.int64)


# ── geometry and colour, in place: float32 (B, 3, H, W) in [0, 1], RGB; parameters one for each image ────────────


def _column(values: NDArray[Any], images: Tensor) -> Tensor:
    """(B, 1, 1, 1) float32 beside the images."""
    return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).to(images.device, non_blocking=True)


def _apply(operation: Callable[..., None], images: Tensor, chosen: Mask, *parameters: NDArray[Any], **options: Any) -> None:
    """Change the chosen images in place, each with its row of the parameters."""
    if chosen.all():
        operation(images, *parameters, **options)
    elif chosen.any():
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(images.device)
        part = images[rows]
        operation(part, *(values[chosen] for values in parameters), **options)
        images.index_copy_(0, rows, part)


def flip_(images: Tensor, dim: int) -> None:
    """Mirror left and right (dim -1) or top and bottom (dim -2); any type of number."""
    images.copy_(images.flip(dim))


def _flip(images: Tensor, chosen: Mask, dim: int) -> None:
    """Mirror the chosen images in place; on the CPU one at a time, where gathering and putting back costs ten times the mirroring."""
    if images.device.type == "cpu":
        for i in np.flatnonzero(chosen).tolist():
            flip_(images[i], dim)
    else:
        _apply(flip_, images, chosen, dim=dim)


def rotate_(images: Tensor, degrees: Floats) -> None:
    """Turn counter-clockwise about the centre, bilinear; uncovered pixels are 0."""
    H, W = images.shape[-2:]
    angle = np.deg2rad(degrees)
    cos, sin = _column(np.cos(angle), images)[..., 0], _column(np.sin(angle), images)[..., 0]  # (B, 1, 1)
    x = torch.arange(W, device=images.device) - (W - 1) / 2
    y = (torch.arange(H, device=images.device) - (H - 1) / 2)[:, None]
    # Where each pixel comes from: the inverse rotation, y pointing down, in grid_sample's units of half a side.
    grid = torch.stack([(cos * x - sin * y) * (2 / W), (sin * x + cos * y) * (2 / H)], dim=-1)
    images.copy_(F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False))


class _Workspace(threading.local):
    """What `_planes` hands out on the CPU, kept from one call to the next."""

    memory: Tensor | None = None


_workspace = _Workspace()
WORKSPACE_BYTES = 2**26  # beyond it memory is not kept


def _planes(images: Tensor, count: int) -> list[Tensor]:
    """`count` float32 tensors (B, 1, H, W) of undefined values beside the images, this thread's until it asks again.

    On the CPU they lie in memory that is kept: the C library gives freed memory of this size back to the system and gets it
    again page by page, which was most of the time of `adjust_hue_`.
    """
    B, _, H, W = images.shape
    wanted, size = count * B * H * W, (B, 1, H, W)
    if images.device.type != "cpu" or 4 * wanted > WORKSPACE_BYTES:
        return [torch.empty(size, dtype=torch.float32, device=images.device) for _ in range(count)]
    if _workspace.memory is None or _workspace.memory.numel() < wanted:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written to outside it
            _workspace.memory = torch.empty(wanted, dtype=torch.float32, device="cpu")
    return [part.view(size) for part in _workspace.memory[:wanted].split(B * H * W)]


def _luma(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma in [0, 1], in planes of `_planes`."""
    out, work = _planes(images, 2)
    r, g, b = images.split(1, dim=1)
    torch.mul(r, GRAY_WEIGHTS[0], out=out)
    return out.add_(torch.mul(g, GRAY_WEIGHTS[1], out=work)).add_(torch.mul(b, GRAY_WEIGHTS[2], out=work))


def adjust_brightness_(images: Tensor, factors: Floats) -> None:
    """Blend with black: factor 0 is black, 1 the image."""
    images.mul_(_column(factors, images)).clamp_(0, 1)


def adjust_contrast_(images: Tensor, factors: Floats) -> None:
    """Blend with the mean luma of each image: factor 0 is grey all over, 1 the image."""
    pixels = images.shape[-2] * images.shape[-1]
    # Summed as integers below 2^53 / 2^20 pixels, so that the order of summation, which follows batch and device, cannot matter.
    mean = _luma(images).mul_(2.0**20).round_().sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).div_(2.0**20 * pixels).float()
    images.mul_(_column(factors, images)).add_(mean * _column(1 - factors, images)).clamp_(0, 1)


def adjust_saturation_(images: Tensor, factors: Floats) -> None:
    """Blend with the luma: factor 0 is black and white, 1 the image."""
    rest = _luma(images).mul_(_column(1 - factors, images))
    images.mul_(_column(factors, images)).add_(rest).clamp_(0, 1)


def adjust_hue_(images: Tensor, shifts: Floats) -> None:
    """Turn the hue of HSV by a fraction of the circle in [-0.5, 0.5]; value and saturation stay."""
    r, g, b = images.unbind(1)
    chroma, smallest, hue, work = (plane[:, 0] for plane in _planes(images, 4))
    torch.minimum(torch.minimum(r, g, out=smallest), b, out=smallest)
    torch.maximum(torch.maximum(r, g, out=chroma), b, out=chroma).sub_(smallest)
    # In sixths of the circle, red is 0 and every hue lies 1 - r + g + b from it when the smallest channel is scaled to 0 and
    # the largest to 1: one formula for the six cases of HSV. Green leads on one side, blue on the other. Greys have no hue.
    torch.add(g, b, out=hue).sub_(r).sub_(smallest).div_(torch.clamp_min(chroma, 1e-12, out=work)).add_(1)
    hue.copysign_(torch.sub(g, b, out=work)).add_(_column(6 * shifts, images)[:, 0])
    hue.sub_(torch.mul(hue, 1 / 6, out=work).floor_().mul_(6))  # in [0, 6]
    # HSV to RGB (Smith 1978) as three trapezoids around the circle: full for a third, falling for a sixth on each side.
    for channel, (centre, inverted) in enumerate(((3, False), (2, True), (4, True))):
        torch.sub(hue, centre, out=work).abs_()
        trapezoid = work.neg_().add_(2) if inverted else work.sub_(1)
        torch.mul(trapezoid.clamp_(0, 1), chroma, out=images[:, channel]).add_(smallest)


def grayscale_(images: Tensor) -> None:
    """Each channel becomes the luma."""
    images.copy_(_luma(images).expand_as(images))


def gaussian_blur_(images: Tensor, sigmas: Floats, radius: int) -> None:
    """Convolve with a Gaussian of sigma pixels, cut at `radius`, edges reflected; rows and columns one after the other.

    Taps below 1e-8 of the centre are left out: float32 would not see them.
    """
    offsets = np.arange(radius + 1)
    taps = np.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    taps[taps < 1e-8] = 0
    taps /= taps[:, :1] + 2 * taps[:, 1:].sum(axis=1, keepdims=True)
    reach = int((taps > 0).any(axis=0).sum()) - 1
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        length = images.shape[dim]
        padded = F.pad(images, padding, mode="reflect")
        images.mul_(_column(taps[:, 0], images))
        for i in range(1, reach + 1):
            pair = padded.narrow(dim, reach - i, length) + padded.narrow(dim, reach + i, length)
            images.add_(pair.mul_(_column(taps[:, i], images)))


def solarize_(images: Tensor) -> None:
    """Invert all values of at least 0.5, that is, take the smaller of value and inverse."""
    torch.minimum(images, 1 - images, out=images)


def normalize_(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """(value - mean) / std for each channel."""
    images.sub_(_channels(tuple(mean), images.dtype, images.device)).div_(_channels(tuple(std), images.dtype, images.device))


@functools.lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3, 1, 1), made once: on a GPU making it means waiting for the copy."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


def erase_(images: Tensor, boxes: Integers) -> None:
    """Set a box of each normalised image to 0, the mean; a box without area changes nothing."""
    for i in np.flatnonzero(boxes[:, 2:].all(axis=1)):
        top, left, height, width = boxes[i].tolist()
        images[i, :, top : top + height, left : left + width] = 0


JITTERS: tuple[Callable[[Tensor, Floats], None], ...] = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)


@dataclass(frozen=True)
class Jitter:
    """Colour changes of n images. factors: (n, 4) of brightness, contrast, saturation, hue; order: (n, 4) which of them comes when."""

    chosen: Mask
    factors: Floats
    order: Integers

    def __getitem__(self, rows: slice) -> Jitter:
        return Jitter(self.chosen[rows], self.factors[rows], self.order[rows])


def draw_jitter(u: Floats, strengths: Sequence[float], chosen: Mask) -> Jitter:
    """Factors uniform around 1 (hue: 0), never below 0, and a random order for each image; u (n, 8)."""
    *blends, hue = strengths
    low = np.array([*(max(0.0, 1 - strength) for strength in blends), -hue])
    high = np.array([*(1 + strength for strength in blends), hue])
    return Jitter(chosen, low + u[:, :4] * (high - low), np.argsort(u[:, 4:], axis=1, kind="stable").astype(np.int64))


def _jitter(images: Tensor, jitter: Jitter, strengths: Sequence[float]) -> None:
    """Apply the operations of nonzero strength to the chosen images, each image in its own order."""
    for kinds in jitter.order.T:
        for kind in sorted(set(kinds.tolist())):
            if strengths[kind] > 0:
                _apply(JITTERS[kind], images, jitter.chosen & (kinds == kind), jitter.factors[:, kind])


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Plan:
    """What will be done to each of n images: masks (n,), numbers (n,) or (n, 4); None for an operation that is off."""

    boxes: Integers
    horizontal_flip: Mask | None = None
    vertical_flip: Mask | None = None
    degrees: Floats | None = None
    jitter: Jitter | None = None
    grayscale: Mask | None = None
    blurred: Mask | None = None
    sigmas: Floats | None = None
    solarize: Mask | None = None
    erasures: Integers | None = None

    def rows(self, start: int, stop: int) -> Plan:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return Plan(**{name: value[start:stop] for name, value in values if value is not None})


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Decoded images -> normalised training batch. The fields are those of the recipe's `augment`, with their units."""

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    interpolation: str
    random_resized_crop: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    random_crop: int | None
    horizontal_flip: float
    vertical_flip: float
    rotation: float
    color_jitter: tuple[float, ...] | None
    color_jitter_probability: float
    grayscale: float
    gaussian_blur: float
    solarize: float
    random_erasing: float

    @classmethod
    def from_section(cls, section: AugmentSection, *, size: Size, mean: Sequence[float], std: Sequence[float], seed: int, interpolation: str) -> Self:
        """As the recipe says; mixup and CutMix, which need a whole window, are left to `window_mix`."""
        values = section.model_dump(exclude={"mixup", "cutmix"})
        settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(size=size, mean=tuple(mean), std=tuple(std), seed=seed, interpolation=interpolation, **settings)

    def __call__(self, images: Images, *, samples: Integers, epoch: int) -> Tensor:
        """float32 (B, 3, H, W), normalised, on the device of the images; samples: (B,) the numbers that key the draws.

        DataError for an image that is smaller than its crop.
        """
        plan = self.plan(images.shapes, samples, epoch)
        if self.random_resized_crop is not None:
            pixels = resized_crop(images, plan.boxes, self.size, self.interpolation)
        else:
            pixels = crop(images, plan.boxes)
        for mask, dim in ((plan.horizontal_flip, -1), (plan.vertical_flip, -2)):
            if mask is not None:
                _flip(pixels, mask, dim)
        return _painted(pixels, functools.partial(self._paint, plan))

    def plan(self, shapes: Sequence[Size], samples: Integers, epoch: int) -> Plan:
        """The draws of each sample in this epoch. Operations that are off draw nothing."""

        def draw(operation: str, count: int) -> Floats:
            return uniforms(self.seed, epoch, samples, operation, count)

        def chosen(operation: str, probability: float) -> Mask | None:
            return draw(operation, 1)[:, 0] < probability if probability > 0 else None

        plan = Plan(
            self._crop_boxes(shapes, draw),
            horizontal_flip=chosen("horizontal_flip", self.horizontal_flip),
            vertical_flip=chosen("vertical_flip", self.vertical_flip),
            grayscale=chosen("grayscale", self.grayscale),
            solarize=chosen("solarize", self.solarize),
        )
        if self.rotation > 0:
            plan = replace(plan, degrees=self.rotation * (2 * draw("rotation", 1)[:, 0] - 1))
        if self.color_jitter is not None and self.color_jitter_probability > 0:
            u = draw("color_jitter", 9)
            plan = replace(plan, jitter=draw_jitter(u[:, 1:], self.color_jitter, u[:, 0] < self.color_jitter_probability))
        if self.gaussian_blur > 0:
            u = draw("gaussian_blur", 2)
            plan = replace(plan, blurred=u[:, 0] < self.gaussian_blur, sigmas=BLUR_SIGMA[0] + u[:, 1] * (BLUR_SIGMA[1] - BLUR_SIGMA[0]))
        if self.random_erasing > 0:
            u = draw("random_erasing", 1 + 2 * TRIES + 2)
            plan = replace(plan, erasures=draw_erasing(u[:, 1:], self.size) * (u[:, :1] < self.random_erasing))
        return plan

    def _crop_boxes(self, shapes: Sequence[Size], draw: Callable[[str, int], Floats]) -> Integers:
        if self.random_resized_crop is not None:
            return draw_resized_crop(draw("random_resized_crop", 2 * TRIES + 2), shapes, self.random_resized_crop, self.crop_ratio)
        _check_sizes(shapes, self.size, self.random_crop or 0)
        if self.random_crop is not None:
            return draw_crop(draw("random_crop", 2), shapes, self.size, self.random_crop)
        return center_boxes(shapes, self.size)

    def _paint(self, plan: Plan, images: Tensor, start: int, stop: int) -> None:
        """All that follows crop and flips, in place, on images `start` to `stop` of the plan as float32 in [0, 1]."""
        part = plan.rows(start, stop)
        if part.degrees is not None:
            rotate_(images, part.degrees)
        if self.color_jitter is not None and part.jitter is not None:
            _jitter(images, part.jitter, self.color_jitter)
        if part.grayscale is not None:
            _apply(grayscale_, images, part.grayscale)
        if part.blurred is not None and part.sigmas is not None:
            _apply(gaussian_blur_, images, part.blurred, part.sigmas, radius=blur_radius(self.size))
        if part.solarize is not None:
            _apply(solarize_, images, part.solarize)
        normalize_(images, self.mean, self.std)
        if part.erasures is not None:
            erase_(images, part.erasures)


def blur_radius(size: Size) -> int:
    """Half the blur's kernel in pixels: kernel 2 r + 1 is about a tenth of the short side, at least 3."""
    short = min(size)
    return min(max(1, short // 20), short - 1)


def evaluate_view(images: Images, *, size: Size, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 (B, 3, H, W): the centre of each image, normalised. DataError for an image smaller than `size`."""
    _check_sizes(images.shapes, size, 0)
    return normalized(crop(images, center_boxes(images.shapes, size)), mean=mean, std=std)


def normalized(pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 (B, 3, H, W) of uint8 pixels of the same shape: scaled to [0, 1], then normalised."""
    return _painted(pixels, lambda part, start, stop: normalize_(part, mean, std))


def _painted(pixels: Tensor, paint: Callable[[Tensor, int, int], None]) -> Tensor:
    """uint8 (B, 3, H, W) as float32 in [0, 1], changed in place by paint(images, start, stop).

    Times 1/255 and not divided by 255: the same bits as torchvision's to_dtype, which `pellucid verify` goes through.
    On the CPU one image at a time, which stays in the cache; elsewhere all at once. The bits are the same.
    """
    out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    step = 1 if pixels.device.type == "cpu" else max(1, len(pixels))
    for start in range(0, len(pixels), step):
        stop = start + step
        paint(out[start:stop].copy_(pixels[start:stop]).mul_(1.0 / 255), start, stop)
    return out


def _check_sizes(shapes: Sequence[Size], size: Size, padding: int) -> None:
    for height, width in shapes:
        if height + 2 * padding < size[0] or width + 2 * padding < size[1]:
            around = f" with {padding} pixels of padding" if padding else ""
            raise DataError(
                f"expected images of at least {size[0]}x{size[1]} pixels (height x width), got one of {height}x{width}{around}. "
                "Lower data.image_size, or let data.fit resize the images to it."
            )


# ── mixup and CutMix: one draw for each window ────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Mix:
    """How each image of a window meets its partner, the one before it. lam: share in [0, 1] of the image itself.

    box: the (top, left, height, width) that comes from the partner (CutMix); lam is then exactly 1 - box area / image area.
    """

    kind: Literal["mixup", "cutmix"]
    lam: float
    box: tuple[int, int, int, int] | None = None


def window_mix(seed: int, epoch: int, window: int, *, mixup: float, cutmix: float, size: Size) -> Mix | None:
    """The mix of a window from Beta(alpha, alpha) with alpha mixup or cutmix; None when both are 0, at even odds when neither is."""
    key = np.array([window])
    kind_is_mixup = uniforms(seed, epoch, key, "mix_kind", 1).item() < 0.5 if mixup and cutmix else mixup > 0
    if kind_is_mixup:
        return Mix("mixup", beta(seed, epoch, key, "mixup", mixup).item())
    if not cutmix:
        return None
    lam = beta(seed, epoch, key, "cutmix", cutmix).item()
    u, v = uniforms(seed, epoch, key, "cutmix_box", 2)[0].tolist()
    return cutmix_mix(lam, (int(u * size[0]), int(v * size[1])), size)


def cutmix_mix(lam: float, center: tuple[int, int], size: Size) -> Mix:
    """A box of about 1 - lam of the area around `center` (row, column), cut at the edges, with lam set to what is left of the image."""
    half = 0.5 * math.sqrt(1 - lam)
    reach = [int(half * side) for side in size]
    top, left = (max(c - r, 0) for c, r in zip(center, reach, strict=True))
    bottom, right = (min(c + r, side) for c, r, side in zip(center, reach, size, strict=True))
    height, width = bottom - top, right - left
    return Mix("cutmix", 1 - height * width / (size[0] * size[1]), (top, left, height, width))


def mix_pair(images: Tensor, partners: Tensor, mix: Mix) -> Tensor:
    """(B, C, H, W) new images: lam of each with 1 - lam of its partner (Zhang et al. 2018), or with the partner's box (Yun et al. 2019).

    The partner of position j of a window is position j - 1, of the first the last, wherever the window is cut.
    """
    if mix.box is None:
        return images.mul(mix.lam).add_(partners.mul(1 - mix.lam))
    top, left, height, width = mix.box
    mixed = images.clone()
    mixed[..., top : top + height, left : left + width] = partners[..., top : top + height, left : left + width]
    return mixed


def mix_targets(targets: Tensor, partner_targets: Tensor, mix: Mix) -> Tensor:
    """(B, C) soft targets: lam of each with 1 - lam of its partner's."""
    return targets.mul(mix.lam).add_(partner_targets.mul(1 - mix.lam))
