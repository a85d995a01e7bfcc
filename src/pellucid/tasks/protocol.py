"""What the training loop asks of a task, whatever it predicts: it knows of targets and numbers, the loop of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Stored:
    """What a run has decoded: the images of each split; targets: the masks of the training images in the form in which these are stored."""

    pixels: Mapping[str, Pixels] = field(default_factory=dict)
    targets: Pixels | None = None


NOTHING_STORED = Stored()


class Task(Protocol):
    """A task, built once for a run, before its model.

    headline: the number that `keep: best` and early stopping watch. accuracy: what the share of right things is called. from_the_start: whether the curves
    begin before the first step. batch_size: how many images it takes at once in evaluations without windows (what is watched, measured, compared with); whoever
    evaluates sets it, lower when memory runs out. Predictions are of the task's own type, with `files`, `diverged` and `joined` (as in `predictions`).
    """

    name: str
    headline: str
    accuracy: str
    from_the_start: bool
    batch_size: int

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

    def after_step(self, module: nn.Module, step: int, total_steps: int) -> None:
        """Move what follows the weights, after the optimiser's step `step` (from 0) of a run of `total_steps`."""
        ...

    def watch(self, module: nn.Module, workers: int) -> dict[str, float]:
        """Numbers that are looked at after every epoch, evaluated or not; {} where the task has none."""
        ...

    def alarms(self, lines: Sequence[dict[str, Any]]) -> list[str]:
        """What the curves so far (lines as in metrics.jsonl) say is wrong with the training as it stands, in words."""
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
        """The numbers of an epoch for the curves, the headline among them."""
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
