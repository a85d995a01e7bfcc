"""What a report says about a pre-training: alarms, what the features are worth beside their baselines, views, neighbours, method. NumPy and Pillow only.

Accuracies and their intervals are those that the run states; neighbours are found in its stored features. Verdicts are drawn from the intervals: a number
is above another where its interval lies above the other's. That is stricter than a test of the difference, and needs no pairs, which a run does not keep of
its baselines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.errors import RunError
from pellucid.predictions import FeaturePredictions
from pellucid.readings import BASELINES, NEIGHBOURS, nearest, neighboured_rows
from pellucid.recipe import Method, Recipe
from pellucid.report import pictures
from pellucid.run import DONE, DataRecord, Measurement, Run, RunRecord, rounded

ACCURACIES = {"knn_accuracy": "k-NN accuracy", "linear_accuracy": "linear accuracy"}
MOST_VIEWED = 8  # images with their views
PAPERS = {
    "byol": "BYOL (Grill et al. 2020, arXiv:2006.07733): an online network predicts from each view what its own moving average says of the other",
    "simclr": "SimCLR (Chen et al. 2020, arXiv:2002.05709): each view is told from the views of all other images, and recognised as the other view of its own",
    "simsiam": "SimSiam (Chen and He 2021, arXiv:2011.10566): each view's prediction is compared with the other's projection, which no gradient moves",
}


@dataclass(frozen=True)
class Alarm:
    """What is wrong with a training: `title` names it, `text` says since when, by which numbers and what helps."""

    title: str
    text: str


@dataclass(frozen=True)
class AccuracyRow:
    """An accuracy of the features and of each baseline, None where it was not measured."""

    name: str
    trained: Measurement
    baselines: list[Measurement | None]


@dataclass(frozen=True)
class Worth:
    """The accuracies of a split. baselines: what the other columns are, in words; sentences: what the intervals allow to say."""

    split: str
    rows: list[AccuracyRow]
    baselines: list[str]
    chance: Measurement
    sentences: list[str]


@dataclass(frozen=True)
class ShownPicture:
    """A picture as a data URI; `missing` says why there is none."""

    uri: str | None
    missing: str


@dataclass(frozen=True)
class Near:
    """A training image that is near to another; same: whether it is of its class."""

    file: str
    label: str
    same: bool
    cosine: Measurement
    shown: ShownPicture


@dataclass(frozen=True)
class WithNeighbours:
    """An image and its nearest training images, the nearest first."""

    file: str
    label: str
    shown: ShownPicture
    near: list[Near]


@dataclass(frozen=True)
class Neighboured:
    """Images of a split with their neighbours. how: how they were chosen, and the same question asked of the whole split."""

    split: str
    images: list[WithNeighbours]
    how: str


@dataclass(frozen=True)
class Viewed:
    """A training image and the two views that the first epoch made of it."""

    file: str
    image: ShownPicture
    first: ShownPicture
    second: ShownPicture


@dataclass(frozen=True)
class Pretrained:
    """Everything that the page of a pre-training shows beside what all runs have. terms: (term, text); recipe_lines: YAML that starts from the backbone."""

    worths: list[Worth]
    neighboured: Neighboured | None
    viewed: list[Viewed]
    terms: list[tuple[str, str]]
    backbone: str
    recipe_lines: list[str]


def alarms(record: RunRecord) -> list[Alarm]:
    """The alarms of a run, each with its first words as title."""
    found = []
    for line in record.alarms:
        title, colon, text = line.partition(": ")
        found.append(Alarm(_capital(title), _capital(text)) if colon else Alarm("Alarm", line))
    return found


def read_pretraining(run: Run, record: RunRecord, recipe: Recipe, data: DataRecord | None) -> Pretrained:
    """All of the above; what an unfinished run does not have yet is left out. RunError where stored features do not fit the data."""
    assert recipe.method is not None, "the schema gives every pre-training its method"
    measured = {m.key: m for m in record.measurements}
    num_classes = len(data.classes) if data is not None else 1
    lines = run.metrics()
    splits = list(dict.fromkeys(m.split for m in record.measurements))
    worths = [found for split in splits if (found := read_worth(measured, split, num_classes)) is not None]
    shown = next((split for split in splits if split in run.prediction_splits), None)
    backbone, recipe_lines = _backbone(run, record, recipe)
    return Pretrained(
        worths,
        _neighboured(run, data, shown, recipe.seed) if data is not None and shown is not None else None,
        _viewed(run, data) if data is not None else [],
        _terms(run, recipe, data, lines),
        backbone,
        recipe_lines,
    )


# ── what the features are worth ──────────────────────────────────────────────────────────────────────────────────


def read_worth(measured: Mapping[str, Measurement], split: str, num_classes: int) -> Worth | None:
    """The accuracies of a split among measurements by `split/name`; None where labels measured nothing."""
    rows = []
    for name, words in ACCURACIES.items():
        if (trained := measured.get(f"{split}/{name}")) is not None:
            rows.append(AccuracyRow(words, trained, [measured.get(f"{split}/{name}[{baseline}]") for baseline in BASELINES]))
    if not rows:
        return None
    first = rows[0].trained
    chance = Measurement("chance", 1.0 / num_classes, "fraction", split, first.n, first.seed, f"1 / {num_classes:,}: one of the classes at random")
    return Worth(split, rows, list(BASELINES.values()), chance, [verdict(row, chance) for row in rows])


def verdict(row: AccuracyRow, chance: Measurement) -> str:
    """A sentence: whether an accuracy lies above that of every baseline beyond the intervals, and whether above chance."""
    there = [(f"the {words}" if words.startswith("same") else words, m) for words, m in zip(BASELINES.values(), row.baselines, strict=True) if m is not None]
    sides: dict[str, list[str]] = {"above": [], "below": [], "not to be told from": []}
    for words, other in there:
        sides[_side(row.trained, other)].append(f"{words} ({other})")
    trained = f"The {row.name} after pre-training, {row.trained}"
    if not there:
        said = f"{trained}, stands alone: no baseline was measured."
    elif len(sides["above"]) == len(there):
        said = f"{trained}, is above {' and '.join(sides['above'])}, beyond their intervals."
    else:
        parts = [f"{side} {' and '.join(names)}" for side, names in sides.items() if names]
        why = " (intervals overlap)" if sides["not to be told from"] else ""
        every = "both baselines" if len(there) == 2 else "its baseline"
        said = f"{trained}, is not shown to be above {every}: it is {', and '.join(parts)}{why}."
    if row.trained.interval is not None and row.trained.interval[0] <= chance.value:
        said += f" It is not shown to be above chance ({chance})."
    return said


def _side(one: Measurement, other: Measurement) -> str:
    """On which side of another number one lies, beyond the intervals of both; a number without an interval is one point."""
    (low, high), (other_low, other_high) = (m.interval or (m.value, m.value) for m in (one, other))
    return "above" if low > other_high else "below" if high < other_low else "not to be told from"


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _neighboured(run: Run, data: DataRecord, split: str, seed: int) -> Neighboured | None:
    """Images of a split with their nearest training images; None where the run keeps no bank."""
    p = run.feature_predictions(split)
    if not len(p.bank) or not len(p.labels):
        return None
    train = run.samples("train")
    if max(p.labels.max(), p.bank_labels.max()) >= len(data.classes) or p.bank_rows.max() >= len(train):
        raise RunError(f"{run.predictions_file(split)}: its labels or rows are beyond the classes and training images of data.json; the run was changed")
    places, cosines = nearest(p.features, p.bank)
    images = []
    for row in neighboured_rows(p.labels).tolist():
        near = []
        for i, (place, cosine) in enumerate(zip(places[row].tolist(), cosines[row].tolist(), strict=True), 1):
            label = int(p.bank_labels[place])
            similarity = Measurement("cosine", float(cosine), "cosine", split, 1, seed, "cosine of two feature vectors")
            shown = _shown(run, f"{split}/{row:06d}-near-{i}.webp")
            near.append(Near(train[int(p.bank_rows[place])][0], data.classes[label], label == p.labels[row], similarity, shown))
        images.append(WithNeighbours(p.files[row], data.classes[p.labels[row]], _shown(run, f"{split}/{row:06d}.webp"), near))
    return Neighboured(split, images, _how_near(p, places, len(images)))


def _how_near(p: FeaturePredictions, places: np.ndarray, count: int) -> str:
    same = float((p.bank_labels[places] == p.labels[:, None]).mean())
    counts = np.bincount(p.bank_labels, minlength=int(p.labels.max()) + 1)
    expected = float((counts / counts.sum())[p.labels].mean())
    return (
        f"{count} images, chosen evenly over the classes and not by their result, each beside the {min(NEIGHBOURS, len(p.bank))} of {len(p.bank):,} training "
        f"images whose features are most similar. Of all {len(p.labels):,} images, {rounded(same)} of these neighbours are of the image's own class; "
        f"neighbours drawn at random would be in {rounded(expected)}."
    )


def _viewed(run: Run, data: DataRecord) -> list[Viewed]:
    """The training images whose views were kept, in order."""
    rows = sorted(path.name.removesuffix("-view-1.webp") for path in (run.thumbnails / "train").glob("*-view-1.webp"))
    rows = [row for row in rows if row.isdecimal()][:MOST_VIEWED]
    train = run.samples("train") if rows else []
    if rows and int(rows[-1]) >= len(train):
        raise RunError(f"{run.thumbnails / 'train'}: views of training image {int(rows[-1]):,} of {len(train):,}; the run was changed")
    return [Viewed(train[int(row)][0], *(_shown(run, f"train/{row}{ending}.webp") for ending in ("", "-view-1", "-view-2"))) for row in rows]


def _shown(run: Run, name: str) -> ShownPicture:
    path = run.thumbnails / name
    uri = pictures.thumbnail(path) if path.is_file() else None
    return ShownPicture(uri, "picture cannot be read" if path.is_file() else "no picture was kept")


# ── method ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _terms(run: Run, recipe: Recipe, data: DataRecord | None, lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(term, text) of what a reader must know of the method."""
    assert recipe.method is not None
    return [
        ("What is learned", f"{PAPERS[recipe.method.name]}.{_departures(recipe.method)}"),
        ("Labels", _labels(recipe, data)),
        *_batch_norm(run, recipe, lines),
    ]


