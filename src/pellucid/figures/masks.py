"""Figures of a segmentation: masks over epochs beside image and ground truth, where they err, how sure they are, the IoU of each class.

Photos are (h, w, 3) uint8 RGB, masks (h, w) uint8 with 255 ignored, both of one size. Classes have the colours of the data's own masks, even where two are
hard to tell apart, because these are what people know. Errors differ in lightness too, so that they read the same in grey and to colour-blind eyes.
Under every predicted mask stand the numbers of that picture. width: of the whole figure in inches, on paper (`style.fitted`); None: its own, for screens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from pellucid import palettes
from pellucid.errors import RunError, UsageError
from pellucid.figures.overlays import SIMILARITY_COLOURS, coloured
from pellucid.figures.runs import confusion_matrix, draw_lines, reliability_diagram
from pellucid.figures.style import BOLD_LETTERS, COLOURS, DASHES, STYLE, fitted, in_line, panel_layout, plain_text, save, shortened
from pellucid.mask_findings import FINDINGS, PICTURES, EpochNumbers, MaskFindings, kept_size, load_kept_masks, load_mask_findings, pixel_calibration
from pellucid.palettes import IGNORED
from pellucid.readings import Curve, by_epoch, curve
from pellucid.records import read_picture
from pellucid.run import Run, rounded

RIGHT, WRONG, LIGHT = (178, 190, 200), (200, 70, 0), (247, 247, 247)  # of an error map: muted, strong, and light where nothing is said
STRIPES = ((250, 250, 250), (200, 200, 200))  # ignored pixels of a ground truth: no class has a pattern
ROWS = 6  # pictures of one sheet
PANELS = 3  # epochs of one sheet: an early, a middle and the last
SHEETS = 2  # of each kind: drawing one takes seconds


@dataclass(frozen=True)
class MaskRow:
    """A picture and what was predicted for it at E epochs: predicted and confidence (E, h, w) uint8, 255 = sure; truth None where it has no mask."""

    name: str
    photo: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    predicted: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    numbers: Sequence[EpochNumbers]


def error_map(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: RIGHT where a pixel was predicted right, WRONG where not, LIGHT where the ground truth is ignored."""
    return np.array([RIGHT, WRONG, LIGHT], np.uint8)[errors(truth, predicted)]


