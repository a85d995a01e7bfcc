"""The features of a run's probe as points on planes that move over the epochs, each plane with the numbers that the eye cannot see.

The view holds

    about         what is drawn, in a sentence
    projections   [{name, title, axes, how, span, low, high, measures, panels}]: the points in levels of one square for all epochs, y upwards, one level
                  as long in x as in y; low (E, p, 2) uint8 the lower eight bits, high (E, p) uint8 the upper four of x and, times 16, of y: as short as
                  16 bits deflated, but read at once; span (x, y) levels that are used;
                  measures [what the numbers of all panels share], panels [{epoch, numbers}], of each measure what is the panel's own, or null
    classes       names of the classes that have a point; labels (p,) uint16 counts through them; styles: of each class as `report.planes` numbers
                  colours and shapes, -1 for those that share the last one
    files         of the points, [] where nobody knows them;  atlas {src, side, columns} of their pictures in the order of the points, or null
    notes         what is not drawn
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.errors import RunError
from pellucid.findings import FINDINGS, Panel, ProjectionFinding, load_findings
from pellucid.readings import common_limits, named_classes
from pellucid.run import Measurement, Run
from pellucid.views import FULLER, Room, View, encoding, size
from pellucid.views.snapshot_planes import MOST_FITTED, evenly, has_planes, planes_so_far

LEVELS = 4_095  # of a plane's longer side: less than a pixel, and 3 at the largest zoom
SIDES = (32, 24, 16)  # pixels of a point's picture, the first that has room
MOVING = 4_000  # points that move as pictures at 30 frames a second, as in features.js
FEWEST_EPOCHS, FEWEST_POINTS = 3, 100  # below which nothing more is left out
MEASURES = {  # fields of a Panel, in words
    "knn_accuracy": "k-NN accuracy",
    "silhouette": "silhouette in feature space",
    "plane_silhouette": "silhouette on this plane",
    "neighbours_kept": "neighbours kept",
    "trustworthiness": "trustworthiness",
}
TITLES = {"pca-last": "PCA of the last epoch", "pca-each": "PCA of each epoch", "tsne": "t-SNE"}
PRINCIPAL = ("first principal direction", "second principal direction")
SO_FAR = (
    f"PCA fitted on each epoch (of more than {MOST_FITTED:,} images with more features than that: on {MOST_FITTED:,} of them), centred on its own mean, then "
    "turned or mirrored onto the epoch before. The end of a training adds the numbers under each plane and the other projections."
)
Tiles = Callable[[Sequence[int]], Sequence[PIL.Image.Image]]  # pictures of the points at these places


@dataclass(frozen=True)
class Unmeasured:
    """A projection whose numbers were not computed yet."""

    name: str
    how: str
    epochs: list[int]


def build(run: Run, room: Room) -> View | None:
    """The view of a run; None where its features were not kept. RunError where what was kept was changed."""
    return of_folder(run.inside, room, run)


def so_far(run: Run, room: Room) -> View | None:
    """The view of a run that has no findings yet, or never came to have some: the epochs that it kept, without numbers. None where it kept no features."""
    if (run.inside / FINDINGS).is_file() or not has_planes(run):
        return None
    probe, epochs, points = planes_so_far(run)
    files, tiles, notes = _probe(run, probe.labels)
    if len(epochs) < len(run.snapshot_epochs):
        notes = [*notes, f"{len(epochs)} of the {len(run.snapshot_epochs)} epochs that were kept are here, evenly spaced."]
    plane = Unmeasured("pca-each", f"Epochs kept so far: {len(epochs)}. {SO_FAR}", epochs)
    return of_arrays([(plane, points)], probe.labels, run.data.classes, files=files, tiles=tiles, room=room, notes=notes)


def of_folder(folder: Path, room: Room, run: Run | None = None) -> View | None:
    """The view of a folder of findings; None where it has no projection. run: whose probe it is, which has files and pictures."""
    from pellucid.report.inside import read_planes

    if not (folder / FINDINGS).is_file():
        return None
    findings = load_findings(folder)
    planes = read_planes(folder, findings)
    if not planes:
        return None
    files, tiles, notes = ([], None, []) if run is None else _probe(run, planes[0].labels)
    return of_arrays([(plane.finding, plane.points) for plane in planes], planes[0].labels, findings.classes, files=files, tiles=tiles, room=room, notes=notes)


def of_arrays(
    planes: Sequence[tuple[ProjectionFinding | Unmeasured, NDArray[np.floating[Any]]]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    files: Sequence[str] = (),
    tiles: Tiles | None = None,
    room: Room | None = None,
    notes: Sequence[str] = (),
) -> View:
    """The view of projections (finding, points (E, p, 2), row i the same picture in every epoch) and labels (p,) below len(classes).

    files: p names. tiles: gives the pictures of points, asked for those that are drawn. room: by default that of a report. What does not fit is left out, and
    said: first points beyond room.points, then the pictures get smaller, then epochs go, then the pictures, then points again.
    """
    room = room or Room()
    atlases: dict[tuple[int, int], dict[str, Any]] = {}

    def built(rows: NDArray[np.int64], epochs: int, side: int) -> View:
        if tiles is not None and side and (len(rows), side) not in atlases:
            atlases[len(rows), side] = _atlas(tiles(rows.tolist()), side)
        atlas, left_out = atlases.get((len(rows), side)), tiles is not None and not side
        return _view(planes, labels, classes, rows, epochs, files, atlas, notes, room=room.bytes, left_out=left_out)

    most = max(len(points) for _, points in planes)
    for count, epochs, side in _shrinking(min(len(labels), room.points), most, pictures=tiles is not None):
        view = built(evenly(len(labels), count), epochs, side)
        if size(view) <= room.bytes:
            break
    return view


def _shrinking(points: int, epochs: int, *, pictures: bool) -> Iterator[tuple[int, int, int]]:
    """(points, epochs, side of a picture or 0) from everything down to the least."""
    fewer = [epochs]
    while fewer[-1] > FEWEST_EPOCHS:
        fewer.append(max(FEWEST_EPOCHS, fewer[-1] * 2 // 3))
    while True:
        if pictures:
            yield from ((points, epochs, side) for side in SIDES)
            yield from ((points, some, SIDES[-1]) for some in fewer[1:])
        yield from ((points, some, 0) for some in fewer)
        if points <= FEWEST_POINTS:
            return
        points = max(FEWEST_POINTS, points * 2 // 3)


def _view(
    planes: Sequence[tuple[ProjectionFinding | Unmeasured, NDArray[np.floating[Any]]]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    rows: NDArray[np.int64],
    epochs: int,
    files: Sequence[str],
    atlas: dict[str, Any] | None,
    notes: Sequence[str],
    *,
    room: int,
    left_out: bool,
) -> View:
    from pellucid.report.planes import styles

    there, own = np.unique(labels[rows], return_inverse=True)
    most = max(len(points) for _, points in planes)
    said = [
        f"{some:,} of {whole:,} {what} are here, evenly spaced; the numbers are of all. {FULLER}"
        for some, whole, what in ((len(rows), len(labels), "points"), (min(epochs, most), most, "epochs"))
        if some < whole
    ]
    if atlas is not None and len(rows) > MOVING:
        said.append(f"While more than {MOVING:,} points move, they are dots; their pictures come back where they stop.")
    if left_out:
        said.append(f"The pictures of the points did not fit; {FULLER}")
    return {
        "title": "Features over epochs",
        "about": "Each point is a picture; pictures that the model finds alike lie close together",
        "projections": [_projection(finding, points, rows, evenly(len(points), epochs)) for finding, points in planes],
        "classes": encoding.names([classes[i] for i in there], room // 4),
        "labels": encoding.array(own.astype(np.uint16), at_once=True),
        "styles": styles(there, named_classes(labels, len(classes))).tolist(),
        "files": [encoding.name(files[i]) for i in rows] if files else [],
        "atlas": atlas,
        "notes": [*notes, *said],
    }


def _projection(
    finding: ProjectionFinding | Unmeasured, points: NDArray[np.floating[Any]], rows: NDArray[np.int64], epochs: NDArray[np.int64]
) -> dict[str, Any]:
    (left, right), (below, above) = common_limits(points.astype(np.float64))
    scale = LEVELS / max(right - left, above - below)
    levels = np.rint((points[epochs][:, rows] - (left, below)) * scale).astype(np.uint16)  # (E, p, 2)
    high = levels >> 8
    if isinstance(finding, Unmeasured):
        measures: list[dict[str, Any]] = []
        panels = [{"epoch": finding.epochs[e], "numbers": []} for e in epochs]
    else:
        measures, panels = _numbers([finding.panels[e] for e in epochs])
    return {
        "name": finding.name,
        "title": TITLES.get(finding.name, finding.name),
        "axes": PRINCIPAL if finding.name.startswith("pca") else ("first axis, without a unit", "second axis, without a unit"),
        "how": finding.how,
        "span": [round((right - left) * scale), round((above - below) * scale)],
        "low": encoding.array((levels & 255).astype(np.uint8), at_once=True),
        "high": encoding.array((high[..., 0] | high[..., 1] << 4).astype(np.uint8), at_once=True),
        "measures": measures,
        "panels": panels,
    }


def _numbers(panels: Sequence[Panel]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(what each measure's numbers have in common, [{epoch, numbers: what is its own}]): how a number was computed is long, and the same for all epochs."""
    measures, columns = [], []
    for field, name in MEASURES.items():
        numbers = [encoding.number(value) for panel in panels for value in [_value(panel, field)]]
        known = [number for number in numbers if number is not None]
        shared = {key: value for key, value in (known[0] if known else {}).items() if all(number[key] == value for number in known)}
        measures.append({**shared, "name": name})
        columns.append([None if number is None else {k: v for k, v in number.items() if k not in shared and k != "name"} for number in numbers])
    return measures, [{"epoch": panel.epoch, "numbers": [column[i] for column in columns]} for i, panel in enumerate(panels)]


