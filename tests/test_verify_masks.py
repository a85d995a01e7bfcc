"""Verify, of masks: an untouched run holds to the bit; whatever was touched in masks, counts or numbers is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import REPOSITORY
from fabricate_masks import CLASSES, MASK_FORMAT, make_masks_run
from pellucid.data.dataset import Dataset
from pellucid.data.scenes import draw
from pellucid.data.sources import load_dataset
from pellucid.files import file_hash
from pellucid.mask_findings import kept_size, load_mask_findings, reduced_mask
from pellucid.overlap import PRESETS, overlaps, pixel_confusion
from pellucid.palettes import IGNORED
from pellucid.run import Measurement, Run
from pellucid.runtime import Runtime
from pellucid.tasks import load_model, runtime_of
from pellucid.train import train
from pellucid.verify import verify
from pellucid.verify_mask_findings import (
    OTHER_MACHINE,
    RECORD,
    REDUCED,
    SAME_BITS,
    SAME_MACHINE,
    _as_kept,
    _near,
    anew_picture_checks,
    stored_picture_checks,
)  # fmt: skip
from pellucid.verify_masks import Opened, anew_mask_checks, stored_mask_checks

PAIRS = """
task: segmentation
data: {{source: pairs, train: {folder}/train, {val}ignored: [255], image_size: 32, fit: {fit}}}
model: {{name: smp/Unet, encoder: tu-test_resnet, options: {{encoder_depth: 3, decoder_channels: [16, 8, 8]}}}}
train:
  batch_size: 4
  threads: 1
  phases:
    - {{epochs: 1, optimizer: {{name: adamw, lr: 1e-3}}}}
