"""Self-supervised pre-training: two views of each image, no labels; BYOL, SimCLR or SimSiam.

The part of training that knows what two views are and how features are measured. Labels never reach the loss: they measure, where the data has some, what
the features are worth (k-NN against a bank of training images in every evaluation, a linear probe after training, both beside the same network
untrained and beside raw pixels). After every epoch the spread and rank of the projections are looked at, where a collapse shows first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from pellucid.data.augment import Augment, Images, evaluate_view
from pellucid.data.dataset import Dataset, Split
from pellucid.data.draws import derived_seed
from pellucid.data.loader import Pack, Window, ordered_windows, smaller
from pellucid.data.store import Pixels
from pellucid.errors import DivergedError, UsageError
from pellucid.intervals import wilson
from pellucid.models.backbone_file import load_into
from pellucid.models.backbones import Built, build_backbone
from pellucid.models.self_supervised import Byol, SelfSupervised, SimClr, SimSiam
from pellucid.models.weights import WeightsReport
from pellucid.predictions import FeaturePredictions, not_finite
from pellucid.readings import nearest, neighboured_rows
from pellucid.recipe import AugmentSection, ByolMethod, Recipe, SecondView, SimClrMethod
from pellucid.representation import alignment, diagnose, effective_rank, fit_probe, knn_votes, spread, uniformity
from pellucid.run import Measurement, Run
from pellucid.runtime import Runtime, seed_torch
from pellucid.tasks.evaluated import PIXEL_SIDE, packs, raw_pixels
from pellucid.tasks.protocol import NOTHING_STORED, PackLoss, Stored

EVALUATED = 2**32 - 1  # the epoch that keys the views of an evaluation: the same at all times, and of no training epoch
WATCHED = 256  # images whose projections are looked at after every epoch
BANK_BATCH = 64  # images of the bank that a process takes as its share, and at most takes at once, whatever the number of processes
SHOWN_VIEWS = 8  # training images whose two views of the first epoch a report shows
REMEDIES = {  # against a collapse, by the method's own keys
    "byol": "a predictor (method.predictor_hidden), method.stop_gradient: true, a momentum nearer 1 (method.momentum), a smaller learning rate",
    "simclr": "a smaller learning rate or a warm-up, more images to be told apart at once (train.batch_size, train.micro_batch_size), a lower "
    "method.temperature",
    "simsiam": "a predictor (method.predictor_hidden), method.stop_gradient: true, a smaller learning rate",
}

NUMBERS = (  # of `measure`
    *(f"{name}{of}" for of in ("", "[untrained]", "[pixels]") for name in ("knn_accuracy", "linear_accuracy")),
    *("alignment", "uniformity", "spread", "rank"),
)


class Pretraining:
    """Views, loss and measurements of a pre-training run; built once, before the model."""

    name = "pretraining"
    headline = "knn_accuracy"
    accuracy = "accuracy"
    from_the_start = True
    batch_size = BANK_BATCH

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        runtime: Runtime,
        mean: Sequence[float],
        std: Sequence[float],
        stored: Stored = NOTHING_STORED,
    ) -> None:
        assert recipe.method is not None
        assert recipe.probe is not None
        self._recipe, self._dataset, self._runtime, self._pixels = recipe, dataset, runtime, stored.pixels
        self._probe = recipe.probe
        self._view = (recipe.data.size, tuple(mean), tuple(std))
        self._views = views(recipe, mean, std)
        self._bank_rows = bank_rows(dataset, recipe.probe.bank)
        if not self.labelled:
            self.headline = "uniformity"

    @property
    def labelled(self) -> bool:
        """Whether labels can measure anything: two classes at least."""
        return len(self._dataset.classes) > 1

    @property
    def needs_partners(self) -> bool:
        """Whether the loss of a sample involves the image before it."""
        return False

    def window_weight(self, window: Window) -> float:
        """What the summed loss of the window is divided by: its images."""
        return float(len(window))

    def loss(self, module: nn.Module, pack: Pack) -> PackLoss:
        """Summed loss of a pack, on the device; there is nothing to be right about."""
        first, second = self._augmented(pack.images, pack.draws, pack.window.epoch)
        with self._runtime.autocast():
            losses = module(first, second)
        return PackLoss(losses.sum(), None, len(pack))

    def after_step(self, module: nn.Module, step: int, total_steps: int) -> None:
        """Move the target network."""
        assert isinstance(module, SelfSupervised)
        module.after_step(step, total_steps)

    def _augmented(self, images: Images, samples: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Both views (B, 3, H, W) of images, normalised, on the device."""
        placed = images.to(self._runtime.device)
        one, two = (augment(placed, samples=samples, epoch=epoch) for augment in self._views)
        return one.to(memory_format=self._runtime.memory_format), two.to(memory_format=self._runtime.memory_format)

    # ── what the features are worth ──

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
    ) -> FeaturePredictions:
        """Features and projections of some windows of a split, in their order, and this process's share of the bank. The module stays in eval mode."""
        assert isinstance(module, SelfSupervised)
        module.eval()
        features, projections = [], []
        for number, pack in enumerate(packs(pixels, windows, workers), 1):
            features.append(self._features(module, pack.images))
            projections.append(self._projections(module, pack))
            if progress is not None:
                progress(f"evaluating {split.name}", number, len(windows))
        processes = self._runtime.processes
        share = ordered_windows(len(self._bank_rows), BANK_BATCH)[processes.rank :: processes.size]
        own = [_chosen(window, self._bank_rows) for window in smaller(share, self.batch_size)]
        bank = [self._features(module, pack.images) for pack in packs(self._pixels["train"], own, workers)] if own else []
        rows, bank_rows = (np.concatenate([np.empty(0, np.int64), *(window.rows for window in some)]) for some in (windows, own))
        nothing = self._nothing(module)
        return FeaturePredictions(
            [split.names[int(row)] for row in rows],
            split.labels[rows],
            np.concatenate([nothing[0], *features]),
            np.concatenate([nothing[1], *projections], axis=1),
            bank_rows,
            self._dataset.splits["train"].labels[bank_rows],
            np.concatenate([nothing[0], *bank]),
        )

    def _nothing(self, module: SelfSupervised) -> tuple[np.ndarray, np.ndarray]:
        """Features (0, D) and projections (2, 0, P) of no image: what a process without images has to say."""
        image = torch.zeros((1, 3, *self._view[0]), device=self._runtime.device)
        D, P = module(image).shape[1], module.projections(image).shape[1]
        return np.empty((0, D), np.float32), np.empty((2, 0, P), np.float32)

    def _features(self, module: SelfSupervised, images: Images) -> np.ndarray:
        """(B, D) float32 of decoded images, as they are evaluated."""
        return features_of(module, images, self._runtime, *self._view)

    def _projections(self, module: SelfSupervised, pack: Pack) -> np.ndarray:
        """(2, B, P) float32 of both views that every evaluation takes."""
        found = []
        for view in self._augmented(pack.images, pack.draws, EVALUATED):
            with self._runtime.autocast():
                found.append(module.projections(view).float().cpu().numpy())
        return np.stack(found)

    @torch.inference_mode()
    def watch(self, module: nn.Module, workers: int) -> dict[str, float]:
        """{spread, rank, num_dims, num_images} of the projections of a few images, the same at all times: of val where there is one, else of train.

        Raises DivergedError where a projection is NaN or infinite.
        """
        assert isinstance(module, SelfSupervised)
        module.eval()
        name = "val" if "val" in self._dataset.splits else "train"
        count = min(WATCHED, len(self._dataset.splits[name]))
        windows = ordered_windows(count, min(BANK_BATCH, self.batch_size))
        points = np.concatenate([self._projections(module, pack)[0] for pack in packs(self._pixels[name], windows, workers)])
        if (bad := ~np.isfinite(points).all(axis=1)).any():
            raise DivergedError(not_finite("projections", bad, self._dataset.splits[name].names, name))
        return {"spread": spread(points), "rank": effective_rank(points), "num_dims": points.shape[1], "num_images": count}

    def alarms(self, lines: Sequence[dict[str, Any]]) -> list[str]:
        """Whether the representations have collapsed, or do not get better though they have not."""
        return alarms_of(lines, self._recipe, len(self._dataset.classes), len(self._dataset.splits.get("val", ())))

    def quick(self, predictions: FeaturePredictions) -> dict[str, float]:
        """{knn_accuracy where there are labels, alignment, uniformity} for the curves."""
        first, second = predictions.views
        found = {"alignment": alignment(first, second), "uniformity": uniformity(first)}
        if self.labelled:
            found["knn_accuracy"] = float((self._knn(predictions) == predictions.labels).mean())
        return found

    def _knn(self, p: FeaturePredictions) -> np.ndarray:
        votes = knn_votes(
            p.features, p.bank, p.bank_labels,
            num_classes=len(self._dataset.classes), neighbours=self._probe.neighbours, temperature=self._probe.temperature,
        )  # fmt: skip
        return votes.argmax(axis=1)

    def measure(self, predictions: FeaturePredictions, split: str, note: str) -> list[Measurement]:
        """All reported numbers of a split; `note` says which weights they belong to. Baselines are computed here, from the images."""
        first, second = predictions.views
        n, P = first.shape

        def number(name: str, value: float, unit: str, how: str) -> Measurement:
            return Measurement(name, value, unit, split, n, self._recipe.seed, f"{how}; {note}")

        found = self._accuracies(predictions, split, note) if self.labelled else []
        if n < 2:
            return found  # of a single image nothing can be said to lie apart
        unit = f"of the unit projections ({P} dimensions)"
        found.append(
            number(
                "alignment", alignment(first, second), "distance", f"mean squared distance {unit} of two views of an image, 0 to 4 (Wang and Isola 2020, eq. 1)"
            )
        )
        how = f"log of the mean of exp(-2 d^2) over the distances d {unit} of all pairs of images, at most 0 (Wang and Isola 2020, eq. 2)"
        found.append(number("uniformity", uniformity(first), "nats", how))
        how = f"mean standard deviation {unit}, times sqrt({P}): 1 where they lie evenly over the sphere, 0 where all are one (Chen and He 2021)"
        found.append(number("spread", spread(first), "fraction", how))
        found.append(number("rank", effective_rank(first), "dimensions", f"effective rank {unit} (Garrido et al. 2023, eq. 1)"))
        return found

    def _accuracies(self, predictions: FeaturePredictions, split: str, note: str) -> list[Measurement]:
        """k-NN and linear accuracy of the features, of those of the same network untrained, and of raw pixels."""
        found = self._probed(predictions, "", split, f"features of the backbone; {note}")
        for name, how, other in self._baselines(predictions, split):
            found += self._probed(other, f"[{name}]", split, how)
        return found

    def _probed(self, p: FeaturePredictions, suffix: str, split: str, note: str) -> list[Measurement]:
        """k-NN and, where the recipe asks for it, linear accuracy of features."""
        n, m, C = len(p.labels), len(p.bank), len(self._dataset.classes)
        hits = {"knn_accuracy": self._knn(p) == p.labels}
        neighbours = min(self._probe.neighbours, m)
        hows = {
            "knn_accuracy": f"share of images whose {neighbours} nearest of {m} training images vote for their label, "
            f"by exp(cosine / {self._probe.temperature:g}) (Wu et al. 2018)"
        }
        if self._probe.linear:
            probe = fit_probe(p.bank, p.bank_labels, p.features, C)
            hits["linear_accuracy"] = probe.logits.argmax(axis=1) == p.labels
            hows["linear_accuracy"] = f"share of images that a linear classifier gives their label: {probe.note}"
        found = []
        for name, right in hits.items():
            interval = wilson(int(right.sum()), n)
            found.append(
                Measurement(
                    f"{name}{suffix}", float(right.mean()), "fraction", split, n, self._recipe.seed, f"{hows[name]}; {note}", interval.pair, interval.how
                )
            )
        return found

    def _baselines(self, p: FeaturePredictions, split: str) -> Iterator[tuple[str, str, FeaturePredictions]]:
        """(name, what it is, features) of what every such number stands beside: the same network before training, and no network."""
        module = untrained(self._recipe, len(self._dataset.classes))
        self._runtime.place(module).eval()
        size, workers = min(BANK_BATCH, self.batch_size), self._recipe.data.workers

        def both(features: Callable[[Images], np.ndarray]) -> FeaturePredictions:
            own = [_chosen(w, np.arange(len(p.labels))) for w in ordered_windows(len(p.labels), size)]
            bank = [_chosen(w, p.bank_rows) for w in ordered_windows(len(p.bank_rows), size)]
            of = [np.concatenate([features(k.images) for k in packs(self._pixels[s], w, workers)]) for s, w in ((split, own), ("train", bank))]
            return FeaturePredictions(p.files, p.labels, of[0], p.views, p.bank_rows, p.bank_labels, of[1])

        with torch.inference_mode():
            yield "untrained", "features of the same backbone with the random weights of this seed", both(lambda images: self._features(module, images))
            yield "pixels", f"no network: the image itself, {PIXEL_SIDE}x{PIXEL_SIDE} pixels", both(lambda images: raw_pixels(images, *self._view))

    def save(self, run: Run, split: str, predictions: FeaturePredictions) -> list[Path]:
        """Features and projections as arrays."""
        return run.write_feature_predictions(split, predictions)

    def mistakes(self, predictions: FeaturePredictions, most: int) -> np.ndarray:
        """Nothing is classified and nothing mistaken: rows of the images whose nearest training images are shown; none without a bank."""
        return neighboured_rows(predictions.labels) if len(predictions.bank) else np.empty(0, np.int64)

    def thumbnails(self, split: Split, row: int, predictions: FeaturePredictions, side: int) -> dict[str, PIL.Image.Image]:
        """The image and, as -near-1 and so on, the training images that are nearest to it."""
        places, _ = nearest(predictions.features[row : row + 1], predictions.bank)
        train = self._dataset.splits["train"]
        pictures = {".webp": split.open(row)}
        pictures |= {f"-near-{i}.webp": train.open(int(predictions.bank_rows[place])) for i, place in enumerate(places[0].tolist(), 1)}
        for picture in pictures.values():
            picture.thumbnail((side, side))
        return pictures

    def view_pictures(self, side: int) -> dict[str, PIL.Image.Image]:
        """{file name: picture} of a few training images and of the two views that the first epoch made of each, as `<row>-view-1` and `-view-2`."""
        train = self._dataset.splits["train"]
        rows = neighboured_rows(train.labels, SHOWN_VIEWS)
        pictures = {f"{row:06d}.webp": train.open(int(row)) for row in rows}
        _, mean, std = self._view
        scale, offset = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (std, mean))
        for pack in packs(self._pixels["train"], [Window(0, 0, rows, rows)], self._recipe.data.workers):
            for number, made in enumerate(self._augmented(pack.images, pack.draws, 0), 1):
                shown = (made.float().cpu() * scale + offset).mul(255).round().clamp(0, 255).to(torch.uint8)
                for row, view in zip(rows, shown, strict=True):
                    pictures[f"{row:06d}-view-{number}.webp"] = PIL.Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
        for picture in pictures.values():
            picture.thumbnail((side, side))
        return pictures


