"""Runs side by side, as a view: the table of `pellucid.compare`, its settings and number as lines over axes, curves, and pictures that several runs kept.

    caption   what the table is; columns: [{text, num, title}]; rows: [{cells: [[text, value to sort by], ...], marks: [word], words}], best first;
              words: what the difference means
    axes      [{name, at: [0 to 1 or None, a row each], texts: [a row each], ticks: [[at, text]]}], the settings that differ and the number last
    charts    [{title, x, y, unit, curves: [{name, style, x, y, row}]}]; first: the rows whose curves are seen until others are chosen
    pictures  [{file, photo, truth, lines, sides: {row: {lines, maps: [[name, data URI or None, its measure]]}}}], of two rows or more

A run is read once; of runs that differ in their seed alone the pictures are the first one's.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from pellucid import findings, mask_findings, word_findings
from pellucid.caption_readings import found_captions
from pellucid.compare import LOWER_IS_BETTER, Comparison, Row, compare
from pellucid.errors import RunError, UsageError
from pellucid.findings import NAMES, Score, fitted_view, hardest_baseline, load_findings
from pellucid.mask_findings import load_kept_masks, load_mask_findings
from pellucid.palettes import coloured
from pellucid.readings import curve
from pellucid.records import read_arrays, read_picture
from pellucid.report.comparison import short_keys, signed, signed_interval
from pellucid.report.template import interval
from pellucid.run import DONE, Measurement, Run, rounded
from pellucid.views import Room, View, encoding, size

MOST_AXES = 8  # settings beside the number
MOST_TICKS, APART = 6, 0.07  # of an axis, and how far from each other
DECADE = 10.0  # largest over smallest from which an axis is logarithmic
MOST_POINTS = (200, 100, 50, 20)  # of a curve, the first that has room
FIRST = 7  # rows whose curves are seen at first: as many as there are colours
MOST_ROWS, MOST_PICTURES = 12, 24  # whose pictures are laid side by side
SIDE = 240  # pixels of the long side of these
CURVES = (("val", "miou", "fraction"), ("val", "accuracy", "fraction"), ("val", "cider", "score"), ("val", "knn_accuracy", "fraction"), ("val", "loss", "nats"),
          ("train", "loss", "nats"))  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """A picture that a run kept. key: equal for the same picture in another run; about: lines true of the picture itself; draw: its `sides` entry.

    truth: draws its ground truth, where it has one; has_maps: whether its side has maps.
    """

    key: tuple[str, ...]
    file: str
    photo: Path
    about: list[str]
    draw: Callable[[], dict[str, Any]]
    truth: Callable[[], str] | None = None
    has_maps: bool = False


def of_runs(runs: Sequence[Run], room: Room, *, baseline: str | None = None, final: str | None = None, metric: str | None = None) -> View:
    """The view of these runs; the options are those of `compare.compare`, which raises UsageError for a name that is not there."""
    return of_comparison(compare(runs, baseline=baseline, final=final, metric=metric), room)


def of_comparison(found: Comparison, room: Room) -> View:
    """The view of a comparison that was made already."""
    axes, notes = _axes(found)
    rows = [{"cells": _cells(row), "marks": _marks(row), "words": _words(row)} for row in found.rows]
    charts = _charts(found, (room.bytes - size([axes, rows])) // 2)
    pictures, said = _pictures(found.rows, room.bytes - size([axes, rows, charts]))
    drawn = {line["row"] for chart in charts for line in chart["curves"]}
    first = sorted(drawn)[:FIRST]
    if len(drawn) > FIRST:
        notes.append(f"The curves are those of the first {FIRST} of {len(drawn):,} rows that have some, until rows are chosen in the table.")
    return {
        "title": f"Comparison by {found.metric or 'no number yet'}",
        "notes": [*found.notes, *notes, *said],
        "caption": "Best first. Runs that differ only in their seed are one row. Press a head to sort, a run to choose it.",
        "columns": _columns(found),
        "rows": rows,
        "axes": axes,
        "charts": charts,
        "first": first,
        "pictures": pictures,
    }


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────


def _columns(found: Comparison) -> list[dict[str, Any]]:
    short = short_keys(found.settings)
    named = [
        ("run", False),
        (found.metric or "number", True),
        ("interval", False),
        ("spread", True),
        ("over", False),
        ("difference", True),
        ("its interval", False),
    ]
    settings = [{"text": short[key], "num": False, "title": key} for key in found.settings]
    return [*({"text": text, "num": num, "title": ""} for text, num in named), *settings]


def _cells(row: Row) -> list[list[Any]]:
    """[text, value to sort by] of each column; None where there is nothing, which sorts last."""
    m, difference = row.measurement, row.difference
    over = f"{len(row.values)} seeds" if len(row.values) > 1 else f"{m.n:,} {row.of}" if m else ""
    return [
        [row.name, row.name],
        [str(m) if m else "n/a", _value(m)],
        [(interval(m) or "none") if m else "", m.interval[0] if m and m.interval else None],
        [str(row.spread or ""), _value(row.spread)],
        [over, len(row.values) if len(row.values) > 1 else m.n if m else None],
        [signed(difference.value, difference.unit) if difference else "", _value(difference)],
        [signed_interval(difference), difference.interval[0] if difference and difference.interval else None],
        *([text, text if (number := _number(text)) is None else number] for text in row.settings.values()),
    ]


def _words(row: Row) -> str:
    how = row.difference.interval_how if row.difference else ""
    return "; ".join(part for part in (row.words, how, *row.notes) if part) or "nothing to compare with"


def _marks(row: Row) -> list[str]:
    marks = (("final", row.final), ("baseline", row.baseline), (f"other {row.other}", not row.comparable), (row.status, row.status != DONE))
    return [word for word, there in marks if there]


def _value(measurement: Measurement | None) -> float | None:
    return measurement.value if measurement is not None and math.isfinite(measurement.value) else None


def _number(text: str) -> float | None:
    """What a setting's text says as a finite number; None of other texts."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# ── settings and number over axes ────────────────────────────────────────────────────────────────────────────────


