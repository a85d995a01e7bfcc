"""Grad-CAM, integrated gradients and occlusion against what their definitions give by hand, in float64; each family of models finds its layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18, squeezenet1_0
from torchvision.models.swin_transformer import SwinTransformer
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from pellucid.errors import UsageError
from pellucid.inside.attribution import Attribution, _default_window, integrated_gradients, occlusion, pooled
from pellucid.inside.grad_cam import grad_cam
from pellucid.inside.outputs import logits_of
from pellucid.inside.relevance import relevance

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
SWIN: dict[str, Any] = {"window_size": 4, "depths": (1, 2), "num_heads": (1, 2), "embed_dim": 16, "num_classes": 5}
HF: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 5}


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights so large that no map is nearly flat; a layer that starts at zero would hide what depends on it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() < 2 else (2 / p[0].numel()) ** 0.5) + (1.0 if p.dim() < 2 else 0.0))
    return model


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TwoLayers(nn.Module):
    """conv, ReLU, conv, ReLU in place, mean over positions, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def after_first(self, a: Tensor) -> Tensor:
        return self.head(self.act(self.second(torch.tanh(a))).mean(dim=(2, 3)))

    def after_second(self, a: Tensor) -> Tensor:
        return self.head(torch.relu(a).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.after_first(self.first(x))


def slopes(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a function of one sample by central differences in float64, one entry at a time: no autograd."""
    flat, found = at.flatten(), torch.zeros(at.numel(), dtype=torch.float64)
    with torch.no_grad():
        for part in torch.arange(at.numel()).split(256):
            moved = torch.zeros(len(part), at.numel(), dtype=torch.float64)
            moved[torch.arange(len(part)), part] = step
            up, down = (function((flat + sign * moved).view(-1, *at.shape)) for sign in (1, -1))
            found[part] = (up - down) / (2 * step)
    return found.view_as(at)


def cam(activation: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eq. 1 and 2 of the paper for one image, both (gh, gw, C), loop by loop."""
    gh, gw, C = activation.shape
    alpha = [sum(gradient[i, j, k] for i in range(gh) for j in range(gw)) / (gh * gw) for k in range(C)]
    return np.array([[max(0.0, sum(alpha[k] * activation[i, j, k] for k in range(C))) for j in range(gw)] for i in range(gh)])


# ── Grad-CAM ──


@pytest.mark.parametrize("layer", ["first", "second"])
def test_grad_cam_of_a_cnn_is_its_two_equations(layer: str) -> None:
    model, images, targets = lively(TwoLayers(), seed=2).double().eval(), drawn(2, 3, 8, 12, dtype=torch.float64), torch.tensor([1, 2])
    found = grad_cam(model, images, targets=targets, layer=layer)
    assert found.values.shape == (2, 4, 6)
    assert found.values.dtype == np.float32
    for i, target in enumerate(targets.tolist()):
        with torch.no_grad():
            a = model.first(images[i : i + 1])[0] if layer == "first" else model.second(torch.tanh(model.first(images[i : i + 1])))[0]
        after = model.after_first if layer == "first" else model.after_second
        gradient = slopes(lambda x, after=after, target=target: after(x)[:, target], a)
        expected = cam(a.permute(1, 2, 0).numpy(), gradient.permute(1, 2, 0).numpy())
        assert expected.max() > 0
        np.testing.assert_allclose(found.values[i], expected, rtol=1e-5, atol=1e-6)
        assert np.abs(found.values[1 - i] - expected).max() > 1e-3  # the other image's differs
    assert found.targets.tolist() == [1, 2]
    assert (found.layer, found.method) == (layer, "Grad-CAM")


def test_grad_cam_of_a_vit_is_its_two_equations_over_patches() -> None:
    model = lively(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL)).double().eval()
    images, target = drawn(1, 3, 32, 32, dtype=torch.float64), 3
    block = model.blocks[1]
    with torch.no_grad():
        x = model.blocks[0](model._pos_embed(model.patch_embed(images)))
        a = block.norm1(x)[0]

    def after(a: Tensor) -> Tensor:
        y = x + block.attn(a)
        return model.head(model.norm(y + block.mlp(block.norm2(y)))[:, 0])[:, target]

    torch.testing.assert_close(after(a[None]), model(images)[:, target])  # split in the right place
    gradient = slopes(after, a)
    expected = cam(a[1:].view(4, 4, 32).numpy(), gradient[1:].view(4, 4, 32).numpy())
    found = grad_cam(model, images, targets=torch.tensor([target]))
    assert found.layer == "blocks.1.norm1"
    assert "1 prefix token left out" in found.how
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-5, atol=1e-7)
    assert np.abs(found.values[0] - expected.T).max() > 1e-3 * expected.max()  # the control: rows for columns


