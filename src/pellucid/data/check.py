"""The data of a recipe -> everything there is to say about it before a model is trained. `pellucid data check` prints it.

Kinds of problems. Fatal, a file that training refuses or skips: zero_size, unreadable, truncated, too_large, animated. Told, of
a file: wrong_extension, 16_bit, cmyk, palette, transparent, exif_rotated, corrupt_metadata (images.py says how each is
read), duplicate (same content twice in a split), leak (same content in two splits), other_file (no image by its ending). Told,
of a split: class_missing, imbalance (over 10 to 1 in train).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pellucid.data.inspection import Progress
from pellucid.data.sources import gather
from pellucid.recipe import DataSection
from pellucid.run import DataProblem, SplitRecord


@dataclass(frozen=True)
class DataReport:
    """What `check` found. splits: n, content hash and count of each class of the images that can be used, bad ones left out.

    problems: those that `Dataset.problems` holds when training starts from the same data. hash: of all splits together.
    """

    source: str
    classes: tuple[str, ...]
    splits: dict[str, SplitRecord]
    problems: list[DataProblem]
    hash: str

    @property
    def bad(self) -> list[DataProblem]:
        """The problems that make training refuse to start."""
        return [problem for problem in self.problems if problem.fatal]

    def counts(self, split: str) -> dict[str, int]:
        """{class: number of usable images} of a split, in class order."""
        return dict(zip(self.classes, self.splits[split].counts, strict=True))


def check(data: DataSection, *, seed: int, progress: Progress | None = None) -> DataReport:
    """All problems of the data, by the code that training starts with. Bad images are listed, never raised.

    DataError where the layout cannot be followed at all: a folder, column or label that is not there. `seed` as in load_dataset.
    """
    found = gather(data, progress=progress)
    splits = {name: split.usable().split().record(len(found.classes)) for name, split in found.splits.items()}
    digest = hashlib.blake2b(digest_size=16)
    for name, record in splits.items():
        digest.update(f"{name}\0{record.hash}\n".encode())
    return DataReport(data.source, found.classes, splits, found.problems, digest.hexdigest())
