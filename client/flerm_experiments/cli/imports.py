"""The import of modules while a command runs, because `flerm --help` must not wait for torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flerm_core.errors import InvalidInput


def import_for(command: str, module: str) -> Any:
    """The module `flerm_experiments.<module>`, for the command `flerm <command>`.

    Raises `InvalidInput` where torch or scikit-learn is not installed. The message names the extra
    to install.
    """
    try:
        return import_module(f"flerm_experiments.{module}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "sklearn"):
            raise
        raise InvalidInput(
            f"'flerm {command}' needs the package {error.name}: pip install 'flerm[workloads]'"
        ) from error
