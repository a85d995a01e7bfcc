"""Verification of the scores of words, from the definitions: which words name things, the measures of their maps, means over words, intervals over pictures.

Words find their things, and things their patches, by loops; the measures of a word are those of `verify_inside.scores`. Kept measures of words are compared
with those of maps made anew, and so are reported means and intervals; these also follow from the kept measures to 1e-6, and baselines that need no network
from the targets alone. Rounding moves each patch of a map by a share of its value, and of nearly equal patches either may be the larger: so what is made anew
is known to lie between two `Bounds`, which are equal, but for the mass, wherever no such pair matters. Shares no line with `inside.word_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pellucid.caption_readings import KIND_NAMES
from pellucid.data.dataset import Thing
from pellucid.findings import Score
from pellucid.inside.faithfulness import BASELINES, HOW
from pellucid.run import Measurement, rounded
from pellucid.verify_captions import Cutter
from pellucid.verify_inside import scores
from pellucid.verify_inside.kept import Line, guarded, line
from pellucid.verify_numbers import EXACT
from pellucid.verify_word_maps import Anew, Bools, Floats, looked, of_words, spread
from pellucid.word_findings import FEWEST_SHIFTS, PAIRS, SHIFTS, FoundWord

ROUNDING, OTHER_ROUNDING = 1e-4, 1e-3  # of the value of a patch: between two ways of computing it in float32, on one machine and on another
ELSEWHERE = 0.005  # of a measure, beyond its bounds, on another machine
NOTHING = 1e-30  # of a map: smaller values are 0 in float32, or not
FEWEST = 20  # pictures that have an interval
CHOSEN = "chosen"
LOST = " name nothing that their picture shows; they have no target and are in no score"  # how a note of words without a target ends
NONE_MEASURED = ": no map is measured"  # how a note ends that says why there is no score


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
        wanted: dict[int, tuple[str, dict[str, float], dict[str, float]]] = {}
        for w, kind, mask in named_things([word.text for word in image.words], a.things(one.row) if one.row is not None else []):
            target, valid = (np.zeros(0, bool), np.zeros(0, bool)) if mask is None else a.target(mask, image.grid)
            if target.any() and w not in wanted:
                both = (scores.measured(map_, target, valid) for map_ in (maps[w], scores.centre(image.grid)))
                own, centre = ({name: value for name, value in measures.items() if math.isfinite(value)} for measures in both)
                wanted[w] = kind, own, centre
        for w, word in enumerate(image.words):
            kind, measures, centre = wanted.get(w, ("", {}, {}))
            count += bool(kind)
            if word.kind != kind or word.scores.keys() != measures.keys():
                faults.append(f"{image.file}: {word.text!r} is called {word.kind or 'no thing'} with {len(word.scores)} scores, it is {kind or 'no thing'}")
            faults += [f"{image.file}: {name} of {word.text!r} {rounded(value)} reported, {rounded(measures[name])} recomputed"
                       for name, value in word.scores.items() if name in measures and not abs(value - measures[name]) <= EXACT]  # fmt: skip
            if word.centre.keys() != centre.keys() or any(not abs(word.centre[name] - value) <= EXACT for name, value in centre.items()):
                faults.append(f"{image.file}: the centre prior of {word.text!r} has {word.centre}, recomputed {centre}")
    return line("words things", faults, f"{count} drawn words name things of their pictures; their scores recomputed from their maps and masks")


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Bounds:
    """{measure: (m,)} between which measures of m maps lie, NaN where they are not defined."""

    low: dict[str, Floats]
    high: dict[str, Floats]

    @classmethod
    def joined(cls, parts: Sequence[Bounds]) -> Bounds:
        both = ([getattr(part, side) for part in parts] for side in ("low", "high"))
        return cls(*({measure: np.concatenate([one[measure] for one in side]) for measure in scores.MEASURES} for side in both))

    @cached_property
    def means(self) -> Bounds:
        """Those of the mean over the m maps, NaN where no measure is defined."""
        return Bounds(*({measure: np.array([_mean(x)]) for measure, x in side.items()} for side in (self.low, self.high)))


def _mean(values: Floats) -> float:
    """The mean of those that are no NaN; NaN of none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


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
    words, lost = _placed(a, rows) if rows else ({}, {})
    layers = [CHOSEN, *map(str, range(len(f.layers)))] if words else []
    wanted = {(layer, kind) for layer in layers for kind in words}
    there = {(layer, kind) for layer, kinds in f.scores.items() for kind in kinds}
    faults += [f"{kind} of layer {layer} {'is missing' if (layer, kind) in wanted else 'has no word behind it'}" for layer, kind in sorted(wanted ^ there)]
    counted = ", ".join(f"{len(found)} of the kind {kind}" for kind, found in words.items()) or "no word"
    told, wanted_notes = [note for note in f.notes if note.endswith((LOST, NONE_MEASURED))], _notes(a, lost, words, placeable)
    faults += [] if told == wanted_notes else [f"the notes of words that are in no score are {told}, expected {wanted_notes}"]
    lines = [line("words scores", faults, f"of {len(rows)} pictures: {counted}")]
    for kind, found in words.items():
        pairs = shuffled_pairs([word.row for word in found])
        priors = _priors(found)
        for number, layer in enumerate(layers):
            a.tell("verifying scores of words", number, len(layers))
            lines += guarded(f"words {kind}, {layer}", partial(_kind_lines, a, (layer, kind), number, found, pairs, priors))
    return lines


