"""How many examples one optimiser step has, as far as a framework's loader says so surely."""

from __future__ import annotations

import math
from typing import Any

from torch.utils.data import BatchSampler


def step_examples(loader: Any, accumulation: int, replicas: int) -> int | None:
    """The examples of one optimiser step, on all ranks and over accumulated micro-batches.

    None where this is not sure: batches of a sampler of the user's own, which may differ in size, a
    data set whose items are batches, several loaders, and a pass that is too short for one step.

    loader: the training data as a rank reads it.
    accumulation: the micro-batches of a step.
    replicas: the ranks that have micro-batches of their own.
    """
    sampler = getattr(loader, "batch_sampler", None)
    batches = getattr(sampler, "batch_sampler", sampler)  # inside Accelerate's shard of a sampler
    if type(batches) is not BatchSampler:
        return None
    if _length(loader) < accumulation or _length(batches.sampler) < batches.batch_size:
        return None
    # Accelerate's loaders can give each rank a part of every batch, and not a batch of its own.
    parts = any(getattr(each, "split_batches", False) for each in (loader, sampler))
    return int(batches.batch_size) * accumulation * (1 if parts else replicas)


def _length(sized: Any) -> float:
    """The length of a loader or sampler; infinite for a stream."""
    try:
        return len(sized)
    except TypeError:
        return math.inf
