"""Segmentation models by name: `pellucid/<name>`, `torchvision/<name>` and `smp/<architecture>`, on a backbone from scratch or with published weights.

`build_segmenter` returns a module that takes images (B, 3, H, W) of any size and gives logits (B, num_classes, H, W) at that size; while an auxiliary
classifier is trained, a pair of such. The parts keep the names that they have in their library, so that its state dicts fit. Sizes that an architecture
cannot take are padded with zeros (which is the mean colour, images being normalised) at the bottom and right, and the logits cropped back.

smp is segmentation_models_pytorch. Its encoders `tu-<name>` are timm's models cut into stages; they start from files of the whole timm classifier.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import timm.data
import torch
import torchvision.models
import torchvision.models.segmentation
from torch import Tensor, nn

from pellucid.errors import UsageError, WeightsError, did_you_mean
from pellucid.models.backbone_file import normalized_as
from pellucid.models.backbones import (
    Built,
    Color,
    color,
    constructing,
    last_layer,
    timm_config,
    timm_normalization,
    timm_says,
    tuples,
)
from pellucid.models.fcn import FCN, PAPER_CHANNELS, STRIDES, convolutional
from pellucid.models.hub import WEIGHTS, timm_tags, torch_hub_file, transformers_folder
from pellucid.models.stages import fill_stages, for_backbones, of_width, takes, whole_of
from pellucid.models.upsampling import bilinear, deterministic_bilinear
from pellucid.models.weights import load_state, load_weights, read_weights

SEGMENTER_HOMES = ("pellucid", "torchvision", "smp")
Pretrained = bool | Literal["backbone"]

_FCN_STRIDES = {f"fcn{stride}s": stride for stride in STRIDES}
_FCN_OPTIONS = ("channels", "batch_norm", "dropout")
_FCN_SCORES = ("score", "pool_scores", "pool_upsampling", "upsampling")
_TIMM = "tu-"
# Arguments of smp's constructors that follow from the recipe, and a classifier of whole images that is not trained here.
_SMP_OWN = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")
# smp states normalisations beside its published weights alone. These were trained with another one than ImageNet's.
_INCEPTION: tuple[Color, Color] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DPN: tuple[Color, Color] = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
_SMP_NORMALIZATIONS = {"inception": _INCEPTION, "xception": _INCEPTION, "dpn": _DPN}
# DPT halves the map of patches and doubles it again; PAN halves the last map three times.
_DPT_CELLS, _PAN_CELLS = 2, 8
_IMAGENET: tuple[Color, Color] = (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)


# ── names ──
def segmenter_names() -> list[str]:
    """All names that `build_segmenter` knows, sorted; smp's architectures without their encoders."""
    return sorted(f"{home}/{name}" for home in SEGMENTER_HOMES for name in _known(home))


def check_segmenter(name: str, encoder: str | None) -> None:
    """Raise UsageError, with the nearest name, for a model or encoder that does not exist. Builds and downloads nothing."""
    home, _, model = name.partition("/")
    if home not in SEGMENTER_HOMES or not model:
        names = segmenter_names()
        raise UsageError(f"model.name: expected a segmentation model {' or '.join(f'{h}/<name>' for h in SEGMENTER_HOMES)}, got {name!r}.{_hint(name, names)}")
    if model not in _known(home):
        hint = did_you_mean(name, segmenter_names()) or f" There are {', '.join(_known(home))}."
        raise UsageError(f"model.name: {home} has no segmentation model {model!r}.{hint}")
    if home == "smp":
        _check_encoder(name, _encoder_of(model, encoder))
    elif encoder is not None:
        raise UsageError(f"model.encoder: {name} has its own backbone, got {encoder!r}. Remove it, or choose a model of smp.")


def segmenter_normalization(name: str, encoder: str | None) -> tuple[Color, Color]:
    """(mean, std) of RGB pixels in [0, 1] that the weights of the model's backbone expect, ImageNet's where none is stated. Builds nothing."""
    check_segmenter(name, encoder)
    home, _, model = name.partition("/")
    if home == "torchvision":
        preset = torchvision.models.get_model_weights(model)["DEFAULT"].transforms()
        return color(preset.mean), color(preset.std)
    return _encoder_normalization(_encoder_of(model, encoder)) if home == "smp" else _IMAGENET


