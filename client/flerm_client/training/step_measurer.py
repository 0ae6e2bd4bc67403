"""The measuring of a run's steps: which ones, with how many draws, and what a failure means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from flerm_client.training.delayed_tensors import DelayedTensors
from flerm_client.training.measured_model import on_device
from flerm_client.training.measurement_failures import MeasurementFailures
from flerm_client.training.probe import Probe
from flerm_client.training.run_options import RunOptions
from flerm_client.training.run_remarks import RunRemarks, unmeasured_sentence
from flerm_client.training.signal_deferral import SignalDeferral
from flerm_client.training.step_schedule import StepSchedule
from flerm_client.training.unseen_steps import UnseenSteps
from flerm_core._warnings import warn
from flerm_core.errors import NotFinite, join_names
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.distributed.sharding import to_local
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import seed_from
from flerm_core.measure.state_guard import AutocastContext, PrivateRandomness, RandomState
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_core.records.recording import EstimatorSettings


class StepMeasurer:
    """Measures those steps of a run that are due.

    settings: by which estimator, and how often.
    remarks: takes what there is to say of tensors and failures.
    may_fall_back: whether kronecker may take the place of that estimator.

    meter: what makes a measurement.
    schedule: the steps that are measured.
    failures: the measurements that failed.
    fslr: the last measurement, by tensor and depth group.
    delayed: the tensors that are measured, and matched, at the step that first moves them.
    unseen: says when another optimiser trains the model.
    """

    def __init__(
        self,
        measured_model: MeasuredModel,
        ranks: MeasurementRanks,
        options: RunOptions,
        probe: Probe,
        settings: EstimatorSettings,
        remarks: RunRemarks,
        *,
        may_fall_back: bool,
    ) -> None:
        self.settings = settings
        self.meter = _make_meter(measured_model, ranks, options, settings, may_fall_back)
        self.schedule = StepSchedule(settings.start, settings.every)
        self.failures = MeasurementFailures(measured_model.module, remarks)
        self.fslr: dict[str, float] = {}
        self.delayed = DelayedTensors(measured_model, ranks)
        self.unseen = UnseenSteps(measured_model.parameters.values(), remarks)
        self._model = measured_model
        self._ranks = ranks
        self._probe = probe
        self._seed = options.seed
        self._remarks = remarks
        self._last_measured = 0  # the last step with a measurement, by which all was finite
        self._not_finite = False  # since the last measurement

    @property
    def scalars(self) -> dict[str, float]:
        """What the last measurement has besides FSLRs; NaN where that was not measured."""
        return {"sharpness": self.meter.sharpness}

    def note_forward(self, autocast: AutocastContext) -> None:
        """The training begins a forward with gradients, in the region `autocast`."""
        if not self.meter.measuring:
            self.meter.autocast = autocast
            self.unseen.look()

    def due(self, step: int) -> bool:
        """Whether `step` is measured, for the schedule's sake or for that of delayed tensors."""
        wanted = bool(self.delayed.moving) or self.schedule.due(step)
        return wanted and not self.failures.stopped

    def measure(
        self, update: WeightUpdate, signals: SignalDeferral, *, first: bool
    ) -> dict[str, float]:
        """FSLR of `update` by tensor and depth group; empty where nothing could be measured.

        first: whether the run has no measurement yet.
        """
        # A skipped step (GradScaler) or a rate of 0 (warm-up) moves nothing. The measurement is
        # then tried again at the next step.
        if not any(update.rates.values()):
            return {}
        self._refuse_still_not_finite()
        moved = _drop_unmoved(update)
        if not moved and not self._ranks.lockstep:
            self._tell_of_replaced()
            return {}
        draws = self.settings.warmup if first or self.delayed.moving else self.settings.samples
        batches = signals.between(self._probe)
        measured = self.meter.measure(update, batches, draws, weights_changed=moved)
        if not measured:
            return {}
        self.delayed.follow(measured, first=first)
        # The last finite measurement stands. A tensor without an update (0) is unmeasured.
        usable = {name: value for name, value in measured.items() if 0.0 < value < math.inf}
        self.fslr = usable or self.fslr
        self.failures.succeeded()
        self._not_finite = False
        return measured

    def _tell_of_replaced(self) -> None:
        """Says where a step changed nothing, because the model has other tensors by now."""
        held = {id(parameter) for parameter in self._model.module.parameters()}
        gone = [name for name, p in self._model.parameters.items() if id(p) not in held]
        if gone:
            self._remarks.say(
                f"steps change nothing, and the model no longer holds {len(gone)} of the tensors "
                "that the optimizer has (load_state_dict(assign=True) puts others in their place): "
                "they are neither trained nor measured nor matched; make optimizer and FLeRM anew "
                f"for the model as it is: {join_names(gone)}"
            )

    def _refuse_still_not_finite(self) -> None:
        """Raises `NotFinite` where it was raised before, and weights of any rank still are so.

        One all-reduce where it was raised, on all ranks, and there are several.
        """
        if not self._not_finite:
            return
        finite = [to_local(p).isfinite().all() for p in self._model.parameters.values()]
        flag = (~torch.stack(finite)).any().double().reshape(1)
        if self._ranks.sum(flag).item():
            raise NotFinite("weights of the model are still not finite")

    def fail(self, error: Exception, step: int) -> None:
        """The measurement of `step` raised `error`, and the run goes on."""
        if isinstance(error, NotFinite):
            self._tell_of_not_finite(error, step)
        else:
            self.failures.add(error, step, self.meter.estimator.name)
        self.delayed.forget_moving()
        if self.settings.every:  # without, the one measurement is tried again at the next step
            self.schedule.done(step)

    def _tell_of_not_finite(self, error: NotFinite, step: int) -> None:
        """Says once which tensors the training has left not finite by `step`, and since when.

        What is due later is tried: a loop may go back to weights that it has kept.
        """
        self._remarks.failed = True
        if not self._not_finite:
            last = self._last_measured
            since = f" (all were finite after step {last})" if last else ""
            self._remarks.say(
                f"step {step} was not measured: {error}{since}. The run counts as diverged, and "
                f"goes on {self._remarks.how_it_goes_on}; nothing is measured until all are finite"
            )
        self._not_finite = True

    def done(self, update: WeightUpdate, measured: Mapping[str, float], step: int) -> None:
        """`step` was measured: warns of tensors that it changed without an FSLR.

        Delayed tensors do not count. The first such step is told of. The run's end names the
        tensors that never had an FSLR.
        """
        changed = update.changed_tensors()
        missing = [
            name
            for name in self._model.parameters
            if not measured.get(name) and name not in self.delayed.names
        ]
        # Looking at every tensor waits for the device, and is needed where one is missing.
        names = [name for name in missing if changed[name] and not self.fslr.get(name)]
        if names and not self._remarks.without_fslr and self._ranks.is_rank0:
            warn(unmeasured_sentence(f"step {step}", names))
        self._remarks.without_fslr.update(dict.fromkeys(names))
        self.schedule.done(step)
        self._last_measured = step

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        random = self.meter.randomness.state
        return {
            "rank": self._ranks.data_parallel_rank,
            "next_due": self.schedule.next,
            "measurements": self.meter.measurements,
            "sharpness": self.meter.sharpness,
            "estimator": self.meter.estimator.name,
            "fslr": dict(self.fslr),
            "delayed": sorted(self.delayed.names),
            "waited": self.delayed.waited,
            "probe": self._probe.state_dict(),
            "random": None if random is None else random.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Goes on after `step` where the run that wrote `state` was."""
        self.meter.use_estimator(state["estimator"])
        self.schedule.resume(step, state["next_due"])
        self.meter.measurements = state["measurements"]
        self.meter.sharpness = state["sharpness"]
        self.fslr = dict(state["fslr"])
        self.delayed.names = frozenset(state["delayed"])
        self.delayed.waited = state.get("waited", 0)
        self._load_randomness(state)

    def _load_randomness(self, state: Mapping[str, Any]) -> None:
        """Puts the probe and the measurement's random numbers where they were."""
        meter, probe, rank = self.meter, self._probe, self._ranks.data_parallel_rank
        if state["rank"] != rank:
            # The state of another rank, or of another world: the probe goes on at the same batch,
            # and random numbers come from a stream of this rank's own.
            own_stream = seed_from(self._seed, rank, meter.measurements)
            meter.randomness = PrivateRandomness(own_stream)
            with meter.randomness.active():
                own_pass = {"pass_began": RandomState().state_dict()}
                probe.load_state_dict(state["probe"] | own_pass)
        elif state["random"] is not None:
            with meter.randomness.active():
                probe.load_state_dict(state["probe"])
            meter.randomness.state = RandomState.from_state_dict(state["random"])


def _make_meter(
    model: MeasuredModel,
    ranks: MeasurementRanks,
    options: RunOptions,
    settings: EstimatorSettings,
    may_fall_back: bool,
) -> FSLRMeter:
    outer = {"output_weight": settings.output_weight, "output_bias": settings.output_bias}
    loss = options.sharpness
    return FSLRMeter(
        model,
        make_estimator(settings.name, model, **outer),
        ranks,
        seed=options.seed,
        fallback=make_estimator("kronecker", model, **outer) if may_fall_back else None,
        loss=None if loss is None else on_device(loss, model.device),
    )


def _drop_unmoved(update: WeightUpdate) -> bool:
    """Whether any tensor moved.

    A tensor that its optimiser left alone was not decayed either: its decay is taken out.
    """
    flags = torch.stack(list(update.changed_tensors().values())).tolist()
    moved = {name for name, flag in zip(update.parameters, flags, strict=True) if flag}
    update.decays = {name: decay for name, decay in update.decays.items() if name in moved}
    return bool(moved)
