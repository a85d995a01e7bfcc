"""How near generated captions come to what people wrote: BLEU, METEOR, ROUGE-L, CIDEr-D, exact match, and what a captioner never says. Needs no torch.

    BLEU       clipped n-gram precision of the whole set and a penalty for brevity (Papineni et al. 2002), closest reference length as in coco-caption
    ROUGE-L    longest common subsequence (Lin 2004), beta 1.2, the best precision and the best recall over the references, as in coco-caption
    CIDEr-D    TF-IDF cosine of n-grams, clipped, with a Gaussian penalty of length (Vedantam et al. 2015), times 10
    METEOR     Lavie and Agarwal 2007 with exact words and Porter stems: a substitute for METEOR 1.5, which has synonyms and paraphrases and needs Java.
               Its numbers are not those of METEOR 1.5; they are those of NLTK's meteor_score with an empty WordNet

What differs from coco-caption: words are cut by `tokens_of`, as its Penn Treebank tokeniser needs Java. BLEU adds no constants (it has 1e-15 more matches and
1e-9 more n-grams of each order): without a match of an order it is 0, where coco-caption has up to 2e-4; else the two differ by less than 1e-9 of the number.
An empty caption never matches an empty reference. With its words METEOR, ROUGE-L and CIDEr-D agree to 15 digits (`bench/caption_scores.py`).
Not done: SPICE (needs Java), BLEU of a single sentence (of few n-grams it says little).

All numbers are shares in [0, 1] but CIDEr-D in [0, 10] and lengths in words. An empty caption scores 0, and so does a set of no pictures.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pellucid.intervals import LEVEL, Interval, bootstrap
from pellucid.porter import stem

ORDERS = 4  # n-grams of one to four words
BETA = 1.2  # of ROUGE-L: recall weighs more
SIGMA = 6.0  # words, of CIDEr-D's penalty
ALPHA, PENALTY_POWER, PENALTY_WEIGHT = 0.9, 3.0, 0.5  # of METEOR: recall's weight; the fragmentation penalty's exponent and weight
TIED = 1e-9  # of cosines: what rounding moves

Words = Sequence[str]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Ngram = tuple[str, ...]
Ngrams = list[dict[Ngram, int]]  # of a caption, for each order

# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────

# The tokenizers library reads these patterns too, in `data.text`; what its \s lacks of Python's, U+001C to U+001F, is written out.
LETTER = r"[^\s\x1c-\x1f!-/:-@\[-^`{-~¡-©«-±´¶-¹»-¿×÷‐-⁞₠-⃏、-〃〈-】！-／：-＠]"  # a character of a word: all but space and signs; _ is one
CLITICS = "(?:s|m|d|re|ve|ll)"
_CLITIC = rf"'{CLITICS}(?!-?{LETTER})"
TOKEN = (  # of lower-case text with straight apostrophes
    rf"\d+(?:[.,:]\d+)+(?!{LETTER})"  # 1,000 and 5:30
    rf"|{LETTER}+(?=n't(?!{LETTER}))|n't(?!{LETTER})"  # do n't
    rf"|{_CLITIC}"
    rf"|{LETTER}+(?:-{LETTER}+|(?!{_CLITIC})'{LETTER}+)*"  # t-shirt, o'clock
    r"|[^\s\x1c-\x1f]"
)
_FOUND = re.compile(TOKEN)
_KEPT = frozenset("#$%&*+/<=>@\\^|~¢£¤¥©®°±€₹×÷")  # signs that are read aloud; all others are punctuation


def tokens_of(text: str) -> list[str]:
    """The words of a caption in lower case, punctuation left out: what every number here is computed from.

    After the Penn Treebank tokeniser of coco-caption: "the man's" is "the", "'s" apart; "don't" is "do", "n't"; "t-shirt" and "1,000" stay whole. Left out
    are . , ; : ? ! ' " ` quotation marks, brackets, dashes and ellipses; signs that are read aloud (& % $ # and the like) are words. Other than the original,
    brackets never come out as "-lrb-", "cannot" and "gonna" stay whole, "and/or" is three words, "U.S." two. Languages without spaces are not cut into words.
    """
    plain = text.lower().replace("’", "'").replace("‘", "'")
    return [token for token in _FOUND.findall(plain) if len(token) > 1 or token in _KEPT or re.match(LETTER, token)]


@dataclass(frozen=True)
class _Judged:
    """n candidates and the references of each as words, with how often each n-gram occurs in them, for each order from 1."""

    candidates: list[list[str]]
    references: list[list[list[str]]]

    @classmethod
    def of(cls, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> _Judged:
        """The words of texts. ValueError unless each candidate is a text and has at least one reference."""
        if len(candidates) != len(references):
            raise ValueError(f"expected the references of each of {len(candidates):,} captions, got those of {len(references):,}")
        for i, (candidate, own) in enumerate(zip(candidates, references, strict=True)):
            if not isinstance(candidate, str) or isinstance(own, str) or not own:
                raise ValueError(f"expected caption {i} as text with a list of at least one reference, got {candidate!r} with {own!r}")
        return cls([tokens_of(text) for text in candidates], [[tokens_of(text) for text in own] for own in references])

    @cached_property
    def grams(self) -> list[Ngrams]:
        return [_ngrams(words) for words in self.candidates]

    @cached_property
    def their_grams(self) -> list[list[Ngrams]]:
        return [[_ngrams(words) for words in own] for own in self.references]


def _ngrams(words: Words) -> Ngrams:
    """How often each n-gram occurs, for each order from 1."""
    orders: Ngrams = []
    for k in range(ORDERS):
        counts: dict[Ngram, int] = {}
        for gram in zip(*(words[i:] for i in range(k + 1)), strict=False):
            counts[gram] = counts.get(gram, 0) + 1
        orders.append(counts)
    return orders


# ── BLEU ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU sums over pictures. matches, totals: (n, 4) int64 clipped and all n-grams of each candidate. length, closest: (n,) int64 words of the
    candidate, and of the reference whose length is nearest to it, the shorter of two that are equally near."""

    matches: Counts
    totals: Counts
    length: Counts
    closest: Counts


