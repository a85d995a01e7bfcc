"""What the classifier of a frozen backbone sees of each image, computed once and kept.

A backbone that does not change says the same of the same view in every epoch. So its features are kept: of each training image for N augmented views,
which the epochs take in turn, and of the evaluated images in the very batches in which an evaluation would compute them, so that logits have the bits of a
pass from images. Training then runs the classifier alone. A model of which that is not the same thing, because something random or something that
pools lies between, is refused before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.data.loader import Pack, Window
from pellucid.errors import UsageError
from pellucid.models import train_mode
from pellucid.models.weights import under
from pellucid.recipe import Recipe
from pellucid.runtime import Runtime

_NOTHING = np.empty((0, 0, 3), np.uint8)


class Unread:
    """Pixels of n images that nobody will look at: what a reader is given where features stand for images."""

    note: str | None = None

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def image(self, index: int) -> np.ndarray:
        """(0, 0, 3) uint8."""
        return _NOTHING


@dataclass
class CachedFeatures:
    """Features of a split to train on, and of those that are evaluated as they come to be asked for.

    path: of the classifier. views: (N n, ...) on the CPU, all n images of view 0, then of view 1, each as the classifier sees it: (D,), or (D, 1, 1) of a
    convolution. images: n.
    """

    path: str
    views: Tensor
    images: int
    _evaluated: dict[str, tuple[bytes, list[Tensor]]] = field(default_factory=dict)

    def of(self, pack: Pack) -> Tensor:
        """(B, ...) features of the samples of a pack: in epoch e view e mod N, and of what `balanced_sampling` draws for the k-th time in it view e + k."""
        views = (pack.window.epoch + pack.draws // self.images) % (len(self.views) // self.images)
        return self.views.index_select(0, torch.from_numpy(views * self.images + pack.rows))

    def of_windows(self, split: str, windows: Sequence[Window], compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Features of each window of a split, computed when they are asked for the first time or in other windows than before."""
        key = b"|".join(window.rows.tobytes() for window in windows)
        if split not in self._evaluated or self._evaluated[split][0] != key:
            self._evaluated[split] = key, compute()
        return self._evaluated[split][1]

    def classifier(self, module: nn.Module) -> nn.Module:
        """The part of a model that sees the features."""
        return module.get_submodule(self.path)


def classifier_input(module: nn.Module, images: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """(features, logits) of a pass: what the classifier at `path` was given, detached and as it was, and what the model said.

    UsageError where the classifier does not run once, on one tensor.
    """
    seen: list[tuple[object, ...]] = []
    handle = module.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    try:
        logits = module(images)
    finally:
        handle.remove()
    if len(seen) != 1 or len(seen[0]) != 1 or not isinstance(seen[0][0], Tensor):
        raise UsageError(f"the classifier {path} of {type(module).__name__} ran {len(seen)} times; expected once, on one tensor")
    return seen[0][0].detach(), logits


# ── what cannot be kept ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class KeptSize:
    """How much `model.cached_views` keeps: features of an image, and bytes of all views of training images and of those that are evaluated."""

    images: int
    views: int
    features: int
    num_bytes: int

    def __str__(self) -> str:
        views = f"{self.views:,} {'view' if self.views == 1 else 'views'}"
        size = f"{self.num_bytes / 1e6:,.1f} MB" if self.num_bytes >= 1e5 else f"{self.num_bytes / 1e3:.0f} kB"
        return f"{self.images:,} images x {views} x {self.features:,} features, {size}"


def check_cached(
    module: nn.Module, recipe: Recipe, runtime: Runtime, *, classifier: Sequence[str], frozen: Sequence[str], images: Mapping[str, int]
) -> KeptSize:
    """What keeping the features takes. images: how many each split has. The module, on the device, is left in eval mode and otherwise as it was.

    UsageError where the classifier on its features is not the model, and where the features exceed data.store.limit_gb.
    """
    name = recipe.model.name
    if len(classifier) != 1:
        raise UsageError(f"model.cached_views: {name} has {len(classifier)} classifiers ({', '.join(classifier)}), and features are kept for one; set it to 0.")
    (path,) = classifier
    outside = [own for own, parameter in module.named_parameters() if parameter.requires_grad and not under(own, classifier)]
    if outside:
        raise UsageError(f"model.cached_views: {outside[0]} of {name} is trained and lies outside of the classifier {path}; set it to 0.")
    features = _check_equal(module, recipe, runtime, path, frozen)
    return _checked_size(recipe, features, images)


@torch.no_grad()
def _check_equal(module: nn.Module, recipe: Recipe, runtime: Runtime, path: str, frozen: Sequence[str]) -> Tensor:
    """Features of two drawn images, for which the classifier gave the bits of the model, evaluated and trained."""
    name, head = recipe.model.name, module.get_submodule(path)
    images = torch.rand((2, 3, *recipe.data.size), generator=torch.Generator().manual_seed(0)).to(runtime.device, memory_format=runtime.memory_format)

    def apart() -> tuple[Tensor, bool]:
        """Features of a pass, and whether the classifier makes something else of them than the model."""
        with runtime.autocast():
            runtime.seed(0)
            features, logits = classifier_input(module, images, path)
            runtime.seed(0)
            return features, not torch.equal(head(features).flatten(1), logits)

    module.eval()
    features, differs = apart()
    if differs:
        raise UsageError(
            f"model.cached_views: what {name} says is not what its classifier {path} makes of its features (it pools or scales afterwards). "
            "Choose a model that ends in its classifier, or set cached_views: 0."
        )
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    train_mode(module, frozen)
    try:
        trained, differs = apart()
    finally:
        module.eval()
        for buffer, before in kept:
            buffer.copy_(before)
    if differs or not torch.equal(trained, features):
        raise UsageError(
            f"model.cached_views: in training {name} changes its features before its classifier {path} at random (dropout) or with the batch. "
            "Set model.drop_rate: 0, or cached_views: 0."
        )
    return features


def _checked_size(recipe: Recipe, features: Tensor, images: Mapping[str, int]) -> KeptSize:
    """What features like these of the data's images take; UsageError when it is more than the recipe allows."""
    views, limit = recipe.model.cached_views, recipe.data.store.limit_gb * 1e9
    each, evaluated = features[0].numel() * features.element_size(), sum(n for name, n in images.items() if name != "train")
    size = KeptSize(images["train"], views, features[0].numel(), each * (views * images["train"] + evaluated))
    if size.num_bytes > limit:
        room = int((limit / each - evaluated) // images["train"])
        lower = f"Lower model.cached_views to {room}" if room > 0 else "Set model.cached_views: 0 (the backbone then runs in every epoch)"
        count = f"{size.images:,} training images x {views:,} {'view' if views == 1 else 'views'} and of {evaluated:,} evaluated ones"
        raise UsageError(
            f"model.cached_views: features of {count}, {size.features:,} numbers each, need {size.num_bytes / 1e9:.3g} GB; "
            f"data.store.limit_gb allows {limit / 1e9:g}. {lower}, or raise the limit."
        )
    return size
