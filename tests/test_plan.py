"""Plan: exact counts, sizes that can be added up by hand, and nothing trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pellucid import recipe as recipes
from pellucid.attention_findings import load_attention
from pellucid.data import scenes
from pellucid.errors import PellucidError
from pellucid.memory import StepMemory, fitting_micro_batch, forward_cost
from pellucid.neighbour_findings import load_neighbours
from pellucid.plan import Plan, _timed_pass, plan
from pellucid.run import Run
from pellucid.runtime import start
from pellucid.train import train

TWO_PHASES = "train.phases=[{epochs: 3, optimizer: {name: adam, lr: 1e-3}, schedule: {name: noam, warmup_steps: 4}}, {epochs: 2, optimizer: {name: sgd, lr: 0.01, sam: {rho: 0.1}}}]"


def planned(small_recipe: str, tmp_path: Path, *overrides: str, timing: bool = False) -> Plan:
    return plan(recipe_of(small_recipe, tmp_path, *overrides), timing=timing)


def recipe_of(small_recipe: str, tmp_path: Path, *overrides: str) -> recipes.Recipe:
    (tmp_path / "r.yaml").write_text(small_recipe)
    return recipes.load(tmp_path / "r.yaml", overrides)


# ── counts ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_steps_and_parameters_are_those_of_the_run(small_recipe: str, small_run: Path, tmp_path: Path) -> None:
    found, record = planned(small_recipe, tmp_path), Run(small_run).record
    assert (found.total_steps, found.num_params) == (record.total_steps, record.num_params)
    assert found.steps_per_epoch == 4, "50 images in batches of 16"
    assert (found.classes, found.images) == (6, {"train": 50, "val": 24})
    assert found.num_trainable == found.num_params
    assert found.weights_bytes == 4 * found.num_params
    assert found.checkpoint_bytes == 4 * found.num_params * 3, "weights and the two moments of AdamW"
    assert found.fixed_bytes == 4 * found.num_params * 4, "and the gradient"
    assert (found.seconds, found.seconds_per_image) == (None, None)
    assert recipes.loads(found.resolved) == recipe_of(small_recipe, tmp_path)


def test_each_phase_has_its_steps_and_rates(small_recipe: str, tmp_path: Path) -> None:
    first, second = planned(small_recipe, tmp_path, TWO_PHASES).phases
    assert (first.optimizer, first.schedule, first.epochs, first.steps) == ("adam", "noam", 3, 12)
    assert (first.first_lr, first.peak_lr) == (pytest.approx(1e-3 / 4), pytest.approx(1e-3))
    assert first.last_lr == pytest.approx(1e-3 * (4 / 12) ** 0.5)
    assert (second.optimizer, second.steps) == ("sgd with SAM (rho 0.1)", 8)
    assert second.first_lr == second.last_lr == 0.01


def test_a_frozen_backbone_and_an_average_change_the_sizes(small_recipe: str, tmp_path: Path) -> None:
    whole = planned(small_recipe, tmp_path)
    frozen = planned(small_recipe, tmp_path, "model.freeze=backbone")
    assert frozen.num_trainable == 32 * 6 + 6
    assert frozen.num_params == whole.num_params
    assert frozen.fixed_bytes == whole.weights_bytes + 4 * 4 * 0 + frozen.num_trainable * 4 * 3
    assert frozen.activation_bytes_per_image < whole.activation_bytes_per_image
    averaged = planned(small_recipe, tmp_path, "train.ema.decay=0.9")
    assert averaged.fixed_bytes == whole.fixed_bytes + whole.weights_bytes


def test_measured_time_grows_with_the_epochs(small_recipe: str, tmp_path: Path) -> None:
    found = planned(small_recipe, tmp_path, timing=True)
    assert found.seconds_per_image is not None
    assert found.seconds is not None
    assert 0 < found.seconds_per_image < 1
    assert found.seconds == pytest.approx(found.seconds_per_image * (2 * 50 + 2 * 24 / 3))


# ── snapshots ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_snapshots_take_is_what_they_take_on_the_disk(small_recipe: str, tmp_path: Path) -> None:
    inside = "inside={epochs: [0, first, last], samples: 3, features: 20, methods: [attention, rollout]}"
    found = planned(small_recipe, tmp_path, inside).snapshots
    assert found is not None
    assert (found.epochs, found.split, found.images, found.features, found.pictures) == ((0, 1, 2), "val", 20, 32, 3)
    assert found.features_bytes == 3 * 20 * 32 * 2
    assert found.maps_bytes == 3 * 3 * 2 * (32 // 8) ** 2 * 4, "patches of 8 pixels, float32"
    run = train(tmp_path / "r.yaml", overrides=[inside], out=tmp_path / "run", quiet=True, figures=False)
    assert tuple(run.snapshot_epochs) == found.epochs
    assert sum(kept.nbytes for epoch in found.epochs if (kept := run.snapshot(epoch).features) is not None) == found.features_bytes
    assert sum(array.nbytes for array in load_attention(run.inside).arrays.values()) == found.attention_bytes > 0
    bank = load_neighbours(run.inside)
    assert bank.findings.n == found.neighbours == 50
    kept_bytes = bank.features.nbytes + sum(features.nbytes for features in bank.mistakes.values())
    assert kept_bytes <= found.neighbours_bytes == (50 + 24) * 32 * 2, "no more than all of val is mistaken"
    tiles = run.probe_atlas.stat().st_size + (run.inside / "neighbours.webp").stat().st_size
    assert found.tiles_bytes / 4 < tiles < found.tiles_bytes * 2


@pytest.mark.parametrize(
    ("model", "width", "cells"),
    [("timm/test_resnet", 96, 2 * 2), ("torchvision/squeezenet1_1", 512, 3 * 3), ("timm/test_convnext", 64, 16 * 16)],
)
def test_the_features_of_any_model_are_counted_without_running_it(small_recipe: str, tmp_path: Path, model: str, width: int, cells: int) -> None:
    found = planned(small_recipe, tmp_path, f"model={{name: {model}}}", "inside={epochs: [last], samples: 2}", "data.image_size=64").snapshots
    assert found is not None
    assert (found.images, found.features) == (24, width), "1,000 images were asked for, val has 24"
    assert found.maps_bytes == 2 * 4 * cells * 4, "at most four methods"


def test_the_plan_names_the_epochs_and_what_is_missing(small_recipe: str, tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    assert planned(small_recipe, tmp_path).snapshots is None
    settings = ["-s", "train.phases.0.epochs=20", "-s", "inside={epochs: {every: 2}, samples: 0, features: 20}"]
    code, out, _ = pellucid("plan", tmp_path / "r.yaml", "--no-timing", *settings)
    assert code == 0
    assert "snapshots     10 (after epoch 2, 4, 6, …, 18, 20): features of 20 val images (32 numbers each, half precision) 12.8 kB\n" in out
    assert "views         features of 50 training images and of mistakes 4.7 kB; small pictures about 45.1 kB\n" in out
    code, _, told = pellucid("plan", tmp_path / "r.yaml", "--no-timing", "-s", f"inside.images=[{tmp_path}/gone.jpg]")
    assert code == 2
    assert "inside.images: 1 of 1 files are not there" in told


# ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────

OF_MASKS = """\
task: segmentation
data: {source: scenes, train: 20, val: 8, image_size: 48}
model: {name: smp/Unet, encoder: tu-test_resnet, options: {encoder_depth: 3, decoder_channels: [16, 12, 8]}}
train: {batch_size: 8, threads: 1, phases: [{epochs: 2, optimizer: {name: adamw, lr: 1e-3}}]}
"""


def test_a_plan_of_masks_counts_the_pixels_of_each_class(tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    found = planned(OF_MASKS, tmp_path)
    masks = [scenes.draw(i, split="train", image_size=(48, 48)).mask for i in range(20)]
    assert found.class_names == ("background", *scenes.SHAPES)
    assert found.pixels["train"] == [*(int(sum((mask == c).sum() for mask in masks)) for c in range(7)), 0]
    assert sum(found.pixels["val"]) == 8 * 48 * 48
    code, out, _ = pellucid("plan", tmp_path / "r.yaml", "--no-timing")
    share = 100 * found.pixels["train"][1] / sum(found.pixels["train"])
    assert code == 0
    assert re.search(rf"^circle +{found.pixels['train'][1]:,} +{share:.2f} ", out, re.MULTILINE)


def test_a_plan_of_labels_has_no_pixels(small_recipe: str, tmp_path: Path) -> None:
    assert planned(small_recipe, tmp_path).pixels == {}


def test_snapshots_of_masks_are_two_bytes_a_pixel_and_epoch(tmp_path: Path) -> None:
    found = planned(OF_MASKS, tmp_path, "inside={epochs: [0, first, last], samples: 3}").snapshots
    assert found is not None
    assert (found.epochs, found.images, found.features, found.features_bytes, found.pictures) == ((0, 1, 2), 0, 0, 0, 3)
    assert found.masks_bytes == 3 * 3 * 48 * 48 * 2
    assert found.maps_bytes == 3 * 3 * 48 * 48 * 4, "Grad-CAM, float32, at most as fine as the picture"


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_time_of_a_model_with_an_auxiliary_output_is_measured_through_both(tmp_path: Path, auxiliary: bool) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            return (self.first(images), self.second(images)) if auxiliary else self.first(images)

    module, reached = Two(), []
    module.second.weight.register_hook(lambda _: reached.append(True))
    made = recipe_of(OF_MASKS, tmp_path)
    assert _timed_pass(module, made, start(device="cpu", precision="fp32", threads=1, channels_last=False), 2) > 0
    assert reached == [True] * auxiliary


# ── memory of one image ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def square(small_recipe: str, tmp_path: Path) -> recipes.Recipe:
    """Images of 16 x 16 pixels."""
    return recipe_of(small_recipe, tmp_path, "data.image_size=16")


def test_activations_and_operations_of_a_small_network_add_up(square: recipes.Recipe) -> None:
    """Kept for the backward pass: the image (convolution) and the output of ReLU (ReLU and linear layer share it)."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 5))
    found, operations = forward_cost(module, square, [])
    assert found == 4 * (3 * 256 + 8 * 256)
    assert operations == 2 * (256 * 8 * 3 * 9 + 8 * 256 * 5)
    assert all(p.device.type == "cpu" for p in module.parameters()), "the model itself stays where it was"