def _notes(a: Anew, lost: Mapping[str, int], words: Mapping[str, object], placeable: bool) -> list[str]:
    """What the findings must say of words that are in no score. lost: {kind: how many name nothing that their picture shows}."""
    if not placeable:
        known = a.split.captions is not None and a.split.captions.things is not None
        return [f"{'no val and no test split' if known else 'nobody says where the things of these pictures are'}{NONE_MEASURED}"]
    if not a.kept.section.scored:
        return []
    counts = " and ".join(f"{count:,} {KIND_NAMES.get(kind, kind)}" for kind, count in lost.items())
    none = [] if words else [f"no word of the captions names a thing that its picture shows{NONE_MEASURED}"]
    return [*([f"{counts}{LOST}"] if lost else []), *none]


def _placed(a: Anew, rows: Sequence[int]) -> tuple[dict[str, list[Placed]], dict[str, int]]:
    """({kind: words that have a target}, {kind: number of words that have none}) of the captions that the run predicted for some rows, in order."""
    cutter, tokens = Cutter.of(a.kept.run), a.kept.run.caption_predictions(a.kept.split).tokens
    known: dict[str, set[str]] = {}
    for row in rows:
        for thing in a.things(row):
            for kind, names in thing.names.items():
                known.setdefault(kind, set()).update(names)
    section, chosen = a.kept.section, a.kept.findings.chosen
    found: dict[str, list[Placed]] = {}
    lost: dict[str, int] = {}
    for done, row in enumerate(rows):
        a.tell("verifying words", done, len(rows))
        caption = [token for token in tokens[row].tolist() if token >= 0]
        words = words_of(caption, cutter)
        named = list(named_things([word.text for word in words], a.things(row), known))
        if not any(mask is not None for _, _, mask in named):
            lost |= {kind: lost.get(kind, 0) + [other for _, other, _ in named].count(kind) for _, kind, _ in named}
            continue
        image = a.inputs(a.split.open(row))
        stacks = []
        for model in (a.plain, a.stranger):
            own = looked(model, image, caption)
            stacks.append(of_words(np.concatenate([own.chosen(chosen, section.heads)[None], own.each()]), words, section.pieces))
        for w, kind, mask in named:
            target, valid = (np.zeros(0, bool), np.zeros(0, bool)) if mask is None else a.target(mask, stacks[0].shape[-2:])  # type: ignore[arg-type]
            if target.any():
                found.setdefault(kind, []).append(Placed(row, target, valid, stacks[0][:, w], stacks[1][:, w]))
            else:
                lost[kind] = lost.get(kind, 0) + 1
    return found, lost


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
    numbers: dict[tuple[bytes, bytes], int] = {}  # of different targets
    own = [numbers.setdefault((word.target.tobytes(), word.valid.tobytes()), len(numbers)) for word in words]
    different = [words[own.index(number)] for number in range(len(numbers))]
    targets, valid = np.stack([word.target for word in different]), np.stack([word.valid for word in different])
    maps = {"uniform": np.ones(targets.shape[1:]), "centre": scores.centre(targets.shape[1:])}
    tables = {name: scores.table(np.broadcast_to(prior, targets.shape), targets, valid) for name, prior in maps.items()}
    return {name: {measure: values[own] for measure, values in table.items()} for name, table in tables.items()}


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


