"""Kronecker's own bias on the paper's architectures: small in the median over tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_experiments.workloads import Scale, workload_named


@pytest.mark.parametrize("name", ["resmlp", "decoder", "decoder-postnorm"])
def test_the_median_over_tensors_is_within_15_percent_of_exact(name: str) -> None:
    workload = workload_named(name)
    model = workload.build(Scale(), seed=0)
    inputs, labels = next(iter(workload.batches(seed=0)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    workload.loss(model(inputs), labels).backward()
    update = WeightUpdate(dict(model.named_parameters()))
    optimizer.step()
    update.rates = dict.fromkeys(update.parameters, 1e-3)
    measured_model = MeasuredModel(model, update.parameters, lambda model, batch: model(batch))
    probe = next(iter(workload.probe(seed=0)))
    readings = {}
    for estimator, draws in (("exact", 1), ("kronecker", 100)):
        meter = FSLRMeter(
            measured_model,
            make_estimator(estimator, measured_model),
            MeasurementRanks(single_process=True),
        )
        readings[estimator] = meter.measure(update, itertools.repeat(probe), draws)
    ratios = [
        readings["kronecker"][tensor] / exact
        for tensor, exact in readings["exact"].items()
        if exact > 0.0
    ]
    assert len(ratios) >= 12
    assert np.median(ratios) == pytest.approx(1.0, abs=0.15)
