"""Relevance through attention against the paper's equations, with R in full and probabilities that were computed by hand or by eager attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18
from transformers import ViTConfig, ViTForImageClassification

from pellucid.errors import UsageError
from pellucid.inside.relevance import _Row, relevance

SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 5}


def lively(model: nn.Module) -> nn.Module:
    """The model with weights so large that attention is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() < 2 else (2 / p[0].numel()) ** 0.5) + (1.0 if p.dim() < 2 else 0.0))
    return model.eval()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def attended(x: Tensor, weight: Tensor, bias: Tensor, heads: int, kept: list[Tensor]) -> Tensor:
    """Self-attention before its output projection, written out; the probabilities (B, h, N, N) are appended."""
    B, N, D = x.shape
    q, k, v = (part.reshape(B, N, heads, D // heads).transpose(1, 2) for part in (x @ weight.T + bias).split(D, dim=2))
    kept.append(torch.softmax(q @ k.transpose(2, 3) / (D // heads) ** 0.5, dim=3))
    return (kept[-1] @ v).transpose(1, 2).reshape(B, N, D)


def by_hand(attentions: Sequence[Tensor], gradients: Sequence[Tensor], rows: list[int], prefix: int, grid: tuple[int, int]) -> np.ndarray:
    """R by eq. 5 and 6, whole, first layer to last; then the mean of the given rows over the patches."""
    B, _, N, _ = attentions[0].shape
    found = np.zeros((B, *grid))
    for b in range(B):
        R = np.eye(N)
        for a, g in zip(attentions, gradients, strict=True):
            a_bar = np.mean([np.maximum((a[b, h] * g[b, h]).detach().double().numpy(), 0) for h in range(a.shape[1])], axis=0)
            R = R + a_bar @ R
        found[b] = np.mean([R[row, prefix:] for row in rows], axis=0).reshape(grid)
    return found


def timm_by_hand(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and attentions of a timm ViT in float64."""
    kept: list[Tensor] = []
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks:
        attn = block.attn
        x = x + block.ls1(attn.proj(attended(block.norm1(x), attn.qkv.weight, attn.qkv.bias, attn.num_heads, kept)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.forward_head(model.norm(x)), kept


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], list[int], int, str]] = {
    "class token": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, **SMALL), (32, 48), [0], 1, "the class-token row, prefix tokens left out"),
    "distilled": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, **SMALL), (32, 32), [0, 1], 2,
        "the mean of the rows of 2 prefix tokens that the head reads",
    ),
    "registers": (lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=32, patch_size=8, **SMALL), (32, 32), [0], 5, "the class-token row"),
    "no class token": (
        lambda: timm.create_model("vit_base_patch16_gap_224", img_size=32, patch_size=8, **SMALL), (32, 32), list(range(16)), 0,
        "the mean over patch rows, as the head reads no class token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("fused", [True, False])
def test_relevance_is_the_papers_two_equations(case: str, fused: bool) -> None:
    make, size, rows, prefix, words = CASES[case]
    model, images, targets = lively(make()), drawn(2, 3, *size), torch.tensor([3, 1])
    grid = (size[0] // 8, size[1] // 8)
    for block in model.blocks:
        block.attn.fused_attn = fused
    found = relevance(model, images, targets=targets)
    logits, attentions = timm_by_hand(lively(make()).double(), images.double())
    torch.testing.assert_close(logits.float(), model(images), rtol=1e-4, atol=1e-4)
    scores = logits.gather(1, targets[:, None])
    gradients = torch.autograd.grad(scores.sum(), attentions)
    expected, wrong_row = (by_hand(attentions, gradients, which, prefix, grid) for which in (rows, [prefix + 3]))
    assert expected.min() >= 0
    assert expected.max() > 1e-3
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert np.abs(wrong_row - expected).max() > 0.01 * expected.max()  # the control
    assert words in found.how
    assert (found.layer, found.method) == ("blocks.0.attn to blocks.2.attn", "relevance")
    assert found.targets.tolist() == [3, 1]


def test_torchs_own_multi_head_attention_is_read() -> None:
    model, images = lively(VisionTransformer(32, 8, 3, 3, 24, 48, num_classes=5)), drawn(2, 3, 32, 32)
    found = relevance(model, images)
    double, kept = lively(VisionTransformer(32, 8, 3, 3, 24, 48, num_classes=5)).double(), []
    x = torch.cat([double.class_token.expand(2, -1, -1), double._process_input(images.double())], dim=1) + double.encoder.pos_embedding
    for block in double.encoder.layers:
        attn = block.self_attention
        x = x + attn.out_proj(attended(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias, 3, kept))
        x = x + block.mlp(block.ln_2(x))
    logits = double.heads(double.encoder.ln(x)[:, 0])
    torch.testing.assert_close(logits.float(), model(images), rtol=1e-4, atol=1e-4)
    assert found.targets.tolist() == logits.argmax(dim=1).tolist()
    expected = by_hand(kept, torch.autograd.grad(logits.max(dim=1).values.sum(), kept), [0], 1, (4, 4))
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-5 * expected.max())


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_transformers_models_agree_with_the_weights_that_eager_attention_hands_out(kind: str) -> None:
    config = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48, "num_labels": 5}
    model = lively(ViTForImageClassification(ViTConfig(**config, attn_implementation=kind)))
    eager = lively(ViTForImageClassification(ViTConfig(**config, attn_implementation="eager"))).double()
    images, targets = drawn(2, 3, 32, 32), torch.tensor([0, 4])
    output = eager(images.double(), output_attentions=True)
    scores = output.logits.gather(1, targets[:, None])
    expected = by_hand(output.attentions, torch.autograd.grad(scores.sum(), output.attentions), [0], 1, (4, 4))
    np.testing.assert_allclose(relevance(model, images, targets=targets).values, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_the_row_waits_for_attentions_that_come_out_of_order() -> None:
    class Call:
        def __init__(self, seed: int) -> None:
            self.a, self.g = (torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 10))

        def on_gradient(self, callback: Callable[[Tensor], None]) -> None:
            self.callback = callback

        def probabilities(self) -> Tensor:
            return self.a

    calls: Any = [Call(0), Call(1), Call(2)]
    start = torch.zeros(2, 4)
    start[:, 0] = 1
    row = _Row(start, calls)
    for number in (0, 2, 1):
        assert row.left > 0
        calls[number].callback(calls[number].g)
    assert row.left == 0
    assert not row.waiting
    expected = by_hand([c.a for c in calls], [c.g for c in calls], [0], 0, (2, 2))
    np.testing.assert_allclose(row.values.view(2, 2, 2).numpy(), expected, rtol=1e-5)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1), num_heads=(1, 2), embed_dim=16),
        "attention 'layers.0.blocks.0.attn' runs inside windows (8 of them for 2 images): relevance is not defined across windows",
    ),
    "cnn": (lambda: resnet18(num_classes=5), "relevance needs self-attention, and this model ran none; use grad_cam"),
    "attention pooling": (
        lambda: timm.create_model("vit_base_patch16_siglip_224", img_size=32, patch_size=8, **SMALL),
        "attention 'attn_pool' has 1 queries and 16 keys (cross-attention), where relevance needs self-attention over one sequence of tokens",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_models_without_one_sequence_of_self_attention_are_refused(case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(UsageError) as refused:
        relevance(lively(make()), drawn(2, 3, 32, 32))
    assert words in str(refused.value)


class Handwritten(nn.Module):
    """Attention whose softmax is written out, which no interception sees."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=2)
        e = (q @ k.transpose(1, 2) / 24**0.5).exp()
        return e / e.sum(dim=2, keepdim=True) @ v


class HandwrittenAttention(Handwritten):
    """By its name an attention."""


def test_an_attention_that_was_not_seen_is_an_error_that_names_it() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL)
    model.blocks[1].attn = HandwrittenAttention()
    with pytest.raises(UsageError, match=r"attention 'blocks\.1\.attn' ran without its probabilities being seen"):
        relevance(lively(model), drawn(2, 3, 32, 32))


def test_an_attention_that_the_score_does_not_read_is_an_error_that_names_it() -> None:
    model = lively(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL))
    with (
        model.blocks[1].attn.register_forward_hook(lambda m, i, o: o.detach()),
        pytest.raises(UsageError, match=r"attention 'blocks\.1\.attn' received no gradient"),
    ):
        relevance(model, drawn(2, 3, 32, 32))
