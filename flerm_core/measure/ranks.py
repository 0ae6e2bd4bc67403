"""Joining what the ranks measured: one all-reduce for everything, and one verdict for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from flerm_core.errors import FlermError, MeasurementError


class Ranks:
    """The data-parallel processes that measure together. A world of one needs no process group (`group` None and dist not
    used)."""

    def __init__(self, group: Any = None, *, alone: bool = False) -> None:
        self._group = group
        self.alone = alone or not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if self.alone else dist.get_rank(group)
        self.size = 1 if self.alone else dist.get_world_size(group)

    @property
    def _first(self) -> int:
        """The global rank of the group's rank 0."""
        return 0 if self._group is None else dist.get_global_rank(self._group, 0)

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over ranks, the same bits on each. One collective; none in a world of one."""
        if not self.alone:
            dist.all_reduce(values, group=self._group)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is set on any rank. Called by all ranks at the same point."""
        return flag if self.alone else bool(self.sum(torch.tensor([float(flag)], device=device)).item())

    def agree(self, problem: Exception | None, device: torch.device) -> None:
        """Raises on every rank, the same sentence, when any rank has a `problem`. Called by all ranks at the same point."""
        if self.alone and problem is not None:
            raise problem
        if self.any(problem is not None, device):
            self.raise_together(problem)

    def raise_together(self, problem: Exception | None) -> None:
        """Exchanges the sentences of the ranks that have a problem and raises the first one everywhere."""
        told: list[tuple[type[Exception], str] | None] = [None] * self.size
        own = (
            None if problem is None else (type(problem) if isinstance(problem, FlermError) else MeasurementError, _say(problem))
        )
        dist.all_gather_object(told, own, group=self._group)
        rank, first = next((rank, item) for rank, item in enumerate(told) if item is not None)
        kind, sentence = first
        raise kind(f"rank {rank}: {sentence}") from problem

    def spread(self, values: Tensor) -> Tensor:
        """Rank 0's `values`, bit for bit, on every rank."""
        if not self.alone:
            dist.broadcast(values, src=self._first, group=self._group)
        return values

    def share(self, value: Any) -> Any:
        """Rank 0's `value` on every rank."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self._first, group=self._group)
        return box[0]


def _say(problem: Exception) -> str:
    return str(problem) if isinstance(problem, FlermError) else f"{type(problem).__name__}: {problem}"
