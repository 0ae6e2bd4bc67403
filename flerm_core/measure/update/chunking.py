"""Large tensors in pieces, so that what is computed of them needs no temporary of their size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLAB = {"cpu": 1 << 14}
"""Elements at once. On the CPU 64 KiB, which malloc hands out again and again: fresh pages from the system for every
temporary cost forty times the arithmetic (docs/estimators.md). Elsewhere allocators keep memory, and launches count."""
_LARGE = 1 << 24


def chunks(shape: torch.Size, device: torch.device) -> Iterator[slice]:
    """A tensor of at least one dimension as consecutive slices of dimension 0, of about `SLAB` elements each."""
    height = max(1, SLAB.get(device.type, _LARGE) // max(1, shape[1:].numel()))
    return (slice(start, start + height) for start in range(0, shape[0], height))


def iter_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape side by side, slab by slab: views of them, along the dimension that is outermost in the first's
    memory (of a transposed one every row would be all over it)."""
    first = tensors[0]
    if first.ndim == 0:
        yield tensors
    else:
        outermost = max(range(first.ndim), key=first.stride)
        outward = [tensor.movedim(outermost, 0) for tensor in tensors]
        for rows in chunks(outward[0].shape, first.device):
            yield tuple(tensor[rows] for tensor in outward)
