"""Verification of where a captioner looked for each word: its captions, words, maps and scores, by paths that training did not take.

1. *From what is stored*: captions are those of the predictions, own captions those of the samples; of each word the text, its tokens and the token that was
   read before it follow from the tokens and tokenizer.json by the tokenizers library alone; every text token is in exactly one word; a drawn map is the mean
   of its layers; no map differs by more than DIFFERS from that of the pass over the whole caption.
2. *From checkpoint and data*: which pictures are drawn and scored follows from the recipe. Recorded maps are within a tolerance of those that transformers
   itself returns, by `verify_word_maps`; words, things and scores are found anew by `verify_word_scores`.

Shared with training, with oracles in the tests: decoding and resizing of pictures and masks, the encoder's own grid. Never imports the training loop.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from torch import nn

from pellucid.data.dataset import Dataset
from pellucid.data.images import decode, view_box
from pellucid.errors import PellucidError
from pellucid.findings import IMAGES
from pellucid.look import KEPT_SIDE
from pellucid.look_words import describe
from pellucid.models.captioner import Captioner
from pellucid.records import read_arrays
from pellucid.run import Run, rounded
from pellucid.runtime import Runtime
from pellucid.tasks.captioning import generation_of
from pellucid.verify_captions import Cutter
from pellucid.verify_inside.kept import Line, guarded, line
from pellucid.verify_numbers import EXACT
from pellucid.verify_word_maps import AGREES, Anew, Kept, Progress, agreement_of, looked, of_words, paths_of, picture_of
from pellucid.verify_word_scores import score_lines, thing_line
from pellucid.word_findings import DIFFERS, NOT_DRAWN, NOTHING_DRAWN, WORD_ARRAYS, WORDS, CaptionFinding, load_words

LOST = "nothing was found of where the captioner looked: "  # how a run says that it has no words
ANEW = "from checkpoint and data"
SEEN_APART = 2.0  # of 255: how far two versions of the library that writes kept pictures may be apart


def open_words(run: Run) -> tuple[Kept | None, list[Line]]:
    """The words of a run, and whether their files are there and hashed; none where the run says why it has none."""
    record = run.record
    lost = next((note for note in record.notes if note.startswith(LOST)), None)
    if lost is not None and not (run.inside / WORDS).exists():
        return None, [("words", True, f"words: {lost}")]
    try:
        findings = load_words(run.inside)
        kept, told = Kept(run, run.recipe, findings, read_arrays(run.inside / WORD_ARRAYS, "maps of words")), list[Line]()
    except PellucidError as error:
        kept, told = None, [("words", False, f"MISMATCH words: {error}")]
    pictures = [picture_file(run, i) for i in range(len(kept.findings.images))] if kept is not None else []
    names = [str(file.relative_to(run.path)) for file in (run.inside / WORDS, run.inside / WORD_ARRAYS, *pictures)]
    return kept, [*((f"file {name}", False, f"MISMATCH run.json: it holds no hash of {name}") for name in names if name not in record.files), *told]


def picture_file(run: Run, i: int) -> Path:
    """Where the i-th drawn picture lies."""
    return run.inside / IMAGES / f"{i}.webp"


# ── from what is stored ───────────────────────────────────────────────────────────────────────────────────────


def stored_word_checks(kept: Kept) -> list[Line]:
    """The lines about model, captions, words and maps that need neither model nor data."""
    lines = guarded("words model", lambda: [_about(kept)])
    lines += guarded("words captions", lambda: [_captions(kept)])
    lines += guarded("words tokens", lambda: [_tokens(kept)])
    return lines + guarded("words maps", lambda: [_layers(kept)])


def _about(kept: Kept) -> Line:
    """What the findings say of the model and its layers is what the run and its recipe say."""
    f, section, count = kept.findings, kept.section, len(kept.findings.layers)
    chosen = list(range(count)) if section.layers == "mean" else [count - 1] if section.layers == "last" else list(section.layers)
    pairs = (
        ("model", f.model, kept.recipe.model.name),
        ("weights", f.weights, f"final weights, {kept.run.record.selected}"),
        ("split", f.split, kept.split),
        ("chosen layers", f.chosen, chosen),
    )
    faults = [f"{name} {said}, the run has {true}" for name, said, true in pairs if said != true]
    faults += [f"the map of {image.file} differs by {image.agreement:.2g} from that of the pass over its whole caption, at most {DIFFERS:g} is drawn"
               for image in f.images if not 0 <= image.agreement <= DIFFERS]  # fmt: skip
    return line(
        "words model", faults, f"model, weights, split and layers are the run's; {len(f.images)} pictures, each map within {DIFFERS:g} of the whole pass"
    )


def _captions(kept: Kept) -> Line:
    """Captions are those of the predictions, own captions those of the samples. Of other photographs: the text of their tokens."""
    cutter, faults, compared = Cutter.of(kept.run), [], 0
    predicted: dict[str, list[int]] = {}
    own: dict[str, tuple[str, ...]] = {}
    if kept.split in kept.run.prediction_splits:
        found = kept.run.caption_predictions(kept.split)
        predicted = {file: [token for token in row if token >= 0] for file, row in zip(found.files, found.tokens.tolist(), strict=True)}
        own = kept.run.captions(kept.split)
    by_name = _names_of(kept, predicted)
    for image, name in zip(kept.findings.images, by_name, strict=True):
        if (text := cutter.text(image.tokens)) != image.caption:
            faults.append(f"{image.file}: its caption is {image.caption!r}, its tokens say {text!r}")
        if name is None:
            continue
        compared += 1
        if image.tokens != predicted[name]:
            faults.append(f"{image.file}: its tokens are not those of predictions/{kept.split}.npz, which say {cutter.text(predicted[name])!r}")
        if tuple(image.references) != own[name]:
            faults.append(f"{image.file}: its own captions are not those of samples/{kept.split}.captions.json")
    return line("words captions", faults, f"{compared} of {len(by_name)} captions are those of predictions/{kept.split}.npz, with the samples' own captions")


def _names_of(kept: Kept, samples: Mapping[str, Any]) -> list[str | None]:
    """For each picture the sample that it is: those behind the recipe's photographs by their names; a photograph is compared where the data is there."""
    photographs = sum(not kept.findings.left_out(name) for name in kept.section.images)
    return [image.file if i >= photographs and image.file in samples else None for i, image in enumerate(kept.findings.images)]


