"""Frozen backbones are computed once: the numbers of a backbone in every epoch, views in turn, equal bits after an interruption, what is refused."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from conftest import REPOSITORY
from gradients import training_of
from pellucid import frozen
from pellucid import recipe as recipes
from pellucid.cached import CachedFeatures, Unread, check_cached, classifier_input
from pellucid.data.augment import Augment, Images, evaluate_view
from pellucid.data.loader import Pack, Reader, Window, ordered_windows, pack_images
from pellucid.data.sources import load_dataset
from pellucid.data.store import Store
from pellucid.distributed import ALONE
from pellucid.errors import InterruptedError, RecipeError, UsageError
from pellucid.export import export_safetensors
from pellucid.files import file_hash
from pellucid.inside.features import penultimate
from pellucid.models import build_classifier, set_trainable, train_mode
from pellucid.models.heads import Head, moments, with_head
from pellucid.models.weights import read_weights
from pellucid.plan import plan
from pellucid.run import Run
from pellucid.runtime import start
from pellucid.tasks import load_model, predict
from pellucid.train import resume
from pellucid.verify import verify
from test_train import interrupt_after, lines, numbers, run_of, weights_of

PROBE = """\
task: classification
data: {source: scenes, train: 50, val: 24, image_size: 32, workers: 0}
model: {name: timm/test_resnet, freeze: backbone, head: {}, cached_views: 1}
train:
  batch_size: 16
  threads: 1
  phases:
    - {epochs: 3, optimizer: {name: adamw, lr: 1e-2}, schedule: {name: cosine, warmup_steps: 2}}
"""
CROPS = ["augment.random_crop=4", "augment.horizontal_flip=0.5"]


@pytest.fixture(scope="module")
def probe_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of PROBE; read only."""
    return run_of(PROBE, tmp_path_factory.mktemp("runs") / "probe")


def built(name: str, *, image_size: int = 32, drop_rate: float | None = None, num_classes: int = 3):
    return build_classifier(
        name, num_classes=num_classes, pretrained=False, options={}, drop_rate=drop_rate, drop_path_rate=None, image_size=(image_size, image_size)
    )


def largest_difference(one: Run, other: Run) -> float:
    """Of the reported logits, relative to their spread."""
    a, b = (run.predictions("val").logits.astype(np.float64) for run in (one, other))
    return float(np.abs(a - b).max() / b.std())


# ── the head ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_moments_equal_the_standard_scaler_and_constant_features_are_divided_by_one() -> None:
    features = np.random.default_rng(0).normal(3, 2, (57, 6)).astype(np.float32) * [1, 1e-3, 1e4, 1, 1, 1]
    features = features.astype(np.float32)
    features[:, 3], features[:, 4] = 0, 0.1
    mean, std = moments(torch.from_numpy(features).split(16))
    oracle = StandardScaler().fit(features.astype(np.float64))
    np.testing.assert_allclose(mean, oracle.mean_, rtol=1e-12)
    assert std[3] == std[4] == 0
    head = Head(6, 3, hidden=(), standardize=True)
    head.standardize_by(mean, std)
    np.testing.assert_allclose(head.scale, 1 / oracle.scale_, rtol=1e-6)
    seen: list[Tensor] = []
    head.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(torch.from_numpy(features))
    np.testing.assert_allclose(seen[0], oracle.transform(features.astype(np.float64)), atol=1e-5)


def test_a_head_is_what_its_hidden_layers_say() -> None:
    torch.manual_seed(0)
    head = Head(5, 3, hidden=(7, 4), standardize=True)
    head.standardize_by(torch.arange(5.0), torch.tensor([1.0, 2.0, 0.0, 4.0, 5.0]))
    x = torch.randn(6, 5)
    values = (x.double().numpy() - np.arange(5)) / [1, 2, 1, 4, 5]
    for layer in (0, 2, 4):
        linear = head.layers[layer]
        values = values @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
        values = np.maximum(values, 0) if layer < 4 else values
    np.testing.assert_allclose(head(x).detach(), values, atol=1e-5)
    assert {name for name, _ in head.named_buffers()} == {"mean", "scale"}
    assert not list(Head(5, 3, hidden=(), standardize=False).named_buffers())