def bounds(relevance: Floats, targets: Bools, valid: Bools, rounding: float) -> Bounds:
    """Those of one map (gh, gw) by k targets, each of whose patches may be off by a share of its value."""
    if not valid.all():
        parts = zip(targets, valid, strict=True)
        return Bounds.joined([_shaken(relevance[ok], mark[ok][None], judged(relevance, mark[None], ok[None]), rounding) for mark, ok in parts])
    return _shaken(relevance.ravel(), targets.reshape(len(targets), -1), judged(relevance, targets, valid), rounding)


def _shaken(values: Floats, marks: Bools, sure: dict[str, Floats], rounding: float) -> Bounds:
    """Those of values (K,) by marks (k, K): patches on the target a little less and all others a little more, and the other way round. sure: of no rounding."""
    values = values if values.any() else np.ones_like(values)
    falling = -np.sort(-values)
    held, wanted = np.cumsum(falling), scores.KEPT_MASS * values.sum()
    first, last = (int(np.searchsorted(held, wanted * (1 + sign * 2 * rounding) - 1e-9 * wanted)) for sign in (-1, 1))
    sizes, mass = marks.sum(axis=1), sure["mass"]
    edges = [mass * (1 + sign * rounding) / (1 + sign * rounding * (2 * mass - 1)) for sign in (-1, 1)]
    if first == last and (-np.diff(falling) > rounding * (falling[:-1] + falling[1:]) + NOTHING).all():
        return Bounds(*({**sure, "mass": edge} for edge in edges))
    found, kept, free = [], np.arange(first, min(last + 1, len(values))) + 1, len(values) - sizes
    for sign, edge, outermost in zip((-1, 1), edges, (np.min, np.max), strict=True):
        moved = np.where(marks, values * (1 + sign * rounding) + (sign > 0) * NOTHING, values * (1 - sign * rounding) + (sign < 0) * NOTHING)
        hits = np.cumsum(np.take_along_axis(marks, np.argsort(-moved, axis=1), axis=1), axis=1)
        common = hits[:, kept - 1]
        with np.errstate(invalid="ignore"):
            auc = np.where(free > 0, ((rankdata(moved, axis=1) * marks).sum(axis=1) - sizes * (sizes + 1) / 2) / (sizes * free), math.nan)
        measures = {
            "pointing": hits[:, 0].astype(np.float64),
            "mass": edge,
            "rank": np.array([hits[k, max(size, 1) - 1] / max(size, 1) for k, size in enumerate(sizes.tolist())]),
            "iou": outermost(common / (kept + sizes[:, None] - common), axis=1),
            "auc": auc,
        }
        found.append({name: np.where(np.isnan(sure[name]), math.nan, measure) for name, measure in measures.items()})
    return Bounds(*found)


