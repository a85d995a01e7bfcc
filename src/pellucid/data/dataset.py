"""What every source gives: named splits of samples, columns rather than objects so that a million fit in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image

from pellucid.run import DataProblem, SplitRecord


@dataclass(frozen=True)
class Split:
    """The samples of one split, in a fixed order.

    names: unique, relative, with forward slashes. labels: (n,) int64 indices into the classes.
    hashes: content of each sample as 32 hex digits (BLAKE2b-128 of the file's bytes, or of what draws it).
    open: sample index -> PIL image in mode RGB, upright, of its original size; raises DataError with the file's name.
    """

    name: str
    names: Sequence[str]
    labels: np.ndarray
    hashes: Sequence[str]
    open: Callable[[int], PIL.Image.Image]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hash(self) -> str:
        """One hash over names, labels and content."""
        digest = hashlib.blake2b(digest_size=16)
        for name, label, content in zip(self.names, self.labels, self.hashes, strict=True):
            digest.update(f"{name}\0{label}\0{content}\n".encode())
        return digest.hexdigest()

    def record(self, num_classes: int) -> SplitRecord:
        counts = np.bincount(self.labels, minlength=num_classes).tolist()
        return SplitRecord(self.name, len(self), self.hash, counts)

    def rows(self) -> list[tuple[str, int, str]]:
        """(file, label, content hash) of each sample."""
        return [(n, int(label), h) for n, label, h in zip(self.names, self.labels, self.hashes, strict=True)]


@dataclass(frozen=True)
class Dataset:
    """Classes, splits and what was found wrong with them. `skipped` names the bad files that were left out (on_bad: skip)."""

    classes: tuple[str, ...]
    splits: dict[str, Split]
    problems: list[DataProblem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
