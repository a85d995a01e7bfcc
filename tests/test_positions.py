from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from timm.layers import RelPosMlp, build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import nn

from pellucid.errors import UsageError
from pellucid.inside.positions import Positions, interpolate, position_similarity
from pellucid.inside.relative import bias_tables

TIMM = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
HF: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 48, "patch_size": 8}


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def slow_similarity(rows: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """The definition, pair by pair in float64."""
    vectors = rows.detach().double().tolist()
    gh, gw = grid
    assert len(vectors) == gh * gw
    lengths = [math.sqrt(sum(x * x for x in v)) for v in vectors]
    result = np.zeros((gh, gw, gh, gw))
    for a, u in enumerate(vectors):
        for b, v in enumerate(vectors):
            result[a // gw, a % gw, b // gw, b % gw] = sum(x * y for x, y in zip(u, v, strict=True)) / (lengths[a] * lengths[b])
    return result


def check(found: Positions, rows: torch.Tensor, grid: tuple[int, int], *, parameter: str, prefix: int, kind: str = "learned") -> None:
    """The similarity is that of these rows, and a row off by one is another."""
    assert (found.kind, found.parameter, found.prefix, found.grid) == (kind, parameter, prefix, grid)
    assert found.similarity is not None
    assert found.similarity.dtype == np.float32
    assert found.similarity.shape == (*grid, *grid)
    assert np.abs(found.similarity - slow_similarity(rows, grid)).max() < 1e-6
    assert np.abs(found.similarity - slow_similarity(rows.roll(1, 0), grid)).max() > 0.1


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 5),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_small_patch14_reg4_dinov2", {"patch_size": 8}, 0),
        ("vit_small_patch14_dinov2", {"patch_size": 8}, 1),
    ],
)
def test_timm_models_drop_the_rows_that_are_no_patches(name: str, options: dict[str, Any], prefix: int) -> None:
    model = timm.create_model(name, **TIMM, img_size=48, **({"patch_size": 8} | options))
    found = position_similarity(model)
    assert model.pos_embed.shape[1] == 36 + prefix
    check(found, model.pos_embed[0, prefix:], (6, 6), parameter="pos_embed", prefix=prefix)
    assert ("left out" in found.how) == (prefix > 0)


def test_a_grid_that_is_not_square_is_the_models_own() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **TIMM, img_size=(32, 72), patch_size=8)
    check(position_similarity(model), model.pos_embed[0, 1:], (4, 9), parameter="pos_embed", prefix=1)


def test_the_grid_of_grids_of_a_384_model_has_24_by_24_maps() -> None:
    model = timm.create_model("vit_tiny_patch16_384", **TIMM)
    found = position_similarity(model)
    assert found.similarity is not None
    assert found.similarity.shape == (24, 24, 24, 24)
    assert found.how == "Cosine similarity of pos_embed: learned, 24 x 24 positions of 24 numbers; the first row belongs to no patch and is left out."


def test_an_embedding_laid_out_as_an_image_is_read_either_way() -> None:
    first = timm.create_model("pit_ti_224", num_classes=3)
    grid = (first.patch_embed.height, first.patch_embed.width)
    small = first.pos_embed[0, :, :6, :7].detach()  # (D, 6, 7)
    first.pos_embed = nn.Parameter(small[None])
    first.patch_embed.grid_size = (6, 7)
    assert grid[0] == grid[1]
    check(position_similarity(first), small.flatten(1).T, (6, 7), parameter="pos_embed", prefix=0)
    last = timm.create_model("samvit_base_patch16", **{**TIMM, "embed_dim": 24}, img_size=(64, 96), global_attn_indexes=())
    nn.init.normal_(last.pos_embed)
    assert last.pos_embed.shape == (1, 4, 6, 24)
    check(position_similarity(last), last.pos_embed[0].flatten(0, 1), (4, 6), parameter="pos_embed", prefix=0)


def test_blocks_of_rows_are_not_taken_for_an_image() -> None:
    model = nn.Module()
    model.pos_embed = nn.Parameter(torch.randn(1, 2, 9, 24))
    with pytest.raises(UsageError, match=r"pos_embed: shape \(1, 2, 9, 24\) is no grid that the model tells; if it is one, give it: grid=\(2, 9\)"):
        position_similarity(model)
    check(position_similarity(model, grid=(2, 9)), model.pos_embed[0].flatten(0, 1), (2, 9), parameter="pos_embed", prefix=0)


