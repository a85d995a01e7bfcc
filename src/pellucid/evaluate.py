"""A finished run on other data: its numbers on labelled images, its masks of any images, and its model as a file for elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.data.captions import named_splits
from pellucid.data.dataset import Dataset, Split
from pellucid.data.folders import split_paths
from pellucid.data.images import image_files
from pellucid.data.inspection import listed
from pellucid.data.loader import ordered_windows
from pellucid.data.sources import load_dataset
from pellucid.data.store import Resizing, Stream
from pellucid.errors import DataError, MissingError, PellucidError, RunError, UsageError, did_you_mean
from pellucid.export import ExportResult, backbone_facts, export_backbone, export_onnx, export_safetensors
from pellucid.files import replacing
from pellucid.mask_folders import section_of
from pellucid.models.backbone_file import read_facts
from pellucid.models.weights import read_weights
from pellucid.palettes import MaskFormat, matched
from pellucid.recipe import DataSection
from pellucid.run import Measurement, Run
from pellucid.runtime import Runtime
from pellucid.tasks import MODELS, PREDICTORS, Stored, Task, build_task, load_model, runtime_of
from pellucid.tasks.caption_numbers import measure_captions
from pellucid.tasks.captioning import describe, generation_of, tokenizer_of
from pellucid.tasks.segmentation import confidence_png

_IMAGES = "images or masks beside them"  # what training takes files in a folder of images for


Told = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def evaluate(run: Run, data: str, *, split: str | None = None, told: Told | None = None, progress: Progress | None = None) -> list[Measurement]:
    """The measurements of the run's final weights on the labelled images, or images with masks or captions, of `data` (split "data").

    The images are matched to the run's classes by name; a class that the run does not know is a DataError, as are masks that are written otherwise.
    split: which one of a file of captions that names some. told(line) hears what is left out.
    """
    recipe = run.recipe
    if recipe.task == "pretraining":
        raise UsageError(
            f"{run.path}: a pre-training is measured against its own training images, on its own val and test: `pellucid verify` does that again. For other "
            f"images train a classification that starts from its backbone, with model.weights: {run.backbone_weights} and freeze: backbone"
        )
    if recipe.data.source in ("scenes", "digits") or ":" in recipe.data.source:
        raise UsageError(f"--data takes a path; the run's source {recipe.data.source} has none. Its own splits are checked by `pellucid verify`.")
    if recipe.captioned:
        return _on_captions(run, Path(data), split, told or (lambda line: None), progress)
    if split is not None:
        raise UsageError(f"--split chooses from a file of captions that names splits; {run.path} is a run of {recipe.task}")
    section = section_of(run, Path(data)) if recipe.masked else _labelled(run, Path(data))
    dataset = load_dataset(section, seed=recipe.seed, masks=recipe.masked, progress=progress)
    if list(dataset.classes) != run.data.classes:
        raise DataError(f"{data}: expected the run's classes {', '.join(run.data.classes)}; found {', '.join(dataset.classes)}")
    found = dataset.splits["train"]
    labelled = Split("data", found.names, np.asarray(found.labels), found.hashes, found.open, found.masks)
    runtime = runtime_of(run)
    task = build_task(recipe, dataset, runtime, run.data.mean, run.data.std)
    predictions = _predictions(run, task, runtime, labelled, _pixels(run, labelled), progress)
    return task.measure(predictions, "data", _whose(run, dataset))


def _pixels(run: Run, split: Split) -> Stream:
    """The images of a split as the run evaluates them."""
    d = run.recipe.data
    return Stream(split, Resizing(d.size, d.fit, d.resize_size, d.interpolation), None)


def _predictions(run: Run, task: Task, runtime: Runtime, split: Split, pixels: Stream, progress: Progress | None) -> Any:
    """What the run's final weights say of a split."""
    windows = ordered_windows(len(split), run.record.evaluation_batch_size)
    return task.predictions(runtime.place(load_model(run)), split, pixels, windows, workers=run.recipe.data.workers, progress=progress)


def _whose(run: Run, dataset: Dataset) -> str:
    """Which weights a number belongs to, and what of the data it leaves out."""
    left_out = f"; {len(dataset.skipped)} bad images left out" if dataset.skipped else ""
    return f"weights of {run.name}, {run.record.selected}{left_out}"


# ── captions ──────────────────────────────────────────────────────────────────────────────────────────────────


