"""What a matched run aims for: target FSLRs over its steps, and the multipliers that reach them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from flerm_client.registry.query_process import fetch_best, fetch_targets
from flerm_client.training.match_report import MatchReport, estimator_key, mismatches
from flerm_client.training.target_clock import TargetClock
from flerm_core.errors import FlermError, InvalidInput, NotFound, join_names
from flerm_core.matching.match import Multipliers, held_as, match_rows, multipliers, whole_run
from flerm_core.matching.targets import Targets
from flerm_core.parameter_names import is_depth_group, stands_for
from flerm_core.records.queries import BestQuery, TargetQuery
from flerm_core.records.recording import EstimatorSettings
from flerm_core.trajectory import Trajectory

TargetSource = Mapping[str, float] | Trajectory


class TargetSchedule:
    """Targets, the pace at which a run goes along them, and how far multipliers may go for them. Fixed for a run: a resumed
    run takes targets and pace from its checkpoint."""

    def __init__(
        self,
        targets: Targets | Trajectory | dict[str, float],
        clamp: tuple[float, float],
        pace: TargetClock,
        mismatches: tuple[str, ...] = (),
    ) -> None:
        self._targets = targets
        self._clamp = clamp
        self.pace = pace
        self._mismatches = mismatches

    @classmethod
    def given(
        cls,
        source: TargetSource,
        names: Sequence[str],
        depth: str,
        blocks: Any,
        clamp: tuple[float, float],
        pace: TargetClock,
    ) -> TargetSchedule:
        """From what the user holds: the answer to a query, a base trajectory (read at each step that matches), or FSLRs by
        name (for all of `names`, each under its own or its role's), which are the same at every step."""
        if isinstance(source, Targets):
            return cls(source, clamp, pace)
        if isinstance(source, Trajectory):
            return cls(_matched(source, names, depth, blocks), clamp, pace)
        if pace != TargetClock():
            raise InvalidInput(
                f"clock={pace.clock!r}: targets are FSLRs by name, the same at every step; give a Trajectory or a query's "
                "answer, or leave clock out"
            )
        targets = {str(name): float(value) for name, value in source.items()}
        roles = [name for name in targets if is_depth_group(name)]
        keys = {
            name: name if name in targets else next((r for r in roles if stands_for(r, name)), None)
            for name in names
        }
        missing = [name for name, key in keys.items() if key is None]
        if missing:
            raise InvalidInput(
                f"targets has no value for {', '.join(missing)}; it has {', '.join(targets) or 'none at all'}"
            )
        return cls({key: targets[key] for key in keys.values() if key is not None}, clamp, pace)

    @classmethod
    def fetched(
        cls,
        registry: str,
        query: TargetQuery,
        token: str | None,
        timeout: float,
        clamp: tuple[float, float],
        pace: TargetClock,
        dry_run: bool = False,
    ) -> TargetSchedule:
        """From the registry, within `timeout` seconds; a query at learning rate NaN means the family's best.

        A dry run also takes targets of another optimiser or estimator, where there are no others, and says so.
        """
        end = time.monotonic() + timeout
        if math.isnan(query.lr):
            asked = BestQuery(family=query.family, optimizer=query.optimizer, tags=query.tags)
            query = replace(query, lr=fetch_best(registry, asked, token=token, timeout=timeout).lr)
        try:
            return cls(
                fetch_targets(registry, query, token=token, timeout=end - time.monotonic()),
                clamp,
                pace,
            )
        except NotFound as missing:
            if not dry_run:
                raise
            any_kind = replace(query, optimizer="", optimizer_config=None, estimator=None)
            try:
                found = fetch_targets(
                    registry, any_kind, token=token, timeout=end - time.monotonic()
                )
            except FlermError:
                raise missing from None  # it was not for the kind
        kind = estimator_key(query.estimator)
        differing = mismatches(
            found,
            optimizer=query.optimizer,
            optimizer_config=query.optimizer_config,
            estimator=kind,
        )
        return cls(found, clamp, pace, differing)

    @property
    def found(self) -> Targets | None:
        """The registry's answer with its origin; None for targets that the user gave."""
        return self._targets if isinstance(self._targets, Targets) else None

    def base_step(self, step: int, tokens: int | None) -> float:
        """The base's step whose targets are this run's at `step`, by when it has seen `tokens`.

        Raises `InvalidInput` where the clock counts tokens and there are none, `NotFound` where the base has none.
        """
        return (
            float(step)
            if isinstance(self._targets, dict)
            else self._targets.step_at(**self.pace.reading(step, tokens))
        )

    def at(self, base_step: float) -> dict[str, float]:
        """Targets by tensor or role, as of a step of the base; before the base's first measurement of one, that one holds.

        A run that goes along its base more slowly comes by what is measured late (LoRA's A) before its base does.
        """
        if isinstance(self._targets, dict):
            return dict(self._targets)
        found = self._targets.at(step=base_step)
        if not any(
            map(math.isnan, found.values())
        ):  # as nearly always: the whole run need not be looked through
            return found
        first = _first_measured(self._targets)
        return {name: first[name] if math.isnan(value) else value for name, value in found.items()}

    def check_roles(self, estimator: str, roles: Mapping[str, object] | None) -> None:
        """Raises `InvalidInput` where this aims for the joint change of a role that `estimator` does not measure: `roles` are
        those that it does, None for an estimator of single tensors."""
        names = self._targets if isinstance(self._targets, dict) else self._targets.names
        for name in filter(is_depth_group, names):
            if roles is None:
                raise InvalidInput(
                    f"targets: {name!r} is the joint change of several tensors, which estimator={estimator!r} does not "
                    "measure; 'example' and 'exact' do, or take targets by another depth rule than 'joint'"
                )
            if held_as(name, roles) not in roles:
                raise InvalidInput(
                    f"targets: {name!r} is no role of this model, which has {join_names(roles)}; "
                    "say what counts its blocks with blocks="
                )

    def multipliers(
        self,
        base_step: float,
        measured: Mapping[str, float],
        previous: Mapping[str, float],
        only: Collection[str] = (),
    ) -> Multipliers:
        """m = target / measured (Eq. 19), the targets as of `base_step`; of the tensors `only` where there are any."""
        return multipliers(
            self.at(base_step), measured, previous=previous, clamp=self._clamp, only=only
        )

    def comparison(
        self, family: str, lr: float, base_step: float, measured: Mapping[str, float]
    ) -> MatchReport:
        """All that a dry run says: `measured` FSLRs beside what is aimed for, as of `base_step`."""
        what = MatchReport(family=family, lr=lr, targets={})
        if self.found is not None:
            what = MatchReport.of(self.found, None, step=base_step, mismatches=self._mismatches)
        outcome = self.multipliers(base_step, measured, {})
        return replace(what, targets=self.at(base_step), measured=measured, outcome=outcome)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {**self._targets_state(), "pace": self.pace.state_dict()}

    def _targets_state(self) -> dict[str, Any]:
        if isinstance(self._targets, dict):
            return {"given": dict(self._targets)}
        if isinstance(self._targets, Trajectory):
            rows = self._targets
            arrays = {
                name: torch.tensor(getattr(rows, name)) for name in ("steps", "values", "tokens")
            }
            return {"rows": {"names": rows.names, **arrays}}
        state = {f.name: getattr(self._targets, f.name) for f in fields(self._targets)}
        state["estimator"] = asdict(self._targets.estimator)
        state["optimizer_config"] = dict(self._targets.optimizer_config)
        for name in ("steps", "table", "spread", "tokens"):
            state[name] = torch.tensor(state[name])
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Targets and pace of the run that wrote `state`."""
        state = dict(state)
        self.pace = TargetClock(**state.pop("pace", {}))
        if "given" in state:
            self._targets = dict(state["given"])
            return
        if "rows" in state:
            rows = state["rows"]
            tokens = rows["tokens"].numpy() if "tokens" in rows else None
            self._targets = _rows(
                rows["names"], rows["steps"].numpy(), rows["values"].numpy(), tokens
            )
            return
        arrays = {name: state[name].numpy() for name in ("steps", "table", "spread", "tokens")}
        tuples = {
            name: tuple(state[name]) for name in ("names", "sources", "source_learning_rates")
        }
        self._targets = Targets(
            **{**state, **arrays, **tuples, "estimator": EstimatorSettings(**state["estimator"])}
        )


def _matched(base: Trajectory, names: Sequence[str], depth: str, blocks: Any) -> Trajectory:
    """`match_targets` for every row of `base`: what `names` aim for over the run."""
    if not len(base):
        raise NotFound("targets is a trajectory without rows; it needs one at least")
    columns = dict(zip(base.names, base.resampled(base.steps).T, strict=True))
    bands = dict(zip(base.names, base.bands, strict=True))
    matched = match_rows(
        columns, names, run=whole_run(base), bands=bands, blocks=blocks, depth=depth
    )
    return _rows(list(matched), base.steps, np.stack(list(matched.values()), axis=1), base.tokens)


def _rows(
    names: Sequence[str], steps: ArrayLike, values: ArrayLike, tokens: ArrayLike | None
) -> Trajectory:
    return Trajectory(
        names, [()] * len(names), steps, values, bands=["other"] * len(names), tokens=tokens
    )


def _first_measured(base: Targets | Trajectory) -> dict[str, float]:
    """The first FSLR that was measured of each tensor or role, NaN where none was."""
    table = base.table if isinstance(base, Targets) else base.values
    row = (~np.isnan(table)).argmax(axis=0)
    return dict(zip(base.names, table[row, np.arange(len(row))].tolist(), strict=True))
