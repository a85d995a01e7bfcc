"""Images with captions, several for each: who says what of which picture, where its things are, and what is wrong with it.

  CSV        a header, then a row for each caption: data.filename_column, data.caption_column and, where there is one, data.split_column
  COCO       {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
  Karpathy   {"images": [{"split", "filename", "filepath", "sentences": [{"raw"}]}]} (Karpathy and Fei-Fei 2015)

A file that names the split of each picture may be given for all splits, and each takes its own; where no split is named all rows are taken. `restval` counts
as train, as in Karpathy's files; validation, valid and dev are val. Images lie in data.image_dir, else beside the file: in its folder, in <split>/ of it, or in
the folder of its name without the ending. Captions stay as they are, in their order, blanks around them removed; repeats count as often as they stand there,
as in published scores.

Refused: rows that cannot be used, all of them by line, and a picture in two splits. Kinds of problems, none fatal, each of a whole split: caption_counts
(pictures with different numbers of captions), caption_repeated (a picture has the same words twice), no_caption (COCO images that nobody describes, not used),
no_boxes (pictures of which data.boxes says nothing). The same content in two splits is a `leak` as for every source.

data.boxes, COCO's instances, says where things are: those of a category are one thing, its mask all their boxes, crowds (iscrowd) left out. Its names are the
category and its plural; one of several words (fire hydrant) is found where they follow each other. A person's hat names a person too where the tokeniser cuts
the possessive off, as all do but those that leave signs on words (SentencePiece).
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pellucid.data.dataset import Captions, Names, Thing
from pellucid.data.folders import of_files, split_paths
from pellucid.data.inspection import UNLABELLED, Gathered, Inspected, Progress, inspect, listed
from pellucid.errors import DataError, did_you_mean
from pellucid.recipe import DataSection
from pellucid.run import DataProblem
from pellucid.word_findings import NOUN

_SPLITS = {"train": "train", "val": "val", "test": "test", "restval": "train", "validation": "val", "valid": "val", "dev": "val"}
_LAYOUTS = "COCO captions (images, annotations) or Karpathy's (images with split, filename, sentences)"
_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "knife": "knives", "sheep": "sheep", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "leaf": "leaves", "shelf": "shelves", "wolf": "wolves", "fish": "fish", "deer": "deer",
}  # fmt: skip
_SIDEWAYS = frozenset({"left", "right", "leftmost", "rightmost", "lefthand", "righthand", "leftward", "rightward", "leftwards", "rightwards"})
_UPRIGHT = frozenset({"above", "below", "under", "underneath", "beneath", "over", "top", "bottom", "up", "down", "upper", "lower", "upside"})
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words_of(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation; o'clock is one."""
    return _WORD.findall(caption.lower())


def mirrored_words(captions: Iterable[str], *, vertical: bool = False) -> tuple[int, int]:
    """(captions that stop being true when their picture is mirrored, all captions), by words alone: left and right, or, for vertical, above, below and the
    like. "A dog left alone" counts too: it is an upper bound.
    """
    telling = _UPRIGHT if vertical else _SIDEWAYS
    found = [not telling.isdisjoint(words_of(caption)) for caption in captions]
    return sum(found), len(found)


@dataclass(frozen=True)
class CaptionCounts:
    """What the captions of a split are. words: all of them, different: of these the different ones. fewest, most: captions of a picture.

    lengths: shortest, median and longest caption in words.
    """

    captions: int
    words: int
    different: int
    fewest: int
    most: int
    lengths: tuple[int, float, int]

    @classmethod
    def of(cls, captions: Captions) -> CaptionCounts:
        counts = [len(texts) for texts in captions.texts]
        words = [words_of(text) for texts in captions.texts for text in texts]
        lengths = np.array([len(those) for those in words] or [0])
        different = len({word for those in words for word in those})
        spread = (int(lengths.min()), float(np.median(lengths)), int(lengths.max()))
        return cls(len(words), int(lengths.sum()), different, min(counts, default=0), max(counts, default=0), spread)


