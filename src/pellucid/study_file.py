"""The file of a study: how `study.yaml` becomes the checked recipe of every run, before any is trained.

Faults are told as those of a recipe are, each with file:line:column, what was expected and the nearest known name; one that
a setting brings into its recipe names the setting. What settings `set` stands in the study file, and its relative paths
start there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pellucid import recipe as recipes
from pellucid.errors import Problem, RecipeError, UsageError, did_you_mean
from pellucid.recipe import Change, Places, Recipe, place_of
from pellucid.schema.study import SettingSection, SharedSection, Study

WEIGHTS_KEYS = ("model.weights", "model.backbone_weights")  # what `from` may name


@dataclass(frozen=True)
class Part:
    """A setting, or a run that settings share, with its checked recipe.

    source: file of the recipe, as the study names it. changes: {key: value} that it sets. weights: {key of the recipe: name of the shared run behind it}.
    """

    name: str
    recipe: Recipe
    source: str
    changes: dict[str, Any]
    label: str = ""
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedStudy:
    """A study with every recipe resolved. measure: None for the headline of the first run. overrides: those of the command line."""

    file: Path
    text: str
    recipe: str
    seeds: list[int]
    measure: str | None
    baseline: str
    final: str | None
    shared: dict[str, Part]
    settings: dict[str, Part]
    overrides: list[str]

    @property
    def name(self) -> str:
        return self.file.stem


def load_study(path: str | Path, overrides: Sequence[str] = (), *, folder: Path) -> PlannedStudy:
    """The checked study of a file whose runs lie in `folder`; overrides: `KEY=VALUE` for all settings, `NAME:KEY=VALUE` for one or for a shared run.

    Raises RecipeError with every fault found, MissingError when the file is not there.
    """
    file = Path(path)
    text = recipes.read_text(file, "study")
    study, places = _checked(text, file)
    reader = _Reader(file, study, places, overrides, folder)
    shared = {name: reader.part(name, section.recipe, section) for name, section in study.shared.items()}
    settings = {name: reader.part(name, study.recipe, section, shared) for name, section in study.settings.items()}
    reader.raise_problems(len(study.settings))
    first = next(iter(settings.values()))
    assert first is not None  # a part is None where there was a problem
    seeds = study.seeds if isinstance(study.seeds, list) else [first.recipe.seed + i for i in range(study.seeds)]
    if seeds[-1] >= 2**32:  # those of a list are checked by the schema
        fault = f"seeds: {study.seeds} from the recipe's own, {first.recipe.seed}, go up to {seeds[-1]}; a seed lies below 2^32. Give a list, or another seed"
        raise RecipeError([Problem(*place_of(places, ("seeds",)), fault)])
    return PlannedStudy(
        file, text, study.recipe, seeds, study.measure, study.baseline or first.name, study.final,
        {name: part for name, part in shared.items() if part is not None}, {name: part for name, part in settings.items() if part is not None},
        list(overrides),
    )  # fmt: skip


def _checked(text: str, file: Path) -> tuple[Study, Places]:
    values, places = recipes.plain(text, str(file))
    if not isinstance(values, dict):
        raise RecipeError([Problem(str(file), 1, 1, "expected a mapping with recipe and settings")])
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        problems = [recipes.as_problem(dict(e), values, places, str(file), root=Study, whole="study") for e in error.errors(include_url=False)]
    else:
        problems = list(_faults(study, places, file.parent))
    if problems:
        raise RecipeError(sorted(recipes.joined_problems(problems), key=lambda p: (p.line or 0, p.column or 0)))
    return study, places


def _faults(study: Study, places: Places, folder: Path) -> Iterator[Problem]:
    """What does not fit together in a study whose every value is of its type."""
    for path, recipe in [(("recipe",), study.recipe), *((("shared", name, "recipe"), part.recipe) for name, part in study.shared.items())]:
        if not os.path.isfile(folder / recipe):  # False too for a name that no file can have
            yield Problem(*place_of(places, path), f"{'.'.join(path)}: there is no file {recipe!r} where the study lies")
    for key, name in (("baseline", study.baseline), ("final", study.final)):
        if name is not None and name not in study.settings:
            yield Problem(*place_of(places, (key,)), f"{key}: there is no setting {name!r}.{did_you_mean(name, study.settings)} {_known(study.settings)}")
    if study.measure is not None and not all(study.measure.partition("/")):
        yield Problem(*place_of(places, ("measure",)), f"measure: expected split/name, for example val/accuracy; got {study.measure!r}")
    seeds = study.seeds if isinstance(study.seeds, list) else []
    for i, seed in enumerate(seeds):
        if seed in seeds[:i]:
            yield Problem(*place_of(places, ("seeds", i)), f"seeds: {seed} stands there twice")
    for name in study.shared.keys() & study.settings.keys():
        yield Problem(*place_of(places, ("settings", name)), f"settings.{name}: a shared run has this name; give one of them another")
    for name, setting in study.settings.items():
        if "seed" in setting.set:
            yield Problem(*place_of(places, ("settings", name, "set", "seed")), f"settings.{name}.set: the seeds of settings are those of the study: seeds")
        for key, part in setting.from_.items():
            place = place_of(places, ("settings", name, "from", key))
            if key not in WEIGHTS_KEYS:
                yield Problem(*place, f"settings.{name}.from: expected {' or '.join(WEIGHTS_KEYS)}; got {key!r}.{did_you_mean(key, WEIGHTS_KEYS)}")
            if part not in study.shared:
                yield Problem(*place, f"settings.{name}.from: there is no shared run {part!r}.{did_you_mean(part, study.shared)} {_known(study.shared)}")
            if key in setting.set:
                yield Problem(*place, f"settings.{name}: {key} stands in set and in from; leave one out")


def _known(names: Mapping[str, Any]) -> str:
    return f"Known: {', '.join(names)}." if names else "The study has none."


NO_PARTS: Mapping[str, Part | None] = {}


class _Reader:
    """Loads the recipes of a study and keeps the faults of all of them."""

    def __init__(self, file: Path, study: Study, places: Places, overrides: Sequence[str], folder: Path) -> None:
        self._file, self._places, self._folder = file, places, folder
        self._overrides = _addressed(overrides, study)
        self._problems: dict[Problem, list[str]] = {}  # to whom it happened

    def part(self, name: str, recipe: str, section: SharedSection | SettingSection, shared: Mapping[str, Part | None] = NO_PARTS) -> Part | None:
        """A setting, or a shared run, with its checked recipe; None where that has a fault. shared: what a setting may build on."""
        kind = "settings" if isinstance(section, SettingSection) else "shared"
        weights, label = (section.from_, section.label) if isinstance(section, SettingSection) else ({}, "")
        laid = [Change(key, value, self._below((kind, name, "set", key)), self._file.parent) for key, value in section.set.items()]
        for key, source in weights.items():
            behind = shared[source]
            if behind is not None:
                laid.append(Change(key, str(self._folder / learned(source, behind.recipe)), self._below((kind, name, "from", key)), self._folder))
        overrides = [*(self._overrides[""] if kind == "settings" else ()), *self._overrides.get(name, ())]
        try:
            found = recipes.load(self._file.parent / recipe, overrides, changes=laid)
        except RecipeError as error:
            for problem in error.problems:
                self._problems.setdefault(problem, []).append(f"setting {name}" if kind == "settings" else f"shared run {name}")
            return None
        return Part(name, found, recipe, dict(section.set), label, dict(weights))

    def raise_problems(self, settings: int) -> None:
        """RecipeError where there were any; what all settings have alike is the base recipe's and names none."""
        told = []
        for problem, names in self._problems.items():
            prefix = "" if settings > 1 and len(names) == settings else f"{', '.join(names)}: "
            told.append(Problem(problem.file, problem.line, problem.column, prefix + problem.message))
        if told:
            raise RecipeError(told)

    def _below(self, path: tuple[str, ...]) -> Places:
        """The places of a value and of what is in it, by the path within the value."""
        inside = {place[len(path) :]: where for place, where in self._places.items() if place[: len(path)] == path}
        return {(): place_of(self._places, path)} | inside


def learned(name: str, recipe: Recipe) -> Path:
    """The file with what a shared run learns, in the folder of the study: its backbone, which states a normalisation; of masks and captions its weights."""
    whole = recipe.masked or recipe.captioned
    return Path("shared") / name / "checkpoints" / ("final.safetensors" if whole else "backbone.safetensors")


def addressee(override: str) -> str:
    """The setting or shared run that an override names, "" of one for all settings."""
    name, colon, _ = override.partition(":")
    return name if colon and "=" not in name else ""


def _addressed(overrides: Sequence[str], study: Study) -> dict[str, list[str]]:
    """{name of a setting or shared run: its overrides}, those of all settings under ""."""
    found: dict[str, list[str]] = {"": []}
    names = [*study.shared, *study.settings]
    for override in overrides:
        name = addressee(override)
        rest = override.removeprefix(f"{name}:") if name else override
        if name and name not in names:
            raise UsageError(f"-s {override}: there is no setting or shared run {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}.")
        if name not in study.shared and rest.partition("=")[0] == "seed":
            raise UsageError(f"-s {override}: the seeds of settings are those of the study; change seeds in its file")
        found.setdefault(name, []).append(rest)
    return found
