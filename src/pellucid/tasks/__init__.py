"""The tasks behind one Protocol and one visible dict; each file reads alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.data.dataset import Dataset, Split
from pellucid.data.loader import Pack, Window
from pellucid.data.store import Pixels
from pellucid.recipe import Recipe
from pellucid.run import Measurement, Predictions, Run
from pellucid.runtime import Runtime, start
from pellucid.tasks import classification


class Task(Protocol):
    """What the training loop asks of a task; it knows of labels, targets and numbers, the loop of steps."""

    name: str
    headline: str

    @property
    def needs_partners(self) -> bool: ...

    def window_weight(self, window: Window) -> float: ...

    def loss(self, module: nn.Module, pack: Pack) -> tuple[Tensor, Tensor | None]: ...

    def predictions(
        self,
        module: nn.Module,
        split: Split,
        pixels: Pixels,
        windows: Sequence[Window],
        *,
        workers: int,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Predictions: ...

    def quick(self, predictions: Predictions) -> dict[str, float]: ...

    def measure(self, predictions: Predictions, split: str, note: str) -> list[Measurement]: ...


TASKS = {"classification": classification.Classification}
MODELS = {"classification": classification.build}
LOADERS = {"classification": classification.load_model}
PREDICTORS = {"classification": classification.predict}


def build_task(recipe: Recipe, dataset: Dataset, runtime: Runtime, mean: Sequence[float], std: Sequence[float]) -> Task:
    """The task of a recipe."""
    return TASKS[recipe.task](recipe, dataset, runtime, mean, std)


def load_model(run: Run) -> nn.Module:
    """The run's final model in eval mode on the CPU."""
    return LOADERS[run.recipe.task](run)


def runtime_of(run: Run) -> Runtime:
    """The machine for a finished run: its own settings, on the CPU where its CUDA device is not there (the caller says so)."""
    t = run.recipe.train
    device = "cpu" if t.device == "cuda" and not torch.cuda.is_available() else t.device
    return start(device=device, precision=t.precision, threads=run.environment["threads"], channels_last=t.channels_last)


def predict(run: Run, images: Any, *, runtime: Runtime | None = None) -> list[Any]:
    """What the run's model says of images: paths, folders or PIL images."""
    return PREDICTORS[run.recipe.task](run, images, runtime=runtime or runtime_of(run))


def confident_mistakes(predictions: Predictions, most: int) -> np.ndarray:
    """Rows of wrong predictions, the most confident first."""
    probabilities = predictions.probabilities()
    best = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(best != predictions.labels)
    confidence = probabilities[wrong, best[wrong]]
    return wrong[np.argsort(-confidence, kind="stable")][:most]