def read(data: DataSection, progress: Progress | None) -> Gathered:
    """Every picture that the recipe's files describe, inspected, with its captions. DataError where they cannot be followed."""
    files: dict[str, _File] = {}
    paths = split_paths(data)
    for path in paths.values():
        if path not in files:
            files[path] = _read(Path(path), data)
    laid = {split: _lay(files[path], split, data) for split, path in paths.items()}
    _one_split_each(laid, paths)
    splits = {split: _inspected(found, split, progress) for split, found in laid.items()}
    problems = [problem for split, found in laid.items() for problem in _told(found, split)]
    if data.boxes is not None:
        for split in splits:
            splits[split], noticed = _with_things(splits[split], Path(data.boxes.replace("{split}", split)))
            problems += noticed
    return Gathered((UNLABELLED,), splits, problems, notes=_unasked(data, files))


def named_splits(file: Path, data: DataSection) -> dict[str, int]:
    """{split: its captions} of a file that names the split of each picture, {} of one that names none. DataError where it cannot be followed."""
    found = _read(file, data)
    return dict(Counter(split for _, split, _, _ in found.rows)) if found.splits else {}


# ── what the files say ────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _File:
    """A file of captions. rows: (where, split or "", file name, caption), one for each caption; splits: whether it names them.

    bare: names of images that nobody describes. shorter: {name: the same without its folder} of those that may lie without it. unit: what messages call a row.
    faults: rows that cannot be used.
    """

    path: Path
    unit: str
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    splits: bool = False
    bare: list[str] = field(default_factory=list)
    shorter: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, where: str, split: Any, name: Any, caption: Any) -> None:
        """One caption, or the fault that keeps it from being one."""
        if fault := _fault(split if self.splits else "train", name, caption):
            self.faults.append(f"{where}: {fault}")
        else:
            self.rows.append((where, _SPLITS[split] if self.splits else "", PurePosixPath(name.replace(os.sep, "/")).as_posix(), caption.strip()))


def _fault(split: Any, name: Any, caption: Any) -> str:
    """What keeps a row from being used; "" where nothing does."""
    if not isinstance(name, str) or not name.strip():
        return f"expected the name of an image file, got {name!r}"
    path = PurePosixPath(name.replace(os.sep, "/"))
    if path.is_absolute() or Path(name).is_absolute() or ".." in path.parts:
        return f"{name}: expected a name below the folder of the images; data.image_dir says which that is"
    if not isinstance(split, str) or split not in _SPLITS:
        return f"{name}: expected a split, one of {', '.join(_SPLITS)}; got {split!r}.{did_you_mean(str(split), _SPLITS)}"
    if not isinstance(caption, str):
        return f"{name}: expected a caption as text, got {json.dumps(caption)[:60]}"
    return "" if caption.strip() else f"{name}: the caption is empty"


def _read(file: Path, data: DataSection) -> _File:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            found = _of_json(file, json.load(text)) if file.suffix.lower() == ".json" else _of_table(file, csv.DictReader(text, strict=True), data)
    except (FileNotFoundError, IsADirectoryError):
        nearby = [path.name for path in file.parent.glob("*.*")] if file.parent.is_dir() else []
        kind = "a folder" if file.is_dir() else "none"
        raise DataError(f"{file}: expected a CSV or JSON file of captions, there is {kind}.{did_you_mean(file.name, nearby)}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}:{error.colno}: expected {_LAYOUTS}, and this is not JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: expected a comma-separated table in UTF-8, or JSON in a file that ends in .json: {error}") from None
    if found.faults:
        said = f"{len(found.faults)} {found.unit} of {file} cannot be used:{listed(found.faults)}"
        raise DataError(f"{said}\nCorrect or remove them.")
    if not found.rows:
        raise DataError(f"{file}: expected captions, found none")
    return found


def _of_table(file: Path, reader: csv.DictReader[str], data: DataSection) -> _File:
    """The rows of a CSV."""
    columns = list(reader.fieldnames or ())
    for key, column in (("filename_column", data.filename_column), ("caption_column", data.caption_column)):
        if column not in columns:
            there = ", ".join(columns) or "none"
            raise DataError(f"{file}:1: expected a column {column!r}; there are: {there}.{did_you_mean(column, columns)} Name it with data.{key}.")
    found = _File(file, "rows", splits=data.split_column in columns)
    for row in _rows(file, reader):
        split, name = (str(row.get(column) or "").strip() for column in (data.split_column, data.filename_column))
        where = f"{file}:{reader.line_num}"
        if None in row:  # more cells than columns: a caption with a comma and without quotes, of which the end would be lost
            found.faults.append(f"{where}: {name}: expected {len(columns)} cells, got more; a caption with a comma stands in quotes")
        else:
            found.add(where, split, name, row[data.caption_column] or "")
    return found


