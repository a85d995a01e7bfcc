"""Which parts of a model are trained, and how far each is from the input.

Freezing keeps parameters and everything that moves beside them: running statistics and dropout of a frozen part stay still, because
`train_mode` leaves it in evaluation mode. `layer_ids` numbers parameters from the input upwards for layer-wise learning-rate decay
(Clark et al. 2020, ELECTRA; for images Bao et al. 2022, BEiT), by timm's own grouping where the model has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from timm.models import group_parameters
from torch import nn

from pellucid.errors import UsageError, did_you_mean
from pellucid.models.weights import under

# Modules of torchvision models that hold the whole depth of the network, so that their children are its layers.
_TRUNKS = ("features", "layers", "blocks", "encoder", "encoder.layers", "trunk_output")


def set_trainable(
    module: nn.Module,
    freeze: Literal["none", "backbone"] | Sequence[str],
    classifier: Sequence[str],
    backbone: str = "",
    untrained: Sequence[str] = (),
) -> list[str]:
    """Paths of the frozen parts, for `train_mode`; every parameter of the model is set to trained or not.

    freeze: "none", "backbone" (the part of that path; without one all but the classifier and the layers without parameters behind the backbone, such as its
    dropout), or paths of modules or parameters. untrained: paths of parts that no gradient moves, but which are no frozen parts and stay in training mode.
    Raises UsageError for a path that is not there, and when nothing is left to train.
    """
    if isinstance(freeze, str):
        if freeze not in ("none", "backbone"):
            raise UsageError(f"model.freeze: expected none, backbone or a list of module paths, got {freeze!r}.{did_you_mean(freeze, ['none', 'backbone'])}")
        parts = [backbone] if backbone else _backbone(module, tuple(classifier))
        frozen = parts if freeze == "backbone" else []
    else:
        frozen = list(freeze)
        known = [name for name, _ in module.named_modules() if name] + [name for name, _ in module.named_parameters()]
        for path in frozen:
            if path not in known:
                raise UsageError(f"model.freeze: the model has no part {path!r}.{did_you_mean(path, known)} At the top it has {', '.join(_top(module))}.")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not under(name, [*frozen, *untrained]))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UsageError("model.freeze: every parameter is frozen, nothing is left to train. Shorten the list.")
    return frozen


def _top(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


def _backbone(module: nn.Module, classifier: tuple[str, ...]) -> list[str]:
    """Largest modules and parameters outside the classifier, up to the last one that has parameters."""
    parts = list(_outside(module, classifier, ""))
    last = max((i for i, (_, has_parameters) in enumerate(parts) if has_parameters), default=-1)
    return [path for path, _ in parts[: last + 1]]


def _outside(module: nn.Module, classifier: tuple[str, ...], path: str) -> Iterator[tuple[str, bool]]:
    """(path, whether it has parameters) of the largest parts outside the classifier, in order of registration."""
    for name, _ in module.named_parameters(prefix=path, recurse=False):
        if not under(name, classifier):
            yield name, True
    for child_name, child in module.named_children():
        child_path = f"{path}.{child_name}" if path else child_name
        if under(child_path, classifier):
            continue
        if any(head.startswith(f"{child_path}.") for head in classifier):
            yield from _outside(child, classifier, child_path)
        else:
            yield child_path, any(True for _ in child.parameters())


def train_mode(module: nn.Module, frozen: Sequence[str]) -> None:
    """Set training mode, and evaluation mode in the frozen parts."""
    module.train()
    for name, part in module.named_modules():
        if name and under(name, frozen):
            part.training = False


def layer_ids(module: nn.Module, classifier: Sequence[str]) -> tuple[dict[str, int], int]:
    """({parameter name: layer}, number of layers): 0 is nearest to the input, the classifier alone is the last."""
    matcher = getattr(module, "group_matcher", None)
    ids = dict(group_parameters(module, matcher(coarse=False), reverse=True)) if callable(matcher) else _ids_by_order(module, tuple(classifier))
    names = [name for name, _ in module.named_parameters()]
    below = {name: ids[name] for name in names if not under(name, classifier)}
    numbers = {old: new for new, old in enumerate(sorted(set(below.values())))}  # without holes where a layer has no parameters
    head = len(numbers)
    return {name: numbers[below[name]] if name in below else head for name in names}, head + 1


def _ids_by_order(module: nn.Module, classifier: tuple[str, ...]) -> dict[str, int]:
    """{parameter name: layer} in order of registration, which in torchvision's models is the order of computation.

    A layer is a child of the model or of its trunk. One with only normalisation belongs to the layer before it, parameters that stand alone (class
    token, position embedding) to the first.
    """
    units = list(_units(module, classifier, ""))
    loose = {name: 0 for name, _ in module.named_parameters()}
    layer = -1
    for path, unit in units:
        if layer < 0 or not _only_norm(unit):
            layer += 1
        loose.update({name: layer for name, _ in unit.named_parameters(prefix=path)})
    return loose


def _units(module: nn.Module, classifier: tuple[str, ...], path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if not any(True for _ in child.parameters()):
            continue
        if child_path in _TRUNKS or any(head.startswith(f"{child_path}.") for head in classifier):
            yield from _units(child, classifier, child_path)
        else:
            yield child_path, child


def _only_norm(unit: nn.Module) -> bool:
    """Whether all parameters of a part are vectors: scales and shifts of normalisation."""
    return all(parameter.ndim <= 1 for parameter in unit.parameters())
