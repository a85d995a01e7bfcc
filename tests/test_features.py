"""Penultimate features: those that timm hands out itself, and torchvision's networks up to their classifier, run by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.features import find_classifier, penultimate
from pellucid.models import build_classifier

# Families of timm, with the path of their classifier and what makes them small.
FAMILIES: dict[str, tuple[str, dict]] = {
    "vit_tiny_patch16_224": ("head", {"img_size": 64, "depth": 2}),
    "vit_base_patch16_clip_224": ("head", {"img_size": 64, "depth": 1, "embed_dim": 64, "num_heads": 2}),
    "vit_relpos_small_patch16_224": ("head", {"img_size": 64, "depth": 1, "embed_dim": 64, "num_heads": 2}),  # no class token: mean
    "eva02_tiny_patch14_224": ("head", {"img_size": 56, "depth": 1}),
    "cait_xxs24_224": ("head", {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 2}),
    "swin_tiny_patch4_window7_224": ("head.fc", {"img_size": 56, "depths": (1, 1), "num_heads": (2, 2), "embed_dim": 24}),
    "resnet10t": ("fc", {}),
    "convnext_atto": ("head.fc", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}),
    "mobilenetv3_small_050": ("classifier", {}),
    "efficientnet_lite0": ("classifier", {}),
    "regnetx_002": ("head.fc", {}),
    "densenet121": ("classifier", {"growth_rate": 8, "block_config": (2, 2)}),
    "ghostnet_050": ("classifier", {}),
    "gmlp_ti16_224": ("head", {"img_size": 32}),
}


def images_of(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def built(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **options).eval()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_features_are_those_that_timm_hands_out(name: str) -> None:
    classifier, options = FAMILIES[name]
    model, images = built(name, **options), images_of(options.get("img_size", 64))  # type: ignore[arg-type]
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    found = penultimate(model, images, [classifier])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert find_classifier(model, images) == classifier
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "hooks are gone"


def vit_up_to_its_head(model: tv.VisionTransformer, images: Tensor) -> Tensor:
    patches = model._process_input(images)
    return model.encoder(torch.cat([model.class_token.expand(len(patches), -1, -1), patches], 1))[:, 0]


def resnet_up_to_its_head(model: tv.ResNet, images: Tensor) -> Tensor:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x)))).mean((2, 3))


VISION: dict[str, tuple[str, Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "resnet18": ("fc", lambda: tv.resnet18(num_classes=5), resnet_up_to_its_head),
    "vit": (
        "heads.head",
        lambda: tv.VisionTransformer(image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5),
        vit_up_to_its_head,
    ),
    "swin": (
        "head",
        lambda: tv.SwinTransformer(patch_size=[4, 4], embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=5),
        lambda model, images: model.norm(model.features(images)).mean((1, 2)),
    ),
    "squeezenet1_1": ("classifier.1", lambda: tv.squeezenet1_1(num_classes=5), lambda model, images: model.features(images).mean((2, 3))),
}


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_features_of_torchvision_are_what_reaches_the_classifier(name: str) -> None:
    classifier, make, by_hand = VISION[name]
    torch.manual_seed(0)
    model, images = make().eval(), images_of(64)
    torch.testing.assert_close(penultimate(model, images, [classifier]), by_hand(model, images), rtol=1e-5, atol=1e-6)
    assert find_classifier(model, images) == classifier


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "torchvision/squeezenet1_0", "torchvision/mobilenet_v3_small"])
@torch.no_grad()
def test_the_classifier_that_a_recipe_knows_is_the_one_that_is_found(name: str) -> None:
    model = build_classifier(name, num_classes=7, pretrained=False, options={}, drop_rate=None, drop_path_rate=None, image_size=(160, 160))
    images = images_of(160)
    path = find_classifier(model.module.eval(), images)
    assert path.startswith(model.classifier[0])
    torch.testing.assert_close(penultimate(model.module, images, model.classifier), penultimate(model.module, images, [path]), rtol=0, atol=0)


@torch.no_grad()
def test_of_the_two_heads_of_a_distilled_model_the_first_counts() -> None:
    model = built("deit_tiny_distilled_patch16_224", img_size=64, depth=1)
    images = images_of(64)
    tokens = model.forward_features(images)
    torch.testing.assert_close(penultimate(model, images, ["head", "head_dist"]), tokens[:, 0], rtol=0, atol=0)
    assert find_classifier(model, images) == "head_dist", "the last to run"
    assert not torch.equal(tokens[:, 0], tokens[:, 1])


@torch.no_grad()
def test_positions_before_a_linear_layer_are_averaged() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(images.permute(0, 2, 3, 1)).mean((1, 2))

    images = images_of(6)
    torch.testing.assert_close(penultimate(Pooled(), images, ["fc"]), images.mean((2, 3)))


@torch.no_grad()
def test_reduced_precision_comes_out_as_float32() -> None:
    model, images = built("vit_tiny_patch16_224", img_size=64, depth=1), images_of(64)
    with torch.autocast("cpu", torch.bfloat16):
        found = penultimate(model, images, ["head"])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, penultimate(model, images, ["head"]), rtol=0.1, atol=0.1)


def test_gradients_reach_the_features_when_they_are_on() -> None:
    model, images = built("vit_tiny_patch16_224", img_size=64, depth=1), images_of(64).requires_grad_()
    penultimate(model, images, ["head"]).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


def test_what_cannot_be_read_is_named() -> None:
    model, images = tv.squeezenet1_1(num_classes=5).eval(), images_of(64)
    with pytest.raises(UsageError, match="SqueezeNet has no module 'head'"):
        penultimate(model, images, ["head"])
    with pytest.raises(UsageError, match="SqueezeNet: expected the path of a classifier, got none; `find_classifier` looks for it"):
        penultimate(model, images, [])
    with pytest.raises(UsageError, match=r"classifier.0 of SqueezeNet has no linear layer or convolution whose input could be read"):
        penultimate(model, images, ["classifier.0"])
    with pytest.raises(UsageError, match="the classifier spare did not run in a forward pass of Spare"):
        penultimate(Spare(), images_of(2), ["spare"])
    with pytest.raises(UsageError, match=r"Spare has no linear layer or 1 x 1 convolution with 12 outputs; name the path of its classifier"):
        find_classifier(Spare(), images_of(2))


class Spare(nn.Module):
    """12 outputs that no layer gives, and a layer that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(12, 3), nn.Linear(12, 12)

    def forward(self, images: Tensor) -> Tensor:
        return self.used(images.flatten(1)).repeat(1, 4)
