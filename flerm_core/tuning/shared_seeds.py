"""Compares learning rates by the seeds that they share.

Seeds differ in the level of their loss. A mean over one seed must therefore not be compared with a
mean over three: a rate that was run with the luckiest seed alone would be the best.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

SeedLosses = Mapping[int, float]
"""The finite losses at one learning rate, by seed."""


def lowest_rate(losses: Sequence[SeedLosses], allowed: Collection[int]) -> int | None:
    """The index of the rate with the lowest loss; None where `allowed` is empty.

    losses: of each rate.
    allowed: the indices to choose from, each with a loss at least.

    The first choice is the rate with the lowest mean among those with the most seeds. As long as
    another rate is lower by the seeds that it shares with the choice (`difference`), the rate that
    is lower by most takes its place. Where all rates have the same seeds, this is the lowest mean.
    """
    left = sorted(allowed)
    most = max((len(losses[at]) for at in left), default=0)
    best = min(
        (at for at in left if len(losses[at]) == most),
        key=lambda at: mean(losses[at].values()),
        default=None,
    )
    if best is None or all(losses[at].keys() == losses[best].keys() for at in left):
        return best
    while True:
        left.remove(best)
        lower = {at: difference(losses[at], losses[best]) for at in left}
        found = min(lower, key=lambda at: lower[at], default=best)
        if not lower.get(found, 0.0) < 0:
            return best
        best = found


def around(losses: Sequence[SeedLosses], middle: int) -> list[float]:
    """Three losses that may be compared: those of the rate `middle` and of its two neighbours.

    They are the means where all three have the same seeds, else differences from `middle` over
    shared seeds. A neighbour without a loss is infinite.
    """
    three = losses[middle - 1 : middle + 2]
    own = losses[middle]
    if all(not each or each.keys() == own.keys() for each in three):
        return [mean(each.values()) if each else math.inf for each in three]
    return [difference(each, own) if each else math.inf for each in three]


def difference(one: SeedLosses, other: SeedLosses) -> float:
    """The mean of `one` less that of `other`, over shared seeds; over all where none is shared."""
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return mean(one.values()) - mean(other.values())
    return fmean(one[seed] for seed in shared) - fmean(other[seed] for seed in shared)


def mean(values: Collection[float]) -> float:
    """The mean of one value or more."""
    # Most seeds have one run at a rate. For these `fmean` would double the time of a curve.
    return next(iter(values)) if len(values) == 1 else fmean(values)
