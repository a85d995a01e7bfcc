"""Caption tokenisers: the same tokens everywhere, and which tokens make which word."""

import csv
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pellucid.caption_scores import LETTER, TOKEN, exact_matches, tokens_of
from pellucid.data.text import CaptionTokenizer, build_tokenizer, load_tokenizer
from pellucid.errors import DataError, MissingError, RunError, UsageError
from pellucid.run import Vocabulary
from pellucid.schema.captioning import TextSection

CAPTIONS = [
    "Two men carry their skis up a snowy hill.",
    "A man skis, and a dog runs behind him.",
    "A snowboarder's helmet is red; the skier wears none.",
    "Dogs run (fast) over the snow!",
    "Ein Schnürsenkel, naïve café: o'clock",
]
HARD = [
    "A T-shirt, don't; the MAN's 1,000 dogs' ATVs at 5:30!",
    "An ant 's-eye-view of a merry-go-round (mum's) ...",
    "ski 's, 'stop' \" Mom ' Finley \" it’s ‘so’ he'll she'd we've they're I'm isn't",
    "o'clock n't 1,000 n't 's n't t-shirt n't n't n't 's's don'tn't x-n't '-s rock'n'roll",
    "#1 & 50% of $5.00, 3-2 C-3PO ##s -- - a-b -c d- 3.5,6:7 U.S. and/or",
    "CAFÉ naïve e\u0301t\u00e9 ΟΔΟΣ ΣΑΣ Σ İstanbul 一只狗 ☃☃ x\x1cy\u00a0z\u3000\tw",
    " [EOS] [UNK] ",
    "",
]
SPECIAL = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]


def section(name="words", max_length=40, **tokenizer):
    return TextSection.model_validate({"tokenizer": {"name": name, **tokenizer}, "max_length": max_length})


def build(name="words", captions=CAPTIONS, max_length=40, own=None, **tokenizer):
    return build_tokenizer(section(name, max_length, **tokenizer), captions, own=own)


def names(tokenizer):
    return [tokenizer.text_of(token) for token in range(tokenizer.vocabulary.size)]


def of_pieces(vocabulary, **settings):
    """A WordPiece tokeniser of exactly these tokens."""
    tokens = [*SPECIAL, *vocabulary]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return CaptionTokenizer(tokenizer, Vocabulary(len(tokens), 2, 3, 0, 40, "")), tokens


