"""What looking inside a model found, as typed records: `findings.json` beside `arrays.npz` and the pictures. Needs no torch.

    findings.json    this record                arrays.npz    maps, masks, scores of each image, projections, positions
    images/          <i>.webp, what was looked at             <name>.png, .svg, .pdf: the figures

Keys of arrays.npz (n images, in the order of `Findings.images`; grid gh x gw of the method; E epochs; p probe images):

    maps/<method>              (n, gh, gw) float32, >= 0, sums to 1 where it is not all zero
    maps/<method>/<epoch>      the same of a snapshot, epoch counted from 1
    random/<method>            the same of the model with random weights
    target/<gh>x<gw>           (n, gh, gw) bool: patches that belong to the target; valid/<gh>x<gw>: patches that count
    scores/<method>/<measure>  (n,) float64, NaN where an image has none; /<epoch> behind it: of that snapshot's maps
    projection/<name>          (E, p, 2) float32; labels of the probe: (p,) int64 under `probe/labels`
    positions                  (gh, gw, gh, gw) float32 cosine similarities
    bias/<module>              (h, 2 wh - 1, 2 ww - 1) float32 relative-position bias
    heads/<module>             (n, h, gh, gw) float32 attention of every head of the last layer
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from pellucid.errors import RunError, UsageError
from pellucid.records import read_record, write_json
from pellucid.run import Measurement

CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

FINDINGS, ARRAYS, IMAGES = "findings.json", "arrays.npz", "images"


@dataclass(frozen=True)
class Score:
    """How far a map can be believed: the mean over images of one measure, beside that of its baselines.

    `value.name` is "<measure>[<method>]". `baselines` has a Measurement for each of "uniform", "centre", "shuffled" and
    "random model" that applies. `margins` are the paired differences to them, value minus baseline over the images that have both, with
    their own intervals: narrower than those of two means suggest. `higher_is_better` says which way is up.
    """

    __pydantic_config__ = CLOSED

    method: str
    measure: str
    value: Measurement
    baselines: dict[str, Measurement]
    higher_is_better: bool = True
    margins: dict[str, Measurement] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochScores:
    """The scores of the maps of one snapshot, against the same targets; names say "[<method>, epoch <epoch>]"."""

    __pydantic_config__ = CLOSED

    epoch: int
    scores: list[Score]


@dataclass(frozen=True)
class MapKind:
    """One kind of map: what was drawn, from which layer, for which query or class, on which grid (height, width)."""

    __pydantic_config__ = CLOSED

    method: str
    layer: str
    grid: tuple[int, int]
    how: str


@dataclass(frozen=True)
class ImageFinding:
    """One image that was looked at. `size` is (height, width) in pixels; `view` is (top, left, height, width) in its own pixels: the part that the model saw.

    scores: {method: {measure: value}}; artefacts: {method: {"prefix_share" | "largest_patch" | "entropy" | "norm_outliers": value}}, fractions in [0, 1].
    flags: sentences for readers, each naming an artefact above its threshold.
    """

    __pydantic_config__ = CLOSED

    file: str
    size: tuple[int, int]
    view: tuple[float, float, float, float]
    label: str | None = None
    prediction: str | None = None
    confidence: float | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    artefacts: dict[str, dict[str, float]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """The numbers under one panel of a projection, which the eye cannot see. A silhouette is None where the probe has one class only."""

    __pydantic_config__ = CLOSED

    epoch: int
    knn_accuracy: Measurement
    silhouette: Measurement | None
    plane_silhouette: Measurement | None
    neighbours_kept: Measurement
    trustworthiness: Measurement


@dataclass(frozen=True)
class ProjectionFinding:
    """One projection of the probe's features at several epochs; `name` is its key in arrays.npz."""

    __pydantic_config__ = CLOSED

    name: str
    how: str
    panels: list[Panel]


@dataclass(frozen=True)
class PositionsFinding:
    """Position embeddings: `kind` is learned, fixed, interpolated, relative, rotary or none; `grid` None where there is nothing to show."""

    __pydantic_config__ = CLOSED

    kind: str
    how: str
    grid: tuple[int, int] | None = None


