"""Structured logs: one JSON object a line on stderr, lines for people when stderr is a terminal."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import suppress
from typing import Any

import structlog

from flerm_core.errors import InvalidInput

LEVELS = ("debug", "info", "warning", "error")


class _Stderr(io.TextIOBase):
    """The process's stderr, wherever it is now. Whoever read it may be gone: a call must not fail for a line nobody reads."""

    def write(self, text: str) -> int:
        """Writes, if that can be."""
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, if that can be."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure(level: str) -> None:
    """Sets up structlog, and lets the libraries' own warnings through likewise. Raises `InvalidInput` for an unknown level."""
    if level not in LEVELS:
        raise InvalidInput(f"log_level {level!r}: one of {', '.join(LEVELS)} is allowed")
    threshold = logging.getLevelNamesMapping()[level.upper()]
    people = sys.stderr.isatty()
    stderr: Any = _Stderr()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=ending_for_libraries(ending)
        )
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


def ending_for_libraries(
    ending: list[structlog.typing.Processor],
) -> list[structlog.typing.Processor]:
    """The same rendering for records of the standard library's logging."""
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending]
