"""The one training loop: phases, epochs, windows, micro-batches, and what a run folder gets from them.

A step is: sum the gradient of the window over its packs, each divided by the weight of the *whole* window; unscale;
with SAM once more at the perturbed weights; clip; update; average. Everything random is keyed by (seed, epoch, window,
sample), so a step can be repeated (after running out of memory) or continued from (after an interruption) with the same bits.
"""

from __future__ import annotations

import datetime
import fcntl
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pellucid
from pellucid import recipe as recipes
from pellucid.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from pellucid.data.draws import derived_seed
from pellucid.data.loader import Reader, Window, epoch_windows
from pellucid.errors import DataError, DivergedError, InterruptedError, OutOfMemoryError, RunError, UsageError
from pellucid.models import layer_ids, save_weights, train_mode
from pellucid.optim import (
    LossScale,
    build_optimizer,
    clip_gradients,
    learning_rate,
    parameter_groups,
    parameters_of,
    sam_perturb,
    sam_restore,
    set_learning_rate,
    update_average,
)
from pellucid.prepare import Position, Tally, Training, assemble, prepare
from pellucid.progress import Progress
from pellucid.recipe import PhaseSection, Recipe
from pellucid.results import draw, no_room, predict_split, report_numbers
from pellucid.run import DONE, FAILED, INTERRUPTED, RUNNING, Run, RunRecord, seed_folders, write_json
from pellucid.runtime import DECIDES_BITS, Runtime, describe, named_nondeterminism, out_of_memory, seed_torch

CHECKPOINT_SECONDS = 120.0
LEARNING_RATE_POINTS = 300


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
    folder = Path(out) if out is not None else _free_folder(Path("runs"), name)
    told = list(command) or ["pellucid", "train", f"{name}.yaml", *[part for override in overrides for part in ("-s", override)]]
    record = RunRecord(pellucid.__version__, RUNNING, checked.task, told, _now())
    with Progress(quiet=quiet) as progress, _owned(folder):
        _refuse_used(folder)
        prepared = prepare(checked, record, progress, start_weights=True)
        run = Run.create(folder, record=record, recipe=checked, recipe_text=text)
        training = assemble(run, record, checked, prepared, progress)
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
    folder = Path(out) if out is not None else _free_folder(Path("runs"), name)
    names = [f"seed-{checked.seed + i}" for i in range(seeds)]
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
    with Progress(quiet=quiet) as progress, _owned(run.path):
        record, checked = run.record, run.recipe
        if record.status == DONE:
            raise RunError(f"{run.path}: the run is finished; there is nothing to resume.")
        checkpoint, damaged = latest_checkpoint(run.checkpoints)
        for line in damaged:
            record.note(f"resume passed over a checkpoint: {line}")
        prepared = prepare(checked, record, progress, start_weights=checkpoint is None)
        if run.has_data:
            for name, split in prepared.dataset.splits.items():
                if run.data.splits[name].hash != split.hash:
                    raise RunError(f"{run.path}: the {name} images or labels changed since the run began; train anew. `pellucid verify` names what changed.")
            _note_other_machine(run, record, prepared.runtime)
        record.status, record.error = RUNNING, None
        run.verify_file.unlink(missing_ok=True)
        if checkpoint is None:
            run.truncate_metrics(-1, epoch_ended=False)
        training = assemble(run, record, checked, prepared, progress)
        return _finish_or_fail(training, checkpoint, figures)


def resume_seeds(path: str | Path, *, quiet: bool = False, figures: bool = True) -> list[Run]:
    """Finish a folder of `train_seeds`: unfinished runs are resumed, those that were not begun are trained."""
    folder = Path(path)
    names = seed_folders(folder)
    begun = next((Run(folder / name) for name in names if (folder / name / "run.json").exists()), None)
    if begun is None:
        raise RunError(f"{folder}: none of its runs was begun; remove the folder and train again.")
    recipe, runs = begun.recipe, []
    for name in names:
        if (folder / name / "run.json").exists():
            run = Run(folder / name)
            runs.append(run if run.record.status == DONE else resume(folder / name, quiet=quiet, figures=figures))
        else:
            seeded = recipe.model_copy(update={"seed": int(name.removeprefix("seed-"))})
            runs.append(train(seeded, out=folder / name, quiet=quiet, figures=figures, command=begun.record.command))
    return runs


