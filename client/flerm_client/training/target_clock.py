"""By which clock a matched run goes along its base's run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from flerm_core.errors import InvalidInput
from flerm_core.records.checks import check_integer
from flerm_core.run_clock import CLOCKS, Reading


@dataclass(frozen=True, slots=True)
class TargetClock:
    """Targets of a run's step are the base's at the same `clock`: at that step, at as many tokens, or at as large a fraction.

    `total_steps`: the length of this run, for the fraction alone; beyond it the fraction stays 1. Raises `InvalidInput` for a
    clock that there is not, for a fraction without `total_steps`, and for these without a fraction.
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
                    "clock='fraction' needs total_steps=, the number of optimiser steps that this run will have"
                )
            check_integer("total_steps", self.total_steps, 1)
            object.__setattr__(
                self, "total_steps", int(self.total_steps)
            )  # of numpy's, which a checkpoint would not read back
        elif self.total_steps is not None:
            raise InvalidInput(
                f"total_steps={self.total_steps} goes with clock='fraction' alone, but clock is {self.clock!r}; leave it out"
            )

    def __str__(self) -> str:
        arguments = (
            f"{name}={value!r}" for name, value in asdict(self).items() if value is not None
        )
        return ", ".join(arguments)

    def reading(self, step: int, tokens: int | None) -> dict[str, Reading]:
        """What the clock shows at this run's `step`, by its name; `tokens` are those seen by then.

        Raises `InvalidInput` where it counts tokens and nobody told them.
        """
        if self.clock == "step":
            return {"step": step}
        if self.total_steps is not None:
            # Exact: a run as long as its base reads the very steps of its base.
            return {"fraction": Fraction(min(step, self.total_steps), self.total_steps)}
        if tokens is None:
            raise InvalidInput(
                f"clock='tokens': step {step} is to be matched and no tokens were logged for it (on rank 0): call "
                "flerm.log(tokens=...), the tokens seen so far, before each optimizer.step()"
            )
        return {"tokens": tokens}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; arguments of this class."""
        return asdict(self)
