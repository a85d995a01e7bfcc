"""Looking inside a run's model again, from checkpoint and data: pictures, masks, predictions, maps, deletion curves, features."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pellucid.data.dataset import Dataset
from pellucid.errors import UsageError
from pellucid.findings import ImageFinding, MapKind
from pellucid.inside.survey import fitting, maps_of
from pellucid.recipe import Recipe
from pellucid.run import Run, rounded
from pellucid.runtime import DECIDES_BITS, Runtime, describe
from pellucid.verify_inside import maps, scores
from pellucid.verify_inside.kept import Kept, Line, Told, expected_epochs, guarded, line
from pellucid.verify_inside.scores import wide
from pellucid.verify_inside.stored import score_lines
from pellucid.verify_inside.views import anew_attention_checks, anew_view_checks

SAME_MACHINE, OTHER_MACHINE = 1e-4, 1e-2  # of a map's largest value: float32 by fused and by plain kernels, on one class of device and on another
HALF = 2.0**-11  # rounding to float16, as a share of a number
REDUCED = 2e-2  # of the largest feature, where the network ran in bf16 or fp16
PROBABILITY = 0.005  # as the tolerance of verify
AREA = 1e-4
STEPS, PICTURES = 10, 8  # of deletion and insertion
CHECKED = 2  # pictures of deletion where all would take too long
MOST_WORK = 1e12  # parameters x patches of 16 x 16 pixels x forward passes: some 20 seconds on two cores
BATCH = 8


@dataclass(frozen=True)
class _Anew:
    """A run's model with its pictures. near: tolerance of maps as a share of the largest value."""

    kept: Kept
    module: nn.Module
    runtime: Runtime
    seen: maps.Seen
    probabilities: NDArray[np.float64]
    near: float

    @property
    def targets(self) -> list[int]:
        """The class that is explained: the label, the predicted one where nobody knows it."""
        C = self.probabilities.shape[1]
        return [label if 0 <= label < C else int(row.argmax()) for label, row in zip(self.seen.labels, self.probabilities, strict=True)]

    @property
    def inputs(self) -> Tensor:
        return self.seen.inputs.to(self.runtime.device)


def anew_checks(kept: Kept, dataset: Dataset, module: nn.Module, runtime: Runtime, progress: Told | None = None) -> list[Line]:
    """All checks that need the model and the data. module: with its final weights, in eval mode, on the device."""
    told: Told = progress or (lambda what, done, of: None)
    run, inside = kept.run, kept.inside
    if inside.split not in dataset.splits:
        return []  # told with the data
    now, then = describe(runtime), run.environment
    if kept.recipe.masked:
        module = maps.ScoresOfPixels(module)
    near = SAME_MACHINE if all(now[key] == then.get(key) for key in DECIDES_BITS) else OTHER_MACHINE
    lines = guarded("inside probe", lambda: _probe(kept, dataset))
    lines += guarded("inside features", lambda: _features(kept, dataset, module, runtime, near))
    lines += guarded("inside neighbours", lambda: anew_view_checks(kept, dataset, module, runtime, near))
    made: list[_Anew] = []

    def read() -> list[Line]:
        seen = maps.read_pictures(kept.recipe, inside, dataset, run.data.mean, run.data.std)
        made.append(_Anew(kept, module, runtime, seen, _probabilities(module, seen.inputs, runtime), near))
        return [_pictures(made[0])]

    lines += guarded("inside pictures", read)
    if not made or not kept.n or [image.file for image in kept.findings.images] != made[0].seen.names:
        return lines
    lines += guarded("inside masks", lambda: [_masks(made[0])])
    lines += guarded("inside methods", lambda: [_methods(made[0])])
    told("verifying maps", 0, 2)
    lines += guarded("inside maps anew", lambda: _maps(made[0], module, "maps"))
    lines += guarded("inside attention of patches", lambda: anew_attention_checks(kept, module, made[0].inputs, near))
    told("verifying maps", 1, 2)
    stranger = maps.with_random_weights(module, kept.recipe.seed)
    lines += guarded("inside maps of random weights", lambda: _maps(made[0], stranger, "random"))
    lines += guarded("inside last snapshot", lambda: _last_snapshot(made[0]))
    if not kept.masked:
        lines += guarded("inside deletion", lambda: _deletion(made[0], told))
    return lines


# ── pictures and masks ────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def _probabilities(module: nn.Module, inputs: Tensor, runtime: Runtime) -> NDArray[np.float64]:
    """(n, C), as training's last look at the pictures computed them."""
    found = []
    for part in inputs.split(BATCH) if len(inputs) else ():
        with runtime.autocast():
            found.append(module(part.to(runtime.device)).float().cpu().double().softmax(dim=1))
    return torch.cat(found).numpy() if found else np.empty((0, 1))


