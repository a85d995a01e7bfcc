"""The reported numbers of captions: those of the captioner, and beside them those of captions that need no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.caption_scores import CaptionScores, caption_scores, distinct
from pellucid.intervals import Interval, wilson
from pellucid.predictions import CaptionPredictions
from pellucid.run import Measurement

BASELINES = {
    "most_frequent": "the commonest training caption (where none occurs twice, the most typical) for every picture",
    "nearest": "the first caption of the training picture that is nearest by raw pixels, 16x16",
}
BESIDE = ("cider", "bleu_4", "exact_match")  # the numbers that each baseline has too
HOW = {
    "cider": "CIDEr-D, mean over pictures of the TF-IDF cosine of n-grams, clipped, times 10 (Vedantam et al. 2015), 0 to 10",
    **{f"bleu_{k}": f"BLEU-{k} of the whole set: clipped precision of 1 to {k} words, closest reference length (Papineni et al. 2002)" for k in range(1, 5)},
    "meteor": "METEOR with exact words and Porter stems, without synonyms (Lavie and Agarwal 2007): not the METEOR 1.5 of other tables",
    "rouge_l": "ROUGE-L, longest common subsequence, beta 1.2 (Lin 2004)",
    "exact_match": "share of pictures whose caption is one of their own captions, word for word",
    "token_accuracy": "share of the tokens of the pictures' own captions that are the likeliest after those before them",
    "loss": "mean negative log probability of a token of the pictures' own captions after those before it, without smoothing",
    "length": "mean words of a caption",
    "distinct": "different captions over all; 1 over the pictures is the same caption for every picture",
}
UNITS = {"loss": "nats", "length": "words", "cider": "score"}  # of the others: fraction
NUMBERS = (*HOW, *(f"{name}[{baseline}]" for baseline in BASELINES for name in BESIDE))  # of `measure_captions`


def measure_captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    predictions: CaptionPredictions,
    baselines: Mapping[str, Sequence[str]],
    *,
    split: str,
    seed: int,
    found: str,
    note: str,
) -> list[Measurement]:
    """Measurements of a split, the headline first. baselines: {name of BASELINES: a caption for each picture}. found: how the captions were found.

    A single picture has no CIDEr: all its n-grams weigh nothing.
    """
    scores = caption_scores(candidates, references)
    numbers = [*_of_scores(scores, split=split, seed=seed, how=HOW, note=f"{found}; {note}"), *_of_tokens(predictions, split=split, seed=seed, note=note)]
    numbers.append(Measurement("distinct", distinct(candidates), "fraction", split, len(candidates), seed, f"{HOW['distinct']}; {found}; {note}"))
    for name, captions in baselines.items():
        how = {number: f"{HOW[number]}; {BASELINES[name]}" for number in BESIDE}
        numbers += _of_scores(caption_scores(captions, references), split=split, seed=seed, how=how, note="no network", suffix=f"[{name}]")
    return [m for m in numbers if len(candidates) > 1 or not m.name.startswith("cider")]


def _of_scores(scores: CaptionScores, *, split: str, seed: int, how: Mapping[str, str], note: str, suffix: str = "") -> list[Measurement]:
    """The numbers of `how` that scores hold, with intervals over pictures."""
    values, intervals, n = _named(scores.values()), _named(scores.intervals()), len(scores.exact)
    found = []
    for name in (name for name in how if name in values):
        interval: Interval | None = wilson(int(scores.exact.sum()), n) if name == "exact_match" else intervals.get(name)
        bounds, said = (interval.pair, interval.how) if interval is not None and n > 1 else (None, "")
        found.append(Measurement(f"{name}{suffix}", float(values[name]), UNITS.get(name, "fraction"), split, n, seed, f"{how[name]}; {note}", bounds, said))
    return found


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same by the names of measurements."""
    return {"cider" if name == "cider_d" else name: value for name, value in values.items()}


def _of_tokens(p: CaptionPredictions, *, split: str, seed: int, note: str) -> list[Measurement]:
    """Loss and accuracy over the tokens of the pictures' own captions."""
    counted = int(p.counted.sum())
    values = {"token_accuracy": int(p.correct.sum()) / counted, "loss": float(p.loss.sum() / counted)}
    return [
        Measurement(name, value, UNITS.get(name, "fraction"), split, len(p.files), seed, f"{HOW[name]}; {counted:,} tokens; {note}")
        for name, value in values.items()
    ]
