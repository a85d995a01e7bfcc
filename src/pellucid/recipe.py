"""The recipe: how a YAML file becomes a checked `Recipe`.

YAML is read as version 1.2 (`no` is a string, `1e-3` a number) with the place of every key kept, so that all
faults of a file are reported at once, each with file:line:column, what was expected and the nearest known name.
Values are text, numbers, truth values, lists and mappings: no tag of YAML makes anything else, aliases are counted as
often as they stand there, and size and depth have a limit, so that no file takes all time or memory.
`extends: other.yaml` lays a recipe over another one: flat (the other may not extend) and single (one name).
Mappings are merged key by key, lists and scalars replaced.
"""

from __future__ import annotations

import copy
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pellucid.errors import MissingError, Problem, RecipeError, did_you_mean
from pellucid.schema import (
    AugmentSection,
    ByolMethod,
    ConstantSchedule,
    CosineSchedule,
    DataSection,
    EarlyStopSection,
    EmaSection,
    EverySection,
    HeadSection,
    InsideSection,
    LinearSchedule,
    LossSection,
    Method,
    ModelSection,
    NoamSchedule,
    Normalization,
    OptimizerSection,
    PhaseSection,
    ProbeSection,
    Recipe,
    SamSection,
    Schedule,
    SecondView,
    Section,
    SimClrMethod,
    SimSiamMethod,
    StepSchedule,
    StoreSection,
    TrainSection,
)

__all__ = [
    "AugmentSection",
    "ByolMethod",
    "ConstantSchedule",
    "CosineSchedule",
    "DataSection",
    "EarlyStopSection",
    "EmaSection",
    "EverySection",
    "HeadSection",
    "InsideSection",
    "LinearSchedule",
    "LossSection",
    "Method",
    "ModelSection",
    "NoamSchedule",
    "Normalization",
    "OptimizerSection",
    "PhaseSection",
    "ProbeSection",
    "Recipe",
    "SamSection",
    "Schedule",
    "SecondView",
    "Section",
    "SimClrMethod",
    "SimSiamMethod",
    "StepSchedule",
    "StoreSection",
    "TrainSection",
    "flat",
    "json_schema",
    "load",
    "loads",
    "override",
    "save",
    "to_yaml",
]

Path_ = tuple[str | int, ...]
Place = tuple[str, int | None, int | None]
Places = dict[Path_, Place]

# Values that are paths; each is resolved against the folder of the file that holds it.
_PATH_FIELDS = (
    ("data", "train"),
    ("data", "val"),
    ("data", "test"),
    ("data", "image_dir"),
    ("data", "mask_dir"),
    ("data", "classes"),
    ("data", "store", "directory"),
    ("model", "weights"),
    ("model", "backbone_weights"),
    ("data", "boxes"),
    ("inside", "masks"),
    ("inside", "images"),
    ("words", "images"),
    ("text", "tokenizer", "source"),
)
_LISTS = (("inside", "images"), ("words", "images"))  # of paths; elsewhere a list is no list of paths (data.classes)
_NAMED = (("text", "tokenizer", "source"),)  # names on a hub, unless they begin as paths do: with . ~ / or $
_SPLITS = _PATH_FIELDS[:3]
MAX_BYTES = 400_000  # of a recipe file; those that come with Pellucid have some 2,000
MAX_VALUES = 50_000  # keys and values, an alias counted with all that it stands for
MAX_DEPTH = 50
MAX_DIGITS = 400  # of a number; above 4,300 Python does not even print it
_TAGS = {
    ScalarNode: ("str", "int", "float", "bool", "null"),
    SequenceNode: ("seq",),
    MappingNode: ("map",),
}
_OPENED = re.compile(rf"(?:[\[{{]\s*){{{MAX_DEPTH + 1}}}")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class Change:
    """A value for a dotted key of a recipe. places: of it and of what is in it, by the path within. folder: where its relative paths start."""

    key: str
    value: Any
    places: Places
    folder: Path


def load(path: str | Path, overrides: Sequence[str] = (), *, changes: Sequence[Change] = (), most_bytes: int = MAX_BYTES) -> Recipe:
    """The checked recipe of a file, with changes and then `key.path=value` overrides laid over it.

    Raises RecipeError with every fault found, MissingError when the file is not there.
    """
    file = Path(path)
    values, places, problems = _read(file, extendable=True, most_bytes=most_bytes)
    for change in changes:
        _lay(values, places, problems, change)
    for override in overrides:
        apply_override(values, places, problems, override)
    return _check(values, places, problems, str(file))