def _pictures(a: _Anew) -> Line:
    """Each picture that the recipe asks for is there, with what the model says of it."""
    images, seen, classes = a.kept.findings.images, a.seen, a.kept.run.data.classes
    names = [image.file for image in images]
    faults = [f"{name} is missing" for name in seen.names if name not in names] + [f"{name} was not asked for" for name in names if name not in seen.names]
    if not faults and names != seen.names:
        faults.append("they are not in the order of the recipe and the split")
    if faults:
        return line("inside pictures", faults, "")
    for i, image in enumerate(images):
        if image.size != seen.sizes[i] or max(abs(x - y) for x, y in zip(image.view, seen.boxes[i], strict=True)) > 1e-6:
            faults.append(f"{image.file}: size and view are {image.size} and {image.view}, found {seen.sizes[i]} and {seen.boxes[i]}")
        wanted = classes[seen.labels[i]] if seen.labels[i] >= 0 else None
        faults += [f"{image.file}: its label is {image.label}, in the data {wanted}"] if image.label != wanted else []
        if not a.kept.recipe.masked:
            faults += _said(image, a.probabilities[i], classes)
        elif image.prediction is not None or image.confidence is not None:
            faults.append(f"{image.file}: a segmenter predicts no class of an image, found {image.prediction}")
    return line("inside pictures", faults, f"{len(images)} pictures, their labels and predictions")


def _said(image: ImageFinding, probabilities: NDArray[np.float64], classes: list[str]) -> list[str]:
    if image.prediction not in classes or image.confidence is None:
        return [f"{image.file}: the prediction {image.prediction} is no class"]
    said, best = classes.index(image.prediction), int(probabilities.argmax())
    faults = []
    if probabilities[best] - probabilities[said] > PROBABILITY:
        faults.append(f"{image.file}: predicted {image.prediction}, recomputed {classes[best]}")
    if not abs(image.confidence - probabilities[said]) <= PROBABILITY:
        faults.append(f"{image.file}: confidence {rounded(image.confidence)}, recomputed {rounded(float(probabilities[said]))}")
    return faults


def _masks(a: _Anew) -> Line:
    """Targets on every grid, from the masks."""
    if all(mask is None for mask in a.seen.masks):
        return line("inside masks", ["there are targets and no mask to take them from"] if a.kept.masked else [], "no picture has a mask")
    faults = []
    for grid in dict.fromkeys(kind.grid for kind in a.kept.findings.maps):
        if f"target/{grid[0]}x{grid[1]}" not in a.kept.arrays:
            faults.append(f"targets on {grid[0]} x {grid[1]} patches are missing")
            continue
        for i, (target, valid) in enumerate(zip(*a.kept.masks(grid), strict=True)):
            wanted = scores.target_of(a.seen.masks[i], grid)
            if not (np.array_equal(target, wanted[0]) and np.array_equal(valid, wanted[1])):
                faults.append(f"{a.seen.names[i]}: its target on {grid[0]} x {grid[1]} patches is not that of its mask")
    return line("inside masks", faults, f"targets of {len(a.seen.names)} pictures recomputed from their masks")


def _methods(a: _Anew) -> Line:
    """Each map that the model has, where the recipe leaves the choice."""
    there = [kind.method for kind in a.kept.findings.maps]
    wanted = a.kept.inside.methods or (["grad_cam"] if a.kept.recipe.masked else fitting(a.module, a.inputs[:1])[0])
    return line("inside methods", [f"{method} is missing" for method in wanted if method not in there], f"the model has {', '.join(there)}")


# ── maps ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _maps(a: _Anew, module: nn.Module, key: str) -> list[Line]:
    """Every kind of map of a model, compared with the arrays maps/<method> or random/<method>."""
    kinds = {kind.method: kind for kind in a.kept.findings.maps}
    plain = maps.plainly(module, a.inputs, a.targets, kinds)
    found = [_map(a, module, plain, kind, key) for kind in kinds.values()]
    return [*found, *_attention(a, plain, kinds["attention"])] if key == "maps" and "attention" in kinds else found


