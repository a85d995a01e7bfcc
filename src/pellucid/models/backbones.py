"""Classifiers by name: `timm/<name>` and `torchvision/<name>`, from scratch or with their published weights.

`build_classifier` returns the library's own module, unedited, with a classifier for the wanted classes, and says in `notes` whatever was decided on
the way. A setting that a model cannot take is an error, never ignored. Published weights come from the libraries' local caches, and from the network
only when they are not there.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import timm
import timm.data
import timm.models
import torch
import torchvision.models
from timm.layers.drop import DropPath
from timm.models import efficientnet, mobilenetv3
from torch import nn
from torchvision.ops import StochasticDepth

from pellucid.errors import PellucidError, UsageError, did_you_mean
from pellucid.models.hub import timm_file, timm_tags, torch_hub_file
from pellucid.models.weights import load_weights

HOMES = ("timm", "torchvision")
Color = tuple[float, float, float]
MODELS_OWN = "the model's own"  # normalisation, where no weights file states one

# timm fixes the width of these by their name; their generators take any, which is how narrower published weights (0.25, 0.5) are built.
WIDTH_GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "mobilenetv1_100": efficientnet._gen_mobilenet_v1,
    "mobilenetv2_100": efficientnet._gen_mobilenet_v2,
    "mobilenetv3_large_100": mobilenetv3._gen_mobilenet_v3,
    "mobilenetv3_small_100": mobilenetv3._gen_mobilenet_v3,
}
# These return extra outputs while training and expect another pixel scale than the rest; torchvision converts the scale when it loads their weights.
_AUXILIARY = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Built:
    """A model and what a recipe has to know of it.

    mean, std: the model's own normalisation of RGB pixels in [0, 1]. classifier: path prefixes of the layers whose shape depends on the number of
    classes. notes: one line about each thing that was decided. backbone: path of the part that came from a classifier, "" where that is all the rest.
    untrained: paths of parts that no gradient moves, whatever is frozen. normalized_by: where mean and std come from, in words.
    """

    module: nn.Module
    mean: Color
    std: Color
    classifier: tuple[str, ...]
    notes: list[str]
    backbone: str = ""
    untrained: tuple[str, ...] = ()
    normalized_by: str = MODELS_OWN


def build_classifier(
    name: str,
    *,
    num_classes: int,
    pretrained: bool,
    options: Mapping[str, Any],
    drop_rate: float | None,
    drop_path_rate: float | None,
    image_size: tuple[int, int],
) -> Built:
    """The model `name` for images of `image_size` (height, width), on the CPU, in training mode.

    options: further arguments of its constructor; lists become tuples. Its random initial weights come from torch's global generator.
    Raises UsageError (unknown name, or a setting that the model cannot take) and MissingError (published weights neither cached nor reachable).
    """
    home, model = _home(name)
    arguments = {key: tuples(value) for key, value in options.items()}
    reserved = [key for key in ("num_classes", "pretrained", "weights", "progress") if key in arguments]
    if reserved:
        raise UsageError(f"{name}: {reserved[0]} is not an option; it follows from the data and from model.pretrained or model.weights. Remove it.")
    build = _build_timm if home == "timm" else _build_torchvision
    return build(model, num_classes, pretrained, arguments, drop_rate, drop_path_rate, image_size)


def build_backbone(
    name: str, *, pretrained: bool, options: Mapping[str, Any], drop_rate: float | None, drop_path_rate: float | None, image_size: tuple[int, int]
) -> tuple[Built, int]:
    """(the model `name` without its classifier, which gives features (B, D), D). Arguments and errors as of `build_classifier`."""
    home, _ = _home(name)
    built = build_classifier(
        name, num_classes=0 if home == "timm" else 2, pretrained=pretrained, options=options, drop_rate=drop_rate, drop_path_rate=drop_path_rate,
        image_size=image_size,
    )  # fmt: skip
    if home == "timm":
        stated = getattr(built.module, "pretrained_cfg", {}).get("classifier") or ()
        built = replace(built, classifier=(stated,) if isinstance(stated, str) else tuple(stated))
    else:
        parent, _, child = built.classifier[0].rpartition(".")
        setattr(built.module.get_submodule(parent) if parent else built.module, child, nn.Identity())
    try:
        features = deepcopy(built.module).to("meta").eval()(torch.zeros((2, 3, *image_size), device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"model.name: {name} does not run on images of {image_size[0]}x{image_size[1]} pixels: {str(error).splitlines()[0]}") from None
    if features.ndim != 2:
        raise UsageError(
            f"model.name: {name} without its classifier gives {tuple(features.shape[1:])} for an image, not a row of features; choose another model."
        )
    return built, features.shape[1]


def normalization(name: str) -> tuple[Color, Color]:
    """(mean, std) of RGB pixels in [0, 1] that the model's published weights expect; ImageNet's where the model states none. Builds nothing."""
    home, model = _home(name)
    return timm_normalization(model)[:2] if home == "timm" else _torchvision_normalization(model)


def model_names() -> list[str]:
    """All names that `build_classifier` knows, sorted, without timm's tags of published weights."""
    names = [f"timm/{name}" for name in timm.list_models()] + [f"torchvision/{name}" for name in _torchvision_names()]
    return sorted(names)