def pooled_like_vgg() -> nn.Module:
    """Two convolutions, a pooling in the features, then one to 7 x 7: neither is the last convolution's map."""
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d((7, 7)), nn.Flatten(), nn.Linear(12 * 49, 16), nn.ReLU(), nn.Linear(16, 5))


# family: (model, image, the layer it should find, "first" | "last" | tokens before the patches, grid)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], str, str | int, tuple[int, int]]] = {
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, **SMALL), (64, 64), "blocks.1.norm1", 1, (4, 4)),
    "vit, not square": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), **SMALL), (64, 96), "blocks.1.norm1", 1, (4, 6)),
    "vit, 384 px": (lambda: timm.create_model("vit_tiny_patch16_384", **SMALL), (384, 384), "blocks.1.norm1", 1, (24, 24)),
    "distilled": (lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, **SMALL), (64, 64), "blocks.1.norm1", 2, (4, 4)),
    "registers": (lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, **SMALL), (56, 56), "blocks.1.norm1", 5, (4, 4)),
    "no class token": (lambda: timm.create_model("vit_base_patch16_gap_224", img_size=64, **SMALL), (64, 64), "norm", 0, (4, 4)),
    # (B, h, N, d) with N = d = 17 could pass for a square map of h channels
    "normed queries": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, qk_norm=True, **SMALL | {"embed_dim": 34}), (64, 64), "blocks.1.norm1", 1, (4, 4)),
    "class token not read": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, global_pool="avg", **SMALL), (64, 64), "blocks", 1, (4, 4)),
    "timm swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=(64, 96), **SWIN), (64, 96), "norm", "last", (8, 12)),
    "resnet10t": (lambda: timm.create_model("resnet10t", num_classes=5), (64, 96), "layer4", "first", (2, 3)),
    "mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), (64, 64), "blocks", "first", (2, 2)),
    "resnet18": (lambda: resnet18(num_classes=5), (64, 64), "layer4", "first", (2, 2)),
    "squeezenet": (lambda: squeezenet1_0(num_classes=5), (64, 64), "features", "first", (3, 3)),
    "vgg, before its last pooling": (pooled_like_vgg, (32, 32), "0.3", "first", (16, 16)),
    "torchvision swin": (lambda: SwinTransformer([4, 4], 16, [1, 2], [1, 2], [4, 4], num_classes=5), (64, 96), "norm", "last", (8, 12)),
    "torchvision vit": (lambda: VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5), (64, 64), "encoder.layers.encoder_layer_1.ln_1", 1, (4, 4)),
    "transformers vit": (lambda: ViTForImageClassification(ViTConfig(image_size=64, **HF)), (64, 64), "vit.layers.1.layernorm_before", 1, (4, 4)),
    "transformers deit": (lambda: DeiTForImageClassification(DeiTConfig(image_size=64, **HF)), (64, 64), "deit.layers.1.layernorm_before", 2, (4, 4)),
    "transformers dinov2": (lambda: Dinov2ForImageClassification(Dinov2Config(image_size=56, **HF)), (56, 56), "dinov2.layernorm", 1, (4, 4)),
    "transformers swin": (
        lambda: SwinForImageClassification(SwinConfig(image_size=64, embed_dim=16, depths=[1, 2], num_heads=[1, 2], window_size=4, num_labels=5)),
        (64, 64), "swin.layernorm", 0, (8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_finds_its_layer_and_reads_it_in_place(family: str) -> None:
    make, size, layer, axes, grid = FAMILIES[family]
    model, images = lively(make()).eval(), drawn(2, 3, *size)
    outputs: list[Tensor] = []
    with model.get_submodule(layer).register_forward_hook(lambda m, i, o: outputs.append(o)):
        result = model(images)
    scores = result if isinstance(result, Tensor) else result.logits
    largest = 0.0
    for target in range(3):
        found = grad_cam(model, images, targets=torch.full((2,), target))
        assert (found.layer, found.values.shape) == (layer, (2, *grid))
        gradient = torch.autograd.grad(scores[:, target].sum(), outputs[0], retain_graph=True)[0]
        for i in range(2):
            a, g = (x[i].detach().double() for x in (outputs[0], gradient))
            if axes == "first":
                a, g = a.permute(1, 2, 0), g.permute(1, 2, 0)
            elif isinstance(axes, int):
                a, g = a[axes:].reshape(*grid, -1), g[axes:].reshape(*grid, -1)
            weighted = g.mean(dim=(0, 1)) * a
            np.testing.assert_allclose(found.values[i], torch.relu(weighted.sum(dim=-1)).numpy(), atol=1e-5 * float(weighted.abs().sum(dim=-1).max()))
            largest = max(largest, float(found.values[i].max() / weighted.abs().sum(dim=-1).max()))
    assert largest > 0.01  # not only zeros were compared


def test_without_targets_the_predicted_class_is_explained() -> None:
    model, images = lively(TwoLayers(), seed=2).eval(), drawn(8, 3, 16, 16)
    predicted = model(images).argmax(dim=1)
    assert len(set(predicted.tolist())) > 1
    for method in (grad_cam, integrated_gradients, occlusion):
        options: dict[str, Any] = {"steps": 2} if method is integrated_gradients else {"window": 8} if method is occlusion else {}
        found = method(model, images, **options)
        assert found.targets.tolist() == predicted.tolist()
        np.testing.assert_array_equal(found.values, method(model, images, targets=predicted, **options).values)


@pytest.mark.parametrize(
    ("family", "layer", "others"),
    [
        ("timm vit", "blocks.1.norm2", "blocks.1.norm1"),
        ("timm vit", "norm", "blocks.1.norm1"),
        ("torchvision vit", "encoder", "encoder.layers.encoder_layer_1.ln_1"),
    ],
)
def test_a_layer_without_gradient_at_patches_is_refused(family: str, layer: str, others: str) -> None:
    make, size, *_ = FAMILIES[family]
    with pytest.raises(UsageError) as refused:
        grad_cam(lively(make()), drawn(1, 3, *size), layer=layer)
    assert f"layer {layer!r} gives no Grad-CAM: the gradient of the class logit is exactly zero at every patch" in str(refused.value)
    assert f"{others!r} would do" in str(refused.value)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("blocks.1.nrom1", "expected the name of a module, got 'blocks.1.nrom1'. Did you mean 'blocks.1.norm1'? 'blocks.1.norm1' would do."),
        ("head", "layer 'head' returns (B, 5), which holds no map of the image. 'blocks.1.norm1' would do."),
        ("spare", "layer 'spare' returned no tensor during the forward pass (or did not run). 'blocks.1.norm1' would do."),
    ],
)
def test_a_layer_that_holds_no_map_is_named(layer: str, words: str) -> None:
    model = lively(FAMILIES["timm vit"][0]())
    model.add_module("spare", nn.Linear(2, 2))
    with pytest.raises(UsageError) as refused:
        grad_cam(model, drawn(1, 3, 64, 64), layer=layer)
    assert words in str(refused.value)


