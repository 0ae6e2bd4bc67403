"""The best learning rate of one loss curve, its spread over seeds, and which rate to try next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import stdev
from typing import Any

from flerm_core.errors import NotFound
from flerm_core.records.recording import Recording, same_lr
from flerm_core.tuning.shared_seeds import SeedLosses, around, lowest_rate, mean

SIZE = "parameters"
"""The key of a configuration that holds the number of the model's weights."""

Losses = Mapping[float, Mapping[int, float]]
"""The final loss by learning rate and then by seed; infinite for a run that diverged."""

# A rate within so many octaves of the optimum counts as the optimum, because matched rates are
# rounded to 1/16 octave.
_CLOSE = 1 / 16
_SHARED = (
    "Rates with a lower mean loss were run with other seeds; over the seeds that they share with "
    "this rate, their loss is not lower."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One run of a sweep.

    loss: the run's final loss; None where the run logged none.
    size: the number of weights of the run's model; None where it is not known.
    """

    lr: float
    seed: int
    loss: float | None
    status: str = "completed"
    size: float | None = None

    @property
    def counts(self) -> bool:
        """Whether the run is part of a loss curve: it diverged, or completed with a loss."""
        return self.status == "diverged" or (self.status == "completed" and self.loss is not None)

    @property
    def finite_loss(self) -> float:
        """The loss of a completed run; infinite for other runs and where the loss is not finite."""
        finite = self.status == "completed" and self.loss is not None and math.isfinite(self.loss)
        return self.loss if finite and self.loss is not None else math.inf

    @classmethod
    def of(cls, recording: Recording) -> SweepRun:
        """The run of a recording."""
        spec = recording.spec
        return cls(
            lr=spec.lr,
            seed=spec.seed,
            loss=recording.final_loss,
            status=recording.status,
            size=model_size(spec.config),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """One learning rate of a loss curve.

    loss, spread: the mean and the standard deviation of the final loss over the seeds with a finite
        loss; NaN where there are no such seeds, or fewer than two. A seed that was run more than
        once counts once, with the mean of its runs.
    seeds: the number of seeds with a finite loss.
    diverged: the number of seeds with a run that diverged.
    """

    lr: float
    loss: float
    spread: float
    seeds: int
    diverged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The answer to a `BestQuery`.

    family: the family's name.
    lr, loss: the best recorded learning rate, and its mean loss.
    optimum: the learning rate of the fitted optimum.
    optimum_spread: the standard deviation of the optimum over seeds, in octaves; NaN for fewer than
        two seeds, and where the best rate is an end of the curve.
    next_lr: the rate to try next; `optimum` where nothing is left to try.
    advice: the reason for `next_lr`, in a sentence.
    points: the loss curve, ascending by rate.
    experiment: sentences on which of the family's experiments this answer is about, which others
        there are, and how to choose one; empty where there is only one.
    cautions: when not to trust a match to this family, and what regret its matches had, in
        sentences (`family_cautions`); empty where the query did not ask.
    """

    family: str
    lr: float
    loss: float
    optimum: float
    optimum_spread: float
    next_lr: float
    advice: str
    points: tuple[LossPoint, ...]
    experiment: str = ""
    cautions: tuple[str, ...] = ()

    @property
    def at_an_end(self) -> bool:
        """Whether the best rate has no recorded rate on one of its sides."""
        return self.lr in (self.points[0].lr, self.points[-1].lr)

    @property
    def rate(self) -> float:
        """The rate to use now.

        It is the fitted optimum where nothing is left to try, else the best recorded rate.
        """
        return self.optimum if self.next_lr == self.optimum else self.lr

    @property
    def suggested_rates(self) -> tuple[float, ...]:
        """The rates to try next, the most useful first; empty where nothing is left to try.

        All of them may be trained at the same time.
        """
        if len(self.points) == 1:
            return (2 * self.lr, self.lr / 2)
        return () if self.next_lr == self.optimum else (self.next_lr,)


def model_size(config: Mapping[str, Any]) -> float | None:
    """The number of the model's weights by a recording's configuration; None where it has none.

    `FLeRM.record` and `match` write this number.
    """
    size = config.get(SIZE)
    return float(size) if isinstance(size, int | float) and not isinstance(size, bool) else None


def loss_curve(runs: Iterable[SweepRun]) -> tuple[LossPoint, ...]:
    """Loss against learning rate, ascending by rate, of the runs that count."""
    return tuple(_point(rate, its) for rate, its in losses_by_rate(runs).items())


def curve_optimum(points: Sequence[LossPoint]) -> float:
    """The learning rate at a curve's optimum, fitted as in `best_rate`.

    Raises `NotFound` where no loss is finite.
    """
    best = min(_allowed(points), key=lambda at: points[at].loss, default=None)
    if best is None:
        raise NotFound("points: none of the curve's rates has a finite loss")
    return _optimum(points, best, [point.loss for point in points[max(best - 1, 0) : best + 2]])


def best_rate(family: str, runs: Iterable[SweepRun]) -> Best:
    """The best rate of `runs` by their final losses.

    The best rate has the lowest mean loss of all rates at which no run diverged. Only where runs
    diverged at every rate, such rates are compared too. Rates that were run with different seeds
    are compared by the seeds that they share (`lowest_rate`). The optimum is the vertex of the
    parabola in log2 lr through the mean losses at the best rate and at its two neighbours. Without
    two neighbours, or with one at which a run diverged, the optimum is the best rate. Raises
    `NotFound` when no run is completed with a finite loss.
    """
    found = list(runs)
    curve = losses_by_rate(found)
    points = tuple(_point(rate, its) for rate, its in curve.items())
    losses = [_finite(its) for its in curve.values()]
    best = lowest_rate(losses, _allowed(points))
    if best is None:
        total = f"{len(found)} run{'s' if len(found) != 1 else ''}"
        raise NotFound(f"family: {family!r} has no completed run with a final loss; {total} in all")
    optimum = _optimum(points, best, around(losses, best))
    next_lr, advice = _advice(points, best, optimum)
    if any(points[at].loss < points[best].loss for at in _allowed(points)):
        advice += f" {_SHARED}"
    return Best(
        family=family,
        lr=points[best].lr,
        loss=points[best].loss,
        optimum=optimum,
        optimum_spread=_spread(found) if 0 < best < len(points) - 1 else math.nan,
        next_lr=next_lr,
        advice=advice,
        points=points,
    )


def runs_by_rate(runs: Iterable[SweepRun]) -> dict[float, list[SweepRun]]:
    """The runs that count, by rate, ascending."""
    curve: dict[float, list[SweepRun]] = {}
    for run in sorted(runs, key=attrgetter("lr", "seed")):
        if run.counts:
            last = next(reversed(curve), None)
            curve.setdefault(
                last if last is not None and same_lr(last, run.lr) else run.lr, []
            ).append(run)
    return curve


def losses_by_rate(runs: Iterable[SweepRun]) -> Losses:
    """The losses of the runs that count; the mean where a seed was run several times at a rate."""
    return {lr: _seed_losses(its) for lr, its in runs_by_rate(runs).items()}


def _point(rate: float, losses: SeedLosses) -> LossPoint:
    finite = _finite(losses)
    return LossPoint(
        lr=rate,
        loss=mean(finite.values()) if finite else math.nan,
        spread=stdev(finite.values()) if len(finite) > 1 else math.nan,
        seeds=len(finite),
        diverged=len(losses) - len(finite),
    )


def _seed_losses(runs: Iterable[SweepRun]) -> dict[int, float]:
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run.finite_loss)
    return {seed: mean(its) for seed, its in by_seed.items()}


