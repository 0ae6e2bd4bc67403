"""Which trainings of a sweep come next.

The plan is a function of the trainings that are done, so a stopped sweep goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flerm_experiments.sweep.lr_search import best_index, runs_to_train, settled_seeds
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial

FinalLosses = Mapping[Trial, float]
"""Trial to its final loss, infinite for a run that diverged."""


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A trial that is missing, and the trials that must be done before it can begin."""

    trial: Trial
    waits_for: tuple[Trial, ...] = ()


def plan(sweep: Sweep, done: FinalLosses) -> list[PlannedTrial]:
    """All trials known to be missing, the most useful first; empty when every curve is settled.

    The base's curve comes first, with all its seeds. Then every cell is trained with one seed
    before any cell is trained with a second, so a sweep that is stopped early has all curves with
    few seeds. Once the trials of this plan are done, a new plan may have further ones.
    """
    base = runs_to_train(
        curve_losses(done, None),
        sweep.base_seeds,
        *_search(sweep, 0, ()),
    )
    if base:
        return [PlannedTrial(Trial(None, index, seed)) for index, seed in base]
    best = base_best_index(sweep, done)
    rounds: list[list[PlannedTrial]] = [[] for _ in range(sweep.seeds)]
    for cell in sweep.cells:
        missing = runs_to_train(
            curve_losses(done, cell),
            sweep.seeds_of(cell),
            *_search(sweep, expected_index(sweep, cell, best), required_indices(cell, best)),
        )
        for index, seed in missing:
            sources = tuple(
                each for each in _target_sources(sweep, cell, index) if each not in done
            )
            rounds[max(each for _, each in missing)].append(
                PlannedTrial(Trial(cell, index, seed), sources)
            )
    # A source of targets comes right before the first trial that waits for it.
    ordered: dict[Trial, PlannedTrial] = {}
    for planned in (planned for each in rounds for planned in each):
        for source in planned.waits_for:
            ordered.setdefault(source, PlannedTrial(source))
        ordered.setdefault(planned.trial, planned)
    return list(ordered.values())


def base_best_index(sweep: Sweep, done: FinalLosses) -> int:
    """The learning-rate index of the base's lowest mean loss. The base's curve must be settled."""
    return best_index(curve_losses(done, None), sweep.base_seeds)


def expected_index(sweep: Sweep, cell: Cell, base_best: int) -> int:
    """Where the search for a cell's optimum begins.

    It begins at the base's best rate; for plain training, lower in proportion to the width.

    cell: a curve of `sweep`.
    base_best: the learning-rate index of the base's lowest mean loss.
    """
    if cell.variant != "plain":
        return base_best
    return base_best - round(sweep.rates_per_octave * math.log2(cell.scale.width))


def required_indices(cell: Cell, base_best: int) -> tuple[int, ...]:
    """What a cell trains besides its optimum's three rates.

    That is the base's best rate, to tell what carrying it over costs. A cell whose learning rates
    have another meaning than the base's trains nothing besides.
    """
    return (base_best,) if cell.shares_base_lr else ()


def seeds_settled_of(sweep: Sweep, done: FinalLosses, cell: Cell | None) -> int:
    """For how many seeds the curve of `cell` (None: of the base) and its required rates are
    settled."""
    if cell is None:
        return settled_seeds(curve_losses(done, None), sweep.base_seeds, *_search(sweep, 0, ()))
    if seeds_settled_of(sweep, done, None) < sweep.base_seeds:
        return 0
    best = base_best_index(sweep, done)
    return settled_seeds(
        curve_losses(done, cell),
        sweep.seeds_of(cell),
        *_search(sweep, expected_index(sweep, cell, best), required_indices(cell, best)),
    )


def _search(
    sweep: Sweep, expected: int, required: tuple[int, ...]
) -> tuple[int, tuple[int, ...], range]:
    """Where a search begins, what is trained in any case, and what may be trained.

    In a sweep that lists its rates, all of them are trained.
    """
    allowed = sweep.allowed_indices
    return expected, tuple(allowed) if sweep.rates else required, allowed


def curve_losses(done: FinalLosses, cell: Cell | None) -> dict[tuple[int, int], float]:
    """The curve of `cell` (None: of the base): (learning-rate index, seed) to final loss."""
    return {
        (trial.lr_index, trial.seed): loss
        for trial, loss in done.items()
        if trial.cell == cell and not trial.base_measurement
    }


def _target_sources(sweep: Sweep, cell: Cell, lr_index: int) -> Iterator[Trial]:
    """The base recordings that a cell takes its targets from at one rate."""
    if cell.matches:
        for seed in range(sweep.base_seeds):
            yield Trial(None, lr_index, seed, cell.base_measurement)
