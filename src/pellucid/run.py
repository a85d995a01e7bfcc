"""The run folder: what training leaves, as typed records. The only code that knows its paths; needs no torch.

recipe.yaml        as the user wrote it            metrics.jsonl        one line an epoch and evaluation
resolved.yaml      every value                     predictions/         <split>.npz and .csv, a row a sample; <split>/: masks
environment.json   machine and versions            checkpoints/         final.safetensors; step-<n>/ of an unfinished run
data.json          classes, n, hashes, problems    figures/             PNG, SVG, PDF
samples/           <split>.csv: file, label, hash  thumbnails/          <split>/<row>.webp, pictures of mistakes
run.json           status, measurements, hashes    report.html          one file, offline
snapshots/         probe.npz and .webp, epoch-<n>.npz   inside/         what looking inside found: findings, attention, neighbours (.json, .npz)
                                                   verify.json          result of the last verify
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import TypeAdapter

from pellucid import recipe as recipes
from pellucid.errors import RunError
from pellucid.files import replacing
from pellucid.palettes import MaskFormat
from pellucid.predictions import (
    CAPTION_ARRAYS,
    FEATURE_ARRAYS,
    MASK_ARRAYS,
    CaptionPredictions,
    FeaturePredictions,
    MaskPredictions,
    Predictions,
)
from pellucid.records import read_arrays, read_record, write_arrays, write_json
from pellucid.run_records import DataProblem, DataRecord, Measurement, RunRecord, SplitRecord, Vocabulary, rounded

__all__ = [
    "DONE", "FAILED", "FEW_THUMBNAILS", "INTERRUPTED", "MAX_NUMBER", "PROBE_SIDE", "RUNNING", "THUMBNAILS", "THUMBNAIL_SIDE", "DataProblem", "DataRecord",
    "Measurement", "Probe", "Run", "RunRecord", "Snapshot", "SplitRecord", "Vocabulary", "rounded", "seed_folders",
]  # fmt: skip

MAX_NUMBER = 1e300  # of a loss in metrics.jsonl: a chart of more would leave the range of floats; NaN and infinity are gaps in it
_MASK_OF_SNAPSHOT = re.compile(r"(predicted|confidence|confusion)/\d+")
_P = TypeVar("_P")
PROBE_SIDE = 32  # pixels of a tile of the probe's atlas
THUMBNAILS = {"classification": 96, "segmentation": 32}  # pictures of mistakes that are kept of a split, by task
FEW_THUMBNAILS = 16  # of the other tasks
THUMBNAIL_SIDE = 160  # pixels of the long side
RUNNING, DONE, INTERRUPTED, FAILED = "running", "done", "interrupted", "failed"


@dataclass(frozen=True)
class Probe:
    """The images whose features are kept at chosen epochs. rows: (p,) int64 of the split, ascending; labels: (p,) int64."""

    split: str
    rows: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Snapshot:
    """What was kept after an epoch (0: before training) and its step.

    features: (p, D) float16, or float32 where half precision was too small; a row for each image of the probe, None where it has none.
    maps: {method: (n, gh, gw) floats of at least 0}, an item for each picture that is looked at. masks: of segmentation `predicted/<i>` and `confidence/<i>`,
    (h, w) uint8, and `confusion/<i>`, (C + 1, C) int64, of picture i.
    """

    epoch: int
    step: int
    features: np.ndarray | None
    maps: dict[str, np.ndarray]
    masks: dict[str, np.ndarray] = field(default_factory=dict)


class Run:
    """A run folder, opened for reading; the writing methods belong to training."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise RunError(f"{self.path}: expected a run folder (one with run.json in it){_instead(self.path)}")

    @classmethod
    def create(cls, path: Path, *, record: RunRecord, recipe: recipes.Recipe, recipe_text: str) -> Self:
        """Make the folder of a new run."""
        for folder in ("samples", "predictions", "checkpoints", "figures"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        (path / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
        recipes.save(recipe, path / "resolved.yaml")
        write_json(path / "run.json", record)
        return cls(path)

    # ── paths ──
    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def final_weights(self) -> Path:
        """The weights that the measurements belong to."""
        return self.path / "checkpoints" / "final.safetensors"

    @property
    def backbone_weights(self) -> Path:
        """The backbone of a pre-training as a plain file, which other tasks start from."""
        return self.path / "checkpoints" / "backbone.safetensors"

    def best_weights(self, epoch: int) -> Path:
        """The weights of the best evaluation so far (train.keep: best), that of this epoch, counted from 1."""
        return self.path / "checkpoints" / f"best-{epoch}.safetensors"

    @property
    def has_data(self) -> bool:
        """Whether the run came far enough to say what its data is."""
        return (self.path / "data.json").is_file()

    @property
    def thumbnails(self) -> Path:
        """Pictures of mistakes for the report: <split>/<row>.webp."""
        return self.path / "thumbnails"

    @property
    def thumbnail_files(self) -> list[Path]:
        """Every file there is in `thumbnails`."""
        return sorted(path for path in self.thumbnails.rglob("*") if path.is_file())

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def verify_file(self) -> Path:
        """The result of the last `pellucid verify`."""
        return self.path / "verify.json"

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    def predictions_file(self, split: str) -> Path:
        return self.path / "predictions" / f"{split}.npz"

    @property
    def snapshots(self) -> Path:
        """What training kept at chosen epochs: probe.npz, probe.webp and epoch-<n>.npz."""
        return self.path / "snapshots"

    @property
    def probe_atlas(self) -> Path:
        """The pictures of the probe, tiles of PROBE_SIDE pixels in the order of its rows, as `atlas` writes them."""
        return self.snapshots / "probe.webp"

    @property
    def inside(self) -> Path:
        """What looking inside the model found."""
        return self.path / "inside"

    def snapshot_file(self, epoch: int) -> Path:
        return self.snapshots / f"epoch-{epoch:04d}.npz"

    @property
    def snapshot_epochs(self) -> list[int]:
        """Epochs with a snapshot, ascending, counted from 1; 0 is before training."""
        return sorted(int(file.stem.removeprefix("epoch-")) for file in self.snapshots.glob("epoch-*.npz") if file.stem.removeprefix("epoch-").isdecimal())

    @property
    def inside_files(self) -> list[Path]:
        """Snapshots and findings that are there."""
        wanted = [self.snapshots / "probe.npz", self.probe_atlas, *map(self.snapshot_file, self.snapshot_epochs)]
        wanted += [self.inside / "findings.json", self.inside / "arrays.npz"]
        wanted += [self.inside / name for name in ("attention.json", "attention.npz", "neighbours.json", "neighbours.npz", "neighbours.webp")]
        wanted += [self.inside / "masks.json", self.inside / "masks.npz", *sorted((self.inside / "masks").glob("*.webp"))]
        wanted += sorted((self.inside / "images").glob("*.webp"))
        return [path for path in wanted if path.is_file()]

    def hashed_files(self, splits: list[str]) -> list[Path]:
        """What says where the numbers come from, besides weights and predictions: settings, data, machine, curves."""
        names = ["recipe.yaml", "resolved.yaml", "environment.json", "data.json", "metrics.jsonl", *[f"samples/{split}.csv" for split in splits]]
        return [*(self.path / name for name in names), *([self.tokenizer_file] if self.data.vocabulary is not None else [])]

    # ── reading ──
    @property
    def record(self) -> RunRecord:
        return read_record(self._open("run.json"), _RUN_RECORD)

    @property
    def measurements(self) -> dict[str, Measurement]:
        """{split/name: Measurement}, the headline first."""
        return {m.key: m for m in self.record.measurements}

    @property
    def recipe(self) -> recipes.Recipe:
        return recipes.load(self.path / "resolved.yaml", most_bytes=20 * recipes.MAX_BYTES)  # with every default written out it is longer

    @property
    def environment(self) -> dict[str, Any]:
        return self._json("environment.json")

    @property
    def data(self) -> DataRecord:
        path = self._open("data.json")
        data = read_record(path, _DATA_RECORD)
        if len(data.mean) != 3 or len(data.std) != 3 or min(data.std) <= 0.0 or len(set(data.classes)) != len(data.classes):
            raise RunError(f"{path}: expected a mean and a positive std for R, G, B and classes of different names; the file was changed")
        for name, split in data.splits.items():
            if split.name != name or len(split.counts) != len(data.classes) or sum(split.counts) != split.n or min(split.counts, default=0) < 0:
                raise RunError(f"{path}: the counts of {name!r} do not fit its n or the classes; the file was changed")
            wanted = len(data.classes) + 1 if data.mask_format is not None else 0
            if len(split.pixels) != wanted or min(split.pixels, default=0) < 0:
                raise RunError(f"{path}: the pixels of {name!r} do not fit the classes; the file was changed")
        if data.mask_format is not None and len(data.mask_format.codes) != len(data.classes):
            raise RunError(f"{path}: expected a code of the masks for each class; the file was changed")
        return data

    def samples(self, split: str) -> list[tuple[str, int, str]]:
        """(file, label, content hash) of each sample of a split."""
        path = self._open(f"samples/{split}.csv")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                return [(str(row["file"]), int(row["label"]), str(row["hash"])) for row in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise RunError(f"{path}: expected a table of file, label and hash: {error!r}; the file was changed") from None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last line is left out."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        lines = file.read_bytes().splitlines()
        found: list[dict[str, Any]] = []
        for i, line in enumerate(lines):
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                if i != len(lines) - 1:
                    raise RunError(f"{file}:{i + 1}: expected a JSON object; the file was changed") from None
                break
            if fault := _metrics_fault(found[-1]):
                raise RunError(f"{file}:{i + 1}: {fault}; the file was changed")
        return found

    def predictions(self, split: str) -> Predictions:
        path = self._open(f"predictions/{split}.npz")
        try:
            return Predictions.of(*read_arrays(path, "predictions", "name", "label", "logits").values())
        except ValueError as error:
            raise RunError(f"{path}: {error}. The file was changed.") from None

    def mask_predictions(self, split: str) -> MaskPredictions:
        """What was predicted for the masks of a split, without the masks themselves, which are files of `masks_folder`."""
        return self._predicted(split, MASK_ARRAYS, MaskPredictions.of)

    def feature_predictions(self, split: str) -> FeaturePredictions:
        """Features and projections of a split, of a pre-training run."""
        return self._predicted(split, FEATURE_ARRAYS, FeaturePredictions.of)

    def caption_predictions(self, split: str) -> CaptionPredictions:
        """What a captioner said of a split."""
        return self._predicted(split, CAPTION_ARRAYS, CaptionPredictions.of)

    def captions(self, split: str) -> dict[str, tuple[str, ...]]:
        """{file: captions} of the samples of a measured split, as the data has them."""
        path = self._open(f"samples/{split}.captions.json")
        found = self._json(f"samples/{split}.captions.json")
        if not all(isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in found.values()):
            raise RunError(f"{path}: expected a list of captions for each file; the file was changed")
        return {file: tuple(texts) for file, texts in found.items()}

    @property
    def tokenizer_file(self) -> Path:
        """What cuts captions into tokens, in the format of the tokenizers library."""
        return self.path / "tokenizer.json"

    def _predicted(self, split: str, names: Iterable[str], of: Callable[[np.ndarray, Mapping[str, np.ndarray]], _P]) -> _P:
        """The named arrays of the predictions of a split as a table."""
        path = self._open(f"predictions/{split}.npz")
        arrays = read_arrays(path, "predictions", "name", *names)
        try:
            return of(arrays.pop("name"), arrays)
        except ValueError as error:
            raise RunError(f"{path}: {error}. The file was changed.") from None

    def masks_folder(self, split: str) -> Path:
        """The predicted masks of a split, each a PNG file in the format of the training masks, named as these."""
        return self.path / "predictions" / split

    def probe(self) -> Probe:
        """The images whose features are kept. RunError where the run keeps none, or the file was changed."""
        path = self._open("snapshots/probe.npz")
        split, rows, labels = read_arrays(path, "a probe", "split", "rows", "labels").values()
        kinds = (split.dtype.kind, str(rows.dtype), str(labels.dtype))
        if kinds != ("U", "int64", "int64") or split.shape or rows.ndim != 1 or rows.shape != labels.shape:
            got = ", ".join(f"{a.dtype} {a.shape}" for a in (split, rows, labels))
            raise RunError(f"{path}: expected a name, int64 (p,) and int64 (p,); got {got}. The file was changed.")
        if len(rows) and not (rows[0] >= 0 and (np.diff(rows) > 0).all() and labels.min() >= 0):
            raise RunError(f"{path}: expected ascending rows and labels, none below 0; the file was changed")
        return Probe(str(split), rows, labels)

    def snapshot(self, epoch: int) -> Snapshot:
        """What was kept after an epoch, 0: before training. RunError where there is nothing or the file was changed."""
        path = self._open(f"snapshots/{self.snapshot_file(epoch).name}")
        arrays = read_arrays(path, "a snapshot")
        step, features = arrays.pop("step", None), arrays.pop("features", None)
        masks = {name: arrays.pop(name) for name in list(arrays) if _MASK_OF_SNAPSHOT.fullmatch(name)}
        for name, mask in masks.items():
            if mask.ndim != 2 or mask.dtype != (np.int64 if name.startswith("confusion") else np.uint8) or mask.min(initial=0) < 0:
                raise RunError(f"{path}: {name}: expected (h, w) uint8, or pixels (C + 1, C) int64; got {mask.dtype} {mask.shape}. The file was changed.")
        odd = [name for name in arrays if not name.removeprefix("maps/") or not name.startswith("maps/")]
        if odd or step is None or step.dtype != np.int64 or step.shape or step < 0:
            raise RunError(
                f"{path}: expected step (a whole number), features and maps/<method>; got {', '.join([*odd, f'step {step}'])}. The file was changed."
            )
        probe = len(self.probe().rows)
        if (features is None) != (probe == 0) or (features is not None and not _is_table(features, 2, probe)):
            got = "none" if features is None else f"{features.dtype} {features.shape}"
            raise RunError(f"{path}: expected finite features ({probe}, D) for the {probe} images of the probe; got {got}. The file was changed.")
        for name, maps in arrays.items():
            if not _is_table(maps, 3, len(maps) if maps.ndim else 0) or maps.min(initial=0.0) < 0:
                raise RunError(f"{path}: {name}: expected finite maps (n, gh, gw) of at least 0; got {maps.dtype} {maps.shape}. The file was changed.")
        return Snapshot(epoch, int(step), features, {name.removeprefix("maps/"): maps for name, maps in arrays.items()}, masks)

    @property
    def prediction_splits(self) -> list[str]:
        """Splits with saved predictions, val before test."""
        names = [file.stem for file in (self.path / "predictions").glob("*.npz")]
        return sorted(names, key=lambda name: (name != "val", name))

    # ── writing (training only) ──
    def write_record(self, record: RunRecord) -> None:
        write_json(self.path / "run.json", record)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_json(self.path / "environment.json", dict(environment))

    def write_data(self, data: DataRecord, samples: Mapping[str, Iterable[tuple[str, int, str]]]) -> None:
        write_json(self.path / "data.json", data)
        for split, rows in samples.items():
            with replacing(self.path / "samples" / f"{split}.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["file", "label", "hash"])
                writer.writerows(rows)

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def truncate_metrics(self, step: int, *, epoch_ended: bool) -> None:
        """Drop what a run resumed at `step` writes again: the lines after it, and those of an epoch that had not ended."""
        kept = [line for line in self.metrics() if line["step"] < step or (line["step"] == step and (epoch_ended or line["kind"] == "lr"))]
        with replacing(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write_predictions(self, split: str, predictions: Predictions, classes: list[str]) -> list[Path]:
        """The arrays as .npz and a table for readers as .csv; returns both files."""
        arrays = self.predictions_file(split)
        write_arrays(arrays, {"name": np.array(predictions.files, dtype=np.str_), "label": predictions.labels, "logits": predictions.logits})
        table = arrays.with_suffix(".csv")
        probabilities = predictions.probabilities()
        with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
            writer = csv.writer(text)
            writer.writerow(["file", "label", "prediction", "confidence"])
            for name, label, row in zip(predictions.files, predictions.labels, probabilities, strict=True):
                writer.writerow([name, classes[label], classes[int(row.argmax())], f"{row.max():.6f}"])
        return [arrays, table]

    def write_feature_predictions(self, split: str, predictions: FeaturePredictions) -> list[Path]:
        """The arrays as .npz; returns the file."""
        arrays = self.predictions_file(split)
        named = {"name": np.array(predictions.files, dtype=np.str_)}
        write_arrays(arrays, named | {name: getattr(predictions, name) for name in FEATURE_ARRAYS})
        return [arrays]

    def write_captions(self, split: str, captions: Mapping[str, Iterable[str]]) -> Path:
        """The captions of a measured split, by file; returns the file."""
        path = self.path / "samples" / f"{split}.captions.json"
        write_json(path, {file: list(texts) for file, texts in captions.items()})
        return path

    def write_caption_predictions(self, split: str, predictions: CaptionPredictions, captions: Iterable[str]) -> list[Path]:
        """The arrays as .npz and a table for readers, file and caption, as .csv; returns both files."""
        arrays = self.predictions_file(split)
        named = {"name": np.array(predictions.files, dtype=np.str_)}
        write_arrays(arrays, named | {name: getattr(predictions, name) for name in CAPTION_ARRAYS})
        table = arrays.with_suffix(".csv")
        with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
            writer = csv.writer(text)
            writer.writerow(["file", "caption"])
            writer.writerows(zip(predictions.files, captions, strict=True))
        return [arrays, table]

    def write_mask_predictions(self, split: str, predictions: MaskPredictions, classes: list[str], mask_format: MaskFormat) -> list[Path]:
        """The arrays as .npz, a table for readers as .csv and the masks as PNG files; returns all files."""
        arrays = self.predictions_file(split)
        named = {"name": np.array(predictions.files, dtype=np.str_)}
        # Compressed: of many classes most pairs are never confused.
        write_arrays(arrays, named | {name: getattr(predictions, name) for name in MASK_ARRAYS}, compressed=True)
        table, files = arrays.with_suffix(".csv"), []
        names = [mask_format.file_of(name) for name in predictions.files]
        with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
            writer = csv.writer(text)
            writer.writerow(["file", "mask", "valid_pixels", "right_pixels", *[f"predicted[{name}]" for name in classes]])
            for file, name, confusion in zip(predictions.files, names, predictions.confusion, strict=True):
                writer.writerow([file, name, confusion[:-1].sum(), np.trace(confusion[:-1]), *confusion.sum(axis=0)])
        for name, data in zip(names, predictions.masks, strict=True):
            path = self.masks_folder(split) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(data)
            files.append(path)
        return [arrays, table, *files]

    def write_probe(self, probe: Probe) -> None:
        self.snapshots.mkdir(exist_ok=True)
        write_arrays(self.snapshots / "probe.npz", {"split": np.array(probe.split), "rows": probe.rows, "labels": probe.labels})

    def write_snapshot(self, epoch: int, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """The arrays of an epoch: `features`, `maps/<method>` and those of masks, as `snapshot` reads them."""
        write_arrays(self.snapshot_file(epoch), {"step": np.array(step, np.int64), **arrays}, compressed=any(map(_MASK_OF_SNAPSHOT.fullmatch, arrays)))

    # ── use ──
    def predict(self, images: Any) -> list[Any]:
        """`Prediction(file, label, confidence, probabilities)` for each image: paths, folders or PIL images. Of masks `MaskPrediction`, of captions
        `CaptionPrediction(file, caption, tokens, score)`."""
        from pellucid.tasks import predict  # needs torch

        return predict(self, images)

    def report(self) -> Path:
        """Write report.html and return its path."""
        from pellucid.report import write_report

        return write_report(self)

    def show(self) -> Any:
        """The report in a notebook, or in the browser from a script."""
        import html

        page = self.report()
        try:
            from IPython.core.getipython import get_ipython  # type: ignore[import-not-found]
            from IPython.display import HTML, display  # type: ignore[import-not-found]
        except ImportError:
            inside_notebook = False
        else:
            inside_notebook = get_ipython() is not None
        if inside_notebook:
            source = html.escape(page.read_text(encoding="utf-8"), quote=True)
            display(HTML(f'<iframe srcdoc="{source}" style="width:100%;height:720px;border:0"></iframe>'))
        else:
            import webbrowser

            webbrowser.open(page.resolve().as_uri())
        return page

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _open(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise RunError(f"{path}: the file is missing; the run is not whole or was changed")
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self._open(name)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: not readable as JSON: {error}") from None
        if not isinstance(value, dict):
            raise RunError(f"{path}: expected a JSON object")
        return value


_RUN_RECORD, _DATA_RECORD = TypeAdapter(RunRecord), TypeAdapter(DataRecord)


def _metrics_fault(line: Any) -> str:
    """What keeps a line of metrics.jsonl from being read as a point of a curve; "" when nothing does."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return "expected a JSON object with kind"
    for key in ("step", "epoch"):
        needed = key == "step" or line["kind"] in ("train", "val")
        if (needed or key in line) and not (type(line.get(key)) is int and 0 <= line[key] < 2**53):
            return f"expected a whole number as {key}"
    odd = [key for key in ("loss", "accuracy", "lr") if type(line.get(key)) not in (int, float, type(None)) or MAX_NUMBER < abs(line.get(key) or 0) < math.inf]
    return f"expected a number as {odd[0]}" if odd else ""


def _is_table(array: np.ndarray, ndim: int, length: int) -> bool:
    """Whether an array holds finite floats in `ndim` dimensions, the first of `length`."""
    return array.ndim == ndim and len(array) == length and array.dtype in (np.float16, np.float32) and bool(np.isfinite(array).all())


def _instead(path: Path) -> str:
    """The end of a sentence: what is there in place of a run, and the remedy."""
    if path.is_file():
        return ", got a file. `pellucid train RECIPE` makes one."
    try:
        runs = [str(below) for below in sorted(path.iterdir()) if (below / "run.json").is_file()]
    except OSError:
        runs = []
    if not runs:
        return ". `pellucid train RECIPE` makes one."
    named = ", ".join(runs[:3]) + (f" and {len(runs) - 3:,} more" if len(runs) > 3 else "")
    return f". The runs in it are {named}: name one of them, or some where the command takes several."


def seed_folders(folder: Path) -> list[str]:
    """Names of the run folders of `train --seeds` in `folder`, begun or not."""
    file = folder / "seeds.json"
    try:
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: expected the runs of `pellucid train --seeds`: {error}") from None
