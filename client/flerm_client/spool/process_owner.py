"""The process that writes a spool file, and whether it still runs.

While it runs, no other process may deliver its file.
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ProcessOwner:
    """A process, identified so that a later process with the same pid is not mistaken for it.

    host: host name.
    machine: boot id and pid namespace.
    pid: process id.
    started: start time in clock ticks since boot; empty where the system does not tell it.
    """

    host: str
    machine: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessOwner:
        """The process `pid` of this machine."""
        return cls(*_machine(), pid, _start_ticks(pid))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ProcessOwner:
        """The inverse of `to_json`. Missing fields are empty."""
        return cls(
            str(content.get("host", "")),
            str(content.get("machine", "")),
            int(content.get("pid", 0)),
            str(content.get("started", "")),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)

    @property
    def on_this_machine(self) -> bool:
        """Whether the process belongs to this machine, so that `alive` can be found out."""
        return (self.host, self.machine) == _machine()

    @property
    def alive(self) -> bool:
        """Whether the process runs. A process of another machine counts as running."""
        if not self.on_this_machine:
            return True
        if self.started:
            # A zombie has ended, although its parent has not collected its exit code.
            zombie = _stat_fields(self.pid)[:1] == ["Z"]
            return _start_ticks(self.pid) == self.started and not zombie
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _machine() -> tuple[str, str]:
    """Host name, and boot id with pid namespace.

    A pid means the same process only where both agree. Containers may share a host name.
    """
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    boot_id = _read("/proc/sys/kernel/random/boot_id").strip()
    return socket.gethostname(), f"{boot_id} {namespace}".strip()


def _start_ticks(pid: int) -> str:
    """When the process started, in clock ticks since boot; empty where the system does not tell."""
    fields = _stat_fields(pid)
    return fields[19] if len(fields) > 19 else ""


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command name, which may hold spaces."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _read(path: str) -> str:
    """A file of /proc; empty without it (another operating system, a process that has ended)."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
