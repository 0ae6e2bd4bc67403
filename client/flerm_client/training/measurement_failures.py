"""What is said where a measurement fails: the reason and the remedy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from flerm_client.training.run_remarks import RunRemarks
from flerm_core.errors import FlermError

_MOST_IN_A_ROW = 3


class MeasurementFailures:
    """The failed measurements of a run, which do not end the run.

    module: the model, whose modules are named where one of them raised.
    remarks: takes what there is to say.

    `stopped` is true from the third failure in a row on: measuring then stops for good.
    """

    def __init__(self, module: nn.Module, remarks: RunRemarks) -> None:
        self.stopped = False
        self._module = module
        self._remarks = remarks
        self._in_a_row = 0

    def succeeded(self) -> None:
        """A measurement was made."""
        self._in_a_row = 0

    def add(self, error: Exception, step: int, estimator: str) -> None:
        """The measurement of `step` by `estimator` raised `error`. Warns at the first in a row."""
        self._remarks.failed = True
        goes_on = f"The run goes on {self._remarks.how_it_goes_on}"
        self._in_a_row += 1
        self.stopped = self._in_a_row == _MOST_IN_A_ROW
        if self._in_a_row == 1:
            self._remarks.say(
                f"step {step} was not measured: {failure_reason(self._module, error)}; "
                f"{remedy(error, estimator)}. {goes_on}, and the next "
                f"measurement is tried; after {_MOST_IN_A_ROW} failures in a row measuring stops"
            )
        elif self.stopped:
            self._remarks.say(
                f"measuring has stopped at step {step}, after {_MOST_IN_A_ROW} failures in a row: "
                f"{failure_reason(self._module, error)}. {goes_on}"
            )


def failure_reason(model: nn.Module, error: Exception) -> str:
    """Where in `model` `error` was raised, and its first line."""
    where = _failed_module(model, error)
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


def remedy(error: Exception, estimator: str) -> str:
    """What can be done about `error`, in a measurement by `estimator`."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "smaller probe batches need less memory"
    if estimator != "kronecker" and not isinstance(error, FlermError):
        return "estimator='kronecker' needs one plain backward pass and no more"
    return "output= and probe= say what is computed, and on which batches"
