"""A training run under measurement: what happens around each of its optimiser steps."""

from __future__ import annotations

import math
import sys
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flerm_client.training.measured_model import make_measured_model, on_device
from flerm_client.training.optimizer_info import bare_optimizer, describe, initial_rate
from flerm_client.training.parallelism import find_ranks
from flerm_client.training.param_groups import ScaledParamGroups
from flerm_client.training.probe import Probe
from flerm_client.training.run_log import RunLog
from flerm_client.training.run_metadata import RunMetadata, check_settings, parameter_list
from flerm_client.training.step_schedule import StepSchedule
from flerm_client.training.step_wrapper import CopySafeHook, StepWrapper
from flerm_client.training.target_schedule import TargetSchedule
from flerm_client.training.weight_decay import is_independent
from flerm_client.upload.reporter import check_reporting
from flerm_core._warnings import warn
from flerm_core.errors import FlermError, InvalidInput, Unsupported
from flerm_core.matching.match import Multipliers
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel, Output
from flerm_core.measure.sharpness import Loss, require_scipy
from flerm_core.measure.state_guard import AutocastContext
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_core.parameter_names import is_depth_group, stands_for
from flerm_core.records.recording import Attempt, EstimatorSettings, RecordingSpec, now
from flerm_core.records.validation import validate_family_name

_live: weakref.WeakSet[TrainingSession] = weakref.WeakSet()


