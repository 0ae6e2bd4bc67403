"""One measurement of FSLRs: draws on probe batches, reduced over ranks, without a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flerm_core._warnings import warn
from flerm_core.errors import EstimatorNotApplicable, InvalidInput, MeasurementError
from flerm_core.measure.distributed.fsdp2 import mean_reduction, reset_after_error
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.base import Draw, Estimator, ReductionScope
from flerm_core.measure.finite_values import runs_alone, why_not_finite
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import generator_for, seed_from
from flerm_core.measure.sharpness import Loss, differentiable_twice, top_eigenvalue
from flerm_core.measure.state_guard import (
    AutocastContext,
    ParameterState,
    PrivateRandomness,
    RandomState,
    eager_execution,
    preserve_model_state,
    requires_grad_enabled,
)
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_core.measure.write_watch import watching


class FSLRMeter:
    """Measures the FSLRs of `model` with `estimator`, together with the other `ranks`.

    seed: with the number of earlier measurements, it determines every random number.
    fallback: the estimator to use where `estimator` is not applicable. None makes that an error,
        because targets and measurement must use one estimator.
    loss: the training loss of (module, probe batch), to measure its sharpness too. None: none is
        measured.

    `sharpness` is that of the last measurement, on rank 0's first probe batch; NaN where it was not
    measured. `measurements` is the number of measurements so far. `measuring` is true while the
    probe's forwards and backwards run. `autocast` holds the autocast regions of the training's
    forward.
    """

    def __init__(
        self,
        model: MeasuredModel,
        estimator: Estimator,
        ranks: MeasurementRanks,
        *,
        seed: int = 0,
        fallback: Estimator | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.model = model
        self.estimator = estimator
        self.ranks = ranks
        self.measurements = 0
        self.measuring = False
        self.sharpness = math.nan
        self.autocast = AutocastContext()
        self.randomness = PrivateRandomness(seed_from(seed, ranks.data_parallel_rank))
        self._seed = seed
        self._fallback = fallback
        self._loss = loss
        self._unused_batches: list[Any] = []  # fetched for a measurement that did not take place

    def measure(
        self,
        update: WeightUpdate,
        batches: Iterator[Any],
        draws: int,
        *,
        weights_changed: bool = True,
    ) -> dict[str, float]:
        """FSLRs by tensor and depth group, in output units per unit learning rate.

        They are the mean over all ranks and over `draws` draws, each on the next of `batches`. NaN
        or 0 where the update does not move the outputs. Every rank gets the same numbers or raises
        the same error.

        weights_changed: whether the step changed a weight on this rank, which may hold only a part
            of the tensors. Where it changed none on any rank, the result is empty and the call
            leaves the meter as it was.
        """
        self.ranks.check_supported()
        problem: Exception | None = None
        not_finite: Exception | None = None
        found: list[Draw] = []
        sharpness = 0.0
        with self._prepared_model(update):
            try:
                if self.ranks.lockstep:
                    weights_changed, batches = self._agree_to_start(batches, draws, weights_changed)
                if not weights_changed:
                    return {}
                self.estimator.begin_measurement()
                for index in range(draws):
                    if self.estimator.needs_discovery:
                        draw, batch = self._discovery_draw(batches, update, index)
                    else:
                        batch = next(batches)
                        draw = self._draw(batch, update, index)
                    found.append(draw)
                    if not_finite is None and not bool(draw.partial_sums.isfinite().all()):
                        not_finite = self._why_not_finite(batch, update)
                        if not_finite is not None and not self.ranks.lockstep:
                            raise not_finite
                    if index == 0 and self._loss is not None and self.ranks.is_rank0:
                        sharpness = self._measure_sharpness(self._loss, batch)
            except Exception as error:  # `_reduce` raises it on every rank
                problem = error
                reset_after_error(self.model.module)
        fslrs = self._reduce(found, problem, not_finite, sharpness)
        self.measurements += 1
        return fslrs

    def use_estimator(self, name: str) -> None:
        """Continues with estimator `name`, that of the checkpoint from which this run resumes.

        The run before may have had to take the fallback. Raises `InvalidInput` where `name` is
        neither the estimator nor the fallback: one run's measurements are of one estimator.
        """
        if self._fallback is not None and name == self._fallback.name:
            self.estimator = self._fallback
        if name != self.estimator.name:
            raise InvalidInput(
                f"the checkpoint is of a run measured by {name!r}, this one is measured by "
                f"{self.estimator.name!r}"
            )

    @contextmanager
    def _prepared_model(self, update: WeightUpdate) -> Iterator[None]:
        """Inside, the model is ready for the probe, at W_old; afterwards it is as it was."""
        self.measuring = True
        try:
            with ExitStack() as stack:
                stack.enter_context(eager_execution())
                stack.enter_context(preserve_model_state(self.model.module))
                stack.enter_context(mean_reduction(self.model.module))
                stack.enter_context(self.randomness.active())
                stack.enter_context(update.at_old_weights(self.model.written))
                stack.enter_context(ParameterState(self.model.written).kept())
                stack.enter_context(requires_grad_enabled(self._updated_frozen(update)))
                stack.enter_context(self._new_writes_undone(update))
                yield
        finally:
            self.measuring = False

    @contextmanager
    def _new_writes_undone(self, update: WeightUpdate) -> Iterator[None]:
        """Afterwards parameters that a forward inside was the first to write into are as before.

        Watched are models with parameters that no optimiser steps, such as a momentum encoder's or
        an embedding's: of those that one steps, `update` has the new values.
        """
        model = self.model
        known = set(model.written)
        others = [p for p in model.module.parameters() if p not in known]
        measured = set(model.parameters.values())
        if model.sharding is not None or measured.issuperset(others):
            yield
            return
        try:
            with model.watch.kept(others, update.keep_old):
                yield
        finally:
            model.written.extend(model.watch.written)

    def _updated_frozen(self, update: WeightUpdate) -> list[nn.Parameter]:
        """The parameters that the step changed although `requires_grad` is off by now.

        None where tensors are sharded: FSDP2 makes the tensors that modules see once, and
        `requires_grad` on these stays as it was then.
        """
        if self.model.sharding is not None:
            return []
        frozen = {name: p for name, p in self.model.parameters.items() if not p.requires_grad}
        changed = update.changed_tensors() if frozen else {}
        return [frozen[name] for name in sorted(frozen) if bool(changed[name])]

    def _agree_to_start(
        self, batches: Iterator[Any], draws: int, weights_changed: bool
    ) -> tuple[bool, Iterator[Any]]:
        """Whether the step changed a weight on any rank, and this rank's batches.

        For ranks in lockstep: none begins before all have their batches. One all-reduce.
        """
        problem: Exception | None = None
        try:
            missing = draws - len(self._unused_batches)
            self._unused_batches += [next(batches) for _ in range(missing)]
        except Exception as error:
            problem = error
        flags = [float(problem is not None), float(weights_changed)]
        problems, changes = self.ranks.sum(torch.tensor(flags, device=self.model.device)).tolist()
        if problems:
            self.ranks.raise_on_all(problem)
        if not changes:
            return False, iter(())
        fetched, self._unused_batches = self._unused_batches, []
        return True, iter(fetched)

    def _draw(self, batch: Any, update: WeightUpdate, index: int) -> Draw:
        device = self.model.device
        generator = generator_for(
            device, self._seed, self.measurements, index, self.ranks.data_parallel_rank
        )
        with self.autocast.open(device.type):
            return self.estimator.draw(batch, update, generator)

    def _discovery_draw(
        self, batches: Iterator[Any], update: WeightUpdate, index: int
    ) -> tuple[Draw, Any]:
        """A draw on which the estimator finds out how to measure the model, and its batch.

        Where the estimator is not applicable on any rank, all ranks take the fallback, for this
        draw and from now on. One all-reduce.
        """
        problem: Exception | None = None
        found: Draw | None = None
        batch: Any = None
        random_state = RandomState()
        try:
            batch = next(batches)
            random_state = RandomState()
            found = self._draw(batch, update, index)
        except Exception as error:  # raised after the all-reduce, in which other ranks wait
            problem = error
            reset_after_error(self.model.module)
            if self.ranks.lockstep and not isinstance(error, EstimatorNotApplicable):
                raise
        inapplicable = isinstance(problem, EstimatorNotApplicable)
        failed = problem is not None and not inapplicable
        flags = torch.tensor([float(failed), float(inapplicable)], device=self.model.device)
        failures, unfit = self.ranks.sum(flags).tolist()
        if failures:
            if failed and self.ranks.single_process:
                assert problem is not None
                raise problem
            self.ranks.raise_on_all(problem if failed else None)
        if unfit:
            self._take_fallback(
                str(problem) if inapplicable else "it does not apply on another rank"
            )
            random_state.restore()
            return self._draw(batch, update, index), batch
        self.estimator.end_discovery()
        assert found is not None
        return found, batch

    def _take_fallback(self, reason: str) -> None:
        name = self.estimator.name
        if self._fallback is None:
            raise MeasurementError(
                f"the targets were measured by the {name} estimator, which does not apply here: "
                f"{reason}"
            )
        warn(f"measuring by {self._fallback.name} instead of {name}: {reason}")
        self.estimator = self._fallback

    def _measure_sharpness(self, loss: Loss, batch: Any) -> float:
        with self.autocast.open(self.model.device.type), differentiable_twice(), watching():
            value = loss(self.model.module, batch)
        seed = seed_from(self._seed, self.measurements)
        return top_eigenvalue(value, list(self.model.parameters.values()), seed=seed)

    def _why_not_finite(self, batch: Any, update: WeightUpdate) -> Exception | None:
        with self.autocast.open(self.model.device.type):
            return why_not_finite(
                self.model, batch, update, may_run=runs_alone(self.model.module, self.ranks)
            )

    def _reduce(
        self,
        draws: list[Draw],
        problem: Exception | None,
        not_finite: Exception | None,
        sharpness: float,
    ) -> dict[str, float]:
        """FSLRs from the draws of all ranks, or the error of any rank on all of them.

        1. Ranks that work on one batch complete the sums that the estimator needs complete.
        2. This rank forms its statistics of them. With scope "world" the sums are not complete
           before step 3, and the statistics are formed after it.
        3. One all-reduce sums [failures, outputs, (sharpness,) statistics …] over all ranks.
        4. The statistics over the number of outputs are their mean (Eq. 2), which gives the FSLRs.

        problem: what ended this rank's draws. not_finite: what is wrong with draws that were made.
        sharpness: 0 on all ranks but rank 0, so that the sum is rank 0's.
        """
        if problem is not None:
            if self.ranks.single_process or self.ranks.has_raised(problem):
                raise problem
            if self.ranks.lockstep:
                self.ranks.fail_all(problem)
            draws = []
        scope = self.estimator.reduction
        if scope == "model_parallel" and self.ranks.share_one_batch:
            scope = "world"  # the same ranks, so that the all-reduce of step 3 is enough
        numbers = self._numbers_to_sum(draws, scope)
        n_outputs = float(sum(draw.n_outputs for draw in draws))
        sharding = self.model.sharding
        if sharding is not None and not sharding.is_first_model_parallel_rank:
            n_outputs = 0.0  # of ranks that work on one batch, the first counts its outputs
            if scope == "model_parallel":  # and its statistics, which these ranks share by now
                numbers = torch.zeros_like(numbers)
        problem = problem or not_finite
        head = [float(problem is not None), n_outputs]
        if self._loss is not None:
            head.append(sharpness)
        sent = torch.cat([torch.tensor(head, dtype=torch.float64, device=numbers.device), numbers])
        failures, outputs, *sums = self.ranks.sum(sent).tolist()
        if failures:
            self.ranks.raise_on_all(problem)
        if self._loss is not None:
            self.sharpness = sums.pop(0)
        if not outputs:
            raise MeasurementError(
                "every probe batch of this measurement is empty: dimension 0 of the output counts "
                "no examples"
            )
        if scope == "world":
            lengths = [len(draw.partial_sums) for draw in draws]
            complete = torch.tensor(sums, dtype=torch.float64).split(lengths)
            sums = (
                torch.stack([self.estimator.reduce_parts(each) for each in complete])
                .sum(0)
                .tolist()
            )
        return self.estimator.fslrs(np.asarray(sums) / outputs)

    def _numbers_to_sum(self, draws: list[Draw], scope: ReductionScope) -> Tensor:
        """What this rank adds to the sum over all ranks, float64.

        With scope "world" the partial sums of all draws in turn, else the sum of their statistics.
        """
        parts = [draw.partial_sums for draw in draws]
        if scope == "world":
            return torch.cat(parts)
        if scope == "model_parallel":  # one all-reduce for all draws
            complete = self.ranks.sum_model_parallel(torch.cat(parts))
            parts = list(complete.split([len(part) for part in parts]))
        numbers = torch.zeros(
            self.estimator.n_statistics, dtype=torch.float64, device=self.model.device
        )
        for part in parts:
            numbers += self.estimator.reduce_parts(part)
        return numbers
