"""Which learning rates a curve of loss against learning rate still needs.

Rates are counted in steps of the sweep's grid from its initial rate: where the grid has one rate in
an octave, index i is `initial_lr · 2^i`. The search begins with three rates around the expected
optimum and adds a rate outside only where the lowest mean loss lies at an end. A curve is settled
when the lowest mean loss has a neighbour on both sides and all three were trained with every seed,
because the parabola is fitted through these three. A right expectation costs three trainings a
seed, and each step of error costs one more. Later seeds train only the optimum's three rates at
first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

LrIndex = int
Losses = Mapping[tuple[LrIndex, int], float]
"""(learning-rate index, seed) to the final loss, infinite for a run that diverged."""

FARTHEST = 16
"""Steps of the grid from the expected optimum beyond which no curve is followed."""

EVERYWHERE = range(-1000, 1001)
"""All rates that a float has at whole octaves around a learning rate."""


def runs_to_train(
    losses: Losses,
    seeds: int,
    expected: LrIndex,
    required: Iterable[LrIndex] = (),
    allowed: range = EVERYWHERE,
) -> list[tuple[LrIndex, int]]:
    """The (index, seed) pairs to train next, the most useful first; empty for a settled curve.

    seeds: train with the seeds 0 to `seeds` - 1; a seed begins when the curve of the seeds before
        it is settled.
    expected: where the search begins.
    required: indices to train in any case.
    allowed: indices that may be trained; the search ends at its bounds.
    """
    required = [index for index in required if index in allowed]
    expected = min(max(expected, allowed.start), allowed.stop - 1)
    around = {expected - 1, expected, expected + 1} & set(allowed)
    for count in range(1, seeds + 1):
        missing = _untrained(losses, count, sorted({*around, *required}))
        while (
            not missing and (index := _next_outward(losses, count, expected, allowed)) is not None
        ):
            missing = _untrained(losses, count, [index])
        if missing:
            return missing
        best = best_index(losses, count)
        around = {best - 1, best, best + 1} & _fully_trained(losses, count)
    return []


def settled_seeds(
    losses: Losses,
    seeds: int,
    expected: LrIndex,
    required: Iterable[LrIndex] = (),
    allowed: range = EVERYWHERE,
) -> int:
    """For how many seeds, of at most `seeds`, the curve is settled."""
    required = list(required)
    counts = range(seeds, 0, -1)
    return next((n for n in counts if not runs_to_train(losses, n, expected, required, allowed)), 0)


def best_index(losses: Losses, seeds: int) -> LrIndex:
    """The index of the lowest mean loss among those trained with all seeds; of equals the lower."""
    return min(
        sorted(_fully_trained(losses, seeds)), key=lambda index: _mean_loss(losses, index, seeds)
    )


def _untrained(losses: Losses, seeds: int, indices: Iterable[LrIndex]) -> list[tuple[LrIndex, int]]:
    pairs = ((index, seed) for seed in range(seeds) for index in indices)
    return [pair for pair in pairs if pair not in losses]


def _next_outward(losses: Losses, seeds: int, expected: LrIndex, allowed: range) -> LrIndex | None:
    """The neighbour of the best index that some seed has not trained.

    None when both are trained, not allowed or too far out.
    """
    best = best_index(losses, seeds)
    trained = _fully_trained(losses, seeds)
    # Where every rate diverged, `best_index` is the lowest one, and the search goes on below it.
    for index in (best - 1, best + 1):
        if index in allowed and index not in trained and abs(index - expected) <= FARTHEST:
            return index
    return None


def _fully_trained(losses: Losses, seeds: int) -> set[LrIndex]:
    indices = {index for index, _ in losses}
    return {index for index in indices if all((index, seed) in losses for seed in range(seeds))}


def _mean_loss(losses: Losses, index: LrIndex, seeds: int) -> float:
    values = [losses[index, seed] for seed in range(seeds)]
    return fmean(values) if all(map(math.isfinite, values)) else math.inf
