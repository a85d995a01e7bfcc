"""A checkpoint is found again whole or not at all, and nothing in it is ever executed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from pellucid.checkpoint import latest_checkpoint, save_checkpoint
from pellucid.files import file_hash


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((2, 3), float(step)), "a.steps": torch.tensor(step)}


def save(folder: Path, step: int, *, average: bool = False) -> Path:
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "epoch": step // 4, "best": None, "tally": {"loss": 0.5}}
    return save_checkpoint(folder, step=step, model=weights(step), average=weights(step + 100) if average else None, state=state)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rehash(path: Path) -> None:
    """A manifest that fits the files, as somebody who changed them would write it."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: file_hash(path / name) for name in manifest["files"]}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("average", [False, True])
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, average: bool) -> None:
    path = save(tmp_path, 7, average=average)
    found, damaged = latest_checkpoint(tmp_path)
    assert damaged == []
    assert found is not None
    assert (found.path, found.step) == (path, 7)
    assert torch.equal(found.model["a.weight"], weights(7)["a.weight"])
    assert int(found.model["a.steps"]) == 7
    assert (found.average is not None) == average
    if found.average is not None:
        assert torch.equal(found.average["a.weight"], weights(107)["a.weight"])
    assert found.state["epoch"] == 1
    assert found.state["best"] is None
    optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    optimizer.load_state_dict(found.state["optimizer"])
    assert float(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 1


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 90, 1000):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-000000090", "step-000001000"]
    found, _ = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1000


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) == (None, [])
    assert latest_checkpoint(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "manifest.json", "average.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 3, average=True)
    newest = save(tmp_path, 8, average=True)
    path = newest / file
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    found, damaged = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 3
    assert len(damaged) == 1
    assert str(newest) in damaged[0]
    shutil.rmtree(tmp_path / "step-000000003")
    assert latest_checkpoint(tmp_path)[0] is None


class Malicious:
    """What pickle would run on loading."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.target,)


def test_a_state_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 3)
    newest = save(folder, 8)
    torch.save({"optimizer": Malicious(str(tmp_path / "executed"))}, newest / "state.pt")
    rehash(newest)
    found, damaged = latest_checkpoint(folder)
    assert found is not None
    assert found.step == 3
    assert "step-000000008: not a whole checkpoint" in damaged[0]
    assert not (tmp_path / "executed").exists()
    torch.load(newest / "state.pt", weights_only=False)
    assert (tmp_path / "executed").exists(), "the file would have done it"


@pytest.mark.parametrize("manifest", ["[]", "{", '{"step": 8}', '{"step": "x", "files": {}}', '{"step": 8, "files": ["state.pt"]}'])
def test_a_manifest_that_makes_no_sense_is_passed_over(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 3)
    newest = save(tmp_path, 8)
    (newest / "manifest.json").write_text(manifest)
    found, damaged = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, len(damaged)) == (3, 1)


def test_a_write_that_fails_leaves_the_old_one_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pellucid.checkpoint.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 8)
    assert names(tmp_path) == ["step-000000003"]
    found, damaged = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (3, [])


def test_the_same_step_is_written_anew(tmp_path: Path) -> None:
    """A resumed run reaches the step of an old checkpoint again."""
    save(tmp_path, 3)
    save_checkpoint(tmp_path, step=3, model=weights(30), average=None, state={})
    found, _ = latest_checkpoint(tmp_path)
    assert found is not None
    assert float(found.model["a.weight"][0, 0]) == 30.0
    assert names(tmp_path) == ["step-000000003"]
