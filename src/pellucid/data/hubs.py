"""Image sets of torchvision and of the Hugging Face hub -> listings. The only sources that may use the network, and only
because the recipe names them: what is already on the disk is taken first, and a refused download is an error that says so.

data.train, val and test name splits of the set. By default train is its "train" (or "trainval") and val its validation split,
else its "test". No code that comes with a set is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from pellucid.data.images import decode
from pellucid.data.inspection import Listed, Listing, Progress
from pellucid.data.store import cache_folder
from pellucid.errors import DataError, MissingError, did_you_mean
from pellucid.recipe import DataSection

_TRAIN = ("train", "trainval")
_VAL = ("validation", "val", "valid", "test")


def _split_names(data: DataSection, there: Collection[str]) -> dict[str, str]:
    """{train, val, test: name of the set's split}: what the recipe names, and the defaults for train and val."""
    chosen: dict[str, str] = {}
    for split, usual in (("test", ()), ("train", _TRAIN), ("val", _VAL)):
        value = getattr(data, split)
        if split == "val" and isinstance(value, float):
            continue
        if value is None:
            value = next((name for name in usual if name in there and name not in chosen.values()), None)
            if value is None and split == "train":
                raise DataError(f"{data.source}: it has no split named train; there are: {', '.join(there)}. Name one with data.train.")
        elif value not in there:
            raise DataError(f"{data.source}: data.{split}: {value!r} is not one of its splits: {', '.join(there)}.{did_you_mean(str(value), there)}")
        if value is not None:
            chosen[split] = value
    return {split: chosen[split] for split in ("train", "val", "test") if split in chosen}


def _distinct(classes: Sequence[Any]) -> list[str]:
    """The names of classes, those that stand twice (ImageNet has two cranes) with their index behind them."""
    names = [", ".join(name) if isinstance(name, tuple | list) else str(name) for name in classes]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


# ── torchvision ───────────────────────────────────────────────────────────────────────────────────────────────

# Names that a `split` argument may take; a set's constructor says which of them it knows.
_ASKED = ("train", "trainval", "val", "valid", "validation", "test", "extra", "unlabeled")


def torchvision(data: DataSection, progress: Progress | None) -> Listed:
    """The splits of torchvision.datasets.<Name>. Its samples are pictures, not files: the content is that of the pixels."""
    import torchvision.datasets as collection

    name = data.source.partition(":")[2]
    make = getattr(collection, name, None) if name in collection.__all__ else None
    if make is None:
        raise DataError(f"{data.source}: torchvision.datasets has no {name!r}.{did_you_mean(name, collection.__all__)}")
    root = Path(os.environ.get("PELLUCID_TORCHVISION_ROOT") or cache_folder() / "torchvision")
    sets = _torchvision_sets(data, make, root, progress)
    own = next((getattr(one, "classes", None) for one in sets.values() if getattr(one, "classes", None)), None)
    classes = None if own is None else _distinct(own)
    splits = {split: _of_torchvision(one, split, data.source, classes, progress) for split, one in sets.items()}
    return Listed(splits, classes, data.source)


def _torchvision_sets(data: DataSection, make: Callable[..., Any], root: Path, progress: Progress | None) -> dict[str, Any]:
    """{train, val, test: data set}, by what its constructor calls splits: `train=True`, `split="train"`, or nothing."""
    parameters = inspect.signature(make).parameters
    if "split" in parameters:
        asked = [value for value in (data.train, data.val, data.test) if isinstance(value, str)]
        there = [name for name in dict.fromkeys([*asked, *_ASKED]) if _knows(make, root, name, parameters)]
        arguments: dict[str, dict[str, Any]] = {name: {"split": name} for name in there}
    elif "train" in parameters:
        arguments = {"train": {"train": True}, "test": {"train": False}}
    else:
        arguments = {"train": {}}
    chosen = _split_names(data, arguments)
    return {split: _construct(make, root, arguments[name], data.source, parameters, progress) for split, name in chosen.items()}


def _knows(make: Callable[..., Any], root: Path, split: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the constructor accepts the name of a split; it refuses with ValueError before it looks for files."""
    try:
        make(**_rooted(root, parameters), split=split)
    except ValueError:
        return False
    except (RuntimeError, OSError):
        return True  # known, not on the disk yet
    return True


def _rooted(root: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"root": str(root)} if "root" in parameters else {}


def _construct(make: Callable[..., Any], root: Path, arguments: dict[str, Any], source: str, parameters: Mapping[str, Any], progress: Progress | None) -> Any:
    """The data set from the disk, else downloaded into `root`."""
    arguments = arguments | _rooted(root, parameters)
    try:
        return make(**arguments)
    except (RuntimeError, OSError) as error:
        absent = error
    except TypeError as error:
        raise DataError(f"{source}: it needs arguments that a recipe cannot give: {error}") from None
    if "download" not in parameters:
        raise MissingError(f"{source}: not found under {root} and not offered for download: {_first_line(absent)}")
    if progress is not None:
        progress(f"downloading {source}", 0, 1)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            return make(**arguments, download=True)
    except (RuntimeError, OSError) as error:
        raise MissingError(
            f"{source}: not found under {root}, and the download failed: {_first_line(error)}. "
            "Connect to the network, or put its files there (PELLUCID_TORCHVISION_ROOT names another folder)."
        ) from None


def _of_torchvision(one: Any, split: str, source: str, classes: Sequence[str] | None, progress: Progress | None) -> Listing:
    lock = threading.Lock()  # some sets seed a global generator or move a file pointer on each access

    def item(i: int) -> tuple[Image.Image, Any]:
        try:
            with lock:
                image, label = one[i]
        except (OSError, SyntaxError) as error:
            raise DataError(f"{source}: {split}: image {i} cannot be read: {_first_line(error)}") from None
        if not isinstance(image, Image.Image):
            raise DataError(f"{source}: expected pictures, its items hold {type(image).__name__}")
        return image.convert("RGB"), label

    labels, hashes = [], []
    for i in range(len(one)):
        image, label = item(i)
        labels.append(_torchvision_label(label, classes, source, split, i))
        hashes.append(hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest())
        if progress is not None:
            progress(f"reading {split}", i + 1, len(one))
    return Listing([f"{split}-{i:06d}" for i in range(len(one))], labels, lambda i: item(i)[0], hashes=hashes)


def _torchvision_label(label: Any, classes: Sequence[str] | None, source: str, split: str, index: int) -> str:
    try:
        number = int(label)
    except (TypeError, ValueError):
        raise DataError(f"{source}: expected one class index for each image, got {type(label).__name__}; it is no classification set") from None
    if number < 0 or (classes is not None and number >= len(classes)):
        raise DataError(f"{source}: {split}: image {index} has no class (label {number})")
    return str(number) if classes is None else classes[number]


# ── Hugging Face ──────────────────────────────────────────────────────────────────────────────────────────────


def huggingface(data: DataSection, progress: Progress | None) -> Listed:
    """The splits of a data set repository, from the hub's local cache where it is there."""
    try:
        import datasets
    except ImportError:
        raise MissingError(f"{data.source}: needs the datasets library. Install it with: pip install 'pellucid[hub]'") from None
    folder = _snapshot(data.source, progress)
    try:
        loaded = datasets.load_dataset(folder)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{data.source}: cannot be loaded as a data set of images: {_first_line(error)}") from None
    chosen = _split_names(data, list(loaded))
    columns = loaded[chosen["train"]].features
    image = _image_column(columns, data.source)
    label = _label_column(columns, data)
    classes = _distinct(columns[label].names) if isinstance(columns[label], datasets.ClassLabel) else None
    splits = {}
    for split, name in chosen.items():
        rows = loaded[name].cast_column(image, datasets.Image(decode=False))
        splits[split] = _of_hub(rows, image, label, classes, split, data.source)
    return Listed(splits, classes, data.source)


def _snapshot(source: str, progress: Progress | None) -> str:
    """The folder of the repository's files, downloaded only when the cache does not have it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name = source.partition(":")[2]
    try:
        return str(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except HFValidationError as error:
        raise DataError(f"{source}: {name!r} is no name of a repository: {_first_line(error)}") from None
    except LocalEntryNotFoundError:
        if progress is not None:
            progress(f"downloading {source}", 0, 1)
    try:
        return str(snapshot_download(name, repo_type="dataset"))
    except Exception as error:  # the hub's client lets through what its network library raises, and has changed that library twice
        raise MissingError(
            f"{source}: not in the hub's local cache, and the download failed: {_first_line(error)}. "
            "Check the name, connect to the network, or set HF_HUB_CACHE to a cache that holds it."
        ) from None


def _image_column(columns: Mapping[str, Any], source: str) -> str:
    import datasets

    found = [name for name, feature in columns.items() if isinstance(feature, datasets.Image)]
    chosen = next((name for name in ("image", "img") if name in found), found[0] if len(found) == 1 else None)
    if chosen is None:
        raise DataError(f"{source}: expected one column of images named image or img; its columns are: {', '.join(columns)}")
    return chosen


def _label_column(columns: Mapping[str, Any], data: DataSection) -> str:
    import datasets

    for name in (data.label_column, "label", "fine_label"):
        if name in columns:
            return name
    found = [name for name, feature in columns.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) != 1:
        raise DataError(f"{data.source}: expected a column of labels; its columns are: {', '.join(columns)}. Name it with data.label_column.")
    return found[0]


def _of_hub(rows: Any, image: str, label: str, classes: Sequence[str] | None, split: str, source: str) -> Listing:
    def read(i: int) -> bytes:
        cell = rows[i][image]
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        return Path(cell["path"]).read_bytes()

    def names() -> Iterator[str]:
        for i, cell in enumerate(rows.select_columns([image])):
            path = cell[image]["path"] or ""
            yield f"{split}-{i:06d}{PurePosixPath(path).suffix.lower()}"

    labels = [_hub_label(value, classes, source, split, i) for i, value in enumerate(rows[label])]
    listed_names = list(names())
    return Listing(listed_names, labels, lambda i: decode(read(i), listed_names[i]), read)


def _hub_label(value: Any, classes: Sequence[str] | None, source: str, split: str, index: int) -> str:
    if value is None or value == -1:
        raise DataError(f"{source}: {split}: row {index} has no label (the hub's mark for a withheld test set); choose another split")
    return str(value) if classes is None else classes[value]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
