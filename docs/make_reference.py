"""docs/reference.md from what the code says of itself: schema, command line, exit codes, run folder, public names.

`make reference` writes it; tests/test_docs.py fails when the file is older than the code. Same code, same text.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import pellucid
from pellucid import errors, recipe, run
from pellucid.cli import app
from pellucid.schema.study import Study
from pellucid.subjects import SubjectSection

FILE = Path(__file__).resolve().parent / "reference.md"
_WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "nothing"}
_RELATIONS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def reference() -> str:
    """The whole page."""
    opening = ("# Reference", "Written by `make reference` from the code; edit the code, not this page.")
    parts = [*opening, *_recipe(), *_study(), *_commands(), *_exit_codes(), *_run_folder(), *_names()]
    return "\n\n".join(parts) + "\n"


# ── recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


def _recipe() -> Iterator[str]:
    yield "## Recipe"
    yield (
        "A YAML file. `extends: other.yaml` lays it over another recipe; `-s key.path=value` lays values over it. Relative paths start at the file. "
        "Keys without a default must be given."
    )
    yield from _section(recipe.Recipe, "")


def _study() -> Iterator[str]:
    yield "## Study"
    yield (
        "A YAML file for `pellucid study`. `-s key.path=value` lays values over the recipe of every setting, `-s NAME:key.path=value` over that of one "
        "setting or shared run. Relative paths start at the file. [studies.md](studies.md) shows how it is used."
    )
    yield from _section(Study, "", whole="study")


def _section(model: type[BaseModel], key: str, whole: str = "recipe") -> Iterator[str]:
    """Heading and table of one mapping, then those of the mappings in it; `whole` is what the one without a key is called."""
    yield f"### `{key}`" if key else f"### The {whole}"
    yield _first_line(model)
    rows = [_row(field.alias or name, field) for name, field in model.model_fields.items()]
    yield _table(("key", "type", "default", "what it is"), rows)
    for name, field in model.model_fields.items():
        below = f"{key}.{name}" if key else name
        members = list(_members(field.annotation))
        for member in members:
            tag = member.model_fields.get("name") if len(members) > 1 else None
            suffix = f": {typing.get_args(tag.annotation)[0]}" if tag is not None else ""
            origin = typing.get_origin(field.annotation)
            of_many = "[]" if origin is list else ".NAME" if origin is dict else ""
            yield from _section(member, f"{below}{of_many}{suffix}")


def _row(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    return f"`{name}`", _in_words(field.annotation, tuple(field.metadata)), _default(field), field.description or ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        chosen = len(list(_members(field.annotation))) > 1
        return f"`{getattr(value, 'name', '')}`" if chosen else "see below"
    if value is None or value == "":
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _in_words(annotation: Any, limits: tuple[Any, ...] = ()) -> str:
    """A type as a reader of a recipe would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _in_words(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        members = [a for a in arguments if a is not type(None)]
        if len(members) > 1 and all(_is_section(m) for m in members):
            return "mapping, chosen by `name`"
        return ", or ".join(_in_words(m, limits if len(members) == 1 else ()) for m in members)
    if origin is list:
        return f"list{_length(limits)} ({_in_words(arguments[0])})"
    if origin is dict or _is_section(annotation):
        return "mapping"
    words = [f"{_RELATIONS[name]} {value:.12g}" for name, value in _limits(limits).items() if name in _RELATIONS]
    return _WORDS[annotation] + (f" ({', '.join(words)})" if words else "")


def _length(limits: tuple[Any, ...]) -> str:
    least, most = _limits(limits).get("min_length"), _limits(limits).get("max_length")
    return "" if least is None else f" of {least}" if least == most else f" of at least {least}"


def _limits(metadata: tuple[Any, ...]) -> dict[str, Any]:
    """The bounds that the annotations of a type set."""
    names = (*_RELATIONS, "min_length", "max_length")
    return {name: getattr(item, name) for item in _flat(metadata) for name in names if getattr(item, name, None) is not None}


def _flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for item in metadata:
        yield from _flat(tuple(item.metadata)) if isinstance(item, FieldInfo) else (item,)


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    """The mappings that a type can hold."""
    if _is_section(annotation):
        yield annotation
    else:
        for argument in typing.get_args(annotation):
            yield from _members(argument)


def _is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


# ── command line ──────────────────────────────────────────────────────────────────────────────────────────────


def _commands() -> Iterator[str]:
    yield "## Command line"
    yield "The result goes to stdout, progress and errors to stderr. `--json` prints one JSON object; `--debug` on any command shows where an error came from."
    yield from _command(typer.main.get_command(app), "pellucid")
    yield "### Settings of `pellucid inside`"
    yield f"{_first_line(SubjectSection)} A run takes none: its recipe says it all."
    yield _table(("key", "type", "default", "what it is"), [_row(name, field) for name, field in SubjectSection.model_fields.items()])


def _command(command: Any, name: str) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is not None:
        for word, item in below.items():
            yield from _command(item, f"{name} {word}")
        return
    parameters = [p for p in command.params if p.name != "help"]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name == "option"]
    usage = " ".join([name, *[f"[{_metavar(p)}]" if not p.required else _metavar(p) for p in arguments], *(["[OPTIONS]"] if options else [])])
    yield f"### `{usage}`"
    yield " ".join(command.help.split())
    rows = [(f"`{_metavar(p)}`", p.help or "") for p in arguments] + [(f"`{_spelled(p)}`", _explained(p)) for p in options]
    if rows:
        yield _table(("argument or option", "what it is"), rows)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _spelled(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.metavar or 'VALUE'}"


