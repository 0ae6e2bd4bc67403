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
    readings: Mapping[str, Reading | None],
    steps: NDArray[np.int64],
    tokens: NDArray[np.int64],
    final_step: int,
    source: str,
) -> float:
    """The step of a run at which a clock shows what `readings` has for it; its first measured step where no clock is read.

    The run was measured at `steps` [T], at each of which it had seen `tokens` [T] (-1: not known), and ended at `final_step`.
    Tokens are as `tokens_at` has them; before the first and after the last of these steps they are not told apart from it. A
    fraction is of `final_step`, and a `Fraction` names a step exactly. Raises `InvalidInput` for more than one clock, a value
    out of range or tokens that do not grow from row to row (those of one batch, or logged once), `NotFound` for tokens where
    none are known; `source` is what logged them so.
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
        if not (tokens >= 0).any():
            raise NotFound(
                f"tokens: {float(value):g} asked, but {source} logged no tokens; ask by step"
            )
        _refuse_stuck(float(value), steps, tokens, source)
        return float(np.interp(float(value), tokens_at(steps, tokens, steps), steps))
    return float(steps[0])


def tokens_at(
    steps: NDArray[np.int64], tokens: NDArray[np.int64], asked: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Tokens that a run had seen by the steps `asked`, from those at `steps`, of which one at least is known.

    Linear between what is known, and beyond it by the run's tokens a step.
    """
    at, seen = steps[tokens >= 0], tokens[tokens >= 0]
    pace = (seen[-1] - seen[0]) / (at[-1] - at[0]) if len(at) > 1 else seen[0] / max(at[0], 1)
    beyond: NDArray[np.float64] = pace * (asked - np.clip(asked, at[0], at[-1]))
    return np.maximum(np.interp(asked, at, seen) + beyond, 0.0)


def _refuse_stuck(
    asked: float, steps: NDArray[np.int64], tokens: NDArray[np.int64], source: str
) -> None:
    at, seen = steps[tokens >= 0], tokens[tokens >= 0]
    stuck = np.flatnonzero(seen[1:] <= seen[:-1])
    if stuck.size:
        here, there = stuck[0], stuck[0] + 1
        raise InvalidInput(
            f"tokens: {asked:g} asked, but {source} logged {seen[here]} at step {at[here]} and {seen[there]} at step "
            f"{at[there]}, and tokens seen so far grow from step to step; ask by step"
        )
