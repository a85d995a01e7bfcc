"""The measures of captions beside published implementations: how many digits agree, and `--write` makes the golden file of the tests anew.

    BLEU, ROUGE-L, CIDEr-D   pycocoevalcap (coco-caption in pure Python; none of its parts that need Java)
    METEOR, stems, words     NLTK: meteor_score with an empty WordNet, PorterStemmer, TreebankWordTokenizer less coco-caption's list of punctuation

    pip install pycocoevalcap nltk

All get the same words, those of `tokens_of`. The captions are made here: 60 drawn scenes of one reference and 60 invented photographs of five, among them empty
captions, words said again and again, and captions that share no word with their references.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import is_installed, machine, markdown_table
from pellucid.caption_scores import caption_scores, tokens_of
from pellucid.porter import stem

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "caption_scores.json"
PEERS = ("pycocoevalcap", "nltk")
SEED, PICTURES = 20, 60
Captions = tuple[list[str], list[list[str]]]

# ── captions ──────────────────────────────────────────────────────────────────────────────────────────────────

SIZES, COLORS = ("small", "large"), ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES, RELATIONS = ("circle", "square", "triangle", "cross", "ring"), ("above", "left of")
WHO = ("dog", "dogs", "boy", "boys", "girl", "woman's dog", "skier", "cyclists", "old man", "child who doesn't smile", "rock-climber")
DOES = ("runs", "is running", "jumped", "is jumping", "plays", "are playing", "skis", "skied happily", "climbs", "carries a T-shirt", "it's hurrying")
WHERE = ("in the snow", "on a grassy field", "near the ocean", "across the street", "at the park", "down a snowy mountain", "by the water's edge")
ENDINGS = ("", ".", " .", "!", " , happily .", ", at 5:30 .")
SENTENCES = (
    "A man's dog doesn't bark.", '"Two" dogs play; one -- the brown one -- barks!', "The skiers' skis weren't theirs ...",
    "He can't, won't, and didn't: why?", "A rock-climber in a T-shirt & jeans costs $ 1,000", "They're here, I'm there, we've gone, you'll come, he'd stay",
    "three o'clock sun", "a 3.5 % slope at 5:30", "Nobody's-business , said she .", "#42 on a boy 's shirt", "a, b; c: d? e!", "`` quoted '' words",
)  # fmt: skip
WORDS = """
caresses ponies ties caress cats feed agreed plastered bled motoring sing conflated troubled sized hopping tanned falling hissing fizzed failing filing happy
sky skies dying lying news innings proceed relational conditional rational valenci hesitanci digitizer conformabli radicalli differentli vileli analogousli
vietnamization predication operator feudalism decisiveness hopefulness callousness formaliti sensitiviti sensibiliti triplicate formative formalize electriciti
electrical hopeful goodness revival allowance inference airliner gyroscopic adjustable defensible irritant replacement adjustment dependent adoption homologou
communism activate angulariti homologous effective bowdlerize probate rate cease controll roll geology theology hopefully enjoy enjoyment spied died flies dies
spy try tried skis skiing skier running runs ran climbers climbing photographer happily grassy snowy yyyy 's n't o'clock t-shirt 1,000 as is oed ing ed eed ied
ies sses companion onion flying crying symphonic toying
generously university universe wooden playing plays played women's kayaking wakeboarder frisbee canoe employees employee
"""


def scenes(draw: random.Random) -> Captions:
    """Captions as of drawn scenes, one reference each; a third of the candidates is right, a third has a wrong word, the others are of other scenes."""

    def scene() -> str:
        one, other = (f"a {draw.choice(SIZES)} {draw.choice(COLORS)} {draw.choice(SHAPES)}" for _ in range(2))
        return f"{one} {draw.choice(RELATIONS)} {other}"

    references = [scene() for _ in range(PICTURES)]
    candidates = []
    for i, reference in enumerate(references):
        words = reference.split()
        words[draw.randrange(len(words))] = draw.choice(COLORS)
        candidates.append((reference, " ".join(words), scene())[i % 3])
    candidates[7], candidates[8] = "", "a a a red red red red circle"
    return candidates, [[reference] for reference in references]


def photographs(draw: random.Random) -> Captions:
    """Captions as of photographs, five references each."""

    def photograph() -> str:
        return f"{draw.choice(('A', 'Two', 'The', 'Several'))} {draw.choice(WHO)} {draw.choice(DOES)} {draw.choice(WHERE)}{draw.choice(ENDINGS)}"

    references = [[photograph() for _ in range(5)] for _ in range(PICTURES)]
    candidates = [photograph() for _ in references]
    for i in range(0, PICTURES, 4):
        candidates[i] = " ".join(references[i][i % 5].split()[: 3 + i % 9])
    candidates[9], candidates[10], candidates[11] = "", "the the the the the the the the the the the the", "nothing whatever resembles these"
    candidates[13] = references[13][2]
    return candidates, references


# ── published implementations ─────────────────────────────────────────────────────────────────────────────────


class _NoSynonyms:
    """A WordNet in which no word has synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []


