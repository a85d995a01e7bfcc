"""Batched augmentation against torchvision.transforms.v2, operation by operation and distribution by distribution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as oracle

from pellucid.data import augment
from pellucid.data.augment import Augment, Images, Mix, evaluate_view, mix_pair, mix_targets, window_mix
from pellucid.data.draws import uniforms
from pellucid.errors import DataError
from pellucid.recipe import AugmentSection

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [(50, 67), (64, 48), (41, 41), (48, 90), (57, 45), (40, 40)]
SIZE = (40, 36)
DRAWS = 3000

EVERYTHING = AugmentSection(
    random_resized_crop=[0.2, 1.0], horizontal_flip=0.5, vertical_flip=0.5, rotation=30.0, color_jitter=[0.4, 0.4, 0.4, 0.2], color_jitter_probability=0.8,
    grayscale=0.3, gaussian_blur=0.5, solarize=0.3, random_erasing=0.5,
)  # fmt: skip
PADDED = AugmentSection(random_crop=4, rotation=10.0, color_jitter=[0.0, 0.4, 0.0, 0.5], gaussian_blur=1.0)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def photographs(shapes: list[tuple[int, int]] = SHAPES) -> Images:
    """Images with edges, flat parts, greys, black, white and noise."""
    random = np.random.default_rng(0)
    arrays = []
    for height, width in shapes:
        y, x = np.mgrid[:height, :width]
        image = np.stack([127 + 120 * np.sin(x / 5), 127 + 120 * np.cos(y / 7), 255 * ((x + y) % 16 > 8)], axis=-1)
        image += random.normal(0, 20, image.shape)
        image[:8, :8], image[8:16, :8] = 0, 255
        image[:8, 8:16] = 128
        arrays.append(image.clip(0, 255).astype(np.uint8))
    return Images(torch.from_numpy(np.concatenate([a.reshape(-1) for a in arrays])), [a.shape[:2] for a in arrays])


def batch(n: int = 6, size: tuple[int, int] = SIZE) -> Tensor:
    """float32 (n, 3, H, W) in [0, 1]."""
    images = photographs([size] * n)
    return torch.stack([images.view(i) for i in range(n)]).float() / 255


def build(section: AugmentSection, **changes: Any) -> Augment:
    return replace(Augment.from_section(section, size=SIZE, mean=MEAN, std=STD, seed=7, interpolation="bilinear"), **changes)


def subset(images: Images, rows: list[int]) -> Images:
    return Images(torch.cat([images.view(i).permute(1, 2, 0).reshape(-1) for i in rows]), [images.shapes[i] for i in rows])


# ── the decoded images ──


def test_a_view_is_the_image_without_a_copy() -> None:
    images = photographs()
    view = images.view(1)
    assert view.shape == (3, 64, 48)
    assert view.is_contiguous(memory_format=torch.contiguous_format) is False
    start = 50 * 67 * 3
    assert torch.equal(view.permute(1, 2, 0).reshape(-1), images.flat[start : start + 64 * 48 * 3])
    assert view.data_ptr() == images.flat.data_ptr() + start


# ── each operation under given parameters ──


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_crop_is_torchvisions(interpolation: str) -> None:
    images = photographs()
    boxes = np.array([[3, 5, 30, 40], [0, 0, 64, 48], [10, 20, 3, 2], [8, 50, 40, 36], [1, 2, 5, 40], [0, 0, 40, 40]])
    ours = augment.resized_crop(images, boxes, SIZE, interpolation)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        mode = v2.InterpolationMode(interpolation)
        theirs = oracle.resized_crop(images.view(i), top, left, height, width, list(SIZE), interpolation=mode, antialias=True)
        assert ours[i].dtype == torch.uint8
        assert torch.equal(ours[i], theirs)


def test_center_crop_is_torchvisions() -> None:
    images = photographs()
    ours = augment.crop(images, augment.center_boxes(images.shapes, SIZE))
    for i in range(len(images)):
        assert torch.equal(ours[i], oracle.center_crop(images.view(i), list(SIZE)))


def test_a_padded_crop_is_torchvisions() -> None:
    images, padding = photographs(), 60  # wider than the crop, so that it may miss the image
    u = uniforms(0, 0, np.arange(len(images)), "random_crop", 2)
    u[:3] = [[0, 0], [0.999, 0.999], [0, 0.999]]
    boxes = augment.draw_crop(u, images.shapes, SIZE, padding)
    ours = augment.crop(images, boxes)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        padded = oracle.pad(images.view(i), [padding])
        assert torch.equal(ours[i], oracle.crop(padded, top + padding, left + padding, height, width))
    assert not ours[:3].any()


@pytest.mark.parametrize(("dim", "theirs"), [(-1, oracle.horizontal_flip), (-2, oracle.vertical_flip)])
def test_flips_are_torchvisions(dim: int, theirs: Any) -> None:
    images = batch()
    ours = images.clone()
    augment.flip_(ours, dim)
    assert torch.equal(ours, theirs(images))
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("size", [(40, 36), (41, 41), (64, 20)])
def test_rotation_is_torchvisions(size: tuple[int, int]) -> None:
    angles = np.array([-180.0, -45.0, -0.01, 3.7, 33.3, 90.0, 179.0])
    images = batch(len(angles), size)
    ours = images.clone()
    augment.rotate_(ours, angles)
    for i, angle in enumerate(angles.tolist()):
        theirs = oracle.rotate(images[i], angle, interpolation=v2.InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours[i], theirs, atol=3e-5, rtol=0)


@pytest.mark.parametrize(
    ("ours_", "theirs", "values", "tolerance"),
    [
        (augment.adjust_brightness_, oracle.adjust_brightness, [0, 0.3, 0.9, 1, 1.4, 3], 1e-6),
        (augment.adjust_contrast_, oracle.adjust_contrast, [0, 0.3, 0.9, 1, 1.4, 3], 1e-5),
        (augment.adjust_saturation_, oracle.adjust_saturation, [0, 0.3, 0.9, 1, 1.4, 3], 1e-5),
        (augment.adjust_hue_, oracle.adjust_hue, [-0.5, -0.23, -0.01, 0, 0.1, 0.5], 1e-5),
    ],
)
def test_colour_jitter_operations_are_torchvisions(ours_: Any, theirs: Any, values: list[float], tolerance: float) -> None:
    images = batch(len(values))
    ours = images.clone()
    ours_(ours, np.array(values, np.float64))
    for i, value in enumerate(values):
        torch.testing.assert_close(ours[i], theirs(images[i], value), atol=tolerance, rtol=0)


def test_hue_is_torchvisions_for_every_corner_and_edge_of_the_colour_cube() -> None:
    levels = torch.tensor([0.0, 1e-7, 0.25, 0.5, 0.5 + 1e-7, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 12, 18)
    for shift in (-0.5, -1 / 6, 0.0, 0.05, 1 / 3):
        ours = colours.clone()
        augment.adjust_hue_(ours, np.array([shift]))
        torch.testing.assert_close(ours, oracle.adjust_hue(colours, shift), atol=1e-5, rtol=0)


def test_grayscale_is_torchvisions() -> None:
    images = batch()
    ours = images.clone()
    augment.grayscale_(ours)
    torch.testing.assert_close(ours, oracle.rgb_to_grayscale(images, num_output_channels=3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("radius", [1, 2, 11])
def test_gaussian_blur_is_torchvisions(radius: int) -> None:
    sigmas = np.array([0.1, 0.5, 1.0, 1.7, 2.0])
    images = batch(len(sigmas))
    ours = images.clone()
    augment.gaussian_blur_(ours, sigmas, radius)
    for i, sigma in enumerate(sigmas.tolist()):
        theirs = oracle.gaussian_blur(images[i], [2 * radius + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [((224, 224), 23), ((384, 384), 39), ((32, 32), 3), ((96, 128), 9), ((2, 5), 3), ((1, 5), 1)])
def test_the_blur_kernel_is_odd_and_a_tenth_of_the_short_side(size: tuple[int, int], kernel: int) -> None:
    assert 2 * augment.blur_radius(size) + 1 == kernel
    augment.gaussian_blur_(batch(2, size), np.array([0.3, 2.0]), augment.blur_radius(size))


def test_solarize_is_torchvisions() -> None:
    images = batch()
    images[0, :, :2] = torch.tensor([0.5, 0.49999997]).view(2, 1)
    ours = images.clone()
    augment.solarize_(ours)
    assert torch.equal(ours, oracle.solarize(images, 0.5))


def test_normalisation_is_torchvisions() -> None:
    images = batch()
    ours = images.clone()
    augment.normalize_(ours, MEAN, STD)
    torch.testing.assert_close(ours, oracle.normalize(images, list(MEAN), list(STD)), atol=1e-6, rtol=0)


def test_erasing_is_torchvisions() -> None:
    images = batch(3)
    boxes = np.array([[3, 4, 10, 20], [0, 0, 0, 0], [39, 35, 1, 1]])
    ours = images.clone()
    augment.erase_(ours, boxes)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        assert torch.equal(ours[i], oracle.erase(images[i], top, left, height, width, torch.zeros(3, 1, 1)))
    assert torch.equal(ours[1], images[1])


def test_jitter_applies_each_images_own_order() -> None:
    images = batch(5)
    strengths = (0.4, 0.4, 0.4, 0.2)
    u = uniforms(0, 0, np.arange(5), "color_jitter", 8)
    jitter = augment.draw_jitter(u, strengths, np.array([True, True, False, True, True]))
    ours = images.clone()
    augment._jitter(ours, jitter, strengths)
    theirs = [oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue]
    assert len({tuple(order) for order in jitter.order.tolist()}) > 1
    for i in range(5):
        expected = images[i]
        for kind in jitter.order[i] if jitter.chosen[i] else []:
            expected = theirs[kind](expected, float(jitter.factors[i, kind]))
        torch.testing.assert_close(ours[i], expected, atol=1e-4, rtol=0)


# ── the distributions that are drawn ──


def assert_same_distribution(ours: Any, theirs: Any) -> None:
    """Two-sample Kolmogorov-Smirnov; our draws are fixed, torchvision's seeded, so the outcome is too."""
    assert stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float), method="asymp").pvalue > 1e-3


