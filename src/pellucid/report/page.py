"""A run -> report.html: gathers what the run folder holds and hands it to the template.

The page is a function of the run folder alone: it carries no date of its own, so the same run gives the same bytes.
What an unfinished run does not have yet is said in its place; what a finished run has lost is said at the top.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pellucid import findings, mask_findings, word_findings
from pellucid.errors import RunError, UsageError
from pellucid.readings import Chart
from pellucid.recipe import Recipe
from pellucid.report import captions, charts, masks, pictures, settings
from pellucid.report.content import Mistake, Reading, read_predictions
from pellucid.report.inside import Inside, read_inside
from pellucid.report.pretraining import alarms, read_pretraining
from pellucid.report.template import render_template
from pellucid.run import DataRecord, Measurement, Run, RunRecord
from pellucid.views import Room, View, curves, overview, views

MATRIX_CLASSES = 20  # up to here every cell of the confusion matrix has its number
BAR_CLASSES = 30  # up to here each class has its own row in the data table
MAX_ROWS = 1000  # of the class table
MAX_PROBLEMS = 50
MOST_BYTES = 5_000_000  # of a report
ROOMS = {  # bytes of text that the data of a view may take in a report; the pictures for paper have their own
    "curves": 150_000, "features": 800_000, "attention": 800_000, "positions": 150_000, "masks": 800_000, "words": 800_000, "mistakes": 500_000,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A chart with its heading and legend, ready for the page; note: how to read it."""

    title: str
    chart: Markup
    legend: Markup
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A mistake with its thumbnail as a data URI; `missing` says why there is none."""

    mistake: Mistake
    uri: str | None
    missing: str


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix; `shade` is its share of the label's samples in whole percent, for the colour alone."""

    count: int
    shade: int


def write_report(run: Run, *, out: Path | None = None, max_points: int | None = None) -> Path:
    """Write the report of a run and return its path: `out`, or report.html in the run folder.

    max_points: most points of a projection, and the data of its view then has no other bound; None: as many as the room for it holds. UsageError where the
    page would be larger than MOST_BYTES; nothing is written then.
    """
    path = run.report_file if out is None else out
    # A file name that is no valid Unicode must not lose the whole report.
    page = fitting(run, max_points).encode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    return path


def fitting(run: Run, max_points: int | None) -> str:
    """The report within MOST_BYTES: where it would be more, the views get less room, and say what they left out."""
    for share in (1.0, 0.5, 0.2, 0.05):
        page = render(run, max_points=max_points, share=share)
        size = len(page.encode("utf-8", "backslashreplace"))
        if size <= MOST_BYTES or (max_points is not None and share < 1.0):
            break
    if size > MOST_BYTES:
        if max_points is None:
            explore = shlex.join(["pellucid", "explore", str(run.path)])
            smaller = f" What cannot be left out, such as the names of classes, is too long; `{explore}` has no bound."
        else:
            smaller = f" --max-points {max(100, max_points // 2)} asks for fewer points, without it as many are taken as fit."
        raise UsageError(f"{run.path}: the report would have {size / 1e6:.1f} MB, and a report has at most {MOST_BYTES / 1e6:.0f} MB.{smaller}")
    return page


