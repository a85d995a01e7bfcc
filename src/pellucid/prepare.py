"""Everything a run needs before its first step: machine, data, decoded pixels, model, task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.cached import check_cached
from pellucid.data.dataset import Dataset
from pellucid.data.draws import derived_seed
from pellucid.data.loader import Window, num_windows
from pellucid.data.sources import load_dataset
from pellucid.data.store import Pixels, Resizing, channel_statistics, open_pixels, open_targets
from pellucid.distributed import Processes
from pellucid.errors import DataError, PellucidError, UsageError
from pellucid.memory import fitting_micro_batch, forward_cost, step_memory, training_inputs
from pellucid.models import Built, set_trainable
from pellucid.models.backbones import MODELS_OWN
from pellucid.models.recompute import recompute_blocks
from pellucid.models.tiles import sees_everything
from pellucid.models.weights import under
from pellucid.optim import schedule_notes
from pellucid.progress import Progress
from pellucid.recipe import Recipe, SimClrMethod
from pellucid.run import DataProblem, DataRecord, Run, RunRecord
from pellucid.runtime import Runtime, describe, free_memory, seed_torch, start
from pellucid.snapshots import Looked, looked_at
from pellucid.tasks import MODELS, Stored, Task, build_task
from pellucid.tasks.captioning import mirror_notes, with_tokenizer

EVALUATION_BATCH = 64


class Sums(NamedTuple):
    """What the packs of a window sum to in this process, on the device: loss, right images or pixels, those of which that can be said."""

    loss: Tensor
    correct: Tensor | int
    counted: int
    took_part: bool = True


@dataclass
class Tally:
    """Sums over an epoch so far; those of the last steps stay on the device until somebody reads them."""

    loss: float = 0.0
    weight: float = 0.0
    correct: int = 0
    counted: int = 0
    seconds: float = 0.0
    pending: list[tuple[Window, Sums, float]] = field(default_factory=list)

    def state(self) -> dict[str, float]:
        return {"loss": self.loss, "weight": self.weight, "correct": self.correct, "counted": self.counted, "seconds": self.seconds}


@dataclass
class Position:
    """Where training stands; all of it is in every checkpoint."""

    step: int = 0
    phase: int = 0
    epoch: int = 0  # of the whole run, from 0
    window: int = 0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    stopped: bool = False
    tally: Tally = field(default_factory=Tally)


class Buffers:
    """The buffers of a module (running statistics), of which one state can be kept and restored."""

    def __init__(self, module: nn.Module) -> None:
        self._live = list(module.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._live]

    def keep(self) -> None:
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def restore(self) -> None:
        if self._live:
            torch._foreach_copy_(self._live, self._kept)


@dataclass
class Training:
    """Everything that the loop works with."""

    run: Run
    record: RunRecord
    recipe: Recipe
    runtime: Runtime
    dataset: Dataset
    pixels: dict[str, Pixels]
    task: Task
    built: Built
    frozen: list[str]
    average: nn.Module | None
    progress: Progress
    micro: int
    activations: int | None  # bytes for each image of a micro-batch; None where they could not be counted
    mean: list[float]  # of R, G, B in [0, 1], and std: what evaluated images are normalised with
    std: list[float]
    looked: Looked | None = None  # what the recipe's `inside` looks at
    at: Position = field(default_factory=Position)
    batch_norm: bool = field(init=False)
    synchronized: bool = field(init=False)
    random: bool = field(init=False)  # whether a forward pass draws (dropout)
    last_checkpoint: float = field(default_factory=time.monotonic)
    last_record: float = -math.inf
    lines: list[dict[str, Any]] = field(default_factory=list)
    saved_best: list[int] = field(default_factory=list)  # the best epoch as each kept checkpoint has it
    forward: Callable[..., Any] = field(init=False)
    # What every step needs and a walk over the model finds; parameters and buffers stay the same objects throughout.
    buffers: Buffers = field(init=False)
    norms: list[nn.modules.batchnorm._BatchNorm] = field(init=False)  # those whose running statistics a step moves
    averaged: tuple[list[Tensor], list[Tensor]] | None = field(init=False, default=None)  # the average's tensors and those that they follow

    def __post_init__(self) -> None:
        module = self.built.module
        self.forward = torch.compile(module) if self.recipe.train.compile else module
        self.buffers = Buffers(module)
        self.norms = _training_norms(self.built, self.frozen, cached=bool(self.recipe.model.cached_views))
        self.batch_norm = bool(self.norms)  # then no pack and no window may hold one image alone
        self.synchronized = self.batch_norm and self.recipe.train.sync_batch_norm and not self.runtime.processes.alone and not self.recipe.model.cached_views
        self.random = any(_draws(m) for m in module.modules())
        if self.average is not None:
            self.averaged = _pairs(self.average.state_dict(), module.state_dict())

    @property
    def module(self) -> nn.Module:
        return self.built.module

    @property
    def evaluated(self) -> nn.Module:
        """The module whose numbers are reported: the moving average where there is one."""
        return self.average if self.average is not None else self.built.module

    @property
    def first(self) -> bool:
        """Whether this process writes the run folder."""
        return self.runtime.processes.first

    def rebuild(self, recipe: Recipe) -> nn.Module:
        """A fresh model of another recipe for the same data."""
        return MODELS[recipe.task](recipe, self.dataset.outputs, start_weights=False)[0].module

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, kept back until `write_log`: opening a file costs as much as a tenth of a small step."""
        self.lines.append(line)

    def write_log(self) -> None:
        """Write the lines that were kept back; at the end of an epoch, and before a checkpoint that stands behind them."""
        if self.first and self.lines:
            self.run.append_metrics(self.lines)
        self.lines.clear()

    def write_record(self, *, at_most_every: float = 0.0) -> None:
        """Write run.json; not where it was written less than `at_most_every` seconds ago, because until a file is on the disk takes as long as some epochs."""
        now = time.monotonic()
        if self.first and now - self.last_record >= at_most_every:
            self.run.write_record(self.record)
            self.last_record = now

    @property
    def steps_per_epoch(self) -> int:
        return num_windows(len(self.dataset.splits["train"]), self.recipe.train.batch_size, no_single=self.batch_norm)


