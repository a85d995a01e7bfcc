"""Images and their masks on disk, drawn rather than shipped."""

from pathlib import Path

import numpy as np
from PIL import Image

from pellucid.recipe import DataSection


def photo(path, seed, size=(6, 8), **options):
    """A picture of its own; size: (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path, **options)


def mask(path, values, palette=None, size=(6, 8)):
    """A mask whose rows go through these values, or colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.array([values[i % len(values)] for i in range(size[0])], np.uint8)
    image = Image.fromarray(np.repeat(rows[:, None], size[1], axis=1))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def lay(root, count=4, values=(0, 1), image="{}.png", target="../{}_masks/{}.png", first=0):
    """Pairs below a folder: `image` and `target` are names, the latter relative to the folder; its first `{}` is the folder's name, the last the stem."""
    for i in range(count):
        stem = f"{i:04}"
        photo(root / image.format(stem), first + i)
        mask(root / (target.format(root.name, stem) if target.startswith("..") else target.format(stem)), values)


def section(**settings):
    return DataSection(source="pairs", **{key: str(value) if isinstance(value, Path) else value for key, value in settings.items()})