def test_a_score_that_depends_on_nothing_has_no_layer() -> None:
    model = VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)  # its head starts at zero
    with pytest.raises(UsageError, match="the score of this class is constant for this image"):
        grad_cam(model, drawn(1, 3, 64, 64))


def test_the_layer_is_found_far_from_the_end() -> None:
    model, images = lively(FAMILIES["timm vit"][0]()), drawn(1, 3, 64, 64)
    model.norm = nn.Sequential(*(nn.LayerNorm(32) for _ in range(12)))
    assert grad_cam(model, images).layer == "blocks.1.norm1"
    assert "the class-token row" in relevance(model, images).how


def test_adding_in_place_behind_a_layer_changes_nothing() -> None:
    model, images = lively(resnet18(num_classes=5)).eval(), drawn(1, 3, 64, 64)
    block = model.layer4[1]  # out = bn2(…); out += identity
    with torch.no_grad():
        kept: list[Tensor] = []
        with block.bn2.register_forward_hook(lambda m, i, o: kept.append(o.clone())):
            scores = model(images)
        target = int(scores.argmax())
        identity = model.layer4[0](model.layer3(model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(images))))))))
        mask = (kept[0] + identity > 0)[0].double()  # the head reads ReLU(bn2 + identity)
    gradient = model.fc.weight[target].detach().double()[:, None, None] * mask / 4
    expected = torch.relu((gradient.mean(dim=(1, 2), keepdim=True) * kept[0][0]).sum(dim=0)).numpy()
    found = grad_cam(model, images, layer="layer4.1.bn2")
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-3, atol=1e-5)


