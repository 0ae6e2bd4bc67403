"""Measures under DDP in float64, each rank on its own probe batch.

Every rank reports what it measured and what it sent.
"""

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import measured_models as models
import torch
from distributed.rank import begin, report, sent
from exact_reference import random_update
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client.training.measured_model import make_measured_model
from flerm_client.training.parallelism import find_ranks
from flerm_core.errors import FlermError
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.records.recording import ESTIMATORS

begin()
rank, size = dist.get_rank(), dist.get_world_size()
draws = int(sys.argv[1])


class Measured:
    """One model of the gallery under DDP, which has taken a step."""

    def __init__(self, estimator: str, group: Any = None) -> None:
        self.case = models.build("embedding")
        self.model = DistributedDataParallel(self.case.model, process_group=group)
        optimizer = torch.optim.SGD(self.model.parameters(), 1e-3)
        self.update, _ = random_update(self.case.model)
        ranks = find_ranks(self.model, None)
        self.measured_model = make_measured_model(self.model, [optimizer], None, None, ranks)
        self.meter = FSLRMeter(
            self.measured_model, make_estimator(estimator, self.measured_model), ranks, seed=4
        )

    def once(self, batch: torch.Tensor) -> dict[str, float]:
        return self.meter.measure(self.update, iter([batch]), 1)


results: dict[str, Any] = {}
for estimator in ("example", "exact"):
    run = Measured(estimator)
    results["even", estimator] = run.once(run.case.batch(rank))
for estimator in ESTIMATORS:
    run = Measured(estimator)
    results["uneven", estimator] = run.once(run.case.batch(rank)[: 9 - 3 * rank])
    # The ranks that have no examples at first find out how to measure when they get some.
    run = Measured(estimator)
    results["empty", estimator] = run.once(run.case.batch(rank)[: 9 if rank == 0 else 0])
    results["after empty", estimator] = run.once(run.case.batch(rank))
    with sent() as lengths:
        run.once(run.case.batch(rank))
    results["bytes", estimator] = (
        list(lengths),
        run.meter.estimator.n_statistics,
        sum(p.nbytes for p in run.model.parameters()),
    )
    try:
        run.once(run.case.batch(rank)[:0])
    except FlermError as error:
        results["all empty", estimator] = str(error)
alone = dist.new_group([rank], use_local_synchronization=True)
run = Measured("example", alone)
results["own group"] = run.once(run.case.batch(0))
run = Measured("example")
with run.model.join():
    try:
        run.once(run.case.batch(0))
    except FlermError as error:
        results["join"] = str(error)
for estimator in ("example", "full"):
    run = Measured(estimator)
    count = draws if estimator == "example" else 2 * draws
    results["draws", estimator] = [run.once(run.case.batch(rank)) for _ in range(count)]
assert all(math.isfinite(value) for value in results["own group"].values())
report(results)
dist.destroy_process_group()
