"""The report's section on what was seen inside the model: scores beside baselines, maps on photographs, projections, positions.

Read from the run's inside/ folder (format: `pellucid.findings`) with NumPy and Pillow; matplotlib lends its colours and is loaded for
runs that were looked into alone. Pictures are WebP, points are SVG that follows the page's colours; both have a budget of bytes, and
what did not fit is said.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from markupsafe import Markup
from numpy.typing import NDArray

from pellucid.errors import RunError, UsageError
from pellucid.findings import (
    ARRAYS,
    FINDINGS,
    IMAGES,
    Findings,
    ImageFinding,
    MapKind,
    Panel,
    ProjectionFinding,
    Score,
    fitted_view,
    hardest_baseline,
    load_findings,
    verdict,
)
from pellucid.readings import checked_projection, common_limits, named_classes
from pellucid.records import array_names, read_arrays, read_picture
from pellucid.report import planes
from pellucid.run import DONE, Measurement, Run, rounded

SIDE = 320  # pixels of a picture's long side
MAX_IMAGES = 12
MAX_PICTURE_BYTES = 1_200_000  # of all pictures of the section as text in the page, a quarter of what a report may hold
MAX_PANELS = 6  # epochs of maps; the first and the last are always among them
MAX_PLANES, MAX_POINTS = 3, 600  # panels of a projection, the first and the last epoch among them, and points of each: what moves has them all
MAX_GRIDS_SIDE = 800  # pixels of the picture of positions' long side


@dataclass(frozen=True)
class ScoreRow:
    """One method and measure. `baselines` stand in the order of `Inside.baselines`; `kind` is better, worse or open."""

    score: Score
    baselines: list[Measurement | None]
    verdict: str
    kind: str


@dataclass(frozen=True)
class OwnScore:
    """A measure of one image beside the best baseline of the set."""

    measure: str
    value: Measurement
    baseline: str
    beside: Measurement


@dataclass(frozen=True)
class MapPicture:
    """A map over its photo as a data URI, with its scores."""

    method: str
    uri: str
    alt: str
    scores: list[OwnScore]


@dataclass(frozen=True)
class Looked:
    """An image that was looked at; `uri` None where its picture is missing or cannot be read, which `missing` says."""

    finding: ImageFinding
    confidence: Measurement | None
    uri: str | None
    missing: str
    maps: list[MapPicture]
    over_epochs: list[MapPicture]  # of the first kind of map; `method` says the epoch


@dataclass(frozen=True)
class EpochRow:
    """A measure of one kind of map at each epoch that was kept, beside the centre prior, which is the same for all."""

    method: str
    measure: str
    values: list[Measurement | None]
    centre: Measurement | None


@dataclass(frozen=True)
class Plane:
    """One projection over epochs. points: (E, p, 2) float64, row i the same image in every epoch; labels: (p,) int64."""

    finding: ProjectionFinding
    points: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Projection:
    """Panels of one projection, each an SVG with the numbers below it. `note` says what of it is not drawn."""

    name: str
    how: str
    panels: list[tuple[Panel, Markup]]
    legend: Markup
    note: str


@dataclass(frozen=True)
class Positions:
    """The grid of grids as a data URI; None where the model has nothing to show, which `how` says."""

    kind: str
    how: str
    uri: str | None
    alt: str
    scale: str


@dataclass(frozen=True)
class Inside:
    """Everything that the template shows of one folder of findings."""

    findings: Findings
    baselines: list[str]
    rows: list[ScoreRow]
    looked: list[Looked]
    over_epochs: list[EpochRow]
    projections: list[Projection]
    positions: Positions | None


def read_inside(run: Run) -> Inside | None:
    """The section of a run; None where nobody looked inside. RunError names the file that is damaged, missing or contradicts the others."""
    folder = run.inside
    if not folder.is_dir() or (run.record.status != DONE and not (folder / FINDINGS).is_file()):
        return None
    findings = load_findings(folder)
    arrays = Arrays(folder / ARRAYS)
    baselines = list(dict.fromkeys(name for score in findings.scores for name in score.baselines))
    positions = _positions(findings, arrays)
    return Inside(
        findings,
        baselines,
        [ScoreRow(score, [score.baselines.get(name) for name in baselines], *verdict(score)) for score in findings.scores],
        _looked(folder, findings, arrays, MAX_PICTURE_BYTES - len(positions.uri or "" if positions else "")),
        _over_epochs(findings),
        _projections(findings, arrays),
        positions,
    )


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _over_epochs(findings: Findings) -> list[EpochRow]:
    """The measures that have a baseline, at every epoch."""
    by_epoch = [{(score.method, score.measure): score for score in of.scores if score.baselines} for of in findings.over_epochs]
    rows = []
    for key in dict.fromkeys(key for scores in by_epoch for key in scores):
        found = [scores.get(key) for scores in by_epoch]
        centre = next((score.baselines.get("centre") for score in found if score is not None), None)
        rows.append(EpochRow(*key, [None if score is None else score.value for score in found], centre))
    return rows


def _looked(folder: Path, findings: Findings, arrays: Arrays, left: int) -> list[Looked]:
    """The first images, in pictures of at most `left` bytes of text, and one image at least."""
    maps = {kind.method: arrays.maps(kind, len(findings.images)) for kind in findings.maps}
    with_baseline = {(score.method, score.measure): score for score in findings.scores if score.baselines}
    first = findings.maps[0] if findings.maps else None
    kept = [of.epoch for of in findings.over_epochs if first is not None and any(score.method == first.method for score in of.scores)]
    epochs = [kept[i] for i in _spread(len(kept), MAX_PANELS)] if kept else []
    measured = {of.epoch for of in findings.over_epochs for score in of.scores if first is not None and score.method == first.method and score.baselines}
    epochs = [epoch for epoch in epochs if epoch in measured]  # no picture without its measure
    over = {} if first is None else {epoch: arrays.maps(first, len(findings.images), epoch) for epoch in epochs}
    own = {(epoch, score.measure): (score, arrays[f"scores/{score.method}/{score.measure}/{epoch}"])
           for of in findings.over_epochs for epoch in [of.epoch] for score in of.scores
           if first is not None and score.method == first.method and score.baselines and epoch in over}  # fmt: skip
    shown: list[Looked] = []
    for i, finding in enumerate(findings.images[:MAX_IMAGES]):
        at = {epoch: (values[i], [_own(measure, float(x[i]), score) for (e, measure), (score, x) in own.items() if e == epoch and math.isfinite(x[i])])
              for epoch, values in over.items()}  # fmt: skip
        one = _look(folder / IMAGES / f"{i}.webp", finding, {method: values[i] for method, values in maps.items()}, with_baseline, at)
        left -= len(one.uri or "") + sum(len(map_.uri) for map_ in (*one.maps, *one.over_epochs))
        if left < 0 and shown:
            break
        shown.append(one)
    return shown


def _look(
    path: Path,
    finding: ImageFinding,
    maps: dict[str, NDArray[np.float64]],
    scores: dict[tuple[str, str], Score],
    epochs: dict[int, tuple[NDArray[np.float64], list[OwnScore]]],
) -> Looked:
    from pellucid.figures.overlays import overlay, reduced

    sure = None if finding.confidence is None else Measurement("confidence", finding.confidence, "fraction", "image", 1, 0, "probability of the prediction")
    try:
        photo = np.asarray(read_picture(path).convert("RGB"))
    except FileNotFoundError:
        return Looked(finding, sure, None, "no picture was kept", [], [])
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        return Looked(finding, sure, None, "picture cannot be read", [], [])
    try:
        small, view = reduced(photo, fitted_view(finding, photo), SIDE)
        drawn = {method: _webp(overlay(small, values, view)) for method, values in maps.items()}
        over = [MapPicture(f"epoch {e}", _webp(overlay(small, values, view)), f"epoch {e} over {finding.file}", own) for e, (values, own) in epochs.items()]
    except UsageError as error:
        raise RunError(f"{path}: {error}; the folder was changed") from None
    pictures = [MapPicture(method, uri, f"{method} over {finding.file}", _own_scores(finding, method, scores)) for method, uri in drawn.items()]
    return Looked(finding, sure, _webp(small), "", pictures, over)


def _own_scores(finding: ImageFinding, method: str, scores: dict[tuple[str, str], Score]) -> list[OwnScore]:
    """The image's scores that have a baseline to stand beside."""
    found = []
    for measure, value in finding.scores.get(method, {}).items():
        if score := scores.get((method, measure)):
            found.append(_own(measure, value, score))
    return found


