"""`check` names every fault of a data set, in the words that training would use."""

import io

import numpy as np
import pytest
from PIL import Image

from pellucid.data.check import check
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError
from pellucid.recipe import DataSection


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(path, seed, kind="PNG", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)).save(buffer, kind, **options)
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def troubled(tmp_path):
    """Two splits with one of nearly everything."""
    train, val = tmp_path / "train", tmp_path / "val"
    for i in range(23):
        write(train / "cat" / f"{i:02}.png", i)
    for i in range(2):
        write(train / "dog" / f"{i:02}.png", 100 + i)
    write(train / "owl" / "a.png", 200)
    (train / "cat" / "copy.png").write_bytes((train / "cat" / "05.png").read_bytes())
    (train / "owl" / "alias.png").write_bytes((train / "cat" / "06.png").read_bytes())
    (train / "dog" / "empty.png").write_bytes(b"")
    (train / "dog" / "notes.txt").write_text("bark")
    (train / "dog" / ".DS_Store").write_text("")
    write(train / "dog" / "really.jpg", 300)
    exif = Image.Exif()
    exif[0x0112] = 6
    write(val / "cat" / "turned.png", 400, exif=exif)
    write(val / "dog" / "b.png", 401)
    (val / "dog" / "seen.png").write_bytes((train / "dog" / "00.png").read_bytes())
    return DataSection(source="folder", train=str(train), val=str(val))


EXPECTED = [
    ("train", "dog/notes.txt", "other_file", "the ending is no image's: not used", False),
    ("train", "dog/empty.png", "zero_size", "the file is empty (0 bytes)", True),
    ("train", "dog/really.jpg", "wrong_extension", "the content is PNG, the name ends in .jpg", False),
    ("train", "cat/copy.png", "duplicate", "same content as cat/05.png", False),
    ("train", "owl/alias.png", "duplicate", "same content as cat/06.png, under another label: 'owl' here, 'cat' there", False),
    ("train", "", "imbalance", "'cat' has 24 images, 'owl' has 2: more than 10 to 1", False),
    ("val", "cat/turned.png", "exif_rotated", "EXIF orientation 6: turned upright", False),
    ("val", "dog/seen.png", "leak", "same content as dog/00.png in train", False),
    ("val", "", "class_missing", "no usable image of class 'owl'", False),
]


def test_every_problem_is_listed_and_nothing_else(troubled):
    report = check(troubled, seed=1)
    assert [(p.split, p.file, p.kind, p.detail, p.fatal) for p in report.problems] == EXPECTED
    assert [p.file for p in report.bad] == ["dog/empty.png"]


def test_training_sees_the_same_problems_and_the_same_data(troubled):
    report = check(troubled, seed=1)
    data = load_dataset(troubled.model_copy(update={"on_bad": "skip"}), seed=1)
    assert data.problems == report.problems
    assert {name: split.record(3) for name, split in data.splits.items()} == report.splits
    assert data.skipped == ["train/dog/empty.png"]


def test_counts_are_of_usable_images(troubled):
    report = check(troubled, seed=1)
    assert report.classes == ("cat", "dog", "owl")
    assert report.counts("train") == {"cat": 24, "dog": 3, "owl": 2}
    assert report.counts("val") == {"cat": 1, "dog": 2, "owl": 0}
    assert {name: split.n for name, split in report.splits.items()} == {"train": 29, "val": 3}


def test_the_hash_changes_with_any_content_and_only_then(troubled, tmp_path):
    before = check(troubled, seed=1).hash
    assert check(troubled, seed=2).hash == before
    write(tmp_path / "val" / "dog" / "b.png", 999)
    assert check(troubled, seed=1).hash != before


def test_bad_images_are_never_raised_even_when_nothing_is_left(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "x.jpg").write_bytes(b"\xff\xd8 no picture")
    report = check(DataSection(source="folder", train=str(tmp_path / "train"), val=str(tmp_path / "val")), seed=1)
    assert [(p.split, p.kind) for p in report.bad] == [("train", "unreadable")] * 2 + [("val", "unreadable")] * 2
    assert [split.n for split in report.splits.values()] == [0, 0]
    assert not [p for p in report.problems if p.kind in ("duplicate", "leak")], "bad files are not compared"


def test_a_layout_that_cannot_be_followed_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"expected a folder of images for data\.train, there is none"):
        check(DataSection(source="folder", train=str(tmp_path / "none")), seed=1)


def test_ten_to_one_is_not_yet_an_imbalance(tmp_path):
    for i in range(10):
        write(tmp_path / "cat" / f"{i}.png", i)
    write(tmp_path / "dog" / "a.png", 50)
    section = DataSection(source="folder", train=str(tmp_path))
    assert check(section, seed=1).problems == []
    write(tmp_path / "cat" / "more.png", 60)
    assert [p.kind for p in check(section, seed=1).problems] == ["imbalance"]


def test_a_fraction_names_problems_in_the_split_where_the_file_ends_up(tmp_path):
    for i in range(30):
        write(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.jpg", i)
    report = check(DataSection(source="folder", train=str(tmp_path), val=0.5), seed=1)
    wrong = {split: sum(p.split == split and p.kind == "wrong_extension" for p in report.problems) for split in ("train", "val")}
    assert wrong == {name: split.n for name, split in report.splits.items()}
    assert min(wrong.values()) > 0


def test_drawn_data_has_no_problems():
    assert check(DataSection(source="scenes", train=60, val=12, image_size=32), seed=1).problems == []
