"""Overlapping tiles: where they start, what they weigh, and when they equal the network on the whole image."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from timm.layers import EvoNorm2dS0, FilterResponseNormTlu2d, GroupNormAct, LayerNorm2d
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.models.segmenters import build_segmenter
from pellucid.models.tiles import sees_everything, tile_starts, tile_weights, tiled


def blended(forward, image: Tensor, **settings) -> Tensor:
    """(C, H, W) from the strips, whose rows follow on each other."""
    strips = list(tiled(forward, image, **{"batch_size": 2, **settings}))
    rows = [strip.shape[1] for _, strip in strips]
    assert [top for top, _ in strips] == [sum(rows[:i]) for i in range(len(rows))]
    return torch.cat([strip.clone() for _, strip in strips], dim=1)


def convolutions(radius: int) -> nn.Sequential:
    """Convolutions whose receptive field reaches `radius` pixels to each side."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 2 * radius - 1, padding=radius - 1)).eval().requires_grad_(False)


# ── starts ──
@pytest.mark.parametrize("length", [1, 64, 65, 97, 128, 300, 512, 1000, 2448])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.0), (64, 0.25), (64, 0.5), (96, 0.3), (256, 0.25), (33, 0.5), (512, 0.75)])
def test_tiles_cover_the_side_with_their_overlap_and_stay_aligned(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    assert all(0 < b - a <= tile - math.ceil(overlap * tile) for a, b in pairwise(starts))
    if tile - math.ceil(overlap * tile) >= 32:
        assert all(start % 32 == 0 for start in starts[:-1])


def test_no_more_tiles_than_needed():
    assert tile_starts(2448, 512, 0.25) == [0, 352, 672, 992, 1312, 1632, 1936]
    assert tile_starts(128, 64, 0.0) == [0, 64]
    assert tile_starts(63, 64, 0.25) == [0]


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "said"),
    [
        (100, 64, 1.0, "expected an overlap in [0, 1) that lets a tile of 64 pixels advance, got 1. A quarter (0.25) is usual."),
        (100, 4, 0.9, "expected an overlap in [0, 1) that lets a tile of 4 pixels advance, got 0.9."),
        (100, 64, -0.1, "expected an overlap in [0, 1) that lets a tile of 64 pixels advance, got -0.1."),
        (100, 0, 0.5, "expected a length and a tile of at least 1 pixel, got 100 and 0."),
    ],
)
def test_tiles_that_cannot_advance_are_refused(length, tile, overlap, said):
    with pytest.raises(UsageError) as caught:
        tile_starts(length, tile, overlap)
    assert said in str(caught.value)


