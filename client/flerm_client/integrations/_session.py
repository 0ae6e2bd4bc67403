"""What all integrations share: a FLeRM begun with what the framework knows, and what its loggers are told."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from flerm_client.flerm import FLeRM
from flerm_client.integrations._outputs import output_of
from flerm_client.integrations.probe_batches import probe_of
from flerm_core.errors import InvalidInput

MODES = ("record", "match")


def check_keywords(mode: str, keywords: Mapping[str, Any]) -> None:
    """Raises `InvalidInput` for a mode there is not, or a keyword that `FLeRM.record` (or `match`) does not take: told
    where the user wrote it, not when training begins."""
    if mode not in MODES:
        raise InvalidInput(f"mode={mode!r} is not known; there are: {', '.join(MODES)}")
    allowed = set(inspect.signature(getattr(FLeRM, mode)).parameters) - {"model", "optimizer"}
    unknown = sorted(set(keywords) - allowed)
    if unknown:
        raise InvalidInput(
            f"FLeRM.{mode} takes no {', '.join(unknown)}; it takes {', '.join(sorted(allowed))}"
        )
    if not keywords.get("family"):
        raise InvalidInput("family= must be given: the models whose parameter names correspond")


def attach(
    mode: str,
    model: nn.Module,
    optimizer: Any,
    keywords: Mapping[str, Any],
    *,
    loader: Iterable[Any],
    batch_size: int | None = None,
    total_steps: int | None = None,
) -> FLeRM:
    """`FLeRM.record` or `FLeRM.match` with `keywords`; where they leave it open the probe is of `loader`'s data, the
    output the model's logits, the length that `clock="fraction"` needs the `total_steps` that the framework tells."""
    found: dict[str, Any] = {"output": output_of} | dict(keywords)
    if "probe" not in found:
        found["probe"] = probe_of(loader, batch_size)
    if found.get("clock") == "fraction":
        found.setdefault("total_steps", total_steps)
    if "process_group" not in found and _replicated(model):
        found["process_group"] = dist.group.WORLD
    made: FLeRM = getattr(FLeRM, mode)(model, optimizer, **found)
    return made


def _replicated(model: nn.Module) -> bool:
    """Whether the framework replicates `model` over all ranks and holds the DDP wrapper itself."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    return not any(isinstance(p, DTensor) for p in model.parameters())


class UnloggedMetrics:
    """What the loggers have not been told yet: a measurement's FSLRs and the rates that follow from it, once each."""

    def __init__(self, flerm: FLeRM) -> None:
        self._flerm = flerm
        self._told = flerm.measurements

    def mark_seen(self) -> None:
        """What is there now is no news: a checkpoint brought it."""
        self._told = self._flerm.measurements

    def pop(self) -> dict[str, float]:
        """`flerm/fslr/<tensor>` (output units per unit learning rate) and `flerm/lr/<tensor>`; empty when nothing was
        measured since."""
        if self._flerm.measurements == self._told:
            return {}
        self._told = self._flerm.measurements
        values = {f"flerm/fslr/{name}": value for name, value in self._flerm.fslr.items()}
        return values | {
            f"flerm/lr/{name}": value for name, value in self._flerm.learning_rates().items()
        }
