"""Values that take a minute to make and never change, kept in `$XDG_CACHE_HOME/flerm`.

Where the variable is unset, the folder is ~/.cache/flerm.
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
    """The value of `make()`, tensors and plain values, from the file `name`-DIGEST.pt.

    The digest is that of `settings`. Where the file does not exist, `make` is called and the file
    written.
    """
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "flerm" / f"{name}-{digest}.pt"
    if path.exists():
        kept: T = torch.load(path, weights_only=True)
        return kept
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:  # several jobs may begin at once
        torch.save(made, partial)
    return made