@dataclass
class Findings:
    """Everything that was found inside one model."""

    __pydantic_config__ = CLOSED

    pellucid: str
    model: str
    weights: str
    images: list[ImageFinding] = field(default_factory=list)
    maps: list[MapKind] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    projections: list[ProjectionFinding] = field(default_factory=list)
    positions: PositionsFinding | None = None
    epochs: list[int] = field(default_factory=list)
    over_epochs: list[EpochScores] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def measurements(self) -> list[Measurement]:
        """Every number among them, for the report's table and for verify."""
        panels = [panel for projection in self.projections for panel in projection.panels]
        every = [*self.scores, *(score for of in self.over_epochs for score in of.scores)]
        scored = [m for score in every for m in (score.value, *score.baselines.values(), *score.margins.values())]
        numbers = [m for p in panels for m in (p.knn_accuracy, p.silhouette, p.plane_silhouette, p.neighbours_kept, p.trustworthiness)]
        return scored + [m for m in numbers if m is not None]

    def save(self, folder: Path) -> Path:
        """Write `findings.json` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FINDINGS, self)
        return folder / FINDINGS


ALIKE = 0.5  # rank correlation with the maps of random weights from which a map shows little of what was learned
BETTER, WORSE, OPEN = "better", "worse", "open"
NAMES = {"uniform": "the uniform map", "centre": "the centre prior", "shuffled": "the masks of other images", "random model": "the model with random weights"}


def verdict(score: Score) -> tuple[str, str]:
    """(a plain sentence, "better", "worse" or "open"): does a score beat its baselines, the centre prior and the hardest one by name?

    It beats one when the interval of the paired difference lies on the better side of 0. A score without baselines, the correlation with random
    weights, is judged by ALIKE. Of one image nothing is said.
    """
    if score.value.n < 2:
        return "one picture allows no verdict", OPEN
    if not score.baselines:
        alike = score.value.value >= ALIKE
        return "shows little of what the model learned" if alike else "depends on what the model learned", WORSE if alike else BETTER
    sign, hardest = 1.0 if score.higher_is_better else -1.0, hardest_baseline(score)
    named = [name for name in dict.fromkeys(["centre", hardest]) if name in score.baselines]
    kinds = {name: _side(score.margins.get(name), sign) for name in named}
    words = {BETTER: "beats", WORSE: "is worse than", OPEN: "cannot be told from"}
    said = [f"{words[kinds[name]]} {NAMES.get(name, name)} ({score.baselines[name]})" for name in named]
    if len(said) > 1:
        said[-1] += ", the hardest baseline"
    return "; ".join(said), kinds[hardest]


def fitted_view(finding: ImageFinding, photo: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """The view of a finding in pixels of `photo`, which is the image that was looked at or a smaller copy of it."""
    (height, width), (top, left, view_height, view_width) = finding.size, finding.view
    down, across = photo.shape[0] / height, photo.shape[1] / width
    if abs(photo.shape[0] - height * across) > 1 and abs(photo.shape[1] - width * down) > 1:  # a copy is rounded to whole pixels
        raise UsageError(f"{finding.file}: expected a picture of {height} x {width} pixels or a smaller copy, got {photo.shape[0]} x {photo.shape[1]}")
    return top * down, left * across, view_height * down, view_width * across


def hardest_baseline(score: Score) -> str:
    """The name of the baseline that is hardest to beat, the first of equals."""
    sign = 1 if score.higher_is_better else -1
    return max(score.baselines, key=lambda name: sign * score.baselines[name].value)


def _side(margin: Measurement | None, sign: float) -> str:
    """On which side of 0 the interval of a paired difference lies; open where there are too few images for one."""
    if margin is None or margin.interval is None or margin.interval[0] <= 0.0 <= margin.interval[1]:
        return OPEN
    return BETTER if sign * margin.value > 0 else WORSE


_FINDINGS = TypeAdapter(Findings)


def load_findings(folder: Path) -> Findings:
    """The findings in a folder. RunError where there are none, or where they were changed into something else."""
    path = folder / FINDINGS
    if not path.is_file():
        raise RunError(f"{path}: expected what `pellucid inside` writes; there is no such file.")
    return read_record(path, _FINDINGS)