def test_a_compiled_model_is_looked_into() -> None:
    model, images = lively(TwoLayers()), drawn(2, 3, 8, 12)
    np.testing.assert_array_equal(grad_cam(torch.compile(model, backend="eager"), images).values, grad_cam(model, images).values)


# ── integrated gradients ──


class Polynomial(nn.Module):
    """Logit 1 is the sum of w x^power, logit 0 is 0."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power, self.w = power, nn.Parameter(drawn(3, 4, 5, seed=7, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) <= 4, "more images at once than were allowed"
        score = (self.w * x**self.power).sum(dim=(1, 2, 3))
        return torch.stack([0 * score, score], dim=1)


def explained(power: int, images: Tensor, **options: Any) -> tuple[Attribution, NDArray[np.float64]]:
    model = Polynomial(power)
    return integrated_gradients(model, images, targets=torch.ones(len(images), dtype=torch.int64), internal_batch_size=4, **options), model.w.detach().numpy()


@pytest.mark.parametrize("steps", [1, 3, 32])
def test_integrated_gradients_of_a_linear_model_are_weight_times_difference(steps: int) -> None:
    images = drawn(6, 3, 4, 5, dtype=torch.float64)
    found, w = explained(1, images, steps=steps, baseline=0.5)
    np.testing.assert_allclose(found.values, np.abs((w * (images.numpy() - 0.5)).sum(axis=1)), rtol=1e-5, atol=1e-6)
    assert found.logit_change is not None
    assert found.completeness_gap is not None
    np.testing.assert_allclose(found.logit_change, (w * (images.numpy() - 0.5)).sum(axis=(1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found.completeness_gap, 0, atol=1e-5)


def test_integrated_gradients_of_squares_are_the_difference_of_squares() -> None:
    images, start = drawn(2, 3, 4, 5, dtype=torch.float64), drawn(3, 4, 5, seed=3, dtype=torch.float64)
    found, w = explained(2, images, steps=2, baseline=start)
    np.testing.assert_allclose(found.values, np.abs((w * (images.numpy() ** 2 - start.numpy() ** 2)).sum(axis=1)), rtol=1e-5, atol=1e-6)


def test_the_completeness_gap_is_the_error_of_the_rule() -> None:
    images = drawn(2, 3, 4, 5, dtype=torch.float64)
    total = lambda w: (w * images.numpy() ** 3).sum(axis=(1, 2, 3))  # noqa: E731
    coarse, w = explained(3, images, steps=1)  # one point, in the middle: x 3 (x / 2)^2 = 3/4 x^3
    assert coarse.completeness_gap is not None
    np.testing.assert_allclose(coarse.completeness_gap, -total(w) / 4, rtol=1e-5)
    fine, _ = explained(3, images, steps=2)  # two points are exact to the third degree
    assert fine.completeness_gap is not None
    np.testing.assert_allclose(fine.completeness_gap, 0, atol=1e-5)
    assert "2 Gauss-Legendre steps" in fine.how


# ── occlusion ──


@pytest.mark.parametrize(("window", "stride", "grid"), [((4, 4), None, (2, 3)), ((4, 6), (2, 3), (4, 4)), (3, 2, (4, 6)), ((5, 5), 5, (2, 2))])
def test_occlusion_is_the_fall_of_the_logit_window_by_window(window: Any, stride: Any, grid: tuple[int, int]) -> None:
    model, images = lively(TwoLayers()).double().eval(), drawn(2, 3, 8, 12, dtype=torch.float64)
    targets = torch.tensor([1, 2])
    found = occlusion(model, images, targets=targets, window=window, stride=stride, batch_size=5, baseline=0.25)
    (h, w), (dy, dx) = np.broadcast_to(window, 2), np.broadcast_to(stride if stride is not None else window, 2)
    expected = np.zeros((2, 8, 12))
    for i, target in enumerate(targets.tolist()):
        falls, counts = np.zeros((8, 12)), np.zeros((8, 12))
        whole = float(model(images[i : i + 1]).detach()[0, target])
        for y, x in itertools.product(range(0, 8 - h + dy, dy), range(0, 12 - w + dx, dx)):  # the last window may hang over the edge
            covered = images[i : i + 1].clone()
            covered[:, :, y : y + h, x : x + w] = 0.25
            falls[y : y + h, x : x + w] += whole - float(model(covered).detach()[0, target])
            counts[y : y + h, x : x + w] += 1
        expected[i] = falls / counts
    means = area_sums(expected, grid) / (8 / grid[0] * 12 / grid[1])
    assert means.max() > 0
    np.testing.assert_allclose(found.values, np.maximum(means, 0), rtol=1e-4, atol=1e-6)


def test_occlusion_covers_a_patch_of_a_model_that_reads_patches() -> None:
    images = drawn(1, 3, 64, 96)
    found = occlusion(lively(FAMILIES["vit, not square"][0]()), images)
    assert found.values.shape == (1, 4, 6)
    assert "16 x 16 pixels are covered" in found.how
    found = occlusion(lively(TwoLayers()), images[:, :, :29, :42])
    assert found.values.shape == (1, 14, 21)
    assert "2 x 2 pixels are covered with the baseline, every 2 x 2" in found.how
    for family in ("timm swin", "transformers swin"):
        model, size = lively(FAMILIES[family][0]()).eval(), FAMILIES[family][1]
        assert _default_window(model, drawn(1, 3, *size), torch.tensor([0]), logits_of) == (4, 4), family


def test_occlusion_holds_no_more_images_than_it_may() -> None:
    sizes: list[int] = []
    model = lively(TwoLayers())
    with model.register_forward_pre_hook(lambda m, inputs: sizes.append(len(inputs[0]))):
        occlusion(model, drawn(9, 3, 8, 12), window=2, batch_size=4)
    assert max(sizes) == 4


# ── what they share ──


def area_sums(values: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.float64]:
    """The slow twin of `pooled`: each pixel cut at the cell borders."""
    B, H, W = values.shape
    out = np.zeros((B, *grid))
    for b, y, x, i, j in itertools.product(range(B), range(H), range(W), range(grid[0]), range(grid[1])):
        tall = min(y + 1, (i + 1) * H / grid[0]) - max(y, i * H / grid[0])
        wide = min(x + 1, (j + 1) * W / grid[1]) - max(x, j * W / grid[1])
        out[b, i, j] += values[b, y, x] * max(tall, 0) * max(wide, 0)
    return out


@pytest.mark.parametrize("grid", [(2, 3), (3, 4), (7, 5), (1, 1)])
def test_pooling_keeps_the_mass_of_every_cell(grid: tuple[int, int]) -> None:
    values = drawn(2, 8, 9).abs().numpy()
    found = pooled(values, grid)
    np.testing.assert_allclose(found, area_sums(values, grid), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), values.sum(axis=(1, 2)), rtol=1e-5)
    with pytest.raises(UsageError, match="rows: expected at least 1, got 0"):
        pooled(values, (0, 2))


METHODS: dict[str, Callable[..., Attribution]] = {
    "grad_cam": grad_cam,
    "integrated_gradients": lambda *a, **k: integrated_gradients(*a, steps=3, **k),
    "occlusion": lambda *a, **k: occlusion(*a, window=8, **k),
    "relevance": relevance,
}


@pytest.mark.parametrize("method", list(METHODS))
def test_the_model_is_left_as_it_was(method: str) -> None:
    model, images = lively(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, proj_drop_rate=0.5, **SMALL)), drawn(3, 3, 32, 32)
    expected = METHODS[method](model.eval(), images).values
    model.train()
    model.blocks[0].eval()
    for p in model.parameters():
        p.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    with torch.no_grad():
        quiet = METHODS[method](model, images).values
    with torch.inference_mode():
        np.testing.assert_array_equal(METHODS[method](model, images).values, quiet)
    np.testing.assert_allclose(quiet, expected, rtol=1e-4, atol=1e-6)  # eval mode, with frozen parameters
    assert [m.training for m in model.modules()] == modes
    assert not any(p.requires_grad for p in model.parameters())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]
    assert bool((model.head.weight.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), random)
    assert not images.requires_grad
    assert images.grad is None


@pytest.mark.parametrize("method", list(METHODS))
def test_hooks_and_modes_are_put_back_after_an_error(method: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL).train()
    calls = itertools.count()

    def fail(module: nn.Module, inputs: Any) -> None:
        if next(calls) >= (2 if method == "integrated_gradients" else 1):
            raise RuntimeError("out of luck")

    with model.blocks[1].register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="out of luck"):
        METHODS[method](model, drawn(2, 3, 32, 32))
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not torch.nn.modules.module._global_forward_hooks
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("method", list(METHODS))
def test_wrong_questions_are_named(method: str) -> None:
    model, images = lively(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL)), drawn(2, 3, 32, 32)
    with pytest.raises(UsageError, match=r"targets: expected classes from 0 to 4, got 1 to 5"):
        METHODS[method](model, images, targets=torch.tensor([1, 5]))
    with pytest.raises(UsageError, match=r"targets: expected the index of one class for each of 2 images, got \(1,\)"):
        METHODS[method](model, images, targets=torch.tensor([1]))
    with pytest.raises(UsageError, match=r"images: expected normalised images \(B, 3, H, W\) in floating point, got \(3, 32, 32\)"):
        METHODS[method](model, images[0])
    with pytest.raises(UsageError, match="pass logits= to reduce them to one row an image"):
        METHODS[method](model, images, logits=lambda output: output[:, :, None])


@pytest.mark.parametrize("method", list(METHODS))
def test_logits_can_be_picked_and_other_classes_give_other_maps(method: str) -> None:
    model, images = lively(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL)), drawn(2, 3, 32, 32)
    maps = [METHODS[method](model, images, targets=torch.full((2,), c)).values for c in range(5)]
    rolled = [METHODS[method](model, images, targets=torch.full((2,), c), logits=lambda output: output.roll(-1, dims=1)).values for c in range(4)]
    for c, found in enumerate(rolled):
        np.testing.assert_allclose(found, maps[c + 1], rtol=1e-4, atol=1e-6)
    assert max(np.abs(one - other).max() for one, other in itertools.pairwise(maps)) > 0.01 * max(found.max() for found in maps)


@pytest.mark.parametrize(
    ("option", "words"),
    [({"window": 33}, "window: expected 1 to 32 x 32 pixels, got 33 x 33"), ({"window": 8, "stride": 9}, "stride: expected 1 to 8 x 8 pixels")],
)
def test_windows_and_strides_that_cannot_cover_are_named(option: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        occlusion(lively(TwoLayers()), drawn(1, 3, 32, 32), **option)
    with pytest.raises(UsageError, match="steps: expected at least 1, got 0"):
        integrated_gradients(lively(TwoLayers()), drawn(1, 3, 32, 32), steps=0)
