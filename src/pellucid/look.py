"""`pellucid inside`: a model or a run, photographs -> a folder of figures, arrays and findings; and the same for a run while and after it trains.

The folder is that of `pellucid.findings`: findings.json, arrays.npz, images/, and figures as PNG, SVG and PDF. Looking itself is in `inside`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import PIL.Image
import torch
from torch import nn

import pellucid
from pellucid.attention_findings import ATTENTION, ATTENTION_ARRAYS
from pellucid.data.images import decode, image_files, view_box
from pellucid.data.masks import marked_values, one_sided, read_mask
from pellucid.errors import DataError, MissingError, PellucidError, UsageError, did_you_mean
from pellucid.files import bytes_hash, replacing
from pellucid.findings import ARRAYS, IMAGES, EpochScores, Findings, Score, load_findings
from pellucid.inside.deletion import randomised
from pellucid.inside.faithfulness import PatchTarget, centre_prior, mass
from pellucid.inside.looking import Found, Pictures, epoch_scores, look
from pellucid.inside.pixel_scores import HOW, PixelScores, backbone_layer
from pellucid.inside.projection import project
from pellucid.inside.survey import BATCH, USUAL, device_of, fitting, maps_of
from pellucid.recipe import Recipe
from pellucid.run import rounded
from pellucid.runtime import out_of_memory
from pellucid.subjects import Subject, subject

if TYPE_CHECKING:
    from pellucid.prepare import Training

Told = Callable[[str, int, int], None]
FITS: dict[str, tuple[Literal["last", "each"], ...]] = {"pca": ("last", "each"), "tsne": ("each",)}
CLASSLESS = ("attention", "rollout")  # maps that need no class
KEPT_SIDE = 640  # pixels of the longer side of a picture that is kept for the report
DRAWN_IN_A_RUN = 3  # pictures of a run that get figures of their own, 4 seconds each; all of them are in the arrays and the numbers


def look_into(
    target: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    layer: str | None = None,
    masks: str | Path | None = None,
    mask_target: Sequence[int] | None = None,
    mask_ignore: Sequence[int] = (),
    explained: str | None = None,
    deletion: bool = True,
    device: str = "auto",
    progress: Told | None = None,
) -> Findings:
    """Look at photographs with a model or a run and write what was found into the folder `out`.

    target, overrides: as `subjects.subject` takes them. images: files and folders. masks: a folder with <stem>.png for each photograph, or one file for a
    single photograph; mask_target: its values that are the target (default: all above 0), mask_ignore: values that count neither way. explained: of a
    segmentation run, the class whose maps are drawn; default: the largest of the mask of a known photograph, else the class with the highest score.
    Nothing is written before everything was read.
    """
    files = [file for entry in images for file in image_files(entry)]
    if not files:
        raise UsageError("expected at least one photograph")
    chosen = subject(target, overrides, device=device)
    if chosen.run is not None and chosen.run.recipe.captioned:
        raise UsageError(f"{chosen.run.path} says captions and names no class: pellucid.look_words.look_into_words shows where it looked for each word")
    if chosen.run is not None and chosen.run.recipe.task == "pretraining":
        methods, deletion = _without_classes(chosen, methods), False
    photos = [decode(file.read_bytes(), str(file)) for file in files]
    sizes = tuple((photo.height, photo.width) for photo in photos)
    found_masks = _masks(files, sizes, masks, mask_target, mask_ignore)
    views = np.stack([chosen.view(photo) for photo in photos])
    viewed = tuple(None if mask is None else chosen.view_mask(mask) for mask in found_masks)
    labels = _labels(chosen, files) if explained is None else np.full(len(files), _class_of(chosen, explained), np.int64)
    pictures = Pictures(tuple(str(file) for file in files), sizes, tuple(chosen.view_box(size) for size in sizes), views, viewed, labels)
    inputs = chosen.inputs(list(views))
    if chosen.run is not None and chosen.run.recipe.masked:
        methods, layer = methods or map_methods(chosen.run.recipe), layer or map_layer(chosen.module, inputs, chosen.backbone)
    found = look(
        chosen.module, inputs, pictures, name=chosen.name, weights=chosen.weights, classes=chosen.classes, probabilities=_probabilities(chosen, inputs),
        methods=methods, layer=layer, deletion=deletion, split="photographs", seed=chosen.run.recipe.seed if chosen.run else 0, progress=progress,
    )  # fmt: skip
    if chosen.run is not None and chosen.run.recipe.masked:
        without_prediction(found, layer)
    found.findings.notes = [*chosen.notes, *found.findings.notes]
    folder = Path(out)
    write(found, folder, [np.asarray(photo) for photo in photos])
    draw(found, folder, [np.asarray(photo) for photo in photos], most=len(photos), progress=progress)
    return found.findings


def _without_classes(chosen: Subject, methods: Sequence[str] | None) -> list[str]:
    """The maps of a pre-trained backbone, which names no class: those of attention. UsageError where it has none, or another map is wanted."""
    assert chosen.run is not None
    remedy = (
        f"{chosen.run.path}: a pre-trained backbone names no class, and every map but attention and rollout asks what a model saw of one. Train a "
        f"classification that starts from it (model.weights: {chosen.run.backbone_weights}) and look into that; `inside: {{features: 500}}` in the recipe "
        "keeps projections of the features while they are learned"
    )
    if wanted := [method for method in methods or () if method not in CLASSLESS]:
        raise UsageError(f"--map {wanted[0]}: {remedy}")
    try:
        fitting(chosen.module, chosen.inputs([np.zeros((*chosen.size, 3), np.uint8)]), methods or CLASSLESS)
    except UsageError:
        raise UsageError(f"{remedy}; {chosen.name} has no attention that could be shown") from None
    return list(methods or CLASSLESS)


def _masks(
    files: list[Path], sizes: Sequence[tuple[int, int]], masks: str | Path | None, target: Sequence[int] | None, ignore: Sequence[int]
) -> list[np.ndarray | None]:  # fmt: skip
    """(h, w) uint8 of each photograph: 1 target, 0 not, 255 neither; None without masks."""
    if masks is None:
        if target is not None or ignore:
            raise UsageError("--mask-target and --mask-ignore need --masks, the folder of masks")
        return [None] * len(files)
    folder = Path(masks)
    if folder.is_file() and len(files) == 1:
        places = [folder]
    elif folder.is_dir():
        places = [folder / f"{file.stem}.png" for file in files]
    else:
        raise MissingError(f"{folder}: expected a folder with <name>.png for each photograph" + (", or one file for one photograph" if len(files) == 1 else ""))
    missing = [str(place) for place in places if not place.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(files)} photographs have no mask: {', '.join(missing[:5])}. Name it as the photograph, with .png.")
    marked = [marked_values(read_mask(place, size), target, ignore) for place, size in zip(places, sizes, strict=True)]
    if fault := one_sided(marked):
        raise DataError(f"{folder}: {fault}; give the values that mark the target with --mask-target, those that count neither way with --mask-ignore")
    return list(marked)


def _class_of(chosen: Subject, name: str) -> int:
    """The index of a class of a segmentation run."""
    if chosen.run is None or not chosen.run.recipe.masked or chosen.classes is None:
        raise UsageError("--class chooses the class whose maps are drawn for a segmentation run; elsewhere it is the label, or the predicted class")
    if name not in chosen.classes:
        raise UsageError(f"--class: the run has no class {name!r}.{did_you_mean(name, chosen.classes)} Known: {', '.join(chosen.classes[:20])}.")
    return chosen.classes.index(name)


def _labels(chosen: Subject, files: Sequence[Path]) -> np.ndarray:
    """(n,) int64 labels of photographs that a run knows by their content; -1 for others."""
    known: dict[str, int] = {}
    if chosen.run is not None and chosen.run.has_data:
        for split in chosen.run.data.splits:
            known |= {content.partition("+")[0]: label for _, label, content in chosen.run.samples(split)}  # behind +: that of a mask
    return np.array([known.get(bytes_hash(file.read_bytes()), -1) if known else -1 for file in files], np.int64)


def _probabilities(chosen: Subject, inputs: torch.Tensor, batch_size: int = 8) -> np.ndarray | None:
    parts = [chosen.predict(part) for part in inputs.split(batch_size)]
    return None if any(part is None for part in parts) else torch.cat([p for p in parts if p is not None]).numpy()


# ── the folder ────────────────────────────────────────────────────────────────────────────────────────────────


def write(found: Found, folder: Path, photos: Sequence[np.ndarray]) -> list[Path]:
    """Arrays, pictures and findings; the findings last, so that a folder with findings is whole. Returns the two files that say what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IMAGES).mkdir(exist_ok=True)
    for i, photo in enumerate(photos):
        small = PIL.Image.fromarray(photo)
        small.thumbnail((KEPT_SIDE, KEPT_SIDE))
        small.save(folder / IMAGES / f"{i}.webp", quality=85)
    for old in (folder / ATTENTION, folder / ATTENTION_ARRAYS):
        old.unlink(missing_ok=True)  # of a folder that is written again
    if found.attention is not None:
        found.attention.findings.save(folder, found.attention.arrays)
    with replacing(folder / ARRAYS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **found.arrays)  # type: ignore[arg-type]
    return [folder / ARRAYS, found.findings.save(folder)]


