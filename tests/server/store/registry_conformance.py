"""What every registry promises: a server, the store behind it, and a folder of spool files.

A test module makes a subclass of `RegistryConformance`, whose name begins with `Test`, with a
fixture `registry`: a `flerm_client.registry.backend.RegistryBackend`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from flerm_client.registry.backend import RegistryBackend
from flerm_core.errors import AlreadyExists, Ambiguous, InvalidInput, NotFound, Refused
from flerm_core.matching.targets import targets_digest
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import (
    Ending,
    EstimatorSettings,
)
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.family_best import best_of
from tests.server.samples import NAMES, PARAMETERS, attempt, family, row, rows, spec


def trajectory(registry: RegistryBackend, recording_id: str, **part: Any) -> Trajectory:
    """The rows of a recording; `part` are fields of `TrajectoryQuery`."""
    return registry.trajectory(TrajectoryQuery(recording_id=recording_id, **part))


def record(registry: RegistryBackend, family: str, lr: float = 1e-2, **fields: Any) -> str:
    """A completed recording with rows at steps 1 and 101; its id."""
    sent = spec(family, lr=lr, **fields)
    registry.start(sent, None)
    registry.append(sent.id, [row(1, 1, 2, 3), row(101, 101, 202, 303)])
    registry.finish(sent.id, Ending(final_loss=0.5, final_step=150))
    return sent.id


class RegistryConformance:
    """What every registry promises (see `RegistryBackend`), with or without a server."""

    def test_a_recording_comes_back_as_it_was_started(self, registry: RegistryBackend):
        sent = spec(
            family(), lr=3e-4, seed=-7, role="scaled", variant="matched",
            optimizer_config={"betas": [0.9, 0.999], "weight_decay": 0},
            config={"width": 4, "layers": {"kind": "linear"}, "note": "naïve"},
            estimator=EstimatorSettings(name="kronecker", samples=41),
            tags={"cluster": "a"}, world_size=2, versions={"torch": "2.13.0"},
            targets_digest="ab" * 32, targets_sources=(str(uuid.uuid4()),),
        )  # fmt: skip
        registry.start(sent, None)
        found = registry.recording(sent.id)
        assert found.spec == sent
        assert (found.status, found.attempt, found.rows) == ("running", 1, 0)
        assert found.parameter_count == len(PARAMETERS)

    def test_measurements_come_back_bit_for_bit(self, registry: RegistryBackend):
        sent = spec(family())
        registry.start(sent, None)
        values = np.array([[1e-38, 3.4e38, 0.1], [np.nan, 0.0, 7.0]], np.float32)
        logged = {"loss": 2.5, "learning_rate": 1e-3, "tokens": 0}
        registry.append(sent.id, [row(1, *values[0], **logged), row(101, *values[1])])
        found = trajectory(registry, sent.id)
        assert (found.names, found.steps.tolist()) == (list(PARAMETERS.names), [1, 101])
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(found.losses, [2.5, np.nan])
        np.testing.assert_array_equal(found.learning_rates, [1e-3, np.nan])
        np.testing.assert_array_equal(found.tokens, [0, -1])

    def test_auxiliary_scalars_and_vectors_come_back(self, registry: RegistryBackend):
        sent = spec(family())
        registry.start(sent, None)
        multipliers = np.array([1, 2, 0.5], np.float32)
        measured = row(1, scalars={"sharpness": 12.5}, vectors={"multipliers": multipliers})
        registry.append(sent.id, [measured, row(2)])
        found = registry.auxiliary(sent.id, None, None)
        assert found.steps.tolist() == [1, 2]
        np.testing.assert_array_equal(found.scalars["sharpness"], [12.5, np.nan])
        np.testing.assert_array_equal(found.vectors["multipliers"][0], multipliers)
        assert np.isnan(found.vectors["multipliers"][1]).all()
        assert registry.auxiliary(sent.id, 2, None).steps.tolist() == [2]
        assert registry.auxiliary(sent.id, None, 1).steps.tolist() == [1]

    def test_everything_may_be_sent_twice(self, registry: RegistryBackend):
        sent = spec(family())
        remarks = ("1 tensor is unmeasured",)
        ending = Ending(
            status="diverged", final_loss=0.5, final_step=300, tokens=9, remarks=remarks
        )
        for _ in range(2):
            registry.start(sent, None)
        for _ in range(2):
            registry.append(sent.id, rows(1, 101))
        registry.append(sent.id, rows(101, 201))
        for _ in range(2):
            found = registry.finish(sent.id, ending)
        assert (found.status, found.attempt) == ("diverged", 1)
        assert (found.rows, found.first_step, found.last_step) == (3, 1, 201)
        assert (found.final_loss, found.final_step, found.tokens) == (0.5, 300, 9)
        assert found.remarks == remarks
        assert found.finished_at is not None

    def test_a_step_with_other_values_is_refused_by_its_number(self, registry: RegistryBackend):
        sent = spec(family())
        registry.start(sent, None)
        registry.append(sent.id, [row(1, 1, 2, 3)])
        with pytest.raises(AlreadyExists, match=f"step 1 of recording {sent.id}"):
            registry.append(sent.id, [row(1, 1, 2, 4), row(2)])
        assert registry.recording(sent.id).rows == 1

    @pytest.mark.parametrize("wrong", [np.inf, -1.0])
    def test_rows_that_are_not_valid_are_refused_whole(
        self, registry: RegistryBackend, wrong: float
    ):
        sent = spec(family())
        registry.start(sent, None)
        with pytest.raises(InvalidInput, match=rf"step 2, parameter 0: {wrong} is not allowed"):
            registry.append(sent.id, [row(1), row(2, wrong, 1, 1)])
        assert registry.recording(sent.id).rows == 0

    def test_an_id_means_one_recording(self, registry: RegistryBackend):
        sent = spec(family())
        registry.start(sent, None)
        for again in (None, attempt(3, 2)):
            with pytest.raises(AlreadyExists, match=r"exists with lr 0.001, not 0.002"):
                registry.start(replace(sent, lr=2e-3), again)
        registry.start(replace(sent, lr=1e-3 * (1 + 1e-12)), None)

    @pytest.mark.parametrize("off", [None, False, 0, []])
    def test_a_resume_may_add_or_drop_an_optimizer_setting_that_is_off(
        self, registry: RegistryBackend, off: object
    ):
        known = {"betas": [0.9, 0.999], "weight_decay": 0.1}
        for first, later in ((known, known | {"option": off}), (known | {"option": off}, known)):
            sent = spec(family(), optimizer_config=first)
            registry.start(sent, attempt(0, 1))
            registry.start(replace(sent, optimizer_config=later), attempt(2, 2))
            assert registry.recording(sent.id).attempt == 2
            with pytest.raises(AlreadyExists, match="exists with optimizer"):
                registry.start(replace(sent, optimizer_config=known | {"option": 1}), attempt(3, 3))

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [({"family": "a b"}, "'a b'"), ({"lr": -1.0}, "-1"), ({"family": "a/b/c"}, "'a/b/c'")],
    )
    def test_a_specification_that_is_wrong_is_refused_with_the_value(
        self, registry: RegistryBackend, wrong: dict[str, Any], says: str
    ):
        with pytest.raises(InvalidInput, match=says):
            registry.start(replace(spec(family()), **wrong), None)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda registry, unknown: registry.recording(unknown),
            trajectory,
            lambda registry, unknown: registry.auxiliary(unknown, None, None),
            lambda registry, unknown: registry.append(unknown, rows(1)),
            lambda registry, unknown: registry.finish(unknown, Ending()),
        ],
    )
    def test_an_unknown_recording_is_not_found(
        self, registry: RegistryBackend, ask: Callable[[RegistryBackend, str], object]
    ):
        record(registry, family())
        with pytest.raises(NotFound, match=r"^recording '.*' is not in.*$"):
            ask(registry, str(uuid.uuid4()))

    def test_an_unknown_family_is_not_found(self, registry: RegistryBackend):
        record(registry, f"{(unknown := family())}-other")
        with pytest.raises(NotFound, match=unknown):
            registry.targets(TargetQuery(family=unknown, lr=1e-2))
        with pytest.raises(NotFound, match=unknown):
            registry.best(BestQuery(family=unknown))

    def test_a_resume_hides_the_rows_from_its_step_on(self, registry: RegistryBackend):
        sent = spec(family())
        registry.start(sent, attempt(0, 1))
        registry.append(sent.id, rows(1, 101, 201, 301))
        registry.start(sent, attempt(150, 2))
        found = registry.recording(sent.id)
        assert (found.attempt, found.rows, found.last_step) == (2, 2, 101)
        registry.append(sent.id, [row(201, 5, 5, 5), row(251, 6, 6, 6)])
        found = trajectory(registry, sent.id)
        assert found.steps.tolist() == [1, 101, 201, 251]
        assert found.values[:, 0].tolist() == [1, 101, 5, 6]
        assert registry.finish(sent.id, Ending()).attempt == 2

    def test_a_resume_reopens_an_ended_recording(self, registry: RegistryBackend):
        sent = spec(family())
        registry.start(sent, attempt(0, 1))
        registry.append(sent.id, rows(1))
        registry.finish(sent.id, Ending(status="failed", final_loss=9.0))
        with pytest.raises(Refused, match="failed"):
            registry.append(sent.id, rows(2))
        registry.start(sent, attempt(2, 2))
        registry.append(sent.id, rows(2))
        found = registry.recording(sent.id)
        assert (found.status, found.final_loss, found.finished_at) == ("running", None, None)

    def test_rows_are_selected_by_step_pattern_and_number(self, registry: RegistryBackend):
        sent = spec(family())
        registry.start(sent, None)
        registry.append(sent.id, rows(*range(1, 1002, 10)))
        received: list[tuple[int, int]] = []
        query = TrajectoryQuery(
            recording_id=sent.id, first_step=500, last_step=521, pattern="layers.*"
        )
        some = registry.trajectory(query, lambda *counts: received.append(counts))
        assert (some.steps.tolist(), some.names) == ([501, 511, 521], list(NAMES[:2]))
        assert received[-1] == (3, 3)
        assert trajectory(registry, sent.id, max_points=3).steps.tolist() == [1, 501, 1001]

    def test_recordings_are_filtered(self, registry: RegistryBackend):
        name = family()
        registry.start(spec(name, lr=1e-4, seed=1, tags={"a": "1", "b": "2"}), None)
        registry.start(
            spec(name, lr=1e-3, seed=2, role="scaled", variant="matched", tags={"a": "1"}), None
        )
        registry.start(spec(name, lr=1e-2, seed=3, optimizer="SGD"), None)
        registry.start(spec(family(), seed=4), None)

        def seeds(**wanted: Any) -> list[int]:
            return [
                each.spec.seed
                for each in registry.recordings(RecordingFilter(family=name, **wanted))
            ]

        assert seeds() == [3, 2, 1]
        newest, *_ = registry.recordings(RecordingFilter(family=name))
        assert newest.spec.parameters.names == (), "a list comes without parameters"
        assert seeds(lr_min=1e-4, lr_max=1e-3) == [2, 1]
        assert seeds(lr_min=1e-3 * (1 + 1e-12)) == [3, 2]
        assert seeds(role="scaled") == [2]
        assert seeds(variant="plain", optimizer="Adam") == [1]
        assert seeds(tags={"a": "1", "b": "2"}) == [1]
        assert seeds(status="running") == [3, 2, 1]
        assert seeds(created_after=datetime(2999, 1, 1, tzinfo=UTC)) == []

    def test_families_know_their_recordings(self, registry: RegistryBackend):
        name = family()
        made = registry.register_family(name, "Rows of blocks", ("layers.*",))
        assert (made.name, made.description, made.blocks) == (name, "Rows of blocks", ("layers.*",))
        for lr, role in ((1e-2, "base"), (1e-3, "base"), (1e-3, "base"), (5e-3, "scaled")):
            registry.start(spec(name, lr=lr, role=role), None)
        (found,) = registry.families(name)
        assert (found.description, found.recordings) == ("Rows of blocks", 4)
        assert found.learning_rates == (1e-3, 1e-2)

    def test_a_family_comes_with_its_first_recording_and_can_be_described(
        self, registry: RegistryBackend
    ):
        name = family()
        record(registry, name)
        registry.register_family(name, "small", ["layers.*"])
        registry.register_family(f"{name}-b", "", [])
        first, second = registry.families(name)
        assert (first.name, first.description, first.blocks) == (name, "small", ("layers.*",))
        assert (second.name, second.recordings) == (f"{name}-b", 0)

    def test_questions_are_answered_by_the_core_s_rules(self, registry: RegistryBackend):
        name = family()
        for lr, loss in ((1e-3, 3.0), (2e-3, 1.0), (4e-3, 2.0)):
            sent = spec(name, lr=lr)
            registry.start(sent, None)
            registry.append(sent.id, [row(1, lr, 2 * lr, 3 * lr)])
            registry.finish(sent.id, Ending(final_loss=loss))
        asked = BestQuery(family=name)
        recordings = registry.recordings(RecordingFilter(family=name))
        # By their texts, for NaN (too few seeds for a spread) is not equal to itself.
        assert repr(registry.best(asked)) == repr(best_of(map(ExperimentRun.of, recordings), asked))
        found = registry.targets(TargetQuery(family=name, lr=2e-3, names=NAMES))
        np.testing.assert_allclose([found[each] for each in NAMES], [2e-3, 4e-3, 6e-3], rtol=1e-6)
        with pytest.raises(NotFound, match=r"lies outside the recorded range 0\.001 to 0\.004"):
            registry.targets(TargetQuery(family=name, lr=1.0, names=NAMES))

    def test_targets_are_read_at_a_rate_and_a_step(self, registry: RegistryBackend):
        name = family()
        record(registry, name, 1e-4)
        last = record(registry, name, 1e-2)
        found = registry.targets(TargetQuery(family=name, lr=1e-3))
        assert (found[NAMES[0]], found[NAMES[1]], found.final_step) == (1.0, 2.0, 150)
        later = registry.targets(TargetQuery(family=name, lr=1e-2, policy="exact", step=101))
        assert ([later[each] for each in NAMES], later.steps.tolist()) == ([101, 202, 303], [101])
        table = np.array([[101, 202, 303]], np.float32)
        assert later.digest == targets_digest(NAMES, np.array([101]), table)
        assert later.sources == (last,)

    def test_targets_of_two_optimisers_are_not_mixed(self, registry: RegistryBackend):
        name = family()
        record(registry, name, optimizer="Adam")
        record(registry, name, optimizer="SGD", optimizer_config={})
        query = TargetQuery(family=name, lr=1e-2)
        with pytest.raises(Ambiguous, match="optimizer"):
            registry.targets(query)
        assert registry.targets(replace(query, optimizer="SGD")).optimizer == "SGD"
