"""Large tensors in chunks, so that no temporary is as large as a tensor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_NUMEL = {"cpu": 1 << 14}
"""Elements per chunk, by device type. On the CPU 64 KiB of float32: malloc serves such a temporary
from memory that it holds, while larger ones take fresh pages from the system, which costs forty
times the arithmetic (docs/estimators.md)."""
_OTHER_DEVICES = 1 << 24  # their allocators hold memory of any size, and each kernel launch costs


def chunks(shape: torch.Size, device: torch.device) -> Iterator[slice]:
    """Consecutive slices of dimension 0, of about `CHUNK_NUMEL` elements each.

    shape: at least one dimension.
    """
    rows = max(1, CHUNK_NUMEL.get(device.type, _OTHER_DEVICES) // max(1, shape[1:].numel()))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def iter_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunk by chunk, views of tensors of one shape, side by side.

    They are cut along the dimension that is outermost in the first tensor's memory, so that a chunk
    of it is one stretch of memory. (The rows of a transposed tensor are not.)
    """
    first = tensors[0]
    if first.ndim == 0:
        yield tensors
    else:
        outermost = max(range(first.ndim), key=first.stride)
        moved = [tensor.movedim(outermost, 0) for tensor in tensors]
        for rows in chunks(moved[0].shape, first.device):
            yield tuple(tensor[rows] for tensor in moved)
