"""Where images and labels come from: each layout -> named splits of samples with their classes.

  folder   <split>/<class>/**/<name>.jpg; the class is the first folder
  prefix   <split>/**/<class>_<name>.jpg; the class is what stands before the first `_` of the file name
  table    a CSV (comma-separated, UTF-8) with a file name and a label in each row
  images   <split>/**/<name>.jpg, without labels: all of one class
  pairs    an image and a mask file for each; see pairs.py
  captions a CSV or a COCO JSON with captions of images; see captions.py
  scenes, digits                         embedded, offline, any number (digits: 1,797)
  torchvision:<Name>, huggingface:<name> see hubs.py

The class order is data.classes, else the source's own (classes.txt in the folder of the training data or the one above; the
hub's), else the sorted labels, numbers by value. Where the labels are the numbers 0, 1, 2 … and the given names are others,
they count the names. Nothing is left out or changed in silence: what cannot be used is named, and refused unless
`data.on_bad: skip`.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import posixpath
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pellucid.data import captions as described
from pellucid.data import hubs, pairs, scenes
from pellucid.data.dataset import Captions, Dataset, Hashes, Masks, Names, Thing
from pellucid.data.folders import classes_file, existing, files_below, lines_of, of_files, split_paths
from pellucid.data.images import ENDINGS
from pellucid.data.inspection import UNLABELLED, Gathered, Inspected, Listed, Listing, Progress, inspect, large_enough, listed, problems
from pellucid.errors import DataError, did_you_mean
from pellucid.palettes import MaskFormat
from pellucid.recipe import DataSection
from pellucid.run import DataProblem
from pellucid.schema.data import CAPTION_SOURCES
from pellucid.word_findings import COLOR, NOUN

_DRAWN = 1000  # scenes between two words of progress


def load_dataset(
    data: DataSection,
    *,
    seed: int,
    masks: bool = False,
    captions: bool = False,
    least: tuple[int, int] | None = None,
    fewest_classes: int = 2,
    progress: Progress | None = None,
) -> Dataset:
    """Classes, splits and problems of the data of a recipe. DataError names what cannot be used and how to go on.

    masks: the samples with their masks, whose classes are those of the data set; pairs have nothing else.
    captions: the samples with their captions; source captions has nothing else. No tokeniser is made for them here.
    least: smallest (height, width) of a training image file, a smaller one is bad; None where images are resized to what a crop needs.
    fewest_classes: of fewer labels than that nothing can be learned.
    Every source is a fixed set, so `seed` decides nothing: runs of several seeds are measured on the same images.
    progress(what, done, total) is called while files are read.
    """
    found = gather(data, masks=masks, captions=captions, least=least, fewest_classes=fewest_classes, progress=progress)
    bad = [problem for problem in found.problems if problem.fatal]
    if whole := next((problem for problem in bad if not problem.file), None):
        raise DataError(f"{whole.split}: {whole.detail}")
    if bad and data.on_bad == "refuse":
        files = listed(f"{problem.split}: {problem.file}: {problem.kind}: {problem.detail}" for problem in bad)
        total = sum(len(split.names) for split in found.splits.values())
        raise DataError(f"{len(_files_of(bad))} of {total} images cannot be used:{files}\nRepair or remove them, or leave them out with data.on_bad: skip.")
    splits = {name: split.usable().split() for name, split in found.splits.items()}
    for name, split in splits.items():
        if not len(split):
            raise DataError(f"{name}: expected at least one usable image, got none. {_why_empty(data, name, bad)}")
    return Dataset(found.classes, splits, found.problems, _files_of(bad), found.mask_format, found.notes)


def _files_of(problems: Sequence[DataProblem]) -> list[str]:
    """The file of each problem as <split>/<name>, each once: an image and its mask can both be bad."""
    return list(dict.fromkeys(f"{problem.split}/{problem.file}" for problem in problems))


def _why_empty(data: DataSection, name: str, bad: Sequence[DataProblem]) -> str:
    if any(problem.split == name for problem in bad):
        return "All its files are bad; `pellucid data check` lists them."
    if isinstance(data.val, float):
        return f"data.val: {data.val:g} of so few training images leaves none on one side; choose another fraction or give a folder."
    return f"Add images or drop data.{name}."


def gather(
    data: DataSection,
    *,
    masks: bool = False,
    captions: bool = False,
    least: tuple[int, int] | None = None,
    fewest_classes: int = 2,
    progress: Progress | None = None,
) -> Gathered:
    """Every split listed, read and inspected. Bad images are problems here; a layout that cannot be followed is a DataError. Arguments as of load_dataset."""
    if captions and data.source not in CAPTION_SOURCES:
        raise DataError(f"data.source: {data.source} has no captions; captioning takes {' or '.join(CAPTION_SOURCES)}")
    if data.source == "pairs":
        found = pairs.read(data, progress)
    elif data.source == "captions":
        found = described.read(data, progress)
    elif masks:
        found = _masked_scenes(data, progress)
    else:
        found = _labelled(data, least is not None, fewest_classes, progress)
    if captions and data.source == "scenes":
        found = replace(found, splits={name: _with_captions(split, name, data.size) for name, split in found.splits.items()})
    splits = _with_fraction(found.splits, data.val) if isinstance(data.val, float) else found.splits
    if least is not None:
        splits = splits | {"train": large_enough(splits["train"], least)}
    whole = {problem.kind for problem in found.problems if problem.fatal and not problem.file}  # said once, not again of each file
    each = [problem for problem in problems(splits, found.classes) if problem.kind not in whole]
    return replace(found, splits=splits, problems=found.problems + each)


def _labelled(data: DataSection, measured: bool, fewest_classes: int, progress: Progress | None) -> Gathered:
    """Splits of images with a label each. measured: with the sizes of training images that are files."""
    source = SOURCES[data.source.partition(":")[0]](data, progress)
    classes, index = _classes(data, source, fewest_classes)
    splits: dict[str, Inspected] = {}
    for name, listing in source.splits.items():
        labels = np.fromiter((_label(index, label, name, file) for label, file in zip(listing.labels, listing.names, strict=True)), np.int64)
        splits[name] = inspect(listing, name, labels, measured=measured and name == "train", progress=progress)
    return Gathered(classes, splits, [problem for listing in source.splits.values() for problem in listing.problems])


def _with_fraction(splits: dict[str, Inspected], fraction: float) -> dict[str, Inspected]:
    """Train divided by content into train and val: a sample's side never changes when others come or go, and copies stay together."""
    train = splits["train"]
    # The first half of the hash against the fraction of 2^64, in integers: below a float is below the whole number above it.
    in_val = (train.hashes.words[:, 0] < np.uint64(math.ceil(fraction * 2**64))) & train.hashes.digests.any(axis=1)
    sides = {"train": train.take(np.flatnonzero(~in_val), "train"), "val": train.take(np.flatnonzero(in_val), "val")}
    return sides | {name: split for name, split in splits.items() if name != "train"}


