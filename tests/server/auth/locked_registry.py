"""A registry with tokens of every kind, and what a token of each kind may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from flerm_core.records.recording import Ending
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.credentials import TOKEN, Secret
from flerm_server.auth.principal import Scope
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.sql.store import SqlStore, open_store
from tests.server.samples import batch, family, rows, spec

SERVICE = pb.DESCRIPTOR.services_by_name["Registry"]
HERE = ListenAddress("127.0.0.1", 0)
OK, NOBODY, DENIED, MISSING = "ok", "unauthenticated", "denied", "missing"
CODES = {
    OK: grpc.StatusCode.OK,
    NOBODY: grpc.StatusCode.UNAUTHENTICATED,
    DENIED: grpc.StatusCode.PERMISSION_DENIED,
    MISSING: grpc.StatusCode.NOT_FOUND,
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


@contextmanager
def locked_registry(folder: Path) -> Iterator[Locked]:
    """A running server on a new database in `folder`."""
    db = f"sqlite:///{folder}/registry.db"
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


def expected(kind: str, needed: Scope, *, of_family: bool, by_id: bool = False) -> str:
    """What a token of a kind gets for a call that needs a scope.

    `of_family`: the call is of the one family, not of the whole registry. `by_id`: it names a
    recording, which a token of another family does not learn to be there.
    """
    if kind in NOBODYS:
        return NOBODY
    if kind in ("other family", "near name"):
        return (MISSING if by_id else DENIED) if of_family else OK
    held = {
        "read": Scope.READ,
        "write": Scope.WRITE,
        "admin": Scope.ADMIN,
        "own team": Scope.ADMIN,
    }[kind]
    return OK if held >= needed else DENIED


def call(channel: grpc.Channel, method: str, message: Any, token: str) -> tuple[str, str, Any]:
    """The outcome of a call (a key of `CODES`), the error's sentence, the answer."""
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