def render(run: Run, *, max_points: int | None = None, share: float = 1.0) -> str:
    """The report as one HTML text without any outside reference. Raises RunError where a file of the run cannot be read.

    max_points: as in `write_report`. share: of the room that the views have.
    """
    record, recipe = run.record, run.recipe
    data = run.data if _has(run, "data.json") else None
    headline = record.measurements[0] if record.measurements else None
    split = _shown_split(run, headline)
    of_pixels, of_features, of_captions = (recipe.task == task for task in ("segmentation", "pretraining", "captioning"))
    of_classes = not (of_pixels or of_features or of_captions)
    reading = None if data is None or split is None or not of_classes else _reading(run, data, split, recipe.seed)
    features = read_pretraining(run, record, recipe, data) if of_features else None
    masked = None if data is None or split is None or not of_pixels else _masked(run, record, data, split, recipe)
    captioned = None if data is None or split is None or not of_captions else captions.read_captions(run, data, recipe, record.measurements, split=split)
    inside = _inside(run)
    taken = [0 if masked is None else masked.bytes, 0 if captioned is None else captioned.bytes, 0 if inside is None else _picture_bytes(inside)]
    room = masks.MAX_PICTURE_BYTES - sum(taken)
    return render_template(
        "report.html",
        views=_views(run, max_points, share),
        name=run.name,
        record=record,
        facts=overview.facts(recipe, record, data),
        headline=headline,
        promise=overview.read_promise(run, record),
        measurements=[m for m in record.measurements if m.key not in _in_class_table(reading, masked)],
        recalls={m.key: m for m in record.measurements},
        alerts=_alerts(run, record, reading) + [of.alert for of in (masked, captioned) if of is not None and of.alert],
        problems=[] if data is None else data.problems[:MAX_PROBLEMS],
        num_problems=0 if data is None else len(data.problems),
        skipped=[] if data is None else data.skipped,
        alarms=alarms(record),
        drawings=[_drawing(chart, x_label) for chart, x_label in curves.run_charts(run)],
        features=features,
        captions=captioned,
        words=captions.read_words(run, room=room) if of_captions else None,
        masks=masked,
        masks_over_epochs=masks.read_masks_over_epochs(run, room=room) if of_pixels else None,
        pixel_rows=[] if data is None or data.mask_format is None else masks.pixel_rows(data),
        reading=reading,
        cells=None if reading is None or len(reading.classes) > MATRIX_CLASSES else _cells(reading),
        matrix=None if reading is None or len(reading.classes) <= MATRIX_CLASSES else pictures.matrix(reading.confusion),
        rows=[] if reading is None else _class_rows(reading),
        reliability=None if reading is None else charts.reliability_chart(reading.calibration),
        mistakes=[] if reading is None else _mistakes(run, reading),
        inside=inside,
        data=data,
        data_rows=None if data is None or len(data.classes) > BAR_CLASSES else _data_rows(data),
        strips={}
        if data is None or of_captions
        else {name: charts.bar_strip(split.counts, data.classes, label=f"Samples of each class in {name}") for name, split in data.splits.items()},
        groups=settings.groups(recipe),
        environment=overview.environment(run),
        command=shlex.join(record.command),
        verify=shlex.join(["pellucid", "verify", str(run.path)]),
    )


def _views(run: Run, max_points: int | None, share: float) -> dict[str, View]:
    """What moves in the page, by name."""
    found = {}
    for name, build in views().items():
        if name not in ROOMS:
            continue
        room = Room(bytes=int(share * ROOMS[name]))
        if name == "features" and max_points is not None:
            room = Room(max_points, MOST_BYTES)
        if view := build(run, room):
            found[name] = view
    return found


# ── the top of the page ──────────────────────────────────────────────────────────────────────────────────────────


def _alerts(run: Run, record: RunRecord, reading: Reading | None) -> list[str]:
    """What a reader must know before believing a number."""
    alerts = overview.alerts(run, record)
    if reading is not None:
        stated = {m.key: m for m in record.measurements}.get(f"{reading.split}/accuracy")
        # One sample more or less is a real difference; float32 sums differ by far less.
        if stated is not None and abs(stated.value - reading.accuracy.value) > 0.5 / reading.n:
            found = f"The saved predictions of {reading.split} give accuracy {reading.accuracy}, the run states {stated}."
            alerts.append(f"{found} `pellucid verify {run.path}` names what changed.")
    return alerts


def _has(run: Run, name: str) -> bool:
    return (run.path / name).is_file()


# ── curves and predictions ───────────────────────────────────────────────────────────────────────────────────────