def test_a_head_takes_the_place_of_a_linear_layer_or_of_a_convolution_after_pooling() -> None:
    linear = with_head(built("timm/test_resnet"), "timm/test_resnet", 3, hidden=(4,), standardize=True)
    assert linear.classifier == ("fc",)
    assert isinstance(linear.module.fc, Head)
    assert linear.module(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    inner = with_head(built("timm/test_convnext"), "timm/test_convnext", 3, hidden=(), standardize=True)
    assert inner.classifier == ("head.fc",)
    assert inner.module(torch.rand(2, 3, 32, 32)).shape == (2, 3)

    class Pooled(nn.Sequential):
        pass

    module = Pooled(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.Flatten())
    found = with_head(replace(linear, module=module, classifier=("2",)), "own", 5, hidden=(), standardize=True)
    assert found.module(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_a_classifier_that_sees_positions_takes_no_head() -> None:
    squeezed = with_head(built("torchvision/squeezenet1_1", image_size=64), "torchvision/squeezenet1_1", 3, hidden=(), standardize=True)
    with pytest.raises(
        UsageError, match=r"one vector of features for each image, got \(512, 3, 3\): the classifier of this model sees every position and pools"
    ):
        squeezed.module(torch.rand(2, 3, 64, 64))
    two = replace(squeezed, classifier=("head", "head_dist"))
    with pytest.raises(UsageError, match=r"model\.head: timm/deit has 2 classifiers \(head, head_dist\), and one can be replaced"):
        with_head(two, "timm/deit", 3, hidden=(), standardize=True)
    wide = replace(squeezed, module=nn.Sequential(nn.Conv2d(3, 4, 3)), classifier=("0",))
    with pytest.raises(UsageError, match=r"expected 0 of own to end in a linear layer or a 1 x 1 convolution"):
        with_head(wide, "own", 3, hidden=(), standardize=True)


def test_the_statistics_of_a_run_are_those_of_its_features_on_the_training_images(probe_run: Run) -> None:
    recipe = probe_run.recipe
    split = load_dataset(recipe.data, seed=recipe.seed).splits["train"]
    module = load_model(probe_run)
    images = pack_images([np.asarray(split.open(i)) for i in range(len(split))])
    inputs = evaluate_view(images, size=(32, 32), mean=probe_run.data.mean, std=probe_run.data.std)
    with torch.no_grad():
        features = classifier_input(module, inputs, "fc")[0].double().numpy()
    oracle = StandardScaler().fit(features)
    np.testing.assert_allclose(module.fc.mean, oracle.mean_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.fc.scale, 1 / oracle.scale_, rtol=1e-5)
    constant = int((features.std(0) == 0).sum())
    said = (
        f"features standardised by their mean and standard deviation over 50 training images; {constant} of {features.shape[1]} are constant and divided by 1"
    )
    assert said in probe_run.record.notes


# ── cached against the backbone in every epoch ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "extra",
    [
        ["model.head={hidden: [8]}", "train.ema.decay=0.9", "train.keep=best", "train.phases.0.optimizer.sam.rho=0.05", "train.micro_batch_size=5"],
        ["model.head=null", "train.early_stop.patience=1", "train.phases.0.optimizer.lr=0.3"],
        ["model.cached_views=3", *CROPS],
    ],
)
def test_a_cached_run_is_the_run_with_the_backbone_in_every_epoch(tmp_path: Path, extra: list[str]) -> None:
    """With as many views as epochs each epoch has its own, as it is augmented without a cache."""
    cached = run_of(PROBE, tmp_path / "cached", *extra)
    whole = run_of(PROBE, tmp_path / "whole", *extra, "model.cached_views=0")
    assert largest_difference(cached, whole) < 1e-4
    assert float((weights_of(cached) - weights_of(whole)).abs().max()) < 1e-4
    assert cached.record.epoch == whole.record.epoch
    assert [line["loss"] for line in lines(cached, "val")] == pytest.approx([line["loss"] for line in lines(whole, "val")], rel=1e-4)
    assert read_weights(cached.final_weights).keys() == read_weights(whole.final_weights).keys()


def window(epoch: int, rows: list[int], draws: list[int] | None = None) -> Pack:
    numbers = np.array(rows)
    keys = numbers if draws is None else np.array(draws)
    return Pack(Window(epoch, 0, numbers, keys), 0, len(rows), Images(torch.empty(0), []), numbers, keys)


def test_epochs_take_the_views_in_turn_and_repeats_within_an_epoch_the_next_one() -> None:
    n, views = 4, 3
    cached = CachedFeatures("fc", torch.tensor([[10 * v + i] for v in range(views) for i in range(n)]), n)
    for epoch in range(7):
        assert cached.of(window(epoch, [2, 0])).flatten().tolist() == [10 * (epoch % 3) + 2, 10 * (epoch % 3)]
    assert cached.of(window(1, [2, 2, 2, 0], [2, 2 + n, 2 + 2 * n, 0])).flatten().tolist() == [12, 22, 2, 10]


def test_view_v_is_the_augmentation_of_epoch_v(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[CachedFeatures] = []
    monkeypatch.setattr(frozen, "CachedFeatures", lambda *given: kept.append(CachedFeatures(*given)) or kept[-1])
    run = run_of(PROBE, tmp_path / "r", "model.cached_views=2", "train.phases.0.epochs=1", *CROPS)
    recipe, module = run.recipe, load_model(run)
    split = load_dataset(recipe.data, seed=recipe.seed).splits["train"]
    augment = Augment.from_section(recipe.augment, size=(32, 32), mean=run.data.mean, std=run.data.std, seed=recipe.seed, interpolation="bilinear")
    rows = np.arange(len(split))
    images = pack_images([np.asarray(split.open(i)) for i in rows])
    for view in range(2):
        with torch.no_grad():
            expected = classifier_input(module, augment(images, samples=rows, epoch=view), "fc")[0]
        torch.testing.assert_close(kept[0].views[view * 50 : view * 50 + 50], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(kept[0].views[:50], kept[0].views[50:])


@pytest.mark.parametrize("views", [0, 1])
def test_batch_norm_that_stands_still_asks_for_nothing(tmp_path: Path, views: int) -> None:
    """49 images in batches of 16, packs of 5: the last image is a window, as without BatchNorm. With one layer that trains it joins the window before."""
    small = ["data.train=49", "train.micro_batch_size=5"]
    t = training_of(PROBE, tmp_path / "still", [*small, f"model.cached_views={views}"], ALONE)
    assert not t.batch_norm
    assert t.record.total_steps == 3 * 4
    assert not [note for note in t.record.notes if "BatchNorm" in note]
    moving = training_of(PROBE, tmp_path / "moving", [*small, "model.cached_views=0", "model.head=null", "model.freeze=[conv1, bn1, layer1]"], ALONE)
    train_mode(moving.module, moving.frozen)
    trains = [m for m in moving.module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training]
    assert moving.norms == trains != []
    assert moving.record.total_steps == 3 * 3
    assert len([note for note in moving.record.notes if "BatchNorm" in note]) == 2


def test_the_note_says_what_was_computed_once(probe_run: Run) -> None:
    width = load_model(probe_run).fc.mean.numel()
    (note,) = [note for note in probe_run.record.notes if note.startswith("features of the frozen backbone")]
    assert note.startswith(f"features of the frozen backbone computed once: 50 images x 1 view x {width} features, {50 * width * 4 / 1e3:.0f} kB, in ")
    assert note.endswith(" s")


def test_after_the_features_no_image_is_read_and_the_backbone_never_moves(probe_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = Store.read_into
    monkeypatch.setattr(Store, "read_into", lambda self, rows, packed: reads.extend(rows.tolist()) or real(self, rows, packed))
    longer = run_of(PROBE, tmp_path / "r", "train.phases.0.epochs=5")
    assert len(reads) == 50 + 24
    before, after = read_weights(probe_run.final_weights), read_weights(longer.final_weights)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.layers.0.weight", "fc.layers.0.bias"}
    pack = next(iter(Reader(Unread(9), workers=0).packs(ordered_windows(9, 4)[0], 4)))
    assert (len(pack), len(pack.images)) == (4, 4)
    assert pack.images.flat.numel() == 0


def test_reported_logits_have_the_bits_of_a_pass_from_images(probe_run: Run, tmp_path: Path) -> None:
    outcome = verify(probe_run)
    assert outcome.ok, [check for check in outcome.checks if not check.ok]
    recipe, module = probe_run.recipe, load_model(probe_run)
    split = load_dataset(recipe.data, seed=recipe.seed).splits["val"]
    found = []
    for part in ordered_windows(len(split), probe_run.record.evaluation_batch_size):
        images = pack_images([np.asarray(split.open(int(i))) for i in part.rows])
        with torch.inference_mode():
            found.append(module(evaluate_view(images, size=(32, 32), mean=probe_run.data.mean, std=probe_run.data.std)))
    np.testing.assert_array_equal(torch.cat(found).numpy(), probe_run.predictions("val").logits)


@pytest.mark.parametrize(
    ("step", "extra"),
    [(4, ["train.ema.decay=0.9", "train.keep=best"]), (6, ["model.cached_views=2", "train.balanced_sampling=true", "loss.class_weights=balanced", *CROPS])],
)
def test_an_interrupted_cached_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str], step: int) -> None:
    unbroken = run_of(PROBE, tmp_path / "unbroken", *extra)
    interrupt_after(step, monkeypatch)
    with pytest.raises(InterruptedError, match=f"interrupted at step {step} of 12, checkpoint written"):
        run_of(PROBE, tmp_path / "broken", *extra)
    monkeypatch.setattr(frozen, "_standardize", lambda t: pytest.fail("the statistics are in the checkpoint"))
    run = resume(tmp_path / "broken", quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(unbroken.final_weights)
    assert numbers(run) == numbers(unbroken)
    np.testing.assert_array_equal(run.predictions("val").logits, unbroken.predictions("val").logits)


def test_the_statistics_are_measured_without_a_cache_too_and_not_again_on_resume(probe_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(4, monkeypatch)
    with pytest.raises(InterruptedError):
        run_of(PROBE, tmp_path / "r", "model.cached_views=0")
    run = resume(tmp_path / "r", quiet=True, figures=False)
    ours, cached = load_model(run).fc, load_model(probe_run).fc
    assert torch.equal(ours.mean, cached.mean)
    assert torch.equal(ours.scale, cached.scale)
    assert largest_difference(run, probe_run) < 1e-4


def test_memory_that_runs_out_halves_the_batches_of_features(probe_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(module, images, path):
        if len(images) > 4:
            raise torch.OutOfMemoryError("injected")
        return classifier_input(module, images, path)

    monkeypatch.setattr(frozen, "classifier_input", failing)
    run = run_of(PROBE, tmp_path / "r")
    assert run.record.evaluation_batch_size == 4
    assert "memory ran out in the evaluation: it takes 4 images at once since step 0" in run.record.notes
    assert largest_difference(run, probe_run) < 1e-4


def test_a_finished_probe_can_be_asked_like_any_classifier(probe_run: Run, tmp_path: Path) -> None:
    """Predictions, features and a plain file come from the saved model, which is the whole one."""
    split = load_dataset(probe_run.recipe.data, seed=1).splits["val"]
    found = predict(probe_run, [split.open(row) for row in range(5)])
    expected = probe_run.predictions("val").probabilities()[:5]
    np.testing.assert_allclose([one.probabilities for one in found], expected, atol=1e-6)
    module = load_model(probe_run)
    assert penultimate(module, torch.rand(2, 3, 32, 32), ("fc",)).shape == (2, module.fc.mean.numel())
    export_safetensors(module, tmp_path / "probe.safetensors")
    again = run_of(PROBE, tmp_path / "again", f"model.weights={tmp_path / 'probe.safetensors'}", "train.phases.0.epochs=1")
    assert again.record.notes[0].startswith("probe.safetensors: ")
    assert torch.equal(load_model(again).conv1[0].weight, module.conv1[0].weight)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────


def checked(recipe_text: str, *overrides: str, images: dict[str, int] | None = None):
    recipe = recipes.override(recipes.loads(recipe_text), overrides)
    side = recipe.data.size[0]
    model = built(recipe.model.name, image_size=side, drop_rate=recipe.model.drop_rate)
    frozen = set_trainable(model.module, "backbone", model.classifier)
    runtime = start(device="cpu", precision="fp32", threads=1, channels_last=False)
    return check_cached(model.module, recipe, runtime, classifier=model.classifier, frozen=frozen, images=images or {"train": 50, "val": 24})


def test_dropout_before_the_classifier_is_refused_with_its_remedy() -> None:
    with pytest.raises(
        UsageError, match=r"in training timm/test_resnet changes its features before its classifier fc at random \(dropout\).* Set model\.drop_rate: 0"
    ):
        checked(PROBE, "model.head=null", "model.drop_rate=0.2")
    assert checked(PROBE, "model.head=null", "model.drop_rate=0").images == 50


def test_a_model_that_pools_after_its_classifier_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"what torchvision/squeezenet1_1 says is not what its classifier classifier\.1 makes of its features \(it pools or scales"
    ):
        checked(PROBE, "model.head=null", "model.name=torchvision/squeezenet1_1", "data.image_size=64", "model.drop_rate=0")


def test_features_beyond_the_limit_are_refused_with_their_size() -> None:
    def gigabytes(views: int) -> float:
        return 4 * width * (views * 50 + 24) / 1e9

    width = checked(PROBE).features
    with pytest.raises(
        UsageError, match=rf"features of 50 training images x 100 views and of 24 evaluated ones, {width} numbers each, need {gigabytes(100):.3g} GB"
    ) as told:
        checked(PROBE, "model.cached_views=100", f"data.store.limit_gb={1.01 * gigabytes(7)}", *CROPS)
    assert "Lower model.cached_views to 7, or raise the limit." in str(told.value)
    with pytest.raises(UsageError, match=r"Set model\.cached_views: 0 \(the backbone then runs in every epoch\), or raise the limit"):
        checked(PROBE, "data.store.limit_gb=0")


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="drop_rate: 0"):
        run_of(PROBE, tmp_path / "r", "model.drop_rate=0.5")
    assert not (tmp_path / "r").exists()


def test_several_classifiers_and_trained_parts_elsewhere_are_refused() -> None:
    recipe, runtime = recipes.loads(PROBE), start(device="cpu", precision="fp32", threads=1, channels_last=False)
    model = built("timm/test_resnet")
    with pytest.raises(UsageError, match=r"model\.cached_views: timm/test_resnet has 2 classifiers \(fc, fc2\), and features are kept for one"):
        check_cached(model.module, recipe, runtime, classifier=("fc", "fc2"), frozen=[], images={"train": 1})
    with pytest.raises(UsageError, match=r"conv1\S* of timm/test_resnet is trained and lies outside of the classifier fc"):
        check_cached(model.module, recipe, runtime, classifier=("fc",), frozen=[], images={"train": 1})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.freeze=none", "model.head=null"], "cached_views: features can be kept only of a backbone that does not change; set freeze: backbone"),
        (["model.freeze=none", "model.cached_views=0"], "head.standardize: features are measured once, before training; set freeze: backbone, or standardize: false"),
        (["augment.mixup=0.4"], "mixup mixes images, and model.cached_views keeps features of single ones; choose one of the two"),
        (["model.cached_views=4"], "model.cached_views: 4 views of an image are 4 times the same without augment; set it to 1"),
        (["train.phases.0.optimizer.layer_decay=0.7"], "optimizer.layer_decay is for layers below the classifier, and model.cached_views freezes them all"),
    ],
)  # fmt: skip
def test_a_recipe_whose_features_cannot_be_kept_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said.replace(".", r"\.")):
        recipes.override(recipes.loads(PROBE), overrides)


