"""The micro-batch that fits, found by doing: a whole step with optimiser, SAM and an evaluation, before the first one.

Half of the memory of a step comes after its first forward pass (gradients that stay between packs, the moments of the
optimiser, SAM's copy), so a trial that stops there finds sizes that fail later. What the trial moves is put back.
"""

from __future__ import annotations

import math

from pellucid.data.loader import Cutting, Reader, Window, ordered_windows, smaller
from pellucid.errors import OutOfMemoryError
from pellucid.memory import no_room, step_memory
from pellucid.models import layer_ids, train_mode
from pellucid.optim import LossScale, build_optimizer, parameter_groups, parameters_of, sam_perturb, sam_restore
from pellucid.prepare import Training, micro_batch_notes
from pellucid.runtime import free_memory, out_of_memory
from pellucid.step import Stage, accumulate

CLOSE = 0.5  # share of the CPU's free memory above which a count is not trusted


def find_micro_batch(t: Training, window: Window) -> None:
    """Halve the micro-batch, and the batch of evaluations, until a step on `window` and an evaluation fit.

    Only where the recipe leaves it open, and on the CPU only where it could be close. OutOfMemoryError when one image does not fit.
    """
    _agree(t)
    # Each process asks its own memory; that one of them has doubts is enough for all, because they agree on the result.
    if not any(t.runtime.processes.largest(t.recipe.train.micro_batch_size == "auto" and _could_be_close(t))):
        return
    begun_at = t.micro
    kept = {name: value.to("cpu", copy=True) for name, value in t.module.state_dict().items()}
    t.buffers.keep()  # those too that no state dict holds
    while not _fits(t, window):
        if t.micro == 1:
            raise OutOfMemoryError(no_room(t.recipe, t.runtime, t.rebuild))
        t.micro = math.ceil(t.micro / 2)
        t.record.evaluation_batch_size = max(1, t.record.evaluation_batch_size // 2)
        t.runtime.free_cached()
    t.module.load_state_dict(kept)
    t.buffers.restore()
    _agree(t)
    if t.micro < begun_at:
        t.record.note(
            f"the micro-batch is {t.micro}: a trial step with {begun_at} images ran out of memory; the batch stays {t.recipe.train.batch_size}. "
            f"For the same bits on a machine with more memory set train.micro_batch_size: {t.micro}"
        )
        for line in micro_batch_notes(t):
            t.record.note(line)


def _agree(t: Training) -> None:
    """The smallest micro-batch and evaluation batch of all processes, for all."""
    micro, batch = t.runtime.processes.largest(-t.micro, -t.record.evaluation_batch_size)
    t.micro, t.record.evaluation_batch_size = -int(micro), -int(batch)


def _could_be_close(t: Training) -> bool:
    if t.runtime.device.type != "cpu":
        return True
    if t.activations is None:
        return True
    return step_memory(t.module, t.recipe, t.activations).total(t.micro) > CLOSE * free_memory(t.runtime.device)


def _fits(t: Training, window: Window) -> bool:
    """Whether two packs of the present micro-batch, the update of the hungriest phase and a batch of evaluation find room."""
    synchronized, t.synchronized = t.synchronized, False  # each process tries alone
    try:
        _try_step(t, window)
        _try_evaluation(t)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    except ValueError:
        return True  # BatchNorm that refuses a single image: the first step says so in full
    finally:
        t.synchronized = synchronized
        for parameter in t.module.parameters():
            parameter.grad = None
    return True


def _try_step(t: Training, window: Window) -> None:
    phase = max(t.recipe.train.phases, key=lambda phase: (phase.optimizer.name != "sgd") + (phase.optimizer.sam is not None))
    groups = parameter_groups(t.module, phase.optimizer, layer_ids(t.module, t.built.classifier)[0])
    optimizer = build_optimizer(groups, phase.optimizer)
    stage = Stage(phase, optimizer, parameters_of(optimizer), LossScale(enabled=False))
    two_packs = smaller([window], 2 * t.micro)[0]
    train_mode(t.module, t.frozen)
    with Reader(t.pixels["train"], workers=0, partners=t.task.needs_partners, cutting=Cutting(no_single=t.batch_norm)) as reader:
        accumulate(t, stage, reader.packs(two_packs, t.micro), float(len(two_packs)))
        if phase.optimizer.sam is not None:
            saved = sam_perturb(stage.parameters, rho=phase.optimizer.sam.rho, adaptive=phase.optimizer.sam.adaptive)
            accumulate(t, stage, reader.packs(two_packs, t.micro), float(len(two_packs)))
            sam_restore(saved)
    optimizer.step()


def _try_evaluation(t: Training) -> None:
    t.task.batch_size = t.record.evaluation_batch_size
    for name in ("val", "test"):
        if name in t.dataset.splits:
            windows = ordered_windows(len(t.dataset.splits[name]), t.record.evaluation_batch_size)[:1]
            t.task.predictions(t.evaluated, t.dataset.splits[name], t.pixels[name], windows, workers=0, keep=True)
            return