def _finite(losses: SeedLosses) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if math.isfinite(loss)}


def _allowed(points: Sequence[LossPoint]) -> list[int]:
    """The indices of the rates that may be the best: those without divergence if there are any."""
    finite = [at for at, point in enumerate(points) if point.seeds]
    return [at for at in finite if not points[at].diverged] or finite


def _optimum(points: Sequence[LossPoint], best: int, losses: Sequence[float]) -> float:
    """The rate at the optimum. losses: of the best rate and its neighbours, as far as they are."""
    if not 0 < best < len(points) - 1:
        return points[best].lr
    nearby = points[best - 1 : best + 2]
    # A loss of the seeds that came through says nothing where others did not.
    known = [
        math.inf if _diverges(point, points[best]) else loss
        for point, loss in zip(nearby, losses, strict=True)
    ]
    return vertex([point.lr for point in nearby], known)


def _diverges(point: LossPoint, best: LossPoint) -> bool:
    """Whether runs diverge at `point`, and not at the best rate too."""
    return not point.seeds or point.diverged > 0 == best.diverged


def vertex(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The learning rate at the vertex of the parabola in log2 lr through three points.

    rates, losses: of the three points, by ascending rate.

    Returns the middle rate where a loss is infinite, and where the parabola has no lowest point. A
    vertex outside the outer rates is moved to the nearer of them.
    """
    left, middle, right = rates
    if math.inf in losses:
        return middle
    low, high = math.log2(left / middle), math.log2(right / middle)
    rise_low, rise_high = losses[0] - losses[1], losses[2] - losses[1]
    # a x² + b x through (low, rise_low), (0, 0), (high, rise_high); the common denominator of a and
    # b cancels in the vertex.
    curvature = (rise_low / low - rise_high / high) / (low - high)
    if not curvature > 0:
        return middle
    place = -(rise_low / low - curvature * low) / (2 * curvature)
    return float(middle * 2.0 ** min(max(place, low), high))


def _spread(runs: Sequence[SweepRun]) -> float:
    """The standard deviation over seeds of the optimum of each seed's own curve, in octaves.

    A seed whose lowest loss lies at an end of its rates is left out: its optimum is not known.
    """
    by_seed: dict[int, list[SweepRun]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    optima = []
    for _, its in sorted(by_seed.items()):
        curve = losses_by_rate(its) if len(its) > 2 else {}
        rates = list(curve)
        losses = [mean(at.values()) for at in curve.values()]
        best = losses.index(min(losses)) if losses else 0
        if 0 < best < len(losses) - 1 and losses[best] < math.inf:
            around = slice(best - 1, best + 2)
            optima.append(math.log2(vertex(rates[around], losses[around])))
    return stdev(optima) if len(optima) > 1 else math.nan


def _advice(points: Sequence[LossPoint], best: int, optimum: float) -> tuple[float, str]:
    rate = points[best].lr
    if len(points) == 1:
        return (
            2 * rate,
            f"{rate:.3g} is the only rate recorded: try {2 * rate:.3g}, then {rate / 2:.3g}.",
        )
    if best == len(points) - 1:
        return (
            2 * rate,
            f"The best rate {rate:.3g} is the highest recorded, so the optimum may lie above it: "
            f"try {2 * rate:.3g}.",
        )
    if best == 0:
        return (
            rate / 2,
            f"The best rate {rate:.3g} is the lowest recorded, so the optimum may lie below it: "
            f"try {rate / 2:.3g}.",
        )
    towards = _neighbour(points, best, optimum)
    gap = abs(math.log2(points[towards].lr / rate))
    if gap > 1 + _CLOSE:
        between = math.sqrt(points[towards].lr * rate)
        return (
            between,
            f"Around the best rate {rate:.3g} the rates are {gap:.2g} octaves apart: try "
            f"{between:.3g}, towards the optimum.",
        )
    if _diverges(points[best + 1], points[best]):
        return (
            optimum,
            f"Use {rate:.3g}: above it, at {points[best + 1].lr:.3g}, runs diverge, and below it "
            "losses are higher.",
        )
    if abs(math.log2(optimum / rate)) <= _CLOSE:
        return (
            optimum,
            f"Use {optimum:.3g}: the optimum lies at the recorded rate {rate:.3g}, between two "
            "higher losses.",
        )
    low, high = sorted((rate, points[towards].lr))
    return (
        optimum,
        f"Use {optimum:.3g}: the optimum lies between the recorded rates {low:.3g} and {high:.3g}, "
        f"with the lower loss at {rate:.3g}.",
    )


def _neighbour(points: Sequence[LossPoint], best: int, optimum: float) -> int:
    """The index of the best rate's neighbour on the side of the optimum.

    Where the optimum is the best rate itself, the neighbour that is further away.
    """
    rate = points[best].lr
    if optimum != rate:
        return best + 1 if optimum > rate else best - 1
    return max(best - 1, best + 1, key=lambda at: abs(math.log2(points[at].lr / rate)))