def draw(found: Found, folder: Path, photos: Sequence[np.ndarray], *, most: int, progress: Told | None = None) -> list[Path]:
    """Figures of the first `most` pictures, of scores, positions and projections.

    For each picture: a sheet with all maps and their measures, every head of the last layer, the first map over the epochs that were kept, and each map over
    the photograph at the photograph's own resolution as a plain PNG.
    """
    from pellucid import figures  # matplotlib takes a second to import

    told: Told = progress or (lambda what, done, of: None)
    findings, arrays, files = found.findings, found.arrays, []
    for i, (finding, photo) in enumerate(zip(findings.images[:most], photos, strict=False)):
        told("figures", i, min(most, len(photos)))
        name = f"{i:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(finding.file).stem)[:60]}"
        maps = {kind.method: arrays[f"maps/{kind.method}"][i] for kind in findings.maps}
        files += figures.save(figures.attention_sheet(photo, finding, maps, findings.scores), folder / name)
        for method, values in maps.items():
            path = folder / f"{name}-{method}.png"
            PIL.Image.fromarray(figures.overlay(photo, values, finding.view)).save(path)
            files.append(path)
        if findings.epochs and findings.maps:
            method = findings.maps[0].method
            kept = [epoch for epoch in findings.epochs if f"maps/{method}/{epoch}" in arrays]
            if kept:
                over = np.stack([arrays[f"maps/{method}/{epoch}"][i] for epoch in kept])
                said = _believed(arrays, i, over)
                strip = figures.epochs_strip(photo, over, kept, view=finding.view, title=f"{finding.file}: {method}", measured=said)
                files += figures.save(strip, folder / f"{name}-epochs")
        for key in (key for key in arrays if key.startswith("heads/")):
            said = _believed(arrays, i, arrays[key][i])
            heads = figures.heads_sheet(photo, arrays[key][i], [key.removeprefix("heads/")], view=finding.view, measured=said)
            files += figures.save(heads, folder / f"{name}-heads")
    if any(score.baselines for score in findings.scores):
        files += figures.save(figures.scores_figure([score for score in findings.scores if score.baselines]), folder / "scores")
    if findings.positions is not None and "positions" in arrays:
        files += figures.save(figures.positions_figure(arrays["positions"], how=findings.positions.how), folder / "positions")
    for key in (key for key in arrays if key.startswith("bias/")):
        path = folder / f"bias-{key.removeprefix('bias/').replace('.', '-')}"
        files += figures.save(figures.bias_figure(arrays[key], name=key.removeprefix("bias/")), path)
    for projection in findings.projections:
        panels = arrays[f"projection/{projection.name}"]
        drawn = figures.projection_figure(panels, arrays["probe/labels"], findings.classes, projection.panels, projection.how)
        files += figures.save(drawn, folder / f"projection-{projection.name}")
    told("figures", 1, 1)
    return files


