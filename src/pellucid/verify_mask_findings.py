"""Verification of the masks that a segmentation run keeps of its pictures at chosen epochs: `inside/masks.json`, `inside/masks.npz`, the snapshots.

1. *From what is stored*: the pictures are those that the recipe names, in its order; every number is scikit-learn's over the counts in the snapshot of its
   epoch; the arrays are those of the snapshots, the truth is the mask of the data. Counts of a picture that is kept at its own size are recounted from its
   masks; of one that was reduced, they have the pixels of each class of its true mask.
2. *From checkpoint and data*: masks, confidence and counts of the last snapshot, where it is of the final weights. Those of earlier epochs have no weights
   any more that could predict them again: they hold as far as the first path sees.

Shared with training, with oracles in the tests: what `verify_masks` says, and the form of the arrays (`mask_findings`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pellucid.data.dataset import Dataset
from pellucid.errors import PellucidError, RunError
from pellucid.mask_findings import ARRAYS, FINDINGS, KEPT_SIDE, KeptMasks, MaskedPicture, MaskFindings, load_kept_masks, load_mask_findings
from pellucid.palettes import IGNORED
from pellucid.predictions import CONFIDENCE_BINS
from pellucid.run import Run, rounded
from pellucid.runtime import DECIDES_BITS, Runtime, describe
from pellucid.schema import InsideSection
from pellucid.verify_inside.anew import epoch_of_final_weights
from pellucid.verify_inside.kept import Line, guarded, line
from pellucid.verify_inside.maps import Asked, asked_for
from pellucid.verify_masks import (
    ANEW,
    ROWS,
    Forward,
    Opened,
    Recount,
    at_size,
    difference,
    forward_of,
    in_tiles,
    pixel_counts,
    recompute_masks,
    stored_form,
)  # fmt: skip
from pellucid.verify_numbers import EXACT

Progress = Callable[[str, int, int], None]
Masks = dict[str, np.ndarray]  # of a snapshot, as run.Snapshot has them
_Again = tuple[NDArray[np.uint8], NDArray[np.float64], bool]  # what `_predicted` gives

RECORD, KEPT = f"inside/{FINDINGS}", f"inside/{ARRAYS}"
STEP = 1 / 255  # of a kept confidence


@dataclass(frozen=True)
class Near:
    """How far a picture may be predicted otherwise. share: of its pixels with another class; confidence: the largest difference of a probability."""

    share: float
    confidence: float


SAME_BITS = Near(0.0, STEP)  # the logits of the splits are the same bits, and nothing is resampled
SAME_MACHINE = Near(1e-3, STEP + 1e-3)  # logits brought to the picture's size by other arithmetic
OTHER_MACHINE = Near(1e-2, STEP + 0.05)  # other kernels in float32
REDUCED = Near(5e-2, STEP + 0.4)  # bf16 or fp16 on unlike machines: networks on CamVid in bf16 were up to 2.7 % and 0.26 away from themselves in float32


@dataclass(frozen=True)
class _Truth:
    """The true mask of a picture as it is kept, (h, w) uint8. pixels: (C + 1,) of each class at its own size, ignored last; None where the data is gone."""

    mask: NDArray[np.uint8]
    pixels: NDArray[np.int64] | None


@dataclass(frozen=True)
class _Looked:
    """What a run kept of the masks of its pictures. truths: one for each picture, None of a photograph without a mask."""

    opened: Opened
    inside: InsideSection
    findings: MaskFindings
    kept: list[KeptMasks]
    truths: list[_Truth | None]


# ── from what is stored ───────────────────────────────────────────────────────────────────────────────────────


def stored_picture_checks(run: Run, dataset: Dataset | None, progress: Progress | None) -> list[Line]:
    """The lines about the record, the arrays and each snapshot; without the data only against each other."""
    inside = run.recipe.inside
    if inside is None or not run.snapshot_epochs:
        return []  # told with the files that the recipe asks for
    lines: list[Line] = [(f"file {name}", False, f"MISMATCH run.json: it holds no hash of {name}") for name in (RECORD, KEPT) if name not in run.record.files]
    try:
        findings = load_mask_findings(run.inside)
        kept = [load_kept_masks(run.inside, findings, i) for i in range(len(findings.pictures))]
    except PellucidError as error:
        return [*lines, (RECORD, False, f"MISMATCH {RECORD}: {error}")]
    return lines + guarded(RECORD, lambda: _stored(run, inside, findings, kept, dataset, progress))


def _stored(run: Run, inside: InsideSection, findings: MaskFindings, kept: list[KeptMasks], dataset: Dataset | None, progress: Progress | None) -> list[Line]:
    opened = Opened.of(run)
    asked = asked_for(inside, dataset) if dataset is not None and inside.split in dataset.splits else None
    faults = _about(opened, findings) + (_pictures(findings.pictures, asked) if asked is not None else [])
    if faults:
        return [line(RECORD, faults, "")]
    if dataset is not None and asked is not None:
        truths = [_truth(dataset, inside.split, one, len(findings.classes)) for one in asked]
    else:
        truths = [None if masks.truth is None else _Truth(masks.truth, None) for masks in kept]
    return _epochs(_Looked(opened, inside, findings, kept, truths), progress)


def _about(opened: Opened, findings: MaskFindings) -> list[str]:
    """What the record says of the run that is not so."""
    run, data = opened.run, opened.data
    pairs = (
        ("classes", findings.classes, data.classes), ("mask_format", findings.mask_format, data.mask_format),
        ("epochs", findings.epochs, run.snapshot_epochs), ("selected", findings.selected, opened.record.selected),
    )  # fmt: skip
    return [f"{name} {said}, the run has {true}" for name, said, true in pairs if said != true]


def _pictures(pictures: Sequence[MaskedPicture], asked: Sequence[Asked]) -> list[str]:
    """Each picture that the recipe asks for is there once, in its order and of its size."""
    names, wanted = [picture.file for picture in pictures], [one.name for one in asked]
    faults = [f"{name} is missing" for name in wanted if name not in names] + [f"{name} was not asked for" for name in names if name not in wanted]
    if faults or names != wanted:
        return faults or ["the pictures are not in the order of the recipe and the split, each once"]
    for picture, one in zip(pictures, asked, strict=True):
        photo = one.open()
        if picture.size != (photo.height, photo.width):
            faults.append(f"{picture.file}: its size is {picture.size}, found {(photo.height, photo.width)}")
    return faults


def _truth(dataset: Dataset, split: str, one: Asked, num_classes: int) -> _Truth | None:
    """The true mask of a picture, from the data: that of the image of the split that it is."""
    masks = dataset.splits[split].masks
    if masks is None or one.row is None or one.split != split:
        return None
    mask = masks.open(one.row)
    pixels = [int((mask == c).sum()) for c in range(num_classes)]
    return _Truth(_as_kept(mask), np.array([*pixels, (mask == IGNORED).sum()], np.int64))


def _as_kept(mask: NDArray[Any]) -> NDArray[Any]:
    """(h, w) of a mask or map (H, W): its long side at most KEPT_SIDE pixels, each the one at its centre. In fractions, side by side."""
    scale = Fraction(KEPT_SIDE, max(mask.shape)) if max(mask.shape) > KEPT_SIDE else Fraction(1)
    rows, columns = (_centres(own, max(1, math.floor(own * scale + Fraction(1, 2)))) for own in mask.shape)
    return mask[np.ix_(rows, columns)]


def _centres(own: int, kept: int) -> list[int]:
    """The pixel of `own` ones that the centre of each of `kept` lies in."""
    return [math.floor(Fraction(own, kept) * (i + Fraction(1, 2))) for i in range(kept)]


def _epochs(looked: _Looked, progress: Progress | None) -> list[Line]:
    """The snapshots one by one, then what record and arrays have otherwise than they."""
    findings, run = looked.findings, looked.opened.run
    lines, record, arrays = [], _orders(looked), _truths_that_differ(looked)
    for at, epoch in enumerate(findings.epochs):
        name, own = f"snapshots/{run.snapshot_file(epoch).name}", []
        try:
            masks = run.snapshot(epoch).masks
        except RunError as error:
            lines.append((name, False, f"MISMATCH {name}: {error}"))
            continue
        for i, picture in enumerate(findings.pictures):
            wrong = _keys(looked, i, masks)
            if not wrong:
                wrong = _counts(looked, i, masks)
                arrays += _arrays(looked, i, at, masks)
                record += _numbers(looked, i, at, masks.get(f"confusion/{i}"))
            own += [f"{picture.file}: {fault}" for fault in wrong]
        lines.append(line(name, own, _how_counted(looked)))
        if progress is not None:
            progress("verifying masks over epochs", at + 1, len(findings.epochs))
    numbers = sum(m is not None for picture in findings.pictures for of in picture.epochs for m in (of.pixel_accuracy, of.miou))
    fine = f"{numbers} numbers of {len(findings.pictures)} pictures after epoch {', '.join(map(str, findings.epochs))} recomputed from the snapshots"
    beside = "the truth is that of the data" if any(truth is not None and truth.pixels is not None for truth in looked.truths) else "no mask of the data"
    return [*lines, line(RECORD, record, fine), line(KEPT, arrays, f"masks and confidence are those of the snapshots; {beside}")]


def _how_counted(looked: _Looked) -> str:
    sizes = [(picture.size, masks.predicted.shape[1:]) for picture, masks in zip(looked.findings.pictures, looked.kept, strict=True)]
    whole = sum(size == kept for size, kept in sizes)
    reduced = f"; {len(sizes) - whole} are reduced, the pixels of each true class compared" if whole < len(sizes) else ""
    return f"masks of {whole} of {len(sizes)} pictures counted again{reduced}"


def _orders(looked: _Looked) -> list[str]:
    """Pictures whose classes are not those of their true mask, largest first."""
    faults = []
    for picture, truth in zip(looked.findings.pictures, looked.truths, strict=True):
        if truth is not None and truth.pixels is None:
            continue
        pixels = [] if truth is None or truth.pixels is None else truth.pixels[:-1].tolist()
        wanted = sorted((c for c, count in enumerate(pixels) if count), key=lambda c: (-pixels[c], c))
        faults += [f"{picture.file}: its classes are {picture.classes}, in its mask {wanted}"] if picture.classes != wanted else []
    return faults


def _truths_that_differ(looked: _Looked) -> list[str]:
    faults = []
    for picture, masks, truth in zip(looked.findings.pictures, looked.kept, looked.truths, strict=True):
        if truth is None and masks.truth is not None:
            faults.append(f"{picture.file}: it has a truth, and no mask in the data")
        elif truth is not None and masks.truth is None:
            faults.append(f"{picture.file}: its truth is missing")
        elif truth is not None and not np.array_equal(masks.truth, truth.mask):  # type: ignore[arg-type]
            faults.append(f"{picture.file}: its truth is not its mask in the data")
    return faults


def _keys(looked: _Looked, i: int, masks: Masks) -> list[str]:
    """What of a picture's arrays in a snapshot is missing or of another form."""
    C, size = len(looked.findings.classes), looked.kept[i].predicted.shape[1:]
    shapes: dict[str, tuple[int, ...]] = {"predicted": size, "confidence": size}
    if looked.truths[i] is not None:
        shapes["confusion"] = (C + 1, C)
    elif f"confusion/{i}" in masks:
        return [f"confusion/{i} counts pixels, and it has no mask"]
    faults = [f"{kind}/{i} is missing" for kind in shapes if f"{kind}/{i}" not in masks]
    faults += [f"{kind}/{i}: expected {shape}, got {masks[f'{kind}/{i}'].shape}" for kind, shape in shapes.items()
               if f"{kind}/{i}" in masks and masks[f"{kind}/{i}"].shape != shape]  # fmt: skip
    if not faults and masks[f"predicted/{i}"].max(initial=0) >= C:
        faults.append(f"predicted/{i}: expected classes below {C}, got {masks[f'predicted/{i}'].max()}")
    return faults


