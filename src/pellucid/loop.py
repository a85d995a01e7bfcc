"""The one training loop: phases, epochs, windows; what a run folder gets from them; stopping and going on.

Everything random is keyed by (seed, epoch, window, sample), so that a step can be repeated (after running out of memory)
or continued from (after an interruption) with the same bits. `step` holds what happens within one step.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from pellucid.checkpoint import Checkpoint, save_checkpoint
from pellucid.data.loader import Cutting, Reader, epoch_windows
from pellucid.distributed import Processes
from pellucid.errors import DataError, DivergedError, InterruptedError, RunError
from pellucid.frozen import read_of, use_frozen
from pellucid.models import layer_ids, save_weights, train_mode
from pellucid.optim import LossScale, build_optimizer, learning_rate, parameter_groups, parameters_of, set_learning_rate
from pellucid.prepare import Position, Tally, Training
from pellucid.recipe import PhaseSection, Recipe, flat
from pellucid.results import agree, diverged, in_batches, predict_split
from pellucid.snapshots import begin, take
from pellucid.step import Stage, divergence, make_room, take_step
from pellucid.trial import find_micro_batch

LEARNING_RATE_POINTS = 300
LOOK_STEPS = 20
RECORD_SECONDS = 1.0  # how long the record may lag behind short epochs
# May differ when a run is resumed: where images lie (their content is compared), how they are read, how a batch is cut.
NOT_PART_OF_THE_RESULT = (
    "train.checkpoint_seconds", "train.micro_batch_size", "data.workers", "data.store.directory", "data.store.limit_gb", "data.train", "data.val", "data.test",
    "data.image_dir", "data.mask_dir", "data.boxes",
)  # fmt: skip


def fit(t: Training, checkpoint: Checkpoint | None, stop: threading.Event) -> None:
    """Train: phases, epochs and steps, from the start or from a checkpoint. Raises InterruptedError, after a checkpoint, when `stop` is set."""
    recipe, at = t.recipe, t.at
    labels, size, balanced = t.dataset.splits["train"].labels, recipe.train.batch_size, recipe.train.balanced_sampling
    all_windows = partial(epoch_windows, labels, batch_size=size, seed=recipe.seed, balanced=balanced, no_single=t.batch_norm)
    scale = LossScale(enabled=recipe.train.precision == "fp16")
    if checkpoint is None:
        use_frozen(t, fresh=True)
        find_micro_batch(t, all_windows(epoch=0)[0])
        begin(t, -1)
        _snapshot(t, 0)
        if t.task.from_the_start:
            _look_back(t, 0)
            if "val" in t.dataset.splits:
                _validate(t, 0)
    first_epoch = 0
    pixels, workers = read_of(t)
    with Reader(
        pixels,
        workers=workers,
        partners=t.task.needs_partners,
        pin=t.runtime.device.type == "cuda",
        cutting=Cutting(t.runtime.processes, no_single=t.batch_norm, together=t.synchronized),
    ) as reader:
        for phase_index, phase in enumerate(recipe.train.phases):
            last_epoch = first_epoch + phase.epochs
            stage = _stage(t, phase, scale)
            if checkpoint is not None:
                if int(checkpoint.state["phase"]) != phase_index:
                    first_epoch = last_epoch
                    continue
                _restore(t, checkpoint, stage)
                use_frozen(t, fresh=False)
                checkpoint, at = None, t.at
                begin(t, at.epoch)
            make_room(t, stage)
            at.phase = phase_index
            steps = t.steps_per_epoch
            rate = partial(learning_rate, phase.schedule, peak=phase.optimizer.lr, total_steps=phase.epochs * steps, steps_per_epoch=steps)
            while at.epoch < last_epoch and not at.stopped:
                clock = time.perf_counter()
                windows = all_windows(epoch=at.epoch)
                train_mode(t.module, t.frozen)
                reader.plan(windows[at.window :], t.micro)
                rates = [rate(step=(at.epoch - first_epoch) * steps + window.index) for window in windows]
                for window in windows[at.window :]:
                    lr = rates[window.index]
                    set_learning_rate(stage.optimizer, lr)
                    take_step(t, stage, reader, window)
                    at.step, at.window = at.step + 1, window.index + 1
                    _after_step(t, lr, len(windows))
                    _perhaps_save(t, stage, stop)
                    before, clock = clock, time.perf_counter()
                    at.tally.seconds += clock - before
                # A run that is resumed at the end of an epoch has no window left and comes straight here.
                _end_epoch(t, rates[-1])
                _perhaps_save(t, stage, stop)
            first_epoch = last_epoch


def _stage(t: Training, phase: PhaseSection, scale: LossScale) -> Stage:
    groups = parameter_groups(t.module, phase.optimizer, layer_ids(t.module, t.built.classifier)[0])
    if not groups:
        raise DataError("model.freeze leaves nothing to train")
    optimizer = build_optimizer(groups, phase.optimizer)
    return Stage(phase, optimizer, parameters_of(optimizer), scale)


def _after_step(t: Training, lr: float, num_windows: int) -> None:
    """Progress, and a look at the losses: every 20 steps, because on a GPU looking means waiting; where a step takes long, every step."""
    at = t.at
    every = max(1, t.record.total_steps // LEARNING_RATE_POINTS)
    if at.step % every == 0 or at.step == 1:
        t.log({"kind": "lr", "step": at.step, "lr": lr})
    if at.window % LOOK_STEPS == 0 or at.window == num_windows or (t.runtime.processes.alone and t.progress.due(at.step, t.record.total_steps)):
        settle(t)
        if t.progress.due(at.step, t.record.total_steps):
            mean = at.tally.loss / max(at.tally.weight, 1e-12)
            accuracy = f" {t.task.accuracy} {at.tally.correct / at.tally.counted:.3f}" if at.tally.counted else ""
            t.progress("training: step", at.step, t.record.total_steps, f"epoch {at.epoch + 1}/{t.recipe.epochs} loss {mean:.4f}{accuracy} lr {lr:.2e}")


def settle(t: Training) -> None:
    """Add the pending losses, of all processes, to the sums; stop at the first that is not finite."""
    tally, processes = t.at.tally, t.runtime.processes
    if not tally.pending:
        return
    rows = [(float(sums.loss), int(sums.correct), sums.counted) for _, sums, _ in tally.pending]
    if not processes.alone:
        together = torch.tensor(rows, dtype=torch.float64)
        processes.add([together])
        rows = [(loss, int(correct), int(counted)) for loss, correct, counted in together.tolist()]
    first = t.at.step - len(rows) + 1
    for offset, ((window, _, weight), (loss, correct, counted)) in enumerate(zip(tally.pending, rows, strict=True)):
        if not math.isfinite(loss):
            raise DivergedError(divergence(t, window, first + offset, loss))
        tally.loss += loss
        tally.weight += weight
        tally.correct += correct
        tally.counted += counted
    tally.pending.clear()


def _perhaps_save(t: Training, stage: Stage, stop: threading.Event) -> None:
    """A checkpoint when its time has come or a signal has; all processes save, and stop, at the same step."""
    due = time.monotonic() - t.last_checkpoint > t.recipe.train.checkpoint_seconds
    stopping, saving = t.runtime.processes.largest(stop.is_set(), due and t.first)
    if not stopping and not saving:
        return
    problem = t.runtime.processes.told(save(t, stage))
    if stopping:
        written = f"but {problem}" if problem else "checkpoint written"
        raise InterruptedError(f"interrupted at step {t.at.step:,} of {t.record.total_steps:,}, {written}. Continue with `pellucid resume {t.run.path}`")
    if problem:
        t.record.note(problem)
        t.progress.line(problem)


def _end_epoch(t: Training, lr: float) -> None:
    """Write the epoch's line, evaluate when it is due, remember the best, decide whether to stop, keep a snapshot."""
    at, tally = t.at, t.at.tally
    settle(t)
    images = len(t.dataset.splits["train"])
    t.log({
        "kind": "train", "epoch": at.epoch + 1, "step": at.step, "phase": at.phase, "loss": tally.loss / max(tally.weight, 1e-12),
        "accuracy": tally.correct / tally.counted if tally.counted else None, "lr": lr, "seconds": round(tally.seconds, 3),
        "images_per_second": round(images / max(tally.seconds, 1e-9), 1), "micro_batch_size": t.micro,
    })  # fmt: skip
    line = f"epoch {at.epoch + 1}/{t.recipe.epochs}  train loss {tally.loss / max(tally.weight, 1e-12):.4f}"
    last = at.epoch + 1 == t.recipe.epochs
    if "val" in t.dataset.splits and (last or (at.epoch + 1) % t.recipe.train.evaluate_every == 0):
        numbers = _validate(t, at.epoch + 1)
        line += f"  val loss {numbers['loss']:.4f}" if "loss" in numbers else ""
        line += f"  val {t.task.headline} {numbers[t.task.headline]:.4f}"
    line += "".join(f"  {name} {value:.3g}" for name, value in _look_back(t, at.epoch + 1).items() if isinstance(value, float))  # counts stay the same
    t.progress.line(f"{line}  {tally.seconds:.1f} s")
    _snapshot(t, at.epoch + 1)
    _share_notes(t)
    t.write_log()
    at.epoch, at.window, at.tally = at.epoch + 1, 0, Tally()
    t.record.epoch, t.record.step = at.epoch, at.step
    t.write_record(at_most_every=RECORD_SECONDS)


