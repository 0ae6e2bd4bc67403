"""FLeRM in a training job: measures function-space learning rates, reports and matches them.

    from flerm_client import FLeRM, RegistryClient

Importing this package imports neither torch nor grpc nor numpy. The first use of one of the two
names imports what that name needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flerm_client._extras import needs

if TYPE_CHECKING:
    from flerm_client.flerm import FLeRM
    from flerm_client.registry.client import RegistryClient

__all__ = ["FLeRM", "RegistryClient"]

# The module of each name, and the extra that brings what this module imports.
_MODULES = {
    "FLeRM": ("flerm_client.flerm", "train"),
    "RegistryClient": ("flerm_client.registry.client", "client"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _MODULES[name]
    with needs(name, extra):
        value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
