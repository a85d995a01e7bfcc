"""What a report says about a segmentation: classes, confusion of pixels, calibration, the hardest images, masks over epochs. NumPy and Pillow only.

Predictions are `run.MaskPredictions`, pixel counts of each image at its mask's own size. IoU and its interval are those that the run states; precision,
recall and confusion are over valid pixels. Masks of the page are PNG files of few colours, transparent where pixels are ignored, so that the page's own
stripes show; their long side is at most SIDE pixels. Pictures share a budget of bytes, and what did not fit is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from markupsafe import Markup
from numpy.typing import NDArray

from pellucid.errors import RunError
from pellucid.mask_findings import (
    FINDINGS,
    PICTURES,
    EpochNumbers,
    KeptMasks,
    MaskedPicture,
    MaskFindings,
    hardest_rows,
    kept_size,
    load_kept_masks,
    load_mask_findings,
    pixel_calibration,
    reduced_mask,
)
from pellucid.overlap import Convention, boundary_scores, convention, overlaps
from pellucid.palettes import IGNORED
from pellucid.predictions import MaskPredictions
from pellucid.readings import Calibration, Counts, class_scores
from pellucid.records import read_picture
from pellucid.report import charts, pictures
from pellucid.report.content import Pair, confused_pairs
from pellucid.run import DataRecord, Measurement, Run, rounded
from pellucid.schema import ScoringSection
from pellucid.views.masks import NAMES, epoch_name, photograph, spread, sure

MATRIX_CLASSES = 20  # up to here every cell of the confusion matrix has its number
MAX_HARDEST, MAX_PAIRS = 16, 15
MAX_PICTURES = 6  # of the masks over epochs as they are on paper
MAX_PICTURE_BYTES = 4_000_000  # of all pictures of the page as text
MAX_STILL_BYTES = 1_200_000  # of those masks; what moves has its own room
SIDE = 320  # pixels of the long side of a mask over epochs
_NEVER = "absent from labels and predictions"


@dataclass(frozen=True)
class ClassRow:
    """One class of a split. `train` None where the run has no such split; `iou` None where it has none, which `why` says. `colour` is CSS."""

    name: str
    colour: str
    train: int | None
    pixels: int
    share: Measurement
    iou: Measurement | None
    why: str
    precision: Measurement
    recall: Measurement
    boundary_f: Measurement


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: pixels, their share of the label's in whole percent, and that as text."""

    count: int
    shade: int
    text: str


@dataclass(frozen=True)
class HardImage:
    """An image that was predicted badly: its own numbers and (name, data URI) of image, mask and predicted mask, None for the reason that `missing` says."""

    file: str
    pixel_accuracy: Measurement
    miou: Measurement | None
    pictures: list[tuple[str, str | None]]
    missing: str


@dataclass(frozen=True)
class MaskReading:
    """Everything a report shows of one split's predicted masks. confusion: (C, C) over valid pixels; `ignored` counts the others."""

    split: str
    n: int
    classes: list[str]
    pixels: int
    ignored: int
    rows: list[ClassRow]
    confusion: Counts
    cells: list[list[Cell]] | None
    matrix: str | None
    pairs: list[Pair]
    calibration: Calibration
    reliability: Markup
    hardest: list[HardImage]
    num_wrong: int
    alert: str

    @property
    def bytes(self) -> int:
        """Of the pictures in it, as text."""
        return len(self.matrix or "") + sum(len(uri or "") for image in self.hardest for _, uri in image.pictures)


@dataclass(frozen=True)
class Step:
    """A predicted mask after an epoch, and where it errs, as data URIs, with (name, value) of the numbers of `views.masks.NAMES` on that picture."""

    epoch: str
    numbers: list[tuple[str, Measurement | None]]
    predicted: str
    errors: str | None


@dataclass(frozen=True)
class MaskedLook:
    """A picture at its first and its last epoch; `photo` None where its file is gone or damaged, which `missing` says, `truth` None where it has no mask."""

    file: str
    classes: str
    photo: str | None
    missing: str
    truth: str | None
    steps: list[Step]

    @property
    def bytes(self) -> int:
        uris = [self.photo, self.truth, *(uri for step in self.steps for uri in (step.predicted, step.errors))]
        return sum(len(uri) for uri in uris if uri)


