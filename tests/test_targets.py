"""Masks move with their images: torchvision.transforms.v2 on its own Mask type is the oracle, and a drawn image that is its own mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from pellucid.data.augment import Augment, Images
from pellucid.data.targets import augmented_masks
from pellucid.palettes import IGNORED
from pellucid.recipe import AugmentSection

SIZE = (24, 32)


def augment(**settings: Any) -> Augment:
    return Augment.from_section(AugmentSection(**settings), size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), seed=3, interpolation="bilinear")


def masks(n: int = 6, shape: tuple[int, int] = (30, 41)) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.kron(rng.integers(0, 5, (6, 6)), np.ones((7, 7)))[: shape[0], : shape[1]].astype(np.uint8) for _ in range(n)]


def moved(chosen: Augment, given: Sequence[np.ndarray], epoch: int = 2) -> np.ndarray:
    return augmented_masks(chosen, given, samples=np.arange(len(given)), epoch=epoch)


def by_torchvision(chosen: Augment, given: Sequence[np.ndarray], move: Callable[[Any, Tensor, int], Tensor]) -> np.ndarray:
    """Each mask as a tv_tensors.Mask through torchvision's own operations, with the parameters that were drawn."""
    plan = chosen.plan([(m.shape[0], m.shape[1]) for m in given], np.arange(len(given)), 2)
    return np.stack([move(plan, tv_tensors.Mask(torch.from_numpy(m)[None]), i).numpy()[0] for i, m in enumerate(given)])


def cropped(plan: Any, mask: Tensor, i: int) -> Tensor:
    top, left, height, width = plan.boxes[i].tolist()
    return tv.crop(mask, top, left, height, width)


def test_flips_and_centre_crops_are_torchvisions() -> None:
    chosen, given = augment(horizontal_flip=0.5, vertical_flip=0.5), masks()

    def move(plan: Any, mask: Tensor, i: int) -> Tensor:
        mask = cropped(plan, mask, i)
        mask = tv.horizontal_flip(mask) if plan.horizontal_flip[i] else mask
        return tv.vertical_flip(mask) if plan.vertical_flip[i] else mask

    expected = by_torchvision(chosen, given, move)
    np.testing.assert_array_equal(moved(chosen, given), expected)
    assert len({m.tobytes() for m in expected}) == len(given)


def test_random_crops_ignore_what_lies_outside_of_the_image() -> None:
    chosen, given = augment(random_crop=9), masks()
    found = moved(chosen, given)
    expected = by_torchvision(chosen, given, lambda plan, mask, i: v2.functional.pad(mask, [50], fill=IGNORED)[..., *box_of(plan, i)])
    np.testing.assert_array_equal(found, expected)
    assert (found == IGNORED).any()


def box_of(plan: Any, i: int) -> tuple[slice, slice]:
    top, left, height, width = (plan.boxes[i] + [50, 50, 0, 0]).tolist()
    return slice(top, top + height), slice(left, left + width)


def test_resized_crops_take_the_class_in_the_middle_of_each_pixel() -> None:
    chosen, given = augment(random_resized_crop=[0.2, 1.0]), masks()
    plan = chosen.plan([m.shape for m in given], np.arange(len(given)), 2)
    for mask, box, found in zip(given, plan.boxes.tolist(), moved(chosen, given), strict=True):
        top, left, height, width = box
        for y, x in [(0, 0), (5, 17), (23, 31), (11, 3)]:
            assert found[y, x] == mask[top + int((y + 0.5) * height / SIZE[0]), left + int((x + 0.5) * width / SIZE[1])]
    # torchvision's NEAREST_EXACT is the same rule in floats, which round otherwise where the middle lies on an edge.
    exact = v2.InterpolationMode.NEAREST_EXACT
    expected = by_torchvision(chosen, given, lambda plan, mask, i: tv.resize(tv_tensors.Image(cropped(plan, mask, i)), list(SIZE), interpolation=exact))
    assert (moved(chosen, given) == expected).mean() > 0.995


def test_rotations_are_torchvisions_and_ignore_uncovered_corners() -> None:
    chosen, given = augment(rotation=40.0), masks()
    expected = by_torchvision(chosen, given, lambda plan, mask, i: tv.rotate(cropped(plan, mask, i), float(plan.degrees[i]), fill=IGNORED))
    found = moved(chosen, given)
    assert (found == expected).mean() > 0.995  # they differ where the middle of a pixel falls on an edge
    assert (found == IGNORED).mean() > 0.02
    np.testing.assert_array_equal((found == IGNORED).mean((1, 2)) > 0, (expected == IGNORED).mean((1, 2)) > 0)


@pytest.mark.parametrize(
    "settings", [{"random_crop": 6}, {"random_resized_crop": [0.3, 1.0]}, {"rotation": 30.0}, {"horizontal_flip": 0.5, "vertical_flip": 0.5}]
)
def test_an_image_that_is_its_own_mask_stays_on_it(settings: dict[str, Any]) -> None:
    """Two halves of a picture, black and white: wherever the image is surely white, so is the mask, and the other way round."""
    rng = np.random.default_rng(7)
    halves = []
    for _ in range(8):
        y, x = np.mgrid[:40, :44]
        halves.append((rng.normal() * (y - 20) + rng.normal() * (x - 22) > 0).astype(np.uint8))
    chosen = augment(**settings)
    pixels = [np.repeat((half * 255)[..., None], 3, axis=2) for half in halves]
    images = Images(torch.from_numpy(np.concatenate([p.reshape(-1) for p in pixels])), [(40, 44)] * 8)
    drawn = chosen(images, samples=np.arange(8), epoch=2)[:, 0].numpy()
    found = moved(chosen, halves)
    assert (found[drawn > 0.9] == 1).all()
    surely_black = (drawn < 0.1) & (found != IGNORED)
    assert (found[surely_black] == 0).all()
    assert surely_black.mean() > 0.2


def test_colour_and_erasing_leave_a_mask_alone() -> None:
    plain, coloured = augment(), augment(color_jitter=[0.4, 0.4, 0.4, 0.1], grayscale=0.5, gaussian_blur=0.5, solarize=0.5, random_erasing=0.9)
    np.testing.assert_array_equal(moved(plain, masks()), moved(coloured, masks()))
