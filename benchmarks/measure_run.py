"""What recording costs a whole run, and how much memory a measurement needs beside a training step.

    python benchmarks/measure_run.py [--steps 1000]

A plain run and a recording run (every 100 steps, the first measurement of eight draws counted) go
on in turn, 20 steps each, in one process. Time is processor time, on which other work on the
machine has little effect. Memory is what torch's profiler counts as allocated on the CPU during one
training step, with and without a measurement in it. Aim: run ≤ 1.02 ×; memory ≤ 1.5 × the
parameters above the training step's own peak, and nothing kept.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from flerm_client import FLeRM
from flerm_experiments.workloads import Scale, workload_named

TURN = 20


class Training:
    """A workload's run, one step per call. parts: into how many each probe batch is cut."""

    def __init__(self, name: str, scale: Scale, parts: int = 1, **options: object) -> None:
        self.workload = workload_named(name)
        self.model = self.workload.build(scale, seed=0)
        self.optimizer = AdamW(self.model.parameters(), 1e-4)
        self._batches = self._endless()
        self.flerm = None
        if options:
            probe = (part for batch in self.workload.probe(seed=0) for part in batch.chunk(parts))
            self.flerm = FLeRM.record(
                self.model, self.optimizer, probe=probe, family="bench", **options
            )

    def _endless(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from self.workload.batches(seed=0)

    def step(self) -> None:
        """Forward, backward, step."""
        inputs, labels = next(self._batches)
        self.optimizer.zero_grad()
        self.workload.loss(self.model(inputs), labels).backward()
        self.optimizer.step()


def run(name: str, scale: Scale, steps: int) -> None:
    """Prints the ratio of the times of the two runs."""
    plain, recorded = Training(name, scale), Training(name, scale, every=100)
    gc.collect()  # imports and building leave garbage that takes a fifth of a second to collect
    taken = {plain: 0.0, recorded: 0.0}
    for _ in range(steps // TURN):
        for each in taken:
            began = time.process_time()
            for _ in range(TURN):
                each.step()
            taken[each] += time.process_time() - began
    assert recorded.flerm is not None
    rows = len(recorded.flerm.trajectory)
    ratio = taken[recorded] / taken[plain]
    print(
        f"{name} ×{scale.width}: {steps} steps, {rows} measurements: {ratio:.3f} × "
        f"({taken[plain]:.1f} s plain)",
        flush=True,
    )


def allocated(action: Callable[[], None]) -> tuple[int, int]:
    """Bytes at the peak of `action` and at its end, beyond those at its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as taken:
        action()
    events = [
        event for event in taken.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak, level


def memory(name: str, scale: Scale) -> None:
    """Prints the extra peak and the memory kept, as parts of the parameters' size."""
    peaks, kept, size = {}, {}, 0
    every = {"every": 1, "warmup": 1}
    settings: dict[str, dict[str, Any]] = {"plain": {}}
    for estimator in ("example", "kronecker"):
        settings[estimator] = {**every, "estimator": estimator}
        settings[f"{estimator}, probe batch in 4 parts"] = {
            **every,
            "estimator": estimator,
            "samples": 4,
            "parts": 4,
        }
    for label, options in settings.items():
        training = Training(name, scale, **options)
        for _ in range(3):
            training.step()
        peaks[label], kept[label] = allocated(training.step)
        size = sum(p.numel() * p.element_size() for p in training.model.parameters())
    for label in list(settings)[1:]:
        extra, stays = (peaks[label] - peaks["plain"]) / size, (kept[label] - kept["plain"]) / size
        print(
            f"{name} ×{scale.width} {label}: peak {extra:+.2f} × the parameters "
            f"({size / 1e6:.1f} MB), kept {stays:+.3f} ×",
            flush=True,
        )


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="0: memory only")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    for name, width in (("resmlp", 16), ("decoder", 8)):
        memory(name, Scale(width=width))
    for name, width in (("resmlp", 4), ("decoder", 1), ("decoder", 4)) if options.steps else ():
        run(name, Scale(width=width), options.steps)


if __name__ == "__main__":
    main()
