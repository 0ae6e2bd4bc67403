"""`FLeRM.match(lr="best")`: the registry says which rate, the user's optimiser runs at its own."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import torch
from torch import nn

from flerm_client import FLeRM, RegistryClient
from flerm_core.errors import InvalidInput

PROBE = [torch.randn(16, 4, generator=torch.Generator().manual_seed(0))]


@pytest.fixture
def family(registry):
    """Base recordings at three rates, of which 0.002 is best."""
    name = f"best-{uuid.uuid4()}"
    with RegistryClient(registry.address) as client:
        for lr, loss in ((1e-3, 0.9), (2e-3, 0.5), (4e-3, 0.9)):
            recording = client.start_recording(
                name, lr, ["weight", "bias"], [(2, 4), (2,)], optimizer="SGD"
            )
            client.append(recording, [1], np.ones((1, 2), np.float32))
            client.finish(recording, final_loss=loss)
    return name


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path))
    return nn.Linear(4, 2)


def match(registry, family, model, groups):
    return FLeRM.match(
        model,
        torch.optim.SGD(groups),
        probe=PROBE,
        family=family,
        registry=registry.address,
        lr="best",
    )


def test_it_is_the_key_of_the_run(registry, family, model, recwarn):
    with match(registry, family, model, [{"params": model.parameters(), "lr": 2e-3}]) as flerm:
        assert flerm.lr == pytest.approx(2e-3)
    assert not [each for each in recwarn if "best base rate" in str(each.message)]


def test_an_optimizer_at_another_rate_is_told(registry, family, model):
    groups = [{"params": [model.weight], "lr": 1e-2}, {"params": [model.bias], "lr": 2e-3}]
    with pytest.warns(
        UserWarning, match=r"is 0.002, but the optimizer begins with 0.01: give it lr=0.002"
    ):
        match(registry, family, model, groups).close()


def test_targets_of_ones_own_have_no_best(model):
    with pytest.raises(InvalidInput, match="lr='best' asks the registry"):
        FLeRM.match(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            probe=PROBE,
            family="f",
            targets={"weight": 1.0, "bias": 1.0},
            lr="best",
        )
