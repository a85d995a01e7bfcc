"""Pre-training as a task: the views, packs and processes, a killed run, collapse, labels that decide nothing, and what a recipe may not say."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from gradients import flat, reader_of, stage_of, training_of, windows_of
from pellucid import recipe as recipes
from pellucid import step, trial
from pellucid.data.augment import Augment, Plan
from pellucid.data.dataset import Dataset, Split
from pellucid.distributed import ALONE
from pellucid.errors import DataError, DivergedError, RecipeError, UsageError
from pellucid.files import file_hash
from pellucid.memory import forward_cost
from pellucid.models import train_mode
from pellucid.models.self_supervised import Byol, SelfSupervised
from pellucid.models.weights import read_weights
from pellucid.plan import plan as planned_of
from pellucid.run import Run
from pellucid.tasks import MODELS, NUMBERS
from pellucid.tasks.pretraining import bank_rows, views
from pellucid.train import resume, train

PAPERS = "{random_resized_crop: [0.08, 1.0], horizontal_flip: 0.5, color_jitter: [0.4, 0.4, 0.2, 0.1], color_jitter_probability: 0.8, grayscale: 0.2, gaussian_blur: 1.0}"
RECIPE = f"""\
task: pretraining
data: {{source: scenes, train: 41, val: 12, image_size: 32}}
model: {{name: timm/test_resnet}}
method: {{name: byol, projector_hidden: 24, projector_output: 16, predictor_hidden: 24, momentum: 0.9}}
augment: {PAPERS}
train:
  batch_size: 8
  threads: 1
  phases: [{{epochs: 2, optimizer: {{name: sgd, lr: 0.05}}, schedule: {{name: constant}}}}]
probe: {{linear: false}}
"""
METHODS = {
    "byol": [],
    "simclr": ["method={name: simclr, projector_output: 16}"],
    "simsiam": ["method={name: simsiam, projector_hidden: 24, projector_output: 16, predictor_hidden: 8}"],
}
DRAWS = 3000


def recipe_of(*overrides: str) -> recipes.Recipe:
    return recipes.override(recipes.loads(RECIPE), overrides)


def trained(folder: Path, *overrides: str) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "r.yaml").write_text(RECIPE)
    return train(folder / "r.yaml", overrides=overrides, out=folder / "run", quiet=True, figures=False)


def weights_of(run: Run) -> Tensor:
    return torch.cat([value.double().flatten() for value in read_weights(run.final_weights).values()])


# ── the views ──


def plans(recipe: recipes.Recipe, epoch: int = 0) -> tuple[Plan, Plan]:
    """What is done to DRAWS images for their first and their second view."""
    one, two = (view.plan([(50, 60)] * DRAWS, np.arange(DRAWS), epoch) for view in views(recipe, (0.5,) * 3, (0.5,) * 3))
    return one, two


def chances(plan: Plan) -> dict[str, np.ndarray]:
    """Which images each operation was done to."""
    nothing = np.zeros(DRAWS, bool)
    return {
        "horizontal_flip": plan.horizontal_flip if plan.horizontal_flip is not None else nothing,
        "color_jitter": plan.jitter.chosen if plan.jitter is not None else nothing,
        "grayscale": plan.grayscale if plan.grayscale is not None else nothing,
        "gaussian_blur": plan.blurred if plan.blurred is not None else nothing,
        "solarize": plan.solarize if plan.solarize is not None else nothing,
    }


def theirs(transform: Any, image: Tensor) -> float:
    """How often torchvision's transform changes an image."""
    return float(np.mean([not torch.equal(transform(image), image) for _ in range(DRAWS)]))


def test_both_views_are_drawn_as_torchvision_draws_the_papers() -> None:
    """Grill et al. 2020, table 6: how often each operation happens to each view, against torchvision's transforms and against the number itself."""
    torch.manual_seed(0)
    image = torch.rand(3, 4, 4)
    marked = v2.Lambda(lambda x: x + 1)  # stands for jitter and blur, which RandomApply does or does not
    expected = {
        "horizontal_flip": (0.5, 0.5, lambda p: v2.RandomHorizontalFlip(p)),
        "color_jitter": (0.8, 0.8, lambda p: v2.RandomApply([marked], p)),
        "grayscale": (0.2, 0.2, lambda p: v2.RandomGrayscale(p)),
        "gaussian_blur": (1.0, 0.1, lambda p: v2.RandomApply([marked], p)),
        "solarize": (0.0, 0.2, lambda p: v2.RandomSolarize(0.5, p)),
    }
    first, second = (chances(plan) for plan in plans(recipe_of()))
    for name, (p, q, transform) in expected.items():
        for mask, probability in ((first[name], p), (second[name], q)):
            assert stats.binomtest(int(mask.sum()), DRAWS, probability).pvalue > 1e-3, name
            assert abs(mask.mean() - theirs(transform(probability), image)) < 5 * np.sqrt(2 * 0.25 / DRAWS), name


