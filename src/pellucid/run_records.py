"""The records of a run folder: numbers with what a reader needs to believe them, the data as it was seen, the state of the run. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pellucid.palettes import MaskFormat
from pellucid.records import CLOSED


@dataclass(frozen=True)
class Measurement:
    """A reported number with what a reader needs to believe it.

    `value` is in `unit`: "fraction" lies in [0, 1], "nats" is a loss, "count" a number of things. `interval` is the
    95 % interval that `interval_how` names, over the `n` samples of `split`.
    """

    __pydantic_config__ = CLOSED

    name: str
    value: float
    unit: str
    split: str
    n: int
    seed: int
    how: str
    interval: tuple[float, float] | None = None
    interval_how: str = ""

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"

    @property
    def title(self) -> str:
        """What was measured, in a reader's words: `mIoU on val`."""
        name = self.name.replace("_", " ").replace("miou", "mIoU").replace("knn", "k-NN").replace("cider", "CIDEr-D")
        return f"{name} on {self.split}"

    def __str__(self) -> str:
        return rounded(self.value, self.unit)


def rounded(value: float | None, unit: str = "fraction") -> str:
    """A number as readers see it: fractions and losses with four decimals, counts whole. The one place that rounds."""
    if value is None or math.isnan(value):
        return "n/a"
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "seconds":
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    if unit == "rate":
        return f"{value:.3g}"
    return f"{value:.4f}"


@dataclass(frozen=True)
class SplitRecord:
    """One split of the data as the run saw it. `hash` covers names, labels, content and masks of all samples.

    counts: samples of each class. pixels: of masks, the pixels of each class, the ignored ones last; [] without masks.
    """

    __pydantic_config__ = CLOSED

    name: str
    n: int
    hash: str
    counts: list[int]
    pixels: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of captions; tokenizer.json beside it cuts text into them. size: how many; start: what a caption begins after, end: what ends it,
    pad: what stands behind the end, all numbers of tokens. max_length: most tokens of a caption, the end among them. how: where they come from, in words.
    unknown: what a word that it does not know becomes, and no caption that is found has; None where it knows all.
    captions, longest: of a training picture the most captions that are learned at once, and of these the most tokens.
    """

    __pydantic_config__ = CLOSED

    size: int
    start: int
    end: int
    pad: int
    max_length: int
    how: str
    unknown: int | None = None
    captions: int = 1
    longest: int = 0


@dataclass(frozen=True)
class DataProblem:
    """A fault of one file or of a split: `kind` is one of those that `data check` lists."""

    __pydantic_config__ = CLOSED

    split: str
    file: str
    kind: str
    detail: str
    fatal: bool

    @property
    def where(self) -> str:
        """split/file, or the split alone of what is said of all of it."""
        return f"{self.split}/{self.file}" if self.file else self.split


@dataclass(frozen=True)
class DataRecord:
    """What data.json holds."""

    __pydantic_config__ = CLOSED

    source: str
    classes: list[str]
    splits: dict[str, SplitRecord]
    problems: list[DataProblem]
    skipped: list[str]
    mean: list[float]
    std: list[float]
    normalize: str
    mask_format: MaskFormat | None = None
    vocabulary: Vocabulary | None = None

    @property
    def outputs(self) -> int | Vocabulary:
        """What a model for this data tells apart: its number of classes, or the tokens of captions."""
        return len(self.classes) if self.vocabulary is None else self.vocabulary


@dataclass
class RunRecord:
    """What run.json holds; rewritten as a whole."""

    __pydantic_config__ = CLOSED

    pellucid: str
    status: str
    task: str
    command: list[str]
    started: str
    finished: str | None = None
    seconds: float = 0.0
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    num_params: int = 0
    selected: str = "last epoch"
    evaluation_batch_size: int = 64
    measurements: list[Measurement] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    alarms: list[str] = field(default_factory=list)  # what is wrong with the training as it stands; rewritten after every epoch
    began_with: dict[str, str] = field(default_factory=dict)  # hashes of what decides the result, and of the recipe file

    def note(self, line: str) -> None:
        """Keep a line about something that was decided for the user; each line once."""
        if line not in self.notes:
            self.notes.append(line)
