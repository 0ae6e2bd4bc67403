"""A script with `FLeRM.auto`, or with a framework's callback without arguments, does what its
environment says: it records, matches, or leaves the training alone."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flerm_client import FLeRM, RegistryClient
from flerm_client.idle_flerm import IdleFLeRM
from flerm_client.training.run_instructions import RunInstructions
from flerm_core.errors import InvalidInput

BATCHES = [torch.randn(8, 4, generator=torch.Generator().manual_seed(at)) for at in range(3)]


def model(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))


def train(width: int = 8, steps: int = 3, lr: float = 1e-2, **keywords: Any) -> tuple[FLeRM, list]:
    net = model(width)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    flerm = FLeRM.auto(net, optimizer, probe=BATCHES, warmup=1, **keywords)
    losses = []
    for step in range(steps):
        loss = net(BATCHES[step]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        flerm.log(loss=loss)
        optimizer.step()
        losses.append(loss.item())
    flerm.close()
    return flerm, losses


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets the variables of one run, in a registry of this test's own."""
    monkeypatch.setenv("FLERM_REGISTRY", f"file://{tmp_path}/registry")

    def say(**fields: Any) -> None:
        for name, value in RunInstructions(**fields).variables().items():
            monkeypatch.setenv(name, value)

    return say


def test_nothing_is_done_where_nothing_is_said(tmp_path: Path, said: Any, monkeypatch) -> None:
    monkeypatch.delenv("FLERM_MODE", raising=False)
    flerm, losses = train(family="net")
    assert isinstance(flerm, IdleFLeRM)
    assert not (tmp_path / "registry").exists()
    said(mode="record", family="net")
    assert train()[1] == losses
    monkeypatch.setenv("FLERM_MODE", "")
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    before = dict(vars(optimizer)), dict(vars(net))
    FLeRM.auto(net, optimizer, probe=BATCHES)
    assert (vars(optimizer), vars(net)) == before


def test_every_member_of_flerm_answers_without_a_session() -> None:
    idle = IdleFLeRM()
    own = {name for name in vars(FLeRM) if not name.startswith("_")}
    assert own - {"record", "match", "auto"} <= set(vars(IdleFLeRM))
    for name in own - {"record", "match", "auto", "load_state_dict"}:
        value = getattr(idle, name)
        if callable(value):
            value()
    idle.load_state_dict({"flerm": b""})
    assert repr(idle) == "<FLeRM without a session: FLERM_MODE is not set>"
    assert idle.trajectory.values.shape == (0, 0)
    with idle as same:
        assert same is idle
    for name in ("log", "close", "state_dict", "load_state_dict", "learning_rates"):
        assert inspect.signature(getattr(IdleFLeRM, name)) == inspect.signature(
            getattr(FLeRM, name)
        )


def test_a_run_is_recorded_under_the_labels_that_the_environment_gives(said: Any) -> None:
    said(
        mode="record",
        family="said",
        lr=1e-2,
        seed=3,
        role="scaled",
        variant="plain",
        tags={"job": "a1"},
        config={"width": 8},
    )
    _, losses = train(family="own", lr=1e-2, tags={"mine": "yes"}, config={"data": "noise"})
    with RegistryClient() as registry:
        (found,) = registry.recordings("said")
    spec = found.spec
    assert (spec.lr, spec.seed, spec.role, spec.variant) == (1e-2, 3, "scaled", "plain")
    assert spec.tags == {"job": "a1", "mine": "yes"}
    assert (spec.config["width"], spec.config["data"]) == (8, "noise")
    assert found.final_loss == pytest.approx(losses[-1])


def test_a_run_is_matched_to_the_base_recordings_with_the_tags_that_are_said(said: Any) -> None:
    for seed, tag in ((0, "ours"), (0, "theirs")):
        said(mode="record", family="net", lr=1e-2, seed=seed, tags={"sweep": tag})
        train()
    said(mode="match", family="net", lr=1e-2, role="scaled", source_tags={"sweep": "ours"})
    flerm, _ = train(width=32)
    with RegistryClient() as registry:
        (ours,) = registry.recordings("net", tags={"sweep": "ours"})
        matched = registry.recording(flerm.recording_id)
    assert matched.spec.targets_sources == (ours.spec.id,)
    assert flerm.multipliers.keys() == dict(model(32).named_parameters()).keys()
    assert all(value != 1.0 for value in flerm.multipliers.values())


