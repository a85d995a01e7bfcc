"""A script with the same meaning in fewer bytes: its own names short, declarations joined, no separator that nothing needs.

For the hand-written modules of web/ behind one another, whose names are private to the page. A name is renamed everywhere or nowhere, so that no scope has
to be known: a script's own name, declared in it, that is nowhere also a property, a key or a word of a pattern such as `{ canvas, redraw }`. Names of the
browser are not declared in the script and stay. What it does not know: labels, getters and methods in object literals, which web/ has none of;
and bodies that are empty, as of `while (next());`.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

# A text, a regular expression, a name or number, blanks, a sign. Templates are taken apart by `tokens`.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|(?<=[(,=:])/(?:[^/\\\n]|\\.)+/\w*|\.{3}|=>|[\w$]+|\s+|.', re.DOTALL)
_TEMPLATE_TEXT = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))+", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_$][\w$]*")
_DECLARED = re.compile(r"\b(?:function|const|let|class) ([\w$]+)")
_PARAMETERS = re.compile(r"(?:\bfunction [\w$]*\(([\w$,]*)\)|\(([\w$,]*)\)=>)")
_KEYWORDS = frozenset(
    _NAME.findall(
        "arguments async await break case catch class const continue default delete do else export extends false finally for function get if import in"
        " instanceof let new null of return set static super switch this throw true try typeof undefined var void while yield"
    )
)


@dataclass(frozen=True)
class Token:
    """A piece of a script. `within`: the bracket around it: (, [, {, ` (a template's text) or $ (an expression in a template); "" outside all."""

    text: str
    within: str
    line: int


def tokens(script: str) -> Iterator[Token]:
    """The pieces of a script without comments; together they are the script."""
    at, line, around = 0, 1, [""]
    while at < len(script):
        inside = around[-1]
        text = _next(script, at, inside)
        signs = inside != "`" or text in ("`", "${")  # else what a template says
        if signs and (text in (")", "]", "}") or text == inside == "`"):
            around.pop()
        yield Token(text, around[-1] if text == "`" else inside, line)
        if signs and (text in ("(", "[", "{", "${") or (text == "`" and inside != "`")):
            around.append(text[0])
        at, line = at + len(text), line + text.count("\n")


def _next(script: str, at: int, inside: str) -> str:
    if inside != "`":
        found = _TOKEN.match(script, at)
    elif script.startswith(("`", "${"), at):
        return "`" if script[at] == "`" else "${"
    else:
        found = _TEMPLATE_TEXT.match(script, at)
    return found[0] if found else script[at]


def shorten(script: str) -> str:
    """The script (minified before: without comments and needless blanks) with short names, without `;` before } and commas before a closing bracket."""
    pieces = list(tokens(script))
    short = dict(zip(_own_names(script, pieces), _short_names(set(_NAME.findall(script))), strict=False))
    texts = [short.get(piece.text, piece.text) if piece.within != "`" else piece.text for piece in pieces]
    for i in range(2, len(texts)):
        last, closing = texts[i - 1], texts[i]
        if (last == ";" and closing == "}") or (last == "," and closing in (")", "]", "}") and texts[i - 2] not in (",", "[")):
            texts[i - 1] = ""
    _join_declarations(pieces, texts)
    return "".join(texts)


def _join_declarations(pieces: list[Token], texts: list[str]) -> None:
    """Make `const` to `let`, and `let a=1;let b=2` to `let a=1,b=2`, in place. A declaration ends at a `;` or a line's end in the bracket that it stands in."""
    declares = [False]  # for each open bracket: whether the statement that is being read there is a declaration
    for i, piece in enumerate(pieces):
        if piece.within == "`" and piece.text != "${":  # what a template says
            continue
        if piece.text in ("(", "[", "{", "${"):
            declares.append(False)
        elif piece.text in (")", "]", "}"):
            declares.pop()
        elif piece.text in ("const", "let"):
            declares[-1], texts[i] = True, texts[i] and "let"
        elif piece.text == ";" or "\n" in piece.text:
            following = next((k for k in range(i + 1, len(pieces)) if not pieces[k].text.isspace()), None)
            again = following is not None and pieces[following].text in ("const", "let") and piece.within == pieces[following].within
            if again and declares[-1] and texts[i]:
                assert following is not None
                behind = following + pieces[following + 1].text.isspace()
                texts[i : behind + 1] = [",", *[""] * (behind - i)]
            else:
                declares[-1] = False


def _own_names(script: str, pieces: list[Token]) -> list[str]:
    """The names that may be renamed, the one that saves most first."""
    solid = [piece for piece in pieces if not piece.text.isspace()]
    parameters = {name for found in _PARAMETERS.findall(script) for names in found for name in names.split(",")}
    declared = parameters.union(_DECLARED.findall(script))
    counts: Counter[str] = Counter()
    kept = set(_KEYWORDS)
    edge = Token("", "", 0)
    for behind, before, piece, after in zip([edge, edge, *solid], [edge, *solid], solid, [*solid[1:], edge], strict=False):
        if piece.within == "`" or not _NAME.fullmatch(piece.text):
            continue
        counts[piece.text] += 1
        begins_block = before.text == "{" and behind.text in (")", "=>")  # there `name =` is a statement, not a pattern's default
        key = piece.within == "{" and before.text in ("{", ",") and after.text in (":", ",", "}", "=") and not begins_block
        if before.text in (".", "?.") or key:
            kept.add(piece.text)
    own = [name for name in counts if name in declared and name not in kept and len(name) > 2]
    return sorted(own, key=lambda name: (-counts[name] * len(name), name))


def _short_names(taken: set[str]) -> Iterator[str]:
    """Names of one and two letters that the script does not have, the shortest first."""
    for length in (1, 2):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken and name not in _KEYWORDS:
                yield name