class TrainingSession:
    """The parts of a run and their state. `begin` starts it; then each step of the optimisers goes through `_around`.

    `steps` counts the model's steps: one is over when every optimiser has made its part of it. `fslr` is the last measurement,
    `matched_fslr` that of which `multipliers` were made to reach the targets `aimed`; all go by tensor, `multipliers` alone not
    by role. `late` are the tensors that had a gradient but no update at the first measurement (LoRA's A while B is 0): they are
    measured, and matched, at the step after it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        probe: Iterable[Any],
        family: str,
        lr: float | None,
        output: Output | None,
        seed: int,
        weight_decay: str,
        sharpness: Loss | None,
        bands: Mapping[str, str] | None,
        blocks: str | Sequence[str] | None,
        process_group: Any,
    ) -> None:
        validate_family_name(family)
        given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        if not given:
            raise InvalidInput("optimizer is an empty sequence; at least one is needed")
        self.optimizers = [bare_optimizer(each) for each in given]
        self.family = family
        self.lr = initial_rate(self.optimizers) if lr is None else float(lr)
        if not 0.0 < self.lr < math.inf:
            raise InvalidInput(f"lr={self.lr} is not allowed; a finite number above 0 is")
        self.seed = seed
        self.model = model
        self.ranks = find_ranks(model, process_group)
        self.subject = make_measured_model(model, self.optimizers, output, blocks, self.ranks)
        if sharpness is not None:
            require_scipy()
            if self.subject.sharding is not None:
                raise Unsupported(
                    "sharpness= cannot be measured where ranks share tensors (FSDP2, tensor parallel); leave it out"
                )
        self._loss = None if sharpness is None else on_device(sharpness, self.subject.device)
        self.probe = Probe(probe)
        names = {id(p): name for name, p in self.subject.parameters.items()}
        self.independent_decay = is_independent(weight_decay, self.optimizers)
        self.rates = [
            ScaledParamGroups(each, names, independent_decay=self.independent_decay)
            for each in self.optimizers
        ]
        self.journal = RunLog(parameter_list(self.subject, bands))
        self.recording_id = str(uuid.uuid4())
        self.attempt = Attempt()
        self.steps = 0
        self.fslr: dict[str, float] = {}
        self.matched_fslr: dict[str, float] = {}
        self.aimed: dict[str, float] = {}
        self.late: frozenset[str] = frozenset()
        self.multipliers: dict[str, float] = {}
        self._update: WeightUpdate | None = None
        self._rate = self.lr  # the first group's at the step that is measured
        self._base_step = 0.0  # the base's step whose targets are those of the step that is matched
        self._stepped: set[int] = set()
        self._ended = False

    def begin(
        self,
        about: RunMetadata,
        settings: EstimatorSettings,
        *,
        aim: TargetSchedule | None = None,
        match_every: int = 0,
        dry_run: bool = False,
    ) -> None:
        """From now on the optimisers' steps are measured by `settings`, and matched to `aim` at `start` and each `match_every`
        steps.

        A run with an aim is bound to the estimator of its targets, one without may fall back to kronecker.
        """
        check_settings(settings)
        self._refuse_company(aim)
        self.about, self.settings, self.aim, self._dry_run = about, settings, aim, dry_run
        self.measuring = StepSchedule(settings.start, settings.every)
        self.matching = StepSchedule(settings.start, match_every)
        # A base that does not know its tokens is told here, before training.
        self.aimed = {} if aim is None else aim.at(aim.base_step(settings.start, 0))
        outer = {"output_weight": settings.output_weight, "output_bias": settings.output_bias}
        fallback = make_estimator("kronecker", self.subject, **outer) if aim is None else None
        estimator = make_estimator(settings.name, self.subject, **outer)
        if aim is not None:
            aim.check_roles(
                estimator.name,
                self.subject.depth_groups if estimator.measures_depth_groups else None,
            )
        self.meter = FSLRMeter(
            self.subject, estimator, self.ranks, seed=self.seed, fallback=fallback, loss=self._loss
        )
        # Whichever rank's state a checkpoint holds: it names one run.
        self.recording_id, self.attempt = self.ranks.share((self.recording_id, self.attempt))
        if about.registry is not None and not dry_run:
            if self.ranks.lead:
                self.about = about.looked_up()
            # A wrong tag, a spool that cannot be written: told now, on every rank, and not by rank 0 in mid-training.
            self.on_lead(lambda: check_reporting(about.registry, self._spec(), about.spool))
        self._attachments = [
            StepWrapper(each, partial(self._around, index))
            for index, each in enumerate(self.optimizers)
        ]
        listeners = _listeners(self.model, self.subject)
        self._forward_hooks = [
            each.register_forward_pre_hook(CopySafeHook(self._see_forward)) for each in listeners
        ]
        _live.add(self)

    def end(self, status: str, timeout: float = 10.0) -> None:
        """Takes the measurement off the optimisers and ends the recording, waiting at most `timeout` seconds for its delivery.

        A second time does nothing."""
        if self._ended:
            return
        self._ended = True
        _live.discard(self)
        for attachment in self._attachments:
            attachment.detach()
        for hook in self._forward_hooks:
            hook.remove()
        self._update = None
        self.journal.finish(status, timeout)

    def _refuse_company(self, aim: TargetSchedule | None) -> None:
        mine = {id(each) for each in self.optimizers}
        for other in _live:
            if (aim is not None or other.aim is not None) and any(
                id(each) in mine for each in other.optimizers
            ):
                raise InvalidInput(
                    "optimizer is at work in another FLeRM, and one of the two matches, so that neither could tell its rates: "
                    "close() that one first"
                )

    def on_lead(self, ask: Callable[[], Any]) -> Any:
        """What `ask` answers on rank 0, on every rank; what it raises, likewise."""
        answer: Any = None
        if self.ranks.lead:
            try:
                answer = ask()
            except FlermError as error:
                answer = error
        answer = self.ranks.share(answer)
        if isinstance(answer, FlermError):
            raise answer
        return answer

    def described(self) -> tuple[str, dict[str, Any]]:
        """The optimisers' class name(s) and settings."""
        return describe(self.optimizers, independent_decay=self.independent_decay)

    def _due(self, step: int) -> bool:
        return (
            bool(self.late)
            or self.measuring.due(step)
            or (self.aim is not None and self.matching.due(step))
        )

    @contextmanager
    def _around(self, index: int) -> Iterator[None]:
        """One optimiser's step."""
        if index in self._stepped:
            # Again before the others have: a critic's several steps, or a GradScaler that left another out. The model's step
            # begins anew, as an update measured is one.
            self._update = None
            self._stepped.clear()
        if not self._stepped and self._due(self.steps + 1):
            if self.aim is not None and (self.late or self.matching.due(self.steps + 1)):
                self._base_step = self._look(self.aim)
            self._update = WeightUpdate(self.subject.parameters)
        update, rates, multipliers = self._update, self.rates[index], self.multipliers

        def settled() -> None:
            if update is not None:
                if index == 0:
                    self._rate = float(self.optimizers[0].param_groups[0]["lr"])
                update.rates |= rates.current(multipliers)
                update.decays |= rates.decays()

        try:
            with rates.applied(multipliers, settled):
                yield
        except BaseException:
            self._update = None
            self._stepped.clear()
            raise
        self._stepped.add(index)
        if len(self._stepped) == len(self.optimizers):
            self._stepped.clear()
            self.steps += 1
            update, self._update = self._update, None
            if update is not None:
                self._measure(update)
            self.journal.step_over(self.steps)

    def _look(self, aim: TargetSchedule) -> float:
        """The base's step that the step at hand is matched to. By tokens, those that the lead logged: on every rank the same,
        or the same error, and before anything has moved."""
        tokens = self.ranks.share(self.journal.tokens_ahead) if aim.pace.clock == "tokens" else None
        return aim.base_step(self.steps + 1, tokens)

    def _measure(self, update: WeightUpdate) -> None:
        # A skipped step (GradScaler) or a rate of 0 (warm-up) moves nothing: tried again at the next.
        if not any(update.rates.values()):
            return
        flags = torch.stack(list(update.moved().values())).tolist()
        moved = any(flags)
        if not moved and not self.ranks.locked:
            return
        still = {name for name, flag in zip(update.parameters, flags, strict=True) if not flag}
        # What an optimiser leaves alone (no gradient) does not decay either.
        update.decays = {name: decay for name, decay in update.decays.items() if name not in still}
        first = self.meter.measurements == 0
        draws = self.settings.warmup if first or self.late else self.settings.samples
        measured = self.meter.measure(update, self.probe, draws, moved=moved)
        if not measured:
            return
        late, self.late = self.late, self._late(update, measured) if first else frozenset()
        # NaN: diverged, the last finite measurement stands. Zero: the tensor has no update yet.
        if any(not math.isfinite(value) for value in measured.values()):
            self.journal.diverged = True
        self.fslr = {
            name: value for name, value in measured.items() if value > 0.0 and math.isfinite(value)
        } or self.fslr
        if (
            self.about.registry is not None
            and self.ranks.lead
            and not self.journal.reporting
            and not self._dry_run
        ):
            self.journal.report_to(
                self.about, self._spec(), replace(self.attempt, started_at=now())
            )
        if self.aim is not None and (late or self.matching.due(self.steps)):
            self._match(self.aim, update, frozenset() if self.matching.due(self.steps) else late)
            self.matching.done(self.steps)
        self.measuring.done(self.steps)
        multipliers = (
            None
            if self.aim is None
            else {name: self.multipliers.get(name, 1.0) for name in self.subject.parameters}
        )
        self.journal.add(
            self.steps, measured, self._rate, multipliers, sharpness=self.meter.sharpness
        )

    def _late(self, update: WeightUpdate, measured: Mapping[str, float]) -> frozenset[str]:
        found = {
            name
            for name, parameter in self.subject.parameters.items()
            if measured.get(name) == 0.0 and update.rates.get(name) and parameter.grad is not None
        }
        # FSLRs are the same on every rank, and so is whether one is 0; gradients are this rank's.
        return (
            frozenset(self.ranks.share(sorted(found))) if 0.0 in measured.values() else frozenset()
        )

    def _match(self, aim: TargetSchedule, update: WeightUpdate, only: frozenset[str]) -> None:
        """Sets the multipliers, of the tensors `only` where there are any, and makes the step just taken one that ran at them
        (design, method 4)."""
        everything = [*self.subject.parameters, *self.subject.depth_groups]
        measured = {name: self.fslr.get(name, math.nan) for name in everything}
        outcome = aim.multipliers(self._base_step, measured, self.multipliers, only)
        if self._dry_run:
            if self.ranks.lead:
                sys.stdout.write(
                    f"{aim.comparison(self.family, self.lr, self._base_step, measured).text()}\n"
                )
            self.end("interrupted")
            raise SystemExit(0)
        if self.ranks.lead:
            _tell(outcome)
        aimed, fslr = aim.at(self._base_step), self.fslr
        if only:
            aimed = self.aimed | {name: value for name, value in aimed.items() if _of(name, only)}
            fslr = self.matched_fslr | {
                name: value for name, value in fslr.items() if _of(name, only)
            }
        self.aimed, self.matched_fslr = aimed, fslr
        names = list(self.subject.parameters)
        exact = torch.tensor(
            [outcome.values.get(n, 1.0) for n in names],
            dtype=torch.float64,
            device=self.subject.device,
        )
        before, now = (
            self.multipliers,
            dict(zip(names, self.ranks.spread(exact).tolist(), strict=True)),
        )
        self.multipliers = now
        update.reapply({name: m / before.get(name, 1.0) for name, m in now.items()})

    def _see_forward(self, module: nn.Module, args: Any) -> None:
        # The step runs outside the user's autocast region: what is open in the training's forward is opened for the probe's.
        if self._due(self.steps + 1) and not self.meter.measuring:
            self.meter.autocast = AutocastContext.current(self.subject.device.type)

    def _spec(self) -> RecordingSpec:
        kind, kind_settings = self.described()
        found = None if self.aim is None else self.aim.found
        spec = RecordingSpec(
            id=self.recording_id,
            family=self.family,
            lr=self.lr,
            parameters=self.journal.parameters,
            seed=self.seed,
            role=self.about.role,
            variant=self.about.variant,
            optimizer=kind,
            optimizer_config=kind_settings,
            estimator=replace(self.settings, name=self.meter.estimator.name),
            tags=self.about.tags,
            world_size=self.ranks.size,
            targets_digest="" if found is None else found.digest,
            targets_sources=() if found is None else found.sources,
        )
        return self.about.complete(spec)


def _listeners(model: nn.Module, subject: MeasuredModel) -> list[nn.Module]:
    """The modules whose calls show in what autocast region the training's forward runs.

    The model, and the first of its layers that is measured: a framework may open the region inside the model's forward
    (accelerate), or not call the model as a whole (Lightning's training_step).
    """
    own = {id(parameter) for parameter in subject.parameters.values()}
    layers = (
        m
        for m in subject.module.modules()
        if any(id(p) in own for p in m.parameters(recurse=False))
    )
    first = next(layers, model)
    return [model] if first is model else [model, first]


def _of(name: str, tensors: frozenset[str]) -> bool:
    """Whether `name` is one of `tensors` or the role of one."""
    return name in tensors or (
        is_depth_group(name) and any(stands_for(name, each) for each in tensors)
    )


def _tell(outcome: Multipliers) -> None:
    """Warns of what was left alone as noise or bounded; tensors without an update yet (LoRA's A at first) are no news."""
    told = [
        (outcome.noisy, "have too small an FSLR to be matched and keep their multiplier"),
        (outcome.clamped, "were clamped"),
    ]
    for names, what in told:
        if names:
            warn(f"{len(names)} tensors {what}: {', '.join(names)}")
