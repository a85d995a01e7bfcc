"""Samples as a source lists them -> their content hashes, the faults of each file and those of the splits as a whole.

Every file is read once: the bytes are hashed and, unless the same bytes were inspected before, decoded. What was found is kept
by content in the cache folder (`checked/`), so that a second start only reads. No decoded picture outlives its inspection.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import PIL
from PIL import Image

from pellucid.data.dataset import Split
from pellucid.data.images import Finding, findings
from pellucid.data.store import cache_folder
from pellucid.errors import DataError
from pellucid.run import DataProblem, write_json

Progress = Callable[[str, int, int], None]

IMBALANCE = 10  # largest over smallest class of train above which it is said

_INSPECTION_VERSION = 1  # goes up when images.findings says something else about the same bytes
_CHUNK = 32  # files that a thread takes at once


@dataclass(frozen=True)
class Listing:
    """The samples of one split as a source lists them, before a picture is decoded.

    names and open are those of `Split`. labels: class of each sample as the source writes it. read: index -> bytes of an image
    file, to be hashed and inspected; None where the samples are no files, and then `hashes` says their content.
    problems: what the source noticed while listing.
    """

    names: Sequence[str]
    labels: Sequence[str]
    open: Callable[[int], Image.Image]
    read: Callable[[int], bytes] | None = None
    hashes: Sequence[str] | None = None
    problems: Sequence[DataProblem] = ()


@dataclass(frozen=True)
class Listed:
    """What a source gives: splits by name (train, val, test), and its own class order with where that stands, if it has one."""

    splits: dict[str, Listing]
    classes: Sequence[str] | None = None
    origin: str = ""


@dataclass(frozen=True)
class Inspected:
    """A split with its content known. hashes: "" for a file that could not be read. findings: by index, only where there are any."""

    name: str
    names: Sequence[str]
    labels: np.ndarray
    hashes: Sequence[str]
    open: Callable[[int], Image.Image]
    findings: Mapping[int, list[Finding]] = field(default_factory=dict)

    def is_bad(self, index: int) -> bool:
        return any(finding.fatal for finding in self.findings.get(index, ()))

    def take(self, indices: Sequence[int], name: str) -> Inspected:
        """The samples of these indices, in this order, as a split of another name."""
        kept = list(indices)
        source = self.open
        return Inspected(
            name,
            [self.names[i] for i in kept],
            self.labels[kept] if kept else self.labels[:0],
            [self.hashes[i] for i in kept],
            lambda i: source(kept[i]),
            {new: self.findings[old] for new, old in enumerate(kept) if old in self.findings},
        )

    def usable(self) -> Inspected:
        """Without the samples that have a fatal finding."""
        if not any(self.is_bad(i) for i in self.findings):
            return self
        return self.take([i for i in range(len(self.names)) if not self.is_bad(i)], self.name)

    def split(self) -> Split:
        return Split(self.name, self.names, self.labels, self.hashes, self.open)


def inspect(listing: Listing, name: str, labels: np.ndarray, *, progress: Progress | None = None) -> Inspected:
    """The split with every file hashed and looked at, a few at a time in threads. labels: (n,) int64 class indices."""
    if listing.read is None:
        assert listing.hashes is not None
        return Inspected(name, listing.names, labels, listing.hashes, listing.open)
    read, names, total = listing.read, listing.names, len(listing.names)
    checked = _Checked(cache_folder() / "checked")
    hashes: list[str] = []
    found: dict[int, list[Finding]] = {}

    def look(start: int) -> list[tuple[str, list[Finding]]]:
        return [_look(read, i, names[i], checked) for i in range(start, min(start + _CHUNK, total))]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for results in pool.map(look, range(0, total, _CHUNK)):
                for content, faults in results:
                    if faults:
                        found[len(hashes)] = faults
                    hashes.append(content)
                if progress is not None:
                    progress(f"checking {name}", len(hashes), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    checked.save()
    return Inspected(name, names, labels, hashes, listing.open, found)


def _look(read: Callable[[int], bytes], index: int, name: str, checked: _Checked) -> tuple[str, list[Finding]]:
    try:
        data = read(index)
    except OSError as error:
        return "", [Finding("unreadable", f"the file cannot be read: {error.strerror or error}", fatal=True)]
    content = hashlib.blake2b(data, digest_size=16).hexdigest()
    key = content + PurePosixPath(name).suffix.lower()  # one finding depends on the ending
    faults = checked.get(key)
    if faults is None:
        faults = findings(data, name)
        checked.put(key, faults)
    return content, faults


class _Checked:
    """What was found in files seen before, by content; 16 JSON files, by the first digit of the hash. Safe across threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._versions = f"{_INSPECTION_VERSION}, Pillow {PIL.__version__}, at most {Image.MAX_IMAGE_PIXELS} pixels"
        self._shelves: dict[str, dict[str, list[Finding]]] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()

    def get(self, key: str) -> list[Finding] | None:
        with self._lock:
            return self._shelf(key[0]).get(key)

    def put(self, key: str, faults: list[Finding]) -> None:
        with self._lock:
            self._shelf(key[0])[key] = faults
            self._changed.add(key[0])

    def save(self) -> None:
        """Write what is new. Two processes at once may lose each other's lines: those files are looked at again next time."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for digit in sorted(self._changed):
                lines = {key: [asdict(fault) for fault in faults] for key, faults in self._shelves[digit].items()}
                write_json(self._folder / f"{digit}.json", {"versions": self._versions, "files": lines})
        except OSError as error:
            fault = f"{self._folder}: cannot keep what was found in the images: {error.strerror or error}."
            raise DataError(f"{fault} Set XDG_CACHE_HOME to a folder that can be written.") from None

    def _shelf(self, digit: str) -> dict[str, list[Finding]]:
        if digit not in self._shelves:
            self._shelves[digit] = self._load(self._folder / f"{digit}.json")
        return self._shelves[digit]

    def _load(self, file: Path) -> dict[str, list[Finding]]:
        """A shelf, empty where there is none, it was written by other versions or it is damaged: then files are looked at anew."""
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["versions"] != self._versions:
                return {}
            return {key: [Finding(**fault) for fault in faults] for key, faults in kept["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


# ── problems of splits ────────────────────────────────────────────────────────────────────────────────────────


def problems(splits: Mapping[str, Inspected], classes: Sequence[str]) -> list[DataProblem]:
    """Every fault, split by split: those of files, then duplicate, leak, class_missing and imbalance of the usable ones."""
    found: list[DataProblem] = []
    usable = {name: split.usable() for name, split in splits.items()}
    earlier: dict[str, tuple[str, str]] = {}  # content -> (split, file) of the splits before
    for name, split in splits.items():
        for i, faults in sorted(split.findings.items()):
            found += [DataProblem(name, split.names[i], fault.kind, fault.detail, fault.fatal) for fault in faults]
        first = _duplicates(usable[name], classes, found)
        for content, file in first.items():
            if content in earlier:
                where, other = earlier[content]
                found.append(DataProblem(name, file, "leak", f"same content as {other} in {where}", fatal=False))
            else:
                earlier[content] = (name, file)
        found += _class_problems(usable[name], classes)
    return found


def _duplicates(split: Inspected, classes: Sequence[str], found: list[DataProblem]) -> dict[str, str]:
    """The first file of each content; later ones are added to the problems, with both labels where they differ."""
    first: dict[str, int] = {}
    for i, content in enumerate(split.hashes):
        j = first.setdefault(content, i)
        if i != j:
            one, other = classes[split.labels[j]], classes[split.labels[i]]
            labels = "" if one == other else f", under another label: {other!r} here, {one!r} there"
            found.append(DataProblem(split.name, split.names[i], "duplicate", f"same content as {split.names[j]}{labels}", fatal=False))
    return {content: split.names[i] for content, i in first.items()}


def _class_problems(split: Inspected, classes: Sequence[str]) -> list[DataProblem]:
    counts = np.bincount(split.labels, minlength=len(classes))
    found = [
        DataProblem(split.name, "", "class_missing", f"no usable image of class {name!r}", fatal=False)
        for name, count in zip(classes, counts, strict=True)
        if count == 0
    ]
    present = np.flatnonzero(counts)
    if split.name == "train" and len(present) > 1:
        most, least = int(present[counts[present].argmax()]), int(present[counts[present].argmin()])
        if counts[most] > IMBALANCE * counts[least]:
            detail = f"{classes[most]!r} has {counts[most]} images, {classes[least]!r} has {counts[least]}: more than {IMBALANCE} to 1"
            found.append(DataProblem(split.name, "", "imbalance", detail, fatal=False))
    return found


def listed(lines: Iterable[str], *, most: int = 20) -> str:
    """The lines below each other, indented, at most `most` of them and then how many more."""
    rows = list(lines)
    more = [f"… and {len(rows) - most} more"] if len(rows) > most else []
    return "".join(f"\n  {row}" for row in rows[:most] + more)
