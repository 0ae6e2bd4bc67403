"""State that a module keeps outside of buffers is no other for a measurement."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from flerm_client import FLeRM


class Remembering(nn.Module):
    """Has a memory that is replaced, one that is written to, a list, a count, and a lazy one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.readout = nn.Linear(8, 8), nn.Linear(8, 4)
        self.replaced, self.written, self.count = 0.0, torch.zeros(8), 0
        self.listed: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.hidden(x))
        mean = x.detach().mean(0)
        self.count += 1
        self.replaced = 0.9 * self.replaced + 0.1 * mean
        self.written.mul_(0.9).add_(mean, alpha=0.1)
        self.listed.append(mean)
        if not hasattr(self, "lazy"):
            self.lazy = mean
        state = self.replaced + self.written.clone() + self.listed[0] + self.lazy
        return self.readout(x + state * (1.0 + 0.1 * self.count))


def losses(estimator: str | None) -> list[float]:
    torch.manual_seed(0)
    model, data = Remembering(), [torch.randn(8, 8) for _ in range(4)]
    optimizer, found = Adam(model.parameters(), 1e-2), []
    if estimator is not None:
        FLeRM.record(model, optimizer, probe=data, family="f", estimator=estimator, every=1)
    for x in data:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("estimator", ["example", "kronecker", "exact"])
def test_losses_are_those_of_an_unrecorded_run(estimator: str) -> None:
    assert losses(estimator) == losses(None)
