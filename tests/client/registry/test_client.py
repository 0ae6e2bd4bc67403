"""`RegistryClient` against a real server and against a folder: the same calls, the same answers."""

from __future__ import annotations

import math
import os
import uuid

import numpy as np
import pytest
from spooled import BANDS, NAMES, SHAPES

from flerm_client import RegistryClient
from flerm_core.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    Unreachable,
)

ID = "00000000-0000-0000-0000-000000000007"


@pytest.fixture(params=["server", "folder"])
def address(request, tmp_path):
    """A registry that is a server, and one that is a folder."""
    if request.param == "server":
        return request.getfixturevalue("registry").address
    (tmp_path / "runs").mkdir()
    return (tmp_path / "runs").as_uri()


@pytest.fixture
def family():
    """A family that no other test has."""
    return f"client/{uuid.uuid4().hex[:12]}"


def record(
    client: RegistryClient,
    family: str,
    lr: float,
    *,
    scale: float = 1.0,
    loss: float = 0.5,
    **fields,
) -> str:
    """A completed recording with rows at steps 1 and 101."""
    given = {"bands": BANDS, "optimizer": "Adam", **fields}
    recording_id = client.start_recording(family, lr, NAMES, SHAPES, **given)
    client.append(
        recording_id,
        [1, 101],
        np.array([[1, 2, np.nan], [4, 8, 16]]) * scale,
        losses=[2.0, np.nan],
        tokens=[64, 128],
    )
    client.finish(recording_id, final_loss=loss, final_step=150, tokens=128)
    return recording_id


def test_what_was_recorded_is_read_back(address, family):
    with RegistryClient(address) as client:
        recording_id = record(client, family, 1e-2, seed=3, config={"width": 4}, tags={"team": "a"})
        found = client.recording(recording_id)
        assert (found.spec.family, found.spec.lr, found.spec.seed, found.status) == (
            family,
            1e-2,
            3,
            "completed",
        )
        assert (found.spec.config, found.spec.tags) == ({"width": 4}, {"team": "a"})
        assert (found.rows, found.first_step, found.last_step, found.final_loss, found.tokens) == (
            2,
            1,
            101,
            0.5,
            128,
        )
        assert found.final_step == client.targets(family, 1e-2).final_step == 150
        trajectory = client.trajectory(recording_id)
    assert (trajectory.names, trajectory.shapes, trajectory.bands) == (
        list(NAMES),
        list(SHAPES),
        list(BANDS),
    )
    np.testing.assert_array_equal(
        trajectory.values, np.array([[1, 2, np.nan], [4, 8, 16]], np.float32)
    )
    np.testing.assert_array_equal(trajectory.losses, [2.0, np.nan])
    assert trajectory.tokens.tolist() == [64, 128]


def test_further_scalars_and_vectors_are_read_back(address, family):
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    with RegistryClient(address) as client:
        recording_id = client.start_recording(family, 1e-2, NAMES, SHAPES)
        client.append(recording_id, [1], values[:1])
        scalars, vectors = (
            {"sharpness": [7.5, np.nan], "norm": [1.0, 2.0]},
            {"multipliers": 2 * values},
        )
        client.append(recording_id, [101, 201], values, scalars=scalars, vectors=vectors)
        client.finish(recording_id)
        found = client.auxiliary(recording_id)
        assert found.steps.tolist() == [1, 101, 201]
        np.testing.assert_array_equal(found.scalars["sharpness"], [np.nan, 7.5, np.nan])
        np.testing.assert_array_equal(found.scalars["norm"], [np.nan, 1.0, 2.0])
        np.testing.assert_array_equal(
            found.vectors["multipliers"], np.concatenate([np.full((1, 3), np.nan), 2 * values])
        )
        assert client.auxiliary(recording_id, last_step=101).steps.tolist() == [1, 101]
        with pytest.raises(
            InvalidInput, match=r"vectors 'm': an array of shape \[3\]; allowed is \[2, 3\]"
        ):
            client.append(recording_id, [1, 2], values, vectors={"m": [1, 2, 3]})


def test_a_trajectory_by_steps_pattern_and_points(address, family):
    with RegistryClient(address) as client:
        recording_id = record(client, family, 1e-2)
        part = client.trajectory(recording_id, first_step=2, pattern="*.weight")
        assert (part.names, part.steps.tolist()) == (["0.weight", "2.weight"], [101])
        assert len(client.trajectory(recording_id, max_points=1)) == 1


def test_a_listing_goes_over_pages(registry, family, monkeypatch):
    monkeypatch.setattr("flerm_client.registry.calls.PAGE_SIZE", 2)
    with RegistryClient(registry.address) as client:
        ids = [record(client, family, lr) for lr in (1, 2, 3, 4, 5)]
        assert [each.spec.id for each in client.recordings(family)] == ids[::-1]


def test_recordings_that_say_much_of_their_model_are_listed_all(registry, family):
    with RegistryClient(registry.address) as client:
        ids = [record(client, family, lr, config={"model": "x" * 50_000}) for lr in range(1, 100)]
        assert [each.spec.id for each in client.recordings(family)] == ids[::-1]


