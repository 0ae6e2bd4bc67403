"""The mathematics of function-space learning rates (arXiv 2502.17405).

It knows no network and no database, and needs numpy only. `flerm_core.measure` alone imports
torch.

Importing this package imports nothing else. The first use of one of the two names imports what that
name needs: a process that sends measurements needs neither trajectories nor matching.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flerm_core.matching.match import match_targets
    from flerm_core.trajectory import Trajectory

__all__ = ["Trajectory", "match_targets"]

_MODULES = {"Trajectory": "flerm_core.trajectory", "match_targets": "flerm_core.matching.match"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
