"""Waits for what other processes do, when there is no event to wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SECONDS = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits until `condition` holds; fails with `what` after half a minute."""
    end = time.monotonic() + SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, what
        pause.wait(0.02)
