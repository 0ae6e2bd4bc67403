"""Whether the store can be written, in a process that gets no more threads."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from flerm_core.errors import Unreachable
from flerm_server.store.interface import StoreInfo
from flerm_server.store.readiness import Readiness
from tests.server.test_stop_request import refuse_thread


def test_it_is_found_out_again_once_there_are_threads(monkeypatch: pytest.MonkeyPatch):
    """A trial that could not begin is not one that goes on."""
    answer = StoreInfo("0006", datetime.now(UTC))
    readiness = Readiness(lambda: answer)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse_thread)
        with pytest.raises(Unreachable, match="cannot be tried: can't start new thread"):
            readiness.check()
    assert readiness.check() is answer
