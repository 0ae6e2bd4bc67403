"""A browser, an empty registry and a filled one for the tests of pages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import browser as chromium
import gallery
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from flerm_server.store.interface import Store
from flerm_server.store.sql.store import open_store
from tests.conftest import RegistryProcess, launch_registry

MEMORY = Path("/dev/shm")  # thousands of commits need not wait for a disk
LONG = "research-platform/" + "a-name-chosen-without-a-thought-of-tables-" * 2
UNBROKEN = "a_setting_without_a_space_" * 6
EVIL = '<img src=x onerror="document.title=1">'


@dataclass
class Gallery:
    """A registry and what it holds; `store` is its database."""

    registry: RegistryProcess
    store: Store
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.registry.http


def _serve(folder: Path) -> Iterator[Gallery]:
    registry = launch_registry(
        f"sqlite:///{folder}/registry.db", folder / "announce.json", options=("--lease", "600")
    )
    store = open_store(registry.db)
    yield Gallery(registry, store)
    store.close()
    assert registry.stop() == 0, "".join(registry.output)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """Nothing recorded."""
    yield from _serve(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """A sweep with scaled runs, and a family whose words are markup."""
    for found in _serve(tmp_path_factory.mktemp("filled")):
        found.ids = gallery.sweep(found.store)
        evil = gallery.ParameterList((EVIL,), ((2, 2),), ("other",))
        found.store.register_family("evil", description=EVIL)
        found.store.register_family(LONG, description="Words " * 40)
        found.ids["evil"] = gallery.record(
            found.store,
            "evil",
            lr=1e-3,
            loss=1.0,
            listed=evil,
            tags={"note": EVIL},
            config={"kind": EVIL, UNBROKEN: 1},
        )
        for variant in ("plain", UNBROKEN[:60]):
            scaled = {"role": "scaled", "config": {"kind": EVIL, UNBROKEN: 4}}
            gallery.record(found.store, "evil", lr=1e-3, loss=1.0, variant=variant, **scaled)
        yield found


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """1,000 recordings in one family; 500 tensors × 10,000 steps in one recording."""
    with tempfile.TemporaryDirectory(
        prefix="flerm-large-", dir=MEMORY if MEMORY.is_dir() else None
    ) as folder:
        for found in _serve(Path(folder)):
            listed, steps = gallery.parameters(83), np.arange(1, 10_001)
            found.ids["large"] = gallery.record(
                found.store, "large/model", lr=0.004, loss=2.0, listed=listed, steps=steps
            )
            gallery.many(found.store, "large/sweep", 1000)
            yield found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium.chromium() as found:
        yield found


Open = Callable[..., Page]


Contexts = dict[tuple[bool, bool, bool, bool], BrowserContext]


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> Contexts:
    """Browser profiles by (dark, phone, bypass_csp, scripts).

    They are kept between tests, so that plotly.js is fetched once, as by a visitor.
    """
    return {}


@pytest.fixture
def open_page(browser: Browser, contexts: Contexts) -> Iterator[Open]:
    """Opens a page, and waits until its plots are drawn.

    `open_page(url, dark=False, phone=False, bypass_csp=False, scripts=True, ok=200)`. Without
    scripts no plot is drawn; text, links and forms must work all the same. The test fails on an
    error in the browser's console, and on a request to another host.
    """
    pages: list[Page] = []
    errors: list[str] = []

    def open_(
        url: str,
        *,
        dark: bool = False,
        phone: bool = False,
        bypass_csp: bool = False,
        scripts: bool = True,
        ok: int = 200,
    ) -> Page:
        key = (dark, phone, bypass_csp, scripts)
        if key not in contexts:
            contexts[key] = browser.new_context(
                color_scheme="dark" if dark else "light",
                viewport={"width": 390, "height": 844} if phone else {"width": 1280, "height": 900},
                bypass_csp=bypass_csp,
                java_script_enabled=scripts,
            )
        page = contexts[key].new_page()
        pages.append(page)

        def said(message: ConsoleMessage) -> None:
            # A browser reports the status of the page itself as an error too.
            if message.type in ("error", "warning") and not (
                ok != 200 and f"status of {ok}" in message.text
            ):
                errors.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda request: _is_own(request.url) or errors.append(f"fetches {request.url}"),
        )
        answer = page.goto(url)
        assert answer is not None
        assert answer.status == ok
        if scripts:
            chromium.wait_until_drawn(page)
        return page

    yield open_
    for page in pages:
        page.close()
    assert errors == []


def _is_own(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))
