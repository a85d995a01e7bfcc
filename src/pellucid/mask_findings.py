"""What a run keeps of its predicted masks at chosen epochs: `masks.json` beside `masks.npz` and the pictures. Needs no torch.

    masks.json     this record                  masks.npz     ground truth, predictions and confidence of each picture
    masks/         <i>.webp, the pictures, long side at most 640 pixels

Keys of masks.npz (i counts `MaskFindings.pictures`; E epochs; h x w = `kept_size` of the picture's own size, reduced by nearest):

    truth/<i>        (h, w) uint8 classes, 255 ignored; absent for a photograph without a mask
    predicted/<i>    (E, h, w) uint8 classes
    confidence/<i>   (E, h, w) uint8: probability of the predicted class, 255 = 1

The numbers of an epoch are those of the picture at its own size, before anything was reduced.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from pellucid.errors import RunError
from pellucid.files import replacing
from pellucid.palettes import IGNORED, MaskFormat
from pellucid.predictions import CONFIDENCE_BINS, MaskPredictions
from pellucid.readings import Calibration
from pellucid.records import read_arrays, read_record, write_json
from pellucid.run import Measurement

CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

FINDINGS, ARRAYS, PICTURES = "masks.json", "masks.npz", "masks"
KEPT_SIDE = 640  # pixels of the long side of what is kept


@dataclass(frozen=True)
class EpochNumbers:
    """What a predicted mask is worth after an epoch, over this picture alone; None where the picture has no pixel that counts, or no mask."""

    __pydantic_config__ = CLOSED

    epoch: int
    pixel_accuracy: Measurement | None
    miou: Measurement | None


@dataclass(frozen=True)
class MaskedPicture:
    """One picture. `size` is its own (height, width) in pixels; `classes` are those in its mask, largest first; `epochs` as in `MaskFindings.epochs`."""

    __pydantic_config__ = CLOSED

    file: str
    size: tuple[int, int]
    classes: list[int]
    epochs: list[EpochNumbers]


@dataclass
class MaskFindings:
    """The record of masks.json. epochs: ascending, 0 is before training. selected: which weights the run's own numbers belong to."""

    __pydantic_config__ = CLOSED

    pellucid: str
    classes: list[str]
    mask_format: MaskFormat
    epochs: list[int]
    selected: str
    pictures: list[MaskedPicture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path, arrays: Mapping[str, NDArray[np.uint8]], photos: Sequence[NDArray[np.uint8]] = ()) -> list[Path]:
        """Write the record, the arrays and the pictures, (H, W, 3) uint8 RGB of any size, into the folder; returns the files."""
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        files = [folder / PICTURES / f"{i}.webp" for i in range(len(photos))]
        for file, photo in zip(files, photos, strict=True):
            image = PIL.Image.fromarray(photo)
            height, width = kept_size(photo.shape[:2])
            with replacing(file) as temporary:
                image.resize((width, height), PIL.Image.Resampling.BOX).save(temporary, "WEBP", quality=85, method=4)
        with replacing(folder / ARRAYS) as temporary, temporary.open("wb") as opened:
            np.savez_compressed(opened, **dict(arrays))  # type: ignore[arg-type]  # the stub takes the names for options
        write_json(folder / FINDINGS, self)
        return [folder / FINDINGS, folder / ARRAYS, *files]


@dataclass(frozen=True)
class KeptMasks:
    """The arrays of one picture: truth (h, w) uint8 or None; predicted (E, h, w) uint8; confidence (E, h, w) uint8, 255 = 1."""

    truth: NDArray[np.uint8] | None
    predicted: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


