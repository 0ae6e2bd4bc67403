"""A copy of the process reads batches, and nothing of the original moves."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flerm_client.training.forked_reader import ForkedReader
from flerm_client.training.probe import Probe
from flerm_core.errors import InvalidInput, MeasurementError
from flerm_core.measure.state_guard import PrivateRandomness


def children() -> set[int]:
    """The processes that descend from this one, zombies left out."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.parent.name)] = int(fields[1])
    found, wave = set(), {os.getpid()}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave} - found
        found |= wave
    return found


def gone(pids: set[int]) -> bool:
    end = time.monotonic() + 5
    while children() & pids and time.monotonic() < end:
        time.sleep(0.01)
    return not children() & pids


def pids() -> Iterator[int]:
    while True:
        yield os.getpid()


def test_each_pass_is_read_in_a_process_of_its_own_from_the_same_state() -> None:
    rows = iter(range(3))
    reader = ForkedReader(lambda: rows, "rows")
    assert [list(reader), list(reader)] == [[0, 1, 2], [0, 1, 2]]
    assert next(rows) == 0


def test_two_passes_at_once_do_not_meet() -> None:
    reader = ForkedReader(lambda: range(3), "rows")
    assert list(zip(reader, reader, strict=True)) == [(0, 0), (1, 1), (2, 2)]


def test_no_process_stays() -> None:
    before = children()
    reader = ForkedReader(pids, "rows")
    reading = iter(reader)
    assert next(reading) != os.getpid()
    ours = children() - before
    assert len(ours) == 2
    reader.close()
    del reading
    assert gone(ours)
    assert next(iter(reader)) not in ours  # and a pass after `close` begins anew
    ours = children() - before
    del reader
    gc.collect()
    assert gone(ours)


def test_a_worker_that_was_forked_meanwhile_does_not_keep_them() -> None:
    before = children()
    reader = ForkedReader(pids, "rows")
    reading = iter(reader)
    next(reading)
    ours = children() - before
    worker = os.fork()
    if worker == 0:
        signal.pause()
    try:
        reader.close()
        del reading
        assert gone(ours)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_file_that_is_open_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(bytes(range(100)))
    with (tmp_path / "rows").open("rb", buffering=0) as file:
        file.seek(7)
        reader = ForkedReader(lambda: iter(lambda: file.read(1)[0], None), "rows")
        first, second = iter(reader), iter(reader)
        assert [next(first) for _ in range(20)] == list(range(7, 27))
        assert [next(second), next(first)] == [7, 27]
        assert file.tell() == 7


def test_a_socket_of_the_training_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"rows")
        with pytest.raises(InvalidInput, match=r"rows cannot be read in a process of its own"):
            next(iter(ForkedReader(lambda: iter(lambda: theirs.recv(1), None), "rows")))
        assert theirs.recv(4) == b"rows"


def test_a_part_of_a_tensor_is_sent_without_the_whole() -> None:
    whole = torch.arange(1_000_000.0)
    (part,) = ForkedReader(lambda: [{"x": whole[3:6]}], "rows")
    assert part["x"].tolist() == [3.0, 4.0, 5.0]
    assert part["x"].untyped_storage().nbytes() == 12


def test_what_cannot_be_sent_is_said() -> None:
    with pytest.raises(InvalidInput, match=r"rows cannot be read .*local object.*: give probe="):
        list(ForkedReader(lambda: [lambda: 0], "rows"))


def test_a_reading_process_that_was_killed_is_replaced() -> None:
    def rows() -> Iterator[tuple[int, int]]:
        yield from ((at, os.getpid()) for at in range(9))

    reading = iter(ForkedReader(rows, "rows"))
    next(reading)
    _, pid = next(reading)
    os.kill(pid, signal.SIGKILL)
    assert [at for at, _ in reading] == list(range(2, 9))


def test_reading_that_is_killed_again_is_said_and_the_next_batch_is_the_next(
    tmp_path: Path,
) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()

    def rows() -> Iterator[int]:
        yield from range(2)
        if deadly.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        yield 2

    reading = iter(ForkedReader(rows, "rows"))
    assert [next(reading), next(reading)] == [0, 1]
    with pytest.raises(MeasurementError, match=r"the process that reads rows for the probe has e"):
        next(reading)
    deadly.unlink()
    assert next(reading) == 2


# As gRPC does, whose handler aborts in a copy of a process that called it from several threads.
HANDLER_OF_A_LIBRARY = """
import ctypes, os
from flerm_client.training.forked_reader import ForkedReader

original, libc = os.getpid(), ctypes.CDLL(None)
handler = ctypes.CFUNCTYPE(None)(lambda: None if os.getpid() == original else os._exit(6))
assert libc.__register_atfork(handler, None, None, None) == 0
reader = ForkedReader(lambda: range(3), "rows")
print([*reader, *reader])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "_Fork"), reason="the C library has no _Fork")
def test_a_copy_forks_without_the_handlers_of_libraries() -> None:
    program = [sys.executable, "-c", HANDLER_OF_A_LIBRARY]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 1, 2, 0, 1, 2]", done.stderr


def test_a_copy_that_was_killed_is_made_anew() -> None:
    before = children()
    reader = ForkedReader(lambda: range(3), "rows")
    for pid in children() - before:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert list(reader) == [0, 1, 2]


def test_an_interrupt_while_waiting_loses_no_batch() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def slow() -> Iterator[int]:
        for at in range(9):
            time.sleep(2.0 if at == 1 else 0)  # long enough to be waited for on a busy machine
            yield at

    reading = iter(ForkedReader(slow, "rows"))
    assert next(reading) == 0
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(reading)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [next(reading), next(reading)] == [1, 2]


def test_signals_of_a_scheduler_do_not_end_the_reading() -> None:
    reading = iter(ForkedReader(pids, "rows"))
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        os.kill(next(reading), number)
    assert next(reading)


def test_a_resumed_probe_goes_on_with_the_same_batches() -> None:
    own = random.Random(3)  # as a collate function may hold one

    def rows() -> list[Tensor]:
        return [torch.rand(2) + own.random() + random.random() for _ in range(4)]

    def take(probe: Probe, randomness: PrivateRandomness, count: int) -> list[Any]:
        with randomness.active():
            return [next(probe).tolist() for _ in range(count)]

    reader, randomness = ForkedReader(rows, "rows"), PrivateRandomness(0)
    first = Probe(reader)
    take(first, randomness, 6)
    state, numbers = first.state_dict(), randomness.state
    expected = take(first, randomness, 5)

    again, resumed = Probe(ForkedReader(rows, "rows")), PrivateRandomness(9)
    with resumed.active():
        again.load_state_dict(state)
    resumed.state = numbers
    assert take(again, resumed, 5) == expected
