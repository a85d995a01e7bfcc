"""Verification: every reported number of a run, recomputed twice by paths that training did not take.

1. *Files.* Weights, predictions, samples and settings are compared with the hashes in run.json.
2. *Data.* Every image and label is compared with samples/<split>.csv; what changed is named.
3. *From the predictions*: scikit-learn and SciPy instead of torchmetrics; must agree to 1e-6.
4. *From checkpoint and data*: the images are decoded anew (no store), cropped and normalised by torchvision's own
   transforms; the numbers must agree within the tolerance. Decoding and resizing are the functions that training used:
   their oracles are in the tests.

   Of segmentation, `verify_masks` does the third and the fourth, `verify_mask_findings` both for the masks kept over epochs; of pre-training,
   `verify_features` does both; it also compares the backbone file with the model, and the alarms with those that the curves give. Of captioning,
   `verify_captions` does both, and `verify_words` recomputes where the decoder looked for each word.
5. *Pictures and curves.* Pictures of mistakes are made anew from the data by `verify_pictures`; the curves of val end at the reported numbers.
6. *Inside.* Of a run whose recipe has `inside`, scores of maps, projections, maps and features, as `verify_inside` says.

What must be there follows from the recipe, the data and its classes, not from run.json. The class of the promise that held:
"bit-equal" (all logits the same bits), "same device class" (same versions and kind of device, other bits) or
"statistical" (another environment). Never imports the training loop.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
import sklearn.metrics
import torch
from scipy.special import log_softmax
from torch import nn
from torchvision.transforms import v2

from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import resize
from pellucid.data.sources import load_dataset
from pellucid.errors import PellucidError, RunError
from pellucid.files import file_hash
from pellucid.intervals import bootstrap
from pellucid.predictions import Predictions
from pellucid.recipe import Recipe
from pellucid.records import write_json
from pellucid.run import DONE, Measurement, Run, rounded
from pellucid.runtime import DECIDES_BITS, Runtime, describe
from pellucid.tasks import load_model, runtime_of
from pellucid.tasks.classification import CALIBRATION_BINS
from pellucid.verify_captions import anew_caption_checks, stored_caption_checks
from pellucid.verify_features import anew_feature_checks, stored_feature_checks
from pellucid.verify_inside import anew_checks, open_kept, reported_epoch, stored_checks
from pellucid.verify_mask_findings import anew_picture_checks, stored_picture_checks
from pellucid.verify_masks import anew_mask_checks, stored_mask_checks
from pellucid.verify_pictures import thumbnail_checks
from pellucid.verify_words import anew_word_checks, open_words, stored_word_checks

TOLERANCE = 0.005
EXACT = 1e-6  # two correct float64 computations of one number from the same logits
MOSTLY = 0.5  # share of images: where fewer have other bits, the machine gives the bits of the run
BIT_EQUAL, SAME_DEVICE, STATISTICAL = "bit-equal", "same device class", "statistical"
VERIFIED, MISMATCH = "verified", "mismatch"


@dataclass(frozen=True)
class Check:
    """One comparison: what was looked at, whether it held, and a line for people."""

    what: str
    ok: bool
    line: str


@dataclass(frozen=True)
class Verification:
    """All checks of a run. `promise` is the class that held; None when the model could not be run again."""

    run: str
    checks: tuple[Check, ...]
    promise: str | None
    tolerance: float
    when: str

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def result(self) -> str:
        return VERIFIED if self.ok else MISMATCH

    def lines(self) -> list[str]:
        return [check.line for check in self.checks]

    def save(self, run: Run) -> None:
        """Keep the result beside the run, for its report."""
        write_json(run.verify_file, {"result": self.result, "class": self.promise, "when": self.when, "tolerance": self.tolerance, "lines": self.lines()})


def verify(run: Run | str, *, tolerance: float = TOLERANCE, progress: Callable[[str, int, int], None] | None = None) -> Verification:
    """The checks of a finished run. Mismatches are results, not errors; raises RunError for a run that is not finished."""
    run = run if isinstance(run, Run) else Run(run)
    record, recipe = run.record, run.recipe
    if record.status != DONE:
        raise RunError(f"{run.path}: the run is {record.status}; only a finished run has numbers to verify. `pellucid resume {run.path}` finishes it.")
    checks = _file_checks(run)
    runtime = runtime_of(run)
    checks += _listing_checks(run, record.measurements)
    if recipe.task == "classification":
        checks += _prediction_checks(run, record.measurements)
    checks += _curve_checks(run, record.measurements, tolerance)
    kept, lines = open_kept(run)
    words = None
    lines += stored_checks(kept, progress) if kept is not None else []
    dataset, data_checks = _data_checks(run, recipe, progress)
    checks += data_checks
    lines += thumbnail_checks(run, dataset)
    promise = None
    found: list[float | None] = []
    sound = [split for split in run.prediction_splits if _sound(data_checks, split)]
    if recipe.task == "pretraining":
        lines += stored_feature_checks(run, progress)
    if recipe.captioned:
        words, opened = open_words(run)
        lines += [*stored_caption_checks(run, progress), *opened, *(stored_word_checks(words) if words is not None else [])]
    if recipe.masked:
        lines += stored_mask_checks(run, _of_splits(dataset, sound), progress) if dataset is not None else []
        lines += stored_picture_checks(run, dataset, progress)
    if dataset is not None and _weights_are_readable(run, checks):
        module = runtime.place(load_model(run))
        if recipe.masked:
            anew, found = anew_mask_checks(run, _of_splits(dataset, sound), module, runtime, tolerance, progress)
            equal = bool(found) and all(share == 0.0 for share in found)
            lines += [*anew, *anew_picture_checks(run, dataset, module, runtime, progress, same_bits=equal)]
        if recipe.task == "pretraining":
            bank = ["train"] if _sound(data_checks, "train") else []
            anew, found = anew_feature_checks(run, _of_splits(dataset, [*sound, *bank]), module, runtime, tolerance, progress)
            lines += anew
        if recipe.captioned:
            train = ["train"] if _sound(data_checks, "train") else []
            anew, found = anew_caption_checks(run, _of_splits(dataset, [*sound, *train]), module, runtime, tolerance, progress)
            lines += anew
            if words is not None:
                equal = any(share is not None and share < MOSTLY for share in found)
                lines += anew_word_checks(words, _of_splits(dataset, [*sound, *train]), module, runtime, progress, same_bits=equal)
        for split in sound if recipe.task == "classification" else ():
            recomputed = _recompute(run, module, dataset.splits[split], runtime, progress)
            found.append(_same_bits(run, split, recomputed))
            checks += _number_checks(recomputed, [m for m in record.measurements if m.split == split], run.data.classes, "from checkpoint and data", tolerance)
        lines += anew_checks(kept, dataset, module, runtime, progress) if kept is not None else []
    checks += [Check(*line) for line in lines]
    if found and all(check.ok for check in checks):
        promise = _promise(run, runtime, [d for d in found if d is not None])
        checks.append(_promise_check(promise, found, recipe))
    if recipe.train.device == "cuda" and runtime.device.type != "cuda":
        checks.append(Check("device", True, "the run was trained on CUDA, which is not here: recomputed on the CPU"))
    return Verification(str(run.path), tuple(checks), promise, tolerance, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def _sound(data_checks: Sequence[Check], split: str) -> bool:
    return all(check.ok for check in data_checks if check.what == f"data {split}")


def _of_splits(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The splits whose samples are those of the run; what changed in the others is told already."""
    return replace(dataset, splits={name: dataset.splits[name] for name in names})


