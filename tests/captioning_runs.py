"""A captioning run of seconds, and what a forger does to a copy of it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pellucid.files import file_hash
from pellucid.run import Run
from pellucid.train import train

RECIPE = """
task: captioning
data: {source: scenes, train: 64, val: 24, image_size: 32}
model: {name: pellucid/captioner, encoder: timm/test_resnet, encoder_stride: 8, decoder: {depth: 2, embed_dim: 32, num_heads: 2}}
text: {max_length: 16}
words: {drawn: 3}
train: {batch_size: 16, threads: 1, phases: [{epochs: 4, optimizer: {name: adamw, lr: 3.0e-3}}]}
"""
_MADE: list[Run] = []


def tiny_run(folders: pytest.TempPathFactory) -> Run:
    """The run of RECIPE, trained once for all tests; read only."""
    if not _MADE:
        folder = folders.mktemp("captioning")
        (folder / "recipe.yaml").write_text(RECIPE)
        _MADE.append(train(folder / "recipe.yaml", out=folder / "run", quiet=True, figures=False))
    return _MADE[0]


def copy_of(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.path, folder / "copied"))


def resign(run: Run) -> None:
    """Every file has the hash that run.json states."""
    record = run.record
    record.files = {name: file_hash(run.path / name) for name in record.files}
    run.write_record(record)


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    stated = json.loads(path.read_text())
    change(stated)
    path.write_text(json.dumps(stated))


def change_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


def change_table(path: Path, change: Callable[[list[list[str]]], None]) -> None:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def change_measurements(run: Run, change: Callable[[dict[str, dict[str, Any]]], None]) -> None:
    """change gets {name: measurement}, from which it may take some."""

    def changed(record: dict[str, Any]) -> None:
        named = {m["name"]: m for m in record["measurements"]}
        change(named)
        record["measurements"] = list(named.values())

    change_json(run.path / "run.json", changed)
