"""The training process's side of reporting: a full disk, and the time that a measurement takes.

The margins are wide enough for a machine that does other things too. The figures are those of
benchmarks/client_spool.py. tests/faults/test_uploader.py kills processes.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time

import numpy as np
import pytest
from spooled import row_of, spec_of

from flerm_client import RegistryClient
from flerm_client.upload.reporter import SpoolReporter
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Measurement,
    ParameterList,
    RecordingSpec,
    now,
)

TENSORS = 500
NAMES = tuple(f"layers.{at}.weight" for at in range(TENSORS))
PARAMETERS = ParameterList(NAMES, ((8, 8),) * TENSORS, ("feed-forward",) * TENSORS)


@pytest.fixture(params=["down", "black hole"])
def address(request):
    """A registry that refuses connections, or makes them and never answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if request.param == "black hole":
            bound.listen(16)
        yield f"grpc://127.0.0.1:{bound.getsockname()[1]}"


def test_a_measurement_of_500_tensors_takes_well_under_a_millisecond(address, tmp_path):
    reporter = SpoolReporter.open(
        address,
        RecordingSpec(family="f", lr=1e-3, parameters=PARAMETERS),
        Attempt(),
        spool=tmp_path,
    )
    values = np.linspace(0.1, 1.0, TENSORS, dtype=np.float32)
    taken, busy = [], []
    for step in range(1, 1001):
        row = Measurement(
            step=step, values=values, loss=1.0, learning_rate=1e-3, tokens=step, measured_at=now()
        )
        begin, began = time.perf_counter(), time.thread_time()
        reporter.append(row)
        busy.append(time.thread_time() - began)
        taken.append(time.perf_counter() - begin)
    begin = time.monotonic()
    assert reporter.finish(Ending(), timeout=0.0).left == 1000
    assert time.monotonic() - begin < 5.0, "it would wait for an answer"
    os.kill(reporter.uploader_pid, signal.SIGKILL)
    assert np.median(taken) < 500e-6
    assert np.percentile(busy, 99) < 1e-3


def test_a_full_disk_leaves_no_empty_file_and_later_measurements_arrive(
    registry, tmp_path, monkeypatch
):
    # A full disk cannot be had without root's mounts: this is what the kernel answers then.
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spec = spec_of("full-disk")
    with monkeypatch.context() as patched:
        patched.setattr("flerm_client.spool.writer.os.write", full)
        reporter = SpoolReporter.open(registry.address, spec, Attempt(), spool=tmp_path)
        reporter.append(row_of(1))
        assert list(tmp_path.glob("*.spool")) == []
    reporter.append(row_of(2))
    reporter.append(row_of(3))
    delivery = reporter.finish(Ending(final_loss=0.5), timeout=30.0)
    assert (
        delivery.left == 1
        and "1 of 3 measurements" in delivery.problem
        and "are lost" in delivery.problem
    )
    with RegistryClient(registry.address) as client:
        assert client.trajectory(spec.id).steps.tolist() == [2, 3]
    assert list(tmp_path.glob("*.spool")) == []
