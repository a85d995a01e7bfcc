"""What a study found, as one table: a row for each setting, and whether its difference to the baseline means anything.

Each row is the mean over seeds with its sample standard deviation and t interval. The difference to the baseline is paired by seed, because the runs of one
seed share the order of their data, and it has two intervals: over seeds (Student's t of the differences) and over the images of the split, each with the mean
over seeds of whether it was right. Three seeds alone say little, and the images are a sample too: a difference is shown only where both intervals leave out 0.
One seed alone shows none: another one would change the number by what its interval over images does not hold.

    right or wrong for each image (accuracy, top5_accuracy, recall[...])   Agresti and Min's interval, of the mean over seeds
    the same of features (knn_accuracy, linear_accuracy)                   the same, recomputed from the stored features
    a mean over images (loss of a classification)                          t interval over images
    out of all images at once (macro_f1, miou, iou[...], loss of masks)    paired bootstrap over images
    of captions: exact_match                                               as right or wrong
    of captions: all else but the share of distinct ones                   paired bootstrap over pictures, recomputed from the stored captions
    anything else, or predictions that are not there                       none: over seeds alone, and the words say so

Nothing is dropped: runs that failed, are unfinished or not begun keep their place. Needs no torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pellucid import intervals
from pellucid.compare import LOWER_IS_BETTER, ClassTable, Group, Row, class_table, seed_row, unlike, unlike_words
from pellucid.errors import RunError
from pellucid.files import replacing
from pellucid.paired_runs import (
    OF_CAPTIONS,
    OF_CONFUSION,
    OF_FEATURES,
    TOP,
    number_of_captions,
    number_of_images,
    other_captions,
    right_features,
    right_samples,
    scores_of,
)
from pellucid.predictions import MaskPredictions, Predictions
from pellucid.readings import class_scores, confusion_counts
from pellucid.records import write_json
from pellucid.report.comparison import signed
from pellucid.report.study import listed, minutes, to_html, to_json, to_markdown, to_text
from pellucid.run import DONE, Measurement, Run
from pellucid.study_readings import Band, Dots, band, charted_value, sorted_dots
from pellucid.study_record import SettingRecord, SharedRecord, StudyFolder, StudyRecord

__all__ = ["SharedRow", "StudyRow", "StudyRun", "StudyTable", "study_table", "to_html", "to_json", "to_markdown", "to_text", "write_figures", "write_table"]

NOT_BEGUN = "not begun"
BASELINE, BETTER, WORSE, NO_DIFFERENCE = "baseline", "better", "worse", "no difference shown"
ONE_SEED, NO_INTERVAL, NOT_COMPARABLE, NO_NUMBER = "one seed", "no interval", "not comparable", "no number yet"
NO_WIDTH = 1e-9  # of an interval whose ends differ by rounding alone
OVER_IMAGES = {  # task -> its numbers that have an interval over images; what ends in [ goes on with the name of a class
    "classification": (*TOP, "macro_f1", "loss", "recall["),
    "segmentation": (*OF_CONFUSION, "loss", "iou["),
    "pretraining": OF_FEATURES,
    "captioning": OF_CAPTIONS,
}
TEXT_WIDTH = 160  # columns of table.txt

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class StudyRun:
    """A run that the study wants, begun or not.

    status: that of its record, or "not begun". folder: relative to the study's, with `/`. reached: of a begun run that is not done, where it stands.
    verified: the result of the last `pellucid verify`, "" without one.
    """

    seed: int
    status: str
    folder: str
    run: Run | None = None
    measurement: Measurement | None = None
    seconds: float = 0.0
    reached: str = ""
    error: str = ""
    verified: str = ""

    @property
    def report(self) -> str:
        """The run's report.html relative to the study's folder, "" where there is none."""
        return f"{self.folder}/{self.run.report_file.name}" if self.run is not None and self.run.report_file.is_file() else ""


@dataclass(frozen=True)
class StudyRow:
    """One setting. runs: one for each seed of the study, in its order; `row` is its number over those that are finished.

    row.difference has the interval over seeds, `over_images` is the same difference with that over images; either is None, or has no interval, where there is
    none. paired: seeds that both this row and the baseline have. verdict: BASELINE, BETTER, WORSE, NO_DIFFERENCE, ONE_SEED, NO_INTERVAL, NOT_COMPARABLE
    or NO_NUMBER.
    """

    setting: SettingRecord
    runs: tuple[StudyRun, ...]
    row: Row
    over_images: Measurement | None = None
    paired: tuple[int, ...] = ()
    verdict: str = NO_NUMBER

    @property
    def seconds(self) -> float | None:
        """Mean seconds of training over the finished runs."""
        found = [run.seconds for run in self.runs if run.status == DONE]
        return float(np.mean(found)) if found else None


@dataclass(frozen=True)
class SharedRow:
    """A run that settings have in common, with the names of those that build on it."""

    part: SharedRecord
    run: StudyRun
    task: str
    measurements: tuple[Measurement, ...]
    behind: tuple[str, ...]

    @property
    def what(self) -> str:
        return "pre-training" if self.task == "pretraining" else "training"


@dataclass(frozen=True)
class StudyTable:
    """Rows in the order of the study's settings. measure: `split/name`. decided: in one line, when a difference counts as shown.

    bands: the learning curves of the validation number `charted`, None where no run has one. classes: rows as those of the table; `dots` the same for a chart.
    """

    name: str
    measure: str
    seeds: tuple[int, ...]
    baseline: str
    final: str | None
    rows: tuple[StudyRow, ...]
    shared: tuple[SharedRow, ...]
    decided: str
    notes: tuple[str, ...]
    charted: str | None = None
    bands: tuple[Band, ...] = ()
    classes: ClassTable | None = None
    dots: Dots | None = None


def study_table(folder: StudyFolder) -> StudyTable:
    """The table of what a study's folder holds now."""
    record = folder.record
    _check_names(folder, record)
    rows = [_row(folder, record, setting) for setting in record.settings]
    base = next(row for row in rows if row.row.baseline)
    rows = [_against(row, base) for row in rows]
    shared = [_shared(folder, record, part) for part in record.shared]
    lines = [[run.run.metrics() for run in row.runs if run.run is not None and run.status == DONE] for row in rows]
    charted = charted_value([metrics for of_row in lines for metrics in of_row], record.measure.partition("/")[2])
    bands = [band(row.setting.name, of_row, charted, style=i) for i, (row, of_row) in enumerate(zip(rows, lines, strict=True))] if charted else []
    classes = class_table([row.row for row in rows], record.measure)
    return StudyTable(
        name=record.name,
        measure=record.measure,
        seeds=tuple(record.seeds),
        baseline=record.baseline,
        final=record.final,
        rows=tuple(rows),
        shared=tuple(shared),
        decided=_decided(rows),
        notes=(*_notes(rows, base, shared), *record.notes),
        charted=charted,
        bands=tuple(found for found in bands if found is not None),
        classes=classes,
        dots=_dots(rows, classes, record.baseline),
    )