def loads(text: str, name: str = "<recipe>") -> Recipe:
    """The checked recipe of a YAML text whose paths are absolute or relative to the working folder."""
    values, places, problems = _parse(text, name, Path.cwd())
    return _check(values, places, problems, name)


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with `key.path=value` overrides laid over it. Raises RecipeError as `load` does."""
    values, places, problems = recipe.model_dump(), {(): ("<recipe>", None, None)}, []  # type: tuple[dict[str, Any], Places, list[Problem]]
    for text in overrides:
        apply_override(values, places, problems, text)
    return _check(values, places, problems, "<recipe>")


def save(recipe: Recipe, path: Path) -> None:
    """Write every value of a recipe, defaults included, as YAML that `load` reads back equal."""
    path.write_text(to_yaml(recipe), encoding="utf-8")


def to_yaml(recipe: Recipe) -> str:
    buffer = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    yaml.dump(recipe.model_dump(mode="json"), buffer)
    return buffer.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "Another recipe that this one is laid over."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def flat(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of every leaf; lists of mappings are counted (`train.phases.0.epochs`)."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else name)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                yield from walk(item, f"{key}.{i}")
        else:
            yield key, value

    return dict(walk(recipe.model_dump(mode="json"), ""))


def read_text(file: Path, what: str, *, most_bytes: int = MAX_BYTES) -> str:
    """The text of a YAML file that holds a `what`. Raises RecipeError where it is none, MissingError when it is not there."""
    try:
        with file.open("rb") as stream:
            data = stream.read(most_bytes + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise MissingError(f"{file}: no such {what}." + " `pellucid recipes ls` shows those that come with Pellucid." * (what == "recipe")) from None
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, and names that no file can have
        raise RecipeError([Problem(str(file), None, None, f"expected a YAML text file in UTF-8: {error}")]) from None
    if len(data) > most_bytes:
        raise RecipeError(
            [
                Problem(
                    str(file), None, None, f"expected a {what}, got more than {most_bytes:,} bytes; a long list of classes belongs into a file (data.classes)"
                )
            ]
        )
    return text


def _read(file: Path, *, extendable: bool, most_bytes: int) -> tuple[dict[str, Any], Places, list[Problem]]:
    values, places, problems = _parse(read_text(file, "recipe", most_bytes=most_bytes), str(file), file.parent)
    parent = values.pop("extends", None)
    if parent is None:
        return values, places, problems
    place = place_of(places, ("extends",))
    if not isinstance(parent, str):
        return values, places, [*problems, Problem(*place, f"extends takes one file name, got {parent!r}")]
    if not extendable:
        return values, places, [*problems, Problem(*place, "a recipe that is extended may not extend another one; put the settings into one file")]
    if not os.path.isfile(file.parent / parent):  # False too for a name that no file can have
        return values, places, [*problems, Problem(*place, f"extends {_shortened(repr(parent))}: there is no such file beside this recipe")]
    below, below_places, below_problems = _read(file.parent / parent, extendable=False, most_bytes=most_bytes)
    return _merge(below, values), below_places | places, below_problems + problems


def _parse(text: str, name: str, folder: Path) -> tuple[dict[str, Any], Places, list[Problem]]:
    values, places = plain(text, name)
    if not isinstance(values, dict):
        raise RecipeError([Problem(name, 1, 1, f"expected a mapping with task, data, model and train, got {_kind(values)}")])
    problems: list[Problem] = []
    for field in _PATH_FIELDS:
        _resolve_path(values, field, folder, places, problems)
    return values, places, problems


def plain(text: str, name: str) -> tuple[Any, Places]:
    """What a YAML text says, built of text, numbers, truth values, lists and mappings only, and the place of each key."""
    yaml = YAML(typ="safe", pure=True)
    if opened := _OPENED.search(text):  # on which the library takes seconds before it gives up
        line = text.count("\n", 0, opened.start()) + 1
        raise RecipeError([Problem(name, line, 1, f"not a recipe: more than {MAX_DEPTH} brackets are opened at once")])
    try:
        node = yaml.compose(text)
        if node is None:
            return None, {(): (name, 1, 1)}
        places = _places(node, name)  # before anything is built: it refuses what would be built without end
        if yaml.resolver.processing_version != (1, 2):
            raise RecipeError([Problem(name, 1, 1, "recipes are YAML 1.2; remove the %YAML line")])
        return yaml.constructor.construct_document(node), places
    except RecipeError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place: tuple[int | None, int | None] = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise RecipeError([Problem(name, *place, f"not valid YAML: {error.problem or error.context}")]) from None
    except Exception as error:  # the YAML library raises plain ValueError and others on odd scalars and characters
        raise RecipeError([Problem(name, 1, 1, f"not valid YAML: {str(error).splitlines()[0] if str(error) else error!r}")]) from None


def _places(root: Node, file: str) -> Places:
    """The place of every key and item. Raises RecipeError for what a recipe cannot hold: too much, tags, keys that are no words."""
    places: Places = {(): (file, 1, 1)}
    waiting: list[tuple[Node, Path_]] = [(root, ())]
    count = 0
    while waiting:
        node, path = waiting.pop()
        count += 1
        _check_node(node, path, count, file)
        if isinstance(node, MappingNode):
            for key, value in node.value:
                here = (file, key.start_mark.line + 1, key.start_mark.column + 1)
                if _tag(key) not in ("str", "merge"):
                    got = _shortened(repr(key.value)) if isinstance(key, ScalarNode) else "a list or a mapping"
                    raise RecipeError([Problem(*here, f"keys are plain words, got {got}")])
                places[(*path, key.value)] = here
                waiting.append((value, (*path, key.value)))
        elif isinstance(node, SequenceNode):
            for i, value in enumerate(node.value):
                places[(*path, i)] = (file, value.start_mark.line + 1, value.start_mark.column + 1)
                waiting.append((value, (*path, i)))
    return places


def _check_node(node: Node, path: Path_, count: int, file: str) -> None:
    fault = ""
    if count > MAX_VALUES or len(path) > MAX_DEPTH:
        fault = f"not a recipe: it holds itself, nests deeper than {MAX_DEPTH} levels, or has more than {MAX_VALUES:,} values with every alias written out"
    elif _tag(node) in ("int", "float") and len(node.value) > MAX_DIGITS:
        fault = f"expected a number that can be used, got one of {len(node.value):,} characters"
    elif _tag(node) not in _TAGS[type(node)]:
        shown = f"{_shortened(repr(node.value))} is read as {_tag(node)}" if isinstance(node, ScalarNode) else f"the tag {_tag(node)}"
        fault = f"expected text, a number, true or false, a list or a mapping; {shown}. Text goes into quotes."
    if fault:
        raise RecipeError([Problem(file, node.start_mark.line + 1, node.start_mark.column + 1, fault)])


def _tag(node: Node) -> str:
    """The last part of a node's tag: `str` of tag:yaml.org,2002:str, `!mine` of !mine."""
    return str(node.tag).removeprefix("tag:yaml.org,2002:")


