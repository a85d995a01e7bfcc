"""Snapshots: what is kept is what the model saw, training does not notice, and interruptions do not show."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from pellucid import recipe as recipes
from pellucid.data.draws import derived_seed
from pellucid.data.images import resize
from pellucid.data.sources import load_dataset
from pellucid.distributed import Processes
from pellucid.errors import DataError, DivergedError, InterruptedError, OutOfMemoryError, RecipeError, RunError, UsageError
from pellucid.files import file_hash
from pellucid.run import Run, Snapshot
from pellucid.runtime import seed_torch
from pellucid.schema import InsideSection
from pellucid.snapshots import evenly, looked_at, normalized, probe_of
from pellucid.tasks import MODELS, load_model
from pellucid.train import resume, train

INSIDE = "inside={epochs: [0, first, last], samples: 0, features: 10, projections: [pca]}"


def run_of(text: str, out: Path, *overrides: str) -> Run:
    file = out.parent / f"{out.name}.yaml"
    file.write_text(text)
    return train(file, overrides=overrides, out=out, quiet=True, figures=False)


def numbers(run: Run) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in run.metrics()]


def bits(run: Run) -> dict[str, str]:
    """The hash of every file that was kept."""
    return {file.name: file_hash(file) for file in sorted([*run.snapshots.iterdir(), *run.inside.glob("neighbours.*"), *run.inside.glob("attention.*")])}


def features_by_hand(run: Run, module: nn.Module) -> np.ndarray:
    """What timm's own method gives for the probe's images, opened and normalised by other means."""
    recipe, data, probe = run.recipe, run.data, run.probe()
    d, split = recipe.data, load_dataset(run.recipe.data, seed=recipe.seed).splits[probe.split]
    prepare = v2.Compose([v2.CenterCrop(list(d.size)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
    arrays = [np.array(resize(split.open(int(row)), d.size, d.fit, d.resize_size, d.interpolation)) for row in probe.rows]
    batch = torch.stack([prepare(torch.from_numpy(a).permute(2, 0, 1)) for a in arrays])
    module.eval()
    with torch.no_grad():
        return module.forward_head(module.forward_features(batch), pre_logits=True).numpy()


def kept(run: Run, epoch: int) -> np.ndarray:
    features = run.snapshot(epoch).features
    assert features is not None
    return features


@pytest.fixture(scope="module")
def inside_run(small_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the small recipe that keeps snapshots before training and after both epochs; read only."""
    return run_of(small_recipe, tmp_path_factory.mktemp("inside") / "run", INSIDE)


@pytest.fixture
def copied_inside(inside_run: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(inside_run.path, tmp_path / "copied"))


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_keeps_its_probe_and_a_snapshot_of_each_epoch(inside_run: Run) -> None:
    assert inside_run.snapshot_epochs == [0, 1, 2]
    probe = inside_run.probe()
    assert (probe.split, len(probe.rows)) == ("val", 10)
    assert probe.labels.tolist() == [label for row, (_, label, _) in enumerate(inside_run.samples("val")) if row in probe.rows]
    for epoch, step in ((0, 0), (1, 4), (2, 8)):
        snapshot = inside_run.snapshot(epoch)
        assert (snapshot.epoch, snapshot.step, snapshot.maps) == (epoch, step, {})
        assert (kept(inside_run, epoch).shape, kept(inside_run, epoch).dtype) == ((10, 32), np.float16)


def test_features_are_those_of_the_reported_weights_and_of_the_first_ones(inside_run: Run) -> None:
    np.testing.assert_allclose(kept(inside_run, 2), features_by_hand(inside_run, load_model(inside_run)), rtol=1e-3, atol=1e-3)
    seed_torch(derived_seed(inside_run.recipe.seed, "initialisation"))
    first = MODELS["classification"](inside_run.recipe, 6)[0].module
    np.testing.assert_allclose(kept(inside_run, 0), features_by_hand(inside_run, first), rtol=1e-3, atol=1e-3)
    assert np.abs(kept(inside_run, 0).astype(float) - kept(inside_run, 2)).max() > 0.01, "training moves them"


def test_features_are_those_of_the_moving_average_where_there_is_one(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "r", "inside={epochs: [last], samples: 0, features: 9, split: train}", "train.ema.decay=0.9")
    np.testing.assert_allclose(kept(run, 2), features_by_hand(run, load_model(run)), rtol=1e-3, atol=1e-3)
    assert run.probe().split == "train"


