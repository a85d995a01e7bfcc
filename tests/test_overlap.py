"""Overlap: the numbers of predicted masks are those of torchmetrics, scikit-learn and plain float64 loops, and say how they were counted."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.segmentation import MeanIoU

from pellucid.errors import DataError, UsageError
from pellucid.intervals import bootstrap
from pellucid.overlap import (
    PRESETS,
    Convention,
    boundary_counts,
    boundary_map,
    boundary_scores,
    boundary_tolerance,
    calibration_error,
    convention,
    described,
    measure_masks,
    overlaps,
    pixel_confusion,
)
from pellucid.palettes import IGNORED
from pellucid.predictions import MaskPredictions
from pellucid.schema import ScoringSection
from pellucid.tasks import NUMBERS

STANDARD = Convention("standard")
CLASSES = ("Sky", "Road", "Tree", "Car", "Bicyclist", "Pole")


def scoring(**changes: object) -> ScoringSection:
    return ScoringSection.model_validate(changes)


def drawn(seed: int, *, n: int = 6, size: tuple[int, int] = (20, 24), num_classes: int = 6, absent: tuple[int, ...] = (4,)) -> tuple[np.ndarray, np.ndarray]:
    """(labels, predictions) (n, H, W) uint8 in blobs: unequal classes, some images of few of them, ignored pixels, `absent` in neither."""
    random = np.random.default_rng(seed)
    there = np.array([c for c in range(num_classes) if c not in absent])
    labels, predicted = np.empty((n, *size), np.uint8), np.empty((n, *size), np.uint8)
    for i in range(n):
        chosen = random.choice(there, size=min(len(there), 2 + i % 3), replace=False)
        coarse = random.choice(chosen, size=(size[0] // 4, size[1] // 4), p=random.dirichlet(np.ones(len(chosen))))
        labels[i] = np.kron(coarse, np.ones((4, 4), int))
        wrong = random.random(size) < 0.2
        predicted[i] = np.where(wrong, random.choice(there, size=size), np.roll(labels[i], 1, axis=1))
        labels[i][random.random(size) < 0.1] = IGNORED
    return labels, predicted


def confusions(labels: np.ndarray, predicted: np.ndarray, num_classes: int = 6) -> np.ndarray:
    return np.stack([pixel_confusion(a, b, num_classes) for a, b in zip(labels, predicted, strict=True)])


def looped_iou(labels: np.ndarray, predicted: np.ndarray, num_classes: int, void: str = "ignored", as_ignored: tuple[int, ...] = ()) -> list[float]:
    """IoU of each class from the pixels, one at a time."""
    found = []
    for c in range(num_classes):
        hits = union = 0
        for label, prediction in zip(labels.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            ignored = label == IGNORED or label in as_ignored
            if ignored and void == "ignored":
                continue
            hits += label == c and prediction == c and not ignored
            union += prediction == c or (label == c and not ignored)
        found.append(hits / union if union and c not in as_ignored else math.nan)
    return found


def predictions(seed: int = 0, *, n: int = 6, num_classes: int = 6, absent: tuple[int, ...] = (4,)) -> MaskPredictions:
    labels, predicted = drawn(seed, n=n, num_classes=num_classes, absent=absent)
    random = np.random.default_rng(seed)
    confusion = confusions(labels, predicted, num_classes)
    boundary = np.stack([boundary_counts(a, b, num_classes, 1.5) for a, b in zip(labels, predicted, strict=True)])
    pixels = confusion[:, :-1].sum(axis=(1, 2))
    calibration = np.zeros((n, 15, 3))
    calibration[:, 11] = np.stack([pixels, 0.75 * pixels, np.trace(confusion[:, :-1], axis1=1, axis2=2)], axis=1)
    return MaskPredictions([f"{i}.png" for i in range(n)], confusion, pixels * random.random(n), boundary, calibration, np.zeros((n, 16), np.uint8))


def measured(found: MaskPredictions, classes: tuple[str, ...] = CLASSES, how: str = "", **changes: object) -> dict:
    return {m.name: m for m in measure_masks(found, classes=classes, scoring=scoring(**changes), split="val", seed=3, note="epoch 2", how=how)}


# ── IoU ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_that_of_torchmetrics_scikit_learn_and_a_loop(seed: int) -> None:
    labels, predicted = drawn(seed)
    total = confusions(labels, predicted).sum(axis=0)
    valid = labels != IGNORED
    assert (total[:-1] == confusion_matrix(labels[valid], predicted[valid], labels=range(6))).all()
    assert (total[-1] == np.bincount(predicted[~valid], minlength=6)).all()
    found = overlaps(total, STANDARD)
    np.testing.assert_allclose(found.iou, looped_iou(labels, predicted, 6), rtol=0, atol=1e-12)
    present = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(found.iou[present], jaccard_score(labels[valid], predicted[valid], labels=present, average=None), rtol=0, atol=1e-12)
    theirs = MulticlassJaccardIndex(6, average="none", ignore_index=IGNORED)(torch.from_numpy(predicted).long(), torch.from_numpy(labels).long())
    np.testing.assert_allclose(found.iou[present], theirs[present], rtol=0, atol=1e-6)
    assert theirs[4] == 0.0  # what it shows for a class in neither, which has none
    assert math.isnan(found.iou[4])
    macro = MulticlassJaccardIndex(6, average="macro", ignore_index=IGNORED)(torch.from_numpy(predicted).long(), torch.from_numpy(labels).long())
    assert found.miou == pytest.approx(float(macro), abs=1e-6)
    assert found.miou == pytest.approx(float(np.mean(found.iou[present])), abs=1e-12)
    assert (found.absent, found.num_counted) == ((4,), 5)


def test_means_over_pixels_and_classes_are_as_defined() -> None:
    labels, predicted = drawn(5)
    valid = labels != IGNORED
    found = overlaps(confusions(labels, predicted).sum(axis=0), STANDARD)
    recalls, weighted = [], 0.0
    for c in np.unique(labels[valid]):
        recalls.append(float((predicted[labels == c] == c).mean()))
        weighted += float((labels == c).sum()) / float(valid.sum()) * found.iou[c]
    assert found.pixel_accuracy == pytest.approx(float((labels == predicted)[valid].mean()), abs=1e-12)
    assert found.class_accuracy == pytest.approx(sum(recalls) / len(recalls), abs=1e-12)
    assert found.frequency_weighted_iou == pytest.approx(weighted, abs=1e-12)


def test_ours_is_the_miou_of_the_set_and_none_of_the_others_that_are_called_so() -> None:
    labels, predicted = drawn(1, n=8)
    each = confusions(labels, predicted)
    total, valid = each.sum(axis=0), labels != IGNORED
    ours = overlaps(total, STANDARD).miou
    iou = np.array(looped_iou(labels, predicted, 6))
    smoothed, present = np.nan_to_num(iou, nan=1.0), torch.from_numpy(np.where(valid, predicted, 0)).long()
    one = [np.array(looped_iou(labels[i : i + 1], predicted[i : i + 1], 6)) for i in range(8)]
    other = {
        "mean over batches of 2": np.mean([overlaps(each[i : i + 2].sum(axis=0), STANDARD).miou for i in range(0, 8, 2)]),
        "mean over images": np.mean([overlaps(matrix, STANDARD).miou for matrix in each]),
        "mean over images, absent class as 0": np.mean([np.nan_to_num(values).mean() for values in one]),
        "mean over images, absent class as 1": np.mean([np.nan_to_num(values, nan=1.0).mean() for values in one]),
        "absent class as 0": np.nan_to_num(iou).mean(),
        "absent class as 1, as smp's macro": smoothed.mean(),
        "micro": jaccard_score(labels[valid], predicted[valid], average="micro"),
        "torchmetrics.segmentation.MeanIoU, ignored pixels as class 0": float(
            MeanIoU(6, input_format="index")(present, torch.from_numpy(np.where(valid, labels, 0)).long())
        ),
        "void as false positive": overlaps(total, Convention("", void="false_positive")).miou,
    }
    assert ours == pytest.approx(np.nanmean(iou), abs=1e-12)
    assert min(abs(value - ours) for value in other.values()) > 0.001, other
    numbers = sorted([ours, *other.values()])
    assert min(np.diff(numbers)) > 1e-4, "ten definitions, ten numbers"
    assert len(numbers) == 10


def test_a_class_that_is_only_predicted_has_zero_and_counts() -> None:
    labels, predicted = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    predicted[0] = 2
    found = overlaps(pixel_confusion(labels, predicted, 3), STANDARD)
    assert found.iou.tolist()[::2] == [0.75, 0.0]
    assert (found.miou, found.absent, found.num_counted, found.class_accuracy) == (0.375, (1,), 2, 0.75)


def test_nothing_to_count_is_no_number() -> None:
    found = overlaps(pixel_confusion(np.full((3, 3), IGNORED, np.uint8), np.zeros((3, 3), np.uint8), 2), STANDARD)
    assert all(math.isnan(value) for value in (found.miou, found.pixel_accuracy, found.class_accuracy, found.frequency_weighted_iou))
    assert (found.absent, found.num_counted) == ((0, 1), 0)


def test_masks_that_cannot_be_counted_are_named() -> None:
    labels = np.zeros((4, 6), np.uint8)
    with pytest.raises(DataError, match=r"expected a prediction of the mask's size 4x6 \(height x width\), got 6x4"):
        pixel_confusion(labels, labels.T, 2)
    with pytest.raises(DataError, match="expected classes 0 to 1, got 7"):
        pixel_confusion(labels, np.full_like(labels, 7), 2)
    with pytest.raises(DataError, match="expected classes 0 to 1, got 2"):
        pixel_confusion(np.full_like(labels, 2), labels, 2)
    blank = labels.copy()
    blank[0, :5] = IGNORED
    with pytest.raises(DataError, match="expected a class at each pixel of a prediction, 5 of 24 are marked as ignored"):
        pixel_confusion(labels, blank, 2)
    assert pixel_confusion(blank, blank, 2).tolist() == [[19, 0], [0, 0], [0, 0]]  # ignored in both: in no cell


# ── conventions ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_presets_are_the_conventions_of_the_recipe() -> None:
    assert set(PRESETS) == set(ScoringSection.model_fields["convention"].annotation.__args__)


@pytest.mark.parametrize("name", ["standard", "foreground", "deepglobe", "course_script"])
def test_each_convention_is_a_loop_over_pixels(name: str) -> None:
    classes = ("Background", "road", "tree", "car", "bicyclist", "Unknown")
    labels, predicted = drawn(2)
    found = overlaps(confusions(labels, predicted).sum(axis=0), convention(scoring(convention=name), classes))
    as_ignored = (5,) if name in ("deepglobe", "course_script") else ()
    expected = np.array(looped_iou(labels, predicted, 6, "false_positive" if name == "course_script" else "ignored", as_ignored))
    if name == "foreground":
        expected[0] = math.nan
    np.testing.assert_allclose(found.iou, expected, rtol=0, atol=1e-12)
    assert found.miou == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert found.num_counted == (5 if name == "standard" else 4)
    assert found.absent == (4,)
    counts = (labels != IGNORED) & ~np.isin(labels, as_ignored)
    assert found.pixel_accuracy == pytest.approx(float((labels == predicted)[counts].mean()), abs=1e-12)


def test_the_recipe_has_the_last_word_over_the_preset() -> None:
    found = convention(scoring(convention="course_script", excluded=["sky", "car"], void="ignored"), ("sky", "car", "tree", "unknown"))
    assert found == Convention("course_script", (0, 1), (3,), "ignored")
    assert convention(scoring(convention="foreground", excluded=[]), ("a", "b")).counted(2).all()  # nothing is left out, so no background is needed
    assert convention(scoring(convention="deepglobe"), ("a", "b")) == Convention("deepglobe")


def test_conventions_that_do_not_fit_the_classes_are_errors() -> None:
    with pytest.raises(UsageError, match=r"scoring.excluded: there is no class 'Skyy'; classes are Sky, Road, Tree.*Did you mean 'Sky'\?"):
        convention(scoring(excluded=["Skyy"]), CLASSES)
    with pytest.raises(UsageError, match="scoring.convention foreground: there is no class 'background'.*Set scoring.convention: standard, or name in"):
        convention(scoring(convention="foreground"), CLASSES)
    with pytest.raises(UsageError, match="scoring: all 2 classes are left out of the mean; leave at least one in"):
        convention(scoring(convention="deepglobe", excluded=["sea"]), ("unknown", "sea"))


def test_a_convention_says_what_it_does() -> None:
    classes = ("background", "road", "unknown")
    assert described(STANDARD, classes) == "convention standard: what is predicted on ignored pixels counts nowhere"
    found = convention(scoring(convention="course_script", excluded=["background"]), classes)
    assert described(found, classes) == (
        "convention course_script: background left out of the mean, though its pixels count as errors of others; pixels of unknown as ignored; "
        "what is predicted on ignored pixels is a false positive of its class"
    )


# ── boundaries ────────────────────────────────────────────────────────────────────────────────────────────────


def looped_boundary(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Boundary pixels of each of 6 classes, (row, column)."""
    H, W = mask.shape
    found: list[list[tuple[int, int]]] = [[] for _ in range(6)]
    for y in range(H):
        for x in range(W):
            beside = [mask[v, u] for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)) if 0 <= v < H and 0 <= u < W]
            if mask[y, x] != IGNORED and any(other not in (IGNORED, mask[y, x]) for other in beside):
                found[mask[y, x]].append((y, x))
    return found


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 2.25, 3.0, 5.0])
def test_boundaries_are_counted_as_a_loop_over_pairs_counts_them(tolerance: float) -> None:
    for labels, predicted in zip(*drawn(int(tolerance), n=3, size=(16, 20)), strict=True):
        first, second = looped_boundary(np.where(labels == IGNORED, IGNORED, predicted)), looped_boundary(labels)
        expected = [
            [
                len(first[c]), sum(any(math.dist(p, q) <= tolerance for q in second[c]) for p in first[c]),
                len(second[c]), sum(any(math.dist(p, q) <= tolerance for q in first[c]) for p in second[c]),
            ]
            for c in range(6)
        ]  # fmt: skip
        assert boundary_counts(labels, predicted, 6, tolerance).tolist() == expected