def test_crops_and_jitters_of_both_views_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    crop, jitter = v2.RandomResizedCrop(32, (0.08, 1.0)), v2.ColorJitter(0.4, 0.4, 0.2, 0.1)
    image = torch.zeros(3, 50, 60)
    boxes = [crop.make_params([image]) for _ in range(DRAWS)]
    factors = [jitter.make_params([image]) for _ in range(DRAWS)]
    for plan in plans(recipe_of()):
        for column, key in enumerate(("top", "left", "height", "width")):
            assert stats.ks_2samp(plan.boxes[:, column], [box[key] for box in boxes]).pvalue > 1e-3
        areas = plan.boxes[:, 2] * plan.boxes[:, 3] / 3000
        assert areas.min() == pytest.approx(0.08, abs=0.02)
        assert areas.max() > 0.95
        assert plan.jitter is not None
        for kind, (name, middle, reach) in enumerate((("brightness", 1, 0.4), ("contrast", 1, 0.4), ("saturation", 1, 0.2), ("hue", 0, 0.1))):
            ours = plan.jitter.factors[:, kind]
            assert stats.ks_2samp(ours, [factor[f"{name}_factor"] for factor in factors]).pvalue > 1e-3
            assert (ours.min(), ours.max()) == pytest.approx((middle - reach, middle + reach), abs=0.01 * reach)
        assert plan.sigmas is not None
        assert stats.kstest(plan.sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_the_second_view_is_drawn_apart_from_the_first() -> None:
    first, second = plans(recipe_of("method.second_view={gaussian_blur: 0.5}", "augment.gaussian_blur=0.5", "augment.solarize=0.3"))
    assert first.jitter is not None
    assert second.jitter is not None
    for name, mask in chances(first).items():
        assert abs(np.corrcoef(mask, chances(second)[name])[0, 1]) < 4 / np.sqrt(DRAWS), name
    for one, two in ((first.boxes, second.boxes), (first.jitter.factors, second.jitter.factors)):
        for column in range(4):
            assert abs(np.corrcoef(one[:, column], two[:, column])[0, 1]) < 4 / np.sqrt(DRAWS)


def test_what_the_second_view_has_another_way_is_what_the_recipe_says() -> None:
    said = "method.second_view={color_jitter: [0.1, 0.1, 0.1, 0.0], color_jitter_probability: 0.3, grayscale: 1.0, solarize: 0.4}"
    first, second = plans(recipe_of(said))
    assert first.jitter is not None
    assert second.jitter is not None
    assert np.abs(second.jitter.factors[:, :3] - 1).max() <= 0.1 < np.abs(first.jitter.factors[:, 0] - 1).max()
    assert second.grayscale is not None
    assert second.grayscale.all()
    assert stats.binomtest(int(second.jitter.chosen.sum()), DRAWS, 0.3).pvalue > 1e-3
    assert second.solarize is not None
    assert stats.binomtest(int(second.solarize.sum()), DRAWS, 0.4).pvalue > 1e-3
    assert first.solarize is None
    assert second.blurred is not None
    assert second.blurred.all()  # not said: as in the first view


def test_methods_without_a_second_view_of_their_own_draw_both_alike() -> None:
    for method in ("simclr", "simsiam"):
        one, two = views(recipe_of(*METHODS[method]), (0.5,) * 3, (0.5,) * 3)
        changed = {name for name in Augment.__dataclass_fields__ if getattr(one, name) != getattr(two, name)}
        assert changed == {"seed"}


def test_a_view_is_a_function_of_seed_epoch_and_sample_alone(tmp_path: Path) -> None:
    t = training_of(RECIPE, tmp_path / "run", [], ALONE)
    (window, other, *_) = windows_of(t)
    (pack,) = reader_of(t).packs(window, 8)
    both = t.task._augmented(pack.images, pack.draws, 3)  # type: ignore[attr-defined]
    parts = [t.task._augmented(p.images, p.draws, 3) for p in reader_of(t).packs(window, 3)]  # type: ignore[attr-defined]
    for view in (0, 1):
        assert torch.equal(both[view], torch.cat([part[view] for part in parts]))
        assert not torch.equal(both[view], t.task._augmented(pack.images, pack.draws, 4)[view])  # type: ignore[attr-defined]
        assert not torch.equal(both[view], t.task._augmented(pack.images, other.draws, 3)[view])  # type: ignore[attr-defined]
    assert not torch.equal(*both)


# ── packs ──


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_packs_is_that_of_their_mean_by_their_images(tmp_path: Path, method: str) -> None:
    """8 images in packs of 3, 3 and 2: each pack through the network by itself, in float64; the note says what that means."""
    t = training_of(RECIPE, tmp_path / "run", ["train.micro_batch_size=3", *METHODS[method]], ALONE)
    stage, window = stage_of(t), windows_of(t)[0]
    train_mode(t.module, t.frozen)
    before = {name: value.clone() for name, value in t.module.state_dict().items()}
    step._gradient(t, stage, reader_of(t), window, t.task.window_weight(window))
    found = flat(stage.parameters)
    t.module.load_state_dict(before)
    t.module.double().zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for pack in reader_of(t).packs(window, 3):
        one, two = t.task._augmented(pack.images, pack.draws, 0)  # type: ignore[attr-defined]
        total = total + t.module(one.double(), two.double()).mean() * len(pack) / 8
    total.backward()
    expected = flat([p for p in t.module.parameters() if p.requires_grad])
    assert float((found - expected).norm() / expected.norm()) < 2e-4  # BatchNorm of two images in float32
    assert "BatchNorm sees micro-batches of 3 images, not the batch of 8" in t.record.notes
    assert ("simclr tells an image from those of its micro-batch of 3, not of the batch of 8" in t.record.notes) == (method == "simclr")


def test_a_batch_in_one_pack_is_not_told_of(tmp_path: Path) -> None:
    t = training_of(RECIPE, tmp_path / "run", METHODS["simclr"], ALONE)
    assert not [note for note in t.record.notes if "micro-batch" in note]


def test_memory_that_shrinks_packs_tells_what_sees_them_whenever_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = training_of(RECIPE, tmp_path / "run", METHODS["simclr"], ALONE)
    (window, *_) = windows_of(t)
    monkeypatch.setattr(trial, "_could_be_close", lambda t: True)
    monkeypatch.setattr(trial, "_fits", lambda t, window: t.micro <= 4)
    trial.find_micro_batch(t, window)
    assert "BatchNorm sees micro-batches of 4 images, not the batch of 8" in t.record.notes
    assert "simclr tells an image from those of its micro-batch of 4, not of the batch of 8" in t.record.notes
    step._shrink(t, reader_of(t), window)
    assert "BatchNorm sees micro-batches of 2 images since step 1, not the batch of 8" in t.record.notes
    assert "simclr tells an image from those of its micro-batch of 2 since step 1, not of the batch of 8" in t.record.notes


def test_the_target_is_neither_counted_as_trained_nor_computed_again(tmp_path: Path) -> None:
    planned = planned_of(recipe_of(), timing=False)
    t = training_of(RECIPE, tmp_path / "byol", ["train.activation_checkpointing=true"], ALONE)
    module = t.module
    assert isinstance(module, Byol)
    assert module.target is not None
    own = sum(p.numel() for part in (module.backbone, module.projector, module.predictor) for p in part.parameters())
    assert planned.num_trainable == own == planned.num_params - sum(p.numel() for p in module.target.parameters())
    train_mode(module, t.frozen)
    assert module.target.training
    alone = training_of(RECIPE, tmp_path / "simclr", [*METHODS["simclr"], "train.activation_checkpointing=true"], ALONE)
    notes = [[note for note in each.record.notes if note.startswith("activation checkpointing")] for each in (t, alone)]
    assert notes[0] == notes[1] != []
    assert not any("forward" in vars(part) for part in module.target.modules())


@pytest.mark.parametrize("method", METHODS)
def test_what_a_step_keeps_is_counted_for_two_views(method: str) -> None:
    """Against the bytes that autograd kept of a real step on views of their own, and more than half as much again as one view."""
    recipe = recipe_of(*METHODS[method])
    module = MODELS["pretraining"](recipe, 6)[0].module.train()
    assert isinstance(module, SelfSupervised)
    if "byol" in method:
        module.get_submodule("target").requires_grad_(False)
    own, kept = {p.untyped_storage().data_ptr() for p in module.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = module(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    real = sum(size for size, _ in kept.values()) / 2
    counted, _ = forward_cost(module, recipe, [])
    assert loss.shape == (2,)
    assert counted == pytest.approx(real, rel=0.05)


# ── a run ──


def lines(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in run.metrics()]


def files(run: Run) -> dict[str, str]:
    """{path: hash} of all that does not tell times and addresses."""
    told = ("metrics.jsonl", "run.json", "environment.json", "resolved.yaml", "report.html")  # resolved.yaml: the seconds between checkpoints
    return {str(p.relative_to(run.path)): file_hash(p) for p in sorted(run.path.rglob("*")) if p.is_file() and p.name not in told and "step-" not in str(p)}


@pytest.fixture(scope="module")
def byol_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Read only."""
    return trained(tmp_path_factory.mktemp("byol"))


def test_a_run_killed_in_an_epoch_goes_on_to_the_same_bits(byol_run: Run, tmp_path: Path) -> None:
    """kill -9 in the second epoch; weights, target and running statistics, predictions, samples and curves are those of the unbroken run."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    script = "import pellucid, sys; pellucid.train(sys.argv[1], overrides=['train.checkpoint_seconds=0'], out=sys.argv[2], quiet=True, figures=False)"
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "r.yaml"), str(tmp_path / "run")], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("run/checkpoints/step-*7")) and child.poll() is None:  # 5 steps are an epoch
        time.sleep(0.002)
    child.kill()
    child.wait()
    killed = Run(tmp_path / "run")
    assert killed.record.status == "running"
    run = resume(tmp_path / "run", quiet=True, figures=False)
    assert any(name.startswith("target.") for name in read_weights(run.final_weights))
    assert files(run) == files(byol_run)
    assert lines(run) == lines(byol_run)
    assert {name: m.value for name, m in run.measurements.items()} == {name: m.value for name, m in byol_run.measurements.items()}
    assert run.record.alarms == byol_run.record.alarms


