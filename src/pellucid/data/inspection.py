"""Samples as a source lists them -> their content hashes, the faults of each file and those of the splits as a whole.

Every file is read once: the bytes are hashed and, unless an earlier start inspected the same bytes, decoded. What was found is kept
by content in the cache folder (`checked/`), so that a second start only reads. No decoded picture outlives its inspection, and of
a file without a fault nothing is kept but its hash.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import posixpath
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import PIL
from PIL import Image

from pellucid.data.dataset import Captions, Hashes, Masks, Names, Split
from pellucid.data.images import Finding, decode, findings, upright_size
from pellucid.data.store import cache_folder
from pellucid.errors import DataError
from pellucid.palettes import MaskFormat
from pellucid.records import write_json
from pellucid.run import DataProblem

Progress = Callable[[str, int, int], None]
T = TypeVar("T")

UNLABELLED = "unlabelled"  # the class of images without labels
IMBALANCE = 10  # largest over smallest class of train above which it is said

_INSPECTION_VERSION = 1  # goes up when images.findings says something else about the same bytes
CHUNK = 32  # files that a thread takes at once
_AHEAD = 4  # chunks that wait for each thread


@dataclass(frozen=True)
class Listing:
    """The samples of one split as a source lists them, before a picture is decoded.

    names and open are those of `Split`. labels: class of each sample as the source writes it. read: index -> bytes of an image
    file, to be hashed, inspected and, later, decoded; None where the samples are no files, and then `open` gives them and
    `hashes` says their content. path: what messages call a file, where that is more than its name.
    problems: what the source noticed while listing.
    """

    names: Sequence[str]
    labels: Sequence[str]
    open: Callable[[int], Image.Image] | None = None
    read: Callable[[int], bytes] | None = None
    hashes: Sequence[str] | None = None
    problems: Sequence[DataProblem] = ()
    path: Callable[[int], str] | None = None


@dataclass(frozen=True)
class Listed:
    """What a source gives: splits by name (train, val, test), and its own class order with where that stands, if it has one."""

    splits: dict[str, Listing]
    classes: Sequence[str] | None = None
    origin: str = ""


@dataclass(frozen=True)
class Inspected:
    """A split with its content known. hashes: "" for a file that could not be read. findings: by index, only where there are any.

    sizes: (n, 2) int32 height and width of the upright images, where asked for, 0 of those without a picture. masks, captions: where the samples have some.
    """

    name: str
    names: Names
    labels: np.ndarray
    hashes: Hashes
    open: Callable[[int], Image.Image]
    findings: Mapping[int, list[Finding]] = field(default_factory=dict)
    sizes: np.ndarray | None = None
    masks: Masks | None = None
    captions: Captions | None = None

    def is_bad(self, index: int) -> bool:
        return any(finding.fatal for finding in self.findings.get(index, ()))

    def take(self, indices: np.ndarray, name: str) -> Inspected:
        """The samples of these (m,) int64 indices, in this order, as a split of another name."""
        names, source = self.names, self.open
        found = {new: self.findings[old] for new, old in enumerate(indices.tolist()) if old in self.findings} if self.findings else {}
        return Inspected(
            name,
            Names(names[i] for i in indices),
            self.labels[indices],
            Hashes(self.hashes.digests[indices]),
            lambda i: source(int(indices[i])),
            found,
            None if self.sizes is None else self.sizes[indices],
            None if self.masks is None else _taken(self.masks, indices),
            None if self.captions is None else self.captions.take(indices),
        )

    def with_findings(self, findings: Mapping[int, list[Finding]]) -> Inspected:
        """The split with these findings, by index, behind its own."""
        found = {i: [*self.findings.get(i, ()), *findings.get(i, ())] for i in sorted({*self.findings, *findings})}
        return replace(self, findings=found)

    def usable(self) -> Inspected:
        """Without the samples that have a fatal finding."""
        bad = [i for i in self.findings if self.is_bad(i)]
        return self.take(np.delete(np.arange(len(self.names)), bad), self.name) if bad else self

    def split(self) -> Split:
        return Split(self.name, self.names, self.labels, self.hashes, self.open, self.masks, self.captions)


def _taken(masks: Masks, indices: np.ndarray) -> Masks:
    open_mask = masks.open
    return Masks(masks.pixels[indices], Hashes(Hashes.of(masks.hashes).digests[indices]), lambda i: open_mask(int(indices[i])))


@dataclass(frozen=True)
class Gathered:
    """All that was found: splits with their bad samples still in them, and every problem. A fatal problem without a file is one of the whole set.

    mask_format, notes: as in Dataset. palette: (colour, pixels) of the training masks, where they are coloured and nobody said which colour is what.
    """

    classes: tuple[str, ...]
    splits: dict[str, Inspected]
    problems: list[DataProblem]
    mask_format: MaskFormat | None = None
    notes: list[str] = field(default_factory=list)
    palette: list[tuple[tuple[int, int, int], int]] = field(default_factory=list)


def inspect(listing: Listing, name: str, labels: np.ndarray, *, measured: bool = False, progress: Progress | None = None) -> Inspected:
    """The split with every file hashed and looked at, a few at a time in threads. labels: (n,) int64 class indices. measured: with `sizes`, of files."""
    names = Names.of(listing.names)
    if listing.read is None:
        assert listing.hashes is not None
        assert listing.open is not None
        return Inspected(name, names, labels, Hashes.of(listing.hashes), listing.open)
    read, total = listing.read, len(names)
    checked = _Checked()
    digests = np.zeros((total, 16), np.uint8)
    sizes = np.zeros((total, 2), np.int32) if measured else None
    found: dict[int, list[Finding]] = {}

    def look(start: int) -> dict[int, list[Finding]]:
        faults = {}
        for i in range(start, min(start + CHUNK, total)):
            digest, faults[i], size = _look(read, i, names[i], checked, measured)
            digests[i] = np.frombuffer(digest, np.uint8)
            if sizes is not None:
                sizes[i] = size
        return {i: those for i, those in faults.items() if those}

    for start, faults in in_threads(look, range(0, total, CHUNK)):
        found |= faults
        if progress is not None:
            progress(f"checking {name}", min(start + CHUNK, total), total)
    checked.save()
    return Inspected(name, names, labels, Hashes(digests), _opener(read, listing.path or names.__getitem__, digests), found, sizes)


def large_enough(split: Inspected, least: tuple[int, int]) -> Inspected:
    """The split with the fatal finding too_small of each image below `least` (height, width). Nothing is said of images whose size is not known."""
    if split.sizes is None:
        return split
    small = np.flatnonzero(split.sizes.any(axis=1) & (split.sizes < np.array(least)).any(axis=1)).tolist()
    asked = f"expected at least {least[0]}x{least[1]} pixels (height x width) to cut training images of data.image_size from"
    remedy = "lower data.image_size, or let data.fit resize the images to it"
    details = {i: f"{asked}, got {split.sizes[i, 0]}x{split.sizes[i, 1]}; {remedy}" for i in small}
    return split.with_findings({i: [Finding("too_small", detail, fatal=True)] for i, detail in details.items()})


def _opener(read: Callable[[int], bytes], path: Callable[[int], str], digests: np.ndarray) -> Callable[[int], Image.Image]:
    """How a file's picture is had after it was inspected: from the bytes that were inspected, never from others.

    Otherwise a file that changes in between would be trained on under its old label, and stand in the store under its old content.
    """

    return lambda i: decode(same_bytes(read, i, path, digests), path(i))


def same_bytes(read: Callable[[int], bytes], i: int, path: Callable[[int], str], digests: np.ndarray) -> bytes:
    """The bytes of file i, those whose digest stands in `digests` (n, 16). DataError where they are others or cannot be read."""
    try:
        data = read(i)
    except OSError as error:
        raise DataError(f"{path(i)}: cannot be read any more: {error.strerror or error}") from None
    if hashlib.blake2b(data, digest_size=16).digest() != digests[i].tobytes():
        raise DataError(f"{path(i)}: the file changed after it was checked; start again when nothing writes to the data")
    return data


def in_threads(look: Callable[[int], T], starts: Sequence[int]) -> Iterator[tuple[int, T]]:
    """(start, result) in order, with never more than a few waiting: as futures all chunks of a large set would take memory of their own."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[T]]] = deque()
        try:
            for start in starts:
                waiting.append((start, pool.submit(look, start)))
                if len(waiting) > _AHEAD * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _look(read: Callable[[int], bytes], index: int, name: str, checked: _Checked, measured: bool) -> tuple[bytes, list[Finding], tuple[int, int]]:
    """(digest, findings, size) of one file; size is (0, 0) where there is none or it was not asked for."""
    try:
        data = read(index)
    except OSError as error:
        return bytes(16), [Finding("unreadable", f"the file cannot be read: {error.strerror or error}", fatal=True)], (0, 0)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    key = digest.hex() + posixpath.splitext(name)[1].lower()  # one finding depends on the ending
    faults = checked.get(key)
    if faults is None:
        faults = findings(data, name)
        checked.put(key, faults)
    whole = measured and not any(fault.fatal for fault in faults)
    return digest, faults, upright_size(data, name) if whole else (0, 0)


