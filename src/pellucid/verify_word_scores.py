"""Verification of the scores of words, from the definitions: which words name things, the measures of their maps, means over words, intervals over pictures.

Words find their things, and things their patches, by loops; the measures of a word are those of `verify_inside.scores`. Kept measures of words are compared
with those of maps made anew; means, margins and intervals follow from the kept ones to 1e-6, and baselines that need no network from the targets alone. Of
nearly equal patches either may be the larger, so a few words may have another pointing, rank or overlap. Shares no line with `inside.word_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pellucid.data.dataset import Thing
from pellucid.findings import Score
from pellucid.run import Measurement, rounded
from pellucid.verify_captions import Cutter
from pellucid.verify_inside import scores
from pellucid.verify_inside.kept import Line, guarded, line
from pellucid.verify_numbers import EXACT
from pellucid.verify_word_maps import SAME_MACHINE, Anew, Bools, Floats, Kept, looked, of_words, spread
from pellucid.word_findings import FoundWord

NEAR = 2e-3  # of a mean over words, where rounding moves the maxima of maps
FLIPPED = 0.02  # of the words, at most, have another measure because patches are nearly equal; always one
TIED = 1e-6  # of a map: patches so near may change places between two ways of computing it in float32
SHIFTS, PAIRS, FEWEST_SHIFTS = 20, 40_000, 4  # of the words that judge a word's map
FEWEST = 20  # pictures that have an interval
CHOSEN = "chosen"


# ── words and things ──────────────────────────────────────────────────────────────────────────────────────────


def named_things(words: Sequence[str], things: Sequence[Thing], known: Mapping[str, set[str]] | None = None) -> Iterator[tuple[int, str, Bools | None]]:
    """(index of the last word of a name, kind, where the picture has it, None where it has not) of the names in a caption, kind by kind, the longest first."""
    said = [word.lower() for word in words]
    kinds = list(dict.fromkeys([kind for thing in things for kind in thing.names] + list(known or {})))
    for kind in kinds:
        own = [(name, thing.mask) for thing in things for name in thing.names.get(kind, ())]
        names = {tuple(name.split()) for name, _ in own} | {tuple(name.split()) for name in (known or {}).get(kind, ())}
        first = 0
        while first < len(said):
            there = sorted((name for name in names if tuple(said[first : first + len(name)]) == name), key=len)
            if not there:
                first += 1
                continue
            masks = [np.asarray(mask, bool) for name, mask in own if name == " ".join(there[-1])]
            first += len(there[-1])
            yield first - 1, kind, np.any(masks, axis=0) if masks else None


def thing_line(a: Anew) -> Line:
    """Which drawn words name a thing of their picture, and the measures of their maps."""
    faults, count = [], 0
    for i, (image, one) in enumerate(zip(a.kept.findings.images, a.asked, strict=True)):
        maps = a.kept.floats(f"maps/{i}", (len(image.words), *image.grid))
        wanted: dict[int, tuple[str, dict[str, float]]] = {}
        for w, kind, mask in named_things([word.text for word in image.words], a.things(one.row) if one.row is not None else []):
            target, valid = (np.zeros(0, bool), np.zeros(0, bool)) if mask is None else a.target(mask, image.grid)
            if target.any() and w not in wanted:
                measures = scores.measured(maps[w], target, valid)
                wanted[w] = kind, {name: value for name, value in measures.items() if math.isfinite(value)}
        for w, word in enumerate(image.words):
            kind, measures = wanted.get(w, ("", {}))
            count += bool(kind)
            if word.kind != kind or word.scores.keys() != measures.keys():
                faults.append(f"{image.file}: {word.text!r} is called {word.kind or 'no thing'} with {len(word.scores)} scores, it is {kind or 'no thing'}")
            faults += [f"{image.file}: {name} of {word.text!r} {rounded(value)} reported, {rounded(measures[name])} recomputed"
                       for name, value in word.scores.items() if name in measures and not abs(value - measures[name]) <= EXACT]  # fmt: skip
    return line("words things", faults, f"{count} drawn words name things of their pictures; their scores recomputed from their maps and masks")


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Placed:
    """A word with its target, found anew. maps, random: (1 + L, gh, gw), the chosen ones and those of each layer."""

    row: int
    target: Bools
    valid: Bools
    maps: Floats
    random: Floats


def score_lines(a: Anew) -> list[Line]:
    """The scores of every layer and kind of word, each against the words of the predictions."""
    f, section = a.kept.findings, a.kept.section
    placeable = a.split.captions is not None and a.split.captions.things is not None and a.kept.split in a.kept.run.prediction_splits
    rows = spread(len(a.split), section.scored) if placeable and section.scored else []
    faults = [] if f.scored == len(rows) else [f"{f.scored} pictures scored, the recipe asks for {len(rows)}"]
    words = _placed(a, rows) if rows else {}
    layers = [CHOSEN, *map(str, range(len(f.layers)))] if words else []
    wanted = {(layer, kind) for layer in layers for kind in words}
    there = {(layer, kind) for layer, kinds in f.scores.items() for kind in kinds}
    faults += [f"{kind} of layer {layer} {'is missing' if (layer, kind) in wanted else 'has no word behind it'}" for layer, kind in sorted(wanted ^ there)]
    counted = ", ".join(f"{len(found)} of the kind {kind}" for kind, found in words.items()) or "no word"
    lines = [line("words scores", faults, f"of {len(rows)} pictures: {counted}")]
    for kind, found in words.items():
        pairs = shuffled_pairs([word.row for word in found])
        priors = _priors(found)
        for number, layer in enumerate(layers):
            a.tell("verifying scores of words", number, len(layers))
            lines += guarded(f"words {kind}, {layer}", partial(_kind_lines, a.kept, (layer, kind), number, found, pairs, priors, a.near))
    return lines


def _placed(a: Anew, rows: Sequence[int]) -> dict[str, list[Placed]]:
    """{kind: words that have a target} of the captions that the run predicted for some rows, in order."""
    cutter, tokens = Cutter.of(a.kept.run), a.kept.run.caption_predictions(a.kept.split).tokens
    known: dict[str, set[str]] = {}
    for row in rows:
        for thing in a.things(row):
            for kind, names in thing.names.items():
                known.setdefault(kind, set()).update(names)
    section, chosen = a.kept.section, a.kept.findings.chosen
    found: dict[str, list[Placed]] = {}
    for done, row in enumerate(rows):
        a.tell("verifying words", done, len(rows))
        caption = [token for token in tokens[row].tolist() if token >= 0]
        words = words_of(caption, cutter)
        placed = [(w, kind, mask) for w, kind, mask in named_things([word.text for word in words], a.things(row), known) if mask is not None]
        if not placed:
            continue
        image = a.inputs(a.split.open(row))
        stacks = []
        for model in (a.plain, a.stranger):
            own = looked(model, image, caption)
            stacks.append(of_words(np.concatenate([own.chosen(chosen, section.heads)[None], own.each()]), words, section.pieces))
        for w, kind, mask in placed:
            target, valid = a.target(mask, stacks[0].shape[-2:])  # type: ignore[arg-type]
            if target.any():
                found.setdefault(kind, []).append(Placed(row, target, valid, stacks[0][:, w], stacks[1][:, w]))
    return found


def words_of(tokens: Sequence[int], cutter: Cutter) -> list[FoundWord]:
    """The words of a caption, by pieces: as the library cuts the caption where it gives these very tokens again, else one a blank before a token."""
    places = [t for t, token in enumerate(tokens) if token not in cutter.left_out and cutter.tokenizer.id_to_token(token) is not None]
    text = str(cutter.tokenizer.decode([tokens[t] for t in places], skip_special_tokens=False))
    encoding = cutter.tokenizer.encode(text, add_special_tokens=False)
    if encoding.ids == [tokens[t] for t in places]:
        groups: dict[int, list[int]] = {}
        for t, number in zip(places, encoding.word_ids, strict=True):
            groups.setdefault(-1 if number is None else number, []).append(t)
        pieces = list(groups.values())
    else:
        pieces = []
        for t in places:
            before = str(cutter.tokenizer.decode([tokens[p] for p in places if p < t], skip_special_tokens=False))
            after = str(cutter.tokenizer.decode([tokens[p] for p in places if p <= t], skip_special_tokens=False))
            if pieces and not after[len(before) :].startswith(" "):
                pieces[-1].append(t)
            else:
                pieces.append([t])
    decoded = [str(cutter.tokenizer.decode([tokens[t] for t in group], skip_special_tokens=False)).strip() for group in pieces]
    return [FoundWord(word, (group[0], group[-1] + 1), "") for word, group in zip(decoded, pieces, strict=True)]


def shuffled_pairs(rows: Sequence[int]) -> list[list[int]]:
    """For each of n words the other words, of other pictures, whose targets judge its map: all of few, of many those of evenly spread cyclic shifts."""
    n = len(rows)
    most = min(SHIFTS, max(FEWEST_SHIFTS, PAIRS // max(n, 1)))
    if n - 1 <= most:
        shifts = list(range(1, n))
    else:
        shifts = sorted({int(s) for s in np.linspace(1, n - 1, most + 2).round()[1:-1]})
    return [[other for other in ((word + shift) % n for shift in shifts) if rows[other] != rows[word]] for word in range(n)]


def _priors(words: Sequence[Placed]) -> dict[str, dict[str, Floats]]:
    """{"uniform" or "centre": {measure: (m,)}}: the baselines that need no map."""
    targets, valid = np.stack([word.target for word in words]), np.stack([word.valid for word in words])
    grid = targets.shape[1:]
    maps = {"uniform": np.ones(grid), "centre": scores.centre(grid)}
    return {name: scores.table(np.broadcast_to(prior, targets.shape), targets, valid) for name, prior in maps.items()}


def judged(relevance: Floats, targets: Bools, valid: Bools) -> dict[str, Floats]:
    """{measure: (k,)} of one map (gh, gw) by k targets. Without ties or ignored patches all at once, else one by one by `scores.measured`."""
    values = relevance.ravel()
    if not valid.all() or len(set(values.tolist())) < len(values):
        return scores.table(np.broadcast_to(relevance, targets.shape), targets, valid)
    marks, order = targets.reshape(len(targets), -1), np.argsort(-values)
    sizes, ranks, total = marks.sum(axis=1), rankdata(values), values.sum()
    ranked = marks[:, order]
    hits = np.cumsum(ranked, axis=1)
    kept = 1 + int(np.searchsorted(np.cumsum(values[order]), scores.KEPT_MASS * total * (1 - 1e-9)))
    common, free = hits[:, kept - 1], len(values) - sizes
    with np.errstate(invalid="ignore"):
        auc = np.where(free > 0, (marks @ ranks - sizes * (sizes + 1) / 2) / (sizes * free), math.nan)
    return {
        "pointing": ranked[:, 0].astype(np.float64),
        "mass": marks @ values / total,
        "rank": np.array([hits[k, size - 1] / size for k, size in enumerate(sizes.tolist())]),
        "iou": common / (kept + sizes - common),
        "auc": auc,
    }


def _kind_lines(
    kept: Kept, key: tuple[str, str], number: int, words: Sequence[Placed], pairs: Sequence[Sequence[int]], priors: Mapping[str, dict[str, Floats]], near: float
) -> list[Line]:  # fmt: skip
    """The scores of one kind of word in one layer: each word's measures from its map, and means, margins and intervals from the kept measures."""
    layer, kind = key
    targets, valid = np.stack([word.target for word in words]), np.stack([word.valid for word in words])
    maps, random_maps = [word.maps[number] for word in words], [word.random[number] for word in words]
    own, strangers = _tables(maps, targets, valid), _tables(random_maps, targets, valid)
    shuffled = {measure: np.full(len(words), math.nan) for measure in scores.MEASURES}
    for w, others in enumerate(pairs):
        for measure, values in judged(maps[w], targets[list(others)], valid[list(others)]).items() if others else ():
            known = values[np.isfinite(values)]
            shuffled[measure][w] = known.mean() if len(known) else math.nan
    stated = {score.measure: score for score in kept.findings.scores.get(layer, {}).get(kind, [])}
    name, owners = kind if layer == CHOSEN else f"{kind}, layer {layer}", np.array([word.row for word in words])
    lines = []
    for measure in scores.MEASURES:
        faults, values, random = [], *(np.asarray(kept.arrays.get(f"{of}/{layer}/{kind}/{measure}", np.empty(0)), np.float64) for of in ("scores", "random"))
        for what, array, wanted, of in (("of a word", values, own, maps), ("of a word by random weights", random, strangers, random_maps)):
            faults += _word_faults(what, array, wanted[measure], of, near)
        if not faults:
            rivals = {baseline: table[measure] for baseline, table in priors.items()} | {"shuffled": shuffled[measure], "random model": random}
            faults += _score_faults(kept, stated.get(measure), name, measure, values, rivals, owners)
        lines.append(line(f"words {measure}[{name}]", faults, f"{stated[measure].value if measure in stated else 'none'} of {len(words)} words recomputed"))
    return lines


