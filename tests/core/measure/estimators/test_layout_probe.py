"""What one probe batch showed of a model is looked at again where it does not hold for another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from flerm_client import FLeRM
from flerm_core.errors import MeasurementError
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.layout_probe import LayoutProbe
from flerm_core.measure.estimators.per_example import PerExample
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.update.weight_update import WeightUpdate


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


def recorded(kind: type[nn.Module], estimator: str, samples: int = 8) -> FLeRM:
    """Of three steps, each measured; the positions of a sequence are much alike."""
    torch.manual_seed(0)
    model = kind()
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    probe = [torch.randn(64, 1, 8) + 0.1 * torch.randn(64, 5, 8) for _ in range(8)]
    flerm = FLeRM.record(
        model, optimizer, probe=probe, family="f", estimator=estimator, every=1, samples=samples
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


def test_examples_coupled_behind_zero_weights_are_measured_without_bias_when_these_move() -> None:
    with pytest.warns(UserWarning, match=r"one sample a draw.*inner\.\d \(Linear\)"):
        example = recorded(Normed, "example", samples=240).trajectory
    exact = recorded(Normed, "exact").trajectory
    for name in ("inner.0.weight", "inner.2.weight", "inner.4.weight", "norm.weight"):
        found = np.mean([example.at(step)[name] / exact.at(step)[name] for step in (2, 3)])
        assert found == pytest.approx(1.0, abs=0.25)  # 4 standard errors of 240 samples


def test_a_gradient_that_stays_zero_starts_no_new_discovery(
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
    assert len(discoveries) == 1


class DeepByLength(nn.Module):
    """Layer i runs once for each position beyond the i-th, so batches differ in what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.readout = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for position in range(x.shape[1]):
            first = 0 if x.shape[1] > 1 else 1
            for layer in self.layers[first : position + 2]:
                x = x + torch.tanh(layer(x))
        return self.readout(x.mean(1))