def _note_other_machine(run: Run, record: RunRecord, runtime: Runtime) -> None:
    """A line for each thing that decides the bits and is not what it was when the run began."""
    then, now = run.environment, describe(runtime)
    for key in DECIDES_BITS:
        if then.get(key) != now[key]:
            record.note(f"resumed with another {key} ({then.get(key)} before, {now[key]} now): no longer the bits of an unbroken run")


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """The folder, made if need be, with its lock held; an empty folder is removed again when nothing came of it."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: expected a folder for the run, there is a file of that name.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another process is training into this folder. Wait for it, or choose another with --out.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _opened(recipe: str | Path | Recipe, overrides: Sequence[str]) -> tuple[Recipe, str, str]:
    if isinstance(recipe, Recipe):
        changed = recipes.override(recipe, overrides) if overrides else recipe
        return changed, recipes.to_yaml(changed), "run"
    checked = recipes.load(recipe, overrides)
    return checked, Path(recipe).read_text(encoding="utf-8"), Path(recipe).stem


def _refuse_used(folder: Path) -> None:
    if folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise RunError(f"{folder}: the folder is not empty. Choose another with --out, or `pellucid resume {folder}` when it is an unfinished run.")


def _free_folder(parent: Path, name: str) -> Path:
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────


def _finish_or_fail(t: Training, checkpoint: Checkpoint | None, figures: bool) -> Run:
    """Run the loop and write results; on any error the run says how far it came."""
    began, before = time.monotonic(), t.record.seconds

    def close(status: str, error: str | None) -> None:
        t.record.status, t.record.error = status, error
        t.record.seconds, t.record.finished = before + time.monotonic() - began, _now()
        t.record.epoch, t.record.step = t.at.epoch, t.at.step
        t.run.write_record(t.record)

    try:
        with named_nondeterminism(t.record.note), _stop_signals() as stop:
            _fit(t, checkpoint, stop)
            report_numbers(t)
    except InterruptedError as error:
        close(INTERRUPTED, str(error))
        raise
    except KeyboardInterrupt:
        close(INTERRUPTED, "interrupted twice; the last checkpoint is older")
        raise
    except Exception as error:
        close(FAILED, f"{type(error).__name__}: {error}")
        raise
    close(DONE, None)
    draw(t, figures)
    return t.run


def _fit(t: Training, checkpoint: Checkpoint | None, stop: threading.Event) -> None:
    """Phases, epochs and steps."""
    recipe, at = t.recipe, t.at
    labels, size, balanced = t.dataset.splits["train"].labels, recipe.train.batch_size, recipe.train.balanced_sampling
    all_windows = partial(epoch_windows, labels, batch_size=size, seed=recipe.seed, balanced=balanced, no_single=t.batch_norm)
    scale = LossScale(enabled=recipe.train.precision == "fp16")
    first_epoch = 0
    with Reader(
        t.pixels["train"], workers=recipe.data.workers, partners=t.task.needs_partners, pin=t.runtime.device.type == "cuda", no_single=t.batch_norm
    ) as reader:
        for phase_index, phase in enumerate(recipe.train.phases):
            last_epoch = first_epoch + phase.epochs
            optimizer = _optimizer(t, phase)
            if checkpoint is not None:
                if int(checkpoint.state["phase"]) != phase_index:
                    first_epoch = last_epoch
                    continue
                _restore(t, checkpoint, optimizer, scale)
                checkpoint, at = None, t.at
            at.phase = phase_index
            steps = t.steps_per_epoch
            rate = partial(learning_rate, phase.schedule, peak=phase.optimizer.lr, total_steps=phase.epochs * steps, steps_per_epoch=steps)
            while at.epoch < last_epoch and not at.stopped:
                windows = all_windows(epoch=at.epoch)
                train_mode(t.module, t.frozen)
                reader.plan(windows[at.window :], t.micro)
                for window in windows[at.window :]:
                    began = time.perf_counter()
                    lr = rate(step=(at.epoch - first_epoch) * steps + window.index)
                    set_learning_rate(optimizer, lr)
                    _step(t, reader, window, windows, optimizer, scale, phase)
                    at.step, at.window = at.step + 1, window.index + 1
                    at.tally.seconds += time.perf_counter() - began
                    _after_step(t, lr, len(windows))
                    if stop.is_set():
                        _save(t, optimizer, scale)
                        raise InterruptedError(
                            f"interrupted at step {at.step:,} of {t.record.total_steps:,}, checkpoint written. Continue with `pellucid resume {t.run.path}`"
                        )
                    if time.monotonic() - t.last_checkpoint > CHECKPOINT_SECONDS:
                        _save(t, optimizer, scale)
                # A run that is resumed at the end of an epoch has no window left and comes straight here.
                _end_epoch(t, rate(step=(at.epoch - first_epoch) * steps + len(windows) - 1))
            first_epoch = last_epoch


def _optimizer(t: Training, phase: PhaseSection) -> torch.optim.Optimizer:
    groups = parameter_groups(t.module, phase.optimizer, layer_ids(t.module, t.built.classifier)[0])
    if not groups:
        raise DataError("model.freeze leaves nothing to train")
    return build_optimizer(groups, phase.optimizer)


def _step(t: Training, reader: Reader, window: Window, windows: list[Window], optimizer: torch.optim.Optimizer, scale: LossScale, phase: PhaseSection) -> None:
    """One optimiser step on a window."""
    parameters = parameters_of(optimizer)
    loss, correct = _gradient(t, reader, window, windows, optimizer, scale)
    finite = scale.unscale(parameters)
    t.at.tally.pending.append((window, loss, correct, t.task.window_weight(window)))
    sam = phase.optimizer.sam
    if sam is not None and finite:
        buffers = [b.clone() for b in t.module.buffers()]
        saved = sam_perturb(parameters, rho=sam.rho, adaptive=sam.adaptive)
        _gradient(t, reader, window, windows, optimizer, scale)
        finite = scale.unscale(parameters)
        sam_restore(saved)
        _restore_buffers(t.module, buffers)  # running statistics belong to the weights that are kept
    if finite:
        if t.recipe.train.clip_grad_norm is not None:
            clip_gradients(parameters, t.recipe.train.clip_grad_norm)
        optimizer.step()
        if t.average is not None and t.recipe.train.ema is not None:
            # Early on a short memory, else the average would stay near the random start: min(decay, (1 + t) / (10 + t)).
            decay = min(t.recipe.train.ema.decay, (1 + t.at.step) / (10 + t.at.step))
            update_average(list(t.average.state_dict().values()), list(t.module.state_dict().values()), decay)
    elif scale.scale <= 1.0:
        raise DivergedError(_divergence(t, window, t.at.step + 1, float(loss)))
    scale.update(finite)


def _gradient(
    t: Training, reader: Reader, window: Window, windows: list[Window], optimizer: torch.optim.Optimizer, scale: LossScale
) -> tuple[Tensor, Tensor | None]:
    """Set the gradients to those of the window's loss; (summed loss, correct images). Halves the micro-batch when memory runs out."""
    weight = t.task.window_weight(window)
    buffers = [b.clone() for b in t.module.buffers()]
    while True:
        optimizer.zero_grad(set_to_none=True)
        losses, hits = [], []
        try:
            for pack in reader.packs(window, t.micro):
                # Dropout and drop-path are keyed like all else, so that a repeated pass draws the same.
                seed_torch(derived_seed(t.recipe.seed, "model", window.epoch, window.index, pack.start))
                loss, correct = t.task.loss(t.forward, pack)  # type: ignore[arg-type]
                (loss * (scale.scale / weight)).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
                hits.append(correct)
            total = torch.stack([hit for hit in hits if hit is not None]).sum() if hits[0] is not None else None
            return torch.stack(losses).sum(), total
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise UsageError(
                    f"BatchNorm of {t.recipe.model.name} cannot take its statistics from one image of this size: "
                    "set train.micro_batch_size to at least 2, or choose a model without BatchNorm."
                ) from None
            raise
        if t.micro == 1:
            raise OutOfMemoryError(no_room(t.recipe, t.runtime))
        _restore_buffers(t.module, buffers)
        t.micro = math.ceil(t.micro / 2)
        t.record.note(f"memory ran out: the micro-batch is {t.micro} since step {t.at.step + 1}; the batch stays {t.recipe.train.batch_size}")
        if t.batch_norm:
            t.record.note(f"BatchNorm sees micro-batches of {t.micro} images since step {t.at.step + 1}: the gradient is no longer exactly that of the batch")
        if t.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        reader.plan(windows[window.index + 1 :], t.micro)


