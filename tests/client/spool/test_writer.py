"""Writing a spool file: what is written can be read, and a full disk does not stop a run."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from spooled import NAMES, row_of, spec_of, write_run

from flerm_client.spool import SpoolWriter, read
from flerm_client.spool.process_owner import ProcessOwner
from flerm_core.errors import FlermError, InvalidInput
from flerm_core.records.recording import Attempt, Ending, Measurement, now


def test_what_is_written_is_read(tmp_path):
    spec, attempt = spec_of("mlp", config={"width": 4}, tags={"team": "a"}), Attempt(resume_at=7)
    writer = SpoolWriter(tmp_path, "grpc://127.0.0.1:1")
    path = writer.start(spec, attempt)
    rows = [row_of(1), row_of(101)]
    assert [writer.append(row) for row in rows] == [True, True]
    assert read(path).status == "running"
    ending = Ending(status="completed", final_loss=0.25, final_step=101, tokens=9)
    before = now()
    writer.finish(ending)
    writer.close()
    content = read(path)
    assert (content.spec, content.attempt, content.status) == (spec, attempt, "completed")
    assert content.ending is not None and content.ending.finished_at is not None
    assert before <= content.ending.finished_at <= now()
    assert replace(content.ending, finished_at=None) == ending
    assert (content.origin.registry, content.origin.owner) == (
        "grpc://127.0.0.1:1",
        ProcessOwner.of(os.getpid()),
    )
    for mine, its in zip(rows, content.rows, strict=True):
        np.testing.assert_array_equal(mine.values, its.values)
        assert (mine.step, mine.loss, mine.tokens, mine.measured_at) == (
            its.step,
            its.loss,
            its.tokens,
            its.measured_at,
        )
    assert (content.gaps, content.damage, content.tail) == ([], [], 0)


def test_an_attempt_is_written_once(tmp_path):
    spec, attempt = spec_of("mlp"), Attempt()
    write_run(tmp_path, spec, [1], attempt=attempt)
    with pytest.raises(FlermError, match=r"in the spool .* already"):
        SpoolWriter(tmp_path).start(spec, attempt)
    assert spec.parameters.names == NAMES


def test_a_full_disk_raises_nothing_and_leaves_a_gap_frame(tmp_path, caplog):
    writer = SpoolWriter(tmp_path)
    path = writer.start(spec_of("mlp"), Attempt())
    assert writer.append(row_of(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The kernel refuses to let files grow: EFBIG in the middle of a frame, as a quota would.
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
        assert [writer.append(row_of(step)) for step in (2, 3)] == [False, False]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert writer.append(row_of(4))
    writer.finish(Ending())
    writer.close()
    content = read(path)
    assert [row.step for row in content.rows] == [1, 4]
    assert [(gap.lost, gap.first_step, gap.last_step) for gap in content.gaps] == [(2, 2, 3)]
    assert content.gaps[0].reason == os.strerror(errno.EFBIG)
    assert (writer.rows, writer.lost, content.damage) == (2, 2, [])
    assert sum("cannot be written" in record.message for record in caplog.records) == 1


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="set FLERM_SPOOL"):
        SpoolWriter(tmp_path / "file" / "spool").start(spec_of("mlp"), Attempt())


def test_spooling_500_tensors_takes_at_most_200_microseconds_in_99_of_100(tmp_path):
    from dataclasses import replace

    from flerm_core.records.recording import ParameterList

    names = tuple(f"layers.{at}.weight" for at in range(500))
    spec = replace(
        spec_of("mlp"), parameters=ParameterList(names, ((4, 4),) * 500, ("other",) * 500)
    )
    writer = SpoolWriter(tmp_path)
    writer.start(spec, Attempt())
    values = np.random.default_rng(0).random(500, np.float32)
    taken = []
    for step in range(1, 3001):
        row = Measurement(step=step, values=values, loss=1.0, measured_at=None)
        begin = time.perf_counter()
        writer.append(row)
        taken.append(time.perf_counter() - begin)
    writer.close()
    assert np.quantile(taken, 0.99) <= 200e-6
