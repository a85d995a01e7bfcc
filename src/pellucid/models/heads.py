"""A classifier of our own in the place of a model's: a linear layer or a small network on the features that the model's classifier sees.

Features can be standardised by fixed numbers, which are buffers of the head: the weights file alone then predicts from images. Linear probes are commonly
put on a BatchNorm without scale and shift (He et al. 2022, section 4.3), whose statistics follow the batch; these stand still, so that a feature is the same
number in every batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.models.backbones import Built


class Head(nn.Module):
    """(B, C) logits of features (B, D); (B, C, 1, 1) of (B, D, 1, 1), where it stands in the place of a 1 x 1 convolution.

    hidden: widths of layers that are each followed by a ReLU. standardize: features minus `mean` times `scale` first, buffers (D,) float32 that begin
    at 0 and 1. UsageError for features with positions.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, in_features: int, num_classes: int, *, hidden: Sequence[int], standardize: bool) -> None:
        super().__init__()
        self.standardize = standardize
        if standardize:
            self.register_buffer("mean", torch.zeros(in_features))
            self.register_buffer("scale", torch.ones(in_features))
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, features: Tensor) -> Tensor:
        flat = features.flatten(1)  # (B, D)
        if features.ndim not in (2, 4) or (features.ndim == 4 and features.shape[2:] != (1, 1)):
            raise UsageError(
                f"model.head: expected one vector of features for each image, got {tuple(features.shape[1:])}: the classifier of this model sees every "
                "position and pools afterwards. Choose a model that pools before its classifier, or leave model.head out."
            )
        if self.standardize:
            flat = (flat - self.mean) * self.scale
        logits = self.layers(flat)  # (B, C)
        return logits if features.ndim == 2 else logits[:, :, None, None]

    def standardize_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the fixed numbers: mean and standard deviation (D,) of each feature, which is divided by 1 where the latter is 0."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0, 1 / std, 1.0))


def with_head(built: Built, name: str, num_classes: int, *, hidden: Sequence[int], standardize: bool) -> Built:
    """The model with a `Head` for its classifier's last layer; `classifier` is then the path of the head alone.

    name: of the model, for messages. UsageError for several classifiers, and where the last layer is no linear one nor a 1 x 1 convolution.
    """
    if len(built.classifier) != 1:
        raise UsageError(
            f"model.head: {name} has {len(built.classifier)} classifiers ({', '.join(built.classifier)}), and one can be replaced. Leave head out."
        )
    (prefix,) = built.classifier
    layers = [(path, layer) for path, layer in built.module.get_submodule(prefix).named_modules(prefix=prefix) if isinstance(layer, nn.Linear | nn.Conv2d)]
    path, layer = layers[-1] if layers else (prefix, None)
    if isinstance(layer, nn.Linear):
        width = layer.in_features
    elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        width = layer.in_channels
    else:
        raise UsageError(f"model.head: expected {path} of {name} to end in a linear layer or a 1 x 1 convolution. Leave head out, or choose another model.")
    built.module.set_submodule(path, Head(width, num_classes, hidden=hidden, standardize=standardize))
    return replace(built, classifier=(path,))


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, std) of each feature, (D,) float64, over batches (B, D) of any float; std over n, and exactly 0 where a feature is constant.

    Means and sums of squares are merged batch by batch (Chan et al. 1983, eq. 2.1). Constant is what rounding alone would spread, as scikit-learn's
    StandardScaler says it.
    """
    n, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        values = batch.double()
        here, own = len(values), values.mean(0)
        off = ((values - own) ** 2).sum(0)
        if n:
            delta = own - mean
            mean, squares = mean + delta * (here / (n + here)), squares + off + delta**2 * (n * here / (n + here))
        else:
            mean, squares = own, off
        n += here
    variance, eps = squares / n, torch.finfo(torch.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return mean, torch.where(constant, 0.0, variance.sqrt())
