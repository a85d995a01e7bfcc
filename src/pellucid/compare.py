"""Runs side by side: one row a recipe, its number over seeds, and whether a difference to the baseline means anything.

Runs whose resolved recipes differ only in `seed` are one row: mean, sample standard deviation and t interval over seeds.
A row of one run keeps that run's own interval, which is over samples, and says so. Differences to the baseline:

    both rows have two or more seeds          Welch interval over seeds
    both rows are one run on equal samples    paired interval over the samples (accuracy, top5_accuracy)
    both are one pre-training on these        paired interval over the images (knn_accuracy, linear_accuracy), recomputed from the stored features
    both are one run on equal images          paired bootstrap over the images (miou, iou[<class>] and what else follows from the confusion of pixels)
    both are one captioner on equal pictures  paired bootstrap over the pictures, recomputed from the stored captions; exact_match as of right and wrong
    anything else                             no interval, with the reason

Nothing is dropped: unfinished runs, runs without the number, runs on other data and masks scored by another convention keep
their row, marked.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pellucid import intervals, overlap, recipe
from pellucid.errors import RunError, UsageError, did_you_mean
from pellucid.paired_runs import number_of_images, paired, unpaired
from pellucid.report.comparison import signed, to_html, to_json, to_text
from pellucid.report.settings import shown
from pellucid.run import DONE, Measurement, Run, rounded, seed_folders

__all__ = [
    "ClassCell", "ClassTable", "Comparison", "Row", "SeedSummary", "compare", "expand", "number_of_images", "summarize_seeds", "to_html", "to_json", "to_text",
]  # fmt: skip

LOWER_IS_BETTER = ("loss", "calibration_error", "alignment", "uniformity")
FAMILIES = {"miou": "iou", "frequency_weighted_iou": "iou", "accuracy": "recall", "macro_f1": "recall"}  # a number -> its numbers of single classes


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed.

    `measurement` is the mean over seeds, or the single run's own number; None where no run has one. `scored` are the runs
    behind it, one for each of `seeds`, `values` their numbers, `spread` the sample standard deviation of these (None for one
    seed). `other` says what is not the baseline's, "data" or "scoring" (the convention of masks), and is "" where the numbers can be compared. `of` names
    what `n` counts. `difference` is the mean minus the baseline's; its interval is None where `words` says why.
    """

    name: str
    runs: tuple[Run, ...]
    scored: tuple[Run, ...]
    seeds: tuple[int, ...]
    status: str
    settings: dict[str, str]
    measurement: Measurement | None
    values: tuple[float, ...]
    spread: Measurement | None
    data_hash: str | None
    scoring: Scoring | None = None
    of: str = "samples"
    other: str = ""
    difference: Measurement | None = None
    words: str = ""
    baseline: bool = False
    final: bool = False
    notes: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether the number is measured on the baseline's data and scored as it is."""
        return not self.other


@dataclass(frozen=True)
class Scoring:
    """What a convention decides about masks of these classes. `name` is that of the recipe; two names that decide the same are equal."""

    name: str = field(compare=False)
    excluded: tuple[int, ...]
    void_classes: tuple[int, ...]
    void: str


@dataclass(frozen=True)
class ClassCell:
    """One class in one row: the mean over the seeds that have the number and its spread; `best` of its column. Without measurement `lack` says why:
    "absent" from samples and predictions, "left out" by the scoring convention, "no such class" in these runs, or "n/a", as no run of the row has a number."""

    measurement: Measurement | None = None
    values: tuple[float, ...] = ()
    spread: Measurement | None = None
    best: bool = False
    lack: str = ""


