"""A run's state as one value of a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from flerm_core.errors import InvalidInput


def packed(state: Mapping[str, Any]) -> bytes:
    """Plain values and tensors, as torch.save writes them."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def unpacked(content: Any) -> dict[str, Any]:
    """What `packed` was given. Reads plain values and tensors only, never code. Raises `InvalidInput` for anything else."""
    if not isinstance(content, bytes):
        raise InvalidInput(f"the checkpoint's 'flerm' is a {type(content).__name__}; it must be what FLeRM.state_dict() made")
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return state