@pytest.mark.parametrize("batch", ["train.batch_size=3", "train.micro_batch_size=1"])
def test_features_do_not_depend_on_the_batch_of_the_evaluation(small_recipe: str, tmp_path: Path, batch: str, inside_run: Run) -> None:
    run = run_of(small_recipe, tmp_path / "r", "inside={epochs: [0], samples: 0, features: 10}", batch)
    np.testing.assert_allclose(kept(run, 0), kept(inside_run, 0), rtol=2e-3, atol=1e-4)


def test_the_files_are_among_those_that_verify_hashes(inside_run: Run) -> None:
    names = [f"snapshots/{name}" for name in ("probe.npz", "epoch-0000.npz", "epoch-0001.npz", "epoch-0002.npz")]
    assert {name: file_hash(inside_run.path / name) for name in names}.items() <= inside_run.record.files.items()


@pytest.mark.parametrize(
    "extra",
    [["model.drop_rate=0.2", "model.drop_path_rate=0.1"], ["model={name: timm/test_resnet}", "train.ema.decay=0.9", "train.batch_size=17"]],
    ids=["dropout", "batch norm"],
)
def test_training_does_not_notice(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]) -> None:
    """Also when what is computed beside the features draws random numbers and leaves gradients behind."""
    without = run_of(small_recipe, tmp_path / "without", *extra)
    loop = sys.modules["pellucid.loop"]
    real = loop.take

    def greedy(module: nn.Module) -> dict[str, np.ndarray]:
        torch.rand(7)
        module(torch.rand(2, 3, 32, 32)).sum().backward()
        return {"maps/attention": np.ones((1, 2, 2), np.float32)}

    monkeypatch.setattr(loop, "take", lambda t, epoch, more: real(t, epoch, greedy))
    run = run_of(small_recipe, tmp_path / "with", INSIDE, *extra)
    assert file_hash(run.final_weights) == file_hash(without.final_weights)
    assert numbers(run) == numbers(without)
    np.testing.assert_array_equal(run.predictions("val").logits, without.predictions("val").logits)
    assert run.snapshot(2).maps["attention"].shape == (1, 2, 2)


def test_the_random_numbers_and_gradients_of_training_are_put_back(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.snapshots import _undisturbed

    loop = sys.modules["pellucid.loop"]
    real, seen = loop.take, []

    def watched(t, epoch, more) -> None:
        gradients = [p.grad for p in t.module.parameters()]
        state = torch.get_rng_state()
        with _undisturbed(t):
            assert all(p.grad is None for p in t.module.parameters())
            t.module(torch.rand(1, 3, 32, 32)).sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is before for p, before in zip(t.module.parameters(), gradients, strict=True))
        seen.append(any(gradient is not None for gradient in gradients))
        real(t, epoch, more)

    monkeypatch.setattr(loop, "take", watched)
    run_of(small_recipe, tmp_path / "r", INSIDE)
    assert seen == [False, True, True]


# ── which epochs ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("epochs", "total", "expected"),
    [
        (["first", "middle", "last"], 9, [1, 5, 9]),
        (["first", "middle", "last"], 10, [1, 5, 10]),
        (["first", "middle", "last"], 1, [1]),
        (["first", "middle", "last"], 2, [1, 2]),
        ([0, 3, "last", 1], 5, [0, 1, 3, 5]),
        ({"every": 2}, 5, [2, 4, 5]),
        ({"every": 5}, 5, [5]),
    ],
)
def test_words_become_numbers_of_epochs(epochs: object, total: int, expected: list[int]) -> None:
    assert InsideSection.model_validate({"epochs": epochs}).chosen_epochs(total) == expected


def test_every_second_epoch_and_the_last(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "r", "inside={epochs: {every: 2}, samples: 0, features: 6}", "train.phases.0.epochs=5")
    assert run.snapshot_epochs == [2, 4, 5]
    assert recipes.load(run.path / "resolved.yaml").inside == run.recipe.inside


EARLY = ["train.phases.0.epochs=9", "train.phases.0.optimizer.lr=1e-12", "train.early_stop.patience=2"]


