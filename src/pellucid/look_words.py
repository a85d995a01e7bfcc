"""Where a captioner looked for each word of what it says: photographs, or the pictures of a run -> a folder of maps, strips and scores.

The folder is that of `pellucid.word_findings`: words.json, words.npz, images/, and strips as PNG, SVG and PDF. Looking itself is in `inside.words`. A caption
is found and its maps are recorded in single precision, because a map is compared with that of one pass over the whole caption, number by number. Of a run
the captions are those that its predictions hold, whatever the precision that found them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

import pellucid
from pellucid.caption_readings import KIND_NAMES, words_before
from pellucid.data.augment import evaluate_view
from pellucid.data.dataset import Captions, Split
from pellucid.data.images import decode, image_files
from pellucid.data.loader import Window
from pellucid.data.text import CaptionTokenizer, build_tokenizer
from pellucid.errors import DataError, PellucidError, UsageError
from pellucid.files import bytes_hash
from pellucid.findings import IMAGES, Score
from pellucid.inside.deletion import randomised
from pellucid.inside.faithfulness import MEASURES, PatchTarget, centre_prior, patch_target
from pellucid.inside.word_scores import ScoredWord, known_names, score_words, things_of
from pellucid.inside.words import WordMaps, caption_maps, given_maps, layer_numbers, merged, picture_keys, queries, word_maps
from pellucid.look import KEPT_SIDE
from pellucid.models.captioner import Captioner, Generation
from pellucid.models.captioners import build_named_captioner, captioner_folder, is_captioner
from pellucid.recipe import Recipe
from pellucid.records import write_arrays
from pellucid.run import Run, rounded
from pellucid.runtime import out_of_memory
from pellucid.schema.captioning import MOST_TOKENS, GenerationSection, TextSection, WordsSection
from pellucid.subjects import Subject, SubjectSection, of_named, settings, subject
from pellucid.tasks.captioning import generation_of, suppressed, tokenizer_of
from pellucid.tasks.evaluated import packs
from pellucid.word_findings import DIFFERS, NOT_DRAWN, NOTHING_DRAWN, WORD_ARRAYS, CaptionFinding, FoundWord, WordsFindings

if TYPE_CHECKING:
    from pellucid.prepare import Training

Told = Callable[[str, int, int], None]
Floats = NDArray[np.float32]
_T = TypeVar("_T")
CLASSIFYING = ("num_classes", "classes")  # settings that say something of classes
OF_TRAINING = ("drawn", "scored", "images")  # settings that say which pictures of a run are looked at
HOW_FOUND = (*GenerationSection.model_fields, "max_length")
MOST_NUMBERS = 1 << 25  # float32 weights of attention that are held at once: 128 MB
MOST_AT_ONCE = 64  # pictures
DEFAULT_LENGTH = 40  # tokens of a caption of a model by name
FAILURES = (PellucidError, RuntimeError, ValueError, LookupError, ArithmeticError, OSError, MemoryError, ImportError)  # of looking, after a training


class CaptionerSection(SubjectSection, GenerationSection, WordsSection):
    """What may be said of a captioner: `-s key=value`. Of a run only how captions are found and what a map is."""

    max_length: int | None = Field(None, ge=2, le=MOST_TOKENS, description=f"Most tokens of a caption; default: the run's, or {DEFAULT_LENGTH}.")
    tokenizer: str | None = Field(None, description="Folder or name on the hub of the tokeniser of a model by name; default: the model's own.")

    @model_validator(mode="after")
    def _of_a_captioner(self) -> Self:
        for names, why in ((CLASSIFYING, "belongs to classifiers"), (OF_TRAINING, "belongs to the recipe of a training")):
            if given := [name for name in names if name in self.model_fields_set]:
                raise ValueError(f"{given[0]} {why}; this is a captioner")
        return self

    @property
    def of_model(self) -> list[str]:
        """The given settings that say something of the model, in order."""
        return sorted(self.model_fields_set - {*HOW_FOUND, *WordsSection.model_fields})


@dataclass(frozen=True)
class Speaker:
    """A captioner that can be looked into. subject: its module is a Captioner, and how it sees a photograph. words: what a map is, by layers, heads, pieces."""

    subject: Subject
    tokenizer: CaptionTokenizer
    generation: Generation
    words: WordsSection

    @property
    def captioner(self) -> Captioner:
        assert isinstance(self.subject.module, Captioner)
        return self.subject.module


@dataclass(frozen=True)
class Photo:
    """A picture as it is, with what is known of it. pixels: (h, w, 3) uint8; view: of it what the model saw; tokens: (T,) int64 of the caption that a run holds
    for it, -1 behind the end, None where it holds none; references: its own captions."""

    file: str
    pixels: NDArray[np.uint8]
    view: tuple[float, float, float, float]
    tokens: NDArray[np.int64] | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """What is drawn of some photos. rows: which of them, ascending; the others' maps differ from those of one pass over the whole caption.

    arrays: `maps/<i>` and `layers/<i>` of `word_findings`, i counting the findings; notes: what must be said, each photo that is left out by name.
    """

    findings: list[CaptionFinding] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    arrays: dict[str, Floats] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, things: Sequence[_T]) -> list[_T]:
        """Of one thing for each photo those of the photos that are drawn."""
        return [things[row] for row in self.rows]


def is_spoken(target: str | Path) -> bool:
    """Whether `pellucid inside` shows words for this run or model by name: whether it is a captioner."""
    if (Path(target) / "run.json").is_file():
        return Run(target).record.task == "captioning"
    return is_captioner(str(target))


# ── a model by name, or a run, and photographs ────────────────────────────────────────────────────────────────


def look_into_words(
    target: str | Path | Speaker,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    progress: Told | None = None,
    figures: bool = True,
) -> WordsFindings:
    """Caption photographs with a captioner, a run, a model by name or one that is loaded, and write where it looked for each word into the folder `out`.

    overrides: `key=value` of CaptionerSection; they and device say nothing of a loaded one. figures: strips and overlays too.
    images: files and folders. Nothing is written before everything was read. A photograph whose maps are not those
    of their steps is left out, and the notes name it. Raises UsageError (no captioner, a setting that it cannot take, no photograph left), RecipeError
    (overrides), MissingError, WeightsError, DataError and RunError.
    """
    files = [file for entry in images for file in image_files(entry)]
    if not files:
        raise UsageError("expected at least one photograph")
    told: Told = progress or (lambda what, done, of: None)
    speaker = target if isinstance(target, Speaker) else speaker_of(target, overrides, device=device)
    known = _known(speaker.subject.run)
    photos = []
    for file in files:
        data = file.read_bytes()
        pixels = decode(data, str(file))
        own = known.get(bytes_hash(data), ())
        photos.append(Photo(str(file), np.asarray(pixels), speaker.subject.view_box((pixels.height, pixels.width)), references=own))
    inputs = speaker.subject.inputs([speaker.subject.view(PIL.Image.fromarray(photo.pixels)) for photo in photos])
    drawn = _in_room(lambda size: _drawn(speaker, inputs, photos, told, size), speaker)
    if not drawn.rows:
        raise UsageError("\n".join(["nothing can be drawn:", *drawn.notes]))
    findings = _findings(speaker, drawn.findings, notes=[*speaker.subject.notes, *drawn.notes])
    these = "this photograph" if len(drawn.rows) == 1 else "these photographs"
    findings.notes.append(f"nobody says where the things of {these} are: no map is measured")
    shown = [photo.pixels for photo in drawn.of(photos)]
    _write(Path(out), findings, drawn.arrays, shown)
    if figures:
        _draw(Path(out), findings, drawn.arrays, shown, told)
    return findings


def speaker_of(target: str | Path, overrides: Sequence[str] = (), *, device: str = "auto") -> Speaker:
    """The captioner that `target` names: a run folder, or `transformers/<hub id, model type or folder>`. Errors as of `look_into_words`."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch sees no CUDA device. Use auto or cpu, or see `pellucid doctor`.")
    if (Path(target) / "run.json").is_file():
        return _of_run(Run(target), overrides, device)
    if not is_captioner(str(target)):
        raise UsageError(f"{target}: expected a captioner: a captioning run, or a vision encoder-decoder, BLIP or GIT of transformers")
    return _of_name(str(target), settings(overrides, CaptionerSection), device)


