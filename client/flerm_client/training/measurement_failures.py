"""What is said where a measurement fails, or nothing is measured: the reason and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from flerm_core._warnings import warn
from flerm_core.errors import FlermError, join_names

_MOST_IN_A_ROW = 3


class MeasurementFailures:
    """The failed measurements of a recording run, which never end the run.

    module: the model, whose modules are named where one of them raised.
    silent: whether another rank says what there is to say.

    `any` is true from the first failure on. `stopped` is true from the third failure in a row on:
    measuring then stops for good.
    """

    def __init__(self, module: nn.Module, *, silent: bool) -> None:
        self.any = False
        self.stopped = False
        self._module = module
        self._silent = silent
        self._in_a_row = 0

    def succeeded(self) -> None:
        """A measurement was made."""
        self._in_a_row = 0

    def add(self, error: Exception, step: int, estimator: str) -> None:
        """The measurement of `step` by `estimator` raised `error`. Warns at the first in a row."""
        self.any = True
        self._in_a_row += 1
        self.stopped = self._in_a_row == _MOST_IN_A_ROW
        if self._silent:
            return
        if self._in_a_row == 1:
            warn(
                f"step {step} was not measured: {self._reason(error)}; "
                f"{_remedy(error, estimator)}. The run goes on as without FLeRM, and the next "
                f"measurement is tried; after {_MOST_IN_A_ROW} failures in a row measuring stops"
            )
        elif self.stopped:
            warn(
                f"measuring has stopped at step {step}, after {_MOST_IN_A_ROW} failures in a row: "
                f"{self._reason(error)}; the run goes on as without FLeRM"
            )

    def _reason(self, error: Exception) -> str:
        where = _failed_module(self._module, error)
        prefix = f"in {where} " if where else ""
        if isinstance(error, FlermError):
            return f"{prefix}{error}".rstrip(".")
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        return f"{prefix}{type(error).__name__}: {first_line}"


def _failed_module(model: nn.Module, error: BaseException | None) -> str:
    """The path and class of the innermost module of `model` in whose code `error` was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    while error is not None:
        found = ""
        for owner in _owners(error):
            if names.get(id(owner)):
                found = f"{names[id(owner)]} ({type(owner).__name__})"
        if found:
            return found
        error = error.__cause__
    return ""


def _owners(error: BaseException) -> Iterator[object]:
    """The `self` of each function that `error` came through, outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_locals.get("self")
        trace = trace.tb_next


def _remedy(error: Exception, estimator: str) -> str:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "smaller probe batches need less memory"
    if estimator != "kronecker" and not isinstance(error, FlermError):
        return "estimator='kronecker' needs one plain backward pass and no more"
    return "output= and probe= say what is computed, and on which batches"


def warn_of_idle(optimizers: Sequence[Optimizer], idle: Sequence[int], names: set[str]) -> None:
    """Warns that the optimisers of index `idle`, which own `names`, have made no step so far."""
    which = ", ".join(f"number {i + 1} ({type(optimizers[i]).__name__})" for i in idle)
    warn(
        f"of {len(optimizers)} optimizers, {which} has made no step while others made several: a "
        "step counts, and is measured and matched, when every optimizer has made its part. Leave "
        f"those that never step out of optimizer=. Tensors: {join_names(sorted(names))}"
    )


def warn_of_nothing(steps: int, any_stepped: bool, failed: bool) -> None:
    """Warns at the end of a run that has measured nothing.

    steps: how many were counted. any_stepped: whether any optimiser made a step. failed: whether a
    measurement was tried, and failed.
    """
    if failed:
        why = "every measurement failed"
    elif steps:
        why = (
            f"of {steps} steps none was due (start=, every=), changed a weight, or ran at a rate "
            "above 0"
        )
    elif any_stepped:
        why = "no step was counted, because one of the optimizers never made its part of it"
    else:
        why = (
            "no step was made through the optimizer that was given; "
            "is it another object that trains the model?"
        )
    warn(f"this run has measured nothing: {why}")


def warn_of_unmeasured(step: int, names: Sequence[str]) -> None:
    """Warns that the step changed tensors `names`, for which nothing was measured."""
    warn(
        f"step {step} changed {len(names)} tensors that have no FSLR, so that nothing is recorded "
        "or matched for them: the probe's outputs do not depend on them, or do so in a way that "
        f"the estimator does not see (estimator='exact' does): {join_names(names)}"
    )