def _on_captions(run: Run, data: Path, split: str | None, told: Told, progress: Progress | None) -> list[Measurement]:
    """The numbers of a captioner on other pictures, beside the baselines where the run's training pictures are still there."""
    recipe, runtime = run.recipe, runtime_of(run)
    name = _named_split(data, recipe.data, split)
    section = _labelled(run, data)
    section = section.model_copy(update={"train": None, "classes": None, "boxes": None, name: section.train})
    dataset = load_dataset(section, seed=recipe.seed, captions=True, fewest_classes=1, progress=progress)
    found = replace(dataset.splits[name], name="data")
    whose = _whose(run, dataset) + _trained_on(run, found, told)
    splits, why = {"data": found}, ""
    try:
        splits["train"] = _training_split(run, progress)
    except PellucidError as error:
        why = str(error).partition("\n")[0]
    pixels = {name: _pixels(run, each) for name, each in splits.items()}
    task = build_task(recipe, replace(dataset, splits=splits, tokenizer=tokenizer_of(run)), runtime, run.data.mean, run.data.std, Stored(pixels))
    predictions = _predictions(run, task, runtime, found, pixels["data"], progress)
    if not why:
        return task.measure(predictions, "data", whose)
    told(f"without the baselines, which come from the training pictures: {why}")
    assert found.captions is not None
    said = [tokenizer_of(run).decode(row) for row in predictions.tokens.tolist()]
    how = describe(generation_of(recipe, run.data.vocabulary))
    return measure_captions(said, found.captions.texts, predictions, {}, split="data", seed=recipe.seed, found=how, note=whose)


def _named_split(data: Path, section: DataSection, asked: str | None) -> str:
    """Which split of a file of captions is meant; train where it names none, as all of it is taken. UsageError where several could be."""
    named = named_splits(data, section)
    there = ", ".join(f"{split} ({count:,} captions)" for split, count in named.items())
    if asked is not None and asked not in named:
        known = f"it names {there}.{did_you_mean(asked, named)}" if named else "it names none: leave --split out, and all of it is taken"
        raise UsageError(f"--split {asked}: {data} has no such split; {known}")
    if asked is None and len(named) > 1:
        raise UsageError(f"{data} says which split each picture belongs to: {there}. Choose one with --split.")
    return asked or next(iter(named), "train")


def _training_split(run: Run, progress: Progress | None) -> Split:
    """The training pictures of a run with their captions. DataError where they are gone, or are not those that it was trained on."""
    section = run.recipe.data
    others = {"val": section.val if isinstance(section.val, float) else None, "test": None, "boxes": None}
    found = load_dataset(section.model_copy(update=others), seed=run.recipe.seed, captions=True, fewest_classes=1, progress=progress).splits["train"]
    if found.hash != run.data.splits["train"].hash:
        raise DataError(f"{section.train}: the training pictures or their captions have changed since {run.name} was trained")
    return found


def _trained_on(run: Run, split: Split, told: Told) -> str:
    """How many pictures of a split the run was trained on, for the end of a note; told(line) hears it too."""
    learned = {content.partition("+")[0] for _, _, content in run.samples("train")}
    count = sum(content in learned for content in split.hashes)
    if not count:
        return ""
    told(f"{count:,} of the {len(split):,} pictures stand in the training data of {run.name} too: the numbers are no measure of new pictures")
    return f"; {count} of its {len(split)} images were trained on, so that it is no measure of new images"


def _labelled(run: Run, data: Path) -> DataSection:
    """The data section of a run with labelled images of `data` as its only split."""
    section = run.recipe.data
    image_dir = section.image_dir.replace("{split}", data.stem) if section.image_dir else None
    return section.model_copy(update={"train": str(data.absolute()), "val": None, "test": None, "classes": run.data.classes, "image_dir": image_dir})


@dataclass(frozen=True)
class WrittenMask:
    """A predicted mask in a file. shares: {class: fraction of its pixels}."""

    file: str
    mask: str
    shares: dict[str, float]


