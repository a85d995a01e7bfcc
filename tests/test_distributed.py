"""Two processes under torchrun are one: its gradients, its order of samples, its metrics, each sample counted once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from gradients import apart, flat, window_gradients
from pellucid.data.loader import Cutting
from pellucid.distributed import ALONE, Processes, _buckets
from pellucid.errors import UsageError
from pellucid.files import file_hash
from pellucid.models.self_supervised import Byol, SelfSupervised, SimClr
from pellucid.models.synchronized import synchronized_batch_norm
from pellucid.models.weights import read_weights
from pellucid.run import Run
from pellucid.train import resume, train

SGD = ["train.phases.0.optimizer={name: sgd, lr: 0.05}", "train.phases.0.schedule={name: constant}"]
RESNET = ["model={name: timm/test_resnet}", "train.batch_size=17"]
MASKS = [
    "task=segmentation", "loss={name: sum, terms: [{name: poly1}, {name: lovasz}], class_weights: balanced}", "augment={random_crop: 4, rotation: 20}",
    "model={name: smp/Unet, encoder: tu-test_convnext, options: {encoder_depth: 3, decoder_channels: [16, 8, 8], decoder_use_norm: false}}",
]  # fmt: skip
# Scenes are described in 9 or 10 words: windows differ in their tokens.
CAPTIONS = [
    "task=captioning", "augment={}", "text={max_length: 12}", "words={drawn: 1}",
    "model={name: pellucid/captioner, encoder: timm/test_vit, decoder: {depth: 1, embed_dim: 32, num_heads: 2, drop_rate: 0.0}}",
]  # fmt: skip
# The views of batches of 16, 16 and 17, the last in 9 and 8: 49 images, whose last would be alone.
VIEWS = [
    *SGD, "task=pretraining", "model={name: timm/test_resnet}", "data.train=49", "train.sync_batch_norm=true", "train.phases.0.optimizer.lr=1e-3",
    "augment={random_resized_crop: [0.3, 1.0], horizontal_flip: 0.5}", "probe={linear: false}",
]  # fmt: skip
BYOL = "method={name: byol, projector_hidden: 32, projector_output: 16, predictor_hidden: 32, momentum: 0.9}"
SIMCLR = "method={name: simclr, projector_output: 16}"
# 50 images in batches of 16 and 17: the last windows hold 2 and 16; packs of 3 are ragged.
GRADIENTS = {
    "whole": SGD,
    "ragged": [*SGD, "train.micro_batch_size=3"],
    "weighted": [*SGD, "train.micro_batch_size=3", "augment.mixup=0.4", "loss.class_weights=balanced", "loss.label_smoothing=0.1"],
    "synchronized": [*SGD, *RESNET, "train.sync_batch_norm=true"],
    "masks": [*SGD, *MASKS, "train.micro_batch_size=3"],
    "captions": [*SGD, *CAPTIONS, "train.micro_batch_size=3", "loss.label_smoothing=0.1"],
    "recomputed": [*SGD, *RESNET, "train.sync_batch_norm=true", "train.activation_checkpointing=true"],
}
RUNS = {
    "sam": [*SGD, "train.phases.0.optimizer.sam.rho=0.05", "train.ema.decay=0.9", "train.clip_grad_norm=1.0", "data.val=101"],
    "synchronized": [*SGD, *RESNET, "train.phases.0.optimizer.lr=1e-3", "train.sync_batch_norm=true", "train.keep=best"],
    "apart": [*SGD, *RESNET],
    "masks": [*SGD, *MASKS, "data.val=31"],
    "captions": [*SGD, *CAPTIONS, "data.val=9", "generation.num_beams=2", "train.phases.0.epochs=1"],
    "byol": [*VIEWS, BYOL],
    "simclr": [*VIEWS, SIMCLR],
    "simclr apart": [*VIEWS, SIMCLR, "train.sync_batch_norm=false", "train.phases.0.epochs=1"],
}

DRIVER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch, pellucid
from gradients import window_gradients
from pellucid.distributed import joined
from pellucid import recipe as recipes
text, out, jobs = Path(sys.argv[1]).read_text(), Path(sys.argv[2]), json.loads(sys.argv[4])
with joined() as processes:
    for name, overrides in jobs["gradients"].items():
        found = window_gradients(text, out / f"g-{name}", overrides)
        if processes.first:
            torch.save(found, out / f"{name}.pt")
    from test_distributed import normalized_gradient, steps_of_views
    found = normalized_gradient(processes), [steps_of_views(method, processes) for method in ("byol", "simclr")]
    if processes.first:
        torch.save(found[0], out / "double.pt")
        torch.save(found[1], out / "views.pt")
    for name, overrides in jobs["runs"].items():
        pellucid.train(sys.argv[1], overrides=overrides, out=out / name, quiet=True, figures=False)
"""