@dataclass(frozen=True)
class MasksOverEpochs:
    """The section of masks over epochs: how many pictures and epochs there are besides those shown, and (name, colour) of the classes."""

    looks: list[MaskedLook]
    num_pictures: int
    num_epochs: int
    selected: str
    legend: list[tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class PixelRow:
    """Pixels of one class, or of none (ignored), in each split: count, share of all, and the length of a bar in whole percent of the split's largest share."""

    name: str
    colour: str
    splits: list[tuple[int, Measurement, int]]


# ── one split ────────────────────────────────────────────────────────────────────────────────────────────────────


def read_masks(run: Run, data: DataRecord, measurements: Sequence[Measurement], *, split: str, seed: int, scoring: ScoringSection) -> MaskReading | None:
    """All of the above for one split; None where it has no sample. RunError where the predictions do not fit the classes."""
    predictions, classes = run.mask_predictions(split), data.classes
    found = predictions.confusion.shape
    if found[-1] != len(classes):
        raise RunError(f"{run.predictions_file(split)}: expected confusions of {len(classes)} classes as in data.json, got {found}; the run was changed")
    if not len(predictions.files):
        return None
    rule, total = convention(scoring, classes), predictions.confusion.sum(axis=0)
    stated = {m.name: m for m in measurements if m.split == split}
    confusion = total[:-1]
    small = len(classes) <= MATRIX_CLASSES
    calibration = pixel_calibration(predictions, split=split, seed=seed)
    return MaskReading(
        split,
        len(predictions.files),
        list(classes),
        int(confusion.sum()),
        int(total[-1].sum()),
        _class_rows(predictions, data, stated, rule, split=split, seed=seed),
        confusion,
        _cells(confusion) if small else None,
        None if small else pictures.matrix(confusion),
        confused_pairs(confusion, classes, MAX_PAIRS, split=split, seed=seed, of="pixels"),
        calibration,
        charts.reliability_chart(calibration, of="pixels"),
        _hardest(run, predictions, rule, split=split, seed=seed),
        len(hardest_rows(predictions, len(predictions.files), rule.void_classes)),
        _contradiction(run, total, rule, stated, split),
    )


def _class_rows(predictions: MaskPredictions, data: DataRecord, stated: dict[str, Measurement], rule: Convention, *, split: str, seed: int) -> list[ClassRow]:
    confusion, n = predictions.confusion.sum(axis=0)[:-1], len(predictions.files)
    pixels, whole = confusion.sum(axis=1), max(int(confusion.sum()), 1)
    precision, recall, _ = class_scores(confusion)
    boundary, counted = boundary_scores(predictions.boundary), rule.counted(len(data.classes))
    colours, train = css_colours(data), data.splits.get("train")

    def fraction(name: str, value: float, how: str) -> Measurement:
        return Measurement(name, float(value), "fraction", split, n, seed, how)

    return [
        ClassRow(
            name,
            colours[i],
            None if train is None else train.pixels[i],
            int(pixels[i]),
            fraction(f"share[{name}]", pixels[i] / whole, "of the valid pixels"),
            stated.get(f"iou[{name}]"),
            _NEVER if counted[i] else "left out by the convention",
            fraction(f"precision[{name}]", precision[i], "right among the valid pixels predicted as this class"),
            fraction(f"recall[{name}]", recall[i], "right among the pixels of this class"),
            fraction(f"boundary_f[{name}]", boundary[i], "mean over the images with a boundary of the class"),
        )
        for i, name in enumerate(data.classes)
    ]


def _cells(confusion: Counts) -> list[list[Cell]]:
    """Whole percent of each label's pixels; a share that rounds to 0 and is none is "<1"."""
    shares = np.rint(100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)).astype(int)
    return [
        [Cell(int(count), int(share), "<1" if count and not share else str(share)) for count, share in zip(counts, line, strict=True)]
        for counts, line in zip(confusion, shares, strict=True)
    ]


def _hardest(run: Run, predictions: MaskPredictions, rule: Convention, *, split: str, seed: int) -> list[HardImage]:
    found = []
    for row in hardest_rows(predictions, MAX_HARDEST, rule.void_classes).tolist():
        own = overlaps(predictions.confusion[row], rule)
        accuracy = Measurement("pixel_accuracy", own.pixel_accuracy, "fraction", split, 1, seed, "right among the valid pixels of the image")
        miou = Measurement("miou", own.miou, "fraction", split, 1, seed, "mean over the classes of the image's mask and prediction")
        files = {
            name: run.thumbnails / split / f"{row:06d}{ending}"
            for name, ending in (("image", ".webp"), ("mask", "-truth.png"), ("predicted", "-predicted.png"))
        }
        uris = [(name, pictures.thumbnail(path) if name == "image" else _mask_thumbnail(path)) for name, path in files.items()]
        missing = "picture cannot be read" if all(path.is_file() for path in files.values()) else "no picture was kept"
        found.append(HardImage(predictions.files[row], accuracy, None if np.isnan(own.miou) else miou, uris, missing))
    return found


def _mask_thumbnail(path: Path) -> str | None:
    """A PNG data URI of a mask's picture, its colours as they are; None when the file is gone or no readable picture."""
    try:
        mask = read_picture(path)
        size = kept_size((mask.height, mask.width), pictures.SIDE)
        return pictures.data_uri(mask.resize(size[::-1], PIL.Image.Resampling.NEAREST), "PNG", optimize=True)
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        return None