def _kind_lines(
    a: Anew, key: tuple[str, str], number: int, words: Sequence[Placed], pairs: Sequence[Sequence[int]], priors: Mapping[str, dict[str, Floats]]
) -> list[Line]:  # fmt: skip
    """The scores of one kind of word in one layer: each word's measures from its map, and means, margins and intervals from the kept measures."""
    layer, kind = key
    rounding = ROUNDING if a.same else OTHER_ROUNDING
    targets, valid = np.stack([word.target for word in words]), np.stack([word.valid for word in words])
    own, strangers = (
        Bounds.joined([bounds(maps[number], targets[w : w + 1], valid[w : w + 1], rounding) for w, maps in enumerate(of)])
        for of in ([word.maps for word in words], [word.random for word in words])
    )
    none = {measure: np.full(1, math.nan) for measure in scores.MEASURES}
    by_others = [bounds(words[w].maps[number], targets[list(of)], valid[list(of)], rounding).means if of else Bounds(none, none) for w, of in enumerate(pairs)]
    shuffled = Bounds.joined(by_others)
    stated = {score.measure: score for score in a.kept.findings.scores.get(layer, {}).get(kind, [])}
    name, owners = kind if layer == CHOSEN else f"{kind}, layer {layer}", np.array([word.row for word in words])
    lines = []
    for measure in scores.MEASURES:
        table = _Table(a, name, measure, targets.shape[1:], owners)
        faults, kept = [], {of: np.asarray(a.kept.arrays.get(f"{of}/{layer}/{kind}/{measure}", np.empty(0)), np.float64) for of in ("scores", "random")}
        for what, array, anew in (("of a word", kept["scores"], own), ("of a word by random weights", kept["random"], strangers)):
            faults += _word_faults(what, array, (anew.low[measure], anew.high[measure]), table.slack)
        if not faults:
            rivals = {baseline: (x[measure], x[measure]) for baseline, x in priors.items()}
            rivals |= {"shuffled": (shuffled.low[measure], shuffled.high[measure]), "random model": (kept["random"], kept["random"])}
            anew_by = {"value": (own.low[measure], own.high[measure]), "random model": (strangers.low[measure], strangers.high[measure])}
            faults += _score_faults(table, stated.get(measure), kept["scores"], rivals, anew_by)
        lines.append(line(f"words {measure}[{name}]", faults, f"{stated[measure].value if measure in stated else 'none'} of {len(words)} words recomputed"))
    return lines


def _word_faults(what: str, array: Floats, between: tuple[Floats, Floats], slack: float) -> list[str]:
    """Kept measures of words against the bounds of those made anew."""
    low, high = between
    if array.shape != low.shape:
        return [f"measures {what} are of {array.shape}, there are {len(low)} words"]
    other = ~(((array >= low - slack) & (array <= high + slack)) | (np.isnan(array) & np.isnan(low)))
    if not other.any():
        return []
    w = int(other.argmax())
    return [f"{int(other.sum())} of {len(low)} measures {what} differ, number {w} the first: kept {rounded(array[w])}, recomputed {_between(low[w], high[w])}"]


@dataclass(frozen=True)
class _Table:
    """What the numbers of one Score have in common. grid: of the maps; owners: (m,) the picture of each word."""

    a: Anew
    name: str
    measure: str
    grid: tuple[int, ...]
    owners: NDArray[np.int64]

    @property
    def slack(self) -> float:
        """How far what is made anew may lie beyond its bounds."""
        return EXACT if self.a.same else ELSEWHERE

    def how(self, rival: str, margin: bool, there: Bools) -> str:
        """What a number over some words says of itself. rival: name of the baseline, "" of the value itself."""
        words, pictures = int(there.sum()), len(set(self.owners[there].tolist()))
        text = f"{HOW[self.measure]}; {self.grid[0]} x {self.grid[1]} patches" + (f"; of {BASELINES[rival]}" if rival else "")
        over = f"mean over {words:,} word{'s' * (words != 1)} of {pictures:,} picture{'s' * (pictures != 1)}"
        found = f"words of the captions that were found; {self.a.kept.findings.weights}"
        return "; ".join([f"paired difference to {BASELINES[rival]}" if margin else text, over, found])


