"""Which trainings come next. A function of what is done: a sweep that was stopped goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flerm_experiments.sweep.lr_search import lowest, settled, wanted
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial

Done = Mapping[Trial, float]
"""Trial to its final loss, infinite for a run that diverged."""


@dataclass(frozen=True, slots=True)
class Needed:
    """A trial, and those that must be done before it may begin."""

    trial: Trial
    after: tuple[Trial, ...] = ()


def plan(sweep: Sweep, done: Done) -> list[Needed]:
    """All trials known to be missing, the most useful first; empty when every curve is settled.

    The base's curve first, with all its seeds. Then the cells, one seed of them all before the second of any: a sweep that is
    stopped early has every curve coarsely rather than a few finely. More may be missing once these are done.
    """
    base = wanted(losses_of(done, None), sweep.base_seeds, 0)
    if base:
        return [Needed(Trial(None, place, seed)) for place, seed in base]
    best = base_place(sweep, done)
    rounds: list[list[Needed]] = [[] for _ in range(sweep.seeds)]
    for cell in sweep.cells:
        missing = wanted(
            losses_of(done, cell),
            sweep.seeds_of(cell),
            expected(cell, best),
            also=besides(cell, best),
        )
        for place, seed in missing:
            rounds[max(each for _, each in missing)].append(
                Needed(Trial(cell, place, seed), tuple(_sources(sweep, cell, place)))
            )
    flat = [needed for each in rounds for needed in each]
    firsts = {source: None for needed in flat for source in needed.after if source not in done}
    # A source comes right before the first trial that waits for it.
    ordered: dict[Trial, Needed] = {}
    for needed in flat:
        for source in needed.after:
            if source in firsts:
                ordered.setdefault(source, Needed(source))
        ordered.setdefault(
            needed.trial,
            Needed(needed.trial, tuple(each for each in needed.after if each in firsts)),
        )
    return list(ordered.values())


def base_place(sweep: Sweep, done: Done) -> int:
    """The place of the base's best rate. Its curve must be settled."""
    return lowest(losses_of(done, None), sweep.base_seeds)


def expected(cell: Cell, best: int) -> int:
    """Where a cell's optimum is looked for first: at the base's; for plain training, lower in proportion to its width."""
    if cell.variant != "plain":
        return best
    return best - round(math.log2(cell.scale.width))


def besides(cell: Cell, best: int) -> tuple[int, ...]:
    """The places wanted beside the optimum's: the base's best, unless learning rates mean something else to the cell."""
    return (best,) if cell.shares_base else ()


def settled_seeds(sweep: Sweep, done: Done, cell: Cell | None) -> int:
    """How many seeds the curve of `cell` (None: of the base) is settled for, all places wanted of it included."""
    if cell is None:
        return settled(losses_of(done, None), sweep.base_seeds, 0)
    if settled_seeds(sweep, done, None) < sweep.base_seeds:
        return 0
    best = base_place(sweep, done)
    return settled(
        losses_of(done, cell), sweep.seeds_of(cell), expected(cell, best), besides(cell, best)
    )


def _sources(sweep: Sweep, cell: Cell, place: int) -> Iterator[Trial]:
    """The base recordings that a cell's targets at a place come from."""
    if cell.matches:
        for seed in range(sweep.base_seeds):
            yield Trial(None, place, seed, cell.measured)


def losses_of(done: Done, cell: Cell | None) -> dict[tuple[int, int], float]:
    """The curve of `cell` (None: of the base): (place, seed) to loss."""
    return {
        (trial.place, trial.seed): loss
        for trial, loss in done.items()
        if trial.cell == cell and not trial.measured
    }
