"""Every layout from small real files: what is read, in which order, and how each fault is worded."""

import hashlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid.data import scenes
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError, MissingError
from pellucid.recipe import DataSection

REAL = Path(os.environ.get("PELLUCID_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def real():
    if not REAL.is_dir():
        pytest.skip("the real photographs are not here; set PELLUCID_DATA to their folder")
    return REAL


def png(seed, side=6):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def lay(root, names, first=0):
    """Write a different picture under each name."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(first + i))


def load(**settings):
    return load_dataset(DataSection(**{key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}), seed=1)


def fault(**settings):
    with pytest.raises(DataError) as caught:
        load(**settings)
    return str(caught.value)


# ── folder ──


def test_folder_takes_the_first_folder_as_class_and_sorts(tmp_path):
    lay(tmp_path / "train", ["dog/b.png", "cat/deep/er/z.png", "cat/a.png", "dog/.hidden.png", ".cache/x.png"])
    lay(tmp_path / "val", ["cat/v.png"], 50)
    data = load(source="folder", train=tmp_path / "train", val=tmp_path / "val")
    train = data.splits["train"]
    assert data.classes == ("cat", "dog")
    assert list(train.names) == ["cat/a.png", "cat/deep/er/z.png", "dog/b.png"]
    assert train.labels.tolist() == [0, 0, 1]
    assert train.labels.dtype == np.int64
    assert list(data.splits) == ["train", "val"]


def test_samples_open_as_their_files_and_hash_as_their_bytes(tmp_path):
    lay(tmp_path, ["a/1.png", "b/2.png"])
    split = load(source="folder", train=tmp_path).splits["train"]
    for i, name in enumerate(split.names):
        content = (tmp_path / name).read_bytes()
        assert split.hashes[i] == hashlib.blake2b(content, digest_size=16).hexdigest()
        assert np.array_equal(np.asarray(split.open(i)), np.asarray(Image.open(io.BytesIO(content))))
    (tmp_path / "b/2.png").unlink()
    with pytest.raises(DataError, match=r"b/2\.png: cannot be read any more"):
        split.open(1)


def test_folders_that_are_numbers_sort_by_value(tmp_path):
    lay(tmp_path, ["10/a.png", "9/b.png", "2/c.png"])
    assert load(source="folder", train=tmp_path).classes == ("2", "9", "10")


@pytest.mark.parametrize("place", ["train/classes.txt", "classes.txt"])
def test_classes_txt_gives_the_order(tmp_path, place):
    lay(tmp_path / "train", ["cat/a.png", "dog/b.png"])
    (tmp_path / place).write_text("dog\ncat\n\n")
    data = load(source="folder", train=tmp_path / "train")
    assert data.classes == ("dog", "cat")
    assert data.splits["train"].labels.tolist() == [1, 0]
    assert data.problems == []


def test_the_recipe_gives_the_order_as_list_or_file(tmp_path):
    lay(tmp_path / "train", ["cat/a.png", "dog/b.png"])
    (tmp_path / "order.txt").write_text("dog\ncat\nowl\n")
    assert load(source="folder", train=tmp_path / "train", classes=["dog", "cat"]).classes == ("dog", "cat")
    data = load(source="folder", train=tmp_path / "train", classes=tmp_path / "order.txt")
    assert data.classes == ("dog", "cat", "owl")
    assert [(p.kind, p.detail) for p in data.problems] == [("class_missing", "no usable image of class 'owl'")]
    assert "class 'dog' stands there twice" in fault(source="folder", train=tmp_path / "train", classes=["dog", "cat", "dog"])
    message = fault(source="folder", train=tmp_path / "train", classes=["dog", "cats"])
    assert "cat/a.png: label 'cat' is not among the 2 classes of data.classes. Did you mean 'cats'?" in message


def test_a_missing_folder_names_its_neighbour(tmp_path):
    lay(tmp_path / "train", ["cat/a.png", "dog/b.png"])
    message = fault(source="folder", train=tmp_path / "trian")
    assert message == f"{tmp_path}/trian: expected a folder of images for data.train, there is none. Did you mean 'train'?"


def test_loose_images_are_named_with_the_source_that_would_fit(tmp_path):
    lay(tmp_path, ["0_a.png", "1_b.png"])
    message = fault(source="folder", train=tmp_path)
    assert "expected a class folder around each image, got 2 without:\n  0_a.png\n  1_b.png\n" in message
    assert "take source: prefix" in message


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    assert "expected images for data.train, found none" in fault(source="folder", train=tmp_path / "train")


def test_one_class_is_not_enough(tmp_path):
    lay(tmp_path, ["cat/a.png", "cat/b.png"])
    assert "expected at least two classes, got 1 (cat)" in fault(source="folder", train=tmp_path)


def test_a_label_of_val_that_train_has_not_is_an_error(tmp_path):
    lay(tmp_path / "train", ["cat/a.png", "dog/b.png"])
    lay(tmp_path / "val", ["cats/c.png"], 9)
    message = fault(source="folder", train=tmp_path / "train", val=tmp_path / "val")
    assert message.startswith("val: cats/c.png: label 'cats' is not among the 2 classes of train. Did you mean 'cat'?")


def test_a_link_back_up_is_followed_once(tmp_path):
    lay(tmp_path, ["cat/a.png", "dog/b.png"])
    (tmp_path / "cat" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(load(source="folder", train=tmp_path).splits["train"]) == 2


# ── prefix ──


def test_prefix_takes_what_stands_before_the_first_underscore(tmp_path):
    lay(tmp_path, ["cat_1_x.png", "dog_2.png", "sub/cat_3.png"])
    data = load(source="prefix", train=tmp_path)
    assert data.classes == ("cat", "dog")
    assert dict(zip(data.splits["train"].names, data.splits["train"].labels.tolist(), strict=True)) == {"cat_1_x.png": 0, "dog_2.png": 1, "sub/cat_3.png": 0}


def test_numbers_count_the_lines_of_classes_txt(tmp_path):
    lay(tmp_path / "train", ["0_1.png", "2_5.png", "1_7.png"])
    (tmp_path / "classes.txt").write_text("pug\nbeagle\nboxer\n")
    data = load(source="prefix", train=tmp_path / "train")
    assert data.classes == ("pug", "beagle", "boxer")
    assert data.splits["train"].labels.tolist() == [0, 1, 2]
    lay(tmp_path / "train", ["3_1.png"], 9)
    assert "3_1.png: label '3' is not among the 3 classes of" in fault(source="prefix", train=tmp_path / "train")


def test_numeric_prefixes_sort_by_value(tmp_path):
    lay(tmp_path, ["26_1.png", "4_1.png", "100_1.png"])
    assert load(source="prefix", train=tmp_path).classes == ("4", "26", "100")


def test_a_name_without_a_prefix_is_named(tmp_path):
    lay(tmp_path, ["cat_1.png", "dog_1.png", "owl.png", "_x.png"])
    assert "expected names of the form <class>_<name>, got 2 without:\n  _x.png\n  owl.png\n" in fault(source="prefix", train=tmp_path)


# ── table ──


def table(tmp_path, text, images=("a.png", "b.png")):
    lay(tmp_path, images)
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    return tmp_path / "train.csv"


def test_table_reads_rows_in_order_with_a_byte_order_mark(tmp_path):
    file = table(tmp_path, "\ufefffilename,label\nb.png, dog\na.png,cat\n")
    data = load(source="table", train=file)
    assert list(data.splits["train"].names) == ["b.png", "a.png"]
    assert data.splits["train"].labels.tolist() == [1, 0]


def test_table_finds_images_beside_it_in_a_folder_of_its_name_or_where_told(tmp_path):
    file = table(tmp_path, "filename,label\na.png,x\nb.png,y\n", ["train/a.png", "train/b.png", "photos/train/a.png", "photos/train/b.png"])
    beside = load(source="table", train=file)
    told = load(source="table", train=file, image_dir=str(tmp_path / "photos" / "{split}"))
    assert list(beside.splits["train"].names) == list(told.splits["train"].names) == ["a.png", "b.png"]
    assert list(told.splits["train"].hashes) == [hashlib.blake2b(png(i), digest_size=16).hexdigest() for i in (2, 3)]


def test_a_missing_column_names_those_that_are_there(tmp_path):
    file = table(tmp_path, "file_name,label\na.png,x\nb.png,y\n")
    message = fault(source="table", train=file)
    assert message == f"{file}:1: expected a column 'filename'; there are: file_name, label. Did you mean 'file_name'? Name it with data.filename_column."
    assert load(source="table", train=file, filename_column="file_name").classes == ("x", "y")


def test_rows_that_cannot_be_used_are_named_with_their_line(tmp_path):
    file = table(tmp_path, "filename,label\na.png,x\nb.png,\nno.png,y\na.png,y\n,y\nb.png\n")
    message = fault(source="table", train=file)
    assert message.startswith(f"5 rows of {file} cannot be used:")
    assert f"{file}:3: b.png: the label is empty" in message
    assert f"{file}:4: no.png: no such file in {tmp_path} or {tmp_path}/train" in message
    assert f"{file}:5: a.png stands in line 2 already" in message
    assert f"{file}:6: the file name is empty" in message
    assert f"{file}:7: b.png stands in line 3 already" in message


def test_a_table_that_is_none_is_an_error(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"filename,label\n\xff\xfe.png,x\n")
    assert "expected a comma-separated table in UTF-8" in fault(source="table", train=tmp_path / "train.csv")
    assert "expected a CSV table, there is none. Did you mean 'train.csv'?" in fault(source="table", train=tmp_path / "trian.csv")
    (tmp_path / "train.csv").write_text("filename,label\n")
    assert "expected a row for each image below the header, found none" in fault(source="table", train=tmp_path / "train.csv")


# ── val as a fraction ──


def test_a_fraction_is_split_by_content_and_stable_when_files_are_added(tmp_path):
    lay(tmp_path, [f"{'cat' if i % 2 else 'dog'}/{i:03}.png" for i in range(200)])
    before = load(source="folder", train=tmp_path, val=0.3)
    for split, chosen in (("train", False), ("val", True)):
        assert all((int(h[:16], 16) / 2**64 < 0.3) == chosen for h in before.splits[split].hashes)
    assert 35 < len(before.splits["val"]) < 85
    lay(tmp_path, [f"cat/new{i:03}.png" for i in range(50)], 1000)
    (tmp_path / "dog" / "copy.png").write_bytes((tmp_path / before.splits["val"].names[0]).read_bytes())
    after = load(source="folder", train=tmp_path, val=0.3)
    for split in ("train", "val"):
        assert set(before.splits[split].names) <= set(after.splits[split].names)
    assert "dog/copy.png" in after.splits["val"].names, "copies stay on one side"
    assert not set(after.splits["train"].hashes) & set(after.splits["val"].hashes)
    for i in (0, 7):
        name = after.splits["val"].names[i]
        assert np.array_equal(np.asarray(after.splits["val"].open(i)), np.asarray(Image.open(tmp_path / name)))


def test_a_fraction_that_leaves_a_side_empty_is_an_error(tmp_path):
    lay(tmp_path, ["cat/a.png", "dog/b.png"])
    assert "val: expected at least one usable image, got none. data.val: 1e-06 of so few" in fault(source="folder", train=tmp_path, val=1e-6)


# ── bad images ──


def spoil(root):
    lay(root, ["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"])
    (root / "cat/b.png").write_bytes(b"")
    (root / "dog/c.png").write_bytes(png(77, side=40)[:900])


def test_bad_images_are_refused_by_name(tmp_path):
    spoil(tmp_path)
    message = fault(source="folder", train=tmp_path)
    assert message.startswith("2 of 4 images cannot be used:\n  train: cat/b.png: zero_size: the file is empty (0 bytes)\n  train: dog/c.png: truncated: ")
    assert message.endswith("Repair or remove them, or leave them out with data.on_bad: skip.")


def test_skip_leaves_bad_images_out_and_says_so(tmp_path):
    spoil(tmp_path)
    data = load(source="folder", train=tmp_path, on_bad="skip")
    split = data.splits["train"]
    assert list(split.names) == ["cat/a.png", "dog/d.png"]
    assert split.labels.tolist() == [0, 1]
    assert data.skipped == ["train/cat/b.png", "train/dog/c.png"]
    assert [(p.file, p.kind, p.fatal) for p in data.problems] == [("cat/b.png", "zero_size", True), ("dog/c.png", "truncated", True)]
    assert np.array_equal(np.asarray(split.open(1)), np.asarray(Image.open(tmp_path / "dog/d.png"))), "never another image in its place"


def test_at_most_20_bad_images_are_listed(tmp_path):
    lay(tmp_path, ["cat/a.png", "dog/b.png"])
    for i in range(25):
        (tmp_path / f"cat/bad{i:02}.png").write_bytes(b"")
    message = fault(source="folder", train=tmp_path)
    assert message.count("zero_size") == 20
    assert "\n  … and 5 more\n" in message


def test_a_split_of_bad_images_only_is_an_error_even_with_skip(tmp_path):
    lay(tmp_path / "train", ["cat/a.png", "dog/b.png"])
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "x.png").write_bytes(b"")
    message = fault(source="folder", train=tmp_path / "train", val=tmp_path / "val", on_bad="skip")
    assert message == "val: expected at least one usable image, got none. All its files are bad; `pellucid data check` lists them."


def test_an_unreadable_file_is_bad_not_fatal_to_the_check(tmp_path, monkeypatch):
    lay(tmp_path, ["cat/a.png", "dog/b.png", "dog/c.png"])
    (tmp_path / "dog/c.png").unlink()
    (tmp_path / "dog/c.png").symlink_to(tmp_path / "gone.png")
    data = load(source="folder", train=tmp_path, on_bad="skip")
    assert [(p.file, p.kind) for p in data.problems] == [("dog/c.png", "unreadable")]
    assert "cannot be read: No such file" in data.problems[0].detail


def test_training_files_smaller_than_the_crop_are_bad(tmp_path):
    lay(tmp_path / "train", ["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"])
    lay(tmp_path / "val", ["cat/v.png"], 50)
    (tmp_path / "train/dog/c.png").write_bytes(png(77, side=5))
    section = DataSection(source="folder", train=str(tmp_path / "train"), val=str(tmp_path / "val"), on_bad="skip")
    data = load_dataset(section, seed=1, least=(6, 6))
    assert [(p.file, p.kind, p.fatal) for p in data.problems if p.file] == [("dog/c.png", "too_small", True)]
    assert "to cut training images of data.image_size from, got 5x5; lower data.image_size" in data.problems[0].detail
    assert data.skipped == ["train/dog/c.png"]
    assert load_dataset(section, seed=1).skipped == []


def test_samples_that_are_no_files_have_no_size_to_check():
    data = load_dataset(DataSection(source="digits", train=60), seed=1, least=(400, 400))
    assert (data.problems, len(data.splits["train"])) == ([], 60)


# ── what is kept between starts ──


def test_a_second_start_decodes_nothing_and_says_the_same(tmp_path, monkeypatch):
    spoil(tmp_path)
    first = load(source="folder", train=tmp_path, on_bad="skip")

    def never(data, name):
        raise AssertionError(f"{name} was decoded again")

    monkeypatch.setattr("pellucid.data.inspection.findings", never)
    again = load(source="folder", train=tmp_path, on_bad="skip")
    assert again.problems == first.problems
    assert again.splits["train"].hash == first.splits["train"].hash
    lay(tmp_path, ["cat/new.png"], 500)
    with pytest.raises(AssertionError, match=r"cat/new\.png was decoded again"):
        load(source="folder", train=tmp_path, on_bad="skip")


def test_damaged_or_older_notes_are_made_again(tmp_path):
    spoil(tmp_path)
    first = load(source="folder", train=tmp_path, on_bad="skip")
    notes = sorted((Path(os.environ["XDG_CACHE_HOME"]) / "pellucid" / "checked").glob("*.json"))
    assert notes
    notes[0].write_text("{")
    for note in notes[1:]:
        note.write_text(note.read_text().replace("Pillow", "Willow").replace('"fatal": true', '"fatal": false'))
    assert load(source="folder", train=tmp_path, on_bad="skip").problems == first.problems


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    lay(tmp_path / "train", ["cat/a.png", "dog/b.png"])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "Set XDG_CACHE_HOME to a folder that can be written." in fault(source="folder", train=tmp_path / "train")


def test_progress_counts_to_the_end(tmp_path):
    lay(tmp_path, [f"{'cat' if i % 2 else 'dog'}/{i:03}.png" for i in range(70)])
    seen = []
    load_dataset(DataSection(source="folder", train=str(tmp_path)), seed=1, progress=lambda *args: seen.append(args))
    assert seen[-1] == ("checking train", 70, 70)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_no_picture_stays_in_memory(tmp_path):
    """150 photographs of 3 MB decoded are 450 MB; what is kept of them stays under a fifth."""
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 1000), (9, 9, 9)).save(buffer, "JPEG")
    for i in range(150):
        path = tmp_path / f"{'cat' if i % 2 else 'dog'}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue() + struct.pack("<I", i))
    script = (
        "import resource, sys; from pellucid.recipe import DataSection; from pellucid.data.sources import load_dataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load_dataset(DataSection(source='folder', train=sys.argv[1]), seed=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 'torch' in sys.modules)"
    )
    grown, torch = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True).stdout.split()
    assert int(grown) < 90_000  # KiB
    assert torch == "False", "reading data needs no torch"


# ── embedded sets ──


def test_scenes_are_drawn_at_the_size_of_the_model():
    data = load(source="scenes", train=12, val=6, image_size=[32, 48])
    assert data.classes == scenes.SHAPES
    split = data.splits["train"]
    assert (len(split), len(data.splits["val"])) == (12, 6)
    image = split.open(4)
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert np.array_equal(np.asarray(image), scenes.draw(4, split="train", image_size=(32, 48)).image)
    assert split.labels.tolist() == [scenes.draw(i, split="train", image_size=(32, 48)).label for i in range(12)]
    assert split.names[4] == "scenes-train-000004.png"
    assert not set(split.hashes) & set(data.splits["val"].hashes)
    assert data.problems == []


def test_every_seed_sees_the_same_scenes():
    section = DataSection(source="scenes", train=12, image_size=32)
    assert load_dataset(section, seed=1).splits["train"].hash == load_dataset(section, seed=2).splits["train"].hash


def test_digits_are_those_of_scikit_learn_and_never_in_two_splits():
    from sklearn.datasets import load_digits

    data = load(source="digits", train=1000, val=400, test=397)
    bunch = load_digits()
    seen = []
    for split in data.splits.values():
        for i in range(0, len(split), 40):
            number = int(split.names[i][7:11])
            assert split.labels[i] == bunch.target[number]
            assert np.array_equal(np.asarray(split.open(i))[..., 1], np.floor(bunch.images[number] * 255 / 16 + 0.5).astype(np.uint8))
        seen += split.names
    assert len(set(seen)) == 1797
    assert not [p for p in data.problems if p.kind == "leak"]
    assert data.splits["train"].names[:3] == ["digits-0172.png", "digits-0353.png", "digits-0885.png"], "one fixed shuffle"


def test_too_many_digits_are_refused_with_the_number_there_is():
    assert fault(source="digits", train=1500, val=300) == "digits: asked for 1500 for train + 300 for val, there are 1797 images in all; ask for fewer."


# ── torchvision ──


def write_mnist(root, name="MNIST", count=40):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        rng = np.random.default_rng(seed)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + rng.integers(0, 256, (count, 28, 28), np.uint8).tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count)))


def test_torchvision_sets_are_read_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("PELLUCID_TORCHVISION_ROOT", str(tmp_path))
    write_mnist(tmp_path)
    data = load(source="torchvision:MNIST", image_size=28)
    assert data.classes[:2] == ("0 - zero", "1 - one")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 40, "val": 40}
    assert data.splits["train"].labels.tolist() == [i % 10 for i in range(40)]
    twin = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    image = data.splits["train"].open(3)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 0], twin[3])


def test_torchvision_sets_without_splits_take_a_fraction(tmp_path, monkeypatch):
    """EuroSAT has class folders and no split argument."""
    monkeypatch.setenv("PELLUCID_TORCHVISION_ROOT", str(tmp_path))
    lay(tmp_path / "eurosat" / "2750", [f"{'Forest' if i % 2 else 'River'}/{i}.jpg" for i in range(40)])
    data = load(source="torchvision:EuroSAT", val=0.5)
    assert data.classes == ("Forest", "River")
    assert len(data.splits["train"]) + len(data.splits["val"]) == 40
    assert len(data.splits["val"]) > 5
    assert "'test' is not one of its splits: train." in fault(source="torchvision:EuroSAT", val="test")


def test_torchvision_names_an_unknown_set_and_an_unknown_split(tmp_path, monkeypatch):
    monkeypatch.setenv("PELLUCID_TORCHVISION_ROOT", str(tmp_path))
    assert "torchvision.datasets has no 'CIFAR_10'. Did you mean 'CIFAR10'?" in fault(source="torchvision:CIFAR_10")
    assert "data.val: 'valdiation' is not one of its splits: train, test." in fault(source="torchvision:CIFAR10", val="valdiation")
    message = fault(source="torchvision:DTD", val="tests")
    assert "'tests' is not one of its splits: train, val, test. Did you mean 'test'?" in message


def test_a_refused_download_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PELLUCID_TORCHVISION_ROOT", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(MissingError, match=r"^torchvision:CIFAR10: not found under .*, and the download failed: .*PELLUCID_TORCHVISION_ROOT") as caught:
        load(source="torchvision:CIFAR10")
    assert caught.value.exit_code == 4


# ── Hugging Face ──


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline hub cache with one repository; gives its snapshot folder."""
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    import datasets.config
    import huggingface_hub.constants as constants

    cache = tmp_path / "hub"
    repository = cache / "datasets--someone--pets"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    return snapshot


def test_hub_sets_of_parquet_files_are_read_from_the_cache(hub):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["pug", "boxer"])})
    for split, first, count in (("train", 0, 8), ("validation", 50, 4), ("test", 90, 3)):
        rows = {"img": [{"bytes": png(first + i), "path": f"x{i}.png"} for i in range(count)], "label": [i % 2 for i in range(count)]}
        (hub / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(hub / "data" / f"{split}-00000-of-00001.parquet"))
    data = load(source="huggingface:someone/pets")
    assert data.classes == ("pug", "boxer")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 4}
    train = data.splits["train"]
    assert train.labels.tolist() == [0, 1] * 4
    assert train.hashes[3] == hashlib.blake2b(png(3), digest_size=16).hexdigest()
    assert train.names[3] == "train-000003.png"
    assert np.array_equal(np.asarray(train.open(3)), np.asarray(Image.open(io.BytesIO(png(3)))))
    assert list(load(source="huggingface:someone/pets", val="test").splits["val"].names)[-1] == "val-000002.png"
    assert "data.test: 'tset' is not one of its splits: train, validation, test. Did you mean 'test'?" in fault(source="huggingface:someone/pets", test="tset")


