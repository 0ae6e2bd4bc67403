"""What a run has measured and logged so far, and its way to the registry."""

from __future__ import annotations

import atexit
import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flerm_client.training.run_metadata import RunMetadata
from flerm_client.upload.reporter import SpoolReporter
from flerm_core._warnings import warn
from flerm_core.errors import FlermError
from flerm_core.records.checks import check_integer
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Measurement,
    ParameterList,
    RecordingSpec,
    now,
)
from flerm_core.trajectory import Trajectory

_LAST = 200  # losses behind a final loss (Section 4: "averaged over the last 200 batches")


class RunLog:
    """The rows of this run, in memory and, where there is a registry, in the spool. One per process; only rank 0's reports.

    `parameters` index the vectors: the tensors, then the roles. `tokens`: the last that were logged; `tokens_ahead`: those that
    go with the step that follows, None where nobody has logged them.
    """

    def __init__(self, parameters: ParameterList) -> None:
        self.parameters = parameters
        self.rows: list[Measurement] = []
        self.diverged = False
        self._reporter: SpoolReporter | None = None
        self._unreportable = False
        self._losses: deque[Any] = deque(maxlen=_LAST)
        self._logged = 0
        self._pending: Any = None
        self._step = 0
        self.tokens: int | None = None
        self.tokens_ahead: int | None = None

    def report_to(self, about: RunMetadata, spec: RecordingSpec, attempt: Attempt) -> None:
        """From now on every row also goes to the registry of `about`."""
        # Held until the interpreter ends, where nobody ends it before: how a run ends must not hang on when the garbage
        # collector comes by.
        atexit.register(self._end_at_exit)
        try:
            self._reporter = SpoolReporter.open(
                about.registry, spec, attempt, token=about.token, spool=about.spool
            )
        except (
            FlermError
        ) as error:  # what `check_reporting` could not foresee must not end a training that runs
            self._unreportable = True
            warn(f"this run goes on and is not reported: {error}")

    @property
    def reporting(self) -> bool:
        """Whether rows go to a registry, or it was found out that they cannot."""
        return self._reporter is not None or self._unreportable

    def log(self, loss: Any, tokens: int | None) -> None:
        """The loss of the step that follows, a number or a 0-dimensional tensor (not read before it is needed), and the
        tokens so far."""
        if loss is not None:
            loss = loss.detach() if hasattr(loss, "detach") else loss
            self._pending = loss
            self._losses.append(loss)
            self._logged += 1
        if tokens is not None:
            count = int(tokens)
            check_integer("tokens", count)
            self.tokens = self.tokens_ahead = count

    def step_over(self, step: int) -> None:
        """The step that a logged loss and tokens went with is over; it was the run's `step`-th."""
        self._pending = self.tokens_ahead = None
        self._step = step

    def add(
        self,
        step: int,
        fslrs: Mapping[str, float],
        rate: float,
        multipliers: Mapping[str, float] | None,
        *,
        sharpness: float = math.nan,
    ) -> None:
        """One measurement, at the schedule's learning rate `rate`; without any finite FSLR it is left out."""
        values = self._vector(fslrs)
        if np.isnan(values).all():
            return
        vectors = {} if multipliers is None else {"multiplier": self._vector(multipliers)}
        row = Measurement(
            step=step,
            values=values,
            loss=_finite(self._pending),
            learning_rate=rate,
            tokens=self.tokens_ahead,
            measured_at=now(),
            scalars={"sharpness": sharpness} if math.isfinite(sharpness) else {},
            vectors=vectors,
        )
        self.rows.append(row)
        if self._reporter is not None:
            self._reporter.append(row)

    def _vector(self, values: Mapping[str, float]) -> NDArray[np.float32]:
        vector = np.array(
            [values.get(name, math.nan) for name in self.parameters.names], np.float32
        )
        vector[~np.isfinite(vector) | (vector == 0.0)] = np.nan
        return vector

    @property
    def trajectory(self) -> Trajectory:
        """All rows."""
        return Trajectory.from_measurements(self.parameters, self.rows)

    def finish(self, status: str, timeout: float) -> None:
        """Ends the run's attempt; waits at most `timeout` seconds for its delivery and says what is left."""
        atexit.unregister(self._end_at_exit)
        if self._reporter is None:
            return
        losses = [float(loss) for loss in self._losses]
        if status == "completed" and (self.diverged or not all(map(math.isfinite, losses))):
            status = "diverged"
        finite = [loss for loss in losses if math.isfinite(loss)]
        final = final_loss(finite, self._logged) if finite and status != "diverged" else None
        ending = Ending(status=status, final_loss=final, final_step=self._step, tokens=self.tokens)
        delivery = self._reporter.finish(ending, timeout=timeout)
        if delivery.problem:
            warn(delivery.problem)
        self._reporter = None

    def hand_over(self) -> None:
        """What follows goes to the registry as a new attempt: the run goes back to a checkpoint."""
        atexit.unregister(self._end_at_exit)
        if self._reporter is not None:
            self._reporter.close()
            self._reporter = None

    def _end_at_exit(self) -> None:
        self.finish(ending_status(), timeout=10.0)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, as plain tensors."""
        so_far = self.trajectory
        multipliers = [row.vectors.get("multiplier") for row in self.rows]
        return {
            "steps": torch.tensor(so_far.steps),
            "values": torch.tensor(so_far.values),
            "losses": torch.tensor(so_far.losses),
            "learning_rates": torch.tensor(so_far.learning_rates),
            "tokens": torch.tensor(so_far.tokens),
            "scalars": [dict(row.scalars) for row in self.rows],
            "multipliers": [None if each is None else torch.tensor(each) for each in multipliers],
            "last_losses": [float(loss) for loss in self._losses],
            "losses_logged": self._logged,
            "tokens_seen": self.tokens,
            "diverged": self.diverged,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The rows of the run that wrote `state`."""
        columns = {name: state[name].numpy() for name in ("losses", "learning_rates", "tokens")}
        parameters = self.parameters
        so_far = Trajectory(
            parameters.names,
            parameters.shapes,
            state["steps"].numpy(),
            state["values"].numpy(),
            bands=parameters.bands,
            **columns,
        )
        self.rows = [
            replace(
                row,
                scalars=scalars,
                vectors={} if multiplier is None else {"multiplier": multiplier.numpy()},
            )
            for row, scalars, multiplier in zip(
                so_far, state["scalars"], state["multipliers"], strict=True
            )
        ]
        self._losses = deque(state["last_losses"], maxlen=_LAST)
        self._logged = state["losses_logged"]
        self.tokens = state["tokens_seen"]
        self._pending = self.tokens_ahead = (
            None  # what was logged for a step that this run goes back behind
        )
        self.diverged = state["diverged"]


def final_loss(last: Sequence[float], count: int) -> float:
    """The mean over the last 200 of a run's `count` losses, of fewer than 1,000 over the last fifth.

    `last` holds the run's last losses, at least that many.
    """
    window = last[-min(_LAST, math.ceil(count / 5)) :]
    return sum(window) / len(window)


def ending_status() -> str:
    """How a run that was not closed ends with its process: failed under an uncaught exception, interrupted by
    Ctrl-C, else completed. Interrupted in a notebook or at a prompt, whose end and whose last exception say nothing of it."""
    if hasattr(sys, "ps1"):
        return "interrupted"
    last = getattr(sys, "last_value", None)
    return (
        "completed"
        if last is None
        else "interrupted"
        if isinstance(last, KeyboardInterrupt)
        else "failed"
    )


def _finite(loss: Any) -> float | None:
    value = None if loss is None else float(loss)
    return value if value is not None and math.isfinite(value) else None
