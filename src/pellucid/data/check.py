"""The data of a recipe -> everything there is to say about it before a model is trained. `pellucid data check` prints it.

Kinds of problems. Fatal, a file that training refuses or skips: zero_size, unreadable, truncated, too_large, animated,
too_small (a training image that is cut and not resized). Told, of a file: wrong_extension, 16_bit, cmyk, palette, transparent,
exif_rotated, corrupt_metadata (images.py says how each is read), duplicate (same content twice in a split), leak (same content
in two splits), other_file (no image by its ending). Told, of a split: class_missing, imbalance (over 10 to 1 in train). Those
of masks stand in pairs.py, those of captions in captions.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from pellucid.data.captions import CaptionCounts
from pellucid.data.inspection import Inspected, Progress
from pellucid.data.sources import gather
from pellucid.recipe import DataSection
from pellucid.run import DataProblem, SplitRecord


@dataclass(frozen=True)
class DataReport:
    """What `check` found. splits: n, content hash and count of each class of the images that can be used, bad ones left out.

    problems: those that `Dataset.problems` holds when training starts from the same data. hash: of all splits together.
    palette: ((red, green, blue), pixels) of the training masks, the most frequent first, where they are coloured and no palette says which colour is which
    class; then there are no classes, and the problem no_palette holds the lines to paste. captions: by split, of the usable images, where they have some.
    notes: as in Dataset.
    """

    source: str
    classes: tuple[str, ...]
    splits: dict[str, SplitRecord]
    problems: list[DataProblem]
    hash: str
    palette: list[tuple[tuple[int, int, int], int]] = field(default_factory=list)
    captions: dict[str, CaptionCounts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def pixels(self) -> dict[str, list[int]]:
        """{split: pixels of each class, the ignored ones last}; [] of samples without masks."""
        return {name: record.pixels for name, record in self.splits.items()}

    @property
    def bad(self) -> list[DataProblem]:
        """The problems that make training refuse to start."""
        return [problem for problem in self.problems if problem.fatal]

    def counts(self, split: str) -> dict[str, int]:
        """{class: number of usable images} of a split, in class order."""
        return dict(zip(self.classes, self.splits[split].counts, strict=True))


def check(
    data: DataSection,
    *,
    seed: int,
    masks: bool = False,
    captions: bool = False,
    least: tuple[int, int] | None = None,
    fewest_classes: int = 2,
    progress: Progress | None = None,
) -> DataReport:
    """All problems of the data, by the code that training starts with. Bad images and masks are listed, never raised.

    DataError where the layout cannot be followed at all: a folder, column or label that is not there. The other arguments are those
    of load_dataset.
    """
    found = gather(data, masks=masks, captions=captions, least=least, fewest_classes=fewest_classes, progress=progress)
    splits = {name: _record(split, len(found.classes)) for name, split in found.splits.items()}
    digest = hashlib.blake2b(digest_size=16)
    for name, record in splits.items():
        digest.update(f"{name}\0{record.hash}\n".encode())
    described = {name: CaptionCounts.of(own) for name, split in found.splits.items() if (own := split.usable().captions) is not None}
    return DataReport(data.source, found.classes, splits, found.problems, digest.hexdigest(), found.palette, described, found.notes)


def _record(split: Inspected, num_classes: int) -> SplitRecord:
    """The record of the usable samples; without classes nothing of them is counted."""
    record = split.usable().split().record(num_classes)
    return record if num_classes else replace(record, counts=[])
