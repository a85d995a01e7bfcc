"""Pairs that cannot be trained on or that say more than their files show: small images, turned images, classes of one split alone, one folder twice."""

import pytest
from PIL import Image

from drawn_pairs import lay, mask, photo, section
from pellucid.data.check import check
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError
from pellucid.prepare import _data_notes


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def load(least=None, **settings):
    return load_dataset(section(**settings), seed=1, masks=True, least=least)


def fault(least=None, **settings):
    with pytest.raises(DataError) as caught:
        load(least, **settings)
    return str(caught.value)


def told(problems):
    return [(p.split, p.file, p.kind, p.detail, p.fatal) for p in problems]


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# ── images smaller than what is cut from them ──


def of_sizes(root, sizes, **options):
    """Pairs of these (height, width), stored as they are."""
    for i, size in enumerate(sizes):
        photo(root / f"{i:04}.png", i + 100 * len(root.name), size, **options)
        mask(root.parent / f"{root.name}_masks" / f"{i:04}.png", [0, 1], size=size)


def too_small(height, width):
    return (
        f"expected at least 10x12 pixels (height x width) to cut training images of data.image_size from, got {height}x{width}; "
        "lower data.image_size, or let data.fit resize the images to it"
    )


def test_training_images_smaller_than_the_crop_are_named_before_training(tmp_path):
    of_sizes(tmp_path / "train", [(10, 12), (9, 40), (40, 11), (30, 30)])
    of_sizes(tmp_path / "val", [(4, 4)])
    settings = {"train": tmp_path / "train", "val": tmp_path / "val"}
    message = fault((10, 12), **settings)
    assert message.startswith(f"2 of 5 images cannot be used:\n  train: 0001.png: too_small: {too_small(9, 40)}\n  train: 0002.png: too_small: ")
    expected = [("train", "0001.png", "too_small", too_small(9, 40), True), ("train", "0002.png", "too_small", too_small(40, 11), True)]
    report = check(section(**settings), seed=1, masks=True, least=(10, 12))
    assert told(report.problems) == expected
    assert report.splits["train"].n == 2
    data = load((10, 12), **settings, on_bad="skip")
    assert list(data.splits["train"].names) == ["0000.png", "0003.png"]
    assert data.skipped == ["train/0001.png", "train/0002.png"]
    assert [split.masks.open(0).shape for split in data.splits.values()] == [(10, 12), (4, 4)]
    assert load(**settings).problems == []


def test_the_size_that_counts_is_that_of_the_upright_image(tmp_path):
    for i, size in enumerate([(12, 10), (10, 12)]):
        photo(tmp_path / "train" / f"{i}.png", i, size, exif=turned(6))
        mask(tmp_path / "train_masks" / f"{i}.png", [0, 1], size=size[::-1])
    found = [p for p in check(section(train=tmp_path / "train"), seed=1, masks=True, least=(10, 12)).problems if p.kind == "too_small"]
    assert [(p.file, p.detail) for p in found] == [("1.png", too_small(12, 10))]


def test_small_images_that_a_fraction_takes_for_val_are_no_fault(tmp_path):
    of_sizes(tmp_path / "train", [(6, 8)] * 12)
    found = check(section(train=tmp_path / "train", val=0.5), seed=1, masks=True, least=(10, 12))
    assert 2 < found.splits["val"].n < 10
    assert [p.kind for p in found.bad] == ["too_small"] * (12 - found.splits["val"].n)


def test_an_image_that_cannot_be_read_is_not_called_small(tmp_path):
    of_sizes(tmp_path / "train", [(20, 20)] * 3)
    (tmp_path / "train" / "0001.png").write_bytes(b"")
    assert [p.kind for p in check(section(train=tmp_path / "train"), seed=1, masks=True, least=(10, 12)).problems] == ["zero_size"]


# ── images that are turned upright ──


@pytest.mark.parametrize(("orientation", "size"), [(2, (6, 8)), (3, (6, 8)), (4, (6, 8)), (5, (8, 8)), (6, (8, 8)), (7, (8, 8)), (8, (8, 8))])
def test_a_turned_image_says_how_its_mask_is_taken(tmp_path, orientation, size):
    lay(tmp_path / "train", 3)
    photo(tmp_path / "train" / "0001.png", 50, size, exif=turned(orientation))
    mask(tmp_path / "train_masks" / "0001.png", [0, 1, 1], size=size)
    detail = f"EXIF orientation {orientation}: the image is turned upright, and its mask 0001.png is taken as drawn on the upright image"
    expected = [("train", "0001.png", "exif_rotated_masked", detail, False)]
    assert told(check(section(train=tmp_path / "train"), seed=1, masks=True).problems) == expected
    data = load(train=tmp_path / "train")
    assert told(data.problems) == expected
    assert [line for line in _data_notes(data) if detail in line and "1 x exif_rotated_masked" in line]
    assert data.splits["train"].masks.open(1)[:3, 0].tolist() == [0, 1, 1], "the mask itself is not turned"


