"""A page on paper: an HTML file printed as PDF by an installed Chromium, Chrome or Edge, without a window and without a network.

The browser is asked to print as a person would, with the styles for print of the page, and nothing else is installed for it: the same file gives the same
pages as Ctrl-P in that browser. It gets a profile of its own for the time of printing, and the network is closed to it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import MissingError, PellucidError
from pellucid.files import replacing

SECONDS = 120.0  # to print a page; one of 5 MB takes about five
NAMES = (  # on PATH, the first that is found
    "chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "microsoft-edge-stable", "microsoft-edge", "msedge",
)  # fmt: skip
PLACES = (  # where macOS and Windows keep what is not on PATH; {…} is a variable of the environment
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "{PROGRAMFILES}/Google/Chrome/Application/chrome.exe",
    "{PROGRAMFILES(X86)}/Google/Chrome/Application/chrome.exe",
    "{LOCALAPPDATA}/Google/Chrome/Application/chrome.exe",
    "{PROGRAMFILES}/Microsoft/Edge/Application/msedge.exe",
    "{PROGRAMFILES(X86)}/Microsoft/Edge/Application/msedge.exe",
)
BY_HAND = "By hand: open the report in any browser, press Ctrl-P (Cmd-P on a Mac) and choose to save as PDF, with background graphics."
GET_ONE = "apt-get install chromium, brew install --cask chromium, or winget install Hibbiki.Chromium"


@dataclass(frozen=True)
class Printed:
    """A PDF that was written and its number of pages."""

    path: Path
    pages: int


def find_browser(asked: str | Path | None = None) -> Path:
    """The browser that prints: the one asked for, by its name on PATH or its path, or the first of NAMES and PLACES.

    MissingError says how to get one, and how to print by hand.
    """
    if asked is not None:
        if found := shutil.which(asked) or shutil.which(Path(asked).absolute()):
            return Path(found).absolute()  # `x` of `./x` alone would be looked for on PATH
        raise MissingError(f"{asked}: expected a browser that can be started (--browser or PELLUCID_BROWSER), there is none. {BY_HAND}")
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    for path in _places():
        if path.is_file():
            return path
    looked = f"{', '.join(NAMES[:4])} … on PATH"
    raise MissingError(f"no browser to print with: looked for {looked}. Get one: {GET_ONE}; or name one by --browser or PELLUCID_BROWSER. {BY_HAND}")


def print_page(page: Path, out: Path, *, browser: Path, seconds: float = SECONDS) -> Printed:
    """Print an HTML file into `out`. PellucidError where the browser fails, takes longer than `seconds` or writes something else; `out` is as before then."""
    with tempfile.TemporaryDirectory(prefix="pellucid-print-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "page.pdf"
        said = _run([str(browser), *_options(Path(folder)), f"--print-to-pdf={made}", page.resolve().as_uri()], seconds)
        data = made.read_bytes() if made.is_file() else b""
    pages = count_pages(data)
    if not pages:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing")
        raise PellucidError(f"{browser} was to print {page} as PDF and wrote {'no file' if not data else 'no page'}; its last word: {last}. {BY_HAND}")
    with replacing(out) as temporary:
        temporary.write_bytes(data)
    return Printed(out, pages)


def count_pages(pdf: bytes) -> int:
    """The number of pages of a PDF, 0 for anything else: its page objects, which may stand in compressed streams."""
    if not pdf.startswith(b"%PDF-") or b"%%EOF" not in pdf[-1024:]:
        return 0
    return sum(len(re.findall(rb"/Type\s*/Page(?![A-Za-z])", part)) for part in (pdf, *_streams(pdf)))


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _options(profile: Path) -> list[str]:
    """Of a browser that prints one local file and leaves nothing behind."""
    options = [
        "--headless", "--disable-gpu", "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-background-networking",
        "--disable-sync", "--disable-component-update", "--no-pdf-header-footer", "--print-to-pdf-no-header", "--force-color-profile=srgb",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # a report asks for nothing; what asks all the same gets nothing
        f"--user-data-dir={profile / 'profile'}",
    ]  # fmt: skip
    # Chromium refuses to start its sandbox as root, as which containers and CI run; everybody else keeps the sandbox. The page is our own file.
    return [*options, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else options


def _run(command: list[str], seconds: float) -> str:
    """What a command wrote. After `seconds` it and the processes that it started are ended, which is a PellucidError."""
    with tempfile.TemporaryFile() as said:  # no pipe, which a process that outlives the browser would keep open
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise MissingError(f"{command[0]}: cannot be started: {error.strerror}. {BY_HAND}") from None
        try:
            process.wait(timeout=seconds)
        except BaseException as stop:
            _end(process)
            if isinstance(stop, subprocess.TimeoutExpired):
                raise PellucidError(f"{command[0]} did not finish printing within {seconds:g} seconds and was ended. {BY_HAND}") from None
            raise
        said.seek(0)
        return said.read().decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a browser with its own processes, which would go on without it."""
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _places() -> Iterator[Path]:
    for place in PLACES:
        with suppress(KeyError):
            yield Path(place.format_map(os.environ))


def _streams(pdf: bytes) -> Iterator[bytes]:
    """The object streams of a PDF, unpacked; those that cannot be are passed over."""
    for found in re.finditer(rb"/ObjStm.*?stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        with suppress(zlib.error):
            yield zlib.decompressobj().decompress(found.group(1))
