"""Joining what the ranks measured: one all-reduce for everything, and one verdict for all."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist

from flerm_core import errors
from flerm_core.errors import FlermError, MeasurementError

_instances: Counter[str] = Counter()  # by `_among`
_kept: list[Any] = []


def retain_group(group: Any = None) -> None:
    """Keeps a process group (None: the default one) until the interpreter ends; called while the group exists.

    Gloo's destructor joins worker threads that may be waiting for the interpreter's lock, and DDP's reducer, when it is the
    last owner, runs that destructor with the lock held: a rank that destroys its group before its model then hangs at its end,
    once in a hundred runs on a busy machine. Python's own reference lets go of the lock first.
    """
    if not _kept:
        atexit.register(_let_go)
    group = dist.group.WORLD if group is None else group
    if not any(each is group for each in _kept):
        _kept.append(group)


def _let_go() -> None:
    """The last moment at which a worker that is giving back a tensor gets the interpreter's lock.

    Later it would end the process with SIGABRT, and a script that ends right after a collective would lose its exit code.
    """
    _kept.clear()  # joins the workers of groups that nobody else holds
    time.sleep(0.1)  # for those of the others


class MeasurementRanks:
    """The processes that measure together. A world of one needs no process group.

    `groups` together span them: a sum over one after the other is the sum over all. `split` are those of them along which
    ranks work on one and the same batch (tensor parallel). `rank` counts the batches: ranks that share one share it. `locked`:
    the ranks' forwards wait for each other (FSDP2, tensor parallel), so a rank that fails cannot go on to the next reduction.
    """

    def __init__(
        self,
        group: Any = None,
        *,
        alone: bool = False,
        groups: Sequence[Any] | None = None,
        split: Sequence[Any] = (),
        rank: int | None = None,
        locked: bool = False,
    ) -> None:
        self.alone = alone or not (dist.is_available() and dist.is_initialized())
        self._groups: list[Any] = [group] if groups is None else list(groups)
        self._split = list(split)
        self.locked = locked
        for each in [] if self.alone else self._groups:
            retain_group(each)
        self.size = (
            1 if self.alone else math.prod(dist.get_world_size(each) for each in self._groups)
        )
        own = 0 if self.alone else dist.get_rank(self._groups[0])
        self.rank = own if rank is None else rank
        self.lead = self.alone or all(dist.get_rank(each) == 0 for each in self._groups)
        self.refuse: Callable[[], None] = lambda: None
        among = "" if self.alone else _among(self._groups)
        self._serial = f"{among}/{_instances[among]}"
        _instances[among] += 1
        self._raised: FlermError | None = None

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over ranks, the same bits on each. One collective a group; none in a world of one."""
        if not self.alone:
            for group in self._groups:
                self._reduce(values, group)
        return values

    def sum_split(self, values: Tensor) -> Tensor:
        """The elementwise sum over the ranks that work on this rank's batch."""
        for group in self._split:
            self._reduce(values, group)
        return values

    @property
    def share_one_batch(self) -> bool:
        """Whether all ranks work on one and the same batch."""
        return (
            bool(self._split)
            and math.prod(dist.get_world_size(each) for each in self._split) == self.size
        )

    def _reduce(self, values: Tensor, group: Any) -> None:
        try:
            dist.all_reduce(values, group=group)
        except RuntimeError as error:
            self._raise_told(error)
            raise

    def same(self, value: object, device: torch.device | str) -> bool:
        """Whether `value` (what prints alike is alike) is the same on all ranks. Called by all ranks at the same point."""
        digest = hashlib.sha256(repr(value).encode()).digest()
        own = [
            int.from_bytes(digest[at : at + 2], "little") for at in range(0, 8, 2)
        ]  # so small that sums are exact
        sent = torch.tensor(
            [1, *own, *(each**2 for each in own)], dtype=torch.float64, device=device
        )
        count, *sums = map(int, self.sum(sent).tolist())
        return all(
            count * squares == total**2 for total, squares in zip(sums[:4], sums[4:], strict=True)
        )

    def raise_together(self, problem: Exception | None) -> None:
        """Exchanges the sentences of the ranks that have a problem and raises the first one everywhere. Called by all ranks."""
        told: list[tuple[str, str] | None] = [_told(problem)]
        for group in self._groups:
            found: list[list[tuple[str, str] | None]] = [
                [] for _ in range(dist.get_world_size(group))
            ]
            dist.all_gather_object(found, told, group=group)
            told = [item for each in found for item in each]
        rank, first = next((rank, item) for rank, item in enumerate(told) if item is not None)
        self._raised = _error(first, rank)
        raise self._raised from problem

    def fail(self, problem: Exception) -> NoReturn:
        """For `locked` ranks: raises the sentence of the rank that failed first, here and, once they give up waiting for this
        rank (its end, or the process group's timeout), on the others. Not a collective: goes through the store."""
        if problem is self._raised:  # everyone has been told
            raise problem
        rank, told = dist.get_rank(), _told(problem)
        first = json.loads(_store().compare_set(self._place, "", json.dumps([rank, told])))
        raise _error(first[1], first[0]) from problem

    def _raise_told(self, error: RuntimeError) -> None:
        """A broken collective: another rank may have said why it left."""
        if self.locked and _store().check([self._place]):
            rank, told = json.loads(_store().get(self._place))
            self._raised = _error(told, rank)
            raise self._raised from error

    @property
    def _place(self) -> str:
        # Ranks that torchrun restarts may find the store of those before them, with what these left there.
        return f"flerm/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{self._serial}"

    def spread(self, values: Tensor) -> Tensor:
        """The lead's `values`, bit for bit, on every rank."""
        for group in [] if self.alone else self._groups:
            dist.broadcast(values, group=group, group_src=0)
        return values

    def share(self, value: Any) -> Any:
        """The lead's `value` on every rank."""
        for group in [] if self.alone else self._groups:
            box = [value]
            dist.broadcast_object_list(box, group=group, group_src=0)
            value = box[0]
        return value


def _among(groups: Sequence[Any]) -> str:
    """What the ranks of `groups` call themselves: each set of ranks counts what it measures together."""
    if len(groups) > 1:
        return "grid"
    ranks = dist.get_process_group_ranks(dist.group.WORLD if groups[0] is None else groups[0])
    return hashlib.sha256(repr(ranks).encode()).hexdigest()[:16]


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _told(problem: Exception | None) -> tuple[str, str] | None:
    if problem is None:
        return None
    own = isinstance(problem, FlermError)
    return (type(problem) if own else MeasurementError).__name__, str(
        problem
    ) if own else f"{type(problem).__name__}: {problem}"


def _error(told: tuple[str, str], rank: int) -> FlermError:
    kind, sentence = told
    made: FlermError = getattr(errors, kind, MeasurementError)(f"rank {rank}: {sentence}")
    return made
