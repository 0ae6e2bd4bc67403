"""Who writes a spool file, and whether that process still lives. A spool in use is never taken from its owner."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any


def _text(path: str) -> str:
    """What a file of /proc says; empty where there is no such file (another operating system, a process that is gone)."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """The start of a process in clock ticks since boot, as the kernel tells it: with the pid it names a process for good."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


@cache
def _machine() -> tuple[str, str]:
    """Host name; boot id with pid namespace. Pids mean the same only where all agree (containers may share a name)."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return (
        socket.gethostname(),
        f"{_text('/proc/sys/kernel/random/boot_id').strip()} {namespace}".strip(),
    )


@dataclass(frozen=True, slots=True)
class ProcessOwner:
    """A process, named so that it is not mistaken for another one that got its pid later."""

    host: str
    machine: str  # boot id and pid namespace
    pid: int
    started: str  # clock ticks since boot; empty where the system does not tell

    @classmethod
    def of(cls, pid: int) -> ProcessOwner:
        """The process `pid` of this machine."""
        return cls(*_machine(), pid, _started(pid))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ProcessOwner:
        """What `to_json` made; missing fields are empty."""
        return cls(
            str(content.get("host", "")),
            str(content.get("machine", "")),
            int(content.get("pid", 0)),
            str(content.get("started", "")),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain fields."""
        return asdict(self)

    @property
    def here(self) -> bool:
        """Whether it lived on this machine, so that `alive` can tell."""
        return (self.host, self.machine) == _machine()

    @property
    def alive(self) -> bool:
        """Whether it lives. Of a process elsewhere nothing is known: it counts as alive."""
        if not self.here:
            return True
        if self.started:
            # A zombie has ended, though its parent has not asked yet.
            state = _text(f"/proc/{self.pid}/stat").rpartition(")")[2].split()[:1]
            return _started(self.pid) == self.started and state != ["Z"]
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"
