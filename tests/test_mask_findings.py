from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics

from fabricate_segmentation import CLASSES, EPOCHS, keep_masks, predicted, scene, score
from pellucid.errors import RunError
from pellucid.mask_findings import (
    ARRAYS,
    FINDINGS,
    KEPT_SIDE,
    PICTURES,
    hardest_rows,
    kept_size,
    load_kept_masks,
    load_mask_findings,
    pixel_accuracies,
    pixel_calibration,
    reduced_mask,
)
from pellucid.palettes import IGNORED
from pellucid.predictions import MaskPredictions


@pytest.fixture
def predictions() -> MaskPredictions:
    """Of five scenes; the fourth has no valid pixel, the last is predicted without an error."""
    truths = [scene(i, (48, 64))[1] for i in range(5)]
    truths[3] = np.full((48, 64), IGNORED, np.uint8)
    found = [predicted(mask, noise, i) for i, (mask, noise) in enumerate(zip(truths, (0.2, 0.6, 0.4, 0.3, 0.0), strict=True))]
    return score(truths, [mask for mask, _ in found], [sure for _, sure in found], [f"{i}.png" for i in range(5)])


# ── the record and its arrays ────────────────────────────────────────────────────────────────────────────────────


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=2, size=(40, 60), unmasked=(1,))
    assert load_mask_findings(tmp_path) == findings
    truth = scene(0, (40, 60))[1]
    kept = load_kept_masks(tmp_path, findings, 0)
    assert np.array_equal(kept.truth, truth)  # type: ignore[arg-type]
    assert np.array_equal(kept.predicted[-1], predicted(truth, 0.06, EPOCHS[-1])[0])
    assert kept.predicted.shape == kept.confidence.shape == (len(EPOCHS), 40, 60)
    assert load_kept_masks(tmp_path, findings, 1).truth is None


def test_equal_findings_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        keep_masks(tmp_path / name, num=1)
    for file in (FINDINGS, ARRAYS, f"{PICTURES}/0.webp"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("size", "kept"), [((64, 96), (64, 96)), ((640, 640), (640, 640)), ((1280, 641), (640, 321)), ((720, 960), (480, 640)), ((5000, 3), (640, 1))]
)
def test_only_a_picture_with_a_longer_side_is_reduced(size: tuple[int, int], kept: tuple[int, int]) -> None:
    assert kept_size(size) == kept
    assert reduced_mask(np.zeros((2, *size), np.uint8)).shape == (2, *kept)


def test_a_reduced_mask_takes_the_pixel_at_each_centre_and_mixes_none() -> None:
    mask = np.random.default_rng(0).integers(0, 255, (101, 77), dtype=np.uint8)
    height, width = kept_size(mask.shape, 40)
    slow = [[mask[int((i + 0.5) * 101 / height), int((j + 0.5) * 77 / width)] for j in range(width)] for i in range(height)]
    assert np.array_equal(reduced_mask(mask, 40), slow)