def _check_names(folder: StudyFolder, record: StudyRecord) -> None:
    names = [setting.name for setting in record.settings]
    for role, name in (("baseline", record.baseline), ("final setting", record.final)):
        if name not in names and not (name is None and role == "final setting"):
            raise RunError(f"{folder.record_file}: the {role} {name!r} is none of its settings: {', '.join(names) or 'there are none'}; the file was changed")


def write_table(folder: StudyFolder) -> StudyTable:
    """The table, after writing it into the folder as table.txt, table.md, table.json and study.html. The same runs give the same bytes."""
    table = study_table(folder)
    texts = {"table.txt": to_text(table, width=TEXT_WIDTH), "table.md": to_markdown(table), folder.page.name: to_html(table)}
    for name, text in texts.items():
        with replacing(folder.path / name) as temporary:
            temporary.write_bytes(f"{text.rstrip()}\n".encode("utf-8", "backslashreplace"))
    write_json(folder.path / "table.json", to_json(table))
    return table


def write_figures(folder: StudyFolder) -> list[Path]:
    """Draw learning curves and the numbers of single classes into the study's figures/ and return the files; nothing of what no run has."""
    from pellucid.figures.study import class_dots, study_curves  # matplotlib takes as long to import as the rest of the study's end
    from pellucid.figures.style import save

    table, files = study_table(folder), []
    if table.bands and table.charted:
        files += save(study_curves(table.bands, y_label=f"validation {table.charted}"), folder.figures / "learning_curves")
    if table.dots is not None:
        files += save(class_dots(table.dots), folder.figures / "classes")
    return files


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _row(folder: StudyFolder, record: StudyRecord, setting: SettingRecord) -> StudyRow:
    begun = folder.runs(setting.name)
    runs = tuple(_study_run(folder, folder.run_folder(setting.name, seed), seed, begun.get(seed), record.measure) for seed in record.seeds)
    finished = {run.seed: run.run for run in runs if run.run is not None and run.status == DONE}
    row = seed_row(setting.name, Group(list(finished.values()), list(finished), {}), record.measure, ())
    return StudyRow(setting, runs, replace(row, baseline=setting.name == record.baseline, final=setting.name == record.final))