def _home(name: str) -> tuple[str, str]:
    """(home, model) of a name that exists."""
    home, _, model = name.partition("/")
    if home not in HOMES or not model:
        raise UsageError(f"model.name: expected timm/<name> or torchvision/<name>, got {name!r}.{did_you_mean(name, model_names())}")
    if home == "torchvision":
        if model not in _torchvision_names():
            raise UsageError(f"model.name: torchvision has no classifier {model!r}.{_nearest(model, _torchvision_names())}")
        return home, model
    architecture = model.split(".")[0]
    if not timm.is_model(architecture):
        raise UsageError(f"model.name: timm has no model {architecture!r}.{_nearest(architecture, timm.list_models())}")
    tagged = timm_tags(architecture)
    if model != architecture and model not in tagged:
        raise UsageError(f"model.name: timm publishes no weights {model!r}; there are {', '.join(tagged) or 'none'}.{_nearest(model, tagged)}")
    return home, model


def _nearest(name: str, known: list[str]) -> str:
    return did_you_mean(name, known) or " `pellucid.models.model_names()` lists all names."


def tuples(value: Any) -> Any:
    """Lists as tuples, at any depth: YAML knows only lists, constructors compare with tuples."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


@contextlib.contextmanager
def constructing(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn a constructor's complaint into ours: the option it does not know, or its reason."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        fixed = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
        if unknown and unknown.group(1) in arguments:
            raise UsageError(f"{name} does not take {unknown.group(1)!r}. Remove it from the recipe's model section or choose another model.") from error
        if fixed and fixed.group(1) in arguments:
            raise UsageError(f"{name}: {fixed.group(1)!r} is fixed by the model's name. Remove it or choose another name.") from error
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no options"
        raise UsageError(f"{name} cannot be built with {given}: {error or type(error).__name__}") from error


# ── timm ──
def timm_config(model: str) -> Any:
    """timm's record of a model's weights and input, or None for a model without one."""
    return timm.models.get_pretrained_cfg(model)


def timm_normalization(model: str) -> tuple[Color, Color, list[str]]:
    config = timm_config(model)
    if config is None:
        mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        return mean, std, [f"timm/{model} states no normalisation: ImageNet's is its own"]
    return color(config.mean), color(config.std), []


def color(values: Any) -> Color:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _build_timm(
    model: str,
    num_classes: int,
    pretrained: bool,
    arguments: dict[str, Any],
    drop_rate: float | None,
    drop_path_rate: float | None,
    image_size: tuple[int, int],
) -> Built:
    name, config = f"timm/{model}", timm_config(model)
    for key, value in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if value is not None:
            arguments[key] = _once(name, key, value, arguments)
    if config is not None and config.fixed_input_size and (tuple(config.input_size[-2:]) != image_size or "img_size" in arguments):
        arguments["img_size"] = _once(name, "img_size", image_size, arguments)
    mean, std, notes = timm_normalization(model)
    with timm_says(notes):
        module = create_timm(model, num_classes, pretrained, arguments, notes)
    _check_drop(name, module, drop_rate, (nn.Dropout, nn.Dropout2d), "p", "drop_rate")
    _check_drop(name, module, drop_path_rate, (DropPath,), "drop_prob", "drop_path_rate")
    classifier = _timm_classifier(module)
    if not classifier and num_classes:
        raise UsageError(f"{name} has no classifier that can be replaced. Choose another model.")
    return Built(module.train(), mean, std, classifier, notes)


def _once(name: str, key: str, value: Any, arguments: Mapping[str, Any]) -> Any:
    if key in arguments and tuples(arguments[key]) != value:
        raise UsageError(f"{name}: options.{key} is {arguments[key]!r} and the recipe's own setting {value!r}. Give one of the two.")
    return value


def create_timm(model: str, num_classes: int, pretrained: bool, arguments: dict[str, Any], notes: list[str]) -> nn.Module:
    """timm's model, of another width where options.channel_multiplier asks for it; which published weights it starts from is added to `notes`."""
    name, architecture = f"timm/{model}", model.split(".")[0]
    narrower = "channel_multiplier" in arguments and architecture in WIDTH_GENERATORS
    if narrower and pretrained:
        raise UsageError(f"{name}: published weights are of width 1; options.channel_multiplier goes with pretrained: false or weights: FILE.")
    if narrower:
        with constructing(name, arguments):
            return WIDTH_GENERATORS[architecture](architecture, num_classes=num_classes, **arguments)
    overlay: dict[str, Any] | None = None
    if pretrained:
        file, custom = timm_file(model, timm_config(model))
        # A file given here stops timm from asking its hub whether a newer one exists.
        overlay = {"file": str(file), "custom_load": custom}
        notes.append(f"weights: {file.name} of {name}")
    with constructing(name, arguments):
        return timm.create_model(model, pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=num_classes, **arguments)