def _own(measure: str, value: float, score: Score) -> OwnScore:
    own, best = Measurement(measure, value, score.value.unit, score.value.split, 1, score.value.seed, score.value.how), hardest_baseline(score)
    return OwnScore(measure, own, best, score.baselines[best])


# ── projections and positions ────────────────────────────────────────────────────────────────────────────────────


def read_planes(folder: Path, findings: Findings) -> list[Plane]:
    """The projections of a folder of findings with their points. RunError where they do not fit what findings.json says."""
    return _planes(findings, Arrays(folder / ARRAYS))


def _planes(findings: Findings, arrays: Arrays) -> list[Plane]:
    found = []
    for projection in findings.projections:
        key = f"projection/{projection.name}"
        try:
            points, labels = checked_projection(arrays[key], arrays["probe/labels"], findings.classes, projection.panels)
        except UsageError as error:
            raise RunError(f"{arrays.path}: {key}: {error}; the file was changed") from None
        found.append(Plane(projection, points, labels))
    return found


def _projections(findings: Findings, arrays: Arrays) -> list[Projection]:
    found = []
    for plane in _planes(findings, arrays):
        projection, points, labels = plane.finding, plane.points, plane.labels
        limits, named = common_limits(points), named_classes(labels, len(findings.classes))
        rows = _spread(points.shape[1], MAX_POINTS)
        epochs = _spread(len(projection.panels), MAX_PLANES)
        styles = planes.styles(labels[rows], named)
        panels = [(panel, planes.plane(points[e][rows], styles, limits, label=_spoken(panel, len(rows)))) for e in epochs for panel in [projection.panels[e]]]
        left_out = [
            f"{len(some):,} of {whole:,} {what} are drawn, evenly spaced"
            for some, whole, what in ((rows, points.shape[1], "points"), (epochs, len(points), "epochs"))
            if len(some) < whole
        ]
        note = f"{'; '.join(left_out)}. The numbers are of all." if left_out else ""
        others = len(np.unique(labels)) - len(named)
        legend = planes.legend([findings.classes[i] for i in named], others=others)
        found.append(Projection(projection.name, projection.how, panels, legend, note))
    return found


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the indices below `count`, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _spoken(panel: Panel, num_points: int) -> str:
    return (
        f"{num_points:,} points on a plane at epoch {panel.epoch}, k-NN accuracy {panel.knn_accuracy}, silhouette {panel.silhouette or 'n/a'} in feature space."
    )


