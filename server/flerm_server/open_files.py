"""How many files the process may have open."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger("flerm.limits")


def raise_open_files() -> int:
    """Raises the limit of open files as far as the system allows; the new limit.

    Each connection is an open file, and many systems start with a limit of 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("open files stay limited", soft=soft, reason=str(error))
            return soft
    return wanted
