"""Small complete runs of a segmentation without a training: drawn images of several sizes with masks, a random network, its predictions as training scores them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pellucid import recipe
from pellucid.data.dataset import Dataset, Masks, Split
from pellucid.data.images import resize
from pellucid.data.loader import ordered_windows, pack_images
from pellucid.overlap import boundary_counts, boundary_tolerance, measure_masks
from pellucid.palettes import IGNORED, MaskFormat
from pellucid.predictions import MaskPredictions
from pellucid.run import DONE, DataRecord, Run, RunRecord
from pellucid.tasks.fullsize import predict_images
from pellucid.tasks.segmentation import view_of

CLASSES = ("background", "road", "tree", "unknown", "car")
MASK_FORMAT = MaskFormat("P", [0, 1, 2, 3, 4], [11], palette=[value for i in range(12) for value in (20 * i, 255 - 20 * i, i)])
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.3, 0.2]
BATCH = 3
RECIPE = """
task: segmentation
data: {source: pairs, train: images/train, val: images/val, image_size: [24, 32]}
model: {name: pellucid/fcn32s}
train:
  batch_size: 4
  phases:
    - {epochs: 1, optimizer: {name: adamw, lr: 1.0e-3}}
"""


def make_masks_run(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = ((24, 32), (24, 32), (30, 44), (50, 33), (24, 32)),
) -> tuple[Run, Dataset, nn.Module]:
    """(run, its data, its model): one val split of images of these sizes (H, W). The class car is in no mask and never predicted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent / f".{path.name}.yaml"
    source.write_text(RECIPE)
    made = recipe.load(source, overrides)
    split, module = _split(sizes), network()
    dataset = Dataset(CLASSES, {"val": split}, mask_format=MASK_FORMAT)
    record = RunRecord("0.1.0", DONE, "segmentation", ["pellucid", "train"], "2026-11-20T10:00:00+00:00", evaluation_batch_size=BATCH)
    run = Run.create(path, record=record, recipe=made, recipe_text=RECIPE)
    data = DataRecord("pairs", list(CLASSES), {"val": split.record(len(CLASSES))}, [], [], MEAN, STD, "model", MASK_FORMAT)
    run.write_data(data, {"val": split.rows()})
    predictions = predict_split(made, module, split)
    run.write_mask_predictions("val", predictions, list(CLASSES), MASK_FORMAT)
    assert made.scoring is not None
    record.measurements = measure_masks(predictions, classes=CLASSES, scoring=made.scoring, split="val", seed=made.seed, note="last epoch")
    run.write_record(record)
    return run, dataset, module


def network() -> nn.Module:
    """A random network (B, 3, h, w) -> (B, 5, h, w) that finds something in every image, but never a car."""
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, len(CLASSES), 3, padding=1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
        module[2].bias[4] = -1000.0
    return module.eval()


@torch.inference_mode()
def predict_split(made: recipe.Recipe, module: nn.Module, split: Split) -> MaskPredictions:
    """Predictions for a split as training makes them."""
    assert made.scoring is not None
    assert split.masks is not None
    d, found = made.data, []

    def forward(images: Tensor) -> Tensor:
        return module(images).float()

    for window in ordered_windows(len(split), BATCH):
        rows = window.rows.tolist()
        truths = [split.masks.open(i) for i in rows]
        images = pack_images([resize(split.open(i), d.size, d.fit, d.resize_size, d.interpolation) for i in rows])
        ours = predict_images(forward, images, [truth.shape for truth in truths], view_of(made, MEAN, STD), truths)
        for one, truth in zip(ours, truths, strict=True):
            boundary = boundary_counts(truth, one.mask, len(CLASSES), boundary_tolerance(made.scoring.boundary_tolerance, *truth.shape))
            found.append((one.confusion(truth, len(CLASSES)), one.loss, boundary, one.calibration, one.digest, MASK_FORMAT.write(one.mask)))
    confusion, loss, boundary, calibration, digests, masks = zip(*found, strict=True)
    packed = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
    return MaskPredictions(list(split.names), np.stack(confusion), np.array(loss), np.stack(boundary), np.stack(calibration), packed, masks)


def _split(sizes: Sequence[tuple[int, int]]) -> Split:
    random = np.random.default_rng(0)
    images, masks = [], []
    for height, width in sizes:
        coarse = random.integers(0, 4, size=(-(-height // 8), -(-width // 8)))
        mask = np.kron(coarse, np.ones((8, 8), int))[:height, :width].astype(np.uint8)
        shades = np.array([[200, 40, 30], [60, 60, 60], [30, 160, 50], [120, 120, 200]])[mask] + random.integers(-25, 25, size=(height, width, 3))
        mask[random.random(mask.shape) < 0.05] = IGNORED
        images.append(Image.fromarray(shades.clip(0, 255).astype(np.uint8)))
        masks.append(mask)
    n, C = len(sizes), len(CLASSES)
    pixels = np.stack([np.bincount(np.where(mask == IGNORED, C, mask).ravel(), minlength=C + 1) for mask in masks])
    names, hashes = [f"street/{i:04d}.png" for i in range(n)], [f"{i:032x}" for i in range(1, n + 1)]
    return Split("val", names, pixels[:, 1:C].argmax(axis=1) + 1, hashes, images.__getitem__, Masks(pixels, hashes, masks.__getitem__))
