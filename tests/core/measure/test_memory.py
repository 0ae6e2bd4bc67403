"""A measurement frees its activations when it ends, without a garbage collection."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from measured_runs import MODELS, fresh, loss_of
from torch.optim import Adam

from flerm_client import FLeRM
from flerm_core.records.recording import ESTIMATORS


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["resmlp", "decoder"])
def test_no_activation_outlives_a_measurement(name: str, estimator: str) -> None:
    model, batches = fresh(name)
    optimizer = Adam(model.parameters(), 1e-2)
    probe = [MODELS[name][1]() for _ in range(4)]
    flerm = FLeRM.record(
        model, optimizer, probe=probe, family="f", every=1, warmup=1, estimator=estimator
    )
    alive: list[weakref.ref[torch.Tensor]] = []

    def see(module: Any, args: Any, output: torch.Tensor) -> None:
        if flerm.measuring:
            alive.append(weakref.ref(output))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(see)
    gc.collect()
    gc.disable()
    try:
        for batch in batches[:3]:
            optimizer.zero_grad()
            loss_of(model(batch)).backward()
            optimizer.step()
            assert len(alive) > 0
            assert not [reference for reference in alive if reference() is not None]
            alive.clear()
    finally:
        gc.enable()
