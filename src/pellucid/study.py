"""A study as a caller sees it: one file, many runs, one table.

What is missing is trained and nothing else: finished runs stay, unfinished ones go on from their checkpoint, the others are
trained, so that a study can be interrupted, repeated and extended. Before anything is trained every recipe is resolved, and
what stands in the folder must be what the study asks for now. `study_workers` trains; `study_table` says what came out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pellucid
from pellucid import recipe as recipes
from pellucid.errors import InterruptedError, PellucidError, Problem, RecipeError, RunError, UsageError, did_you_mean
from pellucid.files import locked
from pellucid.progress import Progress
from pellucid.recipe import Recipe
from pellucid.run import DONE, Run
from pellucid.study_file import Part, PlannedStudy, addressee, learned, load_study
from pellucid.study_record import SettingRecord, SharedRecord, StudyFolder, StudyRecord
from pellucid.study_table import StudyTable, write_figures, write_table
from pellucid.study_workers import Job, Outcome, cluster_for, other_weights, threads_option, train_here, train_on_ray
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
    """A run that the study asks for; seed: None of a shared run. weights: {key of the recipe: file of a shared run}. leaves: of a shared run its own."""

    part: Part
    seed: int | None
    recipe: Recipe
    folder: Path
    weights: dict[str, Path]
    leaves: Path | None = None

    @property
    def name(self) -> str:
        return self.part.name if self.seed is None else f"{self.part.name}, seed {self.seed}"

    @property
    def begun(self) -> bool:
        return (self.folder / "run.json").is_file()

    @property
    def finished(self) -> bool:
        return self.begun and Run(self.folder).record.status == DONE and (self.leaves is None or self.leaves.is_file())

    def job(self, command: Sequence[str]) -> Job:
        train = self.recipe.train
        return Job(
            self.name, self.folder, recipes.to_yaml(self.recipe), self.weights, tuple(dict.fromkeys(self.part.weights.values())), list(command),
            train.threads, train.device == "cuda", self.leaves,
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
        _refuse_unmeasured(study, runs)
        missing = [run for run in runs if not run.finished]
        if missing:
            _check_models(study)
            _check_measure(study)
        jobs = [run.job(told) for run in missing]
        with cluster_for(jobs, address=address, folder=shown.absolute()) if on == "ray" and jobs else nullcontext() as ray:
            folder = StudyFolder.create(shown, _record(study, runs, shown, {}), study.text)
            _announce(runs, missing, at_once, on, progress)
            with closing(train_here(jobs, at_once=at_once, told=progress.line) if ray is None else train_on_ray(ray, jobs, told=progress.line)) as outcomes:
                failed = _followed(study, folder, runs, outcomes, progress)
        folder = StudyFolder.create(shown, _record(study, runs, shown, failed), study.text)
        table = write_table(folder)
        _refuse_unfinished(runs, failed)
        if missing or not folder.figures.is_dir():
            write_figures(folder)
        return StudyResult(folder, table, failed)


def _followed(study: PlannedStudy, folder: StudyFolder, runs: Sequence[PlannedRun], outcomes: Iterator[Outcome], progress: Progress) -> dict[str, str]:
    """Tell how each run ended, and renew the table; {name: error} of those that failed, which those that were stopped did not."""
    known, failed = {run.name: run for run in runs}, dict[str, str]()
    done = sum(run.finished for run in runs)
    for outcome in outcomes:
        run = known[outcome.job.name]
        if outcome.stopped:
            continue
        if outcome.error:
            failed[run.name] = outcome.error
            progress.line(f"{run.name} failed: {outcome.error}")
        else:
            done += 1
            progress.line(f"{done} of {len(runs)}: {run.name}{_number(study, run)}, {duration(Run(run.folder).record.seconds)}")
        if run.seed is None:
            _refuse_other_weights(runs)
        else:
            _refuse_unmeasured(study, runs)
            folder = StudyFolder.create(folder.path, _record(study, runs, folder.path, failed), study.text)
            write_table(folder)
    return failed


def _refuse_unfinished(runs: Sequence[PlannedRun], failed: dict[str, str]) -> None:
    """InterruptedError when there are runs that did not fail and are not finished: they, or what they build on, were stopped."""
    unfinished = sum(not run.finished for run in runs) - len(failed)
    if unfinished > 0:
        raise InterruptedError(
            f"interrupted with {len(runs) - unfinished - len(failed)} of {len(runs)} runs finished; those that had begun wrote a checkpoint. "
            "The same command goes on."
        )


def _number(study: PlannedStudy, run: PlannedRun) -> str:
    """The measured number of a finished run, as it is told."""
    found = Run(run.folder).measurements
    measure = study.measure or next(iter(found), "")
    return f": {measure} {found[measure]}" if run.seed is not None and measure in found else ""


def _refuse_unmeasured(study: PlannedStudy, runs: Sequence[PlannedRun]) -> None:
    """RunError when settings have finished runs and none of these has the study's measure."""
    finished = [run for run in runs if run.seed is not None and run.finished]
    if study.measure is None or not finished or any(study.measure in Run(run.folder).measurements for run in finished):
        return
    found, many = Run(finished[0].folder).measurements, f", and none of {len(finished)} finished runs" if len(finished) > 1 else ""
    raise RunError(
        f"{study.file}: measure: {finished[0].name} has no {study.measure!r}{many}.{did_you_mean(study.measure, found)} It has {', '.join(list(found)[:12])}."
    )


# ── before anything is trained ────────────────────────────────────────────────────────────────────────────────


