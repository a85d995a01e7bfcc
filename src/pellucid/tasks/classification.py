"""Classification: one label for each image.

The part of training that knows what a label is (targets, loss, evaluation, measurements), and what a finished run can
be asked for (its model, predictions for new images).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from pellucid.cached import CachedFeatures, classifier_input
from pellucid.data.augment import Augment, Images, Mix, evaluate_view, mix_pair, mix_targets, window_mix
from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import opened, resize
from pellucid.data.loader import Pack, Reader, Window, pack_images
from pellucid.data.store import Pixels
from pellucid.errors import DataError
from pellucid.intervals import bootstrap, wilson
from pellucid.losses import balanced_class_weights, cross_entropy, soft_targets, target_weight
from pellucid.models.backbone_file import load_into
from pellucid.models.backbones import Built, build_classifier
from pellucid.models.heads import with_head
from pellucid.models.weights import WeightsReport
from pellucid.predictions import Predictions
from pellucid.recipe import Recipe
from pellucid.run import Measurement, Run
from pellucid.runtime import Runtime
from pellucid.tasks.protocol import NOTHING_STORED, PackLoss, Stored

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image. confidence and probabilities lie in [0, 1]; probabilities in class order."""

    file: str
    label: str
    confidence: float
    probabilities: tuple[float, ...]


NUMBERS = ("accuracy", "top5_accuracy", "macro_f1", "loss", "calibration_error", "recall[CLASS]")  # of `measure`


