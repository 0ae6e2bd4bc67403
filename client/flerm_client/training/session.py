"""A training run under measurement: what happens around each of its optimiser steps."""

from __future__ import annotations

import math
import sys
import uuid
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from flerm_client.training.autocast_listener import AutocastListener
from flerm_client.training.captured_steps import redirect_captured_steps
from flerm_client.training.measured_model import make_measured_model, modules_that_show_autocast
from flerm_client.training.optimizer_info import (
    bare_optimizer,
    describe,
    initial_rate,
    initial_rates_by_tensor,
)
from flerm_client.training.parallelism import find_ranks
from flerm_client.training.param_groups import ScaledParamGroups
from flerm_client.training.probe import Probe
from flerm_client.training.rehearsal import Rehearsal
from flerm_client.training.run_log import Destination, RunLog
from flerm_client.training.run_metadata import RunMetadata, parameter_list
from flerm_client.training.run_options import RunOptions
from flerm_client.training.run_remarks import RunRemarks
from flerm_client.training.signal_deferral import SignalDeferral
from flerm_client.training.step_matcher import StepMatcher
from flerm_client.training.step_measurer import StepMeasurer
from flerm_client.training.step_schedule import StepSchedule, check_settings
from flerm_client.training.step_wrapper import StepWrapper
from flerm_client.training.target_schedule import TargetSchedule
from flerm_client.training.weight_decay import is_independent
from flerm_client.upload.reporter import check_reporting
from flerm_core.errors import InvalidInput, NotFinite, Unsupported
from flerm_core.matching.rate_ratios import rate_ratios
from flerm_core.measure.sharpness import require_scipy
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_core.records.recording import Attempt, EstimatorSettings, RecordingSpec
from flerm_core.records.validation import validate_new_family_name

_TELL_AFTER = 3  # steps begun anew: a critic's few steps before its generator's are usual

_live_sessions: weakref.WeakSet[TrainingSession] = weakref.WeakSet()


