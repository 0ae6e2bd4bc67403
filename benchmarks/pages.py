"""Large pages in a browser without a debugger: time to first paint, and to all plots drawn.

    python benchmarks/pages.py [--runs 3]

The pages show a recording of 500 tensors x 10,000 steps and a family of 1,000 recordings, each in a
Chromium that was just started with an empty profile. The floor is a page that loads plotly.js from
the disk and draws nothing. An attached debugger, playwright's too, makes V8 parse plotly.js again
for the exceptions that it throws and catches while it starts, which takes 0.5 s of processor time.
So the pages load first, and only then a debugger asks them for their times.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import numpy as np
from playwright.sync_api import Page, Playwright, sync_playwright
from registry_bench import database, registry

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import gallery
from browser import FLAGS, NAMES

from flerm_server.store.sql.store import open_store

PATIENCE = 60.0
TIMES = """JSON.stringify({
  paint: performance.getEntriesByName("first-contentful-paint").map(each => each.startTime)[0],
  drawn: performance.getEntriesByName("drawn").map(each => each.startTime),
  plots: document.querySelectorAll("[data-figure]").length,
  bytes: performance.getEntriesByType("resource")
    .filter(each => /figure/.test(each.name)).map(each => each.decodedBodySize)
})"""
BARE = (
    '<!doctype html><p data-figure>plotly.js<script src="plotly.min.js"></script>'
    '<script>performance.mark("drawn")</script>'
)


def main() -> None:
    """Prints a JSON object for each page. Times are seconds from the start of the navigation,
    medians of the runs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with database("") as (db, folder), sync_playwright() as playwright:
        store = open_store(db)
        steps = np.arange(1, 10_001)
        recording = gallery.record(
            store, "large/model", lr=0.004, loss=2.0, listed=gallery.parameters(83), steps=steps
        )
        gallery.many(store, "large/sweep", 1000)
        store.close()
        with registry(db, folder) as running, bare() as floor:
            pages = {
                "plotly.js alone": floor,
                "recording of 500 x 10,000": f"{running.url}/recordings/{recording}",
                "family of 1,000": f"{running.url}/families/large/sweep",
            }
            found: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
            for _ in range(options.runs):
                for name, url in pages.items():
                    found[name].append(visit(playwright, url))
    least = median(each["drawn"] for each in found["plotly.js alone"])
    for name, its in found.items():
        result = {key: round(median(each[key] for each in its), 3) for key in its[0]}
        print(json.dumps({name: result, "over plotly.js alone": round(result["drawn"] / least, 2)}))


def visit(playwright: Playwright, url: str) -> dict[str, float]:
    """First paint and last plot, in seconds, and the largest figure, in bytes."""
    chromium = next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            chromium,
            "--headless=new",
            *FLAGS,
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            url,
        ]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                time.sleep(8)  # nobody looks on
                port = (Path(profile) / "DevToolsActivePort").read_text().split()[0]
                browser = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}")
                return _read(browser.contexts[0].pages[0])
            finally:
                process.terminate()


def _read(page: Page) -> dict[str, float]:
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        times = json.loads(page.evaluate(TIMES))
        if times["plots"] and len(times["drawn"]) >= times["plots"]:
            return {
                "first paint": times["paint"] / 1000,
                "drawn": max(times["drawn"]) / 1000,
                "figure bytes": max(times["bytes"], default=0),
            }
        time.sleep(0.5)
    raise TimeoutError(f"{page.url}: {times} after {PATIENCE:g} s")


@contextmanager
def bare() -> Iterator[str]:
    """The address of a page that only loads plotly.js."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "index.html").write_text(BARE)
        found = importlib.util.find_spec("plotly")
        assert found is not None
        assert found.origin is not None
        shutil.copy(Path(found.origin).parent / "package_data" / "plotly.min.js", folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, format: str, *args: object) -> None:
        """Does nothing."""


if __name__ == "__main__":
    main()
