"""The scripts and the style of a page: hand-written ES modules of web/ as one script, without a build step.

A page is a file that is opened from a disk, where a module cannot import another. The modules therefore stand one behind the other in one script, in an order
in which each comes after what it imports, without their `import` lines and the word `export`; their top-level names are all different (a test holds it).
rjsmin and rcssmin leave out comments and blanks, `shorten` gives the names that are private to the page one or two letters: what people read is web/.
The modules and the style that report and explorer share have at most MOST_BYTES as shipped, and so has the report's whole script with the style; what the
explorer alone does comes on top in the explorer.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable
from importlib import resources

import rcssmin
import rjsmin

from pellucid.errors import UsageError
from pellucid.views.shorten import shorten

MOST_BYTES = 60_000
MODULES = ("core", "plot", "curves", "overview", "features", "attention", "positions", "masks", "words", "mistakes", "compare", "mounts")
ENTRIES = ("report", "explore")  # what a page begins with; it has one of them
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z]+)\.js";\n', re.MULTILINE)  # one line, or a name a line
_EXPORT = re.compile(r"^export (?=(?:async )?function|const|class|let)", re.MULTILINE)


@functools.cache
def script(entry: str) -> str:
    """The script of a page as it is shipped: every module, then the entry, "report" or "explore"."""
    if entry not in ENTRIES:
        raise UsageError(f"expected one of {', '.join(ENTRIES)}, got {entry!r}")
    return minified((*MODULES, entry))


def minified(names: Iterable[str]) -> str:
    """Modules behind one another as they are shipped."""
    return shorten(str(rjsmin.jsmin(joined(names))))


def joined(names: Iterable[str]) -> str:
    """Modules behind one another as one script, with comments and names as they are in web/."""
    parts, there = [], set()
    for name in names:
        text = source(f"{name}.js")
        missing = {of for of in _IMPORT.findall(text) if of not in there}
        if missing:
            raise UsageError(f"web/{name}.js imports {', '.join(sorted(missing))}, which comes after it; mend the order of MODULES")
        parts.append(_EXPORT.sub("", _IMPORT.sub("", text)))
        there.add(name)
    return "\n".join(parts)


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