def _restore_buffers(module: nn.Module, saved: list[Tensor]) -> None:
    for buffer, old in zip(module.buffers(), saved, strict=True):
        buffer.copy_(old)


def _after_step(t: Training, lr: float, num_windows: int) -> None:
    """Progress, and a look at the losses: every step on the CPU, every 20 on a GPU, where looking means waiting."""
    at = t.at
    every = max(1, t.record.total_steps // LEARNING_RATE_POINTS)
    if at.step % every == 0 or at.step == 1:
        t.run.append_metrics({"kind": "lr", "step": at.step, "lr": lr})
    if t.runtime.device.type == "cpu" or at.window % 20 == 0 or at.window == num_windows:
        _settle(t)
        mean = at.tally.loss / max(at.tally.weight, 1e-12)
        accuracy = f" accuracy {at.tally.correct / at.tally.counted:.3f}" if at.tally.counted else ""
        t.progress("training: step", at.step, t.record.total_steps, f"epoch {at.epoch + 1}/{t.recipe.epochs} loss {mean:.4f}{accuracy} lr {lr:.2e}")


def _settle(t: Training) -> None:
    """Add the pending losses to the sums; stop at the first that is not finite."""
    tally = t.at.tally
    first = t.at.step - len(tally.pending) + 1
    for offset, (window, loss, correct, weight) in enumerate(tally.pending):
        value = float(loss)
        if not math.isfinite(value):
            raise DivergedError(_divergence(t, window, first + offset, value))
        tally.loss += value
        tally.weight += weight
        if correct is not None:
            tally.correct += int(correct)
            tally.counted += len(window)
    tally.pending.clear()


def _divergence(t: Training, window: Window, step: int, value: float) -> str:
    names = [t.dataset.splits["train"].names[int(row)] for row in window.rows]
    shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
    return (
        f"the loss became {value} at step {step:,} (epoch {window.epoch + 1}). Images of that batch: {shown}. "
        "Remedies: a lower train.phases.*.optimizer.lr, a schedule with warmup_steps, train.clip_grad_norm: 1.0"
        + (", train.precision: bf16 or fp32 instead of fp16." if t.recipe.train.precision == "fp16" else ".")
    )


def _end_epoch(t: Training, lr: float) -> None:
    """Write the epoch's line, evaluate when it is due, remember the best, decide whether to stop."""
    at, tally = t.at, t.at.tally
    images = len(t.dataset.splits["train"])
    t.run.append_metrics({
        "kind": "train", "epoch": at.epoch + 1, "step": at.step, "phase": at.phase, "loss": tally.loss / max(tally.weight, 1e-12),
        "accuracy": tally.correct / tally.counted if tally.counted else None, "lr": lr, "seconds": round(tally.seconds, 3),
        "images_per_second": round(images / max(tally.seconds, 1e-9), 1), "micro_batch_size": t.micro,
    })  # fmt: skip
    line = f"epoch {at.epoch + 1}/{t.recipe.epochs}  train loss {tally.loss / max(tally.weight, 1e-12):.4f}"
    last = at.epoch + 1 == t.recipe.epochs
    if "val" in t.dataset.splits and (last or (at.epoch + 1) % t.recipe.train.evaluate_every == 0):
        numbers = _validate(t)
        line += f"  val loss {numbers['loss']:.4f}  val accuracy {numbers['accuracy']:.4f}"
    t.progress.line(f"{line}  {tally.seconds:.1f} s")
    at.epoch, at.window, at.tally = at.epoch + 1, 0, Tally()
    t.record.epoch, t.record.step = at.epoch, at.step
    t.run.write_record(t.record)


def _validate(t: Training) -> dict[str, float]:
    at, began = t.at, time.perf_counter()
    predictions = predict_split(t, t.evaluated, "val")
    numbers = t.task.quick(predictions)
    t.run.append_metrics({"kind": "val", "epoch": at.epoch + 1, "step": at.step, **numbers, "seconds": round(time.perf_counter() - began, 3)})
    stopping = t.recipe.train.early_stop
    metric = stopping.metric if stopping is not None else t.task.headline
    value = -numbers["loss"] if metric == "loss" else numbers[metric]
    if at.best is None or value > at.best:
        at.best, at.best_epoch, at.stale = value, at.epoch + 1, 0
        if t.recipe.train.keep == "best":
            save_weights(t.evaluated, t.run.best_weights, {"epoch": str(at.epoch + 1)})
    else:
        at.stale += 1
    if stopping is not None and at.stale >= stopping.patience:
        at.stopped = True
        t.record.note(f"stopped early after epoch {at.epoch + 1}: {metric} on val did not improve for {at.stale} evaluations (best in epoch {at.best_epoch})")
        if at.phase + 1 < len(t.recipe.train.phases):
            t.record.note(f"because of the early stop, phase {at.phase + 2} and later were not run")
    return numbers


# ── checkpoints and signals ───────────────────────────────────────────────────────────────────────────────────


def _save(t: Training, optimizer: torch.optim.Optimizer, scale: LossScale) -> None:
    at = t.at
    _settle(t)
    state = {
        "optimizer": optimizer.state_dict(), "scale": scale.state_dict(), "phase": at.phase, "epoch": at.epoch, "window": at.window,
        "best": at.best, "best_epoch": at.best_epoch, "stale": at.stale, "stopped": at.stopped, "tally": at.tally.state(), "micro": t.micro,
    }  # fmt: skip
    average = t.average.state_dict() if t.average is not None else None
    save_checkpoint(t.run.checkpoints, step=at.step, model=t.module.state_dict(), average=average, state=state)
    t.last_checkpoint = time.monotonic()


def _restore(t: Training, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, scale: LossScale) -> None:
    state = checkpoint.state
    t.module.load_state_dict(checkpoint.model, strict=True)
    if t.average is not None and checkpoint.average is not None:
        t.average.load_state_dict(checkpoint.average, strict=True)
    optimizer.load_state_dict(state["optimizer"])
    scale.load_state_dict(state["scale"])
    t.at = Position(
        checkpoint.step,
        state["phase"],
        state["epoch"],
        state["window"],
        state["best"],
        state["best_epoch"],
        state["stale"],
        state["stopped"],
        Tally(**state["tally"]),
    )
    t.micro = state["micro"]
    t.run.truncate_metrics(checkpoint.step, epoch_ended=state["window"] == 0)
    t.progress.line(f"resuming at step {checkpoint.step:,} of {t.record.total_steps:,}")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
