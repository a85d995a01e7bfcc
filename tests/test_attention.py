"""The recorder of attention: kernels, attention written in Python, what was asked for, and what cannot be recorded. Models: test_attention_models.py."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.attention import attention_modules, record

pytestmark = pytest.mark.usefixtures("seeded")


def images(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size)


def tiny_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=3).eval()


# ── one kernel ────────────────────────────────────────────────────────────────────────────────────────────────


class Kernel(nn.Module):
    """Nothing but a fused kernel."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **self.options)


MASK = torch.rand(6, 9) > 0.3
KERNELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "custom scale": {"scale": 0.37},
    "boolean mask": {"attn_mask": MASK},
    "additive mask": {"attn_mask": torch.randn(2, 4, 6, 9)},
    "mask without rows": {"attn_mask": torch.randn(2, 1, 1, 9)},
    "causal": {"is_causal": True},
    "grouped queries": {"enable_gqa": True},
}


@pytest.mark.parametrize("rows", ["all", "last", "mean", [1, -2]], ids=str)
@pytest.mark.parametrize("name", list(KERNELS))
def test_kernel_against_float64(name: str, rows: Any) -> None:
    options, heads = KERNELS[name], 2 if name == "grouped queries" else 4
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, heads, 9, 8), torch.randn(2, heads, 9, 8)
    model = Kernel(**options)
    with record(model, rows=rows) as recording:
        output = model(q, k, v)
    assert torch.equal(output, model(q, k, v))
    scores = torch.zeros(2, 4, 6, 9, dtype=torch.float64)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape)).tolist():
        s = float(q[b, h, i].double() @ k[b, h * heads // 4, j].double()) * options.get("scale", 8**-0.5)
        mask = options.get("attn_mask")
        if mask is not None:
            at = mask.expand(2, 4, 6, 9)[b, h, i, j]
            s = (s if at else -torch.inf) if mask.dtype == torch.bool else s + float(at)
        scores[b, h, i, j] = -torch.inf if name == "causal" and j > i else s
    expected = scores.softmax(-1)
    chosen = {"all": expected, "last": expected[:, :, [5]], "mean": expected.mean(2, keepdim=True)}.get(str(rows), expected[:, :, [1, 4]])
    assert float((recording.records[0].weights - chosen).abs().max()) < 1e-6
    values = v.repeat_interleave(4 // heads, 1).double()
    assert torch.allclose((expected @ values).float(), output, atol=1e-5)


def test_a_row_whose_keys_are_all_hidden_is_zero_as_the_kernel_gives_it() -> None:
    mask = torch.ones(6, 9, dtype=torch.bool)
    mask[2] = False
    model, q, k = Kernel(attn_mask=mask), torch.randn(1, 1, 6, 8), torch.randn(1, 1, 9, 8)
    with record(model, rows="all") as recording:
        output = model(q, k, k)
    assert output[0, 0, 2].abs().max() == 0
    assert recording.records[0].weights[0, 0, 2].abs().max() == 0


def test_under_autocast_the_record_is_float32_of_the_rounded_queries_and_keys() -> None:
    model, seen = tiny_vit(), []
    model.blocks[1].attn.q_norm.register_forward_hook(lambda m, i, o: seen.append(o))
    model.blocks[1].attn.k_norm.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), record(model, rows="all", layers=1) as recording:
        model(images())
    q, k = (t.to(torch.bfloat16).double() for t in seen)
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    assert recording.records[0].weights.dtype == torch.float32
    assert float((recording.records[0].weights - expected).abs().max()) < 1e-6


# ── softmax and product in Python ─────────────────────────────────────────────────────────────────────────────


class Explicit(nn.Module):
    """Attention as people write it, in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.num_heads, self.drop = way, 4, nn.Dropout(0.1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * 0.3
        match self.way:
            case "method":
                return scores.softmax(-1) @ v
            case "function":
                return torch.matmul(self.drop(F.softmax(scores, dim=-1)), v)
            case "torch":
                return torch.softmax(scores, dim=3).matmul(v)
            case "module":
                return nn.Softmax(dim=-1)(scores).to(torch.float64).to(torch.float32) @ v
            case "einsum":
                return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(dim=-1), v)
            case "einsum turned":
                return torch.einsum("bhkd,bhqk->bhqd", v, scores.softmax(dim=-1))
            case "flat":
                return torch.bmm(scores.flatten(0, 1).softmax(-1), v.flatten(0, 1)).view_as(q)
            case "low precision":
                return scores.softmax(-1, dtype=torch.float32).to(torch.bfloat16) @ v.to(torch.bfloat16)
            case _:
                return (scores.softmax(-1).view(8, 6, 9) * torch.ones(8, 1, 1)).reshape(2, 4, 6, 9) @ v


@pytest.mark.parametrize("way", ["method", "function", "torch", "module", "einsum", "einsum turned", "flat", "low precision", "scaled"])
def test_explicit_attention(way: str) -> None:
    model, q, k, v = Explicit(way).eval(), torch.randn(2, 4, 6, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    with record(model, rows="all") as recording:
        model(q, k, v)
    expected = (q.double() @ k.double().transpose(-1, -2) * 0.3).softmax(-1)
    assert len(recording.records) == 1
    assert float((recording.records[0].weights - expected).abs().max()) < 1e-6


def test_softmax_that_is_no_attention_is_not_recorded() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mixed = x.softmax(-1) @ torch.ones(8, 3)  # a mixture of experts: a product with a matrix
            return mixed + x.softmax(1)[..., :3] + x.softmax(-1)[..., :3]

    gate = Gate()
    with pytest.raises(UsageError, match=r"no attention ran in this model. Is it a convolutional network\? Use grad_cam"), record(gate, rows="all"):
        gate(torch.randn(2, 4, 8))


# ── what cannot be recorded, and what was asked ───────────────────────────────────────────────────────────────


class HandWrittenAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        e = (x @ x.transpose(-1, -2)).exp()
        return (e / e.sum(-1, keepdim=True)) @ x


class Half(nn.Module):
    """A model of which one attention can be seen and one cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.hidden = Explicit("method"), HandWrittenAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.seen(x, x, x) + self.hidden(x)


def test_attention_that_was_not_seen_is_an_error_that_names_it() -> None:
    model, x = Half(), torch.randn(1, 2, 4, 8)
    with pytest.raises(UsageError, match=r"could not be recorded: hidden \(HandWrittenAttention\).*flex_attention.*ignore=\[...\]"), record(model, rows="all"):
        model(x)
    with record(model, rows="all", ignore=["hidden"]) as recording:
        model(x)
    assert len(recording.records) == 1
    with record(model, rows="all", layers=["seen"]) as recording:
        model(x)
    assert recording.layers == ["seen"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_is_named() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    class FlexAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return flex_attention(x, x, x)

    model = nn.Sequential(FlexAttention())
    with pytest.raises(UsageError, match=r"could not be recorded: 0 \(FlexAttention\)"), record(model, rows="all"):
        model(torch.randn(1, 2, 16, 16))


def test_channel_attention_needs_not_be_seen() -> None:
    model = timm.create_model("resnet18", block_args={"attn_layer": "cbam"}).eval()
    with pytest.raises(UsageError, match="no attention ran in this model"), record(model, rows="all"):
        model(images(64, 1))


def test_a_model_that_did_not_run_in_the_block_is_an_error() -> None:
    with pytest.raises(UsageError, match="the model did not run inside the block"), record(tiny_vit()):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_named() -> None:
    with torch.no_grad():
        scripted = torch.jit.trace(tiny_vit(), images())
    with pytest.raises(UsageError, match="TorchScript, which hands nothing out"), record(scripted, rows="all"):
        scripted(images())


def test_hooks_modes_and_functions_are_removed_after_an_error() -> None:
    model, functions = tiny_vit(), (F.multi_head_attention_forward, torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)
    with pytest.raises(RuntimeError), record(model):
        model(torch.randn(1, 5, 32, 32))
    from torch.nn.modules import module

    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks
    assert functions == (F.multi_head_attention_forward, torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)
    assert not torch.overrides._get_current_function_mode_stack()
    encoder = torchvision.models.VisionTransformer(32, 8, 2, 4, 48, 96).eval()
    encoder.encoder.layers[0].mlp = nn.Linear(3, 3)
    with torch.no_grad(), pytest.raises(RuntimeError), record(encoder):
        encoder(images())
    assert torch.overrides.has_torch_function((torch.ones(1),)) is False


def test_a_recording_inside_a_recording_of_the_same_model_is_refused_and_leaves_torch_as_it_was() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 48, 96).eval()
    with torch.no_grad(), pytest.raises(UsageError, match="being recorded already"), record(model), record(model.encoder, rows="all"):
        pass
    assert torch._C._is_torch_function_enabled()
    other = tiny_vit()
    with torch.no_grad(), record(model) as one, record(other) as two:
        model(images())
        other(images())
    assert len(one.records) == len(two.records) == 2
    assert torch._C._is_torch_function_enabled()


def test_a_child_of_a_recorded_parent_is_not_excused() -> None:
    class PairAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Explicit("method"), HandWrittenAttention()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x, x, x) + self.b(x)

    model = nn.Sequential(PairAttention())
    with pytest.raises(UsageError, match=r"could not be recorded: 0.b \(HandWrittenAttention\)"), record(model, rows="all"):
        model(torch.randn(1, 2, 4, 8))


def test_probabilities_that_never_meet_values_are_named_whatever_the_module_is_called() -> None:
    model, x = timm.create_model("convit_tiny", img_size=32, patch_size=8, depth=4, local_up_to_layer=2, embed_dim=24, num_heads=3).eval(), images()
    with pytest.raises(UsageError, match=r"could not be recorded: blocks.0.attn \(GPSA\)"), record(model, rows="all"):
        model(x)


def test_another_thread_is_not_taken_for_this_one() -> None:
    import threading

    model, x, done = tiny_vit(), images(), threading.Event()

    def run() -> None:
        with torch.no_grad():
            while not done.is_set():
                model(x)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(20):
            with torch.no_grad(), record(model) as recording:
                model(x)
            assert [(r.module, r.call) for r in recording.records] == [("blocks.0.attn", 0), ("blocks.1.attn", 0)]
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("shape", ["(B h, N, d)", "(B, h, W, N, d)", "(B, W, h, N, d)"])
def test_heads_are_found_in_other_shapes(shape: str) -> None:
    class Attention(nn.Module):
        num_heads = 3

        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k)

    q, k = torch.randn(2, 5, 3, 4, 8), torch.randn(2, 5, 3, 6, 8)  # two images, five windows, three heads
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1).flatten(0, 1)
    if shape == "(B h, N, d)":
        q, k = (t.flatten(0, 2) for t in (q, k))
    elif shape == "(B, h, W, N, d)":
        q, k = (t.transpose(1, 2) for t in (q, k))
    model = Attention()
    with record(model, rows="all") as recording:
        model(q, k)
    assert recording.records[0].heads == 3
    assert torch.allclose(recording.records[0].weights, expected, atol=1e-6)


