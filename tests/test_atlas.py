"""Atlases: many small pictures in one file, each found again at its place, and what was changed is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid.atlas import COLUMNS, GREY, most_tiles, read_tiles, write_atlas
from pellucid.errors import RunError


def flat(value: int, size: tuple[int, int] = (10, 10)) -> np.ndarray:
    """A picture of one grey, which WEBP keeps nearly as it is."""
    return np.full((*size, 3), value, np.uint8)


def test_each_tile_is_the_picture_written_at_its_place(tmp_path: Path) -> None:
    values = [(i * 37) % 256 for i in range(COLUMNS + 9)]
    path = write_atlas(tmp_path / "a" / "atlas.webp", (flat(value) for value in values), 16)
    wanted = [0, COLUMNS - 1, COLUMNS, COLUMNS + 8]
    tiles = read_tiles(path, 16, wanted)
    assert [tile.size for tile in tiles] == [(16, 16)] * 4
    assert [round(float(np.asarray(tile).mean())) for tile in tiles] == pytest.approx([values[i] for i in wanted], abs=3)
    with Image.open(path) as whole:
        assert whole.size == (16 * COLUMNS, 32)


def test_a_picture_that_is_not_square_is_shown_whole_on_grey(tmp_path: Path) -> None:
    path = write_atlas(tmp_path / "atlas.webp", [flat(255, (8, 32)), Image.fromarray(flat(0, (32, 8)))], 32)
    wide, tall = (np.asarray(tile).astype(int) for tile in read_tiles(path, 32, [0, 1]))
    assert abs(wide[2, 16] - GREY).max() < 12
    assert abs(tall[16, 2] - GREY).max() < 12
    assert wide[16, 1].min() > 225
    assert tall[1, 16].max() < 30


def test_equal_pictures_give_equal_bytes(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8) for i in range(5)]
    first, second = (write_atlas(tmp_path / name, pictures, 32).read_bytes() for name in ("a.webp", "b.webp"))
    assert first == second
    assert write_atlas(tmp_path / "c.webp", pictures[::-1], 32).read_bytes() != first


def test_an_atlas_that_is_gone_or_changed_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = write_atlas(tmp_path / "atlas.webp", [flat(9)] * 3, 32)
    with pytest.raises(RunError, match=r"no\.webp: expected an atlas of pictures, there is no such file"):
        read_tiles(tmp_path / "no.webp", 32, [0])
    with pytest.raises(RunError, match=r"expected at least 4 tiles, there is room for 3"):
        read_tiles(path, 32, [0, 3])
    with pytest.raises(RunError, match=r"expected tiles of 64 pixels in rows of 64, got a picture of 96x32"):
        read_tiles(path, 64, [0])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"atlas\.webp: expected an atlas of pictures, cannot be read"):
        read_tiles(path, 32, [0])


def test_more_pictures_than_one_file_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_tiles(64) == 255 * COLUMNS
    with pytest.raises(ValueError, match=r"tiles of an atlas have 1 to 255 pixels, got 256"):
        write_atlas(tmp_path / "atlas.webp", [flat(0)], 256)
    with pytest.raises(ValueError, match=r"got none"):
        write_atlas(tmp_path / "atlas.webp", [], 32)
    monkeypatch.setattr("pellucid.atlas.LONGEST", 130)
    with pytest.raises(ValueError, match=r"an atlas of tiles of 2 pixels holds 1 to 4,160 pictures, got more"):
        write_atlas(tmp_path / "atlas.webp", (flat(0) for _ in range(1_000_000)), 2)
