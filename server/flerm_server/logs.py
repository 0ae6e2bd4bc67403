"""Structured logs on stderr: one JSON object a line, or readable lines where it is a terminal."""

from __future__ import annotations

import io
import logging
import re
import sys
from contextlib import suppress
from typing import Any

import structlog

from flerm_core.errors import FlermError, InvalidInput, Unreachable

# The secret of a token or session, behind its public id; a user with a password in a URL; the
# option `password` of a URL or of libpq.
_SECRET = re.compile(r"\b((?:flerm|session)_[0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_USERINFO = re.compile(r"//[^\s/@\\\"']*:[^\s@\\\"']*@")
_PASSWORD = re.compile(r"(password=)[^\s&\\\"']+", re.IGNORECASE)

# A database's URL, file, host, socket, name and user, as our sentences and libpq's have them.
_WHERE = re.compile(
    r" (?:postgresql|sqlite)://\S*[^\s:;,)]| /\S*[^\s:;,)]"
    r'| (?:at|on socket) "[^"]*"(?: \([^)]*\))?(?:, port \d+)?'
    r"|(?<=\bhost) '[^']*'"
    r'|(?<=\bname) "[^"]*"|(?<=\bdatabase) "[^"]*"|(?<=\brole) "[^"]*"|(?<=\buser) "[^"]*"'
)

LEVELS = ("debug", "info", "warning", "error")


class _Stderr(io.TextIOBase):
    """Writes to the process's present stderr, and ignores its errors.

    The process that reads stderr may have ended. No call may fail because its line cannot be
    written.
    """

    def write(self, text: str) -> int:
        """Writes `text` to stderr. An error of stderr is ignored."""
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes stderr. An error of stderr is ignored."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure(level: str) -> None:
    """Makes structlog write lines of `level` and above, and warnings of libraries likewise.

    Raises `InvalidInput` for a level that is not one of `LEVELS`.
    """
    if level not in LEVELS:
        raise InvalidInput(f"log_level {level!r}: one of {', '.join(LEVELS)} is allowed")
    threshold = logging.getLevelNamesMapping()[level.upper()]
    stderr: Any = _Stderr()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_controls,
    ]
    rendering: list[structlog.typing.Processor] = (
        # Plain tracebacks: structlog's others show local variables, a caller's token among them.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if sys.stderr.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    rendering.append(_without_secrets)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=_rendering_of_libraries(rendering)
        )
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)
    if threshold > logging.DEBUG:
        # uvicorn warns of each request that is no HTTP: strangers could fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def public_sentence(error: FlermError) -> str:
    """What a caller is told of an error: nothing of where the database is.

    Callers may be strangers, of `/readyz` for instance. The log and the operator's commands have
    the whole sentence.
    """
    sentence = str(error)
    if not isinstance(error, Unreachable):
        return sentence
    for place in error.places:
        sentence = sentence.replace(f" {place}", "")
    return _WHERE.sub("", sentence)


def _without_controls(_: Any, __: str, event: Any) -> Any:
    """A log entry whose texts cannot steer a terminal: a caller's path may hold escapes."""
    return {
        name: ascii(value)[1:-1] if isinstance(value, str) and not value.isprintable() else value
        for name, value in event.items()
    }


def _without_secrets(_: Any, __: str, line: Any) -> str:
    """A rendered line without the secrets that a library's error may have in it."""
    return _PASSWORD.sub(r"\1…", _USERINFO.sub("//…@", _SECRET.sub(r"\1_…", str(line))))


def _rendering_of_libraries(
    rendering: list[structlog.typing.Processor],
) -> list[structlog.typing.Processor]:
    """The same rendering for records of the standard library's logging."""
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering]
