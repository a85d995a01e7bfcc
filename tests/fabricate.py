"""Small complete run folders without a training: what report, compare and verify read, made in milliseconds and without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from pellucid import intervals, recipe
from pellucid.predictions import Predictions
from pellucid.run import DONE, DataProblem, DataRecord, Measurement, Run, RunRecord, SplitRecord

RECIPE = """
task: classification
data: {source: scenes, train: 60, val: 40, image_size: 64}
model: {name: timm/vit_tiny_patch16_224, options: {patch_size: 8}}
augment: {horizontal_flip: 0.5, rotation: 10.0}
train:
  batch_size: 16
  phases:
    - {epochs: 6, optimizer: {name: adamw, lr: 1.0e-3, weight_decay: 0.05, sam: {rho: 0.1}}, schedule: {name: cosine, warmup_steps: 8}}
"""


def make_run(
    path: Path,
    *,
    classes: Sequence[str] = ("cat", "dog", "owl"),
    n: int = 120,
    skill: float = 4.0,
    seed: int = 1,
    data_seed: int = 0,
    split: str = "val",
    overrides: Sequence[str] = (),
    status: str = DONE,
    notes: Sequence[str] = (),
    problems: Sequence[DataProblem] = (),
    skipped: Sequence[str] = (),
    file: str = "{split}/{i:05d}_{label}.jpg",
    thumbnails: int = 0,
    mixup: bool = False,
) -> Run:
    """A run folder. `skill` is how far the right logit stands above the noise; labels and samples follow from `data_seed`, the rest from `seed`."""
    made = _recipe(path, seed, overrides)
    record = RunRecord("0.1.0", status, "classification", ["pellucid", "train", "recipes/scenes.yaml", "--out", str(path)], "2026-11-20T10:00:00+00:00")
    run = Run.create(path, record=record, recipe=made, recipe_text=RECIPE)
    predictions = _predictions(classes, n, skill, seed=seed, data_seed=data_seed, split=split, file=file)
    _write_metrics(run, made, stop=None if status == DONE else 3, mixup=mixup, seed=seed)
    record.num_params, record.seconds, record.total_steps = 5_526_346, 754.2, 24
    record.epoch, record.step = (made.epochs, 24) if status == DONE else (3, 12)
    record.notes = list(notes)
    if status == DONE:
        _write_data(run, classes, predictions, split, problems, skipped)
        run.write_environment(
            {"device": "cpu", "device_class": "cpu x86_64 AVX2", "threads": 2, "memory_gb": 16.4, "libraries": {"torch": "2.15.0", "timm": "1.0.31"}}
        )
        run.write_predictions(split, predictions, list(classes))
        record.finished = "2026-11-20T10:12:34+00:00"
        record.measurements = measure(predictions, classes, split=split, seed=seed)
        record.files = {"checkpoints/final.safetensors": "0f" * 16}
        _write_thumbnails(run, predictions, split, thumbnails)
    run.write_record(record)
    return run


def measure(predictions: Predictions, classes: Sequence[str], *, split: str, seed: int) -> list[Measurement]:
    """The measurements of classification that these predictions give, headline first."""
    labels, n = predictions.labels, len(predictions.labels)
    probabilities = predictions.probabilities()
    right = probabilities.argmax(axis=1) == labels
    interval = intervals.wilson(int(right.sum()), n)
    loss = float(-np.log(probabilities[np.arange(n), labels]).mean())
    found = [
        Measurement("accuracy", float(right.mean()), "fraction", split, n, seed, "right among all", interval.pair, interval.how),
        Measurement("loss", loss, "nats", split, n, seed, "mean cross-entropy"),
    ]
    if len(classes) > 5:
        top5 = np.argsort(-probabilities, axis=1)[:, :5]
        found.append(
            Measurement("top5_accuracy", float((top5 == labels[:, None]).any(axis=1).mean()), "fraction", split, n, seed, "label among the five most probable")
        )
    for i, name in enumerate(classes):
        of_class = right[labels == i]
        if len(of_class):
            interval = intervals.wilson(int(of_class.sum()), len(of_class))
            found.append(
                Measurement(
                    f"recall[{name}]", float(of_class.mean()), "fraction", split, len(of_class), seed, "right among the class", interval.pair, interval.how
                )
            )
    return found


def _recipe(path: Path, seed: int, overrides: Sequence[str]) -> recipe.Recipe:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent / f".{path.name}.yaml"
    source.write_text(RECIPE)
    made = recipe.load(source, [f"seed={seed}", *overrides])
    source.unlink()
    return made


def _predictions(classes: Sequence[str], n: int, skill: float, *, seed: int, data_seed: int, split: str, file: str) -> Predictions:
    data, model = np.random.default_rng([data_seed, 7]), np.random.default_rng([seed, 8])
    labels = data.integers(0, len(classes), n)
    difficulty = data.normal(size=(n, len(classes)))  # shared by all models of these samples
    logits = difficulty + 0.6 * model.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += skill
    names = [file.format(split=split, i=i, label=classes[label].replace("/", "_")) for i, label in enumerate(labels)]
    return Predictions(names, labels.astype(np.int64), logits.astype(np.float32))


def _write_data(run: Run, classes: Sequence[str], predictions: Predictions, split: str, problems: Sequence[DataProblem], skipped: Sequence[str]) -> None:
    counts = np.bincount(predictions.labels, minlength=len(classes)).tolist()
    digest = hashlib.blake2b(predictions.labels.tobytes(), digest_size=16).hexdigest()
    splits = {
        "train": SplitRecord("train", 3 * sum(counts), "ab" * 16, [3 * count for count in counts]),
        split: SplitRecord(split, sum(counts), digest, counts),
    }
    rows = [
        (name, int(label), hashlib.blake2b(name.encode(), digest_size=16).hexdigest())
        for name, label in zip(predictions.files, predictions.labels, strict=True)
    ]
    record = DataRecord("scenes", list(classes), splits, list(problems), list(skipped), [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], "model")
    run.write_data(record, {split: rows})


def _write_metrics(run: Run, made: recipe.Recipe, *, stop: int | None, mixup: bool, seed: int) -> None:
    noise = np.random.default_rng([seed, 9])
    steps = 4
    rate = made.train.phases[0].optimizer.lr
    for epoch in range(1, (stop or made.epochs) + 1):
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            run.append_metrics([{"kind": "lr", "step": step, "lr": rate * min(step / 8, 0.5 * (1 + float(np.cos(np.pi * step / (steps * made.epochs)))))}])
        loss = 1.6 * float(np.exp(-epoch / 3)) + 0.1 + 0.03 * float(noise.normal())
        common: dict[str, Any] = {"epoch": epoch, "step": epoch * steps}
        accuracy = None if mixup else 1 - loss / 2
        run.append_metrics(
            [{"kind": "train", **common, "phase": 0, "loss": loss, "accuracy": accuracy, "lr": rate, "seconds": 1.5, "images_per_second": 400.0}]
        )
        run.append_metrics([{"kind": "val", **common, "loss": loss * 1.2 + 0.05, "accuracy": 1 - 0.6 * loss, "seconds": 0.2}])


def _write_thumbnails(run: Run, predictions: Predictions, split: str, most: int) -> None:
    probabilities = predictions.probabilities()
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != predictions.labels)
    surest = wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")][:most]
    folder = run.path / "thumbnails" / split
    folder.mkdir(parents=True)
    for index in surest:
        height, width = 96 + 8 * (index % 4), 128
        y, x = np.mgrid[0:height, 0:width]
        pixels = np.stack([x * 2 % 256, y * 2 % 256, (x + y + 13 * index) % 256], axis=-1).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{index:06d}.webp")
