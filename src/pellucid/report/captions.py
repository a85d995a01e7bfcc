"""What a report says about a captioning: numbers beside captions that need no network, best and worst captions, sameness, where the decoder looked.

NumPy and Pillow only; matplotlib lends its colours and is loaded for runs whose words were drawn. Numbers and their intervals are those that the run states;
which captions are best and worst is measured again from the saved captions. Pictures share a budget of bytes, and what did not fit is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.caption_readings import (
    BASELINES,
    NAMES,
    after,
    extremes,
    found_captions,
    layer_name,
    on_patches,
    own_scores,
    patches_note,
    word_maps,
    words_before,
)
from pellucid.caption_scores import cider_d, never_produced
from pellucid.errors import RunError
from pellucid.findings import IMAGES
from pellucid.recipe import Recipe
from pellucid.report import pictures
from pellucid.run import DataRecord, Measurement, Run, rounded
from pellucid.schema.captioning import GenerationSection
from pellucid.views.words import LayerRow, WordRow, baseline_names, how, kept_photo, layer_rows, place, scored_layers, sentences, word_rows
from pellucid.word_findings import WORDS, CaptionFinding, FoundWord, WordsFindings, load_words

MOST_SHOWN = 8  # pictures with the best, and with the worst captions
MOST_COMMON, MOST_NEVER = 10, 30  # captions that were produced most often, words that never were
MAX_REFERENCES = 5  # of a picture
MAX_STRIPS = 12
MAX_STRIP_BYTES = 1_000_000  # of the strips of words; what moves has its own room
TILE_SIDE = 160  # pixels of the long side of a picture under a word
SAME = 0.1  # distinct captions over all, below which pictures share their captions
LEAST = 10  # pictures from which sharing says something


@dataclass(frozen=True)
class NumberRow:
    """A measurement of the captions and of each baseline, None where it was not measured."""

    name: str
    found: Measurement
    baselines: list[Measurement | None]


@dataclass(frozen=True)
class Described:
    """A picture with the caption that was found and its own; score: its part of CIDEr-D. uri: its thumbnail, None for the reason that `missing` says."""

    file: str
    caption: str
    references: list[str]
    score: Measurement
    uri: str | None
    missing: str


@dataclass(frozen=True)
class CaptionReading:
    """Everything a report shows of one split's captions. terms: (term, text) of how they were found; shared: how many differ, and whether that is too few."""

    split: str
    n: int
    rows: list[NumberRow]
    baselines: list[str]
    sentences: list[str]
    terms: list[tuple[str, str]]
    shared: str
    alert: str
    common: list[tuple[str, int]]
    never: list[tuple[str, int]]
    best: list[Described]
    worst: list[Described]

    @property
    def bytes(self) -> int:
        """Of the pictures in it, as text."""
        return sum(len(picture.uri or "") for picture in (*self.best, *self.worst))


@dataclass(frozen=True)
class OwnNumber:
    """A measure of one word's map, and that of the centre prior by the same thing, as text."""

    measure: str
    value: str
    centre: str


@dataclass(frozen=True)
class WordCell:
    """A word of a caption with its map over the picture as a data URI. before: the word before it, "" at the start; share: how much of its attention it holds.

    share is "" where that is all. alt says the word, its query and where the map is highest.
    """

    word: FoundWord
    before: str
    share: str
    uri: str
    alt: str
    scores: list[OwnNumber]


@dataclass(frozen=True)
class WordStrip:
    """A picture with its words. photo: a data URI, None for the reason that `missing` says.

    scale: what the brightest colour is; agreement: the largest difference of a map from one pass over the whole caption; patches: how much of the
    attention the maps hold, "" if all.
    """

    finding: CaptionFinding
    photo: str | None
    missing: str
    cells: list[WordCell]
    scale: str
    agreement: str
    patches: str

    @property
    def bytes(self) -> int:
        """Of the pictures in it, as text."""
        return len(self.photo or "") + sum(len(cell.uri) for cell in self.cells)


@dataclass(frozen=True)
class WordReading:
    """Everything a report shows of where a captioner looked. how: what a map is and is not; sentences: what the scores allow to say."""

    findings: WordsFindings
    how: str
    baselines: list[str]
    rows: list[WordRow]
    layers: list[str]
    by_layer: list[LayerRow]
    sentences: list[str]
    strips: list[WordStrip]


