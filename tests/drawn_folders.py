"""Small labelled data sets on disk, drawn rather than shipped, in the three layouts that have files; and runs trained on them."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from pellucid.data import scenes
from pellucid.run import Run
from pellucid.train import train

CLASSES = ("circle", "square", "star")
SIZE = (40, 32)  # not the size that the model sees, so that cropping takes part

RECIPE = """\
task: classification
data: {{source: {source}, train: {train}, val: {val}, image_size: 32}}
model: {{name: timm/test_vit, options: {{patch_size: 8, embed_dim: 32, num_heads: 2, depth: 1}}}}
train:
  batch_size: 8
  threads: 1
  phases: [{{epochs: 1, optimizer: {{name: adamw, lr: 1e-3}}}}]
"""


def draw_data(folder: Path, source: str, *, train_images: int = 12, val_images: int = 9) -> Path:
    """`folder/train` and `folder/val` (for table: CSVs beside them) in the layout of `source`; JPEG in train, PNG in val."""
    for split, count, ending in (("train", train_images, "jpg"), ("val", val_images, "png")):
        rows = []
        for i in range(count):
            label = CLASSES[i % len(CLASSES)]
            scene = scenes.draw(6 * (i // len(CLASSES)) + scenes.SHAPES.index(label), split=split, image_size=SIZE)
            file = folder / split / {"folder": f"{label}/{i:02}", "prefix": f"{label}_{i:02}", "table": f"{i:02}"}[source]
            file = file.with_name(f"{file.name}.{ending}")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).save(file)
            rows.append((file.name, label))
        if source == "table":
            with (folder / f"{split}.csv").open("w", newline="") as table:
                csv.writer(table).writerows([("filename", "label"), *rows])
    return folder


def train_on(folder: Path, source: str, *overrides: str) -> Run:
    """A finished run in `folder/run` on data drawn into `folder/data`."""
    data = draw_data(folder / "data", source)
    ending = ".csv" if source == "table" else ""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(source=source, train=data / f"train{ending}", val=data / f"val{ending}"))
    return train(recipe, overrides=overrides, out=folder / "run", quiet=True)
