"""Every route with every kind of token: who may read what."""

from __future__ import annotations

import uuid

import httpx
import pytest
from starlette.routing import BaseRoute, Mount

from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.auth.principal import Scope
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http.app import create_app
from flerm_server.metrics import Metrics
from flerm_server.settings import PATHS
from tests.server.auth.locked_registry import (
    DENIED,
    KINDS,
    MISSING,
    NOBODY,
    OK,
    Locked,
    expected,
)
from tests.server.samples import PARAMETERS

# The path with which each route is tested, and whether the route is of the registry as a whole.
# {f}: the family, {r}: a recording of it.
ROUTES: dict[str, tuple[str, bool]] = {
    "/": ("", True),
    "/families": ("/families", True),
    "/families/{name:path}": ("/families/{f}", False),
    "/recordings/{recording_id}": ("/recordings/{r}", False),
    "/compare": ("/compare?ids={r}", False),
    "/match": ("/match?family={f}", False),
    "/docs": ("/docs", True),
    "/glossary": ("/glossary", True),
    "/docs/assets": ("/docs/assets/swagger-ui.css", True),
    "/openapi.json": ("/openapi.json", True),
    "/api/v1/families": ("/api/v1/families", True),
    "/api/v1/families/{name:path}": ("/api/v1/families/{f}", False),
    "/api/v1/families/{name:path}/best": ("/api/v1/families/{f}/best", False),
    "/api/v1/families/{name:path}/transfer": ("/api/v1/families/{f}/transfer", False),
    "/api/v1/families/{name:path}/losses": ("/api/v1/families/{f}/losses", False),
    "/api/v1/families/{name:path}/figure": ("/api/v1/families/{f}/figure", False),
    "/api/v1/recordings": ("/api/v1/recordings?family={f}", False),
    "/api/v1/recordings/{recording_id}": ("/api/v1/recordings/{r}", False),
    "/api/v1/recordings/{recording_id}/trajectory": ("/api/v1/recordings/{r}/trajectory", False),
    "/api/v1/recordings/{recording_id}/figure": ("/api/v1/recordings/{r}/figure", False),
    "/api/v1/recordings/{recording_id}/events": ("/api/v1/recordings/{r}/events", False),
    "/api/v1/recordings/{recording_id}/rates": ("/api/v1/recordings/{r}/rates", False),
    "/api/v1/figures/compare": ("/api/v1/figures/compare?ids={r}", False),
    "/api/v1/targets": ("/api/v1/targets?family={f}&lr=1e-3", False),
    "/api/v1/match": ("POST", False),
    "/metrics": ("/metrics", False),
}
OPEN = {"/healthz", "/readyz", "/login", "/static/{name}"}
LOGGED_IN = {"/logout"}  # tests/server/http/test_login.py


def served(routes: list[BaseRoute]) -> set[str]:
    """The paths of an application's routes."""
    found = set()
    for route in routes:
        inner = getattr(route, "original_router", None)  # a FastAPI that keeps routers whole
        found |= {route.path} if isinstance(route, Mount) or inner is None else served(inner.routes)
    return found


def test_the_table_has_every_route(locked: Locked):
    app = create_app(
        AuthorizedStore(locked.store),
        Authenticator(SqlTokenStore(locked.store.engine)),
        Metrics(),
        local_only=True,
    )
    found = served(app.routes)
    assert found == set(ROUTES) | OPEN | LOGGED_IN
    assert {each.split("/")[1] for each in found} - {""} == set(PATHS)  # no root path is one


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_the_right_token(locked: Locked, route: str):
    path, of_registry = ROUTES[route]
    recording = locked.recording()
    statuses = {200: OK, 401: NOBODY, 403: DENIED, 404: MISSING}
    found, wanted = {}, {}
    with httpx.Client(base_url=f"http://{locked.server.http_address.text}", timeout=20) as http:
        for kind in KINDS:
            headers = (
                {"Authorization": f"Bearer {locked.tokens[kind]}".encode()}
                if locked.tokens[kind]
                else {}
            )
            if path == "POST":
                asked = {
                    "family": locked.family,
                    "lr": 1e-3,
                    "measured": dict.fromkeys(PARAMETERS.names, 1.0),
                }
                answer = http.post(route, json=asked, headers=headers)
            else:
                answer = http.get(path.format(f=locked.family, r=recording) or "/", headers=headers)
            found[kind] = statuses[answer.status_code]
            if "has no multipliers" in answer.text:  # the recording may be read, but has no rates
                found[kind] = OK
            wanted[kind] = expected(
                kind, Scope.READ, of_family=not of_registry, by_id="{r}" in path
            )
            if answer.status_code != 200 and route != "/match":  # which says it on the page
                problem = answer.json()
                assert (problem["status"], answer.headers["content-type"]) == (
                    answer.status_code,
                    "application/problem+json",
                )
                assert answer.status_code != 401 or answer.headers["www-authenticate"].startswith(
                    "Bearer"
                )
                assert not locked.tokens[kind] or locked.tokens[kind] not in answer.text
    if route == "/metrics":
        wanted["own team"] = DENIED  # counts of the whole registry
    assert found == wanted


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/login", "/static/registry.css"])
def test_probes_and_the_login_page_need_no_token(locked: Locked, path: str):
    assert httpx.get(f"http://{locked.server.http_address.text}{path}").status_code == 200


@pytest.mark.parametrize("route", [each for each, (path, _) in ROUTES.items() if "{r}" in path])
def test_a_recording_of_others_is_answered_as_one_that_is_not_there(locked: Locked, route: str):
    path, _ = ROUTES[route]
    there, nowhere = locked.recording(), str(uuid.uuid4())
    headers = {"Authorization": f"Bearer {locked.tokens['other family']}"}
    found = []
    for accept in ("*/*", "text/html, */*;q=0.1"):
        for recording in (there, nowhere):
            answer = httpx.get(
                f"http://{locked.server.http_address.text}{path.format(r=recording)}",
                headers={
                    **headers,
                    "Accept": accept,
                    "Accept-Encoding": "identity",  # two ids compress differently
                    "X-Request-ID": "same",
                },
            )
            assert answer.status_code == 404
            shown = {name: each for name, each in answer.headers.items() if name != "date"}
            found.append((answer.text.replace(recording, "ID"), shown))
    assert found[0] == found[1] and found[2] == found[3]
