"""Captions -> tokens and back, and which tokens make which word. Needs no torch.

  words         one token for each word of the training captions, the commonest first
  word_pieces   WordPiece (Schuster and Nakajima 2012) learned from the training captions by the tokenizers library
  transformers  the tokeniser of a folder or a name on the hub, which must be a fast one (of the tokenizers library)

The first two lower-case and cut words where `caption_scores.tokens_of` does: t-shirt and 1,000 are one word, don't is do and n't, man's is man and 's, each
sign is a word. What they decode has the words of the caption again, so that a perfect caption scores as one; accents stay, and languages without blanks are
not cut. Their vocabulary opens with [PAD] 0, [UNK] 1, [BOS] 2, [EOS] 3.

Published tokenisers cut and decode as they do, BERT's with the library's clean-up of . , ? and !. Those that cut at each sign and forget whether blanks were
around it (BERT, and so BLIP and GIT; CLIP) give "man ' s" and "t - shirt": here these blanks go, but within words alone, where transformers' clean-up would
also write "the'stop'sign". 10 - 20 and 10-20 are the same to them and become the latter. All of it stands in tokenizer.json, so the library by itself decodes
the same; `words` still gives what they cut, t and - and shirt.

The library's WordPiece training gives other numbers, and for small sets other pieces, in each process: it numbers the letters in the order of a hash map and
breaks ties between merges by these numbers. Here all letters get their numbers first, in order, and the same captions give the same vocabulary everywhere.

A caption that spells a special token, [EOS] for example, is cut like other text: only this module sets special tokens.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pellucid.caption_scores import CLITICS, LETTER, TOKEN
from pellucid.errors import DataError, MissingError, RunError, UsageError
from pellucid.run import Vocabulary
from pellucid.schema.captioning import TextSection, TokenizerSection

PAD, UNKNOWN, START, END = SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
_BATCH = 1000  # captions that are counted at once
_APOSTROPHES = "'’"


class CaptionTokenizer:
    """Cuts captions into the tokens of `vocabulary` and puts them together again.

    tokenizer: of the tokenizers library; its own padding, truncation and special tokens in texts are switched off.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # a text that spells one is text
        unknown = _unknown(tokenizer)
        spoken = (vocabulary.start, vocabulary.end, vocabulary.pad)  # CLIP's end stands for what it does not know too: a caption has one all the same
        self.vocabulary, self._tokenizer, self.unknown = vocabulary, tokenizer, None if unknown in spoken else unknown
        named = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        self._special = (named | {vocabulary.start, vocabulary.end, vocabulary.pad}) - {self.unknown}

    def encode(self, text: str) -> list[int]:
        """The tokens of a caption, the end included and the start not; a caption of more than max_length is cut and ends in the end all the same."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*tokens[: self.vocabulary.max_length - 1], self.vocabulary.end]

    def decode(self, tokens: Sequence[int]) -> str:
        """The caption of output tokens, without special ones and what stands behind the end. The unknown token is a word, [UNK]."""
        return self._text([token for _, token in self._kept(tokens)]).strip()

    def words(self, tokens: Sequence[int]) -> list[tuple[str, int, int]]:
        """(text, first, behind the last) of each word of the decoded caption, with the place of its pieces among `tokens`; punctuation is words of its own.

        A word is what the tokeniser itself cuts the decoded caption into, so pieces of a word belong together even where other pieces would be usual for
        it. Words that share a token are one.
        """
        kept = self._kept(tokens)
        text = self._text([token for _, token in kept])
        spans = self._spans([token for _, token in kept], text)
        found: list[tuple[int, int, int, int]] = []  # begin and end in the text, first and behind the last of the tokens
        for begin, end in self._cuts(text):
            places = [place for (place, _), (first, last) in zip(kept, spans, strict=True) if first < end and begin < last]
            if found and places and places[0] < found[-1][3]:
                begin, _, first, _ = found.pop()
                places.insert(0, first)
            if places:
                found.append((begin, end, places[0], places[-1] + 1))
        return [(text[begin:end], first, behind) for begin, end, first, behind in found]

    def text_of(self, token: int) -> str:
        """One token as it reads: a word, a piece of one such as ##s, or the name of a special token; <number> of one that stands for nothing."""
        name = self._tokenizer.id_to_token(token) if token >= 0 else None
        if name is None:
            return f"<{token}>"
        text = name if token in self._special else self._text([token]).strip()
        return text if text and "\ufffd" not in text else name  # a piece of a letter is no text by itself

    def save(self, path: str | Path) -> None:
        """Write the tokeniser as JSON of the tokenizers library; `load_tokenizer` reads it."""
        self._tokenizer.save(str(path))

    def _kept(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """(place, token) of those that are text."""
        before_end = itertools.takewhile(lambda placed: placed[1] != self.vocabulary.end, enumerate(map(int, tokens)))
        return [(i, token) for i, token in before_end if token >= 0 and token not in self._special and self._tokenizer.id_to_token(token) is not None]

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def _spans(self, tokens: list[int], text: str) -> list[tuple[int, int]]:
        """(begin, end) in `text` of each of its tokens; bytes of one letter have this letter each, and a blank the token behind it."""
        letters = [i for i, letter in enumerate(text) if letter != " "]  # blanks before a sign depend on what stands behind it: only the rest is counted
        alone, behind = text.replace(" ", ""), [0, *(i + 1 for i in letters)]
        ends = [behind[_shared(self._text(tokens[: i + 1]).replace(" ", ""), alone)] for i in range(len(tokens))]
        begins = [0, *ends][: len(tokens)]
        for i in range(len(tokens) - 2, -1, -1):
            if not text[begins[i] : ends[i]].strip():  # no whole letter yet, or the blank before a word
                ends[i] = ends[i + 1]
        for i in range(1, len(tokens)):
            if ends[i] <= begins[i]:  # the last bytes, of a letter that never becomes whole
                begins[i] = begins[i - 1]
        return list(zip(begins, ends, strict=True))

    def _cuts(self, text: str) -> Iterator[tuple[int, int]]:
        """(begin, end) of each word of a text, in order: the tokeniser's own, cut further at blanks and punctuation where it leaves them on words."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        own: dict[int, tuple[int, int]] = {}
        for word, (begin, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            if word is not None:
                first, last = own.get(word, (begin, end))
                own[word] = (min(first, begin), max(last, end))
        for begin, end in own.values():
            yield from _cut(text, begin, end)


def _cut(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """A stretch of text at its blanks, and the punctuation around each part apart from it; 's and signs alone stay whole."""
    for blank, letters in itertools.groupby(range(begin, end), key=lambda i: text[i].isspace()):
        if blank:
            continue
        places = list(letters)
        first, last = places[0], places[-1] + 1
        start, stop = first, last
        while start < last and _is_sign(text[start]) and text[start] not in _APOSTROPHES:
            start += 1
        while stop > start and _is_sign(text[stop - 1]):
            stop -= 1
        parts = [(first, start), (start, stop), (stop, last)] if start < stop else [(first, last)]
        yield from (part for part in parts if part[0] < part[1])


def _shared(one: str, other: str) -> int:
    """How many letters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _is_sign(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _unknown(tokenizer: Tokenizer) -> int | None:
    """The token of what the tokeniser does not know; None where it knows all text."""
    if isinstance(tokenizer.model, models.Unigram):  # states a number, and only in its file
        found: int | None = json.loads(tokenizer.model.__getstate__()).get("unk_id")  # type: ignore[attr-defined]
        return found
    name = getattr(tokenizer.model, "unk_token", None)
    return None if name is None else tokenizer.token_to_id(name)


# ── made from captions, or found ──────────────────────────────────────────────────────────────────────────────


def build_tokenizer(section: TextSection, captions: Iterable[str], *, own: str | Path | None = None) -> CaptionTokenizer:
    """The tokeniser that a recipe asks for. captions: those of the training split, from which vocabularies are made and on which all are counted; a published
    tokeniser (name: transformers) needs none.

    own: folder or hub name of the model, whose tokeniser `name: transformers` without a source means. DataError where the captions give no vocabulary,
    UsageError and MissingError where there is no tokeniser to take.
    """
    texts = list(captions)
    asked = section.tokenizer
    if not texts and asked.name != "transformers":
        raise DataError("text.tokenizer: expected captions of the training split to make tokens from, got none")
    if asked.name == "transformers":
        tokenizer, start, end, pad, what = _published(asked, own)
    else:
        tokenizer = _words(asked, texts) if asked.name == "words" else _word_pieces(asked, texts)
        start, end, pad = (SPECIAL.index(name) for name in (START, END, PAD))
        what = "one token a word" if asked.name == "words" else "WordPiece learned from the training captions"
    found = CaptionTokenizer(tokenizer, Vocabulary(_size(tokenizer), start, end, pad, section.max_length, what))
    found.vocabulary = replace(found.vocabulary, how=f"{what}: {_counted(tokenizer, found.vocabulary, texts)}")
    return found


def load_tokenizer(file: Path, vocabulary: Vocabulary) -> CaptionTokenizer:
    """The tokeniser that a run keeps in `file`. RunError where it is not that of the vocabulary, or no tokeniser."""
    if not file.is_file():
        raise RunError(f"{file}: expected the tokeniser of the run's captions, there is none. Is this a run of captioning?")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise RunError(f"{file}: expected a tokeniser of the tokenizers library: {error}") from None
    if _size(tokenizer) != vocabulary.size:
        raise RunError(f"{file}: expected {vocabulary.size:,} tokens, as data.json says, got {_size(tokenizer):,}; the file is of another run")
    return CaptionTokenizer(tokenizer, vocabulary)


def _size(tokenizer: Tokenizer) -> int:
    """One more than the largest number of a token."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _counted(tokenizer: Tokenizer, vocabulary: Vocabulary, texts: Sequence[str]) -> str:
    """How the tokens cover these captions, in words."""
    words = unknown = cut = 0
    sign = _unknown(tokenizer)
    for start in range(0, len(texts), _BATCH):
        for encoding in tokenizer.encode_batch(texts[start : start + _BATCH], add_special_tokens=False):
            words += len({word for word in encoding.word_ids if word is not None})
            unknown += len({word for word, token in zip(encoding.word_ids, encoding.ids, strict=True) if token == sign})
            cut += len(encoding.ids) >= vocabulary.max_length
    if not texts:
        return f"{vocabulary.size:,} tokens"
    known = f"{vocabulary.size:,} tokens; of {words:,} words and signs in {len(texts):,} training captions {unknown:,} are unknown"
    return f"{known}; {cut:,} captions are cut to {vocabulary.max_length} tokens" if cut else known


# ── our own vocabularies ──────────────────────────────────────────────────────────────────────────────────────

# Blanks that are not written: before . , ! ? and a clitic, and before the n't of a plain word (of another it would become a part: o'clockn't).
_JOINED = rf" (?=(?:[.,!?]|'{CLITICS})(?: |$))|(?:^| ){LETTER}+\K (?=n't(?: |$))"


def _words(asked: TokenizerSection, texts: Sequence[str]) -> Tokenizer:
    """One token for each word that is common enough, the commonest first and equally common ones in the order of their letters."""
    counts = _word_counts(texts)
    frequent = sorted((word for word, count in counts.items() if count >= asked.min_count), key=lambda word: (-counts[word], word))
    room = asked.size - len(SPECIAL)
    if room < 1 or not frequent:
        fault = f"no word stands in the training captions {asked.min_count} times (min_count)" if room >= 1 else f"size {asked.size} leaves no token for a word"
        raise DataError(f"text.tokenizer: {fault}; there are {len(counts):,} words and {len(SPECIAL)} special tokens")
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *frequent[:room]])}
    return _assembled(models.WordLevel(vocabulary, unk_token=UNKNOWN))


