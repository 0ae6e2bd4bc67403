"""Warnings that point at the user's line, whatever packages lie between that line and FLeRM."""

from __future__ import annotations

import sys
import warnings

# The standard library's `contextlib` runs our context managers, so its frames are never the user's.
_callers = {__name__.partition(".")[0], "contextlib"}


def register_caller_package(*names: str) -> None:
    """Names top-level packages that call FLeRM on the user's behalf, as a framework's trainer does.

    A warning never points at a line of theirs.
    """
    _callers.update(names)


def warn(message: str) -> None:
    """A `UserWarning` at the innermost line outside all registered packages."""
    level, frame = 1, sys._getframe()
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in _callers
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
