"""What a reader waits for, in a real browser: the view of features beside a bare canvas page, plotly and Altair, and the pointer on a patch.

Two thousand points with thumbnails over twenty epochs, the same for all (`view_pages.py`), in headless Chromium without a graphics card (`view_clock.py` says
what painted means). In each round every page takes its turn in a fresh tab; ratios are of a round. Steps of the slider are measured without movement, as a
reader who wants none has it, twice: at 60 frames a second, where no picture comes sooner than with the next frame, and with frames as fast as they are made,
which shows what a page computes. Exit code 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import view_clock as clock
import view_pages as pages
from peers import Spread, is_installed, machine, markdown_table
from view_clock import Page

MOST_BYTES, MOST_RATIO, MOST_HOVER, LEAST_FRAMES = 1_000_000, 1.2, 50.0, 30.0  # bytes, times the bare page, ms, frames a second
OURS, BARE = "Pellucid", "bare canvas"
MAKERS: dict[str, Callable[..., str]] = {OURS: pages.pellucid, BARE: pages.bare, "plotly": pages.plotly, "Altair": pages.altair}
NEEDS = {"plotly": ["plotly"], "Altair": ["altair", "vl_convert"]}
DRAWN = {OURS: '[data-view="features"].alive canvas.plane', BARE: "canvas.drawn", "Altair": "#vis canvas.marks"}
MODES = {"dots": False, "thumbnails": True}
Way = tuple[str, str]  # who, and what as points


@dataclass
class Seen:
    """What was measured of a page: bytes, and for each round ms to painted and the median ms of a step, at 60 Hz and with unlimited frames."""

    bytes: int = 0
    painted: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)


def page_of(who: str, points: pages.Points, mode: str) -> Page:
    """A page and where its drawing is."""
    text = MAKERS[who](points, thumbnails=MODES[mode])
    plotly = ".imagelayer image" if MODES[mode] else ".scatterlayer .point"
    count, slider = len(points.labels), '[data-view="features"]' if who == OURS else ""
    return Page(text, DRAWN.get(who, plotly), min(2000, 4 * count) if MODES[mode] else 20, 0 if who in DRAWN else count, len(points.places) - 1, slider)


def measure(made: dict[Way, Page], rounds: int, keep: Path | None = None) -> dict[Way, Seen]:
    """Every page in its turn, in each round; the first round warms up and is not counted where there are more. keep: a folder for screenshots."""
    found = {way: Seen(page.bytes) for way, page in made.items()}
    with clock.browsers() as (usual, fast):
        for number in range(rounds + 1):
            for (who, mode), page in made.items():
                picture = keep / f"{who}-{mode}.png".replace(" ", "-") if keep and number == rounds else None
                with clock.opened(usual, page, picture=picture) as tab:
                    painted, step = clock.painted(tab), median(clock.steps(tab))
                with clock.opened(fast, page) as tab:
                    clock.painted(tab)
                    work = median(clock.steps(tab))
                if number or not rounds:
                    seen = found[who, mode]
                    seen.painted.append(painted), seen.step.append(step), seen.work.append(work)
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of ours / theirs."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def table(found: dict[Way, Seen], absent: list[str]) -> str:
    """A row of each page, as Markdown."""
    rows = []
    for (who, mode), seen in found.items():
        bare = found[BARE, mode]
        cells = [
            f"{_ms(Spread.of(of))}, {ratio(of, base):.2f} x" for of, base in ((seen.painted, bare.painted), (seen.step, bare.step), (seen.work, bare.work))
        ]
        rows.append([who, mode, f"{seen.bytes / 1e6:.2f}", *cells])
    rows += [[who, "", "not installed (`make bench`)", "", "", ""] for who in absent]
    return markdown_table(["page", "points", "MB", "painted, ms", "step, ms at 60 Hz", "step, ms, frames unlimited"], rows)


def verdicts(found: dict[Way, Seen]) -> list[tuple[str, bool]]:
    """(what was asked and what came, whether it holds)."""
    said = []
    for mode in MODES:
        ours, bare = found[OURS, mode], found[BARE, mode]
        said.append((f"{mode}: {ours.bytes / 1e6:.2f} MB, at most {MOST_BYTES / 1e6:.0f}", ours.bytes <= MOST_BYTES))
        times = ratio(ours.painted, bare.painted)
        said.append((f"{mode}: painted {_beside(ours.painted, bare.painted)}, at most {MOST_RATIO}", times <= MOST_RATIO))
        times = ratio(ours.step, bare.step)
        work = f"frames unlimited {_beside(ours.work, bare.work)}, without a bound"
        said.append((f"{mode}: step at 60 Hz, two frames, {_beside(ours.step, bare.step)}, at most {MOST_RATIO}; {work}", times <= MOST_RATIO))
    return said


def _beside(ours: list[float], bare: list[float]) -> str:
    return f"{ratio(ours, bare):.2f} times the bare canvas ({median(ours):.0f} against {median(bare):.0f} ms)"


def movement(count: int, epochs: int, rounds: int) -> tuple[str, list[tuple[str, bool]]]:
    """(table, verdict) of the movement of many points from epoch to epoch, as in the explorer."""
    points = pages.Points.fabricated(count, epochs)
    made = {
        OURS: Page(pages.pellucid(points, thumbnails=False, room=pages.EXPLORER), DRAWN[OURS], last=epochs - 1, slider='[data-view="features"]'),
        BARE: Page(pages.bare(points, thumbnails=False, move=True), DRAWN[BARE], last=epochs - 1),
    }
    found: dict[str, list[tuple[float, float]]] = {who: [] for who in made}
    with clock.browsers() as (browser, _):
        for _ in range(rounds):
            for who, page in made.items():
                with clock.opened(browser, page, still=False) as tab:
                    clock.painted(tab)
                    found[who].append(clock.frames(tab, pages.MOVE - 50))
    spread = {who: Spread.of(rate for rate, _ in of) for who, of in found.items()}
    rows = [[who, f"{spread[who].median:.0f} ({spread[who].low:.0f} to {spread[who].high:.0f})", f"{max(ms for _, ms in of):.0f}"] for who, of in found.items()]
    said = f"{count:,} points move at {spread[OURS].median:.0f} frames a second, at least {LEAST_FRAMES:.0f}"
    return markdown_table([f"{count:,} points", "frames a second", "longest, ms"], rows), [(said, spread[OURS].median >= LEAST_FRAMES)]


def hover(count: int, *, side: int = 14, heads: int = 12, layers: int = 12) -> tuple[str, list[tuple[str, bool]]]:
    """(table, verdict) of the pointer on patches of a picture whose whole attention is held."""
    rows, said = [], []
    with tempfile.TemporaryDirectory() as folder:
        text = pages.attention_page(Path(folder), side=side, heads=heads, layers=layers)
    page = Page(text, '[data-view="attention"].alive canvas[role="application"]')
    with clock.browsers() as both:
        for what, browser in zip(("at 60 Hz", "frames unlimited"), both, strict=True):
            with clock.opened(browser, page) as tab:
                clock.painted(tab)
                ms = sorted(clock.moves(tab, page.drawn, count=count, grid=(side, side)))
            late = ms[min(len(ms) - 1, round(0.95 * len(ms)))]
            rows.append([what, f"{median(ms):.1f}", f"{late:.1f}", f"{ms[-1]:.1f}"])
            said += [(f"pointer to map {what}: median {median(ms):.0f} ms, 95th percentile {late:.0f} ms, under {MOST_HOVER:.0f}", late < MOST_HOVER)]
    return markdown_table([f"{count} moves, {heads} heads, {layers} layers, {side} x {side}", "median, ms", "95th percentile, ms", "longest, ms"], rows), said


def reports(paths: list[Path], rounds: int) -> str:
    """First paint and end of loading of whole reports, as a table."""
    rows = []
    with clock.browsers() as (browser, _):
        for path in paths:
            found = [clock.loading(browser, path) for _ in range(rounds)]
            first, whole = (Spread.of(times[i] for times in found) for i in range(2))
            rows.append([path.parent.name, f"{path.stat().st_size / 1e6:.2f}", _ms(first), _ms(whole)])
    return markdown_table(["report", "MB", "first paint, ms", "loaded, ms"], rows)


def _ms(spread: Spread) -> str:
    return f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f})"


def _made(points: pages.Points, only: list[str]) -> tuple[dict[Way, Page], list[str]]:
    """(pages, who is not installed)."""
    absent = [who for who in MAKERS if who in only and not all(is_installed(name) for name in NEEDS.get(who, []))]
    there = [who for who in MAKERS if who in only and who not in absent]
    return {(who, mode): page_of(who, points, mode) for mode in MODES for who in there}, absent


def _versions(browser: Any) -> str:
    peers = [f"{name} {importlib.metadata.version(name)}" for name in ("plotly", "altair") if is_installed(name)]
    return ", ".join([f"Chromium {browser.version}", *peers, f"load {os.getloadavg()[0]:.1f} at the start"])


def main() -> int:
    parser = argparse.ArgumentParser(description="The view of features and of attention in a browser, beside a bare canvas page, plotly and Altair.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each page (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few points and one round: does it work? Its verdicts mean nothing.")
    parser.add_argument("--keep", type=Path, help="folder for screenshots of the pages")
    parser.add_argument("--report", type=Path, nargs="*", default=[], help="report.html of real runs: time to first paint")
    options = parser.parse_args()
    if clock.CHROMIUM is None:
        print(clock.MISSING)
        return 4
    count, epochs, many, moves, rounds = (100, 3, 300, 5, 1) if options.quick else (2000, 20, 20_000, 200, options.rounds)
    made, absent = _made(pages.Points.fabricated(count, epochs), [OURS, BARE] if options.quick else list(MAKERS))
    with clock.browsers() as (browser, _):
        print(f"{machine()}; {_versions(browser)}\n\n{count:,} points, {epochs} epochs, medians and quartiles of {rounds} rounds; x: times the bare canvas\n")
    found = measure(made, rounds, options.keep)
    moving, moves_said = movement(many, epochs, rounds)
    pointing, points_said = hover(moves)
    print(table(found, absent), moving, pointing, sep="\n\n")
    if options.report:
        print("", reports(options.report, rounds), sep="\n")
    said = verdicts(found) + moves_said + points_said
    print("", *(f"{'holds' if holds else 'MISSED'}: {what}" for what, holds in said), f"load at the end {os.getloadavg()[0]:.1f}", sep="\n")
    return 0 if all(holds for _, holds in said) else 1


if __name__ == "__main__":
    raise SystemExit(main())
