"""The uploader's loop, with a parent and a registry that a test plays.

What happens when real processes are killed is in tests/faults/test_uploader.py.
"""

from __future__ import annotations

import json

import pytest
from played_calls import PlayedCalls
from spooled import row_of, spec_of, write_run

from flerm_client.spool import SpoolWriter
from flerm_client.upload.worker import Uploader
from flerm_core.errors import InvalidInput, Unreachable
from flerm_core.records.recording import Attempt


class PlayedPoller:
    """A parent that has ended after `waits` waits."""

    def __init__(self, waits: int) -> None:
        self.waits = waits
        self.stop_requested = False

    def parent_gone(self) -> bool:
        return self.waits <= 0

    def wait(self, seconds: float) -> bool:
        self.waits -= 1
        return False

    def pause(self, seconds: float) -> None:
        self.waits -= 1


def running(folder) -> tuple[SpoolWriter, object]:
    """The writer and the file of a run that goes on."""
    writer = SpoolWriter(folder, PlayedCalls.address.text)
    path = writer.start(spec_of("mlp"), Attempt())
    writer.append(row_of(1))
    return writer, path


def test_the_outcome_of_the_parents_file_is_reported_in_one_line(tmp_path, capfd):
    def refuse(method, request):
        if method == "Append" and any(row.step == 2 for row in request.measurements):
            raise InvalidInput("a value is wrong")

    path = write_run(tmp_path, spec_of("mlp"), [1, 2, 3])
    Uploader(path, PlayedCalls(refuse), PlayedPoller(waits=9)).run()
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line) == {
        "refused": True,
        "acknowledged": 2,
        "problem": "step 2: a value is wrong",
    }


def test_a_run_whose_process_has_ended_without_an_end_is_interrupted(tmp_path):
    writer, path = running(tmp_path)
    calls = PlayedCalls()
    Uploader(path, calls, PlayedPoller(waits=2)).run()
    writer.close()
    assert calls.steps == [[1]] and calls.methods[-1] == "FinishRecording"
    assert not path.exists()


def test_while_the_run_goes_on_its_lease_is_renewed(tmp_path):
    writer, path = running(tmp_path)
    calls = PlayedCalls()
    Uploader(path, calls, PlayedPoller(waits=2)).run()
    writer.close()
    assert "RenewLease" in calls.methods


def test_files_that_ended_processes_left_for_the_same_registry_are_delivered_too(tmp_path):
    address = PlayedCalls.address.text
    left = write_run(tmp_path, spec_of("mlp"), [1], registry=address)
    elsewhere = write_run(tmp_path, spec_of("mlp"), [1], registry="grpc://elsewhere:1")
    own = write_run(tmp_path, spec_of("mlp"), [1, 2], registry=address)
    calls = PlayedCalls()
    Uploader(own, calls, PlayedPoller(waits=9)).run()
    assert sorted(map(len, calls.steps)) == [1, 2]
    assert not left.exists() and not own.exists() and elsewhere.exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_registry_that_cannot_be_reached_leaves_the_file_when_time_is_over(tmp_path, stopped):
    def refuse(method, request):
        raise Unreachable("no network")

    path = write_run(tmp_path, spec_of("mlp"), [1])
    poller = PlayedPoller(waits=0)
    poller.stop_requested = stopped
    Uploader(path, PlayedCalls(refuse), poller, grace=0.0).run()
    assert path.exists()
    assert json.loads((path.with_suffix(".progress")).read_text())["problem"] == "no network"