def _map(a: _Anew, module: nn.Module, plain: maps.Plain, kind: MapKind, key: str) -> Line:
    what = f"inside {'' if key == 'maps' else 'random weights, '}{kind.method}"
    stored = wide(a.kept.maps(f"{key}/{kind.method}", kind.grid))
    if kind.method in plain.maps:
        wanted, slack, path = plain.maps[kind.method], plain.slack[kind.method], "written out without fused kernels"
        path = "from the output of its layer and its gradient" if kind.method == "grad_cam" else path
    else:
        wanted, path = _by_the_recorder(a, module, kind), "by the recorder itself, as its attention has no plain form here"
        slack = np.zeros(len(wanted))
    if key == "random" and not stored.any() and any(note.startswith(f"{kind.method} of random weights") for note in a.kept.findings.notes):
        return line(what, [], "a model with random weights has none, as the notes say")
    if wanted.shape != stored.shape:
        return line(what, [f"maps {stored.shape}, recomputed {wanted.shape}"], "")
    largest = np.maximum(wanted.max(axis=(1, 2)), stored.max(axis=(1, 2)))
    differences = np.abs(wanted - stored).max(axis=(1, 2))
    bad = np.flatnonzero(~(differences <= a.near * largest + slack))
    faults = [f"{a.seen.names[i]}: differs by {differences[i] / max(largest[i], 1e-300):.2g} of its largest value" for i in bad]
    worst = float((differences / np.maximum(largest, 1e-300)).max(initial=0.0))
    return line(what, faults, f"{len(stored)} maps recomputed {path}: largest difference {worst:.1g} of a map's largest value, allowed {a.near:g}")


def _by_the_recorder(a: _Anew, module: nn.Module, kind: MapKind) -> NDArray[np.float64]:
    layer = kind.layer if kind.method == "attention" else None
    try:
        return wide(maps_of(kind.method, module, a.inputs, targets=torch.tensor(a.targets), layer=layer, batch_size=BATCH).values)
    except UsageError:
        return np.zeros((a.kept.n, *kind.grid))


def _attention(a: _Anew, plain: maps.Plain, kind: MapKind) -> list[Line]:
    """What stands beside the attention map: its layer is the last one, every head, the share on prefix tokens, outlying norms."""
    if "attention" not in plain.maps:
        return []
    faults = [f"its layer is {kind.layer}, the last one is {plain.last}"] if plain.last != kind.layer else []
    heads = a.kept.arrays.get(f"heads/{kind.layer}")
    assert plain.heads is not None
    if heads is None or heads.shape != plain.heads.shape:
        faults.append(f"heads/{kind.layer} is missing or of another shape")
    elif not np.abs(wide(heads) - plain.heads).max() <= a.near * float(plain.heads.max()):
        faults.append("its heads differ")
    for method, shares in plain.shares.items():
        for image, share in zip(a.kept.findings.images, shares, strict=True):
            said = image.artefacts.get(method, {}).get("prefix_share", math.nan)
            faults += [] if abs(said - share) <= a.near else [f"{image.file}: prefix_share of {method} reported {rounded(said)}, recomputed {rounded(share)}"]
    for image, bounds in zip(a.kept.findings.images, plain.outliers if plain.outliers is not None else [], strict=False):
        told = image.artefacts.get("attention", {}).get("norm_outliers", math.nan)
        if not bounds[0] - 1e-9 <= told <= bounds[1] + 1e-9:
            faults.append(f"{image.file}: norm_outliers reported {rounded(told)}, recomputed {rounded(float(bounds[0]))}")
    return [line("inside attention's own numbers", faults, "its layer, heads, shares on prefix tokens and outlying norms recomputed")]


# ── deletion and insertion ────────────────────────────────────────────────────────────────────────────────────


def _deletion(a: _Anew, told: Told) -> list[Line]:
    """All areas and those of their baselines where the model is small; else those of a few pictures."""
    kinds = a.kept.findings.maps
    n = min(a.kept.n, PICTURES)
    passes = n * 2 * (STEPS + 1) * (2 * len(kinds) + 8)
    work = sum(p.numel() for p in a.module.parameters()) * a.inputs.shape[-1] * a.inputs.shape[-2] / 256 * passes
    whole, lines = work <= MOST_WORK, []
    names = [image.file for image in a.kept.findings.images]
    priors: dict[tuple[int, int], dict[str, dict[str, NDArray[np.float64]]]] = {}
    for i, kind in enumerate(kinds):
        told("verifying deletion", i, len(kinds))
        own = _areas(a, wide(a.kept.arrays[f"maps/{kind.method}"]), n if whole else min(n, CHECKED))
        if whole and kind.grid not in priors:
            both = {"uniform": np.ones(kind.grid), "centre": scores.centre(kind.grid)}
            priors[kind.grid] = {name: _areas(a, np.broadcast_to(prior, (n, *kind.grid)), n) for name, prior in both.items()}
        rivals = {**priors[kind.grid], "random model": _areas(a, wide(a.kept.arrays[f"random/{kind.method}"]), n)} if whole else {}
        for measure in scores.AREAS:
            if whole:
                others = {name: rival[measure] for name, rival in rivals.items()}
                lines += score_lines(a.kept, kind.method, measure, own[measure], others, AREA, "the model without its patches")
                continue
            stored = wide(a.kept.arrays[f"scores/{kind.method}/{measure}"])
            faults = [f"{names[j]}: {rounded(stored[j])}, recomputed {rounded(own[measure][j])}"
                      for j in range(min(n, CHECKED)) if not abs(stored[j] - own[measure][j]) <= AREA]  # fmt: skip
            fine = f"the first {min(n, CHECKED)} of {n} pictures recomputed; all, and the baselines, would take too long for this model"
            lines.append(line(f"inside {measure}[{kind.method}]", faults, fine))
    return lines


