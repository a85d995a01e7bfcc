"""Models by name: the library's own, with the settings that were asked for or an error that says why not."""

import math
import os
import typing
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
import torchvision.models
from torch import nn

from pellucid.errors import MissingError, UsageError
from pellucid.models import Built, build_classifier, layer_ids, model_names, normalization, set_trainable, train_mode

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(name: str, *, num_classes: int = 5, pretrained: bool = False, image_size: tuple[int, int] = (64, 64), **settings) -> Built:
    given = {"options": {}, "drop_rate": None, "drop_path_rate": None, **settings}
    return build_classifier(name, num_classes=num_classes, pretrained=pretrained, image_size=image_size, **given)


def logits(built: Built, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    with torch.no_grad():
        return built.module.eval()(torch.zeros(2, 3, *size))


# ── names ──
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/vit_tiny_patch16_225", "timm has no model 'vit_tiny_patch16_225'. Did you mean 'vit_tiny_patch16_224'?"),
        ("torchvision/resnet17", "torchvision has no classifier 'resnet17'. Did you mean 'resnet"),
        ("torchvision/fcn_resnet50", "torchvision has no classifier 'fcn_resnet50'."),
        ("tim/resnet18", "expected timm/<name> or torchvision/<name>, got 'tim/resnet18'. Did you mean 'timm/resnet18'?"),
        ("resnet18", "expected timm/<name> or torchvision/<name>, got 'resnet18'."),
        ("timm/resnet18.a1_in2k", "Did you mean 'resnet18.a1_in1k'?"),
        ("timm/hf-hub:somebody/model", "timm has no model 'hf-hub:somebody/model'."),
    ],
)
def test_unknown_name_is_an_error_with_the_nearest(name, said):
    with pytest.raises(UsageError) as caught:
        build(name)
    assert said in str(caught.value)
    with pytest.raises(UsageError):
        normalization(name)


def test_listed_names_are_those_of_the_libraries():
    names = model_names()
    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert {"timm/vit_base_patch16_384", "torchvision/vgg13_bn", "torchvision/squeezenet1_0"} <= set(names)
    assert not any(name.endswith("fcn_resnet50") for name in names)


# ── the normalisation of a model ──
def test_normalization_is_the_models_own():
    assert normalization("torchvision/resnet18") == IMAGENET
    assert normalization("torchvision/efficientnet_v2_l") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalization("timm/vit_base_patch16_384.augreg_in21k_ft_in1k") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalization("timm/resnet18") == IMAGENET
    built = build("timm/test_vit", image_size=(160, 160))
    assert (built.mean, built.std) == normalization("timm/test_vit")


# ── every classifier of torchvision ──
def one_of_each_class() -> list[str]:
    """The shortest name of each class of torchvision's classifiers, and VGG and ResNet as they are used most."""
    names = sorted(torchvision.models.list_models(module=torchvision.models), key=lambda name: (len(name), name))
    classes = {typing.get_type_hints(torchvision.models.get_model_builder(name))["return"]: name for name in reversed(names)}
    return sorted({*classes.values(), "vgg13", "vgg13_bn", "resnet50", "resnet152", "vit_b_16", "swin_v2_t", "squeezenet1_0"})


@pytest.mark.parametrize("name", one_of_each_class())
def test_torchvision_classifier_has_the_wanted_classes_at_the_path_given(name):
    device = "cpu" if name.startswith("regnet") else "meta"  # shapes only; RegNet computes numbers while it is built
    with torch.device(device):
        built = build(f"torchvision/{name}", num_classes=7, image_size=(224, 224))
    (path,) = built.classifier
    layer = built.module.get_submodule(path)
    assert (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) == 7
    with torch.device(device):
        other = build(f"torchvision/{name}", num_classes=8, image_size=(224, 224)).module.state_dict()
    changed = {key for key, value in built.module.state_dict().items() if other[key].shape != value.shape}
    assert changed == {key for key in other if key.startswith(f"{path}.")}
    if device == "meta":
        assert built.module.train()(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224"]
)
def test_timm_classifier_is_all_that_depends_on_the_classes(name):
    size = (224, 224) if "224" in name else (160, 160)
    with torch.device("cpu" if name.startswith("test") else "meta"):
        built, other = build(f"timm/{name}", image_size=size), build(f"timm/{name}", num_classes=6, image_size=size).module.state_dict()
    changed = {key for key, value in built.module.state_dict().items() if other[key].shape != value.shape}
    assert changed == {key for key in other if key.startswith(tuple(f"{path}." for path in built.classifier))}


def test_auxiliary_outputs_are_off_and_said_to_be():
    built = build("torchvision/googlenet")
    assert built.module.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert "auxiliary classifiers off" in built.notes[0]
    assert built.module.transform_input
    with pytest.raises(UsageError, match="aux_logits"):
        build("torchvision/inception_v3", options={"aux_logits": True})