def _explained(option: Any) -> str:
    shown = not option.is_flag and isinstance(option.default, (int, float, str)) and not isinstance(option.default, bool)
    words = (option.help or "").replace("\n", " ")
    return words + (f" Default: {option.default}." if shown else "") + (" Required." if option.required else "")


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes"
    rows = [("0", "", "done")]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(?:[├└]── )?(\w+Error)\s+(\d+)\s+(.*)$", line)
        if found:
            rows.append((found[2], f"`{found[1]}`", found[3]))
    yield _table(("code", "error", "when"), rows)


def _run_folder() -> Iterator[str]:
    yield "## Run folder"
    lines = [re.split(r"\s{2,}", line.strip()) for line in (run.__doc__ or "").splitlines()[1:]]
    pairs = [cells[i : i + 2] for i in (0, 2) for cells in lines if len(cells) > i + 1]
    rows = [(f"`{name}`", what) for name, what in pairs]
    yield _table(("file", "what it holds"), rows)


def _names() -> Iterator[str]:
    yield "## In Python"
    rows = []
    for name in pellucid.__all__:
        value = getattr(pellucid, name)
        rows.append((f"`pellucid.{name}`", f"The version, `{value}`." if isinstance(value, str) else _first_line(value)))
    yield _table(("name", "what it is"), rows)
    yield "### `pellucid.inside`"
    yield f"{_first_line(pellucid.inside)} Shapes, ranges and sources stand in the docstrings; [looking-inside.md](looking-inside.md) shows how they are used."
    found = [(name, getattr(pellucid.inside, name)) for name in pellucid.inside.__all__]
    rows = [(f"`{name}{_arguments(value)}`", _first_line(value)) for name, value in sorted(found, key=lambda item: item[0].lower())]
    yield _table(("name", "what it is"), rows)
    for owner in (pellucid.Run, pellucid.Measurement):
        yield f"### `pellucid.{owner.__name__}`"
        yield _table(("attribute", "what it is"), list(_attributes(owner)))


def _arguments(value: Any) -> str:
    """The names of a function's arguments, those with a default in brackets; nothing for a class."""
    if isinstance(value, type):
        return ""
    words = [name if p.default is p.empty else f"[{name}]" for name, p in inspect.signature(value).parameters.items()]
    return f"({', '.join(words)})"


def _attributes(owner: type) -> Iterator[tuple[str, str]]:
    """Public methods and properties in the order of the source, without those that write; of a dataclass its fields too."""
    for name in getattr(owner, "__dataclass_fields__", {}):
        yield f"`{name}`", f"`{owner.__annotations__[name]}`"
    (tree,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.name.startswith(("write_", "append_", "truncate_", "create")):
            continue
        is_property = any(ast.unparse(d) == "property" for d in node.decorator_list)
        arguments = [a.arg for a in node.args.args if a.arg != "self"]
        documentation = ast.get_docstring(node)
        yield (
            f"`{node.name}`" if is_property else f"`{node.name}({', '.join(arguments)})`",
            documentation.splitlines()[0] if documentation else f"`{ast.unparse(node.returns)}`" if node.returns else "",
        )


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").splitlines()[0]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown shows as it is: no column ends in it, and `<name>` outside of code is no HTML."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    print(FILE)
