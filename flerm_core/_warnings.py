"""Warnings that point at the user's line, whatever lies between it and us."""

from __future__ import annotations

import sys
import warnings

# What calls us on the user's behalf: our own packages, and those through which an optimiser's step or a callback comes.
_BETWEEN = frozenset({
    "flerm_core", "flerm_client", "flerm_experiments", "contextlib", "torch", "transformers", "lightning", "accelerate",
})  # fmt: skip


def warn(message: str) -> None:
    """A `UserWarning` at the innermost line that belongs to none of the packages between."""
    level, frame = 1, sys._getframe()
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
