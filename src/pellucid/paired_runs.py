"""Two runs on the same samples: the interval of the difference of a number, recomputed from what both predicted for each sample. Needs no torch.

    right or wrong for each sample (accuracy, top5_accuracy, knn_accuracy, linear_accuracy, exact_match)   Agresti and Min's interval
    out of all samples at once (miou, iou[<class>] …; cider, bleu_4 … , loss of captions)                   paired bootstrap

Document frequencies of CIDEr-D are those of the whole split in each resample, as in the number itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from pellucid import intervals, overlap
from pellucid.caption_readings import found_captions
from pellucid.caption_scores import BleuCounts, CaptionScores, caption_scores
from pellucid.errors import RunError
from pellucid.predictions import FeaturePredictions, MaskPredictions
from pellucid.representation import fit_probe, knn_votes
from pellucid.run import Run

TOP = {"accuracy": 1, "top5_accuracy": 5}  # numbers that each sample is either right or wrong for
OF_FEATURES = ("knn_accuracy", "linear_accuracy")  # the same of features, by what is near them and by a linear classifier
OF_CONFUSION = ("miou", "pixel_accuracy", "class_accuracy", "frequency_weighted_iou")  # attributes of overlap.Overlaps, besides iou of each class
OF_WORDS = {  # numbers of found captions -> their names in CaptionScores.values
    "cider": "cider_d",
    **{name: name for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "exact_match", "length")},
}
OF_CAPTIONS = (*OF_WORDS, "token_accuracy", "loss")  # the last two are of the pictures' own captions


def unpaired(run: Run, name: str) -> str:
    """Why a number of a run has no interval over its samples, "" where it has one."""
    task = run.record.task
    if task == "captioning":
        return "" if name in OF_CAPTIONS else f"{name} does not follow from single pictures"
    known = name in OF_CONFUSION or name.startswith("iou[") if task == "segmentation" else name in TOP or name in OF_FEATURES
    return "" if known else f"{name} is not right or wrong sample by sample"


def paired(mine: Run, theirs: Run, split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """The interval of the difference of a number that `unpaired` knows, or None and why there is none."""
    task = mine.record.task
    if task == "captioning":
        return _paired_captions(mine, theirs, split, name)
    if task == "segmentation":
        return _paired_masks(mine, theirs, split, name)
    return _paired_features(mine, theirs, split, name) if name in OF_FEATURES else _paired_labels(mine, theirs, split, name)


def _paired_labels(mine: Run, theirs: Run, split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """The interval over the samples that two runs were right or wrong for."""
    first, second = mine.predictions(split), theirs.predictions(split)
    if first.files != second.files or not np.array_equal(first.labels, second.labels):
        return None, "the predictions are not of the same samples in the same order"
    return intervals.paired(right_samples(first.labels, first.logits, TOP[name]), right_samples(second.labels, second.logits, TOP[name])), ""


def _paired_features(mine: Run, theirs: Run, split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """The interval over the images whose features two runs stored."""
    first, second = mine.feature_predictions(split), theirs.feature_predictions(split)
    if not len(first.bank) or not len(second.bank):
        return None, "features of training images are not stored"
    if first.files != second.files or not np.array_equal(first.labels, second.labels):
        return None, "the features are not of the same images in the same order"
    return intervals.paired(right_features(mine, first, name), right_features(theirs, second, name)), ""


def right_features(run: Run, p: FeaturePredictions, name: str) -> np.ndarray:
    """(n,) bool: whether k-NN, or a linear classifier, gives an image its label, against the run's own bank by its own probe."""
    probe, C = run.recipe.probe, len(run.data.classes)
    assert probe is not None
    if name == "linear_accuracy":
        return np.asarray(fit_probe(p.bank, p.bank_labels, p.features, C).logits.argmax(axis=1) == p.labels)
    return np.asarray(knn_votes(p.features, p.bank, p.bank_labels, C, probe.neighbours, probe.temperature).argmax(axis=1) == p.labels)


