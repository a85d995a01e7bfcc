"""Files below folders, in one fixed order, and what lies beside them in text: what every source of files starts from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pellucid.data.dataset import Names
from pellucid.data.inspection import Listing
from pellucid.errors import DataError, did_you_mean
from pellucid.recipe import DataSection
from pellucid.run import DataProblem


def split_paths(data: DataSection) -> dict[str, str]:
    """The path of each split that has one of its own."""
    return {split: value for split in ("train", "val", "test") if isinstance(value := getattr(data, split), str)}


def existing(root: Path, what: str) -> Path:
    """The folder, which is there; `what` says what it should hold. DataError names a neighbour of nearly that name."""
    if not root.is_dir():
        nearby = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
        raise DataError(f"{root}: expected a folder of {what}, there is none.{did_you_mean(root.name, nearby)}")
    return root


def files_below(root: Path) -> Iterator[str]:
    """Paths below a folder with forward slashes, sorted; hidden files and folders are left aside, links are followed once.

    One folder at a time is in memory. With a slash behind their names, folders stand where the paths below them belong.
    """
    seen: set[tuple[int, int]] = set()

    def below(folder: str) -> Iterator[str]:
        stat = os.stat(root / folder)
        if (stat.st_dev, stat.st_ino) in seen:
            return  # a link back up would never end
        seen.add((stat.st_dev, stat.st_ino))
        names = []
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if any("\ud800" <= character <= "\udfff" for character in entry.name):  # bytes that are no text, as Python shows them
                    raise DataError(f"{root / folder}: the name {entry.name!r} is not UTF-8 text; rename it")
                names.append(f"{entry.name}/" if entry.is_dir() else entry.name)
        for name in sorted(names):
            if name.endswith("/"):
                yield from below(folder + name)
            else:
                yield folder + name

    return below("")


def of_files(names: Names, labels: Sequence[str], path: Callable[[int], str], noticed: Sequence[DataProblem] = ()) -> Listing:
    """The listing of files at these paths."""
    return Listing(names, labels, read=reader(path), problems=noticed, path=path)


def reader(path: Callable[[int], str]) -> Callable[[int], bytes]:
    """index -> the bytes of the file at its path."""

    def read(i: int) -> bytes:
        with open(path(i), "rb") as file:
            return file.read()

    return read


def lines_of(file: Path) -> list[str]:
    """The lines of a file of class names that are not empty."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a UTF-8 text file with one class name a line: {error}") from None
    return [line for line in lines if line]


def classes_file(train: Path) -> tuple[list[str] | None, str]:
    """The lines and the path of the classes.txt that belongs to a folder or a table."""
    for file in (train / "classes.txt", train.parent / "classes.txt"):
        if file.is_file():
            return lines_of(file), str(file)
    return None, ""
