"""The main job from end to end: record a base, match on two ranks, read over HTTP; its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from torch.nn import functional as F

from flerm_client import FLeRM, RegistryClient
from flerm_experiments.workloads.train_loop import Job, train
from tests.conftest import RegistryProcess
from tests.distributed.launch import Outcome, on_ranks, torchrun, under_an_agent

HERE = Path(__file__).parent


def record(registry: RegistryProcess, family: str, lr: float, seed: int, spool: Path) -> FLeRM:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    probe = [torch.randn(16, 4) for _ in range(4)]
    options = {
        "probe": probe,
        "registry": registry.address,
        "every": 2,
        "warmup": 2,
        "seed": seed,
        "spool": spool,
    }
    with FLeRM.record(model, optimizer, family=family, **options) as flerm:
        for step in range(1, 6):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(torch.randn(16, 4)), torch.randint(0, 2, (16,)))
            loss.backward()
            flerm.log(loss=loss, tokens=16 * step)
            optimizer.step()
    return flerm


def test_a_recording_arrives_whole_and_is_read_over_grpc_and_http(
    registry: RegistryProcess, tmp_path: Path
) -> None:
    flerm = record(registry, "arrives", 1e-2, 0, tmp_path)
    with RegistryClient(registry.address) as client:
        stored = client.trajectory(flerm.recording_id)
        (recording,) = client.recordings("arrives")
    assert stored == flerm.trajectory
    assert stored.steps.tolist() == [1, 3, 5]
    assert (recording.status, recording.spec.lr, recording.spec.optimizer) == (
        "completed",
        1e-2,
        "SGD",
    )
    assert recording.final_loss == pytest.approx(recording.final_loss)
    body = (
        httpx.get(f"{registry.http}/api/v1/recordings/{flerm.recording_id}/trajectory")
        .raise_for_status()
        .json()
    )
    assert [row["step"] for row in body["rows"]] == [1, 3, 5]


def test_two_ranks_match_what_the_registry_holds(
    registry: RegistryProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path))
    family = "two-ranks"
    job = {
        "workload": "resmlp",
        "lr": 1e-3,
        "steps": 20,
        "family": family,
        "registry": registry.address,
    }
    for seed in (0, 1):
        train(Job(**job, seed=seed, mode="record"))
    arguments = (
        "train",
        "resmlp",
        "--steps",
        "20",
        "--family",
        family,
        "--registry",
        registry.address,
    )
    out = tmp_path / "result.json"
    matched = on_ranks(
        2,
        "-m flerm_client.cli",
        *arguments,
        "--width",
        "2",
        "--lr",
        "1e-3",
        "--match",
        "--json",
        str(out),
        folder=tmp_path,
    )
    assert matched.code == 0, matched.output
    result = json.loads(out.read_text())
    with RegistryClient(registry.address) as client:
        targets = client.targets(family, 1e-3, names=list(result["fslr"]))
        own = next(iter(client.recordings(family, role="scaled")))
        row = client.trajectory(own.spec.id).at(1)
    assert result["world"] == own.spec.world_size == 2
    assert own.spec.targets_digest == targets.digest
    assert sorted(own.spec.targets_sources) == sorted(targets.sources)
    for name, multiplier in result["multipliers"].items():
        assert result["targets"][name] == pytest.approx(targets[name], rel=1e-6)
        assert result["fslr"][name] == pytest.approx(row[name], rel=1e-6)
        if multiplier != 1.0:
            assert multiplier == pytest.approx(targets[name] / row[name], rel=2 ** (1 / 32) - 1)


def test_what_the_registry_does_not_know_is_named_on_every_rank(
    registry: RegistryProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(registry, "known", 1e-3, 0, tmp_path)
    monkeypatch.setenv("FLERM_REGISTRY", registry.address)
    done = on_ranks(2, HERE / "jobs" / "unknown.py", folder=tmp_path)
    assert done.code == 0, done.output
    assert done.ranks[0] == done.ranks[1]
    (_, family), (_, rate), (_, parameter) = done.ranks[0]
    assert [kind for kind, _ in done.ranks[0]] == ["NotFound"] * 3
    assert "'nobody'" in family
    assert "1 lies outside the recorded range 0.001 to 0.001 of 'known'" in rate
    assert "surprise.weight" in parameter and "0.weight" in parameter


@pytest.mark.parametrize(
    "launcher", [under_an_agent, pytest.param(torchrun, marks=pytest.mark.slow)]
)
def test_the_command_line_says_it_in_one_line_and_ends_with_its_code(
    launcher: Callable[..., Outcome], registry: RegistryProcess, tmp_path: Path
) -> None:
    arguments = ("train", "resmlp", "--lr", "1e-3", "--steps", "5", "--family", "nobody", "--match")
    arguments += ("--registry", registry.address)
    done = launcher(2, "-m flerm_client.cli", *arguments, folder=tmp_path)
    assert done.code != 0
    lines = [
        line for line in done.output.splitlines() if "'nobody'" in line and "Traceback" not in line
    ]
    assert len(lines) == 2, done.output  # one a rank
    assert "exitcode  : 3" in done.output
    assert "workloads/training.py" not in done.output, "no traceback of ours"
