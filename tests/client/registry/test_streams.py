"""Long answers: what counts is that they go on, not how long they take; broken ones are resumed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from flerm_client import RegistryClient
from flerm_client.registry import connection
from flerm_client.registry.query_process import fetch_targets
from flerm_core.errors import Unreachable
from flerm_core.records.queries import TargetQuery

TENSORS, ROWS = 500, 1200  # three messages


CUT_SECONDS = 1.5  # from the last byte of a line that is cut until the cut


class Line:
    """A connection to a server that ends after some bytes, stands still after some, or is slow."""

    def __init__(self, server: str) -> None:
        self.cut_after: list[int] = []  # bytes of each connection
        self.stand_after = 1 << 60
        self.pause = 0.0  # after each 256 KiB
        self.connections = 0
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            host, port = self._server.rsplit(":", 1)
            far = socket.create_connection((host, int(port)))
            self.connections += 1
            left = self.cut_after.pop(0) if self.cut_after else 1 << 60
            for arguments in ((near, far, 1 << 60, 1 << 60), (far, near, left, self.stand_after)):
                threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: int, stand: int) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(1 << 18)):
                if stand <= 0:
                    self._closing.wait()
                sink.sendall(data)
                left -= len(data)
                stand -= len(data)
                self._closing.wait(self.pause if len(data) > 1 << 14 else 0.0)
        if left <= 0:
            # gRPC's Python layer drops what has come and was not asked for when the line ends.
            self._closing.wait(CUT_SECONDS)
        # Only this direction ends: what was sent still arrives, and the other end closes the rest.
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(registry) -> Iterator[Line]:
    made = Line(registry.grpc)
    yield made
    made.close()


@pytest.fixture(scope="module")
def recorded(registry) -> tuple[str, str, np.ndarray]:
    """A family with one completed recording of three messages: family, id, values."""
    family = f"long{uuid.uuid4().hex[:12]}"
    values = np.random.default_rng(0).random((ROWS, TENSORS), np.float32)
    with RegistryClient(f"grpc://{registry.grpc}") as client:
        names = [f"layers.{at}.weight" for at in range(TENSORS)]
        recording = client.start_recording(family, 1e-3, names, [(4, 4)] * TENSORS)
        for start in range(0, ROWS, 600):
            steps = list(range(start + 1, start + 601))
            client.append(recording, steps, values[start : start + 600])
        client.finish(recording, final_loss=1.0)
    return family, recording, values


def test_a_trajectory_goes_on_after_the_rows_that_came_before_the_connection_broke(line, recorded):
    _, recording, values = recorded
    line.cut_after = [1_200_000, 1_100_000]  # one message of 1,028,000 bytes comes through each
    seen: list[tuple[int, int]] = []
    with RegistryClient(line.address) as client:
        found = client.trajectory(recording, progress=lambda *each: seen.append(each))
    assert line.connections == 3
    np.testing.assert_array_equal(found.values, values)
    assert found.steps.tolist() == list(range(1, ROWS + 1))
    assert seen[-1] == (ROWS, ROWS)


@pytest.mark.slow
def test_a_slow_answer_is_waited_for_as_long_as_it_goes_on(
    line, recorded, monkeypatch: pytest.MonkeyPatch
):
    """It takes several times as long as one message may."""
    _, recording, values = recorded
    monkeypatch.setattr(connection, "SILENT_SECONDS", 4.0)
    line.pause = 0.6
    with RegistryClient(line.address) as client:
        begun = time.monotonic()
        found = client.trajectory(recording)
    assert time.monotonic() - begun > 4.0
    np.testing.assert_array_equal(found.values, values)


def test_a_line_that_stands_still_is_given_up(line, recorded, monkeypatch: pytest.MonkeyPatch):
    _, recording, _ = recorded
    monkeypatch.setattr(connection, "SILENT_SECONDS", 1.0)
    line.stand_after = 20_000
    with RegistryClient(line.address, patience=0.0) as client, pytest.raises(Unreachable):
        client.trajectory(recording)


@pytest.mark.slow
def test_targets_of_a_slow_line_are_fetched_in_more_than_the_time_limit(line, recorded):
    """The limit is for a registry that is silent."""
    family, _, values = recorded
    line.pause = 0.5
    begun = time.monotonic()
    found = fetch_targets(line.address, TargetQuery(family=family, lr=1e-3), timeout=6.0)
    assert time.monotonic() - begun > 6.0
    np.testing.assert_array_equal(found.table, values)