def test_weights_are_not_counted_as_activations(square: recipes.Recipe) -> None:
    module = nn.Sequential(nn.Flatten(), *[nn.Linear(768, 768) for _ in range(6)])
    assert forward_cost(module, square, [])[0] == 6 * 768 * 4


def test_reduced_precision_halves_the_activations(square: recipes.Recipe) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    half = square.model_copy(update={"train": square.train.model_copy(update={"precision": "bf16"})})
    assert forward_cost(module, half, [])[0] * 2 == forward_cost(module, square, [])[0] == 768 * 4


def test_a_model_that_cannot_take_the_images_is_an_error_with_their_size(square: recipes.Recipe) -> None:
    with pytest.raises(PellucidError, match="timm/test_vit does not run on images of 16x16 pixels"):
        forward_cost(nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), square, [])


@pytest.mark.parametrize(("room", "expected"), [(16100 / 0.9 + 1, 16), (16100 / 0.9 - 1, 8), (4600, 4), (3000, 2), (100, 1), (0, 1)])
def test_the_micro_batch_is_the_largest_halving_that_fits(room: float, expected: int) -> None:
    assert fitting_micro_batch(16, StepMemory(100, 0, 0, 0, 0, 1000), int(room)) == expected


def test_a_given_micro_batch_is_kept(small_recipe: str, tmp_path: Path) -> None:
    assert planned(small_recipe, tmp_path, "train.micro_batch_size=5").micro_batch_size == 5
    found = planned(small_recipe, tmp_path, "train.micro_batch_size=64")
    assert found.micro_batch_size == 16
    assert found.memory_bytes == found.fixed_bytes + 16 * found.activation_bytes_per_image


def test_formats_are_measured_and_the_recipes_own_is_one(small_recipe: str, tmp_path: Path) -> None:
    found = plan(recipe_of(small_recipe, tmp_path, "train.precision=fp16"), timing=False, formats=True).formats
    assert len(found) == 5
    assert [f.seconds_per_image for f in found] == sorted(f.seconds_per_image for f in found)
    (own,) = (f for f in found if f.settings == "train.precision: fp16, train.channels_last: false")
    assert own.ratio == 1.0
    assert all(f.ratio == pytest.approx(f.seconds_per_image / own.seconds_per_image) for f in found)