def _drawing(chart: Chart, x_label: str) -> Drawing:
    """A chart for paper and for browsers without scripts."""
    lines = [*chart.curves, *chart.levels]
    drawn = charts.line_chart(
        chart.curves, title=chart.title, x_label=x_label, y_label=chart.y_label, unit=chart.unit,
        levels=chart.levels, shown=chart.shown, shaded_below=chart.collapsed,
    )  # fmt: skip
    return Drawing(chart.title, drawn, charts.legend(lines) if len(lines) > 1 else Markup(""), chart.note)


def _shown_split(run: Run, headline: Measurement | None) -> str | None:
    """The headline's split, or the first one with predictions."""
    splits = run.prediction_splits
    return headline.split if headline is not None and headline.split in splits else next(iter(splits), None)


def _reading(run: Run, data: DataRecord, split: str, seed: int) -> Reading | None:
    """The predictions of a split; None where it has no sample."""
    predictions = run.predictions(split)
    if not len(predictions.labels):
        return None
    expected, found = (len(predictions.labels), len(data.classes)), predictions.logits.shape
    if found != expected:
        raise RunError(f"{run.predictions_file(split)}: expected logits of shape {expected} for the classes in data.json, got {found}; the run was changed")
    return read_predictions(predictions, data.classes, split=split, seed=seed)


def _masked(run: Run, record: RunRecord, data: DataRecord, split: str, recipe: Recipe) -> masks.MaskReading | None:
    """The predicted masks of a split; None where it has no image."""
    if data.mask_format is None:
        raise RunError(f"{run.path / 'data.json'}: expected the format of the masks of a segmentation, there is none; the file was changed")
    assert recipe.scoring is not None, "the schema gives every segmentation its scoring"
    return masks.read_masks(run, data, record.measurements, split=split, seed=recipe.seed, scoring=recipe.scoring)


def _in_class_table(reading: Reading | None, masked: masks.MaskReading | None) -> set[str]:
    """Keys of the measurements that stand in the table of classes."""
    found = set() if reading is None else {f"{reading.split}/recall[{name}]" for name in reading.classes}
    return found if masked is None else found | {f"{masked.split}/iou[{name}]" for name in masked.classes}


def _inside(run: Run) -> Inside | None:
    """What was seen inside; None as well where masks over epochs, words, or neighbours are all that was kept."""
    others = [run.inside / name for name in (mask_findings.FINDINGS, word_findings.WORDS, "neighbours.json")]
    return None if any(path.is_file() for path in others) and not (run.inside / findings.FINDINGS).is_file() else read_inside(run)


def _picture_bytes(inside: Inside) -> int:
    """Of the photos and maps of the section on what is inside, as text."""
    return sum(len(look.uri or "") + sum(len(map_.uri) for map_ in (*look.maps, *look.over_epochs)) for look in inside.looked)


def _cells(reading: Reading) -> list[list[Cell]]:
    return [[Cell(int(count), int(100 * count // max(row.sum(), 1))) for count in row] for row in reading.confusion]


def _class_rows(reading: Reading) -> list[Any]:
    """Rows in class order; of more than MAX_ROWS classes those with the lowest F1."""
    if len(reading.rows) <= MAX_ROWS:
        return reading.rows
    return sorted(reading.rows, key=lambda row: (row.f1.value != row.f1.value, row.f1.value))[:MAX_ROWS]


def _mistakes(run: Run, reading: Reading) -> list[Picture]:
    found = []
    for mistake in reading.mistakes:
        path = run.thumbnails / reading.split / f"{mistake.index:06d}.webp"
        uri = pictures.thumbnail(path) if path.is_file() else None
        found.append(Picture(mistake, uri, "picture cannot be read" if path.is_file() else "no picture was kept"))
    return found


# ── data and environment ─────────────────────────────────────────────────────────────────────────────────────────


def _data_rows(data: DataRecord) -> list[tuple[str, list[tuple[int, int]]]]:
    """(class, [(count, length of its bar in whole percent of the split's largest class) for each split])."""
    largest = {name: max(split.counts, default=0) or 1 for name, split in data.splits.items()}
    return [(label, [(split.counts[i], 100 * split.counts[i] // largest[name]) for name, split in data.splits.items()]) for i, label in enumerate(data.classes)]