def test_a_run_that_stops_early_keeps_its_last_epoch(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "r", "inside={samples: 0, features: 6}", *EARLY, "train.keep=best")
    assert run.record.epoch == 3
    assert run.snapshot_epochs == [1, 3]
    assert "the run stopped before epoch 5, 9: no snapshot of them; that of the last, 3, was kept" in run.record.notes
    best = "snapshots hold the weights of their own epochs; the reported ones, and maps made after training, are of epoch 1, the best"
    assert best in run.record.notes


def test_a_last_epoch_that_nobody_asked_for_is_not_kept(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "r", "inside={samples: 0, features: 6, epochs: [1, 5]}", *EARLY)
    assert run.snapshot_epochs == [1]
    assert "the run stopped before epoch 5: no snapshot of it" in run.record.notes


# ── interruptions ─────────────────────────────────────────────────────────────────────────────────────────────


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on training gets SIGTERM after this step, once."""
    loop = sys.modules["pellucid.loop"]
    real, done = loop._after_step, []

    def stop(t, *rest):
        real(t, *rest)
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_after_step", stop)


def broken_run(text: str, out: Path, step: int, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Run:
    interrupt_after(step, monkeypatch)
    with pytest.raises(InterruptedError):
        run_of(text, out, *overrides)
    monkeypatch.undo()
    return Run(out)


@pytest.mark.parametrize("step", [1, 4, 6, 8])
def test_an_interrupted_run_keeps_the_same_bits(small_recipe: str, inside_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Step 4 is the last of its epoch: the checkpoint stands before the snapshot of epoch 1."""
    broken = broken_run(small_recipe, tmp_path / "broken", step, monkeypatch, INSIDE)
    assert broken.snapshot_epochs == [0] if step <= 4 else [0, 1]
    run = resume(broken.path, quiet=True, figures=False)
    assert bits(run) == bits(inside_run)
    assert not any("snapshot" in note for note in run.record.notes)


