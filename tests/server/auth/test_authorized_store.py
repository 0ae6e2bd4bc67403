"""A transport reaches the registry's data only through a store that checks the principal."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

from flerm_core.errors import NotFound, PermissionDenied
from flerm_core.records.recording import Ending
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.auth.principal import ANYBODY, Principal, Scope, act_as
from flerm_server.metrics import Metrics
from flerm_server.rpc.service import RegistryService
from flerm_server.store.interface import Store
from flerm_server.store.sql.store import SqlStore, open_store
from tests.server.samples import batch, rows, spec


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(f"sqlite:///{tmp_path}/registry.db")
    yield opened
    opened.close()


def as_principal(principal: Principal, act, *arguments):
    """`act(*arguments)` in a context in which `principal` makes the call."""

    def run():
        act_as(principal)
        return act(*arguments)

    return copy_context().run(run)


def test_the_grpc_service_holds_no_store_but_the_authorized_one(store: SqlStore):
    authorized = AuthorizedStore(store)
    service = RegistryService(authorized, Metrics())
    held = [each for each in vars(service).values() if each is not authorized]
    inside = [each for owner in held for each in getattr(owner, "__dict__", {}).values()]
    assert not [each for each in (*held, *inside) if isinstance(each, Store)]


def test_an_append_that_nobody_authenticated_stores_nothing(store: SqlStore):
    started = spec("team/resmlp")
    store.start(started)
    with pytest.raises(LookupError):
        AuthorizedStore(store).append(started.id, lambda: batch(started.id, *rows(1)))
    assert store.recording(started.id).rows == 0


def test_a_start_is_read_once_it_is_known_who_may_make_it(store: SqlStore):
    taken, new = spec("team/resmlp"), spec("other/resmlp")
    store.start(taken)
    authorized = AuthorizedStore(store)

    def never() -> None:
        raise AssertionError("the recording is read before it is known who may start it")

    for principal, family, recording_id in (
        (Principal(Scope.READ), new.family, new.id),
        (Principal(Scope.WRITE, family="other"), taken.family, new.id),
        (Principal(Scope.WRITE, family="other"), new.family, taken.id),
    ):
        with pytest.raises(PermissionDenied):
            as_principal(principal, authorized.start_as_read, family, recording_id, never)
    writer = Principal(Scope.WRITE, family="other")
    started = as_principal(
        writer, authorized.start_as_read, new.family, new.id, lambda: (new, None)
    )
    assert (started.created, store.recording(new.id).spec) == (True, new)


def test_an_append_of_a_reader_or_of_another_team_is_refused_before_it_is_queued(store: SqlStore):
    started = spec("team/resmlp")
    store.start(started)
    authorized = AuthorizedStore(store)

    def never() -> None:
        raise AssertionError("the rows are read before it is known who may write them")

    for principal, refusal in (
        (Principal(Scope.READ), PermissionDenied),
        (Principal(Scope.WRITE, family="other"), NotFound),
    ):
        with pytest.raises(refusal):
            as_principal(principal, authorized.append, started.id, never)
    stored = as_principal(
        ANYBODY, authorized.append, started.id, lambda: batch(started.id, *rows(2))
    )
    assert (stored.committed, store.recording(started.id).rows) == (1, 1)


def test_who_may_not_read_a_recording_does_not_learn_its_family(store: SqlStore):
    started = spec("team/resmlp")
    store.start(started)
    authorized = AuthorizedStore(store)
    ours, theirs = (Principal(Scope.READ, family=name) for name in ("team", "other"))
    assert as_principal(ours, authorized.family_of, started.id) == started.family
    with pytest.raises(NotFound, match="is not in this registry"):
        as_principal(theirs, authorized.family_of, started.id)


def test_families_are_named_to_those_who_may_read_them(store: SqlStore):
    for name in ("other/b", "team", "team/a", "teamwork"):
        store.register_family(name)
    names = AuthorizedStore(store).family_names
    assert as_principal(Principal(Scope.READ, family="team"), names) == ["team", "team/a"]
    assert as_principal(ANYBODY, names) == ["other/b", "team", "team/a", "teamwork"]
    assert as_principal(ANYBODY, lambda: names(page_size=1)) == ["other/b"]


def test_hidden_and_absent_take_the_same_questions_to_the_database(store: SqlStore):
    """So the time of an answer does not tell which of the two it was."""
    started = spec("team/resmlp")
    store.start(started)
    asked: list[str] = []

    class Watched:
        """The store, which notes what it is asked."""

        def __getattr__(self, name: str) -> object:
            asked.append(name)
            return getattr(store, name)

    authorized = AuthorizedStore(Watched())
    asked.clear()
    theirs = Principal(Scope.ADMIN, family="other")
    for recording in (started.id, spec("").id):
        for call in ("recording", "select", "renew", "delete", "tag", "finish"):
            with pytest.raises(NotFound):
                more = {"tag": ({"a": "b"},), "finish": (0, Ending())}.get(call, ())
                as_principal(theirs, getattr(authorized, call), recording, *more)
    assert asked == ["family_of"] * 12
