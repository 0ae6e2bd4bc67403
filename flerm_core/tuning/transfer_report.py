"""Reports whether the learning rate carried over in a family.

A report has the best rate of the base. For each scale and variant it has the optimum, and what
training at the base's best rate costs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from flerm_core._arrays import thin
from flerm_core.errors import NotFound, join_names
from flerm_core.records.recording import same_lr
from flerm_core.tuning.best_lr import (
    Best,
    Losses,
    LossPoint,
    SweepRun,
    best_rate,
    losses_by_rate,
)
from flerm_core.tuning.cautions import family_cautions
from flerm_core.tuning.experiment_settings import (
    ExperimentRun,
    Kind,
    bigger_than_base,
    is_base,
    kinds_of,
    scales_of,
)
from flerm_core.tuning.experiment_words import experiment_words
from flerm_core.tuning.optimum_shift import Optimum, Shift, settled_curve
from flerm_core.tuning.regret import UNKNOWN, Regret, cost, regret
from flerm_core.tuning.scale import Scale, dimension_of

MAX_CURVE_POINTS = 200  # points of a curve in a figure; `TransferRow.points` has all
_UNKNOWN_SHIFT = Shift(octaves=math.nan, low=math.nan, high=math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRow:
    """One curve of loss against learning rate: a scale and a variant.

    scale: the scale; empty for the base's own.
    dimension: the settings in which the scale differs from the base.
    variant: the variant, such as `plain` or `matched`.
    seeds: how many seeds the curve is over (`settled_curve`).
    runs: how many recordings there are of this scale and variant.
    optimum: the learning rate at the optimum; NaN where fewer than two rates were tried, and where
        no loss is finite.
    bracketed: whether there are rates with higher losses on both sides of the lowest loss.
    shift: how far the optimum lies from the base's; NaN where one of the two is not known. A
        variant whose rates mean something else (µP) is compared with the same variant at the base's
        scale.
    loss: the lowest mean loss.
    loss_at_base: the mean loss at the base's best rate; infinite where a seed diverged there, NaN
        where that rate was not run.
    cost: the loss at the base's best rate over the lowest loss of plain training at this scale,
        less 1, by the seeds that both were run with (`flerm_core.tuning.regret.cost`); NaN where it
        is not known.
    regret: the regret over all variants at this scale; unknown for the base's scale.
    points: the loss curve, ascending by rate.
    """

    scale: Scale
    dimension: str
    variant: str
    seeds: int
    runs: int
    optimum: float
    bracketed: bool
    shift: Shift
    loss: float
    loss_at_base: float
    cost: float
    regret: Regret
    points: tuple[LossPoint, ...]

    @property
    def label(self) -> str:
        """The scale in words, such as `width ×4, depth ×4`."""
        return self.scale.label


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """A family's answer for one kind of experiment.

    family: the family's name.
    best: the base's best rate; None where there is none.
    problem: why there is no best rate; empty where there is one.
    kinds: the settings in which the family's experiments differ, with their values.
    left_out: the number of recordings of the experiments that are not shown.
    bigger: the ids of the recordings with role base whose model is bigger than the base's. They
        count as scaled.
    experiment: sentences on which experiment is shown (`experiment_words`).
    rows: one row for each scale and variant, the base's first.
    """

    family: str
    best: Best | None
    problem: str
    kinds: tuple[Kind, ...]
    left_out: int
    bigger: frozenset[str]
    experiment: str
    rows: tuple[TransferRow, ...]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions of `rows`: that of `headline`, then the one with most recordings."""
        counts = Counter[str]()
        for row in self.rows:
            if row.scale:
                counts[row.dimension] += row.runs
        first = self.headline.dimension if self.headline is not None else ""
        return tuple(sorted(counts, key=lambda name: (name != first, -counts[name])))

    @property
    def base(self) -> TransferRow | None:
        """The base's row."""
        return next((row for row in self.rows if not row.scale and row.variant == "plain"), None)

    @property
    def cautions(self) -> tuple[str, ...]:
        """When not to trust a match of this family, and what regret its matches had."""
        return family_cautions(self)

    def panels(self, dimension: str = "") -> dict[str, dict[str, tuple[LossPoint, ...]]]:
        """The curves of a figure like the paper's Figure 2, by variant and then by scale.

        Each variant also has the base's curve. A curve has at most `MAX_CURVE_POINTS` points, the
        lowest loss among them.

        dimension: the setting in which the scales differ; empty: the first of `dimensions`.

        Raises `NotFound` for a dimension that is not among `dimensions`.
        """
        there = self.dimensions
        if dimension and dimension not in there:
            words = f"there is {join_names(map(repr, there))}" if there else "no model is scaled"
            raise NotFound(f"scale: {dimension!r} is no setting in which models differ; {words}")
        shown = dimension or next(iter(there), "")
        base = {"base": _thinned(self.base.points)} if self.base else {}
        panels: dict[str, dict[str, tuple[LossPoint, ...]]] = {}
        for row in self.rows:
            if row.dimension == shown and row.scale:
                its = panels.setdefault(row.variant, dict(base))
                its[row.scale.short(shown)] = _thinned(row.points)
        panels = {each: panels[each] for each in sorted(panels, key=_variant_order)}
        return panels or ({"plain": base} if base else {})

    @property
    def headline(self) -> TransferRow | None:
        """The matched row of the biggest scale with a known shift; None where there is none.

        A row whose optimum is bracketed comes before all rows whose optimum is not.
        """
        known = [row for row in self.rows if row.variant == "matched" and row.scale]
        known = [row for row in known if not math.isnan(row.shift.octaves)]
        return max(known, key=lambda row: (row.bracketed, row.scale.size), default=None)

    def plain_beside(self, row: TransferRow) -> TransferRow | None:
        """The row of plain training at the scale of `row`; None where there is none."""
        return next(
            (each for each in self.rows if each.scale == row.scale and each.variant == "plain"),
            None,
        )