def _of_run(run: Run, overrides: Sequence[str], device: str) -> Speaker:
    recipe = run.recipe
    if recipe.generation is None or recipe.words is None:
        raise UsageError(f"{run.path}: expected a captioning run, this is one of {recipe.task}")
    own = {**recipe.generation.model_dump(exclude_defaults=True), **recipe.words.model_dump(include={"layers", "heads", "pieces"}, exclude_defaults=True)}
    section = settings([*(f"{key}={json.dumps(value)}" for key, value in own.items()), *overrides], CaptionerSection)
    if section.of_model:
        given = section.of_model[0]
        raise UsageError(
            f"{run.path} is a run: its recipe and its weights say what {given} is. Remove -s {given}, or give the model by name; a run takes "
            f"{', '.join((*HOW_FOUND, 'layers', 'heads', 'pieces'))}."
        )
    return Speaker(subject(run.path, device=device), tokenizer_of(run), _generation(section, generation_of(recipe, run.data.vocabulary)), section)


def _of_name(target: str, section: CaptionerSection, device: str) -> Speaker:
    name = target if target.startswith("transformers/") else f"transformers/{target}"
    weights = Path(section.weights).expanduser() if section.weights is not None else None
    folder = captioner_folder(name, weights)
    if folder is None and section.tokenizer is None:
        raise UsageError(f"{name} is a model type, which has no tokeniser of its own. Give a hub id or a folder, or -s tokenizer=FOLDER.")
    length = section.max_length or DEFAULT_LENGTH
    text = TextSection.model_validate({"tokenizer": {"name": "transformers", "source": section.tokenizer}, "max_length": length})
    tokenizer = build_tokenizer(text, (), own=folder)  # it is published: no caption decides anything
    named = build_named_captioner(
        name,
        vocabulary=tokenizer.vocabulary,
        pretrained=section.pretrained and weights is None,
        weights=weights,
        image_size=section.size,
        options=section.options,
        seed=section.seed,
    )
    return Speaker(
        of_named(named, section, device),
        tokenizer,
        _generation(section, Generation(length, suppressed=suppressed(replace(tokenizer.vocabulary, unknown=tokenizer.unknown)))),
        section,
    )


