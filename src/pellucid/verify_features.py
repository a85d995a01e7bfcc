"""Verification of a pre-training run: its numbers recomputed twice by paths that training did not take.

1. *From the stored features*: k-NN by scikit-learn's KNeighborsClassifier, the linear probe by another solver (Newton-CG), distances and singular values by
   SciPy. They agree to 1e-6, accuracies but for images that stand at a tie, which either path may count; those are few and their number is told.
2. *From checkpoint and data*: images are decoded anew, cropped and normalised by torchvision's own transforms; features and projections are the same bits,
   or the numbers agree within the tolerance. So do those of the untrained network and of raw pixels, which no file of the run holds.

Shared with training, with oracles in the tests: decoding and resizing, the draws and operations of the two views, which rows are the bank, and the rule by
which a probe's penalty is chosen. Never imports the training loop.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.spatial.distance
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor, nn
from torchvision.transforms import v2

from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import resize
from pellucid.data.loader import pack_images
from pellucid.errors import PellucidError, RunError
from pellucid.export import backbone_facts, same_bits
from pellucid.models.backbone_file import read_facts
from pellucid.models.self_supervised import SelfSupervised
from pellucid.models.weights import read_weights, under
from pellucid.predictions import FEATURE_ARRAYS, FeaturePredictions
from pellucid.recipe import Recipe
from pellucid.representation import HELD_OUT, STRENGTHS
from pellucid.run import Measurement, Run, rounded
from pellucid.runtime import Runtime
from pellucid.schema.pretraining import ProbeSection
from pellucid.tasks.evaluated import PIXEL_SIDE
from pellucid.tasks.pretraining import BANK_BATCH, EVALUATED, alarms_of, bank_rows, left_out, untrained, views
from pellucid.verify_numbers import EXACT, Line, number_lines

Progress = Callable[[str, int, int], None]

TIED = 1e-9  # of distances and votes: what rounding moves
NEAR = 0.05  # nats between the two highest logits: what two solvers leave undecided
UNDECIDED = 0.005  # of the images, at most, may fall either way in a linear probe; always one
EQUAL_LOSS = 0.005  # nats: two penalties whose log losses lie so near are equally good
ROWS = 512  # of points whose distances to all others are made at once
BASELINES = ("untrained", "pixels")
STORED, ANEW = "from the stored features", "from checkpoint and data"


@dataclass(frozen=True)
class Again:
    """A number recomputed. slack: share of images that stand at a tie and may be counted either way."""

    value: float
    slack: float = 0.0


# ── from the stored features ──────────────────────────────────────────────────────────────────────────────────


def stored_feature_checks(run: Run, progress: Progress | None = None) -> list[Line]:
    """The lines about the backbone file, the alarms, and rows, bank, numbers and intervals of every split that is evaluated."""
    recipe, measurements = run.recipe, run.record.measurements
    assert recipe.probe is not None, "a pre-training always says how its features are measured"
    lines = [_backbone_line(run), _alarm_line(run)]
    for name in (split for split in run.data.splits if split != "train"):
        try:
            found = run.feature_predictions(name)
        except RunError as error:
            lines.append((f"predictions {name}", False, f"MISMATCH {error}"))
            continue
        wanted = [m for m in measurements if m.split == name]
        lines += [_row_line(run, name, found), _bank_line(run, name, found, recipe.probe)]
        if progress is not None:
            progress(f"verifying features of {name}", 0, len(found.files))
        numbers = recompute_features(found, recipe.probe)
        # What no file of the run holds is recomputed from the data alone.
        lines += _compared(numbers, [m for m in wanted if not m.name.endswith(tuple(f"[{other}]" for other in BASELINES))], name, STORED, EXACT)
        lines.append(_interval_line(wanted, name, len(found.files), recipe.seed))
    return lines


def _backbone_line(run: Run) -> Line:
    """The backbone file holds the backbone of the run's model, bit for bit, and says of it what the run says."""
    file = str(run.backbone_weights.relative_to(run.path))
    try:
        tensors, stated, whole = read_weights(run.backbone_weights), read_facts(run.backbone_weights), read_weights(run.final_weights)
    except PellucidError as error:
        return "backbone", False, f"MISMATCH {file}: {error}"
    classifier = left_out(run.recipe)
    own = {name.removeprefix("backbone."): tensor for name, tensor in whole.items() if name.startswith("backbone.")}
    own = {name: tensor for name, tensor in own.items() if not under(name, classifier)}
    wrong = [f"{name} is missing" for name in own if name not in tensors] + [f"{name} is not of the backbone" for name in tensors if name not in own]
    wrong += [f"{name} is not that of {run.final_weights.name}" for name in own if name in tensors and not same_bits(own[name], tensors[name])]
    wrong = [*wrong[:5], f"and {len(wrong) - 5} more"] if len(wrong) > 5 else wrong
    said, expected = stated.metadata() if stated is not None else {}, backbone_facts(run, classifier).metadata()
    # The name of a run is that of its folder, which may have moved.
    wrong += [f"{fact} {said.get(fact, 'is missing')} instead of {value}" for fact, value in expected.items() if fact != "run" and said.get(fact) != value]
    if wrong:
        return "backbone", False, f"MISMATCH {file}: {'; '.join(wrong)}"
    return "backbone", True, f"ok {file}: {len(own):,} tensors, the same bits as in {run.final_weights.name}, with the facts of the run"