def of_bytes(captions=CAPTIONS, size=400):
    """A byte-level BPE as GPT-2's: one token is start, end and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer, CaptionTokenizer(tokenizer, Vocabulary(tokenizer.get_vocab_size(), 0, 0, 0, 40, ""))


# ── vocabularies ──


def test_words_stand_by_how_often_they_occur_and_then_by_their_letters():
    tokenizer = build(captions=["b a b", "d a b", "B c"])
    assert names(tokenizer) == [*SPECIAL, "b", "a", "c", "d"]
    assert (tokenizer.vocabulary.size, tokenizer.vocabulary.start, tokenizer.vocabulary.end, tokenizer.vocabulary.pad) == (8, 2, 3, 0)
    assert names(build(captions=["b a b", "d a b", "B c"], size=6)) == [*SPECIAL, "b", "a"]
    rare = build(captions=["b a b", "d a b", "B c"], min_count=2)
    assert names(rare) == [*SPECIAL, "b", "a"]
    assert rare.encode("a d b") == [5, 1, 4, 3]
    assert rare.vocabulary.how == "one token a word: 6 tokens; of 8 words and signs in 3 training captions 2 are unknown"


def test_how_many_captions_are_cut_is_said():
    tokenizer = build(captions=["a b c", "a b", "a b c d"], max_length=3)
    assert tokenizer.vocabulary.how.endswith("; 2 captions are cut to 3 tokens")
    assert [tokenizer.decode(tokenizer.encode(text)) for text in ("a b c", "a b")] == ["a b", "a b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"captions": []}, "expected captions of the training split"),
        ({"size": 4}, "size 4 leaves no token for a word"),
        ({"min_count": 99}, r"no word stands in the training captions 99 times \(min_count\)"),
        ({"name": "word_pieces", "size": 20}, r"the training captions need 63 tokens for their letters and the 4 special ones, got size 20"),
        ({"name": "word_pieces", "captions": [" "]}, "no caption holds a word"),
        ({"name": "transformers"}, "expected a folder or a name on the hub, e.g. bert-base-uncased"),
    ],
)
def test_captions_that_give_no_vocabulary_are_refused(arguments, words):
    with pytest.raises(UsageError if arguments.get("name") == "transformers" else DataError, match=words):
        build(**arguments)


def learned(captions, size):
    """WordPiece from its definition: all pairs are counted again before each merge; ties go to the older pieces."""
    words = Counter(word for text in captions for word in text.split())
    cut = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in words}
    pieces = [*SPECIAL, *sorted({letter for word in words for letter in word} | {f"##{letter}" for word in words for letter in word[1:]})]
    while len(pieces) < size:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(cut[word]):
                pairs[pair] += count
        if not pairs:
            break
        one, other = min(pairs, key=lambda pair: (-pairs[pair], pieces.index(pair[0]), pieces.index(pair[1])))
        merged = one + other.removeprefix("##")
        if merged not in pieces:
            pieces.append(merged)
        for word, parts in cut.items():
            i, whole = 0, []
            while i < len(parts):
                both = parts[i : i + 2] == [one, other]
                whole.append(merged if both else parts[i])
                i += 1 + both
            cut[word] = whole
    return pieces


def test_word_pieces_are_those_of_a_slow_learner():
    captions = ["skis skier skiing ski", "snow snowy snowboard snowboarder", "board boards boarder", "run runs running runner", "dog dogs doggy"] * 2
    for size in (45, 60, 80, 200):
        assert names(build("word_pieces", captions, size=size)) == learned(captions, size)


def test_word_pieces_are_the_same_in_every_process():
    code = (
        "import hashlib, json, sys; from pellucid.data.text import build_tokenizer; from pellucid.schema.captioning import TextSection\n"
        "section = TextSection.model_validate({'tokenizer': {'name': 'word_pieces', 'size': 90}})\n"
        "print(json.dumps(build_tokenizer(section, json.loads(sys.argv[1]))._tokenizer.to_str()))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(CAPTIONS)],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2, 3)
    ]
    said = [process.communicate()[0] for process in started]
    assert said[0]
    assert said == [said[0]] * 3
    assert json.loads(said[0]) == build("word_pieces", size=90)._tokenizer.to_str()


# ── captions and tokens ──


@pytest.mark.parametrize("name", ["words", "word_pieces"])
def test_a_caption_survives_its_tokens(name):
    tokenizer = build(name, size=200)
    for text in CAPTIONS:
        tokens = tokenizer.encode(text)
        assert tokens[-1] == 3
        assert not {0, 1, 2} & set(tokens)
        assert tokenizer.encode(tokenizer.decode(tokens)) == tokens
    assert tokenizer.decode(tokenizer.encode(CAPTIONS[0])) == "two men carry their skis up a snowy hill."


@pytest.mark.parametrize("name", ["words", "word_pieces"])
def test_a_perfect_caption_has_the_words_of_the_one_it_repeats(name, tmp_path):
    tokenizer = build(name, HARD, max_length=200, size=400)
    for text in HARD:
        said = tokenizer.decode(tokenizer.encode(text))
        assert tokens_of(said) == tokens_of(text)
        assert tokenizer.encode(said) == tokenizer.encode(text)
        assert list(exact_matches([said], [[text]])) == [bool(tokens_of(text))]
    assert tokenizer.decode(tokenizer.encode(HARD[0])) == "a t-shirt, don't ; the man's 1,000 dogs ' atvs at 5:30!"
    assert tokenizer.unknown not in {token for text in HARD for token in tokenizer.encode(text)}
    tokenizer.save(tmp_path / "tokenizer.json")
    code = (
        "import json, sys; from tokenizers import Tokenizer; t = Tokenizer.from_file(sys.argv[1]); t.encode_special_tokens = True\n"
        "found = [t.encode(text, add_special_tokens=False).ids for text in json.loads(sys.argv[2])]\n"
        "print(json.dumps([found, [t.decode(tokens, skip_special_tokens=False) for tokens in found]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "tokenizer.json", json.dumps(HARD)], capture_output=True, text=True, check=True)
    found, texts = json.loads(done.stdout)
    assert [[*tokens, 3] for tokens in found] == [tokenizer.encode(text) for text in HARD]
    assert texts == [tokenizer.decode(tokenizer.encode(text)) for text in HARD]


def test_any_words_in_any_order_are_cut_as_they_were_found():
    tokenizer, generator = build(captions=HARD, max_length=20), np.random.default_rng(0)
    for _ in range(1000):
        tokens = [*generator.integers(len(SPECIAL), tokenizer.vocabulary.size, 12).tolist(), 3]
        assert tokenizer.encode(tokenizer.decode(tokens)) == tokens
        assert [behind - first for _, first, behind in tokenizer.words(tokens)] == [1] * 12


def test_words_are_those_of_the_scores():
    for name in ("words", "word_pieces"):
        tokenizer = build(name, HARD, max_length=200, size=120)
        words = [text for text, _, _ in tokenizer.words(tokenizer.encode(HARD[0]))]
        assert words == ["a", "t-shirt", ",", "do", "n't", ";", "the", "man", "'s", "1,000", "dogs", "'", "atvs", "at", "5:30", "!"]
    places = {text: behind - first for text, first, behind in tokenizer.words(tokenizer.encode(HARD[0]))}
    assert places["t-shirt"] > 1
    assert tokenizer.text_of(tokenizer.encode("-")[0]) == "-"


@pytest.fixture(scope="module")
def real(photographs):
    """All captions of the real set."""
    with (photographs / "captions" / "captions.csv").open(newline="", encoding="utf-8") as file:
        return [row["caption"] for row in csv.DictReader(file)]


def test_every_real_caption_has_its_words_again(real):
    tokenizer = build(captions=real, size=20_000, max_length=100)
    assert "; of 188,499 words and signs in 16,000 training captions 0 are unknown" in tokenizer.vocabulary.how
    said = [tokenizer.decode(tokenizer.encode(text)) for text in real]
    assert [text for text, one in zip(real, said, strict=True) if tokens_of(one) != tokens_of(text)] == []


CUTTER = pre_tokenizers.Split(Regex(TOKEN), "removed", invert=True)


def cut_by_both(text):
    """(what the library finds of TOKEN in a text in lower case, what Python finds)."""
    return [word for word, _ in CUTTER.pre_tokenize_str(text)], re.findall(TOKEN, text)


def test_the_library_cuts_real_captions_as_python_does(real):
    one, other = cut_by_both("\n".join(real).lower())
    assert len(one) > 188_000
    assert one == other


def test_the_library_cuts_any_text_as_python_does():
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and unicodedata.category(chr(code)) != "Cn"]
    letters = pre_tokenizers.Split(Regex(LETTER), "removed", invert=True).pre_tokenize_str("".join(every))
    assert [letter for letter, _ in letters] == re.findall(LETTER, "".join(every))
    generator = np.random.default_rng(0)
    likely = [*"'-'-'-'  nt,.:15sdmrevlax", "n't", "'s", "\x1c", "\u0085", "\u00a0", "\u200b", "é", "一"]
    for _ in range(3000):
        some = "".join(generator.choice(likely, 14)) + "".join(every[i] for i in generator.integers(0, len(every), 3))
        one, other = cut_by_both(some)
        assert one == other


def test_what_is_no_text_of_the_caption_is_left_out():
    tokenizer = build(captions=["a b c"])
    assert tokenizer.decode([2, 4, 0, 5, 3, 6, 4, -1]) == "a b"
    assert tokenizer.decode([4, 5, -1, -1]) == "a b"
    assert tokenizer.decode([]) == ""
    assert tokenizer.words([2, 4, 0, 5, 3, 6]) == [("a", 1, 2), ("b", 3, 4)]
    assert tokenizer.words([3]) == []
    assert tokenizer.words([4, 999, 5]) == [("a", 0, 1), ("b", 2, 3)]
    assert (tokenizer.text_of(2), tokenizer.text_of(999), tokenizer.text_of(-1)) == ("[BOS]", "<999>", "<-1>")


def test_a_caption_that_spells_a_special_token_is_text():
    tokenizer = build(captions=["[EOS] a [PAD]", "eos pad"])
    assert tokenizer.decode(tokenizer.encode("[EOS] a [PAD]")) == "[ eos ] a [ pad ]"


def test_a_saved_tokenizer_is_the_same(tmp_path):
    tokenizer = build("word_pieces", size=200)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json", tokenizer.vocabulary)
    for text in [*CAPTIONS, "[EOS] unseen ☃"]:
        tokens = tokenizer.encode(text)
        assert (again.encode(text), again.decode(tokens), again.words(tokens)) == (tokens, tokenizer.decode(tokens), tokenizer.words(tokens))


def test_a_file_that_is_no_tokenizer_of_the_run_is_refused(tmp_path):
    vocabulary = build().vocabulary
    with pytest.raises(RunError, match=r"tokenizer.json: expected the tokeniser of the run's captions, there is none"):
        load_tokenizer(tmp_path / "tokenizer.json", vocabulary)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer.json: expected a tokeniser of the tokenizers library"):
        load_tokenizer(tmp_path / "tokenizer.json", vocabulary)
    build(captions=["a b"]).save(tmp_path / "tokenizer.json")
    with pytest.raises(RunError, match=rf"expected {vocabulary.size} tokens, as data.json says, got 6; the file is of another run"):
        load_tokenizer(tmp_path / "tokenizer.json", vocabulary)


# ── words ──


def test_pieces_of_a_word_are_one_word():
    tokenizer, tokens = of_pieces(["a", "man", "ski", "##s", "##ing", "'", "s", ".", "hat"])
    at = tokens.index
    assert tokenizer.words([at("man"), at("ski"), at("##s"), 3]) == [("man", 0, 1), ("skis", 1, 3)]
    possessive = [at(piece) for piece in ("a", "man", "'", "s", "hat", ".")]
    assert tokenizer.words(possessive) == [("a", 0, 1), ("man", 1, 2), ("'", 2, 3), ("s", 3, 4), ("hat", 4, 5), (".", 5, 6)]


def test_pieces_that_nobody_would_write_are_still_words():
    tokenizer, tokens = of_pieces(["a", "ski", "skis", "##s", "##ing", "."])
    at = tokens.index
    assert tokenizer.words([at("ski"), at("##s"), at("##s"), at("ski")]) == [("skiss", 0, 3), ("ski", 3, 4)]
    assert tokenizer.words([at("##s"), at("a")]) == [("##s", 0, 1), ("a", 1, 2)]
    assert tokenizer.words([at("."), at("##s"), at(".")]) == [(".", 0, 1), ("s", 1, 2), (".", 2, 3)]
    assert tokenizer.words([2, at("ski"), 0, 1, at("a")]) == [("ski", 1, 2), ("[UNK]", 3, 4), ("a", 4, 5)]


def test_unknown_words_are_words_each():
    tokenizer = build(captions=["a b"])
    tokens = tokenizer.encode("a x y, b")
    assert tokens == [4, 1, 1, 1, 5, 3]
    assert tokenizer.words(tokens) == [("a", 0, 1), ("[UNK]", 1, 2), ("[UNK]", 2, 3), ("[UNK]", 3, 4), ("b", 4, 5)]


def from_the_library(tokenizer, text):
    """{word of the library: (first, behind the last) of its tokens} and the ids, of a text that is cut anew."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    found = {}
    for place, word in enumerate(encoding.word_ids):
        found.setdefault(word, []).append(place)
    return encoding.ids, [(places[0], places[-1] + 1) for places in found.values()]