def _rows(file: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    """The rows of a table; a quote that never closes is named, which would swallow the rows behind it."""
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num + 1}: expected a comma-separated table, where a caption with a quote stands in quotes: {error}") from None


def _of_json(file: Path, content: Any) -> _File:
    """COCO's captions or Karpathy's."""
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise DataError(f"{file}: expected {_LAYOUTS}; there is no list of images")
    if isinstance(content.get("annotations"), list):
        return _of_coco(file, images, content["annotations"])
    if images and "sentences" in images[0]:
        return _of_karpathy(file, images)
    raise DataError(f"{file}: expected {_LAYOUTS}; there are neither annotations nor sentences")


def _of_coco(file: Path, images: Sequence[dict[str, Any]], annotations: Sequence[Any]) -> _File:
    """The captions of the annotations, by picture in the order of the images."""
    found = _File(file, "annotations")
    captions: dict[Any, list[tuple[str, Any]]] = {_id(image, "id"): [] for image in images}
    for place, annotation in enumerate(annotations):
        owner, number = (_id(annotation, "image_id"), annotation.get("id", place)) if isinstance(annotation, dict) else (None, place)
        where = f"{file}: annotation {number}"
        if owner is None or owner not in captions:
            found.faults.append(f"{where}: expected the id of one of the {len(captions):,} images as image_id, got {owner!r}")
        elif "caption" not in annotation:
            hint = "; instances with boxes belong to data.boxes" if "bbox" in annotation else ""
            found.faults.append(f"{where}: expected a caption, got {', '.join(map(str, annotation))}{hint}")
        else:
            captions[owner].append((where, annotation["caption"]))
    seen: dict[Any, Any] = {}
    for image in images:
        name, number = image.get("file_name"), _id(image, "id")
        if number in seen:
            found.faults.append(f"{file}: images: expected an id of its own for each, got {number!r} for {seen[number]} and {name}")
            continue
        seen[number] = name
        if not captions[number]:
            found.bare.append(str(name))
        for where, caption in captions[number]:
            found.add(where, "", name, caption)
    return found


def _id(part: dict[str, Any], key: str) -> int | str | None:
    value = part.get(key)
    return value if isinstance(value, (int, str)) else None


def _of_karpathy(file: Path, images: Sequence[dict[str, Any]]) -> _File:
    found = _File(file, "captions", splits=True)
    for place, image in enumerate(images):
        folder, own = image.get("filepath") or "", image.get("filename")
        where, sentences = f"{file}: images[{place}]", image.get("sentences")
        if not isinstance(sentences, list) or not sentences:
            found.faults.append(f"{where}: {own}: expected sentences, a list of captions, got {sentences!r}")
            continue
        name = f"{folder}/{own}" if folder and isinstance(own, str) and own else own
        for sentence in sentences:
            found.add(where, image.get("split"), name, sentence.get("raw") if isinstance(sentence, dict) else sentence)
        if folder and isinstance(own, str):
            found.shorter[PurePosixPath(str(name)).as_posix()] = PurePosixPath(own).as_posix()
    return found


# ── where the pictures lie ────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Laid:
    """The pictures of a split: their names, the folder of each by its number, and their captions. bare: names without captions."""

    folders: list[Path]
    names: Names = field(default_factory=Names)
    places: bytearray = field(default_factory=bytearray)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    bare: Sequence[str] = ()

    def path(self, i: int) -> str:
        return str(self.folders[self.places[i]] / self.names[i])


