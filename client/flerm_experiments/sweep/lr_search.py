"""Which learning rates a curve still needs: from three around where its optimum is expected, outwards only as it asks for.

Rates are places on a lattice, whole numbers of octaves from a centre. A curve is settled when the lowest mean loss has a
neighbour on both sides, all three trained with every seed: that is what the parabola is laid through. Expected right, a curve
costs three trainings a seed; each octave of error costs one more. Later seeds begin with those three places alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

Place = int
Losses = Mapping[tuple[Place, int], float]
"""(place, seed) to the final loss, infinite for a run that diverged."""

FARTHEST = 16
"""Places from the expected one beyond which no curve is followed: rates there differ by more than four decades."""


def wanted(
    losses: Losses, seeds: int, expected: Place, also: Iterable[Place] = ()
) -> list[tuple[Place, int]]:
    """The (place, seed) pairs to train next, best first; empty when the curve is settled for the seeds 0 to `seeds` - 1.

    `also`: places that are wanted in any case. Seed by seed: the next begins when the curve of those before it is settled.
    """
    also = list(also)
    around = {expected - 1, expected, expected + 1}
    for count in range(1, seeds + 1):
        missing = _missing(losses, count, sorted({*around, *also}))
        while not missing and (place := _next(losses, count, expected)) is not None:
            missing = _missing(losses, count, [place])
        if missing:
            return missing
        best = lowest(losses, count)
        around = {best - 1, best, best + 1} & _trained(losses, count)
    return []


def settled(losses: Losses, seeds: int, expected: Place, also: Iterable[Place] = ()) -> int:
    """How many seeds, of at most `seeds`, the curve is settled for."""
    also = list(also)
    return max(
        (count for count in range(1, seeds + 1) if not wanted(losses, count, expected, also)),
        default=0,
    )


def lowest(losses: Losses, seeds: int) -> Place:
    """The place of the lowest mean loss among those trained with all seeds. Of equals the lower rate."""
    return min(sorted(_trained(losses, seeds)), key=lambda place: _mean(losses, place, seeds))


def _missing(losses: Losses, seeds: int, places: Iterable[Place]) -> list[tuple[Place, int]]:
    return [
        (place, seed) for seed in range(seeds) for place in places if (place, seed) not in losses
    ]


def _next(losses: Losses, seeds: int, expected: Place) -> Place | None:
    """The place beyond the best that has not all seeds yet; None when both sides are there or it is too far out."""
    best = lowest(losses, seeds)
    trained = _trained(losses, seeds)
    # Where every place diverged, the lowest of them counts as the best, and the search goes on below it.
    for place in (best - 1, best + 1):
        if place not in trained and abs(place - expected) <= FARTHEST:
            return place
    return None


def _trained(losses: Losses, seeds: int) -> set[Place]:
    places = {place for place, _ in losses}
    return {place for place in places if all((place, seed) in losses for seed in range(seeds))}


def _mean(losses: Losses, place: Place, seeds: int) -> float:
    values = [losses[place, seed] for seed in range(seeds)]
    return fmean(values) if all(map(math.isfinite, values)) else math.inf