"""
INSIDE = "inside: {{images: [{folder}/val/001.png, {folder}/train/000.png], samples: 3, epochs: [0, last]}}\n"
LARGE, FIRST, LAST = 2, "snapshots/epoch-0000.npz", "snapshots/epoch-0001.npz"  # LARGE: the image of val whose masks are reduced
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


# ── masks over epochs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes for train and three for val, the last of them longer than what is kept."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, sizes in (("train", [(32, 32)] * 4), ("val", [(32, 32), (40, 36), (34, 700)])):
        for name in (split, f"{split}_masks"):
            (folder / name).mkdir()
        for i, size in enumerate(sizes):
            scene = draw(i, split=split, image_size=size)
            mask = scene.mask.copy()
            mask[: 3 + i] = IGNORED
            Image.fromarray(scene.image).save(folder / split / f"{i:03d}.png")
            Image.fromarray(mask).save(folder / f"{split}_masks" / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def kept_runs(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """{fit: a finished run that looks at two photographs, one of them an image of val, and at the rest of val}; read only."""
    runs = {}
    for fit in ("native", "stretch"):
        folder = tmp_path_factory.mktemp(fit)
        (folder / "r.yaml").write_text((PAIRS + INSIDE).format(folder=pairs, val=f"val: {pairs}/val, ", fit=fit))
        runs[fit] = train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False)
    return runs


@pytest.fixture
def forged(kept_runs: dict[str, Run], tmp_path: Path) -> Run:
    """A copy that a test may change."""
    return Run(shutil.copytree(kept_runs["native"].path, tmp_path / "forged"))


def accept(run: Run) -> None:
    """Write the present hashes into run.json, as somebody would who covers a change."""
    record = run.record
    record.files = {name: file_hash(run.path / name) for name in record.files if (run.path / name).is_file()}
    run.write_record(record)


def change_record(run: Run, change: Callable[[dict], None]) -> None:
    path = run.path / RECORD
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    accept(run)


def change_kept(run: Run, name: str, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    with np.load(run.path / name) as arrays:
        changed = {key: arrays[key].copy() for key in arrays}
    change(changed)
    np.savez(run.path / name, **changed)
    accept(run)


def of_pictures(run: Run, *, anew: bool = False) -> list[str]:
    """The mismatches of the masks over epochs, by the stored path or by the other."""
    recipe, runtime = run.recipe, runtime_of(run)
    dataset = load_dataset(recipe.data, seed=recipe.seed, masks=True)
    if anew:
        lines = anew_picture_checks(run, dataset, runtime.place(load_model(run)), runtime, None, same_bits=True)
    else:
        lines = stored_picture_checks(run, dataset, None)
    return [text for _, ok, text in lines if not ok]


def place_of(run: Run, file: str) -> int:
    return [picture.file for picture in load_mask_findings(run.inside).pictures].index(file)


def forge(run: Run, i: int, at: int, epoch: int) -> None:
    """The true mask as the prediction of a picture after an epoch, with counts, arrays and numbers that fit."""
    dataset, snapshot = load_dataset(run.recipe.data, seed=run.recipe.seed, masks=True), f"snapshots/epoch-{epoch:04d}.npz"
    masks = dataset.splits["val"].masks
    assert masks is not None
    truth = masks.open(list(dataset.splits["val"].names).index(load_mask_findings(run.inside).pictures[i].file))
    mask = np.where(truth == IGNORED, 0, truth)
    confusion = pixel_confusion(truth, mask, 7)
    found = overlaps(confusion, Opened.of(run).rule)
    change_kept(run, snapshot, lambda a: a.update({f"predicted/{i}": mask, f"confusion/{i}": confusion}))
    change_kept(run, "inside/masks.npz", lambda a: a[f"predicted/{i}"].__setitem__(at, mask))
    for name in ("pixel_accuracy", "miou"):
        change_record(run, lambda r, name=name: r["pictures"][i]["epochs"][at][name].update(value=getattr(found, name)))


@pytest.mark.parametrize("fit", ["native", "stretch"])
def test_masks_over_epochs_that_nobody_touched_hold(kept_runs: dict[str, Run], fit: str) -> None:
    run = kept_runs[fit]
    found = verify(run)
    assert [text for text in found.lines() if text.startswith("MISMATCH")] == []
    assert found.promise == "bit-equal"
    lines = found.lines()
    files = [picture.file for picture in load_mask_findings(run.inside).pictures]
    assert [Path(file).name for file in files] == ["001.png", "000.png", "000.png", "002.png"]
    assert f"ok {FIRST}: masks of 3 of 4 pictures counted again; 1 are reduced, the pixels of each true class compared" in lines
    assert f"ok {RECORD}: 12 numbers of 4 pictures after epoch 0, 1 recomputed from the snapshots" in lines
    assert "ok inside/masks.npz: masks and confidence are those of the snapshots; the truth is that of the data" in lines
    (anew,) = [text for text in lines if text.startswith(f"ok {LAST} from checkpoint and data: ")]
    assert anew.endswith(f"0 of {40 * 36 + 2 * 32 * 32 + 31 * 640:,} pixels are predicted otherwise")


def test_the_record_and_the_arrays_hold_against_each_other_when_the_data_is_gone(kept_runs: dict[str, Run], forged: Run) -> None:
    assert [text for _, ok, text in stored_picture_checks(kept_runs["native"], None, None) if not ok] == []
    change_record(forged, lambda r: r["pictures"][0]["epochs"][0]["miou"].update(value=0.99))
    (found,) = [text for _, ok, text in stored_picture_checks(forged, None, None) if not ok]
    assert "miou after epoch 0: reported 0.9900" in found


@pytest.mark.parametrize("name", ["pixel_accuracy", "miou"])
def test_a_forged_number_of_a_picture_is_named(forged: Run, name: str) -> None:
    i = place_of(forged, "000.png")
    true = getattr(load_mask_findings(forged.inside).pictures[i].epochs[1], name)
    change_record(forged, lambda r: r["pictures"][i]["epochs"][1][name].update(value=true.value + 2e-6))
    (found,) = [text for text in verify(forged).lines() if text.startswith("MISMATCH")]
    assert found.startswith(f"MISMATCH {RECORD}: 000.png: {name} after epoch 1: reported {true}, recomputed ")


def test_a_number_that_is_missing_or_of_another_split_is_named(forged: Run) -> None:
    i = place_of(forged, "000.png")
    change_record(forged, lambda r: r["pictures"][i]["epochs"][0].update(miou=None))
    change_record(forged, lambda r: r["pictures"][i]["epochs"][1]["pixel_accuracy"].update(n=7, split="test"))
    (found,) = of_pictures(forged)
    assert "000.png: miou after epoch 0 is missing; 000.png: pixel_accuracy after epoch 1: name, n, seed, split, unit and interval are " in found
    assert "('pixel_accuracy', 7, 1, 'test', 'fraction', None), recomputed ('pixel_accuracy', 1, 1, 'photographs and val', 'fraction', None)" in found


def test_a_forged_mask_of_a_snapshot_is_named(forged: Run) -> None:
    i = place_of(forged, "000.png")
    mask = forged.snapshot(0).masks[f"predicted/{i}"]
    mask[10:20, 10:20] = 6 - mask[10:20, 10:20]
    change_kept(forged, FIRST, lambda a: a.update({f"predicted/{i}": mask}))
    snapshot, arrays = of_pictures(forged)
    assert snapshot.startswith(f"MISMATCH {FIRST}: 000.png: confusion/{i}: ")
    assert "counts differ, first at (" in snapshot
    assert arrays == f"MISMATCH inside/masks.npz: 000.png: predicted/{i} after epoch 0 is not that of the snapshot"
    change_kept(forged, "inside/masks.npz", lambda a: a[f"predicted/{i}"].__setitem__(0, mask))
    assert of_pictures(forged) == [snapshot]


def test_counts_of_a_reduced_picture_have_the_pixels_of_its_mask(forged: Run) -> None:
    i = place_of(forged, "002.png")
    change_kept(forged, FIRST, lambda a: a[f"confusion/{i}"].__setitem__((0, 0), a[f"confusion/{i}"][0, 0] + 5))
    found = of_pictures(forged)
    assert found[0].startswith(f"MISMATCH {FIRST}: 002.png: confusion/{i} has other pixels of each class than its mask: [")


def test_a_swapped_truth_and_classes_are_named(forged: Run) -> None:
    i = place_of(forged, "002.png")
    change_kept(forged, "inside/masks.npz", lambda a: a.update({f"truth/{i}": a[f"predicted/{i}"][1]}))
    assert of_pictures(forged) == ["MISMATCH inside/masks.npz: 002.png: its truth is not its mask in the data"]
    change_record(forged, lambda r: r["pictures"][i].update(classes=[5]))
    assert f"MISMATCH {RECORD}: 002.png: its classes are [5], in its mask " in of_pictures(forged)[0]


def test_a_photograph_has_a_truth_only_where_the_split_has_it(forged: Run, pairs: Path) -> None:
    ours = place_of(forged, f"{pairs}/val/001.png")
    assert "truth/0" in np.load(forged.path / "inside/masks.npz")
    assert "truth/1" not in np.load(forged.path / "inside/masks.npz")  # an image of train, and what is looked at is val
    change_kept(forged, "inside/masks.npz", lambda a: a.update({"truth/1": a["predicted/1"][0]}))
    assert of_pictures(forged) == [f"MISMATCH inside/masks.npz: {pairs}/train/000.png: it has a truth, and no mask in the data"]
    change_kept(forged, FIRST, lambda a: a.update({"confusion/1": a[f"confusion/{ours}"]}))
    assert of_pictures(forged)[0] == f"MISMATCH {FIRST}: {pairs}/train/000.png: confusion/1 counts pixels, and it has no mask"


def test_pictures_that_are_not_those_of_the_recipe_are_named(forged: Run) -> None:
    whole = (forged.path / RECORD).read_text()
    change_record(forged, lambda r: r["pictures"][2].update(file="003.png"))
    assert of_pictures(forged) == [f"MISMATCH {RECORD}: 000.png is missing; 003.png was not asked for"]
    (forged.path / RECORD).write_text(whole)
    change_record(forged, lambda r: r["pictures"][2].update(size=[31, 32]))
    assert "inside/masks.npz: truth/2: expected uint8 of shape (31, 32) for 000.png" in of_pictures(forged)[0]
    (forged.path / RECORD).write_text(whole)
    change_record(forged, lambda r: r["pictures"][3].update(size=[34, 701]))  # is reduced to the same
    assert of_pictures(forged) == [f"MISMATCH {RECORD}: 002.png: its size is (34, 701), found (34, 700)"]
    (forged.path / RECORD).write_text(whole)
    change_record(forged, lambda r: r.update(selected="epoch 9, the best miou on val"))
    assert of_pictures(forged) == [f"MISMATCH {RECORD}: selected epoch 9, the best miou on val, the run has last epoch"]


def test_arrays_of_a_snapshot_that_are_gone_are_named(forged: Run) -> None:
    change_kept(forged, FIRST, lambda a: (a.pop("confusion/2"), a.update({"confidence/3": a["confidence/3"][1:]})))
    (found,) = of_pictures(forged)
    assert found == f"MISMATCH {FIRST}: 000.png: confusion/2 is missing; 002.png: confidence/3: expected (31, 640), got (30, 640)"


def test_masks_over_epochs_that_are_gone_are_a_mismatch(forged: Run) -> None:
    record = forged.record
    record.files.pop("inside/masks.npz")
    forged.write_record(record)
    assert of_pictures(forged) == ["MISMATCH run.json: it holds no hash of inside/masks.npz"]
    (forged.path / RECORD).unlink()
    accept(forged)
    found = of_pictures(forged)
    assert found[0] == f"MISMATCH run.json: it holds no hash of {RECORD}"
    assert found[-1].startswith(f"MISMATCH {RECORD}: ")
    assert found[-1].endswith("there is no such file.")
    assert not verify(forged).ok


def test_the_last_masks_are_predicted_again(forged: Run) -> None:
    i = place_of(forged, "000.png")
    forge(forged, i, at=1, epoch=1)
    assert of_pictures(forged) == [], "record, arrays and snapshot fit each other"
    (found,) = of_pictures(forged, anew=True)
    assert found.startswith(f"MISMATCH {LAST} from checkpoint and data: 000.png: ")
    assert "pixels are predicted otherwise, at most 0.0% may be; 000.png: its counts are not those of the masks predicted again: " in found
    assert found in verify(forged).lines()


def test_a_forged_confidence_is_named(forged: Run) -> None:
    for name, at in ((LAST, np.s_[:]), ("inside/masks.npz", np.s_[1])):
        change_kept(forged, name, lambda a, at=at: a["confidence/3"].__setitem__(at, 255))
    assert of_pictures(forged) == []
    (found,) = of_pictures(forged, anew=True)
    assert found.startswith(f"MISMATCH {LAST} from checkpoint and data: 002.png: confidence differs by up to 0.")


def test_masks_of_another_epoch_than_the_reported_one_are_not_predicted_again(forged: Run) -> None:
    record = forged.record
    record.selected = "epoch 3, the best miou on val"
    forged.write_record(record)
    recipe, runtime = forged.recipe, runtime_of(forged)
    dataset = load_dataset(recipe.data, seed=recipe.seed, masks=True)
    (found,) = anew_picture_checks(forged, dataset, load_model(forged), runtime, None)
    assert found[1:] == (True, "no snapshot is of the final weights: masks over epochs are not predicted again")


def test_a_machine_like_that_of_the_run_has_to_come_nearest(kept_runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = kept_runs["native"]
    runtime = runtime_of(run)
    assert [_near(run, runtime, same_bits, resampled) for same_bits, resampled in ((True, False), (True, True), (False, False))] == [
        SAME_BITS, SAME_MACHINE, SAME_MACHINE,
    ]  # fmt: skip
    assert _near(run, replace(runtime, threads=7), False, False) == OTHER_MACHINE
    assert _near(run, replace(runtime, precision="bf16"), False, False) == REDUCED
    monkeypatch.setattr(Run, "environment", {**run.environment, "precision": "bf16"})
    assert _near(run, runtime, False, False) == REDUCED


def test_masks_are_reduced_alike_by_both_paths() -> None:
    random = np.random.default_rng(0)
    for size in [(640, 3), (641, 4), (3, 1281), (1280, 960), (2448, 31), *random.integers(1, 1500, (20, 2)).tolist()]:
        mask = random.integers(0, 256, size).astype(np.uint8)
        assert _as_kept(mask).shape == kept_size(size)
        np.testing.assert_array_equal(_as_kept(mask), reduced_mask(mask))


# ── what stands in run.json beside the numbers of the splits ──────────────────────────────────────────────────


def test_a_number_of_no_split_or_twice_is_named(forged: Run) -> None:
    change_numbers(forged, lambda numbers: [*numbers, replace(numbers[0], split="test"), numbers[1]])
    found = [text for text in verify(forged).lines() if text.startswith("MISMATCH")]
    assert found == ["MISMATCH test/miou: a number of test, the run measures val", "MISMATCH val/pixel_accuracy: it stands in run.json 2 times"]


def test_a_segmentation_without_a_split_to_measure_says_so(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(PAIRS.format(folder=pairs, val="", fit="native"))
    found = verify(train(tmp_path / "r.yaml", out=tmp_path / "run", quiet=True, figures=False))
    assert found.ok
    assert "the run has neither val nor test images: there is no number to verify" in found.lines()
