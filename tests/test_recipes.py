"""The recipes that come with Pellucid: each opens with what it costs, plans on the real data, and trains.

At a reduced size a recipe keeps its optimiser, schedule, phases, SAM, augmentation, mixup and normalisation; data, network and epochs shrink.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid import recipe as recipes
from pellucid.models.weights import under
from pellucid.plan import plan
from pellucid.recipe import Recipe
from pellucid.run import DONE, Run
from pellucid.tasks import MODELS
from pellucid.train import train

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PHOTOGRAPHS = ["clothing-squeezenet", "pets-squeezenet", "flowers-mobilenet"]

VIT_AUGMENT = {"augment.random_resized_crop": [0.7, 1.0], "augment.horizontal_flip": 0.5, "augment.rotation": 15, "augment.color_jitter": [0.3, 0.3, 0.3, 0.1]}
VIT = {
    **VIT_AUGMENT,
    "train.batch_size": 512,
    "train.micro_batch_size": 4,
    "train.phases.0.optimizer.name": "adam",
    "train.phases.0.optimizer.weight_decay": 0.1,
}
ADAM_COSINE = {**VIT, "train.phases.0.optimizer.lr": 1e-4, "train.phases.0.schedule.name": "cosine"}
NOAM = {**VIT, "train.phases.0.optimizer.lr": 1e-6, "train.phases.0.schedule.name": "noam"}
MIXUP = {
    "data.image_size": 224, "data.fit": "stretch", "model.pretrained": True, "augment.mixup": 0.2,
    "train.phases.0.optimizer.name": "sgd", "train.phases.0.optimizer.momentum": 0.9,
}  # fmt: skip
LANDCOVER = {
    "data.source": "pairs", "data.pair_names": ["{}_sat", "{}_mask"], "data.threshold": 128, "data.ignored": [[0, 0, 0]], "data.palette.water": [0, 0, 255],
    "data.image_size": 512, "data.fit": "native", "model.pretrained": "backbone", "scoring.convention": "deepglobe",
}  # fmt: skip
# The work that people do by hand today, as the settings that each recipe must keep.
FIELD: dict[str, dict[str, Any]] = {
    "vgg13-32px": {
        "model.name": "timm/vgg13_bn", "model.pretrained": False, "data.image_size": 32, "train.batch_size": 128, "train.phases.0.optimizer.name": "adamw",
        "augment.random_crop": 4, "augment.rotation": 15, "augment.horizontal_flip": 0.5,
    },
    "resnet18-mixup": MIXUP | {"model.name": "torchvision/resnet18"},
    "resnet50-mixup": MIXUP | {"model.name": "torchvision/resnet50"},
    "resnet152-mixup": MIXUP | {"model.name": "torchvision/resnet152"},
    "vit-s16-224": ADAM_COSINE | {"data.image_size": 224, "model.pretrained": True},
    "vit-b16-384": ADAM_COSINE | {"data.image_size": 384, "model.pretrained": True},
    "vit-b16-scratch": ADAM_COSINE | {"data.image_size": 384, "model.pretrained": False},
    "vit-b16-noam": NOAM | {"train.phases.0.schedule.decay": "inverse_sqrt"},
    "vit-b16-noam-exponential": NOAM | {"train.phases.0.schedule.decay": "exponential"},
    "vit-b16-two-phases": ADAM_COSINE | {"train.phases.1.optimizer.name": "sgd", "train.phases.1.optimizer.lr": 0.01},
    "vit-b16-sam": ADAM_COSINE | {"train.phases.0.optimizer.sam.rho": 0.05},
    "vit-s16-normalize-model": ADAM_COSINE | {"data.normalize": "model"},
    "vit-s16-normalize-dataset": ADAM_COSINE | {"data.normalize": "dataset"},
    "vit-s16-normalize-given": ADAM_COSINE | {"data.normalize.mean": [0.485, 0.456, 0.406], "data.normalize.std": [0.229, 0.224, 0.225]},
    "landcover-fcn32s": LANDCOVER | {"model.name": "pellucid/fcn32s", "loss.name": "cross_entropy"},
    "landcover-deeplabv3plus": LANDCOVER | {"model.name": "smp/DeepLabV3Plus", "model.encoder": "resnet50", "loss.name": "poly1", "loss.epsilon": 1.0},
    "camvid-fcn32s": {"model.name": "pellucid/fcn32s", "data.source": "pairs", "data.ignored": [11]},
    "byol-resnet50": {
        "model.name": "torchvision/resnet50", "data.image_size": 128, "train.batch_size": 128, "method.name": "byol", "method.projector_hidden": 4096,
        "method.projector_output": 256, "method.momentum": 0.996, "method.second_view.gaussian_blur": 0.1, "method.second_view.solarize": 0.2,
        "augment.gaussian_blur": 1.0, "augment.color_jitter": [0.4, 0.4, 0.2, 0.1], "augment.color_jitter_probability": 0.8, "augment.grayscale": 0.2,
        "train.phases.0.epochs": 1000, "train.phases.0.optimizer.name": "adam", "train.phases.0.optimizer.lr": 1e-4, "train.phases.0.schedule.name": "cosine",
    },
    "office-home-transfer": {"data.source": "table", "model.name": "torchvision/resnet50", "data.label_column": "label", "data.filename_column": "filename"},
    "camvid-deeplabv3": {"model.name": "smp/DeepLabV3", "model.encoder": "resnet18", "loss.name": "poly1", "data.ignored": [11]},
}  # fmt: skip


# ── a recipe made small ──
def reductions(recipe: Recipe) -> list[str]:
    """Overrides under which a recipe trains in about a second; warm-ups shrink with their phases, so a schedule keeps its shape."""
    small = [
        "data.source=scenes", "data.train=12", "data.val=6", "data.test=null", "data.image_dir=null", "data.image_size=32", "data.resize_size=null",
        "model.pretrained=false", "model.weights=null", "train.batch_size=4", "train.micro_batch_size=2", "train.threads=1",
    ]  # fmt: skip
    if recipe.masked:
        small += [f"data.{key}=null" for key in ("mask_dir", "pair_names", "palette", "threshold", "classes")] + [
            "data.ignored=[]",
            "model.backbone_weights=null",
        ]
        small += ["inside.samples=2", "inside.images=[]"] if recipe.inside is not None else []
        small += ["model.options={channels: 8, batch_norm: true}"] if recipe.model.name == "pellucid/fcn32s" else []
        small += ["model.encoder=resnet18"] if recipe.model.encoder == "resnet50" else []
    elif recipe.method is not None:
        small += ["method.projector_hidden=8", "method.projector_output=8", *(["inside.features=4"] if recipe.inside is not None else [])]
        small += ["method.predictor_hidden=8"] if recipe.method.name != "simclr" else []
    elif recipe.inside is not None:
        small += ["inside.samples=2", "inside.features=4", "inside.masks=null", "inside.mask_target=null", "inside.mask_ignore=[]"]
    for i, phase in enumerate(recipe.train.phases):
        small.append(f"train.phases.{i}.epochs=1")
        if phase.schedule.warmup_epochs:
            small.append(f"train.phases.{i}.schedule.warmup_epochs={phase.schedule.warmup_epochs / phase.epochs}")
    if recipe.model.name.startswith(("timm/vit_base", "timm/vit_small")):
        small.append("model.options={embed_dim: 48, depth: 2, num_heads: 3}")
    if recipe.model.name == "timm/vgg13_bn":
        small.append("model.options={mlp_ratio: 0.0078125}")  # 32 hidden units: writing 25 M parameters takes longer than training them
    if recipe.model.name in ("torchvision/resnet50", "torchvision/resnet152"):
        small.append("model.name=torchvision/resnet18")  # the same blocks of convolution and BatchNorm, a fifth of the parameters
    return small


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The finished run of a shipped recipe at a reduced size; trained once."""
    folder = tmp_path_factory.mktemp("reduced")

    def run(name: str) -> Run:
        if not (folder / name).exists():
            file = FOLDER / f"{name}.yaml"
            train(file, overrides=reductions(recipes.load(file)), out=folder / name, quiet=True, figures=False)
        return Run(folder / name)

    return run