def _snapshot(t: Training, epoch: int) -> None:
    """Keep features and maps after an epoch that the recipe's `inside` asks for."""
    if t.recipe.inside is not None:
        from pellucid.look import snapshot_maps  # with captum, openTSNE and what they import

        take(t, epoch, partial(snapshot_maps, t))


def _look_back(t: Training, epoch: int) -> dict[str, float]:
    """What the task watches after an epoch (0: before the first step), in the first process; what is wrong by it stands in the record until it is mended."""
    watched, problem = t.runtime.processes.told(_watched(t) if t.first else None)
    agree(t)
    if problem:
        raise DivergedError(problem)
    if not watched or not t.first:
        return watched or {}
    t.log({"kind": "watch", "epoch": epoch, "step": t.at.step, **watched})
    alarms = t.task.alarms([*t.run.metrics(), *t.lines])
    told = {line.partition(":")[0] for line in t.record.alarms}
    for line in alarms:
        if line.partition(":")[0] not in told:  # its numbers change from epoch to epoch
            t.progress.line(line)
    t.record.alarms = alarms
    return watched


def _watched(t: Training) -> tuple[dict[str, float], str | None]:
    """What the task watches, in batches that shrink when memory runs out; and the message of a DivergedError where there is nothing to watch any more."""
    try:
        return in_batches(t, partial(t.task.watch, t.evaluated, t.recipe.data.workers)), None
    except DivergedError as error:
        return {}, diverged(t, str(error))


