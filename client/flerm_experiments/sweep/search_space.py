"""What a sweep file tunes on the base besides the learning rate: its dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flerm_core.errors import InvalidInput

Value = int | float | str
"""What a placeholder of a command stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One placeholder, and the values that may be tried for it.

    name: the placeholder.
    values: the list to choose from; empty for a range.
    low, high: the bounds of a range, both included; whole numbers for a range of whole numbers.
    log: whether values are drawn evenly by their logarithms.

    Raises `InvalidInput` for fewer than two values, and for a range that is none.
    """

    name: str
    values: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    def __post_init__(self) -> None:
        if self.values:
            if len(set(self.values)) < max(len(self.values), 2):
                raise InvalidInput(
                    f"search.{self.name} is {list(self.values)!r}, but it must have at least two "
                    "values, each once"
                )
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InvalidInput(
                f"search.{self.name} is from {self.low!r} to {self.high!r}, but low must be below "
                "high, and both finite"
            )
        if self.log and self.low <= 0:
            raise InvalidInput(
                f"search.{self.name}.low is {self.low!r}, but with log = true it must be above 0"
            )

    @property
    def is_whole(self) -> bool:
        """Whether the range is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def read(self, value: object) -> Value | None:
        """`value`, as a recording's configuration has it, as one of this dimension's; or None."""
        if self.values:
            return next((each for each in self.values if each == value), None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        number = float(value)
        if not self.low <= number <= self.high or (self.is_whole and not number.is_integer()):
            return None
        return int(number) if self.is_whole else number


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """All dimensions of a search, and how many points of it are trained."""

    dimensions: tuple[Dimension, ...]
    trials: int
