"""The recipes that come with Pellucid: each opens with what it costs, plans on the real data, and trains.

At a reduced size a recipe keeps its optimiser, schedule, phases, SAM, augmentation, mixup and normalisation; data, network and epochs shrink.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid import recipe as recipes
from pellucid.models.weights import under
from pellucid.plan import Plan, plan
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
    "captions-coco": {
        "data.source": "captions", "data.image_size": 640, "model.name": "pellucid/captioner", "model.encoder": "timm/resnet101.a1_in1k",
        "model.encoder_stride": 32, "model.pretrained": "backbone", "model.decoder.depth": 6, "model.decoder.embed_dim": 256, "model.decoder.num_heads": 8,
        "model.decoder.mlp_ratio": 8.0, "model.decoder.drop_rate": 0.1, "text.tokenizer.name": "transformers",
        "text.tokenizer.source": "google-bert/bert-base-uncased", "text.max_length": 128, "train.clip_grad_norm": 0.1, "train.phases.0.epochs": 30,
        "train.phases.0.optimizer.lr": 1e-4, "train.phases.0.optimizer.weight_decay": 1e-4, "train.phases.0.schedule.milestones": [20],
    },
    "captions-flickr8k": {"data.source": "captions", "text.captions": "all", "model.freeze": "backbone", "generation.num_beams": 3},
    "captions-scenes": {"data.source": "scenes", "text.tokenizer.name": "words", "generation.num_beams": 1},
    "camvid-deeplabv3": {"model.name": "smp/DeepLabV3", "model.encoder": "resnet18", "loss.name": "poly1", "data.ignored": [11]},
}  # fmt: skip


# ── a recipe made small ──
def reductions(recipe: Recipe, tokenizer: Path) -> list[str]:
    """Overrides under which a recipe trains in about a second; warm-ups shrink with their phases, so a schedule keeps its shape.

    tokenizer: a folder that stands for one on the hub.
    """
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
    elif recipe.captioned:
        small += ["model.backbone_weights=null", "model.decoder.depth=2", "model.decoder.embed_dim=32", "text.max_length=12", "words.drawn=1"]
        small += ["model.encoder=timm/test_resnet"] if recipe.model.encoder == "timm/resnet101.a1_in1k" else []
        small += tokenized(recipe, tokenizer)
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


def tokenized(recipe: Recipe, tokenizer: Path) -> list[str]:
    """Overrides by which a captioner takes a folder for the tokeniser of the hub."""
    return [f"text.tokenizer.source={tokenizer}"] if recipe.text is not None and recipe.text.tokenizer.source is not None else []


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the hub's layout with a BERT tokeniser: its special tokens where BERT has them, and letters, of which it makes all words."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", *letters[1:], *(f"##{letter}" for letter in letters)]
    BertTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as COCO's lies with Karpathy's splits: a few pictures of two shapes, five captions each."""
    folder, images = tmp_path_factory.mktemp("coco"), []
    for i, split in enumerate(["train"] * 4 + ["restval"] * 2 + ["val"] * 3 + ["test"] * 2):
        place = "train2014" if split == "train" else "val2014"
        (folder / place).mkdir(exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (48, 64, 3) if i % 2 else (64, 48, 3), np.uint8)
        Image.fromarray(noise).save(folder / place / f"{i}.png")
        images.append({"split": split, "filepath": place, "filename": f"{i}.png", "sentences": [{"raw": f"A dog in house {'ab' * k}."} for k in range(5)]})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder


@pytest.fixture(scope="module")
def reduced(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The finished run of a shipped recipe at a reduced size; trained once."""
    folder = tmp_path_factory.mktemp("reduced")

    def run(name: str) -> Run:
        if not (folder / name).exists():
            file = FOLDER / f"{name}.yaml"
            train(file, overrides=reductions(recipes.load(file), tokenizer), out=folder / name, quiet=True, figures=False)
        return Run(folder / name)

    return run


@pytest.fixture(scope="module")
def planned(photographs: Path, coco: Path, tokenizer: Path) -> Callable[[str], Plan]:
    """The plan of a shipped recipe as it stands; counted once."""

    @cache
    def counted(name: str) -> Plan:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PELLUCID_DATA", str(photographs))
            environment.setenv("COCO_DIR", str(coco))
            return plan(recipes.load(FOLDER / f"{name}.yaml", tokenized(load(name), tokenizer)), timing=False)

    return counted


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
    headline = {"classification": "accuracy", "pretraining": "k-NN accuracy", "segmentation": "mIoU", "captioning": "CIDEr-D"}[load(name).task]
    assert re.match(headline + r" (\d\.\d+|not measured here)", metric)


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
def test_recipe_passes_plan(name: str, planned: Callable[[str], Plan]) -> None:
    recipe, found = load(name), planned(name)
    assert found.total_steps == recipe.epochs * math.ceil(found.images["train"] / recipe.train.batch_size) > 0
    assert found.images["val"] > 0
    assert found.micro_batch_size <= recipe.train.batch_size
    for phase, section in zip(found.phases, recipe.train.phases, strict=True):
        assert phase.peak_lr == pytest.approx(section.optimizer.lr), "the schedule reaches its peak"
    assert found.num_params > 0
    # The target of byol is never trained: as large as backbone and projector.
    still = recipe.model.freeze != "none" or (recipe.method is not None and recipe.method.name == "byol")
    assert (found.num_trainable < found.num_params) == still


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
def test_recipe_trains_end_to_end_at_a_reduced_size(name: str, tokenizer: Path, reduced: Callable[[str], Run]) -> None:
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
    small = {override.partition("=")[0] for override in reductions(load(name), tokenizer)}
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


def test_the_large_captioner_looks_at_20_x_20_cells_and_speaks_berts_word_pieces(planned: Callable[[str], Plan]) -> None:
    found = planned("captions-coco")
    assert found.images == {"train": 6, "val": 3, "test": 2}, "restval is train"
    assert "the decoder looks at 20x20 cells of timm/resnet101.a1_in1k" in found.notes
    assert any("the tokeniser of bert" in note and " 58 tokens" in note for note in found.notes), found.notes
    assert any("starts from the published weights of timm/resnet101.a1_in1k" in note for note in found.notes)
    assert found.activation_bytes_per_image > 100e6, "counted at 640 pixels"


def test_the_large_captioner_is_trained_with_the_parts_of_its_recipe(reduced: Callable[[str], Run]) -> None:
    run = reduced("captions-coco")
    assert run.data.vocabulary is not None
    vocabulary = run.data.vocabulary
    assert (vocabulary.start, vocabulary.end, vocabulary.pad, vocabulary.captions) == (2, 3, 0, 1)
    assert any(note.startswith("activation checkpointing: ") for note in run.record.notes)
    assert "captions found by 4 beams" in run.measurements["val/cider"].how
    assert len(run.caption_predictions("val").files) == 6