def _tokens(kept: Kept) -> Line:
    """Words, their tokens and their queries follow from the tokens of each caption."""
    cutter = Cutter.of(kept.run)
    faults = [f"{image.file}: {fault}" for image in kept.findings.images for fault in word_faults(image, cutter)]
    count = sum(len(image.words) for image in kept.findings.images)
    return line("words tokens", faults, f"text, tokens and query of {count} words follow from the tokens of their captions")


def word_faults(image: CaptionFinding, cutter: Cutter) -> list[str]:
    """What is wrong with the words of a caption: each is the text of its tokens, all text is in one word, none overlap, each query stands before its word."""
    texts = {t for t, token in enumerate(image.tokens) if token not in cutter.left_out and cutter.tokenizer.id_to_token(token) is not None}
    faults, behind, covered = [], 0, set[int]()
    for word in image.words:
        first, last = word.tokens
        if not behind <= first < last <= len(image.tokens):
            faults.append(f"the tokens of {word.text!r}, {first} to before {last}, do not follow those of the word before it, which end at {behind}")
            continue
        pieces = [image.tokens[t] for t in range(first, last) if t in texts]
        text = str(cutter.tokenizer.decode(pieces, skip_special_tokens=False)).strip() if pieces else ""
        if text.replace(" ", "") != word.text.replace(" ", ""):
            faults.append(f"the tokens {first} to before {last} of {word.text!r} read {text!r}")
        read = image.tokens[first - 1] if first else cutter.vocabulary.start
        if word.query != (wanted := token_text(read, cutter)):
            faults.append(f"the query of {word.text!r} is {word.query!r}, the token before it is {wanted!r}")
        behind = last
        covered |= set(range(first, last))
    faults += [f"token {t}, {token_text(image.tokens[t], cutter)!r}, is in no word" for t in sorted(texts - covered)]
    encoding = cutter.tokenizer.encode(image.caption, add_special_tokens=False)
    if not faults and encoding.ids == [image.tokens[t] for t in sorted(texts)]:  # then the library's own words are known
        own = dict(zip(sorted(texts), encoding.word_ids, strict=True))
        spans = [{own[t] for t in range(*word.tokens) if t in own} for word in image.words]
        faults += [f"{word.text!r} is pieces of {len(words)} words" for word, words in zip(image.words, spans, strict=True) if len(words) != 1]
        joined = [word.text for word, words, before in zip(image.words[1:], spans[1:], spans, strict=False) if words == before and word.text.isalnum()]
        faults += [f"{text!r} is a piece of the word before it" for text in joined]
    return faults


