"""The loop: the batch is the batch, equal bits whatever the workers, interruption, phases, stopping, divergence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid import recipe as recipes
from pellucid.compare import expand
from pellucid.errors import DivergedError, InterruptedError, RunError, UsageError, WeightsError
from pellucid.files import file_hash
from pellucid.models.weights import read_weights, save_weights
from pellucid.run import Run
from pellucid.train import resume, resume_seeds, train, train_seeds


def run_of(text: str, out: Path, *overrides: str) -> Run:
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(text)
    return train(file, overrides=overrides, out=out, quiet=True, figures=False)


def weights_of(run: Run) -> torch.Tensor:
    return torch.cat([w.double().flatten() for w in read_weights(run.final_weights).values()])


def lines(run: Run, kind: str) -> list[dict]:
    return [line for line in run.metrics() if line["kind"] == kind]


def numbers(run: Run) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "micro_batch_size")} for line in run.metrics()]


def test_a_run_folder_holds_what_the_design_says(small_run: Path) -> None:
    run = Run(small_run)
    names = {str(p.relative_to(small_run)) for p in small_run.rglob("*") if p.is_file()}
    expected = {
        "recipe.yaml", "resolved.yaml", "environment.json", "data.json", "run.json", "metrics.jsonl", "report.html", "samples/train.csv",
        "samples/val.csv", "predictions/val.npz", "predictions/val.csv", "checkpoints/final.safetensors",
    }  # fmt: skip
    assert expected <= names
    record = run.record
    assert (record.status, record.epoch, record.step, record.total_steps) == ("done", 2, 8, 8)
    assert next(iter(run.measurements)) == "val/accuracy"
    assert run.environment["flush_denormal"] is True
    assert not list(small_run.glob("checkpoints/step-*")), "checkpoints of a finished run take room for nothing"


def test_equal_bits_for_any_number_of_workers_and_with_or_without_store(small_recipe: str, small_run: Path, tmp_path: Path) -> None:
    first = Run(small_run)
    for name, overrides in {"none": ["data.workers=0"], "one": ["data.workers=1"], "stream": ["data.workers=2", "data.store.limit_gb=0"]}.items():
        run = run_of(small_recipe, tmp_path / name, *overrides)
        assert file_hash(run.final_weights) == file_hash(first.final_weights), name
        assert numbers(run) == numbers(first)
        np.testing.assert_array_equal(run.predictions("val").logits, first.predictions("val").logits)
    assert "exceed data.store.limit_gb" in " ".join(run.record.notes)


def test_another_seed_gives_other_weights(small_recipe: str, small_run: Path, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "other", "seed=2")
    assert file_hash(run.final_weights) != file_hash(Run(small_run).final_weights)


@pytest.mark.parametrize("micro", [16, 8, 5])
@pytest.mark.parametrize(
    "extra",
    [[], ["augment.mixup=0.4", "augment.cutmix=1.0", "loss.class_weights=balanced", "loss.label_smoothing=0.1"], ["train.phases.0.optimizer.sam.rho=0.05"]],
)
def test_the_recipes_batch_is_the_batch(small_recipe: str, tmp_path: Path, micro: int, extra: list[str]) -> None:
    """50 images, batch 16: windows of 16, 16, 16 and 2, cut into 16, 8 + 8 and 5 + 5 + 5 + 1. SGD shows the gradient itself."""
    settings = ["train.phases.0.optimizer.name=sgd", "train.phases.0.optimizer.lr=0.05", "train.phases.0.epochs=1", *extra]
    whole = run_of(small_recipe, tmp_path / "whole", *settings)
    cut = run_of(small_recipe, tmp_path / "cut", *settings, f"train.micro_batch_size={micro}")
    start = weights_of(run_of(small_recipe, tmp_path / "start", *settings, "train.phases.0.optimizer.lr=1e-30"))
    moved, other = weights_of(whole) - start, weights_of(cut) - start
    assert float((moved - other).norm() / moved.norm()) < 1e-5
    if micro < 16:
        assert lines(cut, "train")[0]["micro_batch_size"] == micro


def test_running_out_of_memory_shrinks_the_micro_batch_and_keeps_the_step(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.tasks.classification import Classification

    settings = ["train.phases.0.optimizer.name=sgd", "train.phases.0.optimizer.lr=0.05", "train.phases.0.epochs=1"]
    whole = run_of(small_recipe, tmp_path / "whole", *settings)
    real, calls = Classification.loss, []

    def failing(self, module, pack):
        calls.append(len(pack))
        if len(pack) > 4 and len(calls) > 1:
            raise torch.OutOfMemoryError("injected")
        return real(self, module, pack)

    monkeypatch.setattr(Classification, "loss", failing)
    run = run_of(small_recipe, tmp_path / "short", *settings)
    assert "memory ran out: the micro-batch is 4 since step 2; the batch stays 16" in run.record.notes
    difference = (weights_of(whole) - weights_of(run)).norm() / weights_of(whole).norm()
    assert float(difference) < 1e-6


def test_no_room_for_one_image_is_exit_5(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.errors import OutOfMemoryError
    from pellucid.tasks.classification import Classification

    def failing(self, module, pack):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(Classification, "loss", failing)
    with pytest.raises(
        OutOfMemoryError,
        match="no memory for one image of 32x32 pixels on cpu .* What would need less: train.activation_checkpointing: true, train.precision: bf16, a smaller data.image_size",
    ) as caught:
        run_of(small_recipe, tmp_path / "none")
    assert caught.value.exit_code == 5
    assert Run(tmp_path / "none").record.status == "failed"


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


@pytest.mark.parametrize("step", [1, 4, 6, 8])
@pytest.mark.parametrize("extra", [[], ["train.ema.decay=0.9", "train.keep=best", "train.phases.0.optimizer.sam.rho=0.05"]])
def test_an_interrupted_run_resumes_to_the_same_bits(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str], step: int) -> None:
    """Step 4 is the last of its epoch, step 8 the last of all."""
    unbroken = run_of(small_recipe, tmp_path / "unbroken", *extra)
    interrupt_after(step, monkeypatch)
    with pytest.raises(InterruptedError, match=f"interrupted at step {step} of 8, checkpoint written. Continue with `pellucid resume"):
        run_of(small_recipe, tmp_path / "broken", *extra)
    monkeypatch.undo()
    assert Run(tmp_path / "broken").record.status == "interrupted"
    run = resume(tmp_path / "broken", quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(unbroken.final_weights)
    assert numbers(run) == numbers(unbroken)
    with pytest.raises(RunError, match="the run is finished; there is nothing to resume"):
        resume(tmp_path / "broken", quiet=True)


def test_two_trainings_cannot_share_a_folder(small_recipe: str, tmp_path: Path) -> None:
    from pellucid.distributed import ALONE
    from pellucid.train import _owned

    (tmp_path / "r.yaml").write_text(small_recipe)
    with _owned(tmp_path / "run", ALONE), pytest.raises(RunError, match="another process is training into this folder"):
        train(tmp_path / "r.yaml", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_weights_that_diverge_in_the_last_step_are_an_error_and_not_a_number(small_recipe: str, tmp_path: Path) -> None:
    settings = ["train.batch_size=50", "train.phases.0.epochs=1", "train.phases.0.optimizer={name: sgd, lr: 1e38}", "train.phases.0.schedule={name: constant}"]
    with pytest.raises(DivergedError, match="after step 1 the model gives NaN or infinite logits for 24 of 24 val images, scenes-val-"):
        run_of(small_recipe, tmp_path / "nan", *settings)
    assert Run(tmp_path / "nan").record.measurements == []


def test_batch_norm_never_sees_one_image_alone(small_recipe: str, tmp_path: Path) -> None:
    """33 images in batches of 16: the last one joins the second batch; packs of 5 from 16 leave one, which joins too."""
    model = ["model={name: timm/test_resnet}", "data.train=33", "train.phases.0.epochs=1"]
    run = run_of(small_recipe, tmp_path / "r", *model, "train.micro_batch_size=5")
    assert run.record.step == 2
    assert any("from which BatchNorm takes no statistics: it joins the window before" in note for note in run.record.notes)
    assert any("BatchNorm sees micro-batches of 5 images, not the batch of 16" in note for note in run.record.notes)
    with pytest.raises(UsageError, match="cannot take its statistics from one image of this size: set train.micro_batch_size to at least 2"):
        run_of(small_recipe, tmp_path / "one", *model, "train.micro_batch_size=1")


def test_memory_that_runs_out_in_the_evaluation_shrinks_its_batch(small_recipe: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.tasks import classification

    real = classification.logits_of

    def failing(module, images, *rest):
        if len(images) > 4:
            raise torch.OutOfMemoryError("injected")
        return real(module, images, *rest)

    monkeypatch.setattr(classification, "logits_of", failing)
    run = run_of(small_recipe, tmp_path / "r")
    assert run.record.evaluation_batch_size == 4
    assert "memory ran out in the evaluation: it takes 4 images at once since step 4" in run.record.notes
    assert run.measurements["val/accuracy"].value == Run(small_run).measurements["val/accuracy"].value


def test_schedules_that_do_not_come_to_what_they_say_are_noted(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(small_recipe, tmp_path / "r", "train.phases.0.schedule={name: cosine, warmup_steps: 500}")
    assert "phase 1: the warm-up of 500 steps is not shorter than the phase of 8; the learning rate only rises" in run.record.notes
    run = run_of(small_recipe, tmp_path / "s", "train.phases.0.schedule={name: step, milestones: [1, 7]}")
    assert "phase 1: milestones [7] are not reached in 2 epochs" in run.record.notes


def test_overrides_reach_a_recipe_object_and_the_recorded_command(small_recipe: str, tmp_path: Path) -> None:
    recipe = recipes.loads(small_recipe)
    runs = train_seeds(recipe, 2, overrides=["train.phases.0.epochs=1"], out=tmp_path / "seeds", quiet=True, figures=False)
    assert [run.recipe.seed for run in runs] == [1, 2]
    assert runs[1].record.command == ["pellucid", "train", "run.yaml", "-s", "train.phases.0.epochs=1", "-s", "seed=2"]


def test_a_set_of_seeds_that_was_interrupted_is_finished(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe)
    interrupt_after(11, monkeypatch)
    with pytest.raises(InterruptedError):
        train_seeds(tmp_path / "r.yaml", 3, out=tmp_path / "seeds", quiet=True, figures=False)
    monkeypatch.undo()
    assert [run.record.status for run in expand([tmp_path / "seeds"])] == ["done", "interrupted"]
    runs = resume_seeds(tmp_path / "seeds", quiet=True, figures=False)
    assert [(run.recipe.seed, run.record.status) for run in runs] == [(1, "done"), (2, "done"), (3, "done")]
    assert len({file_hash(run.final_weights) for run in runs}) == 3


def test_a_killed_run_resumes_to_the_same_bits(small_recipe: str, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe)
    script = "import pellucid, sys; pellucid.train(sys.argv[1], overrides=['train.checkpoint_seconds=0'], out=sys.argv[2], quiet=True)"
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "r.yaml"), str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("killed/checkpoints/step-*3")) and child.poll() is None:
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert Run(tmp_path / "killed").record.status == "running"
    run = resume(tmp_path / "killed", quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(Run(small_run).final_weights)
    assert numbers(run) == numbers(Run(small_run))


def test_phases_follow_each_other_each_with_its_optimizer(small_recipe: str, tmp_path: Path) -> None:
    phases = (
        "train.phases=[{epochs: 1, optimizer: {name: adam, lr: 1e-3}, schedule: {name: noam, warmup_steps: 2}}, {epochs: 1, optimizer: {name: sgd, lr: 0.01}}]"
    )
    run = run_of(small_recipe, tmp_path / "two", phases)
    rates = [line["lr"] for line in lines(run, "lr")]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3 * (2 / 3) ** 0.5, 1e-3 * 0.5**0.5, 0.01, 0.01, 0.01, 0.01])
    assert [line["phase"] for line in lines(run, "train")] == [0, 1]


def test_early_stopping_says_so_and_keep_best_is_called_optimistic(small_recipe: str, tmp_path: Path) -> None:
    run = run_of(
        small_recipe, tmp_path / "early", "train.phases.0.epochs=9", "train.phases.0.optimizer.lr=1e-12", "train.early_stop.patience=2", "train.keep=best"
    )
    assert run.record.epoch == 3
    assert "stopped early after epoch 3: accuracy on val did not improve for 2 evaluations (best in epoch 1)" in run.record.notes
    assert run.record.selected == "epoch 1, the best accuracy on val"
    assert "selected on this split, hence optimistic" in run.measurements["val/accuracy"].how


def test_a_loss_that_is_not_finite_stops_with_step_files_and_remedy(small_recipe: str, tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        run_of(small_recipe, tmp_path / "nan", "train.phases.0.optimizer={name: sgd, lr: 1e30}", "train.phases.0.schedule={name: constant}")
    text = str(caught.value)
    assert "the loss became nan at step 2 (epoch 1). Images of that batch: scenes-train-" in text
    assert "a lower train.phases.*.optimizer.lr" in text
    record = Run(tmp_path / "nan").record
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.startswith("DivergedError: the loss became nan")


def test_a_folder_with_something_in_it_is_not_overwritten(small_recipe: str, small_run: Path, tmp_path: Path) -> None:
    before = file_hash(small_run / "run.json")
    (tmp_path / "r.yaml").write_text(small_recipe)
    with pytest.raises(RunError, match="the folder is not empty. Choose another with --out"):
        train(tmp_path / "r.yaml", out=small_run, quiet=True)
    assert file_hash(small_run / "run.json") == before


def test_bf16_and_fp16_and_compile_free_settings_run(small_recipe: str, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        run = run_of(small_recipe, tmp_path / precision, f"train.precision={precision}", "train.channels_last=true", "train.clip_grad_norm=1.0")
        losses[precision] = lines(run, "train")[-1]["loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_balanced_sampling_and_a_frozen_backbone_train_the_head_alone(small_recipe: str, tmp_path: Path) -> None:
    start = read_weights(run_of(small_recipe, tmp_path / "start", "train.phases.0.optimizer.lr=1e-30").final_weights)
    end = read_weights(run_of(small_recipe, tmp_path / "end", "model.freeze=backbone", "train.balanced_sampling=true").final_weights)
    changed = {name for name in start if not torch.allclose(start[name].double(), end[name].double(), rtol=0, atol=1e-20)}
    assert changed == {"head.weight", "head.bias"}


def test_seeds_are_runs_of_their_own(small_recipe: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe)
    runs = train_seeds(tmp_path / "r.yaml", 2, overrides=["train.phases.0.epochs=1"], out=tmp_path / "seeds", quiet=True, figures=False)
    assert [run.recipe.seed for run in runs] == [1, 2]
    assert json.loads((tmp_path / "seeds" / "seeds.json").read_text()) == {"runs": ["seed-1", "seed-2"]}
    assert weights_of(runs[0]).ne(weights_of(runs[1])).any()


def test_cuda_without_cuda_is_a_clear_error(small_recipe: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UsageError, match="train.device is cuda, but torch sees no CUDA device"):
        run_of(small_recipe, tmp_path / "cuda", "train.device=cuda")
    assert not (tmp_path / "cuda").exists()


def test_changed_data_refuses_to_resume(tmp_path: Path, small_recipe: str) -> None:
    recipe = recipes.loads(small_recipe)
    run = run_of(small_recipe, tmp_path / "r")
    data = json.loads((run.path / "data.json").read_text())
    data["splits"]["train"]["hash"] = "0" * 32
    (run.path / "data.json").write_text(json.dumps(data))
    record = json.loads((run.path / "run.json").read_text())
    record["status"] = "interrupted"
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="the train images or labels changed since the run began"):
        resume(run.path, quiet=True)
    assert recipe == run.recipe


def test_a_run_without_a_checkpoint_goes_on_from_no_other_weights(small_recipe: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise RunError("injected")

    (tmp_path / "w.safetensors").write_bytes(Run(small_run).final_weights.read_bytes())
    monkeypatch.setattr(sys.modules["pellucid.loop"], "take_step", stop)
    with pytest.raises(RunError, match="injected"):
        run_of(small_recipe, tmp_path / "r", f"model.weights={tmp_path / 'w.safetensors'}")
    monkeypatch.undo()
    save_weights({name: value * 2 for name, value in read_weights(tmp_path / "w.safetensors").items()}, tmp_path / "w.safetensors")
    before = file_hash(tmp_path / "r" / "run.json")
    said = r"w.safetensors: the file of model.weights was changed since the run began, and there is no checkpoint to go on from. Put it back, or train anew."
    with pytest.raises(RunError, match=said):
        resume(tmp_path / "r", quiet=True, figures=False)
    assert file_hash(tmp_path / "r" / "run.json") == before
    (tmp_path / "w.safetensors").write_bytes(Run(small_run).final_weights.read_bytes())
    assert resume(tmp_path / "r", quiet=True, figures=False).record.status == "done"


def test_a_size_or_weights_that_do_not_fit_leave_no_folder(small_recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model.name: torchvision/alexnet does not run on images of 32x32 pixels: "):
        run_of(small_recipe, tmp_path / "levit", "model={name: torchvision/alexnet}")
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"weights.pth"):
        run_of(small_recipe, tmp_path / "weights", f"model.weights={tmp_path}/weights.pth")
    assert not (tmp_path / "levit").exists()
    assert not (tmp_path / "weights").exists()


def test_an_average_with_a_long_memory_does_not_stay_at_the_random_start(small_recipe: str, tmp_path: Path) -> None:
    """decay 0.9999 over 8 steps would keep 99.9 % of the initial weights; min(decay, (1 + t) / (10 + t)) does not."""
    start = weights_of(run_of(small_recipe, tmp_path / "start", "train.phases.0.optimizer.lr=1e-30"))
    plain = weights_of(run_of(small_recipe, tmp_path / "plain"))
    averaged = weights_of(run_of(small_recipe, tmp_path / "averaged", "train.ema.decay=0.9999"))
    share = float((averaged - start).norm() / (plain - start).norm())
    assert 0.6 < share < 1.0


def test_an_image_that_goes_away_after_training_costs_its_thumbnail_only(
    photo_folder: Path, small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small_recipe.replace("source: scenes, train: 50, val: 24", f"source: folder, train: {photo_folder}, val: 0.5")
    results = sys.modules["pellucid.results"]
    real = results._write_thumbnails

    def changed(*arguments):
        for file in photo_folder.rglob("*.png"):
            file.write_bytes(file.read_bytes() + b"edited")
        real(*arguments)

    monkeypatch.setattr(results, "_write_thumbnails", changed)
    run = run_of(text, tmp_path / "r")
    assert run.record.status == "done"
    assert any("no picture of a mistake in the report" in note and "changed after it was checked" in note for note in run.record.notes)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Two classes of eight drawn pictures, which no small model tells apart in two epochs."""
    import PIL.Image

    numbers = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            PIL.Image.fromarray(numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"
