"""Segmentation models by name: logits at the size of the image, backbones from files and caches, and errors that say why not."""

import json
import os
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from pellucid.errors import MissingError, UsageError, WeightsError
from pellucid.models import Built, segmenters
from pellucid.models.fcn import FCN, BilinearTransposed, convolutional
from pellucid.models.segmenters import build_segmenter, check_segmenter, segmenter_names, segmenter_normalization
from pellucid.models.tiles import sees_everything

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Encoders of some 0.2 million weights; DPT takes plain vision transformers alone.
SMALL = {"smp/DPT": "tu-test_vit"}
NARROW = {"channel_multiplier": 0.25, "pad_type": "same", "bn_eps": 1e-3}


def build(name: str, *, encoder: str | None = None, **settings) -> Built:
    given = {"num_classes": 5, "pretrained": False, "options": {}, "image_size": (64, 64), **settings}
    if encoder is None and name.startswith("smp/"):
        encoder = SMALL.get(name, "tu-test_resnet")
    return build_segmenter(name, encoder=encoder, **given)


def failure(error: type[Exception], name: str, **settings) -> str:
    with pytest.raises(error) as caught:
        build(name, **settings)
    return str(caught.value)


# ── names ──
def test_listed_names_are_those_that_can_be_checked():
    names = segmenter_names()
    assert names == sorted(set(names))
    assert {"pellucid/fcn32s", "torchvision/deeplabv3_resnet50", "torchvision/lraspp_mobilenet_v3_large", "smp/DeepLabV3Plus", "smp/DPT"} <= set(names)
    assert {name.removeprefix("smp/").lower() for name in names if name.startswith("smp/")} == set(smp.MODEL_ARCHITECTURES_MAPPING)
    for name in names:
        check_segmenter(name, None)


@pytest.mark.parametrize(
    ("name", "encoder", "said"),
    [
        ("smp/Unett", None, "model.name: smp has no segmentation model 'Unett'. Did you mean 'smp/Unet'?"),
        ("torchvision/resnet50", None, "model.name: torchvision has no segmentation model 'resnet50'. Did you mean 'torchvision/fcn_resnet50'?"),
        ("torchvision/resnet50", "resnet18", "model.name: torchvision has no segmentation model 'resnet50'. Did you mean 'torchvision/fcn_resnet50'?"),
        ("pellucid/fcn64s", None, "model.name: pellucid has no segmentation model 'fcn64s'. Did you mean 'pellucid/fcn16s'?"),
        ("timm/resnet18", None, "expected a segmentation model pellucid/<name> or torchvision/<name> or smp/<name>, got 'timm/resnet18'."),
        ("fcn32s", None, "got 'fcn32s'. Did you mean 'pellucid/fcn32s'?"),
        ("deeplabv3_resnet50", "resnet18", "got 'deeplabv3_resnet50'. Did you mean 'torchvision/deeplabv3_resnet50'?"),
        ("smp/Unet", "resnet500", "model.encoder: smp has no encoder 'resnet500' for smp/Unet. Did you mean 'resnet50'? timm's models are tu-<name>."),
        ("smp/Unet", "mobilenetv1_100", "smp has no encoder 'mobilenetv1_100' for smp/Unet. Did you mean 'tu-mobilenetv1_100'?"),
        ("smp/Unet", "timm-efficientnet-b0", "smp has no encoder 'timm-efficientnet-b0' for smp/Unet. Did you mean 'efficientnet-b0'?"),
        ("smp/Unet", "tu-resnet17", "model.encoder: timm has no model 'resnet17'. Did you mean 'tu-resnet"),
        ("smp/Unet", "tu-resnet18.a1_in2k", "timm publishes no weights 'resnet18.a1_in2k'; there are"),
        ("torchvision/fcn_resnet50", "resnet18", "model.encoder: torchvision/fcn_resnet50 has its own backbone, got 'resnet18'."),
    ],
)
def test_unknown_names_and_encoders_are_errors_with_the_nearest(name, encoder, said):
    with pytest.raises(UsageError) as caught:
        check_segmenter(name, encoder)
    assert said in str(caught.value)
    with pytest.raises(UsageError):
        segmenter_normalization(name, encoder)