@pytest.mark.parametrize("kind", ["words", "word_pieces", "bytes", "single bytes"])
def test_words_are_those_of_the_library_where_it_cuts_the_same(kind):
    tokenizer = of_bytes(size=257 if kind == "single bytes" else 400)[1] if "bytes" in kind else build(kind, size=150)
    compared = 0
    for text in [*CAPTIONS, "the skier's dog (naïve) runs; o'clock!"]:
        tokens = tokenizer.encode(text)
        assert len(tokens) <= 40
        ids, expected = from_the_library(tokenizer._tokenizer, tokenizer.decode(tokens))
        if ids == tokens[:-1]:
            compared += 1
            assert [(first, behind) for _, first, behind in tokenizer.words(tokens)] == expected
    assert compared >= 5


@pytest.mark.parametrize("kind", ["words", "word_pieces", "bytes"])
def test_every_letter_of_any_caption_stands_in_one_word(kind):
    tokenizer = of_bytes(size=300)[1] if kind == "bytes" else build(kind, size=150)
    generator = np.random.default_rng(0)
    for _ in range(200):
        tokens = generator.integers(-1, tokenizer.vocabulary.size, 12).tolist()
        words = tokenizer.words(tokens)
        assert "".join("".join(text.split()) for text, _, _ in words) == "".join(tokenizer.decode(tokens).split())
        places = [place for _, first, behind in words for place in range(first, behind)]
        assert places == sorted(set(places))


