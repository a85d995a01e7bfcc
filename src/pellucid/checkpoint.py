"""Checkpoints: written beside the old one and put in its place whole, found again newest first.

A checkpoint is a folder `checkpoints/step-<n>` with `model.safetensors`, `average.safetensors` (with EMA), `state.pt`
(optimiser, progress; loads with weights_only) and `manifest.json`, the hashes of the others. A folder whose files do
not agree with its manifest is passed over, so a torn write costs the steps since the checkpoint before it and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import RunError
from pellucid.files import file_hash
from pellucid.models.weights import read_weights, save_weights

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on: weights on the CPU and the loop's own state."""

    path: Path
    step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    state: dict[str, Any]


def save_checkpoint(folder: Path, *, step: int, model: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, state: Mapping[str, Any]) -> Path:
    """Write `folder/step-<step>` and drop all but the newest two."""
    target = folder / f"step-{step:09d}"
    temporary = folder / f".step-{step:09d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_weights(model, temporary / "model.safetensors", {"step": str(step)})
        if average is not None:
            save_weights(average, temporary / "average.safetensors", {"step": str(step)})
        try:
            torch.save(dict(state), temporary / "state.pt")
        except RuntimeError as error:  # what torch's own writer says of a full disk
            raise OSError(errno.EIO, f"state.pt could not be written: {str(error).splitlines()[0]}") from None
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            _sync(temporary / name)
        (temporary / "manifest.json").write_text(json.dumps({"step": step, "files": {name: file_hash(temporary / name) for name in names}}))
        _sync(temporary / "manifest.json")
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in [path for path in _folders(folder) if path != target][KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def set_damaged_aside(folder: Path, chosen: Checkpoint | None) -> None:
    """Rename checkpoints newer than the one that training goes on from, which are damaged, and remove what was half-written.

    Otherwise they would count among the newest, and push the next good ones out.
    """
    for path in _folders(folder):
        if chosen is not None and path == chosen.path:
            break
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that was passed over because it is damaged."""
    passed: list[str] = []
    for path in _folders(folder):
        try:
            return _load(path), passed
        except RunError as error:
            passed.append(str(error))
    return None, passed


def drop_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, and what a killed process left half-written."""
    for path in [*_folders(folder), *folder.glob(".step-*"), *folder.glob("damaged-step-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _load(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files, there = dict(manifest["files"]), {file.name for file in path.iterdir()} - {"manifest.json"}
        if files.keys() != there or not {"model.safetensors", "state.pt"} <= there or path.name != f"step-{manifest['step']:09d}":
            raise RunError(f"{path}: not a whole checkpoint (its manifest names other files or another step)")
        for name, digest in files.items():
            if file_hash(path / name) != digest:
                raise RunError(f"{path / name}: the file is damaged (its hash is not the one in the manifest)")
        average = read_weights(path / "average.safetensors") if "average.safetensors" in there else None
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise RunError(f"{path}: not a whole checkpoint (state.pt holds no state)")
        return Checkpoint(path, manifest["step"], read_weights(path / "model.safetensors"), average, state)
    except RunError:
        raise
    except Exception as error:  # a damaged file raises a dozen types out of json, torch and safetensors
        raise RunError(f"{path}: not a whole checkpoint ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