def read_captions(run: Run, data: DataRecord, recipe: Recipe, measurements: Sequence[Measurement], *, split: str) -> CaptionReading | None:
    """The captions of a split; None where it has no picture. RunError where the files of the run contradict each other."""
    found, own = found_captions(run, split), run.captions(split)
    if set(found) != set(own):
        odd = sorted(set(found) ^ set(own))[0]
        raise RunError(f"{run.predictions_file(split).with_suffix('.csv')}: {odd} has no caption or no captions of its own; the run was changed")
    if not found:
        return None
    files, captions, references = list(found), list(found.values()), [own[file] for file in found]
    shared, alert = sharing(captions, references)
    rows = _rows({m.name: m for m in measurements if m.split == split})
    best, worst = _described(run, split, recipe.seed, files, captions, references)
    return CaptionReading(
        split,
        len(files),
        rows,
        list(BASELINES.values()),
        [beside for row in rows if (beside := beats(row))],
        _terms(recipe, data),
        shared,
        alert,
        [(caption, count) for caption, count in Counter(captions).most_common(MOST_COMMON) if count > 1],
        never_produced(captions, references, MOST_NEVER),
        best,
        worst,
    )


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _rows(measured: Mapping[str, Measurement]) -> list[NumberRow]:
    """The measurements by name, in the order of NAMES."""
    return [
        NumberRow(words, measured[name], [measured.get(f"{name}[{baseline}]") for baseline in BASELINES]) for name, words in NAMES.items() if name in measured
    ]


def beats(row: NumberRow) -> str:
    """A sentence: whether a number lies above those of the baselines beyond their intervals; "" where none was measured."""
    there = [(f"the {words}", m) for words, m in zip(BASELINES.values(), row.baselines, strict=True) if m is not None]
    if not there:
        return ""
    sides: dict[str, list[str]] = {"above": [], "below": [], "not to be told from": []}
    for words, other in there:
        sides[_side(row.found, other)].append(f"{words} ({other})")
    name = row.name if row.name[:2].isupper() or row.name.startswith("CIDEr") else row.name[:1].upper() + row.name[1:]
    parts = [f"{side} that of {' and '.join(names)}" for side, names in sides.items() if names]
    if len(sides["above"]) == len(there):
        return f"{name}, {row.found}, is {parts[0]}, beyond their intervals."
    return f"{name}, {row.found}, is not shown to be above every baseline: it is {', '.join(parts)}."


def _side(one: Measurement, other: Measurement) -> str:
    """On which side of another number one lies, beyond the intervals of both; a number without an interval is one point."""
    (low, high), (other_low, other_high) = (m.interval or (m.value, m.value) for m in (one, other))
    return "above" if low > other_high else "below" if high < other_low else "not to be told from"


