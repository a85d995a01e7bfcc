"""A run folder of a captioning without a training: captions, word maps, scores and pictures as a run leaves them, in milliseconds and without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from fabricate_inside import blob, measured, photo
from pellucid import recipe
from pellucid.findings import IMAGES, Score
from pellucid.predictions import CaptionPredictions
from pellucid.run import DONE, DataRecord, Measurement, Run, RunRecord, SplitRecord, Vocabulary
from pellucid.word_findings import COLOR, NOUN, WORD_ARRAYS, CaptionFinding, FoundWord, WordsFindings

RECIPE = """
task: captioning
data: {source: scenes, train: 60, val: 40, image_size: 64}
model: {name: pellucid/captioner, encoder: timm/mobilenetv1_100}
generation: {num_beams: 3, length_penalty: 0.8, no_repeat_ngram_size: 3}
train:
  batch_size: 20
  phases: [{epochs: 4, optimizer: {name: adamw, lr: 0.002}}]
"""
COLORS, SHAPES = ("red", "green", "blue"), ("ring", "star", "cross", "disc")
NUMBERS = {  # name: (value, unit, most frequent caption, caption of the nearest picture)
    "cider": (2.4, "score", 0.3, 0.9),
    "bleu_1": (0.9, "fraction", None, None),
    "bleu_2": (0.85, "fraction", None, None),
    "bleu_3": (0.8, "fraction", None, None),
    "bleu_4": (0.75, "fraction", 0.2, 0.3),
    "meteor": (0.6, "fraction", None, None),
    "rouge_l": (0.91, "fraction", None, None),
    "exact_match": (0.5, "fraction", 0.05, 0.1),
    "token_accuracy": (0.95, "fraction", None, None),
    "loss": (0.11, "nats", None, None),
    "length": (7.0, "words", None, None),
    "distinct": (0.6, "fraction", None, None),
}


def described(i: int, shift: int = 0) -> str:
    """A caption of two things, one of many; shift: of another picture."""
    j = i + shift
    return f"a {COLORS[j % 3]} {SHAPES[j % 4]} above a {COLORS[(j // 2) % 3]} {SHAPES[(j // 3) % 4]}"


def make_run(
    path: Path,
    *,
    found: Mapping[int, str] | None = None,
    references: Mapping[int, Sequence[str]] | None = None,
    n: int = 40,
    status: str = DONE,
    thumbnails: Sequence[int] = range(40),
    words: bool = True,
    numbers: Mapping[str, tuple[float, str, float | None, float | None]] = NUMBERS,
    files: str = "val/{i:05d}.png",
    intervals: float | None = 0.05,
) -> Run:
    """A run folder of a captioner on n pictures. Half of the captions are right; `found` and `references` replace those of some rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = RunRecord("0.1.0", status, "captioning", ["pellucid", "train", "r.yaml"], "2026-11-22T10:00:00+00:00")
    run = Run.create(path, record=record, recipe=recipe.loads(RECIPE), recipe_text=RECIPE)
    names = [files.format(i=i) for i in range(n)]
    vocabulary = Vocabulary(20, 1, 2, 0, 40, "words of 60 training captions")
    splits = {name: SplitRecord(name, count, "ab" * 16, [count]) for name, count in (("train", 60), ("val", n))}
    data = DataRecord("scenes", ["unlabelled"], splits, [], [], [0.5] * 3, [0.25] * 3, "model", vocabulary=vocabulary)
    run.write_data(data, {"val": [(name, 0, "cd" * 16) for name in names]})
    run.write_environment({"device": "cpu", "threads": 1})
    run.append_metrics(_lines())
    own = {name: list((references or {}).get(i, [described(i)])) for i, name in enumerate(names)}
    run.write_captions("val", own)
    if status == DONE:
        captions = [(found or {}).get(i, described(i, i % 2)) for i in range(n)]
        run.write_caption_predictions("val", _predictions(names), captions)
        record.measurements = [m for name, values in numbers.items() for m in _numbers(name, *values, n=n, interval=intervals)]
        folder = run.thumbnails / "val"
        folder.mkdir(parents=True)
        for row in thumbnails:
            PIL.Image.fromarray(photo(24, 32, seed=row % 5)).save(folder / f"{row:06d}.webp")
    record.epoch, record.step, record.total_steps = 4, 12, 12
    run.write_record(record)
    if words and status == DONE:
        make_words(run.inside)
    return run


def _lines() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epoch in range(1, 5):
        common = {"epoch": epoch, "step": 3 * epoch}
        lines.append({"kind": "train", **common, "loss": 3.0 - 0.6 * epoch, "accuracy": 0.2 * epoch, "lr": 0.002})
        lines.append({"kind": "val", **common, "loss": 3.1 - 0.6 * epoch, "cider": 0.6 * epoch, "exact_match": 0.12 * epoch, "token_accuracy": 0.19 * epoch})
    return lines