def _alarm_line(run: Run) -> Line:
    """What the run is warned of is what its curves say."""
    val = run.data.splits.get("val")
    try:
        expected = alarms_of(run.metrics(), run.recipe, len(run.data.classes), val.n if val is not None else 0)
    except (RunError, KeyError, TypeError, ValueError) as error:
        return "alarms", False, f"MISMATCH metrics.jsonl: no alarms can be recomputed from it ({error})"
    recorded = run.record.alarms
    wrong = [f"the curves give no such alarm as {line!r}" for line in recorded if line not in expected]
    wrong += [f"an alarm is missing: {line!r}" for line in expected if line not in recorded]
    if wrong:
        return "alarms", False, f"MISMATCH run.json: {'; '.join(wrong)}"
    return "alarms", True, f"ok alarms: {len(recorded) or 'none'}, as recomputed from metrics.jsonl"


def _row_line(run: Run, name: str, found: FeaturePredictions) -> Line:
    """Each sample of the split has exactly one row, with its label."""
    recorded, stored = [(file, label) for file, label, _ in run.samples(name)], list(zip(found.files, found.labels.tolist(), strict=True))
    if recorded == stored:
        return f"rows {name}", True, f"ok {name} features: one row for each of {len(stored):,} samples"
    wrong = [new for old, new in zip(recorded, stored, strict=False) if old != new]
    detail = f"first difference at {wrong[0][0]}" if wrong else f"{len(stored)} rows for {len(recorded)} samples"
    return f"rows {name}", False, f"MISMATCH {name} features: rows are not those of samples/{name}.csv ({detail})"


def _bank_line(run: Run, name: str, found: FeaturePredictions, probe: ProbeSection) -> Line:
    """The bank is of training images, each once and with its label, as many as the recipe says and each class with its share."""
    labels = np.array([label for _, label, _ in run.samples("train")])
    rows, n = found.bank_rows, len(labels)
    count = min(probe.bank, n) if len(run.data.classes) > 1 else 0
    wrong = ""
    if len(rows) != count:
        wrong = f"{len(rows):,} images, expected {count:,}"
    elif count and not (rows[0] >= 0 and rows[-1] < n and (np.diff(rows) > 0).all()):
        wrong = f"its rows are not ascending rows of the {n:,} training images"
    elif (differ := np.flatnonzero(labels[rows] != found.bank_labels)).size:
        wrong = f"row {rows[differ[0]]} has label {found.bank_labels[differ[0]]}, samples/train.csv says {labels[rows[differ[0]]]}"
    else:
        shares, given = Counter(labels.tolist()), Counter(found.bank_labels.tolist())
        unfair = [c for c in sorted(shares) if abs(given[c] - count * shares[c] / n) > 1] if count else []
        wrong = f"class {run.data.classes[unfair[0]]} has {given[unfair[0]]} of its images" if unfair else ""
    return f"bank {name}", not wrong, f"MISMATCH {name} bank: {wrong}" if wrong else f"ok {name} bank: {count:,} training images with their labels"


def _compared(numbers: dict[str, Again], measurements: Sequence[Measurement], split: str, path: str, tolerance: float) -> list[Line]:
    """Lines of recomputed numbers, some of which may differ by images at a tie."""
    values, slack = ({name: getattr(again, part) for name, again in numbers.items()} for part in ("value", "slack"))
    return number_lines(values, measurements, split, path, max(tolerance, EXACT), slack=slack)