def errors(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w) uint8: 0 right, 1 wrong, 2 ignored. UsageError for masks of different sizes."""
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise UsageError(f"expected two masks of one size (h, w), got {truth.shape} and {predicted.shape}")
    return np.where(truth == IGNORED, 2, truth != predicted).astype(np.uint8)


def painted(mask: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: each pixel in its class's colour, ignored ones in grey stripes. UsageError for a class without a colour."""
    known = mask[mask != IGNORED]
    if known.size and known.max() >= len(colours):
        raise UsageError(f"expected classes below {len(colours)}, the number of colours, got {known.max()}")
    rows, columns = np.indices(mask.shape)
    stripes = np.array(STRIPES, np.uint8)[(rows + columns) // 4 % 2]
    return np.where((mask == IGNORED)[..., None], stripes, palettes.coloured(mask, colours))


# ── sheets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def masks_sheet(rows: Sequence[MaskRow], epochs: Sequence[int], classes: Sequence[str], colours: NDArray[np.uint8], *, width: float | None = None) -> Figure:
    """One row a picture: image, ground truth, the mask predicted at each epoch with its numbers, and the errors of the last; one legend for all.

    With a width a picture takes as many lines as it needs.

    colours: (C, 3) uint8, one of each class. A picture without a mask has neither ground truth nor errors nor numbers, and says so.
    """
    _checked(rows, epochs)
    titles = ["image", "ground truth", *(_epoch_name(epoch) for epoch in epochs), f"errors, {_epoch_name(epochs[-1])}"]
    drawn = {"mask": set[int](), "errors": set[int]()}
    with matplotlib.rc_context(STYLE):
        figure, cells = _grid(rows, titles, width=width)
        said = _under if width is None else _briefly
        for row, line in zip(rows, cells, strict=True):
            _picture(line[0], row.photo)
            for i in range(len(epochs)):
                _picture(line[2 + i], painted(row.predicted[i], colours), said(row.numbers[i]))
            drawn["mask"] |= set(np.unique(row.predicted).tolist())
            if row.truth is None:
                _nothing(line[1], "no mask")
                _nothing(line[-1], "no mask, so that nothing\nsays what is wrong")
                continue
            _picture(line[1], painted(row.truth, colours))
            found = errors(row.truth, row.predicted[-1])
            _picture(line[-1], error_map(row.truth, row.predicted[-1]))
            drawn["mask"] |= set(np.unique(row.truth).tolist())
            drawn["errors"] |= set(np.unique(found).tolist())
        columns = 6 if width is None else in_line(6, width, least=1.4)
        figure.legend(handles=_handles(drawn["mask"], drawn["errors"], classes, colours), loc="outside lower center", ncols=columns, fontsize=8)
    return fitted(figure, width)


def confidence_sheet(rows: Sequence[MaskRow], epochs: Sequence[int], *, width: float | None = None) -> Figure:
    """One row a picture: image, the probability of the predicted class at the last epoch, and where that prediction errs; a colour bar from 0 to 1."""
    _checked(rows, epochs)
    last = _epoch_name(epochs[-1])
    found: set[int] = set()
    with matplotlib.rc_context(STYLE):
        figure, cells = _grid(rows, ["image", f"confidence, {last}", f"errors, {last}"], panel=2.6, width=width)
        for row, line in zip(rows, cells, strict=True):
            _picture(line[0], row.photo)
            sure = row.confidence[-1] / 255.0
            _picture(line[1], coloured(sure, SIMILARITY_COLOURS), _sure(sure, row.truth, row.predicted[-1], narrow=width is not None))
            if row.truth is None:
                _nothing(line[2], "no mask, so that nothing\nsays what is wrong")
                continue
            found |= set(np.unique(errors(row.truth, row.predicted[-1])).tolist())
            _picture(line[2], error_map(row.truth, row.predicted[-1]), _under(row.numbers[-1]) if width is None else _briefly(row.numbers[-1]))
        scale = ScalarMappable(Normalize(0.0, 1.0), SIMILARITY_COLOURS)
        place: Any = {"shrink": min(1.0, 0.8 / len(rows) + 0.3)} if width is None else {"location": "bottom", "shrink": 0.6, "aspect": 30}
        figure.colorbar(scale, ax=[axes for line in cells for axes in line], label="probability of the predicted class", **place)
        if found:
            figure.legend(handles=_handles(set(), found, (), np.zeros((0, 3), np.uint8)), loc="outside lower center", ncols=3, fontsize=8)
    return fitted(figure, width)


def iou_bars(
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    *,
    split: str = "",
    mean: float | None = None,
    width: float | None = None,
) -> Figure:
    """A bar of IoU for each class in class order, with its interval; NaN is a class that has none, and `mean` a line across."""
    if not names or not len(names) == len(values) == len(intervals):
        raise UsageError(f"expected a value and an interval for each class, got {len(names)} names, {len(values)} values and {len(intervals)} intervals")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 1.3 + 0.26 * len(names)) if width is None else (width, 1.0 + 0.2 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(names)), np.nan_to_num(np.asarray(values, np.float64)), height=0.72, color=COLOURS[0])
        for i, (value, interval) in enumerate(zip(values, intervals, strict=True)):
            if np.isnan(value):
                axes.text(0.01, i, "none", va="center", fontsize=7, color="#59616b")
            if interval is not None:
                axes.plot(interval, [i, i], color="black", linewidth=1.4)
        if mean is not None:
            axes.axvline(mean, color=COLOURS[1], linestyle=DASHES[1], linewidth=1.2, label="mean over the classes that count")
            figure.legend(loc="outside lower center", fontsize=8)
        axes.set_yticks(range(len(names)), [plain_text(name) for name in names], fontsize=8)
        axes.set(xlim=(0.0, 1.0), ylim=(len(names) - 0.4, -0.6), xlabel=f"IoU on {split}" if split else "IoU")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
    return fitted(figure, width)


