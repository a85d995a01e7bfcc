"""The README: its commands run, its recipe is valid, its Python works."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pellucid import recipe as recipes
from pellucid.data.scenes import draw

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
SMALLER = ["-s", "data.train=30", "-s", "data.val=12", "-s", "train.phases.0.epochs=1", "-s", "train.threads=1", "-s", "model.options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}"]  # fmt: skip
DEMO = [*SMALLER, "-s", "inside.samples=2"]
MASKS = [*SMALLER[:-2], "-s", "inside.samples=2"]  # the last is of the demo's model
VIEWS = [*SMALLER[:-2], "-s", "inside=null"]
WORDS = [*SMALLER[:-2], "-s", "words.drawn=1", "-s", "text.max_length=6"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line.removeprefix(".venv/bin/")) for line in lines if line.startswith(".venv/bin/pellucid")]


def test_the_commands_of_the_readme_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 11
    Image.fromarray(draw(0, split="val", image_size=(64, 64)).image).save("photo.png")
    for command in commands():
        smaller = (
            (WORDS if "captions.yaml" in command else VIEWS if "own.yaml" in command else MASKS if "masks.yaml" in command else DEMO)
            if command[1] in ("train", "plan")
            else []
        )
        if "--seeds" in command:
            smaller = [*smaller, "-s", "inside=null"]  # looked into once, by the run before
        code, out, err = pellucid(*command[1:], *smaller)
        assert code == 0, (command, err)
        assert out.strip(), command
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    assert (tmp_path / "masks" / "photo.png").exists()
    assert json.loads((tmp_path / "captions.json").read_text()).keys() == {"photo.png"}


def test_the_recipe_of_the_readme_is_valid() -> None:
    [text] = blocks("yaml")
    assert recipes.loads(text).train.batch_size == 512


def test_the_python_of_the_readme_works(small_run: Path, tmp_path: Path) -> None:
    import pellucid

    [code] = blocks("python")
    assert "pellucid.train(" in code
    run = pellucid.Run(small_run)
    assert repr(run.measurements["val/accuracy"]).startswith("Measurement(name='accuracy', value=")
    Image.fromarray(draw(0, split="val", image_size=(32, 32)).image).save(tmp_path / "photo.png")
    [prediction] = run.predict([tmp_path / "photo.png"])
    assert prediction.file == str(tmp_path / "photo.png")
    assert 0.0 < prediction.confidence <= 1.0


def test_the_picture_is_there_and_every_linked_file() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).resolve().parent.parent / target).exists(), target
