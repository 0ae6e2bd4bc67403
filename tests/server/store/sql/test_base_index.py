"""SQL chooses the sources of targets and the runs of a sweep as the core does from a listing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import until

from flerm_core.errors import Ambiguous, FlermError, NotFound
from flerm_core.matching.base_selection import Sources, choose_sources
from flerm_core.records.comparability import ComparabilityKey
from flerm_core.records.queries import POLICIES, BestQuery, RecordingFilter, TargetQuery
from flerm_core.records.recording import Ending, EstimatorSettings, RecordingSpec
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.family_best import best_of
from flerm_server.store import queries
from flerm_server.store.interface import Store
from flerm_server.store.sql import comparability
from flerm_server.store.sql.base_index import SqlBaseIndex
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine, transaction
from flerm_server.store.sql.store import open_store
from flerm_server.store.sql.tables import comparability_keys, families, recordings
from tests.server.conftest import Backend
from tests.server.samples import family, spec

# About 1e-9 apart: whether two of them are the same learning rate depends on the one before.
RATES = st.builds(
    lambda rate, ticks: rate * (1 + ticks * 0.4e-9),
    st.sampled_from((1e-4, 2e-4, 1e-3)),
    st.integers(0, 6),
)
OPTIMIZERS = (
    ("Adam", {}),
    ("Adam", {"eps": 0.0, "betas": (0.9, 1)}),
    ("Adam", {"betas": [0.9, 1.0]}),
    ("SGD", {}),
)
ESTIMATORS = (
    EstimatorSettings(),
    EstimatorSettings(samples=3),
    EstimatorSettings(name="kronecker", output_weight="readout"),
)
TAGS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2)
NO_TAGS: st.SearchStrategy[dict[str, str]] = st.just({})


@st.composite
def recorded(draw: st.DrawFn) -> tuple[RecordingSpec, str]:
    """A recording, in most cases one that answers a query, and its status."""
    optimizer, config = draw(st.sampled_from((OPTIMIZERS[0],) * 24 + OPTIMIZERS))
    made = spec(
        "",
        lr=draw(RATES),
        seed=draw(st.integers(0, 1)),
        tags=draw(TAGS),
        optimizer=optimizer,
        optimizer_config=config,
        role=draw(st.sampled_from(("base",) * 5 + ("scaled",))),
        variant=draw(st.sampled_from(("plain",) * 5 + ("matched",))),
        estimator=draw(st.sampled_from((ESTIMATORS[0],) * 24 + ESTIMATORS)),
    )
    return made, draw(st.sampled_from(("completed",) * 5 + ("running", "diverged")))


QUERIES = st.builds(
    TargetQuery,
    family=st.just(""),
    lr=RATES | st.sampled_from((1.5e-4, 5e-4, 1e-2)),
    policy=st.sampled_from(POLICIES),
    tags=NO_TAGS | TAGS,
    optimizer=st.sampled_from(("",) * 6 + ("Adam", "SGD", "Muon")),
    optimizer_config=st.sampled_from((None,) * 6 + ({}, {"betas": [0.9, 1]}, {"momentum": 0.9})),
    estimator=st.sampled_from((None,) * 6 + ESTIMATORS),
)


def outcome(act: Callable[..., Any], *arguments: object) -> Any:
    """What `act` returns, or the type and sentence of its error."""
    try:
        return act(*arguments)
    except FlermError as error:
        return type(error), str(error)


def sources(store: Store, query: TargetQuery) -> Sources:
    return store.sources(query)[0]


def record_all(store: Store, name: str, recorded_runs: list[tuple[RecordingSpec, str]]) -> None:
    for made, status in recorded_runs:
        mine = replace(made, id=spec("").id, family=name)
        store.start(mine)
        if status != "running":
            store.finish(mine.id, 0, Ending(status=status, final_loss=math.log(made.lr) ** 2))


def forget_keys(url: str, name: str) -> None:
    """Removes the comparability keys of half of the recordings.

    During a rolling upgrade, servers of an older schema open such recordings.
    """
    engine = open_engine(parse_url(url))
    key = sa.select(families.c.key).where(families.c.name == name).scalar_subquery()
    with transaction(engine, writes=True) as connection:
        change = recordings.update().values(kind_key=None)
        connection.execute(change.where(recordings.c.family_key == key, recordings.c.key % 2 == 0))
    engine.dispose()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(recorded(), max_size=12), st.lists(QUERIES, min_size=5, max_size=20), st.booleans())
def test_sources_are_chosen_as_from_a_listing(
    backend: Backend,
    recorded_runs: list[tuple[RecordingSpec, str]],
    asked: list[TargetQuery],
    some_without_keys: bool,
):
    store, name = backend.local, family()
    store.register_family(name)
    record_all(store, name, recorded_runs)
    if some_without_keys:
        forget_keys(backend.url, name)
    listing = list(store.all_recordings(RecordingFilter(family=name)))
    for each in asked:
        query = replace(each, family=name)
        assert outcome(sources, store, query) == outcome(choose_sources, listing, query)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(recorded(), max_size=9), TAGS, st.sampled_from(("", "Adam", "SGD")))
def test_the_best_rate_is_that_of_a_listing(
    backend: Backend,
    recorded_runs: list[tuple[RecordingSpec, str]],
    tags: dict[str, str],
    optimizer: str,
):
    name = family()
    backend.local.register_family(name)
    record_all(backend.local, name, recorded_runs)
    listing = list(backend.local.all_recordings(RecordingFilter(family=name)))
    query = BestQuery(family=name, tags=tags, optimizer=optimizer)
    assert repr(outcome(queries.best, backend.local, query)) == repr(
        outcome(best_of, map(ExperimentRun.of, listing), query)
    )


def test_rates_that_are_the_same_may_be_more_than_one_statement_looks_up(backend: Backend):
    """Twelve rates, each the same as the next, where the first statement looks up four."""
    store, name = backend.local, family()
    record_all(
        store,
        name,
        [(spec("", lr=1e-3 * (1 + at * 0.9e-9), seed=at), "completed") for at in range(12)],
    )
    listing = list(store.all_recordings(RecordingFilter(family=name)))
    for lr in (1e-3, 1e-3 * (1 + 5.2e-9), 1e-3 * (1 + 9.9e-9), 2e-3):
        for policy in POLICIES:
            query = TargetQuery(family=name, lr=lr, policy=policy)
            assert outcome(sources, store, query) == outcome(choose_sources, listing, query)


def test_sources_of_an_unknown_family_are_not_found(backend: Backend):
    with pytest.raises(NotFound, match="family 'nobody/none' is not in this registry"):
        backend.local.sources(TargetQuery(family="nobody/none", lr=1e-3))


def test_two_servers_may_backfill_keys_at_the_same_time(backend: Backend):
    store, name = backend.local, family()
    record_all(store, name, [(spec("", lr=1e-3), "completed")] * 2)
    engine = open_engine(parse_url(backend.url))
    with transaction(engine, writes=True) as connection:
        key = connection.execute(
            sa.select(families.c.key).where(families.c.name == name)
        ).scalar_one()
        connection.execute(
            recordings.update().where(recordings.c.family_key == key).values(kind_key=None)
        )
        comparability.backfill(connection, key)
        comparability.backfill(connection, key)  # the other server, which waited for the first
        assert not comparability.has_unkeyed(connection, key)
    engine.dispose()


def test_servers_that_backfill_the_same_keys_of_two_families_do_not_lock_each_other_out(
    postgres_backend: Backend,
):
    """The recordings of one family have the keys of the other, in reverse order.

    Each of two servers waits within its backfill until the key in the middle is free.
    """
    configs = [{"eps": random.random()} for _ in range(3)]
    names = [family(), family()]
    for name, each in zip(names, (configs, configs[::-1]), strict=True):
        made = [(spec("", lr=1e-3, optimizer_config=config), "completed") for config in each]
        record_all(postgres_backend.local, name, made)
    engine = open_engine(parse_url(postgres_backend.url))
    with transaction(engine, writes=True) as connection:
        theirs = sa.select(families.c.key).where(families.c.name.in_(names))
        mine = recordings.c.family_key.in_(theirs)
        used = connection.scalars(sa.select(recordings.c.kind_key).where(mine)).all()
        connection.execute(recordings.update().where(mine).values(kind_key=None))
        connection.execute(comparability_keys.delete().where(comparability_keys.c.key.in_(used)))
    stores = [open_store(postgres_backend.url) for _ in names]
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor(2) as threads:
        with transaction(engine, writes=True) as connection:
            middle = ComparabilityKey.of("Adam", configs[1], spec("").estimator)
            comparability.intern(connection, middle)
            answers = [
                threads.submit(outcome, sources, store, TargetQuery(family=name, lr=1e-3))
                for store, name in zip(stores, names, strict=True)
            ]
            until(lambda: connection.execute(waiting).scalar_one() == 2, "both wait")
        for answer in answers:
            assert answer.result()[0] is Ambiguous, answer.result()
    for store in stores:
        store.close()
    engine.dispose()


@pytest.mark.parametrize("policy", POLICIES)
def test_an_answer_comes_from_one_snapshot(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, policy: str
):
    """Another client deletes the only source while the query is answered."""
    store, name = backend.local, family()
    only = replace(spec("", lr=1e-3), id=spec("").id, family=name)
    store.start(only)
    store.finish(only.id, 0, Ending())
    original = SqlBaseIndex.keys

    def and_delete(index: SqlBaseIndex, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        found = original(index, tags)
        store.delete(only.id)
        return found

    monkeypatch.setattr(SqlBaseIndex, "keys", and_delete)
    found = sources(store, TargetQuery(family=name, lr=1e-3, policy=policy))
    assert [each.spec.id for each in found[1e-3]] == [only.id]
