"""What a run needs is checked and found before its first step."""

from __future__ import annotations

import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_runs import (
    fresh,
    probe,
    step,
)
from torch import nn
from torch.optim import (
    SGD,
)

from flerm_client import FLeRM, RegistryClient
from flerm_core.errors import InvalidInput


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0.5}, r"every=0\.5 is not allowed; a whole number from 0 is"),
        ({"warmup": 0}, r"warmup=0 is not allowed; a whole number from 1 is"),
        ({"start": 0}, r"start=0 is not allowed; a whole number from 1 is"),
        (
            {"estimator": "best"},
            r"estimator='best' is not known; there are: example, kronecker, iid, full, exact",
        ),
        ({"lr": -1.0}, r"lr=-1\.0 is not allowed; a finite number above 0 is"),
        ({"family": "a b"}, r"family"),
        ({"probe": 3}, r"probe is a int; allowed is an iterable of input batches"),
        (
            {"output_weight": "nothing", "estimator": "kronecker"},
            r"output_weight='nothing' is not a measured tensor of 2 dimensions",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    options: dict[str, Any], sentence: str
) -> None:
    model, _ = fresh("resmlp")
    before = dict(vars(optimizer := SGD(model.parameters(), 1e-2)))
    with pytest.raises(InvalidInput, match=sentence):
        FLeRM.record(model, optimizer, **({"probe": probe(), "family": "f"} | options))
    assert dict(vars(optimizer)) == before


def test_matching_begins_at_the_step_at_which_its_base_was_first_measured(tmp_path: Path) -> None:
    folder = f"file://{tmp_path}"

    def run(make: Any, **options: Any) -> FLeRM:
        model, batches = fresh("resmlp")
        optimizer = SGD(model.parameters(), 1e-2)
        options |= {"probe": probe(), "family": "f", "registry": folder, "warmup": 1}
        with make(model, optimizer, **options) as flerm:
            for batch in batches[:4]:
                step(model, optimizer, batch)
        return flerm

    run(FLeRM.record, start=3)
    assert run(FLeRM.match).trajectory.steps.tolist() == [3]
    assert run(FLeRM.match, start=2).trajectory.steps.tolist() == [2]


BEST_PROBE = [torch.randn(16, 4, generator=torch.Generator().manual_seed(0))]


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


def match_best(registry, family, model, groups):
    return FLeRM.match(
        model,
        torch.optim.SGD(groups),
        probe=BEST_PROBE,
        family=family,
        registry=registry.address,
        lr="best",
    )


def test_the_best_rate_is_the_key_of_the_run(registry, family, model, recwarn):
    with match_best(registry, family, model, [{"params": model.parameters(), "lr": 2e-3}]) as flerm:
        assert flerm.lr == pytest.approx(2e-3)
    assert not [each for each in recwarn if "other rates" in str(each.message)]


def test_an_optimizer_at_another_rate_than_the_best_is_warned_of(registry, family, model):
    groups = [{"params": [model.weight], "lr": 1e-2}, {"params": [model.bias], "lr": 2e-3}]
    said = (
        r"other rates than the run's 0\.002 \(weight at 5 times this rate\), and the base does not "
        r"say at which rates its tensors began"
    )
    with pytest.warns(UserWarning, match=said):
        match_best(registry, family, model, groups).close()


def test_groups_at_other_rates_than_the_bases_are_said_and_kept(tmp_path: Path) -> None:
    registry = f"file://{tmp_path}/registry"

    def run(make, ratio, lr=1e-2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        groups = [
            {"params": model[0].parameters(), "lr": lr * ratio},
            {"params": model[1].parameters()},
        ]
        optimizer = SGD(groups, lr)
        with make(model, optimizer, probe=BEST_PROBE, family="f", registry=registry, lr=lr):
            model(BEST_PROBE[0]).square().mean().backward()
            optimizer.step()

    run(FLeRM.record, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(FLeRM.match, 10)
    with pytest.warns(UserWarning, match=r"0\.weight, 0\.bias at 1 times .* at 10 times its rate"):
        run(FLeRM.match, 1)
    with RegistryClient(registry) as client:
        remarks = [each.remarks for each in client.recordings(family="f", role="scaled")]
    assert sorted(map(len, remarks)) == [0, 1]


def test_the_best_rate_is_refused_beside_targets_of_the_users(model):
    with pytest.raises(InvalidInput, match="lr='best' asks the registry"):
        FLeRM.match(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            probe=BEST_PROBE,
            family="f",
            targets={"weight": 1.0, "bias": 1.0},
            lr="best",
        )
