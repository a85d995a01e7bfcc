"""A finished run on other data: its numbers on labelled images, and its model as a file for elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pellucid.data.dataset import Split
from pellucid.data.loader import ordered_windows
from pellucid.data.sources import load_dataset
from pellucid.data.store import Resizing, Stream
from pellucid.errors import DataError, UsageError
from pellucid.export import ExportResult, export_onnx, export_safetensors
from pellucid.run import Measurement, Run
from pellucid.tasks import build_task, load_model, runtime_of


def evaluate(run: Run, data: str, *, progress: Callable[[str, int, int], None] | None = None) -> list[Measurement]:
    """The measurements of the run's final weights on the labelled images of `data` (split "data").

    The images are matched to the run's classes by name; a class that the run does not know is a DataError.
    """
    recipe = run.recipe
    if recipe.data.source in ("scenes", "digits") or ":" in recipe.data.source:
        raise UsageError(f"--data takes a path; the run's source {recipe.data.source} has none. Its own splits are checked by `pellucid verify`.")
    image_dir = recipe.data.image_dir.replace("{split}", Path(data).stem) if recipe.data.image_dir else None
    section = recipe.data.model_copy(
        update={"train": str(Path(data).absolute()), "val": None, "test": None, "classes": run.data.classes, "image_dir": image_dir}
    )
    dataset = load_dataset(section, seed=recipe.seed, progress=progress)
    if list(dataset.classes) != run.data.classes:
        raise DataError(f"{data}: expected the run's classes {', '.join(run.data.classes)}; found {', '.join(dataset.classes)}")
    found = dataset.splits["train"]
    split = Split("data", found.names, np.asarray(found.labels), found.hashes, found.open)
    runtime = runtime_of(run)
    task = build_task(recipe, dataset, runtime, run.data.mean, run.data.std)
    d = recipe.data
    pixels = Stream(split, Resizing(d.size, d.fit, d.resize_size, d.interpolation), None)
    module = runtime.place(load_model(run))
    windows = ordered_windows(len(split), run.record.evaluation_batch_size)
    predictions = task.predictions(module, split, pixels, windows, workers=d.workers, progress=progress)
    left_out = f"; {len(dataset.skipped)} bad images left out" if dataset.skipped else ""
    return task.measure(predictions, "data", f"weights of {run.name}, {run.record.selected}{left_out}")


def export_run(run: Run, out: Path | None, format_: str) -> ExportResult:
    """The run's model as an ONNX or safetensors file that gives the same logits; see `pellucid.export`."""
    module, recipe, data = load_model(run), run.recipe, run.data
    target = out or run.path / f"model.{format_}"
    if format_ == "onnx":
        return export_onnx(module, target, image_size=recipe.data.size, class_names=data.classes, mean=data.mean, std=data.std)
    size = str(list(recipe.data.size))
    metadata = {"model": recipe.model.name, "classes": "\n".join(data.classes), "mean": str(data.mean), "std": str(data.std), "image_size": size}
    return export_safetensors(module, target, metadata)
