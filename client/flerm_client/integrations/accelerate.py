"""FLeRM in a loop around Accelerate's Accelerator.

flerm = record(accelerator, model, optimizer, loader, family="team/decoder")  # after prepare
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flerm_client.flerm import FLeRM
from flerm_client.idle_flerm import IdleFLeRM
from flerm_client.integrations._checkpoint import collect_state, restore
from flerm_client.integrations._session import CallbackState
from flerm_client.integrations._step_examples import step_examples
from flerm_core._warnings import register_caller_package

register_caller_package("accelerate")


def record(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loader: Iterable[Any],
    **keywords: Any,
) -> FLeRM:
    """`FLeRM.record` for what `accelerator.prepare` returned.

    keywords: those of `FLeRM.record`; `family` is needed. What they leave open is found: the probe
        in `loader`'s data (the loader itself is not read), the outputs in `.logits`, the loss as it
        goes into `accelerator.backward`.

    FSLRs and learning rates go to the trackers through `accelerator.log`. The state is saved and
    loaded with `accelerator.save_state` and `load_state`. Raises as `FLeRM.record` does.
    """
    return _AcceleratedRun("record", keywords).begin(accelerator, model, optimizer, loader)


def match(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loader: Iterable[Any],
    **keywords: Any,
) -> FLeRM:
    """`FLeRM.match` for what `accelerator.prepare` returned; all else is as for `record`."""
    return _AcceleratedRun("match", keywords).begin(accelerator, model, optimizer, loader)


def auto(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loader: Iterable[Any],
    **keywords: Any,
) -> FLeRM:
    """`FLeRM.auto` for what `accelerator.prepare` returned; all else is as for `record`."""
    return _AcceleratedRun(None, keywords).begin(accelerator, model, optimizer, loader)


class _AcceleratedRun(CallbackState):
    """One run, registered with the Accelerator for its checkpoints."""

    def begin(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, loader: Iterable[Any]
    ) -> FLeRM:
        """Attaches a FLeRM, and wraps `backward`. Both end with the run."""
        if self._idle:
            return IdleFLeRM()
        flerm = self._attach(
            model, optimizer, loader=loader, examples=_step_examples(accelerator, loader)
        )

        def log_metrics() -> None:
            if metrics := self._new_metrics():
                accelerator.log(metrics, step=flerm.steps)

        session = flerm._session
        session.on_step.append(log_metrics)
        session.on_end += _join(accelerator, self, flerm)
        return flerm

    def state_dict(self) -> dict[str, Any]:
        """The state of all ranks. Accelerate calls this on every rank, and saves rank 0's."""
        assert self.flerm is not None
        return {"checkpoint": collect_state(self.flerm)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        assert self.flerm is not None
        restore(self.flerm, state["checkpoint"])
        self._mark_logged()


class _Checkpointed:
    """A run in the accelerator's checkpoints, which do not keep the run alive.

    A loop that begins anew where memory did not suffice (`find_executable_batch_size`) leaves the
    run before with `free_memory`, and closes nothing.

    undo: is called where the run is gone.
    """

    def __init__(self, run: _AcceleratedRun, undo: Callable[[], None]) -> None:
        self._run = weakref.ref(run, lambda _: undo())

    def state_dict(self) -> dict[str, Any]:
        """As Accelerate calls it."""
        run = self._run()
        return {} if run is None else run.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Accelerate calls it."""
        run = self._run()
        if run is not None:
            run.load_state_dict(state)


def _join(accelerator: Accelerator, run: _AcceleratedRun, flerm: FLeRM) -> list[Callable[[], None]]:
    """Lets the accelerator save `run` and log the losses of `flerm`, for as long as these live.

    Returns what undoes this.
    """

    def undo_all() -> None:
        for each in undo:
            each()

    def leave_checkpoints() -> None:
        # Accelerate has no public function that takes an object off its checkpoints.
        others = [each for each in accelerator._custom_objects if each is not checkpointed]
        accelerator._custom_objects = others

    checkpointed = _Checkpointed(run, undo_all)
    accelerator.register_for_checkpointing(checkpointed)
    undo = [leave_checkpoints, _LoggedBackward(accelerator, flerm).end]
    return undo


def _step_examples(accelerator: Accelerator, loader: Iterable[Any]) -> int | None:
    """The examples of a step, where `accelerator.accumulate` decides how many batches it has.

    Without that, the loop may accumulate by itself, which nobody can see before its first step.
    """
    accumulation = accelerator.gradient_accumulation_steps
    if accumulation < 2 or getattr(accelerator, "parallelism_config", None) is not None:
        return None
    return step_examples(loader, accumulation, accelerator.num_processes)


class _LoggedBackward:
    """`accelerator.backward`, which logs a step's loss to a run.

    The loss is the mean of what went into `backward` for the step. The run is not kept alive.
    """

    def __init__(self, accelerator: Accelerator, flerm: FLeRM) -> None:
        self._accelerator = accelerator
        self._before = vars(accelerator).get("backward")
        self._inner = accelerator.backward
        self._flerm: weakref.ref[FLeRM] | None = weakref.ref(flerm)
        self._parts: list[Tensor] = []
        functools.update_wrapper(self, self._inner)
        accelerator.backward = self

    def __call__(self, loss: Tensor, **kwargs: Any) -> Any:
        flerm = None if self._flerm is None else self._flerm()
        if flerm is not None:
            self._parts.append(loss.detach())
            if self._accelerator.sync_gradients:
                flerm.log(loss=torch.stack(self._parts).mean())
                self._parts.clear()
        return self._inner(loss, **kwargs)

    def end(self) -> None:
        """Ends the logging.

        Where someone else has wrapped `backward` since, ours stays and only passes calls on.
        """
        self._flerm = None
        self._parts.clear()
        own = vars(self._accelerator)
        while isinstance(outer := own.get("backward"), _LoggedBackward) and outer._flerm is None:
            if outer._before is None:
                del self._accelerator.backward
            else:
                self._accelerator.backward = outer._before
