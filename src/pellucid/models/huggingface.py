"""Models of transformers: by hub id, by folder in the hub's layout (config.json, model.safetensors, preprocessor_config.json), or by model type.

A repository's own code is never executed and pickles are not loaded. Files come from the hub's local cache, and from the network only when they are not
there (`pellucid.models.hub`); the library itself sees a local folder and asks nobody. A model of which only a part looks at the image (a captioner, CLIP)
gives that part, which predicts no class. Importing this module imports transformers, which takes seconds: `named` does so when it has to.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import torch
import transformers
import transformers.utils.logging
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING

from pellucid.errors import MissingError, UsageError, WeightsError, did_you_mean
from pellucid.models.backbones import Color
from pellucid.models.hub import INDEX, PREPROCESSORS, WEIGHTS, transformers_folder, weight_files
from pellucid.models.named import IMAGENET_CLASSES, Named, Preparation, class_count, random_start
from pellucid.models.weights import read_weights

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody named
# What its constructors and forward passes raise on settings that they cannot take.
REFUSED = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError,
    huggingface_hub.errors.StrictDataclassError,
)  # fmt: skip
# PIL's filters by number: two are ours, the nearest of them stands in for the others.
_FILTERS = {0: ("bilinear", "nearest"), 1: ("bicubic", "lanczos"), 2: ("bilinear", ""), 3: ("bicubic", ""), 4: ("bilinear", "box"), 5: ("bilinear", "hamming")}


def is_model_type(name: str) -> bool:
    """Whether transformers has a model type of this name (vit, swin, dinov2 …)."""
    return name in CONFIG_MAPPING_NAMES


def image_types() -> list[str]:
    """Model types that take images."""
    return sorted(set(IMAGE_PROCESSOR_MAPPING_NAMES) & set(CONFIG_MAPPING_NAMES))


def build_transformers(
    model: str,
    *,
    pretrained: bool,
    weights: Path | None,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
    options: Mapping[str, Any],
    seed: int,
) -> Named:
    """`transformers/<model>` as `named.build_named` describes it."""
    name, notes = f"transformers/{model}", list[str]()
    with collected(notes), random_start(seed):
        folder = source_folder(name, model, pretrained)
        config = config_of(name, model, folder, options)
        kind, classifies = _class(name, config, folder, wants_classes=num_classes is not None and not pretrained)
        published = (config.num_labels if folder is not None else IMAGENET_CLASSES) if classifies else 0
        count = class_count(name, num_classes, published, pretrained)
        if count and not classifies:
            raise UsageError(f"{name}: transformers has no image classifier of this kind, got num_classes {count}. Remove it.")
        if count and count != config.num_labels:
            config.num_labels = count
        if image_size is not None and not pretrained and weights is None:
            set_image_size(config, image_size)
        sentence, headless = f"published weights {model}" if pretrained else f"random weights, seed {seed}", not classifies
        if pretrained and folder is not None:
            whole = loaded(name, kind, config, folder, notes)[0]
        elif weights is not None:
            whole, trained = loaded(name, kind, config, weights, notes)
            sentence, headless = f"weights of {weights}", not (classifies and trained)
        else:
            with building(name, options):
                whole = kind(config)
        module = _image_part(name, whole.eval(), notes)
        preparation = preparation_of(name, folder, config, module, notes).at(image_size)
        _check_size(name, module, preparation.size, count)
    return Named(name, module, sentence, preparation, None if headless else count, _class_names(config, count) if pretrained else None, notes)


@contextlib.contextmanager
def collected(notes: list[str]) -> Iterator[None]:
    """What transformers logs in the block becomes notes, and it draws no progress bars."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage().strip()
            if "LOAD REPORT" not in line:  # a table of missing and unexpected tensors, which are told apart here
                notes.append(f"transformers: {' '.join(line.split())}")

    logger, bars = logging.getLogger("transformers"), transformers.utils.logging.is_progress_bar_enabled()
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [Collector()], False
    logger.setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