def _tables(maps: Sequence[Floats], targets: Bools, valid: Bools) -> dict[str, Floats]:
    """{measure: (m,)} of m maps, each by its own target."""
    rows = [judged(relevance, targets[w : w + 1], valid[w : w + 1]) for w, relevance in enumerate(maps)]
    return {measure: np.concatenate([row[measure] for row in rows]) for measure in scores.MEASURES}


def _word_faults(what: str, array: Floats, wanted: Floats, maps: Sequence[Floats], near: float) -> list[str]:
    """Kept measures of words against those anew. Of a map with nearly equal patches either may be the larger: a few such words may differ by more."""
    if array.shape != wanted.shape:
        return [f"measures {what} are of {array.shape}, there are {len(wanted)} words"]
    other = ~((np.abs(array - wanted) <= max(10 * near, EXACT)) | (np.isnan(array) & np.isnan(wanted)))
    unsure = np.array([near > SAME_MACHINE or np.diff(np.sort(one.ravel())).min(initial=1.0) < TIED for one in maps])
    if not (other & ~unsure).any() and other.sum() <= max(1, int(FLIPPED * len(wanted))):
        return []
    w = int(other.argmax())
    return [f"{int(other.sum())} of {len(wanted)} measures {what} differ, number {w} the first: kept {rounded(array[w])}, recomputed {rounded(wanted[w])}"]


