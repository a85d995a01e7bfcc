"""Which layers of a model hold a map of the image, where the image lies in them, and which of them the class score still reads.

One traced forward pass answers for any model: hooks see every module's output, a shape tells how the image lies in it, and one
gradient tells whether the score of the class depends on its patches. Three arrangements are known:

    first    (B, C, gh, gw)   convolutional networks
    last     (B, gh, gw, C)   Swin of timm and torchvision
    tokens   (B, N, C)        ViT: prefix tokens (class, distillation, register), then patches row by row; Swin of transformers has no prefix

Not covered: layers whose tokens are a subset or a shuffle of the patches (token merging, windows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import UsageError, did_you_mean
from pellucid.inside.geometry import prefix_tokens

_REARRANGE = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten)
_REARRANGE_NAMES = ("Permute", "DropPath", "StochasticDepth")  # of torchvision and timm, known by name so that neither is imported here


@dataclass(frozen=True)
class Arrangement:
    """How the image lies in a layer's output: `axes` is "first", "last" or "tokens", `prefix` the tokens before the patches."""

    axes: str
    grid: tuple[int, int]
    prefix: int = 0

    def patches(self, output: Tensor) -> Tensor:
        """The part of an output that lies on the image, (B, gh, gw, C)."""
        if self.axes == "first":
            return output.permute(0, 2, 3, 1)  # (B, gh, gw, C)
        if self.axes == "last":
            return output
        return output[:, self.prefix :].unflatten(1, self.grid)  # (B, gh, gw, C)


