"""What the process itself may hold open."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger("flerm.limits")


def raise_open_files() -> int:
    """As many open files as the system lets us have: each connection is one. The number; many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("open files stay limited", soft=soft, reason=str(error))
            return soft
    return wanted
