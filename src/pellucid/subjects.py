"""Subjects: anything that can be looked into, a trained run or any model by name, with the way in which it sees a photograph.

A `Subject` holds the library's own module, unedited, and says what the model sees of a photograph, pixel by pixel: a map over the view can be laid over
the photograph itself (`view_box`), and a mask of the photograph moves with it (`view_mask`). A run sees as its training's evaluation did, with the same
bits; a model by name as its library states, where `-s` settings do not say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, overload

import numpy as np
import PIL.Image
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from pellucid import recipe as recipes
from pellucid.data.augment import evaluate_view
from pellucid.data.images import as_rgb, centre, resize, view_box, view_mask
from pellucid.data.loader import pack_images
from pellucid.errors import DataError, MissingError, Problem, RecipeError, UsageError, did_you_mean
from pellucid.inside.outputs import logits_of
from pellucid.inside.pixel_scores import PixelScores
from pellucid.models.named import Named, Preparation, build_named
from pellucid.run import Run
from pellucid.runtime import Runtime, start
from pellucid.schema import Count, Normalization, Section
from pellucid.tasks import backbone_of, load_model, runtime_of

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NO_CHANGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class SubjectSection(Section):
    """What may be said of a model that is given by name: `-s key=value`."""

    pretrained: bool = Field(True, description="Published weights (downloaded or from the library's local cache); false: random ones.")
    weights: str | None = Field(None, description="Weights from a local .safetensors, .pth or .pt file instead.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(1, description="Seed of random weights.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the model's constructor, or values of its transformers config.")
    num_classes: Count | None = Field(None, description="Classes of random weights or of a file's; default: the published number, or 1000.")
    classes: str | None = Field(None, description="Text file with the names of the classes, one a line.")
    image_size: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Side in pixels of what the model sees, or [height, width]; default: the model's own."
    )
    fit: Literal["crop", "stretch", "pad"] | None = Field(None, description="How a photograph meets image_size; default: as the model was published.")
    resize_size: Count | None = Field(None, description="crop: length in pixels of the short side before the centre crop; default: the model's own.")
    interpolation: Literal["bilinear", "bicubic"] | None = Field(None, description="Filter when photographs are resized; default: the model's own.")
    normalize: Literal["model", "imagenet", "none"] | Normalization = Field(
        "model", description="Mean and std: the model's own, ImageNet's, none, or given as {mean, std}."
    )

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> Self:
        if self.weights is not None and self.pretrained and "pretrained" in self.model_fields_set:
            raise ValueError("give pretrained=true or weights=FILE, not both")
        if self.weights is not None and "seed" in self.model_fields_set:
            raise ValueError("seed belongs to random weights, not to weights=FILE")
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, None for the model's own."""
        if isinstance(self.image_size, list):
            return self.image_size[0], self.image_size[1]
        return None if self.image_size is None else (self.image_size, self.image_size)


_S = TypeVar("_S", bound=SubjectSection)