def place_of(places: Places, path: Path_) -> Place:
    """Where a path stands, or the nearest thing around it: keys that came in by a merge have no place of their own."""
    while path not in places:
        path = path[:-1]
    return places[path]


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:160]}… ({len(text):,} characters)"


def _resolve_path(values: dict[str, Any], field: tuple[str, ...], folder: Path, places: Places, problems: list[Problem]) -> None:
    holder: Any = values
    for key in field[:-1]:
        holder = holder.get(key) if isinstance(holder, dict) else None
    value = holder.get(field[-1]) if isinstance(holder, dict) else None
    if field in _LISTS:
        for i, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, str):
                _put_path(value, i, (*field, i), folder, places, problems)
    elif field in _NAMED and not str(value).startswith((".", "~", "/", "$")):
        return
    elif isinstance(value, str) and not (field in _SPLITS and ":" in str(holder.get("source"))):  # for torchvision: and huggingface: these are names of splits
        _put_path(holder, field[-1], field, folder, places, problems)


def _put_path(holder: Any, key: str | int, field: Path_, folder: Path, places: Places, problems: list[Problem]) -> None:
    """Replace the path at `key` by the absolute one that it means."""

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            problems.append(Problem(*place_of(places, field), f"the environment variable {match[1]} is not set; set it or write ${{{match[1]}:-default}}"))
        return found or ""

    path, dotted = _VARIABLE.sub(variable, holder[key]), ".".join(map(str, field))
    try:
        holder[key] = os.path.normpath(folder.absolute() / Path(path).expanduser())
    except RuntimeError:  # of expanduser
        problems.append(Problem(*place_of(places, field), f"{dotted}: there is no home folder for {_shortened(path)}"))
    if "\0" in path:
        problems.append(Problem(*place_of(places, field), f"{dotted}: no path holds a NUL character"))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def apply_override(values: dict[str, Any], places: Places, problems: list[Problem], override: str) -> None:
    """Lay one `a.b.0.c=value` over the values; a list index must exist."""
    name = f"-s {override}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        problems.append(Problem(name, None, None, "expected key.path=value, for example train.batch_size=64"))
        return
    try:
        value, _ = plain(text, name)
    except RecipeError as error:
        problems.append(Problem(name, None, None, f"the value is {error.problems[0].message}"))
        return
    _lay(values, places, problems, Change(key, value, {(): (name, None, None)}, Path.cwd()))


