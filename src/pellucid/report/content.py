"""What a report says about predictions: confusion, numbers for each class, calibration, mistakes. NumPy only.

Predictions are one row a sample: labels (n,) int64 and probabilities (n, C) float64 whose rows sum to 1; the predicted
class is the most probable one, the first of equals. A number that is 0/0 (the precision of a class never predicted, the
recall of a class without samples) is NaN and read as "n/a", never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pellucid.predictions import Predictions
from pellucid.readings import Calibration, Counts, calibrate, class_scores, confusion_counts, most_confused
from pellucid.run import Measurement


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
    """Samples or pixels of class `label` that were taken for `prediction`; `share` is their fraction of the label's."""

    label: str
    prediction: str
    count: int
    n: int
    share: Measurement


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
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:num_mistakes]
    mistakes = [
        Mistake(
            int(i),
            predictions.files[i],
            classes[labels[i]],
            classes[predicted[i]],
            fraction("confidence", confidence[i], 1, "softmax probability of the prediction"),
        )
        for i in worst
    ]
    accuracy = fraction("accuracy", float(np.mean(predicted == labels)), n, "right among all, from the saved predictions")
    bins = calibrate(confidence, predicted == labels, split=split, seed=seed)
    return Reading(
        split, n, list(classes), accuracy, confusion, rows, confused_pairs(confusion, classes, num_pairs, split=split, seed=seed), bins, mistakes, len(wrong)
    )


def confused_pairs(confusion: Counts, classes: Sequence[str], most: int, *, split: str, seed: int, of: str = "samples") -> list[Pair]:
    """The pairs of classes that were confused most often, by counts (C, C) of samples or pixels, `of`; row = label, column = prediction."""
    found = []
    for i, j, count in most_confused(confusion, most):
        n = int(confusion[i].sum())
        found.append(Pair(classes[i], classes[j], count, n, Measurement("share", count / n, "fraction", split, n, seed, f"of the label's {of}")))
    return found
