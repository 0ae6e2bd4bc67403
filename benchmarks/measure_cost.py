"""What one measurement costs beside one forward and backward pass of the same batch, and what
recording and matching cost at the steps between measurements.

    python benchmarks/measure_cost.py

The sides run in turn, pair by pair, in one process. Figures are medians of processor time, on which
other work on the machine has little effect, and their ratio. Aim: a measurement ≤ 1.05 × (example,
kronecker), a matched optimiser step ≤ 1.3 ×, an unmeasured step < 20 µs more.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from flerm_client import FLeRM
from flerm_client.training.measured_model import make_measured_model
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_experiments.workloads import Scale, workload_named


def paired(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median processor seconds of each side. All run in turn, `rounds` times after one round
    that is not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for each in sides.values():
        each()
    for _ in range(rounds):
        for name, each in sides.items():
            began = time.process_time()
            each()
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


def batch_of(workload: str, batches: int) -> tuple[Tensor, Tensor]:
    """Several of a workload's batches joined into one."""
    drawn = itertools.islice(workload_named(workload).batches(seed=0, rank=0, world=1), batches)
    inputs, labels = zip(*drawn, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def measurement(name: str, scale: Scale, batches: int, rounds: int) -> None:
    """Compares one draw of each estimator with a forward and a backward pass."""
    workload = workload_named(name)
    model = workload.build(scale, seed=0)
    inputs, labels = batch_of(name, batches)
    optimizer = AdamW(model.parameters(), 1e-3)

    def forward_backward() -> None:
        optimizer.zero_grad()
        workload.loss(model(inputs), labels).backward()

    measured_model = make_measured_model(
        model, [optimizer], None, None, MeasurementRanks(single_process=True)
    )
    forward_backward()
    update = WeightUpdate(measured_model.parameters)
    optimizer.step()
    update.rates = dict.fromkeys(measured_model.parameters, 1e-3)
    sides: dict[str, Callable[[], object]] = {"forward+backward": forward_backward}
    for estimator in ("example", "kronecker"):
        meter = FSLRMeter(
            measured_model,
            make_estimator(estimator, measured_model),
            MeasurementRanks(single_process=True),
        )
        sides[estimator] = lambda meter=meter: meter.measure(update, itertools.repeat(inputs), 1)
        quarters = itertools.cycle(inputs.chunk(4))
        sides[f"{estimator}, 4 parts"] = lambda meter=meter, quarters=quarters: meter.measure(
            update, quarters, 4
        )
    times = paired(sides, rounds)
    base = times.pop("forward+backward")
    size = sum(p.numel() for p in model.parameters())
    shape = f"{len(measured_model.parameters)} tensors, {size / 1e6:.1f} M, {list(inputs.shape)}"
    print(f"{name} ×{scale.width} wide ×{scale.depth} deep: {shape}")
    for estimator, seconds in times.items():
        print(
            f"  {estimator:<18} {seconds * 1e3:8.1f} ms / {base * 1e3:8.1f} ms "
            f"= {seconds / base:.3f}"
        )


class Parallel(nn.Module):
    """500 tensors of 64 × 64 beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(500))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of all parts."""
        return torch.stack([part(x) for part in self.parts]).sum(0)


def many_tensors() -> tuple[nn.Module, Tensor]:
    """A model of 500 tensors with gradients, and a probe batch."""
    model = Parallel()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, torch.randn(8, 64)


def stepping(**kind: bool) -> None:
    """Compares the optimiser's step alone: plain, recording between measurements, matched."""
    torch.manual_seed(0)
    plain_model, batch = many_tensors()
    sides: dict[str, Callable[[], object]] = {
        "plain": AdamW(plain_model.parameters(), 1e-4, **kind).step
    }
    recorded, _ = many_tensors()
    optimizer = AdamW(recorded.parameters(), 1e-4, **kind)
    recording = FLeRM.record(recorded, optimizer, probe=[batch], family="bench", start=10**9)
    sides["recording"] = optimizer.step
    matched_model, _ = many_tensors()
    optimizer = AdamW(matched_model.parameters(), 1e-4, **kind)
    # Targets spread over 2.5 octaves around the FSLRs of Adam's first step: about 40 multipliers.
    targets = {
        name: 5.0 * 2.0 ** (2.5 * torch.rand(()).item() - 1.25)
        for name, _ in matched_model.named_parameters()
    }
    matching = FLeRM.match(
        matched_model, optimizer, probe=[batch], family="bench", targets=targets, warmup=8
    )
    sides["matching"] = optimizer.step
    times = paired(sides, 60)
    groups = len(set(matching.multipliers.values()))
    label = ", ".join(kind) or "default"
    print(f"AdamW({label}) step, 500 tensors: plain {times['plain'] * 1e3:.2f} ms")
    print(
        f"  recording, between measurements: {(times['recording'] - times['plain']) * 1e6:+.1f} µs"
    )
    print(f"  matching, {groups} multipliers: × {times['matching'] / times['plain']:.2f}")
    recording.close()
    matching.close()


def main() -> None:
    """Prints all figures."""
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    measurement("decoder", Scale(width=8, depth=2), 4, 11)
    measurement("decoder", Scale(width=4, depth=4), 4, 11)
    measurement("decoder", Scale(width=4, depth=20), 4, 5)
    measurement("resmlp", Scale(width=16, depth=2), 64, 15)
    stepping(foreach=True)
    stepping(fused=True)


if __name__ == "__main__":
    main()