class Kept:
    """What is known of files by their content, as JSON; 16 files in a folder of the cache, by the first digit of each key. Safe across threads.

    versions: what the knowledge depends on; files of others are not read.
    """

    def __init__(self, name: str, versions: str) -> None:
        self._folder, self._versions = cache_folder() / name, versions
        self._new: defaultdict[str, bytearray] = defaultdict(bytearray)  # digit -> lines of JSON
        self._lock = threading.Lock()

    def add(self, key: str, value: Any) -> None:
        line = json.dumps([key, value]).encode() + b"\n"
        with self._lock:
            self._new[key[0]] += line

    def load(self, digit: str) -> dict[str, Any]:
        """What earlier starts kept under keys of this first digit; nothing where there is no file, other versions wrote it or it is damaged."""
        try:
            kept = json.loads((self._folder / f"{digit}.json").read_text(encoding="utf-8"))
            return dict(kept["files"]) if kept["versions"] == self._versions else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def save(self) -> None:
        """Write what is new. Two processes at once may lose each other's lines: those files are looked at again next time."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for digit, lines in sorted(self._new.items()):
                files = self.load(digit) | dict(map(json.loads, lines.splitlines()))
                write_json(self._folder / f"{digit}.json", {"versions": self._versions, "files": files})
        except OSError as error:
            fault = f"{self._folder}: cannot keep what was found in the images: {error.strerror or error}."
            raise DataError(f"{fault} Set XDG_CACHE_HOME to a folder that can be written.") from None


class _Checked:
    """What was found in images seen before, by content. Safe across threads.

    In memory are 16 bytes for each file without a fault, those of earlier starts only: what this start finds is asked for again by
    copies alone, which are decoded once more.
    """

    def __init__(self) -> None:
        self._kept = Kept("checked", f"{_INSPECTION_VERSION}, Pillow {PIL.__version__}, at most {Image.MAX_IMAGE_PIXELS} pixels")
        self._clean: dict[str, np.ndarray] = {}  # digit -> sorted (n,) 16 bytes of each key without a fault
        self._faulty: dict[str, list[Finding]] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> list[Finding] | None:
        with self._lock:
            if key[0] not in self._clean:
                self._open(key[0])
            clean = self._clean[key[0]]
        short = _short(key)
        place = int(np.searchsorted(clean, short))
        return [] if place < len(clean) and clean[place] == short else self._faulty.get(key)

    def put(self, key: str, faults: list[Finding]) -> None:
        self._kept.add(key, [asdict(fault) for fault in faults])

    def save(self) -> None:
        self._kept.save()

    def _open(self, digit: str) -> None:
        files = self._kept.load(digit)
        try:
            found = {key: [Finding(**fault) for fault in faults] for key, faults in files.items()}
        except (TypeError, AttributeError):  # a damaged file: its images are looked at anew
            found = {}
        self._clean[digit] = np.sort(np.array([_short(key) for key, faults in found.items() if not faults], "S16"))
        self._faulty |= {key: faults for key, faults in found.items() if faults}


def _short(key: str) -> bytes:
    """16 bytes that stand for a key, whatever its ending; as in numpy's arrays of bytes, zeros at the end are left out."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest().rstrip(b"\0")


