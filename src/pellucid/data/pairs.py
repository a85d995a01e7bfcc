"""Images with a mask file for each: which mask belongs to which image, how masks write classes, and what is wrong with them.

  pairs    <split>/**/<name>.jpg with <split>_masks/**/<name>.png, or masks beside the images as <name>_mask.png or NNNN_sat.jpg, NNNN_mask.png

A mask is an index image (grey values or palette indices: value i is class i) or coloured, with `data.palette` for what each colour is. Every mask is read
once: hashed, decoded and its codes counted. The counts are kept by content in the cache folder (`masks/`), so that a second start only reads and hashes.

Kinds of problems of a mask. Fatal, as an image that cannot be read: no_mask, mask_unreadable, mask_size (another than its upright image), mask_values
(codes that are no class). Told: mask_without_image, mask_palette (an index has other colours than in masks before), mask_all_ignored,
exif_rotated_masked (the image is turned upright, its mask is not). Of the whole set, fatal and never skipped: no_palette (coloured masks of which nobody
said what they mean), mask_values (no training mask fits the classes; or classes are the values of the training masks, and another split has more).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL

from pellucid.data.dataset import Hashes, Masks
from pellucid.data.folders import classes_file, lines_of, of_files, reader
from pellucid.data.images import Finding, pillow_warnings
from pellucid.data.inspection import CHUNK, Gathered, Inspected, Kept, Progress, in_threads, inspect, same_bytes
from pellucid.data.pairing import Pairs, lay, said
from pellucid.errors import DataError
from pellucid.palettes import MAX_CLASSES, MaskFormat, Tally, colour_code, palette_of, tally
from pellucid.recipe import DataSection
from pellucid.run import DataProblem

LISTED_COLOURS = 40  # of masks without a palette

_KEPT_CODES = 4096  # of one mask in the cache; a mask with more is counted at every start
_KEPT_COLOURS = 65_536  # of all masks without a palette; more are not told apart
_TALLY_VERSION = 2  # goes up when palettes.tally says something else about the same bytes

_HELD = {"1": "one bit", "L": "grey values", "P": "indices of a palette"}

Colour = tuple[int, int, int]


def read(data: DataSection, progress: Progress | None) -> Gathered:
    """Every pair of the recipe's folders, images and masks inspected. DataError where the layout cannot be followed."""
    laid, names = lay(data)
    images = {}
    for split, pairs in laid.items():
        unlabelled = np.zeros(len(pairs.images), np.int64)  # until the masks are known
        inspected = inspect(of_files(pairs.images, (), pairs.image_path), split, unlabelled, measured=True, progress=progress)
        images[split] = _turned(inspected, pairs)
    surveys = _surveyed(data, laid, images, progress)
    problems = [problem for pairs in laid.values() for problem in pairs.noticed]
    notes = [f"masks: {said(laid['train'], names)}"]
    if surveys["train"].mode == "RGB" and data.palette is None:
        palette = _sorted_colours(surveys["train"].total)
        problems.append(DataProblem("train", "", "no_palette", _palette_block(palette), fatal=True))
        return Gathered((), {split: found.with_findings(surveys[split].findings) for split, found in images.items()}, problems, None, notes, palette)
    classes, layout = _layout(data, surveys["train"], names)
    splits = {split: _masked(found, surveys[split], layout, classes) for split, found in images.items()}
    if misfit := _misfit(splits["train"], surveys["train"], layout, classes):
        problems.append(misfit)
    if data.palette is None and _given_classes(data)[0] is None:
        problems += [unseen for split, survey in surveys.items() if (unseen := _unseen(splits[split], survey, layout))]
    return Gathered(classes, splits, problems, layout, notes)


def _turned(images: Inspected, pairs: Pairs) -> Inspected:
    """The images, where one that is turned upright says what that means for its mask: with equal sides no size tells that the mask may lie the other way."""
    findings = dict(images.findings)
    for i, found in images.findings.items():
        if pairs.masks[i]:
            findings[i] = [_turned_masked(fault, pairs.masks[i]) if fault.kind == "exif_rotated" else fault for fault in found]
    return replace(images, findings=findings)


def _turned_masked(fault: Finding, mask: str) -> Finding:
    orientation = fault.detail.partition(":")[0]
    detail = f"{orientation}: the image is turned upright, and its mask {mask} is taken as drawn on the upright image"
    return Finding("exif_rotated_masked", detail, fatal=False)


