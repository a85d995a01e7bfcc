"""What a step needs in memory, counted without doing it, and the micro-batch that fits.

Activations are counted on the meta device: every tensor that autograd would keep for the backward pass, no arithmetic
done. Weights, gradients, moments, SAM's copy and the moving average are known to the byte. What kernels take for
themselves is not counted, which is why `find_micro_batch` in `trial` tries a whole step where it could be close.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pellucid.errors import PellucidError
from pellucid.models import train_mode
from pellucid.models.recompute import blocks
from pellucid.pixel_losses import Term, kept_floats
from pellucid.recipe import Recipe
from pellucid.runtime import Runtime, free_memory

if TYPE_CHECKING:
    from pellucid.models.captioner import Captioner

_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1, "lars": 1}
ROOM = 0.9  # share of the free memory that a plan fills


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step. fixed: whatever the micro-batch; activations: for each image of it."""

    weights: int
    average: int
    moments: int
    gradients: int
    perturbation: int
    activations: int

    @property
    def fixed(self) -> int:
        return self.weights + self.average + self.moments + self.gradients + self.perturbation

    @property
    def checkpoint(self) -> int:
        """Bytes on disk of one checkpoint."""
        return self.weights + self.average + self.moments

    def total(self, micro_batch_size: int) -> int:
        return self.fixed + micro_batch_size * self.activations


def step_memory(module: nn.Module, recipe: Recipe, activations: int) -> StepMemory:
    """The bytes of a step with this model, which knows what is trained, and `activations` bytes for each image."""
    phases = recipe.train.phases
    weights = sum(v.numel() * v.element_size() for v in module.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    moments = max(_MOMENTS[phase.optimizer.name] for phase in phases)
    sam = any(phase.optimizer.sam for phase in phases)
    return StepMemory(weights, weights if recipe.train.ema else 0, trained * moments, trained, trained if sam else 0, activations)


def forward_cost(module: nn.Module, recipe: Recipe, frozen: list[str]) -> tuple[int, int]:
    """(bytes that autograd keeps for one image, multiply-adds times two of one forward pass), counted on the meta device.

    Two images are run and halved: BatchNorm after global pooling refuses a batch of one. With activation checkpointing
    a block keeps its input, and the fullest block its inside. Raises PellucidError when the model does not run on
    images of the recipe's size.
    """
    meta = deepcopy(module).to("meta")
    train_mode(meta, frozen)
    kept = _Kept({id(p.untyped_storage()) for p in meta.parameters()})
    if recipe.train.activation_checkpointing:
        for path in blocks(meta):
            kept.watch(path, meta.get_submodule(path))
    images = torch.zeros((2, 3, *recipe.data.size), device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda t: t), FlopCounterMode(display=False) as counter:
            output = meta(*training_inputs(meta, recipe, images))
    except (NotImplementedError, RuntimeError) as error:
        height, width = recipe.data.size
        raise PellucidError(f"{recipe.model.name} does not run on images of {height}x{width} pixels: {str(error).splitlines()[0]}") from None
    halved = kept.num_bytes // 2
    if recipe.train.precision != "fp32":
        halved //= 2
    return halved + _kept_by_loss(output, recipe), counter.get_total_flops() // 2


def training_inputs(module: nn.Module, recipe: Recipe, images: Tensor) -> tuple[Tensor, ...]:
    """What the forward pass of a training step takes of some images: two views of each in pre-training, tokens of captions where these are learned."""
    if recipe.method is not None:
        return images, torch.zeros_like(images)
    if recipe.captioned:
        captioner = cast("Captioner", module)  # whose import takes seconds
        captions, length = captioner.typical
        tokens = torch.full((len(images) * captions, length), captioner.start, device=images.device)
        return images, tokens, torch.arange(len(images), device=images.device).repeat_interleave(captions)
    return (images,)


def _kept_by_loss(output: Any, recipe: Recipe) -> int:
    """Bytes that the loss of one image keeps, where it is over pixels or words; that of a few classes is nothing beside the rest."""
    if recipe.captioned:  # of the two images of `output`, in float32: logits and log probabilities
        return 4 * output.numel()
    if not recipe.masked:
        return 0
    terms = [Term(term.name) for term in recipe.loss.summed]
    every = output if isinstance(output, tuple) else (output,)
    return sum(4 * kept_floats(terms, logits.shape[1]) * math.prod(logits.shape[2:]) for logits in every)


class _Kept:
    """Counts what autograd keeps, apart for each block that is computed again."""

    def __init__(self, own: set[int]) -> None:
        self._own = own
        self._place = ""
        self._storages: dict[str, dict[int, int]] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and id(storage) not in self._own:
            self._storages.setdefault(self._place, {})[storage._cdata] = storage.nbytes()
        return tensor

    def watch(self, path: str, block: nn.Module) -> None:
        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            for value in inputs:
                if isinstance(value, Tensor):
                    self.keep(value)
            self._place = path

        def leave(_: nn.Module, inputs: Any, output: Any) -> None:
            self._place = ""

        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)

    @property
    def num_bytes(self) -> int:
        inside = [sum(storages.values()) for path, storages in self._storages.items() if path]
        return sum(self._storages.get("", {}).values()) + max(inside, default=0)


def fitting_micro_batch(batch_size: int, memory: StepMemory, free: int) -> int:
    """The largest halving of the batch that fits into nine tenths of the free bytes; at least 1."""
    micro = batch_size
    while micro > 1 and memory.total(micro) > ROOM * free:
        micro = math.ceil(micro / 2)
    return micro


def no_room(recipe: Recipe, runtime: Runtime, build: Callable[[Recipe], nn.Module] | None = None, *, what: str = "") -> str:
    """The message of an OutOfMemoryError, with what would fit."""
    runtime.free_cached()
    height, width = recipe.data.size
    wanted = what or f"for one image of {height}x{width} pixels"
    return f"no memory {wanted} on {runtime.device} ({free_memory(runtime.device) / 1e9:.1f} GB free). {what_would_fit(recipe, runtime, build)}"


def what_would_fit(recipe: Recipe, runtime: Runtime, build: Callable[[Recipe], nn.Module] | None) -> str:
    """A sentence: the settings that need less, and the largest smaller image size by count where the model can be built for it."""
    ways = []
    if not recipe.train.activation_checkpointing:
        ways.append("train.activation_checkpointing: true")
    if recipe.train.precision == "fp32":
        ways.append("train.precision: bf16")
    size = _size_that_fits(recipe, free_memory(runtime.device), build) if build is not None else None
    ways.append(f"data.image_size: {size[0]} (about {size[1] / 1e9:.1f} GB)" if size else "a smaller data.image_size")
    return f"What would need less: {', '.join(ways)}, or a smaller model."


def _size_that_fits(recipe: Recipe, free: int, build: Callable[[Recipe], nn.Module]) -> tuple[int, int] | None:
    """(pixels of a side, bytes) of the largest size below the recipe's at which one image fits by count; None when none of a few does."""
    side = min(recipe.data.size)
    for share in (0.75, 0.5, 0.25):
        smaller = max(32, int(side * share) // 32 * 32)
        if smaller >= side:
            continue
        trial = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image_size": smaller})})
        try:
            module = build(trial)
            needed = step_memory(module, trial, forward_cost(module, trial, [])[0]).total(1)
        except (PellucidError, RuntimeError, ValueError, AssertionError):
            continue  # not a size of this model
        if needed < ROOM * free:
            return smaller, needed
    return None
