"""What every estimator is: a way to turn one probe batch into a few numbers per tensor whose mean gives the FSLRs.

The numbers of several draws and ranks are added up and divided by the count of outputs behind them (Eq. 2 averages over all n,
k). Only then is the FSLR formed from them: each estimator's formula holds for expectations, not for single draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flerm_core.measure.distributed.sharding import Sharding
from flerm_core.measure.output_projection import as_output
from flerm_core.measure.update.weight_update import WeightUpdate

Output = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class MeasuredModel:
    """What is measured: a model, the function computed of it, its tensors by canonical name, and the roles they play.

    `parameters` are unique tensors; `roles` maps a role's name to the names of the tensors that together play it. `sharding`
    says how ranks share the tensors among them, where they do.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    output: Output
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sharding: Sharding | None = None

    def outputs(self, batch: Any) -> Tensor:
        """f [N, ...] for a batch. Raises `MeasurementError` where it is not one tensor."""
        found = as_output(self.output(self.model, batch))
        if self.sharding is not None:
            self.sharding.check_outputs(found)
        return found

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        first: Tensor = next(iter(self.parameters.values()))
        if isinstance(first, DTensor):  # an offloaded one waits in host memory
            return torch.empty(0, device=first.device_mesh.device_type).device
        return first.device


ReductionScope = Literal["none", "split", "all"]


class Estimator(ABC):
    """One way to estimate FSLRs (Section 3, Appendix B, design "The method").

    A draw gives `parts`. Where tensors are sharded, the parts of the ranks that `reach` names add up first: "split", those that
    work on one batch; "all". `close` makes the numbers of them; where parts are not of all ranks, numbers then add up too.
    """

    name: str
    reach: ReductionScope = "none"
    measures_roles: bool = False
    """Whether it also gives the FSLRs of roles, the joint changes of their tensors."""

    def __init__(self, subject: MeasuredModel) -> None:
        self.subject = subject

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many numbers a draw gives."""

    @abstractmethod
    def draw(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """The parts of one probe batch, float64 [any], and the count N·K of outputs in it.

        With φ = Σ ω f, not divided by √(NK): parts scale with the count, so those of all batches and ranks simply add up. The
        model is at W_old; everything the forward may change is put back by the caller.
        """

    def close(self, parts: Tensor) -> Tensor:
        """The numbers [columns] of a draw from its (added-up) parts."""
        return parts

    @abstractmethod
    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """FSLRs by tensor and role from the mean [columns] of the draws. NaN or 0 where there was nothing to measure."""
