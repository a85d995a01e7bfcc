"""Figures on paper of pictures with words: neighbours and views of a pre-training, hardest images of a segmentation, best and worst captions.

They show what the report shows, by the same readers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.errors import RunError
from pellucid.paper_asked import Asked, split_of
from pellucid.report import captions, masks
from pellucid.report.pretraining import read_pretraining
from pellucid.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_HARDEST = 6


def near_figure(run: Run, asked: Asked) -> Figure:
    from pellucid.figures.galleries import Tile, gallery

    found = read_pretraining(run, run.record, run.recipe, run.data).neighboured
    assert found is not None
    lines = [
        [
            Tile(_decoded(one.shown.uri), [f"image: {one.label}"]),
            *(Tile(_decoded(near.shown.uri), [near.label, f"cosine {near.cosine}"], near.same) for near in one.near),
        ]
        for one in found.images
    ]
    return gallery(lines, title=f"Nearest training images of {found.split}", note=f"{found.how} Green: of its class.", least=0.55, width=asked.inches)


def views_figure(run: Run, asked: Asked) -> Figure:
    from pellucid.figures.galleries import Tile, gallery

    lines = [
        [Tile(_decoded(picture.uri), [said]) for picture, said in ((one.image, "image"), (one.first, "first view"), (one.second, "second view"))]
        for one in read_pretraining(run, run.record, run.recipe, run.data).viewed
    ]
    return gallery(lines, title="Training images and the two views that the first epoch made of each", width=asked.inches)


def hardest_figure(run: Run, asked: Asked) -> Figure:
    from pellucid.figures.galleries import Tile, gallery

    split, scoring = split_of(run, asked), run.recipe.scoring
    assert scoring is not None, "the schema gives every segmentation its scoring"
    found = masks.read_masks(run, run.data, run.record.measurements, split=split, seed=run.recipe.seed, scoring=scoring)
    if found is None or not found.hardest:
        raise RunError(f"{run.predictions_file(split)}: no image of {split} has a wrong pixel")
    lines = []
    for one in found.hardest[:MOST_HARDEST]:
        numbers = [f"pixel accuracy {one.pixel_accuracy}", f"mIoU {one.miou or 'none'}"]
        lines.append([Tile(_decoded(uri), [name, *(numbers if name == "predicted" else [])]) for name, uri in one.pictures])
    title = f"The {len(lines)} images of {split} with the lowest pixel accuracy, of {found.n:,}"
    return gallery(lines, title=title, note="Ignored pixels are white.", width=asked.inches)


def captions_figure(which: str) -> Callable[[Run, Asked], Figure]:
    """The figure of the `best` or the `worst` captions."""

    def draw(run: Run, asked: Asked) -> Figure:
        from pellucid.figures.galleries import Tile, gallery

        split = split_of(run, asked)
        found = captions.read_captions(run, run.data, run.recipe, run.record.measurements, split=split)
        if found is None or not (chosen := getattr(found, which)):
            raise RunError(f"{run.predictions_file(split)}: too few captions of {split} to tell the {which} ones")
        tiles = [Tile(_decoded(one.uri), [one.caption or "no word", f"CIDEr-D {one.score}"]) for one in chosen]
        title = f"The {len(tiles)} {which} captions of {split} by CIDEr-D of the picture, of {found.n:,}"
        return gallery([tiles], title=title, width=asked.inches)

    return draw


def _decoded(uri: str | None) -> NDArray[np.uint8] | None:
    """The pixels of a picture of the page, on white where it is transparent."""
    if uri is None:
        return None
    with PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as opened:
        image = opened.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    return np.asarray(PIL.Image.alpha_composite(white, image).convert("RGB"))
