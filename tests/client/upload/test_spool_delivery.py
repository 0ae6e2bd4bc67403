"""The delivery of one spool file, with a registry that a test plays."""

from __future__ import annotations

import errno
import math
import os
import time
from itertools import chain
from pathlib import Path

import pytest
from played_calls import PlayedCalls
from spooled import row_of, spec_of, write_run

from flerm_client.spool import SpoolWriter, quarantined
from flerm_client.spool.reader import read_origin
from flerm_client.upload.spool_delivery import (
    SpoolDelivery,
    can_take_over,
    is_abandoned_empty,
    is_permanent,
)
from flerm_core.errors import (
    AlreadyExists,
    DataLoss,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Unauthenticated,
    Unreachable,
)
from flerm_core.records.recording import Attempt, Ending
from flerm_proto.v1 import registry_pb2 as pb
from flerm_server.settings import MAX_SECONDS


def deliver(delivery: SpoolDelivery) -> None:
    while delivery.advance():
        pass


def test_a_file_is_sent_in_order_and_removed_after_its_end_is_acknowledged(tmp_path):
    path = write_run(tmp_path, spec_of("mlp"), range(1, 1202))
    calls = PlayedCalls()
    delivery = SpoolDelivery(path, calls)
    deliver(delivery)
    assert [len(steps) for steps in calls.steps] == [500, 500, 201]
    assert list(chain.from_iterable(calls.steps)) == list(range(1, 1202))
    assert calls.methods[0] == "StartRecording" and calls.methods[-1] == "FinishRecording"
    assert delivery.done and delivery.progress.acknowledged == 1201
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["StartRecording", "Append", "FinishRecording"])
def test_a_registry_that_cannot_be_reached_gets_the_call_again(tmp_path, failing):
    path = write_run(tmp_path, spec_of("mlp"), [1, 2])
    failures = iter([Unreachable("no network")])
    ends: list[str] = []

    def refuse(method, request):
        if method == failing and (error := next(failures, None)):
            raise error
        if method == "FinishRecording":
            ends.append(request.status)

    calls = PlayedCalls(refuse)
    delivery = SpoolDelivery(path, calls)
    with pytest.raises(Unreachable):
        delivery.advance()
    assert delivery.progress.problem == "no network" and path.exists()
    deliver(delivery)
    assert calls.steps == [[1, 2]] and ends == ["completed"] and not path.exists()
    assert calls.methods.count(failing) == 2


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("StartRecording", pb.StartRecordingResponse()),
        ("StartRecording", pb.StartRecordingResponse(recording_id="another", attempt=1)),
        ("Append", pb.AppendResponse(committed=1)),
        ("FinishRecording", pb.Recording()),
    ],
)
def test_an_answer_that_acknowledges_something_else_leaves_the_file(tmp_path, method, answer):
    """A proxy, or a server of something else, may answer every call with an empty message."""
    path = write_run(tmp_path, spec_of("mlp"), [1, 2])
    calls = PlayedCalls()
    contract = calls.answer
    calls.answer = lambda asked, request: answer if asked == method else contract(asked, request)
    delivery = SpoolDelivery(path, calls)
    with pytest.raises(Unreachable, match=f"^grpc://played:1 answered {method} with .* is at this"):
        deliver(delivery)
    assert path.exists() and not delivery.done
    calls.answer = contract
    deliver(delivery)
    assert delivery.done and not path.exists()


def test_a_file_that_cannot_be_read_for_a_while_is_delivered_whole_later(tmp_path, monkeypatch):
    """As on a network file system whose server restarts."""
    path = write_run(tmp_path, spec_of("mlp"), range(1, 1202))
    calls, answering = PlayedCalls(), Path.open
    delivery = SpoolDelivery(path, calls)
    assert delivery.advance()

    def stale(file: Path, *arguments, **more):
        if file == path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return answering(file, *arguments, **more)

    with monkeypatch.context() as failing:
        failing.setattr(Path, "open", stale)
        with pytest.raises(Unreachable, match=r"cannot be read or moved \(Stale file handle\)"):
            delivery.advance()
        free, why = can_take_over(path)
        assert (free, "cannot be read (Stale file handle)" in why) == (False, True)
        assert not is_abandoned_empty(path) and read_origin(path) is None
    deliver(delivery)
    assert list(chain.from_iterable(calls.steps)) == list(range(1, 1202)) and not path.exists()


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 1e300])
def test_a_lease_is_one_that_a_server_can_give(tmp_path, seconds):
    calls = PlayedCalls()
    delivery = SpoolDelivery(write_run(tmp_path, spec_of("mlp"), [1]), calls)
    calls.answer = lambda method, request: pb.RenewLeaseResponse(seconds=seconds)
    with pytest.raises(Unreachable, match="a lease of"):
        delivery.renew_lease()
    calls.answer = lambda method, request: pb.RenewLeaseResponse(seconds=MAX_SECONDS)
    assert delivery.renew_lease() == MAX_SECONDS


