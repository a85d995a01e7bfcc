"""Masks that a run kept at chosen epochs: a picture, its ground truth, what was predicted, where that errs and how sure it was, pixel by pixel.

    how        what is drawn, in words; last: the last kept epoch; side: pixels of the long side, or less where a picture is smaller
    classes    [{name, colour}] of all classes; occurring: indices of those that occur; epochs: texts; names: of the numbers
    pictures   [{file, classes, size (height, width) of its own, photo, missing, truth (h, w), predicted (E, h, w), confidence (E, h, w), numbers}]

truth and predicted hold uint8 indices, 255 ignored, confidence uint8 with 255 = 1; truth is null for a photograph without a mask, photo for the reason that
missing says. numbers: for each epoch those of `names`, null where there is none; they are of the picture before it was reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import RunError
from pellucid.mask_findings import FINDINGS, PICTURES, EpochNumbers, KeptMasks, MaskFindings, kept_size, load_kept_masks, load_mask_findings, reduced_mask
from pellucid.palettes import IGNORED
from pellucid.records import read_picture
from pellucid.run import Measurement, Run, rounded
from pellucid.views import FULLER, Room, View, size
from pellucid.views.encoding import array, name, names, number, picture

PLANS = ((640, 24), (480, 12), (400, 8), (320, 6), (240, 6), (240, 3))  # (pixels of the long side, most epochs): the first that lets all pictures in
NAMES = ("pixel accuracy", "mIoU of the picture", "confidence where right", "confidence where wrong")
ERRORS = "In an error map orange is wrong and grey is right; striped pixels are ignored and count neither way. "
CONFIDENCE = "Confidence is the probability of the predicted class."


def build(run: Run, room: Room) -> View | None:
    """The masks that training kept."""
    return of_folder(run.inside, room)


def of_folder(folder: Path, room: Room) -> View | None:
    """The masks in a folder of findings; None where it has none. RunError where its files were changed."""
    if not (folder / FINDINGS).is_file():
        return None
    findings = load_mask_findings(folder)
    shorter, colours = names(findings.classes, room.bytes // 4), findings.mask_format.colours.tolist()
    view: View = {
        "title": "Masks over epochs" if len(findings.epochs) > 1 else "Predicted masks" if len(findings.pictures) > 1 else "Predicted mask",
        "how": f"The weights of the run's own numbers: {findings.selected}. {ERRORS}{CONFIDENCE}",
        "classes": [{"name": one, "colour": _hex(colour)} for one, colour in zip(shorter, colours, strict=True)],
    }
    left = room.bytes - size(view) - 3000  # notes, epochs, what is seen
    for side, most in _plans(findings):
        shown = spread(len(findings.epochs), most)
        pictures, seen = _fitting(folder, findings, side, shown, left)
        if len(pictures) == len(findings.pictures):
            break
    if not any(one["truth"] for one in pictures):
        view["how"] = view["how"].replace(ERRORS, "")
    return {
        **view,
        "occurring": sorted(seen - {IGNORED}),
        "epochs": [epoch_name(findings.epochs[i]) for i in shown],
        "names": list(NAMES),
        "pictures": pictures,
        "notes": _notes(findings, len(pictures), side, len(shown)) + findings.notes,
    }


def epoch_name(epoch: int) -> str:
    """`epoch 3`, or `before training` for 0."""
    return f"epoch {epoch}" if epoch else "before training"


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()  # type: ignore[no-any-return]


def sure(truth: NDArray[np.uint8] | None, predicted: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> list[Measurement | None]:
    """The mean confidence over the kept pixels that are right, and over those that are wrong; None where no pixel is, and without a mask.

    truth, predicted, confidence: (h, w) uint8 as `KeptMasks` has them.
    """
    if truth is None:
        return [None, None]
    valid, right = truth != IGNORED, truth == predicted
    return [_mean(confidence, valid & right, "mean where right"), _mean(confidence, valid & ~right, "mean where wrong")]


def photograph(path: Path, size: tuple[int, int], side: int) -> tuple[str | None, str]:
    """(data URI or None, why there is none). RunError for a picture of another size than `size` (h, w), which was exchanged."""
    try:
        image = read_picture(path).convert("RGB")
    except FileNotFoundError:
        return None, "no picture was kept"
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        return None, "picture cannot be read"
    if (image.height, image.width) != size:
        raise RunError(f"{path}: expected a picture of {size[0]} x {size[1]} pixels, got {image.height} x {image.width}; the folder was changed")
    image.thumbnail((side, side))
    return picture(image), ""


# ── what fits ────────────────────────────────────────────────────────────────────────────────────────────────────


def _plans(findings: MaskFindings) -> list[tuple[int, int]]:
    """PLANS without those that take as much as one before."""
    longest = max((max(kept_size(one.size)) for one in findings.pictures), default=1)
    return list(dict.fromkeys((min(side, longest), min(most, len(findings.epochs))) for side, most in PLANS))


def _fitting(folder: Path, findings: MaskFindings, side: int, shown: Sequence[int], room: int) -> tuple[list[View], set[int]]:
    """(the first pictures that fit into so many bytes of text, one at least, the indices in their masks)."""
    found: list[View] = []
    seen: set[int] = set()
    for i in range(len(findings.pictures)):
        kept = load_kept_masks(folder, findings, i)
        made = _picture(folder, findings, kept, i, side, shown)
        room -= size(made)
        if room < 0 and found:
            break
        found.append(made)
        seen |= {int(index) for masks in (kept.truth, kept.predicted[list(shown)]) if masks is not None for index in np.unique(masks)}
    return found, seen


def _picture(folder: Path, findings: MaskFindings, kept: KeptMasks, i: int, side: int, shown: Sequence[int]) -> View:
    one = findings.pictures[i]
    photo, missing = photograph(folder / PICTURES / f"{i}.webp", kept_size(one.size), side)
    return {
        "file": name(one.file),
        "classes": ", ".join(name(findings.classes[index]) for index in one.classes),
        "size": list(one.size),
        "photo": photo,
        "missing": missing,
        "truth": None if kept.truth is None else array(reduced_mask(kept.truth, side)),
        "predicted": array(reduced_mask(kept.predicted[list(shown)], side)),
        "confidence": array(reduced_mask(kept.confidence[list(shown)], side)),
        "numbers": [_numbers(kept, e, one.epochs[e]) for e in shown],
    }


def _numbers(kept: KeptMasks, e: int, numbers: EpochNumbers) -> list[View | None]:
    """Those of NAMES after epoch e of the kept ones."""
    return [number(m) for m in (numbers.pixel_accuracy, numbers.miou, *sure(kept.truth, kept.predicted[e], kept.confidence[e]))]


def _mean(confidence: NDArray[np.uint8], pixels: NDArray[np.bool_], how: str) -> Measurement | None:
    if not pixels.any():
        return None
    return Measurement("confidence", float(confidence[pixels].mean() / 255.0), "fraction", "image", 1, 0, f"{how}, over the kept pixels that are not ignored")


def _notes(findings: MaskFindings, pictures: int, side: int, epochs: int) -> list[str]:
    """What was left out of this view, and where it is."""
    found, every = [], len(findings.pictures)
    if pictures < every:
        found.append(f"{rounded(pictures, 'count')} of {rounded(every, 'count')} pictures are here; {FULLER}")
    if epochs < len(findings.epochs):
        found.append(f"{rounded(epochs, 'count')} of {rounded(len(findings.epochs), 'count')} kept epochs are here, evenly spaced; {FULLER}")
    if any(max(one.size) > side for one in findings.pictures[:pictures]):
        said = f"Pictures and masks are drawn with at most {rounded(side, 'count')} pixels on the long side"
        found.append(f"{said}, each pixel of a mask the one at its place; the numbers are of each picture's own pixels.")
    return found


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)
