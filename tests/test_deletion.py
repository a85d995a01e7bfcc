"""Deletion, insertion and random weights: against a slow twin, curves known in closed form, scipy, and the trap of tied patches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pellucid.errors import UsageError
from pellucid.findings import verdict
from pellucid.inside.deletion import (
    ORDERS,
    blurred,
    deletion,
    insertion,
    masked_areas,
    masked_baselines,
    randomisation,
    randomised,
    score_deletion,
    score_randomisation,
)
from pellucid.inside.faithfulness import centre_prior


class Linear(nn.Module):
    """Logits W x in float64, and how many images went through."""

    def __init__(self, size: tuple[int, int], classes: int = 3) -> None:
        super().__init__()
        weight = np.random.default_rng(0).normal(size=(classes, 3 * size[0] * size[1])) / 5
        self.weight = nn.Parameter(torch.from_numpy(weight))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.flatten(1).double() @ self.weight.T


class LinearProbability(nn.Module):
    """Softmax probability of class 0: 0.1 + 0.8 * the weighted share of the pixels that are still 1."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = torch.from_numpy(weight / weight.sum())

    def forward(self, images: Tensor) -> Tensor:
        p = 0.1 + 0.8 * (images[:, 0].double() * self.weight).sum((1, 2))
        return torch.stack([p.log(), (1 - p).log()], 1)


def slow_area(weight: np.ndarray, before: np.ndarray, after: np.ndarray, relevance: np.ndarray, target: int, steps: int) -> float:
    """From the definition, a patch and a pixel at a time; without ties."""
    gh, gw = relevance.shape
    H, W = before.shape[1:]
    order = sorted(np.ndindex(gh, gw), key=lambda patch: -relevance[patch])
    image, moved, points = before.astype(np.float64), 0, []
    for step in range(steps + 1):
        until = math.floor(step * gh * gw / steps + 0.5)
        for i, j in order[moved:until]:
            for y, x in np.ndindex(H, W):
                if (i <= (y + 0.5) * gh / H < i + 1) and (j <= (x + 0.5) * gw / W < j + 1):
                    image[:, y, x] = after[:, y, x]
        moved = until
        logits = weight @ image.ravel()
        points.append((until / (gh * gw), np.exp(logits[target]) / np.exp(logits).sum()))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("steps", [5, 12])