@contextlib.contextmanager
def building(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """The library's complaint about a setting as a UsageError."""
    try:
        yield
    except REFUSED as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        raise UsageError(f"{name} cannot be built with {given}: {said_by(error)}") from error


def said_by(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ── files and configuration ──
def source_folder(name: str, model: str, pretrained: bool) -> Path | None:
    """The folder with the model's files; None for a model type, which has none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"{name}: expected a folder in the hub's layout (config.json, model.safetensors); it has no config.json.")
        if pretrained:
            _check_weights(name, folder)
        return folder
    if is_model_type(model):
        if pretrained:
            raise UsageError(f"{name} is a model type, which has no published weights. Give a hub id or a folder, or -s pretrained=false for random ones.")
        return None
    if not _HUB_ID.fullmatch(model) or model.startswith(("./", "../")):
        raise UsageError(
            f"{name}: expected a hub id (owner/name), a folder or a model type; there is no such folder or type.{did_you_mean(model, image_types())}"
        )
    return transformers_folder(name, model, weights=pretrained)


def _check_weights(name: str, folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if (folder / INDEX).is_file():
        missing = [file for file in weight_files(folder / INDEX) if not (folder / file).is_file()]
        if missing:
            raise MissingError(f"{name}: {missing[0]} is missing, which {INDEX} names.")
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{name}: expected {WEIGHTS}, got {pickles[0]}, a pickle, which could execute code. If you trust its origin, load it yourself, "
            "save_pretrained() the model and give that folder."
        )
    raise MissingError(f"{name}: expected {WEIGHTS} beside config.json. Give -s weights=FILE, or -s pretrained=false for random ones.")


def config_of(name: str, model: str, folder: Path | None, options: Mapping[str, Any]) -> Any:
    """The model's configuration with `options` laid over it; attn_implementation (sdpa, eager …) may be among them."""
    if folder is not None:
        try:
            said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = said.get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"{name}: its config.json is not readable as a JSON object: {said_by(error)}") from None
        if "architecture" in said or kind == "timm_wrapper":
            raise UsageError(f"{name} is a model of timm. Give timm/<name>, or timm/<architecture> and -s weights=FILE.")
        if kind not in CONFIG_MAPPING_NAMES:
            why = "it needs code from its repository, which is never executed" if "auto_map" in said else f"transformers knows no model_type {kind!r}"
            raise UsageError(f"{name}: {why}.{did_you_mean(str(kind), image_types())}")
    with building(name, {}):
        plain = transformers.AutoConfig.for_model(model) if folder is None else transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    known = set(plain.to_dict()) | {"attn_implementation"}
    for key in options:
        if key in ("num_labels", "id2label", "label2id", "image_size", "model_type"):
            raise UsageError(f"{name}: {key} is not an option; give -s num_classes=N, -s classes=FILE or -s image_size=N.")
        if key not in known:
            raise UsageError(f"{name} does not take {key!r}.{did_you_mean(key, known)}")
    if not options:
        return plain
    with building(name, options):
        if folder is None:  # values that follow from others are worked out again
            return transformers.AutoConfig.for_model(model, **options)
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **options)


def _class(name: str, config: Any, folder: Path | None, *, wants_classes: bool) -> tuple[Any, bool]:
    """(class to build, whether it is an image classifier): the one that config.json names, else the library's for this type."""
    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), ())
    classifiers = found if isinstance(found, tuple) else (found,)
    stated = getattr(transformers, (config.architectures or [""])[0], None) if folder is not None else None
    if stated is not None and (stated in classifiers or not (wants_classes and classifiers)):
        return stated, stated in classifiers
    if classifiers:
        return classifiers[0], True
    if type(config) not in MODEL_MAPPING:
        raise UsageError(f"{name}: transformers has no model of type {config.model_type!r} that could be built. Choose another model.")
    base = MODEL_MAPPING[type(config)]
    return (base[0] if isinstance(base, tuple) else base), False


