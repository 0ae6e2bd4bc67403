"""What reporting takes from the training thread while nobody answers. The figures are benchmarks/client_spool.py's; the margins
here are wide enough for a machine that does other things too."""

from __future__ import annotations

import os
import signal
import socket
import time

import numpy as np
import pytest

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
    assert time.monotonic() - begin < 0.5
    os.kill(reporter.uploader_pid, signal.SIGKILL)
    assert np.median(taken) < 500e-6
    assert np.percentile(busy, 99) < 1e-3
