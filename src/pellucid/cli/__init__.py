"""The command line: reads arguments, calls one function, prints what came back.

Results go to stdout, progress and errors to stderr. Everything heavy is imported inside the command that needs it, so
that `pellucid --help` answers at once. The commands stand in the modules beside this one; here is which there are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pellucid import __version__
from pellucid.cli.before import data_check, doctor, recipes_cp, recipes_ls, recipes_schema
from pellucid.cli.exploring import explore
from pellucid.cli.numbers import evaluate, export, inside, predict, verify
from pellucid.cli.reading import compare
from pellucid.cli.seeing import figure, report
from pellucid.cli.training import demo, plan, resume, study, train, validate
from pellucid.errors import PellucidError
from pellucid.openmp import sleep_soon
from pellucid.printing import rank

app = typer.Typer(
    name="pellucid", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train a vision model from one recipe, see what is inside it, and prove every number it reports.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
recipes_app = typer.Typer(no_args_is_help=True, help="Recipes that come with Pellucid.")
app.add_typer(data_app, name="data")
app.add_typer(recipes_app, name="recipes")

# In the order of `pellucid --help`.
for command in (demo, train, resume, study, plan, validate, verify, evaluate, predict, inside, export, report, figure, compare, explore, doctor):
    app.command()(command)
data_app.command("check")(data_check)
recipes_app.command("ls")(recipes_ls)
recipes_app.command("cp")(recipes_cp)
recipes_app.command("schema")(recipes_schema)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; the entry point exits with it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = app(arguments, standalone_mode=False, prog_name="pellucid")
    except (PellucidError, KeyboardInterrupt) as error:
        if debug:
            raise
        return _told(error)
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # typer's own usage errors
            error.show()
            code = 2
        elif debug:
            raise
        elif isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        elif isinstance(error, OSError) and error.filename is not None:
            print(f"{error.filename}: {error.strerror}", file=sys.stderr)
            code = 2
        else:
            print(f"pellucid: internal error: {type(error).__name__}: {error}\nThe same command with --debug shows where. Please report it.", file=sys.stderr)
            code = 1
    return int(code or 0)


def entry() -> None:
    """The `pellucid` command."""
    sleep_soon()
    sys.exit(main())


def _told(error: BaseException) -> int:
    if isinstance(error, PellucidError):
        print(f"process {rank()}: " * bool(rank()) + (str(error) if str(error) else type(error).__name__), file=sys.stderr)
        return error.exit_code
    print("interrupted", file=sys.stderr)
    return 130


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
