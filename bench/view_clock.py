"""Chromium and its clocks: when a page is painted, how long a step of its slider takes, how many frames a movement has.

Painted is defined in one way for all: the end of the first frame after which a look at the pixels, or at the elements where the drawing has no pixels of
its own, finds the drawing there. It is not counted from when an empty canvas stands in the page, which one page has from its first byte and another makes by
its script. A step is painted with the second frame after the input, where the look finds another picture, or in the next that has one. The clock is read
before each look.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
MISSING = "no Chromium: apt-get install chromium"
SIZE = {"width": 1280, "height": 900}

# In the page before its own scripts. `bench` holds the fields of Page.
CLOCK = """
(() => {
  const W = 160, H = 130, small = new OffscreenCanvas(W, H), context = small.getContext("2d", { willReadFrequently: true });
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  // After a frame's layout and painting: a message that is sent in it comes behind them.
  const painting = () => new Promise((done) => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = done, port2.postMessage(0);
  }));
  const target = () => document.querySelector(bench.drawn);
  // What is seen, as a text that changes with it: a hash of the pixels, or the places of the elements.
  const look = () => {
    const element = target();
    if (!element) return "";
    if (element.tagName !== "CANVAS") {
      const some = Array.from(document.querySelectorAll(bench.drawn)).slice(0, 64);
      return some.map((one) => one.getAttribute("transform") ?? `${one.getAttribute("x")} ${one.getAttribute("y")}`).join();
    }
    context.clearRect(0, 0, W, H), context.drawImage(element, 0, 0, W, H);
    const pixels = new Uint32Array(context.getImageData(0, 0, W, H).data.buffer), seen = new Set(pixels);
    let hash = 0;
    for (const pixel of pixels) hash = (Math.imul(hash, 31) + pixel) | 0;
    return seen.size < (bench.colours) ? "" : String(hash);
  };
  const isDrawn = () => {
    const element = target();
    if (!element) return false;
    return element.tagName === "CANVAS" ? element.width > 0 && look() : document.querySelectorAll(bench.drawn).length >= bench.elements;
  };
  bench.painted = (async () => {
    for (;;) {
      await painting();
      const now = performance.now();
      if (isDrawn()) return now;
      if (now > 20_000) return null;
    }
  })();
  const slider = () => Array.from(document.querySelectorAll("input[type=range]")).find((input) => !bench.slider || input.closest(bench.slider));
  bench.set = (i) => {
    const rail = document.querySelector(".slider-rail-touch-rect");
    if (rail) {
      const box = document.querySelector(".slider-rail-rect").getBoundingClientRect(), inset = 10;
      const at = { clientX: box.left + inset + (i / bench.last) * (box.width - 2 * inset), clientY: box.top + box.height / 2, bubbles: true, view: window };
      rail.dispatchEvent(new MouseEvent("mousedown", at)), (document.querySelector(".js-plotly-plot") ?? document).dispatchEvent(new MouseEvent("mouseup", at));
      return document.dispatchEvent(new MouseEvent("mouseup", at));
    }
    const input = slider();
    input.value = +input.min + i;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  // ms from an input to its picture; null where nothing changed within 300 frames.
  bench.change = async (act) => {
    const before = look(), began = performance.now();
    act();
    await frame();
    for (let n = 0; n < 300; n++) {
      await frame();
      const now = performance.now();
      if (look() !== before) return now - began;
    }
    return null;
  };
  bench.steps = async (pause) => {
    const found = [];
    for (let i = 1; i <= bench.last; i++) {
      found.push(await bench.change(() => bench.set(i)));
      await new Promise((done) => setTimeout(done, pause));
    }
    return found;
  };
  // Frames of each step's movement: [number, longest ms] of the first `ms` after the input.
  bench.frames = async (ms, pause) => {
    const found = [];
    for (let i = 1; i <= bench.last; i++) {
      await frame();
      const began = performance.now();
      let number = 0, longest = 0, last = began;
      bench.set(i);
      while (last - began < ms) {
        await frame();
        const now = performance.now();
        longest = Math.max(longest, now - last), last = now, number++;
      }
      found.push([number, longest, last - began]);
      await new Promise((done) => setTimeout(done, pause));
    }
    return found;
  };
  // ms from each of `count` pointer moves over an element to its picture, in a walk that meets another patch at each move.
  bench.moves = async (selector, count, columns, rows) => {
    const over = document.querySelector(selector), found = [];
    for (let i = 0; i < count; i++) {
      const box = over.getBoundingClientRect(), k = (i * 37) % (columns * rows);
      const clientX = box.left + (((k % columns) + 0.5) / columns) * box.width, clientY = box.top + ((Math.floor(k / columns) + 0.5) / rows) * box.height;
      const at = { clientX, clientY, bubbles: true, pointerId: 1, pointerType: "mouse", isPrimary: true };
      if (!i) over.dispatchEvent(new PointerEvent("pointerenter", at));
      found.push(await bench.change(() => over.dispatchEvent(new PointerEvent("pointermove", at))));
    }
    return found;
  };
})();
"""


FIRST_PAINT = """new Promise((done) => new PerformanceObserver((list) => list.getEntriesByName("first-contentful-paint").forEach((one) => done(one.startTime)))
  .observe({ type: "paint", buffered: true }))"""


@dataclass(frozen=True)
class Page:
    """A page to measure: its text, and the selector of what is drawn. colours: how many its pixels have at least, thumbnails more than dots; elements: how
    many there are where the drawing is no canvas; last: the slider's last step; slider: a selector of what it stands in."""

    text: str
    drawn: str
    colours: int = 20
    elements: int = 0
    last: int = 19
    slider: str = ""

    @property
    def bytes(self) -> int:
        return len(self.text.encode())


