"""What a model said of the samples of a split, as tables: logits of images, counts of masks, features. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """One row for each sample of a split, in the order of samples/<split>.csv.

    files: n relative names; labels: (n,) int64; logits: (n, C) float32, before the softmax.
    """

    files: list[str]
    labels: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, names: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Predictions:
        """The table of three arrays as a run keeps them. ValueError says what does not fit."""
        n, kinds = len(labels) if labels.ndim else -1, (names.dtype.kind, labels.dtype.kind, logits.dtype.kind)
        if kinds != ("U", "i", "f") or names.shape != (n,) or labels.shape != (n,) or logits.ndim != 2 or len(logits) != n:
            got = ", ".join(f"{a.dtype} {a.shape}" for a in (names, labels, logits))
            raise ValueError(f"expected text (n,), whole numbers (n,) and floats (n, classes); got {got}")
        if n and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
            raise ValueError(f"labels from {labels.min()} to {labels.max()} for {logits.shape[1]} classes")
        return cls([str(name) for name in names], labels, logits)

    def probabilities(self) -> np.ndarray:
        """(n, C) float64, each row sums to 1."""
        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        return exp / exp.sum(axis=1, keepdims=True)

    @property
    def diverged(self) -> np.ndarray:
        """(n,) bool: samples with NaN or infinite logits."""
        return np.asarray(~np.isfinite(self.logits).all(axis=1))

    @classmethod
    def joined(cls, parts: Sequence[Predictions], order: np.ndarray) -> Predictions:
        """One table of several, behind each other and then in the order of `order` (n,)."""
        files = [name for part in parts for name in part.files]
        labels, logits = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("labels", "logits"))
        return cls([files[i] for i in order], labels, logits)


CONFIDENCE_BINS = 15


@dataclass(frozen=True)
class MaskPredictions:
    """What was predicted for the n samples of a split, in the order of samples/<split>.csv, scored at the size of each mask. C classes.

    confusion: (n, C + 1, C) int32 or int64 pixels; row: class of the mask, the last row ignored pixels; column: predicted class. loss: (n,) float64, the sum
    over the valid pixels of the cross-entropy in nats; NaN where logits are not finite. boundary: (n, C, 4) int64: boundary pixels predicted, those of them
    within the tolerance of the mask's, boundary pixels of the mask, those of them within the tolerance of the predicted. calibration: (n, 15, 3) float64
    over valid pixels in bins (k/15, (k+1)/15] of the confidence: pixels, sum of confidence, pixels predicted right. digests: (n, 16) uint8, BLAKE2b-128 of the
    float32 logits. masks: the predicted masks as PNG files in the format of the training masks, () where they were not kept.
    """

    files: list[str]
    confusion: np.ndarray
    loss: np.ndarray
    boundary: np.ndarray
    calibration: np.ndarray
    digests: np.ndarray
    masks: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, names: np.ndarray, arrays: Mapping[str, np.ndarray]) -> MaskPredictions:
        """The table of arrays as a run keeps them, without masks. ValueError says what does not fit."""
        n, C = len(names) if names.ndim else -1, arrays["confusion"].shape[-1] if arrays["confusion"].ndim else -1
        shapes = {"confusion": (n, C + 1, C), "loss": (n,), "boundary": (n, C, 4), "calibration": (n, CONFIDENCE_BINS, 3), "digests": (n, 16)}
        odd = [name for name, array in arrays.items() if array.shape != shapes[name] or array.dtype.kind != MASK_ARRAYS[name]]
        if names.dtype.kind != "U" or names.shape != (n,) or odd:
            got = ", ".join(f"{name} {arrays[name].dtype} {arrays[name].shape}" for name in odd) or f"name {names.dtype} {names.shape}"
            raise ValueError(f"expected text (n,) and the arrays of mask predictions; got {got}")
        if any(not np.isfinite(arrays[name]).all() or arrays[name].min(initial=0) < 0 for name in ("confusion", "boundary", "loss", "calibration")):
            raise ValueError("expected finite numbers of at least 0")
        confusion, loss, boundary, calibration, digests = (arrays[name] for name in MASK_ARRAYS)
        return cls([str(name) for name in names], confusion, loss, boundary, calibration, digests)

    @property
    def diverged(self) -> np.ndarray:
        """(n,) bool: samples with NaN or infinite logits."""
        return np.isnan(self.loss)

    @classmethod
    def joined(cls, parts: Sequence[MaskPredictions], order: np.ndarray) -> MaskPredictions:
        """One table of several, behind each other and then in the order of `order` (n,)."""
        files, masks = [name for part in parts for name in part.files], [mask for part in parts for mask in part.masks]
        arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in MASK_ARRAYS}
        kept = tuple(masks[i] for i in order) if masks else ()
        return cls([files[i] for i in order], masks=kept, **arrays)  # type: ignore[arg-type]  # mypy counts arrays twice


@dataclass(frozen=True)
class MaskTotals:
    """What the curves need of a split after an epoch: loss as in MaskPredictions, pixels (C + 1, C) int64 of all images together."""

    files: list[str]
    loss: np.ndarray
    confusion: np.ndarray

    @property
    def diverged(self) -> np.ndarray:
        """(n,) bool: samples with NaN or infinite logits."""
        return np.isnan(self.loss)

    @classmethod
    def joined(cls, parts: Sequence[MaskTotals], order: np.ndarray) -> MaskTotals:
        """One table of several, behind each other and then in the order of `order` (n,)."""
        files = [name for part in parts for name in part.files]
        return cls([files[i] for i in order], np.concatenate([part.loss for part in parts])[order], np.sum([part.confusion for part in parts], axis=0))


@dataclass(frozen=True)
class FeaturePredictions:
    """What a pre-trained model made of the n samples of a split, in the order of samples/<split>.csv, and of the images that these are compared with.

    files: n relative names; labels: (n,) int64. features: (n, D) float32, the backbone's, of each image as it is evaluated. views: (2, n, P) float32,
    projections of two augmented views of each, not normalised. bank_rows: (m,) int64 rows of the training split, ascending, bank_labels: (m,) int64 and
    bank: (m, D) float32 their features; m = 0 where the labels are of one class alone, or where an epoch needs no neighbours.
    """

    files: list[str]
    labels: np.ndarray
    features: np.ndarray
    views: np.ndarray
    bank_rows: np.ndarray
    bank_labels: np.ndarray
    bank: np.ndarray

    @classmethod
    def of(cls, names: np.ndarray, arrays: Mapping[str, np.ndarray]) -> FeaturePredictions:
        """The table of arrays as a run keeps them. ValueError says what does not fit."""
        n, m = (len(names) if names.ndim else -1), (len(arrays["bank_rows"]) if arrays["bank_rows"].ndim else -1)
        D, P = (arrays[name].shape[-1] if arrays[name].ndim else -1 for name in ("features", "views"))
        shapes = {"labels": (n,), "features": (n, D), "views": (2, n, P), "bank_rows": (m,), "bank_labels": (m,), "bank": (m, D)}
        odd = [name for name, array in arrays.items() if array.shape != shapes[name] or array.dtype != FEATURE_ARRAYS[name]]
        if names.dtype.kind != "U" or names.shape != (n,) or odd:
            got = ", ".join(f"{name} {arrays[name].dtype} {arrays[name].shape}" for name in odd) or f"name {names.dtype} {names.shape}"
            raise ValueError(f"expected text (n,) and the arrays of features; got {got}")
        if any(not np.isfinite(arrays[name]).all() for name in ("features", "views", "bank")):
            raise ValueError("expected finite numbers")
        return cls([str(name) for name in names], **{name: arrays[name] for name in FEATURE_ARRAYS})

    @property
    def diverged(self) -> np.ndarray:
        """(n,) bool: samples with NaN or infinite features or projections."""
        return np.asarray(~(np.isfinite(self.features).all(axis=1) & np.isfinite(self.views).all(axis=(0, 2))))

    @classmethod
    def joined(cls, parts: Sequence[FeaturePredictions], order: np.ndarray) -> FeaturePredictions:
        """One table of several, behind each other and then in the order of `order` (n,); the bank in the order of its rows."""
        files = [name for part in parts for name in part.files]
        labels, features = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("labels", "features"))
        rows, bank_labels, bank = (np.concatenate([getattr(part, name) for part in parts]) for name in ("bank_rows", "bank_labels", "bank"))
        by_row = np.argsort(rows, kind="stable")
        views = np.concatenate([part.views for part in parts], axis=1)[:, order]
        return cls([files[i] for i in order], labels, features, views, rows[by_row], bank_labels[by_row], bank[by_row])


@dataclass(frozen=True)
class CaptionPredictions:
    """What a captioner said of the n samples of a split, in the order of samples/<split>.csv, and how likely it held their own captions.

    files: n relative names. tokens: (n, T) int64 of the caption that was found, the end included, -1 behind it; never the start. score: (n,) float64, its log
    probability in nats, summed over its tokens. loss: (n,) float64, nats summed over the tokens of all own captions of the sample, each predicted from those
    before it; counted: (n,) int64 how many these are, correct: (n,) int64 how many were the likeliest. digests: (n, 16) uint8, BLAKE2b-128 of the
    float32 log probabilities of these tokens. split: its name, "" of a table that was read from a file.
    """

    files: list[str]
    tokens: np.ndarray
    score: np.ndarray
    loss: np.ndarray
    counted: np.ndarray
    correct: np.ndarray
    digests: np.ndarray
    split: str = ""

    @classmethod
    def of(cls, names: np.ndarray, arrays: Mapping[str, np.ndarray]) -> CaptionPredictions:
        """The table of arrays as a run keeps them. ValueError says what does not fit."""
        n, T = len(names) if names.ndim else -1, arrays["tokens"].shape[-1] if arrays["tokens"].ndim else -1
        shapes = {"tokens": (n, T), "score": (n,), "loss": (n,), "counted": (n,), "correct": (n,), "digests": (n, 16)}
        odd = [name for name, array in arrays.items() if array.shape != shapes[name] or array.dtype != CAPTION_ARRAYS[name]]
        if names.dtype.kind != "U" or names.shape != (n,) or odd:
            got = ", ".join(f"{name} {arrays[name].dtype} {arrays[name].shape}" for name in odd) or f"name {names.dtype} {names.shape}"
            raise ValueError(f"expected text (n,) and the arrays of captions; got {got}")
        behind = np.cumsum(arrays["tokens"] < 0, axis=1) > 0
        if arrays["tokens"].min(initial=0) < -1 or (arrays["tokens"][behind] != -1).any():
            raise ValueError("expected token numbers of at least 0 and nothing but -1 behind them")
        finite = np.isfinite(arrays["score"]).all() and np.isfinite(arrays["loss"]).all()
        if not finite or arrays["loss"].min(initial=0) < 0 or arrays["score"].max(initial=0) > 0:
            raise ValueError("expected finite log probabilities")
        if arrays["counted"].min(initial=1) < 1 or (arrays["correct"] > arrays["counted"]).any() or arrays["correct"].min(initial=0) < 0:
            raise ValueError("expected at least one token of each sample, and of these some that are right")
        tokens, score, loss, counted, correct, digests = (arrays[name] for name in CAPTION_ARRAYS)
        return cls([str(name) for name in names], tokens, score, loss, counted, correct, digests)

    @property
    def diverged(self) -> np.ndarray:
        """(n,) bool: samples with NaN or infinite logits."""
        return np.asarray(~np.isfinite(self.loss))

    @classmethod
    def joined(cls, parts: Sequence[CaptionPredictions], order: np.ndarray) -> CaptionPredictions:
        """One table of several, behind each other and then in the order of `order` (n,)."""
        files = [name for part in parts for name in part.files]
        T = max((part.tokens.shape[1] for part in parts), default=0)
        tokens = [np.pad(part.tokens, ((0, 0), (0, T - part.tokens.shape[1])), constant_values=-1) for part in parts]
        arrays: dict[str, Any] = {
            name: np.concatenate(tokens if name == "tokens" else [getattr(part, name) for part in parts])[order] for name in CAPTION_ARRAYS
        }
        return cls([files[i] for i in order], split=parts[0].split, **arrays)


def not_finite(what: str, bad: np.ndarray, files: Sequence[str], split: str) -> str:
    """Words for a model that gives NaN or infinite numbers. bad: (n,) bool, for which of the first n samples of the split."""
    return f"the model gives NaN or infinite {what} for {int(bad.sum())} of {len(bad)} {split} images, {files[int(bad.argmax())]} the first"


FEATURE_ARRAYS = {"labels": "int64", "features": "float32", "views": "float32", "bank_rows": "int64", "bank_labels": "int64", "bank": "float32"}
MASK_ARRAYS = {"confusion": "i", "loss": "f", "boundary": "i", "calibration": "f", "digests": "u"}  # of MaskPredictions: their kinds of numbers
CAPTION_ARRAYS = {"tokens": "int64", "score": "float64", "loss": "float64", "counted": "int64", "correct": "int64", "digests": "uint8"}
