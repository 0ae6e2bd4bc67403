"""Sources of targets and runs of a sweep, chosen in SQL as the core chooses them from a listing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flerm_core.errors import FlermError, NotFound
from flerm_core.matching.base_selection import Sources, choose_sources
from flerm_core.records.comparability import ComparabilityKey
from flerm_core.records.queries import POLICIES, BestQuery, RecordingFilter, TargetQuery
from flerm_core.records.recording import Ending, EstimatorSettings, RecordingSpec
from flerm_core.tuning.best_lr import best_of
from flerm_server.store import queries
from flerm_server.store.interface import Store
from flerm_server.store.sql import kinds
from flerm_server.store.sql.base_index import SqlBaseIndex
from flerm_server.store.sql.engine import open_engine, parse_url
from flerm_server.store.sql.tables import families, recordings
from tests.server.conftest import Backend
from tests.server.samples import family, spec

# Around 1e-9 apart: whether two are one key depends on the one before.
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
    """A recording, mostly of the kind that answers, and how it ended."""
    optimizer, config = draw(st.sampled_from((OPTIMIZERS[0],) * 24 + OPTIMIZERS))
    made = spec(
        "", lr=draw(RATES), seed=draw(st.integers(0, 1)), tags=draw(TAGS), optimizer=optimizer, optimizer_config=config,
        role=draw(st.sampled_from(("base",) * 5 + ("scaled",))), variant=draw(st.sampled_from(("plain",) * 5 + ("matched",))),
        estimator=draw(st.sampled_from((ESTIMATORS[0],) * 24 + ESTIMATORS)),
    )  # fmt: skip
    return made, draw(st.sampled_from(("completed",) * 5 + ("running", "diverged")))


QUESTIONS = st.builds(
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
    try:
        return act(*arguments)
    except FlermError as error:
        return type(error), str(error)


def sources(store: Store, query: TargetQuery) -> Sources:
    return store.sources(query)[0]


def told(store: Store, name: str, there: list[tuple[RecordingSpec, str]]) -> None:
    for made, status in there:
        mine = replace(made, id=spec("").id, family=name)
        store.start(mine)
        if status != "running":
            store.finish(mine.id, 0, Ending(status=status, final_loss=math.log(made.lr) ** 2))


def forget_kinds(url: str, name: str) -> None:
    """As a server of an older schema opens recordings: half of them, in a rolling upgrade."""
    engine = open_engine(parse_url(url))
    key = sa.select(families.c.key).where(families.c.name == name).scalar_subquery()
    with engine.begin() as connection:
        change = recordings.update().values(kind_key=None)
        connection.execute(change.where(recordings.c.family_key == key, recordings.c.key % 2 == 0))
    engine.dispose()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(recorded(), max_size=12), st.lists(QUESTIONS, min_size=5, max_size=20), st.booleans()
)
def test_sources_are_chosen_as_from_a_listing(
    backend: Backend,
    there: list[tuple[RecordingSpec, str]],
    questions: list[TargetQuery],
    older: bool,
):
    store, name = backend.local, family()
    store.register_family(name)
    told(store, name, there)
    if older:
        forget_kinds(backend.url, name)
    listing = list(store.all_recordings(RecordingFilter(family=name)))
    for question in questions:
        query = replace(question, family=name)
        assert outcome(sources, store, query) == outcome(choose_sources, listing, query)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(recorded(), max_size=9), TAGS, st.sampled_from(("", "Adam", "SGD")))
def test_the_best_rate_is_that_of_a_listing(
    backend: Backend, there: list[tuple[RecordingSpec, str]], tags: dict[str, str], optimizer: str
):
    name = family()
    backend.local.register_family(name)
    told(backend.local, name, there)
    listing = list(backend.local.all_recordings(RecordingFilter(family=name)))
    query = BestQuery(family=name, tags=tags, optimizer=optimizer)
    assert repr(outcome(queries.best, backend.local, query)) == repr(
        outcome(best_of, listing, query)
    )


def test_many_rates_within_one_key_and_beyond_a_statement_s_reach(backend: Backend):
    """A chain of rates, each the same as the next: longer than what is looked at first."""
    store, name = backend.local, family()
    told(
        store,
        name,
        [(spec("", lr=1e-3 * (1 + at * 0.9e-9), seed=at), "completed") for at in range(12)],
    )
    listing = list(store.all_recordings(RecordingFilter(family=name)))
    for lr in (1e-3, 1e-3 * (1 + 5.2e-9), 1e-3 * (1 + 9.9e-9), 2e-3):
        for policy in POLICIES:
            query = TargetQuery(family=name, lr=lr, policy=policy)
            assert outcome(sources, store, query) == outcome(choose_sources, listing, query)


def test_sources_of_an_unknown_family_name_its_neighbours(backend: Backend):
    with pytest.raises(NotFound, match="family 'nobody/none' is not in this registry"):
        backend.local.sources(TargetQuery(family="nobody/none", lr=1e-3))


def test_two_servers_may_give_kinds_at_once(backend: Backend):
    store, name = backend.local, family()
    told(store, name, [(spec("", lr=1e-3), "completed")] * 2)
    engine = open_engine(parse_url(backend.url))
    with engine.begin() as connection:
        key = connection.execute(
            sa.select(families.c.key).where(families.c.name == name)
        ).scalar_one()
        connection.execute(
            recordings.update().where(recordings.c.family_key == key).values(kind_key=None)
        )
        kinds.backfill_kinds(connection, key)
        kinds.backfill_kinds(connection, key)  # whose turn came after the other's
        assert not kinds.has_unkeyed(connection, key)
    engine.dispose()


@pytest.mark.parametrize("policy", POLICIES)
def test_an_answer_is_of_one_moment(backend: Backend, monkeypatch: pytest.MonkeyPatch, policy: str):
    """The only source is deleted by another while the question is answered."""
    store, name = backend.local, family()
    only = replace(spec("", lr=1e-3), id=spec("").id, family=name)
    store.start(only)
    store.finish(only.id, 0, Ending())
    asked = SqlBaseIndex.kinds

    def and_deleted(shelf: SqlBaseIndex, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        found = asked(shelf, tags)
        store.delete(only.id)
        return found

    monkeypatch.setattr(SqlBaseIndex, "kinds", and_deleted)
    found = sources(store, TargetQuery(family=name, lr=1e-3, policy=policy))
    assert [each.spec.id for each in found[1e-3]] == [only.id]