@pytest.mark.parametrize(
    ("name", "encoder", "expected"),
    [
        ("pellucid/fcn32s", None, IMAGENET),
        ("torchvision/deeplabv3_resnet50", None, IMAGENET),
        ("smp/Unet", None, IMAGENET),
        ("smp/Unet", "xception", HALF),
        ("smp/Unet", "tu-mobilenetv1_100", HALF),
        ("smp/DPT", None, HALF),
    ],
)
def test_normalisation_is_that_of_the_backbone(name, encoder, expected):
    assert segmenter_normalization(name, encoder) == expected


# ── logits ──
@pytest.mark.parametrize("name", [name for name in segmenter_names() if name.startswith("smp/")])
def test_models_of_smp_give_logits_at_the_size_of_any_image(name):
    built = build(name)
    module = built.module.eval()
    with torch.no_grad():
        assert module(torch.zeros(1, 3, 77, 50)).shape == (1, 5, 77, 50)
    assert (built.backbone, built.classifier[0].split(".")[0]) == ("encoder", "segmentation_head")
    assert [module.get_submodule(path).out_channels for path in built.classifier] == [5]


@pytest.mark.parametrize("name", [name for name in segmenter_names() if not name.startswith("smp/")])
def test_other_models_give_logits_at_the_size_of_any_image(name):
    with torch.device("meta"):
        built = build(name)
        assert built.module.eval()(torch.zeros(1, 3, 77, 50)).shape == (1, 5, 77, 50)
        other = build(name, num_classes=7)
    assert list(built.module.get_submodule(built.backbone).children())
    shapes = {path: value.shape for path, value in built.module.state_dict().items()}
    changed = {path for path, value in other.module.state_dict().items() if value.shape != shapes[path]}
    assert {path for path in shapes if path.startswith(tuple(f"{head}." for head in built.classifier))} == changed


