"""All runs of one family in memory, with the answers that were computed of them.

A family may have 20,000 runs, and every question about its losses needs them all. They change when
a run starts or ends, and questions come more often. So a store keeps them, and each answer is
computed once for each change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar, cast

from flerm_core.records.recording import Family
from flerm_core.tuning.best_lr import SweepRun
from flerm_core.tuning.transfer_report import Curves

Answer = TypeVar("Answer")

MAX_ANSWERS = 64  # of one family


@dataclass(frozen=True, slots=True)
class FamilyRun:
    """One recording of a family, as the questions about its losses need it.

    optimizer_key: see `ComparabilityKey`.
    status: a recording that lost its lease is still `running` here; see `FamilyRuns.lapsed`.
    """

    id: str
    role: str
    variant: str
    optimizer: str
    optimizer_key: str
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    run: SweepRun

    @property
    def status(self) -> str:
        """The recording's status."""
        return self.run.status

    @property
    def final_loss(self) -> float | None:
        """The recording's final loss."""
        return self.run.loss


class Answers:
    """Answers computed of the same runs, by what was asked."""

    def __init__(self, before: Answers | None = None) -> None:
        """before: the answers of the runs before their last change."""
        self.curves: Curves = Curves() if before is None else before.curves
        self._found: dict[Hashable, Any] = {}
        self._computing = threading.RLock()

    def get(self, asked: Hashable, compute: Callable[[], Answer]) -> Answer:
        """The answer to `asked`, which is computed at the first time.

        Callers wait for each other: none computes what another one does.
        """
        with self._computing:
            if asked not in self._found:
                answer = compute()
                while len(self._found) >= MAX_ANSWERS:
                    del self._found[next(iter(self._found))]
                self._found[asked] = answer
            return cast("Answer", self._found[asked])


@dataclass(frozen=True, slots=True)
class FamilyRuns:
    """The runs of one family, newest first.

    active_at: when one of them was last written to; without runs, when the family was changed.
    revision: how often the database had counted a change of the runs.
    lapsed: the ids of those that are interrupted because their lease ended.
    written: when each running recording was last written to, in microseconds.
    answers: what was computed of these runs.
    read_lengths: reads how many steps each recording ran, and how many were measured, by its id.
        These numbers change with every row, and are not among what is kept.
    """

    family: Family
    runs: tuple[FamilyRun, ...]
    active_at: datetime
    revision: int
    lapsed: frozenset[str]
    written: tuple[int, ...]
    answers: Answers = field(repr=False, compare=False)
    read_lengths: Callable[[], Mapping[str, tuple[int, int]]] = field(repr=False, compare=False)

    @property
    def version(self) -> Hashable:
        """While this is the same, so is all that the family's recordings say of themselves."""
        return self.family, self.revision, self.lapsed, self.written

    def status_of(self, run: FamilyRun) -> str:
        """The status of one of `runs` at present."""
        return "interrupted" if run.id in self.lapsed else run.status
