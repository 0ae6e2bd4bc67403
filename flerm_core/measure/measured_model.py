"""The model under measurement: its module, its named tensors, and how ranks share these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flerm_core.measure.distributed.sharding import Sharding
from flerm_core.measure.output_projection import as_output
from flerm_core.measure.write_watch import WriteWatch, watching

Output = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class MeasuredModel:
    """What the estimators measure.

    module: computes the outputs. Wrappers such as DDP and torch.compile are taken off.
    parameters: the measured tensors by canonical name. A tied tensor is listed once.
    output: gives the output f of (module, batch), or an object that holds it.
    depth_groups: a group's name to the names of its members, the tensors at the same position in
        all blocks. The group's FSLR is that of the joint change of its members.
    sharding: how ranks share the tensors; None where each rank holds them whole.
    written: the parameters, measured or not, that a forward was found to write into. A measurement
        puts their values back.
    watch: finds those that a forward writes into for the first time.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    output: Output
    depth_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sharding: Sharding | None = None
    written: list[nn.Parameter] = field(default_factory=list)
    watch: WriteWatch = field(default_factory=WriteWatch)

    def outputs(self, batch: Any) -> Tensor:
        """f [N, ...] for a batch of N examples.

        Raises `MeasurementError` where the output is not one floating-point tensor, `Unsupported`
        where ranks that work on one batch return different plain tensors.
        """
        found = self.watched_outputs(batch)
        if self.sharding is not None:
            self.sharding.check_outputs(found)
        return found

    def watched_outputs(self, batch: Any) -> Tensor:
        """f as the model returns it: ranks that work on one batch may return different ones."""
        with watching():
            found = as_output(self.output(self.module, batch))
        self.watch.note_replaced()
        return found

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        first: Tensor = next(iter(self.parameters.values()))
        if isinstance(first, DTensor):  # FSDP2 may offload the shard itself to host memory
            return torch.empty(0, device=first.device_mesh.device_type).device
        return first.device
