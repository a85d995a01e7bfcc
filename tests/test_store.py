"""The store keeps the pixels that a stream would give, under a key that knows everything that decides them."""

from __future__ import annotations

import dataclasses
import errno
import gc
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn_pairs import lay, mask, section
from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import resize
from pellucid.data.sources import load_dataset
from pellucid.data.store import Resizing, Store, Stream, channel_statistics, open_pixels, open_targets
from pellucid.errors import DataError

RESIZING = Resizing((24, 20), "crop", None, "bilinear")


def split_of(seed: int = 0, count: int = 7) -> Split:
    """Noise of different sizes, so that one image taken for another is noticed."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, (30 + i, 41 - i, 3), np.uint8) for i in range(count)]
    hashes = [hashlib.blake2b(a.tobytes(), digest_size=16).hexdigest() for a in arrays]
    return Split("train", [f"{i}.png" for i in range(count)], np.arange(count) % 2, hashes, lambda i: Image.fromarray(arrays[i]))


def opened(split: Split, folder: Path, resizing: Resizing = RESIZING, *, limit: float = 1e9, workers: int = 2):
    return open_pixels(split, resizing, limit_bytes=limit, directory=str(folder), workers=workers)


def stores(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("resizing", [RESIZING, Resizing((24, 20), "pad", None, "bicubic"), Resizing((16, 16), "crop", 22, "bilinear")])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_store_gives_the_pixels_of_the_stream(tmp_path: Path, resizing: Resizing, workers: int) -> None:
    split = split_of()
    pixels = opened(split, tmp_path, resizing, workers=workers)
    stream = opened(split, tmp_path, resizing, limit=0.0)
    assert isinstance(pixels, Store)
    assert isinstance(stream, Stream)
    assert len(pixels) == len(stream) == 7
    for i in reversed(range(7)):
        expected = resize(split.open(i), resizing.size, resizing.fit, resizing.resize_size, resizing.interpolation)
        np.testing.assert_array_equal(pixels.image(i), expected)
        np.testing.assert_array_equal(stream.image(i), expected)
    assert len(stores(tmp_path)) == 1


def test_a_store_is_opened_again_without_decoding(tmp_path: Path) -> None:
    split = split_of()
    first = opened(split, tmp_path)
    calls = []

    def counted(i: int) -> Image.Image:
        calls.append(i)
        return split.open(i)

    again = opened(dataclasses.replace(split, open=counted), tmp_path)
    before = len(calls)  # a few images are looked at to know the size
    np.testing.assert_array_equal(again.image(3), first.image(3))
    assert isinstance(again, Store)
    assert len(calls) == before <= 7


def test_the_key_changes_with_content_order_and_every_setting(tmp_path: Path) -> None:
    split = split_of()
    names = set()
    other = split_of(seed=1)
    turned = Split("train", split.names, split.labels, list(split.hashes)[::-1], lambda i: split.open(6 - i))
    for s in (split, other, turned):
        opened(s, tmp_path)
    for change in ({"size": (20, 24)}, {"fit": "stretch"}, {"resize_size": 26}, {"interpolation": "bicubic"}):
        opened(split, tmp_path, dataclasses.replace(RESIZING, **change))
    names = set(stores(tmp_path))
    assert len(names) == 7
    opened(dataclasses.replace(split, name="val", names=[f"copy{i}" for i in range(7)], labels=np.zeros(7, np.int64)), tmp_path)
    assert set(stores(tmp_path)) == names, "names and labels decide no pixel"


def masked(root: Path, **settings: object) -> Dataset:
    return load_dataset(section(train=root / "train", **settings), seed=1, masks=True)


def rows_of(dataset: Dataset, folder: Path) -> list[list[int]]:
    """The first column of each stored mask."""
    targets = open_targets(dataset, Resizing((6, 8), "native", None, "bilinear"), limit_bytes=1e9, directory=str(folder), workers=1)
    assert isinstance(targets, Store)
    return [targets.image(i)[:, 0].tolist() for i in range(len(targets))]


def test_a_changed_mask_beside_an_unchanged_image_is_stored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lay(tmp_path / "train", 3)
    before = masked(tmp_path)
    assert rows_of(before, tmp_path / "masks") == [[0, 1, 0, 1, 0, 1]] * 3
    opened(before.splits["train"], tmp_path / "images")
    mask(tmp_path / "train_masks" / "0001.png", [1, 0])  # as many pixels of each class as before
    after = masked(tmp_path)
    assert list(after.splits["train"].hashes) == list(before.splits["train"].hashes)
    assert rows_of(after, tmp_path / "masks") == [[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    opened(after.splits["train"], tmp_path / "images")
    assert (len(stores(tmp_path / "masks")), len(stores(tmp_path / "images"))) == (2, 1)


def test_masks_that_are_read_otherwise_are_stored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lay(tmp_path / "train", 3)
    for settings, row in (
        ({}, [0, 1] * 3),
        ({"palette": {"tree": 1, "ground": 0}}, [1, 0] * 3),
        ({"palette": {"ground": 0, "tree": 2}, "ignored": [1]}, [0, 255] * 3),
    ):
        for _ in range(2):
            assert rows_of(masked(tmp_path, **settings), tmp_path / "masks") == [row] * 3
    assert len(stores(tmp_path / "masks")) == 3


@pytest.mark.parametrize("damage", ["short pixels", "no pixels", "no shapes", "short shapes"])
def test_a_torn_store_is_built_again(tmp_path: Path, damage: str) -> None:
    split = split_of()
    expected = opened(split, tmp_path).image(5).copy()
    (folder,) = tmp_path.iterdir()
    file = folder / ("pixels.bin" if "pixels" in damage else "shapes.npy")
    if damage.startswith("no"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    pixels = opened(split, tmp_path)
    assert isinstance(pixels, Store)
    np.testing.assert_array_equal(pixels.image(5), expected)


def test_rows_are_read_behind_each_other_into_one_place(tmp_path: Path) -> None:
    split = split_of()
    store = opened(split, tmp_path, Resizing((24, 20), "crop", None, "bilinear"))
    rows = np.array([5, 0, 5, 6])
    expected = [resize(split.open(int(i)), (24, 20), "crop", None, "bilinear") for i in rows]
    assert store.shapes(rows) == [image.shape[:2] for image in expected]
    packed = np.zeros(sum(image.size for image in expected), np.uint8)
    store.read_into(rows, packed)
    np.testing.assert_array_equal(packed, np.concatenate([image.ravel() for image in expected]))


def test_threads_read_the_same_store_at_once(tmp_path: Path) -> None:
    split = split_of(count=20)
    store = opened(split, tmp_path)
    alone = [store.image(i) for i in range(20)]
    with ThreadPoolExecutor(4) as pool:
        for i, image in enumerate(pool.map(store.image, [*range(20)] * 20)):
            np.testing.assert_array_equal(image, alone[i % 20])


def test_an_image_belongs_to_its_caller(tmp_path: Path) -> None:
    store = opened(split_of(), tmp_path)
    before = store.image(1).copy()
    store.image(1)[:] = 0
    np.testing.assert_array_equal(store.image(1), before)


def test_a_store_that_is_cut_while_in_use_is_an_error_with_its_name(tmp_path: Path) -> None:
    store = opened(split_of(), tmp_path)
    (folder,) = tmp_path.iterdir()
    file = folder / "pixels.bin"
    os.truncate(file, file.stat().st_size - 5)
    store.image(5)
    with pytest.raises(DataError, match=r"pixels\.bin: the file was changed while it was in use: 5 bytes are missing\. Remove its folder"):
        store.image(6)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to know what memory the process holds")
def test_reading_a_store_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    side, count = 800, 24
    split = Split(
        "train",
        [f"{i}" for i in range(count)],
        np.zeros(count, np.int64),
        [f"{i:032x}" for i in range(count)],
        lambda i: Image.new("RGB", (side, side), (i, i, i)),
    )
    store = opened(split, tmp_path, Resizing((side, side), "crop", None, "bilinear"))

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    store.image(0)
    before = resident()
    assert [int(store.image(i).max()) for i in range(count)] == list(range(count))
    assert resident() - before < side * side * 3 * count / 4


def test_an_unused_store_closes_its_file(tmp_path: Path) -> None:
    store = opened(split_of(), tmp_path)
    descriptor = store._file
    os.fstat(descriptor)
    del store
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_split_over_the_limit_streams_and_says_so(tmp_path: Path) -> None:
    split = split_of()
    exact = sum(Stream(split, RESIZING, None).image(i).nbytes for i in range(7))
    assert opened(split, tmp_path / "enough", limit=exact).note is None
    stream = opened(split, tmp_path / "short", limit=exact - 1)
    assert isinstance(stream, Stream)
    assert stream.note is not None
    assert stream.note.startswith("train: 0.00 GB decoded exceed data.store.limit_gb ")
    assert stream.note.endswith("images are decoded in every epoch")
    assert not (tmp_path / "short").exists()


def test_a_full_disk_streams_with_a_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pellucid.data.store.os.fsync", full)
    split = split_of()
    pixels = opened(split, tmp_path)
    assert isinstance(pixels, Stream)
    assert pixels.note == f"train: no store could be kept in {tmp_path} (No space left on device); images are decoded in every epoch"
    assert stores(tmp_path) == []
    np.testing.assert_array_equal(pixels.image(2), resize(split.open(2), (24, 20), "crop", None, "bilinear"))


def test_an_image_that_cannot_be_decoded_surfaces_and_leaves_nothing(tmp_path: Path) -> None:
    split = split_of(count=40)

    def failing(i: int) -> Image.Image:
        if i == 38:
            raise DataError("38.png: not an image")
        return split.open(i)

    with pytest.raises(DataError, match=r"38\.png: not an image"):
        opened(dataclasses.replace(split, open=failing), tmp_path)
    assert stores(tmp_path) == []


def test_channel_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.integers(low, low + 60, (9 + i, 14, 3)).astype(np.uint8) for i, low in enumerate((0, 40, 190))]
    split = Split("train", ["a", "b", "c"], np.zeros(3, np.int64), ["a", "b", "c"], lambda i: Image.fromarray(arrays[i]))

    class Whole:
        note = None

        def __len__(self) -> int:
            return 3

        def image(self, index: int) -> np.ndarray:
            return np.asarray(split.open(index))

    flat = np.concatenate([a.reshape(-1, 3) for a in arrays]).astype(np.float64) / 255
    mean, std = channel_statistics(Whole())
    np.testing.assert_allclose(mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, flat.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(channel_statistics(opened(split_of(), tmp_path))[0], channel_statistics(Stream(split_of(), RESIZING, None))[0], rtol=0)


def test_one_colour_has_a_deviation_that_can_be_divided_by() -> None:
    split = Split("train", ["a"], np.zeros(1, np.int64), ["a"], lambda i: Image.new("RGB", (30, 30), (10, 10, 10)))
    mean, std = channel_statistics(Stream(split, RESIZING, None))
    assert mean == pytest.approx([10 / 255] * 3)
    assert min(std) > 0
