"""What recording costs the training thread, whatever the registry does.

    python benchmarks/client_spool.py

Part one times `SpoolReporter.append` of 500 tensors in four states of the registry: up; slow (it
answers after 1 s); silent (connections are accepted, nothing answers); down. The floor is a bare
`write` of the same bytes to the same disk in the same run. Part two compares the median step of a
run that records, with its registry down, with that of a run without FLeRM, step by step.

Aim: p99 at most 200 µs in every state; a median step of at most 1.01.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from gate import Gate
from registry_bench import database, registry

from flerm_client.upload.reporter import SpoolReporter
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Measurement,
    ParameterList,
    RecordingSpec,
    now,
)

TENSORS = 500
STATES = ("up", "slow", "black hole", "down")


def spec() -> RecordingSpec:
    """A recording of 500 tensors."""
    names = tuple(f"layers.{at}.weight" for at in range(TENSORS))
    return RecordingSpec(
        family="benchmark",
        lr=1e-3,
        parameters=ParameterList(names, ((8, 8),) * TENSORS, ("feed-forward",) * TENSORS),
    )


def row(step: int, values: np.ndarray) -> Measurement:
    """A measurement as a recording run makes it."""
    return Measurement(
        step=step, values=values, loss=1.0, learning_rate=1e-3, tokens=64 * step, measured_at=now()
    )


@contextmanager
def registry_that_is(state: str, target: str) -> Iterator[str]:
    """The address of a registry in one of `STATES`. `target` is that of a running registry."""
    if state == "up":
        yield f"grpc://{target}"
    elif state == "slow":
        gate = Gate(target)
        gate.behave(delay=1.0)
        yield gate.address
        gate.close()
    else:
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", 0))
            if state == "black hole":
                hole.listen(64)  # the kernel accepts connections, and nothing reads from them
            yield f"grpc://127.0.0.1:{hole.getsockname()[1]}"


def appends(address: str, folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of each of `count` appends: wall time, and this thread's processor time."""
    wall, busy = np.empty(count), np.empty(count)
    work = np.random.default_rng(0).normal(size=(300, 300))
    values = np.abs(np.random.default_rng(1).normal(size=TENSORS)).astype(np.float32)
    with SpoolReporter.open(address, spec(), Attempt(), spool=folder) as reporter:
        for at in range(count):
            work = work @ work  # work between appends, so that caches are cold as in training
            work /= np.abs(work).max()
            measurement = row(at + 1, values)
            begin, began = time.perf_counter_ns(), time.thread_time_ns()
            reporter.append(measurement)
            busy[at], wall[at] = time.thread_time_ns() - began, time.perf_counter_ns() - begin
        reporter.finish(Ending(), timeout=0.0)
        uploader = reporter.uploader_pid
    if uploader is not None:
        os.kill(uploader, 15)
    return wall / 1000, busy / 1000


def writes(folder: Path, count: int) -> np.ndarray:
    """Microseconds of each of `count` bare writes of as many bytes as a spooled measurement has."""
    taken = np.empty(count)
    data = bytes(4 * TENSORS + 60)
    file = os.open(folder / "floor", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for at in range(count):
        begin = time.perf_counter_ns()
        os.write(file, data)
        taken[at] = time.perf_counter_ns() - begin
    os.close(file)
    return taken / 1000


def step_ratio(folder: Path, steps: int) -> float:
    """Median step of a run that records every 100 steps, with its registry down, over that of a
    run without FLeRM.
    """
    import torch
    from torch import nn

    from flerm_client import FLeRM

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(16)))
        return model, torch.optim.Adam(model.parameters(), 1e-4)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        begin = time.perf_counter()
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - begin

    batch = torch.randn(256, 256)
    plain, recorded = make(), make()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"grpc://127.0.0.1:{closed.getsockname()[1]}"
        flerm = FLeRM.record(
            *recorded, probe=[batch], family="benchmark", registry=address, spool=folder, every=100
        )
        times = [(step(*plain), step(*recorded)) for _ in range(steps)]
        flerm.close(timeout=0.0)
    without, with_us = zip(*times[10:], strict=True)
    return median(with_us) / median(without)


def main() -> None:
    """Prints both parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--appends", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    with database("") as (url, folder), registry(url, folder) as running:
        floor = writes(folder, options.appends)
        print(
            f"{TENSORS} tensors, {options.appends} appends; "
            "µs in the training thread, and the p50 over a bare write's\n"
        )
        print(f"{'registry':12}{'p50':>8}{'p99':>8}{'cpu p99':>9}{'/ write':>9}")
        print(f"{'bare write':12}{np.percentile(floor, 50):8.0f}{np.percentile(floor, 99):8.0f}")
        for state in STATES:
            with registry_that_is(state, running.address) as address:
                wall, busy = appends(address, folder / state.replace(" ", "-"), options.appends)
            ratio = np.median(wall) / np.median(floor)
            print(
                f"{state:12}{np.median(wall):8.0f}{np.percentile(wall, 99):8.0f}"
                f"{np.percentile(busy, 99):9.0f}{ratio:9.1f}"
            )
        print(
            "\nmedian step, registry down / without FLeRM: "
            f"{step_ratio(folder / 'steps', options.steps):.4f}"
        )


if __name__ == "__main__":
    main()
