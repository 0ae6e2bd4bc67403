"""What a run has measured and logged so far, and its way to the registry."""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flerm_client.training.run_remarks import RunRemarks
from flerm_client.upload.reporter import SpoolReporter
from flerm_core._warnings import warn
from flerm_core.errors import FlermError
from flerm_core.records.auxiliary import AuxiliaryColumns
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

# The losses behind a final loss (Section 4: "averaged over the last 200 batches").
_LAST = 200
# Losses logged without a step after which the run says that something else must train the model:
# while it goes on, and at its end. Either is more than gradient accumulation has between two steps.
_TELL_AFTER_LOSSES = 200
_MANY_LOSSES = 10


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an attempt is reported, and as what. Arguments of `SpoolReporter.open`."""

    registry: str | None
    spec: RecordingSpec
    attempt: Attempt
    token: str | None
    spool: str | os.PathLike[str] | None


class RunLog:
    """The rows of this run, in memory and, on rank 0 and with a registry, in the spool.

    parameters: the entries of a row's vectors, which are the tensors and then the depth groups.
    tokens: the last count that was logged, of the run so far.
    pending_tokens: the count logged for the step that follows; None where none was logged.
    diverged: whether a measurement found weights or buffers that are not finite.
    remarks: what is said of the run at its end.
    judged_later: the final loss is not that of the logged losses; someone else adds it.
    """

    def __init__(self, parameters: ParameterList, remarks: RunRemarks) -> None:
        self.parameters = parameters
        self.remarks = remarks
        self.rows: list[Measurement] = []
        self.diverged = False
        self.judged_later = False
        self._destination: Destination | None = None
        self._reporter: SpoolReporter | None = None
        self._owner = os.getpid()
        self._losses: deque[Any] = deque(maxlen=_LAST)
        self._losses_logged = 0
        self._losses_ahead = 0  # logged since the last step
        self._most_ahead = 0  # before one step: more than 1 where gradients are accumulated
        self._pending_loss: Any = None
        self.tokens: int | None = None
        self.pending_tokens: int | None = None

    def begin(self, destination: Destination | None) -> None:
        """The run begins, or goes on in another attempt: its rows and its end go to `destination`.

        None: they stay in memory. The registry hears of the run with the first row, or at the end.
        """
        # This lives until the interpreter ends, where nobody ends the run before: how a run ends
        # must not depend on the garbage collector.
        atexit.unregister(self._end_at_exit)
        atexit.register(self._end_at_exit)
        self._destination = destination

    def report_as(self, spec: RecordingSpec) -> None:
        """`spec` is what the run turned out to be. For the time before the first row."""
        if self._destination is not None:
            self._destination = replace(self._destination, spec=spec)

    @property
    def reporting(self) -> bool:
        """Whether the registry has heard of this attempt, or nothing is to be reported."""
        return self._reporter is not None or self._destination is None

    def _open_reporter(self) -> None:
        if self.reporting:
            return
        to, self._destination = self._destination, None
        assert to is not None
        attempt = replace(to.attempt, started_at=now())
        try:
            self._reporter = SpoolReporter.open(
                to.registry, to.spec, attempt, token=to.token, spool=to.spool
            )
        # `check_reporting` has found all errors that can be foreseen. Another must not end a
        # training that runs.
        except FlermError as error:
            warn(f"this run goes on and is not reported: {error}")

    def log(self, loss: Any, tokens: int | None) -> None:
        """The loss of the step that follows, and the tokens that the run has seen by its end.

        `loss` is a number or a 0-dimensional tensor, whose value is read when it is needed only.
        """
        if loss is not None:
            loss = loss.detach() if hasattr(loss, "detach") else loss
            self._pending_loss = loss
            self._losses.append(loss)
            self._losses_logged += 1
            self._losses_ahead += 1
            if self._losses_ahead == max(_TELL_AFTER_LOSSES, 10 * self._most_ahead):
                self.remarks.say(self._untrained())
        if tokens is not None:
            count = int(tokens)
            check_integer("tokens", count)
            self.tokens = self.pending_tokens = count

    def end_step(self, step: int) -> None:
        """The run's `step`-th step is over, and with it the loss and tokens logged for the step."""
        self._pending_loss = self.pending_tokens = None
        self._most_ahead = max(self._most_ahead, self._losses_ahead)
        self._losses_ahead = 0
        self.remarks.steps = step

    def _untrained(self) -> str:
        return (
            f"{self._losses_ahead} losses were logged since step {self.remarks.steps}, and no step "
            "was made through the optimizer that was given: is it another object that trains the "
            "model now? Nothing of it is measured or matched"
        )

    def add(
        self,
        step: int,
        fslrs: Mapping[str, float],
        rate: float,
        multipliers: Mapping[str, float] | None,
        scalars: Mapping[str, float],
    ) -> None:
        """Adds one measurement. A measurement without any finite FSLR is left out.

        step: the optimiser step, counted from 1.
        fslrs: by tensor and depth group, in output units per unit learning rate.
        rate: η(t), the learning rate of the user's schedule.
        multipliers: m_ℓ by tensor; None for a run without targets.
        scalars: auxiliary values by name; one that is not finite was not measured.
        """
        values = self._vector(fslrs)
        if np.isnan(values).all():
            return
        vectors = {} if multipliers is None else {"multiplier": self._vector(multipliers)}
        row = Measurement(
            step=step,
            values=values,
            loss=_finite(self._pending_loss),
            learning_rate=rate,
            tokens=self.pending_tokens,
            measured_at=now(),
            scalars={name: value for name, value in scalars.items() if math.isfinite(value)},
            vectors=vectors,
        )
        self.rows.append(row)
        self._open_reporter()
        if self._reporter is not None:
            self._reporter.append(row)

    def _vector(self, values: Mapping[str, float]) -> NDArray[np.float32]:
        """`values` in the order of `parameters`, NaN for what is absent, not finite, or 0."""
        vector = np.array(
            [values.get(name, math.nan) for name in self.parameters.names], np.float32
        )
        vector[~np.isfinite(vector) | (vector == 0.0)] = np.nan
        return vector

    @property
    def trajectory(self) -> Trajectory:
        """All rows."""
        return Trajectory.from_measurements(self.parameters, self.rows)

    @property
    def auxiliary(self) -> AuxiliaryColumns:
        """What all rows hold besides FSLRs."""
        steps, values = [row.step for row in self.rows], [row.auxiliary for row in self.rows]
        return AuxiliaryColumns.of(steps, values, len(self.parameters))

    def finish(self, status: str, timeout: float) -> None:
        """Ends the run's attempt, and waits at most `timeout` seconds for its delivery.

        Warns where something could not be delivered.
        """
        atexit.unregister(self._end_at_exit)
        if self._owner != os.getpid():  # a copy of the process
            return
        losses = [float(loss) for loss in self._losses]
        wrong = sum(not math.isfinite(loss) for loss in losses)
        if status == "completed" and (self.diverged or wrong):
            status = "diverged"
            if wrong:
                self.remarks.say(
                    f"the run counts as diverged: {wrong} of the last {len(losses)} losses that "
                    "were logged are not finite"
                )
        if self.rows and self._losses_ahead > max(_MANY_LOSSES, 2 * self._most_ahead):
            self.remarks.say(self._untrained())
        remarks = self.remarks.at_end(self._measured(), warns=status in ("completed", "diverged"))
        if self.remarks.stepped or status == "completed":
            self._open_reporter()
        if self._reporter is None:
            return
        finite = [loss for loss in losses if math.isfinite(loss) and not self.judged_later]
        final = final_loss(finite, self._losses_logged) if finite and status != "diverged" else None
        ending = Ending(
            status=status,
            final_loss=final,
            final_step=self.remarks.steps,
            tokens=self.tokens,
            remarks=remarks,
        )
        report = self._reporter.finish(ending, timeout=timeout)
        if report.problem:
            warn(report.problem)
        self._reporter = None

    def _measured(self) -> dict[str, bool]:
        """Of every tensor, whether any row has an FSLR of its; empty where there are no rows."""
        if not self.rows:
            return {}
        found = np.isfinite(np.stack([row.values for row in self.rows]))
        return {name: bool(found[:, at].any()) for at, name in enumerate(self.parameters.names)}

    def detach_reporter(self) -> None:
        """The run goes back to a checkpoint: what follows is reported as a new attempt."""
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
            "losses_logged": self._losses_logged,
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
        self._losses_logged = state["losses_logged"]
        self.tokens = state["tokens_seen"]
        # What was logged for a step that this run has gone back behind does not count.
        self._pending_loss = self.pending_tokens = None
        self.diverged = state["diverged"]


def final_loss(last: Sequence[float], count: int) -> float:
    """The mean over the last 200 of a run's `count` losses, or the last fifth of fewer than 1,000.

    `last` holds the run's last losses, at least as many as the mean is over.
    """
    window = last[-min(_LAST, math.ceil(count / 5)) :]
    return sum(window) / len(window)


def ending_status() -> str:
    """The status of a run that nobody closed when its process ended.

    It is failed after an uncaught exception, interrupted after Ctrl-C, else completed. In a
    notebook or at a prompt it is interrupted: neither their end nor their last exception says
    anything about the run.
    """
    if hasattr(sys, "ps1"):
        return "interrupted"
    last = getattr(sys, "last_value", None)
    if last is None:
        return "completed"
    return "interrupted" if isinstance(last, KeyboardInterrupt) else "failed"


def _finite(loss: Any) -> float | None:
    value = None if loss is None else float(loss)
    return value if value is not None and math.isfinite(value) else None
