"""What a matched run changes where its batch or its length is not the base's.

Let a step have k times the base's examples, and the run s times the base's steps.

* A moment of decay β gets the decay β^√k, but no power above 2 and none below 1. Less momentum
  lowers the loss, and more so in bigger batches, but a first beta of 0.43 raised it in every batch
  that was tried. Decays β^k, after as many examples (Marek et al. 2025, arXiv 2507.07101, for the
  second moment), leave too little at k = 16. In a smaller batch longer moments raised the loss.
* Learning rates are multiplied by (k / s)^¼. In a run over as many examples as the base (s = 1/k)
  this is √k (Malladi et al. 2022, arXiv 2205.10287). In a run over more examples, the rate falls
  with the fourth root of their number, where Bjorck et al. 2024 (arXiv 2409.19913) have the power
  0.32.

docs/decisions.md has the measurements of this rule and of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flerm_core.errors import InvalidInput
from flerm_core.matching.targets import Targets
from flerm_core.records.batch_size import BATCH_SIZE
from flerm_core.records.checks import check_integer

FOLLOWING = ("Adam", "AdamW")
"""The optimisers that the rule was measured with. The first update of these does not depend on
their betas, so a match at the first step is the same with the base's betas and with others."""
BATCH_FACTOR = "batch_factor"
"""The auxiliary scalar of a matched run's rows that holds `BatchChange.rate`, where it is not 1."""
_RATE_POWER = 1 / 4
_GREATEST_BETA_POWER = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChange:
    """A run whose steps have another number of examples than the base's, or that has more or fewer.

    base, own: examples of one optimiser step, over all ranks and accumulated micro-batches.
    base_steps, own_steps: optimiser steps of the whole run.
    base_betas: the base's decays of the moments, once for each group of parameters with other ones.
    """

    base: int
    own: int
    base_steps: int
    own_steps: int
    base_betas: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, targets: Targets, own: object, own_steps: object = None) -> BatchChange:
        """The change from the batch and the length of the runs behind `targets`.

        own_steps: None for as many steps as the base.

        Raises `InvalidInput` for a wrong `own` or `own_steps`, for a base whose batch size is not
        known, and for an optimiser for which no rule was measured.
        """
        check_integer(BATCH_SIZE, own, 1)
        if own_steps is not None:
            check_integer("total_steps", own_steps, 1)
        if targets.batch_size is None:
            raise InvalidInput(
                f"batch_size={own}: the base recordings of {targets.family!r} do not all say one "
                "batch size; record the base with batch_size=, set the tag batch_size of these "
                "recordings (flerm tag), or leave batch_size out"
            )
        if not can_follow(targets.optimizer, targets.optimizer_config):
            raise InvalidInput(
                f"batch_size={own}: the rule for another batch was measured with "
                f"{' and '.join(FOLLOWING)}, but the optimizer of {targets.family!r} is "
                f"{targets.optimizer or 'not known'}; leave batch_size out"
            )
        betas = targets.optimizer_config["betas"]
        groups = betas if isinstance(betas[0], list | tuple) else [betas]
        return cls(
            base=targets.batch_size,
            own=int(own),  # type: ignore[call-overload]
            base_steps=targets.final_step,
            own_steps=targets.final_step if own_steps is None else int(own_steps),  # type: ignore[call-overload]
            base_betas=tuple(tuple(map(float, each)) for each in groups),
        )

    @classmethod
    def asked(
        cls, targets: Targets, batch_size: int | None, total_steps: int | None
    ) -> BatchChange | None:
        """`of`, or None where no batch size is given. Raises `InvalidInput` for steps alone."""
        if batch_size is not None:
            return cls.of(targets, batch_size, total_steps)
        if total_steps is not None:
            raise InvalidInput(
                f"total_steps: {total_steps} goes with a batch size; give both, or leave it out"
            )
        return None

    @property
    def times(self) -> float:
        """This run's batch over the base's."""
        return self.own / self.base

    @property
    def rate(self) -> float:
        """What every learning rate is multiplied by."""
        return float((self.times * self.base_steps / self.own_steps) ** _RATE_POWER)

    def betas(self, base_betas: Iterable[float]) -> tuple[float, ...]:
        """The decays of this run's moments, where the base has `base_betas`: the same ones in a
        smaller batch.
        """
        power = min(max(math.sqrt(self.times), 1.0), _GREATEST_BETA_POWER)
        return tuple(beta**power for beta in base_betas)

    def settings(self, optimizer_config: Mapping[str, Any]) -> dict[str, Any]:
        """The base's `optimizer_config` with the betas of this run."""
        groups = [list(self.betas(each)) for each in self.base_betas]
        return {**optimizer_config, "betas": groups if len(groups) > 1 else groups[0]}

    @property
    def sentence(self) -> str:
        """What the change is, for people."""
        what = (
            f"batch size {self.own} in {self.own_steps} steps, where the base has {self.base} in "
            f"{self.base_steps}"
        )
        if self.own == self.base and self.own_steps == self.base_steps:
            return f"{what}: nothing is changed"
        return f"{what}: {self._changes}"

    @property
    def _changes(self) -> str:
        become = " and ".join(
            f"{_pair(each)} become {_pair(self.betas(each))}" for each in self.base_betas
        )
        betas = become if self.own > self.base else "stay"
        return (
            f"learning rates are multiplied by {self.rate:.4g}, and the betas {betas} "
            "(docs/choices.md)"
        )


def can_follow(optimizer: str, optimizer_config: Mapping[str, Any]) -> bool:
    """Whether a rule for another batch was measured with this optimizer."""
    known = set(optimizer.split("+")) <= set(FOLLOWING)
    return known and bool(optimizer_config.get("betas"))


def unfollowed(targets: Targets, own: int | None) -> str:
    """What a run should know whose batch size is not the base's and that was not told to follow it.

    own: the examples of one optimiser step of the run; None: not known. Empty where the batch size
    is the base's, or either is not known.
    """
    if own is None or targets.batch_size in (None, own):
        return ""
    differ = f"a step of this run has {own} examples and a step of the base {targets.batch_size}"
    try:
        change = BatchChange.of(targets, own)
    except InvalidInput:
        return (
            f"{differ}: rates stay as matched, for no rule for another batch was measured with "
            f"{targets.optimizer or 'this optimizer'}"
        )
    return (
        f"{differ}: betas and rates do not follow; with batch_size={own} {change._changes}; "
        "give total_steps= too where the run is longer or shorter than the base"
    )


def _pair(betas: Iterable[float]) -> str:
    return f"({', '.join(f'{beta:.6g}' for beta in betas)})"