def compare_retrained(run: Run, again: Run, tolerance: float = TOLERANCE) -> Verification:
    """The checks of a run against the same recipe trained again.

    Numbers agree within the tolerance, or, where machine or versions differ, when their 95 % intervals overlap.
    """
    equal = file_hash(run.final_weights) == file_hash(again.final_weights)
    checks = [Check("weights", True, f"retrained weights: {'the same bits' if equal else 'other bits'}")]
    same = all(run.environment.get(key) == again.environment.get(key) for key in DECIDES_BITS)
    promise = BIT_EQUAL if equal else SAME_DEVICE if same else STATISTICAL
    new = again.measurements
    for old in run.record.measurements:
        if old.key not in new:
            checks.append(Check(f"number {old.key}", False, f"MISMATCH {old.key}: the retrained run has no such number"))
            continue
        value, here, there = new[old.key].value, new[old.key].interval, old.interval
        overlap = promise == STATISTICAL and here is not None and there is not None and here[0] <= there[1] and there[0] <= here[1]
        ok = abs(value - old.value) <= tolerance or overlap
        checks.append(Check(f"number {old.key}", ok, _line(ok, "retrained", old, value)))
    return Verification(str(run.path), tuple(checks), promise, tolerance, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


# ── files and data ────────────────────────────────────────────────────────────────────────────────────────────


def _file_checks(run: Run) -> list[Check]:
    """Each file against its hash; a file that should have one and has none is a mismatch too."""
    splits = list(run.data.splits)
    wanted = [run.final_weights, *([run.backbone_weights] if run.recipe.task == "pretraining" else []), *run.hashed_files(splits)]
    for split in (s for s in splits if s != "train"):
        wanted += [run.predictions_file(split), *([] if run.recipe.task == "pretraining" else [run.predictions_file(split).with_suffix(".csv")])]
        wanted += [run.path / "samples" / f"{split}.captions.json"] if run.recipe.captioned else []
    missing = [name for name in (str(path.relative_to(run.path)) for path in wanted) if name not in run.record.files]
    checks = [Check(f"file {name}", False, f"MISMATCH run.json: it holds no hash of {name}") for name in missing]
    for name, expected in run.record.files.items():
        path = run.path / name
        if not path.is_file():
            checks.append(Check(f"file {name}", False, f"MISMATCH {name}: the file is missing"))
        elif file_hash(path) != expected:
            checks.append(Check(f"file {name}", False, f"MISMATCH {name}: the file changed since the run (its hash differs)"))
        else:
            checks.append(Check(f"file {name}", True, f"ok {name}: unchanged"))
    return checks


def _weights_are_readable(run: Run, checks: list[Check]) -> bool:
    """Changed weights are still run when they load, to say what they change; unreadable ones are not."""
    try:
        load_model(run)
    except PellucidError as error:
        checks.append(Check("weights", False, f"MISMATCH {run.final_weights.name}: cannot be loaded: {error}"))
        return False
    except RuntimeError as error:  # torch: names or shapes that do not fit the model
        checks.append(Check("weights", False, f"MISMATCH {run.final_weights.name}: does not fit the model: {str(error).splitlines()[0]}"))
        return False
    return True


def _data_checks(run: Run, recipe: Recipe, progress: Callable[[str, int, int], None] | None) -> tuple[Dataset | None, list[Check]]:
    try:
        dataset = load_dataset(
            recipe.data,
            seed=recipe.seed,
            masks=recipe.masked,
            captions=recipe.captioned,
            least=recipe.least_size,
            fewest_classes=recipe.fewest_classes,
            progress=progress,
        )
    except PellucidError as error:
        return None, [Check("data", False, f"MISMATCH data: {error}")]
    if list(dataset.classes) != run.data.classes:
        return None, [Check("data", False, f"MISMATCH data: the classes changed from {run.data.classes} to {list(dataset.classes)}")]
    checks, beside = [], "captions" if recipe.captioned else "mask"
    for name in run.data.splits:
        changes = _changes(run.samples(name), dataset.splits[name], dataset.classes, beside) if name in dataset.splits else [f"the {name} split is gone"]
        if changes:
            shown = "; ".join(changes[:20]) + (f"; and {len(changes) - 20} more" if len(changes) > 20 else "")
            checks.append(Check(f"data {name}", False, f"MISMATCH {name} data: {shown}"))
        else:
            checks.append(
                Check(
                    f"data {name}", True, f"ok {name} data: {len(dataset.splits[name]):,} images and {'captions' if recipe.captioned else 'labels'} unchanged"
                )
            )
    return dataset, checks


def _changes(recorded: list[tuple[str, int, str]], split: Split, classes: tuple[str, ...], beside: str) -> list[str]:
    """What differs between the samples of the run and those of today, in words. beside: what the hash behind a + is of."""
    old = {file: (label, content) for file, label, content in recorded}
    new = {file: (label, content) for file, label, content in split.rows()}
    changes = [f"{file} is missing" for file in old if file not in new] + [f"{file} is new" for file in new if file not in old]
    for file in old.keys() & new.keys():
        (image, _, other), (now_image, _, now_other) = old[file][1].partition("+"), new[file][1].partition("+")
        if old[file][0] != new[file][0] and not other:
            changes.append(f"the label of {file} changed from {classes[old[file][0]]} to {classes[new[file][0]]}")
        if image != now_image:
            changes.append(f"the content of {file} changed")
        if other != now_other:
            changes.append(f"the {beside} of {file} changed")
    return sorted(changes)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


def _listing_checks(run: Run, measurements: list[Measurement]) -> list[Check]:
    """Numbers that stand in the run twice, or of a split that it does not measure: no prediction is behind them. And where there is no split to measure."""
    splits, keys = [split for split in run.data.splits if split != "train"], [m.key for m in measurements]
    there = f"the run measures {' and '.join(splits) or 'none'}"
    checks = [Check(f"number {m.key}", False, f"MISMATCH {m.key}: a number of {m.split}, {there}") for m in measurements if m.split not in splits]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    checks += [Check(f"number {key}", False, f"MISMATCH {key}: it stands in run.json {keys.count(key)} times") for key in twice]
    if not splits:
        checks.append(Check("numbers", True, "the run has neither val nor test images: there is no number to verify"))
    return checks


def _curve_checks(run: Run, measurements: list[Measurement], tolerance: float) -> list[Check]:
    """The curves end at the numbers: the val line of the epoch of the final weights holds what was measured with them. Earlier weights are gone."""
    told = {m.name: m.value for m in measurements if m.split == "val"}
    if "val" not in run.data.splits:
        return []
    try:
        epoch = reported_epoch(run)
        line = next((line for line in reversed(run.metrics()) if line["kind"] == "val" and line["epoch"] == epoch), None)
    except RunError as error:
        return [Check("curves", False, f"MISMATCH {error}")]
    if line is None:
        return [Check("curves", False, f"MISMATCH metrics.jsonl: no val line of epoch {epoch}, whose weights are the final ones")]
    shared = [name for name in told if name in line]
    wrong = [name for name in shared if not isinstance(line[name], (int, float)) or not abs(line[name] - told[name]) <= tolerance]
    if wrong:
        shown = "; ".join(f"val {name} is {line[name]} at epoch {epoch}, measured {told[name]:.6g}" for name in wrong)
        return [Check("curves", False, f"MISMATCH metrics.jsonl: {shown}")]
    return [Check("curves", True, f"ok metrics.jsonl: val {', '.join(shared)} of epoch {epoch} are those that were measured")] if shared else []


def _prediction_checks(run: Run, measurements: list[Measurement]) -> list[Check]:
    checks = []
    for split in (s for s in run.data.splits if s != "train"):
        wanted = [m for m in measurements if m.split == split]
        try:
            predictions = run.predictions(split)
        except RunError as error:
            checks.append(Check(f"predictions {split}", False, f"MISMATCH {error}"))
            continue
        checks += _row_checks(run, split, predictions)
        absent = _expected_names(predictions, run.data.classes) - {m.name for m in wanted}
        if absent:
            checks.append(Check(f"numbers {split}", False, f"MISMATCH run.json: {', '.join(sorted(absent))} of {split} is missing"))
        checks += _number_checks(predictions, wanted, run.data.classes, "from the predictions", EXACT)
        checks += _interval_checks(predictions, wanted, run.data.classes, run.recipe.seed)
    return checks


def _row_checks(run: Run, split: str, predictions: Predictions) -> list[Check]:
    """Each sample of the split has exactly one row, with its label."""
    recorded = [(file, label) for file, label, _ in run.samples(split)]
    found = list(zip(predictions.files, predictions.labels.tolist(), strict=True))
    if recorded == found:
        return [Check(f"rows {split}", True, f"ok {split} predictions: one row for each of {len(found):,} samples")]
    wrong = [new for old, new in zip(recorded, found, strict=False) if old != new]
    detail = f"first difference at {wrong[0][0]}" if wrong else f"{len(found)} rows for {len(recorded)} samples"
    return [Check(f"rows {split}", False, f"MISMATCH {split} predictions: rows are not those of samples/{split}.csv ({detail})")]


def _number_checks(predictions: Predictions, measurements: list[Measurement], classes: list[str], path: str, tolerance: float) -> list[Check]:
    numbers = recompute(predictions)
    checks = []
    for m in measurements:
        name, class_index = _parts(m.name, classes)
        if name not in numbers or class_index is None:
            checks.append(Check(f"number {m.key} {path}", False, f"MISMATCH {m.key} {path}: there is no such number to recompute"))
            continue
        value = float(np.atleast_1d(numbers[name])[class_index])
        ok = bool(abs(value - m.value) <= tolerance)
        checks.append(Check(f"number {m.key} {path}", ok, _line(ok, path, m, value)))
    return checks


def _parts(name: str, classes: list[str]) -> tuple[str, int | None]:
    """("recall", 3) of the fourth class's recall, ("accuracy", 0) of a number of all classes; None for a class that is not there."""
    if not name.startswith("recall["):
        return name, 0
    label = name.removeprefix("recall[").removesuffix("]")
    return "recall", classes.index(label) if label in classes else None


def _expected_names(predictions: Predictions, classes: list[str]) -> set[str]:
    """The numbers that a split with these predictions has."""
    names = {"accuracy", "macro_f1", "loss", "calibration_error", *(["top5_accuracy"] if len(classes) > 5 else [])}
    return names | {f"recall[{classes[c]}]" for c in np.unique(predictions.labels)}


def _interval_checks(predictions: Predictions, measurements: list[Measurement], classes: list[str], seed: int) -> list[Check]:
    """n, seed and intervals of the measurements (Wilson from SciPy, bootstrap anew); one check that names what differs."""
    counts = np.bincount(predictions.labels, minlength=predictions.logits.shape[1])
    wrong = []
    for m in measurements:
        name, class_index = _parts(m.name, classes)
        n = len(predictions.labels) if name != "recall" else int(counts[class_index]) if class_index is not None else 0
        if m.n != n or m.seed != seed:
            wrong.append(f"{m.key}: n {m.n}, seed {m.seed} reported; n {n}, seed {seed} recomputed")
        exact = _interval(m, n, predictions)
        if (exact is None) != (m.interval is None):
            wrong.append(f"{m.key}: {'an interval where none belongs' if exact is None else 'no interval'}")
        elif exact is not None and m.interval is not None and max(abs(exact[0] - m.interval[0]), abs(exact[1] - m.interval[1])) > EXACT:
            wrong.append(f"{m.key}: interval {_between(m.interval)} reported, {_between(exact)} recomputed")
    split = measurements[0].split if measurements else "these"
    if wrong:
        return [Check(f"intervals {split}", False, "MISMATCH " + "; ".join(wrong))]
    return [Check(f"intervals {split}", True, f"ok {split} numbers: n, seed and intervals recomputed")]


def _interval(m: Measurement, n: int, predictions: Predictions) -> tuple[float, float] | None:
    """The 95 % interval that belongs to a number; losses and calibration errors have none."""
    if m.name in ("loss", "calibration_error") or n == 0:
        return None
    if m.name == "macro_f1":
        predicted, C = predictions.logits.argmax(axis=1), predictions.logits.shape[1]

        def macro_f1(rows: np.ndarray) -> float:
            matrix = np.zeros((C, C))
            np.add.at(matrix, (predictions.labels[rows], predicted[rows]), 1)
            both = matrix.sum(axis=0) + matrix.sum(axis=1)
            return float((2 * matrix.diagonal()[both > 0] / both[both > 0]).mean())

        found = bootstrap(macro_f1, n)
        return found.low, found.high
    exact = scipy.stats.binomtest(round(m.value * n), n).proportion_ci(0.95, method="wilson")
    return float(exact.low), float(exact.high)


def _between(interval: tuple[float, float]) -> str:
    return f"{rounded(interval[0])} to {rounded(interval[1])}"


def _line(ok: bool, path: str, m: Measurement, value: float) -> str:
    verdict = "ok" if ok else "MISMATCH"
    return f"{verdict} {m.key} {path}: reported {rounded(m.value, m.unit)}, recomputed {rounded(value, m.unit)}"


def recompute(predictions: Predictions) -> dict[str, float | np.ndarray]:
    """Every number of a classification run from its logits, by scikit-learn and SciPy in float64."""
    labels, logits = predictions.labels, predictions.logits.astype(np.float64)
    C = logits.shape[1]
    log_p = log_softmax(logits, axis=1)
    predicted = logits.argmax(axis=1)
    numbers: dict[str, float | np.ndarray] = {
        "accuracy": float(sklearn.metrics.accuracy_score(labels, predicted)),
        "macro_f1": float(sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "loss": float(-log_p[np.arange(len(labels)), labels].mean()),
        "calibration_error": _calibration_error(np.exp(log_p).max(axis=1), predicted == labels),
        "recall": sklearn.metrics.recall_score(labels, predicted, labels=np.arange(C), average=None, zero_division=0.0),
    }
    if C > 5:
        ahead = (logits > _own(logits, labels)) | ((logits == _own(logits, labels)) & (np.arange(C) < labels[:, None]))
        numbers["top5_accuracy"] = float((ahead.sum(axis=1) < 5).mean())
    return numbers


def _own(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, 1) logit of each sample's own class."""
    return np.take_along_axis(logits, labels[:, None], axis=1)


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """sum over bins of |B| / n |acc(B) - conf(B)| with bins (k/15, (k+1)/15] (Guo et al. 2017, eq. 3)."""
    confidence = np.round(confidence, 12)  # as it is reported: 1/3 stays on one side of its edge
    bins = np.digitize(confidence, [k / CALIBRATION_BINS for k in range(1, CALIBRATION_BINS)], right=True)
    gaps = [abs(correct[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).sum() for b in np.unique(bins)]
    return float(sum(gaps) / len(confidence))


@torch.inference_mode()
def _recompute(run: Run, module: nn.Module, split: Split, runtime: Runtime, progress: Callable[[str, int, int], None] | None) -> Predictions:
    """Logits from the images themselves: decoded now, cropped and normalised by torchvision."""
    recipe, data = run.recipe, run.data
    d = recipe.data
    prepare = v2.Compose([v2.CenterCrop(list(d.size)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
    batch_size = run.record.evaluation_batch_size
    rows = []
    for begin in range(0, len(split), batch_size):
        chosen = range(begin, min(begin + batch_size, len(split)))
        arrays = [resize(split.open(i), d.size, d.fit, d.resize_size, d.interpolation) for i in chosen]
        batch = torch.stack([prepare(torch.from_numpy(np.array(a)).permute(2, 0, 1)) for a in arrays])
        with runtime.autocast():
            logits = module(batch.to(runtime.device).contiguous(memory_format=runtime.memory_format))
        rows.append(logits.float().cpu())
        if progress is not None:
            progress(f"verifying {split.name}", chosen[-1] + 1, len(split))
    return Predictions(list(split.names), split.labels, torch.cat(rows).numpy())


# ── the promise ───────────────────────────────────────────────────────────────────────────────────────────────


def _same_bits(run: Run, split: str, recomputed: Predictions) -> float | None:
    """Largest absolute difference of the logits to the saved ones; None when the saved ones cannot be compared."""
    try:
        saved = run.predictions(split).logits
    except RunError:
        return None
    if saved.shape != recomputed.logits.shape:
        return None
    return float(np.abs(saved.astype(np.float64) - recomputed.logits).max(initial=0.0))


def _promise(run: Run, runtime: Runtime, differences: list[float]) -> str:
    if differences and max(differences) == 0.0:
        return BIT_EQUAL
    now, then = describe(runtime), run.environment
    return SAME_DEVICE if all(now[key] == then.get(key) for key in DECIDES_BITS) else STATISTICAL


def _promise_check(promise: str, found: list[float | None], recipe: Recipe) -> Check:
    largest = max((d for d in found if d is not None), default=float("nan"))
    what, one = ("features and projections", "feature or projection") if recipe.task == "pretraining" else ("logits", "logit")
    if recipe.captioned:
        what = "captions and log probabilities"
    shared = recipe.masked or recipe.captioned  # told as a share of the images
    other = f"{largest:.1%} of the images have other {what}" if shared else f"largest difference of a {one} {largest:.2g}"
    detail = f"all {what} are the same bits" if promise == BIT_EQUAL else other
    return Check("promise", True, f"promise: {promise} ({detail})")