def _contradiction(run: Run, total: Counts, rule: Convention, stated: dict[str, Measurement], split: str) -> str:
    """What a reader must know when the saved predictions give another mIoU than the run states; "" where they agree."""
    own = overlaps(total, rule).miou
    if "miou" not in stated or abs(stated["miou"].value - own) <= 1e-6:
        return ""
    return f"The saved predictions of {split} give mIoU {rounded(own)}, the run states {stated['miou']}. `pellucid verify {run.path}` names what changed."


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def css_colours(data: DataRecord | MaskFindings) -> list[str]:
    """The colour of each class as CSS."""
    assert data.mask_format is not None, "a segmentation has a mask format"
    return [f"rgb({red} {green} {blue})" for red, green, blue in data.mask_format.colours.tolist()]


def pixel_rows(data: DataRecord) -> list[PixelRow]:
    """Pixels of each class in each split, the ignored ones last where there are some."""
    names, colours = [*data.classes, "ignored"], [*css_colours(data), ""]
    found = []
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        cells = []
        for split in data.splits.values():
            whole, largest = max(sum(split.pixels), 1), max(*split.pixels, 1)
            share = Measurement(f"share[{name}]", split.pixels[i] / whole, "fraction", split.name, split.n, 0, "of all pixels of the split's masks")
            cells.append((split.pixels[i], share, 100 * split.pixels[i] // largest))
        if colour or any(count for count, _, _ in cells):
            found.append(PixelRow(name, colour, cells))
    return found


# ── masks over epochs ────────────────────────────────────────────────────────────────────────────────────────────


def read_masks_over_epochs(run: Run, *, room: int) -> MasksOverEpochs | None:
    """The section as it is on paper, or None where the run kept no masks. room: bytes of text that its pictures may take; the first is shown in any case."""
    folder, room = run.inside, min(room, MAX_STILL_BYTES)
    if not (folder / FINDINGS).is_file():
        return None
    findings = load_mask_findings(folder)
    shown = spread(len(findings.epochs), 2)
    looks: list[MaskedLook] = []
    seen: set[int] = set()
    for i, picture in enumerate(findings.pictures[:MAX_PICTURES]):
        kept = load_kept_masks(folder, findings, i)
        look = _look(folder / PICTURES / f"{i}.webp", picture, kept, findings, shown)
        room -= look.bytes
        if room < 0 and looks:
            break
        looks.append(look)
        seen |= {int(index) for masks in (kept.truth, kept.predicted[shown]) if masks is not None for index in np.unique(masks)}
    colours = css_colours(findings)
    legend = [(findings.classes[i], colours[i]) for i in sorted(seen - {IGNORED})]
    return MasksOverEpochs(looks, len(findings.pictures), len(findings.epochs), findings.selected, legend, findings.notes)


def _look(path: Path, picture: MaskedPicture, kept: KeptMasks, findings: MaskFindings, shown: Sequence[int]) -> MaskedLook:
    colours = findings.mask_format.colours
    truth = None if kept.truth is None else reduced_mask(kept.truth, SIDE)
    steps = [_step(kept, i, picture.epochs[i], truth, colours) for i in shown]
    photo, missing = photograph(path, kept_size(picture.size), SIDE)
    classes = ", ".join(findings.classes[i] for i in picture.classes)
    return MaskedLook(picture.file, classes, photo, missing, None if truth is None else _mask_picture(truth, colours), steps)


def _step(kept: KeptMasks, i: int, numbers: EpochNumbers, truth: NDArray[np.uint8] | None, colours: NDArray[np.uint8]) -> Step:
    """What was kept at place `i` of the epochs; truth: as it is drawn."""
    from pellucid.figures.masks import RIGHT, WRONG, errors  # matplotlib is loaded for runs that kept masks alone

    found = [numbers.pixel_accuracy, numbers.miou, *sure(kept.truth, kept.predicted[i], kept.confidence[i])]
    predicted = reduced_mask(kept.predicted[i], SIDE)
    wrong = None if truth is None else errors(truth, predicted)
    return Step(
        epoch_name(numbers.epoch),
        list(zip(NAMES, found, strict=True)),
        _mask_picture(predicted, colours),
        None if wrong is None else _indexed(wrong, np.array([RIGHT, WRONG, (0, 0, 0)], np.uint8), clear=2),
    )


def _mask_picture(mask: NDArray[np.uint8], colours: NDArray[np.uint8]) -> str:
    """A PNG data URI of a mask in its classes' colours, ignored pixels transparent."""
    full = len(colours)  # the index behind the last class
    return _indexed(np.where(mask == IGNORED, full, mask).astype(np.uint8), np.concatenate([colours, np.zeros((1, 3), np.uint8)]), clear=full)


def _indexed(values: NDArray[np.uint8], palette: NDArray[np.uint8], *, clear: int) -> str:
    """A PNG data URI of palette indices, `clear` transparent: a few bits a pixel."""
    image = PIL.Image.fromarray(values)
    image.putpalette(palette.ravel().tolist())  # makes indices of grey values
    return pictures.data_uri(image, "PNG", optimize=True, transparency=clear)
