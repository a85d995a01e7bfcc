"""What the plain files of a captioning say: its curves, the captions that were found, its best and worst pictures, the maps of its words. Needs no torch.

Report and figures both read these, so that a curve, a caption or a map is the same wherever it is shown.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import RunError
from pellucid.findings import ImageFinding, fitted_view
from pellucid.readings import Chart, Curve, curve
from pellucid.records import read_arrays
from pellucid.run import Measurement, Run, rounded
from pellucid.word_findings import COLOR, NOUN, WORD_ARRAYS, CaptionFinding, FoundWord, WordsFindings

BASELINES = {"most_frequent": "most frequent caption", "nearest": "caption of the nearest training picture"}  # name of the measurement -> in words
NAMES = {  # of the measurements of a split: as readers know them
    "cider": "CIDEr-D",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR*",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match",
    "token_accuracy": "token accuracy",
    "distinct": "distinct over all",
    "length": "length",
    "loss": "loss",
}
KIND_NAMES = {NOUN: "nouns", COLOR: "colour words"}
CHOSEN = "chosen"  # the key of the scores of the maps that are drawn
CENTRE_NOTE = "Below a word in brackets: the centre prior, which looks at the middle of every picture, measured by the same thing."
SHOWN_SCORES = ("mass", "pointing")  # below a word; all measures stand in the figure of scores
WHOLE = 0.999  # from this share on a map holds all of its word's attention


def caption_charts(lines: Sequence[Mapping[str, Any]], measurements: Mapping[str, Measurement]) -> list[Chart]:
    """What the epochs of a captioning say, one chart a question; those without a point are left out. measurements: those of the run by `split/name`."""
    epochs = [int(line["epoch"]) for line in lines if line.get("kind") in ("train", "val")]
    span = (min(epochs), max(epochs)) if epochs else (0, 0)

    def read(value: str, *, train: str | None = None) -> list[Curve]:
        names = (("train", train, 0), ("val", value, 1))
        found = [curve(lines, kind=kind, value=name, against="epoch", name=kind, style=style) for kind, name, style in names if name is not None]
        return [c for c in found if c.points]

    def levels(value: str) -> list[Curve]:
        beside = {words: measurements.get(f"val/{value}[{name}]") for name, words in BASELINES.items()}
        return [Curve(words, span, (m.value, m.value), i) for i, (words, m) in enumerate(beside.items(), 2) if m is not None]

    charts = [
        Chart(
            "loss", "Loss", read("loss", train="loss"), "loss (nats)", "nats",
            "Of a token of the pictures' own captions, predicted from those before it.", [],
        ),
        Chart(
            "token_accuracy", "Token accuracy", read("token_accuracy", train="accuracy"), "token accuracy", "fraction",
            "How often the likeliest token is the right one, the right ones before it being given.", [],
        ),
        Chart(
            "cider", "CIDEr-D on val", read("cider"), "CIDEr-D", "score",
            "Of captions that the model found by itself; beside it captions that look at no picture, or at raw pixels alone.", levels("cider"),
        ),
        Chart("exact_match", "Exact match on val", read("exact_match"), "exact match", "fraction", "Captions found word for word.", levels("exact_match")),
    ]  # fmt: skip
    return [chart for chart in charts if chart.curves]


def found_captions(run: Run, split: str) -> dict[str, str]:
    """{file: caption} that a captioner found for the samples of a split, in their order. RunError where the table was changed."""
    path = run.predictions_file(split).with_suffix(".csv")
    if not path.is_file():
        raise RunError(f"{path}: the file is missing; the run is not whole or was changed")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(str(row["file"]), row["caption"]) for row in csv.DictReader(file)]
    except (ValueError, KeyError, csv.Error) as error:
        raise RunError(f"{path}: expected a table of file and caption: {error!r}; the file was changed") from None
    found = {file: caption for file, caption in rows if caption is not None}
    if len(found) != len(rows):
        raise RunError(f"{path}: expected a caption for each file, and each file once; the file was changed")
    return found


def extremes(scores: NDArray[np.float64], most: int, shown: Collection[int] = ()) -> tuple[list[int], list[int]]:
    """(rows of the lowest scores, lowest first, rows of the highest, highest first), at most `most` of each and no row in both.

    Of equal scores those in `shown`, which have a picture, then in order.
    """
    n = len(scores)
    hidden = np.array([row not in shown for row in range(n)], bool)
    count = min(most, n // 2)
    worst = np.lexsort((np.arange(n), hidden, scores))[:count].tolist()
    best = [row for row in np.lexsort((np.arange(n), hidden, -scores)).tolist() if row not in set(worst)][:count]
    return worst, best


def word_maps(folder: Path, findings: WordsFindings) -> list[NDArray[np.float64]]:
    """(W, gh, gw) of each picture of `findings.images`: the maps of its words. RunError where they do not fit the words or were changed."""
    path = folder / WORD_ARRAYS
    if not path.is_file():
        raise RunError(f"{path}: the file is missing; it stands beside the words that were found, which cannot be drawn without it")
    found = []
    for i, (finding, maps) in enumerate(zip(findings.images, read_arrays(path, "maps of words", *_keys(findings)).values(), strict=True)):
        shape = (len(finding.words), *finding.grid)
        if maps.shape != shape or maps.dtype.kind != "f" or not np.isfinite(maps).all() or maps.min(initial=0.0) < 0:
            raise RunError(f"{path}: maps/{i}: expected finite numbers of at least 0 of shape {shape}; got {maps.dtype} {maps.shape}. The file was changed.")
        found.append(maps.astype(np.float64))
    return found


def words_before(finding: CaptionFinding) -> list[str]:
    """For each word the whole word that stands before it in the caption, "" for the first, before which only the start stands."""
    return ["", *(word.text for word in finding.words[:-1])] if finding.words else []


def after(before: str) -> str:
    """What had been read before a word: `after “red”`, or `after the start`."""
    return f"after “{before}”" if before else "after the start"


def query_note(images: Iterable[CaptionFinding], *, where: str = "which stands below it") -> str:
    """A sentence: what the query of a word's map is, in these captions. where: how a reader finds the word before."""
    later = any(behind - first > 1 for image in images for first, behind in (word.tokens for word in image.words))
    said = f"Its query is the word before, {where}: the word itself was not known yet"
    return said + ("; of a word of several pieces the later ones were looked for with its first ones read." if later else ".")


