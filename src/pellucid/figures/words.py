"""Where a captioner looked for each word: strips of a photograph with one panel a word, and how far these maps can be believed.

Photos are (H, W, 3) uint8 RGB, maps (W, gh, gw) >= 0 of the words of one picture in the order of its caption. All maps of a picture share one scale, from
0 to the highest value among them, so that its words compare; pictures do not compare with each other. Colours grow with the square root of the attention:
one word that looks at one patch alone would leave all others black. A map lies over the photograph as in `overlays`, but lighter: the colour of each pixel
has the weight FAINT to STRONG over the photo in grey. `ground` and `layer` are the two parts of that, for pages that lay many words
over one picture.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pellucid.caption_readings import (
    CENTRE_NOTE,
    CHOSEN,
    KIND_NAMES,
    SHOWN_SCORES,
    after,
    caption_charts,
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
from pellucid.figures.inside import SHEET_SIDE, scores_figure
from pellucid.figures.overlays import DIMMED, MAP_COLOURS, STRONG, View, coloured, reduced, stretched
from pellucid.figures.pretraining import chart_figure
from pellucid.figures.runs import learning_rate_curve
from pellucid.figures.style import BOLD_LETTERS, LETTERS, NOTES, STYLE, fitted, in_line, plain_text, save
from pellucid.findings import IMAGES, Score
from pellucid.readings import learning_rate
from pellucid.records import read_picture
from pellucid.run import Run, rounded
from pellucid.word_findings import WORDS, CaptionFinding, FoundWord, WordsFindings, load_words

DRAWN = 3  # pictures of a run that get a strip in its figures; the report shows more, and the arrays hold all
FAINT = 0.1  # weight of the colour over the photo where the map is 0
COLUMNS = 6  # panels beside each other
DRAWN_SCORES = ("mass", "pointing", "rank")
IS_NOT = "It is neither why the model chose the word nor where the thing is"
_LONGEST_WORD, _LONGEST_CAPTION = 18, 300  # letters of a title
_MISSING = "\N{WHITE SQUARE}"  # instead of a letter that the figure's font lacks
_PARTS = {"learning_curves": ("loss", "token_accuracy"), "captions": ("cider", "exact_match")}  # charts beside each other in one file


def ground(photo: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """What the layers of words are laid over: the photo in grey where the model saw it, at DIMMED of its brightness elsewhere; (H, W, 3) uint8."""
    inside = _inside(photo.shape[:2], view)[..., None]
    grey = np.asarray(PIL.Image.fromarray(photo).convert("L"))[..., None]
    return np.where(inside, grey, np.rint(photo * np.float32(DIMMED)).astype(np.uint8))


def layer(size: tuple[int, int], values: ArrayLike, view: View, *, most: float) -> NDArray[np.uint8]:
    """A map at each pixel of a picture of `size` (height, width), as a layer over `ground`: (H, W, 4) uint8, transparent outside the view.

    values: (gh, gw), >= 0. most: the value that is brightest, the highest of all words of the picture.
    """
    scaled = np.asarray(values, dtype=np.float64) / most if most > 0 else np.zeros(np.shape(values))
    share = np.sqrt(np.clip(stretched(scaled, size, view), 0.0, 1.0))
    opacity = np.where(_inside(size, view), FAINT + (STRONG - FAINT) * share, 0.0)
    return np.concatenate([coloured(share, MAP_COLOURS), np.rint(255 * opacity).astype(np.uint8)[..., None]], axis=-1)


def word_overlays(photo: NDArray[np.uint8], finding: CaptionFinding, maps: ArrayLike) -> list[NDArray[np.uint8]]:
    """The photo with the map of each word over it, (H, W, 3) uint8 at the photo's own resolution, all on one scale."""
    values, view = _checked(maps, finding), picture_view(finding, photo)
    below, most = PIL.Image.fromarray(ground(photo, view)).convert("RGBA"), float(values.max(initial=0.0))
    size = (photo.shape[0], photo.shape[1])
    return [np.asarray(PIL.Image.alpha_composite(below, PIL.Image.fromarray(layer(size, one, view, most=most))).convert("RGB")) for one in values]