def _word_pieces(asked: TokenizerSection, texts: Sequence[str]) -> Tokenizer:
    """WordPiece of these captions: all letters, alone and within words, then the commonest pieces."""
    words = sorted(_word_counts(texts))
    letters = sorted({letter for word in words for letter in word} | {f"##{letter}" for word in words for letter in word[1:]})
    fixed = [*SPECIAL, *letters]
    if len(fixed) > asked.size or not words:
        needed = (
            f"the training captions need {len(fixed):,} tokens for their letters and the {len(SPECIAL)} special ones" if words else "no caption holds a word"
        )
        raise DataError(f"text.tokenizer.size: {needed}, got size {asked.size:,}")
    learned = _assembled(models.WordPiece(unk_token=UNKNOWN))
    # As special tokens the letters have numbers before the trainer meets its first word: it would number them in the order of a hash map.
    learned.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=asked.size, special_tokens=fixed, show_progress=False))
    return _assembled(models.WordPiece(learned.get_vocab(with_added_tokens=False), unk_token=UNKNOWN))


def _assembled(model: models.Model) -> Tokenizer:
    """The words of `caption_scores.tokens_of`, and signs, around a model of words."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = _normalizer(), _cutter()
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), decoders.Replace(Regex(_JOINED), "")])
    if tokenizer.token_to_id(PAD) is not None:
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return tokenizer


def _normalizer() -> normalizers.Normalizer:
    """Text as `tokens_of` reads it: in lower case, with straight apostrophes."""
    straight = [normalizers.Replace(sign, "'") for sign in "’‘"]
    final = normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς")  # as Python has it; the library looks at one letter alone
    return normalizers.Sequence([*straight, final, normalizers.Lowercase()])


def _cutter() -> pre_tokenizers.PreTokenizer:
    """What TOKEN finds in a text, and nothing between."""
    return pre_tokenizers.Split(Regex(TOKEN), "removed", invert=True)


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    """How often each word of these texts stands there."""
    normalizer, cutter = _normalizer(), _cutter()
    return Counter(word for text in texts for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)))


# ── published tokenisers ──────────────────────────────────────────────────────────────────────────────────────


def _around(sign: str, before: str, behind: str) -> str:
    """Blanks on both sides of a sign, or on one, between what stands before and behind it."""
    return rf"(?<={before}) (?={sign} ?{behind})|(?<={before}{sign}) (?={behind})|(?<={before} {sign}) (?={behind})"


# Blanks within words, of tokenisers that put some around each sign. A quotation ('stop') keeps its own.
_WITHIN = "|".join(
    [
        _around("-", LETTER, LETTER),  # t-shirt
        _around("['’]", LETTER, rf"(?i:{CLITICS})(?!{LETTER})"),  # man's
        _around("['’]", "[nN]", rf"[tT](?!{LETTER})"),  # don't
        _around("['’]", r"\b[oO]", LETTER),  # o'clock
        _around(",", r"\d", r"\d{3}(?!\d)"),  # 1,000
        _around("[.:]", r"\d", r"\d"),  # 5:30
    ]
)


def _apart(tokenizer: Tokenizer) -> bool:
    """Whether a tokeniser cuts at signs and forgets the blanks around them, so that t-shirt and t - shirt are the same to it."""
    cutter = tokenizer.pre_tokenizer
    if cutter is None:
        return False
    one, other = ([word for word, _ in cutter.pre_tokenize_str(text)] for text in ("t-shirt", "t - shirt"))
    return one == other


def _rejoined(tokenizer: Tokenizer) -> Tokenizer:
    """The tokeniser with a decoder that writes words without blanks in them, where its own puts some."""
    if tokenizer.decoder is not None and _apart(tokenizer):
        tokenizer.decoder = decoders.Sequence([tokenizer.decoder, decoders.Fuse(), decoders.Replace(Regex(_WITHIN), "")])
    return tokenizer


def _published(asked: TokenizerSection, own: str | Path | None) -> tuple[Tokenizer, int, int, int, str]:
    """(tokeniser, start, end, pad, what it is) of a folder or a name on the hub."""
    source = asked.source or own
    if source is None:
        raise UsageError("text.tokenizer.source: expected a folder or a name on the hub, e.g. bert-base-uncased; this model brings no tokeniser of its own")
    name = str(source)
    found = _loaded(name)
    tokenizer = getattr(found, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise UsageError(f"text.tokenizer: {name}: expected a fast tokeniser (tokenizer.json), got {type(found).__name__}. Choose another.")
    tokenizer = _rejoined(Tokenizer.from_str(tokenizer.to_str()))  # a copy: the library keeps the loaded one for itself
    start, end = _first(found.cls_token_id, found.bos_token_id), _first(found.sep_token_id, found.eos_token_id)
    if asked.source is None:
        start = _first(_start_of_model(name, tokenizer), start)
    if end is None:
        raise UsageError(f"text.tokenizer: {name}: expected a tokeniser with a token that ends a text (sep or eos), this has none. Choose another.")
    pad = found.pad_token_id
    what = f"the tokeniser of {Path(name).name if Path(name).is_dir() else name}"
    return tokenizer, end if start is None else start, end, end if pad is None else pad, what


def _first(*tokens: int | None) -> int | None:
    return next((token for token in tokens if token is not None), None)


def _loaded(name: str) -> Any:
    """The tokeniser of a folder, or of a name on the hub: from its cache, else downloaded. No code of theirs is run."""
    import transformers

    place, revision = _place(name)
    try:
        return transformers.AutoTokenizer.from_pretrained(place, **revision, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a dozen types of three libraries
        if Path(name).is_dir():
            raise MissingError(f"text.tokenizer: {name}: expected a folder with tokenizer.json: {_line(error)}") from error
    try:
        return transformers.AutoTokenizer.from_pretrained(place, **revision, trust_remote_code=False)
    except Exception as error:
        raise MissingError(
            f"text.tokenizer: {name}: no such folder, not in the cache of the hub, and cannot be downloaded ({_line(error)}). With a network: "
            f"`hf download {place} tokenizer.json tokenizer_config.json`; without: give a folder that holds them as text.tokenizer.source."
        ) from error


def _place(name: str) -> tuple[str, dict[str, str]]:
    """A folder, or owner/name and owner/name@revision of the hub, as transformers wants to be told."""
    repository, _, revision = name.partition("@")
    return (name, {}) if Path(name).is_dir() or not revision else (repository, {"revision": revision})


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _start_of_model(name: str, tokenizer: Tokenizer) -> int | None:
    """What a captioner begins its captions after, by its own configuration (BLIP: [DEC], which its tokeniser does not say).

    None where it says nothing, or nothing that is a special token: configurations of the library have numbers of other vocabularies by default.
    """
    import transformers

    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    stated: list[int | None] = []
    place, revision = _place(name)
    kinds: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (transformers.GenerationConfig, ("decoder_start_token_id",)),
        (transformers.AutoConfig, ("decoder_start_token_id", "bos_token_id")),
    )
    for kind, keys in kinds:
        try:
            config = kind.from_pretrained(place, **revision, local_files_only=True)
        except (OSError, ValueError):
            continue  # a folder with a tokeniser alone
        parts = [config, config.get_text_config(decoder=True)] if hasattr(config, "get_text_config") else [config]
        stated += [getattr(part, key, None) for key in keys for part in parts]
    return next((token for token in stated if token in special), None)
