"""What `exact` promises for models that are not deterministic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import SGD

from flerm_client import FLeRM


class OneOfTwo(nn.Module):
    """Each forward uses one of two layers, chosen by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])

    def forward(self, inputs: Tensor) -> Tensor:
        """As the chosen layer."""
        outputs: Tensor = self.layers[int(torch.rand(()) < 0.5)](inputs)
        return outputs


def test_each_draw_has_masks_of_its_own() -> None:
    torch.manual_seed(0)
    model = OneOfTwo()
    optimizer = SGD(model.parameters(), 0.1)
    flerm = FLeRM.record(
        model, optimizer, probe=[torch.randn(8, 4)], family="f", estimator="exact", every=1
    )
    for _ in range(12):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    flerm.close()
    rows = flerm.trajectory
    layers = [rows.names.index(f"layers.{at}.weight") for at in range(2)]
    used = rows.values[1:, layers] > 0  # the first row is a mean of several draws
    assert (used.sum(axis=1) == 1).all(), "both layers are measured with the same masks"
    assert used.any(axis=0).all(), "each layer is used by some draw"