def words_strip(
    photo: NDArray[np.uint8],
    finding: CaptionFinding,
    maps: ArrayLike,
    *,
    how: str = "",
    scores: Mapping[str, Sequence[Score]] | None = None,
    width: float | None = None,
) -> Figure:
    """One picture: the photo, and a panel for each word of its caption with its map, the query and, where it was scored, its measures beside the centre prior.

    maps: (W, gh, gw). how: in words, what a map is. scores: {kind of word: scores of the whole set}, which stand with their baselines below the figure.
    finding.view is in pixels of a photo of finding.size (height, width); `photo` may be a smaller copy of it. width: of the whole figure in inches, on paper.
    """
    values, of_kind = _checked(maps, finding), scores or {}
    picture, _ = reduced(photo, None, SHEET_SIDE)
    tiles = [("photo", "", picture)]
    for word, before, tile in zip(finding.words, words_before(finding), word_overlays(picture, finding, values), strict=True):
        tiles.append((_short(word.text, _LONGEST_WORD), _below(word, before), tile))
    columns = max(3, min(len(tiles), COLUMNS)) if width is None else in_line(len(tiles), width, least=1.1)
    if width is not None:  # the centre prior below the measure
        tiles = [(name, below.replace(" (", "\n("), tile) for name, below, tile in tiles]
    rows = -(-len(tiles) // columns)
    side, title_letters, letters = (2.1, 25 * columns, 41 * columns) if width is None else (width / columns, int(BOLD_LETTERS * width), int(LETTERS * width))
    tall, lines = side * picture.shape[0] / picture.shape[1], 1 + max(below.count("\n") for _, below, _ in tiles)
    title = textwrap.fill(f"{finding.file}: {_short(finding.caption, _LONGEST_CAPTION) or 'no word was found'}", title_letters)
    notes = "\n".join(textwrap.fill(_letters(note), letters) for note in strip_notes(finding, values, how=how, scores=of_kind))
    of_rows = [lines] * rows if width is None else [1 + max(below.count("\n") for _, below, _ in tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    height = sum(tall + 0.35 + 0.15 * of_row for of_row in of_rows) + 0.19 * (title.count("\n") + 1) + 0.16 * (notes.count("\n") + 1) + 0.3
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.2 * columns + 0.7 if width is None else width, height), layout="constrained")
        figure.suptitle(plain_text(_letters(title)), x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.supxlabel(plain_text(notes), x=0.01, ha="left", fontsize=7.5 if width is None else NOTES)
        cells = figure.subplots(rows, columns, squeeze=False)
        for axes in cells.flat:
            axes.set_axis_off()
        for axes, (name, below, tile) in zip(cells.flat, tiles, strict=False):
            axes.set_axis_on()
            axes.imshow(tile)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_title(plain_text(_letters(name)), fontsize=9.5)
            axes.set_xlabel(plain_text(_letters(below)), fontsize=7, loc="left")
        if values.size:
            scale = ScalarMappable(PowerNorm(0.5, 0.0, float(values.max()) or 1.0), MAP_COLOURS)
            place: Any = {"aspect": 14 * min(rows, 2), "shrink": min(1.0, 2 / rows), "anchor": (0.0, 1.0), "pad": 0.01}
            place = place if width is None else {"location": "bottom", "aspect": 30, "shrink": 0.6, "pad": 0.01}
            ticks = MaxNLocator(3 if width is not None else 6)  # the root of the scale crowds its upper ones
            bar = figure.colorbar(scale, ax=cells, label="attention on one patch", ticks=ticks, **place)
            bar.ax.tick_params(labelsize=7)
    return fitted(figure, width)


def strip_notes(finding: CaptionFinding, maps: NDArray[np.float64], *, how: str, scores: Mapping[str, Sequence[Score]]) -> list[str]:
    """The sentences below a strip: what a map is and is not, its query, the scale, the check of the maps, and the measures of the whole set."""
    notes = [
        f"A map is where the decoder looked in the step that gave the word. {query_note([finding])} {IS_NOT}." + (f" It is {how.rstrip('.')}." if how else "")
    ]
    if maps.size:
        gh, gw = finding.grid
        notes.append(
            f"One scale for all words of this picture, by the square root: from 0 (dark) to {rounded(float(maps.max()))} (bright) of a word's attention on "
            f"one of {gh} x {gw} patches; even attention would be {rounded(1 / (gh * gw))} on each. "
            f"The maps differ by at most {rounded(finding.agreement, 'rate')} from one pass over the whole caption."
        )
        notes += [said] if (said := patches_note(finding)) else []
        if any(own_scores(word) for word in finding.words):
            notes.append(CENTRE_NOTE)
    measured = [_of_set(KIND_NAMES.get(kind, kind), list_) for kind, list_ in scores.items()]
    return notes + ([said for said in measured if said] or ["Not measured: nobody says where the things of these pictures are."])


def word_scores_figure(findings: WordsFindings, *, width: float | None = None) -> Figure:
    """Mass, pointing and rank of nouns and colour words for the drawn maps and for each layer, beside their baselines. UsageError without a score."""
    named = [
        replace(score, method=f"{KIND_NAMES.get(kind, kind)}, {_letters(layer_name(findings, of))}")
        for kind in dict.fromkeys(kind for kinds in findings.scores.values() for kind in kinds)
        for of, kinds in findings.scores.items()
        for score in kinds.get(kind, [])
        if score.measure in DRAWN_SCORES and score.baselines
    ]
    return scores_figure(named, width=width)


def write_caption_figures(run: Run) -> list[Path]:
    """Draw what a captioning holds into its figures/ folder and return the files: curves, strips of its first pictures, scores of its words.

    What the run does not have is left out.
    """
    charts, files = caption_charts(run.metrics(), run.measurements), []
    for name, wanted in _PARTS.items():
        if chosen := [chart for chart in charts if chart.name in wanted]:
            files += save(chart_figure(chosen), run.figures / name)
    rate = learning_rate(run.metrics())
    files += save(learning_rate_curve(rate), run.figures / "learning_rate") if rate.points else []
    if not (run.inside / WORDS).is_file():
        return files
    findings = load_words(run.inside)
    files += write_word_strips(run.inside, findings, run.figures / "words", most=DRAWN)
    if any(score.measure in DRAWN_SCORES and score.baselines for kinds in findings.scores.values() for scores in kinds.values() for score in scores):
        files += save(word_scores_figure(findings), run.figures / "word_scores")
    return files


def write_word_strips(folder: Path, findings: WordsFindings, out: Path, *, most: int, photos: Sequence[NDArray[np.uint8]] | None = None) -> list[Path]:
    """The strips of the first `most` pictures of a folder of word findings, as files of `out`; photos: in place of the smaller copies in the folder."""
    files = []
    for i, (finding, maps) in enumerate(zip(findings.images[:most], word_maps(folder, findings), strict=False)):
        photo = photos[i] if photos is not None else _kept(folder / IMAGES / f"{i}.webp")
        try:
            figure = words_strip(photo, finding, maps, how=findings.how, scores=findings.scores.get(CHOSEN))
        except UsageError as error:
            raise RunError(f"{folder}: {error}; the folder was changed") from None
        files += save(figure, out / f"{i:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(finding.file).stem)[:60]}")
    return files


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _below(word: FoundWord, before: str) -> str:
    measures = [f"{name} {rounded(value)} (centre {rounded(centre)})" for name, value, centre in own_scores(word)]
    return "\n".join([after(_short(before, _LONGEST_WORD)), *filter(None, [on_patches(word)]), *measures])


def _of_set(kind: str, scores: Sequence[Score]) -> str:
    """`Nouns of val, n = 300: mass 0.41 (uniform 0.1, centre 0.22), …` of the measures with baselines; "" without one."""
    said = []
    for score in scores:
        if score.measure in SHOWN_SCORES and score.baselines:
            beside = ", ".join(f"{name} {m}" for name, m in score.baselines.items())
            said.append(f"{score.measure} {score.value} against {beside}")
    if not said:
        return ""
    value = next(score.value for score in scores if score.measure in SHOWN_SCORES and score.baselines)
    return f"{kind.capitalize()} of {value.split}, n = {value.n:,}: {'; '.join(said)}."


def _checked(maps: ArrayLike, finding: CaptionFinding) -> NDArray[np.float64]:
    """(W, gh, gw) float64; UsageError where they are not the maps of the finding's words."""
    values = np.asarray(maps, dtype=np.float64)
    if values.shape != (len(finding.words), *finding.grid) or not np.isfinite(values).all() or values.min(initial=0.0) < 0:
        expected = f"a map (gh, gw) = {finding.grid} of finite numbers >= 0 for each of {len(finding.words)} words"
        raise UsageError(f"{finding.file}: expected {expected}, got shape {values.shape}, lowest {values.min(initial=0.0):g}")
    return values


def _inside(size: Sequence[int], view: View) -> NDArray[np.bool_]:
    """(H, W): the pixels whose centres the model saw."""
    top, left, height, width = view
    y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None] + 0.5
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def _kept(path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(read_picture(path).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise RunError(f"{path}: the picture of the words cannot be read: {error}; the folder was changed") from None


def _short(text: str, most: int) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= most else f"{one_line[: most - 1]}…"


def _letters(text: str) -> str:
    """The text with a square for each letter that the figure's font lacks, which matplotlib would warn of."""
    known = _drawable()
    return "".join(letter if letter == "\n" or ord(letter) in known else _MISSING for letter in text)


@functools.cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