# ── problems of splits ────────────────────────────────────────────────────────────────────────────────────────


def problems(splits: Mapping[str, Inspected], classes: Sequence[str]) -> list[DataProblem]:
    """Every fault, split by split: those of files, then duplicate, leak, class_missing and imbalance of the usable ones. No classes: none of the last two."""
    found: list[DataProblem] = []
    usable = [split.usable() for split in splits.values()]
    starts = [0, *itertools.accumulate(len(split.names) for split in usable)]  # of each split among the samples of all
    everywhere = _firsts([split.hashes for split in usable])
    for split, own, start, stop in zip(splits.values(), usable, starts, starts[1:], strict=False):
        for i, faults in sorted(split.findings.items()):
            found += [DataProblem(split.name, split.names[i], fault.kind, fault.detail, fault.fatal) for fault in faults]
        first = _firsts([own.hashes])
        found += _duplicates(own, first, classes)
        seen = everywhere[start:stop]
        for i in np.flatnonzero((seen < start) & (first == np.arange(len(first)))).tolist():  # of copies within the split the first alone
            where = bisect.bisect_right(starts, seen[i]) - 1
            other = usable[where]
            j = int(seen[i]) - starts[where]
            other_mask = own.masks is not None and other.masks is not None and own.masks.hashes[i] != other.masks.hashes[j]
            mask = ", under another mask" if other_mask else ""
            detail = f"same content as {other.names[j]} in {other.name}{mask}"
            found.append(DataProblem(split.name, own.names[i], "leak", detail, fatal=False))
        found += _class_problems(own, classes)
    return found


