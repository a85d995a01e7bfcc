"""What every source gives: named splits of samples, columns rather than objects so that a million fit in memory.

A sample takes 32 bytes and its name: 16 of content hash, 8 of label and 8 of where the name ends. As objects they would be 300.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
import PIL.Image

from pellucid.palettes import MaskFormat
from pellucid.run import DataProblem, SplitRecord, Vocabulary

if TYPE_CHECKING:
    from pellucid.data.text import CaptionTokenizer


class _Packed(Sequence[str]):
    """Texts that are kept packed and made when asked for."""

    @abstractmethod
    def _at(self, i: int) -> str:
        """Text i, which is there."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]  # from the end where negative; IndexError beyond
        return self._at(chosen) if isinstance(chosen, int) else [self._at(i) for i in chosen]


class Names(_Packed):
    """Texts behind each other in one piece of memory: 8 bytes each besides their own, where a str takes 49."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text, self._ends = bytearray(), array("q")
        for name in names:
            self.append(name)

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """The same names; those that are packed already as they are."""
        return names if isinstance(names, Names) else cls(names)

    def append(self, name: str) -> None:
        self._text += name.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends)

    def _at(self, i: int) -> str:
        return self._text[self._ends[i - 1] if i else 0 : self._ends[i]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield self._text[start:end].decode("utf-8", "surrogatepass")
            start = end


class Hashes(_Packed):
    """Content hashes, kept as (n, 16) uint8 `digests` and read as 32 hex digits; "" where all bytes are 0, for no content."""

    def __init__(self, digests: np.ndarray) -> None:
        assert digests.dtype == np.uint8, f"digests are bytes, got {digests.dtype}"
        assert digests.shape[1:] == (16,), f"a digest has 16 bytes, got {digests.shape}"
        self.digests = digests

    @classmethod
    def of(cls, hashes: Iterable[str]) -> Hashes:
        """The same hashes; those that are packed already as they are."""
        if isinstance(hashes, Hashes):
            return hashes
        packed = bytearray()
        for content in hashes:
            packed += bytes.fromhex(content) or bytes(16)
        return cls(np.frombuffer(packed, np.uint8).reshape(-1, 16))

    @property
    def words(self) -> np.ndarray:
        """(n, 2) uint64, the high and the low half of each hash."""
        return np.ascontiguousarray(self.digests).view(">u8").astype(np.uint64)

    def __len__(self) -> int:
        return len(self.digests)

    def _at(self, i: int) -> str:
        return _hex(self.digests[i].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (_hex(digest.tobytes()) for digest in self.digests)


def _hex(digest: bytes) -> str:
    return digest.hex() if any(digest) else ""


@dataclass(frozen=True)
class Masks:
    """The masks of the samples of a split, in their order.

    pixels: (n, C + 1) int64, how many pixels of each class a mask has, the ignored ones last. hashes: content of each mask file as 32 hex digits, "" where
    the sample's own hash says it (drawn scenes). open: sample index -> (H, W) uint8 class indices and palettes.IGNORED, of the size of the upright image;
    raises DataError with the file's name.
    """

    pixels: np.ndarray
    hashes: Sequence[str]
    open: Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Thing:
    """Something in a picture whose place is known.

    names: words for it in lower case, by their kind, noun or color. mask: (H, W) bool, of the size of the upright image.
    """

    names: dict[str, frozenset[str]]
    mask: np.ndarray


@dataclass(frozen=True)
class Captions:
    """The captions of the samples of a split, in their order. texts: of each sample its captions, one at least, each text as the source has it.

    things: sample index -> what of the picture has a name and a place; None where nobody says where things are.
    """

    texts: Sequence[tuple[str, ...]]
    things: Callable[[int], list[Thing]] | None = None

    def hash(self, i: int) -> str:
        """32 hex digits of the captions of a sample (BLAKE2b-128)."""
        return hashlib.blake2b("\0".join(self.texts[i]).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def take(self, indices: np.ndarray) -> Captions:
        """Those of the samples of these (m,) int64 indices, in this order."""
        things = self.things
        return Captions([self.texts[i] for i in indices.tolist()], None if things is None else lambda i: things(int(indices[i])))


@dataclass(frozen=True)
class Split:
    """The samples of one split, in a fixed order.

    names: unique, relative, with /. labels: (n,) int64 indices into the classes; of samples with masks the largest class of each mask that is
    not called background. hashes: content of each sample as 32 hex digits (BLAKE2b-128 of the file's bytes, or of what draws it).
    open: sample index -> PIL image in mode RGB, upright, of its original size; raises DataError with the file's name. masks,
    captions: of samples that have some.
    """

    name: str
    names: Sequence[str]
    labels: np.ndarray
    hashes: Sequence[str]
    open: Callable[[int], PIL.Image.Image]
    masks: Masks | None = None
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hash(self) -> str:
        """One hash over names, labels and content."""
        digest = hashlib.blake2b(digest_size=16)
        for name, label, content in self.rows():
            digest.update(f"{name}\0{label}\0{content}\n".encode())
        return digest.hexdigest()

    def record(self, num_classes: int) -> SplitRecord:
        counts = np.bincount(self.labels, minlength=num_classes).tolist()
        pixels = [] if self.masks is None else self.masks.pixels.sum(axis=0, dtype=np.int64).tolist()
        return SplitRecord(self.name, len(self), self.hash, counts, pixels)

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """(file, label, content hash) of each sample, one at a time; with a mask file or captions the hashes of both, joined by +."""
        if self.captions is not None:
            captions = self.captions
            contents = (f"{image}+{captions.hash(i)}" for i, image in enumerate(self.hashes))
            return zip(self.names, map(int, self.labels), contents, strict=True)
        if self.masks is None:
            return zip(self.names, map(int, self.labels), self.hashes, strict=True)
        contents = (f"{image}+{mask}" if mask else image for image, mask in zip(self.hashes, self.masks.hashes, strict=True))
        return zip(self.names, map(int, self.labels), contents, strict=True)


@dataclass(frozen=True)
class Dataset:
    """Classes, splits and what was found wrong with them. `skipped` names the bad files that were left out (on_bad: skip).

    mask_format: how masks are written, where the samples have some. notes: what was decided while the data was read. tokenizer: what cuts captions into tokens,
    where the samples have some and it was made for them.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    problems: list[DataProblem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    mask_format: MaskFormat | None = None
    notes: list[str] = field(default_factory=list)
    tokenizer: CaptionTokenizer | None = None

    @property
    def outputs(self) -> int | Vocabulary:
        """What a model for this data tells apart: its number of classes, or the tokens of captions."""
        return len(self.classes) if self.tokenizer is None else self.tokenizer.vocabulary