def loaded(name: str, kind: Any, config: Any, source: Path, notes: list[str]) -> tuple[Any, bool]:
    """(model with the weights of a folder or a file in float32, whether its classifier is among them). WeightsError where another part would stay random.

    Through the library's own loader: it knows the older names under which tensors were saved, with and without the prefix of the backbone.
    """
    given: dict[str, Any] = {"pretrained_model_name_or_path": source, "use_safetensors": True}
    if not source.is_dir():
        given = {"pretrained_model_name_or_path": None, "state_dict": read_weights(source)}
    try:
        module, info = kind.from_pretrained(
            **given, config=config, local_files_only=True, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except REFUSED as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise WeightsError(f"{name}: its weights cannot be loaded: {said_by(error)[:400]}") from error
    head = {path for path, _ in module.named_children() if path != module.base_model_prefix}
    shapes = [f"{key}: the model has {_shape(there)}, the weights {_shape(own)}" for key, own, there in sorted(info["mismatched_keys"])]
    if shapes:
        remedy = (
            "Give the number of classes as -s num_classes=N." if all(key.split(".")[0] in head for key, *_ in info["mismatched_keys"]) else "Check options."
        )
        raise WeightsError(f"{source}: {len(shapes)} tensors of another shape: {', '.join(shapes[:5])}. {remedy}")
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    untrained = [key for key in missing if key.split(".")[0] in head and not source.is_dir()]
    idle = [key for key in missing if ".pooler." in f".{key}"]
    rest = [key for key in missing if key not in untrained and key not in idle]
    if rest:
        raise WeightsError(f"{name}: {len(rest)} of its tensors missing from the weights, which would leave it partly random: {', '.join(rest[:5])}.")
    if untrained:
        notes.append(f"{source.name} holds no classifier: the model predicts nothing")
    if idle:
        notes.append(f"not in the weights, left random: {', '.join(idle)}; nothing that is shown goes through it")
    if unexpected:
        notes.append(f"{len(unexpected)} tensors of the weights have no place in the model: {', '.join(unexpected[:5])}")
    return module, not untrained


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _class_names(config: Any, count: int) -> tuple[str, ...] | None:
    labels = config.id2label or {}
    named = [str(labels.get(i, f"LABEL_{i}")) for i in range(count)]
    return None if not named or all(_UNNAMED.fullmatch(label) for label in named) else tuple(named)


# ── the part that looks at the image ──
def _image_part(name: str, whole: Any, notes: list[str]) -> Any:
    """The model itself where it takes images alone, else its first part that does."""

    def sees(module: nn.Module) -> bool:
        return isinstance(module, transformers.PreTrainedModel) and module.main_input_name == "pixel_values"

    if sees(whole) and set(whole.input_modalities) == {"image"} and not isinstance(whole, transformers.VisionEncoderDecoderModel):
        return whole
    for path, part in whole.named_modules():
        if path and sees(part):
            notes.append(f"{name} is a {type(whole).__name__}: its image part {path} ({type(part).__name__}) is looked into; it predicts no class")
            return part
    raise UsageError(f"{name}: a {type(whole).__name__} takes no images as pixels. Choose a vision model.")


def own_size(config: Any) -> tuple[int, int] | None:
    """(H, W) that a configuration states."""
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


def set_image_size(config: Any, size: tuple[int, int]) -> None:
    """Build for this size where the configuration has one; a type that holds only squares keeps its own and resizes its positions."""
    holder = next((part for part in (getattr(config, "vision_config", None), getattr(config, "encoder", None), config) if hasattr(part, "image_size")), None)
    if holder is not None:
        with contextlib.suppress(huggingface_hub.errors.StrictDataclassError):
            holder.image_size = size[0] if size[0] == size[1] else list(size)


def _check_size(name: str, module: Any, size: tuple[int, int], count: int) -> None:
    """One forward pass at the input size. Position embeddings are resized, as the library offers it, where the size is not the model's own."""
    own = own_size(module.config)
    if own not in (None, size) and "interpolate_pos_encoding" in inspect.signature(module.forward).parameters:
        module.register_forward_pre_hook(lambda _, args, kwargs: (args, {"interpolate_pos_encoding": True, **kwargs}), with_kwargs=True)
    try:
        with torch.no_grad():
            output = module(torch.zeros(1, 3, *size))
    except REFUSED as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        its = f" Its own size is {own[0]}x{own[1]}." if own not in (None, size) and own else ""
        raise UsageError(f"{name} cannot take one image of {size[0]}x{size[1]} pixels (height x width): {said_by(error)[:300]}.{its}") from error
    logits = getattr(output, "logits", None)
    if count and (not isinstance(logits, torch.Tensor) or logits.shape != (1, count)):
        raise UsageError(f"{name}: expected logits of {count} classes, got {type(output).__name__}. Choose another model.")


# ── how it sees a photograph ──
def preparation_of(name: str, folder: Path | None, config: Any, module: Any, notes: list[str]) -> Preparation:
    """How `module`, the part of a model that sees the image, wants photographs prepared: by the folder's file, else as is usual for its type."""
    return _preparation(name, _processor(name, folder, config, module, notes), own_size(module.config), notes)


def _processor(name: str, folder: Path | None, config: Any, module: Any, notes: list[str]) -> Any:
    """The image processor of the folder, else the default of the model's type at its own size; None where there is neither."""
    if folder is not None and any((folder / file).is_file() for file in PREPROCESSORS):
        try:
            return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except REFUSED as error:
            notes.append(f"{name}: its preprocessor_config.json cannot be used ({said_by(error)[:200]})")
    for kind in (config.model_type, module.config.model_type):
        found = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind, {}).get("torchvision")
        if found is not None:
            own = own_size(module.config)
            # ConvNeXt's crops below 384 pixels and squashes above: the size decides how.
            processor = getattr(transformers, found)(**({"size": {"shortest_edge": min(own)}} if own and found.startswith("ConvNext") else {}))
            notes.append(f"{name} has no file about preprocessing: the defaults of {found}" + (" at its own size" if own else ""))
            processor.is_default = True
            return processor
    notes.append(f"{name} says nothing about preprocessing: ImageNet's mean and std, the middle of the photograph")
    return None