def test_labels_change_no_bit_of_the_weights(byol_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Dataset.__init__
    random = np.random.default_rng(0)

    def shuffled(self: Dataset, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        for split in self.splits.values():
            random.shuffle(split.labels)

    monkeypatch.setattr(Dataset, "__init__", shuffled)
    run = trained(tmp_path)
    assert file_hash(run.final_weights) == file_hash(byol_run.final_weights)
    ours, theirs = (np.load(r.predictions_file("val"))["labels"] for r in (run, byol_run))
    assert sorted(ours) == sorted(theirs)
    assert ours.tolist() != theirs.tolist()
    assert run.measurements["val/uniformity"].value == byol_run.measurements["val/uniformity"].value


def test_curves_begin_with_the_untrained_network_and_hold_what_is_watched(byol_run: Run) -> None:
    watched = [line for line in byol_run.metrics() if line["kind"] == "watch"]
    assert [line["epoch"] for line in watched] == [0, 1, 2]
    assert all(line["num_dims"] == 16 and line["num_images"] == 12 and 0 < line["spread"] <= 1.1 and 1 <= line["rank"] <= 12 for line in watched)
    assert [line["epoch"] for line in byol_run.metrics() if line["kind"] == "val"] == [0, 1, 2]
    names = {"knn_accuracy", "knn_accuracy[untrained]", "knn_accuracy[pixels]", "alignment", "uniformity", "spread", "rank"}
    assert {m.name for m in byol_run.measurements.values()} == names
    assert names == {name for name in NUMBERS["pretraining"] if not name.startswith("linear_accuracy")}  # probe.linear: false


def test_the_bank_holds_each_class_by_its_share() -> None:
    labels = np.array([0] * 30 + [1] * 20 + [2] * 10)
    split = Split("train", [str(i) for i in range(60)], labels, [""] * 60, lambda i: pytest.fail("no image is opened"))
    rows = bank_rows(Dataset(("a", "b", "c"), {"train": split}), 12)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.bincount(labels[rows]).tolist() == [6, 4, 2]
    assert bank_rows(Dataset(("a", "b", "c"), {"train": split}), 5000).tolist() == list(range(60))
    assert len(bank_rows(Dataset(("a",), {"train": split}), 12)) == 0


def test_a_pretrained_backbone_predicts_nothing_and_says_what_it_is_for(byol_run: Run) -> None:
    with pytest.raises(UsageError, match=r"a pre-trained backbone names no class. Train a classification that starts from it, with model\.weights: "):
        byol_run.predict([])


def test_projections_that_are_no_numbers_are_an_error_and_not_a_spread(tmp_path: Path) -> None:
    """One step of an epoch, and no val images: what is watched is the first to see it."""
    given = ["data={source: scenes, train: 8, image_size: 32}", "train.phases.0.optimizer={name: sgd, lr: 1e30}"]
    with pytest.raises(
        DivergedError, match="after step 1 the model gives NaN or infinite projections for 8 of 8 train images, scenes-train-.* the first: the w"
    ):
        trained(tmp_path, *given)
    record = Run(tmp_path / "run").record
    assert record.error is not None
    assert "the weights have diverged. Remedies: a lower train.phases.*.optimizer.lr" in record.error


def test_a_single_image_is_too_few_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.train: pre-training needs at least 2 images, to tell one from another; found 1. Give more."):
        trained(tmp_path, "data={source: scenes, train: 1, image_size: 32}")
    assert not (tmp_path / "run").exists()


# ── collapse ──


@pytest.mark.parametrize("method", METHODS)
def test_a_collapse_is_told_by_step_and_with_keys_that_the_method_has(tmp_path: Path, method: str) -> None:
    t = training_of(RECIPE, tmp_path / "run", METHODS[method], ALONE)
    watched = [{"kind": "watch", "epoch": i, "step": 29 * i, "spread": s, "rank": 9.0, "num_dims": 16, "num_images": 12} for i, s in enumerate((0.34, 0.28))]
    assert t.task.alarms(watched) == []
    (line,) = t.task.alarms([watched[0], watched[1] | {"step": 30}])
    assert "a rank of at least 1.2." in line  # of 12 images
    assert t.recipe.method is not None
    sections = {"method": type(t.recipe.method), "train": type(t.recipe.train)}
    named = re.findall(r"(method|train)\.(\w+)", line)
    assert named
    assert all(key in sections[name].model_fields for name, key in named)


WATCHED = """\
task: pretraining
data: {source: scenes, train: 384, image_size: 32}
model: {name: timm/test_resnet}
method: {name: byol, projector_hidden: 128, projector_output: 64, predictor_hidden: 128, momentum: 0.9}
augment: {random_resized_crop: [0.3, 1.0], horizontal_flip: 0.5, color_jitter: [0.4, 0.4, 0.4, 0.1], color_jitter_probability: 0.8, grayscale: 0.2}
train:
  batch_size: 32
  threads: 1
  phases: [{epochs: 4, optimizer: {name: adam, lr: 3e-3}, schedule: {name: constant}}]
"""


@pytest.mark.proof
@pytest.mark.parametrize("fault", ["method.predictor_hidden=null", "method.stop_gradient=false"])
def test_byol_without_predictor_or_stopped_gradient_is_reported_as_collapsed_and_a_healthy_one_is_not(tmp_path: Path, fault: str) -> None:
    (tmp_path / "r.yaml").write_text(WATCHED)
    healthy = train(tmp_path / "r.yaml", out=tmp_path / "healthy", quiet=True, figures=False)
    assert healthy.record.alarms == []
    broken = train(tmp_path / "r.yaml", overrides=[fault], out=tmp_path / "broken", quiet=True, figures=False)
    assert len(broken.record.alarms) == 1
    assert broken.record.alarms[0].startswith("collapse: since epoch ")


# ── recipes ──


def faults(text: str, tmp_path: Path, *overrides: str) -> list[str]:
    """The problems of a recipe text, without place and folder."""
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        recipes.load(file, overrides)
    return [str(problem).replace(str(file), "r.yaml") for problem in caught.value.problems]


def without(key: str) -> str:
    return "".join(line for line in RECIPE.splitlines(keepends=True) if not line.startswith(key))


CLASSIFIED = "task: classification\ndata: {source: scenes, train: 40, image_size: 32}\nmodel: {name: timm/test_vit}\ntrain:\n  batch_size: 8\n  phases: [{epochs: 1, optimizer: {name: adam, lr: 1e-3}}]\n"
FAULTS: dict[str, tuple[str, str]] = {
    "no method": (without("method"), "method: pretraining needs a method, e.g. method: {name: byol}; there are byol, simclr and simsiam"),
    "unknown method": (RECIPE.replace("name: byol", "name: boyl"), "method.name: expected byol, simclr, simsiam; got 'boyl'. Did you mean 'byol'?"),
    "another method's key": (RECIPE.replace("momentum: 0.9", "temperature: 0.2"), "unknown key 'temperature' in method"),
    "no augment": (without("augment"), "augment: the two views of an image would be equal, and nothing could be learned; the paper's: {random_resized_crop: [0.08, 1.0]"),
    "nothing random": (RECIPE.replace(PAPERS, "{crop_ratio: [0.5, 2.0]}"), "augment: the two views of an image would be equal"),
    "hue": (RECIPE.replace("momentum: 0.9", "second_view: {color_jitter: [0.1, 0.1, 0.1, 0.9]}"), "method.second_view.color_jitter: expected a hue (the fourth number) of at most 0.5, got 0.9"),
    "mixup": (RECIPE.replace("grayscale: 0.2", "mixup: 0.2"), "augment: mixup mixes labels of images and belongs to classification"),
    "loss": (RECIPE + "loss: {label_smoothing: 0.1}\n", "loss: label_smoothing: the loss of pretraining follows from its method; leave loss out"),
    "ema": (RECIPE.replace("threads: 1", "ema: {decay: 0.9}"), "train: ema: the target network of byol is its own moving average, method.momentum; leave ema out"),
    "keep": (RECIPE.replace("threads: 1", "keep: best"), "train: keep: best would choose by labels; pretraining ends after its epochs"),
    "early stop": (RECIPE.replace("threads: 1", "early_stop: {patience: 2}"), "train: early_stop would choose by labels; pretraining ends after its epochs"),
    "balanced": (RECIPE.replace("threads: 1", "balanced_sampling: true"), "train: balanced_sampling draws by label, and pretraining knows none; leave it out"),
    "sam": (RECIPE.replace("lr: 0.05", "lr: 0.05, sam: {rho: 0.05}"), "train: optimizer.sam takes every step twice and a moving target moves between; pretraining has none"),
    "freeze": (RECIPE.replace("test_resnet}", "test_resnet, freeze: backbone}"), "model: freeze: a backbone that is pre-trained is trained whole; set freeze: none"),
    "scoring": (RECIPE + "scoring: {}\n", "scoring: scoring says how masks are scored and belongs to segmentation"),
    "method with labels": (CLASSIFIED + "method: {name: byol}\n", "method: method byol belongs to pretraining; the task is classification"),
    "probe with labels": (CLASSIFIED + "probe: {}\n", "probe: probe measures features of pretraining; to probe a finished backbone train a classification with model.freeze: backbone"),
    "maps": (RECIPE + "inside: {methods: [grad_cam]}\n", "inside: methods: maps ask what a model saw of a class, and pretraining knows none; features and projections can be kept"),
    "pairs": (RECIPE.replace("source: scenes, train: 41, val: 12", "source: pairs, train: a"), "data: source: pairs has masks, and pretraining looks at images alone; take source: images"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_pretraining_is_named_with_its_remedy(tmp_path: Path, fault: str) -> None:
    text, expected = FAULTS[fault]
    assert any(expected in line for line in faults(text, tmp_path)), faults(text, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_pretraining_holds_every_value_and_loads_back_equal(method: str) -> None:
    for extra in ([], ["inside={features: 8, epochs: [last]}"]):
        recipe = recipe_of(*METHODS[method], *extra)
        again = recipes.loads(recipes.to_yaml(recipe))
        assert again == recipe
        assert again.probe is not None
        assert recipes.to_yaml(again) == recipes.to_yaml(recipe)
