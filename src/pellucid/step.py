"""One optimiser step: the gradient of a window out of its packs, SAM around it, the update, and room for all of it.

The loss of each pack is divided by the weight of the *whole* window, so that the sum over packs, and over processes, is
the gradient of the batch however it was cut. A pass that runs out of memory is repeated in smaller packs with the same
random draws; nothing that lasts (weights, running statistics, optimiser) has moved by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from pellucid.data.draws import derived_seed
from pellucid.data.loader import Pack, Reader, Window
from pellucid.errors import DivergedError, OutOfMemoryError, UsageError
from pellucid.memory import no_room
from pellucid.models.synchronized import synchronized_batch_norm
from pellucid.optim import LossScale, clip_gradients, make_state, sam_perturb, sam_restore, update_average
from pellucid.prepare import Sums, Training, micro_batch_notes
from pellucid.recipe import PhaseSection
from pellucid.runtime import out_of_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A phase under way: what it moves, and by what rule."""

    phase: PhaseSection
    optimizer: torch.optim.Optimizer
    parameters: list[Tensor]
    scale: LossScale
    _shares: dict[float, Tensor] = field(default_factory=dict)

    def share(self, value: float, device: torch.device) -> Tensor:
        """() float32; nearly every step asks for the same one."""
        if value not in self._shares:
            self._shares.clear()
            self._shares[value] = torch.tensor(value, device=device)
        return self._shares[value]


def take_step(t: Training, stage: Stage, reader: Reader, window: Window) -> None:
    """One optimiser step on a window; its loss waits in the tally."""
    weight = t.task.window_weight(window)
    sums = _gradient(t, stage, reader, window, weight)
    finite = stage.scale.unscale(stage.parameters)
    t.at.tally.pending.append((window, sums, weight))
    sam = stage.phase.optimizer.sam
    if sam is not None and finite:
        saved = _spared(lambda: sam_perturb(stage.parameters, rho=sam.rho, adaptive=sam.adaptive), t)
        try:
            _gradient(t, stage, reader, window, weight)
            finite = stage.scale.unscale(stage.parameters)
        finally:
            sam_restore(saved)
        t.buffers.restore()  # running statistics belong to the weights that are kept
    if finite:
        if t.recipe.train.clip_grad_norm is not None:
            clip_gradients(stage.parameters, t.recipe.train.clip_grad_norm)
        stage.optimizer.step()
        t.task.after_step(t.module, t.at.step, t.record.total_steps)
        if t.averaged is not None and t.recipe.train.ema is not None:
            # Early on a short memory, else the average would stay near the random start: min(decay, (1 + t) / (10 + t)).
            decay = min(t.recipe.train.ema.decay, (1 + t.at.step) / (10 + t.at.step))
            update_average(*t.averaged, decay)
    elif stage.scale.scale <= 1.0:
        raise DivergedError(divergence(t, window, t.at.step + 1, float(sums.loss)))
    stage.scale.update(finite)


def _gradient(t: Training, stage: Stage, reader: Reader, window: Window, weight: float) -> Sums:
    """Set the gradients to those of the window's loss, over all processes; the sums are those of this one.

    Halves the micro-batch when memory runs out, and begins again.
    """
    t.buffers.keep()
    while True:
        try:
            sums = accumulate(t, stage, reader.packs(window, t.micro), weight)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                if t.recipe.train.micro_batch_size != 1 and t.recipe.train.batch_size > 1:  # it came to 1 because memory ran out
                    raise OutOfMemoryError(no_room(t.recipe, t.runtime, t.rebuild, what="for two images, the fewest that BatchNorm takes,")) from None
                # A micro-batch is never larger than the batch, so that setting it alone would not help there.
                keys = " and ".join(f"train.{key}" for key in ("batch_size", "micro_batch_size") if getattr(t.recipe.train, key) == 1)
                raise UsageError(
                    f"BatchNorm of {t.recipe.model.name} cannot take its statistics from one image of this size: "
                    f"set {keys} to at least 2, or choose a model without BatchNorm."
                ) from None
            raise
        # Outside of the handler: the error's frames hold the activations that have to go.
        t.buffers.restore()
        _shrink(t, reader, window)
    if not t.runtime.processes.alone:
        _add_up(t, stage, took_part=sums.took_part)
    return sums