def test_ignored_pixels_and_the_edge_of_the_image_make_no_boundary() -> None:
    mask = np.zeros((5, 7), np.uint8)
    mask[:, 3] = IGNORED
    mask[:, 4:] = 1
    assert (boundary_map(mask) == IGNORED).all()
    mask[2, 3] = 1
    assert np.argwhere(boundary_map(mask) == 0).tolist() == [[2, 2]]
    assert np.argwhere(boundary_map(mask) == 1).tolist() == [[2, 3]]


def test_the_tolerance_is_a_share_of_the_diagonal_and_at_least_a_pixel() -> None:
    assert boundary_tolerance(0.0075, 180, 240) == pytest.approx(2.25)
    assert boundary_tolerance(0.0075, 64, 64) == 1.0


def test_boundary_scores_are_means_over_images_that_have_the_boundary() -> None:
    boundary = np.zeros((3, 4, 4), np.int64)
    boundary[0, 0] = [10, 5, 4, 4]  # precision 1/2, recall 1
    boundary[1, 0] = [0, 0, 8, 0]  # not found
    boundary[:, 1] = [3, 0, 3, 0]
    boundary[2, 2] = [6, 6, 9, 9]
    np.testing.assert_allclose(boundary_scores(boundary), [(2 / 3 + 0) / 2, 0.0, 1.0, math.nan])