def test_pictures_are_kept_at_the_size_of_their_masks(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=1, size=(500, 900), epochs=(6,))
    with PIL.Image.open(tmp_path / PICTURES / "0.webp") as picture:
        assert (picture.height, picture.width) == kept_size((500, 900)) == (356, KEPT_SIDE)
    assert load_kept_masks(tmp_path, findings, 0).predicted.shape == (1, 356, KEPT_SIDE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"predicted/0": None}, r"masks\.npz: predicted/0 is missing"),
        ({"truth/0": None}, r"masks\.npz: truth/0 is missing, and .*masks\.json has numbers against it"),
        (
            {"confidence/0": np.zeros((3, 96, 64), np.uint8)},
            r"confidence/0: expected uint8 of shape \(3, 64, 96\) for scenes-val-000000.png, got uint8 \(3, 96, 64\)",
        ),
        ({"predicted/0": np.zeros((3, 64, 96), np.int64)}, r"predicted/0: expected uint8 of shape .*got int64"),
        ({"predicted/0": np.full((3, 64, 96), IGNORED, np.uint8)}, "predicted/0: expected classes below 7, got 255"),
        ({"truth/0": np.full((64, 96), 9, np.uint8)}, "truth/0: expected classes below 7, got 9"),
        ({"truth/0": np.array([object()])}, "cannot be read as arrays"),
    ],
)
def test_arrays_that_contradict_the_record_are_named(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    findings = keep_masks(tmp_path, num=1)
    with np.load(tmp_path / ARRAYS) as arrays:
        np.savez(tmp_path / ARRAYS, **{key: value for key, value in ({**arrays} | changed).items() if value is not None})
    with pytest.raises(RunError, match=said):
        load_kept_masks(tmp_path, findings, 0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": [3, 1, 6]}, r"masks\.json: expected ascending epochs, got \[3, 1, 6\]"),
        ({"epochs": []}, r"expected ascending epochs, got \[\]"),
        ({"epochs": [1, 3]}, r"scenes-val-000000\.png: expected numbers at the epochs \[1, 3\], got \[1, 3, 6\]"),
        ({"classes": ["sky"]}, "expected a code of the masks for each of 1 classes, got 7"),
        ({"selected": 3}, r"masks\.json: not readable as JSON of a run: selected"),
    ],
)
def test_a_record_that_cannot_be_is_named(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    keep_masks(tmp_path, num=1)
    record = json.loads((tmp_path / FINDINGS).read_text())
    (tmp_path / FINDINGS).write_text(json.dumps(record | changed))
    with pytest.raises(RunError, match=said):
        load_mask_findings(tmp_path)


def test_a_picture_with_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=1)
    findings.pictures[0] = dataclasses.replace(findings.pictures[0], classes=[7])
    findings.save(tmp_path, {})
    with pytest.raises(RunError, match=r"expected a size in pixels and classes below 7, got \[64, 96\] and \[7\]"):
        load_mask_findings(tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=1)
    (tmp_path / ARRAYS).unlink()
    with pytest.raises(RunError, match=r"masks\.npz: the file is missing; training writes it beside masks\.json"):
        load_kept_masks(tmp_path, findings, 0)
    (tmp_path / FINDINGS).unlink()
    with pytest.raises(RunError, match=r"masks\.json: expected the masks that training keeps at chosen epochs"):
        load_mask_findings(tmp_path)


# ── what saved predictions say ───────────────────────────────────────────────────────────────────────────────────


def test_pixel_accuracy_of_an_image_is_that_of_sklearn(predictions: MaskPredictions) -> None:
    found = pixel_accuracies(predictions)
    for i, noise in ((0, 0.2), (1, 0.6), (2, 0.4), (4, 0.0)):
        truth = scene(i, (48, 64))[1]
        valid = truth != IGNORED
        assert found[i] == pytest.approx(sklearn.metrics.accuracy_score(truth[valid], predicted(truth, noise, i)[0][valid]), abs=1e-12)
    assert np.isnan(found[3])


def test_the_hardest_images_come_worst_first_without_those_that_have_no_error(predictions: MaskPredictions) -> None:
    assert hardest_rows(predictions, 9).tolist() == [1, 2, 0]
    assert hardest_rows(predictions, 2).tolist() == [1, 2]


def test_void_classes_do_not_make_an_image_hard(predictions: MaskPredictions) -> None:
    every = tuple(range(len(CLASSES)))
    assert hardest_rows(predictions, 9, every).tolist() == []
    truth = scene(0, (48, 64))[1]
    shown = (truth != IGNORED) & (truth != 0)
    right = (predicted(truth, 0.2, 0)[0] == truth)[shown].mean()
    assert pixel_accuracies(predictions, (0,))[0] == pytest.approx(right, abs=1e-12)


def test_calibration_of_pixels_agrees_with_its_definition(predictions: MaskPredictions) -> None:
    found = pixel_calibration(predictions, split="val", seed=1)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for i, noise in ((0, 0.2), (1, 0.6), (2, 0.4), (4, 0.0)):
        truth = scene(i, (48, 64))[1]
        mask, sure = predicted(truth, noise, i)
        for label, guess, confidence in zip(truth.ravel(), mask.ravel(), sure.ravel(), strict=True):
            if label != IGNORED:
                k = next(k for k in range(15) if k / 15 < confidence <= (k + 1) / 15)
                bins.setdefault(k, []).append((confidence, label == guess))
    total = sum(map(len, bins.values()))
    error = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins.values()) / total
    assert found.error.value == pytest.approx(error, abs=1e-9)
    assert found.counts == [len(bins.get(k, [])) for k in range(15)]
    for k, inside in bins.items():
        assert found.accuracies[k] == pytest.approx(sum(r for _, r in inside) / len(inside))
        assert found.confidences[k] == pytest.approx(sum(c for c, _ in inside) / len(inside))
    assert f"over {total:,} valid pixels" in found.error.how