def _pairs(average: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of two state dicts side by side, tied ones once: they would move twice."""
    places = {tensor.data_ptr() if tensor.numel() else name: name for name, tensor in reversed(list(average.items()))}
    once = set(places.values())
    return [average[name] for name in average if name in once], [own[name] for name in average if name in once]


def _training_norms(built: Built, frozen: Sequence[str], *, cached: bool) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers of BatchNorm that take statistics of a batch: not those of frozen parts, which stay in evaluation mode; cached: of the classifier alone."""
    named = [(name, m) for name, m in built.module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m for name, m in named if not under(name, frozen) and (not cached or under(name, built.classifier))]


def _draws(module: nn.Module) -> bool:
    """Whether a module is dropout, or stochastic depth as timm (DropPath) and torchvision (StochasticDepth) have it, and on."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return type(module).__name__ in ("DropPath", "StochasticDepth") and bool(getattr(module, "drop_prob", None) or getattr(module, "p", None))


@dataclass(frozen=True)
class Prepared:
    """What can refuse before a run folder is made: machine, data, pixels and model."""

    dataset: Dataset
    runtime: Runtime
    pixels: dict[str, Pixels]
    built: Built
    frozen: list[str]
    activations: int | None  # bytes for each image of a micro-batch; None where they could not be counted
    looked: Looked | None = None  # what the recipe's `inside` looks at
    targets: Pixels | None = None  # masks of the training images


def prepare(recipe: Recipe, record: RunRecord, progress: Progress, processes: Processes, *, start_weights: bool) -> Prepared:
    """Read the data and build the model; what was decided on the way is noted. The initial weights are a function of the seed alone."""
    t = recipe.train
    runtime = start(device=t.device, precision=t.precision, threads=t.threads, channels_last=t.channels_last, processes=processes)
    with processes.one_at_first():
        return _prepare(recipe, record, progress, runtime, start_weights)


def _prepare(recipe: Recipe, record: RunRecord, progress: Progress, runtime: Runtime, start_weights: bool) -> Prepared:
    t, d = recipe.train, recipe.data
    dataset = load_dataset(
        d,
        seed=recipe.seed,
        masks=recipe.masked,
        captions=recipe.captioned,
        least=recipe.least_size,
        fewest_classes=recipe.fewest_classes,
        progress=progress,
    )
    if "val" not in dataset.splits and (t.keep == "best" or t.early_stop is not None):
        raise UsageError(f"train.{'keep: best' if t.keep == 'best' else 'early_stop'} needs a val split, and the data has {', '.join(dataset.splits)}.")
    if recipe.method is not None and len(dataset.splits["train"]) < 2:
        raise DataError(f"data.train: pre-training needs at least 2 images, to tell one from another; found {len(dataset.splits['train'])}. Give more.")
    if recipe.captioned:
        dataset = with_tokenizer(recipe, dataset)
        dataset.notes.extend(mirror_notes(recipe, dataset))
    looked = looked_at(recipe, dataset)
    seed_torch(derived_seed(recipe.seed, "initialisation"))
    built, weights = MODELS[recipe.task](recipe, dataset.outputs, start_weights=start_weights)
    for line in [*built.notes, *(weights.lines() if weights else [])]:
        record.note(line)
    frozen = set_trainable(built.module, recipe.model.freeze, built.classifier, built.backbone, built.untrained)
    runtime.place(built.module)
    _try_model(built.module, recipe, runtime)
    if recipe.model.cached_views:
        check_cached(
            built.module, recipe, runtime, classifier=built.classifier, frozen=frozen, images={name: len(split) for name, split in dataset.splits.items()}
        )
    if recipe.inside is not None:
        from pellucid.look import check_methods  # here and not when it is first used: an import that fails must not end a training

        check_methods(built.module, recipe)
    if recipe.captioned:
        from pellucid.look_words import check_words

        check_words(built.module, recipe)
    activations = _count_activations(built.module, recipe, frozen, record)
    if t.activation_checkpointing:
        _recompute(built, recipe, record)
    resizing = Resizing(d.size, d.fit, d.resize_size, d.interpolation)
    pixels = {
        name: open_pixels(split, resizing, limit_bytes=d.store.limit_gb * 1e9, directory=d.store.directory, workers=d.workers, progress=progress)
        for name, split in dataset.splits.items()
    }
    targets = open_targets(dataset, resizing, limit_bytes=d.store.limit_gb * 1e9, directory=d.store.directory, workers=d.workers, progress=progress)
    for opened in [*pixels.values(), *([targets] if targets is not None else [])]:
        if opened.note:
            record.note(opened.note)
    for line in [
        *dataset.notes,
        *_data_notes(dataset),
        *_tile_notes(recipe, pixels, built.module),
        *schedule_notes(t.phases, num_windows(len(dataset.splits["train"]), t.batch_size, no_single=False)),
    ]:
        record.note(line)
    for file in dataset.skipped:
        record.note(f"left out: {file} (bad image, data.on_bad: skip)")
    return Prepared(dataset, runtime, pixels, built, frozen, activations, looked, targets)


def _data_notes(dataset: Dataset) -> list[str]:
    """One line for each kind of finding that is not fatal: how many, and the first."""
    kinds: dict[str, list[DataProblem]] = {}
    for problem in dataset.problems:
        if not problem.fatal:
            kinds.setdefault(problem.kind, []).append(problem)
    return [f"data: {len(found)} x {kind}, first in {found[0].where}: {found[0].detail}" for kind, found in kinds.items()]


def _tile_notes(recipe: Recipe, pixels: Mapping[str, Pixels], module: nn.Module) -> list[str]:
    """A line where images of a segmentation are predicted in tiles, and why that may differ from one pass over the whole."""
    evaluated = {name: opened for name, opened in pixels.items() if name != "train"}
    some = {name: np.unique(np.linspace(0, len(opened) - 1, 8).astype(int)).tolist() for name, opened in evaluated.items()}
    larger = [name for name, opened in evaluated.items() if any(opened.image(i).shape[:2] != recipe.data.size for i in some[name])]
    if not recipe.masked or recipe.scoring is None or not larger:
        return []
    height, width = recipe.data.size
    share = recipe.scoring.tile_overlap
    line = f"{' and '.join(larger)}: images are predicted in tiles of {height}x{width} pixels (data.image_size) that share at least {share:g} of a side"
    seen = sees_everything(module)
    if seen:
        line += f"; the model looks at whole tiles ({seen[0]}{' and others' if len(seen) > 1 else ''}): not what one pass over the whole image would give"
    return [line]


def assemble(run: Run, record: RunRecord, recipe: Recipe, prepared: Prepared, progress: Progress, *, micro_batch_size: int | None = None) -> Training:
    """The state of the loop; writes what the run says of its data and machine. micro_batch_size: that of a checkpoint, instead of a first one by count."""
    dataset, runtime, built = prepared.dataset, prepared.runtime, prepared.built
    mean, std, source = _normalization(recipe, built, prepared.pixels["train"], run.data if run.has_data else None)
    for line in _normalization_notes(built, mean, std):
        record.note(line)
    task = build_task(recipe, dataset, runtime, mean, std, Stored(prepared.pixels, prepared.targets))
    average = None
    if recipe.train.ema is not None:
        average = MODELS[recipe.task](recipe, dataset.outputs, start_weights=False)[0].module
        average.load_state_dict(built.module.state_dict())
        runtime.place(average).eval()
    micro = micro_batch_size or _first_micro_batch(recipe, record, runtime, built.module, prepared.activations)
    training = Training(
        run, record, recipe, runtime, dataset, prepared.pixels, task, built, prepared.frozen, average, progress, micro, prepared.activations, mean, std,
        prepared.looked,
    )  # fmt: skip
    for line in [*micro_batch_notes(training), *_batch_norm_notes(training)]:
        record.note(line)
    # A power of two: halved for want of memory, the batches of an evaluation still begin where they began.
    record.evaluation_batch_size = 1 << (min(EVALUATION_BATCH, micro).bit_length() - 1)
    record.total_steps = recipe.epochs * training.steps_per_epoch
    record.num_params = sum(p.numel() for p in built.module.parameters())
    environment = describe(runtime)
    if not environment["flush_denormal"]:
        record.note("denormal numbers are not flushed to zero in every thread, because torch had worked before: slower, and other bits than in a fresh process")
    if training.first:
        if dataset.tokenizer is not None:
            dataset.tokenizer.save(run.tokenizer_file)
        run.write_environment(environment)
        run.write_data(
            DataRecord(
                recipe.data.source, list(dataset.classes), {name: split.record(len(dataset.classes)) for name, split in dataset.splits.items()},
                dataset.problems, dataset.skipped, mean, std, source, dataset.mask_format,
                dataset.tokenizer.vocabulary if dataset.tokenizer is not None else None,
            ),
            {name: split.rows() for name, split in dataset.splits.items()},
        )  # fmt: skip
    training.write_record()
    return training


def _first_micro_batch(recipe: Recipe, record: RunRecord, runtime: Runtime, module: nn.Module, activations: int | None) -> int:
    """The micro-batch to begin with: the recipe's, else the share of this process.

    On the CPU, where a system without memory ends the process instead of refusing, at most what fits by count.
    """
    wanted, share = recipe.train.micro_batch_size, math.ceil(recipe.train.batch_size / runtime.processes.size)
    if wanted != "auto":
        return min(wanted, share)
    if activations is None or runtime.device.type != "cpu":
        return share
    memory, free = step_memory(module, recipe, activations), free_memory(runtime.device) // runtime.processes.local_size
    micro = fitting_micro_batch(share, memory, free)
    if micro < share:
        record.note(
            f"the micro-batch begins at {micro}: {share} images would need about {memory.total(share) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. "
            f"For the same bits on a machine with more memory set train.micro_batch_size: {micro}"
        )
    return micro


def micro_batch_notes(t: Training, since: int | None = None) -> list[str]:
    """What sees the present micro-batch where it should see the batch, and so changes the gradient; since: the step that was the first, where not all were."""
    batch, when = t.recipe.train.batch_size, f" since step {since}" if since is not None else ""
    seen = t.micro * (t.runtime.processes.size if t.synchronized else 1)
    if seen >= batch:
        return []
    notes = [f"BatchNorm sees micro-batches of {seen} images{when}, not the batch of {batch}"] if t.batch_norm else []
    if isinstance(t.recipe.method, SimClrMethod):
        notes.append(f"simclr tells an image from those of its micro-batch of {seen}{when}, not of the batch of {batch}")
    return notes


def _batch_norm_notes(t: Training) -> list[str]:
    """What else than a micro-batch keeps BatchNorm from seeing the batch."""
    if not t.batch_norm:
        return []
    notes = []
    if not t.runtime.processes.alone and not t.synchronized:
        notes.append("running statistics are the mean of those of the processes (train.sync_batch_norm: true takes them over all images)")
    if len(t.dataset.splits["train"]) % t.recipe.train.batch_size == 1:
        notes.append("the last image of an epoch would be a batch of one, from which BatchNorm takes no statistics: it joins the window before")
    return notes


def _count_activations(module: nn.Module, recipe: Recipe, frozen: list[str], record: RunRecord) -> int | None:
    try:
        return forward_cost(module, recipe, frozen)[0]
    except PellucidError as error:  # a model that does not run on the meta device
        record.note(f"the memory of a step could not be counted beforehand ({error}); the micro-batch is found by trial")
        return None


def _recompute(built: Built, recipe: Recipe, record: RunRecord) -> None:
    found = recompute_blocks(built.module, built.untrained)
    if not found:
        raise UsageError(f"train.activation_checkpointing: {recipe.model.name} has no repeated blocks to compute again. Set it to false.")
    record.note(f"activation checkpointing: {len(found)} blocks compute their activations again in the backward pass, {found[0]} to {found[-1]}")


def _try_model(module: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
    """One image through the model before anything is written: a size that it cannot take is the recipe's fault, not ours."""
    height, width = recipe.data.size
    image = torch.zeros((1, 3, height, width), device=runtime.device)
    module.eval()
    try:
        with torch.inference_mode(), runtime.autocast():
            module(*training_inputs(module, recipe, image.to(memory_format=runtime.memory_format)))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"model.name: {recipe.model.name} does not run on images of {height}x{width} pixels: {str(error).splitlines()[0]}") from None


