"""One measurement, whole: draws on probe batches at W_old, joined over ranks, without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flerm_core.errors import InvalidInput, MeasurementError
from flerm_core.measure.estimator import Estimator, Subject
from flerm_core.measure.exact import Exact
from flerm_core.measure.example import Example, ExamplesCouple
from flerm_core.measure.projection import generator_for, seed_from
from flerm_core.measure.ranks import Ranks
from flerm_core.measure.untouched import AutocastContext, PrivateRandomness, RandomState, untouched
from flerm_core.measure.update import Update
from flerm_core.measure.zstatistics import Full, Independent, Kronecker
from flerm_core.recording import ESTIMATORS


def make_estimator(name: str, subject: Subject, *, output_weight: str = "", output_bias: str = "") -> Estimator:
    """The estimator called `name`. Raises `InvalidInput` for an unknown one."""
    if name == "kronecker":
        return Kronecker(subject, output_weight=output_weight, output_bias=output_bias)
    kinds: dict[str, type[Estimator]] = {"example": Example, "iid": Independent, "full": Full, "exact": Exact}
    if name not in kinds:
        raise InvalidInput(f"estimator={name!r} is not known; there are: {', '.join(ESTIMATORS)}")
    return kinds[name](subject)


class Meter:
    """Measures the FSLRs of `subject`. `seed` and the count of measurements so far determine every random number.

    `fallback` takes over where `example` does not apply. None: that is an error (targets and measurement must use the same
    estimator).
    """

    def __init__(
        self, subject: Subject, estimator: Estimator, ranks: Ranks, *, seed: int = 0, fallback: Estimator | None = None
    ) -> None:
        self.subject = subject
        self.estimator = estimator
        self.ranks = ranks
        self.measurements = 0
        self.measuring = False
        self.autocast = AutocastContext()
        self.randomness = PrivateRandomness(seed_from(seed, ranks.rank))
        self._seed = seed
        self._fallback = fallback

    def measure(self, update: Update, batches: Iterator[Any], draws: int) -> dict[str, float]:
        """FSLRs by tensor and role in output units per unit learning rate: the mean over `draws` draws on as many `batches`
        and all ranks.

        NaN or 0 where the update does not move the outputs. Every rank gets the same numbers, or raises the same error.
        """
        problem: Exception | None = None
        total: Tensor | None = None
        self.measuring = True
        with untouched(self.subject.model), self.randomness.active(), update.at_old_weights():
            try:
                for draw in range(draws):
                    batch = next(batches)
                    numbers = self._first(batch, update) if self._unsettled else self._draw(batch, update, draw)
                    total = numbers if total is None else total + numbers
            except Exception as error:  # told to every rank, then raised on each
                problem = error
        self.measuring = False
        self.measurements += 1
        return self._join(total, problem)

    def take_fallback(self) -> None:
        """Goes on with the fallback, as the run that is resumed here had to."""
        if self._fallback is not None:
            self.estimator = self._fallback

    def _join(self, total: Tensor | None, problem: Exception | None) -> dict[str, float]:
        """The one collective of a measurement: [failures, weight, weighted numbers …], summed over ranks."""
        if total is None or problem is not None:
            total = torch.zeros(self.estimator.columns + 1, dtype=torch.float64, device=self.subject.device)
        if self.ranks.alone and problem is not None:
            raise problem
        failed = torch.full((1,), float(problem is not None), dtype=torch.float64, device=total.device)
        failures, weight, *sums = self.ranks.sum(torch.cat([failed, total])).tolist()
        if failures:
            self.ranks.raise_together(problem)
        return self.estimator.fslrs(np.asarray(sums) / weight)

    def _draw(self, batch: Any, update: Update, draw: int) -> Tensor:
        """[weight, weighted numbers …] float64 of one draw on this rank."""
        device = self.subject.device
        generator = generator_for(device, self._seed, self.measurements, draw, self.ranks.rank)
        with self.autocast.open(device.type):
            numbers, outputs = self.estimator.draw(batch, update, generator)
        return torch.cat([numbers.new_tensor([outputs]), numbers * outputs])

    @property
    def _unsettled(self) -> bool:
        return isinstance(self.estimator, Example) and not self.estimator.settled

    def _first(self, batch: Any, update: Update) -> Tensor:
        """The first draw of `example`: where it does not apply on any rank, all take the fallback, for this draw and ever
        after."""
        assert isinstance(self.estimator, Example)
        problem: Exception | None = None
        numbers: Tensor | None = None
        masks = RandomState()
        try:
            numbers = self._draw(batch, update, 0)
        except Exception as error:  # the other ranks wait for this rank's verdict
            problem = error
        if self.ranks.any(isinstance(problem, ExamplesCouple), self.subject.device):
            reason = str(problem) if isinstance(problem, ExamplesCouple) else "it does not apply on another rank"
            if self._fallback is None:
                raise MeasurementError(
                    f"the targets were measured by the example estimator, which does not apply here: {reason}"
                )
            warnings.warn(f"measuring by {self._fallback.name} instead of example: {reason}", stacklevel=2)
            self.take_fallback()
            masks.restore()
            return self._draw(batch, update, 0)
        self.estimator.settled = True
        if problem is not None:
            raise problem
        assert numbers is not None
        return numbers
