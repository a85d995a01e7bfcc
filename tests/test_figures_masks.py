from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fabricate_segmentation import CLASSES, EPOCHS, keep_masks, make_segmentation, mask_format
from pellucid.errors import RunError, UsageError
from pellucid.figures import masks
from pellucid.figures.overlays import SIMILARITY_COLOURS, coloured
from pellucid.mask_findings import PICTURES
from pellucid.palettes import IGNORED
from pellucid.readings import Curve

COLOURS = mask_format().colours


@pytest.fixture
def rows(tmp_path: Path) -> list[masks.MaskRow]:
    """Three pictures at every epoch; the last has no mask."""
    findings = keep_masks(tmp_path, num=3, size=(48, 64), unmasked=(2,))
    return [masks.mask_row(tmp_path, findings, i, range(len(EPOCHS))) for i in range(3)]


def images(figure: Figure, line: int, columns: int) -> list[NDArray[np.uint8] | None]:
    """What is drawn in a row of a sheet, None where there is no picture."""
    cells = figure.axes[line * columns : (line + 1) * columns]
    return [np.asarray(axes.images[0].get_array()) if axes.images else None for axes in cells]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


# ── masks as pictures ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_map_says_right_wrong_and_nothing() -> None:
    truth, found = np.array([[0, 1, IGNORED]], np.uint8), np.array([[0, 2, 2]], np.uint8)
    assert masks.error_map(truth, found).tolist() == [[list(masks.RIGHT), list(masks.WRONG), list(masks.LIGHT)]]


def test_the_kinds_of_an_error_map_differ_in_grey() -> None:
    light = sorted(float(np.dot(colour, (0.299, 0.587, 0.114))) for colour in (masks.RIGHT, masks.WRONG, masks.LIGHT))
    assert min(np.diff(light)) > 50


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected two masks of one size \(h, w\), got \(4, 5\) and \(5, 4\)"):
        masks.error_map(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))


def test_each_class_is_painted_in_its_own_colour_and_ignored_pixels_in_stripes() -> None:
    mask = np.array([[0, 3], [IGNORED, 6]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    picture = masks.painted(mask, COLOURS)
    assert {tuple(pixel) for pixel in picture[mask == 3]} == {tuple(COLOURS[3])}
    assert {tuple(pixel) for pixel in picture[mask == 6]} == {tuple(COLOURS[6])}
    assert {tuple(pixel) for pixel in picture[mask == IGNORED]} == set(masks.STRIPES)


def test_a_class_without_a_colour_is_refused() -> None:
    with pytest.raises(UsageError, match="expected classes below 7, the number of colours, got 7"):
        masks.painted(np.full((2, 2), 7, np.uint8), COLOURS)


# ── sheets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sheet_shows_image_truth_each_epoch_and_the_last_errors(rows: list[masks.MaskRow]) -> None:
    figure = masks.masks_sheet(rows, EPOCHS, CLASSES, COLOURS)
    assert [axes.get_title("left") for axes in figure.axes[:6]] == ["image", "ground truth", "epoch 1", "epoch 3", "epoch 6", "errors, epoch 6"]
    drawn, row = images(figure, 0, 6), rows[0]
    assert row.truth is not None
    assert np.array_equal(drawn[0], row.photo)  # type: ignore[arg-type]
    assert np.array_equal(drawn[1], masks.painted(row.truth, COLOURS))  # type: ignore[arg-type]
    for i in range(3):
        assert np.array_equal(drawn[2 + i], masks.painted(row.predicted[i], COLOURS))  # type: ignore[arg-type]
    assert np.array_equal(drawn[5], masks.error_map(row.truth, row.predicted[-1]))  # type: ignore[arg-type]


def test_under_each_predicted_mask_stand_its_numbers(rows: list[masks.MaskRow]) -> None:
    figure = masks.masks_sheet(rows, EPOCHS, CLASSES, COLOURS)
    for line, row in enumerate(rows[:2]):
        for axes, numbers in zip(figure.axes[6 * line + 2 :], row.numbers, strict=False):
            assert axes.get_xlabel() == f"pixel accuracy {numbers.pixel_accuracy}\nmIoU of the picture {numbers.miou}"
    assert [axes.get_xlabel() for axes in figure.axes[14:17]] == ["not measured"] * 3


def test_a_picture_without_a_mask_has_no_truth_and_no_errors_and_says_so(rows: list[masks.MaskRow]) -> None:
    figure = masks.masks_sheet(rows, EPOCHS, CLASSES, COLOURS)
    drawn = images(figure, 2, 6)
    assert [i for i, picture in enumerate(drawn) if picture is None] == [1, 5]
    assert [figure.axes[12 + i].texts[0].get_text() for i in (1, 5)] == ["no mask", "no mask, so that nothing\nsays what is wrong"]


def test_the_legend_names_the_classes_that_occur_and_no_others(rows: list[masks.MaskRow]) -> None:
    blank = np.zeros_like(rows[0].predicted)
    truth = np.zeros((48, 64), np.uint8)
    truth[0, 0] = 4
    row = dataclasses.replace(rows[0], truth=truth, predicted=blank)
    assert legend(masks.masks_sheet([row], EPOCHS, CLASSES, COLOURS)) == ["background", "star", "right", "wrong"]
    assert "ignored" in legend(masks.masks_sheet(rows[:1], EPOCHS, CLASSES, COLOURS))


def test_a_sheet_of_another_number_of_epochs_is_refused(rows: list[masks.MaskRow]) -> None:
    with pytest.raises(UsageError, match=r"scenes-val-000000\.png: expected predictions and confidence of shape \(2, 48, 64\).*numbers of 3"):
        masks.masks_sheet(rows, EPOCHS[:2], CLASSES, COLOURS)
    with pytest.raises(UsageError, match="expected 1 to 6 pictures and at least one epoch, got 0 and 3"):
        masks.confidence_sheet([], EPOCHS)


def test_confidence_stands_beside_errors_with_its_mean_where_right_and_where_wrong(rows: list[masks.MaskRow]) -> None:
    figure = masks.confidence_sheet(rows, EPOCHS)
    row = rows[0]
    assert row.truth is not None
    drawn = images(figure, 0, 3)
    assert np.array_equal(drawn[1], coloured(row.confidence[-1] / 255.0, SIMILARITY_COLOURS))  # type: ignore[arg-type]
    assert np.array_equal(drawn[2], masks.error_map(row.truth, row.predicted[-1]))  # type: ignore[arg-type]
    sums = {True: [0.0, 0], False: [0.0, 0]}
    for label, guess, sure in zip(row.truth.ravel(), row.predicted[-1].ravel(), row.confidence[-1].ravel(), strict=True):
        if label != IGNORED:
            sums[bool(label == guess)][0] += int(sure) / 255
            sums[bool(label == guess)][1] += 1
    right, wrong = (total / count for total, count in sums.values())
    assert figure.axes[1].get_xlabel() == f"mean where right {right:.4f}\nwhere wrong {wrong:.4f}"
    assert figure.axes[-1].get_ylabel() == "probability of the predicted class"


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bars_of_iou_keep_class_order_and_intervals() -> None:
    figure = masks.iou_bars(["sky", "car", "pole"], [0.9, np.nan, 0.2], [(0.85, 0.92), None, (0.1, 0.3)], split="val", mean=0.55)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sky", "car", "pole"]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.0, 0.2]  # type: ignore[attr-defined]
    assert [tuple(line.get_xdata()) for line in axes.lines[:2]] == [(0.85, 0.92), (0.1, 0.3)]  # type: ignore[arg-type]
    assert axes.texts[0].get_text() == "none"
    assert axes.yaxis_inverted()
    with pytest.raises(UsageError, match="got 2 names, 1 values and 2 intervals"):
        masks.iou_bars(["a", "b"], [0.1], [None, None])


def test_a_side_without_a_point_is_left_out_of_the_curves() -> None:
    loss, miou = Curve("train", [1, 2, 3], [1.0, None, 0.5]), Curve("val", [1, 2], [0.2, 0.4], 1)
    figure = masks.mask_curves([loss], [], [miou])
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "mIoU"]
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, True, False]
    with pytest.raises(UsageError, match="expected a curve with a point"):
        masks.mask_curves([], [], [])


