"""The tasks behind one Protocol and one visible dict; each file reads alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pellucid.data.dataset import Dataset
from pellucid.errors import MissingError
from pellucid.models.backbones import Built
from pellucid.models.weights import WeightsReport, read_weights
from pellucid.recipe import Recipe
from pellucid.run import Run
from pellucid.runtime import Runtime, start
from pellucid.tasks import captioning, classification, pretraining, segmentation
from pellucid.tasks.protocol import NOTHING_STORED, PackLoss, Stored, Task

__all__ = ["MODELS", "NUMBERS", "PREDICTORS", "TASKS", "PackLoss", "Stored", "Task", "backbone_of", "build_task", "load_model", "predict", "runtime_of"]

TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification.Classification,
    "pretraining": pretraining.Pretraining,
    "segmentation": segmentation.Segmentation,
    "captioning": captioning.Captioning,
}
MODELS: dict[str, Callable[..., tuple[Built, WeightsReport | None]]] = {
    "classification": classification.build,
    "pretraining": pretraining.build,
    "segmentation": segmentation.build,
    "captioning": captioning.build,
}
NUMBERS: dict[str, tuple[str, ...]] = {  # names of what `measure` gives; CLASS stands for the name of one
    "classification": classification.NUMBERS,
    "pretraining": pretraining.NUMBERS,
    "segmentation": segmentation.NUMBERS,
    "captioning": captioning.NUMBERS,
}
PREDICTORS: dict[str, Callable[..., list[Any]]] = {
    "classification": classification.predict,
    "pretraining": pretraining.predict,
    "segmentation": segmentation.predict,
    "captioning": captioning.predict,
}


def build_task(recipe: Recipe, dataset: Dataset, runtime: Runtime, mean: Sequence[float], std: Sequence[float], stored: Stored = NOTHING_STORED) -> Task:
    """The task of a recipe. stored: what training decoded, some of which a task asks for."""
    return TASKS[recipe.task](recipe, dataset, runtime, mean, std, stored)


def load_model(run: Run) -> nn.Module:
    """The run's final model in eval mode on the CPU. Loading executes nothing from the file."""
    if not run.final_weights.is_file():
        raise MissingError(f"{run.final_weights}: the run has no final weights. Is it finished? `pellucid resume {run.path}`")
    module = MODELS[run.recipe.task](run.recipe, run.data.outputs, start_weights=False)[0].module
    module.load_state_dict(read_weights(run.final_weights), strict=True)
    return module.eval()


def backbone_of(run: Run) -> str:
    """Path of the backbone in the run's model, "" where its library does not say."""
    return MODELS[run.recipe.task](run.recipe, run.data.outputs, start_weights=False)[0].backbone


def runtime_of(run: Run) -> Runtime:
    """The machine for a finished run: its own settings, on the CPU where its CUDA device is not there (the caller says so)."""
    t = run.recipe.train
    device = "cpu" if t.device == "cuda" and not torch.cuda.is_available() else t.device
    return start(device=device, precision=t.precision, threads=run.environment["threads"], channels_last=t.channels_last)


def predict(run: Run, images: Any, *, runtime: Runtime | None = None) -> list[Any]:
    """What the run's model says of images: paths, folders or PIL images."""
    placed = runtime or runtime_of(run)
    return PREDICTORS[run.recipe.task](run, placed.place(load_model(run)), images, runtime=placed)
