"""Which mask file belongs to which image: beside it or in another folder, by patterns of names that the recipe gives or that are found.

A mask lies in the same sub-folder as its image, or anywhere below its folder where the name alone says it.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.data.dataset import Names
from pellucid.data.folders import existing, files_below, split_paths
from pellucid.data.images import ENDINGS
from pellucid.data.inspection import listed
from pellucid.errors import DataError
from pellucid.palettes import matched
from pellucid.recipe import DataSection
from pellucid.run import DataProblem

MASK_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif")  # lossless; the first that is there is taken
NAMES = (("{}_sat", "{}_mask"), ("{}", "{}_mask"), ("{}", "{}"))  # patterns that are looked for, the most telling first


@dataclass(frozen=True)
class Pairs:
    """The images of one split and the mask of each, "" where there is none; relative to their folders, of these patterns of names."""

    root: Path
    mask_root: Path
    images: Names
    masks: Names
    names: tuple[str, str]
    left: list[str]  # masks without an image
    noticed: list[DataProblem]

    def image_path(self, i: int) -> str:
        return f"{self.root}/{self.images[i]}"

    def mask_path(self, i: int) -> str:
        return f"{self.mask_root}/{self.masks[i]}"

    def wanted(self, i: int) -> str:
        """The path at which the mask of image i was looked for first."""
        folder, common = _key(self.images[i], self.names[0]) or ("", "*")
        return str(self.mask_root / folder / f"{self.names[1].replace('{}', common)}{MASK_ENDINGS[0]}")


def lay(data: DataSection) -> tuple[dict[str, Pairs], tuple[str, str]]:
    """The pairs of each split, and the patterns of names that all of them follow: the recipe's, or those that most training images follow."""
    folders = {split: _folders(data, split, Path(root)) for split, root in split_paths(data).items()}
    if data.pair_names is not None:
        names = (data.pair_names[0], data.pair_names[1])
    else:
        listing = _Files.of(*folders["train"])
        names = max(NAMES, key=lambda pair: len(_matches(listing, pair).pairs))  # the first of equals
    laid = {split: _paired(data, split, _Files.of(*both), names) for split, both in folders.items()}
    return _told_of_left(laid), names


def _told_of_left(laid: dict[str, Pairs]) -> dict[str, Pairs]:
    """The pairs with a word about each mask that no image of any split has, once.

    DataError where images of two splits have the same mask; one image in two splits is a leak and told as such.
    """
    owners: dict[str, str] = {}
    first: dict[str, str] = {}  # path of the image that a mask was given to
    for split, pairs in laid.items():
        for i, (image, mask) in enumerate(zip(pairs.images, pairs.masks, strict=True)):
            path = f"{pairs.mask_root}/{mask}"
            owner = owners.setdefault(path, f"{image} of {split}") if mask else ""
            if mask and first.setdefault(path, pairs.image_path(i)) != pairs.image_path(i):
                fault = f"{path}: the mask belongs to {owner} and to {image} of {split}"
                raise DataError(f"{fault}. Give each split a folder of masks with {{split}} in data.mask_dir, or each image a name of its own.")
    for split, pairs in laid.items():
        for mask in pairs.left:
            if owners.setdefault(f"{pairs.mask_root}/{mask}", "") == "":
                owners[f"{pairs.mask_root}/{mask}"] = "told"
                pairs.noticed.append(DataProblem(split, mask, "mask_without_image", "there is no image of this mask: not used", fatal=False))
    return laid


def _folders(data: DataSection, split: str, root: Path) -> tuple[Path, Path]:
    """(folder of the images, folder of the masks) of a split; the same where masks lie beside their images."""
    existing(root, f"images for data.{split}")
    if data.mask_dir is not None:
        return root, existing(Path(data.mask_dir.replace("{split}", split)), f"masks for data.mask_dir of {split}")
    beside = root.parent / f"{root.name}_masks"
    return root, beside if root.name and beside.is_dir() else root


@dataclass(frozen=True)
class _Files:
    """What lies below both folders: image files, and files that can be masks (the same list where the folders are one)."""

    root: Path
    mask_root: Path
    images: list[str]
    masks: list[str]
    others: list[str]

    @property
    def beside(self) -> bool:
        return self.root == self.mask_root

    @classmethod
    def of(cls, root: Path, mask_root: Path) -> _Files:
        below = [] if root == mask_root or root not in mask_root.parents else [f"{mask_root.relative_to(root).as_posix()}/"]
        within = [] if root == mask_root or mask_root not in root.parents else [f"{root.relative_to(mask_root).as_posix()}/"]
        every = [name for name in files_below(root) if not any(name.startswith(folder) for folder in below)]
        images = [name for name in every if _ending(name) in ENDINGS]
        others = [name for name in every if _ending(name) not in ENDINGS and name != "classes.txt"]
        if root == mask_root:
            return cls(root, mask_root, images, images, others)
        masks = [name for name in files_below(mask_root) if _ending(name) in ENDINGS and not any(name.startswith(folder) for folder in within)]
        return cls(root, mask_root, images, masks, others)


@dataclass(frozen=True)
class _Matches:
    """pairs: image -> mask, in the order of the images. alone: images without a mask. left: masks without an image. strange: images of other names."""

    pairs: dict[str, str]
    alone: list[str]
    left: list[str]
    strange: list[str]


