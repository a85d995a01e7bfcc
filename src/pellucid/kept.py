"""What a run kept that figures are drawn from, each question answered from its files alone. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pellucid import findings, mask_findings, word_findings
from pellucid.errors import RunError
from pellucid.readings import by_epoch, learning_rate
from pellucid.run import Run


def looked(run: Run) -> bool:
    """Whether the run looked inside its model."""
    return (run.inside / findings.FINDINGS).is_file()


def pictures(run: Run) -> bool:
    """Whether it kept pictures that were looked at."""
    return looked(run) and (run.inside / findings.IMAGES).is_dir() and bool(findings.load_findings(run.inside).images)


def maps(run: Run) -> bool:
    """Whether it kept their maps."""
    return pictures(run) and bool(findings.load_findings(run.inside).maps)


def epochs(run: Run) -> bool:
    """Whether it kept the first map over epochs."""
    return maps(run) and any(f"maps/{findings.load_findings(run.inside).maps[0].method}/" in key for key in _keys(run))


def arrays(start: str) -> Callable[[Run], bool]:
    """Whether an array that was found inside is called so, or begins so."""
    return lambda run: looked(run) and any(key.startswith(start) for key in _keys(run))


def scores(run: Run) -> bool:
    """Whether maps were scored against baselines."""
    return looked(run) and any(score.baselines for score in findings.load_findings(run.inside).scores)


def points(*values: str) -> Callable[[Run], bool]:
    """Whether a curve of one of these values has a point."""
    return lambda run: any(by_epoch(run.metrics(), value) for value in values)


def rate(run: Run) -> bool:
    """Whether the learning rate has a point."""
    return bool(learning_rate(run.metrics()).points)


def predictions(run: Run) -> bool:
    """Whether the run has predictions of a split."""
    return run.has_data and bool(run.prediction_splits)


def mistakes(run: Run) -> bool:
    """Whether it kept pictures of mistakes."""
    return predictions(run) and any((run.thumbnails / split).is_dir() for split in run.prediction_splits)


def neighbours(run: Run) -> bool:
    """Whether it kept a bank of training features, and predictions to look up in it."""
    return predictions(run) and any(len(run.feature_predictions(split).bank) > 0 for split in run.prediction_splits)


def views(run: Run) -> bool:
    """Whether it kept views of training images."""
    return run.has_data and any((run.thumbnails / "train").glob("*-view-1.webp"))


def ious(run: Run) -> bool:
    """Whether it states the IoU of classes."""
    return predictions(run) and any(m.name.startswith("iou[") for m in run.record.measurements)


def masks(run: Run) -> bool:
    """Whether it kept predicted masks over epochs."""
    return (run.inside / mask_findings.FINDINGS).is_file() and bool(mask_findings.load_mask_findings(run.inside).pictures)


def words(run: Run) -> bool:
    """Whether it kept the maps of words."""
    return (run.inside / word_findings.WORDS).is_file() and bool(word_findings.load_words(run.inside).images)


def word_scores(run: Run) -> bool:
    """Whether the maps of words were scored against baselines."""
    if not (run.inside / word_findings.WORDS).is_file():
        return False
    every = [score for kinds in word_findings.load_words(run.inside).scores.values() for scores in kinds.values() for score in scores]
    return any(score.measure in ("mass", "pointing", "rank") and score.baselines for score in every)


def _keys(run: Run) -> list[str]:
    try:
        with np.load(run.inside / findings.ARRAYS, allow_pickle=False) as arrays:
            return list(arrays.files)
    except Exception as error:  # a damaged zip raises half a dozen types
        raise RunError(f"{run.inside / findings.ARRAYS}: cannot be read as what was found inside: {error}; the file was changed") from None
