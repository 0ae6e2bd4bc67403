"""How far the optimum of one curve lies from that of another, with an interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from flerm_core.errors import NotFound
from flerm_core.records.recording import same_lr
from flerm_core.tuning.best_lr import LossPoint, SweepRun, curve_optimum, loss_curve

LEVEL = 0.9
_DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How far an optimum lies from the base's.

    octaves: log2 of the optimum over the base's optimum. low, high: its 90 % bootstrap interval
    over the seeds of both curves; NaN where a curve has a single seed.
    """

    octaves: float
    low: float
    high: float


def complete_curve(runs: Iterable[SweepRun]) -> tuple[LossPoint, ...]:
    """Loss against learning rate, over the rates that every seed was run at.

    Seeds differ in the level of their loss, so means over different seeds cannot be compared.
    """
    found = list(runs)
    points = loss_curve(found)
    most = max((point.seeds + point.diverged for point in points), default=0)
    return tuple(point for point in points if point.seeds + point.diverged == most)


def shift(runs: Iterable[SweepRun], base: Iterable[SweepRun]) -> Shift:
    """The shift of the optimum of `runs` from that of `base`. Raises `NotFound` where a curve has
    no finite loss.

    The interval is Efron's percentile bootstrap with a fixed stream of draws: the seeds of each
    curve are resampled with replacement, and each mean curve is fitted anew. With few seeds the
    interval is coarse: three seeds have ten different means.
    """
    ours, theirs = list(runs), list(base)
    octaves = math.log2(curve_optimum(complete_curve(ours)) / curve_optimum(complete_curve(theirs)))
    draws, base_draws = (_resampled(each) for each in (ours, theirs))
    if len(draws) < 2 or len(base_draws) < 2:
        return Shift(octaves=octaves, low=math.nan, high=math.nan)
    random = np.random.default_rng(0)
    apart = random.choice(draws, _DRAWS) - random.choice(base_draws, _DRAWS)
    low, high = np.quantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Shift(octaves=octaves, low=float(low), high=float(high))


def _resampled(runs: Sequence[SweepRun]) -> list[float]:
    """log2 of the optimum of resamples of the seeds: all resamples for up to four seeds, else
    1,000.
    """
    rates = [point.lr for point in complete_curve(runs)]
    seeds = sorted({run.seed for run in runs if run.status in ("completed", "diverged")})
    losses = np.full((len(seeds), len(rates)), np.nan)
    for run in runs:
        for column, rate in enumerate(rates):
            if same_lr(rate, run.lr) and run.seed in seeds:
                finite = (
                    run.status == "completed" and run.loss is not None and math.isfinite(run.loss)
                )
                losses[seeds.index(run.seed), column] = run.loss if finite else np.inf
    losses = losses[~np.isnan(losses).any(axis=1)]
    count = len(losses)
    if count < 2:
        return []
    chosen = np.array(list(product(range(count), repeat=count)) if count <= 4 else _drawn(count))
    found = []
    for each in losses[chosen].mean(axis=1):
        points = [_point(rate, float(loss)) for rate, loss in zip(rates, each, strict=True)]
        try:
            found.append(math.log2(curve_optimum(points)))
        except NotFound:  # every rate of this resample diverged
            continue
    return found


def _drawn(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, count, (_DRAWS, count))


def _point(rate: float, loss: float) -> LossPoint:
    lost = not math.isfinite(loss)
    return LossPoint(
        lr=rate,
        loss=math.nan if lost else loss,
        spread=math.nan,
        seeds=0 if lost else 1,
        diverged=int(lost),
    )
