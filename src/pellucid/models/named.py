"""Models by name, with the head, the weights and the way of seeing photographs that they were published with.

`build_named` takes `timm/<name>`, `torchvision/<name>` and `transformers/<hub id, model type or folder>`. Unlike `backbones.build_classifier`, which
prepares a model for training on other classes, it keeps the published classifier: 1,000 logits of an ImageNet model, none of a DINOv2. What the library
says about resizing, cropping and normalising comes along as a `Preparation`. Random weights are drawn from a seed. transformers is imported when one of
its models is asked for, not before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import timm.data
import timm.models
import torch
import torchvision.models
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg
from torch import nn

from pellucid.errors import MissingError, UsageError, WeightsError, did_you_mean
from pellucid.models import backbones
from pellucid.models.backbones import Built, Color, build_classifier, model_names
from pellucid.models.hub import timm_tags
from pellucid.models.weights import load_weights, under

NAMED_HOMES = (*backbones.HOMES, "transformers")
IMAGENET_CLASSES = 1000
_HUB_PREFIX = "hf-hub:"


@dataclass(frozen=True)
class Preparation:
    """How a photograph becomes what a model sees.

    size: (H, W) of the input in pixels. mean, std: of RGB in [0, 1]. fit: crop (aspect kept, the middle cut out), stretch (aspect given up) or pad (the
    whole photograph on black). resize_size: length in pixels that the short side of `size` has before the middle is cut out (crop, stretch); None: the
    side itself, nothing is cut off but what the aspect asks for. interpolation: bilinear or bicubic, antialiased.
    """

    size: tuple[int, int]
    mean: Color
    std: Color
    fit: str = "crop"
    resize_size: int | None = None
    interpolation: str = "bilinear"

    def at(self, size: tuple[int, int] | None) -> Preparation:
        """The same for another input size; the share that the crop leaves stays."""
        if size is None or size == self.size:
            return self
        scaled = None if self.resize_size is None else max(min(size), round(self.resize_size * min(size) / min(self.size)))
        return replace(self, size=size, resize_size=scaled)


@dataclass(frozen=True)
class Named:
    """A model that was asked for by name.

    name: with its home. module: the library's own, in eval mode on the CPU. weights: a sentence about where they come from. num_classes: length of its
    logits, None where it has no trained or drawn classifier, so that it predicts nothing. classes: their names, where they are known. notes: one line
    about each thing that was decided.
    """

    name: str
    module: nn.Module
    weights: str
    preparation: Preparation
    num_classes: int | None
    classes: tuple[str, ...] | None
    notes: list[str]


def build_named(
    name: str,
    *,
    pretrained: bool,
    weights: Path | None,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
    options: Mapping[str, Any],
    seed: int,
) -> Named:
    """The model `name` (as `full_name` takes it) with its published weights, those of a file, or random ones.

    image_size, num_classes: None for the model's own. options: further arguments of its constructor, or values of its transformers config. Raises
    UsageError (unknown name, a setting that the model cannot take), MissingError (weights neither cached nor reachable) and WeightsError (do not fit).
    """
    name = full_name(name)
    home, _, model = name.partition("/")
    if pretrained and weights is not None:
        raise UsageError(f"{name}: expected published weights or those of a file, got both. Give pretrained=true or weights=FILE.")
    with random_start(seed), _on_the_command_line(name, pretrained):
        if home == "transformers":
            from pellucid.models.huggingface import build_transformers  # takes seconds to import

            return build_transformers(model, pretrained=pretrained, weights=weights, image_size=image_size, num_classes=num_classes, options=options, seed=seed)
        plan = _timm_plan(model, pretrained, image_size) if home == "timm" else _torchvision_plan(model)
        count = class_count(name, num_classes, plan.num_classes, pretrained)
        preparation = plan.preparation.at(image_size)
        built = _built(name, count, pretrained, options, preparation)
    module, notes, sentence, headless = built.module.eval(), list(built.notes), f"random weights, seed {seed}", count == 0
    if pretrained:
        sentence = f"published weights {plan.published}"
    elif weights is not None:
        sentence, more, headless = file_weights(module, weights, built.classifier)
        notes += more
    classes = plan.classes if pretrained else None
    return Named(name, module, sentence, preparation, None if headless else count, classes, notes)


# ── names ──
def full_name(target: str) -> str:
    """`target` with its home. A bare name belongs to the one library of timm and torchvision that knows it, else it is a model type of transformers.

    `hf-hub:timm/<name>`, as timm writes its models on the hub, is `timm/<name>`. A folder with config.json is transformers'. UsageError for a name that
    nobody knows, or that two know.
    """
    home, slash, model = target.removeprefix(f"timm/{_HUB_PREFIX}").removeprefix(_HUB_PREFIX).partition("/")
    if _HUB_PREFIX in target and home != "timm":
        raise UsageError(f"{target}: expected {_HUB_PREFIX}timm/<name>. For a model of another owner give timm/<architecture> and -s weights=FILE.")
    if slash and home in NAMED_HOMES and model:
        _check_known(home, model)
        return f"{home}/{model}"
    if (Path(target) / "config.json").is_file():
        return f"transformers/{target}"
    found = [] if slash else [h for h in backbones.HOMES if _knows(h, target)]
    if len(found) == 1:
        return f"{found[0]}/{target}"
    if len(found) > 1:
        raise UsageError(f"{target}: two libraries have a model of this name. Give {' or '.join(f'{h}/{target}' for h in found)}.")
    return _full_name_of_type(target)


def _full_name_of_type(target: str) -> str:
    """`transformers/<type>` for a bare model type; UsageError with the nearest known name for all else."""
    from pellucid.models.huggingface import image_types, is_model_type

    if is_model_type(target):
        return f"transformers/{target}"
    full = [*model_names(), *(f"transformers/{kind}" for kind in image_types())]
    bare = dict.fromkeys(name.partition("/")[2] for name in full)
    hint = did_you_mean(target, full if "/" in target else bare) or did_you_mean(target.rpartition("/")[2], bare)
    raise UsageError(
        f"{target}: expected a run folder, timm/<name>, torchvision/<name>, or transformers/<hub id, model type or folder>; there is no such model.{hint}"
    )


def _knows(home: str, model: str) -> bool:
    """Whether timm (with or without a tag) or torchvision has a classifier of this name."""
    if home == "torchvision":
        return model in torchvision.models.list_models(module=torchvision.models)
    architecture, dot, _ = model.partition(".")
    return timm.is_model(architecture) and (not dot or model in timm_tags(architecture))


def _check_known(home: str, model: str) -> None:
    if home == "transformers" or _knows(home, model):
        return
    architecture = model.split(".")[0]
    if home == "timm" and timm.is_model(architecture):
        tags = timm_tags(architecture)
        raise UsageError(f"timm/{model}: timm publishes no such weights; there are {', '.join(tags) or 'none'}.{did_you_mean(model, tags)}")
    other = next((h for h in backbones.HOMES if h != home and _knows(h, model)), None)
    known = [name.partition("/")[2] for name in model_names() if name.startswith(f"{home}/")]
    hint = f" There is {other}/{model}." if other else did_you_mean(model, known)
    raise UsageError(f"{home}/{model}: {home} has no classifier of this name.{hint}")


# ── what the libraries say of a model ──
@dataclass(frozen=True)
class _Plan:
    """What a library states: preparation, number of classes of the published head (0: none), their names, the name of the weights."""

    preparation: Preparation
    num_classes: int
    classes: tuple[str, ...] | None
    published: str


def _timm_plan(model: str, pretrained: bool, image_size: tuple[int, int] | None) -> _Plan:
    config = timm.models.get_pretrained_cfg(model)
    if pretrained and (config is None or not config.has_weights):
        tags = timm_tags(model.split(".")[0])
        instead = f" There are weights {', '.join(tags)}." if tags else ""
        raise UsageError(f"timm/{model} has no published weights.{instead} Give -s weights=FILE, or -s pretrained=false for random ones.")
    if config is None:
        size, mean, std = (224, 224), timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        return _Plan(Preparation(size, mean, std, resize_size=256), IMAGENET_CLASSES, None, model)
    tag = f"{config.architecture}.{config.tag}" if config.architecture and config.tag else model
    return _Plan(_timm_preparation(config, image_size), config.num_classes, _timm_classes(config), tag)


def _timm_preparation(config: PretrainedCfg, image_size: tuple[int, int] | None) -> Preparation:
    """timm's evaluation transform (timm.data.transforms_factory.transforms_imagenet_eval): the sides before the crop are floor(side / crop_pct)."""
    height, width = image_size or config.input_size[-2:]
    share = config.crop_pct or timm.data.DEFAULT_CROP_PCT
    fit = {"squash": "stretch", "border": "pad"}.get(config.crop_mode, "crop")
    before = math.floor(min(height, width) / share)
    resize_size = None if fit == "pad" or before == min(height, width) else before
    return Preparation((height, width), _color(config.mean), _color(config.std), fit, resize_size, config.interpolation)


