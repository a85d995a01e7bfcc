"""A recipe of seconds whose loss curve is a text file: a change of numbers shows as a change of that file.

The last digits belong to the machine (instruction set, library versions), so the curve is compared to 1e-4 relative:
far above rounding, far below what a changed draw, order, schedule or augmentation does (the control below).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.run import Run
from pellucid.train import train

GOLDEN = Path(__file__).parent / "golden" / "small_loss.txt"


def curve(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics() if line["kind"] in ("train", "val")]


def test_the_loss_curve_of_the_small_recipe_is_the_golden_one(small_run: Path) -> None:
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert curve(Run(small_run)) == pytest.approx(golden, rel=1e-4)


def test_another_augmentation_leaves_the_golden_curve(small_recipe: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe)
    run = train(tmp_path / "r.yaml", overrides=["augment.horizontal_flip=0.0"], out=tmp_path / "r", quiet=True, figures=False)
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert curve(run) != pytest.approx(golden, rel=1e-4)
