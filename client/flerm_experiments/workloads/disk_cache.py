"""What takes a minute to make and never changes, kept on this machine: `$XDG_CACHE_HOME/flerm`, by default ~/.cache/flerm."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from flerm_core._files import atomic_path

T = TypeVar("T")


def cached(name: str, settings: object, make: Callable[[], T]) -> T:
    """What `make` made of `settings` once: tensors and plain values, from the file `name`-DIGEST.pt, which is written where
    it is not there yet."""
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
