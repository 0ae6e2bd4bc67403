"""The interface of all estimators: from one probe batch to a few statistics per tensor.

The meter adds up the statistics of all draws and ranks, and divides the sums by the number of
outputs behind them, because Eq. 2 averages over all examples n and output features k. Only the
mean gives the FSLRs: each estimator's formula holds for expectations, not for single draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.update.weight_update import WeightUpdate

ReductionScope = Literal["local", "model_parallel", "world"]


class Draw(NamedTuple):
    """The partial sums of one probe batch, float64 [any length], and the batch's number of outputs.

    The number of outputs is N·K: examples times output features.
    """

    partial_sums: Tensor
    n_outputs: int


@dataclass(frozen=True)
class OutputLayer:
    """The names of the output layer's tensors; "" where none is named."""

    weight: str = ""
    bias: str = ""


class Estimator(ABC):
    """One way to estimate FSLRs (Section 3, Appendix B).

    A draw gives partial sums. Where ranks share tensors, a statistic such as (Σ Z)² cannot be
    formed before the sum inside it is complete. `reduction` names the ranks whose partial sums are
    added up first: "local", this rank alone; "model_parallel", the ranks that work on one batch;
    "world", all ranks. `reduce_parts` then forms the statistics of the complete sums. Unless the
    scope is "world", the statistics are added up over the remaining ranks afterwards.

    An estimator may have to find out on its first draw how to measure this model; `needs_discovery`
    is then True. After that draw the ranks agree on the outcome. Where the draw raised
    `EstimatorNotApplicable` on any rank, all ranks take the fallback. Otherwise the meter calls
    `end_discovery` on all ranks.
    """

    name: str
    reduction: ReductionScope = "local"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        self.model = model
        self.output_layer = output_layer or OutputLayer()

    @property
    def needs_discovery(self) -> bool:
        """Whether the next draw finds out how to measure the model, so that ranks must agree."""
        return False

    def begin_measurement(self) -> None:
        """Called before the first draw of each measurement."""
        return

    def end_discovery(self) -> None:
        """Called after a first draw that succeeded on all ranks."""
        return

    @property
    @abstractmethod
    def n_statistics(self) -> int:
        """How many statistics `reduce_parts` gives."""

    @abstractmethod
    def draw(self, batch: Any, update: WeightUpdate, generator: torch.Generator) -> Draw:
        """The partial sums of one probe batch.

        Here φ = Σ ω f without the factor 1/√(NK) of Eq. 3. So the partial sums grow with the number
        of outputs, and those of several batches and ranks simply add up.

        The model is at W_old. The caller restores whatever the forward changes (buffers, random
        generators). While `needs_discovery`, this may raise `EstimatorNotApplicable`.
        """

    def reduce_parts(self, partial_sums: Tensor) -> Tensor:
        """The statistics [n_statistics] of one draw, from its complete sums."""
        return partial_sums

    @abstractmethod
    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """FSLRs by tensor name, and by depth group where the estimator gives joint FSLRs.

        The unit is output units per unit of learning rate.

        mean: the statistics [n_statistics], divided by the number of outputs.
        """
