"""What a model gets wrong, as a view: confusions, and the pictures behind them. NumPy and Pillow only.

    classification   the confusion of samples, its mistakes, most confident first, each with its five most probable classes and similar training pictures
    segmentation     the confusion of pixels, the hardest images with mask and prediction, and for each confusion the images with most of its pixels
    captioning       the worst and the best captions beside the pictures' own
    pretraining      images beside the training images whose features are most similar; there is no right and wrong

The view is `title`, `notes`, and

    lead      sentences for readers
    classes   names; cells: [label, prediction, count, ...] of every pair that occurs, counts of `of`, "samples" or "pixels"; () where nothing is confused
    wrong     the classes that the `cell` of an item names, ascending
    items     pictures: `file`, `heading`, `lines` under a small picture, `cell` (label, prediction) or None, `pictures` [[name, data URI or None]], `missing`
              why one is None, `facts` [[term, text]], `top` [[class, text]], `near` [[tile, class, text, file]], `said` a sentence on these
    tiles     data URIs of small pictures, which `near` counts from 0, -1: none
    groups    [[heading, [item, ...]]]; filed: {"label,prediction": [[item or -1, file, text], ...]} of pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid import atlas
from pellucid.errors import RunError
from pellucid.mask_findings import hardest_rows, kept_size
from pellucid.neighbour_findings import NEIGHBOUR_ARRAYS, NEIGHBOUR_ATLAS, NEIGHBOUR_SIDE, KeptNeighbours, Neighbour, has_neighbours, load_neighbours
from pellucid.overlap import convention, overlaps
from pellucid.predictions import MaskPredictions, Predictions
from pellucid.readings import most_confused
from pellucid.records import read_picture
from pellucid.report import captions, content, pretraining
from pellucid.run import DataRecord, Run, rounded
from pellucid.views import FULLER, Room, View, encoding, size

Item = dict[str, Any]

MOST_LISTED = 400  # mistakes of a classification, with or without a picture
MOST_HARDEST = 32  # images of a segmentation
MOST_FILED, IMAGES_FILED = 400, 6  # confusions of pixels that name images, and images of each
MOST_CELLS = 10_000  # of a confusion; with more, the rarest are left out
SAID = 1500  # bytes for title, lead and notes
TEXTS = 0.6  # of the room of a view in which not all pictures fit
NUM_TOP = 5  # probabilities of a mistake
SIZES = ((224, 64), (144, 48))  # pixels of the long side of pictures and of their neighbours: the larger ones where they fit
_REMEDY = "`inside.neighbours` of a recipe keeps them."


def build(run: Run, room: Room) -> View | None:
    """The view of a run's headline split; None where nothing was predicted yet, or where the task has nothing to compare with."""
    split = _split(run)
    if split is None or not run.has_data:
        return None
    of = {"classification": _of_classes, "segmentation": _of_pixels, "captioning": _of_captions, "pretraining": _of_features}
    return of[run.record.task](run, run.data, split, room.bytes)


def _split(run: Run) -> str | None:
    """The headline's split, or the first one with predictions; None without any."""
    splits, measured = run.prediction_splits, run.record.measurements
    return measured[0].split if measured and measured[0].split in splits else next(iter(splits), None)


def _view(title: str, lead: Sequence[str], items: list[Item], notes: Sequence[str], **more: Any) -> View:
    empty: View = {"classes": [], "cells": [], "of": "", "tiles": [], "groups": [], "filed": {}}
    wrong = sorted({c for item in items for c in item["cell"] or ()})
    return {"title": title, "notes": list(notes), "lead": list(lead), "items": items, "wrong": wrong} | empty | more


def _item(file: str, heading: str, lines: Sequence[str], pictures: Sequence[tuple[str, str | None]], missing: str, **more: Any) -> Item:
    empty: Item = {"cell": None, "facts": [], "top": [], "near": [], "said": ""}
    return {"file": file, "heading": heading, "lines": list(lines), "pictures": list(map(list, pictures)), "missing": missing} | empty | more