def accumulate(t: Training, stage: Stage, packs: Iterable[Pack], weight: float) -> Sums:
    """Gradients summed over packs, in `.grad`, and what the packs sum to."""
    for parameter in stage.parameters:
        parameter.grad = None
    # The gradient of loss times scale / weight, given to the backward pass instead of multiplied into the loss: the same bits, one node less.
    share = stage.share(stage.scale.scale / weight, t.runtime.device)
    losses, hits, counted = [], [], 0
    for pack in packs:
        # Dropout and drop-path are keyed like all else, so that a repeated pass draws the same.
        t.runtime.seed(derived_seed(t.recipe.seed, "model", pack.window.epoch, pack.window.index, pack.start))
        if t.synchronized:
            with synchronized_batch_norm(counted=not pack.idle):
                loss, correct, number = t.task.loss(t.forward, pack)  # type: ignore[arg-type]
                loss.backward(share if not pack.idle else torch.zeros_like(share))  # type: ignore[no-untyped-call]
            if pack.idle:
                continue
        else:
            loss, correct, number = t.task.loss(t.forward, pack)  # type: ignore[arg-type]
            loss.backward(share)  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        if correct is not None:
            hits.append(correct)
            counted += number
    if not losses:
        return Sums(torch.zeros((), device=t.runtime.device), 0, 0, took_part=False)
    return Sums(losses[0] if len(losses) == 1 else torch.stack(losses).sum(), sum(hits), counted)


def _add_up(t: Training, stage: Stage, *, took_part: bool) -> None:
    """Sum the gradients over all processes, and average the running statistics of BatchNorm over those that had images."""
    processes = t.runtime.processes
    # A parameter without a gradient anywhere keeps none, because the optimiser then leaves it alone.
    somewhere = processes.largest(*(float(parameter.grad is not None) for parameter in stage.parameters))
    gradients = []
    for parameter, wanted in zip(stage.parameters, somewhere, strict=True):
        if wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    processes.add(gradients)
    running = [stat for norm in t.norms if norm.training for stat in (norm.running_mean, norm.running_var) if stat is not None]
    if running and not t.synchronized:
        takers = torch.tensor(float(took_part), device=t.runtime.device)
        if not took_part:
            torch._foreach_zero_(running)
        processes.add([*running, takers])
        torch._foreach_div_(running, takers)


def _shrink(t: Training, reader: Reader, window: Window) -> None:
    """Half the micro-batch from here on; OutOfMemoryError at one image, or where the processes would have to agree on it."""
    if t.micro == 1:
        raise OutOfMemoryError(no_room(t.recipe, t.runtime, t.rebuild))
    if t.synchronized:
        raise OutOfMemoryError(
            f"memory ran out at a micro-batch of {t.micro}, and with train.sync_batch_norm the processes wait for each other in every layer: "
            f"set train.micro_batch_size to {math.ceil(t.micro / 2)} (in the run's resolved.yaml, and `pellucid resume`), or train without sync_batch_norm."
        )
    t.micro = math.ceil(t.micro / 2)
    t.record.note(f"memory ran out: the micro-batch is {t.micro} since step {t.at.step + 1}; the batch stays {t.recipe.train.batch_size}")
    for line in micro_batch_notes(t, since=t.at.step + 1):
        t.record.note(line)
    if t.random and not t.batch_norm:
        t.record.note(f"dropout draws for each micro-batch: its masks since step {t.at.step + 1} are not those of the larger one")
    t.runtime.free_cached()
    reader.shrink(t.micro, after=window)


def make_room(t: Training, stage: Stage) -> None:
    """Allocate the optimiser's own state, which its first step would do half way through."""
    _spared(lambda: make_state(stage.optimizer), t)


def _spared(job: Callable[[], T], t: Training) -> T:
    """What the job returns; where memory runs out, once more after torch has given back what it keeps for later.

    For jobs that change nothing before they have all the memory they need.
    """
    for again in (True, False):
        try:
            return job()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if again:
            t.runtime.free_cached()
    raise OutOfMemoryError(no_room(t.recipe, t.runtime, t.rebuild, what="for the optimiser's own state"))


def divergence(t: Training, window: Window, step: int, value: float) -> str:
    """The message of a DivergedError: step, files, remedies."""
    names = [t.dataset.splits["train"].names[int(row)] for row in window.rows]
    shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
    return (
        f"the loss became {value} at step {step:,} (epoch {window.epoch + 1}). Images of that batch: {shown}. "
        "Remedies: a lower train.phases.*.optimizer.lr, a schedule with warmup_steps, train.clip_grad_norm: 1.0"
        + (", train.precision: bf16 or fp32 instead of fp16." if t.recipe.train.precision == "fp16" else ".")
    )
