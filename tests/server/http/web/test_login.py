"""Logging in by browser: the cookie, where it leads, what other sites cannot do with it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from flerm_core.errors import Unauthenticated
from flerm_core.records.recording import Ending
from flerm_server.auth import sql_tokens
from flerm_server.auth.credentials import SESSION, Secret
from flerm_server.http.web.login import local
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.sql.store import SqlStore, open_store
from tests.server.samples import batch, family, rows, spec

HERE = ListenAddress("127.0.0.1", 0)
PAGE = {"Accept": "text/html"}


class Visit:
    """A registry with a token for reading, and a browser before it."""

    def __init__(self, store: SqlStore) -> None:
        """Starts the server, which needs a token from its first request on."""
        self.store = store
        self.token, self.secret = sql_tokens.SqlTokenStore(store.engine).create("reader", "read")
        db = store.engine.url.render_as_string(hide_password=False)
        self.server = Server(
            Settings(db=db, grpc=HERE, http=HERE, drain_seconds=1, tls_terminated_upstream=True)
        )
        self.server.start()
        behind = f"http://{self.server.http_address.text}"
        self.url = behind.replace("http", "https")  # as browsers know it: a proxy speaks TLS
        self.browser = httpx.Client(base_url=behind, headers=PAGE, timeout=20)

    def log_in(self, **more: str) -> httpx.Response:
        return self.browser.post(
            "/login", data={"token": self.secret.text, **more}, headers={"Origin": self.url}
        )


@pytest.fixture
def visit(tmp_path) -> Iterator[Visit]:
    store = open_store(f"sqlite:///{tmp_path}/registry.db")
    found = Visit(store)
    yield found
    found.browser.close()
    store.close()
    found.server.stop()


def test_a_page_leads_to_the_login_and_back(visit: Visit):
    asked = visit.browser.get("/families/team/resmlp?show=base/plain")
    assert (asked.status_code, asked.headers["location"]) == (
        303,
        "/login?next=%2Ffamilies%2Fteam%2Fresmlp%3Fshow%3Dbase%2Fplain",
    )
    form = visit.browser.get(asked.headers["location"])
    assert (
        re.search(r'name="next" value="([^"]*)"', form.text)[1]
        == "/families/team/resmlp?show=base/plain"
    )
    entered = visit.log_in(next="/families/team/resmlp?show=base/plain")
    assert (entered.status_code, entered.headers["location"]) == (
        303,
        "/families/team/resmlp?show=base/plain",
    )
    cookie = entered.headers["set-cookie"]
    assert cookie.startswith("flerm_session=session_")
    assert {"HttpOnly", "SameSite=lax", "Secure", "Path=/"} <= set(cookie.split("; "))
    assert visit.secret.text not in cookie


def logged_in(visit: Visit) -> dict[str, str]:
    """The session's cookie as a header: the test's client, on http, would not send a Secure one."""
    return {"Cookie": visit.log_in().headers["set-cookie"].partition(";")[0]}


def test_pages_data_and_events_work_behind_the_login(visit: Visit):
    sent = spec(family())
    visit.store.start(sent)
    visit.store.append_many([batch(sent.id, *rows(1, 2))])
    visit.store.finish(sent.id, 0, Ending(final_loss=0.5))
    cookie = logged_in(visit)
    page = visit.browser.get(f"/recordings/{sent.id}", headers=cookie)
    assert (page.status_code, 'action="/logout"' in page.text) == (200, True)
    assert (
        visit.browser.get(f"/api/v1/recordings/{sent.id}/figure", headers=cookie).status_code == 200
    )
    events = visit.browser.get(f"/api/v1/recordings/{sent.id}/events", headers=cookie)
    assert "event: end" in events.text


def test_a_wrong_token_is_told_so_on_the_page(visit: Visit):
    answer = visit.browser.post(
        "/login", data={"token": "flerm_0", "next": "/match"}, headers={"Origin": visit.url}
    )
    assert (answer.status_code, "the token is unknown to this registry" in answer.text) == (
        401,
        True,
    )
    assert "set-cookie" not in answer.headers and 'value="/match"' in answer.text


def test_a_session_ends_with_its_token_its_time_and_its_logout(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
):
    cookie = logged_in(visit)
    assert visit.browser.get("/", headers=cookie).status_code == 200
    out = visit.browser.post("/logout", headers={**cookie, "Origin": visit.url})
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert visit.browser.get("/", headers=cookie).status_code == 303
    monkeypatch.setattr(sql_tokens, "SESSION_SECONDS", -1)
    assert visit.browser.get("/", headers=logged_in(visit)).status_code == 303
    monkeypatch.undo()
    cookie = logged_in(visit)
    sql_tokens.SqlTokenStore(visit.store.engine).revoke(visit.token.id)
    assert visit.browser.get("/", headers=cookie).status_code == 303
    assert (
        visit.browser.get(
            "/", headers={"Cookie": f"flerm_session={Secret.generate(SESSION).text}"}
        ).status_code
        == 303
    )


@pytest.mark.parametrize(
    "origin",
    [None, "null", "https://evil.example", "http://127.0.0.1:1", "same host", "other scheme"],
)
def test_other_sites_cannot_send_with_the_cookie_nor_log_in(visit: Visit, origin: str | None):
    """Not even a page on another port of this host."""
    others = {
        "same host": visit.url.rpartition(":")[0] + ":9",
        "other scheme": visit.url.replace("https", "http"),
    }
    origin = others.get(origin, origin) if origin else origin
    headers = {} if origin is None else {"Origin": origin}
    assert (
        visit.browser.post("/login", data={"token": visit.secret.text}, headers=headers).status_code
        == 403
    )
    cookie = logged_in(visit)
    for path in ("/logout", "/match", "/api/v1/match"):
        assert (
            visit.browser.post(path, content=b"", headers={**cookie, **headers}).status_code == 403
        ), path
    assert visit.browser.get("/", headers=cookie).status_code == 200
    assert (
        visit.browser.post(
            "/match", content=b"", headers={**cookie, "Origin": visit.url}
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    "target",
    ["https://evil.example", "//evil.example", "/\\evil.example", "", "/a\nb", "javascript:x"],
)
def test_a_login_leads_nowhere_else(target: str):
    assert local(target) == "/"


def test_a_token_in_the_cookie_is_no_session_and_a_session_no_token(visit: Visit):
    assert (
        visit.browser.get("/", headers={"Cookie": f"flerm_session={visit.secret.text}"}).status_code
        == 303
    )
    session = logged_in(visit)["Cookie"].partition("=")[2]
    assert (
        visit.browser.get(
            "/api/v1/families", headers={"Authorization": f"Bearer {session}"}
        ).status_code
        == 401
    )


def test_an_open_registry_has_nothing_to_log_in_to(tmp_path):
    server = Server(
        Settings(db=f"sqlite:///{tmp_path}/open.db", grpc=HERE, http=HERE, drain_seconds=1)
    )
    server.start()
    try:
        answer = httpx.get(f"http://{server.http_address.text}/login?next=/match")
        assert (answer.status_code, answer.headers["location"]) == (303, "/match")
    finally:
        server.stop()


def test_a_token_has_a_limited_number_of_sessions_of_which_the_oldest_ends(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sql_tokens, "SESSIONS_PER_TOKEN", 2)
    store = open_store(f"sqlite:///{tmp_path}/registry.db")
    tokens = sql_tokens.SqlTokenStore(store.engine)
    token, _ = tokens.create("reader", "read")
    first, second, third = (tokens.open_session(token.id) for _ in range(3))
    with pytest.raises(Unauthenticated):
        tokens.authenticate(first)
    assert [tokens.authenticate(each).token_id for each in (second, third)] == [token.id] * 2
    store.close()