def _lay(file: _File, split: str, data: DataSection) -> _Laid:
    """The pictures of a split by the rows of a file, in the order of their first rows."""
    beside = file.path.parent
    folders = [Path(data.image_dir.replace("{split}", split))] if data.image_dir else [beside, beside / split, beside / file.path.stem]
    captions: dict[str, list[str]] = {}
    wheres: dict[str, str] = {}
    for where, own, name, caption in file.rows:
        if own in ("", split):
            captions.setdefault(name, []).append(caption)
            wheres.setdefault(name, where)
    if not captions:
        counts = Counter(own for _, own, _, _ in file.rows)
        there = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise DataError(f"{file.path}: expected captions of the split {split}, found none; it has {there}. Drop data.{split}, or correct the splits.")
    laid, missing, taken, twice = _Laid(folders, bare=file.bare), [], dict[str, str](), []
    resolved: dict[str, str] = {}
    for name, texts in captions.items():
        found = next(
            ((k, short) for short in dict.fromkeys((name, file.shorter.get(name, name))) for k, root in enumerate(folders) if (root / short).is_file()), None
        )
        if found is None:
            missing.append(f"{wheres[name]}: {name}: no such file")
            continue
        path = _resolved(str(folders[found[0]] / found[1]), resolved)
        if taken.setdefault(path, name) != name:
            twice.append(f"{wheres[taken[path]]}: {taken[path]} and {wheres[name]}: {name}: both are {path}")
        laid.places.append(found[0])
        laid.names.append(found[1])
        laid.texts.append(tuple(texts))
    if missing:
        raise DataError(
            f"{file.path}: {len(missing)} of {len(captions)} images of {split} are not in {' or '.join(map(str, folders))}:{listed(missing)}\n"
            "Correct or remove their captions; data.image_dir says where the images lie."
        )
    if twice:
        raise DataError(
            f"{file.path}: {len(twice)} images of {split} are files that others are already:{listed(twice)}\n"
            "Put each image where its row says, or give all captions of an image one name."
        )
    return laid


def _one_split_each(laid: dict[str, _Laid], paths: dict[str, str]) -> None:
    """DataError where a picture stands in two splits: a score on pictures that were trained on is worth nothing."""
    if len(laid) < 2:
        return
    folders: dict[str, str] = {}
    seen: dict[str, str] = {}
    twice = []
    for split, found in laid.items():
        for i in range(len(found.names)):
            path = _resolved(found.path(i), folders)
            if seen.setdefault(path, split) != split:
                twice.append(f"{found.path(i)}: {seen[path]} and {split}")
    if twice:
        same = " The same file without a column that says train, val or test stands for several." if len(set(paths.values())) < len(paths) else ""
        raise DataError(f"{len(twice)} pictures stand in two splits:{listed(twice)}\nGive each picture, with all its captions, to one split.{same}")


def _resolved(path: str, folders: dict[str, str]) -> str:
    """The path without links; folders: those that were resolved before."""
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(folders[folder], name)


def _inspected(laid: _Laid, split: str, progress: Progress | None) -> Inspected:
    listing = of_files(laid.names, (), laid.path)
    found = inspect(listing, split, np.zeros(len(laid.names), np.int64), measured=True, progress=progress)
    return replace(found, captions=Captions(laid.texts))


def _told(laid: _Laid, split: str) -> Iterator[DataProblem]:
    """What is odd about the captions of a split."""
    counts = Counter(map(len, laid.texts))
    if len(counts) > 1:
        usual = max(counts, key=lambda count: (counts[count], count))
        other = next(i for i, texts in enumerate(laid.texts) if len(texts) != usual)
        spread = ", ".join(f"{count} ({counts[count]:,} pictures)" for count in sorted(counts))
        detail = f"pictures have different numbers of captions: {spread}; {laid.names[other]} the first that has not {usual}"
        yield DataProblem(split, "", "caption_counts", detail, fatal=False)
    repeated = [i for i, texts in enumerate(laid.texts) if len(set(texts)) < len(texts)]
    if repeated:
        text = next(text for text, count in Counter(laid.texts[repeated[0]]).items() if count > 1)
        detail = (
            f"of {len(repeated):,} of {len(laid.texts):,} pictures a caption stands more than once, {laid.names[repeated[0]]} the first: {text!r}; all are kept"
        )
        yield DataProblem(split, "", "caption_repeated", detail, fatal=False)
    if laid.bare:
        yield DataProblem(split, "", "no_caption", f"{len(laid.bare):,} images have no caption and are not used, {laid.bare[0]} the first", fatal=False)


def _unasked(data: DataSection, files: dict[str, _File]) -> list[str]:
    """What a recipe leaves aside of its files."""
    notes = []
    asked = {split for split in ("train", "val", "test") if getattr(data, split) is not None and not isinstance(getattr(data, split), float)}
    for path, file in files.items():
        counts = Counter(split for _, split, _, _ in file.rows if split and split not in asked)
        notes += [f"captions: {count:,} of {split} in {Path(path).name} are not used: the recipe has no data.{split}" for split, count in counts.items()]
    return notes


# ── where things are ──────────────────────────────────────────────────────────────────────────────────────────

_Boxes = dict[str, list[tuple[float, float, float, float]]]  # category -> left, top, width and height in pixels