def _timm_classes(config: PretrainedCfg) -> tuple[str, ...] | None:
    """Names of the classes of ImageNet and its larger sets, which timm tells by their number."""
    if config.num_classes == IMAGENET_CLASSES:
        return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
    subset = infer_imagenet_subset({"num_classes": config.num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i).split(",")[0] for i in range(config.num_classes))


def _torchvision_plan(model: str) -> _Plan:
    weights = torchvision.models.get_model_weights(model)["DEFAULT"]
    preset = weights.transforms()
    side, before = preset.crop_size[0], preset.resize_size[0]
    preparation = Preparation((side, side), _color(preset.mean), _color(preset.std), "crop", None if before == side else before, preset.interpolation.value)
    return _Plan(preparation, len(weights.meta["categories"]), tuple(weights.meta["categories"]), str(weights))


def _color(values: Sequence[float]) -> Color:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


# ── building ──
@contextmanager
def random_start(seed: int) -> Iterator[None]:
    """Initial weights drawn in the block depend on `seed` alone; the CPU's generator is afterwards where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def class_count(name: str, wanted: int | None, published: int, pretrained: bool) -> int:
    """The number of classes to build with; 0 for none. UsageError where published weights come with another number."""
    if pretrained and wanted is not None and wanted != published:
        has = f"have {published} classes" if published else "have no classifier"
        raise UsageError(f"{name}: its published weights {has}, got num_classes {wanted}. Remove it, or give -s weights=FILE or -s pretrained=false.")
    return published if wanted is None else wanted


def _built(name: str, count: int, pretrained: bool, options: Mapping[str, Any], preparation: Preparation) -> Built:
    size = preparation.size
    # Only timm publishes models without a classifier.
    built = build_classifier(name, num_classes=count, pretrained=pretrained, options=options, drop_rate=None, drop_path_rate=None, image_size=size)
    return built if count else replace(built, notes=[f"{name} has no classifier: it predicts nothing", *built.notes])


def file_weights(module: nn.Module, file: Path, classifier: Sequence[str]) -> tuple[str, list[str], bool]:
    """(sentence, notes, whether the model is left without a trained classifier) of loading a weights file.

    A classifier of another size would leave the model's own random and every prediction with it: WeightsError.
    """
    report = load_weights(module, file, classifier=classifier)
    if report.skipped_head:
        raise WeightsError(f"{file}: its classifier is of another class count: {', '.join(report.skipped_head)}. Give it as -s num_classes=N.")
    missing = [name for name in report.missing if under(name, classifier)]
    notes = report.lines()
    if missing:
        notes.append(f"{file.name} holds no classifier: the model predicts nothing")
    return f"weights of {file}", notes, bool(missing) or not classifier


@contextmanager
def _on_the_command_line(name: str, pretrained: bool) -> Iterator[None]:
    """Errors that were worded for recipes, with the remedies of a command line."""
    try:
        yield
    except MissingError as error:
        look = " To look into the untrained model: -s pretrained=false." if pretrained else ""
        raise MissingError(f"{_respelled(error)}{look}") from error
    except UsageError as error:
        raise UsageError(_respelled(error)) from error


def _respelled(error: Exception) -> str:
    """`give weights: FILE` as `give -s weights=FILE`."""
    return re.sub(r"\b(weights|pretrained): (FILE|false)\b", r"-s \1=\2", str(error))
