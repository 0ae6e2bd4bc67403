"""Forwards of which a part has no gradient, or whose tensors are of no usual kind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from exact_reference import squares_by_differences
from torch import Tensor, nn

from flerm_client import FLeRM

RATE, DRAWS = 1e-3, 16


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    outputs = model(torch.randn(8, 12))
    (outputs * torch.randn(outputs.shape) + outputs.square()).mean().backward()
    optimizer.step()


class SelfTaught(nn.Module):
    """Its outputs are times those of its own weights under no_grad."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.randn(12)), nn.Linear(12, 12)
            self.teacher: Callable[[Tensor], Tensor] | None = None  # None: itself

        def student(self, x: Tensor) -> Tensor:
            return torch.tanh(self.inner(x) * self.scale)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = (self.teacher or self.student)(x.flip(-1))
            return self.student(x) * target

    def __init__(self) -> None:
        super().__init__()
        self.part, self.readout = SelfTaught.Half(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.readout(self.part(x))
        return found


@pytest.mark.filterwarnings("error:`example` has one sample")
@pytest.mark.parametrize("estimator", ["example", "exact"])
def test_what_a_forward_computes_under_no_grad_is_a_constant(estimator: str) -> None:
    torch.manual_seed(0)
    model = SelfTaught()
    old = copy.deepcopy(model)
    old.part.teacher = copy.deepcopy(model.part).double().student
    probe = [torch.randn(16, 12) for _ in range(DRAWS)]
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    with FLeRM.record(
        model, optimizer, probe=probe, family="f", warmup=DRAWS, estimator=estimator
    ) as flerm:
        _step(model, optimizer)
    changes = {
        name: (p.detach() - old.get_parameter(name).detach()) / RATE
        for name, p in model.named_parameters()
    }
    exact = squares_by_differences(old, changes, torch.cat(probe))
    for name, (square, error) in exact.items():
        allowed = 1e-3 * square if estimator == "exact" else 4 * error + 0.01 * square
        assert abs(flerm.fslr[name] ** 2 - square) <= allowed, name


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.readout = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [row.reshape(3, 4)[: 1 + n % 3] for n, row in enumerate(x)]
        h = self.mix(torch.nested.nested_tensor(parts, layout=torch.jagged))
        found: Tensor = self.readout(torch.nested.to_padded_tensor(h, 0.0).sum(1))
        return found


def test_nested_tensors_are_not_measured_and_the_run_goes_on() -> None:
    model = Nested()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    flerm = FLeRM.record(model, optimizer, probe=[torch.randn(8, 12)], family="f")
    with pytest.warns(UserWarning, match="step 1 was not measured"):
        _step(model, optimizer)
    with pytest.warns(UserWarning, match="measured nothing"):
        flerm.close()
    assert flerm.fslr == {}