def _axes(found: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    short = short_keys(found.settings)
    axes = [axis(short[key], [row.settings[key] for row in found.rows]) for key in found.settings[:MOST_AXES]]
    note = [f"{MOST_AXES} of {len(found.settings)} settings that differ have an axis; all are in the table."] if len(found.settings) > MOST_AXES else []
    if any(row.measurement for row in found.rows):
        lower = " (lower is better)" if found.metric.partition("/")[2] in LOWER_IS_BETTER else ""
        axes.append(axis(f"{found.metric}{lower}", ["–" if row.measurement is None else str(row.measurement) for row in found.rows], of_settings=False))
    return axes, note


def axis(name: str, texts: Sequence[str], *, of_settings: bool = True) -> dict[str, Any]:
    """One axis over the texts of the rows; "–" and "n/a" have no place on it.

    Numbers lie by their size; those of settings by its logarithm where all are above 0 and the largest is at least DECADE times the smallest. With other texts
    among them all lie in even steps: the numbers by their size, then the texts in the order in which they come.
    """
    there = [text for text in dict.fromkeys(texts) if text not in ("–", "n/a")]
    numbers = {text: number for text in there if (number := _number(text)) is not None}
    if len(numbers) == len(there) and there:
        log = of_settings and min(numbers.values()) > 0 and max(numbers.values()) >= DECADE * min(numbers.values())
        sizes = {text: math.log10(number) if log else number for text, number in numbers.items()}
        low, span = min(sizes.values()), max(sizes.values()) - min(sizes.values())
        at = {text: (size - low) / span if span else 0.5 for text, size in sizes.items()}
        name += ", logarithmic" if log else ""
    else:
        steps = sorted(there, key=lambda text: numbers.get(text, math.inf))
        at = {text: i / (len(steps) - 1) if len(steps) > 1 else 0.5 for i, text in enumerate(steps)}
    places = {text: round(place, 4) for text, place in at.items()}
    return {"name": name, "at": [places.get(text) for text in texts], "texts": list(texts), "ticks": _ticks(places)}


def _ticks(places: dict[str, float]) -> list[list[Any]]:
    """[[place, text]] of the lowest, the highest and those between that stand far enough from each other."""
    ordered = sorted(places.items(), key=lambda item: item[1])
    kept = ordered[:1]
    for text, place in ordered[1:-1]:
        if len(kept) < MOST_TICKS - 1 and place - kept[-1][1] >= max(APART, 1 / MOST_TICKS) and ordered[-1][1] - place >= APART:
            kept.append((text, place))
    kept += ordered[-1:] if len(ordered) > 1 else []
    return [[place, text if len(text) <= 20 else f"{text[:19]}…"] for text, place in kept]


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _charts(found: Comparison, room: int) -> list[dict[str, Any]]:
    """A chart for each of CURVES that a row has, a line for each of its seeds; first that of the number that is compared."""
    lines = [[(run, run.metrics()) for run in row.runs] for row in found.rows]
    for most in MOST_POINTS:
        charts = _drawn_lines(found, lines, most)
        if size(charts) <= room:
            break
    return charts


def _drawn_lines(found: Comparison, lines: Sequence[Sequence[tuple[Run, list[dict[str, Any]]]]], most: int) -> list[dict[str, Any]]:
    """The charts of (run, its metrics) of each row, with about `most` points a curve."""
    charts, compared = [], found.metric.partition("/")[2]
    for kind, value, unit in sorted(CURVES, key=lambda one: (f"{one[0]}/{one[1]}" != found.metric, one[1] != compared)):
        curves = []
        for i, (row, runs) in enumerate(zip(found.rows, lines, strict=True)):
            for run, metrics in runs:
                name = row.name if len(runs) == 1 else f"{row.name}, {run.name}"
                line = curve(metrics, kind=kind, value=value, against="epoch", name=name, style=i)
                if line.points:
                    every = -(-len(line.x) // most)
                    kept = [k for k in range(len(line.x)) if k % every == 0 or k == len(line.x) - 1]
                    curves.append({"name": name, "style": i, "row": i, "x": [line.x[k] for k in kept], "y": [_short(line.y[k]) for k in kept]})
        name = value.replace("_", " ").replace("miou", "mIoU").replace("cider", "CIDEr-D")
        title = f"{'Validation' if kind == 'val' else 'Training'} {name}"
        if curves:
            charts.append({"title": title, "x": "epoch", "y": name + (f" ({unit})" if unit == "nats" else ""), "unit": unit, "curves": curves})
    return charts


def _short(value: float | None) -> float | None:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


# ── the same picture ─────────────────────────────────────────────────────────────────────────────────────────────


def _pictures(rows: Sequence[Row], room: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(pictures that two rows or more kept, those with maps first, then those of most rows, notes on what is left out)."""
    able = [(i, row.runs[0]) for i, row in enumerate(rows) if row.runs[0].has_data][:MOST_ROWS]
    kept: dict[tuple[str, ...], dict[int, Kept]] = {}
    for i, run in able:
        for one in _kept(run):
            kept.setdefault(one.key, {}).setdefault(i, one)
    shared = sorted((sides for sides in kept.values() if len(sides) > 1), key=lambda sides: (not any(one.has_maps for one in sides.values()), -len(sides)))
    found: list[dict[str, Any]] = []
    for sides in shared[:MOST_PICTURES]:
        drawn = _drawn(sides)
        room -= size(drawn)
        if room < 0 and found:
            break
        found.append(drawn)
    notes = []
    if len(found) < len(shared):
        notes.append(f"{len(found):,} of {len(shared):,} pictures that several runs kept are shown side by side.")
    if sum(row.runs[0].has_data for row in rows) > MOST_ROWS and found:
        notes.append(f"Pictures are laid side by side for the first {MOST_ROWS} rows.")
    if len(able) > 1 and not found:
        notes.append("No two of these runs kept the same picture; `inside.images` of their recipes names some to keep.")
    return found, notes


def _drawn(sides: dict[int, Kept]) -> dict[str, Any]:
    first = next(iter(sides.values()))
    truth = next((one.truth for one in sides.values() if one.truth is not None), None)
    photo = _photo(first.photo)
    return {
        "file": first.file,
        "photo": None if photo is None else encoding.picture(photo),
        "truth": None if truth is None else truth(),
        "lines": first.about,
        "sides": {str(i): one.draw() for i, one in sides.items()},
    }


def _kept(run: Run) -> Iterator[Kept]:
    """What a run kept of single pictures, that with maps first."""
    task = run.record.task
    if task == "segmentation" and (run.inside / mask_findings.FINDINGS).is_file():
        yield from _masked(run)
    elif task == "captioning":
        yield from _worded(run)
    if (run.inside / findings.FINDINGS).is_file():
        yield from _looked(run)
    if task == "classification":
        yield from _mistaken(run)


def _looked(run: Run) -> Iterator[Kept]:
    """Pictures with their maps, from findings.json."""
    found = load_findings(run.inside)
    scores = {(score.method, score.measure): score for score in found.scores if score.baselines}
    for i, finding in enumerate(found.images):
        path = run.inside / findings.IMAGES / f"{i}.webp"
        about = [] if finding.label is None else [f"label {finding.label}"]

        def draw(i: int = i, finding: findings.ImageFinding = finding, path: Path = path) -> dict[str, Any]:
            maps = []
            for kind in found.maps:
                own = [
                    (score, value)
                    for measure, value in finding.scores.get(kind.method, {}).items()
                    if (score := scores.get((kind.method, measure))) is not None
                ]
                maps.append([kind.method, _over(run, path, finding, kind.method, i), _own_scores(own)])
            sure = "" if finding.confidence is None else f" {rounded(finding.confidence)}"
            return {"lines": [] if finding.prediction is None else [f"prediction {finding.prediction}{sure}"], "maps": maps}

        if path.is_file():
            yield Kept(("looked", finding.file, _digest(path)), finding.file, path, about, draw, has_maps=True)


def _own_scores(scored: Sequence[tuple[Score, float]]) -> str:
    """The scores of one picture's map, each beside the mean of its hardest baseline, and over how many pictures this is a mean."""
    if not scored:
        return "not measured: this picture has no mask"
    own, counts = [], []
    for score, value in scored:
        best = hardest_baseline(score)
        counts.append(score.baselines[best].n)
        lower = "" if score.higher_is_better else ", lower is better:"
        own.append(f"{score.measure.replace('_', ' ')}{lower} {rounded(value, score.value.unit)} ({NAMES.get(best, best)} {score.baselines[best]})")
    many = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    return f"{', '.join(own)}. In brackets: mean over {many} pictures."


def _over(run: Run, path: Path, finding: findings.ImageFinding, method: str, i: int) -> str:
    """A map over its photograph as a data URI."""
    from pellucid.figures.overlays import overlay, reduced

    key = f"maps/{method}"
    values = read_arrays(run.inside / findings.ARRAYS, "maps", key)[key]
    photo = np.asarray(read_picture(path).convert("RGB"))
    try:
        small, view = reduced(photo, fitted_view(finding, photo), SIDE)
        return encoding.picture(PIL.Image.fromarray(overlay(small, values[i], view)))
    except (UsageError, IndexError) as error:
        raise RunError(f"{run.inside / findings.ARRAYS}: {key}: {error}; the folder was changed") from None


def _masked(run: Run) -> Iterator[Kept]:
    """Pictures with the last predicted mask, from masks.json; two runs know the same classes or their pictures do not meet."""
    found = load_mask_findings(run.inside)
    colours = found.mask_format.colours
    for i, picture in enumerate(found.pictures):
        path, last = run.inside / mask_findings.PICTURES / f"{i}.webp", picture.epochs[-1]

        def draw(i: int = i, last: mask_findings.EpochNumbers = last) -> dict[str, Any]:
            predicted = load_kept_masks(run.inside, found, i).predicted[-1]
            measured = [f"{name} {m}" for name, m in (("pixel accuracy", last.pixel_accuracy), ("mIoU of the picture", last.miou)) if m is not None]
            uri = encoding.picture(_small(PIL.Image.fromarray(coloured(predicted, colours)), PIL.Image.Resampling.NEAREST), "PNG")
            return {"lines": [], "maps": [["predicted mask", uri, ", ".join(measured) or "not measured: this picture has no mask"]]}

        def truth(i: int = i) -> str:
            mask = load_kept_masks(run.inside, found, i).truth
            assert mask is not None, "asked for pictures with a mask alone"
            return encoding.picture(_small(PIL.Image.fromarray(coloured(mask, colours)), PIL.Image.Resampling.NEAREST), "PNG")

        if path.is_file():
            has_truth = last.pixel_accuracy is not None
            about = [", ".join(found.classes[c] for c in picture.classes)] if picture.classes else []
            key = ("masked", picture.file, _digest(path), *found.classes)
            yield Kept(key, picture.file, path, about, draw, truth if has_truth else None, has_maps=True)


def _worded(run: Run) -> Iterator[Kept]:
    """Pictures with their captions: those whose words were looked at, and those that the report keeps."""
    for split in run.prediction_splits:
        captions, own = found_captions(run, split), run.captions(split)
        for file, path, sample in _thumbnails(run, split):
            side = [captions.get(file) or "no word"]
            yield Kept(("sample", file, sample), file, path, [f"own caption: {text}" for text in own.get(file, ())[:3]], functools.partial(_said, side))
    if (run.inside / word_findings.WORDS).is_file():
        for i, finding in enumerate(word_findings.load_words(run.inside).images):
            path = run.inside / findings.IMAGES / f"{i}.webp"
            side = [finding.caption or "no word"]
            if path.is_file():
                about = [f"own caption: {text}" for text in finding.references[:3]]
                yield Kept(("worded", finding.file, _digest(path)), finding.file, path, about, functools.partial(_said, side))


def _mistaken(run: Run) -> Iterator[Kept]:
    """Mistakes whose pictures were kept; where two runs kept one, both were wrong."""
    classes = run.data.classes
    for split in run.prediction_splits:
        predictions = run.predictions(split)
        probabilities, place = predictions.probabilities(), {file: i for i, file in enumerate(predictions.files)}
        for file, path, sample in _thumbnails(run, split):
            row = probabilities[place[file]]
            side = [f"prediction {classes[int(row.argmax())]} {rounded(float(row.max()))}"]
            about = [f"label {classes[int(predictions.labels[place[file]])]}", "a mistake of both"]
            yield Kept(("sample", file, sample), file, path, about, functools.partial(_said, side))


def _said(lines: list[str]) -> dict[str, Any]:
    """A side without maps."""
    return {"lines": lines, "maps": []}


def _thumbnails(run: Run, split: str) -> Iterator[tuple[str, Path, str]]:
    """(file, thumbnail, content hash) of the samples of a split whose picture was kept."""
    paths = sorted(path for path in (run.thumbnails / split).glob("*.webp") if path.stem.isdecimal())
    samples = run.samples(split) if paths else []
    for path in paths:
        if int(path.stem) < len(samples):
            file, _, content = samples[int(path.stem)]
            yield file, path, content


def _photo(path: Path) -> PIL.Image.Image | None:
    """A photograph of at most SIDE pixels; None where it cannot be read."""
    try:
        return _small(read_picture(path).convert("RGB"), PIL.Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files
        return None


def _small(image: PIL.Image.Image, resampling: PIL.Image.Resampling) -> PIL.Image.Image:
    image.thumbnail((SIDE, SIDE), resampling)
    return image


def _digest(path: Path) -> str:
    """What tells one picture's file from another of the same name."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