# ── what stands in the masks ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Survey:
    """The masks of a split, read once. codes and counts: of all masks behind each other; ends: (n,) where those of each end. digests: (n, 16) uint8.

    most: codes that a mask can have without a fault; many: masks of more, whose codes are not held but read again when they are named.
    kinds: mode -> the first file of it. total: {code: pixels}. findings: by index. palette: index -> colour, in mode P.
    """

    pairs: Pairs
    digests: np.ndarray
    most: int
    codes: array[int] = field(default_factory=lambda: array("i"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    many: list[int] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)
    findings: dict[int, list[Finding]] = field(default_factory=dict)
    palette: dict[int, int] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        """That of the first mask that could be read; "" without one."""
        return next(iter(self.kinds), "")

    def of(self, i: int) -> dict[int, int]:
        """{code: pixels} of mask i, {} of one in `many`."""
        mine = slice(self.ends[i - 1] if i else 0, self.ends[i])
        return dict(zip(self.codes[mine], self.counts[mine], strict=True))

    def add(self, i: int, found: Tally | Finding, size: tuple[int, int]) -> None:
        """What was found in mask i, in the order of the masks. size: (height, width) of its image, (0, 0) where that is not known."""
        if isinstance(found, Finding):
            self.findings[i] = [found]
        else:
            faults = [] if size in ((0, 0), (found.height, found.width)) else [_wrong_size(self.pairs.masks[i], found, size)]
            faults += self._other_palette(self.pairs.masks[i], found)
            self.kinds.setdefault(found.mode, self.pairs.mask_path(i))
            if faults:
                self.findings[i] = faults
            for code, count in zip(found.codes, found.counts, strict=True):
                if code in self.total or len(self.total) < _KEPT_COLOURS:
                    self.total[code] = self.total.get(code, 0) + count
            if len(found.codes) > self.most:
                self.many.append(i)
            else:
                self.codes.extend(found.codes)
                self.counts.extend(found.counts)
        self.ends.append(len(self.codes))

    def _other_palette(self, name: str, found: Tally) -> list[Finding]:
        """What is to be said where indices have other colours than in the masks before; those without one so far get it."""
        if self.kinds and found.mode not in self.kinds and "P" in {found.mode, self.mode}:
            detail = f"{name} holds {_HELD[found.mode]}, the masks before {_HELD[self.mode]}; values are taken as they are"
            return [Finding("mask_palette", detail, fatal=False)]
        for code, colour in zip(found.codes, found.colours, strict=False):
            before = self.palette.setdefault(code, colour)
            if before != colour:
                detail = f"{name}: index {code} is {_rgb(colour)} here and {_rgb(before)} in the masks before; indices are taken as they are"
                return [Finding("mask_palette", detail, fatal=False)]
        return []


def _wrong_size(name: str, found: Tally, size: tuple[int, int]) -> Finding:
    detail = f"{name} has {found.width} x {found.height} pixels, its upright image {size[1]} x {size[0]}; save the mask at the image's size"
    return Finding("mask_size", detail, fatal=True)


def _surveyed(data: DataSection, laid: dict[str, Pairs], images: dict[str, Inspected], progress: Progress | None) -> dict[str, _Survey]:
    """The survey of each split, train first. DataError where modes are mixed or do not fit what the recipe says of masks."""
    surveys: dict[str, _Survey] = {}
    palette: dict[int, int] = {}
    for split, pairs in laid.items():
        surveys[split] = _survey(data, pairs, split, images[split].sizes, palette, progress)
    kinds: dict[str, str] = {}
    for survey in surveys.values():
        for mode, file in survey.kinds.items():
            kinds.setdefault("colours (RGB)" if mode == "RGB" else "values", file)
    if not surveys["train"].kinds:
        first = next(iter(surveys["train"].findings.values()))[0]
        raise DataError(f"{laid['train'].mask_root}: expected masks that can be read, got none of {len(laid['train'].images)} for training: {first.detail}")
    if len(kinds) > 1:
        both = " and ".join(f"{kind} as in {file}" for kind, file in kinds.items())
        raise DataError(f"masks of one set are of one kind, got {both}; save all of them as index images, or all of them as RGB")
    kind, file = next(iter(kinds.items()))
    colours = "palette" if data.palette is not None else "ignored"
    given = [*(data.palette or {}).values(), *data.ignored]
    if given and isinstance(given[0], int) == (kind != "values"):
        wanted = "values" if isinstance(given[0], int) else "colours [r, g, b]"
        raise DataError(f"data.{colours} gives {wanted}, the masks hold {kind}, as {file}; give {'values' if kind == 'values' else 'colours [r, g, b]'}")
    if data.threshold is not None and kind == "values":
        raise DataError(f"data.threshold belongs to coloured masks, these hold {kind}, as {file}; remove it")
    return surveys


def _survey(data: DataSection, pairs: Pairs, split: str, sizes: np.ndarray | None, palette: dict[int, int], progress: Progress | None) -> _Survey:
    """Every mask of a split read, hashed and counted, a few at a time in threads. sizes: (n, 2) height and width of the images, 0 where not known.

    palette: index -> colour in masks before, to which new ones are added.
    """
    total, read_file = len(pairs.images), reader(pairs.mask_path)
    survey = _Survey(pairs, np.zeros((total, 16), np.uint8), MAX_CLASSES + len(data.ignored), palette=palette)
    kept = _Tallies(data.threshold)

    def look(start: int) -> list[Tally | Finding]:
        return [one(i) for i in range(start, min(start + CHUNK, total))]

    def one(i: int) -> Tally | Finding:
        if not pairs.masks[i]:
            return Finding("no_mask", f"expected its mask as {pairs.wanted(i)}, there is none", fatal=True)
        try:
            content = read_file(i)
        except OSError as error:
            return Finding("mask_unreadable", f"{pairs.masks[i]} cannot be read: {error.strerror or error}", fatal=True)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        survey.digests[i] = np.frombuffer(digest, np.uint8)
        try:
            return kept.of(digest.hex(), content, pairs.masks[i])
        except DataError as error:
            return Finding("mask_unreadable", str(error), fatal=True)

    for start, found in in_threads(look, range(0, total, CHUNK)):
        for i, entry in enumerate(found, start):
            survey.add(i, entry, (0, 0) if sizes is None else (int(sizes[i, 0]), int(sizes[i, 1])))
        if progress is not None:
            progress(f"checking masks of {split}", min(start + CHUNK, total), total)
    kept.save()
    return survey


class _Tallies:
    """What was counted in masks seen before, by content; those of earlier starts are texts in memory until they are asked for."""

    def __init__(self, threshold: int | None) -> None:
        self._kept = Kept("masks", f"{_TALLY_VERSION}, Pillow {PIL.__version__}, at most {PIL.Image.MAX_IMAGE_PIXELS} pixels")
        self._threshold = threshold
        self._known: dict[str, dict[str, str]] = {}

    def of(self, digest: str, data: bytes, name: str) -> Tally:
        """The tally of a mask file's bytes; DataError names a file that is no mask."""
        key = digest if self._threshold is None else f"{digest}-{self._threshold}"
        if key[0] not in self._known:
            self._known[key[0]] = self._kept.load(key[0])
        try:
            return Tally(**json.loads(self._known[key[0]][key]))
        except (KeyError, TypeError, ValueError):  # not seen yet, or a damaged note
            pass
        with pillow_warnings():
            found = tally(data, name, self._threshold)
        if len(found.codes) <= _KEPT_CODES:
            self._kept.add(key, json.dumps(asdict(found), separators=(",", ":")))
        return found

    def save(self) -> None:
        self._kept.save()


# ── what the codes mean ───────────────────────────────────────────────────────────────────────────────────────


def _layout(data: DataSection, train: _Survey, names: tuple[str, str]) -> tuple[tuple[str, ...], MaskFormat]:
    """The classes in order, and how masks write them."""
    ignored = [colour_code(colour) for colour in data.ignored]
    given, origin = _given_classes(data)
    if data.palette is not None:
        if given is not None and isinstance(data.classes, str) and sorted(given) != sorted(data.palette):
            raise DataError(f"{origin} and data.palette name different classes: {', '.join(given)} and {', '.join(data.palette)}")
        classes = given if given is not None and data.classes is not None else list(data.palette)
        codes = [colour_code(data.palette[name]) for name in classes]
    elif given is not None:
        classes, codes = given, list(range(len(given)))
        if clash := [code for code in ignored if code < len(classes)]:
            fault = f"data.ignored: value {clash[0]} is class {classes[clash[0]]!r} of {origin}, where value i is the i-th class from 0"
            raise DataError(f"{fault}; say with data.palette which value each class has")
    else:
        found = sorted(code for code in train.total if code not in ignored)
        codes = [code for code in range(max(found, default=-1) + 1) if code not in ignored]
        classes = [str(code) for code in codes]
        if any(code not in train.total for code in codes):  # a stray value would make classes of all below it
            counted = ", ".join(f"{code} ({train.total[code]:,} pixels)" for code in found[:LISTED_COLOURS])
            raise DataError(
                f"the values of the training masks are not 0, 1, 2 ... without a gap: {counted}. Say with data.classes what the values 0, 1, 2 ... are, "
                "with data.palette which value each class has, as {background: 0, thing: 255}, or with data.ignored which are none."
            )
        origin = f"the values of the training masks, {', '.join(map(str, found))}"
    _check_classes(classes, origin)
    palette = _whole_palette(train) if train.mode == "P" else []
    return tuple(classes), MaskFormat(train.mode, codes, ignored, data.threshold, palette, names)


def _given_classes(data: DataSection) -> tuple[list[str] | None, str]:
    """The class names that somebody ordered, and who did."""
    if isinstance(data.classes, list):
        return data.classes, "data.classes"
    if isinstance(data.classes, str):
        return lines_of(Path(data.classes)), data.classes
    return classes_file(Path(str(data.train)))


def _check_classes(classes: Sequence[str], origin: str) -> None:
    if len(set(classes)) < len(classes):
        twice = next(name for i, name in enumerate(classes) if name in classes[:i])
        raise DataError(f"{origin}: class {twice!r} stands there twice; give each class once.")
    if not 2 <= len(classes) <= MAX_CLASSES:
        fault = f"masks have 2 to {MAX_CLASSES} classes, got {len(classes)} from {origin}"
        raise DataError(f"{fault}. Say with data.palette which value each class has, as {{background: 0, thing: 255}}, and with data.ignored which are none.")


def _whole_palette(train: _Survey) -> list[int]:
    """r, g, b of each index: the palette of the first training mask, and beyond it the colours that later masks use; an index without one is black."""
    first = train.kinds["P"]
    palette = palette_of(Path(first).read_bytes(), first)
    for code in range(len(palette) // 3, max(train.palette) + 1):
        colour = max(train.palette.get(code, 0), 0)
        palette += [colour >> 16, colour >> 8 & 255, colour & 255]
    return palette


def _masked(images: Inspected, survey: _Survey, layout: MaskFormat, classes: Sequence[str]) -> Inspected:
    """A split with its masks: pixels of each class, labels, and what is wrong with each."""
    num_classes, total, pairs = len(classes), len(images.names), survey.pairs
    codes, counts, ends = np.array(survey.codes, np.int64), np.array(survey.counts, np.int64), np.array(survey.ends, np.int64)
    rows = np.repeat(np.arange(total), np.diff(ends, prepend=0))
    places = layout.indices(codes).astype(np.int64)
    known = places >= 0
    pixels = np.zeros((total, num_classes + 1), np.int64)
    np.add.at(pixels, (rows[known], np.minimum(places[known], num_classes)), counts[known])
    findings = {i: list(found) for i, found in survey.findings.items()}
    for i in np.unique(rows[~known]).tolist():
        fault = _values_fault(survey.of(i), layout)
        findings.setdefault(i, []).append(Finding("mask_values", f"{pairs.masks[i]} has {fault}", fatal=True))
    for i in survey.many:
        findings.setdefault(i, []).append(_many_values(survey, i, layout))
    for i in np.flatnonzero((pixels[:, -1] > 0) & (pixels[:, :-1].sum(axis=1) == 0)).tolist():
        findings.setdefault(i, []).append(Finding("mask_all_ignored", f"every pixel of {pairs.masks[i]} is ignored", fatal=False))
    masks = Masks(pixels, Hashes(survey.digests), _opener(survey, layout))
    return replace(images.with_findings(findings), labels=largest(pixels, classes), masks=masks)


def _values_fault(total: Mapping[int, int], layout: MaskFormat) -> str:
    """What is wrong with {code: pixels} of which some are no class."""
    is_odd = layout.indices(np.array(list(total))) < 0
    odd = {code: count for (code, count), strange in zip(total.items(), is_odd, strict=True) if strange}
    return layout.fault(odd, sum(total.values()))


def _many_values(survey: _Survey, i: int, layout: MaskFormat) -> Finding:
    """The fault of a mask of more codes than are kept, from its file."""
    name = survey.pairs.masks[i]
    try:
        with pillow_warnings():
            found = tally(reader(survey.pairs.mask_path)(i), name, layout.threshold)
    except (OSError, DataError) as error:
        return Finding("mask_unreadable", f"{name} cannot be read any more: {error}", fatal=True)
    fault = _values_fault(dict(zip(found.codes, found.counts, strict=True)), layout)
    return Finding("mask_values", f"{name} has {fault}", fatal=True)


def _opener(survey: _Survey, layout: MaskFormat) -> Callable[[int], np.ndarray]:
    """How a mask is had after it was inspected: from the bytes that were inspected, never from others."""
    path, digests = survey.pairs.mask_path, survey.digests
    read_file = reader(path)

    def open_mask(i: int) -> np.ndarray:
        data = same_bytes(read_file, i, path, digests)
        with pillow_warnings():
            return layout.read(data, path(i))

    return open_mask


def largest(pixels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n,) int64: the class of most pixels of each mask, the first of equals; background only where there is nothing else, 0 where all is ignored.

    pixels: (n, C + 1), the ignored ones last.
    """
    ground = [i for i, name in enumerate(classes) if name.casefold() == "background"]
    things = pixels[:, :-1].copy()
    things[:, ground] = 0
    labels = things.argmax(axis=1)
    if ground:
        labels[(things.sum(axis=1) == 0) & (pixels[:, ground[0]] > 0)] = ground[0]
    return np.asarray(labels, np.int64)


# ── masks that do not fit as a whole ──────────────────────────────────────────────────────────────────────────


def _misfit(train: Inspected, survey: _Survey, layout: MaskFormat, classes: Sequence[str]) -> DataProblem | None:
    """The one problem to tell where not one training mask fits the classes: then it is the recipe that is wrong, and not so many files."""
    readable = [i for i in range(len(train.names)) if not any(fault.kind in ("no_mask", "mask_unreadable") for fault in train.findings.get(i, ()))]
    if not readable or not all(any(fault.kind == "mask_values" for fault in train.findings.get(i, ())) for i in readable):
        return None
    known = ", ".join(f"{name} {layout.code(code)}" for name, code in list(zip(classes, layout.codes, strict=True))[:LISTED_COLOURS])
    fault = f"not one of {len(readable)} training masks fits the classes ({known}): {_values_fault(survey.total, layout)}"
    remedy = "Name these with data.palette, or with data.ignored where they are none."
    return DataProblem("train", "", "mask_values", f"{fault}. {remedy}", fatal=True)


def _unseen(images: Inspected, survey: _Survey, layout: MaskFormat) -> DataProblem | None:
    """The one problem to tell of a split where classes are the values of the training masks and its masks have further ones: these may all be right.

    Left to the files are masks that are bad for another reason too, and those of more values than there can be classes.
    """
    only = {"mask_values"}
    more = [i for i, found in images.findings.items() if {fault.kind for fault in found if fault.fatal} == only and i not in survey.many]
    if not more:
        return None
    total: Counter[int] = Counter()
    for i in more:
        total.update(survey.of(i))
    fault = f"in {len(more)} of {len(images.names)} masks, first {survey.pairs.masks[more[0]]}: {_values_fault(total, layout)}"
    remedy = "No training mask has these values; name all classes with data.classes (or data.palette), or put them in data.ignored."
    return DataProblem(images.name, "", "mask_values", f"{fault}. {remedy}", fatal=True)


def _sorted_colours(total: dict[int, int]) -> list[tuple[Colour, int]]:
    most = sorted(total, key=lambda code: (-total[code], code))
    return [((code >> 16, code >> 8 & 255, code & 255), total[code]) for code in most]


def _palette_block(palette: Sequence[tuple[Colour, int]]) -> str:
    """What to say about coloured masks without a palette: their colours as the lines of a recipe."""
    pixels = sum(count for _, count in palette)
    lines = "\n".join(_palette_lines(palette[:LISTED_COLOURS], pixels))
    more = f"\n    # … and {len(palette) - LISTED_COLOURS} more" if len(palette) > LISTED_COLOURS else ""
    advice = "Where colours of one class differ a little, data.threshold: 128 makes each channel all or nothing. " if len(palette) > 8 else ""
    return (
        f"the masks are coloured, and data.palette does not say which class each colour is. The {len(palette)} colours of the training masks:\n"
        f"  palette:\n{lines}{more}\n{advice}Name the classes and paste this below data; a colour that is none goes to data.ignored."
    )


def _palette_lines(palette: Sequence[tuple[Colour, int]], pixels: int) -> Iterator[str]:
    for i, (colour, count) in enumerate(palette, 1):
        yield f"    class_{i}: {list(colour)}  # {count:,} pixels, {100 * count / pixels:.3g} %"


def _rgb(code: int) -> str:
    return "no colour" if code < 0 else str([code >> 16, code >> 8 & 255, code & 255])
