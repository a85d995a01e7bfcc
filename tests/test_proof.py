"""The long demonstrations, run by `make proof`: minutes, not seconds."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pellucid.files import file_hash
from pellucid.run import Run
from pellucid.train import resume, train
from pellucid.verify import verify

pytestmark = pytest.mark.proof
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def test_the_demo_reaches_nine_in_ten_and_verifies_to_the_bit(tmp_path: Path) -> None:
    run = train(RECIPES / "demo.yaml", out=tmp_path / "demo", quiet=True)
    assert run.measurements["val/accuracy"].value >= 0.9
    found = verify(run)
    assert (found.result, found.promise) == ("verified", "bit-equal")


@pytest.mark.parametrize("name", ["flowers-mobilenet", "pets-squeezenet"])
def test_published_weights_beat_random_ones_on_photographs(name: str, photographs: Path, tmp_path: Path) -> None:
    accuracy = {}
    for recipe in (name, f"{name}-scratch"):
        run = train(RECIPES / f"{recipe}.yaml", out=tmp_path / recipe, quiet=True, figures=False)
        assert verify(run).ok
        accuracy[recipe] = run.measurements["val/accuracy"]
    pretrained, scratch = accuracy[name], accuracy[f"{name}-scratch"]
    assert pretrained.interval is not None
    assert scratch.interval is not None
    assert pretrained.interval[0] > scratch.interval[1]


def test_runs_killed_at_twenty_random_moments_resume_to_the_same_bits(small_recipe: str, small_run: Path, tmp_path: Path) -> None:
    """A checkpoint after every step, so that many of the kills fall into the writing of one: its torn folder is left behind."""
    (tmp_path / "r.yaml").write_text(small_recipe)
    script = "import pellucid, sys; pellucid.train(sys.argv[1], overrides=['train.checkpoint_seconds=0'], out=sys.argv[2], quiet=True)"
    moments = random.Random(0)
    torn = 0
    for i in range(20):
        folder = tmp_path / f"killed-{i}"
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "r.yaml"), str(folder)], stderr=subprocess.DEVNULL)
        while not (folder / "data.json").exists() and child.poll() is None:
            time.sleep(0.001)
        if i % 2:  # anywhere, the start and the last predictions included
            time.sleep(moments.uniform(0.0, 1.0))
        else:  # while some checkpoint is written
            wanted = moments.randrange(1, 8)
            while child.poll() is None and not list(folder.glob(f"checkpoints/.step-{wanted:09d}*")):
                time.sleep(0.0002)
            time.sleep(moments.uniform(0.0, 0.004))
        child.send_signal(signal.SIGKILL)
        child.wait()
        torn += bool(list(folder.glob("checkpoints/.step-*")))
        unbroken, run = Run(small_run), Run(folder) if Run(folder).record.status == "done" else resume(folder, quiet=True, figures=False)
        assert file_hash(run.final_weights) == file_hash(unbroken.final_weights), i
        np.testing.assert_array_equal(run.predictions("val").logits, unbroken.predictions("val").logits)
        assert {key: m.value for key, m in run.measurements.items()} == {key: m.value for key, m in unbroken.measurements.items()}
        timed = ("seconds", "images_per_second")
        assert [{k: v for k, v in line.items() if k not in timed} for line in run.metrics()] == [
            {k: v for k, v in line.items() if k not in timed} for line in unbroken.metrics()
        ]
    print(f"{torn} of 20 kills left a torn checkpoint")
    assert torn > 0, "no kill fell into the writing of a checkpoint: choose other moments"


def test_two_processes_that_were_interrupted_go_on_to_the_bits_of_two_that_were_not(small_recipe: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe)
    long = ["-s", "train.phases.0.epochs=60", "-s", "train.evaluate_every=60", "-s", "train.checkpoint_seconds=0.2"]

    def torchrun(*words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pellucid", *words, "-q"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert torchrun("train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "unbroken"), *long).wait() == 0
    child = torchrun("train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "broken"), *long)
    while not list(tmp_path.glob("broken/checkpoints/step-*")) and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    assert child.wait() != 0
    assert Run(tmp_path / "broken").record.status == "interrupted"
    assert torchrun("resume", str(tmp_path / "broken")).wait() == 0
    assert file_hash(Run(tmp_path / "broken").final_weights) == file_hash(Run(tmp_path / "unbroken").final_weights)