def write_masks(
    run: Run,
    images: list[Path],
    out: Path,
    *,
    confidence: bool = False,
    overwrite: bool = False,
    told: Told | None = None,
    progress: Progress | None = None,
) -> Iterator[WrittenMask]:
    """Each predicted mask once it is in `out`, in the format of the training masks and named as these; sub-folders of a given folder stay.

    confidence: beside each also <mask>_confidence.png, 8-bit grey, the probability of the predicted class (255: 1). Files of a given folder that are named as
    masks are left out, and told(line) says so. overwrite: files that are there already are replaced.

    Names are checked before anything is written: UsageError for two images with one mask name, for a file that is there already, and, whatever `overwrite`
    says, for a mask that would take the place of an image or of a true mask or lie where training looks for either.
    """
    mask_format = run.data.mask_format
    if mask_format is None:
        raise UsageError(f"{run.path}: the run predicts labels and no masks")
    given = _given(images, mask_format)
    if masks := [str(file) for file, name in given.items() if name is None]:
        (told or (lambda line: None))(f"{len(masks)} files are named as masks ({mask_format.names[1]}) and are not predicted:{listed(masks)}")
    targets = {file: out / name for file, name in given.items() if name is not None}
    places = _places(targets, confidence)
    _check_truth(places, [file for file, name in given.items() if name is None], _training_folders(run, images), out)
    if not overwrite and (there := [str(place) for place in places if place.exists()]):
        raise UsageError(
            f"{out}: {len(there)} of {len(places)} files to be written exist already:{listed(there)}\nChoose another --out, or replace them with --overwrite."
        )
    runtime = runtime_of(run)
    module = runtime.place(load_model(run))
    for number, (file, target) in enumerate(targets.items(), 1):
        (found,) = PREDICTORS[run.recipe.task](run, module, [file], runtime=runtime)  # one at a time: a mask and its confidence take five bytes a pixel
        _write(target, found.data)
        if confidence:
            _write(_confidence_file(target), confidence_png(found.confidence))
        if progress is not None:
            progress("predicting", number, len(targets))
        yield WrittenMask(str(file), str(target), found.shares)


def _given(images: list[Path], mask_format: MaskFormat) -> dict[Path, str | None]:
    """{image: name of its mask} for images and folders of images; None for files of a folder that are masks by their name."""
    image, mask = mask_format.names
    found: dict[Path, str | None] = {}
    for entry in images:
        folder = entry if entry.is_dir() else entry.parent
        for file in image_files(entry):
            # A name that fits both patterns is of the longer one, as for the training data.
            is_mask = matched(file.stem, mask) is not None and (len(mask) > len(image) or matched(file.stem, image) is None)
            found[file] = None if is_mask and entry.is_dir() and image != mask else mask_format.file_of(file.relative_to(folder).as_posix())
    return found


def _places(targets: dict[Path, Path], confidence: bool) -> dict[Path, Path]:
    """{file to be written: its image} of {image: its mask}. UsageError where they would take each other's place, or that of an image."""
    pictures = {file.resolve() for file in targets}
    written: dict[Path, Path] = {}
    for file, target in targets.items():
        for place in (target, *([_confidence_file(target)] if confidence else [])):
            if place in written:
                raise UsageError(f"{written[place]} and {file} would both be written to {place}; predict them into two folders, or rename one")
            if place.resolve() in pictures:
                raise UsageError(f"{place}: the mask of {file} would take the place of an image; choose another --out")
            written[place] = file
    return written


def _check_truth(places: dict[Path, Path], masks: list[Path], folders: dict[Path, str], out: Path) -> None:
    """UsageError where a file of {file to be written: its image} would replace a true mask, or lie in one of {folder: what training takes its files for}."""
    true_masks = {file.resolve() for file in masks}
    for place, file in places.items():
        if place.resolve() in true_masks or (place.exists() and place.resolve() in _masks_of(file, place.name)):
            raise UsageError(f"{place}: the mask predicted for {file} would take the place of a true mask; choose another --out than {out}")
    of_images = {file.resolve().parent for file in places.values()}
    first: dict[Path, Path] = {}
    for place in places:
        first.setdefault(place.parent.resolve(), place)
    for folder, place in first.items():
        found = next((above for above in (folder, *folder.parents) if above in folders), None)
        if found is not None or folder in of_images:
            taken_for = folders[found] if found is not None else _IMAGES
            fault = f"{place}: what is predicted into {found or folder} would be taken for {taken_for} by the next training"
            raise UsageError(f"{fault}; choose another --out than {out}")


def _masks_of(image: Path, name: str) -> set[Path]:
    """Where a true mask of this name would lie beside any of the folders that the image is in: far/0.png of the folder val_masks for val/far/0.jpg."""
    image = image.resolve()
    return {folder.with_name(f"{folder.name}_masks") / image.relative_to(folder).with_name(name) for folder in image.parents if folder.name}