@dataclass(frozen=True)
class Subject:
    """A model that can be looked into.

    module: in eval mode on the device. size: (H, W) of its input in pixels. mean, std: of RGB in [0, 1]. fit, resize_size, interpolation: as in
    `models.named.Preparation`. num_classes: length of its logits, None where it predicts nothing. classes: their names. run: where it is one. A segmenter is
    taken as something that scores images (`inside.pixel_scores`), with the path of its backbone in it.
    """

    name: str
    weights: str
    module: nn.Module
    runtime: Runtime
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str
    resize_size: int | None
    interpolation: str
    num_classes: int | None
    classes: tuple[str, ...] | None
    notes: list[str] = field(default_factory=list)
    run: Run | None = None
    backbone: str = ""

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    def view(self, image: PIL.Image.Image) -> np.ndarray:
        """The pixels that the model sees of an RGB photograph, before they are normalised: (H, W, 3) uint8."""
        return centre(resize(as_rgb(image), *self._resizing), self.size)

    def inputs(self, views: Sequence[np.ndarray]) -> Tensor:
        """(B, 3, H, W) float32 on the device, normalised, of views (H, W, 3) uint8. DataError for one of another size."""
        for view in views:
            if view.shape != (*self.size, 3) or view.dtype != np.uint8:
                raise DataError(f"expected views of {(*self.size, 3)} uint8, as Subject.view makes them; got {view.shape} {view.dtype}")
        images = pack_images(list(views)).to(self.device)
        return evaluate_view(images, size=self.size, mean=self.mean, std=self.std).to(memory_format=self.runtime.memory_format)

    def view_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(top, left, height, width) in pixels of a photograph of `size` (h, w): what the view shows of it.

        Pixel (y, x) of the view covers height / H x width / W pixels from (top + y height / H, left + x width / W) on. With `fit: pad` the box is larger
        than the photograph, and begins above or left of it.
        """
        target, fit, resize_size, _ = self._resizing
        return view_box(size, target, fit, resize_size, self.size)

    def view_mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) uint8: the values of a photograph's mask (h, w) uint8 where the view shows them, never mixed; the bars of `fit: pad` are 0."""
        return centre(view_mask(mask, *self._resizing[:3]), self.size)

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Tensor | None:
        """(B, C) float64 probabilities on the CPU of normalised inputs, each row sums to 1; None where the model has no classifier."""
        if self.num_classes is None:
            return None
        with self.runtime.autocast():
            output = self.module(inputs)
        return logits_of(output).float().cpu().double().softmax(1)

    def label(self, index: int) -> str | None:
        """The name of a class, "class 17" where it has none; None where the model has no classifier."""
        if self.num_classes is None:
            return None
        return self.classes[index] if self.classes else f"class {index}"

    @property
    def _resizing(self) -> tuple[tuple[int, int], str, int | None, str]:
        """The arguments of `data.images.resize`. A photograph that is stretched and then cropped is stretched to the larger size."""
        if self.fit != "stretch" or self.resize_size is None:
            return self.size, self.fit, self.resize_size, self.interpolation
        height, width = (side * self.resize_size // min(self.size) for side in self.size)
        return (height, width), "stretch", None, self.interpolation


def subject(target: str | Path, overrides: Sequence[str] = (), *, device: str = "auto") -> Subject:
    """What `target` names: a run folder, or a model with `key=value` overrides laid over what its library states of it.

    target: a folder with run.json, `timm/<name>`, `torchvision/<name>`, `transformers/<hub id, model type or folder>`, or a bare name that one library
    knows. device: auto, cpu or cuda. Raises RecipeError (overrides), UsageError (no such model, a setting that it cannot take), MissingError (weights
    that are not there), WeightsError (weights that do not fit), RunError.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch sees no CUDA device. Use auto or cpu, or see `pellucid doctor`.")
    section = settings(overrides)
    if (Path(target) / "run.json").is_file():
        return _of_run(Run(target), section, device)
    return _of_name(str(target), section, device)


@overload
def settings(overrides: Sequence[str]) -> SubjectSection: ...
@overload
def settings(overrides: Sequence[str], kind: type[_S]) -> _S: ...
def settings(overrides: Sequence[str], kind: type[SubjectSection] = SubjectSection) -> SubjectSection:
    """The checked `key=value` overrides, a section of `kind`. RecipeError names every fault, with the nearest known key."""
    values: dict[str, Any] = {}
    places: recipes.Places = {(): ("-s", None, None)}
    problems: list[Problem] = []
    for text in overrides:
        recipes.apply_override(values, places, problems, text)
    try:
        section = kind.model_validate(values)
    except ValidationError as error:
        one_of = "Normalization" if isinstance(values.get("normalize"), dict) else "literal"  # of the union's faults those of the kind that was meant
        meant = [dict(item) for item in error.errors(include_url=False) if item["loc"][0:1] != ("normalize",) or str(item["loc"][1]).startswith(one_of)]
        found = [_problem(item, values, places, kind) for item in meant]
        raise RecipeError(recipes.joined_problems([*problems, *found])) from None
    if problems:
        raise RecipeError(problems)
    return section


def _problem(error: dict[str, Any], values: dict[str, Any], places: recipes.Places, kind: type[SubjectSection]) -> Problem:
    """One pydantic error as a sentence with the override that it is in."""
    path = tuple(part for part in error["loc"] if part != "Normalization")
    place = recipes.place_of(places, path)
    match error["type"]:
        case "extra_forbidden":
            known = list((kind if len(path) == 1 else Normalization).model_fields)
            return Problem(*place, f"unknown key {path[-1]!r}.{did_you_mean(str(path[-1]), known) or ' Known: ' + ', '.join(known) + '.'}")
        case "missing":
            return Problem(*place, f"{'.'.join(map(str, path))} is missing")
    return recipes.as_problem(error | {"loc": path}, values, places, "-s", root=kind)


# ── a run ──
def _of_run(run: Run, section: SubjectSection, device: str) -> Subject:
    given = sorted(section.model_fields_set)
    if given:
        raise UsageError(
            f"{run.path} is a run: its recipe and its weights say what {given[0]} is, and its numbers hold for that alone. Remove -s {given[0]}, "
            "or give the model by name."
        )
    recipe, data = run.recipe, run.data
    backbone, unnamed = recipe.task == "pretraining", recipe.task in ("pretraining", "captioning")  # features and words name no class
    runtime = runtime_of(run)
    if device != "auto" and runtime.device.type != device:
        runtime = start(device=device, precision=runtime.precision, threads=runtime.threads, channels_last=runtime.channels_last)
    return Subject(
        name=recipe.model.name,
        weights=f"final weights of {run.path}, {run.record.selected}",
        module=runtime.place(PixelScores(load_model(run)) if recipe.masked else load_model(run).get_submodule("backbone" if backbone else "")),
        runtime=runtime,
        size=recipe.data.size,
        mean=tuple(data.mean),
        std=tuple(data.std),
        fit=recipe.data.fit,
        resize_size=recipe.data.resize_size,
        interpolation=recipe.data.interpolation,
        num_classes=None if unnamed else len(data.classes),
        classes=None if unnamed else tuple(data.classes),
        run=run,
        backbone=backbone_of(run) if recipe.masked else "",
    )


# ── a model by name ──
def _of_name(target: str, section: SubjectSection, device: str) -> Subject:
    weights = Path(section.weights).expanduser() if section.weights is not None else None
    pretrained = section.pretrained and weights is None
    classes = _lines(Path(section.classes).expanduser()) if section.classes is not None else None
    wanted = len(classes) if classes is not None and section.num_classes is None and not pretrained else section.num_classes
    named = build_named(
        target,
        pretrained=pretrained,
        weights=weights,
        image_size=section.size,
        num_classes=wanted,
        options=section.options,
        seed=section.seed,
    )
    if classes is not None and len(classes) != named.num_classes:
        has = f"{named.num_classes} classes" if named.num_classes else "no classifier"
        raise UsageError(f"{section.classes}: expected a name for each class, got {len(classes)}; {named.name} has {has}.")
    return of_named(named, section, device, classes)


def of_named(named: Named, section: SubjectSection, device: str, classes: tuple[str, ...] | None = None) -> Subject:
    """The subject that a model by name is, placed on the device, with the settings laid over how it sees. classes: names instead of its own."""
    seen = _prepared(named.preparation, section)
    runtime = start(device=device, precision="fp32", threads=None, channels_last=False)
    return Subject(
        name=named.name,
        weights=named.weights,
        module=runtime.place(named.module),
        runtime=runtime,
        size=seen.size,
        mean=seen.mean,
        std=seen.std,
        fit=seen.fit,
        resize_size=seen.resize_size,
        interpolation=seen.interpolation,
        num_classes=named.num_classes,
        classes=classes or named.classes,
        notes=named.notes,
    )


def _prepared(own: Preparation, section: SubjectSection) -> Preparation:
    """The model's own preparation with the settings laid over it."""
    seen = own
    if section.fit is not None and section.fit != own.fit:
        seen = replace(seen, fit=section.fit, resize_size=None)
    if section.resize_size is not None:
        if seen.fit == "pad" or section.resize_size < min(seen.size):
            raise UsageError(
                f"resize_size is at least the short side of the input, {min(seen.size)}, and goes with fit crop or stretch; got {section.resize_size}"
            )
        seen = replace(seen, resize_size=section.resize_size)
    if section.interpolation is not None:
        seen = replace(seen, interpolation=section.interpolation)
    if isinstance(section.normalize, Normalization):
        (r, g, b), (x, y, z) = section.normalize.mean, section.normalize.std
        return replace(seen, mean=(r, g, b), std=(x, y, z))
    mean, std = {"model": (own.mean, own.std), "imagenet": _IMAGENET, "none": _NO_CHANGE}[section.normalize]
    return replace(seen, mean=mean, std=std)


def _lines(file: Path) -> tuple[str, ...]:
    """The names in a text file, one a line; empty lines do not count."""
    if not file.is_file():
        raise MissingError(f"{file}: no such file with the names of the classes, one a line.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected a text file in UTF-8: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())
