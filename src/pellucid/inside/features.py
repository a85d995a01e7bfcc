"""Penultimate features: what the classifier of a model sees of each image.

They are read by a hook before the classifier layer, so that no model has to offer them (timm's `forward_head(pre_logits=True)` gives the same
where it exists, which the tests hold). Where the layer sees positions (SqueezeNet classifies each before it pools), the mean over them is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.outputs import logits_of


def penultimate(model: nn.Module, images: Tensor, classifier: Sequence[str]) -> Tensor:
    """(B, D) float32 input of the classifier for images (B, 3, H, W), which the model gets as they are, in the mode that it is in.

    classifier: module paths; of several heads (a distilled DeiT has two) the first counts, and of a path that holds several layers the last linear
    or convolution. An input with positions, (B, N, D) or (B, H, W, D) of a linear layer and (B, D, H, W) of a convolution, is averaged over them.
    UsageError for a path that is not there or has no such layer, and for a layer that the model does not run.
    """
    path, layer = _classifier_layer(model, classifier)
    with _inputs_of(layer) as seen:
        model(images)
    if not seen:
        raise UsageError(f"the classifier {path} did not run in a forward pass of {type(model).__name__}; a compiled model has to be given uncompiled")
    features = seen[-1].float()
    if isinstance(layer, nn.Conv2d):
        return features.flatten(2).mean(2)  # (B, D)
    return features.flatten(1, -2).mean(1) if features.ndim > 2 else features  # (B, D)


def find_classifier(model: nn.Module, images: Tensor) -> str:
    """Path of the layer that classifies: the last linear layer or 1 x 1 convolution to run whose outputs are as many as the model's logits.

    It takes a forward pass of images (B, 3, H, W). Of two heads it is the one that runs last. UsageError where no layer is like that.
    """
    ran: list[str] = []
    layers = [(path, layer) for path, layer in model.named_modules() if _is_pointwise(layer)]
    handles = [layer.register_forward_hook(lambda *_, path=path: ran.append(path)) for path, layer in layers]
    try:
        width = logits_of(model(images)).shape[1]
    finally:
        for handle in handles:
            handle.remove()
    outputs = {path: layer.weight.shape[0] for path, layer in layers}
    found = [path for path in ran if outputs[path] == width]
    if not found:
        raise UsageError(f"{type(model).__name__} has no linear layer or 1 x 1 convolution with {width} outputs; name the path of its classifier")
    return found[-1]


def _classifier_layer(model: nn.Module, classifier: Sequence[str]) -> tuple[str, nn.Linear | nn.Conv2d]:
    """(path, layer) of the first classifier."""
    if not classifier:
        raise UsageError(f"{type(model).__name__}: expected the path of a classifier, got none; `find_classifier` looks for it")
    try:
        head = model.get_submodule(classifier[0])
    except AttributeError:
        raise UsageError(f"{type(model).__name__} has no module {classifier[0]!r}") from None
    layers = [(path, layer) for path, layer in head.named_modules(prefix=classifier[0]) if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise UsageError(f"{classifier[0]} of {type(model).__name__} has no linear layer or convolution whose input could be read")
    return layers[-1]


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The input of each call of a layer while the block runs."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