def token_text(token: int, cutter: Cutter) -> str:
    """One token as it reads; the name of one that stands for no text."""
    name = cutter.tokenizer.id_to_token(token)
    if name is None:
        return f"<{token}>"
    text = name if token in cutter.left_out else str(cutter.tokenizer.decode([token], skip_special_tokens=False)).strip()
    return text if text and "\ufffd" not in text else name


def _layers(kept: Kept) -> Line:
    """Maps have the shapes that words and layers say, and where a map is of all heads it is the mean of the chosen layers."""
    faults, L = [], len(kept.findings.layers)
    for i, image in enumerate(kept.findings.images):
        try:
            maps = kept.floats(f"maps/{i}", (len(image.words), *image.grid))
            layers = kept.floats(f"layers/{i}", (L, len(image.words), *image.grid))
        except ValueError as error:
            faults.append(f"{image.file}: {error}")
            continue
        if kept.section.heads == "mean":
            apart = np.abs(maps - layers[kept.findings.chosen].mean(axis=0)).max(initial=0.0, axis=(1, 2))
            faults += [f"{image.file}: the map of {image.words[w].text!r} is not the mean of its layers" for w in np.flatnonzero(apart > EXACT)]
        most = 1 if kept.section.pieces == "mean" else max((b - a for a, b in (word.tokens for word in image.words)), default=1)
        if maps.sum(axis=(1, 2)).max(initial=0.0) > most * (1 + 1e-4):
            faults.append(f"{image.file}: a map holds more than all attention")
    return line("words maps", faults, f"maps of {len(kept.findings.images)} pictures and {L} layers fit each other")


# ── from checkpoint and data ──────────────────────────────────────────────────────────────────────────────────


def anew_word_checks(
    kept: Kept, dataset: Dataset, module: nn.Module, runtime: Runtime, progress: Progress | None = None, *, same_bits: bool = False
) -> list[Line]:  # fmt: skip
    """The lines about drawn pictures, their maps and the scores of words. module: the run's captioner, in eval mode, on the device.

    same_bits: log probabilities that were made anew here have the bits of the run, so that maps are nearly the same too, whatever the run says of its machine.
    """
    assert isinstance(module, Captioner)
    if kept.split not in dataset.splits:
        return []  # told with the data
    anew = Anew(kept, dataset, module, runtime, progress, same_bits)
    lines = [*guarded("words layers", lambda: [_paths(anew)]), *guarded("words pictures", lambda: [_pictures(anew)])]
    if all(ok for _, ok, _ in lines):
        lines += guarded("words maps anew", lambda: [_maps(anew)])
        lines += guarded("words things", lambda: [thing_line(anew)])
    return lines + guarded("words scores", lambda: score_lines(anew))


def _paths(a: Anew) -> Line:
    """Which attentions were recorded, and what the findings say that a map is."""
    f, paths = a.kept.findings, paths_of(a.plain, a.kept.recipe.data.size)
    faults = [] if f.layers == paths else [f"the layers are {f.layers}, the decoder looks at the picture by {paths}"]
    how = describe(a.kept.section, f.chosen, len(paths), a.module.attends)
    faults += [] if f.how == how else [f"how is {f.how!r}, expected {how!r}"]
    return line("words layers", faults, f"{len(paths)} attentions of the decoder look at the picture; a map is {how}")


