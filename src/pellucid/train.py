"""Training as a caller sees it: a new run, several seeds of one, an unfinished run continued.

Here stands what guards a run folder: its lock, what may be overwritten, what a resumed run must find unchanged, and what
the record says in the end. `loop` trains.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pellucid
from pellucid import recipe as recipes
from pellucid.checkpoint import Checkpoint, drop_checkpoints, latest_checkpoint, set_damaged_aside
from pellucid.distributed import Processes, joined
from pellucid.errors import InterruptedError, RunError
from pellucid.files import file_hash, locked, text_hash, weights_hash
from pellucid.loop import fit, resumed_micro_batch, settings, stop_signals
from pellucid.prepare import Training, assemble, prepare
from pellucid.progress import Progress
from pellucid.recipe import Recipe
from pellucid.records import write_json
from pellucid.results import draw, report_numbers
from pellucid.run import DONE, FAILED, INTERRUPTED, RUNNING, Run, RunRecord, seed_folders
from pellucid.runtime import DECIDES_BITS, Runtime, describe, named_nondeterminism

# ── entry points ──────────────────────────────────────────────────────────────────────────────────────────────


def train(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    quiet: bool = False,
    figures: bool = True,
    command: Sequence[str] = (),
) -> Run:
    """Train a recipe and return its finished run.

    `out` is the new run folder; default: runs/<recipe name>, numbered when it exists. `figures=False` leaves the figures
    for paper out, which take 2 seconds to draw; the report comes all the same. Raises PellucidError and its
    kinds; what was trained until then stays in the folder.
    """
    checked, text, name = _opened(recipe, overrides)
    told = list(command) or ["pellucid", "train", f"{name}.yaml", *[part for override in overrides for part in ("-s", override)]]
    record = RunRecord(pellucid.__version__, RUNNING, checked.task, told, _now())
    with joined() as processes:
        folder = Path(processes.told(str(out if out is not None else _free_folder(Path("runs"), name))))
        with Progress(quiet=quiet or not processes.first) as progress, _owned(folder, processes):
            if processes.first:
                _refuse_used(folder)
            prepared = prepare(checked, record, progress, processes, start_weights=True)
            record.began_with = {"settings": text_hash(settings(checked)), "recipe.yaml": text_hash(text)} | {
                key: weights_hash(file) for key, file in _weights_files(checked).items()
            }
            if processes.first:
                Run.create(folder, record=record, recipe=checked, recipe_text=text)
            processes.wait()
            training = assemble(Run(folder), record, checked, prepared, progress)
            return _finish_or_fail(training, None, figures)


def train_seeds(
    recipe: str | Path | Recipe,
    seeds: int,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    quiet: bool = False,
    figures: bool = True,
    command: Sequence[str] = (),
) -> list[Run]:
    """Train one recipe under `seeds` consecutive seeds, from the recipe's own; one run folder each under `out`.

    `resume_seeds` finishes a set that was interrupted.
    """
    checked, _, name = _opened(recipe, overrides)
    names = [f"seed-{checked.seed + i}" for i in range(seeds)]
    with joined() as processes:
        folder = Path(processes.told(str(out if out is not None else _free_folder(Path("runs"), name))))
        if processes.first:
            _refuse_used(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "seeds.json", {"runs": names})
        return [
            train(recipe, overrides=[*overrides, f"seed={checked.seed + i}"], out=folder / seed_name, quiet=quiet, figures=figures, command=command)
            for i, seed_name in enumerate(names)
        ]


def resume(path: str | Path, *, quiet: bool = False, figures: bool = True) -> Run:
    """Continue an unfinished run at the step of its last whole checkpoint, with the same bits as if unbroken.

    Raises RunError when the run is finished, still running or its data changed since; nothing is overwritten then.
    """
    run = Run(path)
    with joined() as processes, Progress(quiet=quiet or not processes.first) as progress, _owned(run.path, processes):
        record, checked = run.record, run.recipe
        if record.status == DONE:
            raise RunError(f"{run.path}: the run is finished; there is nothing to resume.")
        checkpoint, damaged = latest_checkpoint(run.checkpoints)
        for line in damaged:
            record.note(f"resume passed over a checkpoint: {line}")
        _refuse_changed_recipe(run, record, checked, checkpoint)
        prepared = prepare(checked, record, progress, processes, start_weights=checkpoint is None)
        if run.has_data:
            for name, split in prepared.dataset.splits.items():
                if run.data.splits[name].hash != split.hash:
                    raise RunError(f"{run.path}: the {name} images or labels changed since the run began; train anew. `pellucid verify` names what changed.")
            _note_other_machine(run, record, prepared.runtime)
        record.status, record.error = RUNNING, None
        processes.wait()  # all have read what is overwritten now
        if processes.first:
            run.verify_file.unlink(missing_ok=True)
            if checkpoint is None:
                run.truncate_metrics(-1, epoch_ended=False)
            set_damaged_aside(run.checkpoints, checkpoint)
        micro = resumed_micro_batch(checked, checkpoint.state, processes) if checkpoint is not None else None
        training = assemble(run, record, checked, prepared, progress, micro_batch_size=micro)
        return _finish_or_fail(training, checkpoint, figures)


def resume_seeds(path: str | Path, *, quiet: bool = False, figures: bool = True) -> list[Run]:
    """Finish a folder of `train_seeds`: unfinished runs are resumed, those that were not begun are trained."""
    folder = Path(path)
    names = seed_folders(folder)
    with joined() as processes:
        begun = {name: Run(folder / name).record for name in names if (folder / name / "run.json").exists()}
        if not begun:
            raise RunError(f"{folder}: none of its runs was begun; remove the folder and train again.")
        processes.wait()  # all have seen what stands there, before the first goes on
        first = next(iter(begun))
        recipe, runs = Run(folder / first).recipe, []
        for name in names:
            if name not in begun:
                seeded = recipe.model_copy(update={"seed": int(name.removeprefix("seed-"))})
                runs.append(train(seeded, out=folder / name, quiet=quiet, figures=figures, command=begun[first].command))
            elif begun[name].status == DONE:
                runs.append(Run(folder / name))
            else:
                runs.append(resume(folder / name, quiet=quiet, figures=figures))
        return runs


def _refuse_changed_recipe(run: Run, record: RunRecord, recipe: Recipe, checkpoint: Checkpoint | None) -> None:
    """RunError when the recipe, or what it starts from, is not what the run began with."""
    if not record.began_with or (checkpoint is not None and "recipe" not in checkpoint.state):
        raise RunError(f"{run.path}: written by an earlier version of Pellucid, which this one cannot continue; train anew.")
    now_text = settings(recipe)
    if checkpoint is None and record.began_with["settings"] != text_hash(now_text):
        raise RunError(f"{run.path / 'resolved.yaml'}: the recipe was changed since the run began. Put it back, or train anew.")
    then, now = json.loads(checkpoint.state["recipe"] if checkpoint is not None else now_text), json.loads(now_text)
    changed = [f"{key} ({then.get(key)} then, {now.get(key)} now)" for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    if changed:
        raise RunError(f"{run.path / 'resolved.yaml'}: the recipe was changed since the run began: {', '.join(changed)}. Put it back, or train anew.")
    if checkpoint is None:  # else it holds the weights, and the file is not read again; where there is none, `prepare` says so
        for key, file in _weights_files(recipe).items():
            if key in record.began_with and file.exists() and record.began_with[key] != weights_hash(file):
                raise RunError(
                    f"{file}: the {'folder' if file.is_dir() else 'file'} of {key} was changed since the run began, "
                    "and there is no checkpoint to go on from. Put it back, or train anew."
                )
    if record.began_with["recipe.yaml"] != file_hash(run.recipe_file):
        raise RunError(
            f"{run.recipe_file}: the file was changed since the run began, and a resumed run follows resolved.yaml. "
            "Put it back, or train anew with the changed recipe."
        )


def _note_other_machine(run: Run, record: RunRecord, runtime: Runtime) -> None:
    """A line for each thing that decides the bits and is not what it was when the run began."""
    then, now = run.environment, describe(runtime)
    for key in DECIDES_BITS:
        if then.get(key) != now[key]:
            record.note(f"resumed with another {key} ({then.get(key)} before, {now[key]} now): no longer the bits of an unbroken run")
    before = then.get("processes", 1)
    if before != now["processes"]:
        record.note(f"resumed with another number of processes ({before} before, {now['processes']} now): no longer the bits of an unbroken run")


@contextmanager
def _owned(folder: Path, processes: Processes) -> Iterator[None]:
    """The folder, made if need be, with its lock held by the first process; an empty folder is removed again when nothing came of it."""
    if not processes.first:
        yield
        return
    with locked(folder, "the run", "another process is training into this folder. Wait for it, or choose another with --out."):
        yield


def _opened(recipe: str | Path | Recipe, overrides: Sequence[str]) -> tuple[Recipe, str, str]:
    if isinstance(recipe, Recipe):
        changed = recipes.override(recipe, overrides) if overrides else recipe
        return changed, recipes.to_yaml(changed), "run"
    checked = recipes.load(recipe, overrides)
    return checked, Path(recipe).read_text(encoding="utf-8"), Path(recipe).stem


def _weights_files(recipe: Recipe) -> dict[str, Path]:
    """{key of the recipe: file, or folder in the hub's layout} of what training starts from."""
    files = {"model.weights": recipe.model.weights, "model.backbone_weights": recipe.model.backbone_weights}
    found = {key: Path(file) for key, file in files.items() if file is not None}
    home, _, folder = recipe.model.name.partition("/")
    if home == "transformers" and Path(folder).expanduser().is_dir():
        found["model.name"] = Path(folder).expanduser()
    return found


def _refuse_used(folder: Path) -> None:
    if folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise RunError(f"{folder}: the folder is not empty. Choose another with --out, or `pellucid resume {folder}` when it is an unfinished run.")


def _free_folder(parent: Path, name: str) -> Path:
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _finish_or_fail(t: Training, checkpoint: Checkpoint | None, figures: bool) -> Run:
    """Run the loop and write results; on any error the run says how far it came."""
    began, before = time.monotonic(), t.record.seconds

    def close(status: str, error: str | None) -> None:
        t.record.status, t.record.error = status, error
        t.record.seconds, t.record.finished = before + time.monotonic() - began, _now()
        t.record.epoch, t.record.step = t.at.epoch, t.at.step
        t.write_record()

    try:
        with named_nondeterminism(t.record.note), stop_signals() as stop:
            fit(t, checkpoint, stop)
            report_numbers(t)
    except InterruptedError as error:
        close(INTERRUPTED, str(error))
        raise
    except KeyboardInterrupt:
        close(INTERRUPTED, "interrupted twice; the last checkpoint is older")
        raise
    except OSError as error:
        # A full disk above all. The record then stays as it was, "running", and the checkpoints as they are.
        with contextlib.suppress(OSError):
            close(FAILED, f"{type(error).__name__}: {error}")
        raise RunError(
            f"{error.filename or t.run.path}: cannot be written or read: {error.strerror or error}. "
            f"What was trained until the last checkpoint is kept; when that is mended, `pellucid resume {t.run.path}`."
        ) from None
    except Exception as error:
        close(FAILED, f"{type(error).__name__}: {error}")
        raise
    close(DONE, None)
    if t.first:
        drop_checkpoints(t.run.checkpoints)  # not before: until the record says done, a run killed here goes on from them
        draw(t, figures)
    t.runtime.processes.wait()
    return t.run


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
