"""Which position of the base's run a step of a matched run corresponds to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from flerm_core.errors import InvalidInput
from flerm_core.records.checks import check_integer
from flerm_core.run_clock import CLOCKS, Reading


@dataclass(frozen=True, slots=True)
class TargetClock:
    """A step's targets are the base's at the same step, at as many tokens, or at the same fraction.

    clock: "step", "tokens" or "fraction".
    total_steps: the length of this run in optimiser steps, for the clock "fraction" only. After
        that many steps the fraction stays 1.

    Raises `InvalidInput` for another clock, and where `total_steps` is missing or superfluous.
    """

    clock: str = "step"
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            raise InvalidInput(
                f"clock={self.clock!r} is not allowed; there are {', '.join(CLOCKS)}"
            )
        if self.clock == "fraction":
            if self.total_steps is None:
                raise InvalidInput(
                    "clock='fraction' needs total_steps=, "
                    "the number of optimiser steps that this run will have"
                )
            check_integer("total_steps", self.total_steps, 1)
            # A checkpoint cannot read numpy's integers back.
            object.__setattr__(self, "total_steps", int(self.total_steps))
        elif self.total_steps is not None:
            raise InvalidInput(
                f"total_steps={self.total_steps} goes with clock='fraction' alone, "
                f"but clock is {self.clock!r}; leave it out"
            )

    def __str__(self) -> str:
        arguments = (
            f"{name}={value!r}" for name, value in asdict(self).items() if value is not None
        )
        return ", ".join(arguments)

    def position_at(self, step: int, tokens: int | None) -> dict[str, Reading]:
        """The position of this run's `step` on the clock, as a keyword of `Targets.step_at`.

        `tokens` are those seen by the end of the step. Raises `InvalidInput` where the clock counts
        tokens and none were logged.
        """
        if self.clock == "step":
            return {"step": step}
        if self.total_steps is not None:
            # Exact: a run as long as its base reads the targets at the very steps of its base.
            return {"fraction": Fraction(min(step, self.total_steps), self.total_steps)}
        if tokens is None:
            raise InvalidInput(
                f"clock='tokens': step {step} is to be matched and no tokens were logged for it "
                "(on rank 0): call flerm.log(tokens=...), the tokens seen so far, "
                "before each optimizer.step()"
            )
        return {"tokens": tokens}

    def state_dict(self) -> dict[str, Any]:
        """The arguments of this class, as plain values."""
        return asdict(self)