def arrangement_of(shape: Iterable[int], image: tuple[int, int], grids: Iterable[tuple[int, int]], *, channels_last: bool, prefix: int) -> Arrangement | None:
    """The arrangement that a shape has for an image of (height, width) pixels; None for one that holds no map.

    `grids` are the spatial shapes of the convolutions seen so far: tokens lie on one of them, after the model's `prefix` tokens
    or none, or on one halved once or more (patch merging). `channels_last` decides where both readings of four axes fit.
    """
    axes = tuple(shape)
    if len(axes) == 4:
        readings = {"first": (axes[2], axes[3]), "last": (axes[1], axes[2])}
        order = ("last", "first") if channels_last else ("first", "last")
        return next((Arrangement(name, readings[name]) for name in order if _is_map_of(readings[name], image)), None)
    if len(axes) != 3:
        return None
    for before in (prefix, 0):
        for h, w in reversed(list(grids)):
            if h * w > 1 and axes[1] - h * w == before:
                return Arrangement("tokens", (h, w), before)
    merged = ((-(-h // 2**k), -(-w // 2**k)) for h, w in grids for k in range(1, 6))
    return next((Arrangement("tokens", grid) for grid in merged if 1 < grid[0] * grid[1] == axes[1]), None)


def _is_map_of(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a grid is an evenly shrunken image: more than one cell, no side larger, the ratio of sides kept up to one cell of rounding."""
    (h, w), (height, width) = grid, image
    if h > height or w > width or h * w <= 1:
        return False
    return h == w if height == width else abs(w - h * width / height) <= 1 or abs(h - w * height / width) <= 1


@dataclass(frozen=True)
class Layer:
    """One module of a traced pass: the shape of its last output, where the image lies in it, and whether a map may be read from it unasked."""

    name: str
    shape: tuple[int, ...]
    arrangement: Arrangement | None
    offered: bool


@dataclass(frozen=True)
class Trace:
    """The layers of one forward pass in the order in which they finished, and the gradient of the class score at the last of those offered.

    Offered are the layers after which a map is usually read: any with channels first, else norms and what contains one (blocks);
    neither poolings nor class maps.
    """

    layers: dict[str, Layer]
    gradients: dict[str, Tensor]
    known: tuple[str, ...]  # every module, run or not

    @property
    def readable(self) -> list[str]:
        """The offered layers whose patches receive a gradient, first to last."""
        return [name for name, gradient in self.gradients.items() if bool(self._arrangement(name).patches(gradient).any())]

    @property
    def best(self) -> str:
        """The last layer whose patches the class score reads. UsageError where there is none."""
        if not self.readable:
            raise UsageError(
                "expected a layer that holds a map of the image and that the class score depends on; none was found. "
                "Either the model keeps no spatial layout (name a layer with layer=), or the score of this class is constant for this image."
            )
        return self.readable[-1]

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """The grid of patches of a model whose maps are tokens of one grid from first to last (ViT), None for any other (CNN, Swin)."""
        maps = [layer.arrangement for layer in self.layers.values() if layer.offered and layer.arrangement is not None]
        tokens = [arrangement for arrangement in maps if arrangement.axes == "tokens"]
        return maps[-1].grid if tokens and maps[-1].axes == "tokens" and tokens[0].grid == maps[-1].grid else None

    def arrangement(self, name: str) -> Arrangement:
        """Where the image lies in a layer's output. UsageError for a name that no layer has, a layer that did not run, or one without a map."""
        if name not in self.known:
            raise UsageError(f"layer: expected the name of a module, got {name!r}.{did_you_mean(name, self.known)} {self.best!r} would do.")
        if name not in self.layers:
            raise UsageError(f"layer {name!r} returned no tensor during the forward pass (or did not run). {self.best!r} would do.")
        if self.layers[name].arrangement is None:
            shape = ("B", *self.layers[name].shape[1:])
            raise UsageError(f"layer {name!r} returns ({', '.join(map(str, shape))}), which holds no map of the image. {self.best!r} would do.")
        return self._arrangement(name)

    def _arrangement(self, name: str) -> Arrangement:
        found = self.layers[name].arrangement
        assert found is not None
        return found


def traced(model: nn.Module, image: Tensor, scores: Callable[[Tensor], tuple[Tensor, int]]) -> Trace:
    """One forward pass of one image (1, 3, H, W), and the gradient of its class score at the last layers that are offered for a map.

    `scores(images)` runs the model and returns the class score of each image, (B,), and the number of classes. The image is given twice, so
    that what broadcasts over the batch (a table of position biases) is not taken for an output. The backward pass goes no deeper than
    the last eight offered layers, about two blocks, unless the patches have no gradient at any of them.
    """
    outputs: dict[str, tuple[nn.Module, Tensor]] = {}

    def keep(name: str, module: nn.Module, output: Any) -> None:
        found = tensor_in(output)
        if found is not None:
            outputs.pop(name, None)  # to the end: order is that of the last call
            outputs[name] = (module, found)

    with hooked(model, keep):
        score, num_classes = scores(image.repeat(2, 1, 1, 1))
    layers = _arranged(outputs, (image.shape[-2], image.shape[-1]), num_classes, len(prefix_tokens(model)))
    offered = [name for name, layer in layers.items() if layer.offered and outputs[name][1].requires_grad]
    known = tuple(name for name, _ in model.named_modules() if name)
    trace = Trace(layers, {}, known)
    for part in (offered[-8:], offered[:-8]):
        if part and score.requires_grad and not trace.readable:
            found = torch.autograd.grad(score.sum(), [outputs[name][1] for name in part], allow_unused=True, retain_graph=True)
            gradients = {name: gradient for name, gradient in zip(part, found, strict=True) if gradient is not None}
            trace = Trace(layers, gradients | trace.gradients, known)
    return trace


def _arranged(outputs: dict[str, tuple[nn.Module, Tensor]], image: tuple[int, int], num_classes: int, prefix: int) -> dict[str, Layer]:
    """The layers of a pass, with what may be read from each."""
    layers: dict[str, Layer] = {}
    grids: list[tuple[int, int]] = []
    pooled: Tensor | None = None
    lengths: set[int] = set()  # of rows of tokens
    last_linear = max((i for i, (module, _) in enumerate(outputs.values()) if isinstance(module, nn.Linear)), default=-1)
    for i, (name, (module, output)) in enumerate(outputs.items()):
        normed = _has_norm(module)
        found = arrangement_of(output.shape, image, grids, channels_last=normed and not _has_convolution(module), prefix=prefix) if len(output) == 2 else None
        if isinstance(module, nn.Conv2d) and output.ndim == 4:
            grids.append((output.shape[2], output.shape[3]))
        if "Pool" in type(module).__name__ and not any(True for _ in module.parameters()):
            pooled = output
        offered = found is not None and (found.axes == "first" or normed) and output is not pooled and not _only_rearranges(module)
        if found is not None and found.axes == "tokens":
            lengths.add(output.shape[1])
        elif found is not None:
            of_heads = output.shape[2] in lengths or (found.axes == "last" and output.shape[1] in lengths)  # (B, h, N, d) or (B, h, N, N)
            class_map = found.axes == "first" and output.shape[1] == num_classes and i > last_linear  # SqueezeNet's head
            offered = offered and not of_heads and not class_map
        layers[name] = Layer(name, tuple(output.shape), found, offered)
    return layers


def _only_rearranges(module: nn.Module) -> bool:
    return isinstance(module, _REARRANGE) or type(module).__name__ in _REARRANGE_NAMES


def _has_norm(module: nn.Module) -> bool:
    return any("Norm" in type(m).__name__ for m in module.modules())


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in module.modules())


def tensor_in(output: Any) -> Tensor | None:
    """The tensor that a module hands on: its output, or the first of a tuple. None for anything else."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@contextmanager
def hooked(model: nn.Module, seen: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """While open, `seen(name, module, output)` is called after every module but the model itself."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(lambda m, _, output, name=name: seen(name, m, output)))
        yield


@contextmanager
def kept_output(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """While open, the outputs of one layer are appended to the list that is given, one for each of its calls.

    The model goes on with a copy, so that an operation in place (`out += identity`) changes neither the kept value nor its gradient.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        found = tensor_in(output)
        if found is None:
            return None
        kept.append(found)
        return found.clone() if isinstance(output, Tensor) else type(output)((found.clone(), *output[1:]))

    with model.get_submodule(name).register_forward_hook(keep):
        yield kept