def _matches(files: _Files, names: tuple[str, str]) -> _Matches:
    """The pairs of files of these name patterns: in the same sub-folder, else by name alone where that is unique."""
    masks = _by_name(files.masks, names[1])
    if files.beside:
        masks = _only_masks(masks, files.images, names)
    taken = {mask for several in masks.values() for mask in several} if files.beside else set()
    pictures = [name for name in files.images if name not in taken]
    keys = {name: _key(name, names[0]) for name in pictures}
    by_common = defaultdict(list)
    for folder, common in masks:
        by_common[common].append((folder, common))
    repeated = Counter(key[1] for key in keys.values() if key is not None)
    pairs, alone, strange, used = {}, [], [], set()
    for name, key in keys.items():
        if key is None:
            strange.append(name)
            continue
        if key not in masks and repeated[key[1]] == 1 and len(by_common[key[1]]) == 1:
            key = by_common[key[1]][0]
        if key not in masks:
            alone.append(name)
            continue
        pairs[name] = masks[key][0]
        used.add(masks[key][0])
    left = sorted({mask for several in masks.values() for mask in several} - used)
    return _Matches(pairs, alone, left, strange)


def _by_name(files: Sequence[str], pattern: str) -> dict[tuple[str, str], list[str]]:
    """(folder, what `{}` stands for) -> the files of that name, those without loss first."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in files:
        if (key := _key(name, pattern)) is not None:
            found.setdefault(key, []).append(name)
    return {key: sorted(several, key=_preference) for key, several in found.items()}


def _only_masks(masks: dict[tuple[str, str], list[str]], images: Sequence[str], names: tuple[str, str]) -> dict[tuple[str, str], list[str]]:
    """Of files beside each other those that are masks: a name that fits both patterns is of the longer one; of equal names one without loss is the mask."""
    if names[0] == names[1]:
        return {key: several[:1] for key, several in masks.items() if len(several) > 1 and _ending(several[0]) in MASK_ENDINGS}
    if len(names[1]) >= len(names[0]):
        return masks
    fitting = {name for name in images if _key(name, names[0]) is not None}
    kept = {key: [name for name in several if name not in fitting] for key, several in masks.items()}
    return {key: several for key, several in kept.items() if several}


def _key(name: str, pattern: str) -> tuple[str, str] | None:
    """(folder, what `{}` stands for) of a file; None for one of another name."""
    folder, file = posixpath.split(name)
    common = matched(posixpath.splitext(file)[0], pattern)
    return None if common is None else (folder, common)


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _preference(name: str) -> tuple[int, str]:
    ending = _ending(name)
    return (MASK_ENDINGS.index(ending) if ending in MASK_ENDINGS else len(MASK_ENDINGS), name)


def _paired(data: DataSection, split: str, files: _Files, names: tuple[str, str]) -> Pairs:
    """The pairs of a split. DataError where there are none, where masks are lossy and where two images share one."""
    found = _matches(files, names)
    where = f"{files.root} and masks beside them" if files.beside else f"{files.root} and masks in {files.mask_root}"
    if not found.pairs:
        there = [f"image {name}" for name in files.images[:5]] + ([] if files.beside else [f"mask {name}" for name in files.masks[:5]])
        how = (
            f"{names[0]!r} with a mask {names[1]!r}"
            if data.pair_names
            else "NNNN_sat.jpg with NNNN_mask.png, NAME.jpg with NAME_mask.png or NAME.jpg with NAME.png"
        )
        expected = f"data.{split}: expected images in {where}, named {how}; found none that belong together, of {len(files.images)} files"
        raise DataError(f"{expected}:{listed(there)}\nName the folder with data.mask_dir and the form of the names with data.pair_names.")
    lossy = [mask for mask in found.pairs.values() if _ending(mask) not in MASK_ENDINGS]
    if lossy and data.threshold is None:
        fault = f"{files.mask_root}: {len(lossy)} masks are in a format that loses values ({_ending(lossy[0])}), so that colours at edges are no class:"
        remedy = f"Save masks as {', '.join(MASK_ENDINGS)}, or set data.threshold where each channel is meant to be all or nothing."
        raise DataError(f"{fault}{listed(lossy)}\n{remedy}")
    shared: dict[str, list[str]] = defaultdict(list)
    for image, mask in found.pairs.items():
        shared[mask].append(image)
    if twice := [f"{mask}: {' and '.join(images)}" for mask, images in shared.items() if len(images) > 1]:
        raise DataError(
            f"{files.root}: {len(twice)} of {len(shared)} masks belong to two images or more:{listed(twice)}\nGive each image a name and a mask of its own."
        )
    noticed = [DataProblem(split, name, "other_file", "the ending is no image's: not used", fatal=False) for name in files.others]
    noticed += [DataProblem(split, name, "other_file", f"the name is not of the form {names[0]}: not used", fatal=False) for name in found.strange]
    order = sorted([*found.pairs, *found.alone])
    return Pairs(files.root, files.mask_root, Names(order), Names(found.pairs.get(name, "") for name in order), names, found.left, noticed)


def said(pairs: Pairs, names: tuple[str, str]) -> str:
    where = "beside the images" if pairs.root == pairs.mask_root else f"in {pairs.mask_root}"
    return f"{where}, of equal names" if names == ("{}", "{}") else f"{where}, {names[1]} of {names[0]}"
