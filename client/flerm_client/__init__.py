"""FLeRM in a training job: measure function-space learning rates, report them to a registry, train at matched rates.

    from flerm_client import FLeRM, RegistryClient

Importing this package brings neither torch nor grpc nor numpy; the two names load what they need when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flerm_client.flerm import FLeRM
    from flerm_client.registry.client import RegistryClient

__all__ = ["FLeRM", "RegistryClient"]

_HOMES = {"FLeRM": "flerm_client.flerm", "RegistryClient": "flerm_client.registry.client"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
