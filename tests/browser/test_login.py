"""The login page as people meet it, and a live page behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import browser as chromium
import pytest
from playwright.sync_api import Browser, expect

from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.sql.store import SqlStore, open_store
from tests.conftest import RegistryProcess, launch_registry
from tests.server.samples import batch, rows, spec


@dataclass
class Locked:
    """A registry with a token, and its store."""

    registry: RegistryProcess
    store: SqlStore
    token: str


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    folder = tmp_path_factory.mktemp("locked")
    store = open_store(f"sqlite:///{folder}/registry.db")
    token = SqlTokenStore(store.engine).create("reader", "read")[1].text
    registry = launch_registry(f"sqlite:///{folder}/registry.db", folder / "announce.json")
    yield Locked(registry, store, token)
    store.close()
    assert registry.stop() == 0, "".join(registry.output)


def test_logging_in_following_a_run_and_logging_out(browser: Browser, locked: Locked):
    sent = spec("team/resmlp")
    locked.store.start(sent)
    locked.store.append_many([batch(sent.id, *rows(1, 2))])
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{locked.registry.http}/recordings/{sent.id}")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type("flerm_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("the token is unknown to this registry")
    page.get_by_label("Token").fill(locked.token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"**/recordings/{sent.id}")
    chromium.wait_until_drawn(page)
    locked.store.append_many([batch(sent.id, *rows(3, 4, 5))])
    expect(page.locator('[data-live="rows"]').first).to_have_text(
        "5"
    )  # by an event, behind the login
    assert locked.token not in page.content()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.goto(locked.registry.http)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    context.close()


def test_the_login_page_is_accessible_in_both_themes_and_fits_a_phone(
    browser: Browser, locked: Locked
):
    assert chromium.AXE.exists(), "axe-core is missing: make browser-tools"
    context = browser.new_context(viewport={"width": 390, "height": 844}, bypass_csp=True)
    page = context.new_page()
    page.goto(locked.registry.http)
    page.add_script_tag(path=chromium.AXE)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert (
            page.evaluate(
                "axe.run().then(found => found.violations.map(each => `${each.id}: ${each.help}`))"
            )
            == []
        )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