class TrainingSession:
    """One run under measurement: its parts, and what it has counted.

    `begin` starts the run; from then on each optimiser step goes through `_around_step`: an update
    that is due is captured, measured by `measurer`, matched by `matcher`, and logged.

    on_step: called after each of the model's steps.
    on_end: called when the session ends, the last first.
    steps: the model's optimiser steps so far. A step is over when every optimiser has made its part
        of the step.
    measurer: measures the steps that are due.
    matcher: matches the steps that are due; None in a run that is only recorded.
    """

    def __init__(self, options: RunOptions) -> None:
        validate_new_family_name(options.family)
        optimizer = options.optimizer
        self._given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        if not self._given:
            raise InvalidInput("optimizer is an empty sequence; at least one is needed")
        self.options = options
        self.family = options.family
        self.optimizers = [bare_optimizer(each) for each in self._given]
        if isinstance(options.lr, str):
            raise InvalidInput(f"lr={options.lr!r} is not allowed; a finite number above 0 is")
        self.lr = initial_rate(self.optimizers) if options.lr is None else float(options.lr)
        if not 0.0 < self.lr < math.inf:
            raise InvalidInput(f"lr={self.lr} is not allowed; a finite number above 0 is")
        self.ranks = find_ranks(options.model, options.process_group)
        self.measured_model = make_measured_model(
            options.model, self.optimizers, options.output, options.blocks, self.ranks
        )
        if options.sharpness is not None:
            require_scipy()
            if self.measured_model.sharding is not None:
                raise Unsupported(
                    "sharpness= cannot be measured where ranks share tensors "
                    "(FSDP2, tensor parallel); leave it out"
                )
        self.probe = Probe(options.probe)
        names = {id(p): name for name, p in self.measured_model.parameters.items()}
        self._initial_rates = initial_rates_by_tensor(self.optimizers, names)
        self.independent_decay = is_independent(options.weight_decay, self.optimizers)
        self.param_groups = [
            ScaledParamGroups(each, names, independent_decay=self.independent_decay)
            for each in self.optimizers
        ]
        owners = [(type(each.optimizer).__name__, each.current({})) for each in self.param_groups]
        self.remarks = RunRemarks(owners, silent=not self.ranks.is_rank0)
        for each in self.param_groups:
            each.tell_of_outside(self.remarks)
        self.run_log = RunLog(parameter_list(self.measured_model, options.bands), self.remarks)
        self.recording_id = str(uuid.uuid4())
        self.attempt = Attempt()
        self.on_step: list[Callable[[], None]] = []
        self.on_end: list[Callable[[], None]] = []
        self.steps = 0
        self.matcher: StepMatcher | None = None
        self._update: WeightUpdate | None = None  # of the step at hand, where it is measured
        self._scheduled_lr = self.lr  # η(t) of the first group at the step that is measured
        self._stepped: set[int] = set()  # the optimisers that have made their part of the step
        self._begun_anew = 0  # steps that one optimiser made again before another had made its own
        self._ended = False

    # Beginning and end

    def begin(
        self,
        metadata: RunMetadata,
        settings: EstimatorSettings,
        target_schedule: TargetSchedule | None = None,
        *,
        match_every: int = 0,
        dry_run: bool = False,
    ) -> None:
        """From now on the optimisers' steps are measured, and matched where there are targets.

        They are measured as `settings` say, and matched at step `settings.start` and each
        `match_every` steps (0: once). A run with targets uses the estimator of its targets; a run
        without may fall back to kronecker. A dry run ends at its first match.
        """
        check_settings(settings)
        self.refuse_other_sessions(matches=target_schedule is not None)
        self.metadata = metadata
        self._dry_run = dry_run
        if target_schedule is not None:
            self.matcher = StepMatcher(
                self.measured_model,
                self.ranks,
                target_schedule,
                StepSchedule(settings.start, match_every),
                self.remarks,
            )
        self.measurer = StepMeasurer(
            self.measured_model,
            self.ranks,
            self.options,
            self.probe,
            settings,
            self.remarks,
            may_fall_back=self.matcher is None,
        )
        # Whichever rank's state a checkpoint holds: the state names one run.
        self.recording_id, self.attempt = self.ranks.broadcast_object(
            (self.recording_id, self.attempt)
        )
        if self._reports:
            self._check_report(metadata)
        self._rehearsal = Rehearsal(
            self.measured_model,
            self.ranks,
            self.measurer.meter,
            self.probe,
            self.remarks,
            raises=self.matcher is not None,
        )
        self._rehearsal.at_call()
        self.begin_report()
        self._wrap_steps()
        _live_sessions.add(self)

    def _check_report(self, metadata: RunMetadata) -> None:
        # A wrong tag raises here, on every rank, rather than on rank 0 in mid-training.
        if self.ranks.is_rank0:
            self.metadata = metadata.with_versions()
        spool, token = self.options.spool, self.options.token
        self.ranks.on_rank0(lambda: check_reporting(metadata.registry, self._spec(), spool, token))

    def _wrap_steps(self) -> None:
        """From now on `_around_step` runs around each step of the optimisers."""
        self._wrappers = [
            StepWrapper(each, partial(self._around_step, index))
            for index, each in enumerate(self.optimizers)
        ]
        self._autocast = AutocastListener(
            modules_that_show_autocast(self.options.model, self.measured_model),
            self.measured_model.device.type,
            self.measurer.note_forward,
        )
        self.on_end += list(map(redirect_captured_steps, self._given, self.optimizers))

    def end(self, status: str, timeout: float = 10.0) -> None:
        """Takes the measurement off the optimisers and ends the recording.

        Waits at most `timeout` seconds for the delivery. A second call does nothing.
        """
        if self._ended:
            return
        self._ended = True
        _live_sessions.discard(self)
        for undo in reversed(self.on_end):
            undo()
        for wrapper in self._wrappers:
            wrapper.detach()
        self._autocast.detach()
        self._update = None
        self.probe.close()
        self.run_log.finish(status, timeout)

    def optimizer_signature(self) -> tuple[str, dict[str, Any]]:
        """The optimisers' class name(s) and settings."""
        name, config = describe(self.optimizers, independent_decay=self.independent_decay)
        return name, config | rate_ratios(self._initial_rates, self.lr)

    @property
    def multipliers(self) -> dict[str, float]:
        """m_ℓ by tensor; empty until matched."""
        return {} if self.matcher is None else self.matcher.multipliers

    def multipliers_by_tensor(self) -> dict[str, float]:
        """m_ℓ of every tensor; 1.0 until matched."""
        return {name: self.multipliers.get(name, 1.0) for name in self.measured_model.parameters}

    def begin_report(self) -> None:
        """What this attempt measures, and its end, go to the registry where there is one."""
        to, registry = None, self.metadata.registry
        if self._reports and self.ranks.is_rank0:
            token, spool = self.options.token, self.options.spool
            to = Destination(registry, self._spec(), self.attempt, token, spool)
        self.run_log.begin(to)

    @property
    def _reports(self) -> bool:
        return self.metadata.registry is not None and not self._dry_run

    def refuse_other_sessions(self, *, matches: bool) -> None:
        """Raises `InvalidInput` where an optimiser is in another session and either matches."""
        mine = {id(each) for each in self.optimizers}
        for other in _live_sessions:
            either = matches or other.matcher is not None
            if either and any(id(each) in mine for each in other.optimizers):
                raise InvalidInput(
                    "optimizer is at work in another FLeRM, and one of the two matches, so that "
                    "neither could tell its rates: close() that one first"
                )

    def _spec(self) -> RecordingSpec:
        optimizer, optimizer_config = self.optimizer_signature()
        answer = None if self.matcher is None else self.matcher.target_schedule.registry_answer
        measurer = self.measurer
        spec = RecordingSpec(
            id=self.recording_id,
            family=self.family,
            lr=self.lr,
            parameters=self.run_log.parameters,
            seed=self.options.seed,
            optimizer=optimizer,
            optimizer_config=optimizer_config,
            estimator=replace(measurer.settings, name=measurer.meter.estimator.name),
            world_size=self.ranks.size,
            targets_digest="" if answer is None else answer.digest,
            targets_sources=() if answer is None else answer.sources,
        )
        return self.metadata.fill(spec)

    # One step

    def _around_step(
        self, index: int, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Runs `step(*args, **kwargs)`, the step of optimiser `index`, and returns its result."""
        with SignalDeferral() as signals:
            try:
                if self.multipliers or self._update is not None:  # groups are scaled, or W_old kept
                    signals.defer()
                self._before_step(index, signals)
                groups = self.param_groups[index]
                begin = partial(self._begin_measured_step, signals)
                args, kwargs = self.measurer.delayed.with_look(args, kwargs, groups, begin)
                note_rates = partial(self._note_rates, index)
                result = groups.run_step(step, args, kwargs, self.multipliers, note_rates, signals)
            except BaseException:
                self._abandon_update()
                raise
            self._stepped.add(index)
            self.remarks.stepped.add(index)
            if len(self._stepped) == len(self.optimizers):
                self._after_step(signals)
            return result

    def _before_step(self, index: int, signals: SignalDeferral) -> None:
        """Captures the weights where the model's step is due, or first moves a tensor."""
        if index in self._stepped:
            # This optimiser steps again before the others have: a critic's several steps, or a
            # GradScaler that skipped another optimiser. The model's step begins anew, because a
            # measured update is that of one step.
            self._abandon_update()
            self._begun_anew += 1
            if self._begun_anew == _TELL_AFTER and (idle := self.remarks.idle_optimizers()):
                self.remarks.say(idle)
        groups = self.param_groups[index]
        self.measurer.unseen.seen()
        begun = self.measurer.delayed.look(groups, anew=not self._stepped)
        if begun or (not self._stepped and self._due(self.steps + 1)):
            self._begin_measured_step(signals)
        groups.tell_of_added(self.remarks, thoroughly=self._update is not None)

    def _begin_measured_step(self, signals: SignalDeferral) -> None:
        """Captures the weights, and finds what the step is matched to, before any has changed."""
        if not self._due(self.steps + 1):
            return  # measuring has stopped
        signals.defer()
        if matcher := self._matcher_due(self.steps + 1):
            matcher.find_base_step(self.steps + 1, self.run_log)
            self._rehearsal.before_step()
        if self._update is None:
            self._scheduled_lr = float(self.optimizers[0].param_groups[0]["lr"])
            self._capture()

    def _capture(self) -> None:
        """Copies the weights, before the step that is measured."""
        try:
            self._update = WeightUpdate(self.measured_model.parameters)
        except Exception as error:  # out of memory
            # Where there are other ranks, they wait in the measurement for this one.
            if not self.ranks.single_process:
                raise
            self._go_on_after(error, self.steps + 1)

    def _note_rates(self, index: int) -> None:
        """Notes the rates at which optimiser `index` takes the step that is measured."""
        if self._update is None:
            return
        if index == 0:
            self._scheduled_lr = float(self.optimizers[0].param_groups[0]["lr"])
        groups = self.param_groups[index]
        self._update.rates |= groups.current(self.multipliers)
        self._update.decays |= groups.decays()

    def _after_step(self, signals: SignalDeferral) -> None:
        """Measures what was captured of the model's step, which is over."""
        self._stepped.clear()
        self.steps += 1
        update, self._update = self._update, None
        if update is not None:
            try:
                self._measure(update, signals)
            except Exception as error:
                self._go_on_after(error, self.steps)
        self.run_log.end_step(self.steps)
        for listener in self.on_step:
            listener()

    def _abandon_update(self) -> None:
        self._update = None
        self._stepped.clear()

    def _due(self, step: int) -> bool:
        return self.measurer.due(step) or self._matcher_due(step) is not None

    def _matcher_due(self, step: int) -> StepMatcher | None:
        """What matches `step`; None where the step is not matched."""
        matcher, measurer = self.matcher, self.measurer
        if matcher is None or not matcher.due(step, measurer.delayed.moving):
            return None
        # Once measuring has stopped, a run that was matched stays at its rates.
        return None if measurer.failures.stopped and matcher.multipliers else matcher

    # One measurement

    def _go_on_after(self, error: Exception, step: int) -> None:
        """Says that the measurement of `step` raised `error`. A matched run keeps its rates.

        Raises `error` of a first match, without which the run is not the one that was asked for.
        Where the training has come to NaN, the first match is tried again at the next step.
        """
        matcher = self._matcher_due(step)
        if isinstance(error, NotFinite) and not self._dry_run:
            self.run_log.diverged = True
        elif self.ranks.broken or (matcher is not None and not matcher.multipliers):
            raise error
        elif matcher is not None:
            matcher.schedule.done(step)
        self.measurer.fail(error, step)

    def _measure(self, update: WeightUpdate, signals: SignalDeferral) -> None:
        """Measures the step just made, matches it where that is due, and logs it."""
        measurer, matcher = self.measurer, self._matcher_due(self.steps)
        measured = measurer.measure(update, signals, first=not self.run_log.rows)
        if not measured:
            return
        if not self.run_log.reporting:
            self.run_log.report_as(self._spec())
        if matcher is not None:
            if self._dry_run:
                self._end_dry_run(matcher)
            matcher.match(self.steps, measurer.fslr, update, measurer.delayed.moving)
        measurer.done(update, measured, self.steps)
        multipliers = None if self.matcher is None else self.multipliers_by_tensor()
        scalars = measurer.scalars | ({} if self.matcher is None else self.matcher.scalars)
        self.run_log.add(self.steps, measured, self._scheduled_lr, multipliers, scalars)

    def _end_dry_run(self, matcher: StepMatcher) -> None:
        """Says what was found. Raises `SystemExit`."""
        if self.ranks.is_rank0:
            sys.stdout.write(f"{matcher.report(self.measurer.fslr).text()}\n")
        self.end("interrupted")
        raise SystemExit(0)
