"""Stems of English words: "running" and "runs" are both "run". Needs no torch.

The suffix stripping of Porter (1980, "An algorithm for suffix stripping", Program 14.3) with the corrections that NLTK's PorterStemmer has by default, so that
METEOR gives NLTK's numbers: a few irregular words, "ies" and "ied" of short words, y after a consonant, "logi" and "fulli". A stem need not be a word ("poni").
Stemming of other languages is not done: their words come back as English suffixes leave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

_IRREGULAR = {"skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "innings": "inning", "inning": "inning"}
_IRREGULAR |= {"outings": "outing", "outing": "outing", "cannings": "canning", "canning": "canning", "howe": "howe"}
_IRREGULAR |= {word: word for word in ("proceed", "exceed", "succeed")}

# Suffix and what it becomes, in the order in which they are tried: the first that a word ends in decides, whether or not its condition holds.
_STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"),
    ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"),
    ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"),
)  # fmt: skip
_STEP_3 = (("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""))
_STEP_4 = ("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti", "ous", "ive", "ize")


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a word in lower case; words of one or two letters stay as they are."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _step_1c(_step_1b(_step_1a(word)))
    word = _step_3(_step_2(word))
    return _step_5(_step_4(word))


def _consonants(word: str) -> list[bool]:
    """Which letters are consonants: all but a, e, i, o, u, and y behind a consonant."""
    flags: list[bool] = []
    for i, letter in enumerate(word):
        flags.append(letter not in "aeiou" and (letter != "y" or i == 0 or not flags[-1]))
    return flags


def _measure(word: str) -> int:
    """Porter's m: how often a vowel is followed by a consonant."""
    flags = _consonants(word)
    return sum(not one and other for one, other in pairwise(flags))


def _ends_short(word: str) -> bool:
    """Porter's *o: consonant, vowel, consonant other than w, x, y at the end; or the whole of a word of two letters, vowel and consonant."""
    flags = _consonants(word)
    return (flags[-3:] == [True, False, True] and word[-1] not in "wxy") or flags == [False, True]


def _replaced(word: str, rules: Sequence[tuple[str, str]], least: int) -> str:
    """The word with the first suffix it ends in replaced, where what stands before has a measure of at least `least`."""
    for suffix, instead in rules:
        if word.endswith(suffix):
            before = word[: -len(suffix)]
            return before + instead if _measure(before) >= least else word
    return word


def _step_1a(word: str) -> str:
    """Plurals."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _step_1b(word: str) -> str:
    """Past and progressive."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        before = word[: -len(suffix)]
        if word.endswith(suffix) and not all(_consonants(before)):
            return _tidied(before)
    return word


def _tidied(word: str) -> str:
    """What "ed" or "ing" left, made a word again: "hopp" is "hop", "fil" is "file"."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if len(word) > 1 and word[-1] == word[-2] and _consonants(word)[-1]:
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _ends_short(word) else word


def _step_1c(word: str) -> str:
    """y behind a consonant becomes i."""
    return word[:-1] + "i" if word.endswith("y") and len(word) > 2 and _consonants(word)[-2] else word


def _step_2(word: str) -> str:
    """Double suffixes become single ones."""
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _step_2(word[:-2])
    if word.endswith("logi") and not word.endswith(tuple(suffix for suffix, _ in _STEP_2)):
        return word[:-1] if _measure(word[:-3]) > 0 else word  # the l counts with the stem, so that "geologi" is "geolog"
    return _replaced(word, _STEP_2, 1)


def _step_3(word: str) -> str:
    """-ic-, -full, -ness and the like."""
    return _replaced(word, _STEP_3, 1)


def _step_4(word: str) -> str:
    """What is left of suffixes behind a longer stem."""
    for suffix in _STEP_4:
        if word.endswith(suffix):
            before = word[: -len(suffix)]
            return before if _measure(before) > 1 and (suffix != "ion" or before[-1] in "st") else word
    return word


def _step_5(word: str) -> str:
    """The last e and a doubled l."""
    if word.endswith("e"):
        before = word[:-1]
        if _measure(before) > 1 or (_measure(before) == 1 and not _ends_short(before)):
            word = before
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