def _bleu_counts(judged: _Judged) -> BleuCounts:
    n = len(judged.candidates)
    matches, totals, closest = np.zeros((n, ORDERS), np.int64), np.zeros((n, ORDERS), np.int64), np.zeros(n, np.int64)
    for i, (grams, own, words) in enumerate(zip(judged.grams, judged.their_grams, judged.candidates, strict=True)):
        for k in range(ORDERS):
            # Papineni et al. 2002, section 2.1: no n-gram counts more often than in the reference that has it most often.
            matches[i, k] = sum(min(count, max([reference[k].get(gram, 0) for reference in own])) for gram, count in grams[k].items())
            totals[i, k] = max(0, len(words) - k)
        closest[i] = min((abs(len(reference) - len(words)), len(reference)) for reference in judged.references[i])[1]
    return BleuCounts(matches, totals, np.array([len(words) for words in judged.candidates], np.int64), closest)


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], order: int = ORDERS) -> list[float]:
    """BLEU-1 to BLEU-`order` of the whole set, each in [0, 1]; 0 where an order has no match. order: 1 to 4."""
    if not 1 <= order <= ORDERS:
        raise ValueError(f"expected an order from 1 to {ORDERS}, got {order}")
    counts = _bleu_counts(_Judged.of(candidates, references))
    sums = [array.sum(axis=0).astype(np.float64) for array in (counts.matches, counts.totals, counts.length, counts.closest)]
    return _bleu(*sums)[:order].tolist()


