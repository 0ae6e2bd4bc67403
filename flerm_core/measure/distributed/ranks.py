"""The processes that measure together: they sum their statistics and raise the same errors."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist

from flerm_core import errors
from flerm_core.errors import FlermError, MeasurementError
from flerm_core.measure.distributed.gloo_lifetime import retain_group

Message = tuple[str, str]  # the error's class and its sentence

_instances: Counter[str] = Counter()  # MeasurementRanks made so far, by `_name_of`


class MeasurementRanks:
    """The processes that measure one model together. A single process needs no process group.

    group: the process group of all ranks; None stands for the default group.
    single_process: this process measures alone, whatever groups exist.
    groups: several process groups instead of `group`, one per mesh dimension. A sum over one group
        after the other is the sum over all ranks.
    model_parallel_groups: those of the groups whose ranks work on one batch (tensor parallel).
    data_parallel_rank: this rank's number among those with batches of their own. Ranks that work on
        one batch have the same number. Default: the rank in the first group.
    lockstep: the ranks' forwards wait for each other (FSDP2, tensor parallel). A rank that fails in
        a forward then cannot go on to the next reduction.

    `size` is the number of ranks. `is_rank0` is true on one rank: the one that talks to the
    registry. `broken` is true once a rank has failed alone, in lockstep: the others wait for that
    rank, and none can go on. `check_supported` is called at the start of each measurement and
    raises `Unsupported` where it cannot take place; it allows everything until another check is
    assigned.
    """

    def __init__(
        self,
        group: Any = None,
        *,
        single_process: bool = False,
        groups: Sequence[Any] | None = None,
        model_parallel_groups: Sequence[Any] = (),
        data_parallel_rank: int | None = None,
        lockstep: bool = False,
    ) -> None:
        self.single_process = single_process or not (dist.is_available() and dist.is_initialized())
        self._groups: list[Any] = []
        self.size, own_rank, self.is_rank0, name = 1, 0, True, ""
        if not self.single_process:
            self._groups = [group] if groups is None else list(groups)
            for each in self._groups:
                retain_group(each)
            self.size = math.prod(dist.get_world_size(each) for each in self._groups)
            own_rank = dist.get_rank(self._groups[0])
            self.is_rank0 = all(dist.get_rank(each) == 0 for each in self._groups)
            name = _name_of(self._groups)
        self._model_parallel_groups = list(model_parallel_groups)
        self.data_parallel_rank = own_rank if data_parallel_rank is None else data_parallel_rank
        self.lockstep = lockstep
        self.check_supported: Callable[[], None] = lambda: None
        self._instance = f"{name}/{_instances[name]}"
        _instances[name] += 1
        self._raised: FlermError | None = None
        self.broken = False

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all ranks, bit for bit the same on each; in place.

        One all-reduce per group, none for a single process.
        """
        for group in self._groups:
            self._all_reduce(values, group)
        return values

    def sum_model_parallel(self, values: Tensor) -> Tensor:
        """The elementwise sum over the ranks that work on this rank's batch; in place."""
        for group in self._model_parallel_groups:
            self._all_reduce(values, group)
        return values

    @property
    def share_one_batch(self) -> bool:
        """Whether all ranks work on one batch."""
        groups = self._model_parallel_groups
        return bool(groups) and math.prod(map(dist.get_world_size, groups)) == self.size

    def _all_reduce(self, values: Tensor, group: Any) -> None:
        try:
            dist.all_reduce(values, group=group)
        except RuntimeError as error:
            self._raise_stored_failure(error)
            raise

    def all_equal(self, value: object, device: torch.device | str) -> bool:
        """Whether `value` is the same on all ranks; values are equal when their `repr` is.

        Called by all ranks at the same point. One all-reduce: values are equal everywhere exactly
        when n Σ h² = (Σ h)² for each piece h of their digest.
        """
        digest = hashlib.sha256(repr(value).encode()).digest()
        # Pieces of 16 bits, so that float64 sums of their squares are exact.
        pieces = [int.from_bytes(digest[at : at + 2], "little") for at in range(0, 8, 2)]
        sent = torch.tensor(
            [1, *pieces, *(each**2 for each in pieces)], dtype=torch.float64, device=device
        )
        count, *sums = map(int, self.sum(sent).tolist())
        return all(
            count * squares == total**2 for total, squares in zip(sums[:4], sums[4:], strict=True)
        )

    def raise_on_all(self, problem: Exception | None) -> NoReturn:
        """Raises the error of the first rank that has a problem, on all ranks.

        Called by all ranks at the same point, after at least one of them had a problem.
        """
        messages: list[Message | None] = [_message_of(problem)]
        for group in self._groups:
            gathered: list[list[Message | None]] = [[] for _ in range(dist.get_world_size(group))]
            dist.all_gather_object(gathered, messages, group=group)
            messages = [message for each in gathered for message in each]
        rank, first = next((rank, each) for rank, each in enumerate(messages) if each is not None)
        self._raised = _error_from(first, rank)
        raise self._raised from problem

    def has_raised(self, problem: Exception) -> bool:
        """Whether `problem` is the error that every rank raises by now."""
        return problem is self._raised

    def fail_all(self, problem: Exception) -> NoReturn:
        """Raises the error of the rank that failed first, where ranks run in lockstep.

        No collective: the message goes through the process group's store. The other ranks raise it
        as soon as their own collective breaks, because this rank ended or the group timed out.
        """
        if problem is self._raised:  # raised on all ranks already
            raise problem
        self.broken = True
        rank, message = dist.get_rank(), _message_of(problem)
        stored = _store().compare_set(self._failure_key, "", json.dumps([rank, message]))
        first_rank, first_message = json.loads(stored)
        raise _error_from(first_message, first_rank) from problem

    def _raise_stored_failure(self, error: RuntimeError) -> None:
        """A collective broke: raises the reason, where a rank that left has stored one."""
        if self.lockstep and _store().check([self._failure_key]):
            self.broken = True
            rank, message = json.loads(_store().get(self._failure_key))
            self._raised = _error_from(message, rank)
            raise self._raised from error

    @property
    def _failure_key(self) -> str:
        # The restart count, because ranks that torchrun restarts may find the earlier ranks' store.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"flerm/failure/{restarts}/{self._instance}"

    def broadcast(self, values: Tensor) -> Tensor:
        """Rank 0's `values`, bit for bit, on every rank; in place."""
        for group in self._groups:
            dist.broadcast(values, group=group, group_src=0)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value` on every rank. It is pickled."""
        for group in self._groups:
            box = [value]
            dist.broadcast_object_list(box, group=group, group_src=0)
            value = box[0]
        return value

    def on_rank0(self, ask: Callable[[], Any]) -> Any:
        """What `ask` returns on rank 0, on every rank; a `FlermError` is raised on every rank."""
        answer: Any = None
        if self.is_rank0:
            try:
                answer = ask()
            except FlermError as error:
                answer = error
        answer = self.broadcast_object(answer)
        if isinstance(answer, FlermError):
            raise answer
        return answer


def _name_of(groups: Sequence[Any]) -> str:
    """A name for these ranks, the same on each; each name counts its own instances."""
    if len(groups) > 1:
        return "grid"
    ranks = dist.get_process_group_ranks(dist.group.WORLD if groups[0] is None else groups[0])
    return hashlib.sha256(repr(ranks).encode()).hexdigest()[:16]


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _message_of(problem: Exception | None) -> Message | None:
    if problem is None:
        return None
    if isinstance(problem, FlermError):
        return type(problem).__name__, str(problem)
    return MeasurementError.__name__, f"{type(problem).__name__}: {problem}"


def _error_from(message: Message, rank: int) -> FlermError:
    class_name, sentence = message
    made: FlermError = getattr(errors, class_name, MeasurementError)(f"rank {rank}: {sentence}")
    return made