def _areas(a: _Anew, relevance: NDArray[np.float64], count: int) -> dict[str, NDArray[np.float64]]:
    """{"deletion", "insertion"}: (n,), NaN behind the first `count` pictures."""
    rows = [scores.areas(a.module, a.inputs[i : i + 1], relevance[i], a.targets[i], most_steps=STEPS) for i in range(count)]
    return {name: np.array([row[name] for row in rows] + [math.nan] * (a.kept.n - count)) for name in scores.AREAS}


# ── snapshots ─────────────────────────────────────────────────────────────────────────────────────────────────


def _probe(kept: Kept, dataset: Dataset) -> list[Line]:
    """The probe is the images of the split that the recipe asks for."""
    probe, labels = kept.run.probe(), dataset.splits[kept.inside.split].labels
    rows = maps.chosen_rows(labels, kept.inside.features)
    faults = [f"split {probe.split}"] if probe.split != kept.inside.split else []
    faults += ["its rows are not those that the recipe asks for"] if probe.rows.tolist() != rows else []
    faults += ["its labels are not those of the data"] if not faults and not np.array_equal(probe.labels, labels[rows]) else []
    return [line("inside probe", faults, f"{len(rows)} images of {probe.split} and their labels")]


def reported_epoch(run: Run) -> int:
    """The epoch of the final weights."""
    best = re.match(r"epoch (\d+), the best", run.record.selected)
    return int(best[1]) if best else run.record.epoch


def epoch_of_final_weights(run: Run, recipe: Recipe) -> int | None:
    """The epoch of the snapshot that the reported weights made; None where there is none."""
    epochs = [epoch for epoch in expected_epochs(run, recipe) if epoch in run.snapshot_epochs]
    return epochs[-1] if epochs and epochs[-1] == reported_epoch(run) else None


def _features(kept: Kept, dataset: Dataset, module: nn.Module, runtime: Runtime, near: float) -> list[Line]:
    """The features of the last snapshot, where it is of the final weights."""
    epoch, probe, run = epoch_of_final_weights(kept.run, kept.recipe), kept.run.probe(), kept.run
    stored = run.snapshot(epoch).features if epoch is not None else None
    if epoch is None or stored is None:
        return [("inside features", True, "no snapshot is of the final weights: features are not recomputed")] if len(probe.rows) else []
    split, rows = dataset.splits[probe.split], probe.rows.tolist()
    found = maps.features(module, run, split, rows, runtime, run.record.evaluation_batch_size)
    if found.shape != stored.shape:
        return [line("inside features", [f"features {stored.shape} at epoch {epoch}, recomputed {found.shape}"], "")]
    share = max(near, 0.0 if runtime.precision == "fp32" else REDUCED)
    largest = float(np.abs(found).max(initial=0.0))
    away = np.abs(stored.astype(np.float64) - found)
    bad = np.flatnonzero((~(away <= HALF * np.abs(found) + share * largest)).any(axis=1))
    faults = [f"{split.names[rows[i]]}: differs by {away[i].max() / largest:.2g} of the largest feature" for i in bad]
    worst = away.max() / max(largest, 1e-300)
    fine = f"{len(rows)} x {found.shape[1]} of epoch {epoch} recomputed: largest difference {worst:.1g} of the largest, which float16 rounds"
    return [line("inside features", faults, fine)]


def _last_snapshot(a: _Anew) -> list[Line]:
    """The maps of the last snapshot are those of the final weights, where it is of them."""
    epoch = epoch_of_final_weights(a.kept.run, a.kept.recipe)
    if epoch is None:
        return []
    snapshot, faults = a.kept.run.snapshot(epoch), []
    methods = [kind.method for kind in a.kept.findings.maps if kind.method in snapshot.maps]
    for method in methods:
        found, wanted = snapshot.maps[method], a.kept.arrays[f"maps/{method}"]
        if found.shape != wanted.shape or not np.abs(wide(found) - wide(wanted)).max() <= a.near * float(wide(wanted).max()):
            faults.append(f"maps of {method} at epoch {epoch} are not those of the final weights")
    return [line("inside last snapshot", faults, f"maps of epoch {epoch} are those of the final weights")] if methods else []