def their_parameters(transform: Any, shape: tuple[int, int]) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    image = torch.zeros(3, *shape)
    return [transform.make_params([image]) for _ in range(DRAWS)]


@pytest.mark.parametrize(("shape", "scale"), [((256, 340), (0.08, 1.0)), ((300, 90), (0.7, 1.0)), ((30, 200), (0.9, 1.0)), ((64, 64), (1.0, 1.0))])
def test_random_resized_crops_are_distributed_as_torchvisions(shape: tuple[int, int], scale: tuple[float, float]) -> None:
    ratio = (3 / 4, 4 / 3)
    u = uniforms(0, 0, np.arange(DRAWS), "random_resized_crop", 22)
    ours = augment.draw_resized_crop(u, [shape] * DRAWS, scale, ratio)
    theirs = their_parameters(v2.RandomResizedCrop(10, scale, ratio), shape)
    for column, key in enumerate(("top", "left", "height", "width")):
        assert_same_distribution(ours[:, column], [p[key] for p in theirs])
    assert (ours[:, 0] + ours[:, 2] <= shape[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= shape[1]).all()
    assert ours.min() >= 0


@pytest.mark.parametrize("shape", [(300, 20), (20, 300)])
def test_where_no_crop_fits_the_largest_central_one_is_taken(shape: tuple[int, int]) -> None:
    u = uniforms(0, 0, np.arange(20), "random_resized_crop", 22)
    theirs = v2.RandomResizedCrop(10, (0.95, 1.0)).make_params([torch.zeros(3, *shape)])
    expected = [theirs["top"], theirs["left"], theirs["height"], theirs["width"]]
    assert augment.draw_resized_crop(u, [shape] * 20, (0.95, 1.0), (3 / 4, 4 / 3)).tolist() == [expected] * 20


def test_random_crops_are_distributed_as_torchvisions() -> None:
    ours = augment.draw_crop(uniforms(0, 0, np.arange(DRAWS), "random_crop", 2), [(50, 60)] * DRAWS, (32, 40), 4)
    theirs = their_parameters(v2.RandomCrop((32, 40), padding=4), (50, 60))
    assert_same_distribution(ours[:, 0] + 4, [p["top"] for p in theirs])
    assert_same_distribution(ours[:, 1] + 4, [p["left"] for p in theirs])


def test_jitter_factors_are_distributed_as_torchvisions() -> None:
    strengths = (0.4, 1.5, 0.2, 0.1)
    jitter = augment.draw_jitter(uniforms(0, 0, np.arange(DRAWS), "color_jitter", 8), strengths, np.ones(DRAWS, bool))
    theirs = their_parameters(v2.ColorJitter(*strengths), (8, 8))
    for kind, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert_same_distribution(jitter.factors[:, kind], [p[f"{name}_factor"] for p in theirs])
    for slot in range(4):
        assert_same_distribution(jitter.order[:, slot], [int(p["fn_idx"][slot]) for p in theirs])


@pytest.mark.parametrize("shape", [(40, 25), (25, 40)])
def test_erased_boxes_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    ours = augment.draw_erasing(uniforms(0, 0, np.arange(DRAWS), "random_erasing", 22), shape)
    theirs = their_parameters(v2.RandomErasing(), shape)
    for column, key in enumerate("ijhw"):
        assert_same_distribution(ours[:, column], [p[key] for p in theirs])
    assert (ours[:, 0] + ours[:, 2] <= shape[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= shape[1]).all()
    assert (ours[:, 2:] < shape).all()


def test_rotations_and_blurs_are_distributed_as_torchvisions() -> None:
    plan = build(EVERYTHING).plan([(50, 60)] * DRAWS, np.arange(DRAWS), 0)
    assert plan.degrees is not None
    assert plan.sigmas is not None
    assert_same_distribution(plan.degrees, [p["angle"] for p in their_parameters(v2.RandomRotation(30), (8, 8))])
    assert_same_distribution(plan.sigmas, [p["sigma"][0] for p in their_parameters(v2.GaussianBlur(3, (0.1, 2.0)), (8, 8))])


def test_operations_happen_as_often_as_asked_and_apart_from_each_other() -> None:
    section = AugmentSection(
        horizontal_flip=0.5, vertical_flip=0.2, color_jitter=[0.1, 0.1, 0.1, 0.1], color_jitter_probability=0.8, grayscale=0.3,
        gaussian_blur=0.4, solarize=0.1, random_erasing=0.25,
    )  # fmt: skip
    plan = build(section).plan([(50, 60)] * DRAWS, np.arange(DRAWS), 0)
    assert plan.jitter is not None
    assert plan.erasures is not None
    masks = np.stack([plan.horizontal_flip, plan.vertical_flip, plan.jitter.chosen, plan.grayscale, plan.blurred, plan.solarize, plan.erasures[:, 2] > 0])
    np.testing.assert_allclose(masks.mean(axis=1), [0.5, 0.2, 0.8, 0.3, 0.4, 0.1, 0.25], atol=0.04)
    correlations = np.corrcoef(masks) - np.eye(len(masks))
    assert np.abs(correlations).max() < 5 / np.sqrt(DRAWS)


# ── the whole ──


@pytest.mark.parametrize("section", [EVERYTHING, PADDED], ids=["everything", "padded"])
def test_an_image_gets_the_same_bits_whatever_else_is_in_its_batch(section: AugmentSection) -> None:
    images, samples = photographs(), np.array([10, 3, 2**40, 7, 0, 99])
    pipeline = build(section)
    together = pipeline(images, samples=samples, epoch=4)
    assert together.shape == (6, 3, *SIZE)
    assert together.dtype == torch.float32
    for rows in ([2], [5, 4, 3, 2, 1, 0], [1, 4], [0, 1, 2], [3, 4, 5]):
        part = pipeline(subset(images, rows), samples=samples[rows], epoch=4)
        assert torch.equal(part, together[rows])


@pytest.mark.parametrize("section", [EVERYTHING, PADDED], ids=["everything", "padded"])
def test_the_bits_do_not_depend_on_the_number_of_threads(section: AugmentSection) -> None:
    images = photographs([(230, 270)] * 3)
    pipeline = build(section, size=(225, 229))  # beyond the size at which torch splits one image among threads
    torch.set_num_threads(1)
    alone = pipeline(images, samples=np.arange(3), epoch=0)
    torch.set_num_threads(2)
    assert torch.equal(pipeline(images, samples=np.arange(3), epoch=0), alone)


def test_all_images_at_once_give_the_bits_of_one_at_a_time() -> None:
    """The CPU takes one image at a time for its cache, other devices the batch."""
    pixels, samples = (batch(9) * 255).to(torch.uint8), np.arange(9)
    pipeline = build(EVERYTHING)
    plan = pipeline.plan([SIZE] * 9, samples, 1)
    at_once = pixels.float().mul_(1.0 / 255)
    pipeline._paint(plan, at_once, 0, 9)
    for i in range(9):
        alone = pixels[i : i + 1].float().mul_(1.0 / 255)
        pipeline._paint(plan, alone, i, i + 1)
        assert torch.equal(at_once[i : i + 1], alone)


def test_augmentation_differs_between_epochs_samples_and_seeds() -> None:
    images = photographs([(50, 60)] * 2)
    pipeline = build(EVERYTHING)
    first = pipeline(images, samples=np.array([0, 1]), epoch=0)
    assert torch.equal(first, pipeline(images, samples=np.array([0, 1]), epoch=0))
    assert not torch.equal(first, pipeline(images, samples=np.array([0, 1]), epoch=1))
    assert not torch.equal(first, pipeline(images, samples=np.array([0, 2]), epoch=0))
    assert not torch.equal(first, build(EVERYTHING, seed=8)(images, samples=np.array([0, 1]), epoch=0))


def test_one_setting_does_not_move_the_draws_of_another() -> None:
    without = build(replace_section(EVERYTHING, rotation=0.0, grayscale=0.0)).plan(SHAPES, np.arange(6), 0)
    plan = build(EVERYTHING).plan(SHAPES, np.arange(6), 0)
    assert np.array_equal(plan.boxes, without.boxes)
    assert np.array_equal(plan.erasures, without.erasures)
    assert without.degrees is None


def replace_section(section: AugmentSection, **changes: Any) -> AugmentSection:
    return AugmentSection(**{**section.model_dump(), **changes})


def test_no_augmentation_is_the_evaluation_view() -> None:
    images = photographs()
    view = evaluate_view(images, size=SIZE, mean=MEAN, std=STD)
    assert torch.equal(build(AugmentSection())(images, samples=np.arange(6), epoch=3), view)
    for i in range(len(images)):
        cropped = oracle.to_dtype(oracle.center_crop(images.view(i), list(SIZE)), torch.float32, scale=True)
        torch.testing.assert_close(view[i], oracle.normalize(cropped, list(MEAN), list(STD)), atol=1e-6, rtol=0)


def test_the_whole_pipeline_is_torchvisions_in_the_documented_order() -> None:
    shapes, samples = SHAPES * 3, np.arange(20, 38)
    images, pipeline, radius = photographs(shapes), build(EVERYTHING), augment.blur_radius(SIZE)
    ours, plan = pipeline(images, samples=samples, epoch=2), pipeline.plan(shapes, samples, 2)
    for mask in (plan.horizontal_flip, plan.vertical_flip, plan.jitter.chosen, plan.grayscale, plan.blurred, plan.solarize, plan.erasures[:, 2] > 0):
        assert 0 < mask.sum() < 18
    for i in range(18):
        top, left, height, width = plan.boxes[i].tolist()
        image = oracle.resized_crop(images.view(i), top, left, height, width, list(SIZE), antialias=True)
        image = oracle.horizontal_flip(image) if plan.horizontal_flip[i] else image
        image = oracle.vertical_flip(image) if plan.vertical_flip[i] else image
        image = oracle.rotate(oracle.to_dtype(image, torch.float32, scale=True), float(plan.degrees[i]), v2.InterpolationMode.BILINEAR)
        operations = [oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue]
        for kind in plan.jitter.order[i] if plan.jitter.chosen[i] else []:
            image = operations[kind](image, float(plan.jitter.factors[i, kind]))
        image = oracle.rgb_to_grayscale(image, 3) if plan.grayscale[i] else image
        image = oracle.gaussian_blur(image, [2 * radius + 1] * 2, [float(plan.sigmas[i])] * 2) if plan.blurred[i] else image
        inverted = oracle.solarize(image, 0.5) if plan.solarize[i] else image
        top, left, height, width = plan.erasures[i].tolist()
        theirs = oracle.erase(oracle.normalize(inverted, list(MEAN), list(STD)), top, left, height, width, torch.zeros(3, 1, 1))
        # Solarizing jumps at 0.5: a pixel that rounding puts on the other side is its mirror image there.
        near = ((image - 0.5).abs() < 1e-4) if plan.solarize[i] else torch.zeros_like(image, dtype=torch.bool)
        assert near.float().mean() < 0.01
        torch.testing.assert_close(ours[i][~near], theirs[~near], atol=1e-3, rtol=0)


def test_an_image_smaller_than_the_crop_is_an_error_with_both_sizes() -> None:
    images = photographs([(50, 60), (30, 60)])
    with pytest.raises(DataError, match=r"expected images of at least 40x36 pixels .* got one of 30x60\. Lower data\.image_size"):
        evaluate_view(images, size=SIZE, mean=MEAN, std=STD)
    with pytest.raises(DataError, match="got one of 30x60 with 4 pixels of padding"):
        build(AugmentSection(random_crop=4))(images, samples=np.arange(2), epoch=0)
    assert build(AugmentSection(random_crop=5))(images, samples=np.arange(2), epoch=0).shape == (2, 3, *SIZE)


def test_bicubic_is_taken_where_the_recipe_asks_for_it() -> None:
    images, section = photographs(), AugmentSection(random_resized_crop=[0.2, 0.5])
    bicubic = build(section, interpolation="bicubic")
    plan = bicubic.plan(SHAPES, np.arange(6), 0)
    expected = augment.resized_crop(images, plan.boxes, SIZE, "bicubic").float().mul_(1.0 / 255)
    augment.normalize_(expected, MEAN, STD)
    assert torch.equal(bicubic(images, samples=np.arange(6), epoch=0), expected)
    assert not torch.equal(build(section)(images, samples=np.arange(6), epoch=0), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_agrees_with_the_cpu_and_with_itself() -> None:
    images, samples = photographs(), np.arange(6)
    pipeline = build(replace_section(EVERYTHING, solarize=0.0))
    on_gpu = images.to("cuda")
    together = pipeline(on_gpu, samples=samples, epoch=0)
    for i in range(6):
        assert torch.equal(pipeline(subset(images, [i]).to("cuda"), samples=samples[i : i + 1], epoch=0)[0], together[i])
    difference = (together.cpu() - pipeline(images, samples=samples, epoch=0)).abs()
    assert difference.mean() < 0.01  # the crop rounds to levels of 1/255, by other arithmetic


# ── mixup and CutMix ──


def test_mixup_is_torchvisions() -> None:
    images, targets = batch(6), torch.eye(4)[torch.tensor([0, 1, 2, 3, 1, 0])]
    for lam in (0.0, 0.3, 1.0):
        mix = Mix("mixup", lam)
        theirs = v2.MixUp(num_classes=4)
        expected = theirs.transform(images, {"lam": lam, "labels": targets, "batch_size": 6})
        assert torch.equal(mix_pair(images, images.roll(1, 0), mix), expected)
        soft = theirs._mixup_label(targets.argmax(1), lam=lam)
        torch.testing.assert_close(mix_targets(targets, targets.roll(1, 0), mix), soft, atol=1e-7, rtol=0)


def test_cutmix_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    images = batch(6)
    H, W = SIZE
    theirs = v2.CutMix(num_classes=4)
    for lam, center in ((0.7, (20, 20)), (0.3, (1, 34)), (1.0, (5, 5)), (0.0, (39, 0))):
        answers = iter([torch.tensor([center[1]]), torch.tensor([center[0]])])  # they draw x first
        monkeypatch.setattr(torch, "randint", lambda *args, _answers=answers, **options: next(_answers))
        monkeypatch.setattr(theirs, "_dist", torch.distributions.Uniform(lam, lam + 1e-12, validate_args=False))
        monkeypatch.setattr(theirs._dist, "sample", lambda shape, _lam=lam: torch.tensor(_lam, dtype=torch.float64))
        parameters = theirs.make_params([images])
        monkeypatch.undo()
        mix = augment.cutmix_mix(lam, center, (H, W))
        assert mix.lam == parameters["lam_adjusted"]
        expected = theirs.transform(images, {**parameters, "labels": None, "batch_size": 6})
        assert torch.equal(mix_pair(images, images.roll(1, 0), mix), expected)


def test_lam_of_cutmix_is_the_share_of_pixels_that_stay() -> None:
    ours, partners = torch.ones(1, 1, *SIZE), torch.zeros(1, 1, *SIZE)
    for window in range(50):
        mix = window_mix(3, 0, window, mixup=0.0, cutmix=1.0, size=SIZE)
        assert mix is not None
        assert mix_pair(ours, partners, mix).double().mean().item() == pytest.approx(mix.lam, abs=1e-12)


@pytest.mark.parametrize("mix", [Mix("mixup", 0.37), Mix("cutmix", 0.75, (3, 4, 18, 20))])
def test_mixing_a_window_does_not_depend_on_how_it_is_cut(mix: Mix) -> None:
    images = batch(7)
    whole = mix_pair(images, images.roll(1, 0), mix)
    for micro in (1, 2, 3):
        parts = []
        for start in range(0, 7, micro):
            positions = torch.arange(start, min(start + micro, 7))
            parts.append(mix_pair(images[positions], images[positions - 1], mix))
        assert torch.equal(torch.cat(parts), whole)


def test_mixing_leaves_its_inputs_as_they_were() -> None:
    images = batch(3)
    before = images.clone()
    for mix in (Mix("mixup", 0.4), Mix("cutmix", 0.75, (3, 4, 18, 20))):
        mix_pair(images[1:], images[:-1], mix)
    assert torch.equal(images, before)


def test_a_window_draws_its_mix_from_the_recipes_beta() -> None:
    windows = range(1500)
    mixups = [window_mix(0, 2, w, mixup=0.4, cutmix=0.0, size=SIZE) for w in windows]
    assert {m.kind for m in mixups if m} == {"mixup"}
    assert stats.kstest([m.lam for m in mixups if m], stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    torch.manual_seed(0)
    theirs = v2.CutMix(alpha=1.0, num_classes=2)
    ours = [window_mix(0, 2, w, mixup=0.0, cutmix=1.0, size=SIZE) for w in windows]
    assert_same_distribution([m.lam for m in ours if m], [theirs.make_params([torch.zeros(2, 3, *SIZE)])["lam_adjusted"] for _ in windows])


def test_with_both_alphas_a_window_takes_one_of_the_two_and_with_none_nothing() -> None:
    kinds = [m.kind for w in range(1000) if (m := window_mix(0, 0, w, mixup=0.2, cutmix=1.0, size=SIZE))]
    assert 440 < kinds.count("mixup") < 560
    assert len(kinds) == 1000
    assert window_mix(0, 0, 0, mixup=0.0, cutmix=0.0, size=SIZE) is None
    assert window_mix(0, 0, 5, mixup=0.2, cutmix=0.0, size=SIZE) == window_mix(0, 0, 5, mixup=0.2, cutmix=0.0, size=SIZE)
    assert window_mix(0, 0, 5, mixup=0.2, cutmix=0.0, size=SIZE) != window_mix(0, 1, 5, mixup=0.2, cutmix=0.0, size=SIZE)
