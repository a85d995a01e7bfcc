"""A step against its definition: whatever the packs, with SAM, when memory runs out at any point of it, with blocks computed again."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pellucid.loop as loop
import pellucid.step as step
from gradients import apart, defined_gradient, training_of, whole_batch, window_gradients, windows_of
from pellucid.distributed import ALONE
from pellucid.errors import InterruptedError, RecipeError, RunError, UsageError
from pellucid.files import file_hash
from pellucid.memory import forward_cost
from pellucid.models.recompute import blocks, recompute_blocks
from pellucid.models.weights import read_weights
from pellucid.optim import make_state
from pellucid.run import Run
from pellucid.train import resume, train

SGD = ["train.phases.0.optimizer={name: sgd, lr: 0.05}", "train.phases.0.schedule={name: constant}", "train.phases.0.epochs=1"]
OOM = torch.OutOfMemoryError("injected")


def run_of(text: str, out: Path, *overrides: str) -> Run:
    file = out.parent / f"{out.name}.yaml"
    file.write_text(text)
    return train(file, overrides=overrides, out=out, quiet=True, figures=False)


def weights_of(run: Run) -> Tensor:
    return torch.cat([w.double().flatten() for w in read_weights(run.final_weights).values()])


# ── accumulation ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("case", "overrides"),
    [
        ("short last window: 10 packs of 4, four to a batch", ["data.train=40", "train.batch_size=16", "train.micro_batch_size=4"]),
        ("ragged: 37 samples", ["data.train=37", "train.batch_size=16", "train.micro_batch_size=6"]),
        ("one batch in packs of 5", ["data.train=37", "train.batch_size=37", "train.micro_batch_size=5"]),
    ],
)
def test_the_gradient_of_every_window_is_the_defined_one(small_recipe: str, tmp_path: Path, case: str, overrides: list[str]) -> None:
    t = training_of(small_recipe, tmp_path / "twin", overrides, ALONE)
    found = window_gradients(small_recipe, tmp_path / "ours", overrides)
    for window, gradient in zip(windows_of(t), found, strict=True):
        assert apart(gradient, defined_gradient(t, window)) < 1e-6, case


def test_the_definition_tells_a_wrong_weight(small_recipe: str, tmp_path: Path) -> None:
    """The control: a last window averaged as if it were full, as others do, is off by half."""
    overrides = ["data.train=40", "train.batch_size=16", "train.micro_batch_size=4"]
    t = training_of(small_recipe, tmp_path / "twin", overrides, ALONE)
    last = windows_of(t)[-1]
    assert apart(window_gradients(small_recipe, tmp_path / "ours", overrides)[-1] * len(last) / 16, defined_gradient(t, last)) == pytest.approx(0.5, rel=1e-5)


# ── SAM ───────────────────────────────────────────────────────────────────────────────────────────────────────


def sam_twin(t: loop.Training, *, rho: float, adaptive: bool) -> list[Tensor]:
    """Weights after one epoch of SAM and SGD by definition, in float64: w <- w - lr g(w + e), e = rho g / |g| (Foret et al. 2021).

    adaptive: e = rho w^2 g / | |w| g | (Kwon et al. 2021).
    """
    twin = copy.deepcopy(t.module).double()
    names = list(twin.parameters())
    for window in windows_of(t):
        images, labels = whole_batch(t, window)

        def gradient(images: Tensor = images, labels: Tensor = labels) -> list[Tensor]:
            return list(torch.autograd.grad(nn.functional.cross_entropy(twin(images), labels), names))

        first = gradient()
        directions = [w.detach().abs() * g if adaptive else g for w, g in zip(names, first, strict=True)]
        norm = torch.cat([d.flatten() for d in directions]).norm()
        moves = [rho * (w.detach().abs() * d if adaptive else d) / norm for w, d in zip(names, directions, strict=True)]
        with torch.no_grad():
            for w, move in zip(names, moves, strict=True):
                w.add_(move)
        second = gradient()
        with torch.no_grad():
            for w, move, g in zip(names, moves, second, strict=True):
                w.sub_(move).sub_(0.05 * g)
    return [w.detach() for w in names]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("micro", [16, 5])
def test_sam_is_its_definition_with_accumulation(small_recipe: str, tmp_path: Path, micro: int, adaptive: bool) -> None:
    sam = [
        *SGD,
        "train.phases.0.optimizer.momentum=0.0",
        "train.phases.0.optimizer.sam.rho=0.1",
        f"train.phases.0.optimizer.sam.adaptive={str(adaptive).lower()}",
    ]
    t = training_of(small_recipe, tmp_path / "twin", sam, ALONE)
    start = torch.cat([p.detach().double().flatten() for p in t.module.parameters()])
    twin = torch.cat([w.flatten() for w in sam_twin(t, rho=0.1, adaptive=adaptive)])
    run = run_of(small_recipe, tmp_path / "ours", *sam, f"train.micro_batch_size={micro}")
    ours = torch.cat([read_weights(run.final_weights)[name].double().flatten() for name, _ in t.module.named_parameters()])
    assert apart(ours - start, twin - start) < 2e-5  # four float32 updates of weights 100 times their size
    plain = run_of(small_recipe, tmp_path / "plain", *SGD, "train.phases.0.optimizer.momentum=0.0")
    without = torch.cat([read_weights(plain.final_weights)[name].double().flatten() for name, _ in t.module.named_parameters()])
    assert apart(without - start, twin - start) > 1e-3, "the control: SGD without SAM"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sam_unscales_each_pass_once(small_recipe: str, tmp_path: Path, precision: str) -> None:
    """fp16 scales both losses by 2^16; unscaled twice or never, the steps would be nowhere near those of fp32."""
    sam = [*SGD, "train.phases.0.optimizer.sam.rho=0.1", "train.micro_batch_size=5"]
    start = weights_of(run_of(small_recipe, tmp_path / "start", *sam, "train.phases.0.optimizer.lr=1e-30"))
    full, reduced = (weights_of(run_of(small_recipe, tmp_path / name, *sam, f"train.precision={name}")) - start for name in ("fp32", precision))
    assert apart(reduced, full) < (0.02 if precision == "bf16" else 0.003)


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────

SAM_EMA = [*SGD, "train.phases.0.optimizer.sam.rho=0.05", "train.ema.decay=0.9", "train.clip_grad_norm=1.0"]
BATCH_NORM = [*SGD, "model={name: timm/test_resnet}", "train.micro_batch_size=16"]


def in_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_call(monkeypatch, number=3, longest=4)


def in_the_second_pass_of_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_call(monkeypatch, number=4, longest=4)


def failing_call(monkeypatch: pytest.MonkeyPatch, *, number: int, longest: int) -> None:
    """From the n-th loss on, packs of more than `longest` images find no room."""
    from pellucid.tasks.classification import Classification

    real, calls = Classification.loss, []

    def loss(self, module, pack):
        calls.append(pack)
        if len(calls) >= number and len(pack) > longest:
            raise OOM
        return real(self, module, pack)

    monkeypatch.setattr(Classification, "loss", loss)


def in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some of the gradients have been accumulated."""
    real, calls = Tensor.backward, []

    def backward(self, *args, **kwargs):
        real(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise OOM

    monkeypatch.setattr(Tensor, "backward", backward)


def in_the_perturbation(monkeypatch: pytest.MonkeyPatch) -> None:
    """When half of the weights have moved, in the second step."""
    real, perturb, calls, moved = Tensor.add_, step.sam_perturb, [], []

    def add_(self, *args, **kwargs):
        if len(calls) == 2 and isinstance(self, nn.Parameter):
            moved.append(1)
            if len(moved) == 7:
                raise OOM
        return real(self, *args, **kwargs)

    def counted(*args, **kwargs):
        calls.append(1)
        return perturb(*args, **kwargs)

    monkeypatch.setattr(Tensor, "add_", add_)
    monkeypatch.setattr(step, "sam_perturb", counted)


@pytest.mark.parametrize("where", [in_the_forward_pass, in_the_backward_pass, in_the_second_pass_of_sam, in_the_perturbation])
def test_memory_that_runs_out_anywhere_in_a_step_costs_nothing_but_time(
    small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Callable[[pytest.MonkeyPatch], None]
) -> None:
    whole = run_of(small_recipe, tmp_path / "whole", *SAM_EMA)
    start = weights_of(run_of(small_recipe, tmp_path / "start", *SAM_EMA, "train.phases.0.optimizer.lr=1e-30"))
    where(monkeypatch)
    run = run_of(small_recipe, tmp_path / "short", *SAM_EMA)
    monkeypatch.undo()
    assert apart(weights_of(run), weights_of(whole)) < 1e-6
    assert apart(weights_of(run) - start, weights_of(whole) - start) < 2e-5
    noted = any("memory ran out" in note for note in run.record.notes)
    assert noted == (where is not in_the_perturbation), "that one is repeated as it is"


def test_running_statistics_of_a_repeated_pass_move_once(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_of(small_recipe, tmp_path / "whole", *BATCH_NORM)
    real, calls = Tensor.backward, []

    def backward(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            monkeypatch.setattr(loop.Training, "__repr__", object.__repr__)
            raise OOM
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(step, "_shrink", lambda t, reader, window: reader.shrink(t.micro, after=window))  # again, in the same packs
    run = run_of(small_recipe, tmp_path / "again", *BATCH_NORM)
    assert file_hash(run.final_weights) == file_hash(whole.final_weights)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_moments_that_were_half_made_are_made_again(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Memory runs out in the second group of parameters, when those of the first have their moments: none may move twice."""
    settings = [f"train.phases.0.optimizer={{name: {name}, lr: 1e-3, weight_decay: 0.1, exclude_norm_bias: true}}", "train.phases.0.epochs=1"]
    whole = run_of(small_recipe, tmp_path / "whole", *settings)
    real, calls = torch.zeros_like, []

    def zeros_like(value, *args, **kwargs):
        if isinstance(value, nn.Parameter):
            calls.append(value)
            if len(calls) == 30:
                raise OOM
        return real(value, *args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    run = run_of(small_recipe, tmp_path / "again", *settings)
    monkeypatch.undo()
    assert len(calls) > 30
    assert file_hash(run.final_weights) == file_hash(whole.final_weights)


def test_moments_made_beforehand_are_those_of_the_first_step() -> None:
    """torch's own optimisers, left to make their state, beside ours: the same bits after three steps."""
    for make in (
        partial(torch.optim.AdamW, fused=True),
        partial(torch.optim.Adam, fused=True),
        partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True),
    ):
        weights = []
        for prepared in (False, True):
            torch.manual_seed(0)
            layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
            optimizer = make([{"params": [layers[0].weight]}, {"params": [layers[0].bias, *layers[1].parameters()]}], lr=0.1, weight_decay=0.1)
            if prepared:
                make_state(optimizer)
            for i in range(3):
                optimizer.zero_grad()
                layers(torch.full((4, 8), float(i))).square().sum().backward()
                optimizer.step()
            weights.append(torch.cat([p.detach().flatten() for p in layers.parameters()]))
        assert torch.equal(*weights)


LIMITED = """
import os, resource, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads wait for ever for memory that is not there
import pellucid, pellucid.loop, pellucid.report, torch, torchmetrics  # the limit is on training, not on what is imported
from pellucid.errors import PellucidError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 2**20, resource.RLIM_INFINITY))
try:
    pellucid.train(sys.argv[1], out=sys.argv[2], overrides=sys.argv[4:], quiet=True, figures=False)
except PellucidError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def limited(text: str, folder: Path, megabytes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A training in a process that can allocate so much and no more."""
    (folder / "r.yaml").write_text(text)
    command = [sys.executable, "-c", LIMITED, str(folder / "r.yaml"), str(folder / "run"), str(megabytes), "data.workers=0", *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_process_with_little_memory_finds_a_micro_batch_and_trains(small_recipe: str, tmp_path: Path) -> None:
    """A real limit (ulimit -v), no injection: 32 pictures of 192 pixels in a small ResNet would need more."""
    large = [
        "data.train=32",
        "data.val=8",
        "data.image_size=192",
        "model={name: torchvision/resnet18}",
        "train.batch_size=32",
        "augment={horizontal_flip: 0.5}",
    ]
    done = limited(small_recipe, tmp_path, 700, *large, *SGD)
    assert done.returncode == 0, done.stderr[-2000:]
    run = Run(tmp_path / "run")
    micro = next(line for line in run.metrics() if line["kind"] == "train")["micro_batch_size"]
    assert 1 <= micro < 32
    assert any("micro-batch" in note and "32" in note for note in run.record.notes), run.record.notes


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (["train.batch_size=1"], "train.batch_size"),
        (["train.batch_size=1", "train.micro_batch_size=1"], "train.batch_size and train.micro_batch_size"),
        (["train.batch_size=4", "train.micro_batch_size=1"], "train.micro_batch_size"),
    ],
)
def test_batch_norm_of_one_image_names_the_setting_that_helps(small_recipe: str, tmp_path: Path, settings: list[str], keys: str) -> None:
    with pytest.raises(UsageError, match=rf"from one image of this size: set {keys} to at least 2, or choose a model without BatchNorm\."):
        run_of(small_recipe, tmp_path / "r", *SGD, "model={name: timm/test_resnet}", *settings)


def test_a_process_without_room_for_one_image_says_what_would_fit(small_recipe: str, tmp_path: Path) -> None:
    large = ["data.train=4", "data.val=4", "data.image_size=1024", "model={name: torchvision/resnet18}", "train.batch_size=4", "augment={horizontal_flip: 0.5}"]
    done = limited(small_recipe, tmp_path, 420, *large, *SGD)
    assert done.returncode == 5, done.stderr[-2000:]
    assert "no memory for one image of 1024x1024 pixels on cpu" in done.stderr
    assert "What would need less: train.activation_checkpointing: true, train.precision: bf16, data.image_size: " in done.stderr
    assert "Traceback" not in done.stderr


# ── blocks that are computed again ────────────────────────────────────────────────────────────────────────────

MODELS = {
    "timm/test_vit": "{name: timm/test_vit, options: {patch_size: 8, embed_dim: 32, num_heads: 2, depth: 2}, drop_rate: 0.2, drop_path_rate: 0.2}",
    "timm/test_resnet": "{name: timm/test_resnet}",
    "torchvision/squeezenet1_1": "{name: torchvision/squeezenet1_1}",
    "torchvision/mobilenet_v3_small": "{name: torchvision/mobilenet_v3_small}",
}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_computed_again_give_the_same_bits(small_recipe: str, tmp_path: Path, name: str) -> None:
    settings = [f"model={MODELS[name]}", "train.phases.0.epochs=1", "train.micro_batch_size=8"]
    kept = run_of(small_recipe, tmp_path / "kept", *settings)
    again = run_of(small_recipe, tmp_path / "again", *settings, "train.activation_checkpointing=true")
    assert file_hash(again.final_weights) == file_hash(kept.final_weights)
    assert any("blocks compute their activations again in the backward pass" in note for note in again.record.notes)


def test_blocks_computed_again_keep_less(small_recipe: str, tmp_path: Path) -> None:
    deep = ["model={name: timm/test_vit, options: {patch_size: 4, embed_dim: 32, num_heads: 2, depth: 12}}"]
    t = training_of(small_recipe, tmp_path / "t", deep, ALONE)
    images = torch.zeros(4, 3, 32, 32)

    def kept_bytes() -> int:
        storages = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            t.module(images).sum()
        return sum(storages.values())

    t.module.train()
    everything = kept_bytes()
    counted = forward_cost(t.module, t.recipe, [])[0]
    less = forward_cost(t.module, t.recipe.model_copy(update={"train": t.recipe.train.model_copy(update={"activation_checkpointing": True})}), [])[0]
    assert recompute_blocks(t.module) == [f"blocks.{i}" for i in range(12)]
    assert kept_bytes() < 0.1 * everything
    assert less < 0.25 * counted


def test_blocks_are_the_repeated_parts() -> None:
    import timm
    import torchvision

    assert blocks(torchvision.models.resnet18()) == [f"layer{s}.{i}" for s in (1, 2, 3, 4) for i in (0, 1)]
    assert blocks(torchvision.models.vit_b_32()) == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    assert len(blocks(torchvision.models.convnext_tiny())) >= 18
    assert len(blocks(timm.create_model("swin_tiny_patch4_window7_224"))) == 12
    assert len(blocks(torchvision.models.efficientnet_b0())) == 16 + 2
    assert blocks(torchvision.models.vgg11()) == []


def test_a_model_without_blocks_is_refused(small_recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train.activation_checkpointing: torchvision/vgg11 has no repeated blocks"):
        run_of(small_recipe, tmp_path / "r", "model={name: torchvision/vgg11}", "train.activation_checkpointing=true")


# ── what a resumed run must find ──────────────────────────────────────────────────────────────────────────────


def interrupted(text: str, out: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, after: int = 5) -> Run:
    """A run stopped after some steps, its checkpoints as they stand."""
    real = loop._perhaps_save

    def stopping(t, stage, stop):
        if t.at.step == after:
            stop.set()
        real(t, stage, stop)

    monkeypatch.setattr(loop, "_perhaps_save", stopping)
    with pytest.raises(InterruptedError):
        run_of(text, out, *overrides)
    monkeypatch.undo()
    return Run(out)


def test_a_run_folder_moved_elsewhere_resumes_to_the_same_bits(small_recipe: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(small_recipe, tmp_path / "here", monkeypatch)
    run.path.rename(tmp_path / "there")
    assert file_hash(resume(tmp_path / "there", quiet=True, figures=False).final_weights) == file_hash(Run(small_run).final_weights)


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("resolved.yaml", "batch_size: 16", "batch_size: 8", r"resolved.yaml: the recipe was changed since the run began: train.batch_size \(16 then, 8 now\)"),
        ("recipe.yaml", "batch_size: 16", "batch_size: 8", "recipe.yaml: the file was changed since the run began, and a resumed run follows resolved.yaml"),
    ],
)
def test_a_changed_recipe_refuses_to_resume(
    small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, told: str
) -> None:
    run = interrupted(small_recipe, tmp_path / "r", monkeypatch)
    text = (run.path / file).read_text()
    assert old in text
    (run.path / file).write_text(text.replace(old, new))
    before = {path: file_hash(path) for path in sorted(run.path.rglob("*")) if path.is_file()}
    with pytest.raises(RunError, match=told):
        resume(run.path, quiet=True)
    assert {path: file_hash(path) for path in sorted(run.path.rglob("*")) if path.is_file()} == before, "nothing is overwritten"


def test_what_decides_no_bit_may_change(small_recipe: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(small_recipe, tmp_path / "r", monkeypatch)
    file = run.path / "resolved.yaml"
    file.write_text(file.read_text().replace("workers: 2", "workers: 0"))
    assert file_hash(resume(run.path, quiet=True, figures=False).final_weights) == file_hash(Run(small_run).final_weights)


FULL_DISK = """
import resource, signal, sys
import pellucid.loop as loop
import pellucid
from pellucid.errors import PellucidError
real = loop.save
def save(t, stage):
    if t.at.step >= 5:  # from here on no file may grow beyond so much: every write of more fails as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    return real(t, stage)
loop.save = save
try:
    pellucid.train(sys.argv[1], out=sys.argv[2], overrides=["train.checkpoint_seconds=0"], quiet=False, figures=False)
except PellucidError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("room", "told"),
    [
        (20_000, "no checkpoint could be written at step 5 (File too large); the one before it stays"),  # the weights do not fit
        (160_000, "no checkpoint could be written at step 5 (state.pt could not be written: "),  # the weights do, the moments do not
    ],
)
def test_a_full_disk_keeps_the_last_good_checkpoint(small_recipe: str, small_run: Path, tmp_path: Path, room: int, told: str) -> None:
    """Real failed writes: checkpoints from step 5 on, and, where there is no room for them, the final weights."""
    (tmp_path / "r.yaml").write_text(small_recipe)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "r.yaml"), str(tmp_path / "r"), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    if room > Run(small_run).final_weights.stat().st_size:
        assert done.returncode == 0
        assert any(told in note for note in Run(tmp_path / "r").record.notes)
        run = Run(tmp_path / "r")
    else:
        assert done.returncode == 2
        assert "What was trained until the last checkpoint is kept; when that is mended, `pellucid resume" in done.stderr
        assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir()) == ["step-000000003", "step-000000004"]
        run = resume(tmp_path / "r", quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(Run(small_run).final_weights)


def test_a_recipe_changed_before_the_first_checkpoint_refuses_to_resume(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(small_recipe, tmp_path / "r", monkeypatch)
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    file = run.path / "resolved.yaml"
    file.write_text(file.read_text().replace("batch_size: 16", "batch_size: 25"))
    with pytest.raises(RunError, match="resolved.yaml: the recipe was changed since the run began"):
        resume(run.path, quiet=True)


def test_damaged_newer_checkpoints_are_set_aside_and_do_not_push_good_ones_out(
    small_recipe: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(small_recipe, tmp_path / "r", monkeypatch, after=3)
    good = next(run.checkpoints.glob("step-*"))
    for number in (90, 100):
        shutil.copytree(good, run.checkpoints / f"step-{number:09d}")  # whole, but for another step
    (run.checkpoints / ".step-000000091.1").mkdir()
    real = loop._perhaps_save

    def stopping(t, stage, stop):
        if t.at.step == 5:
            stop.set()
        real(t, stage, stop)

    monkeypatch.setattr(loop, "_perhaps_save", stopping)
    with pytest.raises(InterruptedError):
        resume(run.path, quiet=True, figures=False)
    monkeypatch.undo()
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [
        "damaged-step-000000090", "damaged-step-000000100", "step-000000003", "step-000000005",
    ]  # fmt: skip
    run = resume(run.path, quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(Run(small_run).final_weights)
    assert sum("resume passed over a checkpoint" in note for note in run.record.notes) == 2


def test_the_best_weights_are_those_that_the_checkpoint_knows(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A better epoch that came after the checkpoint, on a machine that died, is forgotten with its weights."""
    best = ["train.keep=best", "train.phases.0.epochs=4"]
    unbroken = run_of(small_recipe, tmp_path / "unbroken", *best)
    run = interrupted(small_recipe, tmp_path / "r", monkeypatch, *best, after=5)
    known = run.best_weights(1)
    assert known.exists()
    shutil.copy(known, run.best_weights(2))
    run = resume(run.path, quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(unbroken.final_weights)
    assert run.record.selected == unbroken.record.selected


def test_what_was_noted_before_a_checkpoint_is_not_lost(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out at step 2, a checkpoint at step 3, killed before the epoch ends."""
    failing_call(monkeypatch, number=2, longest=4)
    run = interrupted(small_recipe, tmp_path / "r", monkeypatch, after=3)
    assert any("memory ran out: the micro-batch is 4 since step 2" in note for note in run.record.notes)


def test_a_smaller_micro_batch_may_be_set_on_resume(small_recipe: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(small_recipe, tmp_path / "r", monkeypatch)
    file = run.path / "resolved.yaml"
    file.write_text(file.read_text().replace("micro_batch_size: auto", "micro_batch_size: 5"))
    run = resume(run.path, quiet=True, figures=False)
    assert [line["micro_batch_size"] for line in run.metrics() if line["kind"] == "train"] == [16, 5]
    assert apart(weights_of(run), weights_of(Run(small_run))) < 1e-4


def test_a_signal_in_the_last_evaluation_still_writes_a_checkpoint(small_recipe: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop._validate

    def validate(t, epoch):
        if t.at.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(t, epoch)

    monkeypatch.setattr(loop, "_validate", validate)
    with pytest.raises(InterruptedError, match="interrupted at step 8 of 8, checkpoint written"):
        run_of(small_recipe, tmp_path / "r")
    monkeypatch.undo()
    assert file_hash(resume(tmp_path / "r", quiet=True, figures=False).final_weights) == file_hash(Run(small_run).final_weights)


@pytest.mark.parametrize("other", ["activation_checkpointing", "sync_batch_norm"])
def test_compile_with_what_it_cannot_do_is_refused(small_recipe: str, tmp_path: Path, other: str) -> None:
    with pytest.raises(RecipeError, match=f"compile and {other} do not work together"):
        run_of(small_recipe, tmp_path / "r", "train.compile=true", f"train.{other}=true")