def _believed(arrays: Mapping[str, np.ndarray], i: int, maps: np.ndarray) -> list[str]:
    """For each of some maps of picture i its mass on the target beside that of the centre prior; that nothing was measured where it has no mask."""
    grid = (maps.shape[-2], maps.shape[-1])
    target = arrays.get(f"target/{grid[0]}x{grid[1]}")
    if target is None or not target[i].any():
        return ["no mask: not measured"] * len(maps)
    where = PatchTarget(target[i], arrays[f"valid/{grid[0]}x{grid[1]}"][i], target[i].astype(np.float64))
    centre = rounded(mass(centre_prior(grid), where))
    return [f"mass {rounded(mass(values, where))} (centre {centre})" for values in maps]


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────


def snapshot_maps(t: Training, module: nn.Module) -> dict[str, np.ndarray]:
    """{"maps/<method>": (n, gh, gw) float32} of the pictures of the recipe's `inside`, by the weights of now.

    A method that does not fit these weights is left out and noted: a classifier that starts at zero has no gradient yet.
    """
    looked = t.looked
    if looked is None or not len(looked) or t.recipe.inside is None:
        return {}
    from pellucid.snapshots import normalized

    inputs = normalized(looked, t.recipe.data, t.mean, t.std)
    arrays = {}
    if t.recipe.masked:
        from pellucid.mask_snapshots import snapshot_masks

        arrays = snapshot_masks(t, module)
    scorer = scoring_images(module, t.recipe)
    targets, layer = _targets(t, scorer, inputs), map_layer(scorer, inputs, t.built.backbone)
    for method in map_methods(t.recipe) or USUAL:
        at = layer if method == "grad_cam" else None
        try:
            arrays[f"maps/{method}"] = _in_room(
                t,
                lambda batch, method=method, at=at: maps_of(method, scorer, inputs, targets=targets, layer=at, batch_size=batch).values,  # type: ignore[misc]
            )
        except UsageError as error:
            t.record.note(f"inside: no {method}: {error}")
    return arrays


