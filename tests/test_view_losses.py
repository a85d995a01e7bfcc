"""Losses of two views against loops over the papers' equations in float64, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pellucid.view_losses import contrastive, negative_cosine, squared_distance


def points(n: int = 6, dims: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two (n, dims) float64 of rather different lengths, the second not far from the first."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randn(n, dims, generator=random, dtype=torch.float64) * torch.arange(1, n + 1)[:, None]
    return first.requires_grad_(), (0.3 * first.detach() + torch.randn(n, dims, generator=random, dtype=torch.float64)).requires_grad_()


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum((x * y for x, y in zip(a, b, strict=True)), start=torch.zeros((), dtype=torch.float64))


def length(a: Tensor) -> Tensor:
    return dot(a, a).sqrt()


def twin_distance(first: Tensor, second: Tensor) -> list[Tensor]:
    """Grill et al. 2020, eq. 2: the squared distance of unit vectors."""
    return [length(p / length(p) - z / length(z)) ** 2 for p, z in zip(first, second, strict=True)]


def twin_cosine(first: Tensor, second: Tensor) -> list[Tensor]:
    """Chen and He 2021, eq. 1."""
    return [-dot(p, z) / (length(p) * length(z)) for p, z in zip(first, second, strict=True)]


def twin_contrastive(first: Tensor, second: Tensor, temperature: float, own: range | None = None) -> list[Tensor]:
    """Chen et al. 2020, eq. 1 and alg. 1: of the 2 N views z, l(i, j) = -log exp(s_ij / T) / sum over k != i of exp(s_ik / T); (l(2k-1, 2k) + l(2k, 2k-1)) / 2.

    own: the images whose loss is wanted; the others only count as negatives.
    """
    n, z = len(first), [*first, *second]
    images = own if own is not None else range(n)

    def similarity(i: int, k: int) -> Tensor:
        return dot(z[i], z[k]) / (length(z[i]) * length(z[k]))

    def term(i: int, j: int) -> Tensor:
        others = [(similarity(i, k) / temperature).exp() for k in range(2 * n) if k != i]
        return -((similarity(i, j) / temperature).exp() / sum(others)).log()

    return [(term(k, k + n) + term(k + n, k)) / 2 for k in images]


@pytest.mark.parametrize(("ours", "twin"), [(squared_distance, twin_distance), (negative_cosine, twin_cosine)], ids=["byol", "simsiam"])
def test_the_losses_of_predictions_are_their_equations(ours: object, twin: object) -> None:
    first, second = points()
    found, expected = ours(first, second), torch.stack(twin(first, second))  # type: ignore[operator]
    assert found.shape == (6,)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((loss * weights).sum(), (first, second)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_its_equation(temperature: float) -> None:
    first, second = points()
    found, expected = contrastive(first, second, temperature), torch.stack(twin_contrastive(first, second, temperature))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((loss * weights).sum(), (first, second)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_images_of_other_processes_are_negatives_of_these() -> None:
    first, second = points(7)
    own = range(2, 5)
    found = contrastive(first[2:5], second[2:5], 0.2, keys=(first, second), offset=2)
    torch.testing.assert_close(found, torch.stack(twin_contrastive(first, second, 0.2, own)), rtol=1e-12, atol=1e-12)
    parts = [contrastive(first[a:b], second[a:b], 0.2, keys=(first, second), offset=a) for a, b in ((0, 2), (2, 5), (5, 7))]
    torch.testing.assert_close(torch.cat(parts), contrastive(first, second, 0.2), rtol=1e-12, atol=1e-12)


def test_an_image_without_others_has_nothing_to_lose_and_no_gradient() -> None:
    first, second = points(1)
    loss = contrastive(first, second, 0.1)
    assert loss.tolist() == [0.0]
    assert torch.autograd.grad(loss.sum(), first)[0].abs().max() == 0


def test_equal_views_of_orthogonal_images_lose_what_can_be_counted() -> None:
    """Every other view has cosine 0: log(1 + (2 N - 2) exp(-1 / T))."""
    rows = torch.eye(4)
    assert contrastive(rows, rows, 0.5).tolist() == pytest.approx([math.log(1 + 6 * math.exp(-2))] * 4, rel=1e-6)
    assert squared_distance(rows, rows.flip(0)).tolist() == pytest.approx([2.0] * 4)
    assert squared_distance(rows, -rows).tolist() == pytest.approx([4.0] * 4)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_are_taken_in_float32_whatever_autocast_says(precision: torch.dtype) -> None:
    first, second = (view.detach().to(precision) for view in points(64, 32))
    for loss in (negative_cosine, squared_distance, lambda a, b: contrastive(a, b, 0.1)):
        exact = loss(first.double(), second.double())
        with torch.autocast("cpu", precision):
            found = loss(first, second)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
