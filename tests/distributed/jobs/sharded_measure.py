"""Measures one update in every scenario, each rank on its own probe batch.

Arguments: estimators:scenario ...
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed import sharded
from distributed.rank import begin, report, sent
from torch import distributed as dist

from flerm_client.training.measured_model import make_measured_model
from flerm_client.training.parallelism import find_ranks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter

begin()
table = sharded.scenarios(dist.get_world_size())
results = {}
for argument in sys.argv[1:]:
    estimators, name = argument.split(":")
    _, _, shape, wrap = table[name]
    mesh = sharded.world(*(size for _, size in shape), names=tuple(axis for axis, _ in shape))
    model, batches = sharded.model_and_batches(name, dist.get_world_size())
    steps = sharded.steps_of(model)
    model = wrap(model, mesh)
    ranks = find_ranks(model, None)
    moving = [p for p in model.parameters() if p.requires_grad]
    measured_model = make_measured_model(model, [torch.optim.SGD(moving, 1e-3)], None, None, ranks)
    update = sharded.take_step(dict(measured_model.parameters), steps)
    for estimator in estimators.split(","):
        meter = FSLRMeter(
            measured_model, make_estimator(estimator, measured_model), ranks, seed=sharded.SEED
        )
        batch = batches(ranks.data_parallel_rank)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            results[name, estimator] = meter.measure(update, iter([batch]), 1)
            results["again", name, estimator] = meter.measure(update, iter([batch]), 1)
            # The second measurement is verified whole; the third is one of the many.
            with sent() as lengths, sent("all_gather") as gathers:
                meter.measure(update, iter([batch]), 1)
        results["gathers", name, estimator] = len(gathers)
        results["bytes", name, estimator] = (
            lengths,
            sum(p.numel() * p.element_size() for p in measured_model.parameters.values()),
        )
report(results)
dist.destroy_process_group()
