"""Which sample stands where is a function of seed and epoch alone; reading ahead changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from pellucid.data.loader import Pack, Reader, Window, epoch_windows, ordered_windows, pack_images
from pellucid.errors import DataError

LABELS = np.array([0] * 30 + [1] * 6 + [2] * 1)  # 37 samples, far from balanced


class Numbered:
    """Images that carry their number, each of its own size."""

    note = None

    def __init__(self, count: int = 37, broken: int | None = None) -> None:
        self._count, self._broken = count, broken

    def __len__(self) -> int:
        return self._count

    def image(self, index: int) -> np.ndarray:
        if index == self._broken:
            raise DataError(f"image {index} cannot be read")
        return np.full((2 + index % 3, 3, 3), index, np.uint8)


def windows_of(epoch: int = 0, *, seed: int = 1, batch_size: int = 8, balanced: bool = False) -> list[Window]:
    return epoch_windows(LABELS, batch_size=batch_size, seed=seed, epoch=epoch, balanced=balanced)


def rows_of(windows: list[Window]) -> list[int]:
    return [int(row) for window in windows for row in window.rows]


def first_pixels(pack: Pack) -> list[int]:
    """The number that each image of a pack carries."""
    starts = np.cumsum([0, *[height * width * 3 for height, width in pack.images.shapes[:-1]]])
    return [int(pack.images.flat[int(start)]) for start in starts]


# ── windows ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch_size", [1, 8, 37, 100])
def test_every_sample_comes_once_an_epoch(batch_size: int) -> None:
    windows = windows_of(batch_size=batch_size)
    assert sorted(rows_of(windows)) == list(range(37))
    assert [len(w) for w in windows] == [min(batch_size, 37 - s) for s in range(0, 37, batch_size)]
    assert [w.index for w in windows] == list(range(len(windows)))
    for window in windows:
        np.testing.assert_array_equal(window.rows, window.draws)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert rows_of(windows_of(3, seed=5)) == rows_of(windows_of(3, seed=5))
    assert rows_of(windows_of(3, batch_size=5)) == rows_of(windows_of(3, batch_size=9)), "the batch size only cuts"
    orders = {tuple(rows_of(windows_of(epoch, seed=seed))) for epoch in range(4) for seed in range(4)}
    assert len(orders) == 16


def test_evaluation_keeps_the_order_of_the_split() -> None:
    windows = ordered_windows(11, 4)
    assert rows_of(windows) == list(range(11))
    assert [len(w) for w in windows] == [4, 4, 3]


def test_balanced_sampling_draws_each_class_equally_often() -> None:
    rows = np.array([row for epoch in range(200) for row in rows_of(windows_of(epoch, balanced=True))])
    n = len(rows)
    assert n == 200 * 37
    shares = np.bincount(LABELS[rows], minlength=3) / n
    np.testing.assert_allclose(shares, 1 / 3, atol=5 * np.sqrt(2 / 9 / n))  # five standard deviations of a share
    within = np.bincount(rows[rows < 30], minlength=30) / (rows < 30).sum()
    np.testing.assert_allclose(within, 1 / 30, atol=5 * np.sqrt(1 / 30 / (n / 3)))
    assert rows_of(windows_of(4, balanced=True)) == rows_of(windows_of(4, balanced=True))
    assert rows_of(windows_of(4, balanced=True)) != rows_of(windows_of(5, balanced=True))


def test_a_sample_drawn_again_in_an_epoch_has_another_draw_number() -> None:
    windows = windows_of(2, balanced=True)
    rows, draws = np.concatenate([w.rows for w in windows]), np.concatenate([w.draws for w in windows])
    assert len(np.unique(rows)) < len(rows), "this seed repeats a sample, or the test would say nothing"
    assert len(np.unique(draws)) == len(draws)
    np.testing.assert_array_equal(draws % 37, rows)
    for row in np.unique(rows):
        np.testing.assert_array_equal(draws[rows == row] // 37, np.arange((rows == row).sum()))


# ── packs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(workers: int, micro: int, *, partners: bool = False, change_at: tuple[int, int] | None = None, announce: bool = True) -> list[list[Pack]]:
    """The packs of each window of an epoch; `change_at` = (window, micro-batch from there on)."""
    windows, found = windows_of(), []
    with Reader(Numbered(), workers=workers, partners=partners) as reader:
        if announce:
            reader.plan(windows, micro)
        for window in windows:
            if change_at is not None and window.index == change_at[0]:
                micro = change_at[1]
            found.append(list(reader.packs(window, micro)))
    return found


@pytest.mark.parametrize("micro", [1, 3, 8, 20])
def test_packs_cover_their_window_in_order(micro: int) -> None:
    for window, packs in zip(windows_of(), read(2, micro), strict=True):
        assert [p.start for p in packs] == list(range(0, len(window), micro))
        assert sum(len(p) for p in packs) == len(window)
        assert [n for p in packs for n in first_pixels(p)] == window.rows.tolist()
        assert [r for p in packs for r in p.rows] == window.rows.tolist()
        for p in packs:
            assert p.images.shapes == [(2 + row % 3, 3) for row in p.rows.tolist()]


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_the_partner_is_the_position_before_also_across_packs(micro: int) -> None:
    for window, packs in zip(windows_of(), read(2, micro, partners=True), strict=True):
        for pack in packs:
            before = [window.rows[position - 1] for position in range(pack.start, pack.stop)]  # position 0: the last one
            assert first_pixels(pack)[1:] == window.rows[pack.start : pack.stop].tolist()
            assert first_pixels(pack)[:-1] == [int(row) for row in before]
            assert len(pack) == len(pack.rows) - 1


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("change_at", [None, (2, 3), (0, 1)])
def test_threads_reading_ahead_and_a_changed_micro_batch_give_the_same_images(workers: int, announce: bool, change_at: tuple[int, int] | None) -> None:
    expected = [window.rows.tolist() for window in windows_of()]
    found = read(workers, 6, change_at=change_at, announce=announce)
    assert [[n for pack in packs for n in first_pixels(pack)] for packs in found] == expected
    late = 6 if change_at is None else change_at[1]
    assert max(len(pack) for pack in found[-2]) == late


def test_an_error_in_a_thread_reaches_the_one_who_asks() -> None:
    windows = ordered_windows(37, 8)
    with Reader(Numbered(broken=13), workers=2) as reader:
        reader.plan(windows, 4)
        assert len(list(reader.packs(windows[0], 4))) == 2
        with pytest.raises(DataError, match="image 13 cannot be read"):
            list(reader.packs(windows[1], 4))
        assert first_pixels(next(reader.packs(windows[2], 4))) == [16, 17, 18, 19]


def test_a_new_plan_replaces_the_old_one() -> None:
    windows = windows_of()
    with Reader(Numbered(), workers=2) as reader:
        reader.plan(windows, 8)
        reader.plan(windows[3:], 2)
        assert [n for pack in reader.packs(windows[3], 2) for n in first_pixels(pack)] == windows[3].rows.tolist()


def test_images_of_any_size_lie_behind_each_other() -> None:
    arrays = [np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.arange(20, 29, dtype=np.uint8).reshape(1, 3, 3)]
    packed = pack_images(arrays)
    assert packed.shapes == [(2, 2), (1, 3)]
    assert packed.flat.tolist() == [*range(12), *range(20, 29)]
