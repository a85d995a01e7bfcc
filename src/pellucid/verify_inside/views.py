"""What a run kept for its views, recomputed: attention of all patches, training images to compare with, the pictures of both atlases.

From the files: cosines and their order by sums of their own in float64, who is a mistake, names, labels and rows. From checkpoint and data: attention by the
plain copy of `maps`, features by `maps.features`, pictures decoded anew. Where all of it would take too long a part is recomputed, and the line says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pellucid.atlas import most_tiles
from pellucid.attention_findings import ATTENTION, ATTENTION_ARRAYS, STEPS, KeptAttention, KeptLayer, has_attention, load_attention
from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import resize
from pellucid.inside.whole_attention import planned, whole_attention
from pellucid.neighbour_findings import (
    NEAREST,
    NEIGHBOUR_ARRAYS,
    NEIGHBOUR_ATLAS,
    NEIGHBOUR_SIDE,
    NEIGHBOURS,
    KeptNeighbours,
    Near,
    has_neighbours,
    how_compared,
    load_neighbours,
)
from pellucid.run import PROBE_SIDE, THUMBNAILS
from pellucid.runtime import Runtime
from pellucid.verify_inside import maps
from pellucid.verify_inside.kept import Kept, Line, guarded, line
from pellucid.verify_inside.scores import wide
from pellucid.verify_pictures import atlas_faults, keeps_views, mistake_faults

EXACT = 1e-9  # of a cosine: sums in another order, and twelve decimals
HALF = 2.0**-11  # rounding to float16, as a share of a number
REDUCED = 2e-2  # of the largest feature, where the network ran in bf16 or fp16
MOST_WORK = 1e12  # parameters x patches of 16 x 16 pixels x images: some 20 seconds on two cores
FEW = 64  # images of the bank and of the mistakes, where all would take too long


def asked_for(kept: Kept) -> list[Path]:
    """Files that the recipe asks for, where the run is of a version that keeps them. Whether a model has attention only the model says."""
    run = kept.run
    wanted = [run.probe_atlas] if 0 < len(run.probe().rows) <= most_tiles(PROBE_SIDE) else []
    wanted += [run.inside / name for name in (NEIGHBOURS, NEIGHBOUR_ARRAYS, NEIGHBOUR_ATLAS)] if kept.inside.neighbours else []
    wanted += [run.inside / name for name in (ATTENTION, ATTENTION_ARRAYS)] if has_attention(run.inside) else []
    return wanted if keeps_views(run) else []


# ── from the files ────────────────────────────────────────────────────────────────────────────────────────────


def stored_view_checks(kept: Kept) -> list[Line]:
    """The lines that need neither model nor data."""
    hashed = kept.run.record.files
    names = [str(path.relative_to(kept.run.path)) for path in asked_for(kept)]
    lines = [(f"file {name}", False, f"MISMATCH run.json: it holds no hash of {name}{_reason(kept)}") for name in names if name not in hashed]
    if has_neighbours(kept.run.inside):
        lines += _stored_neighbours(kept, load_neighbours(kept.run.inside))
    return lines


def _reason(kept: Kept) -> str:
    """What the run itself says of what it could not keep."""
    said = [note for note in kept.run.record.notes if note.startswith("no training images are kept")]
    return f" ({said[0]})" if said else ""


def _stored_neighbours(kept: Kept, found: KeptNeighbours) -> list[Line]:
    run, f = kept.run, found.findings
    samples = run.samples("train")
    labels = np.array([label for _, label, _ in samples], np.int64)
    rows = maps.chosen_rows(labels, kept.inside.neighbours)
    how = how_compared(run.record.selected, len(rows), len(samples))
    texts = [f"{name} {said!r}, expected {true!r}" for name, said, true in
             (("pellucid", f.pellucid, kept.findings.pellucid), ("how", f.how, how)) if said != true]  # fmt: skip
    faults = [f"split {f.split}, {f.n} of {f.of} images; the run has {len(samples)} of train"] if (f.split, f.of) != ("train", len(samples)) else []
    faults += ["its rows are not those that the recipe asks for"] if found.rows.tolist() != rows else []
    if not faults:
        faults += [] if np.array_equal(found.labels, labels[rows]) else ["its labels are not those of samples/train.csv"]
        faults += [] if f.files == [samples[row][0] for row in rows] else ["its names are not those of samples/train.csv"]
    lines = [line("inside neighbours", [*faults, *texts], f"{f.n:,} of {f.of:,} training images, evenly over the classes, with their labels")]
    for split, own in f.mistakes.items():
        rows = [near.row for near in own]
        wrong = mistake_faults(run.predictions(split), rows, THUMBNAILS["classification"]) if kept.recipe.task == "classification" else ["there are none here"]
        wrong += _not_nearest(own, found.mistakes[split], found.features)
        fine = f"{len(own)} mistakes and the cosines of their {NEAREST} nearest recomputed from the kept features"
        lines.append(line(f"inside neighbours of {split}", wrong, fine))
    missing = [split for split in _mistaken(kept) if split not in f.mistakes]
    return [*lines, *([line("inside neighbours", [f"mistakes of {split} are missing" for split in missing], "")] if missing else [])]


def _mistaken(kept: Kept) -> list[str]:
    """Splits with mistakes, of a classification."""
    if kept.recipe.task != "classification":
        return []
    found = {split: kept.run.predictions(split) for split in kept.run.prediction_splits}
    return [split for split, p in found.items() if (p.logits.argmax(axis=1) != p.labels).any()]


def _not_nearest(own: list[Near], features: NDArray[np.floating], bank: NDArray[np.floating]) -> list[str]:
    """What is wrong with the neighbours of some mistakes, by cosines summed anew."""
    others, faults = wide(bank), []
    lengths = np.array([math.sqrt(math.fsum(row * row)) for row in others])
    for near, one in zip(own, wide(features), strict=True):
        length = math.sqrt(math.fsum(one * one))
        cosines = (others * one).sum(axis=1) / np.maximum(lengths * length, np.finfo(np.float64).tiny)
        places = [neighbour.index for neighbour in near.near]
        if len(places) != min(NEAREST, len(others)) or len(set(places)) < len(places):
            faults.append(f"row {near.row}: expected {min(NEAREST, len(others))} different images, got {len(places)}")
            continue
        away = max(abs(neighbour.cosine - cosines[neighbour.index]) for neighbour in near.near)
        if not away <= EXACT:
            faults.append(f"row {near.row}: a cosine differs by {away:.2g}")
        told = [(-neighbour.cosine, neighbour.index) for neighbour in near.near]
        rest = np.delete(cosines, places)
        if told != sorted(told) or (len(rest) and rest.max() > cosines[places[-1]] + EXACT):
            faults.append(f"row {near.row}: they are not the most similar ones in their order")
    return faults


# ── from checkpoint and data ──────────────────────────────────────────────────────────────────────────────────


def anew_view_checks(kept: Kept, dataset: Dataset, module: nn.Module, runtime: Runtime, near: float) -> list[Line]:
    """The lines about atlases and the features of the bank. near: tolerance as a share of the largest feature."""
    lines = guarded("inside pictures of probe", lambda: _probe_pictures(kept, dataset))
    if not has_neighbours(kept.run.inside):
        return lines
    found = load_neighbours(kept.run.inside)
    height, width = kept.recipe.data.size
    count = len(found.rows) + sum(map(len, found.mistakes.values()))
    whole = sum(p.numel() for p in module.parameters()) * height * width / 256 * count <= MOST_WORK
    chosen = list(range(len(found.rows))) if whole else maps.chosen_rows(np.zeros(len(found.rows), np.int64), FEW)
    rows, atlas = found.rows[chosen].tolist(), kept.run.inside / NEIGHBOUR_ATLAS
    lines += guarded(
        "inside pictures of neighbours", lambda: [_atlas(kept, "neighbours", atlas, NEIGHBOUR_SIDE, len(found.rows), dataset.splits["train"], rows, chosen)]
    )
    asked = [("train", rows, found.features[chosen])]
    for split, own in found.mistakes.items():
        some = len(own) if whole else min(len(own), FEW)
        asked.append((split, [one.row for one in found.findings.mistakes[split][:some]], own[:some]))
    share = max(near, 0.0 if runtime.precision == "fp32" else REDUCED)
    return lines + [_features(kept, dataset.splits[split], module, runtime, rows, stored, share, whole=whole) for split, rows, stored in asked if rows]


def _probe_pictures(kept: Kept, dataset: Dataset) -> list[Line]:
    if not kept.run.probe_atlas.is_file():  # its absence is told with the hashes
        return []
    probe = kept.run.probe()
    n, split = len(probe.rows), dataset.splits[probe.split]
    return [_atlas(kept, "probe", kept.run.probe_atlas, PROBE_SIDE, n, split, probe.rows.tolist(), range(n))]


def _features(
    kept: Kept, split: Split, module: nn.Module, runtime: Runtime, rows: list[int], stored: NDArray[np.floating], share: float, *, whole: bool
) -> Line:  # fmt: skip
    what = f"inside neighbours, features of {split.name}"
    found = maps.features(module, kept.run, split, rows, runtime, kept.run.record.evaluation_batch_size)
    if found.shape != stored.shape:
        return line(what, [f"features {stored.shape}, recomputed {found.shape}"], "")
    largest = float(np.abs(found).max(initial=0.0))
    away = np.abs(wide(stored) - found)
    bad = np.flatnonzero((~(away <= HALF * np.abs(found) + share * largest)).any(axis=1))
    faults = [f"{split.names[rows[i]]}: differs by {away[i].max() / max(largest, 1e-300):.2g} of the largest feature" for i in bad]
    part = "" if whole else "; all of them would take too long for this model"
    return line(what, faults, f"{len(rows):,} x {found.shape[1]} recomputed: largest difference {away.max() / max(largest, 1e-300):.1g} of the largest{part}")


def _atlas(kept: Kept, name: str, path: Path, side: int, tiles: int, split: Split, rows: Sequence[int], places: Sequence[int]) -> Line:
    """Pictures of rows decoded anew, packed as tiles and compared with those that were kept."""
    d = kept.recipe.data
    anew = [maps.cropped(resize(split.open(row), d.size, d.fit, d.resize_size, d.interpolation), d.size) for row in rows]
    faults, away = atlas_faults(path, side, tiles, places, anew, [split.names[row] for row in rows])
    return line(f"inside pictures of {name}", faults, f"{len(rows):,} pictures of {split.name} decoded anew: largest mean difference {away:.1f} of 255")


@dataclass(frozen=True)
class _Wanted:
    """What the attention of one picture in one layer should be. rows: (h, q, k); rest: (h, q); of_class: (h, k), None without a class token."""

    rows: NDArray[np.float64]
    rest: NDArray[np.float64]
    of_class: NDArray[np.float64] | None


def anew_attention_checks(kept: Kept, module: nn.Module, inputs: Tensor, near: float) -> list[Line]:
    """The line about the attention of all patches. inputs: (n, 3, H, W) of the pictures, on the device; near: tolerance as a share of a row's largest."""
    what = "inside attention of patches"
    there = has_attention(kept.run.inside)
    if not there and not keeps_views(kept.run):
        return []
    plan, why = planned(module, inputs[:1], len(inputs)) if kept.inside.attention and len(inputs) else (None, [])
    faults = [f"the findings do not say that {reason}" for reason in why if reason not in kept.findings.notes]
    if not there or plan is None:
        faults += ["the model has attention, and none was kept"] if plan is not None else ["none was to be kept"] if there else []
        return [line(what, faults, "none was kept, and none was to be")]
    found = load_attention(kept.run.inside, kept.n)
    f, wanted_record = found.findings, replace(plan.findings, pellucid=kept.findings.pellucid)
    if f != wanted_record:
        odd = [field.name for field in fields(f) if getattr(f, field.name) != getattr(wanted_record, field.name)]
        return [line(what, [f"{name}: {getattr(f, name)}, expected {getattr(wanted_record, name)}" for name in odd], "")]
    plain = maps.attentions(module, inputs[: len(f.pictures)])
    if all(_is_plain(ran, layer) for ran in plain for layer in f.layers):
        path, step = "written out without fused kernels", 0.5 / STEPS
        wanted = {(i, j): _plainly(dict(ran)[layer.module], layer, classed=f.class_token) for i, ran in enumerate(plain) for j, layer in enumerate(f.layers)}
    else:
        path, step = "by the recorder itself, as it has no plain form here", 1.0 / STEPS
        again, _ = whole_attention(module, inputs)
        assert again is not None, "there is a plan of it"
        wanted = {(i, j): _as_kept(again, i, j) for i in f.pictures for j in range(len(f.layers))}
    worst = 0.0
    for (i, j), right in wanted.items():
        wrong, away = _differences(found, i, j, right, step + near, near)
        faults += [f"picture {i}, {f.layers[j].module}: {fault}" for fault in wrong]
        worst = max(worst, away)
    fine = f"{len(f.pictures)} pictures in {len(f.layers)} layers recomputed {path}: largest difference {worst:.2g} of a row's largest weight"
    return [line(what, faults, f"{fine}, of which bytes round {0.5 / STEPS:.2g}")]