def torchrun(number: int, *command: str, wait: bool = True) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number), *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    if wait:
        child.told = child.communicate(timeout=240)  # type: ignore[attr-defined]
    return child


@pytest.fixture(scope="module")
def recipe_file(small_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("two") / "r.yaml"
    file.write_text(small_recipe)
    return file


@pytest.fixture(scope="module")
def two(recipe_file: Path) -> Path:
    """What two processes gave for all of GRADIENTS and RUNS."""
    folder = recipe_file.parent / "two"
    folder.mkdir()
    driver = recipe_file.parent / "driver.py"
    driver.write_text(DRIVER)
    jobs = json.dumps({"gradients": GRADIENTS, "runs": RUNS})
    child = torchrun(2, str(driver), str(recipe_file), str(folder), str(Path(__file__).parent), jobs)
    assert child.returncode == 0, child.told[1][-4000:]  # type: ignore[attr-defined]
    return folder


@pytest.mark.parametrize("name", GRADIENTS)
def test_two_processes_give_the_gradient_of_one(two: Path, small_recipe: str, tmp_path: Path, name: str) -> None:
    ours = torch.load(two / f"{name}.pt")
    one = window_gradients(small_recipe, tmp_path / "one", [o for o in GRADIENTS[name] if "micro_batch" not in o])
    assert len(ours) == len(one)
    # Batch statistics cost float32 digits in one process too: 3e-6 from float64. The test below has the same layers in float64.
    for a, b in zip(ours, one, strict=True):
        assert apart(a, b) < (1e-6 if RESNET[0] not in GRADIENTS[name] else 1e-5)


def normalized_gradient(processes: Processes) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient, running statistics) of a network with BatchNorm in float64 on 9 images, shared out; the last process may have none of the second batch."""
    import timm

    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=5).double().train()
    images, labels = torch.randn(9, 3, 32, 32, dtype=torch.float64), torch.arange(9) % 5
    for images_, labels_ in ((images, labels), (images[:1].repeat(1, 1, 2, 2), labels[:1])):
        start, stop = processes.share(len(images_))
        counted = stop > start
        with synchronized_batch_norm(counted=counted) if not processes.alone else nullcontext():
            outputs = module(images_[start:stop] if counted else images_[:1])
            (torch.nn.functional.cross_entropy(outputs, labels_[start:stop] if counted else labels_[:1], reduction="sum") * counted).backward()
    processes.add([p.grad for p in module.parameters()])
    return flat(list(module.parameters())), torch.cat([b.double().flatten() for b in module.buffers()])


def test_synchronized_statistics_are_those_of_one_process(two: Path) -> None:
    """In float64, where only a wrong formula is left to differ; timm's layers hold their activation inside BatchNorm."""
    for ours, one in zip(torch.load(two / "double.pt"), normalized_gradient(ALONE), strict=True):
        assert apart(ours, one) < 1e-10


