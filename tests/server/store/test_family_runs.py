"""Answers about a family's losses are those of the recordings there are, whoever changed them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flerm_core.errors import Ambiguous, LimitExceeded, NotFound
from flerm_core.records.queries import BestQuery, RecordingFilter
from flerm_core.records.recording import Attempt, Ending, Recording
from flerm_core.tuning import transfer_report as transfer_report_module
from flerm_core.tuning.best_lr import SweepRun, loss_curve
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.family_best import best_of
from flerm_core.tuning.transfer_report import transfer_report
from flerm_server.store import queries, seed_coverage
from flerm_server.store.interface import Store
from flerm_server.store.quotas import Quotas
from flerm_server.store.sql.store import SqlStore, open_store
from tests.server.conftest import migrate
from tests.server.samples import family, spec


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    return migrate(request.getfixturevalue("postgres").new_database())


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    opened = open_store(url)
    yield opened
    opened.close()


def listed(store: Store, name: str) -> list[Recording]:
    return list(store.all_recordings(RecordingFilter(family=name)))


def assert_as_defined(store: Store, name: str) -> None:
    """Every answer is the one that a pass over the listing gives."""
    found = listed(store, name)
    kinds = sorted({(each.spec.role, each.spec.variant) for each in found})
    curves = {
        kind: loss_curve(
            SweepRun.of(each) for each in found if (each.spec.role, each.spec.variant) == kind
        )
        for kind in kinds
    }
    # By their texts, here and below: what is not known is NaN, which is not equal to itself.
    expected = {kind: its for kind, its in curves.items() if its}
    losses = queries.losses(store, name)
    assert losses.keys() == expected.keys()
    assert all(repr(losses[kind]) == repr(expected[kind]) for kind in expected)
    report = transfer_report(name, map(ExperimentRun.of, found))
    assert repr(queries.transfer(store, name)) == repr(report)
    for role, variant in [*kinds, ("base", "unheard")]:
        for optimizer in ("", "Adam", "SGD"):
            query = BestQuery(family=name, role=role, variant=variant, optimizer=optimizer)
            assert answer(lambda q=query: queries.best(store, q)) == answer(
                lambda q=query: best_of(map(ExperimentRun.of, found), q)
            )
    overview = queries.family_overview(store, name)
    assert overview.family == store.family(name)
    assert overview.counts == {
        kind: sum((each.spec.role, each.spec.variant) == kind for each in found) for kind in kinds
    }
    assert set(overview.statuses) == {each.status for each in found}
    assert repr(overview.report) == repr(transfer_report(name, map(ExperimentRun.of, found)))
    for kind, coverage in overview.coverage.items():
        for lr, cells in coverage.rows:
            for seed, cell in zip(coverage.seeds, cells, strict=True):
                newest = next(
                    (
                        each
                        for each in found
                        if (each.spec.role, each.spec.variant) == kind
                        and (each.spec.lr, each.spec.seed) == (lr, seed)
                    ),
                    None,
                )
                if newest is None:
                    assert cell is None
                    continue
                assert cell is not None
                assert (cell.id, cell.status) == (newest.spec.id, newest.status)
                assert cell.final_loss == newest.final_loss


def answer(ask: Callable[[], object]) -> str:
    try:
        return repr(ask())
    except (NotFound, Ambiguous) as error:
        return str(error)


def test_answers_are_those_of_a_pass_over_all_recordings_after_every_change(
    store: SqlStore, url: str
):
    """Two servers change one family and are asked in turn."""
    other = open_store(url)
    name, pick = family(), random.Random(1)
    store.register_family(name)
    known: list[str] = []
    for at in range(24):
        asked, changed = (store, other) if at % 3 else (other, store)
        change = pick.random()
        if change < 0.6 or not known:
            started = spec(
                name,
                lr=2.0 ** pick.randint(-9, -6),
                seed=pick.randint(0, 2),
                role=pick.choice(["base", "base", "scaled"]),
                variant=pick.choice(["plain", "plain", "matched"]),
                optimizer=pick.choice(["Adam", "Adam", "SGD"]),
                config={"width": (width := pick.choice([8, 16])), "parameters": width * width},
            )
            changed.start(started)
            known.append(started.id)
            if pick.random() < 0.9:
                ending = Ending(
                    status=pick.choice(["completed", "completed", "diverged", "interrupted"]),
                    final_loss=pick.choice([None, pick.uniform(1, 2)]),
                )
                changed.finish(started.id, 0, ending)
        elif change < 0.7:
            changed.tag(pick.choice(known), {"schedule": pick.choice(["cosine", "constant"])})
        elif change < 0.8:
            changed.delete(known.pop(pick.randrange(len(known))))
        else:
            identity = pick.choice(known)
            again = next(each for each in listed(store, name) if each.spec.id == identity).spec
            changed.start(spec(name, **{
                each: getattr(again, each)
                for each in ("id", "lr", "seed", "role", "variant", "optimizer", "config")
            }), Attempt(resume_at=1))  # fmt: skip
        if at % 4 == 0:
            assert_as_defined(asked, name)
    assert_as_defined(store, name)
    assert_as_defined(other, name)
    other.close()


def test_a_recording_that_lost_its_lease_is_interrupted_until_it_goes_on(url: str):
    store, name = open_store(url, lease_seconds=0.0), family()
    started = spec(name)
    store.start(started)
    overview = queries.family_overview(store, name)
    assert overview.statuses == ("interrupted",)
    assert overview.coverage["base", "plain"].rows[0][1][0].status == "interrupted"
    patient = open_store(url, lease_seconds=1000.0)
    patient.renew(started.id)
    for each in (store, patient):
        assert queries.family_overview(each, name).statuses == ("running",)
        each.close()


def test_an_answer_is_computed_once_for_each_change(store: SqlStore):
    name = family()
    for lr in (1e-3, 2e-3):
        started = spec(name, lr=lr)
        store.start(started)
        store.finish(started.id, 0, Ending(final_loss=lr))
    losses = queries.losses(store, name)
    assert queries.losses(store, name) is losses
    store.delete(started.id)
    assert queries.losses(store, name) is not losses


def test_a_renamed_family_is_named_in_its_answers(store: SqlStore):
    name, renamed = family(), family()
    started = spec(name)
    store.start(started)
    store.finish(started.id, 0, Ending(final_loss=1.0))
    assert queries.best(store, BestQuery(family=name)).family == name
    store.rename_family(name, renamed)
    assert queries.best(store, BestQuery(family=renamed)).family == renamed
    with pytest.raises(NotFound):
        queries.best(store, BestQuery(family=name))


def test_figures_and_coverage_of_many_rates_are_thinned_with_the_best_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer_report_module, "MAX_CURVE_POINTS", 10)
    monkeypatch.setattr(seed_coverage, "MAX_RATES", 5)
    store, name = open_store(f"sqlite:///{tmp_path}/registry.db"), family()
    for at in range(30):
        started = spec(name, lr=1e-3 * 1.01**at, seed=at)
        store.start(started)
        store.finish(started.id, 0, Ending(final_loss=0.5 if at == 17 else 1.0))
    shown = queries.transfer(store, name).panels()["plain"]["base"]
    whole = queries.losses(store, name)["base", "plain"]
    assert len(whole) == 30
    assert len(shown) <= 10
    assert {repr(whole[at]) for at in (0, 17, -1)} <= set(map(repr, shown))
    coverage = queries.family_overview(store, name).coverage["base", "plain"]
    assert (len(coverage.rows), coverage.hidden_rates) == (5, 25)
    store.close()


def test_quotas_count_what_there_is(store: SqlStore):
    quotas = Quotas(recordings_per_token=2, families_per_token=2, attempts_per_recording=2)
    first, second, third = (spec(family(), seed=seed) for seed in range(3))
    for each in (first, second):
        store.start(each, created_by="a", quotas=quotas)
    with pytest.raises(LimitExceeded, match="recordings_per_token: token a has 2 recordings"):
        store.start(third, created_by="a", quotas=quotas)
    store.start(third, created_by="b", quotas=quotas)
    store.delete(first.id)
    with pytest.raises(LimitExceeded, match="families_per_token: token a has 2 families"):
        store.start(spec(family()), created_by="a", quotas=quotas)
    with pytest.raises(LimitExceeded, match="families_per_token"):
        store.register_family(family(), created_by="a", quotas=quotas)
    store.register_family(first.family, description="there", created_by="a", quotas=quotas)
    store.start(spec(first.family), created_by="a", quotas=quotas)
    again = Attempt(resume_at=1)
    store.start(third, again, quotas=quotas)
    assert not store.start(third, again, quotas=quotas).created
    with pytest.raises(LimitExceeded, match=r"attempts_per_recording: .* go on in a new recording"):
        store.start(third, Attempt(resume_at=1), quotas=quotas)