def kept_size(size: Sequence[int], side: int = KEPT_SIDE) -> tuple[int, int]:
    """(h, w) at which a picture of `size` (height, width) is kept: its own, or reduced so that the long side is `side` pixels."""
    longest = max(size)
    if longest <= side:
        return int(size[0]), int(size[1])
    height, width = (max(1, (2 * own * side + longest) // (2 * longest)) for own in size)  # rounded in whole numbers: the same everywhere
    return height, width


def reduced_mask(mask: NDArray[Any], side: int = KEPT_SIDE) -> NDArray[Any]:
    """A mask or map (..., H, W) at its `kept_size` (..., h, w): each pixel is the one at its centre, none is mixed."""
    height, width = mask.shape[-2:]
    rows, columns = ((2 * np.arange(to) + 1) * own // (2 * to) for to, own in zip(kept_size((height, width), side), (height, width), strict=True))
    return mask[..., rows[:, None], columns]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

_FINDINGS = TypeAdapter(MaskFindings)


def load_mask_findings(folder: Path) -> MaskFindings:
    """The record in a run's inside/ folder. RunError where there is none, or where it was changed into something else."""
    path = folder / FINDINGS
    if not path.is_file():
        raise RunError(f"{path}: expected the masks that training keeps at chosen epochs (inside.epochs of the recipe); there is no such file.")
    findings = read_record(path, _FINDINGS)
    if fault := _fault(findings):
        raise RunError(f"{path}: {fault}; the file was changed")
    return findings


def load_kept_masks(folder: Path, findings: MaskFindings, index: int) -> KeptMasks:
    """The arrays of one picture of the findings. RunError names the file and the key where one is missing or not as the record says."""
    path, picture = folder / ARRAYS, findings.pictures[index]
    arrays = _read(path, [f"{kind}/{index}" for kind in ("truth", "predicted", "confidence")])
    shape = kept_size(picture.size)
    shapes = {"truth": shape, "predicted": (len(findings.epochs), *shape), "confidence": (len(findings.epochs), *shape)}
    for key, array in arrays.items():
        kind, wanted = key.split("/")[0], shapes[key.split("/")[0]]
        if array.dtype != np.uint8 or array.shape != wanted:
            raise RunError(f"{path}: {key}: expected uint8 of shape {wanted} for {picture.file}, got {array.dtype} {array.shape}; the file was changed")
        known = array if kind == "predicted" else array[array != IGNORED] if kind == "truth" else array[:0]
        if known.size and known.max() >= len(findings.classes):
            raise RunError(f"{path}: {key}: expected classes below {len(findings.classes)}, got {known.max()}; the file was changed")
    truth = arrays.get(f"truth/{index}")
    for key in (f"predicted/{index}", f"confidence/{index}"):
        if key not in arrays:
            raise RunError(f"{path}: {key} is missing; the file was changed")
    if truth is None and any(numbers.pixel_accuracy is not None or numbers.miou is not None for numbers in picture.epochs):
        raise RunError(f"{path}: truth/{index} is missing, and {folder / FINDINGS} has numbers against it; the file was changed")
    return KeptMasks(truth, arrays[f"predicted/{index}"], arrays[f"confidence/{index}"])


def _fault(findings: MaskFindings) -> str:
    """What a record says that cannot be; "" when nothing does."""
    epochs, num_classes = findings.epochs, len(findings.classes)
    if not epochs or min(epochs) < 0 or any(later <= earlier for earlier, later in itertools.pairwise(epochs)):
        return f"expected ascending epochs, got {epochs}"
    if len(findings.mask_format.codes) != num_classes:
        return f"expected a code of the masks for each of {num_classes} classes, got {len(findings.mask_format.codes)}"
    for picture in findings.pictures:
        if [numbers.epoch for numbers in picture.epochs] != epochs:
            return f"{picture.file}: expected numbers at the epochs {epochs}, got {[numbers.epoch for numbers in picture.epochs]}"
        if min(picture.size) < 1 or not all(0 <= index < num_classes for index in picture.classes):
            return f"{picture.file}: expected a size in pixels and classes below {num_classes}, got {list(picture.size)} and {picture.classes}"
    return ""


def _read(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the keys that the file has."""
    if not path.exists():
        raise RunError(f"{path}: the file is missing; training writes it beside {FINDINGS}")
    return read_arrays(path, "arrays", *keys, optional=True)


# ── what saved mask predictions say ──────────────────────────────────────────────────────────────────────────────


def pixel_accuracies(predictions: MaskPredictions, void_classes: Sequence[int] = ()) -> NDArray[np.float64]:
    """(n,) float64: the share of each image's valid pixels that were predicted right; NaN for an image without one.

    void_classes: classes whose pixels in the masks are as ignored (`overlap.Convention`).
    """
    valid = predictions.confusion[:, :-1].copy()
    valid[:, list(void_classes)] = 0
    with np.errstate(invalid="ignore"):
        return np.asarray(np.trace(valid, axis1=1, axis2=2) / valid.sum(axis=(1, 2)))


def hardest_rows(predictions: MaskPredictions, most: int, void_classes: Sequence[int] = ()) -> NDArray[np.int64]:
    """Rows of at most so many images with a wrong pixel, lowest pixel accuracy first, equal ones in their order."""
    accuracies = pixel_accuracies(predictions, void_classes)
    order = np.argsort(accuracies, kind="stable")  # NaN last
    return order[accuracies[order] < 1.0][:most]


def pixel_calibration(predictions: MaskPredictions, *, split: str, seed: int) -> Calibration:
    """Confidence against accuracy over the valid pixels of all images, in bins (k/15, (k+1)/15].

    Means of an empty bin are NaN, and so is the error where no pixel is valid.
    """
    pixels, confidence, right = predictions.calibration.sum(axis=0).T
    with np.errstate(invalid="ignore"):
        confidences, accuracies = confidence / pixels, right / pixels
        error = float(np.abs(right - confidence).sum() / pixels.sum())  # Guo et al. 2017, eq. 3: bins weighted by their pixels
    how = f"expected calibration error over {pixels.sum():,.0f} valid pixels, {CONFIDENCE_BINS} bins of equal width, from the saved predictions"
    measured = Measurement("calibration_error", error, "fraction", split, len(predictions.files), seed, how)
    edges = np.linspace(0.0, 1.0, CONFIDENCE_BINS + 1)
    return Calibration(edges.tolist(), [int(count) for count in pixels], confidences.tolist(), accuracies.tolist(), measured)