def _counts(looked: _Looked, i: int, masks: Masks) -> list[str]:
    """What the counts of a picture's snapshot are not, by its masks."""
    truth, predicted, picture = looked.truths[i], masks[f"predicted/{i}"], looked.findings.pictures[i]
    if truth is None:
        return []
    confusion = masks[f"confusion/{i}"]
    if truth.pixels is not None and not np.array_equal(confusion.sum(axis=1), truth.pixels):
        return [f"confusion/{i} has other pixels of each class than its mask: {confusion.sum(axis=1).tolist()}, in the mask {truth.pixels.tolist()}"]
    if picture.size != predicted.shape or truth.mask.shape != predicted.shape:
        return []
    again = pixel_counts(truth.mask, predicted, len(looked.findings.classes), picture.file)
    return [] if np.array_equal(confusion, again) else [f"confusion/{i}: {difference(confusion, again)}"]


def _arrays(looked: _Looked, i: int, at: int, masks: Masks) -> list[str]:
    """What the arrays hold of a picture after an epoch that its snapshot does not."""
    file, epoch, kept = looked.findings.pictures[i].file, looked.findings.epochs[at], looked.kept[i]
    pairs = (("predicted", kept.predicted[at]), ("confidence", kept.confidence[at]))
    return [f"{file}: {kind}/{i} after epoch {epoch} is not that of the snapshot" for kind, array in pairs if not np.array_equal(array, masks[f"{kind}/{i}"])]


