"""Reading a spool file: what is whole is read, whatever happens to the bytes around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spooled import row_of, spec_of, write_run

from flerm_client.spool import SpoolReader, SpoolWriter, read
from flerm_client.spool.frames import HEADER, FrameType
from flerm_core.errors import DataLoss, Refused
from flerm_core.records.recording import Attempt


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


def test_a_file_cut_off_at_any_byte_loses_only_the_frame_that_is_cut(tmp_path):
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
def test_changed_bytes_never_crash_a_reader_nor_change_a_value(tmp_path, data):
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


def test_damage_in_the_middle_is_skipped_and_reported(tmp_path):
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
