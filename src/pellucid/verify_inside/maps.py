"""Pictures read anew and maps of them computed the plain way: a copy of the model whose attention is written out, one image at a time.

timm's attention modules are told not to use the fused kernel, and their probabilities are taken where dropout would change them;
`nn.MultiheadAttention` is replaced in the copy by its equations. From the probabilities and their gradients come attention, rollout and relevance by
full matrix products, and Grad-CAM from the output of its layer. Shares no line with `inside`. Attention of another kind (windows of Swin) has no
plain way here: `Plain.maps` then lacks it.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2

from pellucid.data.dataset import Dataset, Masks, Split
from pellucid.data.images import decode, resize, view_box, view_mask
from pellucid.data.masks import mask_beside, masks_of
from pellucid.files import bytes_hash
from pellucid.findings import MapKind
from pellucid.recipe import Recipe
from pellucid.run import Run
from pellucid.runtime import Runtime
from pellucid.schema import InsideSection

_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls")
ROUNDING = 1e-5  # of the terms of a sum in float32 that goes through a whole network

Floats = NDArray[np.float64]
Grid = tuple[int, int]


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Asked:
    """A picture that a recipe's `inside` names, not read yet. split, row: the image of the data that it is; row None for a photograph that is none."""

    name: str
    split: str
    row: int | None
    open: Callable[[], PIL.Image.Image]


@dataclass(frozen=True)
class Seen:
    """The pictures that a recipe's `inside` names, read now. inputs: (n, 3, H, W) as the model gets them; labels: -1 where nobody knows."""

    names: list[str]
    sizes: list[tuple[int, int]]
    boxes: list[tuple[float, float, float, float]]
    inputs: Tensor
    labels: list[int]
    masks: list[NDArray[np.uint8] | None]


def chosen_rows(labels: NDArray[np.integer], count: int) -> list[int]:
    """Rows of at most `count` images, each class with its share and evenly apart within a class: every (n / count)th of the rows ordered by class."""
    by_class = sorted(range(len(labels)), key=lambda row: (int(labels[row]), row))
    n, count = len(labels), min(count, len(labels))
    return sorted(by_class[math.floor((i + 0.5) * n / count)] for i in range(count)) if count else []


def in_turn(labels: NDArray[np.integer], rows: list[int]) -> list[int]:
    """Rows with the classes in turn: first the first of each class, then the second of each."""
    place = {row: sum(labels[other] == labels[row] for other in rows if other < row) for row in rows}
    return sorted(rows, key=lambda row: (place[row], labels[row], row))


def asked_for(inside: InsideSection, dataset: Dataset) -> list[Asked]:
    """Photographs in the order of the recipe, found in the data by their content, then samples of the split, none twice."""
    split, found = dataset.splits[inside.split], []
    for name in inside.images:
        content = Path(name).read_bytes()
        found.append(Asked(name, *_place(content, inside.split, dataset), partial(decode, content, name)))
    own = [one.row for one in found if one.split == inside.split]
    rows = [row for row in in_turn(split.labels, chosen_rows(split.labels, inside.samples)) if row not in own]
    return found + [Asked(split.names[row], inside.split, row, partial(split.open, row)) for row in rows]


def read_pictures(recipe: Recipe, inside: InsideSection, dataset: Dataset, mean: Sequence[float], std: Sequence[float]) -> Seen:
    """Photographs by their paths, samples of the split by their rows, and the masks of both."""
    d, split, asked = recipe.data, dataset.splits[inside.split], asked_for(inside, dataset)
    rows = [one.row if one.split == inside.split else None for one in asked]
    pictures = [one.open() for one in asked]
    labels = [-1 if one.row is None else int(dataset.splits[one.split].labels[one.row]) for one in asked]
    if split.masks is not None:
        whole, labels = _of_classes(inside, dataset, split.masks, rows)
    else:
        mask_of = masks_of(inside, d, split, sorted({row for row in rows if row is not None}))
        whole = [mask_of(row) if mask_of is not None and row is not None else None for row in rows]
        for i, name in enumerate(inside.images):
            if whole[i] is None:
                whole[i] = mask_beside(inside, name, (pictures[i].height, pictures[i].width))
    masks = [None if mask is None else view_mask(mask, d.size, d.fit, d.resize_size) for mask in whole]
    arrays = [resize(picture, d.size, d.fit, d.resize_size, d.interpolation) for picture in pictures]
    sizes = [(picture.height, picture.width) for picture in pictures]
    return Seen(
        [one.name for one in asked], sizes, [view_box(size, d.size, d.fit, d.resize_size) for size in sizes], as_inputs(recipe, arrays, mean, std),
        labels, masks,
    )  # fmt: skip