class Classification:
    """Targets, loss and measurements of a classification run; built once, before the model.

    features: of a frozen backbone, where the run keeps them. The module that `loss` is given is then the classifier, and images are not looked at.
    """

    name = "classification"
    headline = "accuracy"
    accuracy = "accuracy"
    from_the_start = False
    batch_size = 0  # nothing but the windows of `predictions` is evaluated
    features: CachedFeatures | None = None

    def __init__(
        self, recipe: Recipe, dataset: Dataset, runtime: Runtime, mean: Sequence[float], std: Sequence[float], stored: Stored = NOTHING_STORED
    ) -> None:
        # Its import takes two seconds where transformers is installed, and memory: here, as one that fails at the end would lose a training.
        import torchmetrics.functional.classification  # noqa: F401

        self._runtime = runtime
        self._classes = dataset.classes
        self._seed = recipe.seed
        self._labels = torch.from_numpy(dataset.splits["train"].labels)
        self._augment = Augment.from_section(
            recipe.augment, size=recipe.data.size, mean=mean, std=std, seed=recipe.seed, interpolation=recipe.data.interpolation
        )
        self._mixup, self._cutmix = recipe.augment.mixup, recipe.augment.cutmix
        self._view = (recipe.data.size, tuple(mean), tuple(std))
        self._smoothing = recipe.loss.label_smoothing
        self._class_weights = _class_weights(recipe, dataset)
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(runtime.device)

    @property
    def needs_partners(self) -> bool:
        """Whether the loss of a sample involves the image before it."""
        return self._mixup > 0 or self._cutmix > 0

    def window_weight(self, window: Window) -> float:
        """What the summed loss of the window is divided by: its images, or their class weights.

        Mixing gives each image lam times its own target and its neighbour the rest, so the sum stays the same.
        """
        if self._class_weights is None:
            return float(len(window))
        labels = self._labels[torch.from_numpy(window.rows)]
        return target_weight(soft_targets(labels, len(self._classes)), self._class_weights.cpu())

    def loss(self, module: nn.Module, pack: Pack) -> PackLoss:
        """Summed loss and number of correct images of a pack, on the device; no count when targets are mixed."""
        device = self._runtime.device
        inputs = self.view(pack, pack.window.epoch) if self.features is None else self.features.of(pack).to(device)
        labels = self._labels[torch.from_numpy(pack.rows)].to(device)
        targets = soft_targets(labels, len(self._classes))
        mix = window_mix(self._seed, pack.window.epoch, pack.window.index, mixup=self._mixup, cutmix=self._cutmix, size=self._view[0])
        if mix is not None:
            inputs, targets, labels = self._mixed(inputs, targets, labels, mix)
        if self.features is None:
            inputs = inputs.to(memory_format=self._runtime.memory_format)
        with self._runtime.autocast():
            logits = module(inputs).flatten(1)
        loss = cross_entropy(logits, targets, class_weights=self._class_weights, label_smoothing=self._smoothing)
        return PackLoss(loss, None if mix is not None else torch.count_nonzero(logits.detach().argmax(1) == labels), len(pack))

    def view(self, pack: Pack, epoch: int | None) -> Tensor:
        """(B, 3, H, W) normalised images of a pack on the device: as augmented in an epoch, or, for None, as evaluated."""
        images = pack.images.to(self._runtime.device)
        if epoch is not None:
            return self._augment(images, samples=pack.draws, epoch=epoch)
        size, mean, std = self._view
        return evaluate_view(images, size=size, mean=mean, std=std)

    def _mixed(self, images: Tensor, targets: Tensor, labels: Tensor, mix: Mix) -> tuple[Tensor, Tensor, Tensor]:
        """Images and targets without the one in front, mixed with their neighbours."""
        partners, images = images[:-1], images[1:]
        partner_targets, targets = targets[:-1], targets[1:]
        return mix_pair(images, partners, mix), mix_targets(targets, partner_targets, mix), labels[1:]

    def after_step(self, module: nn.Module, step: int, total_steps: int) -> None:
        """Nothing follows the weights."""

    def watch(self, module: nn.Module, workers: int) -> dict[str, float]:
        """Nothing is watched between evaluations."""
        return {}

    def alarms(self, lines: Sequence[dict[str, Any]]) -> list[str]:
        """None: a training that fails says so itself."""
        return []

    @torch.inference_mode()
    def predictions(
        self,
        module: nn.Module,
        split: Split,
        pixels: Pixels,
        windows: Sequence[Window],
        *,
        workers: int,
        keep: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Predictions:
        """Logits of the samples of some windows of a split, in their order. The module is put into eval mode and stays there."""
        packs = self._packs(split, pixels, windows, workers, progress)
        if self.features is None:
            module.eval()
            found = [logits_of(module, pack.images, self._runtime, *self._view) for pack in packs]
        else:
            found = self._logits_of_features(self.features, module, split, windows, packs)
        rows = np.concatenate([window.rows for window in windows]) if windows else np.empty(0, np.int64)
        logits = torch.cat(found).numpy() if found else np.empty((0, len(self._classes)), np.float32)
        return Predictions([split.names[int(row)] for row in rows], split.labels[rows], logits)

    def _packs(self, split: Split, pixels: Pixels, windows: Sequence[Window], workers: int, progress: Callable[[str, int, int], None] | None) -> Iterator[Pack]:
        """Each window as a pack, read ahead; reading begins when the first is asked for."""
        with Reader(pixels, workers=workers) as reader:
            reader.plan(list(windows), max(map(len, windows), default=1))
            for number, window in enumerate(windows, 1):
                yield from reader.packs(window, len(window))
                if progress is not None:
                    progress(f"evaluating {split.name}", number, len(windows))

    def _logits_of_features(self, cached: CachedFeatures, module: nn.Module, split: Split, windows: Sequence[Window], packs: Iterator[Pack]) -> list[Tensor]:
        """(B, C) float32 logits of each window, from features; images are read only where these are not kept yet."""

        def compute() -> list[Tensor]:
            module.eval()
            found = []
            for pack in packs:
                images = self.view(pack, None).to(memory_format=self._runtime.memory_format)
                with self._runtime.autocast():
                    found.append(classifier_input(module, images, cached.path)[0].cpu())
            return found

        kept, classifier = cached.of_windows(split.name, windows, compute), cached.classifier(module).eval()
        with self._runtime.autocast():
            return [classifier(features.to(self._runtime.device)).flatten(1).float().cpu() for features in kept]

    def quick(self, predictions: Predictions) -> dict[str, float]:
        """{loss, accuracy} for the curves."""
        logits, labels = torch.from_numpy(predictions.logits), torch.from_numpy(predictions.labels)
        return {"loss": float(nn.functional.cross_entropy(logits.double(), labels)), "accuracy": float((logits.argmax(1) == labels).double().mean())}

    def measure(self, predictions: Predictions, split: str, note: str) -> list[Measurement]:
        """All reported numbers of a split; `note` says which weights they belong to."""
        return measure(predictions, classes=self._classes, split=split, seed=self._seed, note=note)

    def save(self, run: Run, split: str, predictions: Predictions) -> list[Path]:
        """Logits as arrays, predictions as a table."""
        return run.write_predictions(split, predictions, list(self._classes))

    def mistakes(self, predictions: Predictions, most: int) -> np.ndarray:
        """Places of wrong predictions, the most confident first."""
        probabilities = predictions.probabilities()
        best = probabilities.argmax(axis=1)
        wrong = np.flatnonzero(best != predictions.labels)
        confidence = probabilities[wrong, best[wrong]]
        return wrong[np.argsort(-confidence, kind="stable")][:most]

    def thumbnails(self, split: Split, row: int, predictions: Predictions, side: int) -> dict[str, PIL.Image.Image]:
        """The image."""
        image = split.open(row)
        image.thumbnail((side, side))
        return {".webp": image}


@torch.inference_mode()
def logits_of(module: nn.Module, images: Images, runtime: Runtime, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, C) float32 logits on the CPU of decoded images, without augmentation."""
    inputs = evaluate_view(images.to(runtime.device), size=size, mean=mean, std=std)
    with runtime.autocast():
        logits = module(inputs.to(memory_format=runtime.memory_format))
    return logits.float().cpu()


def measure(predictions: Predictions, *, classes: Sequence[str], split: str, seed: int, note: str) -> list[Measurement]:
    """Measurements of (n, C) logits by torchmetrics; the headline first. Sources and definitions stand in `how`."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_recall

    logits = torch.from_numpy(predictions.logits).double()
    labels = torch.from_numpy(predictions.labels)
    n, C = logits.shape
    probabilities = logits.softmax(1)
    predicted = logits.argmax(1)
    correct = (predicted == labels).numpy()

    def number(name: str, value: float, unit: str, how: str, count: int = n, interval: Any = None) -> Measurement:
        bounds = (interval.low, interval.high) if interval else None
        return Measurement(name, value, unit, split, count, seed, f"{how}; {note}", bounds, interval.how if interval else "")

    top1 = float(multiclass_accuracy(predicted, labels, C, average="micro"))
    found = [
        number("accuracy", float(correct.mean()), "fraction", "share of images whose largest logit is their label", interval=wilson(int(correct.sum()), n))
    ]
    if abs(top1 - found[0].value) > 1e-6:
        raise AssertionError("torchmetrics and the definition disagree on accuracy")
    if C > 5:
        # Equal logits are common in bf16; torchmetrics leaves their order open, so the five are taken by a stable sort.
        five = logits.sort(dim=1, descending=True, stable=True).indices[:, :5]
        hits = int((five == labels[:, None]).sum())
        how = "share of images whose label is among the five largest logits, of equal ones the first classes"
        found.append(number("top5_accuracy", hits / n, "fraction", how, interval=wilson(hits, n)))
    macro = float(multiclass_f1_score(predicted, labels, C, average="macro"))
    interval = bootstrap(lambda rows: _macro_f1(predicted.numpy()[rows], predictions.labels[rows], C), n)
    found.append(number("macro_f1", macro, "fraction", "mean over classes of F1; classes in neither labels nor predictions left out", interval=interval))
    found.append(
        number("loss", float(nn.functional.cross_entropy(logits, labels)), "nats", "mean cross-entropy with hard labels, without class weights or smoothing")
    )
    ece = _calibration_error(probabilities.max(1).values.numpy(), correct)
    found.append(number("calibration_error", ece, "fraction", f"expected calibration error of the top class, {CALIBRATION_BINS} equal bins (Guo et al. 2017)"))
    recalls = multiclass_recall(predicted, labels, C, average="none")
    counts = np.bincount(predictions.labels, minlength=C)
    for c, name in enumerate(classes):
        if counts[c]:
            hits = round(float(recalls[c]) * int(counts[c]))
            found.append(
                number(
                    f"recall[{name}]",
                    hits / int(counts[c]),
                    "fraction",
                    "share of the class's images that were found",
                    int(counts[c]),
                    wilson(hits, int(counts[c])),
                )
            )
    return found


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """sum over bins (k/15, (k+1)/15] of |B| / n |acc(B) - conf(B)| in float64 (Guo et al. 2017, eq. 3).

    Confidence is rounded to 12 decimals, so that a model that answers exactly 1/3 falls into one bin on every machine; torchmetrics, the
    oracle of the test, has float32 edges.
    """
    confidence = confidence.round(12)
    bins = np.searchsorted(np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS, confidence, side="left")
    gaps = np.zeros(CALIBRATION_BINS)
    np.add.at(gaps, bins, correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def _macro_f1(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """F1 = 2 tp / (predicted + labelled), mean over the classes that occur in either."""
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    sizes = np.bincount(predicted, minlength=num_classes) + np.bincount(labels, minlength=num_classes)
    return float((2 * hits[sizes > 0] / sizes[sizes > 0]).mean())


def _class_weights(recipe: Recipe, dataset: Dataset) -> Tensor | None:
    given = recipe.loss.class_weights
    if given == "none":
        return None
    if given == "balanced":
        counts = np.bincount(dataset.splits["train"].labels, minlength=len(dataset.classes))
        return balanced_class_weights(torch.from_numpy(counts))
    if len(given) != len(dataset.classes):
        raise DataError(f"loss.class_weights has {len(given)} numbers, the data has {len(dataset.classes)} classes: {', '.join(dataset.classes[:20])}")
    counts = np.bincount(dataset.splits["train"].labels, minlength=len(given))
    ignored = [name for name, weight, n in zip(dataset.classes, given, counts, strict=True) if n and not weight]
    if ignored:
        raise DataError(f"loss.class_weights is 0 for {', '.join(ignored[:20])}, which have training images; leave them out of the data, or give more than 0")
    return torch.tensor([float(w) for w in given])


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────


def build(recipe: Recipe, num_classes: int, *, start_weights: bool = True) -> tuple[Built, WeightsReport | None]:
    """The recipe's model, and what its weights file gave; `start_weights=False` leaves it at its initialisation."""
    m = recipe.model
    built = build_classifier(
        m.name, num_classes=num_classes, pretrained=m.pretrained and start_weights, options=m.options,
        drop_rate=m.drop_rate, drop_path_rate=m.drop_path_rate, image_size=recipe.data.size,
    )  # fmt: skip
    if m.head is not None:
        built = with_head(built, m.name, num_classes, hidden=m.head.hidden, standardize=m.head.standardize)
    return load_into(built, Path(m.weights), name=m.name, options=m.options) if m.weights and start_weights else (built, None)


# ── new images ────────────────────────────────────────────────────────────────────────────────────────────────


def predict(run: Run, module: nn.Module, images: Any, *, runtime: Runtime) -> list[Prediction]:
    """Predictions of the run's model for paths, folders (searched for images) and PIL images, in the given order."""
    named = opened(images)
    recipe, data = run.recipe, run.data
    predictions = []
    size = run.record.evaluation_batch_size
    for start in range(0, len(named), size):
        chunk = named[start : start + size]
        arrays = [resize(load(), recipe.data.size, recipe.data.fit, recipe.data.resize_size, recipe.data.interpolation) for _, load in chunk]
        logits = logits_of(module, pack_images(arrays), runtime, recipe.data.size, data.mean, data.std)
        for (name, _), row in zip(chunk, logits.double().softmax(1), strict=True):
            best = int(row.argmax())
            predictions.append(Prediction(name, data.classes[best], float(row[best]), tuple(row.tolist())))
    return predictions