def _numbers(looked: _Looked, i: int, at: int, confusion: np.ndarray | None) -> list[str]:
    """What is wrong with the numbers of a picture after an epoch, by the counts of its snapshot."""
    picture, epoch = looked.findings.pictures[i], looked.findings.epochs[at]
    again, faults = _recomputed(looked, confusion), []
    for name, m in (("pixel_accuracy", picture.epochs[at].pixel_accuracy), ("miou", picture.epochs[at].miou)):
        of, value = f"{picture.file}: {name} after epoch {epoch}", again.get(name)
        if m is None or value is None:
            faults += [f"{of} {'is missing' if m is None else 'has no pixel that counts behind it'}"] if (m is None) != (value is None) else []
            continue
        faults += [f"{of}: reported {m}, recomputed {rounded(value)}"] if not abs(m.value - value) <= EXACT else []
        said, wanted = (m.name, m.n, m.seed, m.split, m.unit, m.interval), (name, 1, looked.opened.recipe.seed, looked.inside.shown, "fraction", None)
        faults += [f"{of}: name, n, seed, split, unit and interval are {said}, recomputed {wanted}"] if said != wanted else []
    return faults


def _recomputed(looked: _Looked, confusion: np.ndarray | None) -> dict[str, float]:
    """{name: value} of a picture's numbers; {} where no pixel counts."""
    if confusion is None:
        return {}
    alone = Recount(confusion[None], np.zeros((1, confusion.shape[1], 4), np.int64), 0.0, np.zeros((1, CONFIDENCE_BINS, 3)))
    numbers = recompute_masks(alone, looked.opened.rule, looked.findings.classes)
    return numbers if "pixel_accuracy" in numbers else {}