def _known(home: str) -> list[str]:
    if home == "pellucid":
        return list(_FCN_STRIDES)
    if home == "torchvision":
        return torchvision.models.list_models(module=torchvision.models.segmentation)
    return list(_architectures())


def _hint(name: str, known: list[str]) -> str:
    bare = {known_name.partition("/")[2]: known_name for known_name in known}
    return f" Did you mean {bare[name]!r}?" if name in bare else did_you_mean(name, known)


def _architectures() -> dict[str, Callable[..., nn.Module]]:
    """smp's classes by name."""
    import segmentation_models_pytorch as smp  # takes seconds to import

    return {architecture.__name__: architecture for architecture in smp.MODEL_ARCHITECTURES_MAPPING.values()}


def _smp_encoders() -> dict[str, Any]:
    """smp's own encoders by name; those that it has replaced by timm's (timm-…) are left out."""
    from segmentation_models_pytorch.encoders import encoders

    return {name: entry for name, entry in encoders.items() if not name.startswith("timm-")}


def _encoder_of(model: str, encoder: str | None) -> str:
    default = inspect.signature(_architectures()[model]).parameters["encoder_name"].default
    return str(default if encoder is None else encoder)


def _check_encoder(name: str, encoder: str) -> None:
    if not encoder.startswith(_TIMM):
        if encoder not in _smp_encoders():
            known = [*_smp_encoders(), *(_TIMM + model for model in timm.list_models())]
            raise UsageError(f"model.encoder: smp has no encoder {encoder!r} for {name}.{did_you_mean(encoder, known)} timm's models are {_TIMM}<name>.")
        return
    model = encoder.removeprefix(_TIMM)
    architecture, dot, _ = model.partition(".")
    if not timm.is_model(architecture):
        raise UsageError(f"model.encoder: timm has no model {architecture!r}.{did_you_mean(encoder, [_TIMM + known for known in timm.list_models()])}")
    if dot and model not in timm_tags(architecture):
        tags = timm_tags(architecture)
        raise UsageError(f"model.encoder: timm publishes no weights {model!r}; there are {', '.join(tags) or 'none'}.{did_you_mean(model, tags)}")


def _encoder_normalization(encoder: str) -> tuple[Color, Color]:
    if encoder.startswith(_TIMM):
        return timm_normalization(encoder.removeprefix(_TIMM))[:2]
    return next((values for prefix, values in _SMP_NORMALIZATIONS.items() if encoder.startswith(prefix)), _IMAGENET)


# ── building ──
def build_segmenter(
    name: str,
    *,
    num_classes: int,
    pretrained: Pretrained,
    encoder: str | None,
    options: Mapping[str, Any],
    image_size: tuple[int, int],
    backbone_weights: Path | None = None,
) -> Built:
    """The segmentation model `name`, on the CPU, in training mode.

    pretrained: True for published weights of the whole model, "backbone" for those of its backbone. encoder: backbone of an smp model, None for its own.
    options: further arguments of the constructor; lists become tuples. image_size: (height, width) of training, to which encoders that take one size
    alone are built. backbone_weights: file with the weights of a classifier or of its backbone. Random initial weights come from torch's global generator.

    Raises UsageError (unknown name or option, a setting that the model cannot take), MissingError (weights neither cached nor reachable) and
    WeightsError (a file that does not fit the backbone).
    """
    check_segmenter(name, encoder)
    if pretrained and backbone_weights is not None:
        raise UsageError(f"{name}: expected published weights or those of a file, got both. Give model.pretrained or model.backbone_weights.")
    home, _, model = name.partition("/")
    if pretrained is True and home != "torchvision":
        raise UsageError(f"{name} has no published weights of the whole model. Give `pretrained: backbone` for those of its backbone, or weights: FILE.")
    wanted = _Wanted(name, model, num_classes, pretrained, {key: tuples(value) for key, value in options.items()}, image_size, backbone_weights)
    if home == "smp":
        built = _build_smp(wanted, _encoder_of(model, encoder))
    else:
        built = _build_torchvision(wanted) if home == "torchvision" else _build_fcn(wanted)
    return built if backbone_weights is None else normalized_as(built, backbone_weights)