# ── image size ──
@pytest.mark.parametrize(("name", "size"), [("timm/test_vit", (96, 64)), ("torchvision/vit_b_32", (96, 96)), ("timm/test_resnet", (50, 70))])
def test_model_takes_images_of_the_recipe(name, size):
    assert logits(build(name, image_size=size), size).shape == (2, 5)


def test_image_size_that_a_model_cannot_take_is_an_error():
    with pytest.raises(UsageError, match="takes square images, got image_size 64x96"):
        build("torchvision/vit_b_32", image_size=(64, 96))
    with pytest.raises(UsageError, match="torchvision/vit_b_32 cannot be built with image_size=50: Input shape indivisible by patch size!"):
        build("torchvision/vit_b_32", image_size=(50, 50))


# ── options ──
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("timm/test_resnet", {"depth": 3}, "timm/test_resnet does not take 'depth'"),
        ("timm/test_vit", {"patchsize": 8}, "timm/test_vit does not take 'patchsize'"),
        ("torchvision/squeezenet1_0", {"droput": 0.1}, "torchvision/squeezenet1_0 does not take 'droput'. Did you mean 'dropout'?"),
        ("torchvision/resnet18", {"layers": [1, 1, 1, 1]}, "torchvision/resnet18 does not take 'layers'"),
        ("timm/mobilenetv1_125", {"channel_multiplier": 0.5}, "timm/mobilenetv1_125: 'channel_multiplier' is fixed by the model's name"),
        ("timm/test_vit", {"num_classes": 3}, "num_classes is not an option"),
        ("timm/test_vit", {"img_size": 32}, "options.img_size is 32 and the recipe's own setting (64, 64)"),
    ],
)
def test_option_that_a_model_does_not_take_is_named(name, options, said):
    with pytest.raises(UsageError) as caught:
        build(name, options=options)
    assert said in str(caught.value)


def test_options_reach_the_constructor_and_lists_become_tuples():
    assert build("timm/test_vit", options={"depth": 2, "num_heads": 2}).module.num_features == 64
    assert len(build("timm/test_vit", options={"depth": 2}).module.blocks) == 2
    built = build("torchvision/resnet18", options={"replace_stride_with_dilation": [False, False, False]})
    assert logits(built).shape == (2, 5)


def test_width_multiplier_makes_the_narrow_mobilenet():
    narrow = build("timm/mobilenetv1_100", options={"channel_multiplier": 0.25, "pad_type": "same", "bn_eps": 1.0e-3})
    assert narrow.module.conv_stem.out_channels == 8
    assert narrow.module.num_features == 256
    assert {layer.eps for layer in narrow.module.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-3}
    assert narrow.classifier == ("classifier",)
    whole = build("timm/mobilenetv1_100", options={"channel_multiplier": 1.0}).module.state_dict()
    plain = timm.create_model("mobilenetv1_100", num_classes=5).state_dict()
    assert {key: value.shape for key, value in plain.items()} == {key: value.shape for key, value in whole.items()}


# ── dropout and stochastic depth ──
@pytest.mark.parametrize("name", ["vgg13", "squeezenet1_0", "mobilenet_v3_small", "efficientnet_b0", "googlenet"])
def test_drop_rate_sets_the_dropout_before_the_classifier(name):
    with torch.device("meta"):
        built = build(f"torchvision/{name}", drop_rate=0.37)
    assert {layer.p for layer in built.module.modules() if isinstance(layer, nn.Dropout)} == {0.37}
    assert not any("drop_rate" in note for note in built.notes)


def test_timm_takes_drop_rate_and_drop_path_rate():
    built = build("timm/test_vit", drop_rate=0.3, drop_path_rate=0.2, options={"depth": 3}, image_size=(160, 160))
    assert built.module.head_drop.p == 0.3
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in built.module.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", "efficientnet_b0", "maxvit_t"])
def test_torchvision_stochastic_depth_rises_to_the_rate(name):
    with torch.device("meta"):
        built = build(f"torchvision/{name}", drop_path_rate=0.4, image_size=(224, 224))
    rates = [layer.p for layer in built.module.modules() if isinstance(layer, torchvision.ops.StochasticDepth)]
    assert 0.37 < max(rates) <= 0.4 + 1e-12
    if name in ("swin_t", "convnext_tiny"):
        blocks = sorted(set(rates))
        assert all(math.isclose(rate, 0.4 * i / (len(blocks) - 1)) for i, rate in enumerate(blocks))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("torchvision/resnet18", {"drop_rate": 0.1}, "torchvision/resnet18 has no dropout before its classifier"),
        ("torchvision/resnet18", {"drop_path_rate": 0.1}, "torchvision/resnet18 has no drop_path_rate"),
        ("timm/vgg11", {"drop_path_rate": 0.1}, "timm/vgg11 does not take 'drop_path_rate'"),
        ("torchvision/squeezenet1_0", {"drop_rate": 0.1, "options": {"dropout": 0.2}}, "options.dropout is 0.2 and the recipe's own setting 0.1"),
    ],
)
def test_rate_that_a_model_cannot_take_is_an_error(name, settings, said):
    with torch.device("meta"), pytest.raises(UsageError) as caught:
        build(name, **settings)
    assert said in str(caught.value)