def _positions(findings: Findings, arrays: Arrays) -> Positions | None:
    from pellucid.figures.overlays import SIMILARITY_COLOURS, coloured, grid_of_grids

    found = findings.positions
    if found is None or found.grid is None:
        return None if found is None else Positions(found.kind, found.how, None, "", "")
    grids = grid_of_grids(arrays.similarity(found.grid))
    low = float(np.nanmin(grids))
    colours = coloured((grids - low) / max(1.0 - low, 1e-6), SIMILARITY_COLOURS)
    times = max(1, MAX_GRIDS_SIDE // max(grids.shape))
    uri = _webp(np.repeat(np.repeat(colours, times, axis=0), times, axis=1))
    gh, gw = found.grid
    alt = f"{gh} by {gw} small maps, one for each position: its cosine similarity with every position."
    return Positions(found.kind, found.how, uri, alt, f"Dark is {rounded(low)}, the lowest similarity; bright is 1, a position with itself.")


def _webp(pixels: NDArray[np.uint8]) -> str:
    """(H, W, 3) as a WebP data URI; SIDE pixels of a photograph are about 20 kB."""
    image, buffer = PIL.Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((MAX_GRIDS_SIDE, MAX_GRIDS_SIDE))
    image.save(buffer, "WEBP", quality=78, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


class Arrays:
    """arrays.npz, read key by key; RunError names the file and the key where one is missing or not what findings.json says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def keys(self) -> list[str]:
        """All keys, in the order of the file."""
        self._there()
        return array_names(self.path, "arrays")

    def __getitem__(self, key: str) -> NDArray[Any]:
        self._there()
        found = read_arrays(self.path, "arrays", key, optional=True)
        if not found:
            raise RunError(f"{self.path}: {key} is missing; the file was changed")
        return found[key]

    def _there(self) -> None:
        if not self.path.exists():
            raise RunError(f"{self.path}: the file is missing; `pellucid inside` writes it beside {FINDINGS}")

    def names(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, in the order of the file."""
        return [name for name in self.keys if name.startswith(prefix)]

    def similarity(self, grid: tuple[int, int]) -> NDArray[np.float32]:
        """`positions`, (gh, gw, gh, gw): cosine similarities of each position with each other."""
        values, shape = self["positions"], (*grid, *grid)
        if values.shape != shape or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise RunError(f"{self.path}: positions: expected finite numbers of shape {shape}, got {values.shape}; the file was changed")
        return values

    def maps(self, kind: MapKind, num_images: int, epoch: int | None = None) -> NDArray[np.float64]:
        """maps/<method>, or maps/<method>/<epoch>, (n, gh, gw) float64."""
        key, shape = f"maps/{kind.method}" + ("" if epoch is None else f"/{epoch}"), (num_images, *kind.grid)
        values = self[key]
        if values.shape != shape or values.dtype.kind != "f" or not np.isfinite(values).all() or (values < 0).any():
            raise RunError(f"{self.path}: {key}: expected finite numbers >= 0 of shape {shape}, got {values.dtype} {values.shape}; the file was changed")
        return values.astype(np.float64)