def _is_plain(ran: list[tuple[str, NDArray[np.float64]]], layer: KeptLayer) -> bool:
    """Whether a layer ran once in the plain copy, over its patches behind a few other tokens."""
    own = [A for path, A in ran if path == layer.module]
    return len(own) == 1 and own[0].shape[1] == own[0].shape[2] and 0 <= own[0].shape[1] - layer.patches <= 32


def _plainly(weights: NDArray[np.float64], layer: KeptLayer, *, classed: bool) -> _Wanted:
    """Of the probabilities (h, N, N) of a layer, whose patches come last."""
    before = weights.shape[1] - layer.patches
    own = weights.mean(axis=0, keepdims=True) if layer.averaged else weights
    return _Wanted(own[:, before:, before:], own[:, before:, :before].sum(axis=2), own[:, 0, before:] if classed and before else None)


def _as_kept(found: KeptAttention, i: int, j: int) -> _Wanted:
    of_class = found.arrays.get(f"class/{i}/{j}")
    return _Wanted(found.weights(i, j), wide(found.arrays[f"rest/{i}/{j}"]), None if of_class is None else wide(of_class))


def _differences(found: KeptAttention, i: int, j: int, right: _Wanted, allowed: float, near: float) -> tuple[list[str], float]:
    """(what differs by more than is allowed, the largest difference as a share of its row's largest weight)."""
    own = _as_kept(found, i, j)
    if own.rows.shape != right.rows.shape or (own.of_class is None) != (right.of_class is None):
        return [f"rows {own.rows.shape}, recomputed {right.rows.shape}"], math.inf
    largest = np.maximum(right.rows.max(axis=2, keepdims=True), np.finfo(np.float64).tiny)
    away = float((np.abs(own.rows - right.rows) / largest).max())
    faults = [] if away <= allowed else [f"a row differs by {away:.2g} of its largest weight"]
    if not np.abs(own.rest - right.rest).max() <= near:
        faults.append("what rows give to tokens without a place differs")
    if own.of_class is not None and right.of_class is not None and not np.abs(own.of_class - right.of_class).max() <= near * right.of_class.max():
        faults.append("the class token's row differs")
    return faults, away
