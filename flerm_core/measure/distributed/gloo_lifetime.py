"""Keeps Gloo process groups until the interpreter ends, so that a rank neither hangs nor crashes.

Gloo's destructor joins worker threads. A worker may be waiting for the interpreter's lock (GIL).
DDP's reducer, when it is the last owner of a group, runs the destructor while it holds that lock.
A rank that destroys its group before its model then hangs at its end, once in a hundred runs on a
busy machine. A reference from Python releases the lock before it runs the destructor.
"""

from __future__ import annotations

import atexit
import time
from typing import Any

from torch import distributed as dist

_groups: list[Any] = []


def retain_group(group: Any = None) -> None:
    """Keeps a process group until the interpreter ends. Call it while the group exists.

    group: None stands for the default group.
    """
    if not _groups:
        atexit.register(_release_groups)
    group = dist.group.WORLD if group is None else group
    if not any(each is group for each in _groups):
        _groups.append(group)


def _release_groups() -> None:
    """Joins the workers at the last moment at which they can still take the interpreter's lock.

    A worker that releases a tensor later ends the process with SIGABRT, and a script that ends
    right after a collective would lose its exit code.
    """
    _groups.clear()  # joins the workers of groups without another owner
    time.sleep(0.1)  # lets the workers of all other groups finish
