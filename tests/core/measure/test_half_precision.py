"""Half precision: no gradient vanishes, and rounding does not look like a missed use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from flerm_client import FLeRM
from flerm_client.training.measured_model import make_measured_model
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.output_projection import projection_scale
from flerm_core.measure.update.weight_update import WeightUpdate


class Readout(nn.Module):
    """4 M outputs, small ones: their gradients are smaller still."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 16)
        self.readout = nn.Linear(16, 16384, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.hidden(x))) * 1e-4


@pytest.mark.parametrize("estimator", ["example", "kronecker"])
def test_the_same_draw_gives_what_it_gives_in_float64(estimator: str) -> None:
    torch.manual_seed(0)
    old = Readout().half()
    new = copy.deepcopy(old)
    for parameter in new.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)

    def measured(dtype: torch.dtype) -> dict[str, float]:
        model = copy.deepcopy(old).to(dtype)
        measured_model = make_measured_model(
            model,
            [torch.optim.SGD(model.parameters())],
            None,
            None,
            MeasurementRanks(single_process=True),
        )
        update = WeightUpdate(measured_model.parameters)
        model.load_state_dict(new.state_dict())
        update.rates = dict.fromkeys(measured_model.parameters, 1.0)
        meter = FSLRMeter(
            measured_model,
            make_estimator(estimator, measured_model),
            MeasurementRanks(single_process=True),
        )
        return meter.measure(update, batches(dtype), 1)

    def batches(dtype: torch.dtype) -> Iterator[Tensor]:
        yield torch.randn(256, 8, generator=torch.Generator().manual_seed(1)).half().to(dtype)

    assert measured(torch.float16) == pytest.approx(measured(torch.float64), rel=0.03)


class Normed(nn.Module):
    """Sequences with a normalisation, whose few numbers each sum over every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(7, 6), nn.Linear(6, 10)
        self.norm, self.readout = nn.LayerNorm(10), nn.Linear(10, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.readout(self.norm(torch.tanh(self.inner(self.embed(tokens))))).mean((1, 2))


def test_what_autocast_rounds_off_is_no_use_that_went_unseen() -> None:
    def measured(seed: int, autocast: bool) -> dict[str, float]:
        torch.manual_seed(seed)
        model, tokens = Normed(), torch.randint(0, 7, (64, 3, 5))
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        with FLeRM.record(model, optimizer, probe=[tokens], family="f", warmup=1) as flerm:
            model(tokens).square().mean().backward()
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                model(
                    tokens
                )  # the same update; the last forward before it shows in what region to measure
            optimizer.step()
        assert flerm.estimator == "example"
        return flerm.fslr

    for seed in range(10):
        assert measured(seed, True) == pytest.approx(measured(seed, False), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_scale_of_a_projection_is_a_normal_number_exact_in_the_outputs_dtype(
    dtype: torch.dtype,
) -> None:
    unit = projection_scale(torch.zeros((), dtype=dtype).expand(2**20, 2**17))
    assert torch.tensor(unit, dtype=dtype).item() == unit >= torch.finfo(dtype).tiny