def test_bytes_of_one_letter_belong_to_its_word():
    library, tokenizer = of_bytes(size=257)  # no merges: every letter is a token, é two
    tokens = tokenizer.encode("a café ☃ ski")
    assert [(text, behind - first) for text, first, behind in tokenizer.words(tokens)] == [("a", 1), ("café", 6), ("☃", 4), ("ski", 4)]
    assert tokenizer.words(tokens)[1] == ("café", 1, 7)
    snow = library.encode(" ☃").ids
    assert tokenizer.text_of(snow[1]) == library.id_to_token(snow[1])  # a third of a snowman
    assert tokenizer.words(snow[:3]) == [("�", 0, 3)]
    assert tokenizer.text_of(0) == "<|endoftext|>"
    assert tokenizer.decode([*library.encode("a ski").ids, 0, 0]) == "a ski"


def test_punctuation_is_a_word_of_its_own_where_the_tokenizer_leaves_it_on_words():
    tokens = ["<unk>", "<s>", "</s>", "▁a", "▁(", "man", "▁ski", "s", ".", ")", "▁man", "’s", "s."]
    library = Tokenizer(models.Unigram([(token, -1.0 - 0.1 * i) for i, token in enumerate(tokens)], unk_id=0))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer, at = CaptionTokenizer(library, Vocabulary(len(tokens), 1, 2, 2, 40, "")), tokens.index
    said = tokenizer.words([at(piece) for piece in ("▁a", "▁(", "man", ")", "▁ski", "s", ".")])
    assert said == [("a", 0, 1), ("(", 1, 2), ("man", 2, 3), (")", 3, 4), ("skis", 4, 6), (".", 6, 7)]
    assert tokenizer.words([at("▁ski"), at("s.")]) == [("skis.", 0, 2)]  # a token with both: they are one


