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
from flerm_client.integrations._checkpoint import collect_state, restore
from flerm_client.integrations._session import CallbackState
from flerm_client.training.optimizer_info import bare_optimizer
from flerm_client.training.step_wrapper import StepWrapper
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


class _AcceleratedRun(CallbackState):
    """One run, registered with the Accelerator for its checkpoints."""

    def begin(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, loader: Iterable[Any]
    ) -> FLeRM:
        """Attaches a FLeRM, and wraps `backward` and the last optimiser's step."""
        flerm = self._attach(model, optimizer, loader=loader)
        accelerator.register_for_checkpointing(self)
        _log_losses(accelerator, flerm)

        def around_step(
            step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            result = step(*args, **kwargs)
            if metrics := self._new_metrics():
                accelerator.log(metrics, step=flerm.steps)
            return result

        last = optimizer[-1] if isinstance(optimizer, list | tuple) else optimizer
        # Outside FLeRM's own wrapper, which has measured by then.
        StepWrapper(bare_optimizer(last), around_step)
        return flerm

    def state_dict(self) -> dict[str, Any]:
        """Accelerate asks every rank, and saves what rank 0 returns."""
        assert self.flerm is not None
        return {"checkpoint": collect_state(self.flerm)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        assert self.flerm is not None
        restore(self.flerm, state["checkpoint"])
        self._mark_logged()


def _log_losses(accelerator: Accelerator, flerm: FLeRM) -> None:
    """Logs a step's loss: the mean of what went into `accelerator.backward` for the step."""
    inner = accelerator.backward
    parts: list[Tensor] = []

    @functools.wraps(inner)
    def backward(loss: Tensor, **kwargs: Any) -> Any:
        parts.append(loss.detach())
        if accelerator.sync_gradients:
            flerm.log(loss=torch.stack(parts).mean())
            parts.clear()
        return inner(loss, **kwargs)

    accelerator.backward = backward