def test_a_turned_image_without_a_mask_is_told_as_any_other(tmp_path):
    lay(tmp_path / "train", 3)
    photo(tmp_path / "train" / "0001.png", 50, exif=turned(3))
    (tmp_path / "train_masks" / "0001.png").unlink()
    assert [p.kind for p in load(train=tmp_path / "train", on_bad="skip").problems] == ["exif_rotated", "no_mask"]


# ── values that only another split has ──


def later_classes(root):
    """Training masks of two values; of three masks for val two have more, of two for test one."""
    lay(root / "train")
    lay(root / "val", 3, first=50)
    lay(root / "test", 2, first=70)
    mask(root / "val_masks" / "0001.png", [0, 2, 1])
    mask(root / "val_masks" / "0002.png", [1, 1, 2, 2, 1, 5])
    mask(root / "test_masks" / "0001.png", [4, 0])
    return {split: root / split for split in ("train", "val", "test")}


@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_classes_that_only_val_has_are_a_fault_of_the_recipe_whatever_on_bad_says(tmp_path, on_bad):
    settings = later_classes(tmp_path)
    remedy = "No training mask has these values; name all classes with data.classes (or data.palette), or put them in data.ignored."
    in_val = f"in 2 of 3 masks, first 0001.png: 2 values that are no class, on 40 of 96 pixels: 2 (32 pixels), 5 (8 pixels). {remedy}"
    in_test = f"in 1 of 2 masks, first 0001.png: 1 value that is no class, on 24 of 48 pixels: 4 (24 pixels). {remedy}"
    assert fault(**settings, on_bad=on_bad) == f"val: {in_val}"
    problems = check(section(**settings, on_bad=on_bad), seed=1, masks=True).problems
    assert told(problems) == [("val", "", "mask_values", in_val, True), ("test", "", "mask_values", in_test, True)]


def test_the_remedies_for_classes_that_only_val_has_are_true(tmp_path):
    settings = later_classes(tmp_path)
    names = ["a", "b", "c", "d", "e", "f"]
    assert load(**settings, classes=names).splits["val"].record(6).pixels == [40, 64, 32, 0, 0, 8, 0]
    assert load(**settings, palette={name: i for i, name in enumerate(names)}).classes == tuple(names)
    assert load(**settings, ignored=[2, 4, 5]).splits["val"].record(2).pixels == [40, 64, 40]


def test_with_classes_that_are_named_a_strange_value_is_a_fault_of_its_file(tmp_path):
    settings = later_classes(tmp_path) | {"classes": ["a", "b", "c"]}
    assert "train" not in fault(**settings)
    assert load(**settings, on_bad="skip").skipped == ["val/0002.png", "test/0001.png"]


def test_a_mask_of_val_that_is_bad_for_another_reason_says_nothing_of_classes(tmp_path):
    lay(tmp_path / "train")
    lay(tmp_path / "val", 3, first=50)
    mask(tmp_path / "val_masks" / "0001.png", [0, 7], size=(5, 5))
    photo(tmp_path / "grey.png", 9, (30, 30))
    Image.open(tmp_path / "grey.png").convert("L").save(tmp_path / "val_masks" / "0002.png")  # a picture in place of a mask, of another size
    data = load(train=tmp_path / "train", val=tmp_path / "val", on_bad="skip")
    assert data.skipped == ["val/0001.png", "val/0002.png"]


def test_a_mask_of_val_with_more_values_than_classes_can_be_is_a_fault_of_its_file(tmp_path):
    lay(tmp_path / "train")
    lay(tmp_path / "val", 2, first=50)
    photo(tmp_path / "val" / "0001.png", 9, (256, 4))
    mask(tmp_path / "val_masks" / "0001.png", list(range(256)), size=(256, 4))
    data = load(train=tmp_path / "train", val=tmp_path / "val", on_bad="skip")
    assert [(p.file, p.kind) for p in data.problems] == [("0001.png", "mask_values")]
    assert "0001.png has 254 values that are no class, on 1,016 of 1,024 pixels: 2 (4 pixels)" in data.problems[0].detail


# ── one folder for two splits ──


def test_one_folder_for_train_and_val_is_told_as_leaks(tmp_path):
    lay(tmp_path / "train", 3)
    mask(tmp_path / "train_masks" / "lone.png", [0, 1])
    data = load(train=tmp_path / "train", val=tmp_path / "train")
    assert [len(split) for split in data.splits.values()] == [3, 3]
    assert told(data.problems) == [
        ("train", "lone.png", "mask_without_image", "there is no image of this mask: not used", False),
        *[("val", f"000{i}.png", "leak", f"same content as 000{i}.png in train", False) for i in range(3)],
    ]
    assert [line for line in _data_notes(data) if line.startswith("data: 3 x leak, first ")]
