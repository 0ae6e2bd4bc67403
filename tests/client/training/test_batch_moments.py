"""A matched run of another batch: betas and rates follow, through checkpoints and until its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folder_runs import Model, dry_run, probe, record, step

from flerm_client import FLeRM, RegistryClient
from flerm_core.errors import InvalidInput, MeasurementError

BETAS = (0.9**2, 0.999**2)


def matched(folder: Path, optimizer: torch.optim.Optimizer, model: Model, **options: Any) -> FLeRM:
    given = {"probe": probe(), "family": "f", "registry": folder.as_uri()} | options
    return FLeRM.match(model, optimizer, **given)


def fresh() -> tuple[Model, torch.optim.Adam]:
    torch.manual_seed(3)
    model = Model(64)
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def test_betas_and_rates_follow_the_batch_until_the_run_ends(tmp_path: Path) -> None:
    record(tmp_path, batch_size=8)
    model, optimizer = fresh()
    with matched(tmp_path, optimizer, model) as alone:
        step(model, optimizer)
    model, optimizer = fresh()
    with pytest.warns(UserWarning, match=r"of this run has 32 .* base 8: .* with batch_size=32 "):
        told = matched(tmp_path, optimizer, model, config={"batch_size": 32})
    with told:
        step(model, optimizer)
        assert told.multipliers == alone.multipliers
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    model, optimizer = fresh()
    with pytest.warns(UserWarning, match=r"batch size 32 in 2 steps, where the base has 8 in 2"):
        flerm = matched(tmp_path, optimizer, model, batch_size=32)
    with flerm:
        step(model, optimizer)
        assert optimizer.param_groups[0]["betas"] == BETAS
        factor = {name: m / alone.multipliers[name] for name, m in flerm.multipliers.items()}
        assert factor == pytest.approx(dict.fromkeys(factor, 4**0.25), rel=1e-12)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert "base_betas" not in optimizer.param_groups[0]
    with RegistryClient(tmp_path.as_uri()) as client:
        spec = next(
            each.spec
            for each in client.recordings("f", role="scaled")
            if each.spec.optimizer_config["betas"] == list(BETAS)
        )
        (found,) = [each for each in client.recordings("f") if each.spec.id == spec.id]
        rates = client.matched_rates(spec.id)
    assert (rates.batch_factor, rates.depth, rates.clock) == (4**0.25, "coherent", "step")
    assert rates.ratios[0] == pytest.approx(1.0, rel=0.03)  # multipliers are rounded
    assert spec.config["batch_size"] == 32
    assert any(each.startswith("batch size 32 in 2 steps") for each in found.remarks)


def test_the_steps_are_those_of_plain_adam_at_these_betas_and_rates(tmp_path: Path) -> None:
    record(tmp_path, batch_size=8)
    model, optimizer = fresh()
    with matched(tmp_path, optimizer, model, batch_size=32, total_steps=1) as flerm:
        for _ in range(4):
            step(model, optimizer)
        rates = flerm.learning_rates()
    plain, _ = fresh()
    groups = [{"params": [p], "lr": rates[name]} for name, p in plain.named_parameters()]
    by_hand = torch.optim.Adam(groups, 1e-3, betas=BETAS)
    for _ in range(4):
        step(plain, by_hand)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loads_first", [False, True])
def test_a_resumed_run_goes_on_with_the_same_betas(tmp_path: Path, loads_first: bool) -> None:
    record(tmp_path, batch_size=8)
    model, optimizer = fresh()
    with matched(tmp_path, optimizer, model, batch_size=32) as flerm:
        step(model, optimizer)
        saved = optimizer.state_dict(), flerm.state_dict()
        step(model, optimizer)
        expected = flerm.multipliers
    model, optimizer = fresh()
    if loads_first:
        optimizer.load_state_dict(saved[0])
    with matched(tmp_path, optimizer, model, batch_size=32) as flerm:
        if not loads_first:
            optimizer.load_state_dict(saved[0])
        flerm.load_state_dict(saved[1])
        step(model, optimizer)
        assert optimizer.param_groups[0]["betas"] == BETAS
        assert flerm.multipliers == expected


@pytest.mark.parametrize(
    ("recorded", "options", "sentence"),
    [
        ({}, {}, "batch_size=32: the base recordings of 'f' do not all say one batch size"),
        ({"batch_size": 8}, {"every": 5}, r"every=5 is not allowed with batch_size="),
        ({"batch_size": 8}, {"start": 3}, r"start=3 is not allowed with batch_size="),
        ({"batch_size": 8}, {"batch_size": 0}, r"batch_size: 0 is not allowed"),
        (
            {"batch_size": 8},
            {"config": {"batch_size": 16}},
            "batch_size=32, but config has batch_size 16: leave one of the two out",
        ),
        (
            {"batch_size": 8},
            {"targets": dict.fromkeys(("up.weight", "up.bias", "down.weight", "down.bias"), 1.0)},
            "batch_size=32: targets= says no batch size of the base",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_before_training(
    tmp_path: Path, recorded: dict[str, int], options: dict[str, Any], sentence: str
) -> None:
    record(tmp_path, **recorded)
    model, optimizer = fresh()
    with pytest.raises(InvalidInput, match=sentence):
        matched(tmp_path, optimizer, model, **({"batch_size": 32} | options))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_match_that_fails_late_leaves_the_betas_as_they_were(tmp_path: Path) -> None:
    record(tmp_path, batch_size=8)
    model, optimizer = fresh()
    before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    with pytest.raises(MeasurementError):
        matched(tmp_path, optimizer, model, batch_size=32, probe=[torch.ones(8, 77)])
    with pytest.raises(InvalidInput, match=r"tags"):
        matched(tmp_path, optimizer, model, batch_size=32, tags={"": "x"})
    after = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    assert after == before


def test_a_second_match_that_is_refused_leaves_the_betas_of_the_first(tmp_path: Path) -> None:
    record(tmp_path, batch_size=8)
    model, optimizer = fresh()
    with matched(tmp_path, optimizer, model, batch_size=32):
        for options in ({}, {"family": "no-such-family"}):
            with pytest.raises(InvalidInput, match=r"optimizer is at work in another FLeRM"):
                matched(tmp_path, optimizer, model, batch_size=32, **options)
            assert optimizer.param_groups[0]["betas"] == BETAS
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_dry_run_says_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, batch_size=8)
    with pytest.raises(SystemExit):
        dry_run(tmp_path, batch_size=32, total_steps=8)
    assert (
        "batch size 32 in 8 steps, where the base has 8 in 2: learning rates are multiplied by 1, "
        "and the betas (0.9, 0.999) become (0.81, 0.998001) (docs/choices.md)"
    ) in capsys.readouterr().out
