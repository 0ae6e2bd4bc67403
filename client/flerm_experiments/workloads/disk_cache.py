"""Files with values that take a minute to compute and never change.

The files lie in `$XDG_CACHE_HOME/flerm`, or in ~/.cache/flerm where the variable is unset.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from flerm_core._files import atomic_path

T = TypeVar("T")


def cached_on_disk(name: str, settings: object, make: Callable[[], T]) -> T:
    """The value of `make()`, read from its file where an earlier call has written one.

    name: the file is called `name`-DIGEST.pt.
    settings: everything that the value depends on. DIGEST is the digest of its `repr`.
    make: computes the value, which may hold tensors and plain values.
    """
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "flerm" / f"{name}-{digest}.pt"
    if path.exists():
        kept: T = torch.load(path, weights_only=True)
        return kept
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:  # several processes may write it at once
        torch.save(made, partial)
    return made
