"""Where a captioner looked for each word, as typed records: `words.json` beside `words.npz` and the pictures. Needs no torch.

    words.json    this record            words.npz    maps over the grid of the encoder
    images/       <i>.webp, the pictures  <name>.png, .svg, .pdf: the strips

Keys of words.npz (picture i of `WordsFindings.images`, W words, L recorded layers, grid gh x gw of the picture):

    maps/<i>      (W, gh, gw) float32, >= 0: each word's map, of the chosen layers and heads; where pieces are averaged it sums to the word's `share`
    layers/<i>    (L, W, gh, gw) float32: the mean over heads of each layer
    scores/<layer>/<kind>/<measure>   (m,) float64 of the words of a kind (noun, color) that were scored, NaN where one has no target; <layer> is "chosen" or
                  the number of a layer. random/...: of the model with random weights

A word's query is the token before its first piece: the step that gave this piece looked while it knew only the words before. The steps of further pieces had
read the first ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from pellucid.errors import RunError
from pellucid.findings import CLOSED, Score
from pellucid.records import read_record, write_json

WORDS, WORD_ARRAYS = "words.json", "words.npz"
NOUN, COLOR = "noun", "color"
KINDS = (NOUN, COLOR)  # of words whose place in a picture can be known
SHIFTS = 20  # most other words whose targets judge a word's map
PAIRS, FEWEST_SHIFTS = 10_000, 4  # of many words each is judged by fewer, as their mean over all is what is wanted
DIFFERS = 1e-4  # a map that differs by more from the pass over the whole caption is not drawn
NOT_DRAWN = "is not drawn: its maps differ by"  # in a note, behind the name of a picture
NOTHING_DRAWN = "no picture is drawn: "  # a note begins so where drawing failed and scores were found


@dataclass(frozen=True)
class FoundWord:
    """A word of a caption. text: as it reads. tokens: (first, behind the last) of its pieces among the caption's output tokens, from 0.

    query: the token, a piece of a word or a sign, that the decoder had read last when it looked for the first of them. kind: noun or color where the word names
    a thing of the picture whose place is known, else "". share: of the attention, how much went to the patches, the mean over the pieces; the rest went to
    tokens without a place, a class token or, of GIT, the words. scores: {measure: value} of the chosen map; centre: the same of the centre prior, by the
    word's own thing.
    """

    __pydantic_config__ = CLOSED

    text: str
    tokens: tuple[int, int]
    query: str
    kind: str = ""
    share: float = 1.0
    scores: dict[str, float] = field(default_factory=dict)
    centre: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionFinding:
    """One picture. size: (height, width) in pixels; view: (top, left, height, width) in its own pixels, what the model saw. references: its own captions.

    tokens: output tokens of the caption, the end included. agreement: the largest difference of a map from that of one pass over the whole caption.
    """

    __pydantic_config__ = CLOSED

    file: str
    size: tuple[int, int]
    view: tuple[float, float, float, float]
    caption: str
    tokens: list[int]
    words: list[FoundWord]
    grid: tuple[int, int]
    agreement: float
    references: list[str] = field(default_factory=list)


@dataclass
class WordsFindings:
    """Everything that was found of the words of some pictures.

    layers: paths of the recorded attentions, in order; chosen: which of them a map is the mean of. how: in words, what a map is.
    scores: {layer: {kind: [Score]}} over `scored` pictures of `split`; layer is "chosen" or the number of one.
    """

    __pydantic_config__ = CLOSED

    pellucid: str
    model: str
    weights: str
    how: str
    layers: list[str]
    chosen: list[int]
    images: list[CaptionFinding] = field(default_factory=list)
    split: str = ""
    scored: int = 0
    scores: dict[str, dict[str, list[Score]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def left_out(self, file: str) -> bool:
        """Whether a note says that this picture is not drawn."""
        return any(note.startswith((f"{file} {NOT_DRAWN} ", NOTHING_DRAWN)) for note in self.notes)

    def save(self, folder: Path) -> Path:
        """Write `words.json` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / WORDS, self)
        return folder / WORDS


_WORDS = TypeAdapter(WordsFindings)


def load_words(folder: Path) -> WordsFindings:
    """The findings in a folder. RunError where there are none, or where they were changed into something else."""
    path = folder / WORDS
    if not path.is_file():
        raise RunError(f"{path}: expected where a captioner looked for each word; there is no such file.")
    return read_record(path, _WORDS)
