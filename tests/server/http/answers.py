"""What tests of REST share: a recording to ask for, and a check of a problem document."""

from __future__ import annotations

import httpx
import numpy as np

from flerm_core.records.recording import Ending
from tests.server.conftest import Backend
from tests.server.samples import batch, row, rows, spec


def recorded(
    backend: Backend, name: str, *, loss: float = 1.0, status: str = "completed", **changes
) -> str:
    """A recording of three rows that ended; its id."""
    sent = spec(name, **changes)
    backend.local.start(sent)
    backend.local.append_many(
        [batch(sent.id, row(1, 4, 2, np.nan, loss=2.5, tokens=64), *rows(101, 201))]
    )
    backend.local.finish(
        sent.id, 0, Ending(status=status, final_loss=None if status == "diverged" else loss)
    )
    return sent.id


def problem(answer: httpx.Response, status: int) -> dict:
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert answer.json()["status"] == status
    return answer.json()
