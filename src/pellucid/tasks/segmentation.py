"""Segmentation: a class for each pixel.

The part of training that knows what a mask is (targets under the geometry of the augmentation, losses over valid pixels, evaluation at the size of each mask,
measurements), and what a finished run can be asked for: its model, masks of new images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from pellucid.data.augment import Augment
from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import opened, resize
from pellucid.data.loader import Pack, Reader, Window, pack_images
from pellucid.data.store import Pixels
from pellucid.data.targets import augmented_masks
from pellucid.errors import DataError
from pellucid.losses import balanced_class_weights
from pellucid.mask_findings import hardest_rows
from pellucid.models.backbones import Built
from pellucid.models.segmenters import build_segmenter
from pellucid.models.weights import WeightsReport, load_weights
from pellucid.overlap import Convention, boundary_counts, boundary_tolerance, convention, measure_masks, overlaps
from pellucid.palettes import IGNORED, coloured
from pellucid.pixel_losses import Term, Weights, check_terms, median_frequency_weights, pixel_loss, window_weights
from pellucid.predictions import CONFIDENCE_BINS, MaskPredictions, MaskTotals
from pellucid.recipe import Recipe
from pellucid.run import Measurement, Run
from pellucid.runtime import Runtime
from pellucid.tasks.fullsize import Forward, FullSize, View, predict_images
from pellucid.tasks.protocol import NOTHING_STORED, PackLoss, Stored


@dataclass(frozen=True)
class MaskPrediction:
    """What a model says of one image. mask_file: name of its mask, as the training masks are named. mask: (H, W) uint8 class indices, at the image's size.

    data: the PNG file of the mask in the format of the training masks. confidence: (H, W) float32, probability of the predicted class. shares: {class: fraction
    of the pixels}.
    """

    file: str
    mask_file: str
    mask: np.ndarray
    data: bytes
    confidence: np.ndarray
    shares: dict[str, float]


NUMBERS = ("miou", "pixel_accuracy", "class_accuracy", "frequency_weighted_iou", "boundary_f", "loss", "calibration_error", "iou[CLASS]")  # of `measure`


class Segmentation:
    """Targets, loss and measurements of a segmentation run; built once, before the model."""

    name = "segmentation"
    headline = "miou"
    accuracy = "pixel accuracy"
    from_the_start = False
    batch_size = 0  # nothing but the windows of `predictions` is evaluated
    needs_partners = False

    def __init__(
        self, recipe: Recipe, dataset: Dataset, runtime: Runtime, mean: Sequence[float], std: Sequence[float], stored: Stored = NOTHING_STORED
    ) -> None:
        assert recipe.scoring is not None
        assert dataset.mask_format is not None
        self._runtime, self._seed, self._classes, self._format = runtime, recipe.seed, dataset.classes, dataset.mask_format
        self._scoring, self._convention = recipe.scoring, convention(recipe.scoring, dataset.classes)
        for split in dataset.splits.values():
            _check_scorable(split, self._convention)
        self._augment = Augment.from_section(
            recipe.augment, size=recipe.data.size, mean=mean, std=std, seed=recipe.seed, interpolation=recipe.data.interpolation
        )
        self._view = view_of(recipe, mean, std)
        self._targets = stored.targets
        self._terms = [Term(term.name, term.weight, term.epsilon, term.gamma) for term in recipe.loss.summed]
        self._smoothing, self._auxiliary = recipe.loss.label_smoothing, recipe.loss.auxiliary_weight
        weights = _class_weights(recipe, dataset)
        check_terms(self._terms, class_weights=weights, label_smoothing=self._smoothing)
        self._class_weights = weights.to(runtime.device) if weights is not None else None
        self._tiled: set[str] = set()  # splits of which an image went through the model in tiles
        self._at: tuple[Window, Tensor, Weights] | None = None  # the masks of the window under way, and what they weigh

    def window_weight(self, window: Window) -> float:
        """Valid pixels of the window's masks as they are augmented, times their class weights; images where the loss has one value an image."""
        return self._of(window)[1].total

    def _of(self, window: Window) -> tuple[Tensor, Weights]:
        """((n, H, W) uint8 masks of a window on the CPU, what they weigh), kept until another window is asked for."""
        if self._at is None or self._at[0] is not window:
            assert self._targets is not None, "a task without masks of the training images cannot train"
            kept = [self._targets.image(int(row)) for row in window.rows]
            masks = torch.from_numpy(augmented_masks(self._augment, kept, samples=window.draws, epoch=window.epoch))
            weights = self._class_weights.cpu() if self._class_weights is not None else None
            self._at = window, masks, window_weights(masks, self._terms, ignored=IGNORED, class_weights=weights)
        return self._at[1], self._at[2]

    def loss(self, module: nn.Module, pack: Pack) -> PackLoss:
        """Summed loss of a pack and its valid pixels that are right, on the device."""
        device = self._runtime.device
        images = self._augment(pack.images.to(device), samples=pack.draws, epoch=pack.window.epoch)
        masks, weights = self._of(pack.window)
        # An idle pack holds an image that does not count.
        own = masks[pack.start : pack.stop] if not pack.idle else torch.full((len(images), *masks.shape[1:]), IGNORED, dtype=torch.uint8)
        targets = own.to(device, non_blocking=True).long()
        with self._runtime.autocast():
            output = module(images.to(memory_format=self._runtime.memory_format))
        logits, auxiliary = output if isinstance(output, tuple) else (output, None)
        settings: dict[str, Any] = {
            "ignored": IGNORED, "class_weights": self._class_weights, "label_smoothing": self._smoothing, "weights": weights,
        }  # fmt: skip
        loss = pixel_loss(logits, targets, self._terms, **settings)
        if auxiliary is not None and self._auxiliary:
            loss = loss + self._auxiliary * pixel_loss(auxiliary, targets, self._terms, **settings)
        return PackLoss(loss, _right(logits.detach(), targets), int((own != IGNORED).sum()))

    def after_step(self, module: nn.Module, step: int, total_steps: int) -> None:
        """Nothing follows the weights."""

    def watch(self, module: nn.Module, workers: int) -> dict[str, float]:
        """Nothing is watched between evaluations."""
        return {}

    def alarms(self, lines: Sequence[dict[str, Any]]) -> list[str]:
        """None: a training that fails says so itself."""
        return []

    @torch.inference_mode()
    def predictions(
        self,
        module: nn.Module,
        split: Split,
        pixels: Pixels,
        windows: Sequence[Window],
        *,
        workers: int,
        keep: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> MaskPredictions | MaskTotals:
        """Predictions for the samples of some windows of a split, scored against their masks; without `keep` MaskTotals.

        The module is put into eval mode and stays there.
        """
        module.eval()
        assert split.masks is not None
        forward, rows, C = forward_of(module, self._runtime), [], len(self._classes)
        found: list[_Scored] = []
        losses, total = [], np.zeros((C + 1, C), np.int64)
        with Reader(pixels, workers=workers) as reader:
            reader.plan(list(windows), max(map(len, windows), default=1))
            for number, window in enumerate(windows, 1):
                for pack in reader.packs(window, len(window)):
                    rows += pack.rows.tolist()
                    if any(tuple(shape) != self._view.size for shape in pack.images.shapes):
                        self._tiled.add(split.name)
                    truths = [split.masks.open(int(row)) for row in pack.rows]
                    sizes = [(truth.shape[0], truth.shape[1]) for truth in truths]
                    for one, truth in zip(predict_images(forward, pack.images.to(self._runtime.device), sizes, self._view, truths), truths, strict=True):
                        losses.append(one.loss)
                        if keep:
                            found.append(self._scored(one, truth))
                        else:
                            total += one.confusion(truth, C)
                if progress is not None:
                    progress(f"evaluating {split.name}", number, len(windows))
        names = [split.names[row] for row in rows]
        return _table(names, found, C) if keep else MaskTotals(names, np.array(losses, np.float64), total)

    def _scored(self, one: FullSize, truth: np.ndarray) -> _Scored:
        C = len(self._classes)
        tolerance = boundary_tolerance(self._scoring.boundary_tolerance, *truth.shape)
        boundary = boundary_counts(truth, one.mask, C, tolerance)
        # int32: the counts of one image fit, and of many classes they are what takes memory.
        return _Scored(one.confusion(truth, C).astype(np.int32), one.loss, boundary, one.calibration, one.digest, self._format.write(one.mask))

    def quick(self, predictions: MaskTotals) -> dict[str, float]:
        """{loss, accuracy, miou} for the curves; accuracy is that of pixels."""
        found, valid = overlaps(predictions.confusion, self._convention), max(int(predictions.confusion[:-1].sum()), 1)
        return {"loss": float(predictions.loss.sum() / valid), "accuracy": found.pixel_accuracy, "miou": found.miou}

    def measure(self, predictions: MaskPredictions, split: str, note: str) -> list[Measurement]:
        """All reported numbers of a split; `note` says which weights they belong to."""
        height, width = self._view.size
        tiles = f"larger images predicted in tiles of {height}x{width} that share at least {self._view.overlap:g} of a side" if split in self._tiled else ""
        return measure_masks(predictions, classes=self._classes, scoring=self._scoring, split=split, seed=self._seed, note=note, how=tiles)

    def save(self, run: Run, split: str, predictions: MaskPredictions) -> list[Path]:
        """What was counted as arrays, a table, and the masks as files."""
        return run.write_mask_predictions(split, predictions, list(self._classes), self._format)

    def mistakes(self, predictions: MaskPredictions, most: int) -> np.ndarray:
        """Places of the images with the lowest pixel accuracy, the worst first."""
        return hardest_rows(predictions, most, self._convention.void_classes)

    def thumbnails(self, split: Split, row: int, predictions: MaskPredictions, side: int) -> dict[str, PIL.Image.Image]:
        """The image, its mask and the predicted one in the colours of the classes."""
        assert split.masks is not None
        image, name = split.open(row), split.names[row]
        image.thumbnail((side, side))
        predicted = self._format.read(predictions.masks[predictions.files.index(name)], name)
        drawn = {"-truth.png": split.masks.open(row), "-predicted.png": predicted}
        return {".webp": image} | {ending: self._drawn(mask, image.size) for ending, mask in drawn.items()}

    def _drawn(self, mask: np.ndarray, size: tuple[int, int]) -> PIL.Image.Image:
        small = PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST)
        return PIL.Image.fromarray(coloured(np.asarray(small), self._format.colours)).quantize(256)


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    """() how many valid pixels argmax over classes, the first of equal ones, gives to their class.

    On the CPU class by class: argmax over a dimension that is not the last took a twentieth of a step.
    """
    if logits.device.type != "cpu":
        return torch.count_nonzero(logits.argmax(1) == targets)  # no class is IGNORED
    best, right = logits[:, 0].clone(), targets == 0
    for c in range(1, logits.shape[1]):
        larger = logits[:, c] > best
        right = torch.where(larger, targets == c, right)
        torch.maximum(best, logits[:, c], out=best)
    return torch.count_nonzero(right)


