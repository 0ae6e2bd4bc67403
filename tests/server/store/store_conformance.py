"""What every `Store` promises beyond `registry_conformance`: pages, attempts, blocks of rows.

A test module makes a subclass of `StoreConformance`, whose name begins with `Test`, with a fixture
`store`: a `flerm_server.store.interface.Store`, directly or through a server.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from flerm_core.errors import AlreadyExists, InvalidInput, NotFound, Refused
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import (
    Ending,
    EstimatorSettings,
    ParameterList,
)
from flerm_server.store.interface import Appended, Started, Store
from tests.server.samples import PARAMETERS, attempt, batch, family, row, rows, spec


def append(store: Store, recording_id: str, *measurements, attempt: int = 0) -> Appended:
    (answer,) = store.append_many([batch(recording_id, *measurements, attempt=attempt)])
    if isinstance(answer, Exception):
        raise answer
    return answer


class StoreConformance:
    """What a store of recordings promises (see `Store`)."""

    def test_a_recording_comes_back_as_it_was_started(self, store: Store):
        sent = spec(
            family(),
            lr=3e-4,
            seed=-7,
            role="scaled",
            variant="matched",
            optimizer_config={"betas": [0.9, 0.999], "weight_decay": 0},
            config={"width": 4, "layers": {"kind": "linear"}, "note": "naïve"},
            estimator=EstimatorSettings(
                name="kronecker", samples=41, output_weight="readout.weight"
            ),
            tags={"cluster": "a", "purpose": "test"},
            world_size=2,
            versions={"torch": "2.13.0"},
            targets_digest="ab" * 32,
            targets_sources=(str(uuid.uuid4()),),
        )
        assert store.start(sent) == Started(sent.id, 1, True)
        found = store.recording(sent.id)
        assert found.spec == sent
        assert (found.status, found.attempt, found.rows, found.parameter_count) == (
            "running",
            1,
            0,
            3,
        )
        assert abs((found.created_at - datetime.now(UTC)).total_seconds()) < 5

    def test_measurements_come_back_bit_for_bit(self, store: Store):
        sent = spec(family())
        store.start(sent)
        values = np.array([[1e-38, 3.4e38, 0.1], [np.nan, 0.0, 7.0]], np.float32)
        measured = [
            row(1, *values[0], loss=2.5, learning_rate=1e-3, tokens=0),
            row(101, *values[1]),
        ]
        assert append(store, sent.id, *measured) == Appended(2, 0)
        selection = store.select(sent.id)
        (block,) = store.read(selection)
        np.testing.assert_array_equal(block.values, values)
        np.testing.assert_array_equal(selection.steps, [1, 101])
        np.testing.assert_array_equal(block.losses, [2.5, np.nan])
        np.testing.assert_array_equal(block.learning_rates, [1e-3, np.nan])
        np.testing.assert_array_equal(block.tokens, [0, -1])
        trajectory = store.trajectory(sent.id)
        assert trajectory.names == list(PARAMETERS.names)
        np.testing.assert_array_equal(trajectory.values, values)

    def test_the_same_sent_twice_is_one_row(self, store: Store):
        sent = spec(family())
        assert store.start(sent).created
        assert store.start(sent) == Started(sent.id, 1, False)
        assert append(store, sent.id, *rows(1, 101)) == Appended(2, 0)
        assert append(store, sent.id, *rows(1, 101)) == Appended(2, 2)
        assert append(store, sent.id, *rows(101, 201)) == Appended(2, 1)
        ending = Ending(status="completed", final_loss=0.5, final_step=300, tokens=9)
        assert store.finish(sent.id, 0, ending).status == "completed"
        finished = store.finish(sent.id, 0, ending)
        assert (
            finished.rows,
            finished.first_step,
            finished.last_step,
            finished.final_loss,
            finished.tokens,
        ) == (3, 1, 201, 0.5, 9)
        assert append(store, sent.id, *rows(101, 201)) == Appended(2, 2)

    @pytest.mark.parametrize("stored", [(), (1, 101)], ids=["no rows", "rows"])
    def test_a_database_without_a_step_that_was_acknowledged_says_what_it_has(
        self, store: Store, stored: tuple[int, ...]
    ):
        sent = spec(family())
        store.start(sent)
        if stored:
            append(store, sent.id, *rows(*stored))
        last = max(stored, default=None)
        says = "has no step, and" if last is None else f"has the steps up to {last}, and"
        says += " not step 201, which was acknowledged"
        behind = replace(batch(sent.id, *rows(301)), acknowledged_step=201)
        (refusal,) = store.append_many([behind])
        assert isinstance(refusal, NotFound) and says in str(refusal)
        with pytest.raises(NotFound, match=says):
            store.finish(sent.id, 0, Ending(), acknowledged_step=201)
        found = store.recording(sent.id)
        assert (found.rows, found.status) == (len(stored), "running")
        level = replace(batch(sent.id, *rows(301)), acknowledged_step=last)
        assert store.append_many([level]) == [Appended(1, 0)]
        assert store.finish(sent.id, 0, Ending(), acknowledged_step=301).status == "completed"

    def test_a_step_with_other_content_is_refused_by_its_number(self, store: Store):
        sent = spec(family())
        store.start(sent)
        append(store, sent.id, row(1, 1, 2, 3, loss=1.0))
        with pytest.raises(AlreadyExists, match=r"step 1 of recording .* other content \(fslr\)"):
            append(store, sent.id, row(1, 1, 2, 4, loss=1.0), row(2))
        with pytest.raises(AlreadyExists, match=r"other content \(loss\)"):
            append(store, sent.id, row(1, 1, 2, 3, loss=1.5))
        assert store.recording(sent.id).rows == 1

    def test_a_refused_batch_fails_alone_and_whole(self, store: Store):
        good, other = spec(family()), spec(family())
        store.start(good)
        store.start(other)
        answers = store.append_many(
            [
                batch(good.id, *rows(1, 2)),
                batch(other.id, row(1), row(2, np.inf, 1, 1)),
                batch(str(uuid.uuid4()), row(1)),
                batch(good.id, *rows(2, 3)),
                batch(good.id, row(3, 9, 9, 9)),
                batch(good.id, row(4), attempt=7),
            ]
        )
        assert answers[0] == Appended(2, 0)
        assert answers[3] == Appended(2, 1)
        assert [type(each) for each in answers if isinstance(each, Exception)] == [
            InvalidInput,
            NotFound,
            AlreadyExists,
            NotFound,
        ]
        assert "step 2, parameter 0: inf is not allowed" in str(answers[1])
        assert "no attempt 7; it has [1]" in str(answers[5])
        assert store.recording(good.id).rows == 3
        assert store.recording(other.id).rows == 0

    def test_an_id_means_one_recording(self, store: Store):
        sent = spec(family())
        store.start(sent)
        with pytest.raises(AlreadyExists, match=r"exists with lr 0.001, not 0.002"):
            store.start(spec(sent.family, id=sent.id, lr=2e-3))
        with pytest.raises(AlreadyExists, match="parameters"):
            store.start(
                spec(sent.family, id=sent.id, parameters=ParameterList(("w",), ((1,),), ("other",)))
            )
        assert not store.start(spec(sent.family, id=sent.id, lr=1e-3 * (1 + 1e-12))).created

    def test_a_resume_hides_what_came_before_it(self, store: Store):
        sent = spec(family())
        store.start(sent, attempt(0, 1))
        append(store, sent.id, *rows(1, 101, 201, 301))
        again = attempt(150, 2)
        assert store.start(sent, again) == Started(sent.id, 2, True)
        assert store.start(sent, again) == Started(sent.id, 2, False)
        found = store.recording(sent.id)
        assert (found.attempt, found.rows, found.last_step) == (2, 2, 101)
        append(store, sent.id, row(201, 5, 5, 5), row(251, 6, 6, 6))
        assert store.select(sent.id).steps.tolist() == [1, 101, 201, 251]
        values = np.concatenate([block.values for block in store.read(store.select(sent.id))])
        assert values[:, 0].tolist() == [1, 101, 5, 6]
        with pytest.raises(
            InvalidInput, match=r"step 101 .* attempt 2 owns steps from 150 on only"
        ):
            append(store, sent.id, *rows(101))

    def test_rows_go_to_the_recording_of_that_very_id(self, store: Store):
        """A database that cut a longer id off to the column's length would store them elsewhere."""
        sent = spec(family())
        store.start(sent)
        for wrong in (sent.id + "0", sent.id[:-1], sent.id.upper() + " ", ""):
            with pytest.raises(NotFound, match="is not in this registry"):
                append(store, wrong, *rows(1))
        assert store.recording(sent.id).rows == 0

    def test_the_latest_attempt_has_a_lease_until_it_ends(self, store: Store):
        sent = spec(family())
        for number in (0, 1):
            with pytest.raises(NotFound, match="is not in this registry"):
                store.renew(sent.id, number)
        store.start(sent, attempt(0, 1))
        lease = store.renew(sent.id)
        assert lease > 0
        store.start(sent, attempt(100, 2))
        assert [store.renew(sent.id, number) for number in (0, 1, 2)] == [lease, 0.0, lease]
        with pytest.raises(NotFound, match="has no attempt 3; its latest is 2"):
            store.renew(sent.id, 3)
        store.finish(sent.id, 0, Ending(final_loss=1.0))
        assert [store.renew(sent.id, number) for number in (0, 1, 2)] == [0.0] * 3

    def test_rows_of_an_older_attempt_that_arrive_late_stay_hidden(self, store: Store):
        """Attempts are ordered by when they began, not by when they arrive."""
        sent = spec(family())
        store.start(sent, attempt(300, 3))
        append(store, sent.id, row(301, 3, 3, 3))
        assert store.start(sent, attempt(0, 1)).attempt == 2
        append(store, sent.id, row(1, 1, 1, 1), row(301, 1, 1, 1), attempt=2)
        store.start(sent, attempt(200, 2))
        append(store, sent.id, row(201, 2, 2, 2), row(301, 2, 2, 2), attempt=3)
        assert store.recording(sent.id).attempt == 1
        values = np.concatenate([block.values for block in store.read(store.select(sent.id))])
        assert values[:, 0].tolist() == [1, 2, 3]
        found = store.recording(sent.id)
        assert (found.rows, found.first_step, found.last_step) == (3, 1, 301)
        assert store.finish(sent.id, 2, Ending(status="failed")).status == "running"
        assert store.finish(sent.id, 1, Ending(status="completed")).status == "completed"

    def test_a_resume_reopens_an_ended_recording(self, store: Store):
        sent = spec(family())
        store.start(sent, attempt(0, 1))
        append(store, sent.id, *rows(1))
        store.finish(sent.id, 0, Ending(status="failed", final_loss=9.0))
        with pytest.raises(Refused, match=r"attempt 1 ended as failed and takes no more rows"):
            append(store, sent.id, *rows(2))
        with pytest.raises(AlreadyExists, match=r"attempt 1 ended as failed, not as completed"):
            store.finish(sent.id, 0, Ending(status="completed"))
        store.start(sent, attempt(2, 2))
        found = store.recording(sent.id)
        assert (found.status, found.final_loss, found.finished_at) == ("running", None, None)

    def test_an_interrupted_attempt_still_takes_its_late_rows(self, store: Store):
        sent = spec(family())
        store.start(sent)
        store.finish(sent.id, 0, Ending(status="interrupted"))
        assert append(store, sent.id, *rows(1)) == Appended(1, 0)
        assert store.finish(sent.id, 0, Ending(status="completed")).status == "completed"

    def test_rows_are_chosen_by_step_and_thinned_evenly(self, store: Store):
        sent = spec(family())
        store.start(sent)
        append(store, sent.id, *rows(*range(1, 1002, 10)))
        assert store.select(sent.id, first_step=500, last_step=531).steps.tolist() == [
            501,
            511,
            521,
            531,
        ]
        thinned = store.select(sent.id, max_points=5)
        assert thinned.steps.tolist() == [1, 251, 501, 751, 1001]
        values = np.concatenate([block.values for block in store.read(thinned)])
        assert values[:, 0].tolist() == [1, 251, 501, 751, 1001]
        assert store.select(sent.id, first_step=5000).steps.tolist() == []
        with pytest.raises(NotFound, match="is not in this registry"):
            store.select(str(uuid.uuid4()))

    def test_a_long_trajectory_travels_in_bounded_messages(self, store: Store):
        names = tuple(f"layers.{at}.weight" for at in range(2000))
        sent = spec(family(), parameters=ParameterList(names, ((1,),) * 2000, ("other",) * 2000))
        store.start(sent)
        values = np.random.default_rng(0).random((300, 2000), np.float32)
        for start in range(0, 300, 100):
            append(
                store,
                sent.id,
                *(row(step + 1, *values[step]) for step in range(start, start + 100)),
            )
        blocks = list(store.read(store.select(sent.id)))
        assert len(blocks) == 3
        assert max(block.values.nbytes for block in blocks) <= 1 << 20
        np.testing.assert_array_equal(np.concatenate([block.values for block in blocks]), values)

    def test_recordings_are_listed_newest_first_each_once_while_others_arrive(self, store: Store):
        name = family()
        there = [spec(name, seed=seed) for seed in range(7)]
        for each in there:
            store.start(each)
        seen, token = [], ""
        while True:
            page = store.recordings(RecordingFilter(family=name), page_size=3, page_token=token)
            seen += [each.spec.seed for each in page.items]
            store.start(spec(name, seed=100 + len(seen)))
            token = page.next_token
            if not token:
                break
        assert seen == [6, 5, 4, 3, 2, 1, 0]
        assert page.items[0].spec.parameters == ParameterList((), (), ())
        assert page.items[0].parameter_count == 3

    def test_recordings_are_filtered(self, store: Store):
        name = family()
        store.start(spec(name, lr=1e-4, seed=1, tags={"a": "1", "b": "2"}))
        store.start(spec(name, lr=1e-3, seed=2, role="scaled", variant="matched", tags={"a": "1"}))
        store.start(spec(name, lr=1e-2, seed=3, optimizer="SGD"))

        def seeds(**wanted):
            return [
                each.spec.seed
                for each in store.recordings(RecordingFilter(family=name, **wanted)).items
            ]

        assert seeds() == [3, 2, 1]
        assert seeds(lr_min=1e-4, lr_max=1e-3) == [2, 1]
        assert seeds(lr_min=1e-3 * (1 + 1e-12)) == [3, 2]
        assert seeds(role="scaled") == [2]
        assert seeds(variant="plain", optimizer="Adam") == [1]
        assert seeds(tags={"a": "1"}) == [2, 1]
        assert seeds(tags={"a": "1", "b": "2"}) == [1]
        assert seeds(status="completed") == []
        assert seeds(created_after=datetime(2999, 1, 1, tzinfo=UTC)) == []
        with pytest.raises(InvalidInput, match="page_token 'rubbish'"):
            store.recordings(RecordingFilter(), page_token="rubbish")

    def test_families_know_their_recordings(self, store: Store):
        name = family()
        created = store.register_family(name, description="Rows of blocks", blocks=("layers.*",))
        assert (created.name, created.description, created.blocks, created.recordings) == (
            name,
            "Rows of blocks",
            ("layers.*",),
            0,
        )
        for lr, role in ((1e-2, "base"), (1e-3, "base"), (1e-3, "base"), (5e-3, "scaled")):
            store.start(spec(name, lr=lr, role=role))
        store.register_family(name)
        found = store.family(name)
        assert (found.description, found.recordings, found.learning_rates) == (
            "Rows of blocks",
            4,
            (1e-3, 1e-2),
        )

    def test_families_are_paged_by_name(self, store: Store):
        team = family().split("/")[0]
        for each in ("c", "a", "B"):
            store.register_family(f"{team}/{each}")
        page = store.families(prefix=f"{team}/", page_size=2)
        rest = store.families(prefix=f"{team}/", page_size=2, page_token=page.next_token)
        assert sorted(each.name for each in (*page.items, *rest.items)) == [
            f"{team}/{each}" for each in "Bac"
        ]
        assert (len(page.items), rest.next_token) == (2, "")
        assert store.families(prefix=f"{team.upper()}/").items == ()
