"""Masks: of drawn scenes and in files, taken as they are, and cut like the image that they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid.data import scenes
from pellucid.data.augment import evaluate_view
from pellucid.data.dataset import Hashes, Names, Split
from pellucid.data.images import centre, resize, view_mask
from pellucid.data.loader import pack_images
from pellucid.data.masks import marked_values, masks_of, read_mask, without_target
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError
from pellucid.schema import DataSection, InsideSection

FOLDER = DataSection(source="folder", train="unused")
PALETTE = [7, 7, 7, 255, 0, 0, 0, 255, 0, 1, 1, 1]  # colours that are not their indices


def section(folder: Path | None, **values: object) -> InsideSection:
    return InsideSection(masks=str(folder) if folder else None, **values)  # type: ignore[arg-type]


def split_of(*names: str, size: tuple[int, int] = (4, 3)) -> Split:
    """Black images of size (width, height)."""
    return Split("val", Names(names), np.zeros(len(names), np.int64), Hashes.of([""] * len(names)), lambda i: Image.new("RGB", size))


def saved(values: list[list[int]], file: Path, mode: str = "L") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(np.array(values, np.uint16)).save(file)
        return file
    image = Image.fromarray(np.array(values, np.uint8), "L" if mode == "P" else None)
    if mode == "P":
        image = image.convert("P")
        image.frombytes(np.array(values, np.uint8).tobytes())
        image.putpalette(PALETTE)
    (image.point(lambda v: 255 * (v > 0), "1") if mode == "1" else image).save(file)
    return file


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES = [[0, 1, 2, 3], [1, 1, 2, 2], [0, 0, 0, 3]]


def test_a_mask_that_its_file_turns_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # the size alone would not tell
    Image.new("L", (3, 4)).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(DataError, match="a.png: the mask is turned by its EXIF orientation 3; save it upright, as its image is seen"):
        read_mask(tmp_path / "a.png", (4, 3))


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_values_are_indices_and_never_colours(tmp_path: Path, mode: str) -> None:
    saved(VALUES, tmp_path / "a.png", mode)
    mask_of = masks_of(section(tmp_path, mask_target=[1], mask_ignore=[3]), FOLDER, split_of("a.jpg"), [0])
    assert mask_of is not None
    assert mask_of(0).dtype == np.uint8
    assert mask_of(0).tolist() == [[0, 1, 0, 255], [1, 1, 0, 0], [0, 0, 0, 255]]
    everything = masks_of(section(tmp_path), FOLDER, split_of("a.jpg"), [0])
    assert everything is not None
    assert everything(0).tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]], "every value above 0"


def test_a_bilevel_mask_is_0_and_1(tmp_path: Path) -> None:
    saved(VALUES, tmp_path / "a.png", "1")
    mask_of = masks_of(section(tmp_path, mask_target=[1]), FOLDER, split_of("a.jpg"), [0])
    assert mask_of is not None
    assert mask_of(0).tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]


def test_a_mask_lies_under_the_path_of_its_image_or_under_its_stem(tmp_path: Path) -> None:
    saved([[1] * 4] * 3, tmp_path / "cat" / "x.png")
    saved([[0] * 4] * 3, tmp_path / "x.png")
    saved([[1] * 4] * 3, tmp_path / "y.v2.png")
    mask_of = masks_of(section(tmp_path), FOLDER, split_of("cat/x.jpg", "dog/y.v2.jpg"), [0, 1])
    assert mask_of is not None
    assert mask_of(0).all()
    assert mask_of(1).all()


def test_a_stem_of_two_images_says_not_whose_mask_it_is(tmp_path: Path) -> None:
    saved(VALUES, tmp_path / "x.png")
    with pytest.raises(DataError, match=r"other images of val have the same stem, so that it is not said whose mask it is:\n  cat/x.jpg$"):
        masks_of(section(tmp_path), FOLDER, split_of("cat/x.jpg", "dog/x.jpg"), [0])


def test_missing_masks_are_named_with_the_remedy(tmp_path: Path) -> None:
    saved(VALUES, tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"(?s)expected <stem>.png for each image, 2 of 3 have none:\n  b.jpg\n  c.jpg\nAdd the masks, take fewer inside.samples, or"
    ):
        masks_of(section(tmp_path), FOLDER, split_of("a.jpg", "b.jpg", "c.jpg", "d.jpg"), [0, 1, 2])
    with pytest.raises(DataError, match="nowhere: expected the folder of inside.masks, there is none"):
        masks_of(section(tmp_path / "nowhere"), FOLDER, split_of("a.jpg"), [])
    assert masks_of(section(None), FOLDER, split_of("a.jpg"), [0]) is None


def test_a_file_that_is_no_mask_of_its_image_is_named(tmp_path: Path) -> None:
    saved(VALUES, tmp_path / "size.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "rgb.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "size.png").read_bytes()[:40])
    Image.new("L", (4, 3)).save(tmp_path / "jpeg.jpg")
    (tmp_path / "jpeg.jpg").rename(tmp_path / "jpeg.png")
    names = ("size.jpg", "rgb.jpg", "torn.jpg", "jpeg.jpg")

    def read(row: int, size: tuple[int, int] = (4, 3)) -> None:
        mask_of = masks_of(section(tmp_path), FOLDER, split_of(*names, size=size), range(4))
        assert mask_of is not None
        mask_of(row)

    with pytest.raises(DataError, match=r"size.png: expected a mask of 4x3 pixels \(height x width\) as its image, got one of 3x4$"):
        read(0, (3, 4))
    with pytest.raises(DataError, match=r"rgb.png: expected one value a pixel \(grey or palette\), got 3 channels; save the mask as indices"):
        read(1)
    for row in (2, 3):
        with pytest.raises(DataError, match=f"{names[row][:-4]}.png: cannot be read as PNG: "):
            read(row)


def test_masks_without_any_target_are_a_fault(tmp_path: Path) -> None:
    empty, full = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    assert without_target([empty, full], section(tmp_path)) is None
    assert without_target([], section(tmp_path)) is None
    told = without_target([empty, np.full((2, 2), 255, np.uint8)], section(tmp_path, mask_target=[9]))
    assert (
        told
        == f"{tmp_path}: of 2 masks none has a target; now the target is inside.mask_target [9]. Set inside.mask_target to the values that mark the target, inside.mask_ignore to those that count neither way."
    )


def test_trimaps_of_real_photographs(photographs: Path) -> None:
    """1 pet, 2 background, 3 border."""
    data = DataSection(source="prefix", train=str(photographs / "pets" / "train"), val=str(photographs / "pets" / "val"))
    split = load_dataset(data, seed=1).splits["val"]
    rows = [0, 100, 297]
    mask_of = masks_of(section(photographs / "pets" / "val_trimaps", mask_target=[1], mask_ignore=[3]), data, split, rows)
    assert mask_of is not None
    for row in rows:
        mask, stem = mask_of(row), Path(split.names[row]).stem
        values = np.asarray(Image.open(photographs / "pets" / "val_trimaps" / f"{stem}.png"))
        assert mask.shape == (split.open(row).height, split.open(row).width)
        assert [int((mask == v).sum()) for v in (1, 0, 255)] == [int((values == v).sum()) for v in (1, 2, 3)]
        assert 0.05 < (mask == 1).mean() < 0.95


# ── scenes ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("val", [12, 0.4])
def test_the_target_of_a_scene_is_the_object_that_gives_its_class(val: float) -> None:
    """Its pixels have the colour of the large object; a fraction of train holds scenes drawn for train."""
    data = DataSection(source="scenes", train=30, val=val, image_size=48)
    split = load_dataset(data, seed=1).splits["val"]
    mask_of = masks_of(section(None), data, split, [])
    assert mask_of is not None
    for row in range(len(split)):
        mask, picture = mask_of(row), np.asarray(split.open(row))
        _, drawn, number = split.names[row].removesuffix(".png").split("-")
        large = next(o for o in scenes.draw(int(number), split=drawn, image_size=(48, 48)).objects if o.size == "large")
        assert scenes.SHAPES[split.labels[row]] == large.shape
        colored = (picture == scenes.COLORS[large.color]).all(axis=2)
        inside = mask == 1
        assert inside.sum() > 0.05 * mask.size
        assert (colored & inside).sum() > 0.7 * inside.sum()
        assert not (colored & ~inside).any()
        assert set(np.unique(mask)) == {0, 1}


def test_values_of_a_scenes_mask_can_be_chosen() -> None:
    data = DataSection(source="scenes", train=6, val=6, image_size=48)
    split = load_dataset(data, seed=1).splits["val"]
    own = [scenes.draw(row, split="val", image_size=(48, 48)).mask for row in range(6)]
    mask_of = masks_of(section(None, mask_target=[1, 2], mask_ignore=[3, 4, 5, 6]), data, split, [])
    assert mask_of is not None
    for row, mask in enumerate(own):
        expected = np.where(mask > 2, 255, np.where(mask > 0, 1, 0))
        np.testing.assert_array_equal(mask_of(row), expected)


# ── the view ──────────────────────────────────────────────────────────────────────────────────────────────────

VIEWS = [("crop", None), ("crop", 41), ("stretch", None), ("pad", None)]
SIZES = [(60, 80), (80, 60), (33, 97), (32, 32), (31, 40), (200, 32)]


def blob(height: int, width: int) -> np.ndarray:
    """An ellipse off the middle and a bar along the left edge: neither survives a flip, a shift or a transposition."""
    y, x = np.mgrid[:height, :width]
    ellipse = ((y - 0.4 * height) / (0.3 * height)) ** 2 + ((x - 0.6 * width) / (0.2 * width)) ** 2 <= 1
    return (ellipse | (x < 0.1 * width)).astype(np.uint8)


@pytest.mark.parametrize(("fit", "resize_size"), VIEWS)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_a_mask_is_cut_like_its_picture(shape: tuple[int, int], size: tuple[int, int], fit: str, resize_size: int | None) -> None:
    """The picture of the mask itself, resized and cropped as the model sees it, agrees wherever it is clearly black or white."""
    mask = blob(*shape)
    picture = Image.fromarray(np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2))
    stored = resize(picture, size, fit, resize_size, "bilinear")
    seen = evaluate_view(pack_images([stored]), size=size, mean=[0.0] * 3, std=[1.0] * 3)[0, 0].numpy()
    np.testing.assert_array_equal(centre(stored, size)[:, :, 0], np.rint(seen * 255).astype(np.uint8))
    found = view_mask(mask, size, fit, resize_size)
    assert found.shape == size
    assert found.dtype == np.uint8
    clear = (seen < 0.02) | (seen > 0.98)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found[clear], seen[clear] > 0.5)


@pytest.mark.parametrize("shape", SIZES)
def test_values_are_those_in_the_middle_of_what_a_pixel_covers(shape: tuple[int, int]) -> None:
    """Slow twin: the value at floor((i + 1/2) H / h); no value is mixed from others."""
    mask = np.random.default_rng(1).choice(np.array([0, 1, 255], np.uint8), shape)
    expected = np.empty((24, 40), np.uint8)
    for i in range(24):
        for j in range(40):
            expected[i, j] = mask[(2 * i + 1) * shape[0] // 48, (2 * j + 1) * shape[1] // 80]
    np.testing.assert_array_equal(view_mask(mask, (24, 40), "stretch", None), expected)


def test_the_bars_of_a_padded_picture_are_not_the_target() -> None:
    found = view_mask(np.ones((20, 40), np.uint8), (40, 40), "pad", None)
    assert found[10:30].all()
    assert not found[:10].any()
    assert not found[30:].any()


def test_masks_of_nothing_but_target_are_refused() -> None:
    """A trimap of 1, 2 and 3 taken as it is: any map would be right everywhere."""
    inside = InsideSection.model_validate({"masks": "trimaps", "samples": 2})
    whole = [marked_values(np.full((4, 4), value), None, []) for value in (1, 3)]
    assert "every pixel of 2 masks is target or ignored, so that any map would be right; now the target is every value above 0. Set inside.mask_target" in str(
        without_target(whole, inside)
    )
    whole[1][0, 0] = 0
    assert without_target(whole, inside) is None