def mask_curves(loss: Sequence[Curve], accuracy: Sequence[Curve], miou: Sequence[Curve], *, width: float | None = None) -> Figure:
    """Loss, pixel accuracy and mIoU by epoch beside each other; a side without a point is left out."""
    named = ((loss, "loss (nats)"), (accuracy, "pixel accuracy"), (miou, "mIoU"))
    sides = [(curves, name) for curves, name in named if any(one.points for one in curves)]
    if not sides:
        raise UsageError("expected a curve with a point, got none")
    lines, columns, size = panel_layout(len(sides), (3.8, 3.0), width, least=2.2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        for i, (curves, name) in enumerate(sides):
            draw_lines(figure.add_subplot(lines, columns, i + 1), curves, x_label="epoch", y_label=name)
    return fitted(figure, width)


def pixel_confusion_matrix(confusion: ArrayLike, classes: Sequence[str], *, width: float | None = None) -> Figure:
    """Pixels (C, C), row = label and column = prediction, in whole percent of the label's pixels."""
    counts = np.asarray(confusion, np.float64)
    figure = confusion_matrix(np.rint(100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.int64), classes, width=width)
    figure.axes[0].set_xlabel("prediction (percent of the label's pixels)")
    return figure


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_mask_figures(run: Run) -> list[Path]:
    """Draw what a segmentation run holds and return the files: in figures/ curves, and confusion, IoU and reliability of each split; in inside/ masks."""
    files, lines, record = [], run.metrics(), run.record
    miou = [one for one in [curve(lines, kind="val", value="miou", against="epoch", name="val", style=1)] if one.points]
    loss, accuracy = by_epoch(lines, "loss"), by_epoch(lines, "accuracy")
    if loss or accuracy or miou:
        files += save(mask_curves(loss, accuracy, miou), run.figures / "curves")
    classes = run.data.classes if run.prediction_splits else []
    for split in run.prediction_splits:
        predictions = run.mask_predictions(split)
        pixels = predictions.confusion.sum(axis=0)[:-1]
        if not pixels.sum():
            continue
        files += save(pixel_confusion_matrix(pixels, classes), run.figures / f"confusion_{split}")
        stated = {m.name: m for m in record.measurements if m.split == split}
        ious = [stated.get(f"iou[{name}]") for name in classes]
        if any(ious):
            mean = stated["miou"].value if "miou" in stated else None
            values = [np.nan if m is None else m.value for m in ious]
            drawn = iou_bars(classes, values, [None if m is None else m.interval for m in ious], split=split, mean=mean)
            files += save(drawn, run.figures / f"iou_{split}")
        diagram = reliability_diagram(pixel_calibration(predictions, split=split, seed=run.recipe.seed))
        diagram.axes[1].set_ylabel("pixels")
        files += save(diagram, run.figures / f"reliability_{split}")
    return files + (write_mask_sheets(run.inside, run.figures / "inside") if (run.inside / FINDINGS).is_file() else [])


def write_mask_sheets(folder: Path, out: Path) -> list[Path]:
    """Draw the masks and the confidence of a run's inside/ folder into another folder, ROWS pictures a sheet, SHEETS of each at most; returns the files."""
    findings = load_mask_findings(folder)
    shown = np.unique(np.linspace(0, len(findings.epochs) - 1, min(PANELS, len(findings.epochs))).round().astype(int)).tolist()
    epochs = [findings.epochs[i] for i in shown]
    files, count = [], min(len(findings.pictures), ROWS * SHEETS)
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, ROWS):
        rows = [mask_row(folder, findings, i, shown) for i in range(first, min(first + ROWS, count))]
        ending = f"_{1 + first // ROWS}" if count > ROWS else ""
        files += save(masks_sheet(rows, epochs, findings.classes, findings.mask_format.colours), out / f"masks_over_epochs{ending}")
        files += save(confidence_sheet(rows, epochs), out / f"mask_confidence{ending}")
    return files