# ── published tokenisers ──


def of_bert(captions, **cleanup):
    """BERT's way with every word of some captions, as it is published."""
    cutter, normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True)
    words = sorted({word for text in captions for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text))})
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate([*SPECIAL, *words])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, cutter, decoders.WordPiece(**cleanup)
    return tokenizer


def published(tokenizer, folder):
    """The same from a folder in the hub's layout."""
    from transformers import PreTrainedTokenizerFast

    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[BOS]", "sep_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return build_tokenizer(section("transformers", 200, source=str(folder)), ())


@pytest.mark.parametrize("cleanup", [True, False])
def test_berts_captions_come_without_blanks_in_their_words(cleanup, tmp_path):
    texts = [
        "a man's t-shirt, don't! it’s 1,000 o'clock at 5:30 merry-go-round we've they'll",
        "a 'stop' sign, the dogs' toys (10, 20) isn't a dog-",
    ]
    library = of_bert(texts, cleanup=cleanup)
    tokenizer = published(library, tmp_path)
    said = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    assert [tokens_of(one) for one in said] == [tokens_of(text) for text in texts]
    assert said[0].replace(" ,", ",").replace(" !", "!") == texts[0]
    assert "a ' stop ' sign" in said[1]
    assert tokens_of(library.decode(library.encode(texts[0]).ids))[:6] == ["a", "man", "s", "t", "shirt", "don"]  # what it gave by itself
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json", tokenizer.vocabulary)
    assert [again.decode(again.encode(text)) for text in texts] == said


