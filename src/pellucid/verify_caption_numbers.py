"""The numbers of captions once more, from their definitions: loops over words in float64, written apart from `caption_scores`.

    BLEU       products and roots of exact fractions          there: sums of logarithms
    ROUGE-L    the table of subsequences                      there: bits of whole numbers
    CIDEr-D    dense vectors over the n-grams of a pair       there: dictionaries of weights
    METEOR     a search for each word from the end            there: lists of free places
    intervals  each drawn picture counted on its own          there: one product with sums

Shared with it, with oracles in the tests: `tokens_of` and `stem`, which define what a word is, and the draws of `intervals.bootstrap`. Slower by about three
times. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import scipy.sparse

from pellucid.caption_scores import tokens_of
from pellucid.intervals import bootstrap
from pellucid.porter import stem

Tokens = list[str]


@dataclass(frozen=True)
class Recomputed:
    """values: {name: number} of the set, as `CaptionScores.values` has them. intervals: {name: (low, high)}, 95 %. cider_d: of each picture."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    cider_d: list[float]


def recompute_captions(candidates: Sequence[str], references: Sequence[Sequence[str]], *, seed: int = 0, draws: int = 1000) -> Recomputed:
    """All numbers of n captions and the references of each. seed and draws: of the resamples; draws=0: no intervals."""
    found, theirs = [tokens_of(text) for text in candidates], [[tokens_of(text) for text in own] for own in references]
    pairs = list(zip(found, theirs, strict=True))
    counts = [picture_counts(words, own) for words, own in pairs]
    cider = recompute_cider(found, theirs)
    means = {
        "meteor": [max(_meteor(words, reference) for reference in own) for words, own in pairs],
        "rouge_l": [_rouge(words, own) for words, own in pairs],
        "cider_d": cider,
        "exact_match": [1.0 if any(words == reference != [] for reference in own) else 0.0 for words, own in pairs],
        "length": [float(len(words)) for words, _ in pairs],
    }
    whole = [sum(picture[column] for picture in counts) for column in range(10)]
    values = {f"bleu_{order}": _bleu(whole, order) for order in range(1, 5)}
    values |= {name: math.fsum(numbers) / len(numbers) if numbers else 0.0 for name, numbers in means.items()}
    intervals = _intervals(counts, means, seed, draws) if found and draws else {}
    return Recomputed(values, intervals, cider)


# ── BLEU ──────────────────────────────────────────────────────────────────────────────────────────────────────


def grams_of(words: Tokens, order: int) -> list[tuple[str, ...]]:
    """Every n-gram of an order, one as often as it occurs."""
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def picture_counts(candidate: Tokens, references: list[Tokens]) -> list[int]:
    """Ten whole numbers: clipped matches of orders 1 to 4, n-grams of orders 1 to 4, words, words of the reference nearest in length."""
    matches, totals = [], []
    for order in range(1, 5):
        grams = grams_of(candidate, order)
        left = {gram: max(grams_of(reference, order).count(gram) for reference in references) for gram in set(grams)}
        hits = 0
        for gram in grams:
            if left[gram] > 0:
                left[gram] -= 1
                hits += 1
        matches.append(hits)
        totals.append(len(grams))
    nearest = sorted(sorted(len(reference) for reference in references), key=lambda length: abs(length - len(candidate)))[0]
    return [*matches, *totals, len(candidate), nearest]


def _bleu(counts: Sequence[int], order: int) -> float:
    """Papineni et al. 2002 of one order from ten summed counts."""
    product, length, closest = Fraction(1), counts[8], counts[9]
    for k in range(order):
        if counts[k] == 0:
            return 0.0
        product *= Fraction(counts[k], counts[4 + k])
    penalty = 1.0 if length >= closest else math.exp(1 - closest / length)
    return penalty * float(product) ** (1 / order)


# ── ROUGE-L and METEOR ────────────────────────────────────────────────────────────────────────────────────────


def _rouge(candidate: Tokens, references: list[Tokens]) -> float:
    """coco-caption's ROUGE-L: the F of the best precision and the best recall, recall weighed 1.2 ** 2."""
    precision = recall = 0.0
    for reference in references:
        if candidate and reference:
            common = _subsequence(candidate, reference)
            precision, recall = max(precision, common / len(candidate)), max(recall, common / len(reference))
    return 0.0 if precision == 0 else (1 + 1.44) * precision * recall / (recall + 1.44 * precision)


def _subsequence(a: Tokens, b: Tokens) -> int:
    """Words of the longest common subsequence, by the table of all beginnings."""
    above = [0] * (len(b) + 1)
    for word in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        above = row
    return above[-1]


def _meteor(candidate: Tokens, reference: Tokens) -> float:
    """Lavie and Agarwal 2007: equal words are paired from the end, then equal stems."""
    goes: list[int | None] = [None] * len(candidate)
    for same in (lambda a, b: a == b, lambda a, b: stem(a) == stem(b)):
        for i in range(len(candidate) - 1, -1, -1):
            if goes[i] is None:
                goes[i] = next((j for j in range(len(reference) - 1, -1, -1) if j not in goes and same(candidate[i], reference[j])), None)
    matched = sum(j is not None for j in goes)
    if not matched:
        return 0.0
    chunks = 0
    for i, j in enumerate(goes):
        if j is not None and (i == 0 or goes[i - 1] is None or goes[i - 1] != j - 1):
            chunks += 1
    precision, recall = matched / len(candidate), matched / len(reference)
    return (1 - 0.5 * (chunks / matched) ** 3) / (0.9 / recall + 0.1 / precision)


