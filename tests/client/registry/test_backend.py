"""What every registry promises: a server over gRPC, a folder of spool files, a store by itself."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from spooled import NAMES, row_of, spec_of
from store_backend import StoreBackend

from flerm_client.registry.address import address_of, token_of
from flerm_client.registry.backend import RegistryBackend
from flerm_client.registry.connection import Connection
from flerm_client.registry.folder_backend import FolderBackend
from flerm_client.registry.grpc_backend import GrpcBackend
from flerm_core.errors import (
    AlreadyExists,
    Ambiguous,
    InvalidInput,
    NotFound,
    Unsupported,
)
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery
from flerm_core.records.recording import Attempt, Ending, Measurement
from flerm_server.store.sql import schema
from flerm_server.store.sql.store import open_store

BACKENDS = ("server", "folder", "store")


@pytest.fixture(scope="module")
def opened(registry, tmp_path_factory) -> Iterator[dict[str, RegistryBackend]]:
    """One backend of each kind."""
    folder = tmp_path_factory.mktemp("folder")
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('store')}/registry.db")
    schema.upgrade(store.engine)
    backends = {
        "server": GrpcBackend(Connection(address_of(registry.address), token_of())),
        "folder": FolderBackend(folder),
        "store": StoreBackend(store),
    }
    yield backends
    for each in backends.values():
        each.close()


@pytest.fixture(params=BACKENDS)
def backend(request, opened) -> RegistryBackend:
    return opened[request.param]


@pytest.fixture
def family() -> str:
    """A family that no other test has."""
    return f"backend/{uuid.uuid4().hex[:12]}"


def record(backend: RegistryBackend, family: str, lr: float = 1e-2, **fields) -> str:
    """A completed recording with rows at steps 1 and 101; its id."""
    loss = fields.pop("loss", 0.5)
    spec = spec_of(family, lr, **fields)
    backend.start(spec, None)
    backend.append(spec.id, [row_of(1), row_of(101)])
    backend.finish(spec.id, Ending(status="completed", final_loss=loss, final_step=150))
    return spec.id


def unknown_id() -> str:
    return str(uuid.uuid4())


def test_a_recording_comes_back_as_it_was_started(backend, family):
    spec = spec_of(family, seed=-7, config={"width": 4, "note": "naïve"}, tags={"team": "a"})
    backend.start(spec, None)
    found = backend.recording(spec.id)
    assert found.spec == spec
    assert (found.status, found.attempt, found.rows, found.parameter_count) == ("running", 1, 0, 3)


def test_starting_again_changes_nothing_and_another_recording_is_refused(backend, family):
    spec = spec_of(family)
    for _ in range(2):
        backend.start(spec, None)
    assert backend.recording(spec.id).attempt == 1
    for attempt in (None, Attempt(resume_at=3)):
        with pytest.raises(AlreadyExists, match="exists with seed 0, not 1"):
            backend.start(replace(spec, seed=1), attempt)


def test_measurements_come_back_bit_for_bit(backend, family):
    spec = spec_of(family)
    backend.start(spec, None)
    values = np.array([[1e-38, 3.4e38, 0.1], [np.nan, 0.0, 7.0]], np.float32)
    backend.append(
        spec.id,
        [
            Measurement(step=1, values=values[0], loss=2.5, learning_rate=1e-3, tokens=0),
            Measurement(step=101, values=values[1]),
        ],
    )
    found = backend.trajectory(spec.id)
    assert found.names == list(NAMES)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.losses, [2.5, np.nan])
    np.testing.assert_array_equal(found.learning_rates, [1e-3, np.nan])
    np.testing.assert_array_equal(found.tokens, [0, -1])


def test_a_row_is_stored_once_and_other_content_is_refused(backend, family):
    spec = spec_of(family)
    backend.start(spec, None)
    row = row_of(1)
    backend.append(spec.id, [row])
    backend.append(spec.id, [row, row_of(2)])
    assert backend.recording(spec.id).rows == 2
    with pytest.raises(AlreadyExists, match="step 1"):
        backend.append(spec.id, [row_of(1, scale=3.0), row_of(3)])
    assert backend.trajectory(spec.id).steps.tolist() == [1, 2]


@pytest.mark.parametrize("wrong", [np.inf, -1.0])
def test_values_that_are_no_fslr_are_refused(backend, family, wrong):
    spec = spec_of(family)
    backend.start(spec, None)
    with pytest.raises(InvalidInput, match="step 2"):
        row = Measurement(step=2, values=np.array([1.0, wrong, 1.0], np.float32))
        backend.append(spec.id, [row_of(1), row])
    assert backend.recording(spec.id).rows == 0


def test_a_later_attempt_owns_the_steps_from_where_it_resumed(backend, family):
    spec = spec_of(family)
    backend.start(spec, None)
    backend.append(spec.id, [row_of(step) for step in (1, 2, 3)])
    backend.start(spec, Attempt(resume_at=3))
    backend.append(spec.id, [row_of(3, scale=5.0)])
    backend.finish(spec.id, Ending())
    found = backend.trajectory(spec.id)
    assert found.steps.tolist() == [1, 2, 3]
    assert found.values[:, 0].tolist() == [1.0, 2.0, 15.0]
    assert backend.recording(spec.id).attempt == 2


def test_the_end_is_kept_and_ending_again_changes_nothing(backend, family):
    spec = spec_of(family)
    backend.start(spec, None)
    backend.append(spec.id, [row_of(1), row_of(101)])
    ending = Ending(status="diverged", final_loss=0.25, final_step=150, tokens=999)
    for _ in range(2):
        found = backend.finish(spec.id, ending)
        assert (found.status, found.final_loss, found.final_step, found.tokens) == (
            "diverged",
            0.25,
            150,
            999,
        )
    assert (found.rows, found.first_step, found.last_step) == (2, 1, 101)
    assert found.finished_at is not None


def test_recordings_are_listed_newest_first_without_parameters(backend, family):
    ids = [record(backend, family, lr, tags={"n": str(lr)}) for lr in (1e-3, 1e-2, 1e-1)]

    def listed(**filters) -> list[str]:
        return [each.spec.id for each in backend.recordings(RecordingFilter(**filters))]

    assert listed(family=family) == ids[::-1]
    assert listed(family=family, lr_min=1e-2) == ids[:0:-1]
    assert listed(family=family, lr_max=1e-2) == ids[1::-1]
    assert listed(family=family, tags={"n": "0.01"}) == [ids[1]]
    assert listed(family=family, optimizer="Adam", role="base", variant="plain") == ids[::-1]
    assert listed(family=family, status="failed") == listed(family=f"{family}-none") == []
    assert next(backend.recordings(RecordingFilter(family=family))).spec.parameters.names == ()


def test_a_family_comes_with_its_first_recording_and_can_be_described(backend, family):
    record(backend, family, 1e-3)
    record(backend, family, 1e-1, role="scaled")
    backend.register_family(family, "small", ["layers.*"])
    backend.register_family(f"{family}-b", "", [])
    first, second = backend.families(family)
    assert (first.name, first.description, first.blocks) == (family, "small", ("layers.*",))
    assert (first.recordings, first.learning_rates) == (2, (1e-3,))
    assert (second.name, second.recordings) == (f"{family}-b", 0)


def test_a_trajectory_by_steps_pattern_and_number_of_points(backend, family):
    recording_id = record(backend, family)
    received: list[tuple[int, int]] = []
    part = backend.trajectory(
        recording_id,
        first_step=2,
        last_step=101,
        pattern="*.weight",
        progress=lambda *counts: received.append(counts),
    )
    assert (part.names, part.steps.tolist()) == (["0.weight", "2.weight"], [101])
    assert received[-1] == (1, 1)
    assert len(backend.trajectory(recording_id, max_points=1)) == 1


def test_auxiliary_values_come_back(backend, family):
    spec = spec_of(family)
    backend.start(spec, None)
    multipliers = np.array([1.0, 0.5, 2.0], np.float32)
    rows = [
        row_of(1),
        replace(row_of(2), scalars={"sharpness": 7.5}, vectors={"multiplier": multipliers}),
    ]
    backend.append(spec.id, rows)
    found = backend.auxiliary(spec.id, None, None)
    assert found.steps.tolist() == [1, 2]
    np.testing.assert_array_equal(found.scalars["sharpness"], [np.nan, 7.5])
    np.testing.assert_array_equal(
        found.vectors["multiplier"], np.stack([np.full(3, np.nan), multipliers])
    )
    assert backend.auxiliary(spec.id, None, 1).steps.tolist() == [1]


def test_targets_are_interpolated_between_the_recorded_rates(backend, family):
    record(backend, family, 1e-4)
    record(backend, family, 1e-2)
    found = backend.targets(TargetQuery(family=family, lr=1e-3))
    assert (found["0.weight"], found["0.bias"], found.final_step) == (1.0, 2.0, 150)
    later = backend.targets(TargetQuery(family=family, lr=1e-2, policy="exact", step=101))
    assert (later["0.weight"], later["0.bias"], later.steps.tolist()) == (101.0, 202.0, [101])
    with pytest.raises(NotFound, match=r"0\.5"):
        backend.targets(TargetQuery(family=family, lr=0.5))


def test_two_optimisers_are_not_mixed(backend, family):
    record(backend, family, optimizer="Adam")
    record(backend, family, optimizer="SGD", optimizer_config={})
    with pytest.raises(Ambiguous, match="optimizer"):
        backend.targets(TargetQuery(family=family, lr=1e-2))
    assert backend.targets(TargetQuery(family=family, lr=1e-2, optimizer="SGD")).optimizer == "SGD"


def test_the_best_rate(backend, family):
    for lr, loss in ((1e-3, 0.9), (2e-3, 0.5), (4e-3, 0.9)):
        record(backend, family, lr, loss=loss)
    found = backend.best(BestQuery(family=family))
    assert (found.lr, found.loss) == (2e-3, 0.5)
    assert found.optimum == pytest.approx(2e-3)
    assert [point.lr for point in found.points] == [1e-3, 2e-3, 4e-3]


def test_all_backends_give_the_same_targets(opened, family):
    spec = spec_of(family)
    rows = [row_of(1), row_of(101)]
    answers = []
    for backend in opened.values():
        backend.start(spec, None)
        backend.append(spec.id, rows)
        backend.finish(spec.id, Ending(final_loss=0.5))
        answers.append(backend.targets(TargetQuery(family=family, lr=1e-2)))
    assert len({answer.digest for answer in answers}) == 1
    assert {answer.sources for answer in answers} == {(spec.id,)}


@pytest.mark.parametrize(
    "ask",
    [
        lambda backend, family: backend.recording(unknown_id()),
        lambda backend, family: backend.trajectory(unknown_id()),
        lambda backend, family: backend.auxiliary(unknown_id(), None, None),
        lambda backend, family: backend.append(unknown_id(), [row_of(1)]),
        lambda backend, family: backend.finish(unknown_id(), Ending()),
        lambda backend, family: backend.targets(TargetQuery(family=family, lr=1e-2)),
        lambda backend, family: backend.best(BestQuery(family=family)),
    ],
)
def test_what_is_not_there_is_not_found_and_named_in_one_sentence(backend, family, ask):
    record(backend, f"{family}-other")
    with pytest.raises(NotFound) as caught:
        ask(backend, family)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"family": "a b"}, "'a b'"), ({"lr": -1.0}, "-1"), ({"family": "a/b/c"}, "'a/b/c'")],
)
def test_a_specification_that_is_wrong_is_refused_with_the_value(backend, family, wrong, says):
    with pytest.raises(InvalidInput, match=says):
        backend.start(replace(spec_of(family), **wrong), None)


def test_a_server_changes_what_it_has(opened, family):
    for kind in ("server", "store"):
        backend = opened[kind]
        recording_id = record(backend, family, tags={"draft": "1"})
        tagged = backend.tag(recording_id, {"purpose": "baseline"}, ["draft"])
        assert tagged.spec.tags == {"purpose": "baseline"}
        assert backend.rename_family(family, f"{family}-b").name == f"{family}-b"
        assert backend.delete(recording_id) == 2
        assert backend.delete(recording_id) == 0


def test_a_folder_says_in_one_sentence_what_it_cannot_do(opened):
    folder = opened["folder"]
    for action, call in {
        "rename a family": lambda: folder.rename_family("a", "b"),
        "change tags": lambda: folder.tag("id", {}, []),
        "delete a recording": lambda: folder.delete("id"),
        "report versions and limits": folder.info,
    }.items():
        with pytest.raises(Unsupported, match=f"registry: cannot {action}: .* is a folder, whose"):
            call()


def test_a_server_reports_its_limits(opened):
    info = opened["server"].info()
    assert "v1" in info.api_versions and info.max_rows_per_append >= 500