# ── the plan and the bench ────────────────────────────────────────────────────────────────────────────────────


def test_the_plan_counts_the_features_that_are_kept() -> None:
    found = plan(recipes.loads(PROBE), timing=False)
    width = checked(PROBE).features
    said = (
        f"features of the frozen backbone are computed once and kept: 50 images x 1 view x {width} features, {4 * width * 74 / 1e3:.0f} kB; the time is that of"
    )
    assert any(note.startswith(said) for note in found.notes)
    with pytest.raises(UsageError, match="drop_rate: 0"):
        plan(recipes.override(recipes.loads(PROBE), ["model.drop_rate=0.5"]), timing=False)


def test_the_bench_compares_whole_trainings_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    bench = importlib.import_module("frozen")
    right, other = (True,) * 90 + (False,) * 10, (True,) * 88 + (False,) * 12
    table = bench.rows(
        "D",
        {
            bench.CACHED: [bench.Timed(2.0, 1.0, 100, right), bench.Timed(4.0, 1.0, 100, right)],
            bench.BY_HAND: [bench.Timed(120.0, 110.0, 100, other), bench.Timed(12.0, 11.0, 10, (False,) * 100)],
        },
    )
    assert table[0] == ["D", "cached", "20.0, 40.0", "10.0, 10.0", "2.0, 4.0", "0.900 (0.826 to 0.945)", "", ""]
    assert table[1][:6] == ["D", "by hand", "1200.0, 1200.0", "1100.0, 1100.0", "120.0", "0.880 (0.802 to 0.930)"]
    assert table[1][6] == "40.0, 110.0"
    assert table[1][7].startswith("+0.020 (")
    assert all(len(row) == len(bench.HEADER) for row in table)


@pytest.mark.proof
def test_the_bench_runs(photographs: Path) -> None:
    environment = {**os.environ, "PELLUCID_DATA": str(photographs)}
    done = subprocess.run(
        [sys.executable, REPOSITORY / "bench" / "frozen.py", "--quick"], capture_output=True, text=True, check=True, timeout=600, env=environment
    )
    assert [line.split(" | ")[1] for line in done.stdout.splitlines() if line.startswith("| D")] == ["cached", "every epoch", "by hand"]
