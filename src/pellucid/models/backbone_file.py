"""The backbone of a model as a plain file, for another task or another program.

A .safetensors file with the tensors of a timm or torchvision model under their library's own names, without those of its classifier, so that
`load_state_dict(…, strict=False)` fits it into the model of that name. Its metadata is text: `BackboneFacts` says what each entry holds. The pixels that a
backbone was trained on were normalised, and nothing in its tensors says how: that stands in the file too, and a model that starts from it takes it over.

Weights of whole models, published ones and checkpoints of other programs are read by weights.py alone; they state no normalisation.
"""

from __future__ import annotations

import json
import math
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
    except (ValueError, TypeError) as error:
        reason = str(error)
    raise WeightsError(
        f"{path}: expected what a backbone file of Pellucid says of itself: {reason}. It was changed, or is of another version; write it again with "
        "`pellucid export RUN --backbone`."
    )


def _checked(values: dict[str, Any]) -> BackboneFacts:
    """The facts with their types; ValueError or TypeError where a value is not of its kind."""
    (red, green, blue), (red_std, green_std, blue_std) = (map(float, values[name]) for name in ("mean", "std"))
    mean, std = (red, green, blue), (red_std, green_std, blue_std)
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0.0:
        raise ValueError(f"mean {list(mean)} and std {list(std)} instead of finite numbers and a positive std")
    height, width = map(int, values["image_size"])
    if not isinstance(values["options"], dict):
        raise TypeError(f"options {values['options']!r} instead of a mapping")
    classifier = tuple(str(path) for path in values["classifier"])
    return BackboneFacts(**values | {"mean": mean, "std": std, "image_size": (height, width), "classifier": classifier})


def load_into(built: Built, path: str | Path, *, name: str, options: Mapping[str, Any]) -> tuple[Built, WeightsReport]:
    """The model with the tensors of a weights file in it, and what became of each; of a backbone file with the normalisation that the file states.

    name, options: those that the model was built by. Raises MissingError (no file) and WeightsError (unreadable, a backbone of another architecture, or
    tensors that do not fit).
    """
    path = Path(path)
    facts = read_facts(path)
    if facts is not None and _architecture(facts.model) != _architecture(name):
        raise WeightsError(
            f"{path.name}: {facts.origin}; the model is {name}, another architecture. Set model.name: {facts.model}"
            + (f" with options {json.dumps(facts.options)}" if facts.options else "")
            + f", or give weights of {name}."
        )
    report = load_weights(built.module, path, classifier=built.classifier)
    if facts is None:
        return built, report
    notes = [f"{path.name}: {facts.origin}, run {facts.run}"]
    if facts.options != json.loads(json.dumps(dict(options))):  # as they come back from JSON: tuples are lists
        notes.append(f"{path.name}: trained with options {json.dumps(facts.options)}, the model has {json.dumps(dict(options), sort_keys=True)}")
    return normalized_as(replace(built, notes=[*built.notes, *notes]), path), report


def normalized_as(built: Built, path: str | Path) -> Built:
    """The model with the normalisation that its weights file states; as it is where that states none."""
    facts = read_facts(path)
    if facts is None:
        return built
    return replace(built, mean=facts.mean, std=facts.std, normalized_by=f"stated in {Path(path).name} ({facts.origin})")


def _architecture(name: str) -> str:
    """A name without timm's tag of published weights: timm/resnet18.a1_in1k is timm/resnet18."""
    return name.split(".")[0]