def _lay(values: dict[str, Any], places: Places, problems: list[Problem], change: Change) -> None:
    """Put a change's value at its key, its paths resolved; a list index must exist."""
    path: Path_ = tuple(int(part) if part.isdecimal() and part.isascii() else part for part in change.key.split("."))
    holder: Any = values
    for depth, part in enumerate(path[:-1], 1):
        if isinstance(holder, dict) and isinstance(part, str):
            if part not in holder:
                places[path[:depth]] = change.places[()]
            holder = holder.setdefault(part, {})
        elif isinstance(holder, list) and isinstance(part, int) and part < len(holder):
            holder = holder[part]
        else:
            holder = None
            break
    last = path[-1]
    if isinstance(holder, dict) or (isinstance(holder, list) and isinstance(last, int) and last < len(holder)):
        holder[last] = copy.deepcopy(change.value)  # type: ignore[index]
    else:
        problems.append(Problem(*change.places[()], f"there is nothing at {change.key!r} that could be set"))
        return
    for old in [p for p in places if p[: len(path)] == path]:
        del places[old]
    places.update({(*path, *below): place for below, place in change.places.items()})
    for field in _PATH_FIELDS:
        if field[: len(path)] == path or (field in _LISTS and path[:-1] == field):  # the other items of a list are absolute already
            _resolve_path(values, field, change.folder, places, problems)


