"""How far one draw and four draws are from the exact FSLR, early and late in training.

    python benchmarks/measure_accuracy.py [--workload resmlp] [--workload decoder] [--bias]

At each step one update is fixed. The exact FSLR is J·ΔW in forward mode over the same probe batches
of 64 examples that draws are taken on. The program prints the root mean square, over tensors and
repetitions, of estimate / exact − 1, and the processor time of a measurement. Tensors below 1e-4 of
the median are noise and left out, as in matching. Aim, at every step: example ≤ 0.12 with one draw,
≤ 0.06 with four, ≤ 0.025 in the time of 41 draws of kronecker.

With --bias it prints, for every Monte Carlo estimator, the mean of 400 draws over the exact FSLR
(median over tensors, lowest and highest), which no number of draws improves, and the error of one
draw.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from flerm_client.training.measured_model import make_measured_model
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_experiments.workloads import Scale, workload_named

STEPS = (1, 500, 1000)
# Draws whose mean stands for the expectation: to 1/√800 = 4 % for `full`, which varies most.
MANY = 400
EXAMPLES = 64


@dataclass(frozen=True)
class Case:
    """A workload at its base size.

    lr: learning rate. batches: number of probe batches. repeats: number of draws to how often they
    are repeated.
    """

    lr: float
    batches: int
    repeats: dict[int, int]


CASES = {
    "resmlp": Case(1e-3, 40, {1: 40, 4: 40, 41: 40}),
    "decoder": Case(2.0**-6, 20, {1: 20, 4: 20, 41: 4}),
}


def probes(name: str, count: int) -> list[Tensor]:
    """`count` probe batches of `EXAMPLES` examples."""
    stream = workload_named(name).probe(seed=0)
    rows: list[Tensor] = []
    while sum(len(batch) for batch in rows) < EXAMPLES * count:
        rows.append(next(stream))
    return list(torch.cat(rows)[: EXAMPLES * count].split(EXAMPLES))


def updates(name: str, lr: float) -> Iterator[tuple[int, Any, WeightUpdate]]:
    """The model at each of `STEPS`, with the update of that step."""
    workload = workload_named(name)
    model = workload.build(Scale(), seed=0)
    optimizer = Adam(model.parameters(), lr)
    measured_model = make_measured_model(
        model, [optimizer], None, (), MeasurementRanks(single_process=True)
    )  # no depth groups: tensors are compared
    batches = workload.batches(seed=0)
    for step, (inputs, labels) in zip(range(1, max(STEPS) + 1), batches, strict=False):
        optimizer.zero_grad()
        workload.loss(model(inputs), labels).backward()
        update = WeightUpdate(measured_model.parameters)
        optimizer.step()
        if step in STEPS:
            update.rates = dict.fromkeys(measured_model.parameters, lr)
            yield step, measured_model, update


def ratios(reading: dict[str, float], exact: dict[str, float]) -> list[float]:
    """Estimate divided by exact FSLR, tensor by tensor."""
    floor = 1e-4 * statistics.median(exact.values())
    return [reading[name] / value for name, value in exact.items() if value > floor]


def errors(readings: list[dict[str, float]], exact: dict[str, float]) -> float:
    """Root mean square of the relative error over tensors and readings."""
    return (
        statistics.fmean(
            (ratio - 1) ** 2 for reading in readings for ratio in ratios(reading, exact)
        )
        ** 0.5
    )


def measured(
    estimator: str,
    measured_model: Any,
    update: WeightUpdate,
    batches: list[Tensor],
    case: Case,
    exact: dict[str, float],
) -> str:
    """An estimator's error and the seconds of a measurement, for each number of draws."""
    meter = FSLRMeter(
        measured_model,
        make_estimator(estimator, measured_model),
        MeasurementRanks(single_process=True),
    )
    cycle = itertools.cycle(batches)
    meter.measure(update, cycle, 1)  # the first measurement finds out the layout
    figures = []
    for draws, repeats in case.repeats.items():
        began = time.process_time()
        readings = [meter.measure(update, cycle, draws) for _ in range(repeats)]
        seconds = (time.process_time() - began) / repeats
        figures.append(f"{draws} draws {errors(readings, exact):.3f} ({seconds * 1e3:.0f} ms)")
    return "  ".join(figures)


def biased(
    estimator: str,
    measured_model: Any,
    update: WeightUpdate,
    batches: list[Tensor],
    exact: dict[str, float],
) -> str:
    """An estimator's mean over many draws, divided by the exact FSLR, and the error of one draw."""
    meter = FSLRMeter(
        measured_model,
        make_estimator(estimator, measured_model),
        MeasurementRanks(single_process=True),
    )
    cycle = itertools.cycle(batches)
    single = [meter.measure(update, cycle, 1) for _ in range(len(batches))]
    found = ratios(meter.measure(update, cycle, MANY), exact)
    mean = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
    return f"{mean}  1 draw {errors(single, exact):.2f}"


def main() -> None:
    """Prints the figures of each workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", action="append", choices=list(CASES))
    parser.add_argument(
        "--bias", action="store_true", help="the expectation of every Monte Carlo estimator"
    )
    options = parser.parse_args()
    for name in options.workload or CASES:
        case = CASES[name]
        batches = probes(name, case.batches)
        for step, measured_model, update in updates(name, case.lr):
            judge = FSLRMeter(
                measured_model,
                make_estimator("exact", measured_model),
                MeasurementRanks(single_process=True),
            )
            exact = judge.measure(update, iter(batches), len(batches))
            print(
                f"{name}, step {step}, {len(exact)} tensors, {len(batches)} batches of {EXAMPLES}"
            )
            for estimator in (
                ("example", "kronecker", "full", "iid")
                if options.bias
                else ("example", "kronecker")
            ):
                if options.bias:
                    line = biased(estimator, measured_model, update, batches, exact)
                else:
                    line = measured(estimator, measured_model, update, batches, case, exact)
                print(f"  {estimator:<10} {line}", flush=True)


if __name__ == "__main__":
    main()