def _normalization(recipe: Recipe, built: Built, train_pixels: Pixels, before: DataRecord | None) -> tuple[list[float], list[float], str]:
    """Mean, std and where they come from. before: what data.json of a run that is resumed says."""
    match recipe.data.normalize:
        case "model":
            # From a checkpoint on the weights file is not read again, and it may have stated these.
            if before is not None and built.normalized_by == MODELS_OWN and (recipe.model.weights or recipe.model.backbone_weights):
                return before.mean, before.std, before.normalize
            return list(built.mean), list(built.std), built.normalized_by
        case "dataset":
            return *channel_statistics(train_pixels), "measured from the training set"
        case "imagenet":
            return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "ImageNet's"
        case "none":
            return [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], "none"
        case given:
            return list(given.mean), list(given.std), "given in the recipe"


def _normalization_notes(built: Built, mean: list[float], std: list[float]) -> list[str]:
    """A line where the weights file states a normalisation: that it is taken, or that the recipe has another."""
    if built.normalized_by == MODELS_OWN:
        return []
    stated = f"mean {_listed(built.mean)}, std {_listed(built.std)}, {built.normalized_by}"
    if (mean, std) == (list(built.mean), list(built.std)):
        return [f"pixels are normalised by {stated}"]
    return [f"pixels are normalised by mean {_listed(mean)}, std {_listed(std)} (data.normalize); the weights were trained with {stated}"]


def _listed(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:.4g}' for number in numbers)}]"