# ── CIDEr-D ───────────────────────────────────────────────────────────────────────────────────────────────────


def recompute_cider(candidates: list[Tokens], references: list[list[Tokens]]) -> list[float]:
    """CIDEr-D of each picture (Vedantam et al. 2015), sigma 6, times 10; from words."""
    n = len(candidates)
    having: dict[tuple[str, ...], int] = {}
    for own in references:
        for gram in {gram for words in own for order in range(1, 5) for gram in grams_of(words, order)}:
            having[gram] = having.get(gram, 0) + 1
    found = []
    for candidate, own in zip(candidates, references, strict=True):
        total = 0.0
        for reference in own:
            near = sum(_clipped_cosine(grams_of(candidate, order), grams_of(reference, order), having, n) for order in range(1, 5)) / 4
            total += near * math.exp(-((len(candidate) - len(reference)) ** 2) / 72)
        found.append(10 * total / len(own))
    return found


def _clipped_cosine(a: list[tuple[str, ...]], b: list[tuple[str, ...]], having: dict[tuple[str, ...], int], n: int) -> float:
    """The cosine of two captions' TF-IDF vectors of one order; the candidate's first is cut to the reference's where it is multiplied."""
    axes = sorted({*a, *b})
    idf = np.log(np.array([n / having.get(gram, 1) for gram in axes], np.float64))
    ours, theirs = (np.array([grams.count(gram) for gram in axes], np.float64) * idf for grams in (a, b))
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(np.minimum(ours, theirs) @ theirs) / norms if norms > 0 else 0.0


# ── intervals ─────────────────────────────────────────────────────────────────────────────────────────────────


def _intervals(counts: list[list[int]], means: dict[str, list[float]], seed: int, draws: int) -> dict[str, tuple[float, float]]:
    """{name: (low, high)} over the resamples of pictures that `intervals.bootstrap` draws."""
    table = np.array(counts, np.int64)
    found: dict[str, list[float]] = {name: [] for name in [*(f"bleu_{order}" for order in range(1, 5)), *means]}
    rows_of_means = {name: np.array(numbers, np.float64) for name, numbers in means.items()}

    def keep(rows: np.ndarray) -> float:
        whole = table[rows].sum(axis=0).tolist()
        for order in range(1, 5):
            found[f"bleu_{order}"].append(_bleu(whole, order))
        for name, numbers in rows_of_means.items():
            found[name].append(float(numbers[rows].mean()))
        return 0.0

    bootstrap(keep, len(counts), seed=seed, draws=draws)
    return {name: (float(np.percentile(numbers, 2.5)), float(np.percentile(numbers, 97.5))) for name, numbers in found.items()}


# ── what a set of captions says ───────────────────────────────────────────────────────────────────────────────


def recompute_distinct(candidates: Sequence[str]) -> float:
    """Different captions over all."""
    kept: dict[str, int] = {" ".join(tokens_of(text)): 1 for text in candidates}
    return sum(kept.values()) / len(candidates) if len(candidates) else 0.0


def recompute_most_frequent(captions: Sequence[str]) -> str:
    """The commonest caption, the first in sorted order of those equally common; where none occurs twice the one with the highest mean cosine with all."""
    if not len(captions):
        return ""
    texts = sorted(captions)
    keys = [" ".join(tokens_of(text)) for text in texts]
    _, first, counts = np.unique(np.array(keys), return_index=True, return_counts=True)
    if counts.max() > 1:
        return texts[first[counts == counts.max()].min()]
    typical = np.zeros(len(texts))
    for order in range(1, 5):
        typical += _mean_cosines([grams_of(key.split(), order) for key in keys])
    return texts[int(np.flatnonzero(typical / 4 > typical.max() / 4 - 1e-9)[0])]


def _mean_cosines(captions: list[list[tuple[str, ...]]]) -> np.ndarray:
    """(n,) mean cosine of each caption's TF-IDF vector of one order with all n: rows of a sparse matrix."""
    n, axes = len(captions), {gram: axis for axis, gram in enumerate(sorted({gram for grams in captions for gram in grams}))}
    if not axes:
        return np.zeros(n)
    rows = [i for i, grams in enumerate(captions) for _ in grams]
    columns = [axes[gram] for grams in captions for gram in grams]
    counts = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, len(axes))).tocsr()
    counts.sum_duplicates()
    documents = np.bincount(counts.indices, minlength=len(axes))
    weighted = counts.multiply(np.log(n / documents)).tocsr()
    norms = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    unit = weighted.multiply(np.divide(1.0, norms, out=np.zeros(n), where=norms > 0)[:, None]).tocsr()
    return np.asarray(unit @ unit.mean(axis=0), np.float64)
