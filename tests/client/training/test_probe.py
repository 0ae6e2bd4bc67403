"""A probe is cycled, and takes nothing from the training's random numbers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from measured_runs import (
    fresh,
    loss_of,
    step,
    trained,
)
from torch.optim import (
    SGD,
)
from torch.utils.data import DataLoader

from flerm_client import FLeRM
from flerm_core.errors import InvalidInput


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (list, "probe has no batches; at least one is needed"),
        (lambda: iter([torch.randn(4, 8)]), "probe ended after 1 batches and cannot begin anew"),
    ],
    ids=["empty", "used up"],
)
def test_a_probe_that_ends_says_so(batches: Any, sentence: str) -> None:
    model, training = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    recording = FLeRM.record(model, optimizer, probe=batches(), family="f")
    with pytest.warns(UserWarning, match=sentence):
        step(model, optimizer, training[0])
    recording.close()
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    with pytest.raises(InvalidInput, match=sentence):
        # An empty probe is found here, one that is used up at the first step.
        FLeRM.match(model, optimizer, probe=batches(), family="f", targets=targets)
        step(model, optimizer, training[0])


def test_a_probe_that_is_the_training_loader_leaves_its_order_alone() -> None:
    def train(record: bool) -> list[float]:
        model, _ = fresh("resmlp")
        shuffled = torch.Generator().manual_seed(7)
        loader = DataLoader(torch.randn(24, 8), batch_size=8, shuffle=True, generator=shuffled)
        optimizer = SGD(model.parameters(), 0.1)
        if record:
            FLeRM.record(model, optimizer, probe=loader, family="f", every=2)
        return trained(model, optimizer, itertools.chain(loader, loader, loader))

    assert train(True) == train(False)


@pytest.mark.slow
def test_a_training_loader_with_persistent_workers_is_no_probe() -> None:
    model, _ = fresh("resmlp")
    loader = DataLoader(torch.randn(24, 8), batch_size=8, num_workers=1, persistent_workers=True)
    optimizer = SGD(model.parameters(), 0.1)
    FLeRM.record(model, optimizer, probe=loader, family="f")
    batch = next(iter(loader))
    loss_of(model(batch)).backward()
    with pytest.warns(UserWarning, match="persistent_workers=True that is in use elsewhere"):
        optimizer.step()
