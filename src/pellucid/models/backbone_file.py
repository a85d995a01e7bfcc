"""The backbone of a model as a plain file, for another task or another program.

A .safetensors file with the tensors of a timm or torchvision model under their library's own names, without those of its classifier, so that
`load_state_dict(…, strict=False)` fits it into the model of that name. Its metadata is text: `BackboneFacts` says what each entry holds. The pixels that a
backbone was trained on were normalised, and nothing in its tensors says how: that stands in the file too, and a model that starts from it takes it over.

Weights of whole models, published ones and checkpoints of other programs are read by weights.py alone; they state no normalisation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pellucid.errors import WeightsError
from pellucid.models.backbones import Built, Color
from pellucid.models.weights import WeightsReport, load_weights, read_metadata, save_weights, under

_VERSION = "1"  # of the facts
_IN_JSON = ("options", "classifier", "mean", "std", "image_size")

# Options that change no tensor and not what the network computes in evaluation, but for the size of images that it takes: position embeddings are resized.
HARMLESS_OPTIONS = (
    "img_size", "dynamic_img_size", "strict_img_size", "image_size",
    "drop_rate", "drop_path_rate", "drop_block_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "dropout", "attention_dropout", "stochastic_depth_prob",
)  # fmt: skip


@dataclass(frozen=True)
class BackboneFacts:
    """What a backbone file says of itself; each a text in its metadata, those that are no text here as JSON.

    model: home and name, options: further arguments of its constructor. classifier: path prefixes of the layers that were left out. mean, std: what the
    pixels, RGB in [0, 1], were normalised by in training. image_size: (height, width) of its training images in pixels. task, method: what trained it;
    method: that of a pre-training, else supervised, or backbone frozen where the run left it as it began. data, run: names of both. pellucid: the version
    that trained it.
    """

    model: str
    options: dict[str, Any]
    classifier: tuple[str, ...]
    mean: Color
    std: Color
    image_size: tuple[int, int]
    task: str
    method: str
    data: str
    run: str
    pellucid: str

    def metadata(self) -> dict[str, str]:
        """The facts as a file keeps them."""
        values = asdict(self)
        return {"backbone": _VERSION} | {name: json.dumps(value, sort_keys=True) if name in _IN_JSON else value for name, value in values.items()}

    @property
    def origin(self) -> str:
        """What the backbone is and where it comes from, in words."""
        return f"the backbone of {self.model}, {self.task} ({self.method}) on {self.data}"


# ── writing ──
def backbone_state(module: nn.Module, *, classifier: Sequence[str], backbone: str = "") -> dict[str, Tensor]:
    """{name: tensor} of the backbone under its library's names. classifier: paths in it that are left out. backbone: its own path in `module`."""
    state = module.get_submodule(backbone).state_dict()
    kept = {name: tensor for name, tensor in state.items() if not under(name, classifier)}
    if not kept:
        raise WeightsError(f"{type(module).__name__}: nothing but its classifier ({', '.join(classifier)}) has tensors: there is no backbone to save")
    return kept


def save_backbone(module: nn.Module, path: str | Path, facts: BackboneFacts, *, backbone: str = "") -> None:
    """Write the backbone of `module` as a file that appears whole. backbone: its path in `module`. Same tensors and facts: same bytes."""
    save_weights(backbone_state(module, classifier=facts.classifier, backbone=backbone), path, facts.metadata())


# ── reading ──
def read_facts(path: str | Path) -> BackboneFacts | None:
    """What a backbone file says of itself, None of any other weights file.

    Raises MissingError (no file) and WeightsError (unreadable, or its facts are not as they were written).
    """
    path = Path(path)
    found = read_metadata(path) if path.suffix == ".safetensors" else {}
    if "backbone" not in found or "pellucid" not in found:
        return None
    try:
        if found["backbone"] != _VERSION:
            raise ValueError(f"version {found['backbone']} instead of {_VERSION}")
        values = {name: json.loads(found[name]) if name in _IN_JSON else found[name] for name in BackboneFacts.__dataclass_fields__}
        return _checked(values)
    except KeyError as error:
        reason = f"{error} is missing"
    except ValueError as error:
        reason = str(error)
    except RecursionError:
        reason = "lists within lists, too deep to be read"
    raise WeightsError(
        f"{path}: expected what a backbone file of Pellucid says of itself: {reason}. It was changed, or is of another version; write it again with "
        "`pellucid export RUN --backbone`."
    )


