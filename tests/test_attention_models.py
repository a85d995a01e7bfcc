"""The recorder of attention against independent computations, for every kind of model that it is said to cover.

Each row of the table builds a small model with random weights, records it with all its kernels on, and compares with weights that
were found another way: q and k taken by hand, or the library's own eager weights. The controls would fail if heads or rows were mixed up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pellucid.inside.attention import record
from recorded import CLOSE, check, compare, dropouts, images, sharpen

pytestmark = pytest.mark.usefixtures("seeded")


# ── timm ──────────────────────────────────────────────────────────────────────────────────────────────────────


def by_hand(run: Callable[[nn.Module], Any]) -> Callable[[nn.Module], dict[str, list[Tensor]]]:
    """q and k of timm's Attention from its input, its projection and its norms; softmax in float64."""

    def oracle(model: nn.Module) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}

        def hook(path: str) -> Callable[..., None]:
            def take(m: Any, args: Any, out: Any) -> None:
                B, N, _C = args[0].shape
                q, k, _ = F.linear(args[0], m.qkv.weight, m.qkv.bias).reshape(B, N, 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)
                q, k = m.q_norm(q).double(), m.k_norm(k).double()
                found.setdefault(path, []).append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).float())

            return take

        for path, m in model.named_modules():
            if type(m).__name__ == "Attention":
                m.register_forward_hook(hook(path))
        with torch.no_grad():
            run(model)
        return found

    return oracle


TIMM = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}, ("class",), (4, 4)),
    "vit, oblong": ("vit_tiny_patch16_224", {"img_size": (24, 40), "patch_size": 8, "depth": 2}, ("class",), (3, 5)),
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}, ("class", "distillation"), (4, 4)),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "depth": 2}, ("class", *["register"] * 4), (2, 2)),
    "no class token": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "class_token": False, "global_pool": "avg"}, (), (4, 4)),
    "qk norm": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "qk_norm": True}, ("class",), (4, 4)),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", list(TIMM))
def test_timm_vit_by_hand(name: str, fused: bool) -> None:
    architecture, options, prefix, grid = TIMM[name]
    model = sharpen(timm.create_model(architecture, **options))
    for m in model.modules():
        if hasattr(m, "fused_attn"):
            m.fused_attn = fused
    size = options["img_size"] if isinstance(options["img_size"], tuple) else (options["img_size"],) * 2
    x = torch.randn(2, 3, *size)
    recording = check(model, by_hand(lambda m: m(x)), lambda m: m(x))
    for r in recording.records:
        assert (r.geometry.prefix, r.geometry.grid, r.kind) == (prefix, grid, "self")


def test_rotary_eva_against_its_own_explicit_path() -> None:
    model = sharpen(timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=2))
    x = images(56)
    recording = check(model, dropouts("attn_drop", lambda m: m(x)), lambda m: m(x))
    assert recording.records[0].geometry.prefix == ("class",)


