"""Models by name: the published head and way of seeing, weights from files and the hub's cache, nothing random in silence."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import numpy as np
import pytest
import timm
import timm.data
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

from pellucid.errors import MissingError, UsageError, WeightsError
from pellucid.inside.outputs import logits_of
from pellucid.models.named import Named, Preparation, build_named, full_name

TINY_VIT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
TINY_SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32, "patch_size": 4}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str, *, pretrained: bool = False, **given: Any) -> Named:
    chosen = {"weights": None, "image_size": None, "num_classes": None, "options": {}, "seed": 1} | given
    return build_named(name, pretrained=pretrained, **chosen)


def photograph(width: int = 61, height: int = 47) -> Image.Image:
    """Something smooth with detail, the same in every run."""
    rows, columns = np.mgrid[:height, :width] / 10
    channels = [np.sin(rows + k) * np.cos(columns * (k + 1) / 2) for k in range(3)]
    return Image.fromarray(((np.stack(channels, 2) + 1) * 127).astype(np.uint8))


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in the hub's layout: vit (with named classes and a preprocessor), swin, backbone (no head), captioner, clip, blip, detector of text."""
    import transformers as t

    t.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    vit = t.ViTConfig(**TINY_VIT, id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2})
    t.ViTForImageClassification(vit).save_pretrained(folder / "vit")
    t.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder / "vit")
    t.SwinForImageClassification(t.SwinConfig(**TINY_SWIN, num_labels=4)).save_pretrained(folder / "swin")
    t.ViTModel(t.ViTConfig(**TINY_VIT)).save_pretrained(folder / "backbone")
    decoder = t.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20, is_decoder=True, add_cross_attention=True
    )
    t.VisionEncoderDecoderModel(t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(t.ViTConfig(**TINY_VIT), decoder)).save_pretrained(
        folder / "captioner"
    )
    sees = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
    reads = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 20,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "sep_token_id": 2,
        "encoder_hidden_size": 16,
    }
    t.BlipForConditionalGeneration(t.BlipConfig(text_config=reads, vision_config=sees, projection_dim=8)).save_pretrained(folder / "blip")
    t.BertModel(t.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)).save_pretrained(folder / "text")
    t.utils.logging.enable_progress_bar()
    return folder


