"""Every RPC and every route with every kind of token: who may do what."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from held_calls import hold_trajectories
from starlette.routing import BaseRoute, Mount

from flerm_core.records.recording import Ending
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.authenticator import RECHECK_SECONDS, Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.auth.credentials import TOKEN, Secret
from flerm_server.auth.permissions import RPCS, path_needs, rpc_needs
from flerm_server.auth.principal import Scope
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http.app import create_app
from flerm_server.metrics import Metrics
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.sql.store import SqlStore, open_store
from tests.server.samples import NAMES, PARAMETERS, batch, family, row, rows, spec

SERVICE = pb.DESCRIPTOR.services_by_name["Registry"]
HERE = ListenAddress("127.0.0.1", 0)
OK, NOBODY, DENIED = "ok", "unauthenticated", "denied"
CODES = {
    OK: grpc.StatusCode.OK,
    NOBODY: grpc.StatusCode.UNAUTHENTICATED,
    DENIED: grpc.StatusCode.PERMISSION_DENIED,
}


NOBODYS = ("none", "nonsense", "wrong", "wrong secret", "revoked")
KINDS = (*NOBODYS, "read", "write", "admin", "own team", "other family", "near name")


@dataclass
class Locked:
    """A registry with tokens.

    `tokens`: the text of a token of each kind. `family`: the family of everything that is asked
    for.
    """

    server: Server
    store: SqlStore
    tokens: dict[str, str]
    family: str

    def recording(self, *, ended: bool = True) -> str:
        """A new recording of the family."""
        sent = spec(self.family)
        self.store.start(sent)
        self.store.append_many([batch(sent.id, *rows(1, 2))])
        if ended:
            self.store.finish(sent.id, 0, Ending(final_loss=0.5))
        return sent.id


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    db = f"sqlite:///{tmp_path_factory.mktemp('locked')}/registry.db"
    store = open_store(db)
    team = f"team{family()[4:16]}"
    made = {
        "read": SqlTokenStore(store.engine).create("reader", "read"),
        "write": SqlTokenStore(store.engine).create("writer", "write"),
        "admin": SqlTokenStore(store.engine).create("root", "admin"),
        "revoked": SqlTokenStore(store.engine).create("gone", "admin"),
        "own team": SqlTokenStore(store.engine).create("ours", "admin", team),
        "other family": SqlTokenStore(store.engine).create("theirs", "admin", "elsewhere"),
        "near name": SqlTokenStore(store.engine).create("near", "admin", team[:-1]),
    }
    SqlTokenStore(store.engine).revoke(made["revoked"][0].id)
    tokens = {kind: secret.text for kind, (_, secret) in made.items()}
    tokens |= {
        "none": "",
        "wrong": Secret.generate(TOKEN).text,
        "wrong secret": tokens["admin"][:-2] + "xy",
        "nonsense": "x y",
    }
    server = Server(Settings(db=db, grpc=HERE, http=HERE, drain_seconds=1))
    server.start()
    yield Locked(server, store, tokens, f"{team}/resmlp")
    store.close()
    server.stop()


def expected(kind: str, needed: Scope, *, of_family: bool) -> str:
    """What a token of a kind gets for a call that needs a scope.

    `of_family`: the call is of the one family, not of the whole registry.
    """
    if kind in NOBODYS:
        return NOBODY
    if kind in ("other family", "near name"):
        return DENIED if of_family else OK
    held = {
        "read": Scope.READ,
        "write": Scope.WRITE,
        "admin": Scope.ADMIN,
        "own team": Scope.ADMIN,
    }[kind]
    return OK if held >= needed else DENIED


def request(locked: Locked, method: str) -> Any:
    """A request of that method for something of the family; it succeeds with the right token."""
    start = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(spec(locked.family)))
    if method == "RenameFamily":
        old = f"{locked.family.split('/')[0]}/{family().replace('/', '-')}"
        locked.store.register_family(old)
        return pb.RenameFamilyRequest(name=old, new_name=f"{old}-renamed")
    if method in ("ServerInfo", "ListFamilies", "ListRecordings"):
        return getattr(pb, f"{method}Request")()
    if method == "RegisterFamily":
        return pb.RegisterFamilyRequest(name=locked.family, description="ours")
    if method == "StartRecording":
        return start
    if method in ("GetTargets", "GetBest"):
        locked.recording()
        more = {"lr": 1e-3, "names": NAMES} if method == "GetTargets" else {}
        return getattr(pb, f"{method}Request")(family=locked.family, **more)
    recording = locked.recording(ended=method.startswith("Get"))
    if method == "Append":
        return pb.AppendRequest(
            recording_id=recording, measurements=[recording_messages.measurement_to_proto(row(3))]
        )
    return {
        "FinishRecording": pb.FinishRecordingRequest(recording_id=recording, status="completed"),
        "RenewLease": pb.RenewLeaseRequest(recording_id=recording),
        "TagRecording": pb.TagRecordingRequest(recording_id=recording, set={"a": "b"}),
        "DeleteRecording": pb.DeleteRecordingRequest(recording_id=recording),
        "GetRecording": pb.GetRecordingRequest(recording_id=recording),
        "GetTrajectory": pb.GetTrajectoryRequest(recording_id=recording),
    }[method]


def call(channel: grpc.Channel, method: str, message: Any, token: str) -> tuple[str, str, Any]:
    """The outcome of a call (ok, unauthenticated or denied), the error's sentence, the answer."""
    kind = SERVICE.methods_by_name[method]
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        answer = getattr(rpc.RegistryStub(channel), method)(message, timeout=20, metadata=metadata)
        answer = list(answer) if kind.server_streaming else answer
    except grpc.RpcError as error:
        return (
            next(word for word, code in CODES.items() if code == error.code()),
            error.details(),
            None,
        )
    return OK, "", answer


