"""What a trained model leaves in its run folder: final weights, predictions, measurements, pictures of mistakes, figures, report."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import nn

import pellucid
from pellucid.data.loader import Window, ordered_windows, smaller
from pellucid.errors import DataError, DivergedError, OutOfMemoryError, PellucidError, RunError
from pellucid.export import backbone_facts, export_backbone
from pellucid.files import file_hash
from pellucid.memory import no_room
from pellucid.models import read_weights, save_weights
from pellucid.predictions import not_finite
from pellucid.prepare import Training
from pellucid.run import FEW_THUMBNAILS, THUMBNAIL_SIDE, THUMBNAILS
from pellucid.runtime import out_of_memory
from pellucid.snapshots import end
from pellucid.tasks.pretraining import Pretraining, left_out
from pellucid.training_bank import keep_bank

T = TypeVar("T")


def predict_split(t: Training, module: nn.Module, split: str, *, keep: bool) -> Any:
    """Predictions for every sample of a split once, in its order, in the first process; None in the others. keep: more than an epoch's numbers need.

    The processes take turns with whole batches, so that each batch has the bits that it has in one process. Batches
    shrink when memory runs out. DivergedError when a logit is NaN or infinite.
    """
    processes = t.runtime.processes
    agree(t)
    windows = ordered_windows(len(t.dataset.splits[split]), t.record.evaluation_batch_size)[processes.rank :: processes.size]
    mine, taken = _predict_windows(t, module, split, windows, keep), t.record.evaluation_batch_size
    while agree(t) < processes.largest(taken)[0]:  # in one process memory ran out: the bits are those of one size in all
        mine, taken = _predict_windows(t, module, split, windows, keep), t.record.evaluation_batch_size
    parts = processes.gather((np.concatenate([w.rows for w in windows] or [np.empty(0, np.int64)]), mine))
    predictions = _in_order(parts) if processes.first else None
    problem = processes.told(_diverged(t, split, predictions) if predictions is not None else None)
    if problem:
        raise DivergedError(problem)
    return predictions


def _predict_windows(t: Training, module: nn.Module, split: str, windows: list[Window], keep: bool) -> Any:
    """Predictions for some windows of a split, in batches that shrink when memory runs out."""

    def predicted() -> Any:
        cut = smaller(windows, t.record.evaluation_batch_size)
        return t.task.predictions(module, t.dataset.splits[split], t.pixels[split], cut, workers=t.recipe.data.workers, keep=keep, progress=t.progress)

    return in_batches(t, predicted)


def in_batches(t: Training, job: Callable[[], T]) -> T:
    """What the job returns, in batches of evaluation that shrink when memory runs out."""
    while True:
        t.task.batch_size = t.record.evaluation_batch_size
        try:
            return job()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if t.record.evaluation_batch_size == 1:
            raise OutOfMemoryError(no_room(t.recipe, t.runtime, t.rebuild))
        t.record.evaluation_batch_size //= 2
        t.runtime.free_cached()
        t.record.note(f"memory ran out in the evaluation: it takes {t.record.evaluation_batch_size} images at once since step {t.at.step}")


def agree(t: Training) -> int:
    """The smallest batch of an evaluation of all processes, from now on that of all."""
    t.record.evaluation_batch_size = -int(t.runtime.processes.largest(-t.record.evaluation_batch_size)[0])
    return t.record.evaluation_batch_size


def _in_order(parts: list[tuple[np.ndarray, Any]]) -> Any:
    """One table of what the processes found, in the order of the split."""
    rows = np.concatenate([rows for rows, _ in parts])
    tables = [part for _, part in parts]
    return type(tables[0]).joined(tables, np.argsort(rows, kind="stable"))


def _diverged(t: Training, split: str, predictions: Any) -> str | None:
    bad = predictions.diverged
    what = "features" if t.recipe.method is not None else "log probabilities" if t.recipe.captioned else "logits"
    return diverged(t, not_finite(what, bad, predictions.files, split)) if bad.any() else None


def diverged(t: Training, found: str) -> str:
    """The message of a DivergedError: step, what was found, remedies."""
    return (
        f"after step {t.at.step:,} {found}: the weights have diverged. "
        "Remedies: a lower train.phases.*.optimizer.lr, a schedule with warmup_steps, train.clip_grad_norm: 1.0."
    )


def report_numbers(t: Training) -> None:
    """Write the final weights, then predict and measure with them: every process predicts, the first one writes."""
    module, selected = t.evaluated, "last epoch"
    if t.recipe.train.keep == "best":
        best = t.run.best_weights(t.at.best_epoch)
        if not best.exists():
            raise RunError(f"{best}: the weights of the best epoch are missing; train anew.")
        module.load_state_dict(read_weights(best), strict=True)
        metric = (t.recipe.train.early_stop.metric if t.recipe.train.early_stop else None) or t.task.headline
        selected = f"epoch {t.at.best_epoch}, the best {metric} on val"
    if t.average is not None:
        selected += ", moving average of the weights"
    t.record.selected = selected
    if t.first:
        save_weights(module, t.run.final_weights, {"pellucid": pellucid.__version__, "task": t.recipe.task, "model": t.recipe.model.name})
    files = [t.run.final_weights]
    if t.recipe.method is not None:
        if t.first:
            export_backbone(module, t.run.backbone_weights, backbone_facts(t.run, left_out(t.recipe)), backbone=t.built.backbone)
        files.append(t.run.backbone_weights)
    t.record.measurements = []
    if t.first:
        shutil.rmtree(t.run.thumbnails, ignore_errors=True)  # of a run that was killed here
    mistakes: dict[str, list[int]] = {}
    for name in [s for s in ("test", "val") if s in t.dataset.splits]:  # the headline is the split that chose nothing
        predictions = predict_split(t, module, name, keep=True)
        if predictions is None:
            continue
        files += t.task.save(t.run, name, predictions)
        note = selected + ("; selected on this split, hence optimistic" if name == "val" and t.recipe.train.keep == "best" else "")
        leaked = sum(problem.kind == "leak" and problem.split == name for problem in t.dataset.problems)
        if leaked:
            note += f"; {leaked} of its {len(t.dataset.splits[name])} images stand in another split too, so that it is no measure of new images"
        t.record.measurements += in_batches(t, partial(t.task.measure, predictions, name, note))
        mistakes[name] = _write_thumbnails(t, name, predictions)
    if not t.first:
        return
    if not t.record.measurements:
        t.record.note("no val and no test split: nothing was measured")
    _write_views(t)
    if t.recipe.inside is not None:
        from pellucid.look import look_into_run

        look_into_run(t, module, selected)
        keep_bank(t, module, mistakes if t.recipe.method is None else {})
    if t.recipe.captioned:
        from pellucid.look_words import look_into_run as look_into_words

        files += look_into_words(t, module, selected)
    files += [*end(t), *t.run.thumbnail_files]
    files += t.run.hashed_files(list(t.dataset.splits))
    t.record.files = {str(path.relative_to(t.run.path)): file_hash(path) for path in files}


def _write_thumbnails(t: Training, split: str, predictions: Any) -> list[int]:
    """Write pictures for the views: of the worst mistakes, of a pre-training of images and their neighbours. Rows of those that were written."""
    folder, written = t.run.thumbnails / split, []
    folder.mkdir(parents=True, exist_ok=True)
    for row in t.task.mistakes(predictions, THUMBNAILS.get(t.recipe.task, FEW_THUMBNAILS)).tolist():
        try:
            pictures = t.task.thumbnails(t.dataset.splits[split], row, predictions, THUMBNAIL_SIDE)
        except (DataError, OSError) as error:  # gone or changed since it was predicted: the numbers stand all the same
            t.record.note(f"no picture of a mistake in the report: {error}")
            continue
        for ending, picture in pictures.items():
            picture.save(folder / f"{row:06d}{ending}", quality=80)
        written.append(row)
    return written


def _write_views(t: Training) -> None:
    """Pictures of what a pre-training saw: a few training images and their two views."""
    if not isinstance(t.task, Pretraining):
        return
    folder = t.run.thumbnails / "train"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, picture in t.task.view_pictures(THUMBNAIL_SIDE).items():
            picture.save(folder / name, quality=80)
    except (DataError, OSError) as error:  # gone or changed since it was trained on: the numbers stand all the same
        t.record.note(f"no picture of views in the report: {error}")


def draw(t: Training, figures: bool) -> None:
    """Figures and report; a run whose drawing fails is still a run, and says so."""
    from pellucid.figures import write_caption_figures, write_mask_figures, write_pretraining_figures, write_run_figures  # matplotlib takes a second to import

    try:
        with warnings.catch_warnings(record=True) as told:
            if figures and t.recipe.masked:
                write_mask_figures(t.run)
            elif figures and t.recipe.task == "pretraining":
                write_pretraining_figures(t.run)
            elif figures and t.recipe.captioned:
                write_caption_figures(t.run)
            elif figures:
                write_run_figures(t.run, lambda split, row: t.dataset.splits[split].open(row))
            if figures and t.recipe.inside is not None:
                from pellucid.look import draw_run

                draw_run(t)
        if any("Glyph" in str(warning.message) for warning in told):
            t.record.note("figures: the font lacks some characters of the class names; PNG and PDF show boxes there, SVG and the report do not")
            t.run.write_record(t.record)
        t.run.report()
    except (PellucidError, OSError, ValueError) as error:
        t.record.note(f"figures or report could not be written: {error}")
        t.run.write_record(t.record)