def scoring_images(module: nn.Module, recipe: Recipe) -> nn.Module:
    """The module as one that scores images: itself, a segmenter by its pixels (`inside.pixel_scores`)."""
    return PixelScores(module) if recipe.masked else module


def map_layer(scorer: nn.Module, inputs: torch.Tensor, backbone: str) -> str | None:
    """Where Grad-CAM of a segmenter reads: the end of its backbone. None for others, and where it has none: the layer is then found as usual."""
    if not isinstance(scorer, PixelScores):
        return None
    return backbone_layer(scorer, inputs[:1].to(device_of(scorer)), backbone)


def without_prediction(found: Found, layer: str | None) -> None:
    """Of a segmenter: an image has no predicted class, and the scores that stand in for logits are no probabilities. layer: as `map_layer` gives it."""
    found.findings.images = [replace(image, prediction=None, confidence=None) for image in found.findings.images]
    found.findings.notes.append(f"{HOW}; the label of a picture is the class whose map is drawn")
    if layer is None:
        found.findings.notes.append("the backbone has no layer that holds a map of the image: Grad-CAM reads behind it, where maps retrace the prediction")


def map_methods(recipe: Recipe) -> list[str] | None:
    """The maps that a recipe asks for; of segmentation Grad-CAM where it names none, because attention there has no query for a class."""
    chosen: list[str] | None = list(recipe.inside.methods) if recipe.inside is not None and recipe.inside.methods else None
    return ["grad_cam"] if recipe.masked and chosen is None else chosen


