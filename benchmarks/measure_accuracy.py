"""How far one draw, and four, are from the exact FSLR, early and late in training.

    python benchmarks/measure_accuracy.py

At each step one update is fixed; the exact FSLR is J·ΔW in forward mode over 40 probe batches of 64 examples. Printed is the
root mean square over tensors and 40 repetitions of (estimate / exact − 1). Reach, at every step: example ≤ 0.12 with one draw,
≤ 0.06 with four. Tensors below 1e-4 of the median (noise) are left out, as in matching.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from flerm_client.subject import make_subject
from flerm_client.workloads import Scale, workload_named
from flerm_core.measure.meter import Meter, make_estimator
from flerm_core.measure.ranks import Ranks
from flerm_core.measure.update import Update

STEPS = (1, 500, 1000)
EXAMPLES, BATCHES, REPEATS = 64, 40, 40


def probes(name: str) -> list[Tensor]:
    """`BATCHES` probe batches of `EXAMPLES` examples."""
    stream = workload_named(name).probe(seed=0)
    rows: list[Tensor] = []
    while sum(len(batch) for batch in rows) < EXAMPLES * BATCHES:
        rows.append(next(stream))
    return list(torch.cat(rows)[: EXAMPLES * BATCHES].split(EXAMPLES))


def updates(name: str, lr: float) -> Iterator[tuple[int, Any, Update]]:
    """The model at each of `STEPS`, with the update that the step made."""
    workload = workload_named(name)
    model = workload.build(Scale(), seed=0)
    optimizer = Adam(model.parameters(), lr)
    subject = make_subject(model, [optimizer], None, None, Ranks(alone=True))
    batches = workload.batches(seed=0)
    for step, (inputs, labels) in zip(range(1, max(STEPS) + 1), batches, strict=False):
        optimizer.zero_grad()
        workload.loss(model(inputs), labels).backward()
        update = Update(subject.parameters)
        optimizer.step()
        if step in STEPS:
            update.rates = dict.fromkeys(subject.parameters, lr)
            yield step, subject, update


def errors(readings: list[dict[str, float]], exact: dict[str, float]) -> float:
    """Root mean square of the relative error over tensors and readings."""
    floor = 1e-4 * statistics.median(exact.values())
    counted = [name for name, value in exact.items() if value > floor]
    return statistics.fmean((reading[name] / exact[name] - 1) ** 2 for reading in readings for name in counted) ** 0.5


def main() -> None:
    """All of it."""
    for name, lr in (("resmlp", 1e-3), ("decoder", 2.0**-6)):
        batches = probes(name)
        for step, subject, update in updates(name, lr):
            tensors = list(subject.parameters)
            judge = Meter(subject, make_estimator("exact", subject), Ranks(alone=True))
            exact = judge.measure(update, iter(batches), len(batches))
            exact = {tensor: exact[tensor] for tensor in tensors}
            print(f"{name}, step {step}, {len(tensors)} tensors, batches of {EXAMPLES}")
            for estimator in ("example", "kronecker"):
                meter = Meter(subject, make_estimator(estimator, subject), Ranks(alone=True))
                cycle = itertools.cycle(batches)
                found = {draws: [meter.measure(update, cycle, draws) for _ in range(REPEATS)] for draws in (1, 4, 41)}
                figures = "  ".join(f"{draws} draws {errors(readings, exact):.3f}" for draws, readings in found.items())
                print(f"  {estimator:<10} {figures}")


if __name__ == "__main__":
    main()
