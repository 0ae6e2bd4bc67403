"""Ranks that train on demand (tests/faults/jobs/worker.py): torch is imported once for many runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parents[1] / "faults" / "jobs" / "worker.py"
SECONDS = 60.0


class TrainingRanks:
    """`world` processes in one process group, told over a socket what to train."""

    def __init__(self, world: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as store:
            store.bind(("127.0.0.1", 0))
            meeting = str(store.getsockname()[1])
            store.close()
            server.settimeout(SECONDS)
            group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(WORKER), str(server.getsockname()[1])]
            self.processes = [
                subprocess.Popen(command, env={**os.environ, **group, "RANK": str(rank)}) for rank in range(world)
            ]
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
        """One run; what each rank says of it. `meanwhile` happens while it stands in front of step `pause_at`."""
        run = {"mode": mode, "registry": registry or None, "family": family, "every": every, "timeout": timeout}
        self._say({**run, "spool": str(spool), "token_file": str(token_file), "pause_at": pause_at})
        if pause_at:
            assert self._hear() == {"paused": pause_at}
            if meanwhile is not None:
                meanwhile()
            self._say("go")
        outcome: list[dict[str, Any]] = self._hear()
        return outcome

    def close(self) -> None:
        """Ends the processes."""
        self._lines.close()
        self._socket.close()
        for process in self.processes:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _say(self, content: Any) -> None:
        self._lines.write(json.dumps(content) + "\n")
        self._lines.flush()

    def _hear(self) -> Any:
        return json.loads(self._lines.readline())
