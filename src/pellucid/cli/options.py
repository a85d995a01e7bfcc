"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a value of the recipe, e.g. -s train.batch_size=64. Repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Where to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Tolerance = Annotated[float, typer.Option("--tolerance", min=0.0, help="Largest absolute difference of a recomputed number.")]