def on_patches(word: FoundWord) -> str:
    """`on the patches 0.4132`: how much of a word's attention its map holds; "" where it is all of it."""
    return f"on the patches {rounded(word.share)}" if word.share < WHOLE else ""


def patches_note(finding: CaptionFinding) -> str:
    """A sentence: how much of the attention of a caption's words its maps hold; "" where it is all of it."""
    shares = [word.share for word in finding.words]
    if min(shares, default=1.0) >= WHOLE:
        return ""
    low, high = rounded(min(shares)), rounded(max(shares))
    much = low if low == high else f"{low} to {high}"
    return f"Of a word's attention {much} is on the patches; the rest is on tokens that have no place, a class token or words, and in no map."


def layer_name(findings: WordsFindings, layer: str) -> str:
    """A key of the scores in words: a recorded layer, counted from 1, or which layers the drawn maps are the mean of."""
    if layer == CHOSEN:
        count, of = len(findings.chosen), len(findings.layers)
        return "drawn maps" if count == of == 1 else f"drawn maps ({'mean of all' if count == of else f'{count} of'} {of} layers)"
    return f"layer {int(layer) + 1} of {len(findings.layers)}"


def _keys(findings: WordsFindings) -> list[str]:
    return [f"maps/{i}" for i in range(len(findings.images))]


def picture_view(finding: CaptionFinding, photo: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """The view of a finding in pixels of `photo`, which is the picture that was captioned or a smaller copy of it."""
    return fitted_view(ImageFinding(finding.file, finding.size, finding.view), photo)


def own_scores(word: FoundWord) -> list[tuple[str, float, float]]:
    """(measure, value, that of the centre prior by the same thing) of what stands below a word: its mass and pointing."""
    return [(name, word.scores[name], word.centre[name]) for name in SHOWN_SCORES if name in word.scores and name in word.centre]