def test_the_first_of_several_is_shown_and_the_others_named() -> None:
    model = nn.Module()
    model.pos_embed_0, model.pos_embed_1 = nn.Parameter(torch.randn(1, 9, 8)), nn.Parameter(torch.randn(1, 4, 8))
    found = position_similarity(model)
    check(found, model.pos_embed_0[0], (3, 3), parameter="pos_embed_0", prefix=0)
    assert found.how.endswith("Not shown: pos_embed_1.")


def test_torchvisions_vit() -> None:
    model = torchvision.models.VisionTransformer(image_size=48, patch_size=8, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=32, num_classes=3)
    check(position_similarity(model), model.encoder.pos_embedding[0, 1:], (6, 6), parameter="encoder.pos_embedding", prefix=1)


@pytest.mark.parametrize(
    ("make", "path", "prefix"),
    [
        (lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**HF)), "vit.embeddings.position_embeddings", 1),
        (lambda: transformers.ViTModel(transformers.ViTConfig(**{**HF, "image_size": (32, 72)})), "embeddings.position_embeddings", 1),
        (lambda: transformers.DeiTModel(transformers.DeiTConfig(**HF)), "embeddings.position_embeddings", 2),
        (lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**HF)), "embeddings.position_embeddings", 1),
    ],
)
def test_transformers_parameters(make: Any, path: str, prefix: int) -> None:
    model = make()
    nn.init.normal_(model.get_parameter(path))
    side = model.config.image_size
    grid = (6, 6) if isinstance(side, int) else (4, 9)
    check(position_similarity(model), model.get_parameter(path)[0, prefix:], grid, parameter=path, prefix=prefix)


def test_clip_has_an_embedding_layer_and_its_words_are_not_taken_for_places() -> None:
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**HF))
    (path,) = [name for name, _ in vision.named_parameters() if "position_embedding" in name]
    check(position_similarity(vision), vision.get_parameter(path)[1:], (6, 6), parameter=path, prefix=1)
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 37}
    both = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=HF))
    found = position_similarity(both)
    assert found.parameter.startswith("vision_model.")
    assert found.grid == (6, 6)


def test_fixed_embeddings_are_told_from_frozen_ones() -> None:
    frozen = timm.create_model("vit_tiny_patch16_224", **TIMM, img_size=48, patch_size=8).requires_grad_(False)
    assert position_similarity(frozen).kind == "learned"
    mae = transformers.ViTMAEModel(transformers.ViTMAEConfig(**{**HF, "mask_ratio": 0.0}))
    mae.embeddings.position_embeddings.data[0, 1:] = build_sincos2d_pos_embed([6, 6], dim=24)  # a model made from a config alone holds zeros
    found = position_similarity(mae)
    check(found, mae.embeddings.position_embeddings[0, 1:], (6, 6), parameter="embeddings.position_embeddings", prefix=1, kind="fixed")
    assert "fixed" in found.how
    mae.embeddings.position_embeddings.requires_grad_(True)  # it only began as sines and cosines
    assert position_similarity(mae).kind == "learned"


def test_a_buffer_is_fixed() -> None:
    model = nn.Module()
    model.register_buffer("pos_embed", torch.randn(1, 9, 8))
    found = position_similarity(model)
    check(found, model.get_buffer("pos_embed")[0], (3, 3), parameter="pos_embed", prefix=0, kind="fixed")
    assert "the model does not tell its grid, so the rows were read as this one" in found.how


# ── other grids ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_grid_is_interpolated_as_timm_does() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **TIMM, img_size=48, patch_size=8)
    for new in ((9, 9), (4, 7), (3, 3)):
        expected = resample_abs_pos_embed(model.pos_embed, list(new), num_prefix_tokens=1)[0]
        assert torch.allclose(interpolate(model.pos_embed[0, 1:], (6, 6), new, antialias=True), expected[1:], atol=1e-6)
        found = position_similarity(model, grid=new)
        check(found, expected[1:], new, parameter="pos_embed", prefix=1, kind="interpolated")
        assert f"learned, 6 x 6 positions of 24 numbers; the first row belongs to no patch and is left out; interpolated to {new[0]} x {new[1]}" in found.how
        assert "with antialias" in found.how


