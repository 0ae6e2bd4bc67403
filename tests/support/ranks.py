"""Ranks that train on demand (tests/faults/jobs/worker.py): one process group for many runs."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import fork, rendezvous

WORKER = Path(__file__).parents[1] / "faults" / "jobs" / "worker.py"
SECONDS = 60.0


class TrainingRanks:
    """`world` processes in one process group. They get their runs over a socket."""

    def __init__(self, world: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(SECONDS)
            self._store, environments = rendezvous(world)
            self._processes = fork(WORKER, str(server.getsockname()[1]), environments=environments)
            connected, _ = server.accept()
        connected.settimeout(SECONDS)
        self._socket = connected
        self._lines = connected.makefile("rw")

    def train(
        self,
        mode: str,
        spool: Path,
        *,
        registry: str = "",
        family: str = "f",
        every: int = 1,
        timeout: float = 20.0,
        token_file: Path | str = "",
        pause_at: int = 0,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Trains one run; what each rank reports.

        `meanwhile` is called while the run waits before step `pause_at`.
        """
        run = {
            "mode": mode,
            "registry": registry or None,
            "family": family,
            "every": every,
            "timeout": timeout,
        }
        self._send(
            {**run, "spool": str(spool), "token_file": str(token_file), "pause_at": pause_at}
        )
        if pause_at:
            assert self._receive() == {"paused": pause_at}
            if meanwhile is not None:
                meanwhile()
            self._send("go")
        outcome: list[dict[str, Any]] = self._receive()
        return outcome

    def close(self) -> None:
        """Ends the processes."""
        self._lines.close()
        self._socket.close()
        self._processes.wait(10.0)

    def _send(self, content: Any) -> None:
        self._lines.write(json.dumps(content) + "\n")
        self._lines.flush()

    def _receive(self) -> Any:
        return json.loads(self._lines.readline())