OF_THE_REGISTRY = ("ServerInfo", "ListFamilies", "ListRecordings")


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_every_rpc_asks_for_the_right_token(locked: Locked, method: str):
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        found = {
            kind: call(channel, method, request(locked, method), locked.tokens[kind])
            for kind in KINDS
        }
    assert {kind: outcome for kind, (outcome, _, _) in found.items()} == {
        kind: expected(kind, RPCS[method], of_family=method not in OF_THE_REGISTRY)
        for kind in found
    }
    for kind, (outcome, sentence, _) in found.items():
        assert locked.tokens[kind] == "" or locked.tokens[kind] not in sentence
        assert outcome == OK or sentence.startswith(
            ("this registry wants a token", "the token ", "token ")
        ), sentence


def test_a_bound_token_that_renames_an_unknown_family_learns_no_names_of_others(locked: Locked):
    other = family()
    locked.store.register_family(other)
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        ours = locked.family.split("/")[0]
        asked = pb.RenameFamilyRequest(name=f"{ours}/no-such", new_name=f"{ours}/other")
        with pytest.raises(grpc.RpcError) as refusal:
            metadata = (("authorization", f"Bearer {locked.tokens['own team']}"),)
            rpc.RegistryStub(channel).RenameFamily(asked, metadata=metadata, timeout=10)
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert other not in refusal.value.details()
    assert "elsewhere" not in refusal.value.details()


def test_a_bound_token_sees_nothing_of_other_families(locked: Locked):
    recording = locked.recording()
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        for kind, sees in (
            ("own team", True),
            ("other family", False),
            ("near name", False),
            ("read", True),
        ):
            _, _, families = call(
                channel, "ListFamilies", pb.ListFamiliesRequest(page_size=1000), locked.tokens[kind]
            )
            _, _, listed = call(
                channel,
                "ListRecordings",
                pb.ListRecordingsRequest(page_size=1000),
                locked.tokens[kind],
            )
            assert (locked.family in [each.name for each in families.families]) is sees, kind
            assert (recording in [each.spec.id for each in listed.recordings]) is sees, kind
        unknown = pb.GetBestRequest(family="elsewhere/none")
        metadata = [("authorization", f"Bearer {locked.tokens['other family']}")]
        with pytest.raises(grpc.RpcError) as caught:
            rpc.RegistryStub(channel).GetBest(unknown, timeout=20, metadata=metadata)
        assert (
            caught.value.details()
            == "family 'elsewhere/none' is not in this registry; this registry has none yet"
        )


def test_a_bound_token_opens_no_attempt_of_another_s_recording_by_a_name_of_its_own(locked: Locked):
    sent = locked.store.recording(locked.recording()).spec
    theirs = replace(sent, family=f"{locked.family.split('/')[0]}x/none")
    start = pb.StartRecordingRequest(
        spec=recording_messages.spec_to_proto(theirs),
        attempt=pb.Attempt(id=spec("").id, resume_at=1),
    )
    _, secret = SqlTokenStore(locked.store.engine).create(
        "near", "write", theirs.family.split("/")[0]
    )
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        assert call(channel, "StartRecording", start, secret.text)[0] == DENIED
    assert locked.store.recording(sent.id).attempt == 1


def test_health_and_reflection_need_no_token(locked: Locked):
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=20
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert rpc_needs("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") is None


def test_a_method_without_a_rule_needs_admin():
    assert {method.name for method in SERVICE.methods} == set(RPCS)
    assert rpc_needs("/flerm.registry.v1.Registry/Forgotten") is Scope.ADMIN
    assert rpc_needs("/other.Service/GetRecording") is Scope.READ
    assert path_needs("/anything") is Scope.READ
    assert path_needs("/login/../api") is Scope.READ