def _generation(section: CaptionerSection, own: Generation) -> Generation:
    """How captions are found by settings, where these say nothing as `own` has it."""
    found = {name: getattr(section, name) for name in GenerationSection.model_fields}
    return replace(own, max_length=section.max_length or own.max_length, **found)


def _known(run: Run | None) -> dict[str, tuple[str, ...]]:
    """{content: own captions} of the measured pictures of a run, so that a photograph of them comes with what people wrote."""
    if run is None or not run.has_data:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for split in run.prediction_splits:
        captions = run.captions(split)
        found |= {content.partition("+")[0]: captions[file] for file, _, content in run.samples(split) if file in captions}
    return found


# ── captions and their maps ───────────────────────────────────────────────────────────────────────────────────


def _drawn(speaker: Speaker, inputs: Tensor, photos: Sequence[Photo], told: Told, size: int) -> Drawn:
    """The captions of photos and the maps of their words, `size` photos at once."""
    drawn, other = Drawn(), 0
    for first in range(0, len(photos), size):
        told("words", first, len(photos))
        part = photos[first : first + size]
        maps, changed = _spoken(speaker, inputs[first : first + size], [photo.tokens for photo in part])
        other += changed
        for row, (photo, (found, b)) in enumerate(zip(part, maps, strict=True), first):
            if found.agreement[b] > DIFFERS:
                drawn.notes.append(_not_drawn(photo, float(found.agreement[b])))
                continue
            i = len(drawn.rows)
            words, drawn.arrays[f"maps/{i}"], drawn.arrays[f"layers/{i}"] = words_of(found, b, speaker.tokenizer, speaker.words)
            drawn.findings.append(_finding(photo, found, b, words, speaker.tokenizer))
            drawn.rows.append(row)
    told("words", 1, 1)
    held = sum(photo.tokens is not None for photo in photos)
    if other:
        drawn.notes.append(f"in single precision {other} of {held} captions would be other ones; the maps are of the captions that the run predicted")
    return drawn


def _not_drawn(photo: Photo, differs: float) -> str:
    """The note that leaves a photo out."""
    much = rounded(differs, "rate") if math.isfinite(differs) else "numbers that are not finite"
    return f"{photo.file} {NOT_DRAWN} {much} from those of one pass over the whole caption, more than {DIFFERS:g}, so they may belong to other steps"


