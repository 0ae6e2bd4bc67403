"""The spool file: what is written is read, whatever happens to the bytes behind it or to the disk."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spooled import NAMES, child_environment, row_of, spec_of, write_run

from flerm_client.spool import SpoolReader, SpoolWriter, default_folder, read
from flerm_client.spool.frames import HEADER, FrameType
from flerm_client.spool.process_owner import ProcessOwner
from flerm_core.errors import DataLoss, FlermError, InvalidInput, Refused
from flerm_core.records.recording import Attempt, Ending, Measurement


def test_what_is_written_is_read(tmp_path):
    spec, attempt = spec_of("mlp", config={"width": 4}, tags={"team": "a"}), Attempt(resume_at=7)
    writer = SpoolWriter(tmp_path, "grpc://127.0.0.1:1")
    path = writer.start(spec, attempt)
    rows = [row_of(1), row_of(101)]
    assert [writer.append(row) for row in rows] == [True, True]
    assert read(path).status == "running"
    writer.finish(Ending(status="completed", final_loss=0.25, final_step=101, tokens=9))
    writer.close()
    content = read(path)
    assert (content.spec, content.attempt, content.status) == (spec, attempt, "completed")
    assert content.ending == Ending(status="completed", final_loss=0.25, final_step=101, tokens=9)
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


def test_a_reader_resumes_where_it_stopped_while_the_file_grows(tmp_path):
    writer = SpoolWriter(tmp_path)
    path = writer.start(spec_of("mlp"), Attempt())
    reader = SpoolReader(path)
    assert [frame.type for frame in reader] == [FrameType.OWNER, FrameType.START]
    assert list(reader) == []
    writer.append(row_of(1))
    assert [frame.type for frame in reader] == [FrameType.MEASUREMENT]
    writer.append(row_of(2))
    assert [frame.type for frame in SpoolReader(path, reader.offset)] == [FrameType.MEASUREMENT]
    writer.close()


def test_a_tail_torn_at_any_byte_costs_only_the_frame_it_tears(tmp_path):
    path = write_run(tmp_path, spec_of("mlp"), [1, 2, 3])
    whole = path.read_bytes()
    ends = [frame.end for frame in SpoolReader(path)]
    torn = tmp_path / "torn.spool"
    for length in range(len(whole)):
        torn.write_bytes(whole[:length])
        reader = SpoolReader(torn)
        assert [frame.end for frame in reader] == [end for end in ends if end <= length]
        assert reader.damage == []
        # The rest arrives: nothing was skipped.
        torn.write_bytes(whole)
        assert len(list(reader)) == sum(end > length for end in ends)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_never_crash_a_reader_nor_make_it_tell_another_value(tmp_path, data):
    steps = [1, 2, 3, 4]
    path = next(tmp_path.glob("*.spool"), None) or write_run(tmp_path, spec_of("mlp"), steps)
    whole = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
        whole[position] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(bytes(whole))
    try:
        content = read(damaged)
    except (DataLoss, Refused):
        return
    for row in content.rows:
        np.testing.assert_array_equal(row.values, row_of(row.step).values)
    assert {row.step for row in content.rows} <= set(steps)


def test_damage_in_the_middle_is_skipped_and_told(tmp_path):
    path = write_run(tmp_path, spec_of("mlp"), [1, 2, 3])
    frames = list(SpoolReader(path))
    whole = bytearray(path.read_bytes())
    whole[frames[3].end - 1] ^= 0xFF  # the last byte of step 2
    path.write_bytes(bytes(whole))
    content = read(path)
    assert [row.step for row in content.rows] == [1, 3]
    assert [(d.start, d.end) for d in content.damage] == [(frames[2].end, frames[3].end)]


@pytest.mark.parametrize("content", [b"not a spool at all", b"PK\x03\x04"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "x.spool"
    path.write_bytes(content)
    with pytest.raises(DataLoss, match="is not a spool file"):
        read(path)


def test_a_later_version_is_refused_with_its_number(tmp_path):
    path = tmp_path / "x.spool"
    path.write_bytes(HEADER[:-4] + (9).to_bytes(4, "little"))
    with pytest.raises(Refused, match="spool version 9"):
        list(SpoolReader(path))


def test_a_full_disk_stops_nobody_and_leaves_a_marked_gap(tmp_path, caplog):
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


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="set FLERM_SPOOL"):
        SpoolWriter(tmp_path / "file" / "spool").start(spec_of("mlp"), Attempt())


def test_the_owner_is_known_to_live_and_to_be_gone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from spooled import *; "
        "w = SpoolWriter(Path(sys.argv[1])); w.start(spec_of('mlp'), Attempt()); w.append(row_of(1)); print('up', flush=True); "
        "sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
    )
    assert child.stdout.readline() == b"up\n"
    (path,) = tmp_path.glob("*.spool")
    assert read(path).status == "running"
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert read(path).status == "interrupted"
    assert [row.step for row in read(path).rows] == [1]


def test_a_process_elsewhere_counts_as_alive():
    owner = ProcessOwner("another-host", "boot", 1, "5")
    assert (owner.on_this_machine, owner.alive) == (False, True)


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path / "a"))
    assert default_folder() == tmp_path / "a"
    monkeypatch.delenv("FLERM_SPOOL")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_folder() == tmp_path / "state" / "flerm" / "spool"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".local" / "state" / "flerm" / "spool"


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


def test_an_attempt_is_written_once(tmp_path):
    spec, attempt = spec_of("mlp"), Attempt()
    write_run(tmp_path, spec, [1], attempt=attempt)
    with pytest.raises(FlermError, match=r"in the spool .* already"):
        SpoolWriter(tmp_path).start(spec, attempt)
    assert spec.parameters.names == NAMES
