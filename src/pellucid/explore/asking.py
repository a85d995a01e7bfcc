"""A new picture and a run's model: what the model says of it, where it looked, and which training pictures are most like it. The only part that needs torch.

What is found is written as `pellucid inside` writes it, into a folder that the caller makes and removes, and read back by the builders of the views, so that a
new picture is shown by the same code as those of a run. Loading a model executes nothing from its file (`models.weights`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

import pellucid
from pellucid.atlas import read_tiles
from pellucid.data.images import decode
from pellucid.errors import RunError, UsageError
from pellucid.explore.live import safe
from pellucid.explore.uploads import NAME
from pellucid.inside.features import penultimate
from pellucid.inside.looking import Pictures, look
from pellucid.inside.pixel_scores import PixelScores
from pellucid.inside.survey import fitting
from pellucid.look import map_layer, map_methods, without_prediction, write
from pellucid.look_words import Speaker, look_into_words, speaker_of
from pellucid.mask_findings import EpochNumbers, MaskedPicture, MaskFindings, reduced_mask
from pellucid.neighbour_findings import NEIGHBOUR_ATLAS, NEIGHBOUR_SIDE, has_neighbours, load_neighbours, nearest_kept
from pellucid.run import Run, rounded
from pellucid.subjects import Subject, subject
from pellucid.tasks import MODELS, segmentation
from pellucid.views import EXPLORER, View, attention, encoding, masks, words

MOST_NAMED = 5  # classes of one picture
QUICK = ("attention", "grad_cam")  # maps that are drawn while a person waits, the first without a class too; `pellucid inside` draws all
NO_MAP = "There is no map of where it looked: none that is quick can be made of this model. `pellucid inside RUN PICTURE` tries the others, and says why."
NO_ATTENTION = "There is no map of where it looked: that of a model that names no class is its attention, and this one has none that could be shown."
Looked = tuple[list[str], dict[str, View | None]]  # sentences, views by name


@dataclass(frozen=True)
class Loaded:
    """A run's model, with what its weights file was when it was loaded."""

    key: tuple[Any, ...]
    subject: Subject
    classifier: tuple[str, ...]


@dataclass(frozen=True)
class Spoken:
    """A captioner of a run, with what its weights file was when it was loaded."""

    key: tuple[Any, ...]
    speaker: Speaker


class Asker:
    """Looks at one picture after another; the model of the run that was asked last stays loaded."""

    def __init__(self) -> None:
        self._loaded: Loaded | Spoken | None = None

    def look(self, run: Run, picture: bytes, ending: str, folder: Path) -> dict[str, Any]:
        """{"lines": sentences, "views": {name: View}, "near": the training pictures most like it, or null} of the bytes of a picture.

        folder: an empty one outside the runs, for what is made on the way.
        Raises MissingError (a run without final weights), WeightsError, RunError, DataError.
        """
        _built_of_itself(safe(run))
        near = None
        if run.recipe.captioned:
            lines, found = _worded(self._speaker(run), picture, ending, folder)
        else:
            loaded = self._model(run)
            photo = decode(picture, NAME + ending)
            lines, found = (_masked if run.recipe.masked else _classified)(run, loaded, photo, folder)
            near = None if run.recipe.masked else _near(run, loaded, photo)
        headline = next(iter(run.measurements.values()), None)
        if headline is not None:
            interval = encoding.number(headline)["interval"]  # type: ignore[index]
            lines.append(
                f"How far to trust it: {headline.title} is {headline}{f' ({interval})' * bool(interval)}, over {headline.n:,} pictures like "
                "those of the training. Nobody says what is right for this one."
            )
        return {"lines": lines, "views": {name: view for name, view in found.items() if view}, "near": near}

    def _model(self, run: Run) -> Loaded:
        key = _key(run)
        if not isinstance(self._loaded, Loaded) or self._loaded.key != key:
            self._loaded = None  # before the next one takes its memory
            chosen = subject(run.path)
            classifier = MODELS[run.recipe.task](run.recipe, run.data.outputs, start_weights=False)[0].classifier if chosen.num_classes else ()
            self._loaded = Loaded(key, chosen, tuple(classifier))
        return self._loaded

    def _speaker(self, run: Run) -> Speaker:
        key = _key(run)
        if not isinstance(self._loaded, Spoken) or self._loaded.key != key:
            self._loaded = None
            self._loaded = Spoken(key, speaker_of(run.path))
        return self._loaded.speaker