def steps_of_views(method: str, processes: Processes) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss of each step, all that the module then holds) of three steps in float64 on 9, 2 and 9 images, shared out; the last process has none of the 2."""
    import timm

    torch.manual_seed(0)
    backbone, heads = timm.create_model("test_resnet", num_classes=0), {"projector_hidden": 24, "projector_output": 8}
    module: SelfSupervised
    if method == "byol":
        module = Byol(backbone, backbone.num_features, **heads, predictor_hidden=24, momentum=0.9, stop_gradient=True)
    else:
        module = SimClr(backbone, backbone.num_features, **heads, temperature=0.2)
    module = module.double().train()
    trained, losses = [p for p in module.parameters() if p.requires_grad], []
    for step, n in enumerate((9, 2, 9)):
        first, second = torch.randn(2, n, 3, 32, 32, dtype=torch.float64)
        start, stop = processes.share(n) if n > 2 else (0, 2 if processes.first else 0)
        counted = stop > start
        module.zero_grad(set_to_none=True)
        with synchronized_batch_norm(counted=counted) if not processes.alone else nullcontext():
            loss = module(first[start:stop] if counted else first[:1], second[start:stop] if counted else second[:1]).sum() * counted / n
            loss.backward()
        gradients = [p.grad for p in trained if p.grad is not None]
        processes.add(gradients)
        total = loss.detach().reshape(1)
        processes.add([total])
        losses.append(total)
        with torch.no_grad():
            torch._foreach_add_([p for p in trained if p.grad is not None], gradients, alpha=-0.02)
        module.after_step(step, 3)
    return torch.cat(losses), torch.cat([value.double().flatten() for value in module.state_dict().values()])


@pytest.mark.parametrize(("place", "method"), [(0, "byol"), (1, "simclr")])
def test_steps_of_two_views_are_those_of_one_process(two: Path, place: int, method: str) -> None:
    """In float64: BatchNorm and negatives over all processes, weights, running statistics and the target network, one process idle in the second step."""
    for ours, one in zip(torch.load(two / "views.pt")[place], steps_of_views(method, ALONE), strict=True):
        assert apart(ours, one) < 1e-9


def lines(run: Run) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("kind", "seconds", "images_per_second", "micro_batch_size")} for line in run.metrics()]


@pytest.mark.parametrize("name", ["byol", "simclr"])
def test_two_processes_pretrain_as_one_does(two: Path, recipe_file: Path, tmp_path: Path, name: str) -> None:
    run = Run(two / name)
    one = train(recipe_file, overrides=RUNS[name], out=tmp_path / "one", quiet=True, figures=False)
    ours, theirs = ([line["loss"] for line in r.metrics() if line["kind"] == "train"] for r in (run, one))
    assert ours == pytest.approx(theirs, rel=1e-5)  # float32 through BatchNorm, as above
    a, b = (torch.cat([w.double().flatten() for w in read_weights(r.final_weights).values()]) for r in (run, one))
    assert apart(a, b) < 1e-4
    found, alone = (np.load(r.predictions_file("val")) for r in (run, one))
    assert found["name"].tolist() == alone["name"].tolist()
    assert found["bank_rows"].tolist() == alone["bank_rows"].tolist()
    np.testing.assert_allclose(found["features"], alone["features"], atol=1e-3)


def test_negatives_that_are_not_of_all_processes_are_named(two: Path) -> None:
    notes = Run(two / "simclr apart").record.notes
    assert "simclr tells an image from those of its micro-batch of 8, not of the batch of 16" in notes
    assert "BatchNorm sees micro-batches of 8 images, not the batch of 16" in notes


@pytest.mark.parametrize("name", ["sam", "synchronized"])
def test_two_processes_give_the_run_of_one(two: Path, recipe_file: Path, tmp_path: Path, name: str) -> None:
    run = Run(two / name)
    one = train(recipe_file, overrides=RUNS[name], out=tmp_path / "one", quiet=True, figures=False)
    assert run.record.status == "done"
    assert run.environment["processes"] == 2
    assert len(lines(run)) == len(lines(one))
    for ours, theirs in zip(lines(run), lines(one), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    a, b = (torch.cat([w.double().flatten() for w in read_weights(r.final_weights).values()]) for r in (run, one))
    assert apart(a, b) < (1e-5 if name == "sam" else 1e-4)  # BatchNorm in float32 multiplies rounding by some 30 in four steps
    assert run.predictions("val").files == one.predictions("val").files  # 101 samples over 2 processes, counted once each
    np.testing.assert_allclose(run.predictions("val").logits, one.predictions("val").logits, atol=1e-4)
    assert {k: m.n for k, m in run.measurements.items()} == {k: m.n for k, m in one.measurements.items()}


def test_two_processes_count_each_mask_once(two: Path, recipe_file: Path, tmp_path: Path) -> None:
    run = Run(two / "masks")
    one = train(recipe_file, overrides=RUNS["masks"], out=tmp_path / "one", quiet=True, figures=False)
    for ours, theirs in zip(lines(run), lines(one), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    found, alone = run.mask_predictions("val"), one.mask_predictions("val")
    assert found.files == alone.files
    assert found.confusion.sum() == 31 * 32 * 32
    assert (found.confusion != alone.confusion).mean() < 0.01
    assert len(list(run.masks_folder("val").glob("*.png"))) == 31


def test_two_processes_describe_each_picture_once_and_as_one_does(two: Path, recipe_file: Path, tmp_path: Path) -> None:
    run = Run(two / "captions")
    one = train(recipe_file, overrides=RUNS["captions"], out=tmp_path / "one", quiet=True, figures=False)
    for ours, theirs in zip(lines(run), lines(one), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    found, alone = run.caption_predictions("val"), one.caption_predictions("val")
    assert found.files == alone.files
    assert found.tokens.tolist() == alone.tokens.tolist()
    np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-5)
    assert {k: (m.n, pytest.approx(m.value, rel=1e-4)) for k, m in run.measurements.items()} == {k: (m.n, m.value) for k, m in one.measurements.items()}


def test_statistics_that_are_not_synchronized_are_named(two: Path) -> None:
    notes = Run(two / "apart").record.notes
    assert "BatchNorm sees micro-batches of 9 images, not the batch of 17" in notes
    assert "running statistics are the mean of those of the processes (train.sync_batch_norm: true takes them over all images)" in notes


def test_an_interrupted_run_of_two_goes_on_with_one_and_says_so(recipe_file: Path, tmp_path: Path) -> None:
    settings = ["-s", "train.phases.0.epochs=150", "-s", "train.checkpoint_seconds=0.2", "-s", "train.evaluate_every=150"]
    out = tmp_path / "run"
    child = torchrun(2, "-m", "pellucid", "train", str(recipe_file), "--out", str(out), *settings, wait=False)
    end = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*")) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGTERM)
    _, told = child.communicate(timeout=120)
    assert Run(out).record.status == "interrupted", told[-3000:]
    assert told.count("interrupted at step") == 2
    run = resume(out, quiet=True, figures=False)
    assert run.record.status == "done"
    assert "resumed with another number of processes (2 before, 1 now): no longer the bits of an unbroken run" in run.record.notes


def test_the_first_process_alone_prints_and_an_error_is_told_once_each(recipe_file: Path, tmp_path: Path) -> None:
    child = torchrun(2, "-m", "pellucid", "train", str(recipe_file), "--out", str(tmp_path / "r"), "-s", "train.phases.0.epochs=1", "--json", "-q")
    out, _ = child.told  # type: ignore[attr-defined]
    assert child.returncode == 0
    assert json.loads(out)["run"] == str(tmp_path / "r")
    before = file_hash(tmp_path / "r" / "run.json")
    child = torchrun(2, "-m", "pellucid", "train", str(recipe_file), "--out", str(tmp_path / "r"), "-q")
    assert child.returncode != 0
    assert "the folder is not empty" in child.told[1]  # type: ignore[attr-defined]
    assert file_hash(tmp_path / "r" / "run.json") == before


@pytest.mark.parametrize("least", [1, 2])
def test_shares_are_whole_even_and_in_order(least: int) -> None:
    for size in (1, 2, 3, 8):
        for n in (1, 2, 3, 7, 8, 16, 37):
            shares = [Processes(rank, size).share(n, least) for rank in range(size)]
            assert [i for start, stop in shares for i in range(start, stop)] == list(range(n))
            sizes = [stop - start for start, stop in shares if stop > start]
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= min(least, n)


def test_with_synchronized_statistics_every_process_has_as_many_packs() -> None:
    for n in (1, 2, 5, 16, 17):
        cuts = [Cutting(Processes(rank, 3), no_single=True, together=True)(n, 2) for rank in range(3)]
        assert len({len(cut) for cut in cuts}) == 1
        assert sorted(i for cut in cuts for start, stop in cut for i in range(start, stop)) == list(range(n))


def test_buckets_keep_the_order_and_never_mix_types() -> None:
    tensors = [torch.zeros(3), torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(4_000_000), torch.zeros(4_000_000)]
    assert [[t.numel() for t in bucket] for bucket in _buckets(tensors)] == [[3, 2], [2], [4_000_000], [4_000_000]]


def test_alone_costs_nothing_and_half_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.distributed import joined

    value = torch.ones(3)
    ALONE.add([value])
    assert (value.tolist(), ALONE.largest(3.0), ALONE.gather("a"), ALONE.told("b")) == ([1, 1, 1], [3.0], ["a"], "b")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UsageError, match="WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set. Start several processes with torchrun"),
        joined(),
    ):
        pass