def _bleu(matches: Floats, totals: Floats, length: Floats, closest: Floats) -> Floats:
    """BLEU-1 to 4 (..., 4) of sums over pictures: matches and totals (..., 4), lengths (...)."""
    with np.errstate(divide="ignore"):
        logs = np.log(matches / np.maximum(totals, 1.0))  # of no match -inf, which exp makes 0
        brief = np.minimum(0.0, 1.0 - closest / np.where(length > 0, length, np.nan))  # the penalty's logarithm, section 2.2.2
    means = np.cumsum(logs, axis=-1) / np.arange(1, ORDERS + 1)
    return np.nan_to_num(np.exp(means + brief[..., None]))


# ── ROUGE-L ───────────────────────────────────────────────────────────────────────────────────────────────────


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """(n,) ROUGE-L of each picture, in [0, 1]; that of the set is their mean. Precision and recall may come from different references."""
    return _rouge_l(_Judged.of(candidates, references))


def _rouge_l(judged: _Judged) -> Floats:
    return np.array([_common_score(words, own) for words, own in zip(judged.candidates, judged.references, strict=True)], np.float64)


def _common_score(candidate: Words, references: Sequence[Words]) -> float:
    common = [_common_length(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True) if reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_length(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, by bits of whole numbers (Hyyrö 2004): a bit of `open_` that became 0 is one more word in common."""
    places: dict[str, int] = {}
    for i, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(second)) - 1
    open_ = everything
    for word in first:
        here = open_ & places.get(word, 0)
        open_ = ((open_ + here) | (open_ - here)) & everything
    return len(second) - open_.bit_count()


# ── CIDEr-D ───────────────────────────────────────────────────────────────────────────────────────────────────


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """(n,) CIDEr-D of each picture, in [0, 10]; that of the set is their mean.

    An n-gram weighs the logarithm of n over the number of pictures whose references have it (1 where none has). Of a single picture all weights are log 1, so
    that its score is 0 whatever the caption: report it for two pictures or more.
    """
    return _cider_d(_Judged.of(candidates, references))


@dataclass(frozen=True)
class _Weighted:
    """TF-IDF of the n-grams of a caption, for each order, with the Euclidean norms; length in words."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def _weighted(grams: Ngrams, rarity: dict[Ngram, float], most: float, length: int) -> _Weighted:
    """rarity: log(n / document frequency) of each n-gram of the references; most: of all others."""
    weights = [{gram: count * rarity.get(gram, most) for gram, count in counts.items()} for counts in grams]
    return _Weighted(weights, [math.sqrt(sum([value * value for value in order.values()])) for order in weights], length)


def _cider_d(judged: _Judged) -> Floats:
    n = len(judged.candidates)
    pictures = Counter(gram for own in judged.their_grams for gram in {gram for reference in own for counts in reference for gram in counts})
    most = math.log(n) if n else 0.0
    rarity = {gram: most - math.log(count) for gram, count in pictures.items()}
    scores = np.zeros(n, np.float64)
    for i, (grams, own) in enumerate(zip(judged.grams, judged.their_grams, strict=True)):
        candidate = _weighted(grams, rarity, most, len(judged.candidates[i]))
        near = [_similarity(candidate, _weighted(counts, rarity, most, len(words))) for counts, words in zip(own, judged.references[i], strict=True)]
        scores[i] = 10.0 * sum(near) / len(near)
    return scores


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """Mean over orders of the clipped cosine, with the penalty of different lengths (Vedantam et al. 2015, CIDEr-D)."""
    total = 0.0
    for ours, theirs, our_norm, their_norm in zip(candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True):
        if our_norm > 0 and their_norm > 0:
            # Clipped: a word said again and again counts as often as the reference has it.
            total += sum(min(value, theirs[gram]) * theirs[gram] for gram, value in ours.items() if gram in theirs) / (our_norm * their_norm)
    return total / ORDERS * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))


# ── METEOR ────────────────────────────────────────────────────────────────────────────────────────────────────


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """(n,) METEOR of each picture without synonyms, in [0, 1): the best over its references; that of the set is their mean.

    A caption that is its reference has 1 - 0.5 / words ** 3, as one run of matches among so many words is still a little broken up.
    """
    return _meteor(_Judged.of(candidates, references))


