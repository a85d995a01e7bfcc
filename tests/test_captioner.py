"""Captioners give the logits of the plain models they wrap, for each picture's captions; they are built by name, from files and folders."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy

from pellucid.errors import MissingError, UsageError, WeightsError
from pellucid.models import stages
from pellucid.models.backbone_file import BackboneFacts, save_backbone
from pellucid.models.backbones import Built, build_classifier
from pellucid.models.captioner import Captioner, Generation
from pellucid.models.captioners import build_captioner, build_named_captioner, captioner_folder, is_captioner
from pellucid.models.grid_encoder import positions
from pellucid.models.weights import read_weights, save_weights
from tiny_captioners import DECODER, EYE, KINDS, NAMES, RESNET, SIZE, SMALL, Words, captioner, captions, encoder_decoder, git, gpt, own, pictures, saved

EVERY = [*KINDS, "own"]


def built(name: str = "pellucid/captioner", **also: Any) -> Built:
    ours = name == "pellucid/captioner"
    settings: dict[str, Any] = {"encoder": "timm/resnet10t", "encoder_stride": 16, "decoder": DECODER, "options": RESNET} if ours else {"options": {}}
    rest = {"encoder": None, "encoder_stride": None, "decoder": None, "pretrained": False, "image_size": SIZE, "weights": None, "backbone_weights": None}
    return build_captioner(name, **{"vocabulary": Words(), **rest, **settings, **also})


def plain_logits(kind: str, model: Any, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of the model's own forward."""
    if kind in ("encoder-decoder", "own"):
        return model(pixel_values=images, decoder_input_ids=tokens).logits
    logits: torch.Tensor = model(pixel_values=images, input_ids=tokens).logits
    return logits[:, -tokens.shape[1] :]  # GIT's begin with the picture


# ── one way in ──
@pytest.mark.parametrize("kind", EVERY)
def test_logits_are_those_of_the_plain_model(kind: str) -> None:
    module, images, tokens = captioner(kind), pictures(3), captions(3)
    torch.testing.assert_close(module(images, tokens)[[0, 2]], plain_logits(kind, module.model, images, tokens)[[0, 2]], atol=1e-5, rtol=1e-4)
    assert module(images, tokens).dtype == torch.float32


@pytest.mark.parametrize("decoder", ["bert", "roberta", "trocr", "gpt2"])
def test_decoders_of_other_makes_give_their_own_logits_also_without_numbers(decoder: str) -> None:
    """On the meta device memory is counted: nothing may ask for the value of a token."""
    config: Any = {
        "bert": transformers.BertConfig(vocab_size=12, is_decoder=True, add_cross_attention=True, **SMALL, **NAMES),
        "roberta": transformers.RobertaConfig(vocab_size=12, is_decoder=True, add_cross_attention=True, **SMALL, **NAMES),
        "trocr": transformers.TrOCRConfig(vocab_size=12, d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64, **NAMES),
        "gpt2": gpt(),
    }[decoder]
    parts = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.ViTConfig(**EYE), config)
    module = Captioner(transformers.VisionEncoderDecoderModel(parts), Words()).eval()
    images, tokens = pictures(3), captions(3)
    torch.testing.assert_close(module(images, tokens)[[0, 2]], plain_logits("own", module.model, images, tokens)[[0, 2]], atol=1e-5, rtol=1e-4)
    counted = copy.deepcopy(module).to("meta").train()(images.to("meta"), tokens.to("meta"), torch.zeros(3, dtype=torch.int64, device="meta"))
    assert counted.shape == (3, 7, 12)


@pytest.mark.parametrize("kind", EVERY)
def test_a_picture_with_several_captions_is_seen_once(kind: str) -> None:
    module, images, tokens, owners = captioner(kind), pictures(2), captions(4), torch.tensor([1, 0, 1, 1])
    seen: list[int] = []
    hook = module.get_submodule(module.eye).register_forward_hook(lambda _, __, output: seen.append(len(output[0])))
    together = module(images, tokens, owners)
    hook.remove()
    assert seen == [2]
    torch.testing.assert_close(together, module(images[owners], tokens), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together, module(images[1 - owners], tokens), atol=1e-3)  # the picture matters


