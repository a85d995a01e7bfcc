"""What a recipe would do, before it does it: steps, parameters, sizes, memory and time.

Counts are exact. Activations are counted on the meta device (every tensor that autograd would save, no arithmetic
done); the time is measured with a few real steps of the real model on this machine and scaled to the whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import nn

from pellucid import recipe as recipes
from pellucid.cached import KeptSize, check_cached
from pellucid.data.dataset import Dataset
from pellucid.data.sources import load_dataset
from pellucid.inside.features import penultimate
from pellucid.inside.whole_attention import planned
from pellucid.mask_findings import kept_size
from pellucid.memory import fitting_micro_batch, forward_cost, step_memory, training_inputs
from pellucid.models import Built, set_trainable, train_mode
from pellucid.neighbour_findings import NEIGHBOUR_SIDE
from pellucid.optim import learning_rate, warmup_steps
from pellucid.recipe import Recipe
from pellucid.run import PROBE_SIDE, THUMBNAILS
from pellucid.runtime import Runtime, free_memory, out_of_memory, start
from pellucid.schema import MapMethod
from pellucid.snapshots import looked_at, probe_of
from pellucid.tasks import MODELS
from pellucid.tasks.captioning import mirror_notes, with_tokenizer

TIMED_IMAGES = 4
TIMED_SECONDS = 0.5
MASK_BYTES = 2  # of a pixel at an epoch: its class and its confidence
PIXEL_BYTES = 0.2  # of a tile of an atlas, about: 0.14 of drawn scenes, more of photographs


@dataclass(frozen=True)
class PhasePlan:
    """One phase: its steps and its learning rate at the first, highest and last step."""

    optimizer: str
    schedule: str
    epochs: int
    steps: int
    first_lr: float
    peak_lr: float
    last_lr: float


@dataclass(frozen=True)
class Plan:
    """The figures of a recipe. Sizes in bytes; seconds for training alone, None when nothing was timed.

    pixels: of masks, the pixels of each class of `class_names` in each split, the ignored ones last; {} without masks.
    """

    classes: int
    images: dict[str, int]
    steps_per_epoch: int
    total_steps: int
    phases: tuple[PhasePlan, ...]
    num_params: int
    num_trainable: int
    weights_bytes: int
    checkpoint_bytes: int
    fixed_bytes: int
    activation_bytes_per_image: int
    micro_batch_size: int
    memory_bytes: int
    free_bytes: int
    forward_flops_per_image: int
    seconds_per_image: float | None
    seconds: float | None
    device: str
    notes: tuple[str, ...]
    resolved: str
    formats: tuple[Format, ...] = ()
    snapshots: SnapshotPlan | None = None
    class_names: tuple[str, ...] = ()
    pixels: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class SnapshotPlan:
    """What a run with `inside` keeps: features of `images` images of a split, `features` numbers each, at each of the epochs, in half precision.

    maps_bytes is the most that maps of `pictures` pictures take: every method that is asked for, in float32 on the finest grid of the model. Of a
    segmentation there are no features and the predicted masks of the pictures, masks_bytes before they are packed. attention_bytes: of all patches, before they
    are packed. neighbours: training images to compare with; neighbours_bytes: their features and those of mistakes. tiles_bytes: about what atlases take.
    """

    epochs: tuple[int, ...]
    split: str
    images: int
    features: int
    pictures: int
    features_bytes: int
    maps_bytes: int
    masks_bytes: int = 0
    attention_bytes: int = 0
    neighbours: int = 0
    neighbours_bytes: int = 0
    tiles_bytes: int = 0


@dataclass(frozen=True)
class Format:
    """A number and memory format with its measured seconds of one image, forward and backward; ratio to the recipe's own."""

    settings: str
    seconds_per_image: float
    ratio: float