def test_relative_beit_against_its_own_explicit_path() -> None:
    model = sharpen(timm.create_model("beit_base_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3))
    x = images()
    check(model, dropouts("attn_drop", lambda m: m(x)), lambda m: m(x))


def small_swin() -> nn.Module:
    return sharpen(
        timm.create_model("swin_tiny_patch4_window7_224", img_size=(56, 40), patch_size=4, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4))
    )


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_timm_swin_against_its_own_explicit_path(fused: bool) -> None:
    model = small_swin()
    for m in model.modules():
        if hasattr(m, "fused_attn"):
            m.fused_attn = fused
    x = torch.randn(2, 3, 56, 40)
    recording = check(model, dropouts("attn_drop", lambda m: m(x)), lambda m: m(x))
    assert [r.geometry.grid for r in recording.records] == [(14, 10), (14, 10), (7, 5), (7, 5)]


def numbered_windows(block: nn.Module, grid: tuple[int, int], attention: nn.Module, run: Callable[[nn.Module, Tensor], Any]) -> Tensor:
    """(windows, tokens) what the library's own code puts where: the block is given the numbers of the places, from 1, and its attention is replaced by a spy."""
    numbers = torch.arange(1, grid[0] * grid[1] + 1, dtype=torch.float32).view(1, *grid, 1)
    seen: list[Tensor] = []

    def spy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(x[..., 0])
        return x

    attention.forward = spy  # type: ignore[method-assign]
    run(block, numbers)
    return seen[0].long()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_shifted_windows_of_timm_land_on_the_right_pixels(name: str) -> None:
    size = (56, 40)  # feature maps of 14 x 10 and 7 x 5: windows of 4 need padding
    model = sharpen(timm.create_model(name, img_size=size, patch_size=4, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4)))
    with torch.no_grad(), record(model, rows="all") as recording:
        model(torch.randn(1, 3, *size))
    shifted = 0
    for path, block in model.named_modules():
        if type(block).__name__ not in ("SwinTransformerBlock", "SwinTransformerV2Block"):
            continue
        r = recording.of(f"{path}.attn")[0]
        assert r.geometry.windows is not None
        shifted += any(r.geometry.windows.shift)
        probe = copy.deepcopy(block)
        probe.norm1 = nn.Identity()
        probe.get_attn_mask = lambda x=None: None  # type: ignore[assignment]
        numbers = numbered_windows(probe, r.geometry.grid, probe.attn, lambda b, x: b._attn(x))
        places = torch.from_numpy(r.geometry.windows.places())
        ours = torch.where(places[..., 0] >= 0, places[..., 0] * r.geometry.grid[1] + places[..., 1] + 1, 0)
        assert torch.equal(ours, numbers), path
        whole = r.on_grid()  # (B, h, R, gh, gw): rows of a window, summed into their own places
        for token in range(numbers.shape[1]):
            expected = torch.zeros(r.geometry.grid).flatten()
            for window in range(numbers.shape[0]):
                for key in range(numbers.shape[1]):
                    if numbers[window, key]:
                        expected[numbers[window, key] - 1] += r.weights[window, 0, token, key]
            assert torch.allclose(whole[0, 0, token].flatten(), expected, atol=1e-6)
    assert shifted == 2


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_torchvision_swin(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2, SwinTransformer, SwinTransformerBlock, SwinTransformerBlockV2

    block, merging = (SwinTransformerBlock, PatchMerging) if kind == "v1" else (SwinTransformerBlockV2, PatchMergingV2)
    model = sharpen(SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], block=block, downsample_layer=merging, num_classes=5))
    x = torch.randn(2, 3, 56, 40)

    def oracle(m: nn.Module) -> dict[str, list[Tensor]]:
        taken: list[Tensor] = []
        dropout = F.dropout
        with monkeypatch.context() as patch:
            windows = lambda t: t.dim() == 4 and t.shape[-2:] == (16, 16)  # noqa: E731
            patch.setattr(F, "dropout", lambda t, *a, **k: (taken.append(t.clone()) if windows(t) else None, dropout(t, *a, **k))[1])
            with torch.no_grad():
                m(x)
        return {path: [w] for path, w in zip([p for p, c in m.named_modules() if "ShiftedWindowAttention" in type(c).__name__], taken, strict=True)}

    recording = check(model, oracle, lambda m: m(x))
    # A patch that changes moves the outputs of just those patches that it sees itself: its window, less what the mask of the shift hides.
    r = recording.records[1]
    assert r.geometry.windows is not None
    assert any(r.geometry.windows.shift)
    layer = dict(model.named_modules())[r.module]
    base = torch.randn(1, *r.geometry.grid, 24)
    for row, column in ((0, 0), (5, 7), (13, 9)):
        changed = base.clone()
        changed[0, row, column] += 1
        with torch.no_grad(), record(layer, rows=[(row, column)]) as one:
            outputs = layer(base)
        with torch.no_grad():
            moved = (layer(changed) - outputs).abs().sum(-1)[0] > 0
        sees = one.records[0].on_grid()[0, :, 0].sum(0) > 1e-20
        assert torch.equal(moved, sees), (row, column)


# ── torchvision and torch ─────────────────────────────────────────────────────────────────────────────────────


def own_weights(run: Callable[[nn.Module], Any]) -> Callable[[nn.Module], dict[str, list[Tensor]]]:
    """nn.MultiheadAttention's own weights, with need_weights: its arguments are taken on a run without the fast path."""

    def oracle(model: nn.Module) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}

        def wrap(path: str, m: nn.MultiheadAttention) -> None:
            forward = m.forward

            def spy(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Any:
                weights = forward(query, key, value, **(kwargs | {"need_weights": True, "average_attn_weights": False}))[1]
                found.setdefault(path, []).append(weights)
                return forward(query, key, value, **kwargs)

            m.forward = spy  # type: ignore[method-assign]

        for path, m in layers.items():
            wrap(path, m)
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad():
                run(model)
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)
        return found

    return oracle