def _score_faults(
    kept: Kept, score: Score | None, name: str, measure: str, values: Floats, rivals: Mapping[str, Floats], owners: NDArray[np.int64]
) -> list[str]:  # fmt: skip
    """One Score against the values of each word, its baselines and margins."""
    if not np.isfinite(values).any():
        return ["a score of no word"] if score is not None else []
    if score is None:
        return [f"{measure}[{name}] is missing"]
    both = {rival: np.where(np.isfinite(values), x, math.nan) for rival, x in rivals.items()}
    both = {rival: x for rival, x in both.items() if np.isfinite(x).any()}
    faults = [] if score.method == name and score.higher_is_better else [f"it is said of {score.method!r} with the wrong way up"]
    if score.baselines.keys() != both.keys() or score.margins.keys() != both.keys():
        return [*faults, f"baselines and margins are {sorted(score.baselines)} and {sorted(score.margins)}, there are {sorted(both)}"]
    faults += _number_faults(kept, score.value, f"{measure}[{name}]", values, owners, EXACT)
    for rival, x in both.items():
        tolerance = NEAR if rival == "shuffled" else EXACT
        faults += _number_faults(kept, score.baselines[rival], f"{measure}[{name}, {rival}]", x, owners, tolerance)
        faults += _number_faults(kept, score.margins[rival], f"{measure}[{name}] - {rival}", values - x, owners, tolerance)
    return faults