# ── classes ───────────────────────────────────────────────────────────────────────────────────────────────────


def _classes(data: DataSection, source: Listed, fewest: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """The class names in order, and the index of each label as the source writes it."""
    train = source.splits["train"]
    labels = sorted(set(train.labels), key=_by_value)
    names, origin = _given(data, source)
    if names is None:
        names, index = labels, {label: i for i, label in enumerate(labels)}
    elif set(labels) <= set(names):
        index = {label: i for i, label in enumerate(names)}
    elif all(_is_number(label) and int(label) < len(names) for label in labels):
        index = {str(i): i for i in range(len(names))} | {label: int(label) for label in labels}
    else:
        unknown = [label for label in labels if label not in names]
        label = next((label for label in unknown if not (_is_number(label) and int(label) < len(names))), unknown[0])
        file = train.names[list(train.labels).index(label)]
        fault = f"train: {file}: label {label!r} is not among the {len(names)} classes of {origin}.{did_you_mean(label, names)}"
        raise DataError(f"{fault} Add it there, or relabel the file.")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{origin}: class {twice!r} stands there twice; give each class once.")
    if len(names) < fewest:
        raise DataError(f"train: expected at least two classes, got {len(names)} ({', '.join(names)}). {_layout_hint(data.source)}")
    return tuple(names), index


def _given(data: DataSection, source: Listed) -> tuple[Sequence[str] | None, str]:
    """The class names that somebody ordered, and who did."""
    if isinstance(data.classes, list):
        return data.classes, "data.classes"
    if isinstance(data.classes, str):
        return lines_of(Path(data.classes)), data.classes
    return source.classes, source.origin


def _label(index: dict[str, int], label: str, split: str, file: str) -> int:
    if label not in index:
        raise DataError(
            f"{split}: {file}: label {label!r} is not among the {len(index)} classes of train.{did_you_mean(label, index)} "
            "Relabel the file, add training images of that class, or name all classes with data.classes."
        )
    return index[label]


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal()


def _by_value(label: str) -> tuple[bool, int, str]:
    """Sort key: numbers by value, before names by letters."""
    return (False, int(label), label) if _is_number(label) else (True, 0, label)


def _layout_hint(source: str) -> str:
    return {
        "folder": "source: folder reads <train>/<class>/<name>.jpg; with the class in the file name, take source: prefix.",
        "prefix": "source: prefix reads <train>/<class>_<name>.jpg; with one folder for each class, take source: folder.",
        "table": "source: table reads the class from data.label_column.",
        "images": "source: images reads every image below <train>, without labels, for task: pretraining.",
    }.get(source, "")


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────


def folder(data: DataSection, progress: Progress | None) -> Listed:
    """Class folders."""
    return _of_folders(data, _folder_label)


def prefix(data: DataSection, progress: Progress | None) -> Listed:
    """The class in the file name."""
    return _of_folders(data, _prefix_label)


def images(data: DataSection, progress: Progress | None) -> Listed:
    """Every image below the folders, all of one class; class names that may lie beside them belong to other sources."""
    return Listed(_of_folders(data, lambda name: UNLABELLED).splits, (UNLABELLED,), "images")


def _folder_label(name: str) -> str | None:
    first, slash, _ = name.partition("/")
    return first if slash else None


def _prefix_label(name: str) -> str | None:
    label, underscore, _ = PurePosixPath(name).stem.partition("_")
    return label if underscore and label else None


def _of_folders(data: DataSection, label_of: Callable[[str], str | None]) -> Listed:
    splits = {split: _of_folder(Path(root), split, data.source, label_of) for split, root in split_paths(data).items()}
    return Listed(splits, *classes_file(Path(str(data.train))))


def _of_folder(root: Path, split: str, source: str, label_of: Callable[[str], str | None]) -> Listing:
    names, labels, odd, noticed = Names(), [], [], []
    for name in files_below(existing(root, f"images for data.{split}")):
        label = label_of(name)
        if posixpath.splitext(name)[1].lower() not in ENDINGS:
            if name != "classes.txt":
                noticed.append(DataProblem(split, name, "other_file", "the ending is no image's: not used", fatal=False))
        elif label is None:
            odd.append(name)
        else:
            names.append(name)
            labels.append(sys.intern(label))  # one object for each class, not for each image
    if odd:
        wanted = "a class folder around each image" if source == "folder" else "names of the form <class>_<name>"
        raise DataError(f"{root}: expected {wanted}, got {len(odd)} without:{listed(odd)}\n{_layout_hint(source)}")
    if not names:
        raise DataError(f"{root}: expected images for data.{split}, found none. {_layout_hint(source)}")
    return of_files(names, labels, lambda i: f"{root}/{names[i]}", noticed)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────


def table(data: DataSection, progress: Progress | None) -> Listed:
    """File names and labels in a CSV."""
    splits = {split: _of_table(Path(path), split, data) for split, path in split_paths(data).items()}
    return Listed(splits, *classes_file(Path(str(data.train))))


def _of_table(file: Path, split: str, data: DataSection) -> Listing:
    folders = [Path(data.image_dir.replace("{split}", split))] if data.image_dir else [file.parent, file.parent / file.stem]
    names, labels, faults = Names(), [], []
    places = bytearray()  # which of the folders each file lies in
    lines: dict[str, int] = {}
    for line, filename, label in _rows(file, data.filename_column, data.label_column):
        place = next((k for k, folder in enumerate(folders) if filename and (folder / filename).is_file()), None)
        if not filename:
            faults.append(f"{file}:{line}: the file name is empty")
        elif filename in lines:
            faults.append(f"{file}:{line}: {filename} stands in line {lines[filename]} already")
        elif place is None:
            faults.append(f"{file}:{line}: {filename}: no such file in {' or '.join(str(folder) for folder in folders)}")
        elif not label:
            faults.append(f"{file}:{line}: {filename}: the label is empty")
        else:
            names.append(PurePosixPath(filename.replace(os.sep, "/")).as_posix())
            labels.append(sys.intern(label))
            places.append(place)
        lines.setdefault(filename, line)
    if faults:
        raise DataError(f"{len(faults)} rows of {file} cannot be used:{listed(faults)}\nCorrect or remove the rows; data.image_dir says where the images lie.")
    if not names:
        raise DataError(f"{file}: expected a row for each image below the header, found none")
    return of_files(names, labels, lambda i: str(folders[places[i]] / names[i]))


def _rows(file: Path, filename_column: str, label_column: str) -> Iterator[tuple[int, str, str]]:
    """(line, file name, label) of each row, blanks around both removed."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            columns = list(reader.fieldnames or ())
            for key, column in (("filename_column", filename_column), ("label_column", label_column)):
                if column not in columns:
                    there = ", ".join(columns) or "none"
                    raise DataError(f"{file}:1: expected a column {column!r}; there are: {there}.{did_you_mean(column, columns)} Name it with data.{key}.")
            for row in reader:
                yield reader.line_num, (row[filename_column] or "").strip(), (row[label_column] or "").strip()
    except FileNotFoundError:
        nearby = [path.name for path in file.parent.glob("*.csv")]
        raise DataError(f"{file}: expected a CSV table, there is none.{did_you_mean(file.name, nearby)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: expected a comma-separated table in UTF-8: {error}") from None


# ── embedded sets ─────────────────────────────────────────────────────────────────────────────────────────────


def _counts(data: DataSection) -> dict[str, int]:
    """The number of images of each split that asks for some."""
    return {split: value for split in ("train", "val", "test") if isinstance(value := getattr(data, split), int)}


def drawn_scenes(data: DataSection, progress: Progress | None) -> Listed:
    """Drawn scenes, at the size that the model sees."""
    return Listed({split: _of_scenes(split, count, data.size) for split, count in _counts(data).items()}, scenes.SHAPES, "scenes")


def _of_scenes(split: str, count: int, size: tuple[int, int]) -> Listing:
    def open_image(i: int) -> Image.Image:
        return Image.fromarray(scenes.draw(i, split=split, image_size=size).image)

    if min(size) < scenes.SMALLEST_SIDE:
        scenes.draw(0, split=split, image_size=size)  # says what is wrong before training starts
    names = Names(scenes.name(i, split=split) for i in range(count))
    labels = [scenes.SHAPES[i % len(scenes.SHAPES)] for i in range(count)]
    return Listing(names, labels, open_image, hashes=Hashes.of(scenes.content_hash(i, split=split, image_size=size) for i in range(count)))


def _masked_scenes(data: DataSection, progress: Progress | None) -> Gathered:
    """Drawn scenes with their masks: background and the shapes."""
    if data.source != "scenes":
        raise DataError(f"data.source: {data.source} has no masks; segmentation takes pairs or scenes")
    there = ("background", *scenes.SHAPES)
    classes = tuple(_given(data, Listed({}, there, "scenes"))[0] or there)
    if sorted(classes) != sorted(there):
        raise DataError(f"data.classes: the masks of scenes have the classes {', '.join(there)}; got {', '.join(classes)}")
    layout = MaskFormat("L", [there.index(name) for name in classes])
    splits = {}
    for split, listing in drawn_scenes(data, progress).splits.items():
        masks = _scene_masks(split, len(listing.names), data.size, layout, progress)
        splits[split] = replace(inspect(listing, split, pairs.largest(masks.pixels, classes)), masks=masks)
    return Gathered(classes, splits, [], layout)


def _scene_masks(split: str, count: int, size: tuple[int, int], layout: MaskFormat, progress: Progress | None) -> Masks:
    """The masks of drawn scenes; each is drawn once to count its pixels."""

    def open_mask(i: int) -> np.ndarray:
        return layout.mask(scenes.draw(i, split=split, image_size=size).mask, scenes.name(i, split=split))

    pixels = np.zeros((count, len(layout.codes) + 1), np.int64)
    for i in range(count):
        pixels[i, :-1] = np.bincount(open_mask(i).ravel(), minlength=len(layout.codes))
        if progress is not None and ((i + 1) % _DRAWN == 0 or i + 1 == count):
            progress(f"drawing masks of {split}", i + 1, count)
    return Masks(pixels, Hashes(np.zeros((count, 16), np.uint8)), open_mask)


def _with_captions(split: Inspected, name: str, size: tuple[int, int]) -> Inspected:
    """Drawn scenes with the caption of each, and its two objects as things: one noun, one colour and the pixels of each."""

    def things(i: int) -> list[Thing]:
        scene = scenes.draw(i, split=name, image_size=size)
        return [
            Thing({NOUN: frozenset({one.shape}), COLOR: frozenset({one.color})}, scene.mask == 1 + scenes.SHAPES.index(one.shape)) for one in scene.objects
        ]  # the two objects of a scene have different shapes and colours

    texts = [(scenes.caption(i, split=name, image_size=size),) for i in range(len(split.names))]
    return replace(split, captions=Captions(texts, things))


def digits(data: DataSection, progress: Progress | None) -> Listed:
    """scikit-learn's 8 x 8 handwritten digits (Alpaydin and Kaynak 1998); splits are stretches of one fixed shuffle."""
    from sklearn.datasets import load_digits

    counts = _counts(data)
    bunch = load_digits()
    pixels = (bunch.images.astype(np.int64) * 255 + 8) // 16  # 0..16 -> 0..255
    there = len(pixels)
    if sum(counts.values()) > there:
        asked = " + ".join(f"{count} for {split}" for split, count in counts.items())
        raise DataError(f"digits: asked for {asked}, there are {there} images in all; ask for fewer.")
    # Ordered by a hash: numpy promises no permutation to be the same in another version.
    order = sorted(range(there), key=lambda i: hashlib.blake2b(f"digits {i}".encode(), digest_size=16).digest())
    splits, start = {}, 0
    for split, count in counts.items():
        splits[split] = _of_digits(order[start : start + count], pixels.astype(np.uint8), bunch.target)
        start += count
    return Listed(splits, [str(digit) for digit in range(10)], "digits")


def _of_digits(chosen: list[int], pixels: np.ndarray, targets: np.ndarray) -> Listing:
    def open_image(i: int) -> Image.Image:
        return Image.fromarray(pixels[chosen[i]]).convert("RGB")

    hashes = [hashlib.blake2b(pixels[i].tobytes(), digest_size=16).hexdigest() for i in chosen]
    return Listing([f"digits-{i:04d}.png" for i in chosen], [str(targets[i]) for i in chosen], open_image, hashes=hashes)


SOURCES: dict[str, Callable[[DataSection, Progress | None], Listed]] = {
    "folder": folder,
    "prefix": prefix,
    "table": table,
    "images": images,
    "scenes": drawn_scenes,
    "digits": digits,
    "torchvision": hubs.torchvision,
    "huggingface": hubs.huggingface,
}
