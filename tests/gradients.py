"""The gradient of a window: as the loop makes it, and as it is defined, in float64 from the whole window at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import pellucid.loop as loop
import pellucid.step as step
from pellucid import recipe as recipes
from pellucid.data.loader import Cutting, Reader, Window, epoch_windows
from pellucid.distributed import Processes, joined
from pellucid.models import train_mode
from pellucid.optim import LossScale
from pellucid.prepare import Training, assemble, prepare
from pellucid.progress import Progress
from pellucid.run import RUNNING, Run, RunRecord


def training_of(text: str, folder: Path, overrides: Sequence[str], processes: Processes) -> Training:
    """A training as it stands before its first step."""
    recipe = recipes.override(recipes.loads(text), overrides)
    record = RunRecord("0", RUNNING, recipe.task, [], "")
    progress = Progress(quiet=True)
    prepared = prepare(recipe, record, progress, processes, start_weights=True)
    if processes.first:
        Run.create(folder, record=record, recipe=recipe, recipe_text=text)
    processes.wait()
    return assemble(Run(folder), record, recipe, prepared, progress)


def windows_of(t: Training) -> list[Window]:
    labels = t.dataset.splits["train"].labels
    return epoch_windows(labels, batch_size=t.recipe.train.batch_size, seed=t.recipe.seed, epoch=0, balanced=False, no_single=t.batch_norm)


def stage_of(t: Training) -> step.Stage:
    return loop._stage(t, t.recipe.train.phases[0], LossScale(enabled=False))


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """float64, all gradients one behind the other."""
    return torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])


def reader_of(t: Training) -> Reader:
    cutting = Cutting(t.runtime.processes, no_single=t.batch_norm, together=t.synchronized)
    return Reader(t.pixels["train"], workers=0, partners=t.task.needs_partners, cutting=cutting)


def window_gradients(text: str, folder: Path, overrides: Sequence[str] = ()) -> list[Tensor]:
    """The gradient of each window of the first epoch at the initial weights, as the loop accumulates it."""
    with joined() as processes:
        t = training_of(text, folder, overrides, processes)
        stage = stage_of(t)
        train_mode(t.module, t.frozen)
        found = []
        for window in windows_of(t):
            step._gradient(t, stage, reader_of(t), window, t.task.window_weight(window))
            found.append(flat(stage.parameters))
        return found


def whole_batch(t: Training, window: Window) -> tuple[Tensor, Tensor]:
    """(images float64, soft targets) of a window: what augmentation gives for all of it at once."""
    (pack,) = Reader(t.pixels["train"], workers=0).packs(window, len(window))
    images = t.task._augment(pack.images, samples=pack.draws, epoch=window.epoch)
    return images.double(), t.task._labels[torch.from_numpy(window.rows)]


def defined_gradient(t: Training, window: Window, module: nn.Module | None = None) -> Tensor:
    """d/dw of the mean cross-entropy over the window, in float64, one pass."""
    twin = copy.deepcopy(t.module).double() if module is None else module
    twin.train()
    images, labels = whole_batch(t, window)
    twin.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(twin(images), labels).backward()
    return flat(list(twin.parameters()))


def apart(a: Tensor, b: Tensor) -> float:
    """Relative distance."""
    return float((a - b).norm() / b.norm())
