"""The version of the server."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


@cache  # to read it takes a millisecond, and probes and answers with an ETag ask for it each time
def version() -> str:
    """The installed distribution's version; "0+tree" in a source tree that is not installed."""
    try:
        return installed_version("flerm")
    except PackageNotFoundError:
        return "0+tree"