def test_words_are_no_patches_and_windows_of_other_models_no_images() -> None:
    model = timm.create_model("davit_tiny", embed_dims=(24, 24), depths=(1, 1), num_heads=(2, 2)).eval()
    with torch.no_grad(), record(model, rows="all") as recording:
        model(images(160))
    for r in recording.records:
        if r.weights.shape[0] != 2 or r.geometry.grid is None:
            assert r.geometry.grid is None
        else:
            assert r.geometry.grid[0] * r.geometry.grid[1] == r.geometry.tokens


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")  # torch says it once in a process
def test_the_mean_over_queries_leaves_padding_out() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(2, 7, 16)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.no_grad(), record(model, rows="mean") as recording:
        model(x, src_key_padding_mask=padding)
    with torch.no_grad(), record(model, rows="all") as alone:
        model(x[1:, :4])
    assert torch.allclose(recording.records[0].weights[1, :, 0, :4], alone.records[0].weights[0].mean(1), atol=1e-6)


def test_layers_can_be_chosen() -> None:
    model, x = tiny_vit(), images()
    assert attention_modules(model) == ["blocks.0.attn", "blocks.1.attn"]
    for layers, expected in (
        ("last", ["blocks.1.attn"]),
        (-2, ["blocks.0.attn"]),
        ("blocks.*.attn", ["blocks.0.attn", "blocks.1.attn"]),
        ([0], ["blocks.0.attn"]),
    ):
        with record(model, layers=layers) as recording:  # type: ignore[arg-type]
            model(x)
        assert recording.layers == expected

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Explicit("method"), Explicit("method")

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x, x, x)

    skips = Skips()
    with pytest.raises(UsageError, match="layers: b never ran inside the block. Recorded: a."), record(skips, rows="all", layers=["a", "b"]):
        skips(torch.randn(1, 2, 4, 8))
    with pytest.raises(UsageError, match=r"no module 'blocks.1.atn'. Did you mean 'blocks.1.attn'\?"), record(model, layers="blocks.1.atn"):
        pass
    with pytest.raises(UsageError, match="has 2 attention modules, there is no number 2"), record(model, layers=2):
        pass