def test_words_of_bert_are_its_own_and_have_their_tokens(tmp_path):
    text = "a man's t-shirt don't"
    tokenizer = published(of_bert([text]), tmp_path)
    words = [(word, i, i + 1) for i, word in enumerate(["a", "man", "'", "s", "t", "-", "shirt", "don", "'", "t"])]
    assert tokenizer.words(tokenizer.encode(text)) == words


def test_berts_captions_of_the_real_set_score_as_what_they_repeat(real, tmp_path):
    texts = [text for text in real if re.search(r"[^\w\s.,]|\d", text)]  # of the others all is one blank apart
    assert len(texts) > 600
    tokenizer = published(of_bert(texts), tmp_path)
    said = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    other = [text for text, one in zip(texts, said, strict=True) if tokens_of(one) != tokens_of(text)]
    assert other == ["An ant 's-eye-view of people walking along a street"]  # of 16,000; 544 without the blanks taken away


def test_a_tokenizer_that_keeps_blanks_decodes_as_it_does(tmp_path):
    from transformers import GPT2TokenizerFast

    texts = ["the man ' s t - shirt, man's t-shirt 1, 000 5 : 30"]
    GPT2TokenizerFast(tokenizer_object=of_bytes(texts)[0]).save_pretrained(tmp_path)
    tokenizer = build("transformers", source=str(tmp_path), captions=[], max_length=200)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_a_published_tokenizer_needs_no_captions(bert):
    tokenizer = build("transformers", captions=[], source=str(bert[0]))
    assert tokenizer.vocabulary.how == f"the tokeniser of {bert[0].name}: {tokenizer.vocabulary.size} tokens"
    assert replace(tokenizer.vocabulary, how="") == replace(build("transformers", source=str(bert[0])).vocabulary, how="")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder in the hub's layout with a BERT tokeniser, and the tokeniser."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz.',",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        "man",
        "ski",
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    library = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab={token: i for i, token in enumerate(vocabulary)})
    library.save_pretrained(folder)
    return folder, library