def _key(run: Run) -> tuple[Any, ...]:
    """What changes when the final weights of a run do."""
    file = run.final_weights
    stat = file.stat() if file.is_file() else None
    return run.path, None if stat is None else (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _built_of_itself(run: Run) -> None:
    """RunError where the recipe names a folder outside the run, from which its model would be built: who made the run may have named any."""
    for name in _texts(run.recipe.model.model_dump(mode="json")):
        folder = Path(name.removeprefix("transformers/")).expanduser()
        if folder.is_dir() and not folder.resolve().is_relative_to(run.path.resolve()):
            raise RunError(
                f"{run.path}: its model is built from the folder {name}; the explorer reads nothing outside a run. `pellucid inside RUN PICTURE` does."
            )


def _texts(value: Any) -> Iterator[str]:
    """Each text in a value of JSON."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _texts(item)


# ── by task ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _classified(run: Run, loaded: Loaded, photo: PIL.Image.Image, folder: Path) -> Looked:
    """What a classifier, or a pre-trained backbone, says of a photograph."""
    chosen = loaded.subject
    inputs = chosen.inputs([chosen.view(photo)])
    found = chosen.predict(inputs)
    probabilities = None if found is None else found.numpy()
    if probabilities is None:
        alike = " What it takes for alike stands below." if has_neighbours(run.inside) else ""
        lines = [f"This model was trained without labels and names no class.{alike}"]
    else:
        order = np.argsort(-probabilities[0], kind="stable")[:MOST_NAMED]
        named = [f"{chosen.label(int(i))} {rounded(float(probabilities[0, i]))}" for i in order]
        lines = [f"It says {named[0]}." if len(named) < 2 else f"It says {named[0]}; then {', '.join(named[1:])} (probabilities)."]
    methods = _quick(chosen, inputs)
    if not methods:
        return [*lines, NO_MAP if chosen.num_classes else NO_ATTENTION], {}
    _look(run, chosen, photo, inputs, probabilities, folder, methods=methods)
    return lines, {"attention": attention.of_folder(folder, EXPLORER)}


def _masked(run: Run, loaded: Loaded, photo: PIL.Image.Image, folder: Path) -> Looked:
    """What a segmenter says of the pixels of a photograph."""
    chosen, data = loaded.subject, run.data
    assert isinstance(chosen.module, PixelScores)
    assert data.mask_format is not None
    (said,) = segmentation.predict(run, chosen.module.segmenter, [photo], runtime=chosen.runtime)
    shares = sorted(((share, name) for name, share in said.shares.items() if share), reverse=True)
    parts = ", ".join(f"{name} {rounded(share)}" for share, name in shares[:MOST_NAMED])
    lines = [f"Of its pixels: {parts}{', and others' * (len(shares) > MOST_NAMED)}.", f"Mean confidence of a pixel: {rounded(float(said.confidence.mean()))}."]
    epoch, of_file = run.record.epoch, MaskedPicture(NAME, (photo.height, photo.width), [], [EpochNumbers(run.record.epoch, None, None)])
    findings = MaskFindings(
        pellucid.__version__, list(data.classes), data.mask_format, [epoch], run.record.selected, [of_file], ["Nobody says what is right for this picture."]
    )
    confidence = np.rint(said.confidence * 255).astype(np.uint8)
    arrays = {"predicted/0": reduced_mask(said.mask.astype(np.uint8))[None], "confidence/0": reduced_mask(confidence)[None]}
    findings.save(folder, arrays, [np.asarray(photo)])
    inputs = chosen.inputs([chosen.view(photo)])
    found: dict[str, View | None] = {"masks": masks.of_folder(folder, EXPLORER)}
    try:
        layer = map_layer(chosen.module, inputs, chosen.backbone)
        scores = chosen.predict(inputs)
        _look(run, chosen, photo, inputs, None if scores is None else scores.numpy(), folder, methods=map_methods(run.recipe), layer=layer)
    except UsageError:
        return [*lines, NO_MAP], found
    return lines, found | {"attention": attention.of_folder(folder, EXPLORER)}


def _worded(speaker: Speaker, picture: bytes, ending: str, folder: Path) -> Looked:
    """What a captioner says of a photograph, and where it looked for each word."""
    file = folder / f"picture{ending}"
    file.write_bytes(picture)
    findings = look_into_words(speaker, [file], folder, figures=False)
    findings.images = [replace(image, file=NAME) for image in findings.images]
    findings.notes = [note.replace(str(file), NAME) for note in findings.notes]
    findings.save(folder)
    return [f"It says: {findings.images[0].caption or 'nothing'}"], {"words": words.of_folder(folder, EXPLORER)}


def _quick(chosen: Subject, inputs: torch.Tensor) -> list[str]:
    """Those of QUICK that fit the model."""
    methods = []
    for method in QUICK if chosen.num_classes else QUICK[:1]:
        with contextlib.suppress(UsageError):  # which advises what the explorer cannot do
            methods += fitting(chosen.module, inputs, [method])[0]
    return methods


def _look(
    run: Run, chosen: Subject, photo: PIL.Image.Image, inputs: torch.Tensor, probabilities: np.ndarray | None, folder: Path,
    *, methods: list[str] | None, layer: str | None = None,
) -> None:  # fmt: skip
    """Write the folder of findings of one photograph: maps, attention, no figures and no deletion, which take longer than a person waits."""
    size = (photo.height, photo.width)
    pictures = Pictures((NAME,), (size,), (chosen.view_box(size),), chosen.view(photo)[None], (None,), np.array([-1]))
    found = look(
        chosen.module, inputs, pictures, name=chosen.name, weights=chosen.weights, classes=chosen.classes, probabilities=probabilities, methods=methods,
        layer=layer, deletion=False, split="photographs", seed=run.recipe.seed,
    )  # fmt: skip
    if isinstance(chosen.module, PixelScores):
        without_prediction(found, layer)
    write(found, folder, [np.asarray(photo)])


@torch.inference_mode()
def _near(run: Run, loaded: Loaded, photo: PIL.Image.Image) -> dict[str, Any] | None:
    """{"how", "items"}: the kept training pictures whose penultimate features are most like the photograph's; None where the run kept none."""
    if not has_neighbours(run.inside):
        return None
    kept, chosen = load_neighbours(run.inside), loaded.subject
    with chosen.runtime.autocast():
        inputs = chosen.inputs([chosen.view(photo)])
        features = penultimate(chosen.module, inputs, loaded.classifier) if loaded.classifier else chosen.module(inputs).float()
    (near,) = nearest_kept(features.float().cpu().numpy(), kept.features)
    tiles = read_tiles(run.inside / NEIGHBOUR_ATLAS, NEIGHBOUR_SIDE, [one.index for one in near])
    classes, items = run.data.classes, []
    for one, tile in zip(near, tiles, strict=True):
        label = classes[kept.labels[one.index]] if kept.labels[one.index] < len(classes) else ""
        name = kept.findings.files[one.index]
        items.append({"src": encoding.picture(tile), "alt": f"{name}, {label}", "lines": [label, f"cosine {rounded(one.cosine)}", name]})
    searched = f"{kept.findings.n:,} of {kept.findings.of:,} training pictures were searched"
    return {"how": f"The training pictures most like it by the features that the classifier sees, most similar first; {searched}.", "items": items}
