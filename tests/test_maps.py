"""Maps of attention over the image, and every kind of map under one name: against slow twins on small models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.attention import record
from pellucid.inside.maps import attention_layers, attention_map, attention_rollout
from pellucid.inside.survey import fitting, heads_of, maps_of

pytestmark = pytest.mark.usefixtures("seeded")


def vit(**options: Any) -> nn.Module:
    small = {"img_size": (24, 40), "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 5} | options
    model = timm.create_model("vit_tiny_patch16_224", **small)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    return model


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(56, 40), patch_size=4, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=5
    )


IMAGES = torch.Generator().manual_seed(3)


def images(height: int = 24, width: int = 40, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=IMAGES)


def weights(model: nn.Module, x: Tensor) -> list[np.ndarray]:
    """(B, h, N, N) float64 of each layer."""
    with torch.no_grad(), record(model.eval(), rows="all") as recording:
        model(x)
    return [r.weights.double().numpy() for r in recording.records]


def test_the_map_of_the_class_token_leaves_prefix_tokens_out_and_keeps_their_share() -> None:
    model, x = vit(), images()
    row = weights(model, x)[-1].mean(1)[:, 0]  # (B, 16)
    found = attention_map(model, x)
    assert found.values.shape == (2, 3, 5)
    assert found.values.dtype == np.float32
    assert np.allclose(found.values, (row[:, 1:] / row[:, 1:].sum(1, keepdims=True)).reshape(2, 3, 5), atol=1e-6)
    assert np.allclose(found.prefix_share, row[:, 0], atol=1e-6)
    assert (found.layer, found.query) == ("blocks.2.attn", "class token")
    # A map shifted by the class token would be this one, and it differs.
    assert not np.allclose(found.values, (row[:, :-1] / row[:, :-1].sum(1, keepdims=True)).reshape(2, 3, 5), atol=1e-4)


def test_each_head_and_any_layer() -> None:
    model, x = vit(), images()
    all_weights = weights(model, x)
    apart = attention_map(model, x, layer=0, heads=True)
    assert apart.values.shape == (2, 3, 3, 5)
    expected = all_weights[0][:, :, 0, 1:]
    assert np.allclose(apart.values, (expected / expected.sum(-1, keepdims=True)).reshape(2, 3, 3, 5), atol=1e-6)
    assert [m.layer for m in attention_layers(model, x)] == [f"blocks.{i}.attn" for i in range(3)]
    stacked, names = heads_of(model, x)
    assert stacked.shape == (3, 2, 3, 3, 5)
    assert np.allclose(stacked[0], apart.values, atol=1e-6)
    assert names == [f"blocks.{i}.attn" for i in range(3)]


def test_without_a_class_token_the_mean_over_patches_is_asked() -> None:
    model, x = vit(class_token=False, global_pool="avg"), images()
    found = attention_map(model, x)
    assert found.query == "mean of the patches"
    assert np.allclose(found.values.reshape(2, -1), weights(model, x)[-1].mean(1).mean(1), atol=1e-6)


def test_rollout_against_the_product_of_whole_matrices() -> None:
    for model in (vit(), vit(class_token=False, global_pool="avg")):
        x = images()
        product = np.eye(weights(model, x)[0].shape[-1])[None]
        for layer in weights(model, x):
            mixed = (layer.mean(1) + np.eye(layer.shape[-1])) / 2
            product = mixed @ product
        before = product.shape[-1] - 15
        row = product[:, 0, before:] if before else product.mean(1)
        found = attention_rollout(model, x)
        assert np.allclose(found.values.reshape(2, -1), row / row.sum(1, keepdims=True), atol=1e-6)
        transposed = product[:, before:, 0] if before else product.mean(2)
        assert not np.allclose(found.values.reshape(2, -1), transposed / transposed.sum(1, keepdims=True), atol=1e-4)


def test_swin_puts_the_mean_of_its_windows_back_on_the_image() -> None:
    model, x = swin().eval(), images(56, 40)
    found = attention_map(model, x, layer=1)
    assert found.values.shape == (2, 14, 10)
    assert np.allclose(found.values.sum((1, 2)), 1, atol=1e-5)
    with pytest.raises(UsageError, match=r"windows and other resolutions do not. Use grad_cam"):
        attention_rollout(model, x)
    # The mean over real patches, one by one: a patch of padding asks nothing.
    for number in (0, 1):
        rows = [(row, column) for row in range(14) for column in range(10)]
        with torch.no_grad(), record(model, rows=rows, layers=number) as recording:
            model(x)
        expected = recording.records[0].on_grid().mean((1, 2))
        expected = expected / expected.sum((-1, -2), keepdim=True)
        assert np.allclose(attention_map(model, x, layer=number).values, expected.numpy(), atol=1e-6)
    names, left_out = fitting(model, x[:1])
    assert names == ["attention", "grad_cam"]
    assert [line.split(":")[0] for line in left_out] == ["no rollout", "no relevance"]


def test_a_convolutional_network_has_grad_cam_alone() -> None:
    model, x = torchvision.models.squeezenet1_1(num_classes=5).eval(), images(64, 64)
    names, left_out = fitting(model, x[:1])
    assert names == ["grad_cam"]
    assert "no attention ran in this model. Is it a convolutional network?" in left_out[0]
    with pytest.raises(UsageError, match="no attention ran in this model"):
        fitting(model, x[:1], ["attention"])


@pytest.mark.parametrize("method", ["attention", "rollout", "relevance", "grad_cam", "integrated_gradients", "occlusion"])
def test_every_map_sums_to_one_and_does_not_depend_on_the_batch(method: str) -> None:
    model, x = vit().eval(), images(batch=3)
    whole = maps_of(method, model, x, batch_size=3)
    apart = maps_of(method, model, x, batch_size=2)
    assert whole.values.dtype == np.float32
    assert whole.values.min() >= 0
    assert np.allclose(whole.values.sum((1, 2)), 1, atol=1e-5)
    assert np.allclose(whole.values, apart.values, atol=2e-5)
    assert all(p.grad is None for p in model.parameters())
    assert whole.how


def test_a_map_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match=r"there is no map 'gradcam'. Did you mean 'grad_cam'\?"):
        maps_of("gradcam", vit(), images())
    with pytest.raises(UsageError, match="rollout goes through all layers"):
        maps_of("rollout", vit(), images(), layer="blocks.0.attn")


def test_the_models_mode_comes_back() -> None:
    model = vit().train()
    model.blocks[0].eval()
    for method in ("attention", "rollout", "relevance", "grad_cam"):
        maps_of(method, model, images())
    assert model.training
    assert model.blocks[1].training
    assert not model.blocks[0].training


def test_norms_of_patch_tokens_are_those_that_leave_the_block() -> None:
    model, x = vit().eval(), images()
    found = maps_of("attention", model, x)
    assert found.norms is not None
    kept: list[Tensor] = []
    with model.blocks[2].register_forward_hook(lambda m, i, o: kept.append(o.detach())), torch.no_grad():
        model(x)
    assert np.allclose(found.norms, kept[0][:, 1:].norm(dim=-1).reshape(2, 3, 5).numpy(), atol=1e-5)