def load(name: str) -> Recipe:
    return recipes.load(FOLDER / f"{name}.yaml")


# ── what stands in the files ──
@pytest.mark.parametrize("name", NAMES)
def test_recipe_opens_with_its_command_hardware_minutes_and_metric(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = "pellucid demo" if name == "demo" else f"pellucid train recipes/{name}.yaml"
    assert first.startswith(f"# {command}        ")
    hardware, minutes, metric = first.split("        ", 1)[1].split(" · ", 2)
    assert re.match(r"\d+x? .*(GPU|CPU cores)", hardware)
    assert re.match(r"(about [\d.]+ (min|s)\b|minutes not measured here)", minutes)
    headline = {"classification": "accuracy", "pretraining": "k-NN accuracy", "segmentation": "mIoU"}[load(name).task]
    assert re.match(headline + r" (0\.\d+|not measured here)", metric)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_resolves_to_a_file_that_loads_equal(name: str, tmp_path: Path) -> None:
    recipes.save(load(name), tmp_path / "resolved.yaml")
    assert recipes.load(tmp_path / "resolved.yaml") == load(name)


@pytest.mark.parametrize("name", FIELD)
def test_settings_of_the_field_stand_in_the_recipe(name: str) -> None:
    values = recipes.flat(load(name))
    assert {key: values.get(key) for key in FIELD[name]} == FIELD[name]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_scratch_recipe_differs_from_the_pretrained_one_in_its_weights_alone(name: str) -> None:
    pretrained, scratch = recipes.flat(load(name)), recipes.flat(load(f"{name}-scratch"))
    assert {key for key in pretrained if pretrained[key] != scratch[key]} == {"model.weights"}
    assert scratch["model.weights"] is None


def test_three_sources_of_photographs_are_shown() -> None:
    assert [load(name).data.source for name in PHOTOGRAPHS] == ["folder", "prefix", "table"]


# ── what they would do ──
@pytest.mark.parametrize("name", NAMES)
def test_recipe_passes_plan(name: str, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_DATA", str(photographs))
    recipe = load(name)
    planned = plan(recipe, timing=False)
    assert planned.total_steps == recipe.epochs * math.ceil(planned.images["train"] / recipe.train.batch_size) > 0
    assert planned.images["val"] > 0
    assert planned.micro_batch_size <= recipe.train.batch_size
    for phase, section in zip(planned.phases, recipe.train.phases, strict=True):
        assert phase.peak_lr == pytest.approx(section.optimizer.lr), "the schedule reaches its peak"
    assert planned.num_params > 0
    # The target of byol is never trained: as large as backbone and projector.
    assert (planned.num_trainable < planned.num_params) == (recipe.method is not None and recipe.method.name == "byol")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_published_weights_reach_the_model(name: str, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_DATA", str(photographs))
    recipe = load(name)
    built, report = MODELS[recipe.task](recipe, 7)
    assert recipe.model.weights is not None
    assert report is not None
    assert {key.rpartition(".")[2] for key in report.missing} <= {"num_batches_tracked"}, "BatchNorm's step counter, which PyTorch alone keeps"
    assert report.unexpected == report.reshaped == []
    published, loaded = torch.load(recipe.model.weights, weights_only=True), built.module.state_dict()
    backbone = [key for key in loaded if not under(key, built.classifier) and key not in report.missing]
    assert len(backbone) > 40
    for key in backbone:
        assert torch.equal(loaded[key], published[key].to(loaded[key].dtype)), key
    scratch, _ = MODELS[recipe.task](load(f"{name}-scratch"), 7)
    assert any(not torch.equal(scratch.module.state_dict()[key], published[key]) for key in backbone)


# ── what they do, at a reduced size ──
@pytest.mark.parametrize("name", NAMES)
def test_recipe_trains_end_to_end_at_a_reduced_size(name: str, reduced: Callable[[str], Run]) -> None:
    run, shipped = reduced(name), recipes.flat(load(name))
    assert run.record.status == DONE
    assert run.record.step == run.record.total_steps == 3 * len(load(name).train.phases)
    rates = [line["lr"] for line in run.metrics() if line["kind"] == "lr"]
    losses = [line.get("loss", line.get("alignment")) for line in run.metrics() if line["kind"] in ("train", "val") and line["epoch"] > 0]
    values = [m.value for m in run.measurements.values()]
    assert len(losses) == 2 * len(load(name).train.phases)
    assert len(values) >= 5
    assert all(math.isfinite(number) for number in [*rates, *losses, *values])
    resolved = recipes.flat(recipes.load(run.path / "resolved.yaml"))
    small = {override.partition("=")[0] for override in reductions(load(name))}
    changed = {key for key in shipped.keys() | resolved.keys() if shipped.get(key) != resolved.get(key)}
    assert {key for key in changed if not under(key, sorted(small))} == set(), "only size, data and weights are reduced"


@pytest.mark.parametrize("name", ["vit-b16-noam", "vit-b16-noam-exponential"])
def test_noam_rises_to_its_peak_and_falls_as_its_recipe_says(name: str, reduced: Callable[[str], Run]) -> None:
    """Three steps, one of them warm-up: t^-1/2, or 0.95 for each epoch of three steps."""
    rates = [line["lr"] for line in reduced(name).metrics() if line["kind"] == "lr"]
    expected = [1e-6, 1e-6 / math.sqrt(2), 1e-6 / math.sqrt(3)] if name == "vit-b16-noam" else [1e-6, 1e-6 * 0.95 ** (1 / 3), 1e-6 * 0.95 ** (2 / 3)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_two_phases_end_with_sgd_at_its_own_rate(reduced: Callable[[str], Run]) -> None:
    lines = [line for line in reduced("vit-b16-two-phases").metrics() if line["kind"] == "train"]
    assert [line["phase"] for line in lines] == [0, 1]
    assert lines[0]["lr"] < 1e-4
    assert lines[1]["lr"] == 0.01


def test_three_normalisations_are_what_their_names_say(reduced: Callable[[str], Run]) -> None:
    own, measured, given = (reduced(f"vit-s16-normalize-{kind}").data for kind in ("model", "dataset", "given"))
    assert (own.mean, own.std) == ([0.5] * 3, [0.5] * 3)
    assert (given.mean, given.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert measured.mean not in (own.mean, given.mean)
    assert all(0 < value < 1 for value in [*measured.mean, *measured.std])


def test_effective_batch_is_cut_into_micro_batches(reduced: Callable[[str], Run]) -> None:
    run = reduced("vit-b16-384")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["micro_batch_size"] for line in lines if line["kind"] == "train"} == {2}
    assert run.record.step == 3, "12 images in batches of 4"
