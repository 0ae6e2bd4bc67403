"""One measurement, whole: draws on probe batches at W_old, joined over ranks, without a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flerm_core._warnings import warn
from flerm_core.errors import EstimatorNotApplicable, InvalidInput, MeasurementError
from flerm_core.measure.distributed.fsdp2 import own_reduction, recover
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.base import Estimator
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import generator_for, seed_from
from flerm_core.measure.sharpness import Loss, differentiable_twice, top_eigenvalue
from flerm_core.measure.state_guard import (
    AutocastContext,
    PrivateRandomness,
    RandomState,
    preserve_model_state,
    requires_grad_enabled,
)
from flerm_core.measure.update.weight_update import WeightUpdate


class FSLRMeter:
    """Measures the FSLRs of `model`. `seed` and the count of measurements so far determine every random number.

    `fallback` takes over where `example` does not apply. None: that is an error (targets and measurement must use the same
    estimator). With a `loss` (of model and probe batch) its sharpness is measured beside, on the lead's first batch:
    `sharpness` is that of the last measurement, NaN where there is none.
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
        self.autocast = AutocastContext()
        self.randomness = PrivateRandomness(seed_from(seed, ranks.rank))
        self._seed = seed
        self._fallback = fallback
        self._loss = loss
        self.sharpness = math.nan
        self._fetched: list[Any] = []  # for a measurement that did not come about

    def measure(
        self, update: WeightUpdate, batches: Iterator[Any], draws: int, *, moved: bool = True
    ) -> dict[str, float]:
        """FSLRs by tensor and role in output units per unit learning rate: the mean over `draws` draws on as many `batches`
        and all ranks.

        NaN or 0 where the update does not move the outputs. Every rank gets the same numbers, or raises the same error. Empty,
        and as if not called, when the step changed nothing: `moved` says whether it did on this rank, which may hold a part of
        the tensors only.
        """
        self.ranks.refuse()
        problem: Exception | None = None
        readings: list[tuple[Tensor, int]] = []
        curvature = 0.0
        self.measuring = True
        with (
            preserve_model_state(self.model.module),
            own_reduction(self.model.module),
            self.randomness.active(),
            update.at_old_weights(),
            requires_grad_enabled(self._moved_while_on(update)),
        ):
            try:
                if self.ranks.locked:
                    moved, batches = self._begin_together(batches, draws, moved)
                if not moved:
                    return {}
                self.estimator.begin_measurement()
                for draw in range(draws):
                    batch = next(batches)
                    readings.append(
                        self._first(batch, update)
                        if self.estimator.needs_discovery
                        else self._draw(batch, update, draw)
                    )
                    if draw == 0 and self._loss is not None and self.ranks.lead:
                        curvature = self._sharpness(self._loss, batch)
            except Exception as error:  # told to every rank, then raised on each
                problem = error
                recover(self.model.module)
            finally:
                self.measuring = False
        self.measurements += 1
        return self._join(readings, problem, curvature)

    def _moved_while_on(self, update: WeightUpdate) -> list[nn.Parameter]:
        # FSDP2 hands its modules tensors that go by what was set when they were first gathered: left as they are.
        off = {
            name
            for name, p in self.model.parameters.items()
            if not p.requires_grad and self.model.sharding is None
        }
        moved = update.moved() if off else {}
        return [self.model.parameters[name] for name in sorted(off) if bool(moved[name])]

    def take(self, name: str) -> None:
        """Goes on with the estimator of the run that is resumed here, which may have had to take the fallback.

        Raises `InvalidInput` where it is another than either: one run's measurements are of one estimator.
        """
        if self._fallback is not None and name == self._fallback.name:
            self.estimator = self._fallback
        if name != self.estimator.name:
            raise InvalidInput(
                f"the checkpoint is of a run measured by {name!r}, this one is measured by {self.estimator.name!r}"
            )

    def _begin_together(
        self, batches: Iterator[Any], draws: int, moved: bool
    ) -> tuple[bool, Iterator[Any]]:
        """For ranks whose forwards wait for each other: whether the step changed anything anywhere, and this rank's batches.
        None begins before all have theirs. One collective."""
        problem: Exception | None = None
        try:
            self._fetched += [next(batches) for _ in range(draws - len(self._fetched))]
        except Exception as error:
            problem = error
        flags = torch.tensor([float(problem is not None), float(moved)], device=self.model.device)
        problems, movements = self.ranks.sum(flags).tolist()
        if problems:
            self.ranks.raise_together(problem)
        if not movements:
            return False, iter(())
        taken, self._fetched = self._fetched, []
        return True, iter(taken)

    def _join(
        self, readings: list[tuple[Tensor, int]], problem: Exception | None, curvature: float
    ) -> dict[str, float]:
        """The one collective of a measurement: [failures, count, (sharpness,) numbers …], summed over ranks. Where some of
        them, but not all, work on one batch together, one more among these: their parts must be whole first. `curvature` is 0
        but on the lead."""
        if problem is not None:
            if self.ranks.alone:
                raise problem
            if self.ranks.locked:
                self.ranks.fail(problem)
            readings = []
        scope = self.estimator.reduction
        if scope == "model_parallel" and self.ranks.share_one_batch:
            scope = "world"  # the same ranks: their parts go with everything else
        parts = [reading for reading, _ in readings]
        count = float(sum(outputs for _, outputs in readings))
        if scope == "model_parallel":
            joined = self.ranks.sum_split(torch.cat(parts))
            parts = list(joined.split([len(part) for part in parts]))
        numbers = torch.zeros(
            self.estimator.n_statistics, dtype=torch.float64, device=self.model.device
        )
        if scope == "world":
            numbers = torch.cat(parts)
        else:
            for part in parts:
                numbers += self.estimator.reduce_parts(part)
        sharding = self.model.sharding
        if sharding is not None and not sharding.first_of_split:
            count = 0.0
            numbers = torch.zeros_like(numbers) if scope == "model_parallel" else numbers
        head = [float(problem is not None), count, *([] if self._loss is None else [curvature])]
        whole = torch.cat([torch.tensor(head, dtype=torch.float64, device=numbers.device), numbers])
        failures, weight, *sums = self.ranks.sum(whole).tolist()
        if failures:
            self.ranks.raise_together(problem)
        if self._loss is not None:
            self.sharpness = sums.pop(0)
        if not weight:
            raise MeasurementError(
                "every probe batch of this measurement is empty: dimension 0 of the output counts no examples"
            )
        if scope == "world":
            draws = torch.tensor(sums, dtype=torch.float64).split([len(part) for part in parts])
            sums = (
                torch.stack([self.estimator.reduce_parts(draw) for draw in draws]).sum(0).tolist()
            )
        return self.estimator.fslrs(np.asarray(sums) / weight)

    def _draw(self, batch: Any, update: WeightUpdate, draw: int) -> tuple[Tensor, int]:
        """The parts of one draw on this rank, and the count of outputs behind them."""
        device = self.model.device
        generator = generator_for(device, self._seed, self.measurements, draw, self.ranks.rank)
        with self.autocast.open(device.type):
            return self.estimator.draw(batch, update, generator)

    def _sharpness(self, loss: Loss, batch: Any) -> float:
        with self.autocast.open(self.model.device.type), differentiable_twice():
            found = loss(self.model.module, batch)
        seed = seed_from(self._seed, self.measurements)
        return top_eigenvalue(found, list(self.model.parameters.values()), seed=seed)

    def _first(self, batch: Any, update: WeightUpdate) -> tuple[Tensor, int]:
        """A draw of discovery: where it does not apply on any rank, all take the fallback, for this draw and ever
        after."""
        problem: Exception | None = None
        reading: tuple[Tensor, int] | None = None
        masks = RandomState()
        try:
            reading = self._draw(batch, update, 0)
        except Exception as error:  # the other ranks wait for this rank's verdict
            problem = error
            recover(self.model.module)
            if self.ranks.locked and not isinstance(error, EstimatorNotApplicable):
                raise
        told = [
            float(isinstance(problem, EstimatorNotApplicable)),
            float(self.estimator.discovery_uncertain),
        ]
        couple, unsure = self.ranks.sum(torch.tensor(told, device=self.model.device)).tolist()
        if couple:
            reason = (
                str(problem)
                if isinstance(problem, EstimatorNotApplicable)
                else "it does not apply on another rank"
            )
            if self._fallback is None:
                raise MeasurementError(
                    f"the targets were measured by the {self.estimator.name} estimator, which does not apply here: {reason}"
                )
            warn(f"measuring by {self._fallback.name} instead of {self.estimator.name}: {reason}")
            self.estimator = self._fallback
            masks.restore()
            return self._draw(batch, update, 0)
        self.estimator.end_discovery(uncertain=bool(unsure))
        if problem is not None:
            raise problem
        assert reading is not None
        return reading
