"""W_old and W_new change places whole, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flerm_core.measure.update.chunking import CHUNK_NUMEL
from flerm_core.measure.update.weight_update import WeightUpdate


class OutOfMemory(TorchDispatchMode):
    """Lets one operation fail, the `number`-th copy from 0 on."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_):
            self.left -= 1
            if self.left == -1:
                raise torch.OutOfMemoryError("not enough memory")
        return func(*args, **(kwargs or {}))


COPIES = 3 * (1 + 3 + 1 + 1)
"""Of one exchange of the test's tensors: three for each chunk."""


def fresh_update(parameters: dict[str, nn.Parameter]) -> WeightUpdate:
    """A step from zeros to ones."""
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        update = WeightUpdate(parameters)
        for parameter in parameters.values():
            parameter.fill_(1.0)
    return update


def test_out_of_memory_at_any_copy_of_an_exchange_leaves_the_new_weights() -> None:
    parameters = {
        "tied": nn.Parameter(torch.zeros(3)),
        "large": nn.Parameter(torch.zeros(2 * CHUNK_NUMEL["cpu"] + 1)),
        "last": nn.Parameter(torch.zeros(2, 2)),
    }
    parameters["twin"] = nn.Parameter(parameters["tied"].data)
    for number in range(2 * COPIES):
        update = fresh_update(parameters)
        with pytest.raises(torch.OutOfMemoryError), OutOfMemory(number), update.at_old_weights():
            assert not any(bool(p.any()) for p in parameters.values())
        assert all(bool((p == 1.0).all()) for p in parameters.values()), number
    update = fresh_update(parameters)
    with OutOfMemory(2 * COPIES), update.at_old_weights():
        pass  # these were all copies


def test_a_step_under_inference_mode_is_measured_as_any_other() -> None:
    weight = nn.Parameter(torch.ones(4))
    with torch.inference_mode():
        update = WeightUpdate({"weight": weight})
        weight.add_(0.5)
    update.rates = {"weight": 0.25}
    with update.at_old_weights():
        assert torch.equal(weight, torch.ones(4))
        assert torch.equal(update.change("weight"), torch.full((4,), 2.0))
    assert torch.equal(weight, torch.full((4,), 1.5))
