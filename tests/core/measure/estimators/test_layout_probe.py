"""A layout that zero gradients hide at the first measurement is found at the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from flerm_client import FLeRM
from flerm_core.measure.estimators.layout_probe import LayoutProbe


class Adapted(nn.Module):
    """LoRA on the flattened positions of sequences, position by position.

    B is 0 at first, so that A has no gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.w, self.a, self.b = (
            nn.Linear(*sizes, bias=False) for sizes in ((8, 8), (8, 3), (3, 8))
        )
        self.w.weight.requires_grad_(False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        examples, positions, features = x.shape
        rows = x.transpose(0, 1).reshape(-1, features)
        return (
            torch.tanh(self.w(rows) + self.b(self.a(rows)))
            .reshape(positions, examples, features)
            .mean(0)
        )


class Normed(nn.Module):
    """Examples couple in the BatchNorm before the readout, which is 0 at first and hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)
        )
        self.norm, self.readout = nn.BatchNorm1d(8), nn.Linear(8, 4)
        nn.init.zeros_(self.readout.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.norm(self.inner(x[:, 0]))))


def recorded(kind: type[nn.Module], estimator: str) -> FLeRM:
    """Of three steps, each measured; the positions of a sequence are much alike."""
    torch.manual_seed(0)
    model = kind()
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    probe = [torch.randn(64, 1, 8) + 0.1 * torch.randn(64, 5, 8) for _ in range(8)]
    flerm = FLeRM.record(
        model, optimizer, probe=probe, family="f", estimator=estimator, every=1, samples=8
    )
    for _ in range(3):
        optimizer.zero_grad()
        outputs = model(torch.randn(16, 5, 8))
        (outputs.square().mean() - outputs.mean()).backward()
        optimizer.step()
    flerm.close()
    return flerm


def test_rows_are_found_when_an_activation_gets_its_first_gradient() -> None:
    example, exact = recorded(Adapted, "example").trajectory, recorded(Adapted, "exact").trajectory
    assert example.names == ["a.weight", "b.weight"]
    for step in (2, 3):
        assert example.at(step) == pytest.approx(exact.at(step), rel=0.1)


@pytest.mark.filterwarnings("ignore:measuring by kronecker")
def test_examples_coupled_behind_zero_weights_are_found_when_these_move() -> None:
    assert recorded(Normed, "example").estimator == "kronecker"


def test_a_gradient_that_stays_zero_starts_one_new_discovery_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alive, self.dead = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.alive(x[:, 0]) + 0.0 * self.dead(x[:, 0])

    discoveries: list[Any] = []
    discover = LayoutProbe.discover

    def counted(self: LayoutProbe, batch: Any, *rest: Any) -> Any:
        discoveries.append(batch)
        return discover(self, batch, *rest)

    monkeypatch.setattr(LayoutProbe, "discover", counted)
    recorded(Dead, "example")
    assert len(discoveries) == 2