def _checked(values: dict[str, Any]) -> BackboneFacts:
    """The facts with their types; ValueError where a value is not of its kind."""
    (red, green, blue), (red_std, green_std, blue_std) = (_numbers(values, name, 3) for name in ("mean", "std"))
    mean, std = (red, green, blue), (red_std, green_std, blue_std)
    if min(std) <= 0.0:
        raise ValueError(f"std {list(std)} instead of numbers above 0")
    height, width = (int(side) if side >= 1 and side == int(side) else 0 for side in _numbers(values, "image_size", 2))
    if not height or not width:
        raise ValueError(f"image_size {_short(values['image_size'])} instead of whole pixels, 1 or more")
    options, classifier = values["options"], values["classifier"]
    if not isinstance(options, dict):
        raise ValueError(f"options {_short(options)} instead of a mapping")
    if not isinstance(classifier, list) or not all(isinstance(path, str) for path in classifier):
        raise ValueError(f"classifier {_short(classifier)} instead of a list of names")
    return BackboneFacts(**values | {"mean": mean, "std": std, "image_size": (height, width), "classifier": tuple(classifier)})


def _numbers(values: Mapping[str, Any], name: str, count: int) -> list[float]:
    """The finite numbers of a list of so many; ValueError for anything else, true and false among them."""
    found = values[name]
    numbers = [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)] if isinstance(found, list) else []
    finite = [float(value) for value in numbers if abs(value) <= sys.float_info.max]  # NaN is not, and a longer integer is no float
    if len(finite) != count or len(found) != count:
        raise ValueError(f"{name} {_short(found)} instead of a list of {count} finite numbers")
    return finite


def _short(value: object) -> str:
    """A value as JSON writes it, the first 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def load_into(built: Built, path: str | Path, *, name: str, options: Mapping[str, Any]) -> tuple[Built, WeightsReport]:
    """The model with the tensors of a weights file in it, and what became of each; of a backbone file with the normalisation that the file states.

    name, options: those that the model was built by. Raises MissingError (no file) and WeightsError (unreadable, a backbone of another architecture or of
    other options, or tensors that do not fit).
    """
    path = Path(path)
    facts = read_facts(path)
    if facts is not None and _architecture(facts.model) != _architecture(name):
        raise WeightsError(
            f"{path.name}: {facts.origin}; the model is {name}, another architecture. Set model.name: {facts.model}"
            + (f" with options {json.dumps(facts.options)}" if facts.options else "")
            + f", or give weights of {name}."
        )
    if facts is not None:
        _check_options(path.name, facts, json.loads(json.dumps(dict(options))))  # as they come back from JSON: tuples are lists
    report = load_weights(built.module, path, classifier=built.classifier)
    if facts is None:
        return built, report
    notes = [f"{path.name}: {facts.origin}, run {facts.run}"]
    if facts.options != json.loads(json.dumps(dict(options))):  # in harmless ones
        notes.append(f"{path.name}: trained with options {json.dumps(facts.options)}, the model has {json.dumps(dict(options), sort_keys=True)}")
    return normalized_as(replace(built, notes=[*built.notes, *notes]), path), report


def _check_options(file: str, facts: BackboneFacts, options: Mapping[str, Any]) -> None:
    """WeightsError where the model was built by other options than the backbone: equal shapes can be another function, as with num_heads of a ViT."""
    harmful = [key for key in sorted({*facts.options, *options}) if key not in HARMLESS_OPTIONS]
    missing = object()
    differing = [key for key in harmful if facts.options.get(key, missing) != options.get(key, missing)]
    if differing:
        theirs, mine = (", ".join(f"{key}: {_short(of[key]) if key in of else 'not given'}" for key in differing) for of in (facts.options, options))
        wanted = {key: value for key, value in options.items() if key in HARMLESS_OPTIONS} | {k: v for k, v in facts.options.items() if k in harmful}
        raise WeightsError(
            f"{file}: {facts.origin}, was trained with the options {theirs}; the model has {mine}. Tensors of equal shape would be another function. "
            f"Set model.options: {json.dumps(wanted, sort_keys=True)}, or give weights of those options."
        )


def normalized_as(built: Built, path: str | Path) -> Built:
    """The model with the normalisation that its weights file states; as it is where that states none."""
    facts = read_facts(path)
    if facts is None:
        return built
    return replace(built, mean=facts.mean, std=facts.std, normalized_by=f"stated in {Path(path).name} ({facts.origin})")


def _architecture(name: str) -> str:
    """A name without timm's tag of published weights: timm/resnet18.a1_in1k is timm/resnet18."""
    return name.split(".")[0]