def _interval_line(measurements: Sequence[Measurement], split: str, n: int, seed: int) -> Line:
    """n, seed and intervals: accuracies have SciPy's Wilson interval, the others none."""
    wrong = []
    for m in measurements:
        if m.n != n or m.seed != seed:
            wrong.append(f"{m.key}: n {m.n}, seed {m.seed} reported; n {n}, seed {seed} recomputed")
        counted = "accuracy" in m.name
        if counted != (m.interval is not None):
            wrong.append(f"{m.key}: {'no interval' if counted else 'an interval where none belongs'}")
        elif m.interval is not None and n:
            exact = scipy.stats.binomtest(min(n, max(0, round(m.value * n))), n).proportion_ci(confidence_level=0.95, method="wilson")
            if max(abs(exact.low - m.interval[0]), abs(exact.high - m.interval[1])) > EXACT:
                reported, again = (f"{rounded(low)} to {rounded(high)}" for low, high in (m.interval, (exact.low, exact.high)))
                wrong.append(f"{m.key}: interval {reported} reported, {again} recomputed")
    if wrong:
        return f"intervals {split}", False, "MISMATCH " + "; ".join(wrong)
    return f"intervals {split}", True, f"ok {split} numbers: n, seed and intervals recomputed"


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


def recompute_features(found: FeaturePredictions, probe: ProbeSection) -> dict[str, Again]:
    """{name: number} of all that features, projections and bank say of a split; of too few images not all of them."""
    first, second = (normalize(view.astype(np.float64)) for view in found.views)
    n, num_dims = first.shape
    numbers: dict[str, Again] = {}
    if n > 1:
        numbers["alignment"] = Again(float(np.square(sklearn.metrics.pairwise.paired_euclidean_distances(first, second)).mean()))
        numbers["uniformity"] = Again(_uniformity(first))
        numbers["spread"] = Again(float(np.sqrt(StandardScaler().fit(first).var_).mean() * np.sqrt(num_dims)))
    if n > 1 and first.any():
        values = scipy.linalg.svd(first, compute_uv=False, lapack_driver="gesvd")
        numbers["rank"] = Again(float(np.exp(scipy.stats.entropy(values))))
    return accuracies(found, probe) | numbers


def _uniformity(points: np.ndarray) -> float:
    """log of the mean of exp(-2 d^2) over pairs of unit vectors, rows against those behind them."""
    n, parts = len(points), []
    for i in range(0, n - 1, ROWS):
        squared = scipy.spatial.distance.cdist(points[i : i + ROWS], points[i + 1 :], "sqeuclidean")
        parts.append(scipy.special.logsumexp(-2.0 * squared[~np.tri(len(squared), squared.shape[1], k=-1, dtype=bool)]))
    return float(scipy.special.logsumexp(parts) - np.log(n) - np.log(n - 1) + np.log(2.0))


def accuracies(found: FeaturePredictions, probe: ProbeSection) -> dict[str, Again]:
    """{name: number} of what the bank says of the images; {} without a bank."""
    if not len(found.bank):
        return {}
    numbers = {"knn_accuracy": _knn(found, probe)}
    return numbers | ({"linear_accuracy": _linear(found)} if probe.linear else {})


def _knn(found: FeaturePredictions, probe: ProbeSection) -> Again:
    """Accuracy of the weighted votes by scikit-learn; at a tie: equal votes, or one more neighbour that is as near as the last."""
    m = len(found.bank)
    k = min(probe.neighbours, m)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp((distances.min(axis=1, keepdims=True) - distances) / probe.temperature))

    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    model.fit(found.bank.astype(np.float64), found.bank_labels)
    asked = found.features.astype(np.float64)
    votes = model.predict_proba(asked)
    right = model.classes_[votes.argmax(axis=1)] == found.labels
    tied = _lead(votes) < TIED
    if k < m:
        distances, _ = model.kneighbors(asked, k + 1)
        tied |= distances[:, k] - distances[:, k - 1] < TIED
    return Again(float(right.mean()), float(tied.mean()))


def _lead(scores: np.ndarray) -> np.ndarray:
    """(n,) how far the highest of each row (n, C) lies above the next; infinite of one class alone."""
    if scores.shape[1] < 2:
        return np.full(len(scores), np.inf)
    highest = np.sort(scores, axis=1)
    return np.asarray(highest[:, -1] - highest[:, -2])