def _preparation(name: str, processor: Any, own: tuple[int, int] | None, notes: list[str]) -> Preparation:
    """What an image processor does to a photograph, in our terms; what is done otherwise stands in the notes."""
    if processor is None:
        return Preparation(own or (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    size, fit, before = _geometry(name, processor, own, notes)
    mean, std = _normalization(processor)
    interpolation, instead_of = _FILTERS[int(processor.resample if processor.resample is not None else 2)]
    if instead_of:
        notes.append(f"{name}: its image processor resizes by {instead_of}, here by {interpolation}")
    preparation = Preparation(size, mean, std, fit, None if before == min(size) else before, interpolation)
    return preparation.at(own) if getattr(processor, "is_default", False) else preparation


def _normalization(processor: Any) -> tuple[Color, Color]:
    """(mean, std) of pixels u in [0, 1] from (255 f u - offset - mean) / std with a processor's rescale_factor f."""
    factor = 255 * float(processor.rescale_factor) if processor.do_rescale is not False else 255.0
    factor = round(factor, 9)  # 1/255 as a decimal fraction
    mean, std = ([0.0] * 3, [1.0] * 3) if processor.do_normalize is False else (processor.image_mean, processor.image_std)
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    power = 2 if getattr(processor, "include_top", False) else 1  # EfficientNet's divides by std twice
    red, green, blue = ((float(m) + offset) / factor for m in mean)
    return (red, green, blue), tuple(float(s) ** power / factor for s in std)  # type: ignore[return-value]


def _geometry(name: str, processor: Any, own: tuple[int, int] | None, notes: list[str]) -> tuple[tuple[int, int], str, int | None]:
    """(size, fit, length of the short side before the crop) of an image processor."""
    kind, size = type(processor).__name__, processor.size
    crop = (processor.crop_size.height, processor.crop_size.width) if processor.do_center_crop and processor.crop_size else None
    if getattr(processor, "do_pad", False):
        notes.append(f"{name}: {kind} pads its images, which is not done here")
    if size is None or processor.do_resize is False or not (size.shortest_edge or (size.height and size.width)):
        chosen = crop or own or (224, 224)
        notes.append(f"{name}: {kind} does not say to which size a photograph is brought; its middle at {chosen[0]}x{chosen[1]} is taken")
        return chosen, "crop", None
    if size.shortest_edge:
        side = int(size.shortest_edge)
        if kind.startswith("ConvNext"):  # squashed from 384 pixels on, cropped below
            return (side, side), *(("stretch", None) if side >= 384 else ("crop", int(side / processor.crop_pct)))
        if crop is None:
            notes.append(f"{name}: {kind} keeps the aspect of a photograph; its middle at {side}x{side} is taken")
        share = {"Levit": 224 / 256, "PoolFormer": getattr(processor, "crop_pct", None) or 1.0}.get(kind.partition("Image")[0], 1.0)
        before = int(side / share)
        return crop or (side, side), "crop", max(before, min(crop or (side, side)))
    sides = int(size.height), int(size.width)
    if crop is None or crop == sides:
        return sides, "stretch", None
    return crop, "stretch", max(min(sides), min(crop))
