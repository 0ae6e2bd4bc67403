"""The best learning rate of a family, for one of the experiments that it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flerm_core.records.queries import BestQuery
from flerm_core.tuning.best_lr import Best
from flerm_core.tuning.experiment_settings import (
    OPTIMIZER,
    ExperimentRun,
    bigger_than_base,
    is_base,
    kinds_of,
)
from flerm_core.tuning.experiment_words import check_picked, experiment_words
from flerm_core.tuning.transfer_report import Curves, transfer_report


def best_of(runs: Iterable[ExperimentRun], query: BestQuery, known: Curves | None = None) -> Best:
    """The best rate of a family's runs.

    Where the family has several experiments (optimisers, schedules), the answer is about the one
    that `query.pick` names, else about the one with most recordings. `Best.experiment` says which
    one that is, and which others there are. Losses of models of different sizes are never averaged.
    For role base and variant plain this is the same as `TransferReport.best`.

    known: as in `transfer_report`.

    Raises `NotFound` when no run is completed with a final loss, and for a pick that no run fits.
    """
    asked = [each for each in runs if _has(each, query)]
    role, variant = query.role, query.variant or "plain"
    bigger = bigger_than_base(asked)
    compared = (role, variant) != ("base", "plain")
    if compared:
        # The runs asked for are compared among themselves, as if they were the base's.
        asked = [
            replace(each, role="base", variant="plain")
            for each in asked
            if (each.role, each.variant) == (role, variant)
        ]
        bigger = frozenset()
    kinds, kept = kinds_of(asked, bigger, query.pick)
    check_picked(kinds, query.pick)
    own = [each.run for each in kept if is_base(each, bigger)]
    words = experiment_words(kinds, len(asked) - len(kept), len(bigger))
    known = known or Curves()
    found = replace(known.best(query.family, own), experiment=words)
    if query.cautions and not compared:
        report = transfer_report(query.family, asked, query.pick, known)
        found = replace(found, cautions=report.cautions)
    return found


def _has(run: ExperimentRun, query: BestQuery) -> bool:
    name, _, _ = str(run.settings[OPTIMIZER]).partition("(")
    return query.optimizer in ("", name) and query.tags.items() <= run.tags.items()