def test_another_grid_is_interpolated_as_transformers_does() -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**HF))
    expected = model.embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 5 * 8, 24), 40, 64)[0]
    found = position_similarity(model, grid=(5, 8))
    check(found, expected[1:], (5, 8), parameter="embeddings.position_embeddings", prefix=1, kind="interpolated")
    assert "without antialias" in found.how
    registers = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**HF))
    nn.init.normal_(registers.embeddings.position_embeddings)
    expected = registers.embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 3 * 4, 24), 24, 32)[0]
    check(position_similarity(registers, grid=(3, 4)), expected[1:], (3, 4), parameter="embeddings.position_embeddings", prefix=1, kind="interpolated")


def test_rows_that_are_no_square_need_the_callers_grid() -> None:
    model = nn.Module()
    model.pos_embed = nn.Parameter(torch.randn(1, 1 + 5 * 9, 8))
    with pytest.raises(UsageError, match=r"pos_embed: 46 rows are no grid of patches .*tried 6 x 6.*grid=\(rows, columns\)"):
        position_similarity(model)
    check(position_similarity(model, grid=(5, 9)), model.pos_embed[0, 1:], (5, 9), parameter="pos_embed", prefix=1)


def test_a_parameter_of_another_name_is_taken_by_its_path() -> None:
    model = nn.Module()
    model.places = nn.Parameter(torch.randn(4, 8))
    assert position_similarity(model).kind == "none"
    check(position_similarity(model, parameter="places"), model.places, (2, 2), parameter="places", prefix=0)
    with pytest.raises(UsageError, match=r"place: expected the path of a parameter or buffer of the model. Did you mean 'places'\?"):
        position_similarity(model, parameter="place")


def test_impossible_grids_and_shapes_are_refused() -> None:
    model = nn.Module()
    model.pos_embed = nn.Parameter(torch.randn(1, 16, 8))
    with pytest.raises(UsageError, match="at least 1 x 1"):
        position_similarity(model, grid=(0, 4))
    with pytest.raises(UsageError, match="200 x 100 positions do not fit; give a grid of at most 10,000"):
        position_similarity(model, grid=(200, 100))
    model.pos_embed = nn.Parameter(torch.randn(3, 16, 8))
    with pytest.raises(UsageError, match=r"expected a position embedding of shape .*got \(3, 16, 8\)"):
        position_similarity(model)


def test_an_embedding_of_zeros_is_like_nothing_and_is_no_nan() -> None:
    model = nn.Module()
    model.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
    similarity = position_similarity(model).similarity
    assert similarity is not None
    assert not similarity.any()


# ── models without one ───────────────────────────────────────────────────────────────────────────────────────────


def relative_bias(full: torch.Tensor, window: tuple[int, int], prefix: int = 0) -> np.ndarray:
    """The bias by offset, read from what the library adds to the logits (h, N, N): pairs of the window, one by one."""
    wh, ww = window
    table = np.full((full.shape[0], 2 * wh - 1, 2 * ww - 1), np.nan)
    for q in range(wh * ww):
        for k in range(wh * ww):
            at = (q // ww - k // ww + wh - 1, q % ww - k % ww + ww - 1)
            table[:, at[0], at[1]] = full[:, q + prefix, k + prefix].detach().numpy()
    return table


def swins() -> dict[str, Any]:
    small: dict[str, Any] = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)}
    hf = {"image_size": 32, "patch_size": 2, "window_size": 4, **small, "depths": [1, 2], "num_heads": [2, 4]}
    vision = {"patch_size": [2, 2], "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": [4, 4], "num_classes": 3}
    return {
        "timm swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", **small, img_size=(32, 64), patch_size=2, window_size=(4, 8), num_classes=3),
        "timm swin v2": lambda: timm.create_model("swinv2_tiny_window8_256", **small, img_size=32, patch_size=2, window_size=4, num_classes=3),
        "torchvision swin": lambda: torchvision.models.SwinTransformer(**vision),
        "torchvision swin v2": lambda: torchvision.models.SwinTransformer(
            **vision,
            block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
        ),
        "transformers swin": lambda: transformers.SwinModel(transformers.SwinConfig(**hf)),
        "transformers swin v2": lambda: transformers.Swinv2Model(transformers.Swinv2Config(**hf)),
    }