def _planned(study: PlannedStudy, folder: Path) -> Iterator[PlannedRun]:
    """Every run in its order: what is shared, then all settings of the first seed, so that a study that is interrupted has a whole table of one seed."""
    used = {name for part in study.settings.values() for name in part.weights.values()}
    for name, part in study.shared.items():
        if name in used:
            yield PlannedRun(part, None, part.recipe, folder / "shared" / name, {}, folder / learned(name, part.recipe))
    for seed in study.seeds:
        for name, part in study.settings.items():
            weights = {key: folder / learned(source, study.shared[source].recipe) for key, source in part.weights.items()}
            recipe = part.recipe.model_copy(update={"seed": seed})
            yield PlannedRun(part, seed, recipe, folder / "runs" / name / f"seed-{seed}", weights)


def _record(study: PlannedStudy, runs: Sequence[PlannedRun], folder: Path, failed: dict[str, str]) -> StudyRecord:
    """What study.json says now."""
    first = next((run for run in runs if run.seed is not None and run.finished), None)
    measure = study.measure or (next(iter(Run(first.folder).measurements), "") if first is not None else "")
    notes = [f"-s {override}: laid over {addressee(override) or 'every setting'}" for override in study.overrides]
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
    from pellucid.models.captioners import captioner_folder
    from pellucid.models.segmenters import check_segmenter

    problems = []
    for part in [*study.shared.values(), *study.settings.values()]:
        model = part.recipe.model
        try:
            if part.recipe.masked:
                check_segmenter(model.name, model.encoder)
            elif part.recipe.captioned and model.encoder is None:
                captioner_folder(model.name, Path(model.weights) if model.weights else None)
            elif part.recipe.captioned:
                normalization(str(model.encoder))
            else:
                normalization(model.name)
        except PellucidError as error:
            problems.append(Problem(str(study.file), None, None, f"{'shared run' if part.name in study.shared else 'setting'} {part.name}: {error}"))
    if problems:
        raise RecipeError(problems)


def _check_measure(study: PlannedStudy) -> None:
    """RecipeError where the measure is no number of a setting's task, or of a split that its recipe does not have; classes are known when data is read."""
    from pellucid.tasks import NUMBERS

    faults: dict[str, list[str]] = {}
    for part in study.settings.values() if study.measure else ():
        split, _, name = str(study.measure).partition("/")
        names, splits = NUMBERS[part.recipe.task], _measured_splits(part.recipe)
        if split not in splits:
            there = f"There is {' and '.join(splits)}." if splits else "Give data.val or data.test."
            faults.setdefault(f"{study.measure!r} is of no split that is measured.{did_you_mean(split, splits)} {there}", []).append(part.name)
        elif name not in names and not (name.endswith("]") and f"{name.partition('[')[0]}[CLASS]" in names):
            fault = f"a {part.recipe.task} has no number {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."
            faults.setdefault(fault, []).append(part.name)
    if faults:
        every = len(study.settings)
        told = [f"{'' if len(of) == every else 'setting ' + ', '.join(of) + ': '}measure: {fault}" for fault, of in faults.items()]
        raise RecipeError([Problem(str(study.file), None, None, message) for message in told])


def _measured_splits(recipe: Recipe) -> list[str]:
    """Splits of a recipe's data beside train. A set of a hub may have a val that the recipe does not name."""
    data = recipe.data
    return [split for split in ("val", "test") if getattr(data, split) is not None or (split == "val" and ":" in data.source)]


def _announce(runs: Sequence[PlannedRun], missing: Sequence[PlannedRun], at_once: int, on: str, progress: Progress) -> None:
    begun = sum(run.begun for run in missing)
    progress.line(f"{len(runs)} runs: {len(runs) - len(missing)} finished, {begun} to go on with, {len(missing) - begun} to train")
    if on == "local" and missing:
        from pellucid.runtime import num_cores  # with torch

        cores, threads = num_cores(), max(run.recipe.train.threads or num_cores() for run in missing)
        if min(at_once, len(missing)) * threads > cores:
            fitting = max(1, cores // at_once)
            wide = [run for run in missing if (run.recipe.train.threads or cores) > fitting]
            options = dict.fromkeys(threads_option(run.part.name if run.seed is None else "", fitting) for run in wide)
            remedy = " ".join(options) or f"--jobs {cores}"
            progress.line(f"{at_once} runs at once with {threads} threads each are more than the {cores} cores; {remedy} fits")


@contextmanager
def _owned(folder: Path, study: PlannedStudy) -> Iterator[None]:
    """The folder of the study, made if need be, with its lock held."""
    if (folder / "study.json").is_file():
        there = StudyFolder(folder).record.name
        if there != study.name:
            raise RunError(f"{folder}: holds the study {there!r}, not {study.name!r}. Choose another folder with --out.")
    elif folder.is_dir() and not all(_of_study(path, study) for path in folder.iterdir()):
        raise RunError(f"{folder}: the folder is not empty and holds no study. Choose another with --out.")
    with locked(folder, "the study", "another process is at this study. Wait for it, or choose another folder with --out."):
        yield


def _of_study(path: Path, study: PlannedStudy) -> bool:
    """Whether what lies in a folder without study.json is what a study leaves that was killed: its text, what it was writing, its runs."""
    if path.name == "study.yaml":
        return path.is_file() and path.read_bytes() == study.text.encode()
    if path.name in ("shared", "runs") and path.is_dir():
        depth = "*" if path.name == "shared" else "*/seed-*"
        return all((found / "run.json").is_file() or found.name == ".lock" for found in path.glob(depth))
    return path.name == ".lock" or path.name.startswith((".study.", ".token-"))