@pytest.mark.parametrize("kind", EVERY)
def test_padding_changes_nothing_before_it(kind: str) -> None:
    module, images, tokens = captioner(kind), pictures(1), captions(2)[1:]  # the end stands at 3
    padded, other = module(images, tokens), tokens.clone()
    other[:, 4:] = 7
    torch.testing.assert_close(padded[:, :4], module(images, tokens[:, :4]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded[:, :4], module(images, other)[:, :4], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", EVERY)
def test_the_loss_of_teacher_forcing_is_the_plain_models_own(kind: str) -> None:
    """Both shift once: ours outside, theirs inside."""
    module, images, tokens = captioner(kind), pictures(3), captions(3)
    wanted = tokens[:, 1:].clone()
    wanted[1, 3:] = -100
    ours = cross_entropy(module(images, tokens[:, :-1]).flatten(0, 1), wanted.flatten(), ignore_index=-100)
    model = module.model
    if kind in ("encoder-decoder", "own"):
        model.config.decoder_start_token_id, model.config.pad_token_id = Words.start, Words.pad
        theirs = model(pixel_values=images, labels=wanted).loss
    else:
        labels = torch.cat([tokens[:, :1], wanted], dim=1)
        theirs = model(pixel_values=images, input_ids=tokens, labels=labels).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    twice = cross_entropy(module(images, tokens[:, :-1])[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100)
    assert abs(twice.item() - theirs.item()) > 1e-3


@pytest.mark.parametrize("kind", EVERY)
def test_saved_weights_give_the_same_logits(kind: str, tmp_path: Path) -> None:
    module, other = captioner(kind), captioner(kind, seed=8)
    save_weights(module, tmp_path / "model.safetensors")
    before = other(pictures(), captions(3))
    other.load_state_dict(read_weights(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(module(pictures(), captions(3)), other(pictures(), captions(3)))
    assert not torch.allclose(before, other(pictures(), captions(3)), atol=1e-3)


def test_input_and_output_embeddings_of_our_own_stay_tied() -> None:
    module = own()
    save = module.state_dict()
    module.load_state_dict({name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in save.items()}, strict=True)
    text = module.model.decoder
    assert text.get_output_embeddings().weight is text.get_input_embeddings().weight
    assert {"start": module.start, "end": module.end, "pad": module.pad, "size": module.size} == {"start": 1, "end": 2, "pad": 0, "size": 12}


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    module, images, tokens = own(), pictures(3), captions(3)
    assert not torch.equal(module.train()(images, tokens), module(images, tokens))
    assert torch.equal(module.eval()(images, tokens), module(images, tokens))


def test_a_model_of_another_kind_is_refused_with_the_three() -> None:
    with pytest.raises(UsageError, match=r"a vision encoder-decoder, BLIP or GIT .*; got ViTModel\."):
        Captioner(transformers.ViTModel(transformers.ViTConfig(**EYE)), Words())


# ── where the picture's tokens lie ──
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (32, 80), (64, 48)])
def test_the_grid_is_that_of_the_patches_behind_the_class_token(kind: str, size: tuple[int, int]) -> None:
    module = captioner(kind)
    layout, tokens = module.layout(size), module.encode(pictures(1, size)).shape[1]
    assert (layout.grid, layout.prefix, layout.tokens) == ((size[0] // 16, size[1] // 16), 1, tokens)
    assert range(100)[layout.keys] == range(1, tokens)
    assert module.attends == ("self" if kind == "git" else "cross")


def test_grids_of_convolutional_and_staged_encoders_are_known() -> None:
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    resnet.hidden_size = 16
    swin = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
    registers = transformers.Dinov2WithRegistersConfig(**{**SMALL, "image_size": 32, "patch_size": 16, "num_register_tokens": 4})
    for config, grid, prefix in ((resnet, (4, 10), 0), (swin, (4, 10), 0), (registers, (2, 5), 5)):
        module = Captioner(encoder_decoder(config), Words()).eval()
        layout = module.layout((32, 80))
        assert (layout.grid, layout.prefix) == (grid, prefix), config.model_type
        assert module(pictures(1, (32, 80)), captions(1)).shape == (1, 7, 12)


@pytest.mark.parametrize("kind", ["SwinConfig", "Swinv2Config", "DonutSwinConfig", "FocalNetConfig"])
@pytest.mark.parametrize("stages", [1, 4])
def test_grids_of_encoders_with_stages_are_what_they_compute_at_every_size(kind: str, stages: int) -> None:
    of_windows = {"num_heads": [1, 1, 2, 2][:stages], "window_size": 2}
    of_focuses = {"hidden_sizes": [8, 16, 32, 64][:stages], "focal_levels": [1] * stages, "focal_windows": [3] * stages}
    settings = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1] * stages, **(of_focuses if kind == "FocalNetConfig" else of_windows)}
    config = getattr(transformers, kind)(**settings)
    config.hidden_size = 8 * 2 ** (stages - 1)
    module = Captioner(encoder_decoder(config), Words()).eval()
    for height in range(48, 241, 23):
        for width in (height, 100):
            with torch.no_grad():
                found = module.model.encoder(torch.zeros(1, 3, height, width), output_hidden_states=True)
            layout = module.layout((height, width))
            assert (layout.grid, layout.prefix) == (tuple(found.reshaped_hidden_states[-1].shape[2:]), 0), (height, width)


def test_tokens_that_may_lie_on_two_grids_are_refused() -> None:
    eye = transformers.Dinov2WithRegistersConfig(**{**SMALL, "image_size": 32, "patch_size": 16, "num_register_tokens": 4})
    module = Captioner(encoder_decoder(eye), Words()).eval()
    with pytest.raises(UsageError, match=r"the 9 tokens .* may lie as 3x3 behind 0 others or 2x2 behind 5 others: give a size that is a multiple of .* 16"):
        module.layout((40, 40))
    assert module.grid((64, 48)) == (4, 3)
    assert captioner("encoder-decoder").grid((40, 40)) == (2, 2)  # with one token before, only one of them can be


def test_finding_the_grid_changes_neither_statistics_nor_modes() -> None:
    module = own()
    module._layouts.clear()
    module.train()
    module.model.encoder.stages.eval()
    modes, state = [part.training for part in module.modules()], copy.deepcopy(module.state_dict())
    drawn = torch.get_rng_state()
    assert module.grid((48, 32)) == (3, 2)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in state.items())
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_size_that_the_encoder_cannot_take_is_named() -> None:
    module = own("timm/test_vit", options={"dynamic_img_size": False, "img_size": 32})
    assert module.grid(SIZE) == (2, 2)
    with pytest.raises(UsageError, match=r"cannot take images of 48x32 pixels \(height x width\)"):
        module.grid((48, 32))


# ── our own ──
def test_positions_are_sines_and_cosines_of_the_centres_of_cells() -> None:
    height, width, dim = 3, 5, 16
    found = positions(height, width, dim).view(height, width, dim)
    for row in range(height):
        for column in range(width):
            expected = []
            for place in ((row + 0.5) / height, (column + 0.5) / width):
                waves = [2.0 * (1 / 32) ** (i / 3) for i in range(4)]  # 2 sides to 1/16 of one
                expected += [math.sin(2 * math.pi * place / wave) for wave in waves] + [math.cos(2 * math.pi * place / wave) for wave in waves]
            assert found[row, column].tolist() == pytest.approx(expected, abs=1e-6)


def test_one_place_has_one_code_at_every_size_and_places_differ() -> None:
    small, large = positions(3, 3, 32).view(3, 3, 32), positions(9, 15, 32).view(9, 15, 32)
    torch.testing.assert_close(small[1, 2], large[4, 12], atol=1e-5, rtol=0)
    codes = positions(19, 19, 32)
    assert float((torch.cdist(codes, codes) + 9 * torch.eye(361)).min()) > 0.3


@pytest.mark.parametrize(
    ("encoder", "stride", "grid"),
    [("timm/resnet10t", 8, (4, 8)), ("timm/resnet10t", None, (1, 2)), ("timm/test_vit", 16, (2, 4)), ("timm/mobilenetv1_100", 4, (8, 16))],
)
def test_encoders_are_cut_at_a_stride_and_take_other_sizes(encoder: str, stride: int | None, grid: tuple[int, int]) -> None:
    also = {"options": {"channel_multiplier": 0.25}} if "mobilenet" in encoder else {}
    module = own(encoder, stride, **also).eval()
    assert module.grid((32, 64)) == grid
    assert module(pictures(2, (32, 64)), captions(2)).shape == (2, 7, 12)
    assert not any("stages" in name and "head" in name for name, _ in module.named_parameters())


def test_tokens_are_the_cells_row_by_row() -> None:
    module = own().eval()
    eye = module.model.encoder
    images = pictures(1, (32, 64))
    cells = eye.stages(images)[-1][0]  # C, gh, gw
    one = eye.norm(eye.projection(cells[:, 1, 2])) + positions(2, 4, 32)[6]
    torch.testing.assert_close(module.encode(images)[0, 1 * 4 + 2], one, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ({"encoder_stride": 5}, r"encoder_stride: timm/resnet10t has features at strides of 2, 4, 8, 16, 32 pixels, got 5"),
        ({"decoder": {**DECODER, "embed_dim": 6}}, r"embed_dim: expected a multiple of 4.*got 6\. Give 8"),
        ({"decoder": {**DECODER, "num_heads": 5}}, r"num_heads: expected a number that divides embed_dim 32; got 5"),
        ({"encoder": "torchvision/resnet18"}, r"needs the backbone that sees the picture, timm/<name>; got 'torchvision/resnet18'"),
        ({"encoder": "timm/resnet10x"}, r"timm has no model 'resnet10x'\. Did you mean"),
        ({"options": {"out_indices": [1]}}, r"out_indices is not an option of a captioner's encoder"),
        ({"options": {"width": 3}}, r"does not take 'width'"),
        ({"pretrained": True}, r"no published weights of the whole model\. Give `pretrained: backbone`"),
        ({"pretrained": "backbone", "weights": Path("x")}, r"expected published weights or those of a file, got both"),
        ({"name": "pellucid/fcn32s"}, r"expected pellucid/captioner or transformers/<hub id or folder>, a captioner; got 'pellucid/fcn32s'"),
        ({"name": "transformers/git", "encoder_stride": 8}, r"transformers/git brings its own parts"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(also: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        built(**also)


def test_random_weights_come_from_torchs_generator_and_weights_of_the_encoder_change_no_other(tmp_path: Path) -> None:
    whole = timm.create_model("resnet10t", num_classes=7, channels=(8, 16, 24, 32), stem_width=8)
    save_weights(whole, tmp_path / "classifier.safetensors")
    drawn = []
    for file in (None, None, tmp_path / "classifier.safetensors"):
        torch.manual_seed(4)
        drawn.append(built(backbone_weights=file).module.state_dict())
    assert all(torch.equal(tensor, drawn[1][name]) for name, tensor in drawn[0].items())
    assert all(torch.equal(tensor, drawn[2][name]) for name, tensor in drawn[0].items() if "stages" not in name)
    theirs = whole.state_dict()
    for name in ("layer1.0.conv1.weight", "conv1.0.weight", "layer3.0.bn2.running_mean"):
        assert torch.equal(drawn[2][f"model.encoder.stages.{name}"], theirs[name]), name
    assert not torch.equal(drawn[0]["model.encoder.stages.conv1.0.weight"], theirs["conv1.0.weight"])


def test_start_weights_false_reads_no_file() -> None:
    module = built(backbone_weights=Path("nowhere.safetensors"), weights=None, start_weights=False).module
    assert isinstance(module, Captioner)
    with pytest.raises(MissingError, match=r"nowhere\.safetensors"):
        built(backbone_weights=Path("nowhere.safetensors"))


def test_a_pre_trained_backbone_brings_its_normalisation_and_must_have_the_options(tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    whole = build_classifier("timm/resnet10t", num_classes=3, pretrained=False, options=RESNET, drop_rate=None, drop_path_rate=None, image_size=SIZE)
    facts = BackboneFacts(
        "timm/resnet10t", RESNET, whole.classifier, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), SIZE, "pretraining", "simclr", "drawn", "run", "1"
    )  # fmt: skip
    save_backbone(whole.module, file, facts)
    made = built(backbone_weights=file)
    assert (made.mean, made.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert made.normalized_by.startswith("stated in backbone.safetensors")
    assert torch.equal(made.module.state_dict()["model.encoder.stages.conv1.0.weight"], whole.module.state_dict()["conv1.0.weight"])
    assert isinstance(made.module.get_submodule(made.backbone), nn.Module)
    assert any("layers behind the last stage, left out" in note for note in made.notes)
    with pytest.raises(WeightsError, match=r"was trained with the options"):
        built(backbone_weights=file, options={**RESNET, "stem_type": "deep"})


def test_published_weights_of_the_encoder_are_timms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = timm.create_model("resnet10t", num_classes=0)
    save_weights(published, tmp_path / "published.safetensors")
    monkeypatch.setattr("pellucid.models.backbones.timm_file", lambda *_: (tmp_path / "published.safetensors", False))
    made = built(pretrained="backbone", options={})
    assert torch.equal(made.module.state_dict()["model.encoder.stages.layer2.0.conv1.weight"], published.state_dict()["layer2.0.conv1.weight"])
    assert any("published.safetensors of timm/resnet10t" in note for note in made.notes)


def test_a_real_classifier_of_another_width_becomes_the_eye(photographs: Path) -> None:
    file = photographs / "weights" / "mobilenetv1_025_keras_timm.pth"
    options = {"channel_multiplier": 0.25, "pad_type": "same", "bn_eps": 1e-3}
    made = built(encoder="timm/mobilenetv1_100", encoder_stride=16, options=options, backbone_weights=file, image_size=(64, 96))
    whole = stages.whole_of("mobilenetv1_100", pretrained=False, options=options, notes=[]).eval()
    whole.load_state_dict({name: tensor for name, tensor in read_weights(file).items() if "classifier" not in name})
    images, seen = pictures(1, (64, 96)), []
    whole.blocks[3].register_forward_hook(lambda _, __, output: seen.append(output))  # type: ignore[index, union-attr]
    whole(images)
    module = made.module.eval()
    torch.testing.assert_close(module.model.encoder.features(images), seen[0].permute(0, 2, 3, 1))  # type: ignore[operator, union-attr]
    assert (made.mean, made.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_weights_of_a_whole_captioner_start_another(tmp_path: Path) -> None:
    first = own()
    save_weights(first, tmp_path / "model.safetensors")
    second = built(weights=tmp_path / "model.safetensors").module
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    with pytest.raises(WeightsError, match=r"another shape: .*word_embeddings"):
        built(vocabulary=Words(size=13), weights=tmp_path / "model.safetensors")


def test_our_captioner_learns_to_name_what_it_sees() -> None:
    torch.manual_seed(0)
    module = built(encoder_stride=8).module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(1)

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A bright square in one of four corners, in one of three colours: the words say colour, then corner."""
        images, colors, corners = 0.3 * torch.randn(count, 3, *SIZE, generator=generator), *torch.randint(0, 12, (2, count), generator=generator)
        colors, corners = colors % 3, corners % 4
        for image, color, corner in zip(images, colors, corners, strict=True):
            image[color, 16 * (corner // 2) + 4 : 16 * (corner // 2) + 12, 16 * (corner % 2) + 4 : 16 * (corner % 2) + 12] += 3.0
        ones = torch.ones_like(colors)
        return images, torch.stack([ones, 3 + colors, 6 + corners, 2 * ones], dim=1)

    losses = []
    for _ in range(60):
        images, tokens = drawn(24)
        loss = cross_entropy(module(images, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    images, tokens = drawn(64)
    found = module.eval().generate(images, Generation(4)).tokens  # type: ignore[operator]
    assert losses[-1] < 0.3 * losses[0], (losses[0], losses[-1])
    assert float((found[:, :3] == tokens[:, 1:]).all(1).float().mean()) > 0.8


# ── transformers ──
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_published_captioner(kind: str, tmp_path: Path) -> None:
    plain = captioner(kind).model
    folder = saved(plain, tmp_path / kind)
    made = built(f"transformers/{folder}", pretrained=True)
    module = made.module.eval()
    torch.testing.assert_close(module(pictures(), captions(3))[[0, 2]], plain_logits(kind, plain, pictures(), captions(3))[[0, 2]], atol=1e-5, rtol=1e-4)
    assert (made.mean, made.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert made.backbone == module.eye
    assert any("the decoder looks at 2x2 cells" in note for note in made.notes)
    drawn = built(f"transformers/{folder}", pretrained=True, start_weights=False).module
    assert {name: tensor.shape for name, tensor in drawn.state_dict().items()} == {name: tensor.shape for name, tensor in module.state_dict().items()}
    assert not torch.allclose(drawn.eval()(pictures(), captions(3)), module(pictures(), captions(3)), atol=1e-3)
    assert is_captioner(str(folder))
    assert is_captioner(f"transformers/{folder}")
    assert captioner_folder(f"transformers/{folder}") == folder


def test_random_weights_are_of_the_vocabulary_and_the_size(tmp_path: Path) -> None:
    folder = saved(git(), tmp_path / "git")
    module = built(f"transformers/{folder}", vocabulary=Words(size=20), image_size=(64, 64)).module
    assert module(pictures(1, (64, 64)), captions(1)).shape == (1, 7, 20)
    assert module.grid((64, 64)) == (4, 4)  # type: ignore[operator]
    assert module.model.config.vision_config.image_size == 64  # type: ignore[union-attr]


def test_what_a_model_was_published_to_generate_by_is_said(tmp_path: Path) -> None:
    plain = encoder_decoder()
    plain.generation_config.num_beams, plain.generation_config.max_length = 4, 16  # type: ignore[union-attr]
    plain.generation_config.decoder_start_token_id = 9  # type: ignore[union-attr]
    folder = saved(plain, tmp_path / "model")
    notes = "\n".join(built(f"transformers/{folder}", pretrained=True).notes)
    assert 'published to generate by {"max_length": 16, "num_beams": 4}; the settings of generation count instead' in notes
    assert "published to begin captions after token 9; here after 1, the tokeniser's" in notes


def test_weights_may_be_a_folder_or_a_file_of_the_whole(tmp_path: Path) -> None:
    plain = captioner("blip").model
    folder = saved(plain, tmp_path / "model")
    tokens = captions(1)
    wanted = plain_logits("blip", plain, pictures(1), tokens)
    for weights in (folder, folder / "model.safetensors"):
        torch.testing.assert_close(built(f"transformers/{folder}", weights=weights).module.eval()(pictures(1), tokens), wanted, atol=1e-5, rtol=1e-4)
    state = {name: tensor for name, tensor in plain.state_dict().items() if "crossattention" not in name}
    save_weights(state, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"missing.*partly random"):
        built(f"transformers/{folder}", weights=tmp_path / "part.safetensors")


def test_a_vocabulary_that_published_weights_do_not_speak_is_refused(tmp_path: Path) -> None:
    folder = saved(git(), tmp_path / "git")
    with pytest.raises(UsageError, match=r"its published weights speak 12 tokens, the tokeniser 13\. Set text\.tokenizer"):
        built(f"transformers/{folder}", pretrained=True, vocabulary=Words(size=13))


def test_models_of_other_kinds_are_refused_and_are_no_captioners(tmp_path: Path) -> None:
    vit = saved(transformers.ViTModel(transformers.ViTConfig(**EYE)), tmp_path / "vit")
    with pytest.raises(UsageError, match=r"a vision encoder-decoder, BLIP or GIT \(model_type .*\); it is a ViTModel"):
        built(f"transformers/{vit}")
    answers = tmp_path / "answers"
    answers.mkdir()
    (answers / "config.json").write_text(json.dumps({"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("[1")
    names = [str(vit), str(answers), str(broken), "timm/resnet18", "resnet18", "transformers/vit", "transformers/vision-encoder-decoder", str(tmp_path)]
    assert [name for name in names if is_captioner(name)] == []
    assert is_captioner("transformers/blip")
    with pytest.raises(UsageError, match=r"it is a BlipForQuestionAnswering"):
        built(f"transformers/{answers}")


def test_a_cached_repository_is_a_captioner_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "a" * 40
    cached = tmp_path / "models--someone--describes"
    saved(git(), cached / "snapshots" / revision)
    (cached / "snapshots" / revision / "model.safetensors").unlink()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert is_captioner("transformers/someone/describes")
    assert captioner_folder("transformers/someone/describes") == cached / "snapshots" / revision


def test_a_named_captioner_says_how_it_wants_photographs(tmp_path: Path) -> None:
    plain = captioner("git").model
    folder = saved(plain, tmp_path / "git")
    settings: dict[str, Any] = {"vocabulary": Words(), "weights": None, "options": {}, "seed": 1}
    named = build_named_captioner(f"transformers/{folder}", pretrained=True, image_size=None, **settings)
    assert named.preparation.size == (32, 32)
    assert named.preparation.mean == (0.1, 0.2, 0.3)
    assert not named.module.training
    assert named.weights == f"published weights {folder}"
    wide = build_named_captioner(f"transformers/{folder}", pretrained=True, image_size=(32, 80), **settings)
    assert wide.module.grid(wide.preparation.size) == (2, 5)  # type: ignore[operator]
    again = [build_named_captioner(f"transformers/{folder}", pretrained=False, image_size=None, **settings).module.state_dict() for _ in range(2)]
    assert all(torch.equal(tensor, again[1][name]) for name, tensor in again[0].items())


def test_parts_that_no_gradient_reaches_are_named(tmp_path: Path) -> None:
    folder = saved(encoder_decoder(), tmp_path / "model")
    made = built(f"transformers/{folder}", pretrained=True)
    made.module(pictures(), captions(3)).sum().backward()
    idle = {name for name, parameter in made.module.named_parameters() if parameter.grad is None}
    assert idle
    assert all(any(name.startswith(f"{path}.") for path in made.untrained) for name in idle)
