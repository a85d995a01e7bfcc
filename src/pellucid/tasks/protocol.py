"""What the training loop asks of a task, whatever it predicts: it knows of targets and numbers, the loop of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL.Image
from torch import Tensor, nn

from pellucid.data.dataset import Split
from pellucid.data.loader import Pack, Window
from pellucid.data.store import Pixels
from pellucid.run import Measurement, Run


class PackLoss(NamedTuple):
    """What the packs of a window add up: loss () on the device, and of `counted` things (images, valid pixels) how many were right, () on the device.

    correct is None where that cannot be said, as of mixed targets.
    """

    loss: Tensor
    correct: Tensor | None
    counted: int


class Task(Protocol):
    """A task, built once for a run, before its model.

    headline: the number that `keep: best` and early stopping watch. accuracy: what the share of right things is called. Predictions are of the task's own
    type, with `files`, `diverged` and `joined` (run.Predictions, run.MaskPredictions).
    """

    name: str
    headline: str
    accuracy: str

    @property
    def needs_partners(self) -> bool:
        """Whether the loss of a sample involves the image before it."""
        ...

    def window_weight(self, window: Window) -> float:
        """What the summed loss of a whole window is divided by."""
        ...

    def loss(self, module: nn.Module, pack: Pack) -> PackLoss:
        """The summed loss of a pack, on the device."""
        ...

    def predictions(
        self,
        module: nn.Module,
        split: Split,
        pixels: Pixels,
        windows: Sequence[Window],
        *,
        workers: int,
        keep: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Any:
        """Predictions for the samples of some windows of a split, in their order; without `keep` only what `quick` needs."""
        ...

    def quick(self, predictions: Any) -> dict[str, float]:
        """The numbers of an epoch for the curves: loss, accuracy and the headline."""
        ...

    def measure(self, predictions: Any, split: str, note: str) -> list[Measurement]:
        """All reported numbers of a split; `note` says which weights they belong to."""
        ...

    def save(self, run: Run, split: str, predictions: Any) -> list[Path]:
        """Write predictions into the run folder; the files."""
        ...

    def mistakes(self, predictions: Any, most: int) -> np.ndarray:
        """Rows of the samples to show in a report, the worst first."""
        ...

    def thumbnails(self, split: Split, row: int, predictions: Any, side: int) -> dict[str, PIL.Image.Image]:
        """{ending of the file name: picture} of a sample of the split, long side at most `side` pixels."""
        ...