def _spoken(speaker: Speaker, inputs: Tensor, held: Sequence[NDArray[np.int64] | None]) -> tuple[list[tuple[WordMaps, int]], int]:
    """(for each picture the maps that hold its caption's, and its place in them; how many of the captions that a run holds would be found otherwise now)."""
    found = caption_maps(speaker.captioner, inputs, speaker.generation, differs=math.inf)  # who draws a map looks how far it differs
    spoken, changed = [(found, b) for b in range(len(inputs))], 0
    for b, tokens in enumerate(held):
        if tokens is not None and tokens[tokens >= 0].tolist() != found.tokens[b][: found.length(b)].tolist():
            spoken[b], changed = (_spelled(speaker.captioner, inputs[b : b + 1], tokens), 0), changed + 1
    return spoken, changed


def _spelled(captioner: Captioner, image: Tensor, tokens: NDArray[np.int64]) -> WordMaps:
    """The maps of a caption that is given, token by token as if it were found so, with how far they are from one pass over all of it."""
    given = torch.from_numpy(tokens[tokens >= 0])[None].to(image.device)

    def read(found: Tensor) -> Tensor:
        return torch.cat([torch.full_like(found[:, :1], captioner.start), found[:, :-1]], dim=1)

    def steps() -> tuple[Tensor, None]:
        for length in range(1, given.shape[1] + 1):
            captioner(image, read(given)[:, :length])
        return given, None

    keys = picture_keys(captioner, image)
    return word_maps(captioner, steps, lambda found: captioner(image, read(found)), picture=keys, decoder=captioner.decoder, differs=math.inf)


def words_of(maps: WordMaps, b: int, tokenizer: CaptionTokenizer, how: WordsSection) -> tuple[list[FoundWord], Floats, Floats]:
    """(the words of caption b, (W, gh, gw) their maps, (L, W, gh, gw) those of each layer, heads averaged)."""
    tokens = maps.tokens[b][: maps.length(b)].tolist()
    found = tokenizer.words(tokens)
    spans = [(first, behind) for _, first, behind in found]
    picture, prefix = maps.share(b, how.layers, how.heads)
    read = queries(tokens, spans, tokenizer.text_of, tokenizer.vocabulary.start)
    words = [
        FoundWord(text, (first, behind), query, share=float((picture - prefix)[first:behind].mean(dtype=np.float64)))
        for (text, first, behind), query in zip(found, read, strict=True)
    ]
    each = maps.maps[b].mean(axis=1, dtype=np.float64).astype(np.float32)[:, : len(tokens)]  # L, T, gh, gw
    return words, merged(maps.of(b, how.layers, how.heads), spans, how.pieces), merged(each, spans, how.pieces)


def _finding(photo: Photo, maps: WordMaps, b: int, words: list[FoundWord], tokenizer: CaptionTokenizer) -> CaptionFinding:
    tokens = maps.tokens[b][: maps.length(b)].tolist()
    return CaptionFinding(
        photo.file, photo.pixels.shape[:2], photo.view, tokenizer.decode(tokens), tokens, words, maps.grid, float(maps.agreement[b]), list(photo.references)
    )


def _empty(speaker: Speaker) -> WordMaps:
    """The maps of a black picture with an empty caption: which layers and heads look at how many patches."""
    image = torch.zeros((1, 3, *speaker.subject.size), device=speaker.subject.device)
    return given_maps(speaker.captioner, image, np.full((1, 1), speaker.captioner.end, np.int64))


