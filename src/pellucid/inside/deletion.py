"""How far a map can be believed where no mask says what it should show: by what the model does without the patches it names.

    deletion        Petsiuk et al. 2018 (1806.07421)    the probability of a class while its most relevant patches go; lower is better
    insertion       the same                            while they come back; higher is better
    randomisation   Adebayo et al. 2018 (1810.03292)    is the map of random weights alike; lower is better

The area under the curve over the share of patches moved, by the trapezoid rule. Patches of equal value have no order: the area is the mean over
ORDERS fixed random orders of them, each with its reverse, and so is that of a uniform map, which is the baseline. RISE works on
pixels; here whole patches move, as the map has no finer say. Masked images look like nothing the model was trained on, so an area is
worth only what it differs by from that of the baselines beside it.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.findings import Score
from pellucid.inside.faithfulness import centre_prior, rank_correlation, score
from pellucid.inside.outputs import logits_of

ORDERS = 4  # of patches with equal values: two draws and their reverses, whose mean is exact for a probability linear in the patches
BLUR = 0.05  # standard deviation of `blurred`, as a share of the shorter side: 11 pixels of 224
LOWER_IS_BETTER = ("deletion", "randomisation")
HOW = {
    "deletion": "area under the probability of the class while patches become the mean colour, the most relevant first (Petsiuk et al. 2018)",
    "insertion": "area under the probability of the class while patches of a blurred image become sharp, the most relevant first (Petsiuk et al. 2018)",
    "randomisation": "Spearman's correlation over patches with the map of the same model with random weights, one draw (Adebayo et al. 2018)",
}

Floats = NDArray[np.float64]
Logits = Callable[[Any], Tensor]


def deletion(
    model: nn.Module,
    images: Tensor,
    maps: ArrayLike,
    targets: Tensor,
    *,
    fill: float | Tensor = 0.0,
    steps: int,
    batch_size: int,
    logits: Logits = logits_of,
) -> Floats:
    """(B,) float64 in [0, 1]: area under the probability of each image's target while its patches become `fill`, the most relevant first.

    images: (B, 3, H, W) as the model takes them; maps: (B, gh, gw); targets: (B,) class numbers. fill: a number or a tensor that broadcasts to
    the images; 0 is the mean colour of normalised ones. A pixel belongs to the patch that its centre lies in. steps: at most one for each
    patch, so steps + 1 images of each go through the model for each order of tied patches; batch_size of them at once. UsageError for a model
    in training mode, whose answers depend on the batch.
    """
    after = torch.as_tensor(fill, dtype=images.dtype, device=images.device).expand_as(images)
    return _areas(model, images, after, maps, targets, steps=steps, batch_size=batch_size, logits=logits)


def insertion(
    model: nn.Module,
    images: Tensor,
    maps: ArrayLike,
    targets: Tensor,
    *,
    fill: Tensor | None = None,
    steps: int,
    batch_size: int,
    logits: Logits = logits_of,
) -> Floats:
    """(B,) float64 in [0, 1]: the same area while patches of `fill`, by default the blurred images, become those of the images."""
    before = blurred(images) if fill is None else fill.to(images).expand_as(images)
    return _areas(model, before, images, maps, targets, steps=steps, batch_size=batch_size, logits=logits)


def blurred(images: Tensor, *, sigma: float | None = None) -> Tensor:
    """(B, C, H, W) images under a Gaussian of `sigma` pixels, by default BLUR of the shorter side, cut at 3 sigma, edges repeated.

    RISE uses 5 pixels cut after 5 at 224: a class is often still legible there.
    """
    sigma = BLUR * min(images.shape[-2:]) if sigma is None else sigma
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(images.dtype)
    padded = nn.functional.pad(images, (radius,) * 4, mode="replicate")
    C = images.shape[1]
    across = nn.functional.conv2d(padded, kernel.view(1, 1, 1, -1).expand(C, 1, 1, -1), groups=C)
    return nn.functional.conv2d(across, kernel.view(1, 1, -1, 1).expand(C, 1, -1, 1), groups=C)


@torch.no_grad()
def _areas(
    model: nn.Module, before: Tensor, after: Tensor, maps: ArrayLike, targets: Tensor, *, steps: int, batch_size: int, logits: Logits
) -> Floats:  # fmt: skip
    """(B,) area under the probability while patches turn from `before` to `after`, for each image over its orders."""
    relevance = np.asarray(maps, dtype=np.float64)
    _check(model, before, relevance, targets, steps, batch_size)
    gh, gw = relevance.shape[1:]
    ends = _ends(gh * gw, steps)
    plans = [_plans(row.ravel(), ends) for row in relevance]
    rows = torch.tensor([row for row, (found, _) in enumerate(plans) for _ in found], device=before.device)
    when = torch.from_numpy(np.concatenate([found for found, _ in plans])).to(before.device, torch.int32).view(-1, gh, gw)
    H, W = before.shape[-2:]
    down, across = (((2 * torch.arange(size) + 1) * num // (2 * size)).to(before.device) for size, num in ((H, gh), (W, gw)))
    jobs = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(ends))).to(before.device)  # (plan, step)
    found = []
    for job, step in (chunk.unbind(1) for chunk in jobs.split(batch_size)):
        row = rows[job]
        moved = when[job][:, down][:, :, across] <= step[:, None, None]  # (b, H, W)
        answers = logits(model(torch.where(moved[:, None], after[row], before[row])))
        found.append(_probability(answers, targets.to(answers.device)[row.to(answers.device)]))
    curves = torch.cat(found).numpy().reshape(len(rows), len(ends))
    areas = ((curves[:, 1:] + curves[:, :-1]) / 2 * np.diff(ends / ends[-1])).sum(1)
    weights = np.concatenate([weights for _, weights in plans])
    mean = np.zeros(len(before))
    np.add.at(mean, rows.cpu().numpy(), weights * areas)
    return mean


def _probability(answers: Tensor, classes: Tensor) -> Tensor:
    """(b,) float64 softmax probability of each image's class, on the CPU."""
    if answers.ndim != 2 or int(classes.min()) < 0 or int(classes.max()) >= answers.shape[1]:
        raise UsageError(f"expected logits (B, C) and targets in [0, C), got {tuple(answers.shape)} and up to {int(classes.max())}")
    return answers.double().softmax(1).gather(1, classes[:, None])[:, 0].cpu()