def test_a_dry_run_ends_the_program_before_it_trains(said: Any, capsys) -> None:
    said(mode="record", family="net", lr=1e-2)
    train()
    said(mode="dry-run", family="net", lr=1e-2)
    with pytest.raises(SystemExit) as ended:
        train(width=32)
    assert ended.value.code == 0
    assert "0.weight" in capsys.readouterr().out
    with RegistryClient() as registry:
        assert len(list(registry.recordings("net"))) == 1


def test_every_counts_the_steps_between_measurements_in_both_modes(said: Any) -> None:
    said(mode="record", family="net", lr=1e-2)
    assert train(every=2)[0].trajectory.steps.tolist() == [1, 3]
    said(mode="match", family="net", lr=1e-2)
    flerm, _ = train(every=2, clamp=(0.1, 10.0))
    assert flerm.trajectory.steps.tolist() == [1, 3]
    before = flerm.auxiliary.vectors["multiplier"]
    assert (before[0] == before[1]).all(), "matched once"


def test_a_run_that_is_judged_later_has_no_final_loss_of_its_own(said: Any) -> None:
    said(mode="record", family="net", judged_later=True)
    train()
    with RegistryClient() as registry:
        (found,) = registry.recordings("net")
    assert found.status == "completed"
    assert found.final_loss is None


def test_a_script_that_does_not_use_its_rate_is_told(said: Any) -> None:
    said(mode="record", family="net", lr=0.5)
    with pytest.warns(UserWarning, match=r"FLERM_LR is 0.5, but the optimizer begins with 0.01"):
        train()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("FLERM_MODE", "both", "FLERM_MODE is 'both', but it must be one of record, match"),
        ("FLERM_LR", "-1", "FLERM_LR is '-1', but it must be a number above 0, or best"),
        ("FLERM_LR", "fast", "FLERM_LR is 'fast'"),
        ("FLERM_SEED", "one", "FLERM_SEED is 'one', but it must be a whole number"),
        ("FLERM_TAGS", "job", "FLERM_TAGS: 'job' is no tag"),
        ("FLERM_CONFIG", "[1]", "FLERM_CONFIG is '\\[1\\]', but it must be a JSON object"),
        ("FLERM_FAMILY", "", "no family is named: set FLERM_FAMILY"),
    ],
)
def test_a_variable_of_another_form_is_named(
    said: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    said(mode="record", family="net")
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=sentence):
        train()


def test_a_keyword_that_only_the_environment_decides_is_refused_before_it_says_anything() -> None:
    with pytest.raises(InvalidInput, match=r"FLeRM.auto takes no role; it takes .*warmup"):
        FLeRM.auto(model(), torch.optim.Adam(model().parameters()), probe=BATCHES, role="base")


def test_instructions_survive_the_way_through_the_environment() -> None:
    every = RunInstructions(
        mode="match",
        family="team/net",
        lr=2.0**-7,
        seed=4,
        role="scaled",
        variant="matched",
        tags={"job": "a", "sweep": "b"},
        source_tags={"sweep": "b"},
        config={"width": 64, "name": "größer"},
        judged_later=True,
    )
    assert RunInstructions.from_environment(every.variables()) == every
    assert json.loads(every.variables()["FLERM_CONFIG"])["name"] == "größer"
    nothing = RunInstructions(mode="record")
    assert RunInstructions.from_environment(nothing.variables()) == nothing
    assert RunInstructions.from_environment({}) is None
    with pytest.raises(InvalidInput, match="has a comma"):
        RunInstructions(mode="record", tags={"a": "b,c"}).variables()
    assert math.isnan(IdleFLeRM().lr)
