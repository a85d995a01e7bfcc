"""What a trained model leaves in its run folder: final weights, predictions, measurements, pictures of mistakes, figures, report."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
from torch import nn

import pellucid
from pellucid.errors import DivergedError, OutOfMemoryError, PellucidError
from pellucid.models import read_weights, save_weights
from pellucid.prepare import Training
from pellucid.recipe import Recipe
from pellucid.run import Predictions, file_hash
from pellucid.runtime import Runtime, out_of_memory
from pellucid.tasks import confident_mistakes

THUMBNAILS = 16


def predict_split(t: Training, module: nn.Module, split: str) -> Predictions:
    """Logits of a split, in batches that shrink when memory runs out. DivergedError when a logit is NaN or infinite."""
    while True:
        try:
            predictions = t.task.predictions(
                module, t.dataset.splits[split], t.pixels[split], batch_size=t.record.evaluation_batch_size, workers=t.recipe.data.workers, progress=t.progress
            )
            break
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if t.record.evaluation_batch_size == 1:
                raise OutOfMemoryError(no_room(t.recipe, t.runtime)) from None
            t.record.evaluation_batch_size //= 2
            t.record.note(f"memory ran out in the evaluation: it takes {t.record.evaluation_batch_size} images at once since step {t.at.step}")
    bad = ~np.isfinite(predictions.logits).all(axis=1)
    if bad.any():
        first = predictions.files[int(bad.argmax())]
        raise DivergedError(
            f"after step {t.at.step:,} the model gives NaN or infinite logits for {int(bad.sum())} of {len(bad)} {split} images, {first} the first: "
            "the weights have diverged. Remedies: a lower train.phases.*.optimizer.lr, a schedule with warmup_steps, train.clip_grad_norm: 1.0."
        )
    return predictions


def no_room(recipe: Recipe, runtime: Runtime) -> str:
    """The message of an OutOfMemoryError, with what would fit."""
    height, width = recipe.data.size
    return (
        f"no memory for one image of {height}x{width} pixels on {runtime.device}. "
        "A smaller data.image_size, train.precision: bf16 or a smaller model would fit."
    )


def report_numbers(t: Training) -> None:
    """Write the final weights, then predict and measure with them."""
    module, selected = t.evaluated, "last epoch"
    if t.recipe.train.keep == "best" and t.run.best_weights.exists():
        module.load_state_dict(read_weights(t.run.best_weights), strict=True)
        metric = t.recipe.train.early_stop.metric if t.recipe.train.early_stop else t.task.headline
        selected = f"epoch {t.at.best_epoch}, the best {metric} on val"
    if t.average is not None:
        selected += ", moving average of the weights"
    t.record.selected = selected
    save_weights(module, t.run.final_weights, {"pellucid": pellucid.__version__, "task": t.recipe.task, "model": t.recipe.model.name})
    files = [t.run.final_weights]
    t.record.measurements = []
    for name in [s for s in ("test", "val") if s in t.dataset.splits]:  # the headline is the split that chose nothing
        predictions = predict_split(t, module, name)
        files += t.run.write_predictions(name, predictions, list(t.dataset.classes))
        note = selected + ("; selected on this split, hence optimistic" if name == "val" and t.recipe.train.keep == "best" else "")
        t.record.measurements += t.task.measure(predictions, name, note)
        _write_thumbnails(t, name, predictions)
    if not t.record.measurements:
        t.record.note("no val and no test split: nothing was measured")
    files += t.run.hashed_files(list(t.dataset.splits))
    t.record.files = {str(path.relative_to(t.run.path)): file_hash(path) for path in files}
    for checkpoint in t.run.checkpoints.glob("step-*"):
        shutil.rmtree(checkpoint)


def _write_thumbnails(t: Training, split: str, predictions: Predictions) -> None:
    """Pictures of the most confident mistakes for the report, long side at most 160 pixels."""
    folder = t.run.thumbnails / split
    folder.mkdir(parents=True, exist_ok=True)
    for row in confident_mistakes(predictions, THUMBNAILS):
        image = t.dataset.splits[split].open(int(row))
        image.thumbnail((160, 160))
        image.save(folder / f"{int(row):06d}.webp", quality=80)


def draw(t: Training, figures: bool) -> None:
    """Figures and report; a run whose drawing fails is still a run, and says so."""
    from pellucid.figures import write_run_figures  # matplotlib takes a second to import

    try:
        with warnings.catch_warnings(record=True) as told:
            if figures:
                write_run_figures(t.run, lambda split, row: t.dataset.splits[split].open(row))
        if any("Glyph" in str(warning.message) for warning in told):
            t.record.note("figures: the font lacks some characters of the class names; PNG and PDF show boxes there, SVG and the report do not")
            t.run.write_record(t.record)
        t.run.report()
    except (PellucidError, OSError, ValueError) as error:
        t.record.note(f"figures or report could not be written: {error}")
        t.run.write_record(t.record)
