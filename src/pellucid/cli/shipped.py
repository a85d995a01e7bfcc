"""The recipes and studies that come with Pellucid, as files."""

from __future__ import annotations

import re
from pathlib import Path

from pellucid.errors import MissingError, UsageError, did_you_mean

PACKAGE = Path(__file__).parent.parent


def recipes() -> dict[str, Path]:
    """{name: file} of the shipped recipes."""
    return _files("recipes")


def studies() -> dict[str, Path]:
    """{studies/name: file} of the shipped studies."""
    return {f"studies/{name}": file for name, file in _files("studies").items()}


def recipe(name: str) -> Path:
    """The file of a shipped recipe, or study by studies/name; UsageError with the nearest name when there is none."""
    found = recipes() | studies()
    if name not in found:
        raise UsageError(f"there is no recipe {name!r}.{did_you_mean(name, found)} `pellucid recipes ls` shows all.")
    return found[name]


def extended(file: Path) -> Path | None:
    """The recipe that a recipe is laid over."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("extends:"):
            return file.parent / line.partition(":")[2].strip()
    return None


def behind(study: Path) -> list[Path]:
    """The recipes of a study, with those that they are laid over."""
    named = [study.parent / name for name in re.findall(r"\brecipe: *([^\s,}]+)", study.read_text(encoding="utf-8"))]
    return list(dict.fromkeys(file for recipe in named for file in (recipe, extended(recipe)) if file is not None))


def _files(kind: str) -> dict[str, Path]:
    """{name: file} of a folder that lies beside the package when installed, at the top of a checkout otherwise."""
    for folder in (PACKAGE / kind, PACKAGE.parent.parent / kind):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise MissingError(f"the {kind} that come with Pellucid are not installed. Install it again with pip.")