def _study_run(folder: StudyFolder, path: Path, seed: int, run: Run | None, measure: str) -> StudyRun:
    relative = path.relative_to(folder.path).as_posix()
    if run is None:
        return StudyRun(seed, NOT_BEGUN, relative)
    record = run.record
    found = next((m for m in record.measurements if m.key == measure), None) if record.status == DONE else None
    reached = "" if record.status == DONE else f"epoch {record.epoch}, step {record.step:,}"
    return StudyRun(seed, record.status, relative, run, found, record.seconds, reached, record.error or "", _verified(run))


def _verified(run: Run) -> str:
    """The result of the last `pellucid verify`; "" where it was not verified."""
    if not run.verify_file.is_file():
        return ""
    try:
        return str(json.loads(run.verify_file.read_text(encoding="utf-8"))["result"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "verify.json is not readable"


def _shared(folder: StudyFolder, record: StudyRecord, part: SharedRecord) -> SharedRow:
    run = folder.shared().get(part.name)
    seed = run.recipe.seed if run is not None else 0
    found = _study_run(folder, folder.shared_folder(part.name), seed, run, record.measure)
    of_run = run.record if run is not None else None
    measured = tuple(of_run.measurements) if of_run is not None and of_run.status == DONE else ()
    behind = tuple(setting.name for setting in record.settings if part.name in setting.shares)
    return SharedRow(part, found, of_run.task if of_run is not None else "", measured, behind)


def _dots(rows: Sequence[StudyRow], classes: ClassTable | None, baseline: str) -> Dots | None:
    if classes is None:
        return None
    values = {
        row.setting.name: tuple(cell.measurement.value if cell.measurement else None for cell in cells)
        for row, cells in zip(rows, classes.rows, strict=True)
        if row.row.scored
    }
    style = {row.setting.name: i for i, row in enumerate(rows)}
    return sorted_dots(Dots(classes.family, classes.classes, values, style), baseline)


# ── the difference to the baseline ───────────────────────────────────────────────────────────────────────────────


def _against(row: StudyRow, base: StudyRow) -> StudyRow:
    """The row with its difference to the baseline, both intervals, and what they can mean."""
    mine, theirs = row.row, base.row
    if row.setting.name == base.setting.name:
        return replace(row, verdict=BASELINE, row=replace(mine, words="the baseline"))
    if mine.measurement is None or theirs.measurement is None:
        of = base.setting.name if mine.measurement is not None else row.setting.name
        return replace(row, row=replace(mine, words=f"no number of {of} to compare yet"))
    measured, other = mine.measurement, unlike(mine, theirs.data_hash, theirs.scoring)
    if other:
        mine = replace(mine, other=other)
        return replace(row, verdict=NOT_COMPARABLE, row=replace(mine, words=f"not comparable: {unlike_words(mine, theirs)}"))
    paired = tuple(seed for seed in mine.seeds if seed in theirs.seeds)
    if not paired:
        return replace(row, verdict=NO_INTERVAL, row=replace(mine, words=f"no seed in common with {theirs.name}: train both under the same seeds"))
    differences = [_values(mine)[seed] - _values(theirs)[seed] for seed in paired]
    over_seeds = _over_seeds(differences, measured.unit)
    over_images, reason = _over_images(mine, theirs, paired)
    how = f"minus {theirs.name}, paired over {_seeds(paired)}"
    difference = replace(measured, name="difference", value=float(np.mean(differences)), how=how, interval=None, interval_how="")
    verdict = _verdict(measured.name, over_seeds, over_images)
    mine = replace(mine, difference=_with(difference, over_seeds), words=_words(theirs.name, difference.unit, verdict, over_seeds, over_images, paired, reason))
    return replace(row, row=mine, over_images=_with(difference, over_images), paired=paired, verdict=verdict)


def _values(row: Row) -> dict[int, float]:
    return dict(zip(row.seeds, row.values, strict=True))


def _with(difference: Measurement, interval: intervals.Interval | None) -> Measurement:
    return difference if interval is None else replace(difference, interval=interval.pair, interval_how=interval.how)


def _over_seeds(differences: Sequence[float], unit: str) -> intervals.Interval | None:
    """The t interval of the mean of differences within seeds; None of one seed. That of fractions ends at -1 and 1."""
    if len(differences) < 2:
        return None
    found = intervals.mean(differences, of="paired seeds")
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high)) if unit == "fraction" else found


