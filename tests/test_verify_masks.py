"""Verify, of masks: an untouched run holds to the bit; whatever was touched in masks, counts or numbers is named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import REPOSITORY
from fabricate_masks import CLASSES, MASK_FORMAT, make_masks_run
from pellucid.data.dataset import Dataset
from pellucid.overlap import PRESETS
from pellucid.palettes import IGNORED
from pellucid.run import Measurement, Run
from pellucid.runtime import Runtime
from pellucid.verify_masks import anew_mask_checks, stored_mask_checks

RUNTIME = Runtime(torch.device("cpu"), "fp32", 1, False)
Made = tuple[Run, Dataset, nn.Module]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run with images of several sizes, native; read only."""
    return make_masks_run(tmp_path_factory.mktemp("masks") / "run", overrides=["data.fit=native"])


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    return Run(shutil.copytree(made[0].path, tmp_path / "copied")), made[1], made[2]


def wrong(run: Run, dataset: Dataset) -> list[str]:
    """The mismatches of the first path."""
    lines = stored_mask_checks(run, dataset, None)
    assert all(line.startswith("ok " if ok else "MISMATCH ") for _, ok, line in lines), lines
    return [line for _, ok, line in lines if not ok]


def change_arrays(run: Run, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = run.predictions_file("val")
    with np.load(path) as arrays:
        changed = {name: arrays[name].copy() for name in arrays}
    change(changed)
    np.savez(path, **changed)


def change_numbers(run: Run, change: Callable[[list[Measurement]], list[Measurement]]) -> None:
    record = run.record
    record.measurements = change(record.measurements)
    run.write_record(record)


def change_mask(run: Run, number: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = run.masks_folder("val") / f"street/{number:04d}.png"
    path.write_bytes(MASK_FORMAT.write(change(MASK_FORMAT.read(path.read_bytes(), path.name))))


# ── what was not touched ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings", [["data.fit=native"], ["data.fit=pad"], ["data.fit=stretch"], ["data.fit=crop"], ["data.fit=native", "scoring.boundary_tolerance=0.06"]]
)
def test_an_untouched_run_holds_to_the_bit(tmp_path: Path, settings: list[str]) -> None:
    run, dataset, module = make_masks_run(tmp_path / "run", overrides=settings)
    told: list[tuple[str, int, int]] = []
    assert wrong(run, dataset) == []
    lines, shares = anew_mask_checks(run, dataset, module, RUNTIME, 1e-6, lambda *at: told.append(at))
    assert [line for _, ok, line in lines if not ok] == []
    assert shares == [0.0]
    assert told[-1] == ("verifying val", 5, 5)
    reported = {m.name for m in run.record.measurements}
    assert {what for what, _, _ in lines} == {*(f"number val/{name} from checkpoint and data" for name in reported), "logits val"}
    assert {f"iou[{name}]" for name in CLASSES if name != "car"} < reported
    assert lines[-1][2].startswith("ok val logits from checkpoint and data: the same bits, 0 of ")


@pytest.mark.parametrize(
    "settings",
    [
        ["scoring.convention=foreground"],
        ["scoring.convention=deepglobe"],
        ["scoring.convention=course_script"],
        ["scoring.void=false_positive", "scoring.excluded=[road]"],
    ],
)
def test_every_convention_is_recomputed(tmp_path: Path, settings: list[str]) -> None:
    run, dataset, _ = make_masks_run(tmp_path / "run", overrides=settings)
    assert wrong(run, dataset) == []
    assert len(stored_mask_checks(run, dataset, None)) == 5 + len(run.record.measurements)


# ── what was touched ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_changed_mask_is_named(copied: Made) -> None:
    run, dataset, _ = copied
    change_mask(run, 2, lambda mask: np.where(mask == 1, 2, mask).astype(np.uint8))
    found = wrong(run, dataset)
    assert found[0].startswith("MISMATCH val confusion: street/0002.png: ")
    assert "counts differ, first at (" in found[0]
    assert any(line.startswith("MISMATCH val boundary: street/0002.png: ") for line in found)
    assert any(line.startswith("MISMATCH val/miou from the stored masks: reported ") for line in found)


def test_missing_and_unreadable_masks_are_named(copied: Made) -> None:
    run, dataset, _ = copied
    folder = run.masks_folder("val") / "street"
    (folder / "0001.png").unlink()
    (folder / "0003.png").write_bytes(b"no picture")
    change_mask(run, 4, lambda mask: mask[:-1])
    (found,) = wrong(run, dataset)
    assert found.startswith("MISMATCH val masks: street/0001.png is missing; street/0003.png: cannot be read as a mask")
    assert "street/0004.png: expected the true mask's 24x32 pixels (height x width), got 23x32" in found


def test_a_prediction_that_says_nothing_is_named(copied: Made) -> None:
    run, dataset, _ = copied
    masks = dataset.splits["val"].masks
    assert masks is not None
    change_mask(run, 0, lambda mask: np.where(masks.open(0) == 2, IGNORED, mask).astype(np.uint8))
    (found,) = wrong(run, dataset)
    assert found == f"MISMATCH val masks: street/0000.png: {(masks.open(0) == 2).sum()} pixels are predicted as ignored where the class is known"


@pytest.mark.parametrize(("name", "at"), [("confusion", (3, 5, 1)), ("boundary", (0, 2, 1))])
def test_changed_counts_are_named(copied: Made, name: str, at: tuple[int, int, int]) -> None:
    run, dataset, _ = copied

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][at] += 2

    change_arrays(run, change)
    (found,) = wrong(run, dataset)
    assert found.startswith(f"MISMATCH val {name}: street/000{at[0]}.png: 1 counts differ, first at ({at[1]}, {at[2]}): ")


