"""Sweeps of many runs: the same numbers as by the definitions, in the time of one pass."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from statistics import fmean, stdev

import numpy as np
import pytest

from flerm_core.tuning.best_lr import LossPoint, SweepRun, best_rate, curve_optimum, loss_curve
from flerm_core.tuning.optimum_shift import complete_curve, shift


def stock(seed: int, runs: int) -> list[SweepRun]:
    """Runs of a few seeds and rates in any state, some of them twice."""
    pick = random.Random(seed)
    return [
        SweepRun(
            lr=2.0 ** pick.randint(-9, -4),
            seed=pick.randint(0, 5),
            loss=pick.choice([None, math.inf, *(pick.uniform(1, 3) for _ in range(8))]),
            status=pick.choice(["completed"] * 8 + ["diverged", "running"]),
        )
        for _ in range(runs)
    ]


def finite(run: SweepRun) -> bool:
    return run.status == "completed" and run.loss is not None and math.isfinite(run.loss)


def loss_of(point: LossPoint) -> float:
    return point.loss


def counts(run: SweepRun) -> bool:
    return run.status == "diverged" or (run.status == "completed" and run.loss is not None)


@pytest.mark.parametrize("seed", range(20))
def test_the_numbers_are_those_of_the_definitions(seed: int) -> None:
    runs = [*stock(seed, 60), SweepRun(lr=2.0**-6, seed=0, loss=2.0)]
    best = best_rate("f", runs)
    by_rate: dict[float, list[SweepRun]] = defaultdict(list)
    for run in filter(counts, runs):
        by_rate[run.lr].append(run)
    assert [point.lr for point in best.points] == sorted(by_rate)
    for point in best.points:
        its = by_rate[point.lr]
        lost = {run.seed for run in its if not finite(run)}
        seeds = dict.fromkeys(run.seed for run in its if run.seed not in lost)
        # A seed counts once, with the mean of its runs, or as diverged where one of them was.
        losses = [fmean(run.loss or 0.0 for run in its if run.seed == seed) for seed in seeds]
        assert (point.seeds, point.diverged) == (len(losses), len(lost))
        assert not losses or point.loss == fmean(losses)
        assert len(losses) < 2 or point.spread == stdev(losses)
    optima = []
    for each in sorted({run.seed for run in runs}):
        points = loss_curve(run for run in runs if run.seed == each)
        sound = [point for point in points if point.seeds and not point.diverged]
        low = min(sound or [point for point in points if point.seeds], key=loss_of, default=None)
        # The optimum of a seed is known where its lowest loss lies between two others.
        if low is not None and low not in (points[0], points[-1]):
            optima.append(math.log2(curve_optimum(points)))
    ends = best.points[0].lr, best.points[-1].lr
    known = len(optima) > 1 and best.lr not in ends
    assert best.optimum_spread == stdev(optima) if known else math.isnan(best.optimum_spread)


def full(seeds: int, rates: int) -> list[SweepRun]:
    pick = random.Random(seeds)
    return [
        SweepRun(lr=2.0**-rate, seed=seed, loss=1 + (rate - 6 + pick.gauss(0, 0.3)) ** 2)
        for seed in range(seeds)
        for rate in range(3, 3 + rates)
    ]


def test_the_interval_is_that_of_means_over_resampled_seeds() -> None:
    ours, theirs = full(7, 6), full(9, 6)

    def optima(runs: list[SweepRun], seeds: int) -> list[float]:
        rates = sorted({run.lr for run in runs})
        table = np.array([
            [next(run.loss for run in runs if (run.seed, run.lr) == (seed, rate)) for rate in rates]
            for seed in range(seeds)
        ])  # fmt: skip
        drawn = np.random.default_rng(1).integers(0, seeds, (1000, seeds))
        means = table[drawn].mean(axis=1)
        curves = (
            [
                SweepRun(lr=rate, seed=0, loss=float(loss))
                for rate, loss in zip(rates, row, strict=True)
            ]
            for row in means
        )
        return [math.log2(curve_optimum(loss_curve(curve))) for curve in curves]

    random_ = np.random.default_rng(0)
    apart = random_.choice(optima(ours, 7), 1000) - random_.choice(optima(theirs, 9), 1000)
    low, high = np.quantile(apart, [0.05, 0.95])
    found = shift(ours, theirs)
    assert (found.low, found.high) == (low, high)
    assert complete_curve(ours) == loss_curve(ours)


def test_a_run_that_goes_on_leaves_its_seed_out_of_the_interval() -> None:
    ours, theirs = full(3, 6), full(4, 6)
    going_on = SweepRun(lr=2.0**-3, seed=7, loss=None, status="running")
    assert shift([*ours, going_on], theirs) == shift(ours, theirs)


def test_a_seed_of_its_own_for_each_of_many_runs_takes_one_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flerm_core.tuning import best_lr

    looked_at = 0
    whole = best_lr.runs_by_rate

    def counted(runs: list[SweepRun]) -> dict[float, list[SweepRun]]:
        nonlocal looked_at
        found = list(runs)
        looked_at += len(found)
        return whole(found)

    monkeypatch.setattr(best_lr, "runs_by_rate", counted)
    runs = [SweepRun(lr=2.0 ** -(3 + at % 9), seed=at, loss=float(at % 7)) for at in range(3000)]
    best_rate("f", runs)
    assert looked_at <= 2 * len(runs)