def _ends(num: int, steps: int) -> NDArray[np.int64]:
    """(min(steps, num) + 1,) how many of num patches have moved after each step: evenly spread from 0 to num."""
    steps = min(steps, num)
    return (2 * np.arange(steps + 1) * num + steps) // (2 * steps)


def _plans(values: Floats, ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """(plans (k, patches): the step at which each patch moves, their weights): ORDERS orders of equal values, those that come to the same as one.

    The draws are the same for every image and every map, so that none is lucky.
    """
    random = np.random.Generator(np.random.PCG64(0))
    draws = [random.permutation(len(values)) for _ in range(ORDERS // 2)]
    plans = np.empty((ORDERS, len(values)), np.int64)
    for plan, tie in zip(plans, [tie for draw in draws for tie in (draw, len(values) - 1 - draw)], strict=True):
        plan[np.lexsort((tie, -values))] = np.searchsorted(ends, np.arange(len(values)), side="right")
    unique, counts = np.unique(plans, axis=0, return_counts=True)
    return unique, counts / ORDERS


def _check(model: nn.Module, images: Tensor, maps: Floats, targets: Tensor, steps: int, batch_size: int) -> None:
    if model.training:
        raise UsageError("expected a model in eval mode: in training mode its answers depend on the batch. Call model.eval() first.")
    if images.ndim != 4 or maps.ndim != 3 or len(maps) != len(images) or targets.shape != (len(images),):
        raise UsageError(f"expected images (B, 3, H, W), maps (B, gh, gw), targets (B,); got {tuple(images.shape)}, {maps.shape}, {tuple(targets.shape)}")
    if not np.isfinite(maps).all():
        raise UsageError("expected maps of finite values; some are NaN or infinite")
    if steps < 1 or batch_size < 1:
        raise UsageError(f"expected at least one step and one image a batch, got {steps} and {batch_size}")


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────


def masked_areas(
    model: nn.Module, images: Tensor, maps: ArrayLike, targets: Tensor, *, steps: int, batch_size: int, logits: Logits = logits_of
) -> dict[str, Floats]:  # fmt: skip
    """{"deletion", "insertion"}: (B,) areas, to the mean colour and from the blurred image."""
    return {
        "deletion": deletion(model, images, maps, targets, steps=steps, batch_size=batch_size, logits=logits),
        "insertion": insertion(model, images, maps, targets, steps=steps, batch_size=batch_size, logits=logits),
    }


def masked_baselines(
    model: nn.Module, images: Tensor, grid: tuple[int, int], targets: Tensor, *, steps: int, batch_size: int, logits: Logits = logits_of
) -> dict[str, dict[str, Floats]]:  # fmt: skip
    """{"uniform", "centre"}: `masked_areas` of the two baselines that need no map; once for all methods of one grid."""
    priors = {"uniform": np.ones(grid), "centre": centre_prior(grid)}
    return {
        name: masked_areas(model, images, np.broadcast_to(prior, (len(images), *grid)), targets, steps=steps, batch_size=batch_size, logits=logits)
        for name, prior in priors.items()
    }


def score_deletion(
    method: str,
    areas: Mapping[str, Floats],
    baselines: Mapping[str, Mapping[str, Floats]],
    *,
    split: str,
    seed: int,
    note: str = "",
) -> list[Score]:
    """A Score of deletion and one of insertion from `masked_areas` of the maps and {baseline: `masked_areas`}.

    baselines: those of `masked_baselines`, and as "random model" the areas, on the trained model, of the maps that random weights gave.
    """
    return [
        found
        for measure, values in areas.items()
        for found in score(
            method, measure, values, {name: of[measure] for name, of in baselines.items()}, how=HOW[measure], split=split, seed=seed, note=note,
            higher_is_better=measure not in LOWER_IS_BETTER,
        )
    ]  # fmt: skip


def score_randomisation(method: str, correlations: Floats, *, split: str, seed: int, note: str = "") -> list[Score]:
    """The Score of `randomisation`, or of `rank_correlation` with maps of random weights; none where all are NaN. Unit: correlation, in [-1, 1]."""
    how = HOW["randomisation"]
    return score(method, "randomisation", correlations, {}, how=how, split=split, seed=seed, note=note, unit="correlation", higher_is_better=False)


# ── random weights ────────────────────────────────────────────────────────────────────────────────────────────


def randomisation(map_of: Callable[[nn.Module], ArrayLike], model: nn.Module, *, seed: int) -> Floats:
    """(B,) float64 in [-1, 1]: Spearman's correlation of each map with that of the same model with random weights; near 1 is bad.

    map_of(model): (B, gh, gw). NaN where a map is constant. One draw of weights: another seed gives another number.
    """
    return rank_correlation(map_of(model), map_of(randomised(model, seed)))


@torch.no_grad()
def randomised(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the model, in its mode and on its device, that has learned nothing; a seed gives the same copy on every device.

    Modules that can (`reset_parameters`) start anew, batch statistics at mean 0 and variance 1. All other parameters (position embeddings, class
    tokens, packed projections) and those that a reset leaves as they were are drawn normal with the mean and the standard deviation that they have
    now, which keeps the scale of the signal and nothing learned beyond it; a constant parameter stays. Other buffers (masks, tables of positions)
    stay. A compiled model gives a copy that is not compiled. torch's random state is left as it was. UsageError for a model that cannot be
    copied or is spread over devices.
    """
    original = getattr(model, "_orig_mod", model)
    places = {parameter.device for parameter in original.parameters()} or {torch.device("cpu")}
    if len(places) > 1:
        raise UsageError(f"expected a model on one device, got {', '.join(sorted(map(str, places)))}; move it to one first")
    try:
        copied = copy.deepcopy(original)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"{type(original).__name__} cannot be copied, so there is no randomised model to compare with: {error}") from error
    copied.to("cpu")  # where the draws are the same on every machine
    before = {name: parameter.clone() for name, parameter in copied.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in copied.modules():
            _reset(module)
        for name, parameter in copied.named_parameters():
            if parameter.is_floating_point() and parameter.numel() and torch.equal(parameter, before[name]):
                now = parameter.double()
                parameter.copy_(now.mean() + now.std(correction=0) * torch.randn(now.shape, dtype=torch.float64))
    return copied.to(places.pop())


def _reset(module: nn.Module) -> None:
    """Start one module anew, without those inside it."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset) and not any(_is_required(parameter) for parameter in inspect.signature(reset).parameters.values()):
        reset()
    buffers = dict(module.named_buffers(recurse=False))
    if "running_mean" in buffers and "running_var" in buffers:  # frozen batch normalisation has no reset, and keeps its scale in buffers too
        for name, start in {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}.items():
            if name in buffers:
                buffers[name].fill_(start)


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