def _paired_masks(mine: Run, theirs: Run, split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """The interval over the images whose masks two runs predicted."""
    first, second = mine.mask_predictions(split), theirs.mask_predictions(split)
    if first.files != second.files or not np.array_equal(first.confusion.sum(axis=2), second.confusion.sum(axis=2)):
        return None, "the predictions are not of the same masks in the same order"
    one, other = (number_of_images(run, found, name) for run, found in ((mine, first), (theirs, second)))
    try:
        return intervals.paired_bootstrap(lambda images: one(images) - other(images), len(first.files)), ""
    except ValueError:
        return None, f"{name} is there in none of the resamples of both"


def number_of_images(run: Run, found: MaskPredictions, name: str) -> Callable[[np.ndarray], float]:
    """A number of the run over some of the images, by its own scoring convention: indices (m,), some of them repeated -> the number, NaN without one."""
    section, classes = run.recipe.scoring, run.data.classes
    assert section is not None
    convention = overlap.convention(section, classes)
    n, of_class = len(found.files), classes.index(name[4:-1]) if name.startswith("iou[") else None
    confusion = found.confusion.reshape(n, -1).astype(np.float64)  # counts below 2^53 are exact, and products of floats are fast

    def number(images: np.ndarray) -> float:
        total = np.bincount(images, minlength=n) @ confusion
        scores = overlap.overlaps(total.astype(np.int64).reshape(found.confusion.shape[1:]), convention)
        return float(scores.iou[of_class] if of_class is not None else getattr(scores, name))

    return number


def right_samples(labels: np.ndarray, logits: np.ndarray, top: int) -> np.ndarray:
    """(n,) bool: whether the label is among the `top` largest logits."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return np.asarray((chosen == labels[:, None]).any(axis=1))


# ── captions ──────────────────────────────────────────────────────────────────────────────────────────────────


def _paired_captions(mine: Run, theirs: Run, split: str, name: str) -> tuple[intervals.Interval | None, str]:
    """The interval over the pictures that two runs captioned."""
    if reason := other_captions([mine, theirs], split):
        return None, reason
    if name == "exact_match":
        return intervals.paired(scores_of(mine, split).exact, scores_of(theirs, split).exact), ""
    one, other = (number_of_captions(run, split, name) for run in (mine, theirs))
    return intervals.paired_bootstrap(lambda rows: one(rows) - other(rows), len(mine.caption_predictions(split).files), of="pictures"), ""


def other_captions(runs: Sequence[Run], split: str) -> str:
    """Why runs cannot be compared picture by picture: other pictures, or other captions of these; "" where they can."""
    first, references = runs[0].caption_predictions(split).files, runs[0].captions(split)
    for run in runs[1:]:
        if run.caption_predictions(split).files != first:
            return "the predictions are not of the same pictures in the same order"
        if run.captions(split) != references:
            return "the pictures have not the same captions of their own"
    return ""


def number_of_captions(run: Run, split: str, name: str) -> Callable[[np.ndarray], float]:
    """A number of OF_CAPTIONS over some of the pictures: rows (m,), some of them repeated -> the number, NaN of no pictures."""
    if name in ("token_accuracy", "loss"):
        found = run.caption_predictions(split)
        sums = found.loss if name == "loss" else found.correct
        return lambda rows: float(sums[rows].sum() / found.counted[rows].sum()) if len(rows) else float("nan")
    scores = scores_of(run, split)
    return lambda rows: of_rows(scores, rows).values()[OF_WORDS[name]] if len(rows) else float("nan")


def of_rows(scores: CaptionScores, rows: np.ndarray) -> CaptionScores:
    """The scores of some of the pictures, (m,) rows, some of them repeated."""
    counts = BleuCounts(**{field.name: getattr(scores.bleu, field.name)[rows] for field in fields(BleuCounts)})
    return replace(scores, bleu=counts, **{name: getattr(scores, name)[rows] for name in ("meteor", "rouge_l", "cider_d", "exact")})


def scores_of(run: Run, split: str) -> CaptionScores:
    """The scores of the captions that a run found for the pictures of a split, in their order."""
    table = run.predictions_file(split).with_suffix(".csv")
    written = table.stat() if table.is_file() else None  # of a file that is not there the reader speaks
    return _scores_of(run.path, split, (written.st_mtime_ns, written.st_size) if written else (0, 0))


@functools.lru_cache(maxsize=64)
def _scores_of(path: Path, split: str, written: tuple[int, int]) -> CaptionScores:
    """Kept, because METEOR takes seconds and the baseline's captions stand against every row. written: of which file."""
    run = Run(path)
    captions, references = found_captions(run, split), run.captions(split)
    if missing := [file for file in captions if file not in references]:
        raise RunError(f"{path}: {split}/{missing[0]} has no captions of its own; the run is not whole or was changed")
    return caption_scores(list(captions.values()), [references[file] for file in captions])
