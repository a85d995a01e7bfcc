"""Looking at pictures with a model: their maps, the measures beside each, the baselines, what is wrong with a map. Tensors in, findings and arrays out.

Where pictures have a mask, maps are scored against it; where none has, by deletion and insertion. Beside every score stand those of a uniform map,
of a centre prior, of the masks of other pictures and of the same model with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

import pellucid
from pellucid.attention_findings import KeptAttention
from pellucid.errors import UsageError
from pellucid.findings import Findings, ImageFinding, MapKind, PositionsFinding, Score
from pellucid.inside.artefacts import artefacts, flags
from pellucid.inside.deletion import masked_areas, masked_baselines, randomised, score_deletion, score_randomisation
from pellucid.inside.faithfulness import PatchTarget, patch_target, rank_correlation, score_maps
from pellucid.inside.positions import position_similarity
from pellucid.inside.survey import BATCH, Mapped, device_of, fitting, heads_of, maps_of
from pellucid.inside.whole_attention import whole_attention

DELETION_STEPS = 10
DELETION_IMAGES = 12  # those that a report shows; a map of one picture takes some 20 forward passes
LARGEST_POSITIONS = 32  # patches across: beyond, the similarities of all positions take more than 4 MB and are left out of the arrays

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pictures:
    """n pictures: names, (height, width) of the photographs, view boxes (top, left, height, width) in their pixels, what the model sees of them.

    views: (n, H, W, 3) uint8. masks: (H, W) uint8 of the view, 1 target, 0 not, 255 neither, None where there is none. labels: (n,) int64, -1 where unknown.
    """

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    views: np.ndarray
    masks: tuple[np.ndarray | None, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Found:
    """Findings with their arrays, as `findings` describes them, and the attention of all patches, as `attention_findings` does."""

    findings: Findings
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    attention: KeptAttention | None = None


def look(
    model: nn.Module,
    inputs: Tensor,
    pictures: Pictures,
    *,
    name: str,
    weights: str,
    classes: Sequence[str] | None,
    probabilities: np.ndarray | None,
    methods: Sequence[str] | None = None,
    layer: str | None = None,
    deletion: bool = True,
    attention: bool = True,
    split: str,
    seed: int,
    batch_size: int = BATCH,
    progress: Told | None = None,
) -> Found:
    """Everything about n pictures.

    inputs: (n, 3, H, W) normalised, on any device: batches of them go to the model's. probabilities: (n, C) of the model, None where it has no classifier.
    methods: None for those that fit; UsageError for a wanted one that does not. layer: of attention and grad_cam, instead of their own choice. The
    class that is explained is a picture's label where it is known, else the predicted one. attention: whether that of all patches is kept too.
    """
    told: Told = progress or (lambda what, done, of: None)
    findings = Findings(pellucid.__version__, name, weights, classes=list(classes or []))
    found = Found(findings)
    targets = _explained(pictures, probabilities)
    chosen, left_out = fitting(model, inputs[:1], methods)
    findings.notes += left_out
    stranger = randomised(model, seed)
    mapped: dict[str, Mapped] = {}
    random: dict[str, Mapped] = {}
    for i, method in enumerate(chosen):
        told("maps", i, len(chosen))
        at = layer if method in ("attention", "grad_cam") else None
        mapped[method] = maps_of(method, model, inputs, targets=targets, layer=at, batch_size=batch_size)
        random[method] = _of_random_weights(method, stranger, inputs, targets, mapped[method], batch_size, findings.notes)
        findings.maps.append(MapKind(method, mapped[method].layer, _grid(mapped[method]), mapped[method].how))
        found.arrays[f"maps/{method}"], found.arrays[f"random/{method}"] = mapped[method].values, random[method].values
        if empty := int((mapped[method].values.sum((1, 2)) == 0).sum()):
            findings.notes.append(f"{method}: {empty} of {len(pictures)} maps are 0 throughout, nothing speaks for the class: drawn empty, counted as uniform")
        silent = int((random[method].values.sum((1, 2)) == 0).sum())
        if silent:
            findings.notes.append(f"{method}: {silent} of {len(pictures)} maps of random weights are 0 throughout: counted as uniform, and in no correlation")
    told("maps", len(chosen), len(chosen))
    own = _scores(found, model, inputs, pictures, targets, mapped, random, split=split, seed=seed, deletion=deletion, batch_size=batch_size, told=told)
    for key, values in own.items():
        found.arrays[f"scores/{key[0]}/{key[1]}"] = values
    findings.images = [_image(i, pictures, mapped, own, classes, probabilities) for i in range(len(pictures))]
    _add_heads(found, model, inputs, batch_size)
    _add_positions(found, model, inputs)
    if attention and len(inputs):
        found.attention, why = whole_attention(model, inputs, progress=told)
        findings.notes += why
    return found


def _explained(pictures: Pictures, probabilities: np.ndarray | None) -> Tensor | None:
    """(n,) int64 on the CPU: labels where they are known and the model has that class, else predictions."""
    if probabilities is None:
        return None
    known = (pictures.labels >= 0) & (pictures.labels < probabilities.shape[1])
    return torch.from_numpy(np.where(known, pictures.labels, probabilities.argmax(1)).astype(np.int64))


def _of_random_weights(method: str, stranger: nn.Module, inputs: Tensor, targets: Tensor | None, own: Mapped, batch_size: int, notes: list[str]) -> Mapped:
    """The maps of the model with random weights, from the same layer; maps without mass where it has none."""
    named = own.layer if method in ("attention", "grad_cam") and own.layer != "all layers" else None
    try:
        return maps_of(method, stranger, inputs, targets=targets, layer=named, batch_size=batch_size)
    except UsageError as error:
        notes.append(f"{method} of random weights: {error}; counted as a map without mass")
        return replace(own, values=np.zeros_like(own.values), prefix_share=None, norms=None)


def _grid(mapped: Mapped) -> tuple[int, int]:
    return mapped.values.shape[1], mapped.values.shape[2]


def _scores(
    found: Found, model: nn.Module, inputs: Tensor, pictures: Pictures, targets: Tensor | None, mapped: dict[str, Mapped], random: dict[str, Mapped],
    *, split: str, seed: int, deletion: bool, batch_size: int, told: Told,
) -> dict[tuple[str, str], np.ndarray]:  # fmt: skip
    """{(method, measure): (n,)} and the scores of the set, into the findings."""
    own: dict[tuple[str, str], np.ndarray] = {}
    masked = any(mask is not None for mask in pictures.masks)
    for method, maps in mapped.items():
        if masked:
            where = _targets(found, pictures, _grid(maps))
            scores, values = score_maps(method, maps.values, where, random_maps=random[method].values, split=split, seed=seed)
            found.findings.scores += scores
            own |= {(method, measure): x for measure, x in values.items()}
    if not masked and deletion and targets is not None:
        own |= _deletion(found, model, inputs, targets, mapped, random, split=split, seed=seed, batch_size=batch_size, told=told)
    for method, maps in mapped.items():
        likeness = rank_correlation(maps.values, random[method].values)
        found.findings.scores += score_randomisation(method, likeness, split=split, seed=seed)
        own[method, "randomisation"] = likeness
    return own


def _targets(found: Found, pictures: Pictures, grid: tuple[int, int]) -> list[PatchTarget]:
    """The masks on a grid; kept among the arrays. A picture without a mask has no target."""
    nothing = PatchTarget(np.zeros(grid, bool), np.ones(grid, bool), np.zeros(grid))
    targets = [nothing if mask is None else patch_target(mask, grid) for mask in pictures.masks]
    key = f"{grid[0]}x{grid[1]}"
    found.arrays[f"target/{key}"] = np.stack([t.target for t in targets])
    found.arrays[f"valid/{key}"] = np.stack([t.valid for t in targets])
    return targets


def epoch_scores(found: Found, kind: MapKind, epoch: int, *, split: str, seed: int) -> list[Score]:
    """The scores of a snapshot's maps, which stand among the arrays, as those of the final weights; each picture's go to the arrays."""
    maps, stranger = found.arrays[f"maps/{kind.method}/{epoch}"], found.arrays[f"random/{kind.method}"]
    name, key = f"{kind.method}, epoch {epoch}", f"{kind.grid[0]}x{kind.grid[1]}"
    scores: list[Score] = []
    values: dict[str, np.ndarray] = {}
    if f"target/{key}" in found.arrays:
        pairs = zip(found.arrays[f"target/{key}"], found.arrays[f"valid/{key}"], strict=True)
        targets = [PatchTarget(target, valid, target.astype(np.float64)) for target, valid in pairs]
        scores, values = score_maps(name, maps, targets, random_maps=stranger, split=split, seed=seed)
    values["randomisation"] = rank_correlation(maps, stranger)
    scores += score_randomisation(name, values["randomisation"], split=split, seed=seed)
    found.arrays |= {f"scores/{kind.method}/{measure}/{epoch}": x for measure, x in values.items()}
    return [replace(score, method=kind.method) for score in scores]


def _deletion(
    found: Found, model: nn.Module, inputs: Tensor, targets: Tensor, mapped: dict[str, Mapped], random: dict[str, Mapped],
    *, split: str, seed: int, batch_size: int, told: Told,
) -> dict[tuple[str, str], np.ndarray]:  # fmt: skip
    """Deletion and insertion of the first pictures, for every method."""
    n = min(len(inputs), DELETION_IMAGES)
    if n < len(inputs):
        found.findings.notes.append(f"deletion and insertion are of the first {n} pictures")
    device = device_of(model)
    images, classes = inputs[:n].to(device), targets[:n].to(device)
    own, priors = {}, {}
    for i, (method, maps) in enumerate(mapped.items()):
        told("deletion and insertion", i, len(mapped))
        steps = min(DELETION_STEPS, math.prod(_grid(maps)))
        if _grid(maps) not in priors:
            priors[_grid(maps)] = masked_baselines(model, images, _grid(maps), classes, steps=steps, batch_size=batch_size)
        areas = masked_areas(model, images, maps.values[:n], classes, steps=steps, batch_size=batch_size)
        stranger = masked_areas(model, images, random[method].values[:n], classes, steps=steps, batch_size=batch_size)
        found.findings.scores += score_deletion(method, areas, {**priors[_grid(maps)], "random model": stranger}, split=split, seed=seed)
        for measure, values in areas.items():
            own[method, measure] = np.concatenate([values, np.full(len(inputs) - n, math.nan)])
    told("deletion and insertion", len(mapped), len(mapped))
    return own


def _image(
    i: int,
    pictures: Pictures,
    mapped: dict[str, Mapped],
    own: dict[tuple[str, str], np.ndarray],
    classes: Sequence[str] | None,
    probabilities: np.ndarray | None,
) -> ImageFinding:
    scores: dict[str, dict[str, float]] = {}
    for (method, measure), values in own.items():
        if math.isfinite(values[i]):
            scores.setdefault(method, {})[measure] = float(values[i])
    wrong = {
        method: artefacts(
            maps.values[i],
            prefix_share=None if maps.prefix_share is None else float(maps.prefix_share[i]),
            patch_norms=None if maps.norms is None else maps.norms[i],
        )
        for method, maps in mapped.items()
    }
    named = (lambda c: classes[c] if classes and c < len(classes) else f"class {c}") if probabilities is not None or classes else None
    label, best = int(pictures.labels[i]), None if probabilities is None else int(probabilities[i].argmax())
    return ImageFinding(
        pictures.names[i], pictures.sizes[i], pictures.boxes[i],
        named(label) if named is not None and label >= 0 else None,
        named(best) if named is not None and best is not None else None,
        None if probabilities is None or best is None else float(probabilities[i, best]),
        scores, wrong, [f"{method}: {sentence}" for method, a in wrong.items() for sentence in flags(a, patches=math.prod(_grid(mapped[method])))],
    )  # fmt: skip


def _add_heads(found: Found, model: nn.Module, inputs: Tensor, batch_size: int) -> None:
    """Every head of the last layer, where there is an attention map."""
    kind = next((kind for kind in found.findings.maps if kind.method == "attention"), None)
    if kind is None:
        return
    device = device_of(model)
    parts = [heads_of(model, inputs[start : start + batch_size].to(device), layer=kind.layer)[0][-1] for start in range(0, len(inputs), batch_size)]
    found.arrays[f"heads/{kind.layer}"] = np.concatenate(parts)


def _add_positions(found: Found, model: nn.Module, inputs: Tensor) -> None:
    try:
        seen = position_similarity(model)
    except UsageError as error:
        found.findings.notes.append(f"position embeddings: {error}")
        return
    grid = seen.grid if seen.similarity is not None else None
    if seen.similarity is not None and grid is not None and max(grid) <= LARGEST_POSITIONS:
        found.arrays["positions"] = seen.similarity
    elif grid is not None:
        found.findings.notes.append(f"position embeddings on {grid[0]} x {grid[1]} are too many to keep; inside.position_similarity gives them")
        grid = None
    found.arrays |= {f"bias/{path}": table for path, table in seen.bias.items()}
    found.findings.positions = PositionsFinding(seen.kind, seen.how, grid)