@contextlib.contextmanager
def timm_says(notes: list[str]) -> Iterator[None]:
    """Collect what timm logs while it builds and loads (missing, unexpected and resized tensors) as notes."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if not line.startswith(("Loading pretrained weights", "Loaded ")):  # the file is named already
                notes.append(f"timm: {line}")

    logger, collector = logging.getLogger("timm"), Collector()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers\.interpolate")  # about its own use of torch
            yield
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate


def _timm_classifier(module: nn.Module) -> tuple[str, ...]:
    """Paths of the classifier that timm states for a model, those that exist in this one."""
    stated = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    paths = (stated,) if isinstance(stated, str) else tuple(stated)
    names = {path for path, child in module.named_modules() if any(True for _ in child.parameters())}
    return tuple(path for path in paths if path in names)


def _check_drop(name: str, module: nn.Module, rate: float | None, kinds: tuple[type, ...], attribute: str, setting: str) -> None:
    """Raise where a model took a rate and has nothing that would use it."""
    if not rate:
        return
    modules = list(module.modules())
    if any(isinstance(part, kinds) and getattr(part, attribute) for part in modules) or any(getattr(part, setting, None) == rate for part in modules):
        return
    raise UsageError(f"{name} takes {setting} and makes no use of it. Remove it or choose another model.")


# ── torchvision ──
def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _torchvision_normalization(model: str) -> tuple[Color, Color]:
    preset = torchvision.models.get_model_weights(model)["DEFAULT"].transforms()
    return color(preset.mean), color(preset.std)


def _build_torchvision(
    model: str,
    num_classes: int,
    pretrained: bool,
    arguments: dict[str, Any],
    drop_rate: float | None,
    drop_path_rate: float | None,
    image_size: tuple[int, int],
) -> Built:
    name, builder = f"torchvision/{model}", torchvision.models.get_model_builder(model)
    accepted = _accepted(builder)
    for key in arguments:
        if key not in accepted:
            raise UsageError(f"{name} does not take {key!r}.{did_you_mean(key, accepted)} It takes {', '.join(sorted(accepted)) or 'no options'}.")
    if "image_size" in accepted:
        if image_size[0] != image_size[1]:
            raise UsageError(f"{name} takes square images, got image_size {image_size[0]}x{image_size[1]}. Give one number.")
        arguments["image_size"] = _once(name, "image_size", image_size[0], arguments)
    elif "input_size" in accepted:
        arguments["input_size"] = _once(name, "input_size", image_size, arguments)
    notes = _auxiliary_off(name, arguments) if model in _AUXILIARY else []
    if drop_rate is not None:
        if "dropout" not in accepted:
            raise UsageError(f"{name} has no dropout before its classifier, so drop_rate cannot be set. Remove it, or choose the model of timm.")
        arguments["dropout"] = _once(name, "dropout", drop_rate, arguments)
    if drop_path_rate is not None:
        if "stochastic_depth_prob" not in accepted:
            raise UsageError(f"{name} has no drop_path_rate (stochastic depth). Remove it, or choose the model of timm.")
        arguments["stochastic_depth_prob"] = _once(name, "drop_path_rate", drop_path_rate, {})
    with constructing(name, arguments):
        module = _construct(builder, num_classes, arguments)
    classifier = (last_layer(name, module, num_classes),)
    notes += _dropout_notes(name, module, classifier[0], drop_rate)
    mean, std = _torchvision_normalization(model)
    if pretrained:
        weights = torchvision.models.get_model_weights(model)["DEFAULT"]
        report = load_weights(module, torch_hub_file(name, weights.url), classifier=classifier)
        notes += [f"weights: {weights}", *report.lines()]
    return Built(module.train(), mean, std, classifier, notes)


def _accepted(builder: Callable[..., nn.Module]) -> set[str]:
    """Names of the options of a torchvision model: those of its class that the builder does not set itself."""
    model = typing.get_type_hints(builder)["return"]
    parameters = inspect.signature(model.__init__).parameters.values()
    optional = {item.name for item in parameters if item.default is not inspect.Parameter.empty}
    # Builders fill these in from their keyword arguments although the classes have no default for them.
    optional |= {item.name for item in parameters if item.name in ("dropout", "stochastic_depth_prob", "image_size", "input_size")}
    return optional - {"num_classes"}


def _auxiliary_off(name: str, arguments: dict[str, Any]) -> list[str]:
    """Settings of GoogLeNet and Inception v3 under which they give one output, and the notes about them."""
    if arguments.get("aux_logits"):
        raise UsageError(f"{name}: auxiliary classifiers (aux_logits) are not trained here; remove options.aux_logits.")
    arguments["aux_logits"] = False
    # Without an explicit value both warn; the truncated normal is their paper's.
    arguments.setdefault("init_weights", True)
    arguments.setdefault("transform_input", True)
    return [f"{name}: auxiliary classifiers off; the input is converted to [-1, 1] inside the model (transform_input), as its published weights expect"]


def _construct(builder: Callable[..., nn.Module], num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The model; where a builder fixes the rate of stochastic depth itself (Swin, MaxViT), its linear rule is scaled to the wanted one."""
    try:
        return builder(weights=None, num_classes=num_classes, **arguments)
    except TypeError as error:
        if "multiple values for keyword argument 'stochastic_depth_prob'" not in str(error):
            raise
    rate = arguments["stochastic_depth_prob"]
    module = builder(weights=None, num_classes=num_classes, **{key: value for key, value in arguments.items() if key != "stochastic_depth_prob"})
    layers = [layer for layer in module.modules() if isinstance(layer, StochasticDepth)]
    largest = max(layer.p for layer in layers)
    for layer in layers:
        layer.p *= rate / largest
    return module


def last_layer(name: str, module: nn.Module, num_classes: int) -> str:
    """Path of the layer that gives the logits: the last linear or 1x1 convolution in order of registration."""
    layers = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    path, layer = layers[-1]
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if outputs != num_classes:
        raise PellucidError(f"{name}: expected its last layer {path} to have {num_classes} outputs, it has {outputs}")
    return path


def _head_dropout(module: nn.Module, classifier: str) -> list[nn.Dropout]:
    """Dropout layers beside the classifier in its container."""
    container = module.get_submodule(classifier.rpartition(".")[0]) if "." in classifier else None
    return [layer for layer in container.children() if isinstance(layer, nn.Dropout)] if container is not None else []


def _dropout_notes(name: str, module: nn.Module, classifier: str, rate: float | None) -> list[str]:
    """A line where the model's dropout acts elsewhere than before the classifier."""
    if not rate or _head_dropout(module, classifier) or isinstance(getattr(module, "dropout", None), nn.Dropout):
        return []
    return [f"{name}: drop_rate {rate:g} is the constructor's dropout, which acts inside the blocks; there is none before the classifier"]