def test_a_confusion_matrix_of_pixels_is_in_percent_of_the_label() -> None:
    figure = masks.pixel_confusion_matrix([[900_000, 100_000], [0, 0]], ["sky", "car"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["90", "10"]


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_leaves_its_figures_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_segmentation(tmp_path / "run", n=4)
    keep_masks(run.inside, num=8, size=(48, 64), epochs=(0, 1, 3, 6))
    drawn: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> list[Path]:
        drawn[str(path.relative_to(run.path))] = figure
        return [path]

    monkeypatch.setattr(masks, "save", keep)
    files = masks.write_mask_figures(run)
    sheets = [f"figures/inside/{name}_{k}" for k in (1, 2) for name in ("masks_over_epochs", "mask_confidence")]
    assert [str(file.relative_to(run.path)) for file in files] == [
        "figures/curves",
        "figures/confusion_val",
        "figures/iou_val",
        "figures/reliability_val",
        *sheets,
    ]
    assert [axes.get_title("left") for axes in drawn["figures/inside/masks_over_epochs_1"].axes[2:5]] == ["before training", "epoch 3", "epoch 6"]
    stated = run.measurements
    widths = [bar.get_width() for bar in drawn["figures/iou_val"].axes[0].patches]  # type: ignore[attr-defined]
    assert widths == [stated[f"val/iou[{name}]"].value if f"val/iou[{name}]" in stated else 0.0 for name in CLASSES]
    assert drawn["figures/reliability_val"].axes[1].get_ylabel() == "pixels"


def test_a_sheet_is_written_as_files(tmp_path: Path) -> None:
    keep_masks(tmp_path, num=1, size=(48, 64), epochs=(6,))
    files = masks.write_mask_sheets(tmp_path, tmp_path / "drawn")
    assert [file.name for file in files] == [f"{name}.{kind}" for name in ("masks_over_epochs", "mask_confidence") for kind in ("png", "svg", "pdf")]
    assert all(file.stat().st_size > 1000 for file in files)


def test_a_picture_that_is_gone_or_exchanged_is_named(tmp_path: Path) -> None:
    findings = keep_masks(tmp_path, num=1, size=(48, 64))
    file = tmp_path / PICTURES / "0.webp"
    PIL.Image.new("RGB", (48, 64)).save(file)
    with pytest.raises(RunError, match=r"0\.webp: expected a picture of 48 x 64 pixels, got 64 x 48; the folder was changed"):
        masks.mask_row(tmp_path, findings, 0, [0])
    file.unlink()
    with pytest.raises(RunError, match=r"0\.webp: cannot be read as a picture"):
        masks.mask_row(tmp_path, findings, 0, [0])
