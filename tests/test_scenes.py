"""The drawn data set: what is said about a scene is what is seen in it, and its bits never move."""

import hashlib
import itertools
import time

import numpy as np
import pytest

from pellucid.data import scenes
from pellucid.errors import DataError

SIZE = (64, 64)


def some(count=120, size=SIZE, split="train"):
    return [scenes.draw(i, split=split, image_size=size) for i in range(count)]


def test_the_bits_of_a_scene_are_fixed():
    digest = hashlib.blake2b(digest_size=16)
    for size in (SIZE, (97, 61), (32, 128)):
        for scene in some(30, size, "val"):
            digest.update(scene.image.tobytes() + scene.mask.tobytes() + scene.caption.encode())
    assert digest.hexdigest() == GOLDEN, "a drawn bit changed: raise scenes.DRAWING_VERSION and note it in the changelog"


GOLDEN = "da941926b4278229e066738d50f83728"


def test_a_scene_depends_on_split_index_size_and_seed_alone():
    one = scenes.draw(7, split="train", image_size=SIZE, seed=3)
    np.random.default_rng(0).random(10)
    again = scenes.draw(7, split="train", image_size=SIZE, seed=3)
    assert np.array_equal(one.image, again.image)
    for other in (
        scenes.draw(8, split="train", image_size=SIZE, seed=3),
        scenes.draw(7, split="val", image_size=SIZE, seed=3),
        scenes.draw(7, split="train", image_size=SIZE, seed=4),
    ):
        assert not np.array_equal(one.image, other.image)


def test_hashes_differ_wherever_the_drawing_does():
    settings = list(itertools.product(range(9), ("train", "val"), (SIZE, (64, 65)), (0, 1)))
    keys = [scenes.content_hash(i, split=split, image_size=size, seed=seed) for i, split, size, seed in settings]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
    assert scenes.name(123, split="train") == "scenes-train-000123.png"


def test_six_scenes_in_a_row_hold_each_class_once():
    assert sorted(scene.label for scene in some(12)[5:11]) == list(range(6))


@pytest.mark.parametrize("size", [SIZE, (48, 96), (224, 160), (16, 16)])
def test_label_caption_and_mask_agree(size):
    for scene in some(60, size):
        assert scene.image.shape == (*size, 3)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        by_size = {thing.size: thing for thing in scene.objects}
        large, small = by_size["large"], by_size["small"]
        assert large.shape == scenes.SHAPES[scene.label]
        assert small.shape != large.shape
        assert small.color != large.color
        assert set(np.unique(scene.mask)) == {0, 1 + scenes.SHAPES.index(large.shape), 1 + scenes.SHAPES.index(small.shape)}
        relation = "above" if " above " in scene.caption else "left of"
        assert scene.caption == f"{scene.objects[0]} {relation} {scene.objects[1]}"
        first, second = (thing.box for thing in scene.objects)
        axis = 0 if relation == "above" else 1
        assert first[axis + 2] <= second[axis] + 1, "the first ends before the second begins"


def test_boxes_hold_the_pixels_of_their_object_and_stay_inside():
    for scene in some(60, (64, 80)):
        for thing in scene.objects:
            top, left, bottom, right = thing.box
            assert 0 <= top < bottom <= 64
            assert 0 <= left < right <= 80
            rows, columns = np.nonzero(scene.mask == 1 + scenes.SHAPES.index(thing.shape))
            assert rows.min() >= top
            assert rows.max() < bottom
            assert columns.min() >= left
            assert columns.max() < right


def test_pixels_well_inside_an_object_have_its_colour_and_stand_out():
    for scene in some(60):
        background = scene.image[scene.mask == 0].astype(int)
        for thing in scene.objects:
            color = np.array(scenes.COLORS[thing.color])
            inside = scene.image[scene.mask == 1 + scenes.SHAPES.index(thing.shape)].astype(int)
            assert (inside == color).all(axis=1).mean() > 0.3
            assert np.abs(np.median(background, axis=0) - color).sum() > 90


def test_large_shapes_take_about_half_of_the_side():
    for scene in some(60):
        top, left, bottom, right = next(thing.box for thing in scene.objects if thing.size == "large")
        assert 0.34 <= max(bottom - top, right - left) / 64 <= 0.66


def float_inside(shape, y, x):
    """Slow float64 twin of the shapes for radius 1; y grows downwards."""
    if shape == "circle":
        return y * y + x * x <= 1
    if shape == "square":
        return max(abs(y), abs(x)) <= 0.88
    if shape == "cross":
        return (abs(y) <= 0.32 and abs(x) <= 0.96) or (abs(x) <= 0.32 and abs(y) <= 0.96)
    if shape == "ring":
        return 0.58**2 <= y * y + x * x <= 1
    if shape == "triangle":
        return y <= 0.85 and y >= 2 * abs(x) - 1 + 0.0375
    angles = np.deg2rad(-90 + 72 * np.arange(5))  # the five points; y grows downwards
    return sum(np.sin(a) * y + np.cos(a) * x <= np.cos(np.deg2rad(72)) for a in angles) >= 4


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_integer_shapes_equal_their_float_definition(shape):
    radius = 601
    y, x = np.arange(-640, 640, 16)[:, None], np.arange(-640, 640, 16)
    ours = scenes._INSIDE[scenes.SHAPES.index(shape)](y, x, radius)
    twin = np.array([[float_inside(shape, b / radius, a / radius) for a in x] for b in y[:, 0]])
    assert (ours != twin).mean() < 0.004, "only points on the edge may differ"
    assert ours.any()


def test_edges_are_antialiased():
    for scene in some(6):
        exact = {tuple(scenes.COLORS[thing.color]) for thing in scene.objects}
        thing = next(thing for thing in scene.objects if thing.size == "large")
        top, left, bottom, right = thing.box
        colors = {tuple(pixel) for pixel in scene.image[top:bottom, left:right].reshape(-1, 3).tolist()}
        assert len(colors - exact) > 4


def test_too_small_a_size_is_refused():
    with pytest.raises(DataError, match="image_size is at least 16 pixels on both sides, got 64 x 8"):
        scenes.draw(0, split="train", image_size=(64, 8))


def test_drawing_is_fast_enough_for_100000():
    start = time.process_time()
    some(300)
    assert 300 / (time.process_time() - start) > 700  # about 3,000 a second on one core of 2024