def _of_classes(inside: InsideSection, dataset: Dataset, masks: Masks, rows: Sequence[int | None]) -> tuple[list[NDArray[np.uint8] | None], list[int]]:
    """For each picture of a segmentation the mask (1, 0, 255) and the index of the class whose map is drawn, counted anew from its mask."""
    found: list[NDArray[np.uint8] | None] = []
    labels = []
    for row in rows:
        mask = np.full((1, 1), 255, np.uint8) if row is None else masks.open(row)
        wanted = inside.classes or [name for name in dataset.classes if name.lower() != "background"]
        sizes = {dataset.classes.index(name): int((mask == dataset.classes.index(name)).sum()) for name in wanted}
        best = max(sizes.values())
        c = next(c for c, size in sizes.items() if size == best) if best else -1
        labels.append(c)
        found.append(None if c < 0 else np.select([mask == 255, mask == c], [255, 1], 0).astype(np.uint8))
    return found, labels


class ScoresOfPixels(nn.Module):
    """A segmenter as `inside.pixel_scores` has it: (B, C) means of the logit of each class over the pixels predicted as it, over all where there is none."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.train(segmenter.training)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.segmenter(images)
        rows = []
        for own in logits:
            predicted = own.argmax(dim=0)
            rows.append(torch.stack([plane[predicted == c].mean() if bool((predicted == c).any()) else plane.mean() for c, plane in enumerate(own)]))
        return torch.stack(rows)


def as_inputs(recipe: Recipe, arrays: Sequence[NDArray[np.uint8]], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(n, 3, H, W) float32, cropped and normalised by torchvision."""
    size = list(recipe.data.size)
    prepare = v2.Compose([v2.CenterCrop(size), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
    made = [prepare(torch.from_numpy(np.array(array)).permute(2, 0, 1)) for array in arrays]
    return torch.stack(made) if made else torch.empty(0, 3, *size)


def cropped(array: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, the middle of a stored image (h, w, 3) by torchvision: what a model sees of it before it is normalised."""
    return np.ascontiguousarray(v2.functional.center_crop(torch.from_numpy(np.array(array)).permute(2, 0, 1), list(size)).permute(1, 2, 0).numpy())


def _place(content: bytes, first: str, dataset: Dataset) -> tuple[str, int | None]:
    """(split, row) of a photograph whose content an image of the data has."""
    wanted = bytes_hash(content)
    for name in (first, *(name for name in dataset.splits if name != first)):
        for row, found in enumerate(dataset.splits[name].hashes):
            if found == wanted:
                return name, row
    return first, None


# ── a copy whose attention is plain ───────────────────────────────────────────────────────────────────────────


@dataclass
class Plain:
    """What one kind of computation gives for n images.

    maps: {method: (n, gh, gw) float64, sums to 1 or 0 throughout}. slack: {method: (n,)} how far cancellation in float32 may move a map. shares:
    {method: (n,)} attention on tokens before the patches. heads: (n, h, gh, gw). outliers: (n, 2) least and most of the share of patch tokens with
    outlying norms. last: path of the last attention.
    """

    maps: dict[str, Floats] = field(default_factory=dict)
    slack: dict[str, Floats] = field(default_factory=dict)
    shares: dict[str, Floats] = field(default_factory=dict)
    heads: Floats | None = None
    outliers: Floats | None = None
    last: str = ""


@dataclass
class _One:
    """The same for one image, tensors by method."""

    maps: dict[str, Floats] = field(default_factory=dict)
    slack: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    heads: Floats | None = None
    outliers: tuple[float, float] | None = None
    last: str = ""


def plainly(model: nn.Module, inputs: Tensor, targets: Sequence[int], kinds: Mapping[str, MapKind]) -> Plain:
    """The maps of `kinds` that have a plain way, for images (n, 3, H, W) and the class that is explained for each."""
    seen: list[tuple[str, Tensor]] = []
    plain = _plain_copy(model, seen)
    rows = []
    for image, target in zip(inputs.split(1), targets, strict=True):
        seen.clear()
        rows.append(_one(plain, image, target, kinds, seen))
    found = Plain(last=rows[0].last if rows else "")
    for method in rows[0].maps if rows else ():
        found.maps[method] = np.stack([row.maps[method] for row in rows])
        found.slack[method] = np.array([row.slack.get(method, 0.0) for row in rows])
        if all(method in row.shares for row in rows):
            found.shares[method] = np.array([row.shares[method] for row in rows])
    if rows and all(row.heads is not None for row in rows):
        found.heads = np.stack([row.heads for row in rows if row.heads is not None])
    if rows and all(row.outliers is not None for row in rows):
        found.outliers = np.array([row.outliers for row in rows])
    return found


def _plain_copy(model: nn.Module, seen: list[tuple[str, Tensor]]) -> nn.Module:
    """A copy in eval mode whose attention, where it has a plain form, is written out and goes to `seen`."""
    plain = copy.deepcopy(model).eval()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)  # the gradient runs through the activations
    for path, module in plain.named_modules():
        _unfuse(path, module, seen)
    return plain


@torch.no_grad()
def attentions(model: nn.Module, inputs: Tensor) -> list[list[tuple[str, Floats]]]:
    """For each of (n, 3, H, W) images path and probabilities (h, N, N) of each attention that has a plain form, in the order in which they ran."""
    seen: list[tuple[str, Tensor]] = []
    plain, found = _plain_copy(model, seen), []
    for image in inputs.split(1):
        seen.clear()
        plain(image)
        found.append([(path, A[0].double().cpu().numpy()) for path, A in seen if len(A) == 1])
    return found


def _unfuse(path: str, module: nn.Module, seen: list[tuple[str, Tensor]]) -> None:
    """Make an attention module of a known kind write out its probabilities (B, h, N, N) and keep them, in the graph."""
    if isinstance(module, nn.MultiheadAttention):
        if module.batch_first and module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn:
            module.forward = partial(_equations, module, path, seen)  # type: ignore[assignment]
    elif hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Dropout):
        module.fused_attn = False  # type: ignore[assignment]
        module.attn_drop.register_forward_hook(lambda _, given, output: _keep(path, output, seen))  # type: ignore[union-attr]


def _keep(path: str, probabilities: Tensor, seen: list[tuple[str, Tensor]]) -> Tensor:
    if probabilities.requires_grad:
        probabilities.retain_grad()
    seen.append((path, probabilities))
    return probabilities


def _equations(
    module: nn.MultiheadAttention, path: str, seen: list[tuple[str, Tensor]], query: Tensor, key: Tensor, value: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Multi-head attention (Vaswani et al. 2017, section 3.2) without masks, for (B, N, D)."""
    B, N, D = query.shape
    parts = zip((query, key, value), module.in_proj_weight.chunk(3), (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3), strict=True)
    q, k, v = (nn.functional.linear(x, w, b).view(B, -1, module.num_heads, D // module.num_heads).transpose(1, 2) for x, w, b in parts)
    probabilities = _keep(path, (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1), seen)
    return module.out_proj((probabilities @ v).transpose(1, 2).reshape(B, N, D)), None


def _one(plain: nn.Module, image: Tensor, target: int, kinds: Mapping[str, MapKind], seen: list[tuple[str, Tensor]]) -> _One:
    """One image (1, 3, H, W), forward and backward."""
    found, kept = _One(), dict[str, Tensor]()
    handles = []
    if "grad_cam" in kinds:
        handles.append(plain.get_submodule(kinds["grad_cam"].layer).register_forward_hook(lambda _, given, output: _watch("cam", output, kept)))
    if "attention" in kinds:
        block = plain.get_submodule(kinds["attention"].layer.rpartition(".")[0])
        handles.append(block.register_forward_hook(lambda _, given, output: _watch("block", output, kept)))
    try:
        with torch.enable_grad():
            logits = plain(image.clone().requires_grad_().clone())
            logits[0, target].backward()
    finally:
        for handle in handles:
            handle.remove()
    if "grad_cam" in kinds:
        _grad_cam(kept["cam"], kinds["grad_cam"].grid, found)
    grid = next((kinds[name].grid for name in ("attention", "rollout", "relevance") if name in kinds), None)
    if grid is not None:
        _from_attention(plain, seen, grid, kinds, found)
        if "attention" in found.maps and "block" in kept:
            found.outliers = _outliers(kept["block"], grid)
    return found


def _watch(name: str, output: Any, kept: dict[str, Tensor]) -> Any:
    """Keep a layer's output with its gradient; the model goes on with a copy, which it may change in place."""
    if not isinstance(output, Tensor):
        return output
    kept[name] = output
    if output.requires_grad:
        output.retain_grad()
    return output.clone()


# ── the maps ──────────────────────────────────────────────────────────────────────────────────────────────────


def _shares(values: Tensor) -> Floats:
    x: Floats = values.detach().double().cpu().numpy()
    return x / x.sum() if x.sum() > 0 else np.zeros_like(x)


def _from_attention(plain: nn.Module, seen: list[tuple[str, Tensor]], grid: Grid, kinds: Mapping[str, MapKind], found: _One) -> None:
    """Attention, rollout and relevance where every layer attends over the patches behind the same tokens."""
    shapes = {A.shape[-2:] for _, A in seen}
    if len(shapes) != 1 or any(A.shape[0] != 1 or A.shape[-1] != A.shape[-2] for _, A in seen):
        return
    N = seen[0][1].shape[-1]
    before = N - math.prod(grid)
    if not 0 <= before <= 32:
        return
    has_class = before > 0 and any(name.rsplit(".", 1)[-1] in CLASS_TOKENS for name, _ in plain.named_parameters())
    rows = [0] if has_class else list(range(before, N))
    found.last = seen[-1][0]
    by_path = dict(seen)
    if "attention" in kinds and kinds["attention"].layer in by_path:
        row = by_path[kinds["attention"].layer][0, :, rows].detach().double().mean(dim=1)  # (h, N)
        found.maps["attention"] = _shares(row.mean(dim=0)[before:].view(grid))
        found.shares["attention"] = float(row[:, :before].sum(dim=1).mean())
        found.heads = np.stack([_shares(head[before:].view(grid)) for head in row])
    if "rollout" in kinds:
        product = torch.eye(N, dtype=torch.float64, device=seen[0][1].device)
        for _, A in seen:
            product = (A[0].detach().double().mean(dim=0) + torch.eye(N, device=A.device)) / 2 @ product
        row = product[rows].mean(dim=0)
        found.maps["rollout"], found.shares["rollout"] = _shares(row[before:].view(grid)), float(row[:before].sum())
    gradients = [A.grad for _, A in seen]
    if "relevance" in kinds and all(g is not None for g in gradients):
        found.maps["relevance"] = _relevance([(A, A.grad) for _, A in seen if A.grad is not None], before, grid)


def _relevance(layers: list[tuple[Tensor, Tensor]], before: int, grid: Grid) -> Floats:
    """Chefer, Gur and Wolf 2021, eq. 5 and 6, with the whole matrix R; the rows of the tokens that the head reads."""
    N = layers[0][0].shape[-1]
    R = torch.eye(N, dtype=torch.float64, device=layers[0][0].device)
    for A, gradient in layers:
        R = R + (A[0].detach().double() * gradient[0].double()).clamp(min=0).mean(dim=0) @ R
    read = [i for i in range(before) if bool(layers[-1][1][0, :, i].any())]  # a token that nobody reads has a row without gradient
    return _shares(R[read or list(range(before, N))].mean(dim=0)[before:].view(grid))


def _grad_cam(output: Tensor, grid: Grid, found: _One) -> None:
    """Selvaraju et al. 2017, eq. 1 and 2, over the patches."""
    if output.grad is None or not bool(output.grad.any()):
        found.maps["grad_cam"] = np.zeros(grid)
        return
    activation, slope = (_patches(x.detach().double()[0], grid) for x in (output, output.grad))  # (gh gw, C)
    alpha = slope.mean(dim=0)
    values = (alpha * activation).sum(dim=1).clamp(min=0)
    total = float(values.sum())
    found.maps["grad_cam"] = _shares(values.view(grid))
    found.slack["grad_cam"] = ROUNDING * float((alpha * activation).abs().sum(dim=1).max()) / total if total > 0 else 0.0


def _patches(x: Tensor, grid: Grid) -> Tensor:
    """(gh gw, C) of (N, C), (C, gh, gw) or (gh, gw, C)."""
    if x.dim() == 2:
        return x[len(x) - math.prod(grid) :]
    if tuple(x.shape[1:]) == tuple(grid):
        return x.flatten(1).T
    return x.flatten(0, 1)


def _outliers(output: Tensor, grid: Grid) -> tuple[float, float] | None:
    """Least and most of the share of patch tokens whose norm is above median + 5 * 1.4826 MAD and 1.5 medians; they differ where one lies on the edge."""
    if output.dim() != 3 or output.shape[1] < math.prod(grid):
        return None
    norms = np.linalg.norm(_patches(output.detach().double()[0], grid).cpu().numpy(), axis=1)
    middle = float(np.median(norms))
    edge = max(middle + 5 * 1.4826 * float(np.median(np.abs(norms - middle))), 1.5 * middle)
    return float((norms > edge * (1 + 1e-4)).mean()), float((norms > edge * (1 - 1e-4)).mean())


# ── random weights ────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def with_random_weights(model: nn.Module, seed: int) -> nn.Module:
    """A copy that learned nothing: modules start anew in their order, and what that leaves is drawn with the mean and the deviation that it has."""
    made = copy.deepcopy(model).cpu()
    was = {name: p.clone() for name, p in made.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in made.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset) and not any(p.default is p.empty and p.kind not in _OPEN for p in inspect.signature(reset).parameters.values()):
                reset()
            buffers = dict(module.named_buffers(recurse=False))
            if {"running_mean", "running_var"} <= buffers.keys():
                for name, value in (("running_mean", 0.0), ("running_var", 1.0), ("weight", 1.0), ("bias", 0.0)):
                    if name in buffers:
                        buffers[name].fill_(value)
        for name, p in made.named_parameters():
            if p.is_floating_point() and p.numel() and torch.equal(p, was[name]):
                p.copy_(p.double().mean() + p.double().std(correction=0) * torch.randn(p.shape, dtype=torch.float64))
    return made.to(next(model.parameters()).device)


# ── features ──────────────────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def features(model: nn.Module, run: Run, split: Split, rows: Sequence[int], runtime: Runtime, batch: int) -> NDArray[np.float32]:
    """(p, D) what the classifier sees of rows of a split: the input of the last layer in front of the logits; of a pre-training what the model gives."""
    recipe, mean, std = run.recipe, run.data.mean, run.data.std
    d = recipe.data
    ask = getattr(model, "get_classifier", None)
    head = ask() if callable(ask) else None
    head = head[0] if isinstance(head, tuple) else head
    layers = [m for m in (model if head is None else head).modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    given: list[Tensor] = []
    found = []
    with layers[-1].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])):
        for start in range(0, len(rows), batch):
            arrays = [resize(split.open(row), d.size, d.fit, d.resize_size, d.interpolation) for row in rows[start : start + batch]]
            images = as_inputs(recipe, arrays, mean, std).to(runtime.device).contiguous(memory_format=runtime.memory_format)
            with runtime.autocast():
                output = model(images)
            if recipe.method is not None:
                found.append(output.float().cpu().numpy())
                continue
            x = given.pop().float()
            spatial = x.flatten(2).mean(dim=2) if isinstance(layers[-1], nn.Conv2d) else x.reshape(len(x), -1, x.shape[-1]).mean(dim=1)
            found.append(spatial.cpu().numpy())
    return np.concatenate(found)