def _number_faults(kept: Kept, m: Measurement, name: str, values: Floats, owners: NDArray[np.int64], tolerance: float) -> list[str]:
    """What is wrong with a reported mean over words: its value, what it is of, its interval over pictures."""
    there = np.isfinite(values)
    mean, n = math.fsum(values[there].tolist()) / int(there.sum()), int(there.sum())
    said, wanted = (m.name, m.n, m.seed, m.split, m.unit), (name, n, kept.recipe.seed, kept.split, "fraction")
    faults = [] if said == wanted else [f"{name}: name, n, seed, split and unit are {said}, recomputed {wanted}"]
    if not abs(m.value - mean) <= tolerance:
        faults.append(f"{name}: reported {rounded(m.value)}, recomputed {rounded(mean)}")
    interval = over_pictures(values[there], owners[there])
    if (interval is None) != (m.interval is None):
        faults.append(f"{name}: {'an interval where none belongs' if interval is None else 'no interval'}")
    elif interval is not None and m.interval is not None and max(abs(x - y) for x, y in zip(interval, m.interval, strict=True)) > tolerance:
        told, anew = (f"{rounded(low)} to {rounded(high)}" for low, high in (m.interval, interval))
        faults.append(f"{name}: interval {told} reported, {anew} recomputed")
    return faults


def over_pictures(values: Floats, owners: NDArray[np.int64]) -> tuple[float, float] | None:
    """The 95 % percentile interval of a mean over words when pictures are drawn, each with all its words; None of fewer than FEWEST pictures."""
    pictures = sorted(set(owners.tolist()))
    if len(pictures) < FEWEST:
        return None
    sums = np.array([values[owners == picture].sum() for picture in pictures])
    counts = np.array([(owners == picture).sum() for picture in pictures])
    draws = scores._resamples(len(pictures))
    low, high = np.quantile(sums[draws].sum(axis=1) / counts[draws].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)
