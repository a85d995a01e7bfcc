"""The findings of a run with their arrays, whether the files that its recipe asks for are there, and how a check says what it found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import PellucidError, RunError
from pellucid.findings import ARRAYS, Findings, load_findings
from pellucid.recipe import Recipe
from pellucid.run import Run
from pellucid.schema import InsideSection
from pellucid.verify_inside import scores

Line = tuple[str, bool, str]  # what was looked at, whether it held, a line for people
Told = Callable[[str, int, int], None]
_DAMAGE = (PellucidError, ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def line(what: str, faults: list[str], fine: str) -> Line:
    """One check: `fine` where nothing is wrong, else the first faults."""
    if not faults:
        return what, True, f"ok {what}: {fine}"
    more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
    return what, False, f"MISMATCH {what}: {'; '.join(faults[:6])}{more}"


def guarded(what: str, check: Callable[[], list[Line]]) -> list[Line]:
    """The lines of a check; a mismatch where the files are too damaged for it."""
    try:
        return check()
    except _DAMAGE as error:
        return [(what, False, f"MISMATCH {what}: cannot be recomputed, the files do not fit together: {_first(error)}")]


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


@dataclass(frozen=True)
class Kept:
    """The findings of a run with their arrays, and what its recipe asked for."""

    run: Run
    recipe: Recipe
    findings: Findings
    arrays: dict[str, NDArray[np.generic]]

    @property
    def inside(self) -> InsideSection:
        assert self.recipe.inside is not None
        return self.recipe.inside

    @property
    def n(self) -> int:
        return len(self.findings.images)

    @cached_property
    def priors(self) -> dict[tuple[int, int], dict[str, dict[str, NDArray[np.float64]]]]:
        """{grid: {"uniform" or "centre": {measure: (n,)}}}: the baselines that need no map, on the masks of every grid."""
        found = {}
        for grid in dict.fromkeys(kind.grid for kind in self.findings.maps):
            targets, valid = self.masks(grid)
            both = {"uniform": np.ones(grid), "centre": scores.centre(grid)}
            found[grid] = {name: scores.table(np.broadcast_to(prior, (self.n, *grid)), targets, valid) for name, prior in both.items()}
        return found

    @cached_property
    def masked(self) -> bool:
        return any(key.startswith("target/") for key in self.arrays)

    def maps(self, key: str, grid: tuple[int, int]) -> NDArray[np.floating]:
        """(n, gh, gw) finite maps that sum to 1 or are 0 throughout. RunError for anything else."""
        maps = np.asarray(self.arrays[key], np.float32)
        if self.arrays[key].dtype != np.float32 or maps.shape != (self.n, *grid) or not np.isfinite(maps).all() or (maps < 0).any():
            raise RunError(f"{key}: expected finite float32 of at least 0 in {(self.n, *grid)}, got {self.arrays[key].dtype} in {maps.shape}")
        totals = maps.astype(np.float64).sum(axis=(1, 2))
        if not np.all((totals == 0) | (np.abs(totals - 1) < 1e-4)):
            raise RunError(f"{key}: a map sums to neither 1 nor 0")
        return maps

    def masks(self, grid: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(targets, valid), both (n, gh, gw)."""
        both = [self.arrays[f"{name}/{grid[0]}x{grid[1]}"] for name in ("target", "valid")]
        if any(array.dtype != np.bool_ or array.shape != (self.n, *grid) for array in both):
            raise RunError(f"target/{grid[0]}x{grid[1]}: expected bool in {(self.n, *grid)}")
        return both[0].astype(bool), both[1].astype(bool)


def expected_epochs(run: Run, recipe: Recipe) -> list[int]:
    """Epochs of which the recipe asks for a snapshot, but for those that the run says are lost."""
    record = run.record
    assert recipe.inside is not None
    chosen = recipe.inside.chosen_epochs(recipe.epochs)
    epochs = {epoch for epoch in chosen if epoch <= record.epoch}
    if record.epoch < recipe.epochs and recipe.epochs in chosen:
        epochs.add(record.epoch)  # it stopped early and kept its last epoch
    lost = {int(found[1]) for note in record.notes if (found := re.match(r"the snapshot of epoch (\d+) is lost", note))}
    return sorted(epochs - lost)


def open_kept(run: Run) -> tuple[Kept | None, list[Line]]:
    """The findings, and whether the files that the recipe asks for are there and hashed."""
    recipe, hashed = run.recipe, run.record.files
    if recipe.inside is None:
        return None, []
    epochs = expected_epochs(run, recipe)
    wanted = [run.snapshots / "probe.npz", *map(run.snapshot_file, epochs), run.inside / "findings.json", run.inside / ARRAYS]
    names = [str(path.relative_to(run.path)) for path in wanted]
    lines = [(f"file {name}", False, f"MISMATCH run.json: it holds no hash of {name}") for name in names if name not in hashed]
    odd = sorted(set(run.snapshot_epochs) ^ set(epochs))
    lines += [("inside snapshots", False, f"MISMATCH snapshots: the recipe asks for epochs {epochs}, there are {run.snapshot_epochs}")] if odd else []
    try:
        findings = load_findings(run.inside)
        with (run.inside / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Kept(run, recipe, findings, {key: arrays[key] for key in arrays.files}), lines
    except PellucidError as error:
        return None, [*lines, ("inside findings", False, f"MISMATCH inside: {error}")]
    except Exception as error:  # a damaged zip raises half a dozen types
        return None, [*lines, ("inside arrays", False, f"MISMATCH inside/{ARRAYS}: cannot be read: {error}")]
