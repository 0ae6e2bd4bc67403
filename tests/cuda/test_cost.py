"""Memory and time of a measurement, of a decoder of 124 M parameters on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from flerm_client import FLeRM
from tests.cuda.conftest import Row
from tests.cuda.decoder import Decoder, loss_of, tokens

pytestmark = pytest.mark.slow  # `make test-cuda` runs them


def milliseconds(device: torch.device, run: Callable[[], None]) -> float:
    """The least of three times."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - began))
    return min(found)


def peak(device: torch.device, run: Callable[[], None]) -> int:
    """Bytes at the peak of `run`."""
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def test_a_measurement_takes_at_most_1_1_times_the_parameters_more(
    device: torch.device, table: list[Row]
) -> None:
    whole = device.type == "cuda"
    shape = (768, 12, 50257) if whole else (64, 2, 101)
    torch.manual_seed(0)
    model = Decoder(*shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    batch = tokens(device, 8, 512 if whole else 16, shape[2])
    probe = [batch[:, : 256 if whole else 16]]

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()

    step()
    plain_peak, plain = peak(device, step), milliseconds(device, step)
    flerm = FLeRM.record(model, optimizer, probe=probe, family="cuda", every=1, warmup=1)
    step()  # finds the layout
    measured_peak, measured = peak(device, step), milliseconds(device, step)
    flerm.close()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    more = (measured_peak - plain_peak) / parameters
    table += [
        ("parameters", f"{parameters / 4e6:.1f} M"),
        ("a step, ms", f"{plain:.1f}"),
        ("a measurement, ms", f"{measured - plain:.1f}"),
        ("a measured step over a plain one", f"{measured / plain:.2f}"),
        ("memory above the step's peak, of the parameters", f"{more:.2f}"),
    ]
    assert more <= 1.1
