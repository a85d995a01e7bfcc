"""Where a captioner looked for each word: a picture, its caption, a map for each word, and how far the maps of the set can be believed.

    how        what a map is and is not, in words; sentences: what the scores allow to say; tables: [{caption, heads, rows}] of scores beside their baselines
    sets       names of the map sets: the drawn maps first, then each layer where the folder keeps them
    pictures   [{file, caption, references, size (height, width), photo, missing, view, grid, words, maps, most, scales, notes}]
    words      [{text, after, share, place, scores: [[measure, value, that of the centre prior]]}], all texts

view: (top, left, height, width) of what the model saw, as fractions of the picture. maps: (sets, W, gh, gw) uint16, 65535 being `most[set]` of a word's
attention, the highest on one patch of any word of the picture: words compare, pictures do not. A cell of a table is a text or an `encoding.number`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.caption_readings import (
    CENTRE_NOTE,
    CHOSEN,
    KIND_NAMES,
    after,
    layer_name,
    on_patches,
    own_scores,
    patches_note,
    picture_view,
    query_note,
    word_maps,
    words_before,
)
from pellucid.errors import RunError, UsageError
from pellucid.findings import BETTER, IMAGES, WORSE, Score, hardest_baseline, verdict
from pellucid.records import array_names, read_arrays, read_picture
from pellucid.run import Measurement, Run, rounded
from pellucid.views import FULLER, Room, View, size
from pellucid.views.encoding import array, name, number, picture
from pellucid.word_findings import WORD_ARRAYS, WORDS, CaptionFinding, FoundWord, WordsFindings, load_words

PLANS = ((640, True), (400, True), (400, False), (280, False))  # (pixels of a photograph's long side, layers): the first that lets all pictures in
CENTRE_BESIDE = "Beside a word's numbers stand those of the centre prior, which looks at the middle of every picture, measured by the same thing."
MAX_REFERENCES = 5  # own captions of a picture


@dataclass(frozen=True)
class WordRow:
    """A measure of a kind of word on the drawn maps. `baselines` stand in the order of `baseline_names`; `kind` is better, worse or open."""

    of: str
    score: Score
    baselines: list[Measurement | None]
    verdict: str
    kind: str


@dataclass(frozen=True)
class LayerRow:
    """A measure of a kind of word on the maps of each layer, in the order of `scored_layers`, beside the centre prior."""

    of: str
    measure: str
    values: list[Measurement | None]
    centre: Measurement | None


def build(run: Run, room: Room) -> View | None:
    """Where the captioner of a run looked."""
    return of_folder(run.inside, room)


def of_folder(folder: Path, room: Room) -> View | None:
    """The words in a folder of findings; None where it has none. RunError where its files were changed."""
    if not (folder / WORDS).is_file():
        return None
    findings = load_words(folder)
    maps, layers = word_maps(folder, findings), _layer_maps(folder, findings)
    view: View = {
        "title": "Where it looked for each word",
        "how": how(findings),
        "sentences": sentences(findings),
        "tables": _tables(findings),
    }
    left = room.bytes - size(view) - 2000  # notes
    for side, layered in PLANS:
        layered = layered and layers is not None
        sets = [[drawn, *(layers[i] if layered and layers is not None else ())] for i, drawn in enumerate(maps)]
        pictures = _fitting(folder, findings, sets, side, left)
        if len(pictures) == len(findings.images):
            break
    names = [layer_name(findings, name) for name in (CHOSEN, *(map(str, range(len(findings.layers))) if layered else ()))]
    return {**view, "sets": names, "pictures": pictures, "notes": _notes(findings, len(pictures), layered, layers is not None) + findings.notes}


def _fitting(folder: Path, findings: WordsFindings, sets: Sequence[Sequence[NDArray[np.float64]]], side: int, room: int) -> list[View]:
    """The first pictures that fit into so many bytes of text, one at least."""
    found: list[View] = []
    for i, (finding, maps) in enumerate(zip(findings.images, sets, strict=True)):
        made = _picture(folder / IMAGES / f"{i}.webp", finding, maps, side)
        room -= size(made)
        if room < 0 and found:
            break
        found.append(made)
    return found


# ── what is said of all pictures ─────────────────────────────────────────────────────────────────────────────────


def how(findings: WordsFindings, *, below: bool = False) -> str:
    """What a map is, and what it is not. below: of tiles, under which stand the word before and the numbers, those of the centre prior in brackets."""
    measured = any(word.scores for image in findings.images for word in image.words)
    unknown = "" if findings.scores else " where the data says where things are, and here it does not"
    query = query_note(findings.images) if below else query_note(findings.images, where="which stands behind “after”")
    return (
        f"{findings.model}, {findings.weights}. A map is where the decoder looked in the step that gave the word ({findings.how}). "
        f"{query} A map is neither why the model chose the word nor where the thing is; how often it lies on that is measured{unknown}."
        + (f" {CENTRE_NOTE if below else CENTRE_BESIDE}" if measured else "")
    )


def sentences(findings: WordsFindings) -> list[str]:
    """What the scores of the drawn maps allow to say, one sentence a kind of word."""
    return [said for kind in findings.scores.get(CHOSEN, {}) if (said := finding_of(findings, kind))]


def finding_of(findings: WordsFindings, kind: str) -> str:
    """A sentence: whether the drawn maps of a kind of word lie on what the word names, and which layer does so most; "" without a score."""
    scores = {score.measure: score for score in findings.scores.get(CHOSEN, {}).get(kind, []) if score.baselines}
    judged = {name: verdict(scores[name])[1] for name in ("mass", "pointing") if name in scores}
    if not judged:
        return ""
    first = next(iter(scores.values())).value
    numbers = ", ".join(f"{name} {scores[name].value} ({_beside(scores[name])})" for name in judged)
    said = f"{KIND_NAMES.get(kind, kind).capitalize()} ({first.n:,} of {first.split}): {numbers}. "
    sides = set(judged.values())
    if sides == {BETTER}:
        said += "Their maps lie on the thing that the word names more than every baseline does."
    elif BETTER in sides:
        not_better = " and ".join(name for name, side in judged.items() if side != BETTER)
        said += f"By one measure their maps lie on the thing more than every baseline does, by {not_better} they do not: they say little of where the thing is."
    else:
        worse = "lie on the thing less than a baseline does" if sides == {WORSE} else "are not shown to lie on the thing more than the baselines do"
        said += f"Their maps {worse}: they do not say where the thing is."
    mass = {layer: score.value for layer in findings.scores if layer != CHOSEN for score in findings.scores[layer].get(kind, []) if score.measure == "mass"}
    if len(mass) > 1:
        top = max(mass, key=lambda layer: mass[layer].value)
        said += f" Of the layers, {layer_name(findings, top)} has the most mass on it ({mass[top]})."
    return said


def _beside(score: Score) -> str:
    hardest = hardest_baseline(score)
    named = [name for name in dict.fromkeys(["centre", hardest]) if name in score.baselines]
    return ", ".join(f"{'centre prior' if name == 'centre' else name} {score.baselines[name]}" for name in named)


def baseline_names(findings: WordsFindings) -> list[str]:
    """The baselines that a score of the drawn maps has, in order."""
    return list(dict.fromkeys(name for scores in findings.scores.get(CHOSEN, {}).values() for score in scores for name in score.baselines))


def word_rows(findings: WordsFindings) -> list[WordRow]:
    """The scores of the drawn maps beside their baselines."""
    names = baseline_names(findings)
    return [
        WordRow(KIND_NAMES.get(kind, kind), score, [score.baselines.get(name) for name in names], *verdict(score))
        for kind, scores in findings.scores.get(CHOSEN, {}).items()
        for score in scores
    ]


def scored_layers(findings: WordsFindings) -> list[str]:
    """The keys of the layers that have scores of their own."""
    return [layer for layer in findings.scores if layer != CHOSEN]


def layer_rows(findings: WordsFindings) -> list[LayerRow]:
    """Mass and pointing of each kind of word over the layers."""
    found, layers = [], scored_layers(findings)
    for kind in dict.fromkeys(kind for layer in layers for kind in findings.scores[layer]):
        for measure in ("mass", "pointing"):
            scores = [next((s for s in findings.scores[layer].get(kind, []) if s.measure == measure and s.baselines), None) for layer in layers]
            if any(scores):
                centre = next((score.baselines.get("centre") for score in scores if score is not None), None)
                found.append(LayerRow(KIND_NAMES.get(kind, kind), measure, [None if score is None else score.value for score in scores], centre))
    return found


def _tables(findings: WordsFindings) -> list[View]:
    tables = []
    if rows := word_rows(findings):
        caption = f"How far the maps can be believed: the drawn maps of words whose thing has a place, over {rounded(findings.scored, 'count')} pictures of "
        names = baseline_names(findings)
        cells = [[f"{row.of}, {row.score.measure}", number(row.score.value), *(str(m) if m else "–" for m in row.baselines), row.verdict] for row in rows]
        heads = [_head("words, measure"), _head("value", True), *(_head(name, True) for name in names), _head("verdict")]
        tables.append({"caption": f"{caption}{findings.split}, beside what a map that knows nothing would score.", "heads": heads, "rows": cells})
    if by_layer := layer_rows(findings):
        caption = "The same words on the maps of each layer, mean over its heads; the centre prior is the same for all."
        heads = [_head("words, measure"), *(_head(layer_name(findings, layer), True) for layer in scored_layers(findings)), _head("centre", True)]
        tables.append({"caption": caption, "heads": heads, "rows": [[f"{r.of}, {r.measure}", *map(number, r.values), number(r.centre)] for r in by_layer]})
    return tables


def _head(text: str, num: bool = False) -> View:
    return {"text": text, "num": num}


def _notes(findings: WordsFindings, pictures: int, layered: bool, kept: bool) -> list[str]:
    found, every = [], len(findings.images)
    if pictures < every:
        found.append(f"{rounded(pictures, 'count')} of {rounded(every, 'count')} pictures are here; {FULLER}")
    if kept and not layered:
        found.append(f"The maps of single layers did not fit; {FULLER}")
    return found


# ── one picture ──────────────────────────────────────────────────────────────────────────────────────────────────


def _picture(path: Path, finding: CaptionFinding, sets: Sequence[NDArray[np.float64]], side: int) -> View:
    """A picture with its words; sets: (W, gh, gw) of each map set, the drawn maps first."""
    (height, width), (top, left, down, across), (gh, gw) = finding.size, finding.view, finding.grid
    photo, missing = _photograph(path, finding, side)
    most = [float(maps.max(initial=0.0)) for maps in sets]
    shares = [np.rint(65535 * (maps / highest if highest > 0 else maps)) for maps, highest in zip(sets, most, strict=True)]
    even = f"of a word's attention on one of {gh} x {gw} patches; even attention is {rounded(1 / (gh * gw))} on each. Colours grow with the square root."
    agreement = f"The drawn maps differ by at most {rounded(finding.agreement, 'rate')} from one pass over the whole caption."
    return {
        "file": name(finding.file),
        "caption": finding.caption,
        "references": finding.references[:MAX_REFERENCES],
        "size": [height, width],
        "photo": photo,
        "missing": missing,
        "view": [top / height, left / width, down / height, across / width],
        "grid": [gh, gw],
        "words": [_word(word, before, values) for word, before, values in zip(finding.words, words_before(finding), sets[0], strict=True)],
        "maps": array(np.stack(shares).astype(np.uint16)),
        "most": most,
        "scales": [f"The brightest colour is {rounded(highest)} {even}" for highest in most],
        "notes": " ".join(filter(None, [agreement, patches_note(finding)])),
    }


def _word(word: FoundWord, before: str, values: NDArray[np.float64]) -> View:
    scores = [[measure, rounded(value), rounded(centre)] for measure, value, centre in own_scores(word)]
    return {"text": word.text, "after": after(before), "share": on_patches(word), "place": place(values), "scores": scores}


def place(values: NDArray[np.float64]) -> str:
    """Where a map (gh, gw) is highest: `at the top left`, `in the middle`, `at the right`."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    down = ("top", "middle", "bottom")[min(2, 3 * (2 * int(row) + 1) // (2 * values.shape[0]))]
    across = ("left", "middle", "right")[min(2, 3 * (2 * int(column) + 1) // (2 * values.shape[1]))]
    if down == across == "middle":
        return "in the middle"
    return f"at the {down} {across}" if "middle" not in (down, across) else f"at the {across if down == 'middle' else down}"


def kept_photo(path: Path, finding: CaptionFinding) -> tuple[NDArray[np.uint8] | None, str]:
    """((H, W, 3) uint8 or None, why there is none) of a picture beside its words. RunError for another picture than the finding's."""
    try:
        photo = np.asarray(read_picture(path).convert("RGB"))
    except FileNotFoundError:
        return None, "no picture was kept"
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        return None, "picture cannot be read"
    try:
        picture_view(finding, photo)
    except UsageError as error:
        raise RunError(f"{path}: {error}; the folder was changed") from None
    return photo, ""


def _photograph(path: Path, finding: CaptionFinding, side: int) -> tuple[str | None, str]:
    photo, missing = kept_photo(path, finding)
    if photo is None:
        return None, missing
    image = PIL.Image.fromarray(photo)
    image.thumbnail((side, side))
    return picture(image), ""


def _layer_maps(folder: Path, findings: WordsFindings) -> list[NDArray[np.float64]] | None:
    """(L, W, gh, gw) of each picture, the mean over the heads of each recorded layer; None where there is one layer, or where the folder keeps them not.

    RunError where they do not fit the words.
    """
    path, keys = folder / WORD_ARRAYS, [f"layers/{i}" for i in range(len(findings.images))]
    if len(findings.layers) < 2:
        return None
    if not keys or not set(keys) <= set(array_names(path, "maps of words")):
        return None
    found = []
    for key, (finding, layers) in zip(keys, zip(findings.images, read_arrays(path, "maps of words", *keys).values(), strict=True), strict=True):
        shape = (len(findings.layers), len(finding.words), *finding.grid)
        if layers.shape != shape or layers.dtype.kind != "f" or not np.isfinite(layers).all() or layers.min(initial=0.0) < 0:
            raise RunError(f"{path}: {key}: expected finite numbers of at least 0 of shape {shape}; got {layers.dtype} {layers.shape}. The file was changed.")
        found.append(layers.astype(np.float64))
    return found
