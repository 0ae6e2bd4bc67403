"""FLeRM in a loop around Accelerate's Accelerator.

flerm = record(accelerator, model, optimizer, loader, family="team/decoder")  # after prepare
"""

from __future__ import annotations

import functools
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
        accelerator.register_for_checkpointing(self)

        def log_metrics() -> None:
            if metrics := self._new_metrics():
                accelerator.log(metrics, step=flerm.steps)

        def leave_checkpoints() -> None:
            # Accelerate has no public function that takes an object off its checkpoints.
            others = [each for each in accelerator._custom_objects if each is not self]
            accelerator._custom_objects = others

        session = flerm._session
        session.on_step.append(log_metrics)
        session.on_end += [leave_checkpoints, _log_losses(accelerator, flerm)]
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


def _step_examples(accelerator: Accelerator, loader: Iterable[Any]) -> int | None:
    """The examples of a step, where `accelerator.accumulate` decides how many batches it has.

    Without that, the loop may accumulate by itself, which nobody can see before its first step.
    """
    accumulation = accelerator.gradient_accumulation_steps
    if accumulation < 2 or getattr(accelerator, "parallelism_config", None) is not None:
        return None
    return step_examples(loader, accumulation, accelerator.num_processes)


def _log_losses(accelerator: Accelerator, flerm: FLeRM) -> Callable[[], None]:
    """Logs a step's loss: the mean of what went into `accelerator.backward` for the step.

    Returns a function that ends the logging.
    """
    before = vars(accelerator).get("backward")
    inner = accelerator.backward
    log: Callable[..., None] | None = flerm.log
    parts: list[Tensor] = []

    @functools.wraps(inner)
    def backward(loss: Tensor, **kwargs: Any) -> Any:
        if log is not None:
            parts.append(loss.detach())
            if accelerator.sync_gradients:
                log(loss=torch.stack(parts).mean())
                parts.clear()
        return inner(loss, **kwargs)

    def end() -> None:
        nonlocal log
        log = None
        # Where someone else has wrapped `backward` since, ours stays and only passes calls on.
        if vars(accelerator).get("backward") is backward:
            if before is None:
                del accelerator.backward
            else:
                accelerator.backward = before

    accelerator.backward = backward
    return end