@dataclass(frozen=True)
class ClassTable:
    """The numbers of single classes that stand behind the compared one. rows: as those of the comparison, a cell for each of `classes`, in class order.

    notes: lines about rows that have other classes than others on the same data.
    """

    family: str
    classes: tuple[str, ...]
    rows: tuple[tuple[ClassCell, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Rows, best first. `metric` is `split/name` ("" when no run is finished), `settings` the recipe keys in which rows differ.

    classes: the same number class by class; None where it has no such family.
    """

    metric: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    classes: ClassTable | None = None


@dataclass(frozen=True)
class SeedSummary:
    """One number over the seeds of a recipe: mean, sample standard deviation, and the t interval of the mean."""

    name: str
    split: str
    unit: str
    mean: float
    spread: float
    interval: tuple[float, float]
    interval_how: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"

    def __str__(self) -> str:
        mean, spread, low, high = (rounded(value, self.unit) for value in (self.mean, self.spread, *self.interval))
        return f"{self.key}: {mean} ± {spread} over {len(self.seeds)} seeds, {low} to {high} ({self.interval_how})"


# Settings that cannot change a number: which thread reads, and where decoded pixels lie.
WITHOUT_EFFECT = ("data.workers", "data.store.limit_gb", "data.store.directory")


def expand(paths: Iterable[str | Path]) -> list[Run]:
    """The runs of these folders; a folder with seeds.json stands for those of its runs that were begun (the row says how many seeds)."""
    found: list[Run] = []
    for path in map(Path, paths):
        if not (path / "seeds.json").is_file():
            found.append(Run(path))
            continue
        begun = [path / name for name in seed_folders(path) if (path / name / "run.json").is_file()]
        if not begun:
            raise RunError(f"{path}: none of its runs was begun. `pellucid train RECIPE --seeds N --out DIR` makes them.")
        found += [Run(folder) for folder in begun]
    return found


def summarize_seeds(runs: Sequence[Run]) -> list[SeedSummary]:
    """Every number that all of these runs report, over their seeds, the headline first. At least two runs of different seeds."""
    measured = [run.measurements for run in runs]
    seeds = tuple(run.recipe.seed for run in runs)
    if len(runs) < 2 or len(set(seeds)) < len(seeds):
        raise UsageError(f"expected two or more runs of different seeds, got the seeds {', '.join(map(str, seeds)) or 'of no run'}")
    found = []
    for key, first in measured[0].items():
        if all(key in others for others in measured):
            values = tuple(others[key].value for others in measured)
            mean, spread, interval = float(np.mean(values)), float(np.std(values, ddof=1)), _over_seeds(values, first.unit)
            found.append(SeedSummary(first.name, first.split, first.unit, mean, spread, interval.pair, interval.how, values, seeds))
    return found


def compare(runs: Sequence[Run], *, baseline: str | None = None, final: str | None = None, metric: str | None = None) -> Comparison:
    """The table of these runs. `baseline` and `final` name a row or a run (name or path); `metric` is `split/name` or a name.

    Without `baseline` it is the last comparable row; without `metric` the headline that all finished runs share.
    Raises UsageError for a name that is not there.
    """
    unique, notes = _without_repeats(runs)
    if not unique:
        raise UsageError("nothing to compare: expected one or more run folders")
    key, said = _metric(unique, metric)
    groups = _groups(unique, key)
    everywhere = dict.fromkeys(k for group in groups for k in group.settings)
    differing = tuple(k for k in everywhere if len({group.settings.get(k) for group in groups}) > 1)
    rows = [seed_row(name, group, key, differing) for name, group in zip(_names(groups), groups, strict=True)]
    if final is not None:
        marked = _find(rows, final, "--final")
        rows = [replace(row, final=row is marked) for row in rows]
    chosen = _find(rows, baseline, "--baseline") if baseline is not None else None
    measured = [row for row in rows if row.measurement]
    data = chosen.data_hash if chosen else _commonest(row.data_hash for row in measured)
    scoring = chosen.scoring if chosen and chosen.measurement else _commonest(row.scoring for row in measured if row.data_hash == data)
    rows = [row if row.measurement is None else replace(row, other=unlike(row, data, scoring)) for row in rows]
    rows.sort(key=lambda row: _rank(row, key))
    scored = [row for row in rows if row.measurement and row.comparable]
    base = next((row for row in rows if chosen and row.name == chosen.name), None) or (scored[-1] if len(scored) > 1 else None)
    if base is not None:
        rows = [_against(row, base) for row in rows]
    return Comparison(key, differing, tuple(rows), (*notes, *said), class_table(rows, key))


# ── which runs are one row ───────────────────────────────────────────────────────────────────────────────────────


def _without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    unique = {run.path.resolve(): run for run in reversed(runs)}
    kept = [run for run in runs if unique[run.path.resolve()] is run]
    return kept, [f"{run.path} was given more than once; it counts once" for run in kept if sum(r.path.resolve() == run.path.resolve() for r in runs) > 1]


def _metric(runs: Sequence[Run], asked: str | None) -> tuple[str, list[str]]:
    """`split/name` of the number to compare, and what was decided about it."""
    finished = [run.measurements for run in runs if run.record.status == DONE]
    known = list(dict.fromkeys(key for measured in finished for key in measured))
    if asked is not None and known:
        found = [key for key in known if asked in (key, key.partition("/")[2])]
        if not found:
            raise UsageError(f"--metric {asked}: no finished run has it.{did_you_mean(asked, known)} Known: {', '.join(k for k in known if '[' not in k)}.")
        return found[0], [f"{asked} stands for {found[0]}; there is also {', '.join(found[1:])}"] if len(found) > 1 else []
    if not known:
        return asked or "", ["no run is finished yet, so there is no number"]
    shared = [key for key in known if all(key in measured for measured in finished)]
    if shared:
        return shared[0], []
    return known[0], [f"the finished runs share no number; {known[0]} is the first run's"]


def _data_hash(run: Run, key: str) -> str | None:
    """The content hash of the split that the number was measured on; None where the run did not come so far."""
    splits = run.data.splits if (run.path / "data.json").is_file() else {}
    split = splits.get(key.partition("/")[0])
    return split.hash if split else None


@dataclass(frozen=True)
class Group:
    """The runs of one row, by seed, with the seed of each and their common settings as text."""

    runs: list[Run]
    seeds: list[int]
    settings: dict[str, str]


def _groups(runs: Sequence[Run], key: str) -> list[Group]:
    """Runs of equal recipes but for the seed, and of equal data; an unfinished run joins the first row of its recipe."""
    found: dict[str, dict[str | None, Group]] = {}
    for run in sorted(runs, key=lambda run: run.record.status != DONE):  # stable: the finished ones make the rows
        settings = {k: shown(v) for k, v in recipe.flat(run.recipe).items()}  # read once a run: it costs as much as all the rest
        seed = int(settings.pop("seed"))
        for setting in WITHOUT_EFFECT:
            settings.pop(setting, None)
        by_data = found.setdefault(json.dumps(settings, sort_keys=True), {})
        content = _data_hash(run, key)
        if run.record.status != DONE and by_data:
            content = next(iter(by_data))
        group = by_data.setdefault(content, Group([], [], settings))
        place = bisect.bisect(group.seeds, seed)
        group.seeds.insert(place, seed)
        group.runs.insert(place, run)
    return [group for by_data in found.values() for group in by_data.values()]


def _home(runs: Sequence[Run]) -> Path:
    """The folder that names a row: that of its seeds where there is one, else its first run's."""
    parents = {run.path.resolve().parent for run in runs}
    parent = next(iter(parents))
    seeds = (parent / "seeds.json").is_file() or all(run.path.name.startswith("seed-") for run in runs)
    together = len(runs) > 1 and len(parents) == 1 and seeds
    return parent if together else runs[0].path.resolve()


def _names(groups: Sequence[Group]) -> list[str]:
    """One unique name a row: the folder, preceded by as many of its parents as it takes."""
    homes = [_home(group.runs) for group in groups]
    names = [home.name for home in homes]
    depth = 1
    while len(set(names)) < len(names) and depth < max(len(home.parts) for home in homes):
        depth += 1
        repeated = {name for name, count in Counter(names).items() if count > 1}
        names = ["/".join(home.parts[-depth:]) if name in repeated else name for home, name in zip(homes, names, strict=True)]
    return names


def _find(rows: Sequence[Row], asked: str, option: str) -> Row:
    path = Path(asked).resolve()
    tests: list[Callable[[Row], bool]] = [
        lambda row: row.name == asked,
        lambda row: path == _home(row.runs) or path in [run.path.resolve() for run in row.runs],
        lambda row: asked in [run.name for run in row.runs],
    ]
    for test in tests:
        found = [row for row in rows if test(row)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"{option} {asked}: stands for {', '.join(row.name for row in found)}; give one of these")
    names = [row.name for row in rows]
    raise UsageError(f"{option} {asked}: not among the compared runs.{did_you_mean(asked, names)} Known: {', '.join(names)}.")


# ── the number of a row ──────────────────────────────────────────────────────────────────────────────────────────


def seed_row(name: str, group: Group, key: str, differing: Sequence[str]) -> Row:
    """The row of runs that differ in their seed alone, without its difference to another. key: `split/name`; differing: settings that it shows."""
    scored, notes = _scored(group, key)
    unfinished = sorted({run.record.status for run in group.runs if run.record.status != DONE})
    finished = sum(run.record.status == DONE for run in group.runs)
    status = DONE if not unfinished else f"{finished} of {len(group.runs)} finished" if finished else " and ".join(unfinished)
    measured = [run.measurements[key] for run in scored.values()]
    mean, spread = _mean(measured, tuple(scored))
    first = next(iter([*scored.values(), *group.runs]), None)
    scoring = _scoring(next(iter(scored.values()), None))
    return Row(
        name=name,
        runs=tuple(group.runs),
        scored=tuple(scored.values()),
        seeds=tuple(scored),
        status=status,
        settings={k: group.settings.get(k, "–") for k in differing},
        measurement=mean,
        values=tuple(m.value for m in measured),
        spread=spread,
        data_hash=_data_hash(first, key) if first is not None else None,
        scoring=scoring,
        of="samples" if scoring is None else "images",
        notes=tuple(notes),
    )


def _scoring(run: Run | None) -> Scoring | None:
    """How the masks of a run are scored; None of a run without masks. How they were predicted, in tiles or whole, is no part of it."""
    section = run.recipe.scoring if run is not None else None
    if run is None or section is None:
        return None
    found = overlap.convention(section, run.data.classes)
    return Scoring(found.name, found.excluded, found.void_classes, found.void)


def _scored(group: Group, key: str) -> tuple[dict[int, Run], list[str]]:
    """{seed: run} of those that have the number, and why each of the others does not count."""
    scored: dict[int, Run] = {}
    notes = []
    for run, seed in zip(group.runs, group.seeds, strict=True):
        record = run.record
        if record.status != DONE:
            notes.append(f"{run.name} (seed {seed}) is {record.status} at epoch {record.epoch}, step {record.step:,}; it has no number")
        elif key not in run.measurements:
            notes.append(f"{run.name} has no {key}")
        elif seed in scored:
            notes.append(f"{run.name} repeats seed {seed}; it counts once")
        else:
            scored[seed] = run
    return scored, notes


def _mean(measured: Sequence[Measurement], seeds: Sequence[int]) -> tuple[Measurement | None, Measurement | None]:
    """The row's number and its spread: of one run its own number and no spread."""
    if len(measured) < 2:
        return (measured[0] if measured else None), None
    values, first = [m.value for m in measured], measured[0]
    interval = _over_seeds(values, first.unit)
    how = f"mean over the seeds {', '.join(map(str, seeds))}; of each: {first.how}"
    mean = replace(first, value=float(np.mean(values)), how=how, interval=interval.pair, interval_how=interval.how)
    how = f"sample standard deviation over {len(values)} seeds"
    spread = replace(first, name="spread", value=float(np.std(values, ddof=1)), how=how, interval=None, interval_how="")
    return mean, spread


def _over_seeds(values: Sequence[float], unit: str) -> intervals.Interval:
    """The t interval of a mean over seeds; that of a fraction ends at 0 and 1, which Student's distribution does not know."""
    found = intervals.mean(values)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high)) if unit == "fraction" else found