# ── measurements ──────────────────────────────────────────────────────────────────────────────────────────────


def test_calibration_error_is_that_of_torchmetrics_over_pixels() -> None:
    random = np.random.default_rng(0)
    probabilities = torch.from_numpy(random.dirichlet(np.full(4, 0.4), size=900)).float()
    labels = torch.from_numpy(random.integers(0, 4, 900))
    confidence, predicted = (part.numpy() for part in probabilities.max(dim=1))
    bins = np.ceil(confidence.astype(np.float64) * 15).astype(int) - 1
    stored = np.zeros((3, 15, 3))
    np.add.at(stored, (np.arange(900) % 3, bins), np.stack([np.ones(900), confidence, predicted == labels.numpy()], axis=1))
    expected = multiclass_calibration_error(probabilities, labels, 4, n_bins=15, norm="l1")
    assert calibration_error(stored) == pytest.approx(float(expected), abs=1e-6)
    assert math.isnan(calibration_error(np.zeros((2, 15, 3))))


def test_every_number_of_a_split_is_reported_headline_first() -> None:
    stored = predictions()
    found = measured(stored)
    names = ["miou", "pixel_accuracy", "class_accuracy", "frequency_weighted_iou", "boundary_f", "loss", "calibration_error"]
    assert list(found) == [*names, *[f"iou[{c}]" for c in CLASSES if c != "Bicyclist"]]
    assert (*names, "iou[CLASS]") == NUMBERS["segmentation"]
    whole, pixels = overlaps(stored.confusion.sum(axis=0), STANDARD), stored.confusion[:, :-1].sum()
    assert [found[name].value for name in names[:4]] == [whole.miou, whole.pixel_accuracy, whole.class_accuracy, whole.frequency_weighted_iou]
    assert found["boundary_f"].value == pytest.approx(np.nanmean(boundary_scores(stored.boundary)), abs=1e-12)
    assert found["loss"].value == pytest.approx(stored.loss.sum() / pixels, abs=1e-12)
    assert found["loss"].unit == "nats"
    assert found["iou[Car]"].value == whole.iou[3]
    assert {(m.n, m.seed, m.split) for m in found.values()} == {(6, 3, "val")}
    assert [name for name, m in found.items() if m.interval is None] == ["loss", "calibration_error"]
    ignored = stored.confusion[:, -1].sum()
    assert found["miou"].how == (
        f"mean over 5 classes of TP / (TP + FP + FN) from one confusion matrix over 6 images and {pixels:,} pixels ({ignored:,} ignored), "
        "scored at each mask's own size; convention standard: what is predicted on ignored pixels counts nowhere; "
        "left out, absent from labels and predictions: Bicyclist; epoch 2"
    )


