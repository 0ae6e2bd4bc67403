"""FLeRM in a loop around Accelerate's Accelerator.

flerm = record(accelerator, model, optimizer, loader, family="team/decoder")  # after accelerator.prepare
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flerm_client.flerm import FLeRM
from flerm_client.integrations._checkpoint import collect_state, restore
from flerm_client.integrations._session import UnloggedMetrics, attach, check_keywords
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
    """`FLeRM.record` for what `accelerator.prepare` returned; `keywords` are its keywords, `family` is needed.

    What they leave open is found: the probe in `loader`'s data (the loader itself is not touched), the outputs in
    `.logits`, the loss as it goes into `accelerator.backward`. FSLRs and learning rates go to the trackers through
    `accelerator.log`. The state goes with `accelerator.save_state` and `load_state`.
    """
    return _begin("record", accelerator, model, optimizer, loader, keywords)


def match(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loader: Iterable[Any],
    **keywords: Any,
) -> FLeRM:
    """`FLeRM.match`, as `record` is `FLeRM.record`."""
    return _begin("match", accelerator, model, optimizer, loader, keywords)


def _begin(
    mode: Literal["record", "match"],
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loader: Iterable[Any],
    keywords: dict[str, Any],
) -> FLeRM:
    check_keywords(mode, keywords)
    flerm = attach(mode, model, optimizer, keywords, loader=loader)
    news = UnloggedMetrics(flerm)
    accelerator.register_for_checkpointing(_Saved(flerm, news))
    _see_losses(accelerator, flerm)
    _tell_trackers(accelerator, flerm, news, optimizer)
    return flerm


class _Saved:
    """Accelerate saves what rank 0 hands it, and asks every rank."""

    def __init__(self, flerm: FLeRM, news: UnloggedMetrics) -> None:
        self._flerm = flerm
        self._news = news

    def state_dict(self) -> dict[str, Any]:
        return {"checkpoint": collect_state(self._flerm)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self._flerm, state["checkpoint"])
        self._news.mark_seen()


def _see_losses(accelerator: Accelerator, flerm: FLeRM) -> None:
    """The loss of a step is the mean of what goes into `accelerator.backward` on the way to it."""
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


def _tell_trackers(
    accelerator: Accelerator, flerm: FLeRM, news: UnloggedMetrics, optimizer: Any
) -> None:
    @contextmanager
    def around() -> Iterator[None]:
        yield
        values = news.pop()
        if values:
            accelerator.log(values, step=flerm.steps)

    last = optimizer[-1] if isinstance(optimizer, list | tuple) else optimizer
    StepWrapper(bare_optimizer(last), around)  # around FLeRM's own: it has measured by then
