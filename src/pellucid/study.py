"""A study as a caller sees it: one file, many runs, one table.

What is missing is trained and nothing else: finished runs stay, unfinished ones go on from their checkpoint, the others are
trained, so that a study can be interrupted, repeated and extended. Before anything is trained every recipe is resolved, and
what stands in the folder must be what the study asks for now. `study_workers` trains; `study_table` says what came out.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pellucid
from pellucid import recipe as recipes
from pellucid.errors import InterruptedError, PellucidError, Problem, RecipeError, RunError, UsageError, did_you_mean
from pellucid.progress import Progress
from pellucid.recipe import Recipe
from pellucid.run import DONE, Run
from pellucid.study_file import Part, PlannedStudy, learned, load_study
from pellucid.study_record import SettingRecord, SharedRecord, StudyFolder, StudyRecord
from pellucid.study_table import StudyTable, write_figures, write_table
from pellucid.study_workers import Job, Outcome, other_weights, train_here, train_on_ray
from pellucid.tables import duration

PLACES = ("local", "ray")


@dataclass(frozen=True)
class StudyResult:
    """What a study left. failed: {name of a run: why it has no result}."""

    folder: StudyFolder
    table: StudyTable
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """A run that the study asks for; seed: None of a shared run. weights: {key of the recipe: file of a shared run}."""

    part: Part
    seed: int | None
    recipe: Recipe
    folder: Path
    weights: dict[str, Path]

    @property
    def name(self) -> str:
        return self.part.name if self.seed is None else f"{self.part.name}, seed {self.seed}"

    @property
    def begun(self) -> bool:
        return (self.folder / "run.json").is_file()

    @property
    def finished(self) -> bool:
        return self.begun and Run(self.folder).record.status == DONE

    def job(self, command: Sequence[str]) -> Job:
        train = self.recipe.train
        return Job(
            self.name, self.folder, recipes.to_yaml(self.recipe), self.weights, tuple(dict.fromkeys(self.part.weights.values())), list(command),
            train.threads, train.device == "cuda",
        )  # fmt: skip


def run_study(
    path: str | Path,
    *,
    out: str | Path | None = None,
    at_once: int = 1,
    on: str = "local",
    address: str = "auto",
    overrides: Sequence[str] = (),
    quiet: bool = False,
    command: Sequence[str] = (),
) -> StudyResult:
    """Train what is missing of a study, and return its table.

    `out` is the folder of the study; default: runs/<name of the file>. `at_once` runs are trained side by side on this machine; `on="ray"` trains on the
    cluster at `address`. Raises RecipeError with all faults of the file and its recipes, RunError when the folder holds something else or another process is
    at it, InterruptedError after a signal. A run that fails ends no other one: it stands in `failed`. Scripts call this under `if __name__ == "__main__":`,
    because processes are started.
    """
    if on not in PLACES:
        raise UsageError(f"--on: expected {' or '.join(PLACES)}; got {on!r}.{did_you_mean(on, PLACES)}")
    shown = Path(out) if out is not None else Path("runs") / Path(path).stem
    study = load_study(path, overrides, folder=shown.absolute())
    told = list(command) or ["pellucid", "study", str(path), *[part for override in overrides for part in ("-s", override)]]
    with _owned(shown, study), Progress(quiet=quiet) as progress:
        runs = list(_planned(study, shown.absolute()))
        _refuse_changed(runs, shown)
        missing = [run for run in runs if not run.finished]
        if missing:
            _check_models(study)
        folder = StudyFolder.create(shown, _record(study, runs, shown, {}), study.text)
        _announce(runs, missing, at_once, on, progress)
        jobs = [run.job(told) for run in missing]
        if on == "ray" and jobs:
            outcomes = train_on_ray(jobs, address=address, folder=shown.absolute(), told=progress.line)
        else:
            outcomes = train_here(jobs, at_once=at_once, told=progress.line)
        failed = _followed(study, folder, runs, outcomes, progress)
        folder = StudyFolder.create(shown, _record(study, runs, shown, failed), study.text)
        table = write_table(folder)
        if missing or not folder.figures.is_dir():
            write_figures(folder)
        return StudyResult(folder, table, failed)


def _followed(study: PlannedStudy, folder: StudyFolder, runs: Sequence[PlannedRun], outcomes: Iterator[Outcome], progress: Progress) -> dict[str, str]:
    """Tell how each run ended, and renew the table; {name: error} of those that failed. Raises InterruptedError when some were stopped."""
    known, failed = {run.name: run for run in runs}, dict[str, str]()
    stopped, done = False, sum(run.finished for run in runs)
    for outcome in outcomes:
        run = known[outcome.job.name]
        if outcome.stopped:
            stopped = True
        elif outcome.error:
            failed[run.name] = outcome.error
            progress.line(f"{run.name} failed: {outcome.error}")
        else:
            done += 1
            progress.line(f"{done} of {len(runs)}: {run.name}{_number(study, run)}, {duration(Run(run.folder).record.seconds)}")
        if run.seed is None:
            _refuse_other_weights(runs)
        elif not outcome.stopped:
            folder = StudyFolder.create(folder.path, _record(study, runs, folder.path, failed), study.text)
            write_table(folder)
    unfinished = sum(not run.finished for run in runs) - len(failed)
    if stopped or unfinished > 0:
        raise InterruptedError(
            f"interrupted with {len(runs) - unfinished - len(failed)} of {len(runs)} runs finished; those that had begun wrote a checkpoint. "
            "The same command goes on."
        )
    return failed


def _number(study: PlannedStudy, run: PlannedRun) -> str:
    """The measured number of a finished run, as it is told; RunError where it has none of that name."""
    found = Run(run.folder).measurements
    if run.seed is None:
        return ""
    measure = study.measure or next(iter(found), "")
    if study.measure is not None and measure not in found:
        raise RunError(f"{study.file}: measure: {run.name} has no {measure!r}.{did_you_mean(measure, found)} It has {', '.join(list(found)[:12])}.")
    return f": {measure} {found[measure]}" if measure else ""


# ── before anything is trained ────────────────────────────────────────────────────────────────────────────────


def _planned(study: PlannedStudy, folder: Path) -> Iterator[PlannedRun]:
    """Every run in its order: what is shared, then all settings of the first seed, so that a study that is interrupted has a whole table of one seed."""
    used = {name for part in study.settings.values() for name in part.weights.values()}
    for name, part in study.shared.items():
        if name in used:
            yield PlannedRun(part, None, part.recipe, folder / "shared" / name, {})
    for seed in study.seeds:
        for name, part in study.settings.items():
            weights = {key: folder / learned(source, study.shared[source].recipe) for key, source in part.weights.items()}
            recipe = part.recipe.model_copy(update={"seed": seed})
            yield PlannedRun(part, seed, recipe, folder / "runs" / name / f"seed-{seed}", weights)


def _record(study: PlannedStudy, runs: Sequence[PlannedRun], folder: Path, failed: dict[str, str]) -> StudyRecord:
    """What study.json says now."""
    first = next((run for run in runs if run.seed is not None and run.finished), None)
    measure = study.measure or (next(iter(Run(first.folder).measurements), "") if first is not None else "")
    notes = [f"-s {override}: laid over {'every setting' if ':' not in override.partition('=')[0] else 'the file'}" for override in study.overrides]
    notes += [f"{name} failed before it had a run folder: {failed[name]}" for name in failed for run in runs if run.name == name and not run.begun]
    notes += [f"shared run {name}: no setting builds on it, so it is not trained" for name in study.shared if name not in {run.part.name for run in runs}]
    return StudyRecord(
        pellucid.__version__, study.name, study.recipe, measure, study.seeds,
        [
            SettingRecord(name, part.label, part.changes | {key: f"of {source}" for key, source in part.weights.items()}, sorted(set(part.weights.values())))
            for name, part in study.settings.items()
        ],
        study.baseline, study.final,
        [SharedRecord(name, part.source, part.changes) for name, part in study.shared.items()], notes,
    )  # fmt: skip


def _refuse_changed(runs: Sequence[PlannedRun], folder: Path) -> None:
    """RunError where a run was begun with another recipe than the study asks for now, or with other weights of a shared run."""
    from pellucid.loop import settings  # what decides the result

    faults = []
    for run in runs:
        if not run.begun:
            continue
        then, now = json.loads(settings(Run(run.folder).recipe)), json.loads(settings(run.recipe))
        keys = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key) and key not in run.weights]
        if keys:
            changed = ", ".join(f"{key} ({then.get(key)} then, {now.get(key)} now)" for key in keys)
            faults.append(f"{folder / run.folder.relative_to(folder.absolute())}: {run.name} was begun with another recipe: {changed}.")
    if faults:
        remedy = "Nothing was trained. Put the values back, give the changed setting another name, or remove these folders."
        raise RunError("\n".join([*faults, remedy]))
    _refuse_other_weights(runs)


def _refuse_other_weights(runs: Sequence[PlannedRun]) -> None:
    """RunError where a run was begun with other weights than the shared run behind it has now."""
    shared = {run.part.name for run in runs if run.seed is None and run.finished}
    faults = [other_weights(run.job(())) for run in runs if run.weights and set(run.part.weights.values()) <= shared]
    if any(faults):
        raise RunError("\n".join(fault for fault in faults if fault))


def _check_models(study: PlannedStudy) -> None:
    """RecipeError with every model name that nobody knows."""
    from pellucid.models import normalization
    from pellucid.models.segmenters import check_segmenter

    problems = []
    for part in [*study.shared.values(), *study.settings.values()]:
        model = part.recipe.model
        try:
            if part.recipe.masked:
                check_segmenter(model.name, model.encoder)
            else:
                normalization(model.name)
        except PellucidError as error:
            problems.append(Problem(str(study.file), None, None, f"{'shared run' if part.name in study.shared else 'setting'} {part.name}: {error}"))
    if problems:
        raise RecipeError(problems)


def _announce(runs: Sequence[PlannedRun], missing: Sequence[PlannedRun], at_once: int, on: str, progress: Progress) -> None:
    begun = sum(run.begun for run in missing)
    progress.line(f"{len(runs)} runs: {len(runs) - len(missing)} finished, {begun} to go on with, {len(missing) - begun} to train")
    if on == "local" and missing:
        from pellucid.runtime import num_cores  # with torch

        cores, threads = num_cores(), max(run.recipe.train.threads or num_cores() for run in missing)
        if min(at_once, len(missing)) * threads > cores:
            progress.line(
                f"{at_once} runs at once with {threads} threads each are more than the {cores} cores; -s train.threads={max(1, cores // at_once)} fits"
            )


@contextmanager
def _owned(folder: Path, study: PlannedStudy) -> Iterator[None]:
    """The folder of the study, made if need be, with its lock held."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: expected a folder for the study, there is a file of that name.")
    if (folder / "study.json").is_file():
        there = StudyFolder(folder).record.name
        if there != study.name:
            raise RunError(f"{folder}: holds the study {there!r}, not {study.name!r}. Choose another folder with --out.")
    elif folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
        raise RunError(f"{folder}: the folder is not empty and holds no study. Choose another with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another process is at this study. Wait for it, or choose another folder with --out.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