def test_questions_take_their_arguments(address, family):
    with RegistryClient(address) as client:
        ids = [record(client, family, lr, tags={"n": str(lr)}) for lr in (1e-3, 2e-3, 4e-3)]
        record(client, family, 2e-3, scale=4.0, optimizer="SGD", role="scaled", loss=0.1)
        found = client.recordings(family, lr_min=2e-3, optimizer="Adam", status="completed")
        assert [each.spec.id for each in found] == ids[:0:-1]
        assert [each.spec.id for each in client.recordings(tags={"n": "0.002"}, family=family)] == [
            ids[1]
        ]
        targets = client.targets(
            family, 1e-3, names=NAMES, step=101, policy="exact", optimizer="Adam"
        )
        assert dict(targets) == {"0.weight": 4.0, "0.bias": 8.0, "2.weight": 16.0}
        assert client.best(family).points[0].loss == 0.5
        assert client.best(family, role="scaled", optimizer="SGD").lr == 2e-3


def test_a_family_is_described(address, family):
    with RegistryClient(address) as client:
        client.register_family(family, description="small", blocks="layers.*")
        (found,) = client.families(family)
        assert (found.description, found.blocks) == ("small", ("layers.*",))


def test_starting_and_appending_again_changes_nothing(address, family):
    chosen = str(uuid.uuid4())
    with RegistryClient(address) as client:
        for _ in range(2):
            assert (
                client.start_recording(family, 1e-2, NAMES, SHAPES, recording_id=chosen) == chosen
            )
            client.append(chosen, [1], [[1.0, 2.0, 3.0]])
        with pytest.raises(AlreadyExists, match="step 1"):
            client.append(chosen, [1], [[1.0, 2.0, 4.0]])
        client.finish(chosen)
        client.finish(chosen)
        assert client.recording(chosen).rows == 1


def test_a_resume_owns_the_steps_from_there_on(address, family):
    with RegistryClient(address) as client:
        chosen = client.start_recording(family, 1e-2, NAMES, SHAPES)
        client.append(chosen, [1, 2, 3], np.ones((3, 3)))
        client.start_recording(family, 1e-2, NAMES, SHAPES, recording_id=chosen, resume_at=3)
        client.append(chosen, [3], np.full((1, 3), 9.0))
        client.finish(chosen)
        trajectory = client.trajectory(chosen)
    assert trajectory.steps.tolist() == [1, 2, 3]
    assert trajectory.values[:, 0].tolist() == [1.0, 1.0, 9.0]


def test_more_rows_than_a_message_holds(address, family):
    steps = list(range(1, 1201))
    with RegistryClient(address) as client:
        chosen = client.start_recording(family, 1e-2, NAMES, SHAPES)
        for begin in range(0, 1200, 1000):
            part = steps[begin : begin + 1000]
            client.append(chosen, part, np.array(part)[:, None] * np.ones(3))
        assert client.trajectory(chosen).values[:, 2].tolist() == steps


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda client, family: client.targets(family, 1e-2), NotFound, "family"),
        (
            lambda client, family: client.recording(ID),
            NotFound,
            ID,
        ),
        (
            lambda client, family: client.start_recording("a b", 1e-2, NAMES, SHAPES),
            InvalidInput,
            "'a b'",
        ),
        (lambda client, family: client.register_family("a/b/c"), InvalidInput, "'a/b/c'"),
        (
            lambda client, family: client.start_recording(family, -1.0, NAMES, SHAPES),
            InvalidInput,
            "-1",
        ),
        (
            lambda client, family: client.start_recording(family, 1.0, NAMES, SHAPES[:2]),
            InvalidInput,
            "2 given for 3 names",
        ),
        (
            lambda client, family: client.start_recording(family, 1.0, NAMES, SHAPES, resume_at=3),
            InvalidInput,
            "recording_id",
        ),
        (lambda client, family: client.append("x", [1, 2], [[1.0]]), InvalidInput, r"\[1, 1\]"),
        *(
            (ask, InvalidInput, says)
            for ask, says in (
                (lambda client, family: list(client.recordings("a b")), "family: 'a b'"),
                (lambda client, family: list(client.recordings(status="won")), "status: 'won'"),
                (lambda client, family: list(client.recordings(role="x")), "role: 'x'"),
                (lambda client, family: list(client.recordings(lr_min=math.nan)), "lr_min: nan"),
                (lambda client, family: client.best("a b"), "family: 'a b'"),
                (lambda client, family: client.best(family, role="x"), "role: 'x'"),
                (lambda client, family: client.targets(family, math.nan), "lr: nan"),
                (lambda client, family: client.targets(family, 1e-2, policy="x"), "policy: 'x'"),
                (lambda client, family: client.targets(family, 1e-2, step=-1), "step: -1"),
                (lambda client, family: client.targets(family, 1e-2, step=10**20), f"{10**20}"),
                (lambda client, family: client.trajectory(ID, first_step=-1), "first_step: -1"),
                (lambda client, family: client.trajectory(ID, last_step=10**20), f"{10**20}"),
                (lambda client, family: client.trajectory(ID, max_points=-1), "max_points: -1"),
                (lambda client, family: client.auxiliary(ID, first_step=10**20), f"{10**20}"),
            )
        ),
    ],
)
def test_errors_are_ours_with_one_sentence(address, family, act, error, says):
    with RegistryClient(address) as client, pytest.raises(error, match=says) as caught:
        act(client, family)
    assert "\n" not in str(caught.value)


def test_a_registry_that_is_down_is_told_in_time():
    with (
        RegistryClient("grpc://127.0.0.1:1", patience=0.5) as client,
        pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 "),
    ):
        client.info()


def test_a_client_works_on_after_a_fork(registry, family):
    with RegistryClient(registry.address) as client:
        record(client, family, 1e-2)
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if len(list(client.recordings(family))) == 1 else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert len(list(client.recordings(family))) == 1