def _check_scorable(split: Split, scored: Convention) -> None:
    """DataError for a split without a pixel that counts: it has no number."""
    assert split.masks is not None
    counted = scored.counted(split.masks.pixels.shape[1] - 1)
    if not split.masks.pixels[:, :-1][:, counted].any():
        raise DataError(f"{split.name}: its masks have no pixel of a class that counts; add masks, or drop the split, or change data.ignored or scoring")


@dataclass(frozen=True)
class _Scored:
    """One row of MaskPredictions."""

    confusion: np.ndarray
    loss: float
    boundary: np.ndarray
    calibration: np.ndarray
    digest: bytes
    mask: bytes


def _table(files: list[str], found: Sequence[_Scored], num_classes: int) -> MaskPredictions:
    C = num_classes
    masks = tuple(one.mask for one in found)
    if not found:
        return MaskPredictions(
            [], np.zeros((0, C + 1, C), np.int32), np.zeros(0), np.zeros((0, C, 4), np.int64), np.zeros((0, CONFIDENCE_BINS, 3)), np.zeros((0, 16), np.uint8)
        )
    confusion, loss, boundary, calibration = (np.stack([getattr(one, name) for one in found]) for name in ("confusion", "loss", "boundary", "calibration"))
    return MaskPredictions(files, confusion, loss, boundary, calibration, np.frombuffer(b"".join(one.digest for one in found), np.uint8).reshape(-1, 16), masks)