# ── weights ──
@pytest.mark.parametrize(("length", "tile", "overlap"), [(300, 64, 0.5), (97, 64, 0.25), (65, 64, 0.0), (40, 64, 0.5), (130, 64, 0.9), (1000, 96, 0.66)])
def test_weights_add_up_to_one_at_every_pixel(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    total = torch.zeros(max(length, tile), dtype=torch.float64)
    for start, weights in zip(starts, tile_weights(length, tile, starts), strict=True):
        assert weights.min() >= 0
        total[start : start + tile] += weights.double()
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_weight_is_nothing_in_the_outer_quarter_and_rises_linearly_in_the_middle_half():
    one, other = tile_weights(48, 32, [0, 16])  # a band of 16 pixels
    assert one[:16].tolist() == [1.0] * 16  # up to the image's border
    assert other[:4].tolist() == [0.0] * 4
    assert other[4:12].tolist() == pytest.approx([(i + 0.5) / 8 for i in range(8)])
    assert other[12:].tolist() == [1.0] * 20
    assert torch.allclose(one[16:], other[:16].flip(0))


# ── the image from its tiles ──
@pytest.mark.parametrize("size", [(128, 192), (101, 147), (64, 300)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_tiles_equal_the_whole_image_when_the_field_fits_the_outer_quarter(size, overlap):
    model, image = convolutions(int(64 * overlap / 4)), torch.randn(3, *size)
    got = blended(model, image, tile=(64, 64), overlap=overlap)
    assert torch.allclose(got, model(image[None])[0], rtol=0, atol=1e-5)


def shallow_unet() -> nn.Module:
    """smp's Unet on the two first stages of a residual network, in evaluation mode; a fresh one begins with residual branches that are silent."""
    torch.manual_seed(0)
    options = {"encoder_depth": 2, "decoder_channels": [16, 8]}
    model = build_segmenter("smp/Unet", num_classes=3, pretrained=False, encoder="tu-test_resnet", options=options, image_size=(128, 128)).module
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.running_mean, 0.0, 0.1)
    return model.eval().requires_grad_(False)


def reach(model: nn.Module, stride: int) -> int:
    """Pixels to the furthest one that can decide on a pixel of the middle: gradients where nothing is negative, cut off or chosen, at each phase of the stride."""
    model = copy.deepcopy(model).double()
    for parent in list(model.modules()):
        for name, part in parent.named_children():
            if isinstance(part, nn.ReLU):
                setattr(parent, name, nn.Identity())
            if isinstance(part, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(part.kernel_size, part.stride, part.padding))
    for parameter in model.parameters():
        parameter.copy_(parameter.abs() + 0.01)
    image = torch.ones(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    logits, furthest = model(image)[0].sum(0), 0
    for middle in range(64, 64 + stride):
        (gradient,) = torch.autograd.grad(logits[middle, middle], image, retain_graph=True)
        furthest = max(furthest, int((gradient[0].sum(0).nonzero() - middle).abs().max()))
    return furthest


def test_tiles_of_a_real_segmenter_equal_the_whole_image_when_its_field_of_25_pixels_fits():
    model, image = shallow_unet(), torch.randn(3, 192, 256)
    assert reach(model, 4) == 25
    assert sees_everything(model) == []
    whole = model(image[None])[0]
    wide = blended(model, image, tile=(160, 160), overlap=0.75)  # bands of 128 pixels: outer quarters of 32
    assert torch.allclose(wide, whole, rtol=0, atol=1e-5)
    narrow = blended(model, image, tile=(128, 128), overlap=0.5)  # of 64: 16
    assert (narrow - whole).abs().max() > 1e-3


def test_a_side_shorter_than_the_tile_is_padded_with_zeros():
    model, image = convolutions(4), torch.randn(3, 50, 130)
    whole = model(nn.functional.pad(image, (0, 0, 0, 14))[None])[0, :, :50]
    assert torch.allclose(blended(model, image, tile=(64, 64), overlap=0.25), whole, rtol=0, atol=1e-5)


def test_tiles_do_not_equal_the_whole_image_when_the_field_is_wider():
    model, image = convolutions(9), torch.randn(3, 128, 128)
    got = blended(model, image, tile=(64, 64), overlap=0.25)  # an outer quarter of 4 pixels
    assert (got - model(image[None])[0]).abs().max() > 1e-3


def test_strided_networks_agree_where_tiles_start_at_multiples_of_the_stride():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=8)).eval().requires_grad_(False)
    for width, agrees in ((64 + 96, True), (64 + 100, False)):
        image = torch.randn(3, 64, 8 * math.ceil(width / 8))[..., :width]
        padded = nn.functional.pad(image, (0, -width % 8))
        got, whole = blended(model, image, tile=(64, 64), overlap=0.5), model(padded[None])[0, :, :, :width]
        assert torch.allclose(got, whole, rtol=0, atol=1e-5) == agrees


def test_a_constant_stays_constant():
    got = blended(lambda x: torch.full((len(x), 2, 48, 40), 3.25), torch.randn(3, 131, 77), tile=(48, 40), overlap=0.3)
    assert got.shape == (2, 131, 77)
    assert torch.allclose(got, torch.full_like(got, 3.25), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing_but_what_the_network_makes_of_them(batch_size):
    image = torch.randn(3, 150, 210)
    sizes = []

    def forward(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x[:, :2] * 3  # the same bits in any batch

    reference = blended(lambda x: x[:, :2] * 3, image, tile=(64, 64), overlap=0.25, batch_size=2)
    assert torch.equal(blended(forward, image, tile=(64, 64), overlap=0.25, batch_size=batch_size), reference)
    assert max(sizes) <= batch_size


def test_each_tile_is_seen_once_in_order():
    image, seen = torch.randn(3, 100, 130), []
    list(tiled(lambda x: x[:, :1], image, tile=(64, 64), overlap=0.25, batch_size=2, seen=seen.append))
    tops, lefts = tile_starts(100, 64, 0.25), tile_starts(130, 64, 0.25)
    expected = [image[:1, top : top + 64, left : left + 64] for top in tops for left in lefts]
    assert len(seen) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_half_precision_is_added_up_in_float32():
    (_, strip), *_ = tiled(lambda x: x[:, :1].half(), torch.randn(3, 64, 100), tile=(64, 64), overlap=0.25, batch_size=1)
    assert strip.dtype == torch.float32


def test_memory_does_not_grow_with_the_height():
    def kept(height: int) -> int:
        """Most numbers in the storage of a strip and of what lies behind it."""
        image = torch.zeros(3, height, 200)
        return max(strip.untyped_storage().nbytes() for _, strip in tiled(lambda x: x.repeat(1, 2, 1, 1), image, tile=(64, 64), overlap=0.25, batch_size=4))

    assert kept(200) == kept(2000) == 6 * 64 * 200 * 4


def test_logits_of_another_size_are_refused():
    with pytest.raises(UsageError) as caught:
        list(tiled(lambda x: x[..., ::2, ::2], torch.zeros(3, 64, 64), tile=(64, 64), overlap=0.0, batch_size=1))
    assert str(caught.value) == "tiles: expected logits (1, C, 64, 64) of as many tiles, got (1, 3, 32, 32)."
    with pytest.raises(UsageError, match="expected a batch_size of at least 1, got 0"):
        list(tiled(lambda x: x, torch.zeros(3, 64, 64), tile=(64, 64), overlap=0.0, batch_size=0))


# ── what tiles cannot equal ──
def test_layers_that_look_at_the_whole_tile_are_named():
    class SqueezeExcite(nn.Sequential):
        pass

    class Attention(nn.Sequential):  # as smp leaves it in decoders without attention
        pass

    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), SqueezeExcite(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1)), Attention(nn.Identity()), nn.Sequential(nn.AdaptiveMaxPool2d((6, 6)))
    )
    assert sees_everything(model) == ["1", "3.0"]
    assert sees_everything(nn.Sequential(nn.MultiheadAttention(4, 1), nn.AdaptiveAvgPool2d(7), nn.AdaptiveAvgPool2d((None, 8)))) == ["0"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(2, 4, affine=False),
        GroupNormAct(4, num_groups=2),
        nn.InstanceNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        FilterResponseNormTlu2d(4),
        EvoNorm2dS0(4, group_size=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_normalisations_by_the_statistics_of_the_tile_are_named(layer):
    model, image = nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval().requires_grad_(False), torch.randn(3, 64, 96)
    assert sees_everything(model) == ["1"]
    assert (blended(model, image, tile=(64, 64), overlap=0.25) - model(image[None])[0]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True), LayerNorm2d(4)], ids=lambda layer: type(layer).__name__)
def test_normalisations_that_see_no_other_pixel_are_not_named(layer):
    model, image = nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval().requires_grad_(False), torch.randn(3, 64, 96)
    assert sees_everything(model) == []
    assert torch.allclose(blended(model, image, tile=(64, 64), overlap=0.25), model(image[None])[0], rtol=0, atol=1e-5)