def sharing(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[str, str]:
    """(how many captions differ, a warning where nearly all pictures got the same ones, else "").

    That many pictures share a caption is a fault only where their own captions differ more.
    """
    n, counts = len(captions), Counter(captions)
    own = len({texts[0] for texts in references})
    said = f"{len(counts):,} distinct captions for {n:,} pictures ({rounded(len(counts) / n)}); the first own captions of these pictures are {own:,}."
    (commonest, count), *_ = counts.most_common(1)
    if n >= LEAST and len(counts) == 1 < own:
        return said, f"Every one of the {n:,} pictures got the same caption: “{_short(commonest)}”. The model does not look at the picture."
    if n >= LEAST and len(counts) < SAME * n and 2 * len(counts) < own:
        alert = f"Nearly the same caption for every picture: {len(counts):,} captions for {n:,} pictures, “{_short(commonest)}” for {count:,} of them."
        return said, f"{alert} The model hardly looks at the picture."
    return said, ""


def _terms(recipe: Recipe, data: DataRecord) -> list[tuple[str, str]]:
    """(term, text) of what a reader must know of how the captions were found and cut into tokens."""
    assert recipe.generation is not None
    assert recipe.text is not None
    terms = [("How a caption was found", searched(recipe.generation, recipe.text.max_length))]
    if data.vocabulary is not None:
        v = data.vocabulary
        terms.append(("Tokens", f"{v.how}; a caption has at most {v.max_length:,} tokens, its end among them."))
    return terms


def searched(generation: GenerationSection, max_length: int) -> str:
    """The settings of a search in words."""
    g = generation
    if g.num_beams == 1:
        said = "Greedily: the likeliest token each time"
    else:
        longer = (
            "" if g.length_penalty == 0 else f", {'above' if g.length_penalty > 0 else 'below'} 0 favours {'longer' if g.length_penalty > 0 else 'shorter'}"
        )
        said = f"By beam search with {g.num_beams} beams, length penalty {g.length_penalty:g} (log probability over length to this power{longer})"
    said += f"; no run of {g.no_repeat_ngram_size} tokens twice" if g.no_repeat_ngram_size else ""
    said += f"; at least {g.min_length} tokens" if g.min_length else ""
    return f"{said}; at most {max_length} tokens, the end among them. No own caption of the picture was seen."


def _described(
    run: Run, split: str, seed: int, files: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[Described], list[Described]]:
    """(the pictures with the best captions, those with the worst) by their part of CIDEr-D."""
    scores = np.asarray(cider_d(captions, references), np.float64)
    kept = {int(path.stem) for path in (run.thumbnails / split).glob("*.webp") if path.stem.isdecimal()}
    worst, best = extremes(scores, MOST_SHOWN, kept)

    def of(row: int) -> Described:
        path = run.thumbnails / split / f"{row:06d}.webp"
        uri = pictures.thumbnail(path) if path.is_file() else None
        score = Measurement("cider", float(scores[row]), "score", split, 1, seed, "CIDEr-D of the picture, with the document frequencies of the split")
        missing = "picture cannot be read" if path.is_file() else "no picture was kept"
        return Described(files[row], captions[row], list(references[row][:MAX_REFERENCES]), score, uri, missing)

    return [of(row) for row in best], [of(row) for row in worst]


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_words(run: Run, *, room: int) -> WordReading | None:
    """Where the captioner looked; None where the run kept nothing. room: bytes of text that its pictures may take; the first is shown in any case."""
    if not (run.inside / WORDS).is_file():
        return None
    findings = load_words(run.inside)
    room = min(room, MAX_STRIP_BYTES)
    strips: list[WordStrip] = []
    for i, (finding, maps) in enumerate(zip(findings.images[:MAX_STRIPS], word_maps(run.inside, findings), strict=False)):
        strip = _strip(run.inside / IMAGES / f"{i}.webp", finding, maps)
        room -= strip.bytes
        if room < 0 and strips:
            break
        strips.append(strip)
    names = [layer_name(findings, layer) for layer in scored_layers(findings)]
    return WordReading(
        findings, how(findings, below=True), baseline_names(findings), word_rows(findings), names, layer_rows(findings), sentences(findings), strips
    )


def _strip(path: Path, finding: CaptionFinding, maps: NDArray[np.float64]) -> WordStrip:
    from pellucid.figures.overlays import reduced
    from pellucid.figures.words import word_overlays

    photo, missing = kept_photo(path, finding)
    if photo is None:
        return WordStrip(finding, None, missing, [], "", "", "")
    small, _ = reduced(photo, None, TILE_SIDE)
    cells = []
    for word, before, values, tile in zip(finding.words, words_before(finding), maps, word_overlays(small, finding, maps), strict=True):
        own = [OwnNumber(measure, rounded(value), rounded(centre)) for measure, value, centre in own_scores(word)]
        spoken = f"“{word.text}”, {after(before)}: the map is highest {place(values)} of what the model saw."
        cells.append(WordCell(word, before, on_patches(word), _tile(tile), spoken, own))
    most, (gh, gw) = float(maps.max(initial=0.0)), finding.grid
    scale = f"The brightest colour is {rounded(most)} of a word's attention on one of {gh} x {gw} patches; even attention is {rounded(1 / (gh * gw))} on each."
    scale += " Colours grow with the square root."
    return WordStrip(finding, _tile(small), "", cells, scale, rounded(finding.agreement, "rate"), patches_note(finding))


def _tile(image: NDArray[np.uint8]) -> str:
    return pictures.data_uri(PIL.Image.fromarray(image), "WEBP", quality=78, method=4)


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