def test_dropout_inside_the_blocks_is_said():
    with torch.device("meta"):
        assert "acts inside the blocks" in build("torchvision/vit_b_32", drop_rate=0.1).notes[0]


# ── published weights, from the caches of the libraries ──
def hub_snapshot(cache: Path, name: str, state: dict[str, torch.Tensor]) -> Path:
    """A file where huggingface_hub would have left it."""
    folder = cache / f"models--timm--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123456789abcdef")
    file = folder / "snapshots" / "0123456789abcdef" / "model.safetensors"
    file.parent.mkdir(parents=True)
    safetensors.torch.save_file(state, file)
    return file


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Empty caches and no way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path


def test_timm_weights_come_from_the_local_hub_cache(offline):
    source = timm.create_model("test_vit", num_classes=1000)
    hub_snapshot(offline / "hub", "test_vit.r160_in1k", source.state_dict())
    built = build("timm/test_vit.r160_in1k", pretrained=True, image_size=(160, 160))
    state = built.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in source.state_dict().items() if not name.startswith("head."))
    assert built.module.head.out_features == 5
    assert built.notes[0] == "weights: model.safetensors of timm/test_vit.r160_in1k"
    assert "head.weight" in built.notes[1]


def test_cached_weights_are_used_without_asking_a_server(offline, monkeypatch):
    hub_snapshot(offline / "hub", "test_vit.r160_in1k", timm.create_model("test_vit").state_dict())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *arguments, **_: pytest.fail(f"asked for {arguments}"))
    assert build("timm/test_vit", pretrained=True, image_size=(160, 160)).notes[0].startswith("weights: model.safetensors")


def test_timm_position_embeddings_meet_another_image_size(offline):
    source = timm.create_model("test_vit", num_classes=1000)
    hub_snapshot(offline / "hub", "test_vit.r160_in1k", source.state_dict())
    built = build("timm/test_vit", pretrained=True, image_size=(96, 128))
    wanted = timm.layers.resample_abs_pos_embed(source.pos_embed, [6, 8], num_prefix_tokens=1)
    assert torch.equal(built.module.pos_embed, wanted)
    assert any("position" in note for note in built.notes)


def test_timm_weights_that_cannot_be_had_are_missing_with_the_remedy(offline):
    with pytest.raises(MissingError) as caught:
        build("timm/test_vit", pretrained=True, image_size=(160, 160))
    said = str(caught.value)
    assert caught.value.exit_code == 4
    for part in ("timm/test_vit.r160_in1k/model.safetensors", "models--timm--test_vit.r160_in1k", "weights: FILE", str(offline / "hub")):
        assert part in said


def test_model_without_published_weights_is_an_error():
    with pytest.raises(UsageError, match="timm/vit_small_patch16_18x2_224 has no published weights"):
        build("timm/vit_small_patch16_18x2_224", pretrained=True, image_size=(224, 224))


def torch_hub_file(home: Path, url: str, state: dict[str, torch.Tensor]) -> None:
    file = home / "torch" / "hub" / "checkpoints" / os.path.basename(url)
    file.parent.mkdir(parents=True)
    torch.save(state, file)


def test_torchvision_weights_come_from_torch_hubs_cache(offline):
    source = torchvision.models.squeezenet1_1()
    torch_hub_file(offline, torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url, source.state_dict())
    built = build("torchvision/squeezenet1_1", pretrained=True)
    assert torch.equal(built.module.features[3].squeeze.weight, source.features[3].squeeze.weight)
    assert built.module.classifier[1].out_channels == 5
    assert any("freshly initialised: classifier.1.weight 1000x512x1x1" in note for note in built.notes)


def test_torchvision_weights_that_cannot_be_had_are_missing_with_the_remedy(offline):
    with pytest.raises(MissingError) as caught:
        build("torchvision/squeezenet1_0", pretrained=True)
    file = offline / "torch" / "hub" / "checkpoints" / "squeezenet1_0-b66bff10.pth"
    assert str(caught.value).startswith("torchvision/squeezenet1_0: its weights squeezenet1_0-b66bff10.pth cannot be downloaded")
    assert f"Put the file at {file}, or give weights: FILE." in str(caught.value)


