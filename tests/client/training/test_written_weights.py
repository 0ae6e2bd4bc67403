"""Weights that a forward writes into train as without a measurement, whenever the writes begin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flerm_client import FLeRM


class Writing(nn.Module):
    """Writes into frozen weights, which are bigger than all others, and into weights that train.

    begin: the first forward of the training that writes, counted from 1.
    """

    def __init__(self, begin: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.teacher = nn.Parameter(torch.randn(400, 3, generator=generator), requires_grad=False)
        self.book = nn.Parameter(torch.randn(300, 3, generator=generator), requires_grad=False)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))
        self.begin = begin

    def forward(self, x: Tensor) -> Tensor:
        outputs = x @ self.weight + self.teacher[:4].sum() + self.book[0]
        self.forwards += 1
        if self.forwards >= self.begin:
            self.teacher.data.mul_(0.9).add_(self.weight.data.sum(), alpha=0.1)
            self.book.data = self.book.data * 0.5
            self.weight.data.add_(1.0)
        return outputs


def trained(begin: int, **keywords: Any) -> tuple[dict[str, Tensor], FLeRM | None]:
    """Gradients do not depend on the weights, so that neither do the FSLRs."""
    torch.manual_seed(1)
    model = Writing(begin)
    optimizer = torch.optim.SGD([model.weight], 0.1)
    flerm = None
    if keywords:
        probe = [torch.randn(8, 4, generator=torch.Generator().manual_seed(2))]
        flerm = FLeRM.record(
            model, optimizer, probe=probe, family="a/b", every=1, warmup=2, **keywords
        )
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).mean().backward()
        optimizer.step()
    if flerm is not None:
        flerm.close()
    return model.state_dict(), flerm


@pytest.mark.parametrize("estimator", ["example", "kronecker", "exact"])
@pytest.mark.parametrize("begin", [1, 2, 4, 5])
def test_the_weights_are_those_of_a_run_without_a_recording(begin: int, estimator: str) -> None:
    plain, _ = trained(begin)
    recorded, flerm = trained(begin, estimator=estimator)
    assert flerm is not None and flerm.measurements == 6
    assert all(torch.equal(recorded[name], plain[name]) for name in plain)
    _, quiet = trained(begin=100, estimator=estimator)
    assert quiet is not None
    found, wanted = flerm.trajectory.values, quiet.trajectory.values
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-3, atol=0)