@contextmanager
def browsers() -> Iterator[tuple[Any, Any]]:
    """Two Chromiums without a screen and a graphics card: one of 60 frames a second, one whose frames follow each other as fast as they are made."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--disable-gpu", "--force-color-profile=srgb"] + (["--no-sandbox"] if os.geteuid() == 0 else [])
        unlimited = [*arguments, "--disable-frame-rate-limit", "--disable-gpu-vsync"]
        found = [playwright.chromium.launch(executable_path=CHROMIUM, args=options) for options in (arguments, unlimited)]
        try:
            yield found[0], found[1]
        finally:
            for one in found:
                one.close()


def loading(browser: Any, path: Path) -> tuple[float, float]:
    """ms from the begin of the navigation to the first paint of content, and until a file is loaded."""
    tab = browser.new_page(viewport=SIZE)
    try:
        tab.goto(path.resolve().as_uri())
        first = tab.evaluate(FIRST_PAINT)
        whole = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        return float(first), float(whole)
    finally:
        tab.close()


@contextmanager
def opened(browser: Any, page: Page, *, still: bool = True, picture: Path | None = None) -> Iterator[Any]:
    """The page in a window of its own, opened from a file as people do; still: without movement. picture: where a screenshot of it goes at the end."""
    tab = browser.new_page(viewport=SIZE, reduced_motion="reduce" if still else "no-preference")
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    fields = {"drawn": page.drawn, "colours": page.colours, "elements": page.elements, "last": page.last, "slider": page.slider}
    tab.add_init_script(f"globalThis.bench = {json.dumps(fields)};{CLOCK}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page.text, encoding="utf-8")
        try:
            tab.goto(file.as_uri(), wait_until="commit")
            try:
                yield tab
            except RuntimeError as error:
                raise RuntimeError(f"{error}; the page said: {'; '.join(errors) or 'nothing'}") from error
            if errors:
                raise RuntimeError(f"the page said: {'; '.join(errors)}")
            if picture is not None:
                picture.parent.mkdir(parents=True, exist_ok=True)
                tab.screenshot(path=picture)
        finally:
            tab.close()


def painted(tab: Any) -> float:
    """ms from the begin of the navigation until what is drawn is painted. RuntimeError where nothing is within 20 s."""
    found = tab.evaluate("Promise.race([bench.painted, new Promise((done) => setTimeout(done, 20_000, null))])")
    if found is None:
        raise RuntimeError("nothing that was looked for was painted within 20 seconds")
    return float(found)


def steps(tab: Any, pause: int = 30) -> list[float]:
    """ms from input to painted of each step of the slider from the first epoch to the last. RuntimeError where a step changes nothing."""
    found = tab.evaluate(f"bench.steps({pause})")
    if None in found:
        raise RuntimeError(f"step {found.index(None) + 1} of the slider changed nothing that is seen")
    return [float(ms) for ms in found]


def frames(tab: Any, ms: int) -> tuple[float, float]:
    """(frames a second, longest ms between two of them) of the movements of all steps, in the first `ms` of each."""
    found = tab.evaluate(f"bench.frames({ms}, 300)")
    return 1000 * sum(number for number, _, _ in found) / sum(took for _, _, took in found), max(longest for _, longest, _ in found)


def moves(tab: Any, selector: str, *, count: int, grid: tuple[int, int]) -> list[float]:
    """ms from pointer move to painted of `count` moves over an element, each to another patch of a grid (rows, columns)."""
    found = tab.evaluate("([selector, count, columns, rows]) => bench.moves(selector, count, columns, rows)", [selector, count, grid[1], grid[0]])
    if None in found:
        raise RuntimeError(f"move {found.index(None) + 1} of the pointer changed nothing that is seen")
    return [float(ms) for ms in found]
