"""Moments of a run, told by one of three clocks: its step, the tokens it has seen by then, the fraction of it that is over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import InvalidInput, NotFound

CLOCKS = ("step", "tokens", "fraction")

Reading = float | Fraction


def step_at(
    readings: Mapping[str, Reading | None], steps: NDArray[np.int64], tokens: NDArray[np.int64], final_step: int, source: str
) -> float:
    """The step of a run at which a clock shows what `readings` has for it; its first measured step where no clock is read.

    The run was measured at `steps` [T], at each of which it had seen `tokens` [T] (-1: not known), and ended at `final_step`.
    Between those steps tokens are linear; before the first and after the last they are not told apart from it. A fraction is
    of `final_step`, and a `Fraction` names a step exactly. Raises `InvalidInput` for more than one clock or a value out of
    range, `NotFound` for tokens where none are known: then `source` is what logged none.
    """
    given = {name: value for name, value in readings.items() if value is not None}
    if len(given) > 1:
        raise InvalidInput(f"{' and '.join(given)}: {len(given)} clocks given; one is allowed")
    for name, value in given.items():
        if not (math.isfinite(value) and value >= 0) or (name == "fraction" and value > 1):
            allowed = "numbers from 0 to 1" if name == "fraction" else "finite numbers from 0"
            raise InvalidInput(f"{name}: {value} is out of range; allowed are {allowed}")
        if name == "step":
            return float(value)
        if name == "fraction":
            return float(value * final_step)
        known = tokens >= 0
        if not known.any():
            raise NotFound(f"tokens: {float(value):g} asked, but {source} logged no tokens; ask by step")
        return float(np.interp(float(value), tokens[known], steps[known]))
    return float(steps[0])
