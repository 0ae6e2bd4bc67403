"""On a GPU too, a recording changes nothing: precisions, optimisers, compilers, streams."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flerm_client import FLeRM
from flerm_core.errors import Unsupported
from tests.cuda.decoder import Decoder, loss_of, tokens, train

pytestmark = pytest.mark.slow  # `make test-cuda` runs them


def check(device: torch.device, **options: Any) -> FLeRM:
    """Trains plain and recorded, asserts that the losses are the same, and returns the FLeRM."""
    plain, _ = train(device, record=False, **options)
    recorded, flerm = train(device, record=True, **options)
    assert recorded == plain
    assert flerm is not None and flerm.measurements == 3
    assert all(0 < value < float("inf") for value in flerm.fslr.values())
    return flerm


def test_float32(device: torch.device) -> None:
    check(device)


def test_bfloat16_autocast(device: torch.device) -> None:
    check(device, autocast=torch.bfloat16)


def test_float16_with_a_scaler_whose_first_steps_overflow(device: torch.device) -> None:
    """A skipped step is measured at the next one."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    losses = []
    for record in (False, True):
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**60)
        found, flerm = train(device, record=record, autocast=half, scaler=scaler)
        losses.append(found)
    assert losses[0] == losses[1]
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)
    _, flerm = train(device, record=True, autocast=half, scaler=scaler)
    assert flerm is not None and flerm.measurements >= 2


@pytest.mark.parametrize("option", ["fused", "foreach"])
def test_fused_and_foreach_optimisers(device: torch.device, option: str) -> None:
    check(device, optimizer=partial(torch.optim.AdamW, lr=1e-3, **{option: True}))


def test_a_capturable_optimiser_is_refused_on_a_gpu(device: torch.device) -> None:
    """So is a step inside a CUDA graph, which needs one."""
    if device.type != "cuda":
        pytest.skip("the CPU has no graphs")
    model = Decoder().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, capturable=True)
    with pytest.raises(Unsupported, match="CUDA graph"):
        FLeRM.record(model, optimizer, probe=[tokens(device)], family="cuda")


def test_a_compiled_model(device: torch.device) -> None:
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    torch._dynamo.reset()
    check(device, wrap=partial(torch.compile, backend=backend))


def test_a_step_on_a_side_stream(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("the CPU has no streams")
    plain, _ = train(device, record=False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        recorded, flerm = train(device, record=True)
    torch.cuda.synchronize()
    assert recorded == plain and flerm is not None and flerm.measurements == 3


class Gather(nn.Module):
    """Adds up rows in whatever order the device takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.readout = nn.Embedding(101, 32), nn.Linear(32, 5)

    def forward(self, batch: Tensor) -> Tensor:
        x = self.embed(batch)
        sums = torch.zeros(len(batch), 32, device=x.device)
        rows = torch.arange(len(batch), device=x.device).repeat_interleave(batch.shape[1])
        return self.readout(sums.index_add(0, rows, x.flatten(0, 1)))


def test_kernels_that_add_in_any_order_are_no_hidden_state(device: torch.device) -> None:
    torch.manual_seed(0)
    model, batch = Gather().to(device), tokens(device, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flerm = FLeRM.record(model, optimizer, probe=[batch], family="cuda", every=1)
        for _ in range(3):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    assert flerm.measurements == 3


def test_a_matched_run(device: torch.device) -> None:
    torch.manual_seed(0)
    model, batch = Decoder().to(device), tokens(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    flerm = FLeRM.match(model, optimizer, probe=[batch], family="cuda", targets=targets)
    loss_of(model, batch).backward()
    optimizer.step()
    reached = [m * flerm.matched_fslr[name] for name, m in flerm.multipliers.items()]
    assert all(0.9 < each < 1.1 for each in reached)