def _at_once(speaker: Speaker) -> int:
    """How many pictures are looked at together, whose attention takes at most MOST_NUMBERS."""
    _, L, h, _, gh, gw = _empty(speaker).maps.shape
    return max(1, min(MOST_AT_ONCE, MOST_NUMBERS // (L * h * speaker.generation.max_length * gh * gw * speaker.generation.num_beams)))


def _findings(speaker: Speaker, images: list[CaptionFinding], *, notes: Sequence[str]) -> WordsFindings:
    layers = _empty(speaker).layers
    numbers = layer_numbers(speaker.words.layers, len(layers))
    return WordsFindings(
        pellucid.__version__, speaker.subject.name, speaker.subject.weights, describe(speaker.words, numbers, len(layers), speaker.captioner.attends), layers,
        numbers, images, notes=list(notes),
    )  # fmt: skip


def describe(words: WordsSection, numbers: Sequence[int], count: int, attends: str) -> str:
    """What a map is, in words. numbers: the chosen of `count` layers; attends: cross or self."""
    kind = "cross-attention" if attends == "cross" else "self-attention over the picture's tokens"
    layers = ("one layer" if count == 1 else f"all {count} layers") if len(numbers) == count else f"layer {', '.join(map(str, numbers))} of {count}"
    heads = "all heads" if words.heads == "mean" else f"head {', '.join(map(str, words.heads))}"
    pieces = "added up" if words.pieces == "sum" else "averaged"
    return f"the mean over {layers} and {heads} of the decoder's {kind}, the pieces of a word {pieces}"


# ── the folder ────────────────────────────────────────────────────────────────────────────────────────────────


def _write(folder: Path, findings: WordsFindings, arrays: Mapping[str, NDArray[np.floating]], photos: Sequence[NDArray[np.uint8]]) -> list[Path]:
    """Arrays, pictures and findings; the findings last, so that a folder with findings is whole. Returns these files."""
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(photos):
        small = PIL.Image.fromarray(photo)
        small.thumbnail((KEPT_SIDE, KEPT_SIDE))
        small.save(folder / IMAGES / f"{i}.webp", quality=85)
    write_arrays(folder / WORD_ARRAYS, arrays, compressed=True)
    return [*(folder / IMAGES / f"{i}.webp" for i in range(len(photos))), folder / WORD_ARRAYS, findings.save(folder)]


def _draw(folder: Path, findings: WordsFindings, arrays: Mapping[str, Floats], photos: Sequence[NDArray[np.uint8]], told: Told) -> None:
    """A strip for each photograph, and each word over the photograph at its own resolution as a plain PNG."""
    from pellucid import figures  # matplotlib takes a second to import

    told("figures", 0, len(photos))
    figures.write_word_strips(folder, findings, folder, most=len(photos), photos=photos)
    for i, (finding, photo) in enumerate(zip(findings.images, photos, strict=True)):
        told("figures", i, len(photos))
        for k, (word, laid) in enumerate(zip(finding.words, figures.word_overlays(photo, finding, arrays[f"maps/{i}"]), strict=True)):
            PIL.Image.fromarray(laid).save(folder / f"{i:03d}-{_plain(Path(finding.file).stem)}-{k:02d}-{_plain(word.text)}.png")
    told("figures", 1, 1)


def _plain(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:60]


def summary(findings: WordsFindings, maps: Sequence[NDArray[np.floating]]) -> list[tuple[str, str, str, str, str, str]]:
    """(file, word, what had been read before it, where the map is highest, its value there, its attention on the patches) of each word, as text.

    maps: (W, gh, gw) of each picture. Where: row and column of the patch, counted from 1, and how many there are.
    """
    rows = []
    for finding, of in zip(findings.images, maps, strict=True):
        for word, before, values in zip(finding.words, words_before(finding), of, strict=True):
            row, column = divmod(int(values.argmax()), finding.grid[1])
            place = f"row {row + 1} of {finding.grid[0]}, column {column + 1} of {finding.grid[1]}"
            rows.append((finding.file, word.text, before or "the start", place, rounded(float(values.max())), rounded(word.share)))
    return rows


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────


def check_words(module: nn.Module, recipe: Recipe) -> None:
    """UsageError, before training, where the recipe's `words` names a layer or head that the decoder does not have, or its attention cannot be seen."""
    assert isinstance(module, Captioner)
    assert recipe.words is not None
    image = next(module.parameters()).new_zeros((1, 3, *recipe.data.size))
    try:
        maps = given_maps(module, image, np.full((1, 1), module.end, np.int64))
        maps.of(0, recipe.words.layers, recipe.words.heads)
    except UsageError as error:
        raise UsageError(f"words: {error}") from None


def look_into_run(t: Training, module: nn.Module, selected: str) -> list[Path]:
    """Fill the run's inside/ folder with what its final weights show of the words of its captions; the two files that say it.

    Numbers of the task are kept whatever happens here, and scores of words whatever happens to the drawn ones: what cannot be looked at is noted.
    """
    try:
        return _look_into_run(t, module, selected)
    except FAILURES as error:
        t.record.note(f"nothing was found of where the captioner looked: {_why(error)}")
        return []


def _why(error: Exception) -> str:
    """What an error says, with its kind where it is none of Pellucid."""
    return f"{'' if isinstance(error, PellucidError) else f'{type(error).__name__}: '}{str(error) or 'memory ran out'}"


def _look_into_run(t: Training, module: nn.Module, selected: str) -> list[Path]:
    speaker = _of_training(t, module, selected)
    split = next(t.dataset.splits[name] for name in LOOKED_AT if name in t.dataset.splits)
    tokens = t.run.caption_predictions(split.name).tokens if split.name != "train" else None
    notes, scored, scores, found_scores = [], np.empty(0, np.int64), dict[str, dict[str, list[Score]]](), dict[str, NDArray[np.float64]]()
    places = split.captions.things if split.captions is not None else None
    if places is None:
        notes.append("nobody says where the things of these pictures are: no map is measured")
    elif tokens is None:
        notes.append("no val and no test split: no map is measured")
    elif t.recipe.words is not None and t.recipe.words.scored:
        scored = evenly(len(split), t.recipe.words.scored)
        scores, found_scores, more = _in_room(lambda size: _scores(t, speaker, split, scored, tokens, selected, size), speaker)
        notes += more
    try:
        drawn, pixels = _drawn_of_run(t, speaker, split, tokens)
    except FAILURES as error:
        if not scores:
            raise
        drawn, pixels = Drawn(notes=[f"{NOTHING_DRAWN}{_why(error)}"]), []
    findings = replace(_findings(speaker, drawn.findings, notes=[*notes, *drawn.notes]), split=split.name, scored=len(scored), scores=scores)
    return _write(t.run.inside, findings, {**drawn.arrays, **found_scores}, pixels)


def _drawn_of_run(t: Training, speaker: Speaker, split: Split, tokens: NDArray[np.int64] | None) -> tuple[Drawn, list[NDArray[np.uint8]]]:
    """(what is drawn of the pictures that the recipe asks for, with the measures of their words; the pixels of each)."""
    photos, rows = _photos(t, speaker, split, tokens)
    if not photos:
        return Drawn(), []
    inputs = speaker.subject.inputs([speaker.subject.view(PIL.Image.fromarray(photo.pixels)) for photo in photos])
    drawn = _in_room(lambda size: _drawn(speaker, inputs, photos, t.progress, size), speaker)
    of = enumerate(zip(drawn.findings, drawn.of(rows), strict=True))
    found = [_with_scores(speaker, finding, drawn.arrays[f"maps/{i}"], split, row) for i, (finding, row) in of]
    return replace(drawn, findings=found), [photo.pixels for photo in drawn.of(photos)]


LOOKED_AT = ("val", "test", "train")  # splits whose pictures are drawn and scored, the first that is there


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """(min(n, most),) int64 rows of n, ascending, evenly spread from the first on."""
    count = min(n, most)
    return np.arange(count, dtype=np.int64) * n // max(count, 1)


def _of_training(t: Training, module: nn.Module, selected: str) -> Speaker:
    assert t.recipe.words is not None
    assert t.dataset.tokenizer is not None
    d = t.recipe.data
    placed = t.runtime.place(module).eval()
    seen = Subject(
        name=t.recipe.model.name,
        weights=f"final weights, {selected}",
        module=placed,
        runtime=t.runtime,
        size=d.size,
        mean=tuple(t.mean),
        std=tuple(t.std),
        fit=d.fit,
        resize_size=d.resize_size,
        interpolation=d.interpolation,
        num_classes=None,
        classes=None,
    )
    return Speaker(seen, t.dataset.tokenizer, generation_of(t.recipe, t.dataset.tokenizer.vocabulary), t.recipe.words)


def _photos(t: Training, speaker: Speaker, split: Split, tokens: NDArray[np.int64] | None) -> tuple[list[Photo], list[int]]:
    """(the pictures to draw: the recipe's photographs, then some of the split, the row of each in the split, -1 of others). A picture counts once."""
    assert t.recipe.words is not None
    assert split.captions is not None
    missing = [name for name in t.recipe.words.images if not Path(name).is_file()]
    if missing:
        raise DataError(f"words.images: {len(missing)} of {len(t.recipe.words.images)} files are not there: {', '.join(missing[:5])}. Correct the paths.")
    data = {name: Path(name).read_bytes() for name in t.recipe.words.images}
    known = {content: row for row, content in enumerate(split.hashes)} if data else {}
    own = [known.get(bytes_hash(content), -1) for content in data.values()]
    drawn = [row for row in evenly(len(split), t.recipe.words.drawn).tolist() if row not in own]
    pictures = [*((name, decode(content, name)) for name, content in data.items()), *((split.names[row], split.open(row)) for row in drawn)]
    photos = []
    for (name, picture), row in zip(pictures, [*own, *drawn], strict=True):
        held, references = (None, ()) if row < 0 else (tokens[row] if tokens is not None else None, split.captions.texts[row])
        photos.append(Photo(name, np.asarray(picture), speaker.subject.view_box((picture.height, picture.width)), held, references))
    return photos, [*own, *drawn]


def _with_scores(speaker: Speaker, finding: CaptionFinding, maps: Floats, split: Split, row: int) -> CaptionFinding:
    """The finding of a picture with the kind and the measures of each word whose place is known."""
    words = list(finding.words)
    for word, kind, target in _targets(speaker.subject, words, split.captions, row, finding.grid) if row >= 0 else ():
        if target is not None and not words[word].kind:
            own, centre = (
                {name: value for name, measure in MEASURES.items() if np.isfinite(value := measure(map_, target))}
                for map_ in (maps[word], centre_prior(finding.grid))
            )
            words[word] = replace(words[word], kind=kind, scores=own, centre=centre)
    return replace(finding, words=words)


def _targets(
    seen: Subject, words: Sequence[FoundWord], captions: Captions | None, row: int, grid: tuple[int, int], known: Mapping[str, set[str]] | None = None
) -> Iterator[tuple[int, str, PatchTarget | None]]:
    """(index, kind, patches of its thing, None where the picture does not show it) of each word that names a thing; known: as of `things_of`."""
    if captions is None or captions.things is None:
        return
    for placed in things_of([word.text for word in words], captions.things(row), known):
        target = None if placed.mask is None else patch_target(seen.view_mask(placed.mask.astype(np.uint8)), grid)
        yield placed.word, placed.kind, target if target is not None and target.target.any() else None


def _scores(
    t: Training, speaker: Speaker, split: Split, rows: NDArray[np.int64], tokens: NDArray[np.int64], selected: str, size: int
) -> tuple[dict[str, dict[str, list[Score]]], dict[str, NDArray[np.float64]], list[str]]:
    """(scores and arrays as of `score_words`, what must be said) of the captions that the run predicted for these rows, `size` pictures at once.

    Maps are those of one pass over each caption, with which the maps of single steps are compared where words are drawn.
    """
    captions, d = split.captions, t.recipe.data
    assert captions is not None
    assert captions.things is not None
    known = known_names([thing for row in rows.tolist() for thing in captions.things(row)])
    stranger = randomised(speaker.captioner, t.recipe.seed).eval()
    assert isinstance(stranger, Captioner)
    words, lost = list[ScoredWord](), Counter[str]()
    windows = [Window(0, i, part, part) for i, part in enumerate(np.split(rows, range(size, len(rows), size)))]
    for done, pack in enumerate(packs(t.pixels[split.name], windows, d.workers)):
        t.progress("words measured", done, len(windows))
        images = evaluate_view(pack.images.to(t.runtime.device), size=d.size, mean=t.mean, std=t.std).to(memory_format=t.runtime.memory_format)
        own, random = (given_maps(model, images, tokens[pack.rows]) for model in (speaker.captioner, stranger))
        for b, row in enumerate(pack.rows.tolist()):
            found, map_, layers = words_of(own, b, speaker.tokenizer, speaker.words)
            _, other, others = words_of(random, b, speaker.tokenizer, speaker.words)
            for word, kind, target in _targets(speaker.subject, found, captions, row, own.grid, known):
                if target is None:
                    lost[kind] += 1
                    continue
                stack, beside = (np.concatenate([a[None, word], b[:, word]]) for a, b in ((map_, layers), (other, others)))
                words.append(ScoredWord(row, kind, stack, target, beside))
    t.progress("words measured", len(windows), len(windows))
    named = [f"{count:,} {KIND_NAMES.get(kind, kind)}" for kind, count in lost.items()]
    notes = [f"{' and '.join(named)} name nothing that their picture shows; they have no target and are in no score"] if named else []
    if not words:
        return {}, {}, [*notes, "no word of the captions names a thing that its picture shows: no map is measured"]
    scores, arrays = score_words(words, split=split.name, seed=t.recipe.seed, note=f"words of the captions that were found; final weights, {selected}")
    return scores, arrays, notes


def _in_room(make: Callable[[int], _T], speaker: Speaker) -> _T:
    """What `make(pictures at once)` makes, with fewer at once when memory runs out. UsageError where not even one picture fits."""
    size = _at_once(speaker)
    while True:
        try:
            return make(size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        speaker.subject.runtime.free_cached()
        if size == 1:
            raise UsageError("memory ran out with a single picture")
        size //= 2
