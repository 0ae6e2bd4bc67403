"""Regret and cost: how much loss it costs to train a model at the base's best rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flerm_core.records.recording import same_lr
from flerm_core.tuning.best_lr import Losses
from flerm_core.tuning.optimum_shift import LEVEL, seed_resamples

_DIVERGED = 1e30  # in place of an infinite loss, so that sums stay finite and are never the lowest
_PART = 1 << 22  # ratios that are in memory at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """The loss at the base's rate over the lowest loss of all variants at any rate, less 1.

    value: at least 0; 0.02 means a loss 2 % above the lowest. Infinite where a run at the base's
        rate diverged. NaN where there is no run at that rate, or no other to compare it with, and
        where losses may be negative.
    low, high: the 90 % bootstrap interval of `value` over seeds; NaN where a single seed was run at
        the base's rate.
    """

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """`1.2 % (0.4 to 2.1)`; a word where it diverged, a dash where it is not known."""
        if not math.isfinite(self.value):
            return "–" if math.isnan(self.value) else "diverged"
        text = f"{100 * self.value:.1f} %"
        if math.isnan(self.low):
            return text
        return f"{text} ({100 * self.low:.1f} to {100 * self.high:.1f})"


UNKNOWN = Regret(value=math.nan, low=math.nan, high=math.nan)


def regret(own: Losses, lr: float, variants: Iterable[Losses]) -> Regret:
    """The regret of one variant at one scale, at the base's rate `lr`.

    own: the losses of this variant.
    lr: the base's best rate.
    variants: the losses of all variants at this scale, `own` among them.

    Seeds differ in the level of their loss. So `own` at `lr` is compared with each variant and rate
    by the means over the seeds that both were run with. A variant and rate without a common seed is
    left out. The interval is Efron's percentile bootstrap: the seeds of `own` at `lr` are resampled
    with replacement. The lowest of several means is partly lowest by chance, so a regret tends to
    be too large rather than too small.
    """
    by_seed = _seeds_at(own, lr)
    at_base, others = _paired(by_seed, variants)
    candidates = np.vstack([at_base, others])
    if not by_seed or not _are_positive(candidates):
        return UNKNOWN
    if not np.isfinite(at_base).all():
        return Regret(value=math.inf, low=math.nan, high=math.nan)
    if len(others) < 2:  # that is the run at the base's rate itself
        return UNKNOWN
    value = float(_largest_ratio(at_base, candidates, np.ones((1, at_base.size)))[0]) - 1
    if at_base.size < 2:
        return Regret(value=value, low=math.nan, high=math.nan)
    drawn = seed_resamples(at_base.size)
    weights = np.array([np.bincount(each, minlength=at_base.size) for each in drawn], float)
    ratios = _largest_ratio(at_base, candidates, weights)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - 1
    return Regret(value=value, low=float(low), high=float(high))


def cost(own: Losses, lr: float, plain: Losses) -> float:
    """The loss at the base's rate `lr` over the lowest loss of plain training, less 1.

    own: the losses of one variant at one scale.
    plain: the losses of plain training at this scale.

    Losses are compared by seeds, as in `regret`; a rate of plain training at which one of the
    shared seeds diverged is left out. Negative where plain training is worse at every rate.
    Infinite where a run at `lr` diverged. NaN where there is no run at that rate, or none but it to
    compare it with, and where losses may be negative.
    """
    at_base, others = _paired(_seeds_at(own, lr), [plain])
    alone = own is plain and len(others) == 1
    others = others[~np.isinf(others).any(axis=1)]
    if alone or not others.size or not _are_positive(np.vstack([at_base, others])):
        return math.nan
    if not np.isfinite(at_base).all():
        return math.inf
    return float(_largest_ratio(at_base, others, np.ones((1, at_base.size)))[0]) - 1


def _seeds_at(own: Losses, lr: float) -> Mapping[int, float]:
    """The losses at the rate `lr`, by seed; empty where there is no run at that rate."""
    return next((its for rate, its in own.items() if same_lr(rate, lr)), {})


def _paired(
    by_seed: Mapping[int, float], variants: Iterable[Losses]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses of the same seeds: `by_seed` [seeds], and those of `variants` [candidates, seeds].

    A candidate is one rate of a variant that was run with one of these seeds at least. Where a
    candidate was not run with a seed, its loss is NaN.
    """
    seeds = sorted(by_seed)
    rows = [
        [its.get(seed, math.nan) for seed in seeds]
        for variant in variants
        for its in variant.values()
        if not its.keys().isdisjoint(seeds)
    ]
    return np.array([by_seed[seed] for seed in seeds]), np.array(rows).reshape(
        len(rows), len(seeds)
    )


def _are_positive(losses: NDArray[np.float64]) -> bool:
    """False where a loss is 0 or negative: a ratio of losses then says nothing."""
    return not bool((losses <= 0).any())


def _largest_ratio(
    at_base: NDArray[np.float64], candidates: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each draw the largest ratio of the mean at the base's rate to a candidate's mean; 0 where
    a draw has no seed of any candidate.

    at_base: [seeds]. candidates: [candidates, seeds], NaN where a seed was not run. weights:
    [draws, seeds], how often a draw has each seed.
    """
    run = ~np.isnan(candidates)
    lost = np.where(run, np.minimum(candidates, _DIVERGED), 0.0)
    base = np.where(run, at_base, 0.0)
    largest = np.zeros(len(weights))
    size = max(1, _PART // len(weights))
    for start in range(0, len(candidates), size):
        its = slice(start, start + size)
        below = weights @ lost[its].T
        # Where a draw has no seed of a candidate, the two are not compared (ratio 0).
        ratios = np.divide(weights @ base[its].T, below, out=np.zeros_like(below), where=below > 0)
        largest = np.maximum(largest, ratios.max(axis=1))
    return largest
