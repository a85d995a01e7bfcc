"""The long demonstrations, run by `make proof`: minutes, not seconds."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pellucid.run import Run, file_hash
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


def test_runs_killed_at_ten_random_moments_resume_to_the_same_bits(small_recipe: str, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe)
    script = "import pellucid, sys; pellucid.train(sys.argv[1], overrides=['train.checkpoint_seconds=0'], out=sys.argv[2], quiet=True)"
    moments = random.Random(0)
    for i in range(10):
        folder = tmp_path / f"killed-{i}"
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "r.yaml"), str(folder)], stderr=subprocess.DEVNULL)
        while not (folder / "data.json").exists() and child.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 1.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
        run = Run(folder) if Run(folder).record.status == "done" else resume(folder, quiet=True, figures=False)
        assert file_hash(run.final_weights) == file_hash(Run(small_run).final_weights), i
