"""A backbone that stands still: what training does with it once instead of in every epoch.

Before the first step the fixed standardisation of a `Head` is measured on the training images as they are evaluated, and the features that
`model.cached_views` asks for are computed; a resumed run finds the former in its checkpoint and computes the latter anew, with the same bits. From then on
the loop's steps, moving average and evaluations are those of the classifier alone. Every process computes all features.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from pellucid.cached import CachedFeatures, KeptSize, Unread, classifier_input
from pellucid.data.loader import Reader, ordered_windows
from pellucid.data.store import Pixels
from pellucid.models.heads import Head, moments
from pellucid.prepare import Buffers, Training
from pellucid.results import agree, in_batches
from pellucid.tasks.classification import Classification


def use_frozen(t: Training, *, fresh: bool) -> None:
    """Measure and compute once what the recipe's model section asks for. fresh: whether the weights are those that training starts from."""
    model = t.recipe.model
    if model.cached_views:
        _keep_features(t)
    if fresh and model.head is not None and model.head.standardize:
        _standardize(t)
    agree(t)


def read_of(t: Training) -> tuple[Pixels, int]:
    """(pixels of the training images, threads that read them), as the loop's reader takes them: nothing, by nobody, where features stand for images."""
    if t.recipe.model.cached_views:
        return Unread(len(t.dataset.splits["train"])), 0
    return t.pixels["train"], t.recipe.data.workers


def _keep_features(t: Training) -> None:
    """Compute the features, and let steps, moving average and evaluations work with the classifier alone."""
    began = time.perf_counter()
    path, n = t.built.classifier[0], len(t.dataset.splits["train"])
    views = in_batches(t, lambda: _views(t, path))
    assert isinstance(t.task, Classification)
    t.task.features = cached = CachedFeatures(path, views, n)
    head = cached.classifier(t.module)
    t.forward = torch.compile(head) if t.recipe.train.compile else head
    t.buffers = Buffers(head)
    if t.average is not None:
        t.averaged = list(cached.classifier(t.average).state_dict().values()), list(head.state_dict().values())
    size = KeptSize(n, t.recipe.model.cached_views, views[0].numel(), views.numel() * views.element_size())
    shared = "" if t.runtime.processes.alone else " by each process"
    line = f"features of the frozen backbone computed once{shared}: {size}, in {time.perf_counter() - began:.1f} s"
    t.record.note(line)
    t.progress.line(line)


def _views(t: Training, path: str) -> Tensor:
    """(N n, ...) features of the views of all training images, on the CPU."""
    number, n = t.recipe.model.cached_views, len(t.dataset.splits["train"])
    kept = None
    for view in range(number):
        for start, features in _features(t, path, view):
            if kept is None:
                kept = torch.empty((number * n, *features.shape[1:]), dtype=features.dtype)
            kept[view * n + start : view * n + start + len(features)] = features
            t.progress("features of train", view * n + start + len(features), number * n)
    assert kept is not None
    return kept


def _standardize(t: Training) -> None:
    """Set the head's mean and scale, of the moving average too, to what the first process measures on the training images as they are evaluated."""
    path = t.built.classifier[0]

    def measured() -> tuple[Tensor, Tensor]:
        if t.recipe.model.cached_views and not t.recipe.augment.changes:  # the one view that is kept is the evaluated one
            assert isinstance(t.task, Classification)
            assert t.task.features is not None
            batches: Iterator[Tensor] = iter(t.task.features.views.split(t.record.evaluation_batch_size))
        else:
            batches = (features for _, features in _features(t, path, None))
        return moments(features.flatten(1) for features in batches)

    mean, std = t.runtime.processes.told(in_batches(t, measured) if t.first else None)
    for module in (t.module, t.average):
        if module is not None:
            head = module.get_submodule(path)
            assert isinstance(head, Head)
            head.standardize_by(mean, std)
    constant = int((std == 0).sum())
    t.record.note(
        f"features standardised by their mean and standard deviation over {len(t.dataset.splits['train']):,} training images"
        + (f"; {constant} of {len(std):,} are constant and divided by 1" if constant else "")
    )


@torch.no_grad()
def _features(t: Training, path: str, view: int | None) -> Iterator[tuple[int, Tensor]]:
    """(first row, features on the CPU) of the training images, batch by batch, as augmented in epoch `view` or, for None, as evaluated."""
    assert isinstance(t.task, Classification)
    t.module.eval()
    windows = ordered_windows(len(t.dataset.splits["train"]), t.record.evaluation_batch_size)
    with Reader(t.pixels["train"], workers=t.recipe.data.workers, pin=t.runtime.device.type == "cuda") as reader:
        reader.plan(windows, t.record.evaluation_batch_size)
        for window in windows:
            for pack in reader.packs(window, len(window)):
                images = t.task.view(pack, view)
                with t.runtime.autocast():
                    features = classifier_input(t.module, images, path)[0]
                yield int(window.rows[0]), features.cpu()