def test_torchvision_vit_keeps_its_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharpen(torchvision.models.VisionTransformer(32, 8, 2, 4, 48, 96, num_classes=5))
    x = images()
    recording = check(model, own_weights(lambda m: m(x)), lambda m: m(x))
    assert recording.records[0].geometry.prefix == ("class",)
    calls = []
    native = torch._native_multi_head_attention
    monkeypatch.setattr(torch, "_native_multi_head_attention", lambda *a: (calls.append(1), native(*a))[1])
    with torch.no_grad(), record(model):
        model(x)
    assert len(calls) == 2, "the recorder switched the fast path off"


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("grad", [False, True], ids=["fast", "slow"])
@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning", "ignore:enable_nested_tensor:UserWarning")
def test_transformer_encoder(norm_first: bool, padded: bool, grad: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    model = sharpen(nn.TransformerEncoder(layer, 2))
    x = torch.randn(3, 7, 16)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    if padded:
        padding[1, 5:], padding[2, 3:] = True, True
    kwargs = {"src_key_padding_mask": padding} if padded else {}
    with torch.set_grad_enabled(grad):
        plain = model(x, **kwargs)
        with record(model, rows="all") as recording:
            seen = model(x, **kwargs)
    assert torch.equal(plain, seen)
    with torch.no_grad():
        expected = own_weights(lambda m: m(x, **kwargs))(copy.deepcopy(model))
    for path in expected:
        (r,) = recording.of(path)
        there = ~padding[:, None, :, None].expand_as(r.weights)
        assert float((r.weights - expected[path][0])[there].abs().max()) < CLOSE
        assert float((r.weights - expected[path][0].roll(1, dims=1))[there].abs().max()) > 100 * CLOSE
        assert float((r.weights - expected[path][0].roll(1, dims=2))[there].abs().max()) > 100 * CLOSE
        nested = padded and not grad and not norm_first  # then padding was removed: those queries never were
        assert bool(r.weights[~there].isnan().all()) == (nested or not padded)


@pytest.mark.parametrize("mask", ["bool", "float", "none"])
def test_transformer_decoder_with_causal_and_memory_masks(mask: str) -> None:
    model = sharpen(nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 2))
    target, memory = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    chosen = {"bool": causal, "float": torch.zeros(5, 5).masked_fill(causal, -torch.inf), "none": None}[mask]
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    hidden[1, 6:] = True

    def run(m: nn.Module) -> Tensor:
        return m(target, memory, tgt_mask=chosen, memory_key_padding_mask=hidden)

    recording = check(model, own_weights(run), run)
    assert {r.kind for r in recording.records if r.module.endswith("multihead_attn")} == {"cross"}
    assert {r.kind for r in recording.records if r.module.endswith("self_attn")} == {"self"}


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"batch_first": True}])
@pytest.mark.parametrize("rows", ["all", [2]])
def test_every_kind_of_multihead_attention(options: dict[str, Any], rows: Any) -> None:
    layer = sharpen(nn.MultiheadAttention(16, 4, **options))
    query, key, value = torch.randn(5, 5, 16), torch.randn(5, 5, options.get("kdim", 16)), torch.randn(5, 5, options.get("vdim", 16))
    key, value = key[:, :5], value[:, :5]
    with record(layer, rows=rows) as recording:
        seen = layer(query, key, value)
    assert torch.equal(seen[0], layer(query, key, value)[0])
    expected = layer(query, key, value, need_weights=True, average_attn_weights=False)[1]
    wanted = expected if rows == "all" else expected[:, :, rows]
    assert torch.allclose(recording.records[0].weights, wanted, atol=CLOSE)
    assert not torch.allclose(recording.records[0].weights, wanted.roll(1, dims=1), atol=100 * CLOSE)
    assert recording.records[0].kind == "cross"


# ── transformers ──────────────────────────────────────────────────────────────────────────────────────────────


def vit_config(**more: Any) -> Any:
    from transformers import ViTConfig

    return ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8, **more)