def _firsts(hashes: Sequence[Hashes]) -> np.ndarray:
    """(n,) int64: for each of the n samples of these splits behind each other, the first one of the same content."""
    words = np.concatenate([those.words for those in hashes])
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: samples of the same content stay in their order
    words = words[order]
    begins = np.ones(len(words), bool)
    begins[1:] = (words[1:] != words[:-1]).any(axis=1)
    first = np.empty(len(words), np.int64)
    first[order] = np.repeat(order[begins], np.diff(np.append(np.flatnonzero(begins), len(words))))
    return first


def _duplicates(split: Inspected, first: np.ndarray, classes: Sequence[str]) -> Iterator[DataProblem]:
    """Each sample whose content stood in the split before, with both labels where they differ. first: as `_firsts` gives it."""
    for i in np.flatnonzero(first != np.arange(len(first))).tolist():
        j = int(first[i])
        yield DataProblem(split.name, split.names[i], "duplicate", f"same content as {split.names[j]}{_difference(split, i, j, classes)}", fatal=False)


def _difference(split: Inspected, i: int, j: int, classes: Sequence[str]) -> str:
    """What is said otherwise of sample i than of j, which has the same content; "" where nothing is."""
    if split.masks is not None:
        return "" if split.masks.hashes[i] == split.masks.hashes[j] else ", under another mask"
    if split.captions is not None:
        return "" if split.captions.texts[i] == split.captions.texts[j] else ", under other captions"
    one, other = split.labels[j], split.labels[i]
    return "" if one == other else f", under another label: {classes[other]!r} here, {classes[one]!r} there"


def _class_problems(split: Inspected, classes: Sequence[str]) -> list[DataProblem]:
    if not classes:
        return []
    if split.masks is not None:
        return _pixel_problems(split.name, split.masks.pixels[:, : len(classes)].sum(axis=0), classes)
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


def _pixel_problems(split: str, pixels: np.ndarray, classes: Sequence[str]) -> list[DataProblem]:
    """pixels: (C,) of each class in the usable masks of a split."""
    found = [
        DataProblem(split, "", "class_missing", f"no usable mask has a pixel of class {name!r}", fatal=False)
        for name, count in zip(classes, pixels, strict=True)
        if count == 0
    ]
    present = pixels[pixels > 0]
    if split == "train" and len(present) > 1 and present.max() > IMBALANCE * present.min():
        order = np.argsort(-pixels, kind="stable")
        shares = ", ".join(f"{classes[i]} {100 * pixels[i] / pixels.sum():.3g} %" for i in order if pixels[i])
        detail = f"classes have very unequal pixels, more than {IMBALANCE} to 1: {shares}"
        found.append(DataProblem(split, "", "imbalance", detail, fatal=False))
    return found


def listed(lines: Iterable[str], *, most: int = 20) -> str:
    """The lines below each other, indented, at most `most` of them and then how many more."""
    rows = list(lines)
    more = [f"… and {len(rows) - most} more"] if len(rows) > most else []
    return "".join(f"\n  {row}" for row in rows[:most] + more)
