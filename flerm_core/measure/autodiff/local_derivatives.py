"""The output change δy of a module's call under ΔW, for modules without a closed form.

Forward mode is tried first, because it has no step size to choose. Where an operator has no forward
mode (grouped matrix products, recurrent kernels, autograd functions without `jvp`), the difference
of two forwards of the module is taken. A method that failed for a module is not tried again for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.errors import EstimatorNotApplicable
from flerm_core.measure.autodiff.central_difference import difference_along
from flerm_core.measure.autodiff.jvp import jvp_along
from flerm_core.measure.autodiff.module_replay import CallStart
from flerm_core.measure.output_projection import floating_tensors

METHODS: tuple[tuple[str, Callable[..., list[Tensor]]], ...] = (
    ("forward mode", jvp_along),
    ("differences in float32", partial(difference_along, widened=True)),
    ("differences in its own precision", partial(difference_along, widened=False)),
)


class NoDerivative(EstimatorNotApplicable):
    """`module` cannot be differentiated by any method. `reason` says what each method raised."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        super().__init__(f"{type(module).__name__} has no derivative: {reason}")
        self.module, self.reason = module, reason


@dataclass
class LocalDerivatives:
    """Differentiates modules one by one.

    n_methods: how many of `METHODS` may be used, from the first on.
    failures: for each module, the errors of the methods that failed, in the order of `METHODS`. The
        next method in that order is the one to use.
    """

    n_methods: int = len(METHODS)
    failures: dict[nn.Module, list[str]] = field(default_factory=dict)

    def output_changes(
        self,
        module: nn.Module,
        changes: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        start: CallStart,
        outputs_of: Callable[[Any], list[Tensor]] = floating_tensors,
    ) -> list[Tensor]:
        """δy of each output of the call `module(*args, **kwargs)`.

        changes: ΔW by the parameter's path in `module`; all changes act together.
        start: how generators and buffers were when the call began.
        outputs_of: gives the output tensors in what the module returns.

        Raises `NoDerivative` where no method works, and passes on `torch.OutOfMemoryError`.
        """
        failed = self.failures.setdefault(module, [])
        while len(failed) < self.n_methods:
            name, method = METHODS[len(failed)]
            try:
                return method(module, changes, args, kwargs, start, outputs_of)
            except (torch.OutOfMemoryError, EstimatorNotApplicable):
                raise
            except Exception as error:
                failed.append(f"{name}: {one_line(error)}")
        raise NoDerivative(module, "; ".join(failed))


def one_line(error: Exception) -> str:
    """The first line of an error's message, shortened, with the error's class."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__} ({lines[0][:160]})"