def test_areas_agree_with_the_definition(steps: int) -> None:
    random = np.random.default_rng(1)
    images = torch.from_numpy(random.normal(size=(3, 3, 10, 13)).astype(np.float32))
    maps, targets = random.random((3, 3, 4)), torch.tensor([0, 2, 1])
    model = Linear((10, 13)).eval()
    weight = model.weight.detach().numpy()
    fill = torch.tensor([0.1, -0.2, 0.3])[:, None, None]
    filled = fill.expand(3, 10, 13).numpy()
    found = deletion(model, images, maps, targets, fill=fill, steps=steps, batch_size=7)
    assert found.dtype == np.float64
    expected = [slow_area(weight, image.numpy(), filled, m, int(t), steps) for image, m, t in zip(images, maps, targets, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    found = insertion(model, images, maps, targets, steps=steps, batch_size=7)
    expected = [
        slow_area(weight, start.numpy(), image.numpy(), m, int(t), steps) for start, image, m, t in zip(blurred(images), images, maps, targets, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_without_ties_each_image_goes_through_once_a_step() -> None:
    model = Linear((8, 8)).eval()
    deletion(model, torch.randn(2, 3, 8, 8), np.random.default_rng(0).random((2, 4, 4)), torch.tensor([0, 1]), steps=100, batch_size=5)
    assert model.seen == 2 * 17  # never more steps than patches
    model.seen = 0
    deletion(model, torch.randn(2, 3, 8, 8), np.ones((2, 4, 4)), torch.tensor([0, 1]), steps=4, batch_size=5)
    assert model.seen == 2 * 5 * ORDERS


def test_ties_within_one_step_cost_nothing() -> None:
    model = Linear((8, 8)).eval()
    maps = np.repeat(np.arange(4.0), 4).reshape(1, 4, 4)  # four values of four patches each
    deletion(model, torch.randn(1, 3, 8, 8), maps, torch.tensor([0]), steps=4, batch_size=5)
    assert model.seen == 5


# ── the trap of tied patches ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("corner", [(0, 0), (3, 3), (1, 2)])
def test_a_uniform_map_does_not_win_by_the_order_of_its_patches(corner: tuple[int, int]) -> None:
    """Only one patch matters. Sorted by index, a uniform map would name it first in one corner and last in the other."""
    weight = np.zeros((8, 8))
    weight[2 * corner[0] : 2 * corner[0] + 2, 2 * corner[1] : 2 * corner[1] + 2] = 1.0
    model, images, right = LinearProbability(weight).eval(), torch.ones(1, 3, 8, 8), np.zeros((1, 4, 4))
    right[0][corner] = 1.0
    arguments = {"targets": torch.tensor([0]), "steps": 16, "batch_size": 64}
    uniform = deletion(model, images, np.ones((1, 4, 4)), **arguments)[0]
    assert uniform == pytest.approx((0.9 + 0.1) / 2, abs=1e-12)  # the two ends' mean: what random orders give
    assert deletion(model, images, right, **arguments)[0] == pytest.approx((0.1 * 15 + (0.9 + 0.1) / 2) / 16)
    black = torch.zeros(1, 3, 8, 8)
    assert insertion(model, images, np.ones((1, 4, 4)), fill=black, **arguments)[0] == pytest.approx(0.5, abs=1e-12)
    assert insertion(model, images, right, fill=black, **arguments)[0] == pytest.approx((0.9 * 15 + 0.5) / 16)


def test_tied_patches_count_as_the_mean_over_all_orders() -> None:
    weight = np.random.default_rng(2).random((2, 3))
    relevance = np.array([[2.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    curves = []
    for tie in itertools.permutations(range(6)):
        order = sorted(range(6), key=lambda i, tie=tie: (-relevance.ravel()[i], tie[i]))  # type: ignore[misc]
        left = np.concatenate([[1.0], 1 - np.cumsum(weight.ravel()[order]) / weight.sum()])
        curves.append(0.1 + 0.8 * (left[1:] + left[:-1]).mean() / 2)
    found = deletion(LinearProbability(weight).eval(), torch.ones(1, 3, 2, 3), relevance[None], torch.tensor([0]), steps=6, batch_size=3)
    assert np.ptp(curves) > 0.05
    assert found[0] == pytest.approx(np.mean(curves), abs=1e-12)


def test_a_uniform_map_is_near_the_mean_of_many_random_orders_where_the_model_is_not_linear() -> None:
    model, random = Linear((8, 8)).eval(), np.random.default_rng(3)
    images, targets = torch.from_numpy(random.normal(size=(1, 3, 8, 8))), torch.tensor([0])
    orders = random.random((400, 4, 4))
    many = deletion(model, images.expand(400, -1, -1, -1), orders, targets.expand(400), steps=16, batch_size=500)
    uniform = deletion(model, images, np.ones((1, 4, 4)), targets, steps=16, batch_size=500)[0]
    assert many.std() > 0.03
    assert uniform == pytest.approx(many.mean(), abs=many.std())


# ── what a model may be ───────────────────────────────────────────────────────────────────────────────────────


def test_the_batch_size_changes_nothing_and_outputs_may_be_objects() -> None:
    class Wrapped(Linear):
        def forward(self, images: Tensor) -> SimpleNamespace:  # type: ignore[override]
            return SimpleNamespace(logits=super().forward(images))

    images, maps, targets = torch.randn(2, 3, 6, 6), np.random.default_rng(0).integers(0, 3, (2, 3, 3)), torch.tensor([0, 1])
    one = deletion(Linear((6, 6)).eval(), images, maps, targets, steps=9, batch_size=1)
    np.testing.assert_allclose(deletion(Wrapped((6, 6)).eval(), images, maps, targets, steps=9, batch_size=64), one, atol=1e-14)
    chosen = deletion(Wrapped((6, 6)).eval(), images, maps, targets, steps=9, batch_size=64, logits=lambda output: output.logits * 0)
    np.testing.assert_allclose(chosen, 1 / 3)


def test_what_cannot_be_scored_is_refused() -> None:
    model, images, maps, targets = Linear((4, 4)).eval(), torch.zeros(1, 3, 4, 4), np.ones((1, 2, 2)), torch.tensor([0])
    with pytest.raises(UsageError, match=r"Call model.eval\(\) first"):
        deletion(Linear((4, 4)), images, maps, targets, steps=2, batch_size=1)
    with pytest.raises(UsageError, match=r"got \(1, 3, 4, 4\), \(2, 2, 2\), \(1,\)"):
        deletion(model, images, np.ones((2, 2, 2)), targets, steps=2, batch_size=1)
    with pytest.raises(UsageError, match="NaN"):
        deletion(model, images, maps * math.nan, targets, steps=2, batch_size=1)
    with pytest.raises(UsageError, match="at least one step"):
        deletion(model, images, maps, targets, steps=0, batch_size=1)
    with pytest.raises(UsageError, match=r"targets in \[0, C\), got \(1, 3\) and up to 3"):
        deletion(model, images, maps, torch.tensor([3]), steps=2, batch_size=1)


def test_blurred_agrees_with_scipy() -> None:
    images = torch.randn(1, 3, 20, 30, dtype=torch.float64)
    expected = scipy.ndimage.gaussian_filter(images[0].numpy(), sigma=(0, 2.0, 2.0), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(blurred(images, sigma=2.0)[0].numpy(), expected, atol=1e-6)
    assert torch.equal(blurred(images), blurred(images, sigma=1.0))  # 0.05 of 20 pixels


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_scores_stand_beside_uniform_centre_and_random_maps() -> None:
    weight = np.kron(centre_prior((4, 4)) ** 2, np.ones((2, 2)))
    model, images, targets = LinearProbability(weight).eval(), torch.ones(24, 3, 8, 8), torch.zeros(24, dtype=torch.int64)
    random = np.random.default_rng(0).random((24, 4, 4))
    areas = masked_areas(model, images, random, targets, steps=8, batch_size=64)
    baselines = masked_baselines(model, images, (4, 4), targets, steps=8, batch_size=64)
    scores = score_deletion("relevance", areas, {**baselines, "random model": areas}, split="images", seed=3, note="final weights")
    assert [(s.measure, s.higher_is_better) for s in scores] == [("deletion", False), ("insertion", True)]
    first = scores[0]
    assert list(first.baselines) == ["uniform", "centre", "random model"]
    assert first.value.name == "deletion[relevance]"
    assert first.value.value == pytest.approx(areas["deletion"].mean())
    assert first.baselines["uniform"].value == pytest.approx(0.5)
    assert first.baselines["centre"].value < 0.5  # the model looks at the middle
    assert (first.value.n, first.value.split, first.value.seed) == (24, "images", 3)
    assert first.value.interval is not None
    assert verdict(first) == (f"is worse than the centre prior ({first.baselines['centre']})", "worse")


def test_the_correlation_with_random_weights_is_a_score_where_lower_is_better() -> None:
    [found] = score_randomisation("attention", np.array([0.9, 0.8, math.nan]), split="images", seed=0)
    assert (found.value.value, found.value.n, found.value.unit) == (pytest.approx(0.85), 2, "correlation")
    assert not found.higher_is_better
    assert verdict(found) == ("shows little of what the model learned", "worse")
    assert verdict(score_randomisation("attention", np.array([0.1, 0.1]), split="images", seed=0)[0]) == ("depends on what the model learned", "better")
    assert verdict(score_randomisation("attention", np.array([0.1]), split="images", seed=0)[0]) == ("one picture allows no verdict", "open")
    assert score_randomisation("attention", np.array([math.nan]), split="images", seed=0) == []


# ── random weights ────────────────────────────────────────────────────────────────────────────────────────────


class Trained(nn.Module):
    """A little of all that models hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = FrozenBatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.positions = nn.Parameter(3.0 + 0.5 * torch.randn(1, 400, 4))
        self.scale = nn.Parameter(torch.full((4,), 0.25))
        self.odd = Demanding()
        self.register_buffer("mask", torch.arange(4.0))
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if tensor.is_floating_point() and name not in ("positions", "scale", "mask"):
                    tensor.add_(torch.rand(tensor.shape))

    def forward(self, images: Tensor) -> Tensor:
        return self.frozen(self.norm(self.conv(images)))


class Demanding(nn.Module):
    """A module whose reset needs an argument, so that it cannot be called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(50))

    def reset_parameters(self, gain: float) -> None:
        raise AssertionError("called without its argument")


@pytest.fixture
def trained() -> Trained:
    torch.manual_seed(0)
    return Trained().eval()


def test_random_weights_keep_nothing_learned(trained: Trained) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    copied = randomised(trained, 5)
    assert {name for name, tensor in copied.named_parameters() if torch.equal(tensor, before[name])} == {"scale"}  # constant: it holds no pattern
    for module in (copied.norm, copied.frozen):
        assert torch.equal(module.running_mean, torch.zeros(4))
        assert torch.equal(module.running_var, torch.ones(4))
        assert torch.equal(module.weight, torch.ones(4))
        assert torch.equal(module.bias, torch.zeros(4))
    assert torch.equal(copied.mask, trained.mask)
    assert not copied.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())  # the model itself is as it was


def test_what_no_module_resets_is_drawn_with_its_mean_and_deviation(trained: Trained) -> None:
    old, new = trained.positions.detach().flatten(), randomised(trained, 5).positions.detach().flatten()
    assert float(new.mean()) == pytest.approx(float(old.mean()), abs=0.05)
    assert float(new.std()) == pytest.approx(float(old.std()), rel=0.1)
    assert abs(np.corrcoef(old, new)[0, 1]) < 0.1
    assert scipy.stats.normaltest(new.numpy()).pvalue > 0.01


def test_a_seed_gives_one_copy_and_leaves_the_random_state(trained: Trained) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = randomised(trained, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    again, other = randomised(trained, 5).state_dict(), randomised(trained, 6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    assert not torch.equal(first["positions"], other["positions"])


def test_a_weight_behind_a_parametrization_is_random_too() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    copied = randomised(layer, 0)
    assert all(not torch.equal(a, b) for a, b in zip(layer.parameters(), copied.parameters(), strict=True))
    assert not torch.allclose(layer.weight, copied.weight, atol=0.01)


def test_a_model_that_cannot_be_copied_is_refused(trained: Trained) -> None:
    trained.left = trained.conv.weight * 2  # type: ignore[assignment]
    with pytest.raises(UsageError, match="Trained cannot be copied"):
        randomised(trained, 0)


def test_a_model_on_two_devices_is_refused() -> None:
    spread = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    with pytest.raises(UsageError, match="expected a model on one device, got cpu, meta"):
        randomised(spread, 0)


def convolved(images: Tensor) -> Callable[[nn.Module], np.ndarray]:
    return lambda model: model.conv(images)[:, 0].relu().detach().numpy()


def test_sensitivity_to_random_weights_agrees_with_scipy(trained: Trained) -> None:
    map_of = convolved(torch.randn(3, 3, 9, 9))
    found = randomisation(map_of, trained, seed=2)
    pairs = zip(map_of(trained), map_of(randomised(trained, 2)), strict=True)
    assert found == pytest.approx([scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs])


def test_a_map_that_asks_no_weights_is_found_out(trained: Trained) -> None:
    """Such as an edge detector: it looks right and shows nothing that was learned (Adebayo et al. 2018, figure 1)."""
    edges = np.abs(np.diff(np.random.default_rng(0).random((2, 8, 9)), axis=2))
    np.testing.assert_allclose(randomisation(lambda model: edges, trained, seed=2), 1.0)
    np.testing.assert_array_equal(randomisation(lambda model: np.ones((2, 4, 4)), trained, seed=2), [math.nan, math.nan])
