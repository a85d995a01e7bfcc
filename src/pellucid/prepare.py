"""Everything a run needs before its first step: machine, data, decoded pixels, model, task."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.data.dataset import Dataset
from pellucid.data.draws import derived_seed
from pellucid.data.loader import Window, num_windows
from pellucid.data.sources import load_dataset
from pellucid.data.store import Pixels, Resizing, channel_statistics, open_pixels
from pellucid.errors import UsageError
from pellucid.models import Built, set_trainable
from pellucid.optim import schedule_notes
from pellucid.progress import Progress
from pellucid.recipe import Recipe
from pellucid.run import DataProblem, DataRecord, Run, RunRecord
from pellucid.runtime import Runtime, describe, seed_torch, start
from pellucid.tasks import MODELS, Task, build_task

EVALUATION_BATCH = 64


@dataclass
class Tally:
    """Sums over an epoch so far, on the device until somebody reads them."""

    loss: float = 0.0
    weight: float = 0.0
    correct: int = 0
    counted: int = 0
    seconds: float = 0.0
    pending: list[tuple[Window, Tensor, Tensor | None, float]] = field(default_factory=list)

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
    at: Position = field(default_factory=Position)
    forward: Callable[..., Any] = field(init=False)
    last_checkpoint: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.forward = torch.compile(self.built.module) if self.recipe.train.compile else self.built.module

    @property
    def module(self) -> nn.Module:
        return self.built.module

    @property
    def evaluated(self) -> nn.Module:
        """The module whose numbers are reported: the moving average where there is one."""
        return self.average if self.average is not None else self.built.module

    @property
    def batch_norm(self) -> bool:
        """Whether the model takes statistics over a batch: then no pack and no window may hold one image alone."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.built.module.modules())

    @property
    def steps_per_epoch(self) -> int:
        return num_windows(len(self.dataset.splits["train"]), self.recipe.train.batch_size, no_single=self.batch_norm)


@dataclass(frozen=True)
class Prepared:
    """What can refuse before a run folder is made: machine, data, pixels and model."""

    dataset: Dataset
    runtime: Runtime
    pixels: dict[str, Pixels]
    built: Built
    frozen: list[str]


def prepare(recipe: Recipe, record: RunRecord, progress: Progress, *, start_weights: bool) -> Prepared:
    """Read the data and build the model; what was decided on the way is noted. The initial weights are a function of the seed alone."""
    t, d = recipe.train, recipe.data
    runtime = start(device=t.device, precision=t.precision, threads=t.threads, channels_last=t.channels_last)
    dataset = load_dataset(d, seed=recipe.seed, progress=progress)
    if "val" not in dataset.splits and (t.keep == "best" or t.early_stop is not None):
        raise UsageError(f"train.{'keep: best' if t.keep == 'best' else 'early_stop'} needs a val split, and the data has {', '.join(dataset.splits)}.")
    seed_torch(derived_seed(recipe.seed, "initialisation"))
    built, weights = MODELS[recipe.task](recipe, len(dataset.classes), start_weights=start_weights)
    for line in [*built.notes, *(weights.lines() if weights else [])]:
        record.note(line)
    frozen = set_trainable(built.module, recipe.model.freeze, built.classifier)
    runtime.place(built.module)
    _try_model(built.module, recipe, runtime)
    resizing = Resizing(d.size, d.fit, d.resize_size, d.interpolation)
    pixels = {
        name: open_pixels(split, resizing, limit_bytes=d.store.limit_gb * 1e9, directory=d.store.directory, workers=d.workers, progress=progress)
        for name, split in dataset.splits.items()
    }
    for opened in pixels.values():
        if opened.note:
            record.note(opened.note)
    for line in [*_data_notes(dataset), *schedule_notes(t.phases, num_windows(len(dataset.splits["train"]), t.batch_size, no_single=False))]:
        record.note(line)
    for file in dataset.skipped:
        record.note(f"left out: {file} (bad image, data.on_bad: skip)")
    return Prepared(dataset, runtime, pixels, built, frozen)


def _data_notes(dataset: Dataset) -> list[str]:
    """One line for each kind of finding that is not fatal: how many, and the first."""
    kinds: dict[str, list[DataProblem]] = {}
    for problem in dataset.problems:
        if not problem.fatal:
            kinds.setdefault(problem.kind, []).append(problem)
    return [f"data: {len(found)} x {kind}, first {found[0].split}/{found[0].file}: {found[0].detail}" for kind, found in kinds.items()]


def assemble(run: Run, record: RunRecord, recipe: Recipe, prepared: Prepared, progress: Progress) -> Training:
    """The state of the loop; writes what the run says of its data and machine."""
    dataset, runtime, built = prepared.dataset, prepared.runtime, prepared.built
    mean, std, source = _normalization(recipe, built, prepared.pixels["train"])
    task = build_task(recipe, dataset, runtime, mean, std)
    average = None
    if recipe.train.ema is not None:
        average = MODELS[recipe.task](recipe, len(dataset.classes), start_weights=False)[0].module
        average.load_state_dict(built.module.state_dict())
        runtime.place(average).eval()
    wanted = recipe.train.micro_batch_size
    micro = recipe.train.batch_size if wanted == "auto" else min(wanted, recipe.train.batch_size)
    training = Training(run, record, recipe, runtime, dataset, prepared.pixels, task, built, prepared.frozen, average, progress, micro)
    if micro < recipe.train.batch_size and training.batch_norm:
        record.note(f"BatchNorm sees micro-batches of {micro} images, not the batch of {recipe.train.batch_size}")
    if training.batch_norm and len(dataset.splits["train"]) % recipe.train.batch_size == 1:
        record.note("the last image of an epoch would be a batch of one, from which BatchNorm takes no statistics: it joins the window before")
    record.evaluation_batch_size = min(EVALUATION_BATCH, micro)
    record.total_steps = recipe.epochs * training.steps_per_epoch
    record.num_params = sum(p.numel() for p in built.module.parameters())
    run.write_environment(describe(runtime))
    run.write_data(
        DataRecord(
            recipe.data.source, list(dataset.classes), {name: split.record(len(dataset.classes)) for name, split in dataset.splits.items()},
            dataset.problems, dataset.skipped, mean, std, source,
        ),
        {name: split.rows() for name, split in dataset.splits.items()},
    )  # fmt: skip
    run.write_record(record)
    return training


def _try_model(module: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
    """One image through the model before anything is written: a size that it cannot take is the recipe's fault, not ours."""
    height, width = recipe.data.size
    image = torch.zeros((1, 3, height, width), device=runtime.device)
    module.eval()
    try:
        with torch.inference_mode(), runtime.autocast():
            module(image.to(memory_format=runtime.memory_format))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"model.name: {recipe.model.name} does not run on images of {height}x{width} pixels: {str(error).splitlines()[0]}") from None


def _normalization(recipe: Recipe, built: Built, train_pixels: Pixels) -> tuple[list[float], list[float], str]:
    """Mean, std and where they come from."""
    match recipe.data.normalize:
        case "model":
            return list(built.mean), list(built.std), "the model's own"
        case "dataset":
            return *channel_statistics(train_pixels), "measured from the training set"
        case "imagenet":
            return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "ImageNet's"
        case "none":
            return [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], "none"
        case given:
            return list(given.mean), list(given.std), "given in the recipe"
