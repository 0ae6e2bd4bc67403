"""Waiting for what other processes do, where they give no event to wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SECONDS = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Asks again and again; fails with `what` after half a minute."""
    end = time.monotonic() + SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, what
        pause.wait(0.02)
