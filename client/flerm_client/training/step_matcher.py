"""The matching of a run's steps: from measured FSLRs and targets to multipliers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from flerm_client.training.match_report import MatchReport, say_unmatched
from flerm_client.training.run_log import RunLog
from flerm_client.training.run_remarks import RunRemarks
from flerm_client.training.step_schedule import StepSchedule
from flerm_client.training.target_schedule import TargetSchedule
from flerm_core._warnings import warn
from flerm_core.matching.batch_change import BATCH_FACTOR
from flerm_core.matching.match import Multipliers
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.update.weight_update import WeightUpdate

_RESUMED_BY_NAME = ("multipliers", "targets", "fslr")


class StepMatcher:
    """Matches those steps of a run that are due.

    target_schedule: the targets of the run.
    schedule: the steps that are matched.
    remarks: takes what there is to say of tensors that were not matched.

    multipliers: m_ℓ by tensor; empty until matched.
    targets: the targets that the present multipliers reach, by tensor. Until the first match they
        are those of the first step that is due.
    fslr: the measurement that the present multipliers were computed from, by tensor.
    """

    def __init__(
        self,
        measured_model: MeasuredModel,
        ranks: MeasurementRanks,
        target_schedule: TargetSchedule,
        schedule: StepSchedule,
        remarks: RunRemarks,
    ) -> None:
        """Raises as `TargetSchedule.base_step` does where the base cannot answer by the clock."""
        self.target_schedule = target_schedule
        self.schedule = schedule
        self.multipliers: dict[str, float] = {}
        self.targets = target_schedule.targets_at(target_schedule.base_step(schedule.next, 0))
        self.fslr: dict[str, float] = {}
        self._base_step = 0.0  # the base's step whose targets the step at hand is matched to
        self._model = measured_model
        self._ranks = ranks
        self._remarks = remarks
        remarks.to_match = True
        for sentence in target_schedule.remarks:
            remarks.say(sentence)

    @property
    def scalars(self) -> dict[str, float]:
        """What a row holds of the multipliers besides these."""
        factor = self.target_schedule.batch_factor
        return {} if factor == 1.0 else {BATCH_FACTOR: factor}

    def due(self, step: int, moving: frozenset[str]) -> bool:
        """Whether `step` is matched: wholly, or for the `moving` tensors alone."""
        return bool(moving) or self.schedule.due(step)

    def find_base_step(self, step: int, run_log: RunLog) -> None:
        """Finds the base's step that `step` is matched to, before any weight has changed.

        Tokens are those that rank 0 logged: every rank gets the same step or raises the same error.
        """
        by_tokens = self.target_schedule.clock.clock == "tokens"
        tokens = self._ranks.broadcast_object(run_log.pending_tokens) if by_tokens else None
        self._base_step = self.target_schedule.base_step(step, tokens)

    def report(self, fslr: Mapping[str, float]) -> MatchReport:
        """What a dry run prints of the measurement `fslr`."""
        return self.target_schedule.report(self._base_step, self._of_every_tensor(fslr))

    def match(
        self, step: int, fslr: Mapping[str, float], update: WeightUpdate, moving: frozenset[str]
    ) -> None:
        """Finds the multipliers of the measured `step`, and repeats the step at these.

        fslr: the measurement, by tensor and depth group.
        moving: the tensors that are matched where the step as a whole is not due.
        """
        only: frozenset[str] = frozenset() if self.schedule.due(step) else moving
        measured = self._of_every_tensor(fslr)
        schedule = self.target_schedule
        outcome = schedule.multipliers(self._base_step, measured, self.multipliers, only)
        say_unmatched(outcome, self._remarks)
        targets = schedule.targets_at(self._base_step)
        found = {name: value for name, value in fslr.items() if name in measured}
        if only:
            targets = self.targets | {name: targets[name] for name in only}
            found = self.fslr | {name: found[name] for name in only & found.keys()}
        self.targets, self.fslr = targets, found
        self._apply(outcome, update)
        self.schedule.done(step)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "next_due": self.schedule.next,
            "target_schedule": self.target_schedule.state_dict(),
            **{name: dict(getattr(self, name)) for name in _RESUMED_BY_NAME},
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Goes on after `step` where the run that wrote `state` was, by its targets and clock."""
        self.schedule.resume(step, state["next_due"])
        for name in _RESUMED_BY_NAME:
            setattr(self, name, dict(state[name]))
        self._remarks.matched = any(m != 1.0 for m in self.multipliers.values())
        asked = self.target_schedule.clock
        self.target_schedule.load_state_dict(state["target_schedule"])
        found = self.target_schedule.clock
        if found != asked and self._ranks.is_rank0:
            warn(f"this run goes on by {found}, as its checkpoint has it, and not by {asked}")

    def _of_every_tensor(self, fslr: Mapping[str, float]) -> dict[str, float]:
        return {name: fslr.get(name, math.nan) for name in self._model.parameters}

    def _apply(self, outcome: Multipliers, update: WeightUpdate) -> None:
        """Sets the multipliers, and repeats the step just made at them (design, method 4)."""
        names = list(self._model.parameters)
        found = torch.tensor(
            [outcome.values.get(name, 1.0) for name in names],
            dtype=torch.float64,
            device=self._model.device,
        )
        previous = self.multipliers
        # Rank 0's, so that they are equal to the last bit.
        self.multipliers = dict(zip(names, self._ranks.broadcast(found).tolist(), strict=True))
        update.reapply({name: m / previous.get(name, 1.0) for name, m in self.multipliers.items()})
