"""The scripts and the style of a page: hand-written ES modules of web/ as one script, without a build step.

A page is a file that is opened from a disk, where a module cannot import another. The modules therefore stand one behind the other in one script, in an order
in which each comes after what it imports, without their `import` lines and the word `export`; their top-level names are all different (a test holds it).
rjsmin and rcssmin leave out comments and blanks and rename nothing: what a page runs can be read beside web/.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

import rcssmin
import rjsmin

from pellucid.errors import UsageError

MOST_BYTES = 60_000  # of all scripts and of the style, as they stand in a page
MODULES = ("core", "plot", "curves", "overview", "features", "attention", "positions", "masks", "words", "mistakes", "compare")
ENTRIES = ("report", "explore")  # what a page begins with; it has one of them
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|const|class|let)", re.MULTILINE)


@functools.cache
def script(entry: str) -> str:
    """The script of a page: every module, then the entry, "report" or "explore"."""
    if entry not in ENTRIES:
        raise UsageError(f"expected one of {', '.join(ENTRIES)}, got {entry!r}")
    parts, there = [], set()
    for name in (*MODULES, entry):
        text = source(f"{name}.js")
        missing = {of for of in _IMPORT.findall(text) if of not in there}
        if missing:
            raise UsageError(f"web/{name}.js imports {', '.join(sorted(missing))}, which comes after it; mend the order of MODULES")
        parts.append(_EXPORT.sub("", _IMPORT.sub("", text)))
        there.add(name)
    return str(rjsmin.jsmin("\n".join(parts)))


@functools.cache
def style() -> str:
    """The style of the views, for report and explorer."""
    return str(rcssmin.cssmin(source("view.css")))


def integrity(text: str) -> str:
    """The source expression that lets a Content-Security-Policy run exactly this script: 'sha256-…'."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def source(name: str) -> str:
    """A file of web/."""
    return resources.files("pellucid.views").joinpath("web", name).read_text(encoding="utf-8")