def _in_room(t: Training, make: Callable[[int], np.ndarray]) -> np.ndarray:
    """What `make(batch size)` makes, in batches that shrink when memory runs out. UsageError where not even one picture fits."""
    batch = BATCH
    while True:
        try:
            return make(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        t.runtime.free_cached()
        if batch == 1:
            raise UsageError("memory ran out with a single picture")
        batch //= 2


def _targets(t: Training, module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """(n,) int64: the labels of the pictures, the predicted classes where nobody knows them."""
    assert t.looked is not None
    with torch.no_grad(), t.runtime.autocast():
        predicted = torch.cat([module(part.to(t.runtime.device)).argmax(1).cpu() for part in inputs.split(BATCH)])
    labels = torch.from_numpy(t.looked.labels)
    return torch.where(labels >= 0, labels, predicted)


def check_methods(module: nn.Module, recipe: Recipe) -> None:
    """UsageError, before training, where the recipe's `inside` names a map that its model cannot have. Tried on a copy with random weights."""
    if recipe.inside is None or not recipe.inside.methods:
        return
    stranger = randomised(scoring_images(module, recipe), recipe.seed).eval()
    image = torch.randn((1, 3, *recipe.data.size), generator=torch.Generator().manual_seed(recipe.seed))
    try:
        fitting(stranger, image, recipe.inside.methods)
    except UsageError as error:
        raise UsageError(f"inside.methods: {error}") from None


def look_into_run(t: Training, module: nn.Module, selected: str) -> None:
    """Fill the run's inside/ folder with what its final weights show, and with the projections of its snapshots.

    Numbers of the task are kept whatever happens here: what cannot be looked at is noted.
    """
    try:
        _look_into_run(t, module, selected)
    except (PellucidError, RuntimeError, ValueError, LookupError, ArithmeticError, OSError, MemoryError, ImportError) as error:
        kind = "" if isinstance(error, PellucidError) else f"{type(error).__name__}: "
        t.record.note(f"nothing was found inside: {kind}{error or 'memory ran out'}")


def _look_into_run(t: Training, module: nn.Module, selected: str) -> None:
    looked, inside = t.looked, t.recipe.inside
    if looked is None or inside is None or not t.first:
        return
    from pellucid.snapshots import normalized, photographs

    t.runtime.place(module).eval()
    if t.recipe.masked:
        from pellucid.mask_snapshots import bring_together

        bring_together(t, selected)
    scorer = scoring_images(module, t.recipe)
    split = inside.shown
    classes = list(t.dataset.classes)
    found = Found(Findings(pellucid.__version__, t.recipe.model.name, f"final weights, {selected}", classes=classes))
    photos = photographs(t)
    if len(looked):
        inputs = normalized(looked, t.recipe.data, t.mean, t.std)
        with torch.no_grad(), t.runtime.autocast():
            logits = torch.cat([scorer(part.to(t.runtime.device)).float().cpu() for part in inputs.split(BATCH)])
        boxes, layer = tuple(_box(t, size) for size in looked.sizes), map_layer(scorer, inputs, t.built.backbone)
        pictures = Pictures(looked.names, looked.sizes, boxes, looked.views, looked.masks, looked.labels)
        found = look(
            scorer, inputs, pictures, name=t.recipe.model.name, weights=f"final weights, {selected}", classes=classes,
            probabilities=logits.double().softmax(1).numpy(), methods=map_methods(t.recipe), layer=layer, attention=inside.attention,
            split=split, seed=t.recipe.seed, progress=t.progress,
        )  # fmt: skip
        if t.recipe.masked:
            without_prediction(found, layer)
    _add_epochs(t, found)
    _add_projections(t, found)
    write(found, t.run.inside, photos)


def draw_run(t: Training) -> None:
    """The figures of what was found inside, into figures/inside."""
    if t.looked is None or not (t.run.inside / ARRAYS).is_file():
        return
    from pellucid.snapshots import photographs

    with np.load(t.run.inside / ARRAYS, allow_pickle=False) as arrays:
        found = Found(load_findings(t.run.inside), dict(arrays))
    draw(found, t.run.figures / "inside", photographs(t)[:DRAWN_IN_A_RUN], most=DRAWN_IN_A_RUN, progress=t.progress)


def _box(t: Training, size: tuple[int, int]) -> tuple[float, float, float, float]:
    d = t.recipe.data
    return view_box(size, d.size, d.fit, d.resize_size)


def _add_epochs(t: Training, found: Found) -> None:
    """The maps of the snapshots, scored like those of the final weights."""
    found.findings.epochs = t.run.snapshot_epochs
    for epoch in found.findings.epochs:
        maps = t.run.snapshot(epoch).maps
        scores: list[Score] = []
        for kind in found.findings.maps:
            if kind.method in maps:
                found.arrays[f"maps/{kind.method}/{epoch}"] = maps[kind.method]
                scores += epoch_scores(found, kind, epoch, split=t.recipe.inside.shown if t.recipe.inside else "", seed=t.recipe.seed)
        if scores:
            found.findings.over_epochs.append(EpochScores(epoch, scores))


def _add_projections(t: Training, found: Found) -> None:
    """The planes of the probe's features at the epochs that were kept."""
    assert t.recipe.inside is not None
    probe = t.run.probe()
    kept = [(epoch, s.features) for epoch in t.run.snapshot_epochs if (s := t.run.snapshot(epoch)).features is not None]
    wanted = t.recipe.inside.projections
    methods: Sequence[Literal["pca", "tsne"]] = ("pca", "tsne") if wanted is None else wanted
    if not kept or not methods:
        return
    epochs, features = [epoch for epoch, _ in kept], [np.asarray(f) for _, f in kept]
    ways: list[tuple[Literal["pca", "tsne"], Literal["last", "each"]]] = [(method, fit) for method in methods for fit in FITS[method]]
    found.arrays["probe/labels"] = probe.labels
    for i, (method, fit) in enumerate(ways):
        t.progress("projections", i, len(ways))
        try:
            drawn = project(features, probe.labels, epochs=epochs, method=method, fit=fit, seed=t.recipe.seed, split=probe.split)
        except UsageError as error:
            found.findings.notes.append(f"no projection {method}: {error}")
            continue
        found.arrays[f"projection/{drawn.name}"] = drawn.coordinates
        found.findings.projections.append(drawn.finding())


def summary(findings: Findings) -> list[tuple[str, str, str, str, str]]:
    """(map, measure, value, interval, baselines) of each score, as text."""
    rows = []
    for score in findings.scores:
        m = score.value
        between = f"{rounded(m.interval[0], m.unit)} to {rounded(m.interval[1], m.unit)}" if m.interval else ""
        beside = ", ".join(f"{name} {baseline}" for name, baseline in score.baselines.items() if math.isfinite(baseline.value))
        rows.append((score.method, score.measure, str(m), between, beside))
    return rows