def _linear(found: FeaturePredictions) -> Again:
    """Accuracy of the logistic regression by another solver; at a tie: near logits, or penalties that are equally good and differ in the image."""
    bank, own, asked = found.bank.astype(np.float64), found.bank_labels, found.features.astype(np.float64)
    if len(set(own.tolist())) == 1:
        return Again(float((found.labels == own[0]).mean()))
    varies, D = np.ptp(bank, axis=0) > 0, bank.shape[1]
    varies[0] |= not varies.any()  # scikit-learn wants one; weighed by images that are all the same in it, it says nothing
    scaler = StandardScaler().fit(bank[:, varies])
    bank, asked = scaler.transform(bank[:, varies]), scaler.transform(asked[:, varies])
    fits = [_regression(bank, own, strength, D, 1e-5) for strength in _strengths(bank, own, D)]
    rights = [fit.predict(asked) == found.labels for fit in fits]
    logits = fits[0].decision_function(asked)
    undecided = (np.abs(logits) if logits.ndim == 1 else _lead(logits)) < NEAR
    slack = min(int(undecided.sum()), max(1, int(UNDECIDED * len(asked)))) / len(asked)
    for right in rights[1:]:
        slack += float((right != rights[0]).mean())
    return Again(float(rights[0].mean()), slack)


def _strengths(bank: np.ndarray, own: np.ndarray, num_features: int) -> list[float]:
    """The chosen strength, then those that are as good but for EQUAL_LOSS: log loss on every fifth image of each class, until it rises."""
    counted: Counter[int] = Counter()
    held = np.zeros(len(own), bool)
    for i, label in enumerate(own.tolist()):
        counted[label] += 1
        held[i] = counted[label] % HELD_OUT == 0
    if not held.any():
        return [STRENGTHS[1]]
    losses: dict[float, float] = {}
    for strength in STRENGTHS:
        fit = _regression(bank[~held], own[~held], strength, num_features, 1e-3)
        loss = float(sklearn.metrics.log_loss(own[held], fit.predict_proba(bank[held]), labels=fit.classes_))
        if losses and loss > min(losses.values()) + EQUAL_LOSS:
            break
        losses[strength] = loss
    return [strength for strength in sorted(losses, key=losses.__getitem__) if losses[strength] <= min(losses.values()) + EQUAL_LOSS]