def _over_images(mine: Row, theirs: Row, seeds: Sequence[int]) -> tuple[intervals.Interval | None, str]:
    """The interval of the difference over images, of the mean over these seeds; or None and why there is none."""
    assert mine.measurement is not None
    split, name = mine.measurement.split, mine.measurement.name
    sides = [[run for run, seed in zip(row.scored, row.seeds, strict=True) if seed in seeds] for row in (mine, theirs)]
    task = sides[0][0].recipe.task
    family = name[: name.find("[") + 1] or name
    if family not in OVER_IMAGES[task]:
        return None, f"{name} has no interval over images"
    for run in (run for side in sides for run in side):
        if not run.predictions_file(split).is_file():
            return None, f"the predictions of {run.path.parent.name}/{run.name} are missing"
    over = {"classification": _over_predictions, "segmentation": _over_masks, "pretraining": _over_features, "captioning": _over_captions}[task]
    return over(sides, split, name)


def _over_predictions(sides: Sequence[Sequence[Run]], split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """Of numbers that follow from the logits of each image."""
    found = [[run.predictions(split) for run in side] for side in sides]
    first = found[0][0]
    for other in (predictions for side in found for predictions in side):
        if other.files != first.files or not np.array_equal(other.labels, first.labels):
            return None, "the predictions are not of the same samples in the same order"
    if name == "macro_f1":
        mine, theirs = (_mean_of([_macro_f1(p) for p in side]) for side in found)
        return intervals.paired_bootstrap(lambda images: mine(images) - theirs(images), len(first.files)), ""
    if name == "loss":
        losses = [np.mean([_cross_entropy(p) for p in side], axis=0) for side in found]
        return (intervals.mean(losses[0] - losses[1], of="paired images"), "") if len(first.files) > 1 else (None, "there is one image only")
    chosen = slice(None) if name in TOP else first.labels == sides[0][0].data.classes.index(name[len("recall[") : -1])
    right = [np.mean([right_samples(p.labels, p.logits, TOP.get(name, 1))[chosen] for p in side], axis=0) for side in found]
    return intervals.paired_shares(right[0], right[1]), ""


def _over_masks(sides: Sequence[Sequence[Run]], split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """Of numbers that follow from the pixels of all images together."""
    found = [[run.mask_predictions(split) for run in side] for side in sides]
    first = found[0][0]
    for other in (predictions for side in found for predictions in side):
        if other.files != first.files or not np.array_equal(other.confusion.sum(axis=2), first.confusion.sum(axis=2)):
            return None, "the predictions are not of the same masks in the same order"
    numbers = [
        _mean_of([_pixel_loss(p) if name == "loss" else number_of_images(run, p, name) for run, p in zip(*side, strict=True)])
        for side in zip(sides, found, strict=True)
    ]
    try:
        return intervals.paired_bootstrap(lambda images: numbers[0](images) - numbers[1](images), len(first.files)), ""
    except ValueError:
        return None, f"{name} is there in none of the resamples of both"


def _over_features(sides: Sequence[Sequence[Run]], split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """Of numbers that follow from the stored features of each image."""
    found = [run.feature_predictions(split) for side in sides for run in side]
    for other in found:
        if not len(other.bank):
            return None, "features of training images are not stored"
        if other.files != found[0].files or not np.array_equal(other.labels, found[0].labels):
            return None, "the features are not of the same images in the same order"
    right = []
    for side in sides:
        written = [run.predictions_file(split).stat() for run in side]
        right.append(np.mean([_right_of(run.path, split, name, (s.st_mtime_ns, s.st_size)) for run, s in zip(side, written, strict=True)], axis=0))
    return intervals.paired_shares(right[0], right[1]), ""


def _over_captions(sides: Sequence[Sequence[Run]], split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """Of numbers that follow from the captions of each picture, found and own."""
    if reason := other_captions([run for side in sides for run in side], split):
        return None, reason
    if name == "exact_match":
        right = [np.mean([scores_of(run, split).exact for run in side], axis=0) for side in sides]
        return intervals.paired_shares(right[0], right[1]), ""
    mine, theirs = (_mean_of([number_of_captions(run, split, name) for run in side]) for side in sides)
    count = len(sides[0][0].caption_predictions(split).files)
    return intervals.paired_bootstrap(lambda rows: mine(rows) - theirs(rows), count, of="pictures"), ""


@functools.lru_cache(maxsize=256)
def _right_of(path: Path, split: str, name: str, written: tuple[int, int]) -> NDArray[np.bool_]:
    """`right_features` of the run at `path`, kept: a linear classifier takes seconds, and the baseline's stand against every row. written: of which file."""
    run = Run(path)
    return right_features(run, run.feature_predictions(split), name)


def _mean_of(numbers: Sequence[Callable[[NDArray[np.int64]], float]]) -> Callable[[NDArray[np.int64]], float]:
    """The mean over seeds of numbers of some of the images."""
    return lambda images: float(np.mean([number(images) for number in numbers]))


def _macro_f1(predictions: Predictions) -> Callable[[NDArray[np.int64]], float]:
    """The mean of F1 over the classes that are in the labels or predictions of some images, (m,) rows."""
    predicted, C = predictions.logits.argmax(axis=1), predictions.logits.shape[1]
    return lambda images: float(np.nanmean(class_scores(confusion_counts(predictions.labels[images], predicted[images], C))[2]))


def _pixel_loss(predictions: MaskPredictions) -> Callable[[NDArray[np.int64]], float]:
    """The mean cross-entropy over the valid pixels of some images, (m,) rows; NaN where they have none."""
    valid = predictions.confusion[:, :-1].sum(axis=(1, 2))
    return lambda images: float(predictions.loss[images].sum() / valid[images].sum()) if valid[images].any() else float("nan")


def _cross_entropy(predictions: Predictions) -> Numbers:
    """(n,) nats: -log of the label's probability, from the logits."""
    logits = predictions.logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(logits)), predictions.labels])


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _verdict(name: str, seeds: intervals.Interval | None, images: intervals.Interval | None) -> str:
    """What both intervals say together: better or worse only where both leave out 0 on one side.

    Of one seed nothing is better or worse, as the interval over images does not hold what another seed would change; a number without an interval over
    images goes by the seeds alone.
    """
    if seeds is None:
        return NO_INTERVAL if images is None else ONE_SEED
    there = [seeds] if images is None else [seeds, images]
    above, below = all(interval.low > 0 for interval in there), all(interval.high < 0 for interval in there)
    if not (above or below) or any(map(_without_width, there)):
        return NO_DIFFERENCE
    return BETTER if below == (name in LOWER_IS_BETTER) else WORSE


def _without_width(interval: intervals.Interval) -> bool:
    """Whether it is a point, as that of seeds whose differences happen to be equal: it says nothing of what others would give."""
    return interval.high - interval.low <= NO_WIDTH * max(1.0, abs(interval.low))


def _words(base: str, unit: str, verdict: str, seeds: intervals.Interval | None, images: intervals.Interval | None, paired: Sequence[int], reason: str) -> str:
    """What the difference means, with both intervals; `reason` says why there is none over images."""
    if verdict == NO_INTERVAL:
        return f"no interval: one seed in common with {base}, and {reason}; train both under two or more seeds"
    spoken = [
        f"{signed(found.low, unit)} to {signed(found.high, unit)} over {of}"
        for found, of in ((seeds, _seeds(paired)), (images, "the images"))
        if found is not None
    ]
    if verdict == ONE_SEED:
        return f"one seed in common with {base} ({paired[0]}): {spoken[0]}; seeds may differ by more, train both under two or more"
    assert seeds is not None
    says = f"{verdict} than {base}" if verdict in (BETTER, WORSE) else f"no difference to {base} shown"
    if _without_width(seeds):
        spoken.append("the differences of the seeds are equal, so their interval has no width and shows nothing")
    if images is None:
        spoken.append(f"seeds alone, as {reason}")
    elif _without_width(images):
        spoken.append("the interval over the images has no width and shows nothing")
    elif verdict == NO_DIFFERENCE and seeds.covers(0.0) != images.covers(0.0):
        spoken.append(f"0 lies in the interval over {'seeds' if seeds.covers(0.0) else 'images'}")
    return f"{says}: {'; '.join(spoken)}"


def _decided(rows: Sequence[StudyRow]) -> str:
    """In one line, when a difference counts as shown."""
    kinds = {(_has_interval(row.row.difference), _has_interval(row.over_images)) for row in rows if row.row.difference}
    if not kinds:
        return "Nothing is compared yet."
    if not any(seeds for seeds, _ in kinds):
        return f"No row is called {BETTER} or {WORSE}: that takes two or more seeds in common with the baseline."
    says = f"{BETTER}, {WORSE}: the 95 % interval of the difference over seeds leaves out 0; there is none over images"
    if (True, True) in kinds:
        says = f"{BETTER}, {WORSE}: both 95 % intervals of the difference leave out 0 on one side, that over seeds and that over images"
        says += "; a row without the latter goes by the seeds alone" if (True, False) in kinds else ""
    return f"{says}{'; a row of one seed is neither' if not all(seeds for seeds, _ in kinds) else ''}."


def _has_interval(difference: Measurement | None) -> bool:
    return difference is not None and difference.interval is not None


def _notes(rows: Sequence[StudyRow], base: StudyRow, shared: Sequence[SharedRow]) -> list[str]:
    """What a reader must know besides the numbers, the shared parts first."""
    found = [_shared_note(part) for part in shared]
    for row in rows:
        found += _run_notes(row)
        found += _data_notes(row, base)
    compared = [row for row in rows if row.row.difference]
    if fewer := [row.setting.name for row in compared if {*row.paired} != {*row.row.seeds} or {*row.paired} != {*base.row.seeds}]:
        found.append(f"{listed(fewer)}: the difference is over the seeds that {base.setting.name} has too, so it is not that of the means in the table")
    if single := [row.setting.name for row in rows if len(row.row.values) == 1]:
        found.append(f"{listed(single)}: one seed, so the interval of the mean is over images, not over seeds")
    found += _how_notes(rows)
    if compared:
        found.append(
            f'"{NO_DIFFERENCE}" does not say that there is none; and each row is compared alone: of twenty settings worth the same, up to one would stand out'
        )
    return found


def _how_notes(rows: Sequence[StudyRow]) -> list[str]:
    """How the number was measured and with which weights, in the words of the runs; a line for each way."""
    how: dict[str, list[str]] = {}
    for row in rows:
        if row.row.measurement is not None:
            measured = row.row.scored[0].measurements[row.row.measurement.key]
            how.setdefault(f"{measured.key}: {measured.how}", []).append(row.setting.name)
    return [text if len(how) == 1 else f"{text} ({listed(names)})" for text, names in how.items()]


def _shared_note(part: SharedRow) -> str:
    name, run = part.part.name, part.run
    if run.status == NOT_BEGUN:
        return f"the shared part {name} is not begun; {listed(part.behind) or 'no setting'} waits for it"
    if run.status != DONE:
        return f"the shared part {name} is {run.status} at {run.reached}{f': {run.error}' if run.error else ''}"
    stand = "stands" if part.behind else "stood"
    behind = f"{stand} behind {listed(part.behind) or 'no setting'}: the spread does not hold that of {part.what}"
    return f"one {part.what} ({name}, seed {run.seed}, {minutes(run.seconds)} min) {behind}"


def _run_notes(row: StudyRow) -> list[str]:
    """A line for each run without a number, and one for all that are not begun."""
    name, found = row.setting.name, []
    for run in row.runs:
        if run.status not in (DONE, NOT_BEGUN):
            found.append(f"{name}, seed {run.seed}: {run.status} at {run.reached}{f': {run.error}' if run.error else ''}")
    if missing := [run.seed for run in row.runs if run.status == NOT_BEGUN]:
        found.append(f"{name}: {_seeds(missing)} {'is' if len(missing) == 1 else 'are'} not begun")
    found += [f"{name}: {note}" for note in row.row.notes]
    return found


def _data_notes(row: StudyRow, base: StudyRow) -> list[str]:
    """Where a row was trained on other samples than the baseline, or its seeds were measured on different ones."""
    name, found = row.setting.name, []
    split = row.row.measurement.split if row.row.measurement else ""
    hashes = {run.data.splits[split].hash for run in row.row.scored if split in run.data.splits}
    if len(hashes) > 1:
        found.append(f"{name}: its seeds were measured on different samples of {split}; the mean mixes them")
    mine, theirs = (side.row.scored[0].data.splits.get("train") if side.row.scored else None for side in (row, base))
    if mine is not None and theirs is not None and mine.hash != theirs.hash:
        found.append(f"{name}: trained on other samples than {base.setting.name} ({mine.n:,} here, {theirs.n:,} there)")
    return found


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'the seeds'} {listed([str(seed) for seed in seeds])}"
