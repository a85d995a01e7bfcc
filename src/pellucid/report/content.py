"""What a report says about predictions: confusion, numbers for each class, calibration, mistakes. NumPy only.

Predictions are one row a sample: labels (n,) int64 and probabilities (n, C) float64 whose rows sum to 1; the predicted
class is the most probable one, the first of equals. A number that is 0/0 (the precision of a class never predicted, the
recall of a class without samples) is NaN and read as "n/a", never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.run import Measurement, Predictions

NUM_BINS = 15  # of the reliability diagram, as torchmetrics' default

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ClassRow:
    """One class of a split: its number of samples and three fractions in [0, 1] over them."""

    name: str
    n: int
    precision: Measurement
    recall: Measurement
    f1: Measurement


@dataclass(frozen=True)
class Pair:
    """Samples of class `label` that were taken for `prediction`; `share` is their fraction of the label's samples."""

    label: str
    prediction: str
    count: int
    n: int
    share: Measurement


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width over [0, 1]; means of an empty bin are NaN.

    `error` is the expected calibration error: the bins' |accuracy - confidence|, weighted by their samples (Guo et al. 2017, eq. 3).
    """

    edges: list[float]
    counts: list[int]
    confidences: list[float]
    accuracies: list[float]
    error: Measurement


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction. `index` is the sample's row in the predictions."""

    index: int
    file: str
    label: str
    prediction: str
    confidence: Measurement


@dataclass(frozen=True)
class Reading:
    """Everything a report shows of one split's predictions."""

    split: str
    n: int
    classes: list[str]
    accuracy: Measurement
    confusion: Counts
    rows: list[ClassRow]
    pairs: list[Pair]
    calibration: Calibration
    mistakes: list[Mistake]
    num_mistakes: int


def read_predictions(predictions: Predictions, classes: Sequence[str], *, split: str, seed: int, num_mistakes: int = 16, num_pairs: int = 15) -> Reading:
    """All of the above for one split; at least one sample. `mistakes` holds the most confident first."""
    labels, probabilities = predictions.labels, predictions.probabilities()
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = confusion_counts(labels, predicted, len(classes))
    n = len(labels)

    def fraction(name: str, value: float, over: int, how: str) -> Measurement:
        return Measurement(name, float(value), "fraction", split, over, seed, how)

    precision, recall, f1 = class_scores(confusion)
    rows = [
        ClassRow(
            name,
            int(confusion[i].sum()),
            fraction(f"precision[{name}]", precision[i], int(confusion[:, i].sum()), "right among those predicted as this class"),
            fraction(f"recall[{name}]", recall[i], int(confusion[i].sum()), "right among those of this class"),
            fraction(f"f1[{name}]", f1[i], n, "harmonic mean of precision and recall"),
        )
        for i, name in enumerate(classes)
    ]
    pairs = [
        Pair(classes[i], classes[j], count, int(confusion[i].sum()), fraction("share", count / confusion[i].sum(), int(confusion[i].sum()), "of the label's samples"))
        for i, j, count in most_confused(confusion, num_pairs)
    ]
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:num_mistakes]
    mistakes = [
        Mistake(int(i), predictions.files[i], classes[labels[i]], classes[predicted[i]], fraction("confidence", confidence[i], 1, "softmax probability of the prediction"))
        for i in worst
    ]
    accuracy = fraction("accuracy", float(np.mean(predicted == labels)), n, "right among all, from the saved predictions")
    bins = calibrate(confidence, predicted == labels, split=split, seed=seed)
    return Reading(split, n, list(classes), accuracy, confusion, rows, pairs, bins, mistakes, len(wrong))


def confusion_counts(labels: Counts, predicted: Counts, num_classes: int) -> Counts:
    """(C, C) int64: row = label, column = prediction."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_scores(confusion: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(precision, recall, F1) of each class, (C,) float64 in [0, 1], NaN where the definition is 0/0."""
    right = np.diagonal(confusion).astype(np.float64)
    of_label, of_prediction = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return right / of_prediction, right / of_label, 2 * right / (of_label + of_prediction)


def most_confused(confusion: Counts, most: int) -> list[tuple[int, int, int]]:
    """(label, prediction, count) of the largest counts off the diagonal, largest first; equal counts in class order."""
    mistaken = confusion.copy()
    np.fill_diagonal(mistaken, 0)
    order = np.argsort(-mistaken, axis=None, kind="stable")[:most]
    found = [(*divmod(int(flat), len(confusion)), int(mistaken.flat[flat])) for flat in order]
    return [(i, j, count) for i, j, count in found if count]


def calibrate(confidence: NDArray[np.float64], right: NDArray[np.bool_], *, split: str, seed: int) -> Calibration:
    """Bins [low, high) of the confidences, the last one closed."""
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    places = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, NUM_BINS - 1)
    counts = np.bincount(places, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        confidences = np.bincount(places, weights=confidence, minlength=NUM_BINS) / counts
        accuracies = np.bincount(places, weights=right, minlength=NUM_BINS) / counts
    error = float(np.nansum(np.abs(accuracies - confidences) * counts) / len(confidence))
    how = f"expected calibration error of the top class, {NUM_BINS} bins of equal width, from the saved predictions"
    measured = Measurement("calibration_error", error, "fraction", split, len(confidence), seed, how)
    return Calibration(edges.tolist(), counts.tolist(), confidences.tolist(), accuracies.tolist(), measured)
