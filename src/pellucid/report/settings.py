"""A resolved recipe as a reader sees it: settings in groups, and which of them are not at their default."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from pellucid.recipe import Recipe, Section


@dataclass(frozen=True)
class Setting:
    """One leaf of the recipe. `default` is the schema's, as text; None where the recipe has to choose."""

    key: str
    value: str
    default: str | None
    meaning: str

    @property
    def changed(self) -> bool:
        """Whether the value is not the schema's default; a recipe that names the default changes nothing."""
        return self.value != self.default


@dataclass(frozen=True)
class Group:
    """A section of the recipe by its dotted name, such as `train.phases.0.optimizer`; the recipe itself is `recipe`."""

    name: str
    settings: list[Setting]


def groups(recipe: Recipe) -> list[Group]:
    """Every setting of a resolved recipe, in the order of the schema."""
    found: dict[str, list[Setting]] = {}
    for path, setting in _leaves(recipe, ""):
        found.setdefault(path or "recipe", []).append(setting)
    return [Group(name, settings) for name, settings in found.items()]


def shown(value: Any) -> str:
    """A setting's value as its recipe would write it: `true`, `0.001`, `[0.7, 1.0]`, `none`."""
    match value:
        case None:
            return "none"
        case str():
            return value
        case Section():
            return json.dumps(value.model_dump(mode="json"), ensure_ascii=False)
        case _:
            return json.dumps(value, ensure_ascii=False)


def _leaves(section: Section, path: str) -> Iterator[tuple[str, Setting]]:
    """(path of the section, setting); the default of a value in a section that is off by default is the one that it has once the section is there."""
    for name, info in type(section).model_fields.items():
        value, below = getattr(section, name), f"{path}.{name}" if path else name
        if isinstance(value, Section):
            yield from _leaves(value, below)
        elif isinstance(value, list) and any(isinstance(item, Section) for item in value):
            for i, item in enumerate(value):
                yield from _leaves(item, f"{below}.{i}")
        else:
            default = None if info.is_required() else shown(_default(info))
            yield path, Setting(name, shown(value), default, info.description or "")


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})