def test_a_row_that_is_refused_for_good_is_found_by_halving_and_the_rest_is_delivered(tmp_path):
    path = write_run(tmp_path, spec_of("mlp"), range(1, 9))

    def refuse(method, request):
        if method == "Append" and any(row.step == 6 for row in request.measurements):
            raise InvalidInput("a value is wrong")

    calls = PlayedCalls(refuse)
    delivery = SpoolDelivery(path, calls)
    deliver(delivery)
    assert sorted(chain.from_iterable(calls.steps)) == [1, 2, 3, 4, 5, 7, 8]
    assert (delivery.progress.acknowledged, delivery.progress.refused) == (7, 1)
    assert [why for _, why in quarantined(tmp_path)] == ["step 6: a value is wrong"]


@pytest.mark.parametrize("failing", ["Append", "FinishRecording"])
def test_a_registry_that_lost_the_recording_gets_all_of_it_again_three_times_at_most(
    tmp_path, failing
):
    path = write_run(tmp_path, spec_of("mlp"), [1])

    def refuse(method, request):
        if method == failing:
            raise NotFound("recording is not here")

    calls = PlayedCalls(refuse)
    delivery = SpoolDelivery(path, calls)
    deliver(delivery)
    assert calls.methods.count("StartRecording") == 4
    assert delivery.quarantined is not None


def test_the_end_of_a_run_that_died_is_reported_when_it_is_known(tmp_path):
    writer = SpoolWriter(tmp_path)
    path = writer.start(spec_of("mlp"), Attempt())
    writer.append(row_of(1))
    writer.close()
    calls = PlayedCalls()
    delivery = SpoolDelivery(path, calls)
    assert not delivery.advance() and not delivery.done
    delivery.unfinished = Ending(status="interrupted")
    deliver(delivery)
    assert delivery.done and calls.methods[-1] == "FinishRecording"


def test_a_folder_registry_keeps_its_file(tmp_path):
    path = write_run(tmp_path, spec_of("mlp"), [1])
    delivery = SpoolDelivery(path, PlayedCalls(), keep=True)
    deliver(delivery)
    assert delivery.done and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (AlreadyExists(""), True),
        (InvalidInput(""), True),
        (NotFound(""), True),
        (DataLoss(""), True),
        (Unauthenticated(""), False),
        (LimitExceeded(""), False),
        (Unreachable(""), False),
    ],
)
def test_which_errors_are_permanent(error, permanent):
    assert is_permanent(error) is permanent


def test_a_file_is_taken_over_when_its_owner_has_ended_or_its_end_is_written(tmp_path):
    writer = SpoolWriter(tmp_path)
    path = writer.start(spec_of("mlp"), Attempt())
    taken, why = can_take_over(path)
    assert not taken and why.endswith("which is still running")
    writer.close()
    child = os.fork()
    if child == 0:
        SpoolWriter(tmp_path / "dead").start(spec_of("mlp"), Attempt())
        os._exit(0)
    os.waitpid(child, 0)
    (dead,) = (tmp_path / "dead").glob("*.spool")
    assert can_take_over(dead) == (True, "")
    ended = write_run(tmp_path / "ended", spec_of("mlp"), [1])
    assert can_take_over(ended) == (True, "")
    assert can_take_over(tmp_path / "none.spool") == (False, "none.spool is gone")


def test_an_empty_file_is_abandoned_after_a_minute(tmp_path):
    path = tmp_path / "empty.spool"
    path.touch()
    assert not is_abandoned_empty(path)
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    assert is_abandoned_empty(path)
    written = write_run(tmp_path, spec_of("mlp"), [1])
    os.utime(written, (an_hour_ago, an_hour_ago))
    assert not is_abandoned_empty(written)