def eager(run: Callable[[nn.Module], Any], names: dict[str, str]) -> Callable[[nn.Module], dict[str, list[Tensor]]]:
    """The library's eager weights: {part of the output: pattern of the module paths, {} for the layer}."""

    def oracle(model: nn.Module) -> dict[str, list[Tensor]]:
        model.set_attn_implementation("eager")
        output = run(model)
        return {pattern.format(i): [w] for part, pattern in names.items() for i, w in enumerate(output[part])}

    return oracle


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2WithRegisters", "CLIPVision", "Swin"])
def test_transformers_vision_models(name: str, implementation: str) -> None:
    import transformers

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
        "attn_implementation": implementation,
    }
    if name == "Swin":
        small = {
            "image_size": 48,
            "patch_size": 4,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "attn_implementation": implementation,
        }
    config = getattr(transformers, f"{name}Config")(**small)
    model = sharpen(getattr(transformers, f"{name}Model")(config))
    x = images(small["image_size"])
    with torch.no_grad(), record(model, rows="all") as first:
        model(x)
    paths = first.layers

    def oracle(m: nn.Module) -> dict[str, list[Tensor]]:
        m.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = m(x, output_attentions=True).attentions
        assert len(attentions) == (2 if name == "Swin" else len(paths))
        if name == "Swin":  # it hands out the last block of each stage; each block's attention returns its own
            kept: dict[str, list[Tensor]] = {}
            for path, part in m.named_modules():
                if type(part).__name__ == "SwinAttention":
                    part.register_forward_hook(lambda _, i, out, path=path: kept.setdefault(path, []).append(out[1]))
            with torch.no_grad():
                m(x, output_attentions=True)
            assert all(torch.equal(a, kept[path][0]) for a, path in zip(attentions, paths[1::2], strict=True))
            return kept
        return {path: [w] for path, w in zip(paths, attentions, strict=True)}

    recording = check(model, oracle, lambda m: m(x))
    prefix = {"DeiT": ("class", "distillation"), "Dinov2WithRegisters": ("class", *["register"] * 4), "Swin": ()}.get(name, ("class",))
    assert recording.records[0].geometry.prefix == prefix
    if name == "Swin":
        assert [r.geometry.grid for r in recording.records] == [(12, 12), (12, 12), (6, 6), (6, 6)]
        assert any(r.geometry.windows is not None and any(r.geometry.windows.shift) for r in recording.records)


def captioner() -> Any:
    from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    decoder = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, is_decoder=True, add_cross_attention=True,
        max_position_embeddings=32,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit_config(), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 39
    model = sharpen(VisionEncoderDecoderModel(config))
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id, model.generation_config.eos_token_id = 1, 0, None
    return model


@pytest.mark.parametrize("beams", [1, 3])
def test_a_captioner_under_generate(beams: int) -> None:
    """Cross-attention of step s is that of output token s, against the library's eager weights; another step or beam differs."""
    model, x = captioner(), images()
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}
    plain = model.generate(x, **options)
    with record(model, rows="last") as recording:
        seen = model.generate(x, **options)
    assert torch.equal(plain, seen)
    model.set_attn_implementation("eager")
    given = model.generate(x, output_attentions=True, return_dict_in_generate=True, **options)
    assert torch.equal(given.sequences, plain)
    cross = [path for path in recording.layers if {r.kind for r in recording.of(path)} == {"cross"}]
    own = [path for path in recording.layers if "decoder" in path and path not in cross]
    assert len(cross) == len(own) == 2
    for layer in range(2):
        steps, words = recording.of(cross[layer]), recording.of(own[layer])
        assert [r.call for r in steps] == list(range(6))
        for s in range(6):
            expected = given.cross_attentions[s][layer]
            assert steps[s].weights.shape == (2 * beams, 4, 1, 17)
            assert float((steps[s].weights - expected).abs().max()) < CLOSE
            assert steps[s].geometry.grid == (4, 4)
            assert words[s].geometry.grid is None
            assert float((words[s].weights - given.decoder_attentions[s][layer][:, :, -1:]).abs().max()) < CLOSE
            if s:
                assert float((steps[s].weights - given.cross_attentions[s - 1][layer]).abs().max()) > 100 * CLOSE
                if beams > 1:
                    assert float((steps[s].weights - expected.roll(1, 0)).abs().max()) > 100 * CLOSE
    with record(model, rows="class") as images_only:
        model.generate(x, **options)
    assert all("encoder" in path and "decoder" not in path for path in images_only.layers)


