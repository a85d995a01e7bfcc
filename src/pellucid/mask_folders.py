"""A folder of predicted masks against ground truth: the numbers of a segmentation without any model. Needs no torch.

The predictions are files in the format of the training masks, as `pellucid predict` writes them: the same values or colours, the size of the true mask, and
the name that the mask of the image has (`0001_mask.png` of `0001_sat.jpg`), in equal sub-folders; any lossless ending will do. Format, classes, ignored
values and scoring convention are those of a recipe, or of a run.

Ground truth is a split of the recipe, or a folder:

    pairs        images with masks, found as data.mask_dir and data.pair_names of the recipe say
    masks alone  a folder that holds nothing but masks: no `<folder>_masks` beside it, and no photographs in it

A predicted mask says a class at every pixel that is scored. Where it holds an ignored value on a pixel whose class is known it says nothing, which no
definition of IoU has a place for: such masks are refused, with the count. On pixels that are ignored in the truth it is let pass, as it says nothing there.
Loss and calibration need probabilities, which masks do not have; they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pellucid.data.dataset import Dataset
from pellucid.data.images import ENDINGS
from pellucid.data.inspection import Progress, listed
from pellucid.data.pairing import MASK_ENDINGS, NAMES
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError, MissingError, UsageError
from pellucid.overlap import boundary_counts, boundary_tolerance, measure_masks, pixel_confusion
from pellucid.palettes import MaskFormat, matched
from pellucid.predictions import CONFIDENCE_BINS, MaskPredictions
from pellucid.recipe import DataSection, Recipe
from pellucid.run import Measurement, Run

OF_PROBABILITIES = ("loss", "calibration_error")


@dataclass(frozen=True)
class Truth:
    """n true masks and how they are written. names: relative path without ending of the prediction of each. open: index -> (H, W) uint8."""

    split: str
    classes: Sequence[str]
    mask_format: MaskFormat
    names: Sequence[str]
    open: Callable[[int], np.ndarray]


def evaluate_masks(
    source: Recipe | Run,
    predicted: Path,
    *,
    data: Path | None = None,
    split: str = "val",
    told: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """The numbers of the masks in a folder, mIoU first: against `split` of the recipe, or against the folder `data` (then of split "data").

    told(line) is called with what a reader should know. DataError names masks that are missing, of another size, or that say no class.
    """
    recipe = source.recipe if isinstance(source, Run) else source
    if recipe.scoring is None:
        raise UsageError("--masks scores predicted masks and belongs to segmentation; the recipe's task is " + recipe.task)
    told = told or (lambda line: None)
    truth = _truth(source, recipe, data, split, told, progress)
    files = _files_of(predicted, truth, told)
    n, C = len(files), len(truth.classes)
    confusion, boundary = np.zeros((n, C + 1, C), np.int64), np.zeros((n, C, 4), np.int64)
    for i, file in enumerate(files):
        labels = truth.open(i)
        mask = _predicted_mask(file, labels, truth)
        confusion[i] = pixel_confusion(labels, mask, C)
        boundary[i] = boundary_counts(labels, mask, C, boundary_tolerance(recipe.scoring.boundary_tolerance, *labels.shape))
        if progress is not None:
            progress("scoring masks", i + 1, n)
    no_bins, no_digests = np.zeros((n, CONFIDENCE_BINS, 3)), np.zeros((n, 16), np.uint8)
    predictions = MaskPredictions(list(truth.names), confusion, np.zeros(n), boundary, no_bins, no_digests)
    found = measure_masks(predictions, classes=truth.classes, scoring=recipe.scoring, split=truth.split, seed=recipe.seed, note=f"masks of {predicted}")
    return [measurement for measurement in found if measurement.name not in OF_PROBABILITIES]


# ── predictions ───────────────────────────────────────────────────────────────────────────────────────────────


def _files_of(predicted: Path, truth: Truth, told: Callable[[str], None]) -> list[Path]:
    """The predicted file of each true mask, in their order."""
    there = _masks_in(predicted)
    missing = [name for name in truth.names if name not in there]
    if missing:
        raise DataError(
            f"{predicted}: {len(missing)} of {len(truth.names)} predicted masks are missing:{listed(f'{name}.png' for name in missing)}\n"
            "Each true mask needs one of that name; `pellucid predict RUN IMAGES --out DIR` writes them so."
        )
    wanted = set(truth.names)
    if more := [str(file.relative_to(predicted)) for name, file in there.items() if name not in wanted]:
        told(f"{predicted}: {len(more)} files belong to no true mask and are not scored:{listed(more)}")
    return [there[name] for name in truth.names]


def _masks_in(folder: Path) -> dict[str, Path]:
    """{relative path without ending: file} of the masks in a folder and below it."""
    if not folder.is_dir():
        raise MissingError(f"{folder}: expected a folder of masks, there is none")
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if file.suffix.lower() not in MASK_ENDINGS or any(part.startswith(".") for part in relative.parts):
            continue
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {file.name} are both the mask {name}; keep one")
        found[name] = file
    return found


def _predicted_mask(file: Path, labels: np.ndarray, truth: Truth) -> np.ndarray:
    """(H, W) uint8 of a file, of the size of its true mask and with a class wherever that has one."""
    mask = truth.mask_format.read(file.read_bytes(), str(file))
    if mask.shape != labels.shape:
        height, width = labels.shape
        raise DataError(
            f"{file}: expected {height}x{width} pixels (height x width), the size of the true mask, got {mask.shape[0]}x{mask.shape[1]}; "
            "write predictions at the size of their image"
        )
    blank = int(((mask >= len(truth.classes)) & (labels < len(truth.classes))).sum())
    if blank:
        codes = " or ".join(truth.mask_format.code(code) for code in truth.mask_format.ignored)
        raise DataError(
            f"{file}: {blank:,} of {mask.size:,} pixels are predicted as ignored ({codes}) where the class is known; a prediction says a class at every "
            "pixel: write the most probable one there"
        )
    return mask


# ── ground truth ──────────────────────────────────────────────────────────────────────────────────────────────


def _truth(source: Recipe | Run, recipe: Recipe, data: Path | None, split: str, told: Callable[[str], None], progress: Progress | None) -> Truth:
    if data is None:
        dataset = load_dataset(_section(source), seed=recipe.seed, masks=True, progress=progress)
        if split not in dataset.splits:
            raise UsageError(f"--split {split}: the recipe's data has {', '.join(dataset.splits)}; name one of them, or give --data with a folder")
        if isinstance(source, Run) and (known := source.data.splits.get(split)) is not None and known.hash != dataset.splits[split].hash:
            told(f"the data of {split} is no longer what {source.name} was measured on: its content hash differs")
        return _of_dataset(dataset, split, split, told)
    if recipe.data.source != "pairs":
        raise UsageError(f"--data takes a folder of pairs or masks; source {recipe.data.source} has none. Leave --data out to score against its own splits.")
    if not data.is_dir():
        raise MissingError(f"{data}: expected a folder of ground truth, there is none")
    if _holds_pairs(recipe.data, data):
        dataset = load_dataset(section_of(source, data), seed=recipe.seed, masks=True, progress=progress)
        return _of_dataset(dataset, "train", "data", told)
    files = list(_masks_in(data).items())
    if not files:
        raise DataError(f"{data}: expected pairs of images and masks, or masks alone ({', '.join(MASK_ENDINGS)}); found none")
    classes, mask_format = _format_of(source, recipe, progress)

    def open_mask(i: int) -> np.ndarray:
        return mask_format.read(files[i][1].read_bytes(), str(files[i][1]))

    return Truth("data", classes, mask_format, [name for name, _ in files], open_mask)


def section_of(source: Recipe | Run, data: Path) -> DataSection:
    """The data section of a recipe or run with the folder `data` of pairs as its only split, masks read as those of the run."""
    section = _section(source)
    mask_dir = section.mask_dir.replace("{split}", data.resolve().name) if section.mask_dir else None
    return section.model_copy(update={"train": str(data.absolute()), "val": None, "test": None, "mask_dir": mask_dir})


def _section(source: Recipe | Run) -> DataSection:
    """The data section; of a run with its classes and the value of each in the masks, which the recipe may have left to be found."""
    if not isinstance(source, Run):
        return source.data
    section, record = source.recipe.data, source.data
    if section.source != "pairs" or record.mask_format is None:
        return section
    found = record.mask_format
    colours = [[code >> 16, code >> 8 & 255, code & 255] if found.mode == "RGB" else code for code in found.codes]
    return section.model_copy(update={"classes": record.classes, "palette": dict(zip(record.classes, colours, strict=True))})


def _of_dataset(dataset: Dataset, name: str, said: str, told: Callable[[str], None]) -> Truth:
    found = dataset.splits[name]
    if skipped := [file for file in dataset.skipped if file.startswith(f"{name}/")]:
        told(f"{len(skipped)} bad images or masks of the truth are left out, as data.on_bad: skip says:{listed(skipped)}")
    assert found.masks is not None, "the data was read with masks"
    assert dataset.mask_format is not None
    mask_of = dataset.mask_format.file_of
    return Truth(said, dataset.classes, dataset.mask_format, [PurePosixPath(mask_of(n)).with_suffix("").as_posix() for n in found.names], found.masks.open)


def _holds_pairs(section: DataSection, folder: Path) -> bool:
    """Whether a folder holds images whose masks the recipe finds; else it holds masks alone."""
    if section.mask_dir:
        masks = Path(section.mask_dir.replace("{split}", folder.resolve().name))
        return masks.is_dir() and masks.resolve() != folder.resolve()
    if folder.with_name(f"{folder.resolve().name}_masks").is_dir():
        return True
    files = [file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS]
    if any(file.suffix.lower() not in MASK_ENDINGS for file in files):
        return True
    there = {file.with_suffix("") for file in files}
    for image, mask in [section.pair_names] if section.pair_names else NAMES:
        commons = [(path, matched(path.name, image)) for path in there]
        if image != mask and any(common is not None and path.with_name(mask.replace("{}", common)) in there for path, common in commons):
            return True
    return False


def _format_of(source: Recipe | Run, recipe: Recipe, progress: Progress | None) -> tuple[Sequence[str], MaskFormat]:
    """Classes and format of the masks of a run, or of the recipe's own data."""
    if isinstance(source, Run):
        record = source.data
        assert record.mask_format is not None, "a run of a segmentation says how its masks are written"
        return record.classes, record.mask_format
    dataset = load_dataset(recipe.data, seed=recipe.seed, masks=True, least=recipe.least_size, progress=progress)
    assert dataset.mask_format is not None, "the data was read with masks"
    return dataset.classes, dataset.mask_format