def test_hub_sets_of_image_folders_are_inspected_as_files(hub):
    lay(hub, ["train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "test/dog/d.png"])
    (hub / "train/cat/b.png").write_bytes(png(5, side=40)[:900])
    assert "train-000001.png: truncated" in fault(source="huggingface:someone/pets")
    data = load(source="huggingface:someone/pets", on_bad="skip")
    assert data.classes == ("cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "val": 1}


def test_a_hub_set_that_is_not_there_says_so(hub):
    with pytest.raises(MissingError, match=r"^huggingface:someone/birds: not in the hub's local cache, and the download failed: .*HF_HUB_CACHE"):
        load(source="huggingface:someone/birds")


def test_without_the_hub_extra_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingError, match=r"pip install 'pellucid\[hub\]'"):
        load(source="huggingface:someone/pets")


# ── real photographs ──


def test_real_layouts_are_read_whole(real):
    clothing = load(source="folder", train=real / "clothing/train", val=real / "clothing/val", test=real / "clothing/test")
    assert {name: len(split) for name, split in clothing.splits.items()} == {"train": 3068, "val": 341, "test": 372}
    assert clothing.classes[:2] == ("dress", "hat")
    pets = load(source="prefix", train=real / "pets/train", val=real / "pets/val")
    assert pets.classes == ("Abyssinian", "Bengal", "american_bulldog")
    assert pets.splits["train"].names[0].startswith("0_")
    flowers = load(source="table", train=real / "flowers/train.csv", val=real / "flowers/val.csv")
    assert (len(flowers.classes), len(flowers.splits["train"]), len(flowers.splits["val"])) == (17, 1088, 272)
    assert all(not problem.fatal for data in (clothing, pets, flowers) for problem in data.problems)


def test_a_name_that_is_not_utf8_text_is_named(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
    with open(os.fsencode(tmp_path / "train" / "a") + b"/caf\xe9.png", "wb"):
        pass
    section = DataSection.model_validate({"source": "folder", "train": str(tmp_path / "train")})
    with pytest.raises(DataError, match="is not UTF-8 text; rename it"):
        load_dataset(section, seed=1)