# ── from checkpoint and data ──────────────────────────────────────────────────────────────────────────────────


def anew_picture_checks(run: Run, dataset: Dataset, module: nn.Module, runtime: Runtime, progress: Progress | None, *, same_bits: bool = False) -> list[Line]:
    """The line about the last snapshot, predicted again by the run's model, on the device, from the pictures read now.

    same_bits: whether the logits of the run's splits were seen to be the same bits here.
    """
    recipe = run.recipe
    inside = recipe.inside
    if inside is None or not run.snapshot_epochs or inside.split not in dataset.splits:
        return []
    epoch = epoch_of_final_weights(run, recipe)
    if epoch is None:
        return [("masks over epochs", True, "no snapshot is of the final weights: masks over epochs are not predicted again")]
    what = f"snapshots/{run.snapshot_file(epoch).name} {ANEW}"
    opened, near = Opened.of(run), partial(_near, run, runtime, same_bits)
    predicted = partial(_predicted, opened, forward_of(module.eval(), runtime), runtime)
    return guarded(what, lambda: [_last(what, opened, inside, epoch, dataset, predicted, near, progress)])


def _last(
    what: str, opened: Opened, inside: InsideSection, epoch: int, dataset: Dataset, predicted: Callable[[Asked], _Again],
    near: Callable[[bool], Near], progress: Progress | None,
) -> Line:  # fmt: skip
    """The line about a snapshot. near: what is allowed for a picture, by whether its logits are resampled."""
    masks, asked, true = opened.run.snapshot(epoch).masks, asked_for(inside, dataset), dataset.splits[inside.split].masks
    faults, moved, pixels = [], 0, 0
    for i, one in enumerate(asked):
        mask, confidence, resampled = predicted(one)
        away, wrong = _otherwise(masks, i, mask, confidence, near(resampled))
        moved, pixels = moved + away, pixels + masks[f"predicted/{i}"].size
        if true is not None and one.row is not None and one.split == inside.split:
            again = pixel_counts(true.open(one.row), mask, len(opened.data.classes), one.name)
            wrong += _counts_otherwise(masks[f"confusion/{i}"], again, near(resampled))
        faults += [f"{one.name}: {fault}" for fault in wrong]
        if progress is not None:
            progress("verifying masks of the last epoch", i + 1, len(asked))
    fine = f"masks, confidence and counts of {len(asked)} pictures after epoch {epoch}: {moved:,} of {pixels:,} pixels are predicted otherwise"
    return line(what, faults, fine)