# ── names ──
@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("vit_base_patch16_224", "timm/vit_base_patch16_224"),
        ("vit_base_patch16_224.mae", "timm/vit_base_patch16_224.mae"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm/hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("vit_b_16", "torchvision/vit_b_16"),
        ("squeezenet1_0", "torchvision/squeezenet1_0"),
        ("mobilenet_v2", "torchvision/mobilenet_v2"),  # a model type of transformers too, which has no weights
        ("dinov2", "transformers/dinov2"),
        ("transformers/google/vit-base-patch16-224", "transformers/google/vit-base-patch16-224"),
    ],
)
def test_a_bare_name_goes_home(given: str, full: str) -> None:
    assert full_name(given) == full


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("resnet50", "resnet50: two libraries have a model of this name. Give timm/resnet50 or torchvision/resnet50."),
        ("vit_bse_patch16_224", "there is no such model. Did you mean 'vit_base_patch16_224'?"),
        ("dinov3", "Did you mean 'dinov2'?"),
        ("tim/resnet26", "Did you mean 'timm/resnet26'?"),
        ("timm/vit_b_16", "timm/vit_b_16: timm has no classifier of this name. There is torchvision/vit_b_16."),
        ("torchvision/resnet81", "torchvision/resnet81: torchvision has no classifier of this name. Did you mean 'resnet18'?"),
        ("timm/resnet18.a1_in2k", "timm publishes no such weights; there are resnet18.a1_in1k, "),
        ("hf-hub:someone/thing", "expected hf-hub:timm/<name>. For a model of another owner give timm/<architecture> and -s weights=FILE."),
        ("", "expected a run folder, timm/<name>"),
    ],
)
def test_a_name_that_nobody_or_more_than_one_knows_is_told(given: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        full_name(given)
    assert said in str(caught.value)


# ── timm ──
def test_random_weights_follow_from_the_seed_alone() -> None:
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    torch.manual_seed(7)
    first = build("timm/vit_tiny_patch16_224", options=options)
    state = torch.random.get_rng_state()
    again = build("timm/vit_tiny_patch16_224", options=options)
    other = build("timm/vit_tiny_patch16_224", options=options, seed=2)
    assert first.weights == "random weights, seed 1"
    assert torch.equal(first.module.state_dict()["head.weight"], again.module.state_dict()["head.weight"])
    assert not torch.equal(first.module.state_dict()["head.weight"], other.module.state_dict()["head.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's random numbers go on as if nothing had been built
    assert first.num_classes == 1000
    assert first.classes is None  # random logits are of no class of ImageNet
    assert not first.module.training


def test_options_sizes_and_class_counts_reach_the_constructor() -> None:
    named = build("timm/vit_tiny_patch16_224", options={"depth": 1}, image_size=(64, 96), num_classes=7)
    assert named.module.patch_embed.grid_size == (4, 6)
    assert named.module(torch.zeros(1, 3, 64, 96)).shape == (1, 7)
    assert len(build("timm/resnet10t", options={"stem_width": 16}).module.layer1) == 1


@pytest.mark.parametrize(
    "model",
    [
        "vit_base_patch16_224",
        "resnet18",
        "dm_nfnet_f0",
        "vit_base_patch16_clip_384.openai_ft_in12k_in1k",
        "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
        "vit_base_patch16_siglip_224",
    ],
)
def test_timm_s_preparation_is_its_own_evaluation_transform(model: str) -> None:
    """The pixels themselves, before they become a tensor; oracle: timm.data.create_transform."""
    from pellucid.models.named import _timm_plan
    from pellucid.subjects import Subject

    config = timm.models.get_pretrained_cfg(model)
    own = _timm_plan(model, False, None).preparation
    seen = Subject("", "", None, None, own.size, own.mean, own.std, own.fit, own.resize_size, own.interpolation, None, None)  # type: ignore[arg-type]
    oracle = timm.data.create_transform(
        config.input_size, interpolation=config.interpolation, mean=config.mean, std=config.std, crop_pct=config.crop_pct, crop_mode=config.crop_mode
    )
    for image in (photograph(300, 211), photograph(217, 530)):
        oracle_pixels = np.asarray(torchvision.transforms.Compose(oracle.transforms[:-2])(image))
        assert np.array_equal(seen.view(image), oracle_pixels)


def test_a_model_without_a_head_predicts_nothing() -> None:
    named = build("timm/vit_small_patch14_dinov2", options={"depth": 1, "embed_dim": 32, "num_heads": 2}, image_size=(56, 42))
    assert named.num_classes is None
    assert named.module(torch.zeros(1, 3, 56, 42)).shape == (1, 32)
    with_head = build("timm/vit_small_patch14_dinov2", options={"depth": 1, "embed_dim": 32, "num_heads": 2}, image_size=(28, 28), num_classes=3)
    assert with_head.num_classes == 3


def test_published_weights_that_are_not_there_name_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingError,
        match=r"^timm/test_vit: its weights timm/test_vit\S+ are not in .*give -s weights=FILE\. To look into the untrained model: -s pretrained=false\.$",
    ):
        build("timm/test_vit", pretrained=True)
    with pytest.raises(
        UsageError, match=r"^timm/vit_base_patch16_gap_224 has no published weights\. Give -s weights=FILE, or -s pretrained=false for random ones\.$"
    ):
        build("timm/vit_base_patch16_gap_224", pretrained=True)
    with pytest.raises(UsageError, match="its published weights have 1000 classes, got num_classes 10"):
        build("timm/test_vit", pretrained=True, num_classes=10)


def test_published_weights_come_with_their_head_and_their_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where timm's would be in the hub's cache; nothing is downloaded."""
    torch.manual_seed(3)
    source = timm.create_model("test_vit")
    folder = tmp_path / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    save_file(source.state_dict(), folder / "snapshots" / ("a" * 40) / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *asked, **_: pytest.fail(f"asked for {asked}"))
    named = build("test_vit", pretrained=True)
    images = torch.rand(2, 3, *named.preparation.size)
    assert torch.equal(named.module(images), source.eval()(images))
    assert named.weights == "published weights test_vit.r160_in1k"
    assert named.classes is not None
    assert (named.num_classes, named.classes[207]) == (1000, "golden retriever")


# ── torchvision ──
def test_torchvision_s_preparation_is_its_preset() -> None:
    named = build("torchvision/squeezenet1_0")
    assert named.preparation == Preparation((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "crop", 256, "bilinear")
    assert build("torchvision/squeezenet1_0", image_size=(112, 112)).preparation.resize_size == 128
    with pytest.raises(UsageError, match="takes square images, got image_size 32x64"):
        build("torchvision/vit_b_16", image_size=(32, 64))


def test_a_file_s_head_is_not_replaced_in_silence(tmp_path: Path) -> None:
    ten = build("torchvision/squeezenet1_0", num_classes=10)
    file, headless = tmp_path / "ten.safetensors", tmp_path / "headless.safetensors"
    save_file(ten.module.state_dict(), file)
    save_file({name: tensor for name, tensor in ten.module.state_dict().items() if not name.startswith("classifier")}, headless)
    with pytest.raises(
        WeightsError, match=r"ten\.safetensors: its classifier is of another class count: classifier\.1\.weight 10x512x1x1.*Give it as -s num_classes=N"
    ):
        build("torchvision/squeezenet1_0", weights=file)
    named = build("torchvision/squeezenet1_0", weights=file, num_classes=10, seed=9)
    assert torch.equal(named.module.classifier[1].weight, ten.module.classifier[1].weight)
    assert (named.num_classes, named.weights) == (10, f"weights of {file}")
    backbone = build("torchvision/squeezenet1_0", weights=headless)
    assert backbone.num_classes is None
    assert "headless.safetensors holds no classifier: the model predicts nothing" in backbone.notes


# ── transformers ──
def test_a_folder_in_the_hub_s_layout_is_the_model_that_was_saved(hub: Path) -> None:
    import transformers

    named = build(f"transformers/{hub / 'vit'}", pretrained=True)
    source = transformers.ViTForImageClassification.from_pretrained(hub / "vit").eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(logits_of(named.module(images)), source(images).logits)
    assert named.classes == ("cat", "dog", "owl")
    assert named.preparation == Preparation((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "stretch", None, "bicubic")
    assert named.weights == f"published weights {hub / 'vit'}"
    assert named.notes == []
    assert full_name(str(hub / "vit")) == named.name


def test_a_folder_without_preprocessing_has_that_of_its_type(hub: Path) -> None:
    named = build(f"transformers/{hub / 'swin'}", pretrained=True)
    assert named.preparation == Preparation((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "stretch", None, "bilinear")
    assert named.notes == [f"{named.name} has no file about preprocessing: the defaults of ViTImageProcessor at its own size"]
    assert (named.num_classes, named.classes) == (4, None)
    assert logits_of(named.module(torch.zeros(1, 3, 32, 32))).shape == (1, 4)


def test_a_default_that_depends_on_the_size_is_that_of_the_model_s_size() -> None:
    """ConvNeXt's processor crops an image of less than 384 pixels and squashes a larger one."""
    options = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    assert build("transformers/convnext", options=options).preparation == Preparation((224, 224), (0.5,) * 3, (0.5,) * 3, "crop", 256, "bicubic")  # type: ignore[arg-type]
    large = build("transformers/convnext", options=options, image_size=(384, 384))
    assert (large.preparation.fit, large.preparation.resize_size) == ("stretch", None)


def test_another_size_resizes_the_positions_as_the_library_does(hub: Path) -> None:
    import transformers

    named = build(f"transformers/{hub / 'vit'}", pretrained=True, image_size=(48, 64))
    source = transformers.ViTForImageClassification.from_pretrained(hub / "vit").eval()
    images = torch.rand(2, 3, 48, 64)
    assert torch.equal(logits_of(named.module(images)), source(images, interpolate_pos_encoding=True).logits)
    assert named.preparation.size == (48, 64)
    drawn = build("transformers/vit", options={k: v for k, v in TINY_VIT.items() if k != "image_size"}, image_size=(64, 64))
    assert drawn.module.vit.embeddings.position_embeddings.shape == (1, 65, 16)  # built for it, not resized


def test_a_size_that_a_model_cannot_take_is_told(hub: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot take one image of 4x4 pixels \(height x width\): .* Its own size is 32x32\."):
        build(f"transformers/{hub / 'vit'}", pretrained=True, image_size=(4, 4))


@pytest.mark.parametrize(("folder", "part"), [("captioner", "encoder (ViTModel)"), ("blip", "vision_model (BlipVisionModel)")])
def test_of_a_captioner_the_part_that_sees_is_looked_into(hub: Path, folder: str, part: str) -> None:
    import transformers

    named = build(f"transformers/{hub / folder}", pretrained=True)
    assert named.num_classes is None
    assert any(f"its image part {part} is looked into; it predicts no class" in note for note in named.notes)
    kind = transformers.VisionEncoderDecoderModel if folder == "captioner" else transformers.BlipForConditionalGeneration
    source = kind.from_pretrained(hub / folder).get_submodule(part.split(" ")[0]).state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in named.module.state_dict().items())
    assert named.module(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 17, 16)


def test_a_backbone_predicts_nothing_until_a_head_is_drawn(hub: Path) -> None:
    assert build(f"transformers/{hub / 'backbone'}", pretrained=True).num_classes is None
    with pytest.raises(UsageError, match="its published weights have no classifier, got num_classes 3"):
        build(f"transformers/{hub / 'backbone'}", pretrained=True, num_classes=3)
    assert build(f"transformers/{hub / 'backbone'}", num_classes=3).num_classes == 3


def test_a_model_type_is_drawn_from_its_defaults() -> None:
    options = {k: v for k, v in TINY_SWIN.items() if k != "image_size"}
    named, other = build("swin", options=options, image_size=(32, 32)), build("swin", options=options, image_size=(32, 32), seed=2)
    assert (named.name, named.num_classes, named.weights) == ("transformers/swin", 1000, "random weights, seed 1")
    assert named.module.config.hidden_size == 16  # follows from embed_dim and depths
    assert not torch.equal(named.module.classifier.weight, other.module.classifier.weight)
    eager = build("transformers/vit", options={"attn_implementation": "eager", "num_hidden_layers": 1, "hidden_size": 24}, image_size=(32, 32), num_classes=2)
    assert eager.module.config._attn_implementation == "eager"
    with pytest.raises(UsageError, match="transformers/vit is a model type, which has no published weights. Give a hub id or a folder, or -s pretrained=false"):
        build("transformers/vit", pretrained=True)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("vit", {"options": {"hiden_size": 3}}, "transformers/vit does not take 'hiden_size'. Did you mean 'hidden_size'?"),
        ("vit", {"options": {"hidden_size": "wide"}}, "transformers/vit cannot be built with hidden_size='wide'"),
        ("vit", {"options": {"num_labels": 3}}, "num_labels is not an option; give -s num_classes=N"),
        ("vitt", {}, "there is no such folder or type. Did you mean 'vit'?"),
        ("a/b/c", {}, "expected a hub id (owner/name), a folder or a model type"),
        ("text", {"pretrained": True}, "takes no images as pixels"),
        (
            "siglip2",
            {"options": {"vision_config": {"num_hidden_layers": 1}, "text_config": {"num_hidden_layers": 1, "vocab_size": 9}}},
            "transformers/siglip2 cannot take one image of 224x224 pixels",
        ),
    ],
)
def test_what_transformers_cannot_build_is_told(hub: Path, model: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(f"transformers/{hub / model if model == 'text' else model}", **given)
    assert said in str(caught.value)


def test_pickles_and_code_of_a_repository_are_not_loaded(hub: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(hub / "vit", tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="expected model.safetensors beside config.json"):
        build(f"transformers/{pickled}", pretrained=True)
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="expected model.safetensors, got pytorch_model.bin, a pickle, which could execute code"):
        build(f"transformers/{pickled}", pretrained=True)
    config = json.loads((pickled / "config.json").read_text())
    (pickled / "modeling.py").write_text("raise SystemExit('executed')")
    (pickled / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": {"AutoConfig": "modeling.Config"}}))
    with pytest.raises(UsageError, match="it needs code from its repository, which is never executed"):
        build(f"transformers/{pickled}")
    (pickled / "config.json").write_text("[")
    with pytest.raises(UsageError, match=r"its config\.json is not readable as a JSON object"):
        build(f"transformers/{pickled}")


def test_a_part_that_the_weights_lack_is_an_error(hub: Path, tmp_path: Path) -> None:
    torn = Path(shutil.copytree(hub / "vit", tmp_path / "torn"))
    state = load_file(torn / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "layernorm.bias" not in name}
    assert len(kept) < len(state)
    save_file(kept, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 of its tensors missing from the weights, which would leave it partly random: vit\.layernorm\.bias\.$"):
        build(f"transformers/{torn}", pretrained=True)


def test_weights_of_a_file_fit_a_transformers_model(hub: Path, tmp_path: Path) -> None:
    state = load_file(hub / "vit" / "model.safetensors")
    save_file(state, tmp_path / "whole.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name.startswith("vit.")}, tmp_path / "backbone.safetensors")
    named = build(f"transformers/{hub / 'vit'}", weights=tmp_path / "whole.safetensors", seed=5)
    assert torch.equal(named.module.classifier.weight, state["classifier.weight"])
    assert named.num_classes == 3
    assert build(f"transformers/{hub / 'vit'}", weights=tmp_path / "backbone.safetensors").num_classes is None


def _cached(cache: Path, folder: Path, repository: str) -> Path:
    """A folder as the hub's cache would hold it."""
    top = cache / f"models--{repository.replace('/', '--')}"
    (top / "refs").mkdir(parents=True)
    (top / "refs" / "main").write_text("b" * 40)
    return Path(shutil.copytree(folder, top / "snapshots" / ("b" * 40)))


def test_a_hub_id_comes_from_the_local_cache_without_a_question(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *asked, **_: pytest.fail(f"asked for {asked}"))
    snapshot = _cached(tmp_path, hub / "vit", "someone/tiny-vit")
    named = build("transformers/someone/tiny-vit", pretrained=True)
    assert (named.weights, named.classes) == ("published weights someone/tiny-vit", ("cat", "dog", "owl"))
    (snapshot / "model.safetensors").unlink()  # the configuration is enough for random weights
    assert build("transformers/someone/tiny-vit").weights == "random weights, seed 1"


def test_weights_in_several_files_are_found_together(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = _cached(tmp_path, hub / "vit", "someone/sharded")
    state = load_file(snapshot / "model.safetensors")
    (snapshot / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == file}, snapshot / file, metadata={"format": "pt"})
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    named = build("transformers/someone/sharded", pretrained=True)
    whole = build(f"transformers/{hub / 'vit'}", pretrained=True).module.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in named.module.state_dict().items())
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingError, match=r"^transformers/someone/sharded: its file someone/sharded/model\.safetensors is not in"):
        build("transformers/someone/sharded", pretrained=True)
    index.write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    with pytest.raises(WeightsError, match="expected names of .safetensors files beside it"):
        build("transformers/someone/sharded", pretrained=True)


def test_a_hub_id_that_cannot_be_reached_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError) as caught:
        build("transformers/someone/nothing", pretrained=True)
    assert "transformers/someone/nothing: its file someone/nothing/config.json is not in" in str(caught.value)
    assert "`hf download someone/nothing config.json`; without: copy the folder models--someone--nothing into" in str(caught.value)
    assert str(caught.value).endswith("or give -s weights=FILE. To look into the untrained model: -s pretrained=false.")


def test_a_repository_with_pickles_only_is_told(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def download(repository: str, file: str, *, revision: str | None) -> str:
        if not (hub / "vit" / file).is_file() or file == "model.safetensors":
            request: Any = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
            raise huggingface_hub.errors.RemoteEntryNotFoundError("404", response=request)
        return str(hub / "vit" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(MissingError, match=r"expected config\.json and model\.safetensors \(a \.bin is a pickle and is not loaded\) in someone/pickles"):
        build("transformers/someone/pickles", pretrained=True)


def _processors() -> dict[str, tuple[str, dict[str, Any]]]:
    """Image processors with their settings: each way in which they bring a photograph to a size."""
    return {
        "stretched": ("ViTImageProcessor", {"size": {"height": 24, "width": 32}}),
        "cropped": ("CLIPImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}),
        "bicubic": ("BitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
        "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
        "convnext, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        "levit": ("LevitImageProcessor", {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}),
        "poolformer": ("PoolFormerImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}, "crop_pct": 0.9}),
        "efficientnet": (
            "EfficientNetImageProcessor",
            {"size": {"height": 32, "width": 32}, "rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": True},
        ),
        "stretched and cropped": (
            "EfficientNetImageProcessor",
            {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        ),
        "not normalised": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
        "not scaled": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_rescale": False}),
    }


@pytest.mark.parametrize("kind", _processors())
def test_a_photograph_is_seen_as_the_image_processor_sees_it(kind: str) -> None:
    """Oracle: the processor itself; it resizes tensors and not pictures, which rounds some pixels otherwise (1 or 2 of 255)."""
    import transformers

    from pellucid.models.huggingface import _preparation
    from pellucid.runtime import start
    from pellucid.subjects import Subject

    name, given = _processors()[kind]
    processor = getattr(transformers, name)(**given)
    notes: list[str] = []
    own = _preparation("transformers/x", processor, None, notes)
    runtime = start(device="cpu", precision="fp32", threads=1, channels_last=False)
    seen = Subject("", "", None, runtime, own.size, own.mean, own.std, own.fit, own.resize_size, own.interpolation, None, None)  # type: ignore[arg-type]
    step = 1 / 255 / min(own.std)
    for image in (photograph(80, 60), photograph(50, 76)):
        expected = processor(image, return_tensors="pt")["pixel_values"].double()
        found = seen.inputs([seen.view(image)]).double()
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= 2.01 * step
        assert float((found - expected).abs().mean()) <= 0.1 * step
    assert notes == []


def test_what_cannot_be_done_as_published_stands_in_the_notes() -> None:
    import transformers

    from pellucid.models.huggingface import _preparation

    notes: list[str] = []
    processor = transformers.ViTImageProcessor(size={"shortest_edge": 48}, resample=1, do_pad=True)
    assert _preparation("transformers/x", processor, None, notes) == Preparation((48, 48), (0.5,) * 3, (0.5,) * 3, "crop", None, "bicubic")  # type: ignore[arg-type]
    assert notes == [
        "transformers/x: ViTImageProcessor pads its images, which is not done here",
        "transformers/x: ViTImageProcessor keeps the aspect of a photograph; its middle at 48x48 is taken",
        "transformers/x: its image processor resizes by lanczos, here by bicubic",
    ]


@pytest.mark.parametrize("module", ["named", "hub", "backbones", "weights"])
def test_a_model_of_timm_does_not_pay_for_transformers(module: str) -> None:
    """Importing transformers takes seconds; only huggingface.py does, which is itself imported inside functions."""
    tree = ast.parse(Path(importlib.import_module(f"pellucid.models.{module}").__file__ or "").read_text())
    names = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert names
    assert not [name for name in names if "transformers" in name or "huggingface" in name.replace("huggingface_hub", "")]


def test_transformers_draws_no_bars_and_its_logging_stays_as_it_was(hub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    import transformers

    logger = logging.getLogger("transformers")
    before = (list(logger.handlers), logger.level, logger.propagate, transformers.utils.logging.is_progress_bar_enabled())
    capfd.readouterr()
    build(f"transformers/{hub / 'vit'}", pretrained=True)
    assert capfd.readouterr() == ("", "")
    assert (list(logger.handlers), logger.level, logger.propagate, transformers.utils.logging.is_progress_bar_enabled()) == before
