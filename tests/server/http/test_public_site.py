"""Behind proxies and under a path: schemes, links, cookies, and whose headers count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from flerm_core.errors import InvalidInput
from flerm_core.records.recording import Ending
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.sql.store import open_store
from tests.server.samples import batch, rows, spec

HERE = ListenAddress("127.0.0.1", 0)
FAMILY = "team/resmlp"
PAGE = {"Accept": "text/html"}
ADDRESS = re.compile(r'(?:href|src|action|data-figure|data-events|data-openapi)="([^"]*)"')


@contextmanager
def served(folder: Path, **settings: object) -> Iterator[tuple[str, str, str]]:
    """A server with these settings: its address, a token, the id of a recording that runs on."""
    db = f"sqlite:///{folder}/registry.db"
    store = open_store(db)
    _, token = SqlTokenStore(store.engine).create("reader", "read")
    ended, running = spec(FAMILY), spec(FAMILY, lr=4e-3)
    for each in (ended, running):
        store.start(each)
        store.append_many([batch(each.id, *rows(1, 2))])
    store.finish(ended.id, 0, Ending(final_loss=0.5))
    store.close()
    given = {"db": db, "grpc": HERE, "http": HERE, "drain_seconds": 1} | settings
    server = Server(Settings(**given))
    server.start()
    try:
        yield f"http://{server.http_address.text}", token.text, running.id
    finally:
        server.stop()


@pytest.fixture(scope="module")
def under_a_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    folder = tmp_path_factory.mktemp("site")
    with served(
        folder, root_path="/lab/flerm", tls_terminated_upstream=True, trusted_proxies=("127.0.0.1",)
    ) as found:
        yield found


def kept(path: str) -> str:
    """The path that a proxy passes on unchanged."""
    return path


def taken_off(path: str) -> str:
    """The path that a proxy passes on without the root path."""
    return path.removeprefix("/lab/flerm") or "/"


@pytest.mark.parametrize("proxy", [kept, taken_off])
def test_every_address_on_a_page_is_under_the_path(
    under_a_path: tuple[str, str, str], proxy: Callable[[str], str]
):
    url, token, running = under_a_path
    origin = "https://registry.example"
    with httpx.Client(base_url=url, headers={**PAGE, "Host": "registry.example"}) as browser:
        sent_to = browser.get(proxy(f"/lab/flerm/recordings/{running}")).headers["location"]
        assert sent_to == f"/lab/flerm/login?next=%2Frecordings%2F{running}"
        form = browser.get(proxy("/lab/flerm/login")).text
        assert 'action="/lab/flerm/login"' in form
        entered = browser.post(
            proxy("/lab/flerm/login"),
            data={"token": token, "next": f"/recordings/{running}"},
            headers={"Origin": origin},
        )
        assert entered.headers["location"] == f"/lab/flerm/recordings/{running}"
        cookie = entered.headers["set-cookie"]
        assert {"Path=/lab/flerm/", "Secure", "HttpOnly"} <= set(cookie.split("; "))
        browser.headers["Cookie"] = cookie.partition(";")[0]
        found = set()
        for page in ("", f"recordings/{running}", f"families/{FAMILY}", "match", "docs", "compare",
                     f"match?family={FAMILY}&lr=1e-3", "nowhere"):  # fmt: skip
            text = browser.get(proxy(f"/lab/flerm/{page}")).text
            found |= {each.replace("&amp;", "&") for each in ADDRESS.findall(text)}
        outside = {each for each in found if not each.startswith(("/lab/flerm/", "?", "#"))}
        assert outside == set()
        paths = {each.partition("#")[0] for each in found if each.startswith("/")}
        assert len(paths) > 20
        for each in paths - {"/lab/flerm/logout"}:
            with browser.stream("GET", proxy(each)) as answer:
                assert answer.status_code == 200, each
        described = browser.get(proxy("/lab/flerm/openapi.json")).json()
        assert described["servers"] == [{"url": "/lab/flerm"}]
        out = browser.post(proxy("/lab/flerm/logout"), headers={"Origin": origin})
        assert out.headers["location"] == "/lab/flerm/login"
        assert "Path=/lab/flerm/" in out.headers["set-cookie"]


def test_the_path_opens_nothing(under_a_path: tuple[str, str, str]):
    """Checks of a path see it without the root path, however often that stands in front."""
    url, *_ = under_a_path
    for path in ("/metrics", "/lab/flerm/metrics", "/lab/flerm/lab/flerm/metrics",
                 "/lab/flerm/lab/flerm/static/x", "/lab/flermx/static/registry.css"):  # fmt: skip
        assert httpx.get(url + path).status_code == 401, path
    assert httpx.get(f"{url}/lab/flerm/healthz").status_code == 200


@pytest.mark.parametrize(
    ("asked", "leads_to"),
    [
        ("/match/", "/lab/flerm/match"),
        ("/lab/flerm/match/?family=a%20b", "/lab/flerm/match?family=a%20b"),
        ("/lab/flerm", None),
        ("//evil.example/", None),
        ("/\\evil.example/", None),
        ("/%5Cevil.example/", None),
        ("/%2F/evil.example/", None),
    ],
)
def test_a_slash_at_the_end_leads_to_the_page(
    under_a_path: tuple[str, str, str], asked: str, leads_to: str | None
):
    url, token, _ = under_a_path
    answer = httpx.Client(base_url=url).build_request("GET", "/")
    answer.url = answer.url.copy_with(raw_path=asked.encode())
    answer.headers["Authorization"] = f"Bearer {token}"
    with httpx.Client() as client:
        assert client.send(answer).headers.get("location") == leads_to


def test_the_scheme_is_the_browsers_and_login_wants_tls(under_a_path: tuple[str, str, str]):
    url, token, _ = under_a_path

    def log_in(**headers: str) -> httpx.Response:
        sent = {"Host": "registry.example", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return httpx.post(f"{url}/login", data={"token": token}, headers=sent)

    by_tls = log_in(Origin="https://registry.example", X_Forwarded_Proto="https")
    assert by_tls.status_code == 303
    assert by_tls.headers["strict-transport-security"] == "max-age=31536000"
    assert log_in(Origin="http://registry.example").status_code == 403
    in_plain = log_in(Origin="http://registry.example", X_Forwarded_Proto="http")
    assert (in_plain.status_code, "use https" in in_plain.text) == (403, True)
    assert "set-cookie" not in in_plain.headers
    assert "strict-transport-security" not in in_plain.headers


def test_headers_of_strangers_do_not_count(tmp_path: Path):
    with served(tmp_path) as (url, token, _):
        asked = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.1.2.3"}
        answer = httpx.get(f"{url}/login", headers=asked)
        assert "strict-transport-security" not in answer.headers
        entered = httpx.post(
            f"{url}/login", data={"token": token}, headers={**asked, "Origin": url}
        )
        assert (entered.status_code, "Secure" in entered.headers["set-cookie"]) == (303, False)


def test_ipv6_is_an_address_like_others(tmp_path: Path):
    here = ListenAddress("::1", 0)
    with served(tmp_path, http=here, grpc=here) as (url, token, _):
        assert url.startswith("http://[::1]:")
        for host in (url.removeprefix("http://"), "[::1]", "localhost:1"):
            asked = {"Host": host, "Authorization": f"Bearer {token}"}
            page = httpx.get(f"{url}/families/{FAMILY}", headers=asked)
            assert page.status_code == 200, host
        match = httpx.get(f"{url}/match?family={FAMILY}&lr=1e-3", headers=asked | {"Host": "[::1]"})
        assert re.search(r'registry="grpc://\[::1\]:\d+"', match.text.replace("&#34;", '"'))
        entered = httpx.post(f"{url}/login", data={"token": token}, headers={"Origin": url})
        assert entered.status_code == 303


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"root_path": "flerm"}, "root_path"),
        ({"root_path": "/flerm/"}, "root_path"),
        ({"root_path": "/"}, "root_path"),
        ({"root_path": "//evil.example"}, "root_path"),
        ({"root_path": "/static"}, "root_path"),
        ({"root_path": '/a"b'}, "root_path"),
        ({"trusted_proxies": ("proxy",)}, "trusted_proxies"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies"),
        ({"trusted_proxies": ("*",)}, "trusted_proxies"),
    ],
)
def test_what_is_no_path_and_no_proxy_is_refused(settings: dict[str, object], field: str):
    with pytest.raises(InvalidInput, match=f"{field}: .* is not allowed; it must be"):
        Settings(**settings)


def test_without_tokens_other_sites_have_no_name_for_the_server(tmp_path: Path):
    """A page of evil.example could have its name resolved to this address (DNS rebinding)."""
    server = Server(
        Settings(
            db=f"sqlite:///{tmp_path}/open.db",
            grpc=HERE,
            http=ListenAddress("0.0.0.0", 0),
            insecure=True,
            drain_seconds=1,
        )
    )
    server.start()
    url = f"http://127.0.0.1:{server.http_address.port}"
    try:
        for host, status in {
            "evil.example": 403,
            "evil.example:80": 403,
            "10.0.0.7": 200,
            "registry:8080": 200,
            "localhost": 200,
            "[::1]:1": 200,
        }.items():
            answer = httpx.get(f"{url}/api/v1/families", headers={"Host": host})
            assert answer.status_code == status, host
        assert "create a token" in httpx.get(f"{url}/", headers={"Host": "evil.example"}).text
    finally:
        server.stop()


def test_insecure_says_what_it_opens():
    everywhere = ListenAddress("0.0.0.0", 8080)
    opened = Settings(http=everywhere, insecure=True).opened(has_tokens=False)
    assert len(opened) == 2
    assert "whoever reaches http 0.0.0.0:8080 may read, change and delete everything" in opened[0]
    assert "because there is no TLS" in opened[1]
    assert len(Settings(http=everywhere, insecure=True).opened(has_tokens=True)) == 1
    assert Settings(insecure=True).opened(has_tokens=False) == []
    assert Settings(http=everywhere).opened(has_tokens=True) == []
