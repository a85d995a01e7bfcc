"""Commands that show what runs left: a page, a figure on paper."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.options import AsJson, Out, RunFolder
from pellucid.errors import UsageError
from pellucid.printing import print_json, print_note


def report(
    run: RunFolder,
    out: Out = None,
    max_points: Annotated[
        int | None, typer.Option("--max-points", metavar="N", min=1, help="Most points of a projection; default: as many as the page has room for.")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print it: report.pdf beside it, through an installed Chromium, Chrome or Edge.")] = False,
    browser: Annotated[
        str | None, typer.Option("--browser", metavar="PATH", envvar="PELLUCID_BROWSER", help="The browser that prints; default: the first that is found.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run: one HTML file, offline; with --pdf also on paper."""
    from pellucid.paper import find_browser, print_page
    from pellucid.report import write_report
    from pellucid.run import Run

    opened = Run(run)
    page, paper = _page_and_paper(opened.report_file if out is None else out, pdf=pdf)  # before the work, not after it
    printer = find_browser(browser) if pdf else None
    page = write_report(opened, out=page, max_points=max_points)
    printed = None if printer is None else print_page(page, paper, browser=printer)
    lines = left_out(page)
    for line in lines:
        print_note(line)
    if lines:
        explore = shlex.join(["pellucid", "explore", str(run)])
        more = " --max-points N takes more points." if max_points is None and any(" points are here" in line for line in lines) else ""
        print_note(f"a report stays small: `{explore}` shows what it leaves out.{more}")
    if as_json:
        found = {"report": str(page), "bytes": page.stat().st_size}
        print_json(found if printed is None else found | {"pdf": str(printed.path), "pages": printed.pages})
        return
    print(page)
    if printed is not None:
        print(printed.path)


def figure(
    run: RunFolder,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which figure; without it the names of all that this run can give.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", "-f", metavar="png|svg|pdf", help="Repeatable; default: all three.")] = None,
    width: Annotated[str, typer.Option("--width", metavar="column|page|<N>mm", help="column is 89 mm, page 183 mm.")] = "column",
    dpi: Annotated[int, typer.Option("--dpi", min=50, max=2400, help="Pixels an inch of a PNG, and of the photographs in a PDF or an SVG.")] = 300,
    picture: Annotated[int | None, typer.Option("--picture", metavar="I", min=1, help="Which picture of those that were looked at, from 1.")] = None,
    epoch: Annotated[int | None, typer.Option("--epoch", metavar="E", min=0, help="Only what was kept after this epoch; default: early, middle, last.")] = None,
    layer: Annotated[int | None, typer.Option("--layer", metavar="N", min=1, help="Whose heads, from 1; default: the last that was recorded.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Whose predictions; default: the first of val and test.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="The file, or a folder for it; default: the run's figures/paper/.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw one figure of a run, a study or a folder of runs at a column's width, for a paper: PNG, SVG, PDF."""
    from pellucid.paper_asked import Asked, millimetres
    from pellucid.paper_figures import draw_figure, figures_of
    from pellucid.tables import table

    if name is None:
        there = figures_of(run)
        if as_json:
            print_json({"figures": {one.name: one.shows for one in there}})
        else:
            print(table(["figure", "what it shows"], [(one.name, one.shows) for one in there]))
        return
    _writable(run if out is None else out.parent if out.suffix else out)
    drawn = draw_figure(run, name, Asked(millimetres(width), picture, epoch, split, layer), formats=formats, dpi=dpi, out=out)
    for line in drawn.notes:
        print_note(line)
    if as_json:
        print_json({"files": [str(file) for file in drawn.files], "width_mm": drawn.width})
    else:
        print("\n".join(str(file) for file in drawn.files))


def _page_and_paper(out: Path, *, pdf: bool) -> tuple[Path, Path]:
    """(the page, its PDF) of a path that names one of them, the other beside it. UsageError where they cannot be written."""
    named = out.suffix.lower() == ".pdf"
    if named and not pdf:
        raise UsageError(f"--out {out}: the report is an HTML page; expected another ending, or --pdf, which prints it into this file")
    page, paper = (out.with_suffix(".html"), out) if named else (out, out.with_suffix(".pdf"))
    for path in (page, paper)[: 1 + pdf]:
        if path.is_dir():
            raise UsageError(f"--out: expected a file for the report, and {path} is a folder")
    _writable(page.parent)
    return page, paper


def _writable(folder: Path) -> None:
    """UsageError where nothing can be written into a folder that is there or is to be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"{there}: expected a folder that can be written to, {'it cannot be' if there.is_dir() else 'it is a file'}; --out names another place"
        )


def left_out(page: Path) -> list[str]:
    """What the views of a written report say that they have no room for: one sentence each."""
    from pellucid.views import FULLER

    held = re.findall(r'<script type="application/json" id="data-[a-z]+">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    notes = [note for text in held for note in json.loads(text)["view"]["notes"]]
    return list(dict.fromkeys(note for note in notes if note.endswith(FULLER)))
