"""The command that opens a page to look around in runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pellucid.printing import print_note


def explore(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, folders made by train --seeds, and studies; running ones are followed.")],
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Where to listen; default: a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    host: Annotated[str, typer.Option("--host", metavar="H", help="Listen elsewhere than at this machine alone; others can then reach it.")] = "127.0.0.1",
) -> None:
    """Look around in runs in the browser: a local page that reads them and writes nothing. Ctrl-C ends it."""
    from pellucid.explore.guard import is_loopback
    from pellucid.explore.server import Explorer

    explorer = Explorer(runs, host=host, port=port)
    if not is_loopback(host):
        print_note(
            f"--host {host}: whoever can reach this machine and has the address with its token sees these runs and can send pictures to their models, and the "
            "connection is not encrypted. Without --host only this machine can."
        )
    print_note("reads these runs and writes nothing in them; Ctrl-C ends it")
    print(explorer.address, flush=True)
    if not no_browser and has_display():
        import webbrowser

        webbrowser.open(explorer.address_once)  # other users see what a program was started with
    explorer.serve()


def has_display() -> bool:
    """Whether a browser could show a window here."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
