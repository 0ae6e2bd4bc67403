"""What is asked of a store has one answer, whoever asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from flerm_core.errors import NotFound
from flerm_core.records.queries import BestQuery, RecordingFilter, TrajectoryQuery
from flerm_core.records.recording import Ending
from flerm_server.store import queries, seed_coverage
from flerm_server.store.interface import Store
from flerm_server.store.sql.store import open_store
from tests.server.samples import NAMES, attempt, batch, family, rows, spec


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/registry.db")
    yield opened
    opened.close()


def record(store: Store, name: str, *, loss: float | None = 1.0, **changes) -> str:
    """A recording of `name`; completed with that final loss, or running where it is None."""
    started = spec(name, **changes)
    store.start(started)
    store.append_many([batch(started.id, *rows(1, 101, 201))])
    if loss is not None:
        store.finish(started.id, 0, Ending(final_loss=loss))
    return started.id


def test_the_overview_of_a_family_advises_the_rate_that_best_gives(store: Store):
    name = family()
    for lr, loss in ((1e-3, 3.0), (2e-3, 1.0), (4e-3, 2.0)):
        record(store, name, lr=lr, loss=loss)
    record(store, name, lr=8e-3, role="scaled", variant="matched", loss=0.1)
    overview = queries.family_overview(store, name)
    best = queries.best(store, BestQuery(family=name))
    assert overview.family == store.family(name)
    assert repr(overview.report.best) == repr(best)  # NaN in it is not equal to itself


def test_the_report_says_why_there_is_no_best_rate(store: Store):
    name = family()
    record(store, name, loss=None)
    sentence = f"family: {name!r} has no completed run with a final loss; 1 run in all"
    assert queries.transfer(store, name).problem == sentence
    with pytest.raises(NotFound, match=re.escape(sentence)):
        queries.best(store, BestQuery(family=name))


def test_of_several_optimisers_every_question_shows_the_same_one(store: Store):
    name = family()
    for optimizer, rates in (("Adam", (1e-3, 2e-3, 4e-3)), ("SGD", (0.1, 0.2))):
        for lr in rates:
            record(store, name, lr=lr, optimizer=optimizer, tags={"of": optimizer})
    report, best = queries.transfer(store, name), queries.best(store, BestQuery(family=name))
    assert repr(report.best) == repr(best)
    assert {point.lr for point in best.points} == {1e-3, 2e-3, 4e-3}
    assert "2 recordings" in best.experiment
    sgd = queries.best(store, BestQuery(family=name, tags={"of": "SGD"}))
    assert {point.lr for point in sgd.points} == {0.1, 0.2}
    (kind,) = report.kinds
    picked = BestQuery(family=name, pick={kind.name: kind.values[-1][0]})
    assert [point.lr for point in queries.best(store, picked).points] == [0.1, 0.2]


def test_an_unknown_family_is_not_found_by_any_question(store: Store):
    name = family()
    for ask in (
        lambda: queries.best(store, BestQuery(family=name)),
        lambda: queries.losses(store, name),
        lambda: queries.transfer(store, name),
        lambda: queries.family_overview(store, name),
    ):
        with pytest.raises(NotFound, match="is not in this registry"):
            ask()


def test_the_overview_counts_recordings_by_role_and_variant_base_first(store: Store):
    name = family()
    record(store, name, role="scaled", variant="matched", loss=None)
    for seed in range(2):
        record(store, name, seed=seed)
    overview = queries.family_overview(store, name)
    assert list(overview.counts.items()) == [(("base", "plain"), 2), (("scaled", "matched"), 1)]
    assert overview.statuses == ("running", "completed")


def test_coverage_shows_the_newest_recording_of_each_rate_and_seed(store: Store):
    name = family()
    older = record(store, name, lr=1e-3 * (1 - 1e-12), loss=1.0)
    newer = record(store, name, lr=1e-3, loss=2.0)
    other = record(store, name, lr=4e-3, seed=1, loss=None)
    coverage = queries.family_overview(store, name).coverage["base", "plain"]
    cells = [[cell and cell.id for cell in found] for _, found in coverage.rows]
    assert (coverage.seeds, cells) == ((0, 1), [[newer, None], [None, other]])
    assert older not in (cell for row in cells for cell in row)
    assert (coverage.missing, coverage.hidden) == (2, 0)


def test_coverage_shows_a_bounded_number_of_seeds_and_counts_the_rest(store: Store):
    name = family()
    for seed in range(seed_coverage.MAX_SEEDS + 2):
        store.start(spec(name, seed=seed))
    coverage = queries.family_overview(store, name).coverage["base", "plain"]
    assert (coverage.seeds, coverage.hidden) == (tuple(range(seed_coverage.MAX_SEEDS)), 2)
    assert len(coverage.rows[0][1]) == seed_coverage.MAX_SEEDS


def test_the_losses_of_one_scale_are_the_bases_row_of_the_report(store: Store):
    name = family()
    for lr, loss in ((1e-3, 3.0), (2e-3, 1.0)):
        record(store, name, lr=lr, loss=loss)
    (row,) = queries.transfer(store, name).rows
    assert repr(queries.losses(store, name)) == repr({("base", "plain"): row.points})
    for width in (8, 16):
        record(store, name, role="scaled", config={"width": width}, loss=width)
    assert [row.label for row in queries.transfer(store, name).rows] == [
        "base",
        "width 8",
        "width 16",
    ]


def test_a_family_was_active_when_its_newest_row_came(store: Store):
    name = family()
    running = record(store, name, loss=None)
    record(store, name, lr=2e-3, loss=1.0)
    (before,) = queries.family_summaries(store, [store.family(name)])
    store.append_many([batch(running, *rows(301))])
    (after,) = queries.family_summaries(store, [store.family(name)])
    assert after.active_at == store.recording(running).updated_at > before.active_at
    assert repr(after.report) == repr(queries.transfer(store, name))


def test_a_recording_is_as_old_as_its_first_attempt(store: Store):
    name = family()
    newer = record(store, name)
    late = spec(name)
    store.start(late, attempt(0, 30))
    found = store.recording(late.id)
    assert found.created_at == attempt(0, 30).started_at
    listed = [each.spec.id for each in store.recordings(RecordingFilter(family=name)).items]
    assert listed == [newer, late.id]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    early = spec(name)
    store.start(early, replace(attempt(0, 30), started_at=tomorrow))
    assert store.recording(early.id).created_at < tomorrow


def test_a_trajectory_is_thinned_and_reduced_to_a_pattern(store: Store):
    recording = record(store, family())
    asked = TrajectoryQuery(recording_id=recording, pattern="layers.*", max_points=2)
    found = queries.trajectory(store, asked)
    whole = store.trajectory(recording)
    assert (found.names, found.steps.tolist()) == (list(NAMES[:2]), [1, 201])
    np.testing.assert_array_equal(found.values, whole.values[[0, 2], :2])
    assert found.bands == whole.bands[:2]


def test_ratios_to_the_own_targets_are_one(store: Store):
    recording = record(store, family())
    found = queries.target_ratios(store, recording, recording)
    np.testing.assert_allclose(found.values[:, :2], 1.0)
