"""A folder registry in which others have files too, and after a crash of the host."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from spooled import NAMES, SHAPES, row_of, spec_of, write_run

from flerm_client import RegistryClient
from flerm_client.spool.frames import HEADER, FrameType, encode
from flerm_client.spool.writer import start_request
from flerm_core.records.recording import Attempt, Ending
from flerm_proto.recording_messages import ending_to_proto, measurement_to_proto
from flerm_proto.v1 import registry_pb2 as pb

NOBODY = 65534  # the user that owns nothing


def write_other(folder: Path, change: Callable[[pb.StartRecordingRequest, Any, Any], None]) -> str:
    """Writes a spool file that no run of this version writes; the id of its recording.

    change: gets the messages of the start, of steps 1 and 2, and of the end.
    """
    spec, attempt = spec_of("mlp", 2e-2), Attempt()
    start = start_request(spec, attempt)
    measurements = [measurement_to_proto(row_of(step)) for step in (1, 2)]
    end = ending_to_proto(Ending(final_loss=0.5), recording_id=spec.id)
    change(start, measurements, end)
    frames = [(FrameType.START, start), *((FrameType.MEASUREMENT, each) for each in measurements)]
    written = [
        encode(kind, each.SerializeToString()) for kind, each in [*frames, (FrameType.FINISH, end)]
    ]
    (folder / f"{spec.id}.{attempt.id}.spool").write_bytes(HEADER + b"".join(written))
    return spec.id


def later(start, measurements, end) -> None:
    start.attempt.started_at.seconds = 10**15


def nanoseconds(start, measurements, end) -> None:
    start.attempt.started_at.nanos = -5


def no_rate(start, measurements, end) -> None:
    start.spec.lr = float("nan")


def no_name(start, measurements, end) -> None:
    start.spec.family = "../mlp"


def no_status(start, measurements, end) -> None:
    end.status = "won"


@pytest.mark.parametrize("change", [later, nanoseconds, no_rate, no_name, no_status])
def test_a_recording_that_no_registry_takes_is_left_out(tmp_path, caplog, change):
    kept = spec_of("mlp", 1e-2)
    write_run(tmp_path, kept, [1, 2])
    left_out = write_other(tmp_path, change)
    with RegistryClient(tmp_path.as_uri()) as registry:
        assert [each.name for each in registry.families()] == ["mlp"]
        assert [each.spec.id for each in registry.recordings("mlp")] == [kept.id]
        assert registry.targets("mlp", 1e-2)["0.weight"] == 1.0
    assert (
        f"{left_out}." in caplog.text and "holds no recording that a registry takes" in caplog.text
    )


@pytest.mark.parametrize("wrong", [[np.inf, 1, 1], [-1, 1, 1], [1, 1]], ids=str)
def test_a_measurement_that_no_registry_takes_is_left_out(tmp_path, caplog, wrong):
    def change(start, measurements, end) -> None:
        measurements[0].fslr = np.array(wrong, np.float32).tobytes()

    recording = write_other(tmp_path, change)
    with RegistryClient(tmp_path.as_uri()) as registry:
        assert [each.rows for each in registry.recordings("mlp")] == [1]
        np.testing.assert_array_equal(registry.trajectory(recording).values, [[2, 4, np.nan]])
    assert "step 1 is left out: values at step 1" in caplog.text


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user may write to, outside of the private folders of pytest."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")
def test_files_of_another_user_that_cannot_be_read_are_left_out(shared_folder, caplog):
    ours = write_run(shared_folder, spec_of("ours"), [1])
    with RegistryClient(shared_folder.as_uri()) as registry:
        registry.register_family("mlp")
        assert [each.name for each in registry.families()] == ["mlp", "ours"]
        os.seteuid(NOBODY)
        try:
            recording = registry.start_recording("theirs", 1e-2, NAMES, SHAPES)
            assert [each.name for each in registry.families()] == ["theirs"]
            assert [each.spec.id for each in registry.recordings()] == [recording]
        finally:
            os.seteuid(0)
        assert f"{ours} is left out: Permission denied" in caplog.text
        assert [each.name for each in registry.families()] == ["mlp", "ours", "theirs"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"description": 3}', "[" * 100_000])
def test_a_family_s_file_with_other_content_is_left_out(tmp_path, caplog, content):
    with RegistryClient(tmp_path.as_uri()) as registry:
        registry.register_family("mlp", description="digits")
        (file,) = (tmp_path / "families").iterdir()
        good = json.loads(file.read_text())
        write_run(tmp_path, spec_of("mlp"), [1])
        file.write_text(content)
        (tmp_path / "families" / "notes.json").write_text(content)
        assert [(each.name, each.description) for each in registry.families()] == [("mlp", "")]
        assert f"{file} is left out: " in caplog.text
        registry.register_family("mlp", description=good["description"])
        assert [each.description for each in registry.families()] == ["digits"]