@dataclass(frozen=True)
class _Wanted:
    """What `build_segmenter` was asked for; `model` is the name without its home."""

    name: str
    model: str
    num_classes: int
    pretrained: Pretrained
    options: dict[str, Any]
    image_size: tuple[int, int]
    backbone_weights: Path | None


def _check_options(wanted: _Wanted, accepted: list[str]) -> None:
    for key in wanted.options:
        if key not in accepted:
            takes = ", ".join(sorted(accepted)) or "no options"
            raise UsageError(f"{wanted.name} does not take {key!r}.{did_you_mean(key, accepted)} It takes {takes}.")


def _determinate(module: nn.Module, x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Deterministic up-sampling where the backward pass of torch's own is not: in training, on CUDA. A compiled graph has its own kernels."""
    needed = module.training and x.is_cuda and not torch.compiler.is_compiling()
    return deterministic_bilinear() if needed else contextlib.nullcontext()


# ── pellucid: FCN on VGG-16 ──
def _build_fcn(wanted: _Wanted) -> Built:
    _check_options(wanted, list(_FCN_OPTIONS))
    with constructing(wanted.name, wanted.options):
        module = FCN(wanted.num_classes, stride=_FCN_STRIDES[wanted.model], **wanted.options)  # type: ignore[arg-type]
    notes = []
    channels, batch_norm = wanted.options.get("channels", PAPER_CHANNELS), wanted.options.get("batch_norm", False)
    file = wanted.backbone_weights
    if wanted.pretrained:
        architecture = "vgg16_bn" if batch_norm else "vgg16"
        weights = torchvision.models.get_model_weights(architecture)["DEFAULT"]
        with for_backbones():
            file = torch_hub_file(wanted.name, weights.url)
        notes.append(f"backbone weights: {weights}")
    if file is not None:
        notes += _load_vgg(module, file, channels)
    scores = tuple(name for name, part in module.named_children() if name in _FCN_SCORES and any(True for _ in part.parameters()))
    return Built(module.train(), *_IMAGENET, scores, notes, "features")


def _load_vgg(module: FCN, file: Path, channels: int) -> list[str]:
    """Notes about loading a VGG-16 classifier's features, and fc6 and fc7 where they fit conv6 and conv7."""
    state, rest = convolutional(read_weights(file), channels)
    fresh = () if any(name.startswith("conv") for name in state) else ("conv6", "conv7")
    report = load_state(module, state, file=file.name, classifier=(*_FCN_SCORES, *fresh))
    return [*report.lines(), *_without_place(file, rest)]


def _without_place(file: Path, names: list[str]) -> list[str]:
    return [f"{file.name}: in the file, without a place in the model: {', '.join(names)}"] if names else []


# ── torchvision ──
class TorchvisionSegmenter(nn.Module):
    """torchvision's segmentation model with logits instead of a dict: (logits, auxiliary logits) where the second are trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.get_submodule("backbone")
        self.classifier = model.get_submodule("classifier")
        self.aux_classifier = model.get_submodule("aux_classifier") if getattr(model, "aux_classifier", None) is not None else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        size = (x.shape[-2], x.shape[-1])
        with _determinate(self, x):
            features = self.backbone(x)
            # LR-ASPP's classifier takes two levels of features.
            logits = bilinear(self.classifier(features.get("out", features)), size)
            if self.aux_classifier is None or not self.training:
                return logits
            return logits, bilinear(self.aux_classifier(features["aux"]), size)


def _build_torchvision(wanted: _Wanted) -> Built:
    builder = torchvision.models.get_model_builder(wanted.model)
    parameters = inspect.signature(builder).parameters
    _check_options(wanted, ["aux_loss"] if "aux_loss" in parameters else [])
    with constructing(wanted.name, wanted.options):
        module = TorchvisionSegmenter(builder(weights=None, weights_backbone=None, num_classes=wanted.num_classes, **wanted.options))
    classifier = _torchvision_scores(module)
    mean, std = segmenter_normalization(wanted.name, None)
    notes, file = [], wanted.backbone_weights
    if wanted.pretrained is True:
        weights = torchvision.models.get_model_weights(wanted.model)["DEFAULT"]
        report = load_weights(module, torch_hub_file(wanted.name, weights.url), classifier=classifier)
        return Built(module.train(), mean, std, classifier, [f"weights: {weights}", *report.lines()], "backbone")
    if wanted.pretrained:
        weights = parameters["weights_backbone"].default
        with for_backbones():
            file = torch_hub_file(wanted.name, weights.url)
        notes.append(f"backbone weights: {weights}")
    if file is not None:
        notes += load_weights(module.backbone, file, classifier=()).lines()
    return Built(module.train(), mean, std, classifier, notes, "backbone")


def _torchvision_scores(module: TorchvisionSegmenter) -> tuple[str, ...]:
    """Paths of the convolutions that give logits."""
    if isinstance(module.classifier, torchvision.models.segmentation.lraspp.LRASPPHead):
        return "classifier.low_classifier", "classifier.high_classifier"
    heads = {"classifier": module.classifier, "aux_classifier": module.aux_classifier}
    return tuple(f"{path}.{len(head) - 1}" for path, head in heads.items() if isinstance(head, nn.Sequential))


# ── smp ──
class SmpSegmenter(nn.Module):
    """smp's encoder, decoder and head for images of any size.

    multiple: pixels that both sides are padded to a multiple of. least: pixels that they are padded to at least. only_size: (height, width) that the
    encoder takes, None for any.
    """

    def __init__(self, model: nn.Module, *, multiple: int, least: int, only_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.encoder = model.get_submodule("encoder")
        self.decoder = model.get_submodule("decoder")
        self.segmentation_head = model.get_submodule("segmentation_head")
        self.multiple = multiple
        self.least = least
        self.only_size = only_size

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = max(_round_up(height, self.multiple), self.least), max(_round_up(width, self.multiple), self.least)
        if self.only_size is not None and padded != self.only_size:
            only = f"{self.only_size[0]}x{self.only_size[1]}"
            raise UsageError(f"this encoder takes images of {only} pixels alone, got {height}x{width}. Set data.image_size, or predict by tiles of that size.")
        x = nn.functional.pad(x, (0, padded[1] - width, 0, padded[0] - height))
        with _determinate(self, x):
            features = self.encoder(x)
            # DPT's encoder gives (features, tokens before the patches), all others a list.
            decoded = self.decoder(*features) if isinstance(features, tuple) else self.decoder(features)
            logits = bilinear(self.segmentation_head(decoded), padded)
        return logits[..., :height, :width]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _build_smp(wanted: _Wanted, encoder: str) -> Built:
    architecture = _architectures()[wanted.model]
    own = [name for name in inspect.signature(architecture).parameters if name not in (*_SMP_OWN, "kwargs")]
    for key in wanted.options:
        if key in _SMP_OWN:
            raise UsageError(f"{wanted.name}: {key} is not an option; it follows from the data and the model section. Remove it.")
    build = _build_on_timm if encoder.startswith(_TIMM) else _build_on_smp
    model, only_size, notes, (mean, std) = build(wanted, architecture, encoder, own)
    stride = int(model.encoder.output_stride)  # type: ignore[arg-type, union-attr]
    cells = _DPT_CELLS if wanted.model == "DPT" else 1
    module = SmpSegmenter(model, multiple=cells * stride, least=_PAN_CELLS * stride if wanted.model == "PAN" else 1, only_size=only_size)
    classifier = (last_layer(wanted.name, module, wanted.num_classes),)
    return Built(module.train(), mean, std, classifier, notes, "encoder")


_Smp = tuple[nn.Module, tuple[int, int] | None, list[str], tuple[Color, Color]]


def _create_smp(wanted: _Wanted, architecture: Callable[..., nn.Module], encoder: str, arguments: Mapping[str, Any]) -> nn.Module:
    with constructing(f"{wanted.name} with encoder {encoder}", arguments):
        return architecture(encoder_name=encoder, encoder_weights=None, classes=wanted.num_classes, **arguments)


def _build_on_smp(wanted: _Wanted, architecture: Callable[..., nn.Module], encoder: str, own: list[str]) -> _Smp:
    """(model, the one size it takes, notes, normalisation) on one of smp's own encoders."""
    _check_options(wanted, own)  # smp drops what its encoders do not take
    model, normalization = _create_smp(wanted, architecture, encoder, wanted.options), _encoder_normalization(encoder)
    if wanted.pretrained:
        file, normalization = _published(encoder)
        report = load_weights(model.encoder, file, classifier=())  # type: ignore[arg-type]
        return model, None, [f"backbone weights: {file.parent.parent.parent.name} of smp's encoder {encoder}", *report.lines()], normalization
    if wanted.backbone_weights is not None:
        return model, None, load_weights(model.encoder, wanted.backbone_weights, classifier=()).lines(), normalization  # type: ignore[arg-type]
    return model, None, [], normalization


def _published(encoder: str) -> tuple[Path, tuple[Color, Color]]:
    """(file, normalisation) of smp's ImageNet weights for one of its encoders, or of the first others where there are none."""
    settings = _smp_encoders()[encoder]["pretrained_settings"]
    setting = settings.get("imagenet") or next(iter(settings.values()))
    with for_backbones():
        folder = transformers_folder(f"smp encoder {encoder}", f"{setting['repo_id']}@{setting['revision']}", weights=True)
    try:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return folder / WEIGHTS, (color(stated["mean"]), color(stated["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{folder / 'config.json'}: expected JSON with mean and std of RGB, got {error!r}. Delete the folder and download it again."
        ) from None


def _build_on_timm(wanted: _Wanted, architecture: Callable[..., nn.Module], encoder: str, own: list[str]) -> _Smp:
    """(model, the one size it takes, notes, normalisation) on a model of timm; options that smp's constructor does not know are timm's."""
    model_name = encoder.removeprefix(_TIMM)
    for_timm = {key: value for key, value in wanted.options.items() if key not in own}
    size, notes = _size_options(wanted, architecture, model_name, for_timm)
    for_timm |= size
    # DPT keeps timm's whole model and makes no use of its classifier.
    size |= {"num_classes": 0} if wanted.model == "DPT" else {}
    with timm_says(notes), of_width(model_name.split(".")[0], for_timm):
        model = _create_smp(wanted, architecture, encoder, {**wanted.options, **size})
        if wanted.pretrained or wanted.backbone_weights is not None:
            notes += _load_timm_backbone(model.encoder.model, wanted, model_name, for_timm)  # type: ignore[arg-type, union-attr]
    only_size = None if for_timm.get("dynamic_img_size") else _pair(for_timm.get("img_size"))
    return model, only_size, notes, _encoder_normalization(encoder)


def _size_options(wanted: _Wanted, architecture: Callable[..., nn.Module], model: str, for_timm: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(options, notes): any size for encoders that interpolate their position embeddings, the training size for others that take one size alone."""
    config = timm_config(model)
    if config is None or not config.fixed_input_size or "img_size" in for_timm or for_timm.get("dynamic_img_size"):
        return {}, []
    if architecture.__name__ == "DPT" and "dynamic_img_size" not in for_timm and takes(model, "dynamic_img_size"):
        return {"dynamic_img_size": True}, [f"timm/{model}: position embeddings are interpolated to the size of each image (dynamic_img_size)"]
    depth = wanted.options.get("encoder_depth", inspect.signature(architecture).parameters["encoder_depth"].default)
    multiple = 2**depth if depth in range(1, 5) and architecture.__name__ != "DPT" else 32
    height, width = (_round_up(length, multiple) for length in wanted.image_size)
    return {"img_size": (height, width)}, [f"timm/{model} takes images of one size, {height}x{width} pixels; larger ones go through it in tiles"]


def _pair(size: Any) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _load_timm_backbone(stages: nn.Module, wanted: _Wanted, model: str, for_timm: dict[str, Any]) -> list[str]:
    """Notes about filling timm's stages from weights of the whole timm model."""
    notes: list[str] = []
    whole = whole_of(model, pretrained=bool(wanted.pretrained), options=for_timm, notes=notes)
    file = wanted.backbone_weights
    if file is not None:
        notes += load_weights(whole, file, classifier=()).lines()
    return notes + fill_stages(stages, whole, model=model, file=file.name if file is not None else f"timm/{model}")