def exact_matches(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """(n,) whether each caption is one of its references, word for word; an empty one never is."""
    return _exact(_Judged.of(candidates, references))


def _exact(judged: _Judged) -> NDArray[np.bool_]:
    return np.array([bool(words) and words in own for words, own in zip(judged.candidates, judged.references, strict=True)], np.bool_)


def _meteor(judged: _Judged) -> Floats:
    pairs = zip(judged.candidates, judged.references, strict=True)
    return np.array([max(_aligned_score(words, reference) for reference in own) for words, own in pairs], np.float64)


def _aligned_score(candidate: Words, reference: Words) -> float:
    pairs = _alignment(candidate, reference)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(candidate), len(pairs) / len(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 1 + sum(after != (one[0] + 1, one[1] + 1) for one, after in pairwise(pairs))
    return (1 - PENALTY_WEIGHT * (chunks / len(pairs)) ** PENALTY_POWER) * mean


def _alignment(candidate: Words, reference: Words) -> list[tuple[int, int]]:
    """Which word of the candidate goes with which of the reference, in the order of the candidate: equal words, then equal stems of what is left.

    From the end on, each takes the last that is free, as NLTK does; the paper's search for the fewest crossings is not made.
    """
    taken: dict[int, int] = {}
    _pair(candidate, reference, taken)
    if len(taken) < min(len(candidate), len(reference)):
        _pair([stem(word) for word in candidate], [stem(word) for word in reference], taken)
    return sorted(taken.items())


def _pair(candidate: Words, reference: Words, taken: dict[int, int]) -> None:
    """Add pairs of equal words to `taken` {place in the candidate: place in the reference}, of places that are free."""
    places: dict[str, list[int]] = {}
    used = set(taken.values())
    for j, word in enumerate(reference):
        if j not in used:
            places.setdefault(word, []).append(j)
    for i in range(len(candidate) - 1, -1, -1):
        if i not in taken and (free := places.get(candidate[i])):
            taken[i] = free.pop()


# ── all of them, with intervals ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CaptionScores:
    """The part of each of n pictures in the numbers of a set, so that any resample of pictures has its numbers too.

    bleu: the counts. meteor, rouge_l, cider_d: (n,) float64; exact: (n,) bool, the candidate is one of the references, word for word. Document frequencies of
    CIDEr-D are those of the whole set, in resamples too.
    """

    bleu: BleuCounts
    meteor: Floats
    rouge_l: Floats
    cider_d: Floats
    exact: NDArray[np.bool_]

    def values(self) -> dict[str, float]:
        """{name: number} of the set: bleu_1 to bleu_4, meteor, rouge_l, cider_d, exact_match, length (mean words of a candidate). All 0 without pictures."""
        n = len(self.exact)
        return {name: float(found[0]) for name, found in _numbers(np.ones((1, n)) @ self._table(), max(n, 1)).items()}

    def intervals(self, *, seed: int = 0, draws: int = 1000) -> dict[str, Interval]:
        """{name: 95 % percentile interval} of each number of `values` over resamples of pictures; none without pictures.

        Of each picture only sums are needed, so that a resample costs one product (n) @ (n, 14), and all numbers share the draws.
        """
        n = len(self.exact)
        if not n:
            return {}
        table, sums = self._table(), []

        def keep(rows: Counts) -> float:
            sums.append(np.bincount(rows, minlength=n).astype(np.float64) @ table)
            return 0.0

        how = bootstrap(keep, n, of="pictures", seed=seed, draws=draws).how  # its draws, for all numbers at once
        low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
        return {name: Interval(float(np.quantile(found, low)), float(np.quantile(found, high)), how) for name, found in _numbers(np.stack(sums), n).items()}

    def _table(self) -> Floats:
        """(n, 14): matches and totals of four orders, both lengths, then what is averaged."""
        counts, alone = self.bleu, (self.bleu.length, self.bleu.closest, self.meteor, self.rouge_l, self.cider_d, self.exact)
        return np.concatenate([counts.matches, counts.totals, np.stack(alone, axis=1)], axis=1, dtype=np.float64)


def _numbers(sums: Floats, n: int) -> dict[str, Floats]:
    """{name: (draws,)} from sums (draws, 14) of the table over n pictures."""
    orders = _bleu(sums[:, :ORDERS], sums[:, ORDERS : 2 * ORDERS], sums[:, 8], sums[:, 9])
    means = sums[:, 8:] / n
    found = {f"bleu_{k + 1}": orders[:, k] for k in range(ORDERS)}
    return found | {name: means[:, column] for name, column in (("meteor", 2), ("rouge_l", 3), ("cider_d", 4), ("exact_match", 5), ("length", 0))}


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """The scores of n pictures. candidates: a caption of each; references: for each its own captions, at least one. ValueError where they do not fit."""
    judged = _Judged.of(candidates, references)
    return CaptionScores(_bleu_counts(judged), _meteor(judged), _rouge_l(judged), _cider_d(judged), _exact(judged))


# ── what a set of captions says ───────────────────────────────────────────────────────────────────────────────


def distinct(candidates: Iterable[str]) -> float:
    """Different captions over all, in [0, 1]; words decide, not case or punctuation. 1 / n is the same caption for every picture; 0 without captions."""
    all_ = [tuple(tokens_of(text)) for text in candidates]
    return len(set(all_)) / len(all_) if all_ else 0.0


def never_produced(candidates: Iterable[str], references: Iterable[Sequence[str]], most: int) -> list[tuple[str, int]]:
    """The `most` commonest words of the references that no candidate has, with how often the references have them; equally common ones in sorted order."""
    said = {word for text in candidates for word in tokens_of(text)}
    counts = Counter(word for own in references for text in own for word in tokens_of(text))
    return sorted(((word, count) for word, count in counts.items() if word not in said), key=lambda found: (-found[1], found[0]))[:most]


def _unit(vector: _Weighted) -> dict[Ngram, float]:
    """Weights of all orders together, each order divided by its norm."""
    return {gram: value / norm for weights, norm in zip(vector.weights, vector.norms, strict=True) if norm > 0 for gram, value in weights.items()}


def _typicality(captions: Sequence[Words]) -> Floats:
    """(n,) mean cosine of each of n captions with all, over orders: its unit vector times the mean one, which takes no pairs."""
    grams = [_ngrams(words) for words in captions]
    documents = Counter(gram for orders in grams for counts in orders for gram in counts)
    n = len(captions)
    rarity = {gram: math.log(n) - math.log(count) for gram, count in documents.items()}
    vectors = [_weighted(orders, rarity, math.log(n), len(words)) for orders, words in zip(grams, captions, strict=True)]
    units = [_unit(vector) for vector in vectors]
    mean: dict[Ngram, float] = {}
    for unit in units:
        for gram, value in unit.items():
            mean[gram] = mean.get(gram, 0.0) + value / n
    return np.array([sum(value * mean[gram] for gram, value in unit.items()) / ORDERS for unit in units], np.float64)


def most_frequent(captions: Iterable[str]) -> str:
    """The commonest of some captions, as the baseline that says the same of every picture; "" of none.

    Words decide what is the same caption; it comes back in its first spelling in sorted order, and so does the first of several that are equally common. Where
    no caption occurs twice it is the most typical one: the highest mean cosine of CIDEr with all (TF-IDF of n-grams, each caption a document, unclipped).
    """
    spelled: dict[tuple[str, ...], str] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for text in sorted(captions):
        words = tuple(tokens_of(text))
        spelled.setdefault(words, text)
        counts[words] += 1
    if not counts:
        return ""
    often = max(counts.values())
    if often > 1:
        return next(spelled[words] for words, count in counts.items() if count == often)
    typical = _typicality(list(counts))
    return list(spelled.values())[int(np.argmax(typical > typical.max() - TIED))]