def added(module: Any) -> torch.Tensor:
    """What a layer adds to its logits (h, N, N), by the library's own code where it is a function of its own."""
    if type(module).__name__ == "SwinRelativePositionBias":
        return torch.as_tensor(module())[0]
    if hasattr(module, "_get_rel_pos_bias"):
        return torch.as_tensor(module._get_rel_pos_bias())[0]
    if hasattr(module, "get_relative_position_bias"):
        return torch.as_tensor(module.get_relative_position_bias())[0]
    transformers_own = hasattr(module, "continuous_position_bias_mlp")
    network, heads = (module.continuous_position_bias_mlp, module.num_attention_heads) if transformers_own else (module.cpb_mlp, module.num_heads)
    table = 16 * torch.sigmoid(network(module.relative_coords_table).view(-1, heads))
    area = math.prod(module.window_size)
    return table[module.relative_position_index.view(-1)].view(area, area, heads).permute(2, 0, 1)


@pytest.mark.parametrize("name", sorted(swins()))
def test_swins_have_no_embedding_and_show_their_bias(name: str) -> None:
    model = swins()[name]()
    for parameter, table in model.named_parameters():
        if parameter.endswith("relative_position_bias_table"):
            nn.init.normal_(table)  # transformers starts from zeros
    before = [module.training for module in model.modules()]
    found = position_similarity(model)
    assert (found.kind, found.similarity, found.parameter, found.grid) == ("relative", None, "", None)
    assert "The model has no position embedding: it adds a relative-position bias" in found.how
    assert len(found.bias) == 3
    model.eval()
    for path, bias in bias_tables(model).items():
        module = model.get_submodule(path)
        window = tuple(module.window_size)
        assert bias.shape == (added(module).shape[0], 2 * window[0] - 1, 2 * window[1] - 1)
        assert np.allclose(bias, relative_bias(added(module), window), atol=1e-6)
        assert np.allclose(bias, found.bias[path])  # made with dropout off, whatever the mode of the model
        assert not np.allclose(bias, bias[:, ::-1])
    assert before == [True] * len(before)


def test_beits_entries_of_the_class_token_are_left_out() -> None:
    model = timm.create_model("beit_base_patch16_224", **TIMM, img_size=48, patch_size=8)
    nn.init.normal_(model.blocks[0].attn.relative_position_bias_table)
    found = position_similarity(model)
    assert found.kind == "relative"
    (bias,) = found.bias.values()
    assert bias.shape == (2, 11, 11)
    assert np.allclose(bias, relative_bias(model.blocks[0].attn._get_rel_pos_bias()[0], (6, 6), prefix=1))
    hf = transformers.BeitModel(transformers.BeitConfig(**HF, use_relative_position_bias=True))
    other = position_similarity(hf)
    assert other.kind == "relative"
    assert [bias.shape for bias in other.bias.values()] == [(2, 11, 11)]


def test_the_network_of_a_timm_bias_is_read_as_its_library_does() -> None:
    for mode in ("swin", "cr"):
        layer = RelPosMlp((3, 4), num_heads=2, mode=mode).train()
        (bias,) = bias_tables(layer).values()
        assert all(module.training for module in layer.modules())
        assert np.allclose(bias, relative_bias(layer.eval().get_bias()[0], (3, 4)), atol=1e-6)


def test_biases_made_from_the_query_have_no_table() -> None:
    found = position_similarity(timm.create_model("mvitv2_tiny", num_classes=3, img_size=64))
    assert (found.kind, found.bias) == ("relative", {})
    assert "there is no table to show" in found.how


@pytest.mark.parametrize("use", [False, True])
def test_rotary_models_say_so(use: bool) -> None:
    model = timm.create_model("eva02_tiny_patch14_224", **TIMM, img_size=48, patch_size=8, use_abs_pos_emb=use)
    found = position_similarity(model)
    if use:
        check(found, model.pos_embed[0, 1:], (6, 6), parameter="pos_embed", prefix=1)
        assert "The model also turns its queries and keys by their place (rotary)." in found.how
    else:
        assert (found.kind, found.similarity, found.bias) == ("rotary", None, {})
        assert found.how == "The model has no position embedding: it turns its queries and keys by their place (rotary). There is nothing to show."


def test_dinov3_is_rotary_in_both_libraries() -> None:
    first = timm.create_model("vit_small_patch16_dinov3", **TIMM, img_size=48, patch_size=8)
    second = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**HF))
    assert position_similarity(first).kind == position_similarity(second).kind == "rotary"


def test_a_cnn_has_none() -> None:
    found = position_similarity(torchvision.models.resnet18(num_classes=3))
    assert (found.kind, found.similarity, found.grid, found.bias) == ("none", None, None, {})
    assert found.how.startswith("No position embedding was found: no parameter or buffer is named pos_embed, ")
    assert "A model without attention needs none" in found.how