def _training_folders(run: Run, images: list[Path]) -> dict[Path, str]:
    """{folder: what a training takes files in it for} of the images to be predicted and of the run's own data, whether it is there or not."""
    section = run.recipe.data
    given = [(entry if entry.is_dir() else entry.parent).resolve() for entry in images]
    own = {split: Path(root).resolve() for split, root in split_paths(section).items()} if section.source == "pairs" else {}
    found: dict[Path, str] = {}
    for split, root in [*((folder.name, folder) for folder in given), *own.items()]:
        if root.name:
            found[root.with_name(f"{root.name}_masks").resolve()] = f"true masks of {root}"
        if section.mask_dir:
            found[Path(section.mask_dir.replace("{split}", split)).resolve()] = "true masks (data.mask_dir)"
    whole = [*(entry.resolve() for entry in images if entry.is_dir()), *own.values()]
    return found | dict.fromkeys(whole, _IMAGES)


def _confidence_file(mask: Path) -> Path:
    return mask.with_name(f"{mask.stem}_confidence.png")


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(data)


def export_run(run: Run, out: Path | None, format_: str) -> ExportResult:
    """The run's model as an ONNX or safetensors file that gives the same logits; see `pellucid.export`."""
    recipe, data = run.recipe, run.data
    if recipe.task == "pretraining" and format_ == "onnx":
        raise UsageError(
            f"{run.path}: a pre-trained backbone gives no logits, which an ONNX file of Pellucid is checked by. `pellucid export RUN --backbone` writes its "
            "backbone, --format safetensors the whole network with its heads."
        )
    if recipe.captioned and format_ == "onnx":
        raise UsageError(
            f"{run.path}: a captioner finds its words one after the other, each from those before, and one ONNX graph gives the logits of one pass. "
            "`pellucid export RUN --format safetensors` writes the whole model."
        )
    module = load_model(run)
    target = out or run.path / f"model.{format_}"
    if format_ == "onnx":
        return export_onnx(module, target, image_size=recipe.data.size, class_names=data.classes, mean=data.mean, std=data.std)
    size = str(list(recipe.data.size))
    metadata = {"model": recipe.model.name, "mean": str(data.mean), "std": str(data.std), "image_size": size}
    if data.vocabulary is not None:  # tokenizer.json of the run cuts texts into these tokens
        return export_safetensors(module, target, metadata | {"vocabulary": json.dumps(asdict(data.vocabulary))})
    return export_safetensors(module, target, metadata | {"classes": "\n".join(data.classes)})


def export_run_backbone(run: Run, out: Path | None) -> ExportResult:
    """The backbone of a run as a file that other tasks start from; see `pellucid.models.backbone_file`. Of a pre-training the one that it left."""
    target, recipe = out or run.path / "backbone.safetensors", run.recipe
    if target.suffix != ".safetensors":
        raise UsageError(f"--out: a backbone is a .safetensors file, got {target}")
    if recipe.masked:
        raise UsageError(
            f"{run.path}: the encoder of {recipe.model.name} is cut into stages whose tensors have other names than the library's own; a backbone file "
            "comes from a classification or a pretraining. `pellucid export RUN --format safetensors` writes the whole model."
        )
    if recipe.captioned:
        kind = f"{recipe.model.name} is part of a captioner of transformers" if recipe.model.encoder is None else f"{recipe.model.encoder} is cut at one stride"
        raise UsageError(
            f"{run.path}: the encoder {kind}, so that it is no whole model of its library; a backbone file comes from a classification or a pretraining. "
            "`pellucid export RUN --format safetensors` writes the whole captioner."
        )
    if recipe.task == "pretraining":
        return _pretrained_backbone(run, target)
    classifier = MODELS[recipe.task](recipe, run.data.outputs, start_weights=False)[0].classifier
    return export_backbone(load_model(run), target, backbone_facts(run, classifier))


def _pretrained_backbone(run: Run, out: Path) -> ExportResult:
    """The backbone file that a pre-training left, with its own facts, as a file elsewhere."""
    if not run.backbone_weights.is_file():
        raise MissingError(f"{run.backbone_weights}: the run has no backbone file. Is it finished? `pellucid resume {run.path}`")
    facts = read_facts(run.backbone_weights)
    if facts is None:
        raise RunError(f"{run.backbone_weights}: expected a backbone file, and it does not say that it is one; the file was changed")
    return replace(export_safetensors(read_weights(run.backbone_weights), out, facts.metadata()), left_out=facts.classifier)
