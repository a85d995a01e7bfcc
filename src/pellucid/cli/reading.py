"""Commands that read the numbers of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.options import AsJson
from pellucid.printing import print_json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders made by train --seeds.")],
    baseline: Annotated[str | None, typer.Option("--baseline", metavar="RUN", help="The row that differences refer to; default: the last row.")] = None,
    final: Annotated[str | None, typer.Option("--final", metavar="RUN", help="Mark this run as the final one.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="The number to sort by, e.g. val/accuracy; default: the headline.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also a table of the number class by class: iou of miou, recall of accuracy.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the comparison as HTML.")] = None,
    as_json: AsJson = False,
) -> None:
    """One table of differing settings and numbers, with differences and their intervals; class by class too when asked."""
    from pellucid import compare as compare_
    from pellucid.compare import expand, to_html, to_json, to_text

    comparison = compare_(expand(runs), baseline=baseline, final=final, metric=metric)
    text = "" if as_json else to_text(comparison, per_class=per_class)
    if out is not None:
        out.write_text(to_html(comparison), encoding="utf-8")
    if as_json:
        print_json(to_json(comparison))
    else:
        print(text)
        if out is not None:
            print(out)