def test_blip_under_generate() -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

    shared = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = BlipTextConfig(
        vocab_size=40, encoder_hidden_size=32, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, sep_token_id=39, pad_token_id=0, **shared
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=BlipVisionConfig(image_size=32, patch_size=8, **shared).to_dict())
    model, x = sharpen(BlipForConditionalGeneration(config)), images()
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
    plain = model.generate(pixel_values=x, **options)
    with record(model, rows="last") as recording:
        seen = model.generate(pixel_values=x, **options)
    assert torch.equal(plain, seen)
    cross = [path for path in recording.layers if "crossattention" in path]
    assert len(cross) == 2
    # Teacher-forced, in one pass, with the explicit weights of the model's own dropout: the row that gave word s is that of step s.
    taken: dict[str, list[Tensor]] = {}
    for path in cross:
        owner = next(m for p, m in model.named_modules() if p == path)
        owner.dropout.register_forward_hook(lambda _, args, out, path=path: taken.setdefault(path, []).append(args[0].clone()))
    with torch.no_grad():
        vision = model.vision_model(x).last_hidden_state
        model.text_decoder(input_ids=plain[:, :-1], encoder_hidden_states=vision, use_cache=False)
    for path in cross:
        steps = recording.of(path)
        whole = taken[path][0]
        first = whole.shape[2] - len(steps)
        for s, r in enumerate(steps):
            assert r.weights.shape == (2, 4, 1, 17)
            assert float((r.weights - whole[:, :, [first + s]]).abs().max()) < CLOSE
            assert r.geometry.prefix == ("class",)
    assert float((recording.of(cross[0])[1].weights - taken[cross[0]][0][:, :, [first]]).abs().max()) > 100 * CLOSE


# ── compiled and exported ─────────────────────────────────────────────────────────────────────────────────────


def tiny_vit() -> nn.Module:
    return sharpen(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=3))


@pytest.mark.parametrize("way", ["wrapped", "in place", "block by block", "forward"])
def test_a_compiled_model_gives_its_own_bits_and_is_recorded(way: str) -> None:
    model, x = tiny_vit(), images()
    expected = by_hand(lambda m: m(x))(copy.deepcopy(model))
    counted: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        counted.append(1)
        return lambda *a: tuple(t * 1.0000001 if isinstance(t, Tensor) and t.is_floating_point() else t for t in graph(*a))  # other bits than plain Python

    torch._dynamo.reset()
    compiled: Any = model
    if way == "wrapped":
        compiled = torch.compile(model, backend=backend)
    elif way == "in place":
        model.compile(backend=backend)
    elif way == "forward":
        model.forward = torch.compile(model.forward, backend=backend)  # type: ignore[method-assign]
    else:
        for block in model.blocks:
            block.compile(backend=backend)
    with torch.no_grad():
        plain = compiled(x)
        before = len(counted)
        with record(compiled, rows="all") as recording:
            seen = compiled(x)
        again = compiled(x)
    assert torch.equal(plain, seen)
    assert torch.equal(plain, again)
    assert before == len(counted), "the recorder had the model compiled anew"
    assert compare(recording, expected) < CLOSE
    assert recording.records[0].geometry.grid == (4, 4)


def test_a_compiled_decoder_speaks_the_same_words_and_its_cache_is_not_filled_twice() -> None:
    model, x = captioner(), images()
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with record(model, rows="last") as uncompiled:
        model.generate(x, **options)
    torch._dynamo.reset()
    model.decoder.compile(backend="eager")
    plain = model.generate(x, **options)
    with record(model, rows="last") as recording:
        seen = model.generate(x, **options)
    assert torch.equal(plain, seen)
    for a, b in zip(uncompiled.records, recording.records, strict=True):
        assert a.module == b.module
        assert torch.allclose(a.weights, b.weights, atol=CLOSE)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_an_exported_model_is_recorded_under_the_paths_of_its_modules(fused: bool, decomposed: bool) -> None:
    model, x = tiny_vit(), images()
    for block in model.blocks:
        block.attn.fused_attn = fused
    expected = by_hand(lambda m: m(x))(copy.deepcopy(model))
    program = torch.export.export(model, (x,))
    exported = (program.run_decompositions() if decomposed else program).module()
    with torch.no_grad():
        plain = exported(x)
        with record(exported, rows="all") as recording:
            seen = exported(x)
    assert torch.equal(plain, seen)
    assert compare(recording, expected) < CLOSE