def mask_row(folder: Path, findings: MaskFindings, index: int, shown: Sequence[int]) -> MaskRow:
    """A picture of the findings with those of its epochs that are shown, by their place. RunError where its file is gone or of another size."""
    picture, kept = findings.pictures[index], load_kept_masks(folder, findings, index)
    path = folder / PICTURES / f"{index}.webp"
    try:
        photo = np.asarray(read_picture(path).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise RunError(f"{path}: cannot be read as a picture: {error}; the folder was changed") from None
    if photo.shape[:2] != kept_size(picture.size):
        height, width = kept_size(picture.size)
        raise RunError(f"{path}: expected a picture of {height} x {width} pixels, got {photo.shape[0]} x {photo.shape[1]}; the folder was changed")
    places = list(shown)
    return MaskRow(picture.file, photo, kept.truth, kept.predicted[places], kept.confidence[places], [picture.epochs[i] for i in places])


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _checked(rows: Sequence[MaskRow], epochs: Sequence[int]) -> None:
    if not 1 <= len(rows) <= ROWS or not epochs:
        raise UsageError(f"expected 1 to {ROWS} pictures and at least one epoch, got {len(rows)} and {len(epochs)}")
    for row in rows:
        size, most = row.photo.shape[:2], (len(epochs), *row.photo.shape[:2])
        if (
            row.predicted.shape != most
            or row.confidence.shape != most
            or (row.truth is not None and row.truth.shape != size)
            or len(row.numbers) != len(epochs)
        ):
            got = f"{row.predicted.shape}, {row.confidence.shape} and {None if row.truth is None else row.truth.shape}, numbers of {len(row.numbers)}"
            raise UsageError(
                f"{row.name}: expected predictions and confidence of shape {most}, a ground truth of {size}, numbers of {len(epochs)} epochs; got {got}"
            )


def _epoch_name(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "before training"


def _grid(
    rows: Sequence[MaskRow], titles: Sequence[str], *, panel: float = 1.9, width: float | None = None
) -> tuple[Figure, Sequence[Sequence[Axes]] | NDArray[np.object_]]:
    """A figure and, for each row, its axes, one for each title; the tallest picture gives the height of its row. panel: width of one, in inches."""
    if width is not None:
        return _narrow_grid(rows, titles, width)
    tall = [panel * row.photo.shape[0] / row.photo.shape[1] for row in rows]
    figure = Figure(figsize=(panel * len(titles) + 0.5, sum(tall) + 0.42 * len(rows) + 1.0), layout="constrained")
    cells = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=[height + 0.42 for height in tall])
    for axes in cells.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    for axes, title in zip(cells[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    for row, axes in zip(rows, cells[:, 0], strict=True):
        axes.set_ylabel(plain_text(textwrap.shorten(Path(row.name).name, 34, placeholder="…")), fontsize=7)
    return figure, cells


def _narrow_grid(rows: Sequence[MaskRow], titles: Sequence[str], width: float) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    """The same on paper: the panels of a picture over as many lines as they need, each with its title, the name of the picture over the first."""
    columns = in_line(len(titles), width, least=1.1)
    columns = -(-len(titles) // -(-len(titles) // columns))  # lines of about one length
    lines, side = -(-len(titles) // columns), width / columns
    tall = [side * row.photo.shape[0] / row.photo.shape[1] + 0.55 for row in rows for _ in range(lines)]
    figure = Figure(figsize=(width, sum(tall) + 0.2 * len(rows) + 1.3), layout="constrained")
    cells = figure.subplots(len(tall), columns, squeeze=False, height_ratios=tall)
    for axes in cells.flat:
        axes.set_axis_off()
    found = []
    for i, row in enumerate(rows):
        mine = list(cells[i * lines : (i + 1) * lines].flat)[: len(titles)]
        for axes, title in zip(mine, titles, strict=True):
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_title(title, fontsize=7)
        name = shortened(Path(row.name).name, int(side * BOLD_LETTERS))
        mine[0].set_title(plain_text(f"{name}\n{titles[0]}"), fontsize=7)
        found.append(mine)
    return figure, found


def _picture(axes: Axes, pixels: NDArray[np.uint8], under: str = "") -> None:
    axes.imshow(pixels, interpolation="nearest")
    if under:
        axes.set_xlabel(under, fontsize=7)


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", fontsize=7, color="#59616b", transform=axes.transAxes)


def _under(numbers: EpochNumbers) -> str:
    """The numbers of a predicted mask; a picture without one says that it has none."""
    if numbers.pixel_accuracy is None:
        return "not measured"
    return f"pixel accuracy {numbers.pixel_accuracy}\nmIoU of the picture {numbers.miou or 'none'}"


def _briefly(numbers: EpochNumbers) -> str:
    """The same in narrower lines."""
    return _under(numbers).replace("mIoU of the picture", "its mIoU")


def _sure(sure: NDArray[np.float64], truth: NDArray[np.uint8] | None, predicted: NDArray[np.uint8], *, narrow: bool) -> str:
    """How sure the model is where it is right and where it errs, in the pixels that are drawn."""
    if truth is None:
        return f"mean {rounded(float(sure.mean()))}"
    found = errors(truth, predicted)
    means = [rounded(float(sure[found == kind].mean())) if (found == kind).any() else "none" for kind in (0, 1)]
    if narrow:
        return f"mean: right {means[0]}\nwrong {means[1]}"
    return f"mean where right {means[0]}\nwhere wrong {means[1]}"


def _handles(found: set[int], errs: set[int], classes: Sequence[str], colours: NDArray[np.uint8]) -> list[Patch]:
    """A patch for each class that is drawn, in class order, then ignored pixels and the kinds of an error map."""
    shown = [(plain_text(classes[i]), _shade(colours[i].tolist())) for i in sorted(found - {IGNORED})]
    patches = [Patch(facecolor=colour, edgecolor="#59616b", linewidth=0.5, label=name) for name, colour in shown]
    if IGNORED in found:
        patches.append(Patch(facecolor=_shade(STRIPES[0]), edgecolor="#9aa4b0", hatch="////", linewidth=0.5, label="ignored"))
    for kind, (name, colour) in enumerate((("right", RIGHT), ("wrong", WRONG), ("ignored (in errors)", LIGHT))):
        if kind in errs:
            patches.append(Patch(facecolor=_shade(colour), edgecolor="#59616b", linewidth=0.5, label=name))
    return patches


def _shade(colour: Sequence[int]) -> tuple[float, float, float]:
    red, green, blue = (value / 255.0 for value in colour)
    return red, green, blue