def test_calibration_that_is_not_of_these_pixels_is_named(copied: Made) -> None:
    run, dataset, _ = copied

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["calibration"][1, 14, 2] -= 1

    change_arrays(run, change)
    found = wrong(run, dataset)
    assert found[0].startswith("MISMATCH val calibration: street/0001.png: ")


@pytest.mark.parametrize("name", ["miou", "pixel_accuracy", "class_accuracy", "frequency_weighted_iou", "boundary_f", "loss", "calibration_error", "iou[tree]"])
def test_a_changed_number_is_named(copied: Made, name: str) -> None:
    run, dataset, _ = copied
    change_numbers(run, lambda numbers: [replace(m, value=m.value + 2e-6) if m.name == name else m for m in numbers])
    (found,) = wrong(run, dataset)
    assert found.startswith(f"MISMATCH val/{name} from the stored masks: reported ")


def test_missing_and_invented_numbers_are_named(copied: Made) -> None:
    run, dataset, _ = copied
    change_numbers(run, lambda numbers: [replace(m, name="iou[lorry]") if m.name == "iou[road]" else m for m in numbers if m.name != "boundary_f"])
    found = wrong(run, dataset)
    assert found[0] == "MISMATCH run.json: boundary_f, iou[road] of val is missing (from the stored masks)"
    assert found[1] == "MISMATCH val/iou[lorry] from the stored masks: there is no such number to recompute"
    change_numbers(run, lambda numbers: [replace(m, name="iou[car]") if m.name == "iou[lorry]" else m for m in numbers])  # a class in neither
    found = wrong(run, dataset)
    assert found[1] == "MISMATCH val/iou[car] from the stored masks: there is no such number to recompute"
    assert found[2] == "MISMATCH val intervals: val/iou[car]: an interval where none belongs"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("iou[road]", {"n": 4}, "val/iou[road]: n 4, seed 1 reported; n 5, seed 1 recomputed"),
        ("miou", {"seed": 8}, "val/miou: n 5, seed 8 reported; n 5, seed 1 recomputed"),
        ("boundary_f", {"interval": None}, "val/boundary_f: no interval"),
        ("loss", {"interval": (0.0, 1.0)}, "val/loss: an interval where none belongs"),
        ("iou[tree]", {"interval": (0.0, 0.5)}, "val/iou[tree]: interval 0.0000 to 0.5000 reported, "),
    ],
)
def test_what_makes_a_number_credible_is_recomputed(copied: Made, name: str, changes: dict, said: str) -> None:
    run, dataset, _ = copied
    change_numbers(run, lambda numbers: [replace(m, **changes) if m.name == name else m for m in numbers])
    (found,) = wrong(run, dataset)
    assert found.startswith(f"MISMATCH val intervals: {said}")


def test_rows_that_are_not_the_samples_are_named(copied: Made) -> None:
    run, dataset, _ = copied

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["name"] = arrays["name"][[0, 2, 1, 3, 4]]

    change_arrays(run, change)
    assert wrong(run, dataset) == ["MISMATCH val predictions: rows are not those of samples/val.csv (first difference at street/0002.png)"]
    run.predictions_file("val").write_bytes(b"")
    (found,) = wrong(run, dataset)
    assert "cannot be read as predictions" in found


def test_other_data_cannot_be_counted(made: Made) -> None:
    run, dataset, _ = made
    other = replace(dataset, splits={"val": replace(dataset.splits["val"], masks=None)})
    assert wrong(run, other) == ["MISMATCH val masks: the true masks are not those of the run, so nothing can be counted again"]
    assert anew_mask_checks(run, other, nn.Identity(), RUNTIME, 0.005, None) == ([], [])


def test_other_weights_are_seen_in_numbers_and_bits(made: Made) -> None:
    run, dataset, _ = made
    other = make_masks_run(run.path.parent / "other")[2]
    with torch.no_grad():
        other[2].bias[1] += 3.0
    lines, shares = anew_mask_checks(run, dataset, other, RUNTIME, 0.005, None)
    assert shares == [1.0]
    assert any(line.startswith("MISMATCH val/miou from checkpoint and data: reported ") for _, _, line in lines)
    assert "other bits for 100.0% of the images" in lines[-1][2]
    assert ", 0 of" not in lines[-1][2]


def test_bits_of_one_image_are_counted(copied: Made) -> None:
    run, dataset, module = copied

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["digests"][3, 7] ^= 1

    change_arrays(run, change)
    lines, shares = anew_mask_checks(run, dataset, module, RUNTIME, 1e-6, None)
    assert shares == [0.2]
    assert all(ok for _, ok, _ in lines)
    assert "other bits for 20.0% of the images, 0 of" in lines[-1][2]
    run.predictions_file("val").write_bytes(b"")
    assert anew_mask_checks(run, dataset, module, RUNTIME, 1e-6, None)[1] == [None]


def test_the_page_on_scoring_gets_other_numbers_from_a_run(made: Made) -> None:
    page = (REPOSITORY / "docs" / "scoring.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    found: dict = {}
    exec(code.replace("runs/mine", str(made[0].path)), found)
    ours = made[0].measurements["val/miou"].value
    assert all(0 < found[name] < 1 for name in ("micro", "over_images", "absent_as_one"))
    assert len({ours, found["micro"], found["over_images"], found["absent_as_one"]}) == 4
    assert found["absent_as_one"] == pytest.approx((4 * ours + 1) / 5)  # car is in neither
    assert all(f"`{name}`" in page for name in PRESETS)
