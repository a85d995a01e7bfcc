"""Commands to use before training: data, the recipes that come with Pellucid, this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli import shipped
from pellucid.cli.options import AsJson, Quiet, RecipeFile, Set
from pellucid.errors import UsageError
from pellucid.printing import print_data_report, print_json

if TYPE_CHECKING:
    from pellucid.data.captions import CaptionCounts


def data_check(recipe: RecipeFile, set_: Set = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Every image and label that would cause trouble, by name. Exit 2 when training would refuse to start."""
    from pellucid import recipe as recipes
    from pellucid.data.check import check
    from pellucid.errors import DataError
    from pellucid.progress import Progress

    checked = recipes.load(recipe, set_ or [])
    with Progress(quiet=quiet) as progress:
        found = check(
            checked.data,
            seed=checked.seed,
            masks=checked.masked,
            captions=checked.captioned,
            least=checked.least_size,
            fewest_classes=checked.fewest_classes,
            progress=progress,
        )
    if as_json:
        print_json(asdict(found))
    else:
        if found.captions:
            print("\n".join([_captions_table(found.captions), *(f"note: {note}" for note in found.notes)]))
        print_data_report(found)
    fatal = [problem for problem in found.problems if problem.fatal]
    if whole := [problem.kind for problem in fatal if not problem.file]:
        raise DataError(f"training would refuse to start: {', '.join(whole)}. What stands above says how to go on.")
    if fatal and checked.data.on_bad == "refuse":
        raise DataError(f"training would refuse to start: {len(fatal)} bad images. Repair or remove them, or set data.on_bad: skip to leave them out by name.")


def _captions_table(found: Mapping[str, CaptionCounts]) -> str:
    """What the captions of each split are; lengths in words."""
    from pellucid.tables import table

    head = ["split", "captions", "of a picture", "words", "different", "shortest", "median", "longest"]
    rows = []
    for name, c in found.items():
        each = str(c.most) if c.fewest == c.most else f"{c.fewest} to {c.most}"
        rows.append([name, f"{c.captions:,}", each, f"{c.words:,}", f"{c.different:,}", *(f"{length:g}" for length in c.lengths)])
    return table(head, rows)


def recipes_ls(as_json: AsJson = False) -> None:
    """The recipes and studies that come with Pellucid, with their first line."""
    from pellucid.tables import table

    recipes, studies = (
        [(name, path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")) for name, path in files.items()]
        for files in (shipped.recipes(), shipped.studies())
    )
    if as_json:
        print_json({"recipes": dict(recipes), "studies": dict(studies)})
    else:
        print(table(["recipe", "command, hardware, time, expected number"], [*recipes, *studies]))


def recipes_cp(
    name: Annotated[str, typer.Argument(help="A name of `recipes ls`.")],
    to: Annotated[Path, typer.Argument(help="File or folder to copy to.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Copy a recipe (and the one that it extends) to change it; a study with its recipes into studies/ and recipes/ of a folder."""
    source = shipped.recipe(name)
    if name in shipped.studies():
        if not to.is_dir():
            raise UsageError(f"{to}: expected a folder; a study is copied with its recipes, into studies/ and recipes/ of it")
        target = to / "studies" / source.name
        copies = [(source, target), *((file, to / "recipes" / file.name) for file in shipped.behind(source))]
    else:
        target = to / source.name if to.is_dir() else to
        parent = shipped.extended(source)
        copies = [(source, target), *([(parent, target.parent / parent.name)] if parent else [])]
    texts = {copy: origin.read_text(encoding="utf-8") for origin, copy in copies}
    for copy, text in texts.items():
        if copy.exists() and (copy == target or copy.read_text(encoding="utf-8") != text):
            raise UsageError(f"{copy}: the file exists; choose another name")
    for copy, text in texts.items():
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"recipe": str(target)})
    else:
        print(target)


def recipes_schema() -> None:
    """The JSON schema of a recipe, for editors."""
    from pellucid.recipe import json_schema

    print_json(json_schema())


def doctor(as_json: AsJson = False) -> None:
    """What this machine has: versions, devices, extras, caches."""
    from pellucid.doctor import examine

    findings = examine()
    if as_json:
        print_json({f.name: f.value for f in findings})
        return
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'lack'} {finding.name}: {finding.value}{'' if finding.ok or not finding.remedy else '  → ' + finding.remedy}")