def test_what_a_token_made_is_signed_with_its_name(locked: Locked):
    token = locked.tokens["write"]
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        sent = spec(f"{locked.family}-signed")
        assert (
            call(
                channel,
                "StartRecording",
                pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)),
                token,
            )[0]
            == OK
        )
    signed = f"writer ({token.split('_')[1]})"
    assert locked.store.recording(sent.id).created_by == signed
    assert locked.store.family(sent.family).created_by == signed


# The path with which each route is tested, and whether the route is of the registry as a whole.
# {f}: the family, {r}: a recording of it.
ROUTES: dict[str, tuple[str, bool]] = {
    "/": ("", True),
    "/families/{name:path}": ("/families/{f}", False),
    "/recordings/{recording_id}": ("/recordings/{r}", False),
    "/compare": ("/compare?ids={r}", False),
    "/match": ("/match?family={f}", False),
    "/docs": ("/docs", True),
    "/docs/assets": ("/docs/assets/swagger-ui.css", True),
    "/openapi.json": ("/openapi.json", True),
    "/api/v1/families": ("/api/v1/families", True),
    "/api/v1/families/{name:path}": ("/api/v1/families/{f}", False),
    "/api/v1/families/{name:path}/best": ("/api/v1/families/{f}/best", False),
    "/api/v1/families/{name:path}/losses": ("/api/v1/families/{f}/losses", False),
    "/api/v1/families/{name:path}/figure": ("/api/v1/families/{f}/figure", False),
    "/api/v1/recordings": ("/api/v1/recordings?family={f}", False),
    "/api/v1/recordings/{recording_id}": ("/api/v1/recordings/{r}", False),
    "/api/v1/recordings/{recording_id}/trajectory": ("/api/v1/recordings/{r}/trajectory", False),
    "/api/v1/recordings/{recording_id}/figure": ("/api/v1/recordings/{r}/figure", False),
    "/api/v1/recordings/{recording_id}/events": ("/api/v1/recordings/{r}/events", False),
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
    assert served(app.routes) == set(ROUTES) | OPEN | LOGGED_IN


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_the_right_token(locked: Locked, route: str):
    path, of_registry = ROUTES[route]
    recording = locked.recording()
    statuses = {200: OK, 401: NOBODY, 403: DENIED}
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
            wanted[kind] = expected(kind, Scope.READ, of_family=not of_registry)
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


def test_a_first_token_locks_an_open_registry_and_revoking_ends_what_is_open(tmp_path, monkeypatch):
    """A running server notices both, though another process does them, and ends open streams."""
    db = f"sqlite:///{tmp_path}/registry.db"
    released = hold_trajectories(monkeypatch)
    server = Server(Settings(db=db, grpc=HERE, http=HERE, drain_seconds=1))
    server.start()
    console = open_store(db)
    try:
        with grpc.insecure_channel(server.grpc_address.text) as channel:
            sent = spec(family())
            assert (
                call(
                    channel,
                    "StartRecording",
                    pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)),
                    "",
                )[0]
                == OK
            )
            token, secret = SqlTokenStore(console.engine).create("first", "admin")
            deadline = time.monotonic() + 5
            while call(channel, "ServerInfo", pb.ServerInfoRequest(), "")[0] != NOBODY:
                assert time.monotonic() < deadline
            assert call(channel, "ServerInfo", pb.ServerInfoRequest(), secret.text)[0] == OK

            bearer = [("authorization", f"Bearer {secret.text}")]
            stub = rpc.RegistryStub(channel)
            append = pb.AppendRequest(
                recording_id=sent.id, measurements=[recording_messages.measurement_to_proto(row(1))]
            )
            assert stub.Append(append, timeout=20, metadata=bearer).committed == 1
            stream = stub.GetTrajectory(
                pb.GetTrajectoryRequest(recording_id=sent.id), timeout=20, metadata=bearer
            )
            assert next(stream).header.rows == 1
            url = f"http://{server.http_address.text}/api/v1/recordings/{sent.id}/events"
            with httpx.stream(
                "GET", url, headers={"Authorization": f"Bearer {secret.text}"}, timeout=20
            ) as followed:
                lines = followed.iter_lines()
                assert next(lines) == "event: rows"
                assert SqlTokenStore(console.engine).revoke(token.id)
                assert (
                    call(channel, "ServerInfo", pb.ServerInfoRequest(), secret.text)[0] == NOBODY
                )  # at once
                time.sleep(RECHECK_SECONDS)
                released.set()
                with pytest.raises(grpc.RpcError) as ended:
                    list(stream)
                assert (ended.value.code(), "was revoked" in ended.value.details()) == (
                    CODES[NOBODY],
                    True,
                )
                assert [line for line in lines if "was revoked" in line]
            assert (
                call(channel, "ServerInfo", pb.ServerInfoRequest(), "")[0] == NOBODY
            )  # a revoked token keeps it locked
    finally:
        console.close()
        server.stop()
