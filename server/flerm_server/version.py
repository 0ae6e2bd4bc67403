"""Which version of the distribution this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def version() -> str:
    """The installed distribution's version; "0+tree" when run from a source tree that is not installed."""
    try:
        return installed_version("flerm")
    except PackageNotFoundError:
        return "0+tree"
