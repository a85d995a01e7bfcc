"""Images with masks: which belong together, how masks write classes, and how each fault is worded."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn_pairs import lay, mask, photo, section
from pellucid.data import scenes
from pellucid.data.check import check
from pellucid.data.images import centre, decode, resize, resized_mask, upright_size, view_box, view_mask
from pellucid.data.pairs import largest
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError
from pellucid.palettes import IGNORED
from pellucid.recipe import DataSection

REAL = Path(os.environ.get("PELLUCID_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
CAMVID = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
LANDCOVER = {
    "urban": [0, 255, 255],
    "agriculture": [255, 255, 0],
    "rangeland": [255, 0, 255],
    "forest": [0, 255, 0],
    "water": [0, 0, 255],
    "barren": [255, 255, 255],
}
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def real():
    if not REAL.is_dir():
        pytest.skip("the real photographs are not here; set PELLUCID_DATA to their folder")
    return REAL


def load(**settings):
    return load_dataset(section(**settings), seed=1, masks=True)


def fault(**settings):
    with pytest.raises(DataError) as caught:
        load(**settings)
    return str(caught.value)


def told(data):
    return [(p.file, p.kind, p.detail, p.fatal) for p in data.problems]


# ── which mask belongs to which image ──


@pytest.mark.parametrize(
    ("image", "target", "names", "note"),
    [
        ("{}_sat.jpg", "{}_mask.png", ("{}_sat", "{}_mask"), "masks: beside the images, {}_mask of {}_sat"),
        ("{}.jpg", "{}_mask.png", ("{}", "{}_mask"), "masks: beside the images, {}_mask of {}"),
        ("{}.png", "{}_mask.png", ("{}", "{}_mask"), "masks: beside the images, {}_mask of {}"),
        ("{}.jpg", "{}.png", ("{}", "{}"), "masks: beside the images, of equal names"),
        ("deep/{}.jpg", "deep/{}.bmp", ("{}", "{}"), "masks: beside the images, of equal names"),
    ],
)
def test_masks_beside_their_images_are_found(tmp_path, image, target, names, note):
    lay(tmp_path, image=image, target=target)
    data = load(train=tmp_path)
    assert list(data.splits["train"].names) == [image.format(f"{i:04}") for i in range(4)]
    assert data.mask_format.names == names
    assert data.notes == [note]
    assert told(data) == []


@pytest.mark.parametrize("target", ["../{}_masks/{}.png", "../{}_masks/{}_mask.tif"])
def test_masks_in_the_folder_of_their_split_are_found(tmp_path, target):
    for split in ("train", "val"):
        lay(tmp_path / split, image="{}.jpg", target=target, first=10 * len(split))
    data = load(train=tmp_path / "train", val=tmp_path / "val")
    assert [len(split) for split in data.splits.values()] == [4, 4]
    assert data.splits["val"].masks.pixels.tolist() == [[24, 24, 0]] * 4
    assert told(data) == []


def test_the_recipe_names_folder_and_patterns(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            photo(tmp_path / "pictures" / split / f"img_{i}.jpg", i + 10 * len(split))
            mask(tmp_path / "targets" / split / f"{i}_gt.png", [0, 1])
    settings = {"train": tmp_path / "pictures/train", "val": tmp_path / "pictures/val", "mask_dir": f"{tmp_path}/targets/{{split}}"}
    data = load(**settings, pair_names=["img_{}", "{}_gt"])
    assert list(data.splits["train"].names) == ["img_0.jpg", "img_1.jpg", "img_2.jpg"]
    message = fault(**settings, pair_names=["{}_img", "{}_gt"])
    assert f"data.train: expected images in {tmp_path}/pictures/train and masks in {tmp_path}/targets/train, named '{{}}_img' with a mask '{{}}_gt'" in message
    assert "found none that belong together, of 3 files:\n  image img_0.jpg" in message
    assert "NNNN_sat.jpg with NNNN_mask.png" in fault(**settings)
    assert "there is none. Did you mean 'targets'?" in fault(train=tmp_path / "pictures/train", mask_dir=str(tmp_path / "target"))


def test_equal_subfolders_come_before_equal_names(tmp_path):
    """Each image has a size of its own, so that a mask of another would not fit."""
    for i, folder in enumerate(("a", "b")):
        photo(tmp_path / "train" / folder / "x.jpg", i, (6 + i, 8))
        mask(tmp_path / "train_masks" / folder / "x.png", [0, 1], size=(6 + i, 8))
    photo(tmp_path / "train" / "c" / "flat.jpg", 5)
    mask(tmp_path / "train_masks" / "flat.png", [1, 2])
    data = load(train=tmp_path / "train")
    assert list(data.splits["train"].names) == ["a/x.jpg", "b/x.jpg", "c/flat.jpg"]
    assert data.splits["train"].masks.pixels[2].tolist() == [0, 24, 24, 0]


def test_masks_below_the_images_are_no_images(tmp_path):
    lay(tmp_path, image="{}.png", target="labels/{}.png")
    assert list(load(train=tmp_path, mask_dir=str(tmp_path / "labels")).splits["train"].names) == ["0000.png", "0001.png", "0002.png", "0003.png"]


def test_what_is_left_over_is_told_once(tmp_path):
    lay(tmp_path / "train", image="{}_sat.jpg", target="{}_mask.png")
    mask(tmp_path / "train" / "lone_mask.png", [0])
    photo(tmp_path / "train" / "panorama.jpg", 90)
    (tmp_path / "train" / "notes.txt").write_text("")
    assert told(load(train=tmp_path / "train")) == [
        ("notes.txt", "other_file", "the ending is no image's: not used", False),
        ("panorama.jpg", "other_file", "the name is not of the form {}_sat: not used", False),
        ("lone_mask.png", "mask_without_image", "there is no image of this mask: not used", False),
    ]


def test_splits_may_share_a_folder_of_masks(tmp_path):
    for split, start in (("train", 0), ("val", 3)):
        for i in range(start, start + 3):
            photo(tmp_path / split / f"{i}.jpg", i)
            mask(tmp_path / "masks" / f"{i}.png", [0, 1])
    mask(tmp_path / "masks" / "lone.png", [0, 1])
    settings = {"train": tmp_path / "train", "val": tmp_path / "val", "mask_dir": str(tmp_path / "masks")}
    assert [(p.split, p.file, p.kind) for p in load(**settings).problems] == [("train", "lone.png", "mask_without_image")]
    photo(tmp_path / "val" / "0.jpg", 70)
    assert f"{tmp_path}/masks/0.png: the mask belongs to 0.jpg of train and to 0.jpg of val." in fault(**settings)


def test_two_images_of_one_mask_are_refused(tmp_path):
    lay(tmp_path / "train", image="{}.jpg")
    photo(tmp_path / "train" / "0002.webp", 50)
    assert "1 of 4 masks belong to two images or more:\n  0002.png: 0002.jpg and 0002.webp" in fault(train=tmp_path / "train")


def test_lossy_masks_need_a_threshold(tmp_path):
    for i in range(3):
        photo(tmp_path / f"{i}.png", i, (16, 16))
        mask(tmp_path / f"{i}_mask.jpg", [RED] * 8 + [BLACK] * 8, size=(16, 16))
    message = fault(train=tmp_path, palette={"no": [0, 0, 0], "yes": [255, 0, 0]})
    assert "3 masks are in a format that loses values (.jpg), so that colours at edges are no class:\n  0_mask.jpg" in message
    assert "set data.threshold" in message
    data = load(train=tmp_path, palette={"no": [0, 0, 0], "yes": [255, 0, 0]}, threshold=128)
    assert data.splits["train"].masks.pixels.tolist() == [[128, 128, 0]] * 3


# ── what each file says ──


def spoil(root):
    """Six images: one good, and one for each fault that is of one file."""
    lay(root, 6, image="{}.png")
    masks = root.parent / f"{root.name}_masks"
    (masks / "0001.png").unlink()
    mask(masks / "0002.png", [0, 1], size=(8, 6))
    mask(masks / "0003.png", [0, 1, 4, 4, 1, 9])
    (masks / "0004.png").write_bytes(b"no mask")
    mask(masks / "0005.png", [7])
    return {"train": root, "classes": ["ground", "tree"], "ignored": [7]}


def test_every_fault_of_a_mask_is_named(tmp_path):
    settings = spoil(tmp_path / "train")
    message = fault(**settings)
    assert message.startswith("4 of 6 images cannot be used:\n")
    data = load(**settings, on_bad="skip")
    assert told(data) == [
        ("0001.png", "no_mask", f"expected its mask as {tmp_path}/train_masks/0001.png, there is none", True),
        ("0002.png", "mask_size", "0002.png has 6 x 8 pixels, its upright image 8 x 6; save the mask at the image's size", True),
        ("0003.png", "mask_values", "0003.png has 2 values that are no class, on 24 of 48 pixels: 4 (16 pixels), 9 (8 pixels)", True),
        ("0004.png", "mask_unreadable", "0004.png: cannot be read as a mask: no image of a known format (PNG, BMP, DIB, TIFF, GIF, JPEG, WEBP, PPM)", True),
        ("0005.png", "mask_all_ignored", "every pixel of 0005.png is ignored", False),
    ]
    assert data.skipped == [f"train/000{i}.png" for i in (1, 2, 3, 4)]
    assert list(data.splits["train"].names) == ["0000.png", "0005.png"]
    assert data.splits["train"].masks.pixels.tolist() == [[24, 24, 0], [0, 0, 48]]
    assert [line.split(": ")[1:3] for line in message.splitlines()[1:-1]] == [[p.file, p.kind] for p in data.problems if p.fatal]


def test_an_image_and_its_mask_that_are_both_bad_count_once(tmp_path):
    settings = spoil(tmp_path / "train")
    (tmp_path / "train" / "0004.png").write_bytes(b"no image")
    assert fault(**settings).startswith("4 of 6 images cannot be used:\n")
    assert load(**settings, on_bad="skip").skipped == [f"train/000{i}.png" for i in (1, 2, 3, 4)]


def test_a_mask_belongs_to_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        photo(tmp_path / f"{i}_sat.jpg", i, (6, 8), exif=exif)
        mask(tmp_path / f"{i}_mask.png", [0, 1], size=(8, 6))
    split = load(train=tmp_path).splits["train"]
    assert split.open(0).size == (6, 8)
    assert split.masks.open(0).shape == (8, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_the_size_in_the_header_is_that_of_the_decoded_picture(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(tmp_path / f"a.{kind}", 1, (6, 9), exif=exif)
    data = (tmp_path / f"a.{kind}").read_bytes()
    picture = decode(data, "a")
    assert upright_size(data, "a") == (picture.height, picture.width)


def test_the_size_of_no_picture_is_an_error():
    with pytest.raises(DataError, match=r"^a\.jpg: unreadable: not an image of a known format"):
        upright_size(b"none", "a.jpg")


def test_a_mask_that_changes_after_it_was_checked_is_refused(tmp_path):
    lay(tmp_path / "train")
    masks = load(train=tmp_path / "train").splits["train"].masks
    assert masks.open(1)[:, 0].tolist() == [0, 1, 0, 1, 0, 1]
    mask(tmp_path / "train_masks" / "0001.png", [1, 1, 0])
    with pytest.raises(DataError, match=r"train_masks/0001\.png: the file changed after it was checked"):
        masks.open(1)


def test_a_copy_under_another_mask_is_told_as_such(tmp_path):
    lay(tmp_path / "train", 3)
    lay(tmp_path / "val", 2, first=50)
    for split, name, values in (("train", "copy", [0, 1]), ("train", "other", [1, 1, 0]), ("val", "seen", [0, 0, 1])):
        photo(tmp_path / split / f"{name}.png", 0)
        mask(tmp_path / f"{split}_masks" / f"{name}.png", values)
    assert [(file, detail) for file, _, detail, _ in told(load(train=tmp_path / "train", val=tmp_path / "val"))] == [
        ("copy.png", "same content as 0000.png"),
        ("other.png", "same content as 0000.png, under another mask"),
        ("seen.png", "same content as 0000.png in train, under another mask"),
    ]


def test_a_fraction_takes_masks_with_their_images(tmp_path):
    for i in range(40):
        photo(tmp_path / f"{i}.jpg", i, (6, 40))
        path = tmp_path / f"{i}_mask.png"
        pixels = np.zeros((6, 40), np.uint8)
        pixels[0, : i + 1] = 1  # says which image it belongs to
        Image.fromarray(pixels).save(path)
    data = load(train=tmp_path, val=0.4)
    assert min(len(split) for split in data.splits.values()) > 5
    for split in data.splits.values():
        assert [int(Path(name).stem) + 1 for name in split.names] == split.masks.pixels[:, 1].tolist()
        for i in range(len(split)):
            assert split.masks.open(i).sum() == split.masks.pixels[i, 1]


# ── what codes mean ──


def test_classes_are_given_listed_or_counted(tmp_path):
    lay(tmp_path / "train", values=[0, 1, 2])
    assert load(train=tmp_path / "train").classes == ("0", "1", "2")
    assert load(train=tmp_path / "train", ignored=[0]).classes == ("1", "2")
    assert load(train=tmp_path / "train", ignored=[2]).classes == ("0", "1")
    lay(tmp_path / "train", values=[0, 1, 3])
    (tmp_path / "classes.txt").write_text("ground\ntree\ncar\nsky\n")
    data = load(train=tmp_path / "train")
    assert data.classes == ("ground", "tree", "car", "sky")
    assert ("", "class_missing", "no usable mask has a pixel of class 'car'", False) in told(data)
    data = load(train=tmp_path / "train", palette={"sky": 3, "ground": 0, "tree": 1})
    assert data.classes == ("sky", "ground", "tree")
    assert data.splits["train"].masks.pixels[0].tolist() == [16, 16, 16, 0]
    assert data.splits["train"].masks.open(0)[:3, 0].tolist() == [1, 2, 0]
    ordered = load(train=tmp_path / "train", palette={"sky": 3, "ground": 0, "tree": 1}, classes=["ground", "tree", "sky"])
    assert ordered.mask_format.codes == [0, 1, 3]


def test_classes_that_cannot_be_are_refused(tmp_path):
    lay(tmp_path / "train", values=[0, 255])
    stray = fault(train=tmp_path / "train")
    assert "the values of the training masks are not 0, 1, 2 ... without a gap: 0 (" in stray
    assert "with data.palette which value each class has, as {background: 0, thing: 255}" in stray
    assert "got 1 from the values of the training masks, 0" in fault(train=tmp_path / "train", ignored=[255])
    assert "data.ignored: value 0 is class 'a' of data.classes" in fault(train=tmp_path / "train", ignored=[0], classes=["a", "b"])
    assert "class 'a' stands there twice" in fault(train=tmp_path / "train", ignored=[255], classes=["a", "a"])


def test_masks_that_fit_no_class_are_one_error_and_not_many(tmp_path):
    lay(tmp_path / "train", 30, values=[0, 1, 11])
    settings = {"train": tmp_path / "train", "classes": ["ground", "tree"]}
    message = fault(**settings)
    assert message == (
        "train: not one of 30 training masks fits the classes (ground 0, tree 1): 1 value that is no class, on 480 of 1,440 pixels: 11 (480 pixels). "
        "Name these with data.palette, or with data.ignored where they are none."
    )
    assert fault(**settings, on_bad="skip") == message
    assert [(p.file, p.kind) for p in check(section(**settings), seed=1, masks=True).bad] == [("", "mask_values")]


def test_coloured_masks_without_a_palette_give_the_lines_to_paste(tmp_path):
    lay(tmp_path / "train", values=[RED, RED, GREEN])
    message = fault(train=tmp_path / "train")
    assert "  palette:\n    class_1: [255, 0, 0]  # 128 pixels, 66.7 %\n    class_2: [0, 255, 0]  # 64 pixels, 33.3 %\n" in message
    assert "Name the classes" in message
    data = section(train=tmp_path / "train")
    report = check(data, seed=1)
    assert [(p.file, p.kind, p.fatal) for p in report.problems] == [("", "no_palette", True)]
    assert report.palette == [(RED, 128), (GREEN, 64)]
    assert (report.classes, report.counts("train"), report.splits["train"].n) == ((), {}, 4)


def test_at_most_forty_colours_are_listed(tmp_path):
    photo(tmp_path / "a_sat.png", 1)
    photo(tmp_path / "a_mask.png", 2)
    message = fault(train=tmp_path)
    assert "The 48 colours" in message
    assert "class_40:" in message
    assert "class_41:" not in message
    assert "# … and 8 more\nWhere colours of one class differ a little, data.threshold: 128" in message


def test_a_mask_of_more_colours_than_classes_can_be_is_named_all_the_same(tmp_path):
    for i in range(2):
        photo(tmp_path / f"{i}_sat.png", i, (30, 30))
    mask(tmp_path / "0_mask.png", [RED, GREEN], size=(30, 30))
    photo(tmp_path / "1_mask.png", 9, (30, 30))
    data = load(train=tmp_path, palette={"red": list(RED), "green": list(GREEN)}, on_bad="skip")
    assert [(p.file, p.kind, p.fatal) for p in data.problems] == [("1_sat.png", "mask_values", True)]
    assert "1_mask.png has 900 colours that are no class, on 900 of 900 pixels: [" in data.problems[0].detail
    assert data.problems[0].detail.endswith(" (1 pixels) and 892 more")


@pytest.mark.parametrize(
    ("values", "settings", "said"),
    [
        ([0, 1], {"palette": {"a": [0, 0, 0], "b": [1, 1, 1]}}, "data.palette gives colours [r, g, b], the masks hold values, as "),
        ([RED, GREEN], {"palette": {"a": 0, "b": 1}}, "data.palette gives values, the masks hold colours (RGB), as "),
        ([0, 1], {"ignored": [[0, 0, 0]]}, "data.ignored gives colours [r, g, b], the masks hold values, as "),
        ([0, 1], {"threshold": 128}, "data.threshold belongs to coloured masks, these hold values"),
    ],
)
def test_a_recipe_of_another_kind_of_mask_is_refused(tmp_path, values, settings, said):
    lay(tmp_path / "train", values=values)
    assert said in fault(train=tmp_path / "train", **settings)


def test_mixed_kinds_of_masks_are_refused_with_both_files(tmp_path):
    lay(tmp_path / "train")
    mask(tmp_path / "train_masks" / "0002.png", [RED])
    root = f"{tmp_path}/train_masks"
    assert f"got values as in {root}/0000.png and colours (RGB) as in {root}/0002.png" in fault(train=tmp_path / "train")


def test_masks_none_of_which_can_be_read_are_one_error(tmp_path):
    lay(tmp_path / "train", 3)
    for file in (tmp_path / "train_masks").iterdir():
        file.write_bytes(b"")
    assert "expected masks that can be read, got none of 3 for training: 0000.png: cannot be read as a mask" in fault(train=tmp_path / "train")


def test_the_palette_of_the_first_mask_is_kept_and_another_is_told(tmp_path):
    lay(tmp_path / "train")
    first, other = [0, 0, 0, 9, 8, 7, 1, 2, 3], [0, 0, 0, 9, 8, 6]
    for i in range(4):
        mask(tmp_path / "train_masks" / f"000{i}.png", [0, 1], other if i == 2 else first)
    mask(tmp_path / "train_masks" / "0003.png", [0, 3], [*first, 5, 5, 5])
    four = ["a", "b", "c", "d"]
    data = load(train=tmp_path / "train", classes=four)
    assert data.mask_format.mode == "P"
    assert data.mask_format.palette == [*first, 5, 5, 5]
    assert told(data)[0][:3] == (
        "0002.png",
        "mask_palette",
        "0002.png: index 1 is [9, 8, 6] here and [9, 8, 7] in the masks before; indices are taken as they are",
    )
    assert data.splits["train"].masks.open(2)[:2, 0].tolist() == [0, 1]
    mask(tmp_path / "train_masks" / "0001.png", [0, 1])
    assert ("0001.png", "mask_palette") in [row[:2] for row in told(load(train=tmp_path / "train", classes=four))]


# ── of the set ──


def test_labels_are_the_largest_class_that_is_not_background():
    pixels = np.array([[9, 2, 3, 0], [9, 3, 3, 5], [4, 0, 0, 0], [0, 0, 0, 7]])
    assert largest(pixels, ["Background", "a", "b"]).tolist() == [2, 1, 0, 0]
    assert largest(pixels[:, [1, 2, 0, 3]], ["a", "b", "background"]).tolist() == [1, 0, 2, 0]
    assert largest(pixels, ["x", "a", "b"]).tolist() == [0, 0, 0, 0]
    assert largest(pixels, ["x", "a", "b"]).dtype == np.int64


def test_pixels_and_hash_of_a_split_are_of_its_masks(tmp_path):
    lay(tmp_path / "train", values=[0] * 5 + [1])
    before = load(train=tmp_path / "train").splits["train"].record(2)
    assert before.pixels == [160, 32, 0]
    mask(tmp_path / "train_masks" / "0003.png", [1] + [0] * 5)
    after = load(train=tmp_path / "train").splits["train"].record(2)
    assert after.pixels == before.pixels
    assert after.hash != before.hash, "a mask with the same counts is another mask"


def test_very_unequal_classes_are_told_with_their_shares(tmp_path):
    lay(tmp_path / "train", values=[0] * 6)
    mask(tmp_path / "train_masks" / "0000.png", [0, 0, 0, 0, 0, 1])
    detail = "classes have very unequal pixels, more than 10 to 1: 0 95.8 %, 1 4.17 %"
    assert told(load(train=tmp_path / "train")) == [("", "imbalance", detail, False)]


def test_a_second_start_counts_no_mask_again_and_says_the_same(tmp_path, monkeypatch):
    settings = spoil(tmp_path / "train") | {"on_bad": "skip"}
    (tmp_path / "train_masks" / "0004.png").unlink()
    first = load(**settings)

    def never(data, name, threshold):
        raise AssertionError(f"{name} was counted again")

    monkeypatch.setattr("pellucid.data.pairs.tally", never)
    again = load(**settings)
    assert again.problems == first.problems
    assert again.splits["train"].hash == first.splits["train"].hash
    np.testing.assert_array_equal(again.splits["train"].masks.pixels, first.splits["train"].masks.pixels)
    mask(tmp_path / "train_masks" / "0000.png", [1])
    with pytest.raises(AssertionError, match=r"0000\.png was counted again"):
        load(**settings)


def test_damaged_notes_of_masks_are_made_again(tmp_path):
    lay(tmp_path / "train", 30, values=[0, 1, 1])
    first = load(train=tmp_path / "train").splits["train"]
    notes = sorted((Path(os.environ["XDG_CACHE_HOME"]) / "pellucid" / "masks").glob("*.json"))
    assert notes
    for note in notes:
        note.write_text(note.read_text().replace("counts", "amounts") if note != notes[0] else "{")
    again = load(train=tmp_path / "train").splits["train"]
    assert (again.hash, again.record(2)) == (first.hash, first.record(2))


def test_progress_counts_images_and_masks(tmp_path):
    lay(tmp_path / "train", 40)
    seen = []
    load_dataset(section(train=tmp_path / "train"), seed=1, masks=True, progress=lambda *args: seen.append(args))
    assert seen[-1] == ("checking masks of train", 40, 40)
    assert ("checking train", 40, 40) in seen


def test_training_and_check_say_the_same(tmp_path):
    settings = spoil(tmp_path / "train") | {"on_bad": "skip"}
    report, data = check(section(**settings), seed=1, masks=True), load(**settings)
    assert report.problems == data.problems
    assert report.splits == {name: split.record(2) for name, split in data.splits.items()}
    assert report.pixels == {"train": [24, 24, 48]}


# ── drawn scenes ──


def test_scenes_have_their_own_masks():
    data = load_dataset(DataSection(source="scenes", train=12, val=6, image_size=[32, 48]), seed=1, masks=True)
    assert data.classes == ("background", *scenes.SHAPES)
    split = data.splits["val"]
    for i in range(6):
        drawn = scenes.draw(i, split="val", image_size=(32, 48))
        np.testing.assert_array_equal(split.masks.open(i), drawn.mask)
        assert split.masks.pixels[i].tolist() == [int((drawn.mask == k).sum()) for k in range(7)] + [0]
        assert split.labels[i] == 1 + drawn.label
    assert (data.mask_format.mode, data.mask_format.codes, data.mask_format.names) == ("L", list(range(7)), ("{}", "{}"))
    plain = load_dataset(DataSection(source="scenes", train=12, val=6, image_size=[32, 48]), seed=1)
    assert list(plain.splits["val"].hashes) == list(split.hashes)
    assert plain.mask_format is None


def test_the_classes_of_scenes_can_be_ordered_but_not_chosen():
    order = ["ring", "background", *scenes.SHAPES[:-1]]
    data = load_dataset(DataSection(source="scenes", train=6, image_size=32, classes=order), seed=1, masks=True)
    mask_of = scenes.draw(5, split="train", image_size=(32, 32)).mask
    np.testing.assert_array_equal(data.splits["train"].masks.open(5) == 0, mask_of == 6)
    with pytest.raises(DataError, match="the masks of scenes have the classes background, circle"):
        load_dataset(DataSection(source="scenes", train=6, image_size=32, classes=["a", "b"]), seed=1, masks=True)


def test_sources_without_masks_say_so():
    with pytest.raises(DataError, match="digits has no masks; segmentation takes pairs or scenes"):
        load_dataset(DataSection(source="digits", train=6), seed=1, masks=True)


# ── the stored form ──

FITS = [("crop", None), ("crop", 40), ("stretch", None), ("pad", None), ("native", None)]
SHAPES = [(48, 64), (64, 48), (37, 91), (20, 24), (32, 32)]


@pytest.mark.parametrize(("fit", "resize_size"), FITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkerboard_and_its_mask_stay_aligned(shape, fit, resize_size):
    y, x = np.mgrid[: shape[0], : shape[1]]
    board = ((y * 4 // shape[0] + x * 4 // shape[1]) % 2).astype(np.uint8)
    board[: shape[0] // 8] = 1  # upside down is another board
    picture = Image.fromarray(np.repeat(board[:, :, None] * np.uint8(255), 3, axis=2))
    size = (32, 28)
    stored = resize(picture, size, fit, resize_size, "bilinear")
    found = resized_mask(board, size, fit, resize_size, bars=IGNORED)
    assert found.shape == stored.shape[:2]
    assert found.dtype == np.uint8
    seen = found != IGNORED
    clear = seen & ((stored[..., 0] < 5) | (stored[..., 0] > 250))
    assert clear.mean() > 0.4 * seen.mean()
    np.testing.assert_array_equal(found[clear], stored[..., 0][clear] > 128)
    assert not stored[~seen].any(), "bars are black"
    assert bool((~seen).any()) == (fit == "pad"), "none of the shapes has the aspect of the view"
    np.testing.assert_array_equal(view_mask(board, size, fit, resize_size), centre(np.where(seen, found, 0), size))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stretched_mask_has_the_values_in_the_middle(shape):
    """Slow twin, in float64: the value under the middle of each pixel."""
    mask_of = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    found = resized_mask(mask_of, (23, 29), "stretch", None, bars=0)
    expected = [[mask_of[int((i + 0.5) * shape[0] / 23), int((j + 0.5) * shape[1] / 29)] for j in range(29)] for i in range(23)]
    assert found.tolist() == expected


def test_native_keeps_every_pixel_and_the_view_is_its_middle():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (10, 31, 3), np.uint8))
    stored = resize(picture, (16, 16), "native", None, "bilinear")
    np.testing.assert_array_equal(stored, np.asarray(picture))
    view, box = centre(stored, (16, 16)), view_box((10, 31), (16, 16), "native", None)
    assert box == (-3.0, 8.0, 16.0, 16.0)
    np.testing.assert_array_equal(view[3:13], stored[:, 8:24])
    assert not view[:3].any()
    assert not view[13:].any()


# ── real data ──


def test_camvid_loads_with_void_ignored(real):
    root = real / "camvid"
    data = load(train=root / "train", val=root / "val", test=root / "test", classes=CAMVID, ignored=[11])
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 367, "val": 101, "test": 233}
    assert data.splits["train"].masks.pixels.sum() == 367 * 180 * 240
    assert data.splits["train"].record(11).pixels == [
        2655759, 3682975, 156038, 5040098, 710515, 1539084, 185523, 178727, 929651, 101362, 46192, 628476,
    ]  # fmt: skip
    assert [p.kind for p in data.problems] == ["imbalance"]
    file = np.asarray(Image.open(root / "val_masks" / Path(data.splits["val"].names[7]).with_suffix(".png").name))
    np.testing.assert_array_equal(data.splits["val"].masks.open(7), np.where(file == 11, IGNORED, file))


def test_landcover_pairs_round_trip_to_their_colours(real):
    data = load(train=real / "landcover", palette=LANDCOVER, threshold=128, ignored=[[0, 0, 0]])
    split = data.splits["train"]
    assert list(split.names) == ["0010_sat.jpg", "0097_sat.jpg", "0107_sat.jpg"]
    assert data.mask_format.file_of(split.names[0]) == "0010_mask.png"
    for i, name in enumerate(split.names):
        pixels = np.asarray(Image.open(real / "landcover" / data.mask_format.file_of(name)).convert("RGB"))
        bits = np.where(pixels >= 128, 255, 0)
        written = data.mask_format.write(split.masks.open(i))
        np.testing.assert_array_equal(np.asarray(decode(written, name)), bits)
        expected = [int((bits == colour).all(axis=2).sum()) for colour in [*LANDCOVER.values(), [0, 0, 0]]]
        assert split.masks.pixels[i].tolist() == expected