def plan(recipe: Recipe, *, timing: bool = True, formats: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Plan:
    """The plan of a recipe on this machine. Reads the data, downloads nothing, writes nothing but caches.

    formats: also measure the other number and memory formats, of which none is the fastest everywhere.
    """
    t = recipe.train
    runtime = start(device=t.device, precision=t.precision, threads=t.threads, channels_last=t.channels_last)
    dataset = load_dataset(
        recipe.data,
        seed=recipe.seed,
        masks=recipe.masked,
        captions=recipe.captioned,
        least=recipe.least_size,
        fewest_classes=recipe.fewest_classes,
        progress=progress,
    )
    if recipe.captioned:
        dataset = with_tokenizer(recipe, dataset)
    built, _ = MODELS[recipe.task](recipe, dataset.outputs, start_weights=False)
    frozen = set_trainable(built.module, recipe.model.freeze, built.classifier, built.backbone, built.untrained)
    params = list(built.module.parameters())
    activations, flops = forward_cost(built.module, recipe, frozen)
    memory = step_memory(built.module, recipe, activations)
    free = free_memory(runtime.device)
    micro = fitting_micro_batch(t.batch_size, memory, free) if t.micro_batch_size == "auto" else min(t.micro_batch_size, t.batch_size)
    steps_per_epoch = math.ceil(len(dataset.splits["train"]) / t.batch_size)
    per_image = _seconds_per_image(built.module, recipe, runtime, frozen) if timing else None
    passes = sum(phase.epochs * (2 if phase.optimizer.sam else 1) for phase in t.phases)
    validation = len(dataset.splits["val"]) / 3 * recipe.epochs / t.evaluate_every if "val" in dataset.splits else 0.0
    snapshots = _snapshots(recipe, dataset, built)
    kept = len(snapshots.epochs) * snapshots.images / 3 if snapshots is not None else 0.0
    cached = _cached(recipe, dataset, built, runtime, frozen)
    if cached is not None:
        passes, validation = cached.views + (recipe.model.head is not None and recipe.augment.changes), 3 * validation / recipe.epochs * t.evaluate_every
    seconds = None if per_image is None else per_image * (passes * len(dataset.splits["train"]) + validation + kept)
    return Plan(
        len(dataset.classes), {name: len(split) for name, split in dataset.splits.items()}, steps_per_epoch, recipe.epochs * steps_per_epoch,
        tuple(_phase_plan(phase, steps_per_epoch) for phase in t.phases), sum(p.numel() for p in params), sum(p.numel() for p in params if p.requires_grad),
        memory.weights, memory.checkpoint, memory.fixed, activations, micro, memory.total(micro), free, flops, per_image, seconds,
        str(runtime.device), tuple(_notes(recipe, dataset, built.notes, cached)), recipes.to_yaml(recipe),
        _formats(built.module, recipe, runtime, frozen) if formats else (), snapshots, dataset.classes, _pixels(dataset),
    )  # fmt: skip


def _pixels(dataset: Dataset) -> dict[str, list[int]]:
    """{split: pixels of each class, the ignored ones last} of the splits whose samples have masks."""
    records = [split.record(len(dataset.classes)) for split in dataset.splits.values() if split.masks is not None]
    return {record.name: record.pixels for record in records}


def _snapshots(recipe: Recipe, dataset: Dataset, built: Built) -> SnapshotPlan | None:
    """What snapshots hold, counted on the meta device. Reads the pictures to look at, so that what is missing is told before training."""
    inside, looked = recipe.inside, looked_at(recipe, dataset)
    if inside is None or looked is None:
        return None
    epochs = tuple(inside.chosen_epochs(recipe.epochs))
    meta = deepcopy(built.module).to("meta").eval()
    view = torch.zeros((2, 3, *recipe.data.size), device="meta")
    if recipe.masked:
        with _grids(meta) as grids:
            meta(view)
        images, width, methods = 0, 0, len(inside.methods or ("grad_cam",))
        masks = len(epochs) * sum(math.prod(kept_size(size)) for size in looked.sizes) * MASK_BYTES
    else:
        images = len(probe_of(inside, dataset).rows)
        with _grids(meta) as grids:
            width = (penultimate(meta, view, built.classifier) if built.classifier else meta(view)).shape[1]  # without a classifier the output are the features
        methods, masks = len(inside.methods or get_args(MapMethod)), 0
    maps = len(epochs) * len(looked) * methods * max(grids, default=1) * 4
    image = torch.zeros((1, 3, *recipe.data.size))
    attention, _ = planned(built.module, image, len(looked)) if inside.attention and len(looked) else (None, [])
    bank = min(inside.neighbours, len(dataset.splits["train"]))
    mistakes = [min(len(split), THUMBNAILS["classification"]) for name, split in dataset.splits.items() if name != "train" and recipe.task == "classification"]
    compared = (bank + sum(mistakes)) * width * 2 if bank else 0
    tiles = int((images * PROBE_SIDE**2 + bank * NEIGHBOUR_SIDE**2) * PIXEL_BYTES)
    return SnapshotPlan(
        epochs, inside.split, images, width, len(looked), len(epochs) * images * width * 2, maps, masks, attention.size if attention is not None else 0, bank,
        compared, tiles,
    )  # fmt: skip


@contextmanager
def _grids(module: nn.Module) -> Iterator[list[int]]:
    """Cells of the grids that maps can have: of a convolution that cuts patches (kernel = stride), else of the last convolution that sees more than one."""
    patches: list[int] = []
    last: list[int] = []

    def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
        assert isinstance(layer, nn.Conv2d)
        cells = math.prod(output.shape[2:])
        if layer.kernel_size == layer.stride != (1, 1) and cells > 1:
            patches.append(cells)
        elif cells > 1:
            last[:] = [cells]

    found: list[int] = []
    handles = [layer.register_forward_hook(keep) for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        found += patches or last


def _phase_plan(phase: recipes.PhaseSection, steps_per_epoch: int) -> PhasePlan:
    total = phase.epochs * steps_per_epoch
    peak = min(total - 1, warmup_steps(phase.schedule, steps_per_epoch))  # the highest rate stands here or one step before
    some = sorted({0, max(0, peak - 1), peak, total - 1, *range(0, total, max(1, total // 1000))})
    rates = [learning_rate(phase.schedule, peak=phase.optimizer.lr, step=s, total_steps=total, steps_per_epoch=steps_per_epoch) for s in some]
    name = phase.optimizer.name + (f" with SAM (rho {phase.optimizer.sam.rho:g})" if phase.optimizer.sam else "")
    return PhasePlan(name, phase.schedule.name, phase.epochs, total, rates[0], max(rates), rates[-1])


def _cached(recipe: Recipe, dataset: Dataset, built: Built, runtime: Runtime, frozen: list[str]) -> KeptSize | None:
    """What features take that the recipe keeps; UsageError where they cannot be kept."""
    if not recipe.model.cached_views:
        return None
    images = {name: len(split) for name, split in dataset.splits.items()}
    return check_cached(runtime.place(built.module), recipe, runtime, classifier=built.classifier, frozen=frozen, images=images)


def _notes(recipe: Recipe, dataset: Dataset, built: Any, cached: KeptSize | None) -> list[str]:
    notes = list(built)
    if cached is not None:
        notes.append(f"features of the frozen backbone are computed once and kept: {cached}; the time is that of computing them, the steps come on top")
    if recipe.model.pretrained:
        published = recipe.model.encoder if recipe.captioned and recipe.model.pretrained == "backbone" else recipe.model.name
        notes.append(f"training starts from the published weights of {published}: from the local cache, or downloaded when they are not there")
    if recipe.task == "pretraining":
        notes.append("the time is that of training alone: k-NN against the bank in each evaluation and the baselines after training come on top")
    if recipe.captioned and dataset.tokenizer is not None:
        notes += [dataset.tokenizer.vocabulary.how, *mirror_notes(recipe, dataset)]
        notes.append("the time is that of training alone: finding captions in each evaluation, and the maps of their words after training, come on top")
    if recipe.inside is not None:
        kept = "masks and maps at each kept epoch, their scores" if recipe.masked else "maps at each kept epoch, their scores, projections"
        kept = "projections of the features" if recipe.task == "pretraining" else kept
        notes.append(f"the time is that of training alone: {kept} and figures come on top")
    if recipe.model.weights:
        notes.append(f"training starts from {recipe.model.weights}")
    notes += [f"{p.split}: {p.kind}: {p.file} {p.detail}".strip() for p in dataset.problems[:10]]
    if len(dataset.problems) > 10:
        notes.append(f"and {len(dataset.problems) - 10} more findings: `pellucid data check RECIPE` lists them")
    return notes


def _formats(module: nn.Module, recipe: Recipe, runtime: Runtime, frozen: list[str]) -> tuple[Format, ...]:
    """fp32 and bf16 in both memory formats, the fastest first; each measured twice in turn, the faster time counts."""
    settings = [(precision, last) for precision in ("fp32", "bf16") for last in (False, True)]
    own = (recipe.train.precision, recipe.train.channels_last)
    settings += [own] if own not in settings else []
    times = dict.fromkeys(settings, math.inf)
    for _ in range(2):
        for precision, last in settings:
            seconds = _seconds_per_image(module, recipe, replace(runtime, precision=precision, channels_last=last), frozen)
            times[precision, last] = min(times[precision, last], seconds)
    return tuple(
        Format(f"train.precision: {precision}, train.channels_last: {str(last).lower()}", seconds, seconds / times[own])
        for (precision, last), seconds in sorted(times.items(), key=lambda item: item[1])
    )


def _seconds_per_image(module: nn.Module, recipe: Recipe, runtime: Runtime, frozen: list[str]) -> float:
    """Measured seconds of forward and backward pass for one image: the fastest of three passes after a warm-up.

    As many images at once as take about half a second, at most the batch: a few images alone would make small networks look slow.
    """
    runtime.place(module)
    train_mode(module, frozen)
    count = max(2, min(recipe.train.batch_size, TIMED_IMAGES))
    _timed_pass(module, recipe, runtime, count)
    first = _timed_pass(module, recipe, runtime, count)
    count = max(count, min(recipe.train.batch_size, int(count * TIMED_SECONDS / first)))
    try:
        return min(_timed_pass(module, recipe, runtime, count) for _ in range(3)) / count
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return first / max(2, min(recipe.train.batch_size, TIMED_IMAGES))


def _timed_pass(module: nn.Module, recipe: Recipe, runtime: Runtime, count: int) -> float:
    images = torch.zeros((count, 3, *recipe.data.size), device=runtime.device).to(memory_format=runtime.memory_format)
    began = time.perf_counter()
    with runtime.autocast():
        output = module(*training_inputs(module, recipe, images))
    outputs = output if isinstance(output, tuple) else (output,)  # (logits, auxiliary logits)
    torch.stack([one.float().sum() for one in outputs]).sum().backward()
    module.zero_grad(set_to_none=True)
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