class Curves:
    """Keeps the curves of a family's report for the next report of the same family.

    Most runs of the two reports are the same, and resampling a curve takes most of a report's time.
    Callers may be on any thread.
    """

    def __init__(self) -> None:
        self._curves: dict[_Key, tuple[Sequence[SweepRun], _Curve]] = {}
        self._best: tuple[Sequence[SweepRun], Best] | None = None

    def all(self, runs: Mapping[_Key, Sequence[SweepRun]]) -> dict[_Key, _Curve]:
        """The curve of each of `runs`."""
        before, found = self._curves, {}
        for key, its in runs.items():
            known = before.get(key)
            found[key] = known if known is not None and known[0] == its else (its, _Curve.of(its))
        self._curves = found
        return {key: curve for key, (_, curve) in found.items()}

    def best(self, family: str, runs: Sequence[SweepRun]) -> Best:
        """As `best_rate`; the answer is kept until `runs` change."""
        known = self._best
        if known is None or known[0] != runs:
            self._best = known = runs, best_rate(family, runs)
        return replace(known[1], family=family)


def transfer_report(
    family: str,
    experiments: Iterable[ExperimentRun],
    chosen: Mapping[str, str] | None = None,
    known: Curves | None = None,
) -> TransferReport:
    """The report of a family's runs.

    family: the family's name.
    experiments: all runs of the family.
    chosen: the value to show of some settings of `TransferReport.kinds`, by name. Of the others the
        value with most recordings is shown.
    known: the curves of an earlier report. Curves whose runs are unchanged are taken from there.
    """
    known = known or Curves()
    found = list(experiments)
    bigger = bigger_than_base(found)
    kinds, kept = kinds_of(found, bigger, chosen or {})
    runs: dict[tuple[Scale, str], list[SweepRun]] = defaultdict(list)
    scales = scales_of(kept, bigger)
    for each in kept:
        runs[scales[each.id], each.variant].append(each.run)
    experiment = experiment_words(kinds, len(found) - len(kept), len(bigger))
    best, problem = None, ""
    try:
        own = [each.run for each in kept if is_base(each, bigger)]
        best = replace(known.best(family, own), experiment=experiment)
    except NotFound as error:
        problem = str(error)
    curves = known.all(runs)
    losses = {key: losses_by_rate(its) for key, its in runs.items()}
    rows = [_row(key, curves, best, losses) for key in curves]
    rows.sort(key=lambda row: (row.scale.order, _variant_order(row.variant)))
    return TransferReport(
        family=family,
        best=best,
        problem=problem,
        kinds=kinds,
        left_out=len(found) - len(kept),
        bigger=bigger,
        experiment=experiment,
        rows=tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class _Curve:
    """The settled curve of one scale and variant.

    seeds: how many seeds the curve is over.
    count: how many recordings there are of this scale and variant.
    """

    seeds: int
    count: int
    points: tuple[LossPoint, ...]
    optimum: Optimum | None

    @classmethod
    def of(cls, runs: Sequence[SweepRun]) -> _Curve:
        own, points = settled_curve(runs)
        optimum = None
        if len(points) > 1:  # one rate does not tell on which side the optimum lies
            with suppress(NotFound):  # no finite loss yet
                optimum = Optimum.of_curve(own, points)
        return cls(len({run.seed for run in own}), len(runs), points, optimum)

    @property
    def lowest(self) -> LossPoint | None:
        sound = [point for point in self.points if point.seeds and not point.diverged]
        return min(sound, key=lambda point: point.loss, default=None)


def _variant_order(variant: str) -> tuple[bool, bool, str]:
    """The key to sort variants by: plain, matched, then the others in alphabetical order."""
    return variant != "plain", variant != "matched", variant


_Key = tuple[Scale, str]
_BASE: _Key = (Scale(), "plain")


def _row(
    key: _Key, curves: Mapping[_Key, _Curve], best: Best | None, losses: Mapping[_Key, Losses]
) -> TransferRow:
    """The row of scale and variant `key`. losses: those of all scales and variants."""
    (scale, variant), own = key, curves[key]
    # In a variant such as µP the same rate means something else than in plain training. So the
    # variant is compared with itself at the base's scale.
    itself = variant != "plain" and not variant.startswith("matched")
    reference = curves.get((Scale(), variant)) if itself else None
    base = reference or curves.get(_BASE)
    rate = best.lr if best else math.nan
    if reference is not None and reference.lowest is not None:
        rate = reference.lowest.lr
    moved = _UNKNOWN_SHIFT
    if own.optimum is not None and base is not None and base.optimum is not None:
        moved = own.optimum.shift_from(base.optimum)
    return TransferRow(
        scale=scale,
        dimension=dimension_of(scale),
        variant=variant,
        seeds=own.seeds,
        runs=own.count,
        optimum=2.0**own.optimum.place if own.optimum is not None else math.nan,
        bracketed=is_bracketed(own.points),
        shift=moved,
        loss=own.lowest.loss if own.lowest is not None else math.nan,
        loss_at_base=_loss_at(own.points, rate),
        cost=cost(losses[key], rate, losses.get((scale, "plain"), {})),
        regret=regret(losses[key], rate, [its for each, its in losses.items() if each[0] == scale])
        if scale
        else UNKNOWN,
        points=own.points,
    )


def _thinned(points: tuple[LossPoint, ...]) -> tuple[LossPoint, ...]:
    """At most `MAX_CURVE_POINTS` of a curve's points, evenly spread, with the lowest loss."""
    if len(points) <= MAX_CURVE_POINTS:
        return points
    kept = set(thin(len(points), MAX_CURVE_POINTS - 1).tolist())
    finite = [at for at, point in enumerate(points) if point.seeds]
    kept |= {min(finite, key=lambda at: points[at].loss)} if finite else set()
    return tuple(points[at] for at in sorted(kept))


def is_bracketed(points: Sequence[LossPoint]) -> bool:
    """Whether a curve's lowest loss has rates with higher losses, or diverged runs, beside it."""
    sound = [at for at, point in enumerate(points) if point.seeds and not point.diverged]
    best = min(sound, key=lambda at: points[at].loss, default=0)
    return 0 < best < len(points) - 1


def _loss_at(points: Sequence[LossPoint], lr: float) -> float:
    for point in points:
        if same_lr(point.lr, lr):
            return math.inf if point.diverged or not point.seeds else point.loss
    return math.nan