def test_a_bert_tokenizer_gives_its_own_tokens_without_the_start(bert):
    folder, library = bert
    tokenizer = build("transformers", source=str(folder), max_length=60)
    v = tokenizer.vocabulary
    assert (v.size, v.start, v.end, v.pad) == (len(library), library.cls_token_id, library.sep_token_id, library.pad_token_id)
    assert v.how.startswith(f"the tokeniser of {folder.name}: {v.size} tokens; of ")
    for text in CAPTIONS[:4]:
        assert tokenizer.encode(text) == library(text).input_ids[1:]
    tokens = tokenizer.encode("A man skis.")
    assert [text for text, _, _ in tokenizer.words(tokens)] == ["a", "man", "skis", "."]
    assert build("transformers", own=folder, max_length=60).vocabulary == v


def test_a_gpt2_tokenizer_begins_ends_and_pads_with_one_token(tmp_path):
    from transformers import GPT2TokenizerFast

    library, _ = of_bytes()
    GPT2TokenizerFast(tokenizer_object=library).save_pretrained(tmp_path)
    tokenizer = build("transformers", source=str(tmp_path))
    assert (tokenizer.vocabulary.start, tokenizer.vocabulary.end, tokenizer.vocabulary.pad) == (0, 0, 0)
    tokens = tokenizer.encode("Two men carry <|endoftext|> skis.")
    assert tokens[-1] == 0
    assert 0 not in tokens[:-1]
    assert tokenizer.decode(tokens) == "Two men carry <|endoftext|> skis."


def test_the_model_says_what_its_captions_begin_after(bert, tmp_path):
    from transformers import AutoTokenizer, BlipConfig

    library = AutoTokenizer.from_pretrained(bert[0])
    library.add_special_tokens({"bos_token": "[DEC]"})
    library.save_pretrained(tmp_path)
    own = library.convert_tokens_to_ids("[DEC]")
    BlipConfig(text_config={"bos_token_id": own}).save_pretrained(tmp_path)
    assert build("transformers", own=tmp_path).vocabulary.start == own
    BlipConfig(text_config={"bos_token_id": 7}).save_pretrained(tmp_path)  # the letter c: a number of another vocabulary
    assert build("transformers", own=tmp_path).vocabulary.start == library.cls_token_id
    assert build("transformers", source=str(tmp_path)).vocabulary.start == library.cls_token_id


def with_sign(tokenizer, folder, **signs):
    """A folder with a tokeniser of transformers."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **signs).save_pretrained(folder)
    return str(folder)


def test_the_unknown_token_of_a_unigram_tokenizer_is_known_and_counted(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in "aeiou")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    source = with_sign(tokenizer, tmp_path, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
    found = build("transformers", captions=["a e u", "a dog o"], source=source)
    assert found.unknown == 2
    assert found.encode("a dog") == [3, 2, 6, 2, 1]
    assert "of 6 words and signs in 2 training captions 1 are unknown" in found.vocabulary.how
    found.save(tmp_path / "kept.json")
    assert load_tokenizer(tmp_path / "kept.json", found.vocabulary).unknown == 2
    none = Tokenizer(models.Unigram(pieces))
    assert CaptionTokenizer(none, Vocabulary(8, 1, 1, 0, 9, "")).unknown is None


def test_an_unknown_token_that_ends_captions_is_not_kept_from_them(tmp_path):
    letters = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *"aeiou"])}
    tokenizer = Tokenizer(models.BPE(letters, [], unk_token="<|endoftext|>"))  # as CLIP's
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    signs = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    found = build("transformers", captions=["a e"], source=with_sign(tokenizer, tmp_path, bos_token="<|startoftext|>", **signs))
    assert (found.vocabulary.end, found.unknown) == (1, None)
    assert found.decode([*found.encode("a e"), 2]).replace(" ", "") == "ae"


def test_a_tokenizer_that_cannot_be_had_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match=r"nobody/nothing@v1: no such folder, not in the cache of the hub.*`hf download nobody/nothing tokenizer.json"):
        build("transformers", source="nobody/nothing@v1")
    with pytest.raises(MissingError, match=r"expected a folder with tokenizer.json"):
        build("transformers", source=str(tmp_path))
