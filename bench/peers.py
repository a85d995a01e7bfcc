"""What the comparisons with other software share: which peers are here, the machine, medians with their spread, a Markdown table.

Peers are imported where they are used, never here: a bench runs without them and says how to install what is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.runtime import num_cores

INSTALL = 'not installed (`make bench`, or `pip install -e ".[bench]"`)'
VERSIONS = ("torch", "torchvision", "timm", "lightning", "accelerate", "transformers")


@dataclass(frozen=True)
class Spread:
    """The median of `n` values, and their quartiles (the middle half lies between `low` and `high`)."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Quartiles by linear interpolation between the sorted values; one value is its own quartiles."""
        given = sorted(values)
        if not given:
            raise ValueError("a spread needs at least one value")
        low, _, high = statistics.quantiles(given, n=4, method="inclusive") if len(given) > 1 else (given[0],) * 3
        return cls(statistics.median(given), low, high, len(given))


def is_installed(distribution: str) -> bool:
    """Whether a package is here, without importing it."""
    return importlib.util.find_spec(distribution) is not None


def machine() -> str:
    """One line: cores, CPU, and the version of each library and peer that is here."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in VERSIONS if is_installed(name)]
    return f"{num_cores()} cores, {_cpu()}; {', '.join(found)}, python {platform.python_version()}"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown CPU")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every row has as many cells as the header."""
    lines = [header, ["---"] * len(header), *rows]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(f"every row needs {len(header)} cells")
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