def _picture(path: Path, side: int) -> tuple[str | None, str]:
    """(a photograph as a data URI of at most `side` pixels, or None, and why there is none)."""
    try:
        image = read_picture(path).convert("RGB")
    except FileNotFoundError:
        return None, "no picture was kept"
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        return None, "picture cannot be read"
    image.thumbnail((side, side))
    return encoding.picture(image), ""


def _cells(confusion: NDArray[np.int64], room: int) -> tuple[list[int], list[str]]:
    """([label, prediction, count, ...] of the pairs that occur, the largest ones in the order of the matrix, a note where some are left out).

    At most MOST_CELLS, and as many as `room` bytes of text hold.
    """
    places = np.flatnonzero(confusion)
    order = places[np.argsort(-confusion.flat[places], kind="stable")]
    most = MOST_CELLS
    while True:
        kept = np.sort(order[:most])
        cells = np.stack([*np.divmod(kept, len(confusion)), confusion.ravel()[kept]], axis=1).ravel().tolist()
        if most <= 1 or size(cells) <= room:
            break
        most = min(most, len(places)) * 2 // 3
    return cells, [f"{len(kept):,} of {len(places):,} pairs of classes are drawn, those that occur most often."] if len(kept) < len(places) else []


def _fitted(items: Sequence[Item], tiles: Sequence[str], room: int) -> tuple[list[Item], list[str], list[str]]:
    """(items, tiles, notes on what is left out): what fits into `room` bytes of text, in their order; the first item with its pictures in any case.

    Where not all fits, texts get TEXTS of the room, the tiles at most half of what these leave, and the pictures the rest.
    """
    bare = [item | {"pictures": [[name, None] for name, _ in item["pictures"]]} for item in items]
    all_fit = size([items, tiles]) <= room
    listed = max(1, _fit([size(item) for item in bare], room if all_fit else int(TEXTS * room)))
    left = room - size(bare[:listed])
    used = 1 + max((near[0] for item in items[:listed] for near in item["near"]), default=-1)
    kept = tiles[: _fit([size(uri) for uri in tiles[:used]], left if all_fit else left // 2)]
    left -= size(kept)
    found, left_out = [], used - len(kept)
    for i, item in enumerate(items[:listed]):
        near = [[tile if tile < len(kept) else -1, *rest] for tile, *rest in item["near"]]
        uris = sum(size(uri) for _, uri in item["pictures"] if uri)
        left -= uris
        fits = left >= 0 or not uris or i == 0  # a picture that was never kept is not left out
        left_out += not fits
        found.append((item if fits else bare[i] | {"missing": "left out to keep the page small"}) | {"near": near})
    notes = [f"{left_out:,} pictures have no room here; {FULLER}"] if left_out else []
    return found, list(kept), notes + ([f"{listed:,} of {len(items):,} have room here; {FULLER}"] if listed < len(items) else [])


def _fit(sizes: Sequence[int], room: int) -> int:
    """How many of the first parts, with a comma behind each, take at most `room` bytes."""
    return int(np.searchsorted(np.cumsum(np.asarray(sizes, np.int64) + 1), room, side="right"))


# ── classification ───────────────────────────────────────────────────────────────────────────────────────────────


def _of_classes(run: Run, data: DataRecord, split: str, room: int) -> View | None:
    predictions = run.predictions(split)
    if not len(predictions.labels):
        return None
    if predictions.logits.shape[1] != len(data.classes):
        got = predictions.logits.shape
        raise RunError(f"{run.predictions_file(split)}: expected logits for the {len(data.classes)} classes of data.json, got {got}; the run was changed")
    classes = encoding.names(data.classes, room // 4)
    reading = content.read_predictions(predictions, classes, split=split, seed=run.recipe.seed, num_mistakes=MOST_LISTED)
    cells, notes = _cells(reading.confusion, room // 4)
    found, searched = _neighbours(run, split, data)
    items, tiles, more = _mistaken(run, reading, predictions, found, room - size([classes, cells]) - SAID)
    kept = sum(any(uri for _, uri in item["pictures"]) for item in items)
    wrong = f"{reading.num_mistakes:,} of {reading.n:,} samples of {split} were taken for another class (accuracy {reading.accuracy})."
    lead = [wrong if reading.num_mistakes else f"None: all {reading.n:,} samples of {split} were predicted as labelled."]
    if reading.num_mistakes > kept:
        notes.append(f"Pictures of {kept:,} of {reading.num_mistakes:,} mistakes are here: those about which the model was surest.")
    if reading.num_mistakes > len(items):
        notes.append(f"{len(items):,} mistakes are listed, the surest; all are in predictions/{split}.csv.")
    lead += [searched] if searched and found else []
    notes += [*more, *([searched] if searched and not found and items else [])]
    return _view(f"Confusion and mistakes on {split}", lead, items, notes, classes=classes, cells=cells, of="samples", tiles=tiles)


def _mistaken(run: Run, reading: content.Reading, predictions: Predictions, found: KeptNeighbours | None, room: int) -> tuple[list[Item], list[str], list[str]]:
    """(mistakes, most confident first, tiles of their neighbours, notes): in the largest of SIZES in which all fit, else in the smallest as many as fit."""
    probabilities = predictions.probabilities()
    near = {} if found is None else {one.row: one.near for one in found.findings.mistakes[reading.split]}
    for side, tile_side in SIZES:
        items = [_mistake(run, reading, m, predictions, probabilities[m.index], side) for m in reading.mistakes]
        tiles = _near(run, reading.classes, items, [near.get(m.index, []) for m in reading.mistakes], found, tile_side)
        if size([items, tiles]) <= room:
            break
    return _fitted(items, tiles, room)


def _mistake(run: Run, reading: content.Reading, mistake: content.Mistake, predictions: Predictions, probabilities: NDArray[np.float64], side: int) -> Item:
    uri, missing = _picture(run.thumbnails / reading.split / f"{mistake.index:06d}.webp", side)
    top = np.argsort(-probabilities, kind="stable")[:NUM_TOP].tolist()
    label = int(predictions.labels[mistake.index])
    return _item(
        encoding.name(mistake.file),
        f"{mistake.label} taken for {mistake.prediction}",
        [f"predicted {mistake.prediction} {mistake.confidence}", f"label {mistake.label}"],
        [("picture", uri)],
        missing,
        cell=[label, top[0]],
        facts=[["label", mistake.label], ["prediction", mistake.prediction], ["confidence", str(mistake.confidence)],
               ["probability of the label", rounded(float(probabilities[label]))]],
        top=[[reading.classes[c], rounded(float(probabilities[c]))] for c in top],
    )  # fmt: skip


def _neighbours(run: Run, split: str, data: DataRecord) -> tuple[KeptNeighbours | None, str]:
    """(the similar training pictures of this split's mistakes, or None, what was searched or why there are none)."""
    if not has_neighbours(run.inside):
        return None, f"No training pictures were kept in which to look for similar ones; {_REMEDY}"
    found = load_neighbours(run.inside)
    if found.labels.max() >= len(data.classes):
        raise RunError(f"{run.inside / NEIGHBOUR_ARRAYS}: labels up to {found.labels.max()} for {len(data.classes)} classes; the run was changed")
    if split not in found.findings.mistakes:
        return None, f"Similar training pictures were not looked for on {split}."
    return found, f"Similar training pictures are the nearest by {found.findings.how}."


def _near(run: Run, classes: Sequence[str], items: Sequence[Item], near: Sequence[Sequence[Neighbour]], found: KeptNeighbours | None, side: int) -> list[str]:
    """The tiles of all neighbours as data URIs, each once; gives each item its `near` and what these say."""
    if found is None:
        return []
    labels = found.labels
    wanted = list(dict.fromkeys(one.index for of in near for one in of))
    place = {index: i for i, index in enumerate(wanted)}
    for item, of in zip(items, near, strict=True):
        item["near"] = [
            [place[one.index], classes[labels[one.index]], f"cosine {rounded(one.cosine)}", encoding.name(found.findings.files[one.index])] for one in of
        ]
        item["said"] = neighbours_say([int(labels[one.index]) for one in of], item["cell"][0], item["cell"][1], classes) if of else ""
    tiles = atlas.read_tiles(run.inside / NEIGHBOUR_ATLAS, NEIGHBOUR_SIDE, wanted)
    return [encoding.picture(tile.resize((side, side)) if tile.width != side else tile) for tile in tiles]


def neighbours_say(near: Sequence[int], label: int, prediction: int, classes: Sequence[str]) -> str:
    """A plain sentence on the classes of the most similar training pictures of a mistake, and what that may mean."""
    k, predicted, labelled = len(near), near.count(prediction), near.count(label)
    said = (
        f"{predicted:,} of the {k:,} most similar training pictures carry the predicted class, {classes[prediction]}, {labelled:,} the label, {classes[label]}."
    )
    if 2 * predicted > k:
        return f"{said} To the model it looks like these: see what they share with it, and whether its label is right."
    if 2 * labelled > k:
        return f"{said} Its features lie with its own class; the last layer decided otherwise."
    return f"{said} The features do not place it clearly."


# ── segmentation ─────────────────────────────────────────────────────────────────────────────────────────────────


def _of_pixels(run: Run, data: DataRecord, split: str, room: int) -> View | None:
    predictions, scoring = run.mask_predictions(split), run.recipe.scoring
    if not len(predictions.files):
        return None
    if predictions.confusion.shape[-1] != len(data.classes):
        got = predictions.confusion.shape
        raise RunError(f"{run.predictions_file(split)}: expected confusions of {len(data.classes)} classes as in data.json, got {got}; the run was changed")
    assert scoring is not None, "the schema gives every segmentation its scoring"
    rule = convention(scoring, data.classes)
    confusion = predictions.confusion.sum(axis=0)[:-1].astype(np.int64)
    classes = encoding.names(data.classes, room // 4)
    cells, notes = _cells(confusion, room // 4)
    wrong = hardest_rows(predictions, len(predictions.files), rule.void_classes)
    rows = wrong[:MOST_HARDEST].tolist()
    filed, more = _filed(predictions, confusion, room // 4)
    left = room - size([classes, cells, filed]) - SAID
    items, _, left_out = _fitted([_hard(run, predictions, row, rule, split) for row in rows], [], left)
    place = {row: i for i, row in enumerate(rows[: len(items)])}
    seen = {pair: [[place.get(row, -1), *rest] for row, *rest in of] for pair, of in filed.items()}
    lead = [f"{len(wrong):,} of {len(predictions.files):,} images of {split} have a wrong pixel; {confusion.sum():,} pixels are valid."]
    if len(wrong) > len(rows):
        notes.append(f"Shown are the {len(rows):,} images with the lowest pixel accuracy; numbers are of the image alone.")
    title, notes = f"Confused pixels and hardest images of {split}", [*notes, *more, *left_out]
    return _view(title, lead, items, notes, classes=classes, cells=cells, of="pixels", filed=seen)


def _hard(run: Run, predictions: MaskPredictions, row: int, rule: Any, split: str) -> Item:
    """An image that was predicted badly, with its mask and its predicted mask."""
    own, folder = overlaps(predictions.confusion[row], rule), run.thumbnails / split
    photo, missing = _picture(folder / f"{row:06d}.webp", 256)
    masks = [_mask(folder / f"{row:06d}-{name}.png", 256) for name in ("truth", "predicted")]
    accuracy, miou = (rounded(float(value)) for value in (own.pixel_accuracy, own.miou))
    missing = missing or ("" if all(masks) else "picture cannot be read")
    facts = [["pixel accuracy", accuracy], ["mIoU of the image", miou]]
    pictures = [("image", photo), ("mask", masks[0]), ("prediction", masks[1])]
    file = encoding.name(predictions.files[row])
    return _item(file, file, [f"pixel accuracy {accuracy}", f"mIoU {miou}"], pictures, missing, facts=facts)


def _mask(path: Path, side: int) -> str | None:
    """A PNG data URI of a mask's picture, its colours as they are; None when the file is gone or no readable picture."""
    try:
        mask = read_picture(path)
        height, width = kept_size((mask.height, mask.width), side)
        return encoding.picture(mask.resize((width, height), PIL.Image.Resampling.NEAREST), "PNG")
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        return None


def _filed(predictions: MaskPredictions, confusion: NDArray[np.int64], room: int) -> tuple[dict[str, list[list[Any]]], list[str]]:
    """({"label,prediction": [[row, file, text], ...]}, most of its pixels first, a note where confusions are left out). room: bytes of text."""
    pairs = most_confused(confusion, len(confusion) ** 2)
    found: dict[str, list[list[Any]]] = {}
    for label, prediction, count in pairs[:MOST_FILED]:
        own = predictions.confusion[:, label, prediction]
        rows = [int(row) for row in np.argsort(-own, kind="stable")[:IMAGES_FILED] if own[row]]
        of = [
            [row, encoding.name(predictions.files[row]), f"{rounded(int(own[row]), 'count')} pixels, {rounded(own[row] / count)} of this confusion"]
            for row in rows
        ]
        room -= size({f"{label},{prediction}": of})
        if room < 0:
            break
        found[f"{label},{prediction}"] = of
    note = [f"Images are named for the {len(found):,} largest of {len(pairs):,} confusions."] if len(pairs) > len(found) else []
    return found, note


# ── captioning and pre-training ──────────────────────────────────────────────────────────────────────────────────


def _of_captions(run: Run, data: DataRecord, split: str, room: int) -> View | None:
    reading = captions.read_captions(run, data, run.recipe, run.record.measurements, split=split)
    if reading is None or not reading.best:
        return None
    items, _, left_out = _fitted([_described(one) for one in (*reading.worst, *reading.best)], [], room - SAID)
    many = min(len(reading.worst), len(items))
    groups = [["Worst", list(range(many))], ["Best", list(range(many, len(items)))]]
    lead = [f"By CIDEr-D of the picture, of {reading.n:,} pictures of {split}; beside each caption that was found stand the picture's own."]
    return _view(f"Best and worst captions of {split}", lead, items, left_out, groups=groups)


def _described(one: captions.Described) -> Item:
    own = [["own caption", text] for text in one.references]
    score = f"CIDEr-D of the picture {one.score}"
    facts = [["CIDEr-D of the picture", str(one.score)], *own]
    return _item(encoding.name(one.file), one.caption or "no word", [one.caption or "no word", score], [("picture", one.uri)], one.missing, facts=facts)


def _of_features(run: Run, data: DataRecord, split: str, room: int) -> View | None:
    found = pretraining.read_pretraining(run, run.record, run.recipe, data).neighboured
    if found is None:
        return None
    tiles: list[str] = []
    items = [_neighboured(one, tiles) for one in found.images]
    items, tiles, left_out = _fitted(items, tiles, room - SAID)
    return _view(f"Nearest training images of {found.split}", [found.how], items, left_out, tiles=tiles)


def _neighboured(one: pretraining.WithNeighbours, tiles: list[str]) -> Item:
    """An image with its nearest training images, whose pictures are added to `tiles`."""
    near = []
    for other in one.near:
        near.append([len(tiles) if other.shown.uri else -1, encoding.name(other.label), f"cosine {other.cosine}", encoding.name(other.file)])
        tiles += [other.shown.uri] if other.shown.uri else []
    same, label = sum(other.same for other in one.near), encoding.name(one.label)
    said = f"{same:,} of the {len(near):,} most similar training images are of its class, {label}."
    lines, picture = [label, f"{same:,} of {len(near):,} alike"], ("picture", one.shown.uri)
    return _item(encoding.name(one.file), label, lines, [picture], one.shown.missing, facts=[["class", label]], near=near, said=said)