def test_how_predictions_came_to_be_stands_behind_every_number() -> None:
    plain, found = measured(predictions()), measured(predictions(), how="predicted in tiles of 256x256 pixels")
    assert list(found) == list(plain)
    assert all(m.how == f"{plain[name].how}; predicted in tiles of 256x256 pixels" for name, m in found.items())
    assert found["iou[Car]"].how.endswith("; epoch 2; predicted in tiles of 256x256 pixels")


def test_intervals_are_bootstraps_over_images_and_the_same_every_time() -> None:
    stored = predictions(4, n=9)
    found = measured(stored)
    assert found == measured(stored)

    def slow(name: str, rows: np.ndarray) -> float:
        whole = overlaps(stored.confusion[rows].sum(axis=0), STANDARD)
        if name == "boundary_f":
            return float(np.nanmean(boundary_scores(stored.boundary[rows])))
        return float(getattr(whole, name)) if "[" not in name else float(whole.iou[CLASSES.index(name[4:-1])])

    for name in ("miou", "pixel_accuracy", "class_accuracy", "frequency_weighted_iou", "boundary_f", "iou[Sky]"):
        expected = bootstrap(lambda rows, name=name: slow(name, rows), 9, of="images")
        np.testing.assert_allclose(found[name].interval, expected.pair, rtol=0, atol=1e-9)
        assert found[name].interval_how == expected.how


