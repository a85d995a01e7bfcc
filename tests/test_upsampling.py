"""Bilinear up-sampling as matrix products: torch's values, a gradient of two products, strips in bounded memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.models import upsampling
from pellucid.models.upsampling import bilinear, deterministic_bilinear, upsampled_strips

SIZES = [((3, 5), (7, 11)), ((2, 2), (64, 64)), ((1, 1), (4, 6)), ((9, 4), (9, 8)), ((12, 10), (5, 3)), ((306, 3), (2448, 5)), ((4, 5), (1, 1))]


def twin(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Pixel by pixel in float64: the four neighbours of where a sample falls."""

    def place(i: int, before: int, after: int) -> tuple[int, int, float]:
        where = i * (before - 1) / max(after - 1, 1) if align_corners else max((i + 0.5) * before / after - 0.5, 0.0)
        low = min(math.floor(where), before - 1)
        return low, min(low + 1, before - 1), where - low if low < before - 1 else 0.0

    x = x.double()
    out = torch.zeros(*x.shape[:-2], *size, dtype=torch.float64)
    for i in range(size[0]):
        top, bottom, down = place(i, x.shape[-2], size[0])
        for j in range(size[1]):
            left, right, across = place(j, x.shape[-1], size[1])
            upper = (1 - across) * x[..., top, left] + across * x[..., top, right]
            lower = (1 - across) * x[..., bottom, left] + across * x[..., bottom, right]
            out[..., i, j] = (1 - down) * upper + down * lower
    return out


# ── values and gradients ──
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_values_are_those_of_the_definition(before, after, align_corners, seeded):
    x = torch.rand(2, *before)
    assert torch.allclose(bilinear(x, after, align_corners=align_corners).double(), twin(x, after, align_corners), rtol=0, atol=2e-7)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_values_and_gradients_are_those_of_torch(before, after, align_corners, seeded):
    x = torch.rand(2, 3, *before, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 3, *after, dtype=torch.float64)
    ours, theirs = bilinear(x, after, align_corners=align_corners), F.interpolate(x, after, mode="bilinear", align_corners=align_corners)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    (mine,), (reference,) = torch.autograd.grad((ours * weight).sum(), x), torch.autograd.grad((theirs * weight).sum(), x)
    assert torch.allclose(mine, reference, rtol=1e-12, atol=1e-12)


def test_gradient_is_that_of_finite_differences(seeded):
    x = torch.rand(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bilinear(x, (5, 7)), (x,))


def test_half_precision_is_computed_in_float32(seeded):
    x = torch.rand(1, 2, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        up = bilinear(x, (16, 16))
    assert up.dtype == torch.float32
    assert torch.equal(up, bilinear(x.float(), (16, 16)))


@pytest.mark.parametrize(("x", "size"), [(torch.zeros(4, 4), (8, 8)), (torch.zeros(1, 4, 4, dtype=torch.int64), (8, 8)), (torch.zeros(1, 4, 4), (0, 8))])
def test_input_that_is_no_map_is_refused_with_what_came(x, size):
    with pytest.raises(UsageError) as caught:
        bilinear(x, size)
    assert str(caught.value) == (
        f"up-sampling: expected floats (B, C, h, w) or (C, h, w) and a size of at least 1x1, got {x.dtype} {tuple(x.shape)} to {tuple(size)}."
    )


# ── strips ──
@pytest.mark.parametrize("size", [(31, 17), (5, 4), (3, 3), (64, 64)])
@pytest.mark.parametrize("most_elements", [1, 100, 10**6])
def test_strips_are_the_whole_within_their_bound(size, most_elements, seeded):
    logits = torch.randn(3, 5, 4)
    strips = list(upsampled_strips(logits, size, most_elements=most_elements))
    rows = [strip.shape[1] for _, strip in strips]
    assert [top for top, _ in strips] == [sum(rows[:i]) for i in range(len(rows))]
    assert all(strip.numel() <= most_elements or strip.shape[1] == 1 for _, strip in strips)
    assert torch.allclose(torch.cat([strip for _, strip in strips], dim=1), bilinear(logits, size), rtol=0, atol=1e-6)


def test_a_map_without_numbers_has_a_size():
    assert bilinear(torch.zeros(1, 2, 3, 3, device="meta"), (5, 7)).shape == (1, 2, 5, 7)


def test_strips_at_their_own_size_are_the_logits_themselves():
    logits = torch.randn(3, 5, 4).half()
    strips = [strip for _, strip in upsampled_strips(logits, (5, 4), most_elements=24)]
    assert [strip.shape[1] for strip in strips] == [2, 2, 1]
    assert torch.equal(torch.cat(strips, dim=1), logits)
    assert strips[0].untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()


def test_a_strip_is_computed_from_the_rows_around_it(monkeypatch):
    """No map of all columns is made on the way: that would be 150 classes x 306 x 2448 numbers."""
    largest = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: largest.append(product(a, b)) or largest[-1])
    list(upsampled_strips(torch.zeros(2, 40, 3), (320, 100), most_elements=1000))
    assert max(made.numel() for made in largest) <= 1000


# ── in place of the library's ──
class Resizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.older = nn.UpsamplingBilinear2d(scale_factor=2)
        self.nearest = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.nearest(self.older(self.up(self.conv(x))))
        return F.interpolate(F.interpolate(x, (9, 7), None, "bilinear"), scale_factor=(2.0, 1.0), mode="bilinear", align_corners=False)


def test_every_bilinear_call_of_a_model_is_replaced_and_no_other(seeded, monkeypatch):
    calls = []
    monkeypatch.setattr(upsampling, "bilinear", lambda *args, **kwargs: calls.append(args[1]) or bilinear(*args, **kwargs))
    model, x = Resizing().double(), torch.rand(1, 2, 4, 3, dtype=torch.float64)
    with deterministic_bilinear():
        ours = model(x)
    assert calls == [(8, 6), (16, 12), (9, 7), (18, 7)]
    theirs = model(x)
    assert len(calls) == 4  # outside of the block the library's own run
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    mine, reference = torch.autograd.grad(ours.square().sum(), model.conv.weight), torch.autograd.grad(theirs.square().sum(), model.conv.weight)
    assert torch.allclose(mine[0], reference[0], rtol=1e-10)


def test_layers_keep_their_type_inside_the_block():
    with deterministic_bilinear():
        assert nn.Upsample(scale_factor=2, mode="bilinear")(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"scale_factor": 1.5}, "bilinear resizing of 3x3 by the factor (1.5, 1.5) gives no whole pixels, and its gradient is not deterministic on CUDA."),
        ({"size": (2, 2), "antialias": True}, "antialiased bilinear resizing inside the model has no deterministic backward pass on CUDA."),
    ],
)
def test_what_has_no_counterpart_is_an_error(kwargs, said):
    with deterministic_bilinear(), pytest.raises(UsageError) as caught:
        F.interpolate(torch.zeros(1, 1, 3, 3), mode="bilinear", **kwargs)
    assert said in str(caught.value)


def test_the_second_pass_of_recomputation_stands_in_the_same_block(monkeypatch):
    calls = []
    monkeypatch.setattr(upsampling, "bilinear", lambda *args, **kwargs: calls.append(args[1]) or bilinear(*args, **kwargs))
    with upsampling.as_now():
        F.interpolate(torch.zeros(1, 1, 2, 2), scale_factor=2, mode="bilinear")
    assert calls == []
    with deterministic_bilinear():
        surroundings = upsampling.as_now()
    with surroundings:
        F.interpolate(torch.zeros(1, 1, 2, 2), scale_factor=2, mode="bilinear")
    assert calls == [(4, 4)]