def alarms_of(lines: Sequence[dict[str, Any]], recipe: Recipe, num_classes: int, num_val: int) -> list[str]:
    """What the curves (lines of metrics.jsonl) of a run with so many classes and val images say is wrong with it."""
    history: dict[int, dict[str, Any]] = {}
    chance, n = 1.0 / max(1, num_classes), num_val
    for line in lines:
        if line["kind"] in ("watch", "val"):
            seen = history.setdefault(int(line["epoch"]), {"epoch": int(line["epoch"]), "knn_n": n, "chance": chance})
            seen |= {name: line[name] for name in ("step", "spread", "rank", "num_dims", "num_images", "knn_accuracy") if name in line}
    assert recipe.method is not None
    return list(diagnose([seen for _, seen in sorted(history.items()) if "spread" in seen], remedies=REMEDIES[recipe.method.name]))


def views(recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> tuple[Augment, Augment]:
    """What makes the first and the second view of an image; their draws are independent."""
    assert recipe.method is not None
    second = second_augment(recipe.augment, recipe.method.second_view)
    d = recipe.data
    one, two = (
        Augment.from_section(section, size=d.size, mean=mean, std=std, seed=seed, interpolation=d.interpolation)
        for section, seed in ((recipe.augment, recipe.seed), (second, derived_seed(recipe.seed, "second view")))
    )
    return one, two


def second_augment(augment: AugmentSection, second: SecondView) -> AugmentSection:
    """The section of the second view."""
    return augment.model_copy(update={name: value for name, value in second.model_dump().items() if value is not None})


def bank_rows(dataset: Dataset, most: int) -> np.ndarray:
    """(m,) int64 ascending rows of the training split, at most `most`, each class with its share; none where there is one class alone."""
    labels = dataset.splits["train"].labels
    if len(dataset.classes) < 2:
        return np.empty(0, np.int64)
    n, count = len(labels), min(most, len(labels))
    order = np.argsort(labels, kind="stable")
    return np.sort(order[(2 * np.arange(count, dtype=np.int64) + 1) * n // (2 * count)])


def _chosen(window: Window, rows: np.ndarray) -> Window:
    """A window of places in `rows` as one of these rows."""
    return Window(window.epoch, window.index, rows[window.rows], rows[window.rows])


@torch.inference_mode()
def features_of(module: SelfSupervised, images: Images, runtime: Runtime, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(B, D) float32 features of decoded images, without augmentation."""
    inputs = evaluate_view(images.to(runtime.device), size=size, mean=mean, std=std)
    with runtime.autocast():
        features = module(inputs.to(memory_format=runtime.memory_format))
    return features.float().cpu().numpy()


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────


def build(recipe: Recipe, num_classes: int, *, start_weights: bool = True) -> tuple[Built, WeightsReport | None]:
    """The recipe's network with its heads, and what its weights file gave; `start_weights=False` leaves it at its initialisation."""
    m = recipe.model
    built, num_features = build_backbone(
        m.name, pretrained=m.pretrained and start_weights, options=m.options, drop_rate=m.drop_rate, drop_path_rate=m.drop_path_rate,
        image_size=recipe.data.size,
    )  # fmt: skip
    built, report = load_into(built, Path(m.weights), name=m.name, options=m.options) if m.weights and start_weights else (built, None)
    module = _with_heads(recipe, built.module, num_features)
    return replace(built, module=module.train(), classifier=(), backbone="backbone", untrained=module.untrained), report


def left_out(recipe: Recipe) -> tuple[str, ...]:
    """Paths of the classifier that the backbone of a recipe goes without."""
    m = recipe.model
    return build_backbone(
        m.name, pretrained=False, options=m.options, drop_rate=m.drop_rate, drop_path_rate=m.drop_path_rate, image_size=recipe.data.size
    )[0].classifier  # fmt: skip


def _with_heads(recipe: Recipe, backbone: nn.Module, num_features: int) -> SelfSupervised:
    method = recipe.method
    assert method is not None
    settings = method.model_dump(exclude={"name", "second_view"})
    if isinstance(method, ByolMethod):
        return Byol(backbone, num_features, **settings)
    if isinstance(method, SimClrMethod):
        return SimClr(backbone, num_features, **settings)
    return SimSiam(backbone, num_features, **settings)


def untrained(recipe: Recipe, num_classes: int) -> SelfSupervised:
    """The network of a recipe with the random weights of its seed, on the CPU; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(derived_seed(recipe.seed, "initialisation"))
        module = build(recipe, num_classes, start_weights=False)[0].module
    assert isinstance(module, SelfSupervised)
    return module


def predict(run: Run, module: nn.Module, images: Any, *, runtime: Runtime) -> list[Any]:
    """Raises UsageError: features are no prediction."""
    raise UsageError(
        f"{run.path}: a pre-trained backbone names no class. Train a classification that starts from it, with model.weights: "
        f"{run.path / 'checkpoints' / 'backbone.safetensors'}"
    )
