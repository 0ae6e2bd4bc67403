"""A real Chromium, as tests and screenshots drive it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Nothing is fetched in the background, and no sandbox, which root may not have.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = Path(__file__).parents[2] / ".cache" / "axe" / "package" / "axe.min.js"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. Fails, not skips, without one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError(
            "no Chromium here: the browser tests need one (Debian: apt-get install chromium)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def wait_until_drawn(page: Page) -> None:
    """Waits until every plot of the page is drawn.

    By a selector, because the pages' content policy forbids functions made from text.
    """
    page.wait_for_selector("main:not(:has([data-figure]:not([data-drawn])))", timeout=20_000)