def _validate(t: Training, epoch: int) -> dict[str, float]:
    at, began = t.at, time.perf_counter()
    predictions = predict_split(t, t.evaluated, "val", keep=False)
    numbers: dict[str, float] = t.runtime.processes.told(t.task.quick(predictions) if predictions is not None else None)
    t.log({"kind": "val", "epoch": epoch, "step": at.step, **numbers, "seconds": round(time.perf_counter() - began, 3)})
    stopping = t.recipe.train.early_stop
    metric = (stopping.metric if stopping is not None else None) or t.task.headline
    value = -numbers["loss"] if metric == "loss" else numbers[metric]
    if at.best is None or value > at.best:
        at.best, at.best_epoch, at.stale = value, epoch, 0
        if t.recipe.train.keep == "best" and t.first:
            save_weights(t.evaluated, t.run.best_weights(at.best_epoch), {"epoch": str(at.best_epoch)})
            _drop_best(t)
    else:
        at.stale += 1
    if stopping is not None and at.stale >= stopping.patience:
        at.stopped = True
        t.record.note(f"stopped early after epoch {epoch}: {metric} on val did not improve for {at.stale} evaluations (best in epoch {at.best_epoch})")
        if at.phase + 1 < len(t.recipe.train.phases):
            t.record.note(f"because of the early stop, phase {at.phase + 2} and later were not run")
    return numbers


