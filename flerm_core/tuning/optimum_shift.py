"""How far the optimum of one curve lies from that of another, with an interval over seeds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from flerm_core.records.recording import same_lr
from flerm_core.tuning.best_lr import (
    LossPoint,
    SweepRun,
    curve_optimum,
    loss_curve,
    losses_by_rate,
    vertex,
)

LEVEL = 0.9
_DRAWS = 1000
MOST_LEVELS = 16  # how many least numbers of rates `settled_curve` tries
PART_VALUES = 1 << 20  # resampled losses that are in memory at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How far an optimum lies from the base's.

    octaves: log2 of the optimum over the base's optimum.
    low, high: the 90 % bootstrap interval of `octaves` over the seeds of both curves; NaN where a
        curve has a single seed.
    """

    octaves: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 90 % bootstrap interval over seeds; NaN where there is a single seed."""

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


def settled_curve(runs: Iterable[SweepRun]) -> tuple[list[SweepRun], tuple[LossPoint, ...]]:
    """The runs of the seeds that show where the optimum lies, and their `complete_curve`.

    While a sweep is under way, some seeds have been run at few rates, and a curve over all seeds
    would have only these few rates. So sets of seeds are tried: all seeds with at least 3 rates,
    with at least 4, and so on. The first set whose lowest loss lies between two other rates is
    taken. Where there is no such set, the first with three common rates is taken, or else the one
    with most. Where no seed has three rates (a random search), all runs are taken.
    """
    found = [run for run in runs if run.counts]
    rates: dict[int, set[float]] = {}
    for run in found:
        rates.setdefault(run.seed, set()).add(run.lr)
    levels = sorted({len(its) for its in rates.values() if len(its) > 2})
    best: tuple[list[SweepRun], tuple[LossPoint, ...]] | None = None
    most = (False, 0)
    for level in levels[-MOST_LEVELS:]:
        kept = [run for run in found if len(rates[run.seed]) >= level]
        count = len({run.seed for run in kept})
        whole = tuple(each for each in loss_curve(kept) if each.seeds + each.diverged == count)
        sound = [at for at, each in enumerate(whole) if each.seeds and not each.diverged]
        low = min(sound, key=lambda at: whole[at].loss, default=0)
        quality = (0 < low < len(whole) - 1, min(len(whole), 3))
        if quality > most:
            most = quality
            places = [each.lr for each in whole]
            there = {lr for lr in {run.lr for run in kept} if _place(places, lr) is not None}
            best = [run for run in kept if run.lr in there], whole
    return best or (found, complete_curve(found))


@dataclass(frozen=True, slots=True)
class Optimum:
    """A curve's optimum, and the optima of resamples of its seeds (Efron's bootstrap).

    place: log2 of the learning rate at the optimum.
    draws: the same for each resample; empty where there is only one seed.
    """

    place: float
    draws: tuple[float, ...]

    @classmethod
    def of(cls, runs: Iterable[SweepRun]) -> Optimum:
        """The optimum of `complete_curve(runs)`.

        Raises `NotFound` where the curve has no finite loss.
        """
        found = list(runs)
        return cls.of_curve(found, complete_curve(found))

    @classmethod
    def of_curve(cls, runs: Sequence[SweepRun], points: Sequence[LossPoint]) -> Optimum:
        """As `of`, with `points` = `complete_curve(runs)` already known."""
        draws = _resampled(runs, [point.lr for point in points])
        return cls(math.log2(curve_optimum(points)), tuple(draws))

    def shift_from(self, base: Optimum) -> Shift:
        """How far this optimum lies from the base's.

        The random numbers have a fixed seed, so the interval is reproducible.
        """
        octaves = self.place - base.place
        if len(self.draws) < 2 or len(base.draws) < 2:
            return Shift(octaves=octaves, low=math.nan, high=math.nan)
        random = np.random.default_rng(0)
        apart = random.choice(self.draws, _DRAWS) - random.choice(base.draws, _DRAWS)
        low, high = np.quantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Shift(octaves=octaves, low=float(low), high=float(high))


def shift(runs: Iterable[SweepRun], base: Iterable[SweepRun]) -> Shift:
    """The shift of the optimum of `runs` from that of `base`.

    The interval is Efron's percentile bootstrap with a fixed stream of draws: the seeds of each
    curve are resampled with replacement, and each mean curve is fitted anew. With few seeds the
    interval is coarse: three seeds have ten different means.

    Raises `NotFound` where a curve has no finite loss.
    """
    return Optimum.of(runs).shift_from(Optimum.of(base))


def optimum_interval(runs: Iterable[SweepRun]) -> Interval:
    """The interval of the learning rate at the optimum of `runs`, by the bootstrap of `shift`."""
    found = list(runs)
    draws = _resampled(found, [point.lr for point in complete_curve(found)])
    if len(draws) < 2:
        return Interval(low=math.nan, high=math.nan)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=2.0 ** float(low), high=2.0 ** float(high))


def _resampled(runs: Sequence[SweepRun], rates: Sequence[float]) -> list[float]:
    """log2 of the optimum of each of `seed_resamples`; empty for fewer than two seeds.

    rates: the learning rates of `complete_curve(runs)`.
    """
    columns = [its for lr, its in losses_by_rate(runs).items() if _place(rates, lr) is not None]
    seeds = set[int]().union(*columns).intersection(*columns)
    losses = np.array([[column[seed] for column in columns] for seed in sorted(seeds)])
    count = len(losses)
    if count < 2:
        return []
    chosen = seed_resamples(count)
    means = np.concatenate([losses[some].mean(axis=1) for some in _parts(chosen, losses)])
    return _optima(rates, means)


def _optima(rates: Sequence[float], means: np.ndarray) -> list[float]:
    """log2 of the optimum of each row of `means` [draws, rates]; no entry without a finite loss."""
    rows = means.tolist()
    last = len(rates) - 1
    found = []
    for row, best in zip(rows, means.argmin(axis=1).tolist(), strict=True):
        if row[best] == math.inf:  # every rate of this resample diverged
            continue
        optimum = rates[best]
        if 0 < best < last:
            optimum = vertex(rates[best - 1 : best + 2], row[best - 1 : best + 2])
        found.append(math.log2(optimum))
    return found


def _place(rates: Sequence[float], lr: float) -> int | None:
    """The index of `lr` among ascending `rates`; None where it is not among them."""
    at = bisect_left(rates, lr)
    return next(
        (near for near in (at - 1, at) if 0 <= near < len(rates) and same_lr(rates[near], lr)), None
    )


def _parts(chosen: np.ndarray, losses: np.ndarray) -> list[np.ndarray]:
    """`chosen` in parts whose losses are few enough to hold at once."""
    size = max(1, PART_VALUES // losses.size)
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def seed_resamples(count: int) -> np.ndarray:
    """Indices of seeds, resampled with replacement, [draws, count].

    For up to four seeds these are all possible resamples, else 1,000 random ones by a fixed seed.
    """
    if count <= 4:
        return np.array(list(product(range(count), repeat=count)))
    return np.random.default_rng(1).integers(0, count, (_DRAWS, count))