def test_snapshots_of_epochs_that_come_again_are_taken_again(small_recipe: str, inside_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run that was killed behind its last checkpoint leaves them, here with other content."""
    broken = broken_run(small_recipe, tmp_path / "broken", 3, monkeypatch, INSIDE)
    broken.snapshot_file(1).write_bytes(b"of another time")
    broken.snapshot_file(7).write_bytes(b"of another recipe")
    assert bits(resume(broken.path, quiet=True, figures=False)) == bits(inside_run)


def test_a_run_without_a_checkpoint_begins_them_anew(small_recipe: str, inside_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = broken_run(small_recipe, tmp_path / "broken", 5, monkeypatch, INSIDE)
    for file in broken.checkpoints.glob("step-*/*"):
        file.unlink()
    for folder in broken.checkpoints.glob("step-*"):
        folder.rmdir()
    broken.snapshot_file(0).write_bytes(b"damaged")
    assert bits(resume(broken.path, quiet=True, figures=False)) == bits(inside_run)


def test_a_lost_snapshot_of_an_epoch_that_is_over_is_told(small_recipe: str, inside_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = broken_run(small_recipe, tmp_path / "broken", 5, monkeypatch, INSIDE)
    broken.snapshot_file(0).unlink()
    broken.snapshot_file(1).write_bytes(broken.snapshot_file(1).read_bytes()[:100])
    run = resume(broken.path, quiet=True, figures=False)
    lost = [note for note in run.record.notes if "cannot be taken again" in note]
    assert [note.partition(" is lost and")[0] for note in lost] == ["the snapshot of epoch 0", "the snapshot of epoch 1"]
    assert run.snapshot_epochs == [2]
    assert (run.snapshots / "epoch-0001.npz.damaged").is_file()
    assert file_hash(run.snapshot_file(2)) == file_hash(inside_run.snapshot_file(2))
    assert [name for name in run.record.files if "epoch-" in name] == ["snapshots/epoch-0002.npz"]


def test_what_is_kept_cannot_change_when_a_run_goes_on(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = broken_run(small_recipe, tmp_path / "broken", 5, monkeypatch, INSIDE)
    text = (broken.path / "resolved.yaml").read_text()
    (broken.path / "resolved.yaml").write_text(text.replace("features: 10", "features: 11"))
    with pytest.raises(RunError, match=r"the recipe was changed since the run began: inside.features \(10 then, 11 now\)"):
        resume(broken.path, quiet=True)


# ── memory, overflow, divergence ──────────────────────────────────────────────────────────────────────────────


def replaced(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    from pellucid import snapshots

    real = snapshots.penultimate
    monkeypatch.setattr(snapshots, "penultimate", lambda module, images, classifier: change(real(module, images, classifier)))


def test_memory_that_runs_out_halves_the_batch(small_recipe: str, inside_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(features: torch.Tensor) -> torch.Tensor:
        if len(features) > 4:
            raise torch.OutOfMemoryError("injected")
        return features

    replaced(monkeypatch, failing)
    run = run_of(small_recipe, tmp_path / "r", INSIDE)
    assert run.record.evaluation_batch_size == 4
    assert "memory ran out in the evaluation: it takes 4 images at once since step 0" in run.record.notes
    np.testing.assert_allclose(kept(run, 0), kept(inside_run, 0), rtol=2e-3, atol=1e-4)


def test_no_memory_for_one_image_is_an_error_with_remedies(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(features: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("injected")

    replaced(monkeypatch, failing)
    with pytest.raises(OutOfMemoryError, match="no memory for one image of 32x32 pixels on cpu .* What would need less"):
        run_of(small_recipe, tmp_path / "r", INSIDE)


def test_features_beyond_half_precision_are_kept_as_float32(small_recipe: str, inside_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, lambda features: features * 1e6)
    run = run_of(small_recipe, tmp_path / "r", INSIDE)
    assert kept(run, 0).dtype == np.float32
    np.testing.assert_allclose(kept(run, 0) / 1e6, kept(inside_run, 0), rtol=1e-3, atol=1e-4)
    largest = float(np.abs(kept(run, 0)).max())
    assert f"snapshot of epoch 0: features reach {largest:.3g}, half precision ends at 65,504: kept as float32, twice the size" in run.record.notes


def test_features_that_are_no_numbers_mean_that_the_weights_diverged(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, lambda features: features.index_fill(0, torch.tensor([2]), float("nan")))
    with pytest.raises(
        DivergedError, match="after step 0 the features of 1 of 10 val images are NaN or infinite: the weights have diverged. Remedies: a lower"
    ):
        run_of(small_recipe, tmp_path / "r", INSIDE)


# ── what is looked at ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("labels", [np.arange(300) % 6, np.repeat(np.arange(6), 50)], ids=["cyclic", "sorted"])
@pytest.mark.parametrize("count", [6, 24, 50, 60, 100])
def test_rows_lie_evenly_over_the_classes(labels: np.ndarray, count: int) -> None:
    rows = evenly(labels, count)
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows], minlength=6)
    assert counts.max() - counts.min() <= 1
    for c in range(6):
        gaps = np.diff(np.flatnonzero(np.isin(np.flatnonzero(labels == c), rows)))
        assert gaps.size == 0 or gaps.max() <= 2 * gaps.min()


def test_more_rows_than_there_are_is_all_of_them() -> None:
    assert evenly(np.array([1, 0, 1]), 10).tolist() == [0, 1, 2]
    assert evenly(np.array([1, 0, 1]), 0).tolist() == []
    assert evenly(np.empty(0, np.int64), 5).tolist() == []


def recipe_of(text: str, tmp_path: Path, *overrides: str) -> recipes.Recipe:
    (tmp_path / "r.yaml").write_text(text)
    return recipes.load(tmp_path / "r.yaml", overrides)


def test_samples_of_scenes_come_with_their_masks(small_recipe: str, tmp_path: Path) -> None:
    recipe = recipe_of(small_recipe, tmp_path, "inside.samples=5")
    dataset = load_dataset(recipe.data, seed=1)
    looked = looked_at(recipe, dataset)
    assert looked is not None
    split = dataset.splits["val"]
    assert sorted(looked.rows.tolist()) == evenly(split.labels, 5).tolist()
    assert len(set(looked.labels.tolist())) == 5, "the classes in turn"
    assert looked.names == tuple(split.names[row] for row in looked.rows)
    assert looked.labels.tolist() == split.labels[looked.rows].tolist()
    assert looked.views.shape == (5, 32, 32, 3)
    for view, mask, row in zip(looked.views, looked.masks, looked.rows, strict=True):
        np.testing.assert_array_equal(view, np.asarray(split.open(int(row))))
        assert mask is not None
        assert mask.shape == (32, 32)
        assert 0.05 < (mask == 1).mean() < 0.6
    inputs = normalized(looked, recipe.data, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    expected = (looked.views.astype(np.float64) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.1]
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three pictures of each of two classes in train and val, 40 x 20 pixels, the left half white; masks of val, 1 on the left."""
    half = np.zeros((20, 40), np.uint8)
    half[:, :20] = 1
    for split in ("train", "val"):
        for i in range(6):
            folder = tmp_path / split / ("cat" if i % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat((half * np.uint8(255 - i - 10 * (split == "val")))[:, :, None], 3, axis=2)).save(folder / f"{i}.png")
            if split == "val":
                (tmp_path / "masks").mkdir(exist_ok=True)
                Image.fromarray(half).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def folder_recipe(small_recipe: str, folders: Path, inside: str) -> recipes.Recipe:
    data = f"data: {{source: folder, train: {folders}/train, val: {folders}/val, image_size: 16}}"
    return recipe_of("\n".join(data if line.startswith("data:") else line for line in small_recipe.splitlines()) + f"\ninside: {inside}\n", folders)


def test_a_photograph_of_the_data_has_its_label_and_mask(small_recipe: str, folders: Path) -> None:
    for name, source in (("a.png", "val/cat/3.png"), ("b.png", "train/dog/2.png")):
        (folders / name).write_bytes((folders / source).read_bytes())
    Image.new("RGB", (30, 50), (9, 9, 9)).save(folders / "c.png")
    images = f"[{folders}/a.png, {folders}/b.png, {folders}/c.png]"
    recipe = folder_recipe(small_recipe, folders, f"{{images: {images}, samples: 2, masks: {folders}/masks, mask_target: [1]}}")
    looked = looked_at(recipe, load_dataset(recipe.data, seed=1))
    assert looked is not None
    assert looked.names[:3] == tuple(str(folders / f"{name}.png") for name in "abc")
    assert looked.labels.tolist() == [0, 1, -1, 1], "cat is 0; the sampled cat is a.png, which counts once"
    assert looked.rows.tolist()[:3] == [-1, -1, -1]
    assert looked.sizes == ((20, 40), (20, 40), (50, 30), (20, 40))
    assert [mask is not None for mask in looked.masks] == [True, False, False, True]
    assert looked.masks[0] is not None
    np.testing.assert_array_equal(looked.masks[0], looked.views[0][:, :, 0] > 100)


def test_what_cannot_be_looked_at_is_named_before_there_is_a_run(small_recipe: str, folders: Path) -> None:
    def fault(inside: str) -> str:
        recipe = folder_recipe(small_recipe, folders, inside)
        with pytest.raises(DataError) as caught:
            train(recipe, out=folders / "run", quiet=True, figures=False)
        assert not (folders / "run").exists()
        return str(caught.value)

    (folders / "text.jpg").write_text("no picture")
    assert fault(f"{{images: [{folders}/gone.jpg, {folders}/text.jpg]}}") == (
        f"inside.images: 1 of 2 files are not there:\n  {folders}/gone.jpg\nCorrect the paths."
    )
    assert fault(f"{{images: [{folders}/text.jpg]}}").startswith(f"{folders}/text.jpg: unreadable: not an image of a known format")
    (folders / "masks" / "3.png").unlink()
    assert "1 of 6 have none:\n  cat/3.png\nAdd the masks, take fewer inside.samples" in fault(f"{{masks: {folders}/masks}}")
    assert "of 1 masks none has a target; now the target is inside.mask_target [4]" in fault(f"{{masks: {folders}/masks, mask_target: [4], samples: 1}}")


def test_a_split_that_the_data_does_not_have_is_an_error(small_recipe: str, tmp_path: Path) -> None:
    dataset = load_dataset(recipe_of(small_recipe.replace("val: 24, ", ""), tmp_path).data, seed=1)
    with pytest.raises(UsageError, match="inside.split is val, and the data has train. Name one of them"):
        probe_of(InsideSection(), dataset)


def test_dropout_is_off_where_no_evaluation_came_before(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(small_recipe.replace("val: 24, ", ""), tmp_path / "r", "inside={split: train, samples: 0, features: 5}", "model.drop_rate=0.5")
    assert (run.probe().split, run.snapshot_epochs) == ("train", [1, 2])
    np.testing.assert_allclose(kept(run, 2), features_by_hand(run, load_model(run)), rtol=1e-3, atol=1e-3)


def test_a_run_may_keep_no_features(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "r", "inside={samples: 2, features: 0}")
    assert run.probe().rows.tolist() == []
    snapshot = run.snapshot(2)
    assert (snapshot.step, snapshot.features) == (8, None)
    assert {maps.shape[0] for maps in snapshot.maps.values()} == {2}


def test_maps_too_are_the_same_bits_after_an_interruption(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = "inside={epochs: [1, 2], samples: 2, features: 0, methods: [attention, relevance]}"
    unbroken = run_of(small_recipe, tmp_path / "unbroken", maps)
    broken = broken_run(small_recipe, tmp_path / "broken", 5, monkeypatch, maps)
    assert bits(resume(broken.path, quiet=True, figures=False)) == bits(unbroken)
    assert set(unbroken.snapshot(1).maps) == {"attention", "relevance"}


KNOWN = "expected a list of first, middle, last and whole numbers from 1 (0: before training), or {every: k} with k of at least 1; got "


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("{epochs: [frist]}", f"10:10: inside.epochs: {KNOWN}'frist'. Did you mean 'first'?"),
        ("{epochs: [true]}", f"10:10: inside.epochs: {KNOWN}True."),
        ("{epochs: last}", f"10:10: inside.epochs: {KNOWN}'last'"),
        ("{epochs: []}", f"10:10: inside.epochs: {KNOWN}[]"),
        ("{epochs: {evry: 2}}", f"10:10: inside.epochs: {KNOWN}a mapping of evry. Did you mean 'every'?"),
        ("{epochs: {every: 0}}", f"10:10: inside.epochs: {KNOWN}0."),
        ("{epochs: [1, 3]}", "10:1: inside: epochs: 3 is beyond the 2 epochs of train.phases"),
        ("{epochs: {every: 3}}", "10:1: inside: epochs: 3 is beyond the 2 epochs of train.phases"),
        ("{smaples: 3}", "10:10: unknown key 'smaples' in inside. Did you mean 'samples'?"),
        ("{methods: [rolout]}", "10:20: inside.methods.0: expected attention, rollout, grad_cam, relevance; got 'rolout'. Did you mean 'rollout'?"),
        ("{methods: [rollout, rollout]}", "10:1: inside: methods holds 'rollout' twice"),
        ("{mask_target: [1], mask_ignore: [1]}", "10:1: inside: the value 1 stands in mask_target and in mask_ignore; it can be only one of the two"),
        ("{masks: m}", "10:1: inside: scenes have masks of their own; remove masks"),
        ("{features: 0, projections: [pca]}", "10:1: inside: projections show features, and features is 0; give a number of images, or leave projections out"),
        ("{features: 0, samples: 0}", "10:1: inside: there is nothing to look at: give images, samples or features above 0, or leave inside out"),
        ("{split: test}", "10:10: inside.split: expected train, val; got 'test'."),
    ],
)
def test_faults_of_the_section_have_their_place_and_remedy(small_recipe: str, tmp_path: Path, inside: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(f"{small_recipe}inside: {inside}\n", tmp_path)
    assert str(caught.value) == f"{tmp_path}/r.yaml:{expected}"


def test_what_fits_no_data_is_refused(small_recipe: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="inside: split val needs data.val; give it, or set split: train"):
        recipe_of(small_recipe.replace("val: 24, ", "") + "inside: {}\n", tmp_path)
    digits = small_recipe.replace("source: scenes", "source: digits")
    with pytest.raises(RecipeError, match="inside: mask_ignore needs masks, the folder of the masks"):
        recipe_of(digits + "inside: {mask_ignore: [3]}\n", tmp_path)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_changed_snapshot_is_an_error_that_says_what_is_wrong(copied_inside: Run) -> None:
    run, file = copied_inside, copied_inside.snapshot_file(1)
    step, features = np.array(4), kept(run, 1)

    def fault(**arrays: np.ndarray) -> str:
        np.savez(file, **arrays)
        with pytest.raises(RunError) as caught:
            run.snapshot(1)
        return str(caught.value).removeprefix(f"{file}: ")

    got = "expected finite features (10, D) for the 10 images of the probe; got "
    assert fault(step=step, features=features[:9]) == f"{got}float16 (9, 32). The file was changed."
    assert fault(step=step, features=features * np.float16("nan")) == f"{got}float16 (10, 32). The file was changed."
    assert fault(step=step) == f"{got}none. The file was changed."
    assert fault(features=features).startswith("expected step (a whole number), features and maps/<method>; got step None")
    assert fault(step=step, features=features, other=features).startswith("expected step (a whole number), features and maps/<method>; got other")
    maps = "maps/rollout: expected finite maps (n, gh, gw) of at least 0; got "
    assert fault(step=step, features=features, **{"maps/rollout": -np.ones((1, 2, 2), np.float32)}).startswith(f"{maps}float32 (1, 2, 2)")
    assert fault(step=step, features=features, **{"maps/rollout": np.ones(3, np.float32)}).startswith(f"{maps}float32 (3,)")
    file.write_bytes(b"PK no archive")
    with pytest.raises(RunError, match="epoch-0001.npz: cannot be read as a snapshot: "):
        run.snapshot(1)
    file.unlink()
    with pytest.raises(RunError, match="epoch-0001.npz: the file is missing"):
        run.snapshot(1)
    assert isinstance(run.snapshot(2), Snapshot)


def test_a_changed_probe_is_an_error(copied_inside: Run) -> None:
    file, probe = copied_inside.snapshots / "probe.npz", copied_inside.probe()
    np.savez(file, split=np.array("val"), rows=probe.rows[::-1], labels=probe.labels)
    with pytest.raises(RunError, match="expected ascending rows and labels, none below 0"):
        copied_inside.probe()
    np.savez(file, split=np.array("val"), rows=probe.rows.astype(float), labels=probe.labels)
    with pytest.raises(RunError, match=r"expected a name, int64 \(p,\) and int64 \(p,\); got <U3 \(\), float64 \(10,\), int64 \(10,\)"):
        copied_inside.probe()
    shutil.rmtree(copied_inside.snapshots)
    with pytest.raises(RunError, match="probe.npz: the file is missing"):
        copied_inside.probe()
    assert copied_inside.snapshot_epochs == []


# ── several processes ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_process_says_the_same_things_in_the_same_order(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one would wait for ever. Only the first writes."""
    loop = sys.modules["pellucid.loop"]
    real, spoken = loop.take, []

    class Overheard(Processes):
        def largest(self, *values: float) -> list[float]:
            spoken.append((self.rank, "largest", len(values)))
            return list(values)

        def told(self, value: object) -> object:
            spoken.append((self.rank, "told", 1))
            return value

    def both(t, epoch, more) -> None:
        for rank in (1, 0):
            one = copy.copy(t)
            one.runtime = replace(t.runtime, processes=Overheard(rank, 2, rank, 2))
            real(one, epoch, more)
            assert t.run.snapshot_file(epoch).exists() == (rank == 0 and epoch in (0, 2))

    monkeypatch.setattr(loop, "take", both)
    run_of(small_recipe, tmp_path / "r", "inside={epochs: [0, last], samples: 0, features: 5}")
    once = [("largest", 1), ("told", 1)]
    assert [(what, count) for rank, what, count in spoken if rank == 0] == once * 2
    assert [(what, count) for rank, what, count in spoken if rank == 1] == once * 2


@pytest.mark.proof
def test_two_processes_keep_what_one_keeps(small_recipe: str, inside_run: Run, tmp_path: Path) -> None:
    """Before training the weights are the same; afterwards the snapshot is that of the weights that were reported."""
    (tmp_path / "r.yaml").write_text(small_recipe)
    script = "import sys, pellucid; pellucid.train(sys.argv[1], overrides=[sys.argv[3]], out=sys.argv[2], quiet=True, figures=False)"
    (tmp_path / "go.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "go.py")]
    done = subprocess.run([*command, str(tmp_path / "r.yaml"), str(tmp_path / "two"), INSIDE], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "two")
    assert file_hash(run.snapshot_file(0)) == file_hash(inside_run.snapshot_file(0))
    np.testing.assert_allclose(kept(run, 2), features_by_hand(run, load_model(run)), rtol=1e-3, atol=1e-3)