def _drop_best(t: Training) -> None:
    """Remove the weights of earlier best epochs, but for those that the kept checkpoints go back to."""
    wanted = {t.run.best_weights(epoch) for epoch in (*t.saved_best, t.at.best_epoch)}
    for file in t.run.checkpoints.glob("best-*.safetensors"):
        if file not in wanted:
            file.unlink(missing_ok=True)


def _share_notes(t: Training) -> None:
    """What other processes noted stands in the record of the first; and all of them must hold the same weights."""
    processes = t.runtime.processes
    if processes.alone:
        return
    seen = processes.gather((t.record.notes, _fingerprint(t)))
    for rank, (notes, _) in enumerate(seen):
        for note in notes:
            if note not in t.record.notes:
                t.record.note(f"process {rank}: {note}")
    apart = [rank for rank, (_, fingerprint) in enumerate(seen) if fingerprint != seen[0][1]]
    line = f"after step {t.at.step:,} the weights of processes {apart} are not those of process 0: are their processors of one kind?"
    problem = processes.told(line if apart else None)
    if problem:
        raise RunError(problem)


def _fingerprint(t: Training) -> int:
    """A sum over the bits of all parameters, as integers."""
    return sum(int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in t.module.parameters() if p.dtype == torch.float32)


# ── checkpoints and signals ───────────────────────────────────────────────────────────────────────────────────


def save(t: Training, stage: Stage) -> str | None:
    """Write a checkpoint; None, or a line that says why it could not be written. The last good one then stays."""
    at = t.at
    settle(t)
    _share_notes(t)
    micros = t.runtime.processes.gather(t.micro)
    t.last_checkpoint = time.monotonic()
    if not t.first:
        return None
    state = {
        "optimizer": stage.optimizer.state_dict(), "scale": stage.scale.state_dict(), "phase": at.phase, "epoch": at.epoch, "window": at.window,
        "best": at.best, "best_epoch": at.best_epoch, "stale": at.stale, "stopped": at.stopped, "tally": at.tally.state(), "micro": micros,
        "evaluation_batch_size": t.record.evaluation_batch_size, "recipe": settings(t.recipe),
    }  # fmt: skip
    average = t.average.state_dict() if t.average is not None else None
    try:
        t.write_log()
        t.record.epoch, t.record.step = at.epoch, at.step
        t.write_record()  # with the notes so far: what a run that is killed now still has to say
        save_checkpoint(t.run.checkpoints, step=at.step, model=t.module.state_dict(), average=average, state=state)
    except OSError as error:
        return f"no checkpoint could be written at step {at.step:,} ({error.strerror or error}); the one before it stays"
    t.saved_best = [*t.saved_best[-1:], at.best_epoch]
    _drop_best(t)
    return None


def resumed_micro_batch(recipe: Recipe, state: Mapping[str, Any], processes: Processes) -> int:
    """The micro-batch of this process as the checkpoint has it, that of the smallest for another number of processes; at most what the recipe says now."""
    micros = state["micro"]
    micro = micros[processes.rank] if len(micros) == processes.size else min(micros)
    wanted = recipe.train.micro_batch_size
    return micro if wanted == "auto" else min(micro, wanted)


def settings(recipe: Recipe) -> str:
    """What decides the result, as text: all values of the recipe but those that change no bit."""
    return json.dumps({key: value for key, value in flat(recipe).items() if key not in NOT_PART_OF_THE_RESULT}, sort_keys=True)


def _restore(t: Training, checkpoint: Checkpoint, stage: Stage) -> None:
    state = checkpoint.state
    t.module.load_state_dict(checkpoint.model, strict=True)
    if t.average is not None and checkpoint.average is not None:
        t.average.load_state_dict(checkpoint.average, strict=True)
    stage.optimizer.load_state_dict(state["optimizer"])
    stage.scale.load_state_dict(state["scale"])
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
    t.record.evaluation_batch_size = state["evaluation_batch_size"]
    t.saved_best = [state["best_epoch"]]
    if t.first:
        t.run.truncate_metrics(checkpoint.step, epoch_ended=state["window"] == 0)
    t.progress.line(f"resuming at step {checkpoint.step:,} of {t.record.total_steps:,}")


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
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