# ── freezing ──
def test_frozen_backbone_trains_the_classifier_alone_and_stays_still():
    built = build("timm/test_resnet")
    frozen = set_trainable(built.module, "backbone", built.classifier)
    assert {name for name, p in built.module.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    before = {name: buffer.clone() for name, buffer in built.module.named_buffers()}
    train_mode(built.module, frozen)
    built.module(torch.randn(4, 3, 64, 64)).sum().backward()
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in built.module.named_buffers())
    assert built.module.training
    assert built.module.fc.weight.grad is not None
    assert built.module.conv1[0].weight.grad is None
    built.module.train()
    built.module(torch.randn(4, 3, 64, 64))
    assert any(not torch.equal(before[name], buffer) for name, buffer in built.module.named_buffers())


def test_dropout_before_the_classifier_works_above_a_frozen_backbone():
    squeezenet = build("torchvision/squeezenet1_0")
    train_mode(squeezenet.module, set_trainable(squeezenet.module, "backbone", squeezenet.classifier))
    assert squeezenet.module.classifier[0].training
    assert not squeezenet.module.features[3].training
    vit = build("timm/test_vit", drop_rate=0.2, options={"proj_drop_rate": 0.1})
    train_mode(vit.module, set_trainable(vit.module, "backbone", vit.classifier))
    assert vit.module.head_drop.training
    assert not vit.module.blocks[0].mlp.drop1.training
    assert not vit.module.cls_token.requires_grad


def test_frozen_parts_are_those_named():
    built = build("torchvision/resnet18")
    frozen = set_trainable(built.module, ["conv1", "bn1", "layer1.0"], built.classifier)
    still = {name for name, p in built.module.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in built.module.named_parameters() if name.startswith(("conv1.", "bn1.", "layer1.0."))}
    train_mode(built.module, frozen)
    assert not built.module.layer1[0].bn1.training
    assert built.module.layer1[1].bn1.training
    assert set_trainable(built.module, "none", built.classifier) == []
    assert all(p.requires_grad for p in built.module.parameters())


def test_frozen_part_that_is_not_there_is_an_error_with_the_nearest():
    built = build("torchvision/resnet18")
    with pytest.raises(UsageError, match=r"the model has no part 'layer5'. Did you mean 'layer\d'\? At the top it has conv1, bn1"):
        set_trainable(built.module, ["layer5"], built.classifier)
    with pytest.raises(UsageError, match="nothing is left to train"):
        set_trainable(built.module, [name for name, _ in built.module.named_children()], built.classifier)


# ── layers for layer-wise decay ──
def named(built: Built) -> tuple[dict[str, int], int]:
    ids, number = layer_ids(built.module, built.classifier)
    assert set(ids) == {name for name, _ in built.module.named_parameters()}
    assert set(ids.values()) == set(range(number))
    assert {name for name, layer in ids.items() if layer == number - 1} == {n for n in ids if n.startswith(tuple(f"{path}." for path in built.classifier))}
    return ids, number


def test_layers_of_resnet_are_stem_stages_and_classifier():
    ids, number = named(build("torchvision/resnet18"))
    assert number == 6
    assert [ids[f"{name}.weight"] for name in ("conv1", "bn1", "layer1.0.conv1", "layer4.1.bn2", "fc")] == [0, 0, 1, 4, 5]


def test_layers_of_vgg_are_its_convolutions_and_linear_layers():
    with torch.device("meta"):
        ids, number = named(build("torchvision/vgg13_bn"))
    assert number == 10 + 3
    assert [ids[f"{name}.weight"] for name in ("features.0", "features.1", "features.3", "classifier.0", "classifier.6")] == [0, 0, 1, 10, 12]


def test_layers_of_torchvision_vit_are_its_encoder_layers():
    with torch.device("meta"):
        ids, number = named(build("torchvision/vit_b_32"))
    assert number == 1 + 12 + 1
    assert ids["class_token"] == ids["encoder.pos_embedding"] == ids["conv_proj.weight"] == 0
    assert ids["encoder.layers.encoder_layer_11.mlp.0.weight"] == ids["encoder.ln.weight"] == 12


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_layers_of_timm_models_are_timms_own(name):
    built = build(f"timm/{name}", image_size=(160, 160))
    ids, _ = named(built)
    oracle = timm.models.group_parameters(built.module, built.module.group_matcher(coarse=False), reverse=True)
    below = [key for key in ids if not key.startswith(tuple(f"{path}." for path in built.classifier))]
    assert all((ids[a] < ids[b]) == (oracle[a] < oracle[b]) for a in below for b in below)


@pytest.mark.parametrize("options", [{"patch_size": 0}, {"num_heads": 0}])
def test_a_division_by_nought_in_a_constructor_is_a_usage_error(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="timm/test_vit cannot be built with"):
        build_classifier("timm/test_vit", num_classes=3, pretrained=False, options=options, drop_rate=None, drop_path_rate=None, image_size=(32, 32))
