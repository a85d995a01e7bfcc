"""The reference page is what the code says, and leaves nothing out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import pellucid
from conftest import REPOSITORY
from pellucid import errors
from pellucid.cli import app
from pellucid.recipe import json_schema


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_reference", REPOSITORY / "docs" / "make_reference.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> str:
    return (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_page_is_as_new_as_the_code(maker: ModuleType, page: str) -> None:
    assert page == maker.reference(), "run `make reference`"
    assert maker.reference() == maker.reference()


def test_every_recipe_key_is_described(page: str) -> None:
    schema = json_schema()
    sections = [schema, *(part for part in schema["$defs"].values() if "properties" in part)]
    keys = {key for section in sections for key in section["properties"]}
    assert len(keys) > 60
    for key in keys - {"extends"}:
        (first, *_) = [line for line in page.splitlines() if line.startswith(f"| `{key}` |")] or [""]
        assert first, f"{key} is not in the reference"
        assert all(cell.strip() for cell in first.split(" | ")), f"{key} has no description"
    assert "`extends: other.yaml`" in page


def test_every_command_and_option_is_described(page: str) -> None:
    def leaves(command, name):
        for word, item in getattr(command, "commands", {}).items():
            yield from leaves(item, f"{name} {word}")
        if not hasattr(command, "commands"):
            yield name, command

    found = dict(leaves(typer.main.get_command(app), "pellucid"))
    assert len(found) >= 16
    for name, command in found.items():
        start = page.index(f"### `{name} ") if f"### `{name} " in page else page.index(f"### `{name}`")
        section = page[start + 4 :].split("\n#")[0]
        for option in (option for parameter in command.params if parameter.name != "help" for option in parameter.opts if option.startswith("-")):
            assert option in section, f"{name} {option}"
        for line in section.splitlines():
            assert not line.endswith("|  |"), f"{name}: {line} has no description"


def test_every_exit_code_file_and_name_is_listed(page: str) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PellucidError)]
    for kind in kinds:
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in page
    for name in pellucid.__all__:
        assert f"`pellucid.{name}`" in page


def test_every_file_of_a_run_is_listed(page: str, small_run: Path) -> None:
    folder = page.partition("## Run folder")[2].partition("\n## ")[0]
    for path in small_run.iterdir():
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in folder, path.name


def test_text_in_angle_brackets_stays_visible(page: str) -> None:
    assert "torchvision:&lt;Name>" in page