def _rank(row: Row, key: str) -> tuple[bool, bool, float]:
    """Best first; then rows on other data, then those without a number."""
    value = row.measurement.value if row.measurement else 0.0
    return row.measurement is None, not row.comparable, value if key.partition("/")[2] in LOWER_IS_BETTER else -value


def unlike(row: Row, data: str | None, scoring: Scoring | None) -> str:
    """What of a row is not as in the rows that it is compared with: data, scoring, or "" for nothing."""
    return "data" if row.data_hash != data else "scoring" if row.scoring != scoring else ""


_T = TypeVar("_T")


def _commonest(values: Iterable[_T]) -> _T | None:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


# ── class by class ───────────────────────────────────────────────────────────────────────────────────────────────


def class_table(rows: Sequence[Row], key: str) -> ClassTable | None:
    """The numbers of single classes of all rows; None where the compared number has none, or no run has one of them."""
    split, _, name = key.partition("/")
    family = FAMILIES.get(name) or next((family for family in FAMILIES.values() if name.startswith(f"{family}[")), None)
    measured = [[run.measurements for run in row.scored] for row in rows]
    classes = _classes(rows)
    keys = [f"{split}/{family}[{name}]" for name in classes]
    if family is None or not any(key in numbers for runs in measured for numbers in runs for key in keys):
        return None
    cells = [[_cell(row, runs, key, name) for key, name in zip(keys, classes, strict=True)] for row, runs in zip(rows, measured, strict=True)]
    return ClassTable(family, classes, tuple(map(tuple, _with_best(rows, cells))), tuple(_named_otherwise(rows)))


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """The classes of all rows in the order of the first row that has them."""
    return tuple(dict.fromkeys(name for row in rows if row.scored for name in row.scored[0].data.classes))


