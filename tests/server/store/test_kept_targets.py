"""Targets are computed once for each change of a family, from trajectories read together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from flerm_core.matching.targets import Targets, build_targets
from flerm_core.records.queries import RecordingFilter, TargetQuery
from flerm_core.records.recording import Ending
from flerm_server.store import queries
from flerm_server.store.sql import read_trajectories
from flerm_server.store.sql.store import SqlStore, open_store
from tests.server.conftest import migrate
from tests.server.samples import attempt, batch, family, row, spec


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    url = f"sqlite:///{tmp_path}/registry.db"
    if request.param == "postgresql":
        url = migrate(request.getfixturevalue("postgres").new_database())
    opened = open_store(url)
    yield opened
    opened.close()


def record(
    store: SqlStore,
    name: str,
    seed: int,
    *,
    lr: float = 1e-3,
    steps: Sequence[int] = (1, 2, 3),
    again: bool = False,
) -> str:
    """A completed recording of `steps`; `again`: those from 2 on come from a second attempt."""
    started = spec(name, seed=seed, lr=lr)
    store.start(started, attempt(0, 1))
    rows = [row(step, 1 + seed + step, 2.0, 3.0 / step, loss=1.0, tokens=step) for step in steps]
    store.append_many([batch(started.id, *rows, attempt=1)])
    if again:
        store.start(started, attempt(2, 2))
        rows = [row(step, 7.0 + seed, 5.0, np.nan, loss=2.0) for step in (2, 4)]
        store.append_many([batch(started.id, *rows, attempt=2)])
    store.finish(started.id, 0, Ending(final_loss=1.0))
    return started.id


def one_by_one(store: SqlStore, query: TargetQuery) -> Targets:
    sources, blocks = store.sources(query)
    return build_targets(query, sources, lambda each: store.trajectory(each.spec.id), blocks=blocks)


def assert_same(found: Targets, expected: Targets) -> None:
    assert (found.digest, found.sources) == (expected.digest, expected.sources)
    np.testing.assert_array_equal(found.spread, expected.spread)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("long", [0, 1, 2])
def test_trajectories_read_together_are_those_read_alone(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, long: int
):
    """long: how many of the two lengths are too long for one statement."""
    monkeypatch.setattr(read_trajectories, "IDS_AT_ONCE", 2)
    name = family()
    for seed in range(5):
        record(store, name, seed, again=seed % 2 == 0)
    record(store, name, 5, steps=(1, 2, 3, 5, 8))
    wanted = list(store.all_recordings(RecordingFilter(family=name)))
    short, longer = sorted({4 * each.rows * each.parameter_count for each in wanted})
    monkeypatch.setattr(read_trajectories, "BYTES_AT_ONCE", (longer, short, short - 1)[long])
    for recording, found in zip(wanted, store.trajectories(wanted), strict=True):
        expected = store.trajectory(recording.spec.id)
        assert (found.names, found.shapes, found.bands) == (
            expected.names,
            expected.shapes,
            expected.bands,
        )
        for each in ("steps", "values", "losses", "learning_rates", "tokens"):
            np.testing.assert_array_equal(getattr(found, each), getattr(expected, each))


def test_targets_are_kept_until_a_run_of_the_family_changes(store: SqlStore):
    name = family()
    for seed in range(2):
        record(store, name, seed, again=True)
    query = TargetQuery(family=name, lr=1e-3)
    first = queries.targets(store, query)
    assert_same(first, one_by_one(store, query))
    assert queries.targets(store, query) is first
    assert queries.targets(store, query, max_values=6) is not first
    added = record(store, name, 2)
    second = queries.targets(store, query)
    assert second.seeds == 3
    assert_same(second, one_by_one(store, query))
    store.delete(added)
    assert_same(queries.targets(store, query), first)
    store.register_family(name, blocks=["layers.*"])
    assert queries.targets(store, query) is not first


def test_targets_by_tags_follow_the_tags(store: SqlStore):
    name = family()
    ids = [record(store, name, seed) for seed in range(2)]
    for each in ids:
        store.tag(each, {"good": "yes"})
    query = TargetQuery(family=name, lr=1e-3, tags={"good": "yes"})
    assert queries.targets(store, query).seeds == 2
    store.tag(ids[0], {}, ["good"])
    assert queries.targets(store, query).sources == (ids[1],)