def _near(run: Run, runtime: Runtime, same_bits: bool, resampled: bool) -> Near:
    """How near the predictions here have to come to those of the run's machine."""
    now, then = describe(runtime), run.environment
    if same_bits and not resampled:
        return SAME_BITS
    if same_bits or all(now[key] == then.get(key) for key in DECIDES_BITS):
        return SAME_MACHINE
    return OTHER_MACHINE if now["precision"] == then.get("precision") == "fp32" else REDUCED


@torch.inference_mode()
def _predicted(opened: Opened, forward: Forward, runtime: Runtime, one: Asked) -> _Again:
    """(classes (H, W), probability of each (H, W), whether logits were resampled) of a picture at its own size."""
    d, photo = opened.recipe.data, one.open()
    image, size = stored_form(opened, photo).to(runtime.device), (photo.height, photo.width)
    logits = forward(image[None])[0] if tuple(image.shape[1:]) == d.size else in_tiles(opened, forward, image)
    found = at_size(logits.cpu(), size, d)
    mask, confidence = np.empty(size, np.uint8), np.empty(size)
    for top in range(0, len(mask), ROWS):
        rows = slice(top, top + ROWS)
        mask[rows], confidence[rows] = found[:, rows].numpy().argmax(axis=0), _largest(found[:, rows])
    return mask, confidence, tuple(logits.shape[1:]) != size


def _largest(logits: Tensor) -> NDArray[np.float64]:
    """(h, w) of logits (C, h, w): the largest probability, in float64."""
    return np.asarray(logits.double().softmax(dim=0).numpy().max(axis=0))


def _otherwise(masks: Masks, i: int, mask: NDArray[np.uint8], confidence: NDArray[np.float64], near: Near) -> tuple[int, list[str]]:
    """(pixels with another class than in the snapshot, what of them and of the confidence is further away than allowed)."""
    stored, sure = masks[f"predicted/{i}"], masks[f"confidence/{i}"]
    again, faults = _as_kept(mask), []
    if stored.shape != again.shape or sure.shape != again.shape:
        return stored.size, [f"expected masks and confidence of {again.shape}, got {stored.shape} and {sure.shape}"]
    moved = int((stored != again).sum())
    if moved > near.share * stored.size:
        faults.append(f"{moved:,} of {stored.size:,} pixels are predicted otherwise, at most {near.share:.1%} may be")
    largest = float(np.abs(sure * STEP - _as_kept(confidence)).max(initial=0.0))
    if not largest <= near.confidence:
        faults.append(f"confidence differs by up to {rounded(largest)}, at most {rounded(near.confidence)} may be")
    return moved, faults


def _counts_otherwise(confusion: np.ndarray, again: np.ndarray, near: Near) -> list[str]:
    """What the counts say where more pixels lie in other cells than allowed."""
    away = np.abs(confusion - again).sum() / 2 if confusion.shape == again.shape else math.inf  # a pixel leaves one cell and enters another
    return [f"its counts are not those of the masks predicted again: {difference(confusion, again)}"] if away > near.share * again.sum() else []