def _named_otherwise(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each row whose class names are not those of the first row on the same data, or stand for other values of the masks."""
    first: dict[str | None, Row] = {}
    for row in rows:
        if not row.scored:
            continue
        before = first.setdefault(row.data_hash, row)
        mine, theirs = (_codes(side.scored[0]) for side in (row, before))
        both = f"{row.name} and {before.name} were measured on the same data"
        if set(mine) != set(theirs):
            alone = [", ".join(name for name in one if name not in other) or "none" for one, other in ((mine, theirs), (theirs, mine))]
            yield f"{both} under other class names: {alone[0]} in {row.name} alone, {alone[1]} in {before.name} alone; columns go by name"
        elif moved := [name for name in mine if mine[name] != theirs[name]]:
            yield f"{both}, but {', '.join(moved)} stand for other values of the masks in one than in the other; columns go by name"


def _codes(run: Run) -> dict[str, int]:
    """{class: its value in the masks}; 0 for classes of whole images."""
    data = run.data
    codes = data.mask_format.codes if data.mask_format is not None else [0] * len(data.classes)
    return dict(zip(data.classes, codes, strict=True))


def _cell(row: Row, measured: Sequence[dict[str, Measurement]], key: str, name: str) -> ClassCell:
    there = [(numbers[key], seed) for numbers, seed in zip(measured, row.seeds, strict=True) if key in numbers]
    found = [measurement for measurement, _ in there]
    mean, spread = _mean(found, [seed for _, seed in there])
    return ClassCell(mean, tuple(m.value for m in found), spread, lack="" if found else _lack(row, name))


def _lack(row: Row, name: str) -> str:
    """Why a row has no number of a class."""
    if not row.scored:
        return "n/a"
    classes = row.scored[0].data.classes
    if name not in classes:
        return "no such class"
    left_out = [classes[c] for c in (*row.scoring.excluded, *row.scoring.void_classes)] if row.scoring else []
    return "left out" if name in left_out else "absent"


def _with_best(rows: Sequence[Row], cells: list[list[ClassCell]]) -> list[list[ClassCell]]:
    """The cells, the largest number of each column marked, equal ones all; nothing where fewer than two comparable rows have one."""
    for c in range(len(cells[0])):
        values = [row[c].measurement.value for row, of in zip(cells, rows, strict=True) if of.comparable and row[c].measurement]  # type: ignore[union-attr]
        for row, of in zip(cells, rows, strict=True):
            found = row[c].measurement
            if len(values) > 1 and of.comparable and found is not None and found.value == max(values):
                row[c] = replace(row[c], best=True)
    return cells


# ── the difference to the baseline ───────────────────────────────────────────────────────────────────────────────


def _against(row: Row, base: Row) -> Row:
    """The row with its difference to the baseline and what that can mean."""
    if row.name == base.name:
        return replace(row, baseline=True, words="the baseline")
    if row.measurement is None or base.measurement is None:
        return replace(row, words="no number to compare yet")
    if not row.comparable:
        return replace(row, words=f"not comparable: {unlike_words(row, base)}")
    value = row.measurement.value - base.measurement.value
    interval, reason = _interval(row, base)
    difference = replace(row.measurement, name="difference", value=value, how=f"minus {base.name}", interval=None, interval_how="")
    if interval is None:
        return replace(row, difference=difference, words=f"no interval: {reason}")
    difference = replace(difference, interval=interval.pair, interval_how=interval.how)
    return replace(row, difference=difference, words=_words(row, base, value, interval))


def unlike_words(row: Row, base: Row) -> str:
    """Why the number of a row is not comparable with the baseline's; for a row whose `other` says so."""
    if row.other == "data":
        split = row.measurement.split if row.measurement else ""
        captioned = any(run.record.task == "captioning" for run in row.scored)
        return f"measured on other {'pictures or captions' if captioned else 'samples'} than {base.name} (the content hash of {split} differs)"
    mine, theirs = (side.scoring.name if side.scoring else "none" for side in (row, base))
    names = f"{mine} here, {theirs} there" if mine != theirs else f"{mine} with other classes or void"
    return f"masks are scored by another convention than in {base.name} ({names}); the keys of scoring in both recipes must say the same"


def _interval(row: Row, base: Row) -> tuple[intervals.Interval | None, str]:
    """The interval of the difference, or None and why there is none."""
    name, many, of_base = row.measurement.name if row.measurement else "", len(row.values), len(base.values)
    if many > 1 and of_base > 1:
        return intervals.welch(row.values, base.values), ""
    if many != of_base:
        return None, f"{many} {'seed' if many == 1 else 'seeds'} here and {of_base} in {base.name}; train both under two or more seeds"
    (mine,), (theirs,) = row.scored, base.scored
    if reason := unpaired(mine, name):
        return None, f"{reason}; train both under two or more seeds"
    split = row.measurement.split if row.measurement else ""
    for side, run in ((row, mine), (base, theirs)):
        if not run.predictions_file(split).is_file():
            return None, f"the predictions of {side.name} are missing"
    return paired(mine, theirs, split, name)


def _words(row: Row, base: Row, value: float, interval: intervals.Interval) -> str:
    assert row.measurement is not None
    measured = row.measurement
    over = f"n = {measured.n:,} {row.of}" if len(row.values) == 1 else f"n = {len(row.values)} and {len(base.values)} seeds"
    low, high = signed(interval.low, measured.unit), signed(interval.high, measured.unit)
    if interval.covers(0.0):
        return f"not distinguishable from {base.name} with {over}: anything between {low} and {high} fits what was seen"
    better = (value < 0) == (measured.name in LOWER_IS_BETTER)
    return f"{'better' if better else 'worse'} than {base.name} by {low} to {high} ({over})"