def published(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """{name: number} of the set and, under cider_d, rouge_l, meteor, of each picture."""
    from nltk.translate.meteor_score import meteor_score
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    found = {i: [" ".join(tokens_of(text))] for i, text in enumerate(candidates)}
    theirs = {i: [" ".join(tokens_of(text)) for text in own] for i, own in enumerate(references)}
    bleu = Bleu(4).compute_score(theirs, found, verbose=0)[0]
    each = {
        "meteor": [float(meteor_score([text.split() for text in theirs[i]], found[i][0].split(), wordnet=_NoSynonyms())) for i in found],
        "rouge_l": [float(value) for value in Rouge().compute_score(theirs, found)[1]],
        "cider_d": [float(value) for value in Cider().compute_score(theirs, found)[1]],
    }
    means = {name: sum(values) / len(values) for name, values in each.items()}
    return {"values": {f"bleu_{k + 1}": float(value) for k, value in enumerate(bleu)} | means, "each": each}


def golden() -> dict[str, Any]:
    """What the golden file holds."""
    from nltk.stem.porter import PorterStemmer
    from nltk.tokenize import TreebankWordTokenizer
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    draw, porter, treebank = random.Random(SEED), PorterStemmer(), TreebankWordTokenizer()
    sets = {}
    for name, made in (("scenes", scenes(draw)), ("photographs", photographs(draw))):
        sets[name] = {"candidates": made[0], "references": made[1], **published(*made)}
    return {
        "how": "python bench/caption_scores.py --write",
        "versions": {name: importlib.metadata.version(name) for name in PEERS},
        "sets": sets,
        "stems": {word: porter.stem(word) for word in WORDS.split()},
        "words": {text: [word for word in treebank.tokenize(text.lower()) if word not in PUNCTUATIONS] for text in SENTENCES},
    }


# ── the comparison ────────────────────────────────────────────────────────────────────────────────────────────


def compared(expected: dict[str, Any]) -> list[list[str]]:
    """Rows of a table: set, number, published, ours, the largest difference of the set's number and of a picture's."""
    rows = []
    for name, made in expected["sets"].items():
        scores = caption_scores(made["candidates"], made["references"])
        values = scores.values()
        for metric, value in made["values"].items():
            each = abs(getattr(scores, metric) - made["each"][metric]).max() if metric in made["each"] else None
            rows.append([name, metric, f"{value:.15g}", f"{values[metric]:.15g}", f"{abs(values[metric] - value):.1e}", "" if each is None else f"{each:.1e}"])
    return rows


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"make {GOLDEN.relative_to(GOLDEN.parents[2])} anew")
    parser.add_argument("--quick", action="store_true", help="no clock")
    arguments = parser.parse_args()
    print(machine(), end="\n\n")
    if missing := [name for name in PEERS if not is_installed(name)]:
        if arguments.write:
            parser.error(f"expected {' and '.join(PEERS)} to write what they compute; missing: pip install {' '.join(missing)}")
        print(f"{' and '.join(missing)} not installed (pip install {' '.join(missing)}): compared with what {GOLDEN.name} holds of them\n")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8")) if missing else golden()
    print(", ".join(f"{name} {version}" for name, version in expected["versions"].items()), end="\n\n")
    print(markdown_table(["captions", "number", "published", "ours", "difference", "largest of a picture"], compared(expected)))
    wrong = [word for word, found in expected["stems"].items() if stem(word) != found]
    other = [text for text, found in expected["words"].items() if tokens_of(text) != found]
    stems, sentences = (f"{len(expected[part]) - len(odd)} of {len(expected[part])}" for part, odd in (("stems", wrong), ("words", other)))
    print(f"\nequal stems: {stems}; sentences cut into the same words: {sentences}")
    for text in other:
        print(f"  {text!r}: published {expected['words'][text]}, ours {tokens_of(text)}")
    if not arguments.quick:
        draw = random.Random(SEED)
        sets = [photographs(draw) for _ in range(84)]
        many = [text for candidates, _ in sets for text in candidates][:5000], [own for _, references in sets for own in references][:5000]
        rows = [["ours, all numbers", f"{timed(lambda: caption_scores(*many)):.1f}"]]
        rows += [] if missing else [["pycocoevalcap and NLTK, all but exact match", f"{timed(lambda: published(*many)):.1f}"]]
        print("\n" + markdown_table(["5,000 pictures of 5 references", "seconds"], rows))
    if arguments.write:
        GOLDEN.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nwritten: {GOLDEN.relative_to(GOLDEN.parents[2])}")


if __name__ == "__main__":
    main()