def test_rows_can_be_given_patches() -> None:
    model, x = tiny_vit(), images()
    with record(model, rows="all") as whole:
        model(x)
    with record(model, rows=[(1, 2), (3, 3)]) as recording:
        model(x)
    assert torch.allclose(recording.records[0].weights, whole.records[0].weights[:, :, [1 + 6, 1 + 15]], atol=1e-7)
    assert recording.records[0].on_grid().shape == (2, 3, 2, 4, 4)
    with pytest.raises(UsageError, match=r"patch \(4, 0\) lies outside the grid of 4 x 4"), record(model, rows=[(4, 0)]):
        model(x)
    with pytest.raises(UsageError, match="has 17 queries, there is no row 17"), record(model, rows=[17]):
        model(x)
    with pytest.raises(UsageError, match=r"expected one of class, last, mean, all.*Did you mean 'class'\?"), record(model, rows="clas"):  # type: ignore[arg-type]
        pass
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, class_token=False, global_pool="avg")
    with pytest.raises(UsageError, match=r'the model has no class token.*rows="mean"'), record(plain):
        pass


def test_the_mean_leaves_prefix_queries_out() -> None:
    model, x = tiny_vit(), images()
    with record(model, rows="all") as whole:
        model(x)
    with record(model, rows="mean") as recording:
        model(x)
    assert torch.allclose(recording.records[1].weights, whole.records[1].weights[:, :, 1:].mean(2, keepdim=True), atol=1e-6)


def test_memory_grows_with_rows_and_not_with_tokens_squared() -> None:
    """Tensors kept by a recording of the class row: a row for each layer and head."""
    model, x = tiny_vit(), images()
    with record(model) as recording:
        model(x)
    assert sum(r.weights.untyped_storage().nbytes() for r in recording.records) == 2 * 2 * 3 * 17 * 4
    for b in model.blocks:
        b.attn.fused_attn = False
    with record(model) as recording:
        model(x)
    assert sum(r.weights.untyped_storage().nbytes() for r in recording.records) == 2 * 2 * 3 * 17 * 4


def test_gradients_are_not_touched() -> None:
    model, x = tiny_vit(), images()
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    with record(model, rows="all"):
        model(x).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, [p for p in model.parameters() if p.grad is not None], strict=True))
