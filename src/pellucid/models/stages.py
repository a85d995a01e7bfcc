"""timm's models cut into stages, and the weights of whole classifiers brought into them.

A segmenter or a captioner takes features of a classifier's stages. Published weights and those of pre-trainings are of the whole: it is built beside the
stages and loaded, so that older layouts and position embeddings are converted as everywhere, and its tensors then go to the stages by name.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from timm.models import _registry
from torch import Tensor, nn

from pellucid.errors import MissingError, UsageError, WeightsError
from pellucid.models.backbones import WIDTH_GENERATORS, create_timm
from pellucid.models.weights import load_state


@contextlib.contextmanager
def of_width(architecture: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Within the block timm builds the architecture at options.channel_multiplier, which its own function of that name fixes at 1."""
    entry_points = _registry._model_entrypoints
    if "channel_multiplier" not in options or architecture not in WIDTH_GENERATORS:
        yield
        return
    before = entry_points[architecture]
    entry_points[architecture] = functools.partial(WIDTH_GENERATORS[architecture], architecture)
    try:
        yield
    finally:
        entry_points[architecture] = before


def takes(model: str, option: str) -> bool:
    """Whether timm's model has an option that may be True."""
    try:
        with torch.device("meta"):
            timm.create_model(model, **{option: True})  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def for_backbones() -> Iterator[None]:
    """Errors that name `weights: FILE` as the remedy, with the setting that loads a backbone."""
    try:
        yield
    except (MissingError, UsageError) as error:
        raise type(error)(re.sub(r"(?<!backbone_)\bweights: FILE\b", "backbone_weights: FILE", str(error))) from error


def whole_of(model: str, *, pretrained: bool, options: Mapping[str, Any], notes: list[str]) -> nn.Module:
    """timm's whole model without classifier, with its published weights where `pretrained`; torch's generator is afterwards where it was."""
    with torch.random.fork_rng(devices=[]), for_backbones():  # its random start is not wanted: the model's must not depend on it
        return create_timm(model, 0, pretrained, dict(options), notes)


def fill_stages(stages: nn.Module, whole: nn.Module, *, model: str, file: str) -> list[str]:
    """Notes about copying the tensors of timm's whole `model` into its stages; `file` names where they come from.

    Cut into stages, timm joins names by another separator (blocks.0 is blocks_0) or puts `model.` before them. Raises WeightsError where that leaves two
    places for a tensor, or a stage without its own.
    """
    places = {_separated(name.removeprefix("model.")): name for name in stages.state_dict()}
    if len(places) != len(stages.state_dict()):
        raise WeightsError(f"timm/{model}: its stages have tensors that differ in separators alone, so that weights cannot be placed. Choose another encoder.")
    state: dict[str, Tensor] = whole.state_dict()
    placed = {places[_separated(name)]: tensor for name, tensor in state.items() if _separated(name) in places}
    load_state(stages, placed, file=file, classifier=())
    return [f"layers behind the last stage, left out: {', '.join(rest)}" for rest in [_behind(list(state), places)] if rest]


def _behind(names: list[str], places: Mapping[str, str]) -> list[str]:
    """Layers of the whole model that the stages do not have."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names if _separated(name) not in places))


def _separated(name: str) -> str:
    return re.sub(r"[._]+", ".", name)