def view_of(recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> View:
    """How images of a recipe reach its model when they are predicted."""
    assert recipe.scoring is not None
    d = recipe.data
    return View(d.size, d.fit, d.resize_size, tuple(mean), tuple(std), recipe.scoring.tile_overlap)


def forward_of(module: nn.Module, runtime: Runtime) -> Forward:
    """Normalised images (b, 3, h, w) -> float32 logits (b, C, h, w) on the device."""

    def forward(images: Tensor) -> Tensor:
        with runtime.autocast():
            logits: Tensor = module(images.to(memory_format=runtime.memory_format))
        return logits.float()

    return forward


def _class_weights(recipe: Recipe, dataset: Dataset) -> Tensor | None:
    """(C,) float32 weights of pixels by their class."""
    given, masks = recipe.loss.class_weights, dataset.splits["train"].masks
    assert masks is not None
    pixels = torch.from_numpy(masks.pixels[:, :-1])
    if given == "none":
        return None
    if given == "balanced":
        return balanced_class_weights(pixels.sum(0))
    if given == "median_frequency":
        return median_frequency_weights(pixels)
    if len(given) != len(dataset.classes):
        raise DataError(f"loss.class_weights has {len(given)} numbers, the data has {len(dataset.classes)} classes: {', '.join(dataset.classes[:20])}")
    if not any(weight and n for weight, n in zip(given, pixels.sum(0).tolist(), strict=True)):
        raise DataError("loss.class_weights is 0 for every class that has pixels in train; give more than 0 for those that are to be learned")
    return torch.tensor([float(weight) for weight in given])


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────


def build(recipe: Recipe, num_classes: int, *, start_weights: bool = True) -> tuple[Built, WeightsReport | None]:
    """The recipe's model, and what its weights file gave; `start_weights=False` leaves it at its initialisation."""
    m = recipe.model
    built = build_segmenter(
        m.name, num_classes=num_classes, pretrained=m.pretrained if start_weights else False, encoder=m.encoder, options=m.options, image_size=recipe.data.size,
        backbone_weights=Path(m.backbone_weights) if m.backbone_weights and start_weights else None,
    )  # fmt: skip
    report = load_weights(built.module, Path(m.weights), classifier=built.classifier) if m.weights and start_weights else None
    return built, report


# ── new images ────────────────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def predict(run: Run, module: nn.Module, images: Any, *, runtime: Runtime) -> list[MaskPrediction]:
    """Masks by the run's model for paths, folders (searched for images) and PIL images, in the given order, at the size of each image."""
    recipe, data = run.recipe, run.data
    assert data.mask_format is not None
    view, forward = view_of(recipe, data.mean, data.std), forward_of(module.eval(), runtime)
    predictions = []
    for name, load in opened(images):
        image = load()
        stored = resize(image, recipe.data.size, recipe.data.fit, recipe.data.resize_size, recipe.data.interpolation)
        (found,) = predict_images(forward, pack_images([stored]).to(runtime.device), [(image.height, image.width)], view)
        counts = np.bincount(found.mask.ravel(), minlength=len(data.classes))
        shares = {label: float(count / found.mask.size) for label, count in zip(data.classes, counts, strict=True)}
        file = data.mask_format.file_of(PurePosixPath(name).name)
        predictions.append(MaskPrediction(name, file, found.mask, data.mask_format.write(found.mask), found.confidence, shares))
    return predictions


def confidence_png(confidence: np.ndarray) -> bytes:
    """An 8-bit grey PNG of confidence (H, W) in [0, 1]; 255 is 1."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.rint(confidence * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