def test_padding_is_zeros_at_the_bottom_and_right(seeded):
    module = build("smp/Unet", encoder="tu-test_resnet").module.eval()
    image = torch.randn(1, 3, 64, 96)
    image[..., 50:, :], image[..., 70:] = 0, 0
    with torch.no_grad():
        assert torch.equal(module(image[..., :50, :70]), module(image)[..., :50, :70])


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvision_models_give_the_logits_of_their_library(name, seeded):
    module = build(f"torchvision/{name}").module.eval()
    library = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    library.load_state_dict(module.state_dict())
    image = torch.randn(1, 3, 75, 64)
    with torch.no_grad():
        assert torch.allclose(module(image), library.eval()(image)["out"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["smp/DeepLabV3Plus", "smp/DPT"])
def test_smp_models_give_the_logits_of_their_library(name, seeded):
    built, extra = build(name), {"dynamic_img_size": True, "num_classes": 0} if name == "smp/DPT" else {}
    library = smp.create_model(name.removeprefix("smp/"), SMALL.get(name, "tu-test_resnet"), None, classes=5, **extra)
    library.load_state_dict(built.module.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(built.module.eval()(image), library.eval()(image))


def test_auxiliary_logits_come_in_training_alone(seeded):
    built = build("torchvision/deeplabv3_mobilenet_v3_large", options={"aux_loss": True})
    assert built.classifier == ("classifier.4", "aux_classifier.4")
    logits, auxiliary = built.module(torch.randn(2, 3, 40, 50))
    assert logits.shape == auxiliary.shape == (2, 5, 40, 50)
    (logits.sum() + auxiliary.sum()).backward()
    assert built.module.aux_classifier[4].weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert built.module.eval()(torch.zeros(1, 3, 40, 50)).shape == (1, 5, 40, 50)


def test_library_layers_are_deterministic_in_training_on_cuda_alone():
    module = nn.Identity()

    class OnCuda:
        is_cuda = True

    assert type(segmenters._determinate(module, OnCuda())).__name__ == "_GeneratorContextManager"
    assert type(segmenters._determinate(module, torch.zeros(1))).__name__ == "nullcontext"
    assert type(segmenters._determinate(module.eval(), OnCuda())).__name__ == "nullcontext"


def test_encoders_of_one_size_say_so_and_refuse_others():
    built = build("smp/Unet", encoder="tu-swin_tiny_patch4_window7_224", image_size=(60, 64), options={"embed_dim": 12, "depths": [1, 1, 1, 1]})
    assert built.notes == ["timm/swin_tiny_patch4_window7_224 takes images of one size, 64x64 pixels; larger ones go through it in tiles"]
    with torch.no_grad():
        assert built.module.eval()(torch.zeros(1, 3, 60, 64)).shape == (1, 5, 60, 64)
        with pytest.raises(UsageError, match=r"this encoder takes images of 64x64 pixels alone, got 96x64\. Set data.image_size, or predict by tiles"):
            built.module(torch.zeros(1, 3, 96, 64))


def test_parts_that_look_at_the_whole_image_are_found_in_real_models():
    with torch.device("meta"):
        assert sees_everything(build("pellucid/fcn32s").module) == []
        assert sees_everything(build("torchvision/deeplabv3_resnet50").module) == ["classifier.0.convs.4.0"]
        assert "classifier.scale.0" in sees_everything(build("torchvision/lraspp_mobilenet_v3_large").module)
    assert sees_everything(build("smp/Unet").module) == []
    assert sees_everything(build("smp/PSPNet").module) != []
    normalized = sees_everything(build("smp/FPN").module)  # by group normalisation, in each block of the decoder
    assert len(normalized) == 7
    assert all(path.startswith("decoder.seg_blocks.") for path in normalized)
    assert all(path.startswith("encoder.") for path in sees_everything(build("smp/DPT").module))


# ── FCN ──
@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_transposed_convolutions_start_as_bilinear_interpolation(factor, seeded):
    x = torch.randn(1, 3, 4, 5)
    with torch.no_grad():
        up = BilinearTransposed(3, factor)(x)
    assert torch.allclose(up, F.interpolate(x, scale_factor=factor, mode="bilinear"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stride", "pools"), [(32, []), (16, ["4"]), (8, ["4", "3"])])
def test_finer_networks_add_the_scores_of_earlier_pooling_layers(stride, pools, seeded):
    model = FCN(3, stride=stride, channels=4).eval()
    assert list(model.pool_scores) == pools
    assert model.upsampling.stride == (stride, stride)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert model(image).abs().max() == 0  # scores start at zero
        for parameter in (*model.score.parameters(), *model.pool_scores.parameters()):
            nn.init.normal_(parameter)
        got, features = model(image), [image]
        for layer in model.features:
            features.append(layer(features[-1]))
        pooled = [after for layer, after in zip(model.features, features[1:], strict=True) if isinstance(layer, nn.MaxPool2d)]
        scores = model.score(model.conv7(model.conv6(pooled[4]).relu()).relu())
        for pool in pools:
            scores = F.interpolate(scores, scale_factor=2, mode="bilinear") + model.pool_scores[pool](pooled[int(pool) - 1])
        assert torch.allclose(got, F.interpolate(scores, scale_factor=stride, mode="bilinear"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_cells_of_the_map_lie_over_their_pixels(stride, seeded):
    """With symmetric kernels a mirrored image gives mirrored logits, to the pixel: nothing is shifted on the way."""
    model = FCN(2, stride=stride, channels=8).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for parameter in (*model.score.parameters(), *model.pool_scores.parameters()):
            nn.init.normal_(parameter)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(layer.weight + layer.weight.flip(-1) + layer.weight.flip(-2) + layer.weight.flip(-1, -2)).div_(4)
        logits, mirrored = model(image), model(image.flip(-1, -2)).flip(-1, -2)
    assert logits.std() > 0
    assert torch.allclose(logits, mirrored, rtol=0, atol=1e-3 * logits.std().item())


def test_conv6_and_conv7_are_the_fully_connected_layers_of_the_classifier(seeded):
    narrow = {"classifier.0": nn.Linear(512 * 49, 8), "classifier.3": nn.Linear(8, 8), "classifier.6": nn.Linear(8, 10)}
    state = {f"{path}.{name}": value.detach() for path, layer in narrow.items() for name, value in layer.state_dict().items()}
    placed, rest = convolutional(state, 4096)
    assert rest == ["classifier.6.weight", "classifier.6.bias"]
    features = torch.randn(2, 512, 7, 7)
    as_layers = narrow["classifier.3"](narrow["classifier.0"](features.flatten(1)).relu())
    conv6 = F.conv2d(features, placed["conv6.weight"], placed["conv6.bias"]).relu()
    assert torch.allclose(F.conv2d(conv6, placed["conv7.weight"], placed["conv7.bias"])[..., 0, 0], as_layers, rtol=0, atol=1e-5)
    assert convolutional(state, 64) == ({}, list(state))


def test_vgg_file_fills_the_features_and_what_has_no_place_is_named(tmp_path):
    state = {f"features.{path}": value for path, value in torchvision.models.vgg16(init_weights=False).features.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.zeros(4, 4), "classifier.6.bias": torch.zeros(4)}, tmp_path / "vgg16.pth")
    built = build("pellucid/fcn8s", options={"channels": 4}, backbone_weights=tmp_path / "vgg16.pth")
    assert all(torch.equal(value, built.module.state_dict()[path]) for path, value in state.items())
    assert built.notes[0] == "vgg16.pth: 26 tensors loaded"
    assert built.notes[-1] == "vgg16.pth: in the file, without a place in the model: classifier.0.weight, classifier.6.bias"
    assert "features.1.weight" in failure(WeightsError, "pellucid/fcn32s", options={"channels": 4, "batch_norm": True}, backbone_weights=tmp_path / "vgg16.pth")


def test_images_that_the_network_pools_away_are_refused():
    with pytest.raises(UsageError, match=r"expected images of at least 32x32 pixels, got 31x64\. Raise data.image_size"):
        FCN(2, stride=32, channels=1)(torch.zeros(1, 3, 31, 64))


# ── options ──
@pytest.mark.parametrize(
    ("name", "encoder", "options", "said"),
    [
        ("pellucid/fcn32s", None, {"chanels": 4}, "pellucid/fcn32s does not take 'chanels'. Did you mean 'channels'? It takes batch_norm, channels, dropout."),
        ("pellucid/fcn32s", None, {"channels": 0}, "FCN: expected channels of at least 1, got 0."),
        ("torchvision/deeplabv3_resnet50", None, {"dropout": 0.1}, "torchvision/deeplabv3_resnet50 does not take 'dropout'. It takes aux_loss."),
        ("torchvision/lraspp_mobilenet_v3_large", None, {"aux_loss": True}, "does not take 'aux_loss'. It takes no options."),
        ("smp/Unet", "resnet18", {"decoder_chanels": [8]}, "smp/Unet does not take 'decoder_chanels'. Did you mean 'decoder_channels'?"),
        ("smp/Unet", "tu-test_resnet", {"wings": 2}, "smp/Unet with encoder tu-test_resnet does not take 'wings'."),
        ("smp/Unet", "tu-test_resnet", {"encoder_depth": 9}, "smp/Unet with encoder tu-test_resnet cannot be built with encoder_depth=9:"),
        ("smp/Unet", "resnet18", {"activation": "softmax"}, "smp/Unet: activation is not an option; it follows from the data and the model section."),
        ("smp/DPT", "resnet18", {}, "Only Timm encoders are supported for DPT."),
        ("smp/Linknet", "mit_b0", {}, "smp/Linknet with encoder mit_b0 cannot be built with no options: Encoder `mit_b0` is not supported for Linknet"),
    ],
)
def test_options_that_a_model_does_not_take_are_errors(name, encoder, options, said):
    assert said in failure(UsageError, name, encoder=encoder, options=options)


# ── backbones from files ──
def test_timm_stages_hold_the_numbers_of_the_classifiers_file(tmp_path):
    for name, known in (
        ("test_resnet", "layer4.0.conv1.weight"),
        ("test_convnext", "stages.1.blocks.0.conv_dw.weight"),
        ("test_vit", "blocks.1.attn.qkv.weight"),
    ):
        source = timm.create_model(name)
        torch.save(source.state_dict(), tmp_path / f"{name}.pth")
        architecture = "smp/DPT" if name == "test_vit" else "smp/FPN"
        options = {"encoder_depth": 2, "decoder_intermediate_channels": [8, 8]} if name == "test_vit" else {}
        built = build(architecture, encoder=f"tu-{name}", options=options, backbone_weights=tmp_path / f"{name}.pth")
        own = built.module.encoder.model.state_dict()
        by_name = {path.removeprefix("model.").replace("_", "."): value for path, value in own.items()}
        assert torch.equal(by_name[known.replace("_", ".")], source.state_dict()[known])
        assert all(torch.equal(value, by_name[path.replace("_", ".")]) for path, value in source.state_dict().items() if path.replace("_", ".") in by_name)
        assert any("without a place in the model: " in note and source.default_cfg["classifier"] in note for note in built.notes)


def test_decoder_starts_the_same_with_and_without_backbone_weights(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")

    def decoder(**settings) -> Tensor:
        torch.manual_seed(3)
        built = build("smp/FPN", **settings)
        return torch.cat([p.flatten() for path, p in built.module.named_parameters() if not path.startswith("encoder.")] + [torch.rand(3)])

    assert torch.equal(decoder(), decoder(backbone_weights=tmp_path / "weights.pth"))


def test_files_of_another_backbone_are_refused(tmp_path):
    torch.save(torchvision.models.squeezenet1_0().state_dict(), tmp_path / "squeezenet.pth")
    for name, encoder in (("smp/Unet", "tu-test_resnet"), ("smp/Unet", "resnet18"), ("pellucid/fcn32s", None), ("torchvision/lraspp_mobilenet_v3_large", None)):
        said = failure(WeightsError, name, encoder=encoder, options={"channels": 4} if "fcn" in name else {}, backbone_weights=tmp_path / "squeezenet.pth")
        assert said.startswith("squeezenet.pth: ")
        assert "the model" in said
    both = failure(UsageError, "smp/Unet", pretrained="backbone", backbone_weights=tmp_path / "squeezenet.pth")
    assert both == "smp/Unet: expected published weights or those of a file, got both. Give model.pretrained or model.backbone_weights."


def test_torchvision_and_smp_backbones_start_from_torchvisions_classifiers(tmp_path):
    source = torchvision.models.mobilenet_v3_large(num_classes=3)
    torch.save(source.state_dict(), tmp_path / "mobilenet.pth")
    built = build("torchvision/lraspp_mobilenet_v3_large", backbone_weights=tmp_path / "mobilenet.pth")
    assert all(torch.equal(value, built.module.backbone.state_dict()[path]) for path, value in source.features.state_dict().items())
    source = torchvision.models.resnet18(num_classes=3)
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    built = build("smp/FPN", encoder="resnet18", backbone_weights=tmp_path / "resnet.pth")
    assert torch.equal(built.module.encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert built.notes[-1] == "in the file, without a place in the model: fc.weight, fc.bias"


@pytest.mark.data
def test_real_narrow_mobilenet_starts_a_model_of_smp(photographs):
    file = photographs / "weights" / "mobilenetv1_025_keras_timm.pth"
    if not file.is_file():
        pytest.skip(f"no weights at {file}")
    built = build("smp/DeepLabV3Plus", encoder="tu-mobilenetv1_100", options=NARROW, backbone_weights=file)
    whole = timm.models.efficientnet._gen_mobilenet_v1("mobilenetv1_100", num_classes=1000, **NARROW)
    whole.load_state_dict(torch.load(file, weights_only=True))
    own = built.module.encoder.model.state_dict()
    assert all(torch.equal(value, own[path]) for path, value in whole.state_dict().items() if path in own)
    assert set(whole.state_dict()) - set(own) == {"classifier.weight", "classifier.bias"}
    assert (built.mean, built.std) == HALF
    with pytest.raises(TypeError, match="channel_multiplier"):  # the width is for this model alone: timm's own stays as it is
        timm.create_model("mobilenetv1_100", channel_multiplier=0.5)
    wrong = failure(WeightsError, "smp/Unet", encoder="tu-mobilenetv1_100", backbone_weights=file)
    assert "of another shape: conv_stem.weight: the model has 32x3x3x3, the file 8x3x3x3" in wrong


# ── published weights, from the caches of the libraries ──
@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Empty caches and no way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path


def in_hub(cache: Path, repository: str, revision: str, state: dict[str, Tensor], config: dict | None = None) -> None:
    """Files where huggingface_hub would have left them."""
    folder = cache / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(state, snapshot / "model.safetensors")
    if config is not None:
        (snapshot / "config.json").write_text(json.dumps(config))


def in_torch_hub(cache: Path, url: str, state: dict[str, Tensor]) -> None:
    file = cache / "torch" / "hub" / "checkpoints" / os.path.basename(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)


def test_published_backbone_of_timm_comes_from_the_hubs_cache(offline):
    source = timm.create_model("test_resnet")
    in_hub(offline, "timm/test_resnet.r160_in1k", "0123456789abcdef", source.state_dict())
    built = build("smp/FPN", pretrained="backbone")
    assert torch.equal(built.module.encoder.model.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
    assert built.notes[0] == "weights: model.safetensors of timm/test_resnet"
    said = failure(UsageError, "smp/FPN", pretrained="backbone", encoder="tu-mobilenetv1_100", options=NARROW)
    assert "published weights are of width 1" in said


def test_published_backbone_of_smp_comes_with_its_normalisation(offline):
    source = torchvision.models.resnet18()
    state = {path: value for path, value in source.state_dict().items() if not path.startswith("fc.")}
    revision = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]["revision"]
    in_hub(offline, "smp-hub/resnet18.imagenet", revision, state, {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    built = build("smp/FPN", encoder="resnet18", pretrained="backbone")
    assert torch.equal(built.module.encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert (built.mean, built.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert built.notes[0] == "backbone weights: models--smp-hub--resnet18.imagenet of smp's encoder resnet18"


def test_published_weights_of_torchvision_come_from_torch_hubs_cache(offline):
    name = "lraspp_mobilenet_v3_large"
    whole = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=21)
    in_torch_hub(offline, torchvision.models.get_model_weights(name)["DEFAULT"].url, whole.state_dict())
    built = build(f"torchvision/{name}", pretrained=True)
    assert torch.equal(built.module.classifier.cbr[0].weight, whole.classifier.cbr[0].weight)
    assert any("of another class count, freshly initialised: classifier.low_classifier.weight 21x40x1x1" in note for note in built.notes)
    source = torchvision.models.mobilenet_v3_large()
    in_torch_hub(offline, torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1.url, source.state_dict())
    built = build(f"torchvision/{name}", pretrained="backbone")
    assert torch.equal(built.module.backbone["16"][0].weight, source.features[16][0].weight)
    assert built.notes[0] == "backbone weights: MobileNet_V3_Large_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("name", "encoder"), [("smp/Unet", "resnet18"), ("smp/Unet", "tu-test_resnet"), ("torchvision/fcn_resnet50", None), ("pellucid/fcn8s", None)]
)
def test_weights_that_cannot_be_had_are_missing_with_the_remedy(offline, name, encoder):
    said = failure(MissingError, name, encoder=encoder, pretrained="backbone", options={"channels": 4} if "fcn8s" in name else {})
    assert "give backbone_weights: FILE" in said


@pytest.mark.parametrize("name", ["smp/Unet", "pellucid/fcn8s"])
def test_models_without_published_weights_say_what_to_give(name):
    assert failure(UsageError, name, pretrained=True) == (
        f"{name} has no published weights of the whole model. Give `pretrained: backbone` for those of its backbone, or weights: FILE."
    )


def test_the_gradient_of_a_small_map_in_bf16_does_not_depend_on_what_lay_in_memory():
    """With padding inside the convolution, taps that meet no pixel kept what the memory held: NaN here."""

    def gradient(size, left_behind):
        torch.manual_seed(0)
        model = FCN(3, stride=32, channels=8, batch_norm=True, dropout=0.0)
        torch.nn.init.normal_(model.score.weight, std=0.1)
        images = torch.randn(2, 3, size, size)
        for count in (2**10, 2**14, 2**18, 2**20, 2**22):
            torch.full((count,), left_behind)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images)
        logits.float().square().mean().backward()
        return model.conv6.weight.grad

    for size in (32, 64):
        assert torch.equal(gradient(size, 0.0), gradient(size, float("nan")))