def _check(values: dict[str, Any], places: Places, problems: list[Problem], file: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        found = [as_problem(dict(item), values, places, file) for item in [*error.errors(include_url=False), *_hidden(values, error)]]
        raise RecipeError(sorted(joined_problems([*problems, *found]), key=lambda p: (p.file, p.line or 0, p.column or 0))) from None
    if problems:
        raise RecipeError(problems)
    return recipe


def _hidden(values: dict[str, Any], error: ValidationError, rounds: int = 3) -> list[Any]:
    """Faults between keys, which pydantic looks for only in sections without another fault: found by leaving the faulty parts out."""
    trimmed = copy.deepcopy(values)
    errors = error.errors(include_url=False)
    for item in errors:
        path, _ = _locate(item["loc"], values)
        holder: Any = trimmed
        for part in path[:-1]:
            inside = (isinstance(holder, dict) and part in holder) or (isinstance(holder, list) and isinstance(part, int))
            holder = holder[part] if inside else None
        if isinstance(holder, dict) and path:
            holder.pop(path[-1], None)
    try:
        Recipe.model_validate(trimmed)
    except ValidationError as further:
        known = {str(item["loc"]) for item in errors}
        new = [item for item in further.errors(include_url=False) if item["type"] == "value_error" and str(item["loc"]) not in known]
        return [*new, *(_hidden(trimmed, further, rounds - 1) if rounds > 1 else [])]
    return []


def joined_problems(problems: list[Problem]) -> list[Problem]:
    """The problems, those about one value of a union (`expected a, got x`; `expected b, got x`) as one."""
    joined: dict[tuple[Any, ...], Problem] = {}
    for p in problems:
        head, expected, rest = p.message.partition(": expected ")
        what, _, got = rest.rpartition("; got ")
        key = (p.file, p.line, p.column, head, got) if expected and got else (p.file, p.line, p.column, p.message)
        if key in joined and expected and what not in joined[key].message:
            before = joined[key].message.rpartition("; got ")[0]
            joined[key] = Problem(p.file, p.line, p.column, f"{before} or {what}; got {got}")
        joined.setdefault(key, p)
    return list(joined.values())


def as_problem(error: dict[str, Any], values: dict[str, Any], places: Places, file: str, *, root: type[Section] = Recipe, whole: str = "recipe") -> Problem:
    """One pydantic error of a `whole`, which `root` describes, as a sentence with its place in the file."""
    path, section = _locate(error["loc"], values, root)
    key = str(path[-1]) if path else ""
    dotted = ".".join(str(part) for part in path)
    context, kind, got = error.get("ctx", {}), error["type"], error["input"]
    match kind:
        case "extra_forbidden":
            hint = did_you_mean(key, section) or f" Known: {', '.join(section)}."
            message = f"unknown key {key!r} in {'.'.join(map(str, path[:-1])) or f'the {whole}'}.{hint}"
        case "missing":
            message = f"{dotted} is missing"
        case "literal_error" | "union_tag_invalid":
            known = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
            tag = context.get("tag", got)
            if kind == "union_tag_invalid":
                path, dotted = (*path, "name"), f"{dotted}.name"
            message = f"{dotted}: expected {', '.join(known)}; got {tag!r}.{did_you_mean(str(tag), known)}"
        case "union_tag_not_found":
            message = f"{dotted}.name is missing"
        case "value_error":
            text = str(context["error"])
            message = f"{dotted}: {text}" if dotted else text
        case "dict_type" | "model_type" | "model_attributes_type":
            message = f"{dotted}: expected a mapping, got {_kind(got)}"
        case _:
            what = error["msg"].removeprefix("Input should be ").removeprefix("Value should be ")
            what = (
                what.replace("list should have at least 1 item after validation, not 0", "a list with at least one item")
                .replace("a valid integer", "a whole number")
                .replace("a valid ", "a ")
                .replace("a string", "text")
                .replace("a boolean", "true or false")
            )
            message = f"{dotted}: expected {what[:1].lower()}{what[1:]}; got {_kind(got)}"
    return Problem(*place_of(places, path), message)


def _locate(loc: tuple[str | int, ...], values: dict[str, Any], root: type[Section] = Recipe) -> tuple[Path_, list[str]]:
    """The path in the file for a pydantic location (which also names union members), and the keys known at its parent."""
    path: list[str | int] = []
    holder: Any = values
    model: Any = root
    for i, part in enumerate(loc):
        in_file = (isinstance(holder, dict) and part in holder) or (isinstance(holder, list) and isinstance(part, int))
        fields = _fields(model)
        if not in_file and part not in fields and i > 0:
            model = _member(model, str(part))  # the name of a union's member, not a key
            continue
        path.append(part)
        if i == len(loc) - 1 and part not in fields:
            return tuple(path), list(fields)
        holder = holder[part] if in_file else None
        model = fields[str(part)].annotation if part in fields else _element(model)
        if isinstance(holder, dict) and (section := _only_section(model)):
            model = section
    return tuple(path), list(_fields(model))


def _fields(model: Any) -> dict[str, Any]:
    """{key as a file has it: field} of a section; {} of any other type."""
    known = model.model_fields if isinstance(model, type) and issubclass(model, Section) else {}
    return {field.alias or name: field for name, field in known.items()}


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for argument in getattr(annotation, "__args__", ()) for section in _sections(argument)]


def _only_section(annotation: Any) -> type[Section] | None:
    found = _sections(annotation)
    return found[0] if len(found) == 1 and getattr(annotation, "__origin__", None) is not list else None


def _member(annotation: Any, name: str) -> Any:
    for section in _sections(annotation):
        tag = section.model_fields.get("name")
        if section.__name__ == name or (tag is not None and name in getattr(tag.annotation, "__args__", ())):
            return section
    return annotation


def _element(annotation: Any) -> Any:
    arguments = getattr(annotation, "__args__", ())
    return arguments[0] if arguments else annotation


def _kind(value: Any) -> str:
    """A value as a reader would name it."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return f"the list {value!r}" if len(repr(value)) < 60 else f"a list of {len(value)}"
        case bool():
            return f"{str(value).lower()} (a truth value)"
        case str():
            return f"{value!r} (text)"
        case _:
            return repr(value)
