"""What every estimator is: a way to turn one probe batch into a few numbers per tensor whose mean gives the FSLRs.

The numbers of several draws and ranks are averaged, weighted by the count of outputs behind each (Eq. 2 averages over all n,
k). Only then is the FSLR formed from them: each estimator's formula holds for expectations, not for single draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flerm_core.measure.projection import as_output
from flerm_core.measure.update import Update

Output = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, the function computed of it, its tensors by canonical name, and the roles they play.

    `parameters` are unique tensors; `roles` maps a role's name to the names of the tensors that together play it.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    output: Output
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def outputs(self, batch: Any) -> Tensor:
        """f [N, ...] for a batch. Raises `MeasurementError` where it is not one tensor."""
        return as_output(self.output(self.model, batch))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.parameters.values())).device


class Estimator(ABC):
    """One way to estimate FSLRs (Section 3, Appendix B, design "The method")."""

    name: str

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many numbers a draw gives."""

    @abstractmethod
    def draw(self, batch: Any, update: Update, generator: torch.Generator) -> tuple[Tensor, int]:
        """The numbers of one probe batch, float64 [columns], and the count of outputs N·K that they average over.

        The model is at W_old; everything the forward may change is put back by the caller.
        """

    @abstractmethod
    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """FSLRs by tensor and role from the mean [columns] of the draws. NaN or 0 where there was nothing to measure."""
