"""What one run of a command needs, and when it is ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The limits of one run.

    cpus, gpus: that the run needs.
    time_limit: seconds of one attempt; None: none.
    retries: further attempts after one that failed.
    early_stop: whether the run is stopped where its rate is hopeless.
    """

    cpus: int = 1
    gpus: int = 0
    time_limit: float | None = None
    retries: int = 0
    early_stop: bool = False