def _regression(bank: np.ndarray, own: np.ndarray, strength: float, num_features: int, gradient: float) -> LogisticRegression:
    """The fit whose penalty is |w|^2 num_features / (2 strength) over a column of weights for each class."""
    columns = 2 if len(set(own.tolist())) == 2 else 1  # of two classes scikit-learn fits their difference
    model = LogisticRegression(C=columns * strength / num_features, solver="newton-cg", tol=gradient, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a line search that rounding ends: what it found is judged by its agreement
        return model.fit(bank, own)


# ── from checkpoint and data ──────────────────────────────────────────────────────────────────────────────────


def anew_feature_checks(
    run: Run, dataset: Dataset, module: nn.Module, runtime: Runtime, tolerance: float, progress: Progress | None
) -> tuple[list[Line], list[float | None]]:
    """Lines about the numbers of the run's model on images decoded now, and of each split the largest difference of a feature or projection to the run's.

    0.0 is bit-equal; None where the run has nothing to compare with. Splits whose images are not those of the run are left out: the data check names them.
    Without the training images, which are the bank, only what projections say is recomputed.
    """
    recipe = run.recipe
    assert recipe.probe is not None
    assert isinstance(module, SelfSupervised)
    lines: list[Line] = []
    largest: list[float | None] = []
    start = untrained(recipe, len(run.data.classes)).eval()
    runtime.place(start)
    for name in run.prediction_splits:
        if name not in dataset.splits:
            continue
        anew = _Anew(run, recipe, runtime, dataset, name, progress)
        found = anew.predictions(module.eval())
        numbers = recompute_features(found, recipe.probe)
        if len(found.bank):
            others = {"untrained": lambda images: _features(start, images, runtime), "pixels": raw_pixels}
            for other, features in others.items():
                again = accuracies(replace(found, features=anew.over(name, features), bank=anew.over("train", features)), recipe.probe)
                numbers |= {f"{number}[{other}]": value for number, value in again.items()}
        measured = [m for m in run.record.measurements if m.split == name]
        if "train" not in dataset.splits:
            measured = [m for m in measured if "accuracy" not in m.name]
        lines += _compared(numbers, measured, name, ANEW, tolerance)
        largest.append(_largest_difference(run, name, found))
        if largest[-1] is not None:
            said = "the same bits" if not largest[-1] else f"largest difference {largest[-1]:.2g}"
            lines.append((f"features {name}", True, f"ok {name} features and projections {ANEW}: {said}"))
    return lines, largest


@dataclass(frozen=True)
class _Anew:
    """One split of a run and its bank, decoded now, in the batches of the run's evaluation."""

    run: Run
    recipe: Recipe
    runtime: Runtime
    dataset: Dataset
    name: str
    progress: Progress | None

    @property
    def split(self) -> Split:
        return self.dataset.splits[self.name]

    @property
    def batch_size(self) -> int:
        return max(1, min(self.run.record.evaluation_batch_size, len(self.split)))

    @property
    def bank_rows(self) -> np.ndarray:
        """(m,) rows of the bank; none where the training images are not those of the run."""
        assert self.recipe.probe is not None
        return bank_rows(self.dataset, self.recipe.probe.bank) if "train" in self.dataset.splits else np.empty(0, np.int64)

    def predictions(self, module: SelfSupervised) -> FeaturePredictions:
        """What the run keeps of the split, made anew."""
        features = self.over(self.name, lambda images: _features(module, images, self.runtime))
        rows, projections = self.bank_rows, self._projections(module)
        bank = self.over("train", lambda images: _features(module, images, self.runtime)) if len(rows) else np.empty((0, features.shape[1]), np.float32)
        labels = self.dataset.splits["train"].labels[rows] if len(rows) else np.empty(0, np.int64)
        return FeaturePredictions(list(self.split.names), self.split.labels, features, projections, rows, labels, bank)

    def over(self, split: str, features: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """(n, D) features of the images of the split, or, of "train", of the bank, normalised by torchvision."""
        d, data = self.recipe.data, self.run.data
        prepare = v2.Compose([v2.CenterCrop(list(d.size)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
        evaluated = self.run.record.evaluation_batch_size
        rows, size = (self.bank_rows, min(BANK_BATCH, evaluated)) if split == "train" else (np.arange(len(self.split)), self.batch_size)
        found = []
        for start in range(0, len(rows), size):
            images = self._decoded(split, rows[start : start + size])
            found.append(features(torch.stack([prepare(torch.from_numpy(image).permute(2, 0, 1)) for image in images])))
            self._tell(f"verifying {'the bank of ' if split == 'train' else ''}{self.name}", start + len(images), len(rows))
        return np.concatenate(found)

    @torch.inference_mode()
    def _projections(self, module: SelfSupervised) -> np.ndarray:
        """(2, n, P) projections of the two views that every evaluation takes."""
        found = []
        for start in range(0, len(self.split), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.split)))
            images = pack_images(self._decoded(self.name, rows)).to(self.runtime.device)
            pair = []
            for augment in views(self.recipe, self.run.data.mean, self.run.data.std):
                seen = augment(images, samples=rows, epoch=EVALUATED).to(memory_format=self.runtime.memory_format)
                with self.runtime.autocast():
                    pair.append(module.projections(seen).float().cpu().numpy())
            found.append(np.stack(pair))
            self._tell(f"verifying views of {self.name}", int(rows[-1]) + 1, len(self.split))
        return np.concatenate(found, axis=1)

    def _decoded(self, split: str, rows: np.ndarray) -> list[np.ndarray]:
        """(H, W, 3) uint8 of images, decoded now."""
        d, images = self.recipe.data, self.dataset.splits[split]
        return [np.array(resize(images.open(i), d.size, d.fit, d.resize_size, d.interpolation)) for i in rows.tolist()]

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


@torch.inference_mode()
def _features(module: SelfSupervised, images: Tensor, runtime: Runtime) -> np.ndarray:
    """(B, D) float32 features of normalised images (B, 3, H, W)."""
    with runtime.autocast():
        features = module(images.to(runtime.device).contiguous(memory_format=runtime.memory_format))
    return np.asarray(features.float().cpu().numpy())


def raw_pixels(images: Tensor) -> np.ndarray:
    """(B, 3 s s) float32 of normalised images (B, 3, H, W): means over s x s rectangles, the k-th from floor(k H / s) to ceil((k + 1) H / s)."""
    pixels: Any = images.numpy().astype(np.float64)
    for axis in (2, 3):
        side = pixels.shape[axis]
        edges = [(k * side // PIXEL_SIDE, -(-(k + 1) * side // PIXEL_SIDE)) for k in range(PIXEL_SIDE)]
        pixels = np.stack([pixels.take(range(low, high), axis=axis).mean(axis=axis) for low, high in edges], axis=axis)
    return np.asarray(pixels.reshape(len(pixels), -1), np.float32)


def _largest_difference(run: Run, name: str, found: FeaturePredictions) -> float | None:
    """Largest absolute difference of what is made anew to what the run holds; None where that cannot be compared."""
    try:
        stored = run.feature_predictions(name)
    except RunError:
        return None
    arrays = [(getattr(stored, array), getattr(found, array)) for array in FEATURE_ARRAYS]
    if any(old.shape != new.shape for old, new in arrays):
        return None
    return float(max(np.abs(old.astype(np.float64) - new).max(initial=0.0) for old, new in arrays))
