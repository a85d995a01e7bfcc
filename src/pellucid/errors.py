"""Every error that a user can meet, and the exit code that goes with it.

PellucidError                 1  failure
├── UsageError                2  a command line that cannot be followed
├── RecipeError               2  problems of a recipe, all of them at once, each with file:line:column
├── DataError                 2  images, labels or folders that cannot be used, named
├── WeightsError              2  a weights file that cannot be loaded as asked
├── RunError                  2  a folder that is not a run, or lacks what was asked of it
├── DivergedError             1  the loss became NaN or infinite
├── MismatchError             3  verify found a number, file or weight that differs
├── MissingError              4  an extra that is not installed or a file that is not there
├── OutOfMemoryError          5  no room even at micro-batch 1
└── InterruptedError         130 stopped by a signal, after a checkpoint
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class PellucidError(Exception):
    """A failure with a message for the user; `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(PellucidError):
    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One fault of a recipe. `line` and `column` count from 1; None for a command-line override."""

    file: str
    line: int | None
    column: int | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"
        return f"{place}: {self.message}"


class RecipeError(PellucidError):
    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(PellucidError):
    exit_code = 2


class WeightsError(PellucidError):
    exit_code = 2


class RunError(PellucidError):
    exit_code = 2


class DivergedError(PellucidError):
    exit_code = 1


class MismatchError(PellucidError):
    exit_code = 3


class MissingError(PellucidError):
    exit_code = 4


class OutOfMemoryError(PellucidError):
    exit_code = 5


class InterruptedError(PellucidError):
    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The ending ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