class Late(nn.Module):
    """`scale` is read through a gate that is 0 at first; `read` is never called as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.readout = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)
        self.held = nn.ParameterDict({"scale": torch.full((8,), 0.1), "gate": torch.zeros(8)})

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.tanh((x * self.held["scale"]) @ self.read.weight.T)
        return self.readout(x.mean(1) + self.held["gate"] * inner.mean(1))


def trajectory(
    kind: type[nn.Module], estimator: str, shapes: list[tuple[int, int]], samples: int
) -> dict[str, float]:
    """The FSLRs of the last of three steps, on probe batches of (examples, positions)."""
    torch.manual_seed(0)
    model = kind().double()
    optimizer = Adam(model.parameters(), 1e-2)
    probe = [torch.randn(*shape, 8, dtype=torch.float64) for shape in shapes]
    flerm = FLeRM.record(
        model, optimizer, probe=probe, family="f", estimator=estimator, every=1, samples=samples
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 3, 8, dtype=torch.float64)).sub(1.0).square().mean().backward()
        optimizer.step()
    flerm.close()
    assert flerm.estimator == estimator
    return flerm.fslr


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([(32, 1), (32, 3), (32, 2)], id="more calls, then fewer"),
        pytest.param([(32, 3), (32, 1), (32, 2)], id="fewer calls, another first layer"),
        pytest.param([(1, 2), (40, 2), (40, 2)], id="a first batch of one example"),
        pytest.param([(3, 3), (48, 3), (32, 2)], id="as many examples as positions"),
    ],
)
def test_batches_that_run_other_modules_or_have_other_shapes(shapes: list[tuple[int, int]]) -> None:
    samples = 3 * 7
    example = trajectory(DeepByLength, "example", shapes, samples)
    exact = trajectory(DeepByLength, "exact", shapes, 3)
    assert example == pytest.approx(exact, rel=0.2)


def test_tensors_that_begin_to_matter_are_measured_at_once() -> None:
    shapes = [(64, 3)] * 2
    example = trajectory(Late, "example", shapes, 20)
    assert example.keys() == set(dict(Late().named_parameters()))
    assert example == pytest.approx(trajectory(Late, "exact", shapes, 2), rel=0.2)


def test_layers_that_are_dropped_at_random_leave_the_losses_as_they_are() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            self.readout = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if torch.rand(()) > 0.4:
                    x = x + torch.tanh(layer(x))
            return self.readout(x)

    def losses(record: bool) -> list[float]:
        torch.manual_seed(0)
        model, data = Dropped(), torch.randn(16, 8)
        optimizer, found = Adam(model.parameters(), 1e-2), []
        if record:
            FLeRM.record(model, optimizer, probe=[data], family="f", every=1, samples=2)
        for _ in range(12):
            optimizer.zero_grad()
            loss = model(data).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses(record=True) == losses(record=False)


class NotFinite(nn.Module):
    """The outputs at token 0 are NaN: `masked` is a constant, `divided` a NaN with a gradient."""

    def __init__(self, kind: str, table: bool) -> None:
        super().__init__()
        self.kind = kind
        self.token, self.readout = nn.Embedding(16, 8), nn.Linear(8, 4)
        self.position = nn.Embedding(5, 8) if table else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.token(x)
        if self.position is not None:
            hidden = hidden + self.position(torch.arange(x.shape[1]))
        is_zero = (x == 0)[..., None]
        if self.kind == "masked":
            return self.readout(hidden).masked_fill(is_zero, float("nan"))
        return self.readout(hidden / torch.where(is_zero, torch.nan, 1.0))


@pytest.mark.parametrize("table", [False, True])
def test_outputs_that_are_constant_nan_count_as_unchanged(table: bool) -> None:
    torch.manual_seed(0)
    model = NotFinite("masked", table)
    optimizer = Adam(model.parameters(), 1e-2)
    batch = torch.randint(1, 16, (8, 5))
    batch[2, 3] = 0
    flerm = FLeRM.record(model, optimizer, probe=[batch], family="f", samples=8)
    model(batch[:2]).square().mean().backward()
    optimizer.step()
    assert len(flerm.fslr) == 3 + table
    assert all(0.0 < value < 10.0 for value in flerm.fslr.values())


def test_examples_without_finite_outputs_are_named() -> None:
    model = NotFinite("divided", table=False)
    batch = torch.randint(1, 16, (8, 5))
    batch[2, 3] = 0
    measured = MeasuredModel(model, dict(model.named_parameters()), lambda module, x: module(x))
    update = WeightUpdate(measured.parameters)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    update.rates = dict.fromkeys(measured.parameters, 1.0)
    meter = FSLRMeter(measured, PerExample(measured), MeasurementRanks(single_process=True))
    with pytest.raises(MeasurementError, match=r"not finite for its examples 2 \(dimension 0\)"):
        meter.measure(update, iter([batch]), 1)


class RelativePositions(nn.Module):
    """Attention whose positions are projected once and repeated for every example and head."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.ModuleList(_RelativeAttention() for _ in range(2))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(2)
        )
        self.positions, self.readout = nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for attend, feed in zip(self.attend, self.feed, strict=True):
            x = x + attend(x, self.positions[: x.shape[1]])
            x = x + feed(x)
        return self.readout(x)


class _RelativeAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("query", "key", "value")})
        self.place, self.from_place = nn.Linear(8, 8), nn.Linear(8, 8)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, 4)).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        query, key, value = (self.heads(self.parts[name](x)) for name in ("query", "key", "value"))
        place, from_place = (
            self.heads(project(positions.unsqueeze(0))).repeat(len(x), 1, 1)
            for project in (self.place, self.from_place)
        )
        scores = query @ (key + place).mT + from_place @ key.mT
        return (scores.softmax(-1) @ value).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)


@pytest.mark.slow
def test_positions_that_are_repeated_for_each_example_and_head() -> None:
    shapes = [(48, 4)] * 2
    example = trajectory(RelativePositions, "example", shapes, 20)
    exact = trajectory(RelativePositions, "exact", shapes, 2)
    large = {name: value for name, value in exact.items() if value > 1e-6}
    assert {name: example[name] for name in large} == pytest.approx(large, rel=0.2)


@pytest.mark.filterwarnings("ignore:`example` has one sample a draw")
@pytest.mark.parametrize("estimator", ["example", "kronecker", "full", "iid"])
def test_no_sample_over_several_examples_is_zero_by_chance(estimator: str) -> None:
    """Signs of 8 outputs cancel in 27 % of all draws, and with them the output's bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = Adam(model.parameters(), 1e-2)
    probe = [torch.randn(8, 8) for _ in range(3)]
    how = {"estimator": estimator, "every": 1, "warmup": 1}
    flerm = FLeRM.record(model, optimizer, probe=probe, family="f", **how)
    for _ in range(30):
        optimizer.zero_grad()
        (model(torch.randn(8, 8)) - 1).square().mean().backward()
        optimizer.step()
    rows = flerm.trajectory
    assert np.isfinite(rows.values[:, rows.names.index("3.bias")]).all()