def _value(panel: Panel, field: str) -> Measurement | None:
    value: Measurement | None = getattr(panel, field)
    return value


def _atlas(tiles: Sequence[PIL.Image.Image], side: int) -> dict[str, Any]:
    """Pictures in rows of one nearly square picture."""
    columns = max(1, math.ceil(math.sqrt(len(tiles))))
    sheet = PIL.Image.new("RGB", (columns * side, -(-len(tiles) // columns) * side), "#808080")
    for i, tile in enumerate(tiles):
        fitted = tile.convert("RGB") if tile.size == (side, side) else tile.convert("RGB").resize((side, side), PIL.Image.Resampling.BOX)
        sheet.paste(fitted, (i % columns * side, i // columns * side))
    return {"src": encoding.picture(sheet, quality=45, method=4), "side": side, "columns": columns}


def _probe(run: Run, labels: NDArray[np.int64]) -> tuple[list[str], Tiles | None, list[str]]:
    """(files, pictures or None, notes) of the images whose features are kept."""
    if not (run.snapshots / "probe.npz").is_file():
        return [], None, ["This run does not say which images these are; trainings with `inside.features` in the recipe keep it."]
    probe = run.probe()
    if not np.array_equal(probe.labels, labels):
        raise RunError(f"{run.snapshots / 'probe.npz'}: expected the labels of probe/labels in {run.inside}, got others; a file was changed")
    samples = run.samples(probe.split)
    if len(probe.rows) and probe.rows[-1] >= len(samples):
        raise RunError(f"{run.snapshots / 'probe.npz'}: row {probe.rows[-1]} is not among the {len(samples):,} samples of {probe.split}; a file was changed")
    files, atlas = [samples[row][0] for row in probe.rows], run.probe_atlas
    if not atlas.is_file():
        return files, None, ["This run kept no pictures of these images, so points are dots; trainings with `inside.features` in the recipe keep them now."]

    def tiles(places: Sequence[int]) -> list[PIL.Image.Image]:
        from pellucid.atlas import read_tiles

        return read_tiles(atlas, SIDES[0], list(places))

    return files, tiles, []
