"""The tasks behind one Protocol and one visible dict; each file reads alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from pellucid.data.dataset import Dataset, Split
from pellucid.data.loader import Pack, Window
from pellucid.data.store import Pixels
from pellucid.recipe import Recipe
from pellucid.run import Measurement, Predictions, Run
from pellucid.runtime import Runtime
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
        self, module: nn.Module, split: Split, pixels: Pixels, *, workers: int, progress: Callable[[str, int, int], None] | None = None
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


def predict(run: Run, images: Any, *, runtime: Runtime | None = None) -> list[Any]:
    """What the run's model says of images: paths, folders or PIL images."""
    from pellucid.runtime import start

    recipe = run.recipe
    chosen = runtime or start(
        device=recipe.train.device, precision=recipe.train.precision, threads=recipe.train.threads, channels_last=recipe.train.channels_last
    )
    return PREDICTORS[recipe.task](run, images, runtime=chosen)


def confident_mistakes(predictions: Predictions, most: int) -> np.ndarray:
    """Rows of wrong predictions, the most confident first."""
    probabilities = predictions.probabilities()
    best = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(best != predictions.labels)
    confidence = probabilities[wrong, best[wrong]]
    return wrong[np.argsort(-confidence, kind="stable")][:most]