def _departures(method: Method) -> str:
    """What a recipe took out of a method, and what is published of that; whether this run collapsed its alarms say."""
    missing = []
    if getattr(method, "predictor_hidden", 0) is None:
        missing.append("its predictor")
    if not getattr(method, "stop_gradient", True):
        missing.append("the stopped gradient")
    them = "them" if len(missing) > 1 else "it"
    return f" This run is without {' and without '.join(missing)}: without {them} the paper reports collapse." if missing else ""


def _labels(recipe: Recipe, data: DataRecord | None) -> str:
    never = "No label reached the loss, the views or the weights."
    if data is None:
        return never
    if len(data.classes) < 2:
        return f"{never} The images are of one class alone, so that labels measure nothing either: there is no accuracy, and alignment and uniformity remain."
    assert recipe.probe is not None
    bank = f"at most {recipe.probe.bank:,} training images with their labels, the bank"
    if not set(data.splits) - {"train"}:
        return f"{never} The labels of {len(data.classes):,} classes measured nothing, because there is no val and no test split."
    return f"{never} They measured what the features are worth: the images of {' and '.join(s for s in data.splits if s != 'train')} were compared with {bank}."


def _batch_norm(run: Run, recipe: Recipe, lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What BatchNorm takes its statistics of, as the last epoch had it."""
    micro = next((line["micro_batch_size"] for line in reversed(lines) if line.get("kind") == "train" and "micro_batch_size" in line), None)
    if micro is None:
        return []
    assert recipe.method is not None
    environment = run.environment if (run.path / "environment.json").is_file() else {}
    processes = int(environment.get("processes", 1))
    together = processes > 1 and recipe.train.sync_batch_norm
    seen = min(int(micro) * (processes if together else 1), recipe.train.batch_size)
    of = f"{seen:,} images" + (f", a part of the batch of {recipe.train.batch_size:,}" if seen < recipe.train.batch_size else ", the whole batch")
    of += f", over {processes} processes" if together else f", in each of {processes} processes on its own" if processes > 1 else ""
    if recipe.method.name == "simclr":
        text = f"In training both views go through the network together: its statistics are of the two views of {of}."
    else:
        text = f"In training the views go through the network one after the other: its statistics are of one view of {of}."
        text += " The target network takes those of its own batch." if recipe.method.name == "byol" else ""
    return [("BatchNorm", f"{text} Features, projections and their numbers are of evaluation mode, with the running statistics.")]


def _backbone(run: Run, record: RunRecord, recipe: Recipe) -> tuple[str, list[str]]:
    """Where the backbone file is, and the lines of a recipe that start from it."""
    if not run.backbone_weights.is_file():
        return ("The file of the backbone is missing." if record.status == DONE else "Its file is written when the training is finished."), []
    options = [f"  options: {json.dumps(recipe.model.options)}"] if recipe.model.options else []
    lines = ["model:", f"  name: {recipe.model.name}", *options, f"  weights: {run.backbone_weights}"]
    return "A plain file without heads and labels, which a classification starts from (freeze: backbone trains a classifier on it alone):", lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