def _with_things(split: Inspected, file: Path) -> tuple[Inspected, list[DataProblem]]:
    """The split with the things of its pictures, and what is odd about the boxes."""
    sizes, boxes = _instances(file)
    assert split.sizes is not None
    assert split.captions is not None
    names = _matched(split.names, sizes)
    if not any(names):
        some = next(iter(sizes), "no image")
        raise DataError(
            f"{file}: expected boxes for the {len(names):,} images of {split.name}, e.g. {split.names[0]}, by file_name; it has {some} and the like"
        )
    wrong = []
    for i, name in enumerate(names):
        height, width = split.sizes[i].tolist()
        if name and height and sizes[name] != (height, width):
            own = sizes[name]
            wrong.append(f"{name}: {own[1]} x {own[0]} (width x height) there, the image file {split.names[i]} has {width} x {height}")
    if wrong:
        raise DataError(
            f"{file}: {len(wrong)} images have another size than their files, so boxes would lie wrong:{listed(wrong)}\nGive the boxes of these files."
        )
    found = [boxes.get(name, {}) for name in names]
    shapes = split.sizes

    def things(i: int) -> list[Thing]:
        return [Thing({NOUN: nouns(category)}, _mask(those, shapes[i])) for category, those in found[i].items()]

    without = [split.names[i] for i, name in enumerate(names) if not name]
    detail = f"{file.name} says nothing of {len(without):,} of {len(names):,} images, {without[0] if without else ''} the first: their words are not scored"
    noticed = [DataProblem(split.name, "", "no_boxes", detail, fatal=False)] if without else []
    return replace(split, captions=replace(split.captions, things=things)), noticed


def _matched(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """For each name the file_name that is the same, else the only one that is the same without folders; "" where there is none."""
    plain: defaultdict[str, list[str]] = defaultdict(list)
    for name in known:
        plain[PurePosixPath(name).name].append(name)
    found = []
    for name in names:
        same = plain[PurePosixPath(name).name]
        found.append(name if name in same else same[0] if len(same) == 1 else "")
    return found


def _instances(file: Path) -> tuple[dict[str, tuple[int, int]], dict[str, _Boxes]]:
    """({file_name: (height, width)}, {file_name: boxes of each category}) of a COCO JSON of instances."""
    wanted = "COCO instances: images (id, file_name, height, width), annotations (image_id, category_id, bbox) and categories (id, name)"
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        categories = {category["id"]: str(category["name"]).lower() for category in content["categories"]}
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        sizes = {str(image["file_name"]): (int(image["height"]), int(image["width"])) for image in content["images"]}
        boxes: dict[str, _Boxes] = {}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                left, top, width, height = map(float, annotation["bbox"])
                boxes.setdefault(names[annotation["image_id"]], {}).setdefault(categories[annotation["category_id"]], []).append((left, top, width, height))
    except FileNotFoundError:
        raise DataError(f"data.boxes: {file}: expected {wanted}; there is no such file") from None
    except KeyError as error:
        raise DataError(f"data.boxes: {file}: expected {wanted}; there is no {error}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"data.boxes: {file}: expected {wanted}: {error}") from None
    return sizes, boxes


def _mask(boxes: Sequence[tuple[float, float, float, float]], size: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels whose centre lies in one of the boxes, of each box one at least. size: H and W."""
    height, width = map(int, size)
    mask = np.zeros((height, width), bool)
    for left, top, across, down in boxes:
        rows, columns = _covered(top, down, height), _covered(left, across, width)
        mask[rows, columns] = True
    return mask


def _covered(start: float, length: float, side: int) -> slice:
    """The pixels of a side whose centres lie in [start, start + length), or the one that holds the middle."""
    first, last = max(0, int(np.ceil(start - 0.5))), min(side, int(np.ceil(start + length - 0.5)))
    if first < last:
        return slice(first, last)
    middle = min(max(int(start + length / 2), 0), side - 1)
    return slice(middle, middle + 1)


def nouns(category: str) -> frozenset[str]:
    """A category and its plural, in lower case; of a name that is a plural already, as skis, its singular."""
    name = category.lower()
    if name in _PLURALS:
        return frozenset({name, _PLURALS[name], *({"persons"} if name == "person" else ())})
    if name.endswith("s") and not name.endswith(("ss", "us")):
        return frozenset({name, name[:-1]})
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return frozenset({name, f"{name}es"})
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return frozenset({name, f"{name[:-1]}ies"})
    return frozenset({name, f"{name}s"})
