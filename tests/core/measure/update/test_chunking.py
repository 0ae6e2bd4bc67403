"""The size of the chunks in which Z is formed makes no difference to the FSLRs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from exact_reference import random_update
from torch import Tensor, nn

from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.update import chunking


class Tensors(nn.Module):
    """One tensor of each number of dimensions from 0 to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.convolution = nn.Conv2d(3, 7, 3)
        self.cube = nn.Parameter(torch.randn(5, 2, 7))
        self.linear = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        features = self.convolution(x).mean((2, 3))
        return self.linear(torch.einsum("nc,abc->nab", features, self.cube).flatten(1)) * self.scale


def measured(estimator: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = Tensors().double()
    update, _ = random_update(model)
    measured_model = MeasuredModel(model, update.parameters, lambda model, batch: model(batch))
    meter = FSLRMeter(
        measured_model,
        make_estimator(estimator, measured_model),
        MeasurementRanks(single_process=True),
    )
    return meter.measure(update, itertools.repeat(torch.randn(9, 3, 5, 5, dtype=torch.float64)), 2)


@pytest.mark.parametrize("estimator", ["kronecker", "iid", "full", "example"])
@pytest.mark.parametrize("elements", [1, 20, 45])
def test_the_size_of_the_chunks_makes_no_difference(
    estimator: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(estimator)
    monkeypatch.setitem(chunking.CHUNK_NUMEL, "cpu", elements)
    assert all(math.isfinite(value) and value > 0.0 for value in whole.values())
    assert measured(estimator) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize(
    "whole",
    [
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.zeros(3, 0),
        torch.zeros(50),
        torch.zeros(9, 7),
        torch.zeros(9, 7).T,
        torch.zeros(3, 2, 5, 5).to(memory_format=torch.channels_last),
        torch.zeros(4, 5, 6).permute(2, 0, 1),
    ],
    ids=lambda whole: f"{list(whole.shape)}, {list(whole.stride())}",
)
def test_chunks_cover_a_tensor_and_each_is_one_stretch_of_memory(
    whole: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunking.CHUNK_NUMEL, "cpu", 10)
    for (chunk,) in chunking.iter_chunks(whole):
        chunk += 1
        reach = (
            sum(
                (size - 1) * stride
                for size, stride in zip(chunk.shape, chunk.stride(), strict=True)
            )
            + 1
        )
        assert reach == chunk.numel() or not chunk.numel()
    assert (whole == 1).all()