def _pictures(a: Anew) -> Line:
    """Each picture that the recipe asks for is there, as large as it is, with what the model saw of it; a caption that no predictions hold is found again."""
    images, d = a.kept.findings.images, a.kept.recipe.data
    names, wanted = [image.file for image in images], [one.name for one in a.asked]
    faults = [f"{name} is missing" for name in wanted if name not in names] + [f"{name} was not asked for" for name in names if name not in wanted]
    if not faults and names != wanted:
        faults.append("they are not in the order of the recipe and the split")
    if faults:
        return line("words pictures", faults, "")
    predicted = a.kept.run.caption_predictions(a.kept.split).tokens if a.kept.split in a.kept.run.prediction_splits else None
    generation = generation_of(a.kept.recipe, a.kept.run.data.vocabulary)
    for i, (image, one) in enumerate(zip(images, a.asked, strict=True)):
        if (apart := _apart(picture_file(a.kept.run, i), one.pixels)) > SEEN_APART:
            faults.append(f"{image.file}: inside/{IMAGES}/{i}.webp is another picture, its colours differ by {apart:.3g} of 255 in the mean")
        size = (one.pixels.shape[0], one.pixels.shape[1])
        box = view_box(size, d.size, d.fit, d.resize_size)
        if image.size != size or max(abs(x - y) for x, y in zip(image.view, box, strict=True)) > 1e-6:
            faults.append(f"{image.file}: size and view are {image.size} and {image.view}, found {size} and {box}")
        if one.row is not None and predicted is not None:
            tokens = predicted[one.row].tolist()
        else:
            tokens = a.module.generate(a.inputs(picture_of(one.pixels)), generation).tokens[0].tolist()
        if image.tokens != [token for token in tokens if token >= 0] and (one.row is not None or a.same):
            faults.append(f"{image.file}: its caption is not the one of the run's model")
        own = () if one.row is None or a.split.captions is None else a.split.captions.texts[one.row]
        if tuple(image.references) != tuple(own):
            faults.append(f"{image.file}: its own captions are not those of the data")
    left_out = "; others are left out, as a note says" if any(NOT_DRAWN in note or note.startswith(NOTHING_DRAWN) for note in a.kept.findings.notes) else ""
    return line("words pictures", faults, f"the {len(images)} that the recipe asks for, with their captions{left_out}")


def _apart(file: Path, pixels: NDArray[np.uint8]) -> float:
    """How far a kept picture is from a photograph that is kept in the same way: mean difference of its colours, 0 to 255; infinite of other sizes."""
    again, stored = io.BytesIO(), np.asarray(decode(file.read_bytes(), str(file)), np.float64)
    small = PIL.Image.fromarray(pixels)
    small.thumbnail((KEPT_SIDE, KEPT_SIDE))
    small.save(again, "webp", quality=85)
    wanted = np.asarray(decode(again.getvalue(), str(file)), np.float64)
    return float(np.abs(stored - wanted).mean()) if stored.shape == wanted.shape else math.inf


def _maps(a: Anew) -> Line:
    """The maps of every drawn word, chosen and of each layer, the attention that went to the picture, and how far steps are from the whole pass."""
    faults, largest = [], 0.0
    for i, (image, one) in enumerate(zip(a.kept.findings.images, a.asked, strict=True)):
        a.tell("verifying words", i, len(a.asked))
        inputs = a.inputs(picture_of(one.pixels))
        own = looked(a.plain, inputs, image.tokens)
        agreement = agreement_of(a.plain, inputs, image.tokens)
        if not abs(agreement - image.agreement) <= (AGREES if a.same else DIFFERS):
            faults.append(f"{image.file}: its maps are said to differ by {image.agreement:.2g} from those of the whole pass, recomputed {agreement:.2g}")
        if own.maps.shape[-2:] != tuple(image.grid) or len(own.maps) != len(a.kept.findings.layers):
            faults.append(f"{image.file}: {len(own.maps)} layers look at {own.maps.shape[-2:]} patches, not {len(a.kept.findings.layers)} at {image.grid}")
            continue
        chosen = own.chosen(a.kept.findings.chosen, a.kept.section.heads)
        pairs = (("the map", f"maps/{i}", chosen), ("a layer's map", f"layers/{i}", own.each()))
        for what, key, maps in pairs:
            wanted = of_words(maps, image.words, a.kept.section.pieces)
            apart = np.abs(a.kept.floats(key, wanted.shape) - wanted)
            each = apart.max(axis=(*range(apart.ndim - 3), -2, -1), initial=0.0)  # of each word
            largest = max(largest, float(each.max(initial=0.0)))
            faults += [f"{image.file}: {what} of {image.words[w].text!r} differs by {each[w]:.2g}" for w in np.flatnonzero(~(each <= a.near))]
        for word in image.words:
            share = float(np.mean([chosen[t].sum() for t in range(*word.tokens)]))
            if not abs(share - word.share) <= max(a.near, EXACT):
                faults.append(f"{image.file}: attention on the picture for {word.text!r} {rounded(word.share)} reported, {rounded(share)} recomputed")
    way = "self-attention of GIT" if a.module.attends == "self" else "cross-attention"
    return line("words maps anew", faults, f"{way} by transformers' own output_attentions {ANEW}: largest difference {largest:.2g} of {len(a.asked)} pictures")
