"""Debian's Chromium for tests: pages that note what went wrong in them. `apt-get install chromium` brings it; without it, browser tests are skipped by name.

Pictures of pages go to the folder that PELLUCID_SCREENSHOTS names, or to a temporary one, and are there for people to look at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
PATIENCE = 30_000  # milliseconds: a machine may be busy with other tests
FRAMES = "new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))"  # what was asked to be painted has been
# The next picture takes half a second to decode; the promise window.decoded says when it has.
SLOW_PICTURE = """(() => {
  const decode = HTMLImageElement.prototype.decode;
  window.decoded = new Promise((done) => {
    HTMLImageElement.prototype.decode = async function () {
      HTMLImageElement.prototype.decode = decode;
      await new Promise((later) => setTimeout(later, 500));
      await decode.call(this);
      setTimeout(done, 100);
    };
  });
})()"""


def needs_chromium(test: Callable[..., Any]) -> Callable[..., Any]:
    """The test, marked `browser`, and skipped by name without Chromium."""
    skip = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
    marked: Callable[..., Any] = pytest.mark.browser(skip(test))
    return marked


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium does not run as root with its sandbox
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*arguments, "--disable-gpu", "--force-color-profile=srgb"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page and what went wrong in it: errors of the console and of scripts, and requests for anything but the page itself, data: and blob:."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url) if not request.url.startswith(("data:", "blob:")) else None)

    def open(self, where: Path | str, view: str | None = None) -> Any:
        """Open a file or an address; with a view, scroll there and wait until all of it stands. Returns playwright's page."""
        self.page.goto(where if isinstance(where, str) else where.resolve().as_uri(), timeout=PATIENCE)
        if view is not None:
            self.page.locator(f'[data-view="{view}"]').first.scroll_into_view_if_needed()
            self.page.locator(f'[data-view="{view}"].alive:not(.coming)').first.wait_for(timeout=PATIENCE)
            self.page.evaluate(FRAMES)
        return self.page

    def keep(self, name: str, **options: Any) -> Path:
        """A screenshot for people to look at."""
        folder = Path(os.environ.get("PELLUCID_SCREENSHOTS") or Path(os.environ.get("PYTEST_DEBUG_TEMPROOT", "/tmp")) / "pellucid-screenshots")
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", **options)
        return folder / f"{name}.png"
