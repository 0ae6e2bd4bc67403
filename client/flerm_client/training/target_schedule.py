"""The target FSLRs of a matched run over its steps, and the multipliers that reach them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from flerm_client.registry.query_process import fetch_best, fetch_targets
from flerm_client.training.match_report import MatchReport, estimator_key, mismatches
from flerm_client.training.run_options import MatchOptions
from flerm_client.training.target_clock import TargetClock
from flerm_core._warnings import warn
from flerm_core.errors import FlermError, InvalidInput, NotFound, join_names
from flerm_core.matching.batch_change import BatchChange
from flerm_core.matching.dimensions import refuse_other_dimensions, shapes_by_name
from flerm_core.matching.match import (
    Multipliers,
    multipliers,
    thinned_columns,
)
from flerm_core.matching.match_plan import MatchPlan
from flerm_core.matching.targets import Targets, targets_digest
from flerm_core.parameter_names import find_axes
from flerm_core.records.comparability import optimizer_key
from flerm_core.records.queries import BestQuery, TargetQuery
from flerm_core.records.recording import EstimatorSettings, same_lr
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.experiment_settings import OPTIMIZER

_ARRAYS = ("steps", "table", "spread", "tokens")
_TUPLES = ("names", "sources", "source_learning_rates", "remarks")


class TargetSchedule:
    """The targets of a run, the clock by which it reads them, and the range of its multipliers.

    All three are fixed for a run: a resumed run takes targets and clock from its checkpoint.
    """

    def __init__(
        self,
        targets: Targets,
        clamp: tuple[float, float],
        clock: TargetClock,
        mismatches: tuple[str, ...] = (),
    ) -> None:
        self.clock = clock
        self._targets = targets
        self._clamp = clamp
        self._mismatches = mismatches
        self.cautions: tuple[str, ...] = ()  # of a dry run
        self.batch_factor = 1.0  # in every multiplier, by `follow`

    @classmethod
    def from_user(
        cls, options: MatchOptions, query: TargetQuery, clock: TargetClock
    ) -> TargetSchedule:
        """From `options.targets`, for the run that `query` describes.

        These targets are the answer to a query, a base's trajectory, or FSLRs by name, which are
        the same at every step. Raises `InvalidInput` for a tensor without FSLR, and for the answer
        to a query about another optimiser, rate or depth. A dry run reports another optimiser.
        """
        source = options.targets
        if isinstance(source, Targets):
            return cls(source, options.clamp, clock, _check_answer(source, query, options))
        if isinstance(source, Trajectory):
            targets = _of_trajectory(source, query, options)
        else:
            assert source is not None, "start_session asks the registry where there are none"
            targets = _of_mapping(source, query.names, options, query.lr, clock)
        return cls(targets, options.clamp, clock)

    @classmethod
    def from_registry(
        cls, registry: str, query: TargetQuery, options: MatchOptions, clock: TargetClock
    ) -> TargetSchedule:
        """From the registry, within `options.timeout` seconds.

        A query at learning rate NaN means the family's best. A dry run also takes targets of
        another optimiser or estimator where there are no others, and reports the difference.
        """
        end = time.monotonic() + options.timeout
        token = options.token

        def fetch(asked: TargetQuery) -> Targets:
            if math.isnan(asked.lr):
                best = fetch_best(
                    registry, _best_query(asked), token=token, timeout=options.timeout
                )
                if best.experiment:
                    warn(f"lr='best' is {best.lr:g}. {best.experiment}")
                asked = replace(asked, lr=best.lr)
            return fetch_targets(registry, asked, token=token, timeout=end - time.monotonic())

        try:
            return cls(fetch(query), options.clamp, clock)
        except NotFound as missing:
            if not options.dry_run:
                raise
            try:
                targets = fetch(replace(query, optimizer="", optimizer_config=None, estimator=None))
            except FlermError:
                # The optimiser and estimator were not the reason.
                raise missing from None
        differing = mismatches(
            targets,
            optimizer=query.optimizer,
            optimizer_config=query.optimizer_config,
            estimator=estimator_key(query.estimator),
        )
        return cls(targets, options.clamp, clock, differing)

    @property
    def registry_answer(self) -> Targets | None:
        """The answer to a query, with its sources; None for the user's own FSLRs or trajectory."""
        return self._targets if self._targets.sources else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on how targets were found, and on a batch size that is not the base's."""
        return self._targets.remarks

    def follow(self, change: BatchChange) -> None:
        """From now on multipliers are those of the changed batch, and a remark says so."""
        self.batch_factor = change.rate
        self.say(change.sentence)

    def say(self, remark: str) -> None:
        """Adds a remark; an empty one says nothing."""
        if remark:
            self._targets = replace(self._targets, remarks=(*self._targets.remarks, remark))

    def base_step(self, step: int, tokens: int | None) -> float:
        """The base's step whose targets are those of this run's `step`.

        `tokens` are those that this run has seen by the end of the step. Raises `InvalidInput`
        where the clock counts tokens and there are none, `NotFound` where the base logged none.
        """
        return self._targets.step_at(**self.clock.position_at(step, tokens))

    def targets_at(self, base_step: float) -> dict[str, float]:
        """Target FSLR by tensor, as of a step of the base.

        Before the base's first measurement of a tensor, that first measurement holds: a run that
        is slower than its base on the clock measures some tensors (LoRA's A) before its base did.
        """
        found = self._targets.at(step=base_step)
        # In nearly all cases nothing is missing, and the whole table need not be looked through.
        if not any(map(math.isnan, found.values())):
            return found
        table = self._targets.table
        row = (~np.isnan(table)).argmax(axis=0)
        first = dict(zip(found, table[row, np.arange(len(row))].tolist(), strict=True))
        return {name: first[name] if math.isnan(value) else value for name, value in found.items()}

    def multipliers(
        self,
        base_step: float,
        measured: Mapping[str, float],
        previous: Mapping[str, float],
        only: Collection[str] = (),
    ) -> Multipliers:
        """m = target / measured (Eq. 19) with the targets as of `base_step`.

        only: the tensors that are matched; all others keep their `previous` multiplier. Empty: all
            are matched.
        """
        targets = self.targets_at(base_step)
        return multipliers(
            targets,
            measured,
            previous=previous,
            clamp=self._clamp,
            only=only,
            times=self.batch_factor,
        )

    def report(self, base_step: float, measured: Mapping[str, float]) -> MatchReport:
        """What a dry run prints: `measured` FSLRs beside the targets as of `base_step`."""
        report = MatchReport.of(
            self._targets,
            None,
            step=base_step,
            mismatches=self._mismatches,
            cautions=self.cautions,
        )
        return replace(
            report,
            targets=self.targets_at(base_step),
            measured=measured,
            outcome=self.multipliers(base_step, measured, {}),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        targets = self._targets
        state = {each.name: getattr(targets, each.name) for each in fields(targets)}
        state["estimator"] = asdict(targets.estimator)
        state["optimizer_config"] = dict(targets.optimizer_config)
        arrays = {name: torch.tensor(state[name]) for name in _ARRAYS}
        return {"targets": state | arrays, "clock": self.clock.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the targets and the clock of the run that wrote `state`."""
        targets = dict(state["targets"])
        targets |= {name: targets[name].numpy() for name in _ARRAYS}
        targets |= {name: tuple(targets.get(name, ())) for name in _TUPLES}
        targets["estimator"] = EstimatorSettings(**targets["estimator"])
        self._targets = Targets(**targets)
        self.clock = TargetClock(**state["clock"])


def _best_query(query: TargetQuery) -> BestQuery:
    """The question for the best rate of the recordings that `query` takes targets from."""
    settings = optimizer_key(query.optimizer, query.optimizer_config or {})
    return BestQuery(
        family=query.family,
        optimizer=query.optimizer,
        tags=query.tags,
        pick={OPTIMIZER: settings} if query.optimizer else {},
    )


def _check_answer(answer: Targets, query: TargetQuery, options: MatchOptions) -> tuple[str, ...]:
    """Where the run of `query` differs from the base behind `answer`, in sentences.

    Raises as `TargetSchedule.from_user` does.
    """
    missing = [name for name in query.names if name not in answer]
    axes = find_axes(answer.names, query.names)
    if missing or axes:
        what = (
            f"has no value for {join_names(missing, 50)}"
            if missing
            else f"is for a model with another number of blocks along {', '.join(axes)}"
        )
        raise InvalidInput(
            f"targets {what}: ask for those of this model, by RegistryClient.targets(names=...), "
            "or leave targets out"
        )
    if isinstance(options.lr, int | float) and not same_lr(options.lr, answer.lr):
        raise InvalidInput(
            f"lr={options.lr:g}, but targets is of the base at {answer.lr:g}: ask for targets of "
            "this rate, or leave lr out"
        )
    differing = mismatches(
        answer, optimizer=query.optimizer, optimizer_config=query.optimizer_config
    )
    if differing and not options.dry_run and answer.optimizer:
        raise InvalidInput(
            f"targets is of another optimizer ({'; '.join(differing)}): one set of targets belongs "
            "to one optimizer with its settings; record a base with this one, or give "
            "dict(targets) to use the FSLRs all the same"
        )
    return differing if answer.optimizer else ()


def _of_trajectory(base: Trajectory, query: TargetQuery, options: MatchOptions) -> Targets:
    """`match_targets` for every row of `base`."""
    if not len(base):
        raise NotFound("targets is a trajectory without rows; it needs one at least")
    bands = dict(zip(base.names, base.bands, strict=True))
    blocks = options.blocks
    plan = MatchPlan.of(base.names, query.names, bands=bands, blocks=blocks, depth=options.depth)
    refuse_other_dimensions(
        plan,
        shapes_by_name(query.names, query.shapes),
        shapes_by_name(base.names, base.shapes),
        query.family,
    )
    columns = dict(zip(base.names, base.resampled(base.steps).T, strict=True))
    matched = plan.targets(columns, thinned_columns(base))
    rows = replace(
        _without_sources(options, query.lr),
        steps=base.steps,
        tokens=base.tokens,
        remarks=plan.remarks(set(base.names)),
    )
    return _with_table(rows, list(matched), np.stack(list(matched.values()), axis=1))


def _of_mapping(
    source: Mapping[str, float],
    names: Sequence[str],
    options: MatchOptions,
    lr: float,
    clock: TargetClock,
) -> Targets:
    """One row of FSLRs, which holds at every step."""
    if clock != TargetClock():
        raise InvalidInput(
            f"clock={clock.clock!r}: targets are FSLRs by name, the same at every step; "
            "give a Trajectory or a query's answer, or leave clock out"
        )
    given = {str(name): float(value) for name, value in source.items()}
    missing = [name for name in names if name not in given]
    if missing:
        near = {
            close: None
            for name in missing[:5]
            for close in get_close_matches(name, given, n=1, cutoff=0.6)
        }
        hint = f" (close: {', '.join(near)})" if near else ""
        raise InvalidInput(
            f"targets has no value for {join_names(missing, 50)}; "
            f"it has {join_names(given) or 'none at all'}{hint}: name these tensors too; "
            "NaN leaves one at the optimizer's own rate"
        )
    negative = next((name for name in names if given[name] < 0), None)
    if negative is not None:
        raise InvalidInput(
            f"targets: {given[negative]} for {negative!r}; allowed are numbers from 0, "
            "and NaN for unmeasured"
        )
    return _with_table(_without_sources(options, lr), names, np.array([[given[n] for n in names]]))


def _without_sources(options: MatchOptions, lr: float) -> Targets:
    """Targets of no recording: what the user says of them, and one empty row at step 1."""
    return Targets(
        family=options.family,
        lr=lr,
        policy="",
        depth=options.depth,
        names=(),
        steps=np.ones(1, np.int64),
        table=np.empty((1, 0), np.float32),
        spread=np.empty((1, 0), np.float32),
        tokens=np.full(1, -1, np.int64),
        optimizer="",
        optimizer_config={},
        estimator=EstimatorSettings(),
        sources=(),
        source_learning_rates=(),
        seeds=0,
        digest="",
        final_step=1,
    )


def _with_table(targets: Targets, names: Sequence[str], values: np.ndarray) -> Targets:
    """`targets` with FSLRs `values` [T, L] of the tensors `names` [L]."""
    table = values.astype(np.float32)
    return replace(
        targets,
        names=tuple(names),
        table=table,
        spread=np.full_like(table, np.nan),
        digest=targets_digest(names, targets.steps, table),
        final_step=int(targets.steps[-1]),
    )
