"""The masks that a segmentation run predicts for the pictures it looks at: kept at chosen epochs, brought together when it ends.

A snapshot holds of picture i `predicted/<i>` and `confidence/<i>`, (h, w) uint8 at `mask_findings.kept_size`, and `confusion/<i>`, (C + 1, C) int64 counted at
the picture's own size before anything is reduced. `inside/masks.json` and its arrays hold all epochs beside the ground truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from torch import nn

import pellucid
from pellucid.data.images import resize
from pellucid.data.loader import pack_images
from pellucid.mask_findings import EpochNumbers, MaskedPicture, MaskFindings, reduced_mask
from pellucid.overlap import Convention, convention, described, overlaps
from pellucid.palettes import IGNORED
from pellucid.recipe import Recipe
from pellucid.run import Measurement
from pellucid.snapshots import photographs
from pellucid.tasks.fullsize import predict_images
from pellucid.tasks.segmentation import forward_of, view_of

if TYPE_CHECKING:
    from pellucid.prepare import Training


def truths(t: Training) -> list[np.ndarray | None]:
    """(h, w) uint8 mask of each picture at its own size; None of a photograph that is no image of the split."""
    assert t.looked is not None
    assert t.recipe.inside is not None
    masks = t.dataset.splits[t.recipe.inside.split].masks
    assert masks is not None
    return [masks.open(int(place)) if place >= 0 else None for place in t.looked.places]


@torch.inference_mode()
def snapshot_masks(t: Training, module: nn.Module) -> dict[str, np.ndarray]:
    """The arrays of a snapshot by the weights of now."""
    d, arrays = t.recipe.data, {}
    view, forward = view_of(t.recipe, t.mean, t.std), forward_of(module, t.runtime)
    for i, (photo, truth) in enumerate(zip(photographs(t), truths(t), strict=True)):
        stored = resize(PIL.Image.fromarray(photo), d.size, d.fit, d.resize_size, d.interpolation)
        (found,) = predict_images(forward, pack_images([stored]).to(t.runtime.device), [photo.shape[:2]], view)
        arrays[f"predicted/{i}"] = reduced_mask(found.mask)
        arrays[f"confidence/{i}"] = np.rint(reduced_mask(found.confidence) * 255).astype(np.uint8)
        if truth is not None:
            arrays[f"confusion/{i}"] = found.confusion(truth, len(t.dataset.classes))
    return arrays


def bring_together(t: Training, selected: str) -> list[Path]:
    """Write inside/masks.json, masks.npz and the pictures from the snapshots; the files."""
    assert t.looked is not None
    assert t.recipe.inside is not None
    assert t.dataset.mask_format is not None
    scored, epochs = _convention(t.recipe, t.dataset.classes), t.run.snapshot_epochs
    snapshots = [t.run.snapshot(epoch) for epoch in epochs]
    if not snapshots:  # the run stopped before the first chosen epoch, as its notes say
        return []
    findings = MaskFindings(pellucid.__version__, list(t.dataset.classes), t.dataset.mask_format, epochs, selected)
    arrays: dict[str, np.ndarray] = {}
    for i, (name, size, truth) in enumerate(zip(t.looked.names, t.looked.sizes, truths(t), strict=True)):
        numbers = [
            _numbers(t, epoch, snapshot.masks.get(f"confusion/{i}"), name, scored) for epoch, snapshot in zip(epochs, snapshots, strict=True)
        ]  # fmt: skip
        findings.pictures.append(MaskedPicture(name, size, _largest(truth), numbers))
        if truth is not None:
            arrays[f"truth/{i}"] = reduced_mask(truth)
        for key in ("predicted", "confidence"):
            arrays[f"{key}/{i}"] = np.stack([snapshot.masks[f"{key}/{i}"] for snapshot in snapshots])
    return findings.save(t.run.inside, arrays, photographs(t))


def _convention(recipe: Recipe, classes: tuple[str, ...]) -> Convention:
    assert recipe.scoring is not None
    return convention(recipe.scoring, classes)


def _numbers(t: Training, epoch: int, confusion: np.ndarray | None, name: str, scored: Convention) -> EpochNumbers:
    """Pixel accuracy and mIoU of one picture after an epoch; None where it has no pixel that counts."""
    valid = 0 if confusion is None else int(np.delete(confusion[:-1], scored.void_classes, axis=0).sum())
    if confusion is None or not valid:
        return EpochNumbers(epoch, None, None)
    found = overlaps(confusion, scored)
    split = t.recipe.inside.shown if t.recipe.inside is not None else ""

    def number(what: str, value: float, how: str) -> Measurement:
        return Measurement(what, value, "fraction", split, 1, t.recipe.seed, f"{how}; {name} alone, {valid:,} valid pixels, after epoch {epoch}")

    miou = (
        number("miou", found.miou, f"mean IoU over the {found.num_counted} classes in it; {described(scored, t.dataset.classes)}")
        if found.num_counted
        else None
    )
    return EpochNumbers(epoch, number("pixel_accuracy", found.pixel_accuracy, "share of valid pixels that are right"), miou)


def _largest(truth: np.ndarray | None) -> list[int]:
    """The classes of a mask, the largest first."""
    if truth is None:
        return []
    classes, counts = np.unique(truth[truth != IGNORED], return_counts=True)
    return [int(c) for c in classes[np.argsort(-counts, kind="stable")]]
