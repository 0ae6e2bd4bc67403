"""Positions in a run, by one of three clocks.

The clocks are the step, the number of tokens that the run has seen, and the fraction of the run.
"""

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
    """The step of a run at a position.

    readings: the position by clock ("step", "tokens", "fraction"), None for the clocks by which it
        is not given. Where all are None, the result is the first measured step. "fraction" is a
        part of `final_step`, in [0, 1]; a `Fraction` gives a step without rounding.
    steps: int64 [T], the measured steps, ascending.
    tokens: int64 [T], the tokens seen by these steps; -1: not known. Between the steps the tokens
        are those of `tokens_at`. Fewer tokens than at the first step give the first step, more than
        at the last step give the last.
    final_step: the step at which the run ended.
    source: the name of what logged the tokens, for error messages.

    Raises `InvalidInput` for more than one clock, a value out of range, or tokens that do not grow
    from row to row (tokens of single batches, or logged only once); `NotFound` for tokens where
    none are known.
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
    """The tokens that a run had seen by the steps `asked` [S]: float64 [S].

    steps, tokens: as in `step_at`; at least one count is known.

    The result is linear between known counts, and beyond them it grows by the run's tokens per
    step.
    """
    at, seen = steps[tokens >= 0], tokens[tokens >= 0]
    per_step = (seen[-1] - seen[0]) / (at[-1] - at[0]) if len(at) > 1 else seen[0] / max(at[0], 1)
    beyond: NDArray[np.float64] = per_step * (asked - np.clip(asked, at[0], at[-1]))
    return np.maximum(np.interp(asked, at, seen) + beyond, 0.0)


def _refuse_stuck(
    asked: float, steps: NDArray[np.int64], tokens: NDArray[np.int64], source: str
) -> None:
    at, seen = steps[tokens >= 0], tokens[tokens >= 0]
    stuck = np.flatnonzero(seen[1:] <= seen[:-1])
    if stuck.size:
        here, there = stuck[0], stuck[0] + 1
        raise InvalidInput(
            f"tokens: {asked:g} asked, but {source} logged {seen[here]} at step {at[here]} and "
            f"{seen[there]} at step "
            f"{at[there]}, and tokens seen so far grow from step to step; ask by step"
        )
