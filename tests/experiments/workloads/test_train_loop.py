"""The training loop is reproducible, the same on any number of ranks and unchanged by recording,
and it can be matched by a folder registry."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Adam

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_client.training.run_log import final_loss
from flerm_core.errors import InvalidInput, NotFound
from flerm_experiments.workloads import Scale
from flerm_experiments.workloads.batch_rules import BATCH_RULES
from flerm_experiments.workloads.train_loop import Job, Result, train

STEPS = 20


def job(**fields: Any) -> Job:
    return Job(**{"workload": "resmlp", "lr": 4e-3, "steps": STEPS, "every": None, **fields})


def torchrun(*arguments: str, registry: str = "") -> subprocess.CompletedProcess[str]:
    """`flerm train` on two ranks."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLERM_")}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.run(
        [sys.executable, *launcher, "-m", "flerm_client.cli", "train", *arguments],
        env=environment
        | {"OMP_NUM_THREADS": "1"}
        | ({"FLERM_REGISTRY": registry} if registry else {}),
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder registry that holds two base recordings of resmlp at learning rate 4e-3."""
    registry = f"file://{tmp_path_factory.mktemp('registry')}"
    for seed in (0, 1):
        train(job(mode="record", seed=seed, registry=registry, every=10))
    return registry


@pytest.fixture(scope="module")
def plain() -> Result:
    return train(job())


def test_a_run_repeats_bit_for_bit_and_learns(plain: Result) -> None:
    assert train(job()).losses == plain.losses
    assert len(plain.losses) == STEPS
    assert plain.final_loss < 0.5 * plain.losses[0]
    assert (plain.status, plain.world, plain.fslr, plain.matched) == ("completed", 1, {}, [])


def test_recording_leaves_the_losses_bit_for_bit_and_measures_every_tensor(
    plain: Result, folder: str
) -> None:
    recorded = train(job(mode="record", registry=folder, family="untouched", every=7))
    assert recorded.losses == plain.losses
    assert set(recorded.fslr) >= {"input.weight", "layers.3.bias", "readout.weight"}
    assert all(value > 0 for value in recorded.fslr.values())
    assert set(recorded.multipliers.values()) == {1.0}
    assert set(recorded.learning_rates.values()) == {4e-3}


def test_matching_the_base_itself_changes_little(plain: Result, folder: str) -> None:
    matched = train(job(mode="match", registry=folder))
    assert len(matched.matched) == 12
    # The targets are the average of two seeds; FSLRs differ by 20 to 50 % between seeds.
    assert all(0.3 < matched.multipliers[name] < 3.0 for name in matched.matched)


def test_matching_a_wider_model_slows_its_hidden_matrices(folder: str) -> None:
    matched = train(job(mode="match", registry=folder, scale=Scale(width=8)))
    hidden = [matched.multipliers[f"layers.{j}.weight"] for j in range(4)]
    # Adam's update of a hidden matrix moves the outputs in proportion to width: multipliers near
    # 1/8.
    assert all(0.04 < multiplier < 0.4 for multiplier in hidden)
    for name in matched.matched:
        assert matched.learning_rates[name] == pytest.approx(
            4e-3 * matched.multipliers[name], rel=1e-6
        )


def test_a_rule_for_the_batch_changes_rates_and_not_targets(folder: str) -> None:
    how: dict[str, Any] = {"mode": "match", "scale": Scale(batch=4), "registry": folder}
    matched, by_rule = train(job(**how)), train(job(**how, batch_rule="sqrt"))
    assert by_rule.targets == matched.targets
    doubled = {name: 2 * rate for name, rate in matched.learning_rates.items()}
    assert by_rule.learning_rates == pytest.approx(doubled, rel=1e-12)


def test_a_matched_run_follows_the_bases_batch_and_length(folder: str) -> None:
    how: dict[str, Any] = {"mode": "match", "scale": Scale(batch=4), "registry": folder}
    matched = train(job(**how))
    with pytest.warns(UserWarning, match=f"batch size 256 in {STEPS} steps, where the base has 64"):
        followed = train(job(**how, batch_rule="followed"))
    assert followed.targets == matched.targets
    expected = {name: 4**0.25 * rate for name, rate in matched.learning_rates.items()}
    assert followed.learning_rates == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InvalidInput, match="only a run that matches follows the base's batch"):
        job(batch_rule="followed")


def test_the_published_rules_for_another_batch() -> None:
    def ruled(rule: str) -> tuple[float, float, float]:
        (group,) = (optimizer := Adam([torch.zeros(1)], 0.25, (0.9, 0.99))).param_groups
        BATCH_RULES[rule](optimizer, 16)
        return (group["lr"], *group["betas"])

    assert ruled("") == (0.25, 0.9, 0.99)
    assert ruled("sqrt") == (1.0, 0.9, 0.99)
    assert ruled("moments") == (0.25, 0.9**16, 0.99**16)
    assert ruled("sqrt-moments") == (1.0, 0.9**16, 0.99**16)
    assert ruled("linear") == (4.0, 0.9, 0.99)


def test_a_run_twice_as_long_follows_its_base_by_the_fraction(folder: str, tmp_path: Path) -> None:
    with RegistryClient(folder) as client:
        base = client.targets("resmlp", 4e-3)
    assert (base.steps.tolist(), base.final_step) == ([1, 11], STEPS)
    out = tmp_path / "longer.json"
    arguments = [
        "train",
        "resmlp",
        "--lr",
        "4e-3",
        "--match",
        "--registry",
        folder,
        "--json",
        str(out),
    ]
    assert main([*arguments, "--steps", "40", "--every", "20", "--clock", "fraction"]) == 0
    targets = json.loads(out.read_text())["targets"]
    assert targets == pytest.approx(base.at(step=10.5), rel=1e-12), "matched last at step 21 of 40"
    assert targets != pytest.approx(base.at(step=21), rel=1e-3)


def test_the_token_clock_is_the_step_clock_at_equal_tokens_a_step(tmp_path: Path) -> None:
    common: dict[str, object] = {
        "workload": "decoder",
        "registry": f"file://{tmp_path}/registry",
        "lr": 2.0**-7,
    }
    train(job(**common, mode="record", steps=4, every=3))
    by_step, by_tokens = (
        train(job(**common, mode="match", steps=2, every=1, clock=clock))
        for clock in ("step", "tokens")
    )
    assert by_tokens.targets == pytest.approx(by_step.targets, rel=1e-12)
    assert by_tokens.losses == by_step.losses


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(plain: Result, tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    done = torchrun("resmlp", "--lr", "4e-3", "--steps", str(STEPS), "--json", str(out))
    assert done.returncode == 0, done.stderr
    two = json.loads(out.read_text())
    assert two["world"] == 2
    assert two["losses"] == pytest.approx(plain.losses, rel=1e-3)


@pytest.mark.slow
def test_two_ranks_match_from_the_command_line_and_print_the_table(
    folder: str, tmp_path: Path
) -> None:
    out = tmp_path / "matched.json"
    arguments = (
        "resmlp",
        "--width",
        "4",
        "--depth",
        "2",
        "--lr",
        "4e-3",
        "--steps",
        str(STEPS),
        "--match",
        "--json",
        str(out),
    )
    done = torchrun(*arguments, registry=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert (result["world"], result["status"], len(result["matched"])) == (2, "completed", 20)
    for heading in ("tensor", "base FSLR", "measured FSLR", "multiplier", "learning rate"):
        assert heading in done.stdout
    assert done.stdout.count("layers.7.weight") == 1, "rank 0 alone prints"
    assert f"final loss {result['final_loss']:.4f}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--lr", "4e-3", "--match", "--family", "nobody"), 3, ["'nobody'"]),
        (("--lr", "0.5", "--match"), 3, ["0.5", "0.004"]),
        (("--lr", "4e-3", "--record", "--match"), 2, ["--record and --match"]),
        (("--lr", "-1"), 2, ["lr is -1.0"]),
        (("--lr", "4e-3", "--optimizer", "lion"), 2, ["'lion'", "adam, adamw, sgd"]),
    ],
)
def test_a_run_that_cannot_start_ends_with_one_sentence_and_its_code(
    folder: str,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    named: list[str],
) -> None:
    assert main(["train", "resmlp", "--steps", "5", "--registry", folder, *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert all(each in line for each in named)


def test_one_process_prints_the_table_of_a_recorded_run(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--lr",
        "4e-3",
        "--steps",
        "5",
        "--record",
        "--family",
        "printed",
        "--registry",
        folder,
    ]
    assert main(["train", "resmlp", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "printed at learning rate 0.004: record, ranks: 1" in printed
    assert printed.count("readout.weight") == 1
    assert "completed: 5 steps" in printed


def test_a_diverged_run_ends_and_says_so() -> None:
    result = train(job(lr=1e30, optimizer="sgd", steps=50))
    assert result.status == "diverged"
    assert len(result.losses) < 50
    assert not math.isfinite(result.losses[-1])


def test_the_cosine_schedule_and_the_other_optimisers_train() -> None:
    for optimizer, lr in (("adamw", 4e-3), ("sgd", 0.03)):
        result = train(job(optimizer=optimizer, lr=lr, schedule="cosine"))
        assert result.final_loss < 0.6 * result.losses[0]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"lr": 0.0}, r"lr is 0.0, but it must be positive and finite"),
        ({"lr": math.inf}, r"lr is inf"),
        ({"steps": 0}, r"steps is 0, but it must be at least 1"),
        (
            {"workload": "decoder", "steps": 10**6},
            r"steps is 1000000, but it must be from 1 to \d+, where decoder's data ends",
        ),
        (
            {"workload": "decoder", "steps": 1000, "scale": Scale(batch=16)},
            r"steps is 1000, but it must be from 1 to \d{3}, where decoder's data ends",
        ),
        (
            {"batch_rule": "cube"},
            r"batch_rule is 'cube', but it must be one of , sqrt, moments, sqrt-mom",
        ),
        ({"every": 0}, r"every is 0, but it must be at least 1"),
        ({"optimizer": "lion"}, r"optimizer is 'lion', but it must be one of adam, adamw, sgd"),
        (
            {"schedule": "step"},
            r"schedule is 'step', but it must be one of constant, cosine, warmup",
        ),
        ({"mode": "both"}, r"mode is 'both', but it must be one of plain, record, match"),
        (
            {"mode": "match", "clock": "epoch"},
            r"clock is 'epoch', but it must be one of step, tokens, fraction",
        ),
        (
            {"mode": "match", "clock": "tokens"},
            r"clock is 'tokens', but resmlp's data has none; allowed are step and fraction",
        ),
        (
            {"clock": "fraction"},
            r"clock is 'fraction', but only a run that matches reads targets; its mode is plain",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        job(**fields)


def test_an_unknown_workload_is_refused_before_anything_starts() -> None:
    with pytest.raises(NotFound, match="no workload 'vit'"):
        job(workload="vit")


def test_result_and_registry_agree_on_the_final_loss_the_mean_over_the_last_fifth(
    folder: str,
) -> None:
    result = train(job(mode="record", registry=folder, family="final"))
    assert result.final_loss == pytest.approx(sum(result.losses[-4:]) / 4, rel=1e-12)
    with RegistryClient(folder) as registry:
        (recording,) = registry.recordings(family="final")
    assert recording.final_loss == pytest.approx(result.final_loss, rel=1e-12)
    assert (recording.status, recording.spec.lr, recording.spec.config["hidden"]) == (
        "completed",
        4e-3,
        32,
    )


@pytest.mark.parametrize(
    ("count", "window"), [(1, 1), (7, 2), (999, 200), (1000, 200), (50_000, 200)]
)
def test_the_final_loss_never_looks_further_back_than_200_steps(count: int, window: int) -> None:
    last = [9.0] * (min(count, 1000) - window) + [1.0] * window
    assert final_loss(last, count) == 1.0
