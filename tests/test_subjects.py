"""Subjects: a run or a model by name, seen through exactly the pixels that it sees; overrides that are checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from pellucid.data.images import decode
from pellucid.errors import DataError, MissingError, RecipeError, UsageError
from pellucid.run import Run
from pellucid.runtime import start
from pellucid.subjects import Subject, settings, subject

SMALL_VIT = ["pretrained=false", "options={depth: 1, embed_dim: 32, num_heads: 2}", "image_size=32"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def looking(size: tuple[int, int], fit: str, resize_size: int | None = None, interpolation: str = "bilinear") -> Subject:
    """A subject without a model: the geometry alone."""
    runtime = start(device="cpu", precision="fp32", threads=1, channels_last=False)
    return Subject("x", "", torch.nn.Identity(), runtime, size, (0.0,) * 3, (1.0,) * 3, fit, resize_size, interpolation, None, None)


# ── overrides ──
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["pretraind=false"], "-s pretraind=false: unknown key 'pretraind'. Did you mean 'pretrained'?"),
        (
            ["lr=1"],
            "-s lr=1: unknown key 'lr'. Known: pretrained, weights, seed, options, num_classes, classes, image_size, fit, resize_size, interpolation, normalize.",
        ),
        (["pretrained=no"], "-s pretrained=no: pretrained: expected true or false; got 'no' (text)"),
        (["image_size=large"], "-s image_size=large: image_size: expected a whole number or a list; got 'large' (text)"),
        (["fit=crp"], "-s fit=crp: fit: expected crop, stretch, pad; got 'crp'. Did you mean 'crop'?"),
        (["normalize=imagenett"], "-s normalize=imagenett: normalize: expected model, imagenet, none; got 'imagenett'. Did you mean 'imagenet'?"),
        (["normalize.mean=[0.1, 0.2, 0.3]"], "-s normalize.mean=[0.1, 0.2, 0.3]: normalize.std is missing"),
        (["normalize={maen: 1}"], "-s normalize={maen: 1}: unknown key 'maen'. Did you mean 'mean'?"),
        (["fit"], "-s fit: expected key.path=value"),
        (["pretrained=true", "weights=a.pth"], "-s: give pretrained=true or weights=FILE, not both"),
        (["weights=a.pth", "seed=2"], "-s: seed belongs to random weights, not to weights=FILE"),
    ],
)
def test_an_override_that_says_nothing_is_named(given: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        settings(given)
    assert said in str(caught.value)


def test_every_fault_of_the_overrides_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        settings(["pretraind=false", "seed=-1", "fit"])
    assert len(caught.value.problems) == 3


def test_overrides_are_yaml_with_dotted_keys() -> None:
    section = settings(["options.depth=1", "options.act=[a, {b: 1e-3}]", "image_size=[32, 48]", "normalize={mean: [0.1, 0.2, 0.3], std: [1.0, 1.0, 1.0]}"])
    assert section.options == {"depth": 1, "act": ["a", {"b": 1e-3}]}
    assert (section.size, section.pretrained) == ((32, 48), True)


# ── what is found ──
def test_a_model_by_name_says_what_it_is() -> None:
    found = subject("timm/vit_tiny_patch16_224", [*SMALL_VIT, "num_classes=5", "seed=3"], device="cpu")
    assert (found.name, found.weights, found.run) == ("timm/vit_tiny_patch16_224", "random weights, seed 3", None)
    assert (found.size, found.fit, found.resize_size, found.interpolation) == (
        (32, 32),
        "crop",
        35,
        "bicubic",
    )  # floor(32 / 0.9)
    assert not found.module.training
    assert all(parameter.requires_grad for parameter in found.module.parameters())
    image = Image.new("RGB", (50, 40), (200, 100, 50))
    inputs = found.inputs([found.view(image)] * 2)
    probabilities = found.predict(inputs)
    assert probabilities is not None
    assert (probabilities.shape, probabilities.dtype) == ((2, 5), torch.float64)
    assert torch.allclose(probabilities.sum(1), torch.ones(2, dtype=torch.float64))
    assert (found.label(3), found.classes) == ("class 3", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"  # type: ignore[misc]


def test_a_model_without_a_classifier_predicts_nothing() -> None:
    found = subject("vit_small_patch14_dinov2", ["pretrained=false", "options={depth: 1, embed_dim: 32, num_heads: 2}", "image_size=28"], device="cpu")
    assert found.predict(torch.zeros(1, 3, 28, 28)) is None
    assert found.label(0) is None


def test_settings_lie_over_the_model_s_own() -> None:
    changed = subject(
        "torchvision/squeezenet1_0", ["pretrained=false", "fit=pad", "interpolation=bicubic", "normalize=imagenet", "image_size=[40, 64]"], device="cpu"
    )
    assert (changed.size, changed.fit, changed.resize_size, changed.interpolation) == ((40, 64), "pad", None, "bicubic")
    none = subject("torchvision/squeezenet1_0", ["pretrained=false", "normalize=none", "resize_size=300"], device="cpu")
    assert (none.mean, none.std, none.resize_size) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 300)
    given = subject("torchvision/squeezenet1_0", ["pretrained=false", "normalize={mean: [0.1, 0.2, 0.3], std: [1.0, 2.0, 3.0]}"], device="cpu")
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    for wrong in (["fit=pad", "resize_size=300"], ["resize_size=100"]):
        with pytest.raises(UsageError, match="resize_size is at least the short side of the input, 224, and goes with fit crop or stretch"):
            subject("torchvision/squeezenet1_0", ["pretrained=false", *wrong], device="cpu")


def test_names_of_classes_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("cat\ndog\n\n wild boar \n")
    found = subject("vit_tiny_patch16_224", [*SMALL_VIT, f"classes={file}"], device="cpu")
    assert (found.num_classes, found.label(2)) == (3, "wild boar")
    with pytest.raises(UsageError, match=r"expected a name for each class, got 3; timm/vit_tiny_patch16_224 has 5 classes"):
        subject("vit_tiny_patch16_224", [*SMALL_VIT, f"classes={file}", "num_classes=5"], device="cpu")
    with pytest.raises(MissingError, match="no such file with the names of the classes"):
        subject("vit_tiny_patch16_224", [*SMALL_VIT, f"classes={tmp_path / 'none.txt'}"], device="cpu")


def test_a_transformers_model_hands_out_probabilities() -> None:
    options = "options={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, patch_size: 8}"
    found = subject("transformers/vit", ["pretrained=false", options, "image_size=32", "num_classes=4"], device="cpu")
    probabilities = found.predict(found.inputs([found.view(Image.new("RGB", (40, 30)))]))
    assert probabilities is not None
    assert probabilities.shape == (1, 4)
    assert (found.fit, found.mean) == ("stretch", (0.5, 0.5, 0.5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match="device is cuda, but torch sees no CUDA device"):
        subject("timm/test_vit", ["pretrained=false"], device="cuda")


# ── a run ──
def test_a_run_s_probabilities_are_those_of_its_own_prediction(small_run: Path) -> None:
    run, found = Run(small_run), subject(small_run, device="cpu")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in ((32, 32), (50, 41), (33, 90))]
    expected = [prediction.probabilities for prediction in run.predict(images)]
    probabilities = found.predict(found.inputs([found.view(image) for image in images]))
    assert probabilities is not None
    assert probabilities.tolist() == [list(row) for row in expected]  # the same bits
    assert found.weights == f"final weights of {small_run}, last epoch"
    assert (found.classes, found.num_classes) == (tuple(run.data.classes), len(run.data.classes))
    assert found.label(1) == run.data.classes[1]
    assert found.run is not None


def test_a_run_takes_no_overrides(small_run: Path) -> None:
    with pytest.raises(UsageError, match=r"is a run: its recipe and its weights say what image_size is, .* Remove -s image_size"):
        subject(small_run, ["image_size=64"])
    with pytest.raises(RecipeError, match="Did you mean 'pretrained'"):
        subject(small_run, ["pretraind=false"])


def test_a_run_without_final_weights_is_told(copied_run: Path) -> None:
    (copied_run / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(MissingError, match="the run has no final weights"):
        subject(copied_run)


# ── what is seen ──
GEOMETRY = [
    ((32, 32), "crop", None),
    ((32, 32), "crop", 40),
    ((24, 40), "crop", None),
    ((40, 24), "crop", 33),
    ((32, 32), "stretch", None),
    ((24, 40), "stretch", None),
    ((32, 32), "stretch", 40),
    ((32, 32), "pad", None),
    ((24, 40), "pad", None),
]
PHOTOGRAPHS = [(64, 90), (120, 60), (50, 50), (61, 47)]  # height, width: landscape, portrait, square, odd


@pytest.mark.parametrize(("size", "fit", "resize_size"), GEOMETRY)
@pytest.mark.parametrize("shape", PHOTOGRAPHS)
def test_a_bright_spot_lands_where_the_box_says(size: tuple[int, int], fit: str, resize_size: int | None, shape: tuple[int, int]) -> None:
    """The centre of mass of a spot's light, found in the view, is the spot's place by `view_box` (within half a pixel), seen where the box covers it."""
    seen = looking(size, fit, resize_size)
    top, left, height, width = seen.view_box(shape)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    found = 0
    for y, x in [(shape[0] * i // 8, shape[1] * j // 8) for i in range(1, 8) for j in range(1, 8)]:
        pixels = np.zeros((*shape, 3), np.uint8)
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
        light = seen.view(Image.fromarray(pixels))[..., 0].astype(np.float64)
        at = ((y + 0.5 - top) * size[0] / height, (x + 0.5 - left) * size[1] / width)
        reach = (4 * size[0] / height + 2, 4 * size[1] / width + 2)  # of the spot and of the filter, in pixels of the view
        if all(r <= a <= s - r for a, r, s in zip(at, reach, size, strict=True)):
            found += 1
            assert abs((rows * light).sum() / light.sum() - at[0]) < 0.5
            assert abs((columns * light).sum() / light.sum() - at[1]) < 0.5
        elif any(a < -r or a > s + r for a, r, s in zip(at, reach, size, strict=True)):
            assert not light.any()
    assert found > 0


@pytest.mark.parametrize(("size", "fit", "resize_size"), GEOMETRY)
@pytest.mark.parametrize("shape", PHOTOGRAPHS)
def test_mask_and_picture_move_together(size: tuple[int, int], fit: str, resize_size: int | None, shape: tuple[int, int]) -> None:
    """A mask drawn as a picture: where the picture is all light or all dark, the mask says so; its values are never mixed."""
    seen = looking(size, fit, resize_size)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = np.where((rows - shape[0] * 0.4) ** 2 + (columns - shape[1] * 0.55) ** 2 < (min(shape) * 0.3) ** 2, 200, 7).astype(np.uint8)
    view = seen.view(Image.fromarray(np.repeat(mask[..., None] // 100 * 127, 3, 2)))[..., 0]
    moved = seen.view_mask(mask)
    assert (moved.shape, moved.dtype) == (size, np.uint8)
    assert set(np.unique(moved)) <= {0, 7, 200}
    assert (moved[view == 254] == 200).all()
    assert (moved[view == 0] != 200).all()
    assert (view == 254).sum() > 20
    assert ((moved == 0).any()) == (fit == "pad" and seen.view_box(shape)[:2] != (0.0, 0.0))


def test_the_box_of_each_fit_by_hand() -> None:
    assert looking((32, 32), "crop").view_box((64, 96)) == (0.0, 16.0, 64.0, 64.0)
    assert looking((32, 32), "crop", 64).view_box((64, 96)) == (16.0, 32.0, 32.0, 32.0)
    assert looking((32, 32), "stretch").view_box((64, 96)) == (0.0, 0.0, 64.0, 96.0)
    assert looking((32, 32), "stretch", 64).view_box((64, 96)) == (16.0, 24.0, 32.0, 48.0)
    assert looking((32, 32), "pad").view_box((32, 64)) == (-16.0, 0.0, 64.0, 64.0)
    assert looking((32, 32), "pad").view_box((64, 32)) == (0.0, -16.0, 64.0, 64.0)


def test_inputs_are_the_normalised_views_and_nothing_else() -> None:
    seen = dataclasses.replace(looking((8, 8), "crop"), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    view = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = (view.astype(np.float64).transpose(2, 0, 1) / 255 - np.reshape(seen.mean, (3, 1, 1))) / np.reshape(seen.std, (3, 1, 1))
    found = seen.inputs([view, view])
    assert (found.dtype, found.shape) == (torch.float32, (2, 3, 8, 8))
    assert np.abs(found.numpy() - expected).max() < 1e-6
    with pytest.raises(DataError, match=r"expected views of \(8, 8, 3\) uint8"):
        seen.inputs([view[:4]])


# ── real weights on a real photograph ──
@pytest.mark.data
def test_real_weights_answer_as_under_torchvision(photographs: Path) -> None:
    file = photographs / "weights" / "squeezenet1_0_deepcompression_torchvision.pth"
    found = subject("squeezenet1_0", [f"weights={file}"], device="cpu")
    preset = torchvision.models.SqueezeNet1_0_Weights.DEFAULT
    oracle = torchvision.models.squeezenet1_0()
    oracle.load_state_dict(torch.load(file, weights_only=True))
    oracle.eval()
    names = preset.meta["categories"]
    cats_or_dogs = 0
    files = sorted((photographs / "pets" / "val").glob("*.jpg"))[::30]
    for path in files:
        image = decode(path.read_bytes(), path.name)
        with torch.inference_mode():
            expected = oracle(preset.transforms()(image)[None])
            logits = found.module(found.inputs([found.view(image)]))
        assert float((logits - expected).abs().max()) < 1e-4
        cats_or_dogs += 151 <= int(logits.argmax()) <= 268 or 281 <= int(logits.argmax()) <= 285  # ImageNet's dogs and domestic cats
    assert len(files) == 10
    assert cats_or_dogs >= 8, names
    assert found.weights == f"weights of {file}"
    assert found.classes is None  # a file does not say what its classes are