def test_a_resample_without_a_class_is_left_out_of_its_interval() -> None:
    stored = predictions(0, n=6)
    confusion = stored.confusion.copy()
    confusion[1:, 4], confusion[1:, :, 4] = 0, 0
    confusion[0, 4, 4] = 50
    found = measured(MaskPredictions(stored.files, confusion, stored.loss, stored.boundary, stored.calibration, stored.digests))["iou[Bicyclist]"]
    assert found.value == 1.0
    assert found.interval == (1.0, 1.0)
    assert re.fullmatch(r"95 % bootstrap interval over 6 images \(\d\d\d of 1,000 resamples\)", found.interval_how)


def test_classes_in_no_mask_but_predicted_are_named() -> None:
    stored = predictions()
    confusion = stored.confusion.copy()
    confusion[0, 0, 4] = 7
    found = measured(MaskPredictions(stored.files, confusion, stored.loss, stored.boundary, stored.calibration, stored.digests))
    assert "in no mask but predicted, which is an IoU of 0 and counts: Bicyclist" in found["miou"].how
    assert found["iou[Bicyclist]"].value == 0.0
    assert found["iou[Bicyclist]"].how.startswith("0, as the class is in no mask but predicted")


def test_excluded_classes_have_no_iou_and_do_not_move_the_boundary_score() -> None:
    stored = predictions()
    found = measured(stored, excluded=["Sky", "Tree"])
    assert [name for name in found if "[" in name] == ["iou[Road]", "iou[Car]", "iou[Pole]"]
    assert found["boundary_f"].value == pytest.approx(np.nanmean(boundary_scores(stored.boundary)[[1, 3, 5]]), abs=1e-12)


def test_numbers_of_nothing_are_not_reported() -> None:
    stored = predictions()
    confusion = np.zeros_like(stored.confusion)
    confusion[:, -1, 0] = 9
    empty = MaskPredictions(stored.files, confusion, np.zeros(6), np.zeros_like(stored.boundary), np.zeros_like(stored.calibration), stored.digests)
    assert measured(empty) == {}
    assert list(measured(empty, void="false_positive")) == ["miou", "iou[Sky]"]