def _score_faults(
    t: _Table, score: Score | None, values: Floats, rivals: Mapping[str, tuple[Floats, Floats]], anew: Mapping[str, tuple[Floats, Floats]]
) -> list[str]:  # fmt: skip
    """One Score against the kept value of each word, bounds of its baselines and of what is made anew."""
    if not np.isfinite(values).any():
        return ["a score of no word"] if score is not None else []
    if score is None:
        return [f"{t.measure}[{t.name}] is missing"]
    both = {rival: tuple(np.where(np.isfinite(values), x, math.nan) for x in bounds) for rival, bounds in rivals.items()}
    both = {rival: bounds for rival, bounds in both.items() if np.isfinite(bounds[0]).any()}
    faults = [] if score.method == t.name and score.higher_is_better else [f"it is said of {score.method!r} with the wrong way up"]
    if score.baselines.keys() != both.keys() or score.margins.keys() != both.keys():
        return [*faults, f"baselines and margins are {sorted(score.baselines)} and {sorted(score.margins)}, there are {sorted(both)}"]
    faults += _number_faults(t, score.value, "", False, (values, values), EXACT)
    faults += _number_faults(t, score.value, "", False, anew["value"], t.slack)
    for rival, (low, high) in both.items():
        slack = t.slack if rival == "shuffled" else EXACT
        faults += _number_faults(t, score.baselines[rival], rival, False, (low, high), slack)
        faults += _number_faults(t, score.margins[rival], rival, True, (values - high, values - low), slack)
        if rival in anew:
            faults += _number_faults(t, score.baselines[rival], rival, False, tuple(np.where(np.isfinite(low), x, math.nan) for x in anew[rival]), t.slack)
    return list(dict.fromkeys(faults))


def _number_faults(t: _Table, m: Measurement, rival: str, margin: bool, between: tuple[Floats, ...], slack: float) -> list[str]:
    """What is wrong with a reported mean over words, each between two bounds: its value, what it is of, its interval over pictures."""
    low, high = between
    there, kept = np.isfinite(low), t.a.kept
    named = f"{t.measure}[{t.name}{f', {rival}' * (bool(rival) and not margin)}]{f' - {rival}' * margin}"
    said, wanted = (m.name, m.n, m.seed, m.split, m.unit), (named, int(there.sum()), kept.recipe.seed, kept.split, "fraction")
    faults = [] if said == wanted else [f"{named}: name, n, seed, split and unit are {said}, recomputed {wanted}"]
    least, most = (math.fsum(x[there].tolist()) / int(there.sum()) for x in (low, high))
    if not least - slack <= m.value <= most + slack:
        faults.append(f"{named}: reported {rounded(m.value)}, recomputed {_between(least, most)}")
    inner = over_pictures(low[there], t.owners[there])
    outer = inner if high is low else over_pictures(high[there], t.owners[there])
    if (inner is None) != (m.interval is None):
        faults.append(f"{named}: {'an interval where none belongs' if inner is None else 'no interval'}")
    ends = list(zip(inner, m.interval, outer, strict=True)) if inner is not None and outer is not None and m.interval is not None else []
    if not all(x - slack <= end <= y + slack for x, end, y in ends):
        anew = " to ".join(_between(x, y) for x, _, y in ends)
        faults.append(f"{named}: interval {' to '.join(rounded(end) for _, end, _ in ends)} reported, {anew} recomputed")
    if m.how != (how := t.how(rival, margin, there)):
        faults.append(f"{named}: it says of itself {m.how!r}, expected {how!r}")
    pictures = len(set(t.owners[there].tolist()))
    of = f"95 % bootstrap interval over {pictures:,} pictures, each with all its words ({scores.RESAMPLES:,} resamples)" if inner is not None else ""
    if m.interval_how != of:
        faults.append(f"{named}: its interval says of itself {m.interval_how!r}, expected {of!r}")
    return faults


def _between(low: float, high: float) -> str:
    """One number, or two where it is known to lie between them."""
    return rounded(low) if rounded(low) == rounded(high) else f"({rounded(low)} … {rounded(high)})"


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