def _predictions(names: list[str]) -> CaptionPredictions:
    n = len(names)
    ones = np.ones(n, np.int64)
    return CaptionPredictions(names, np.full((n, 1), 2, np.int64), -np.ones(n), np.ones(n), 8 * ones, 7 * ones, np.zeros((n, 16), np.uint8))


def _numbers(name: str, value: float, unit: str, frequent: float | None, near: float | None, *, n: int, interval: float | None) -> list[Measurement]:
    found = [replace(measured(name, value, n=n, interval=interval), unit=unit)]
    for baseline, other in (("most_frequent", frequent), ("nearest", near)):
        if other is not None:
            found.append(replace(measured(f"{name}[{baseline}]", other, n=n, interval=interval), unit=unit))
    return found


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def caption_finding(i: int, size: tuple[int, int], text: str | None = None, *, grid: tuple[int, int] = (4, 4), scored: bool = True) -> CaptionFinding:
    """The i-th picture with a token a word; its view is the middle square. Nouns and colour words have scores."""
    caption = described(i) if text is None else text
    words, query = [], "start"
    for at, word in enumerate(caption.split()):
        kind = (NOUN if word in SHAPES else COLOR if word in COLORS else "") if scored else ""
        own = {"mass": 0.41 + 0.01 * at, "pointing": float(at % 2), "rank": 0.5} if kind else {}
        words.append(FoundWord(word, (at, at + 1), query, kind, 1.0, own, dict.fromkeys(own, 0.01 * at)))
        query = word
    side = float(min(size))
    view = ((size[0] - side) / 2, (size[1] - side) / 2, side, side)
    return CaptionFinding(f"val/{i:05d}.png", size, view, caption, [*range(3, 3 + len(words)), 2], words, grid, 2e-7, [described(i)])


def maps_of(finding: CaptionFinding) -> NDArray[np.float32]:
    """(W, gh, gw) float32: word w looks at a place that moves with w, each sums to 1."""
    count = max(1, len(finding.words))
    found = [blob(finding.grid, (at + 0.5) / count, 0.3 + 0.4 * (at % 2)) for at in range(len(finding.words))]
    return np.stack(found) if found else np.empty((0, *finding.grid), np.float32)


def word_scores(value: float = 0.6) -> dict[str, list[Score]]:
    """{kind: scores} with five measures; those of nouns beat every baseline, those of colour words miss the centre prior."""
    return {
        kind: [
            _score(kind, measure, max(0.02, value + shift + step))
            for step, measure in ((0.0, "pointing"), (-0.2, "mass"), (-0.1, "rank"), (-0.3, "iou"), (0.1, "auc"))
        ]
        for kind, shift in ((NOUN, 0.0), (COLOR, -0.35))
    }


def _score(kind: str, measure: str, value: float) -> Score:
    baselines = {"uniform": 0.11, "centre": 0.26, "shuffled": 0.15, "random model": 0.12}
    beside = {name: measured(f"{measure}[{name}]", number, interval=0.02) for name, number in baselines.items()}
    margins = {name: measured(f"{measure}[{kind} - {name}]", value - number, interval=0.03) for name, number in baselines.items()}
    return Score(kind, measure, measured(f"{measure}[{kind}]", value, interval=0.03), beside, True, margins)


def make_words(
    folder: Path,
    *,
    findings: Sequence[CaptionFinding] | None = None,
    photos: Sequence[NDArray[np.uint8]] | None = None,
    maps: Sequence[NDArray[np.float32]] | None = None,
    scored: bool = True,
) -> WordsFindings:
    """Write words.json, words.npz and images/ into `folder`; by default four drawn pictures of two sizes."""
    if findings is None:
        findings = [caption_finding(i, ((60, 80), (90, 50))[i % 2], scored=scored) for i in range(4)]
    (folder / IMAGES).mkdir(parents=True)
    arrays: dict[str, NDArray[np.float32]] = {}
    for i, finding in enumerate(findings):
        PIL.Image.fromarray(photo(*finding.size, seed=i) if photos is None else photos[i]).save(folder / IMAGES / f"{i}.webp", quality=85)
        arrays[f"maps/{i}"] = maps_of(finding) if maps is None else maps[i]
    layers = ["decoder.bert.encoder.layer.0.crossattention.self", "decoder.bert.encoder.layer.1.crossattention.self"]
    made = WordsFindings(
        "0.1.0", "pellucid/captioner", "final.safetensors", "the mean of 2 cross-attentions over all heads", layers, [0, 1], list(findings), "val", 300
    )
    if scored:
        made.scores = {"chosen": word_scores(), "0": word_scores(0.7), "1": word_scores(0.5)}
        made.notes = ["12 nouns that are not in the picture have no target."]
    np.savez(folder / WORD_ARRAYS, **arrays)  # type: ignore[arg-type]  # mypy takes a name for an option
    made.save(folder)
    return made
