"""What a run says of itself, and what a dry run says before money is spent."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from flerm_client import FLeRM, RegistryClient
from flerm_client.training.run_metadata import versions
from flerm_core.errors import InvalidInput, NotFound


@dataclass
class Config:
    width: int = 16
    ratio: float = float("inf")
    layer: type = nn.Linear


class Model(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.config = Config(width)
        self.up = nn.Linear(8, width)
        self.down = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


def probe() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(16, 8, generator=generator) for _ in range(4)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(8, 8)).square().mean().backward()
    optimizer.step()


def record(folder, seed: int = 0, **settings) -> None:
    """A base recording of two steps in the folder registry."""
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    flerm = FLeRM.record(
        model,
        optimizer,
        probe=probe(),
        family="f",
        registry=folder.as_uri(),
        every=1,
        seed=seed,
        **settings,
    )
    step(model, optimizer)
    step(model, optimizer)
    flerm.close()


def dry_run(folder, optimizer: type[torch.optim.Optimizer] = torch.optim.Adam, **settings) -> None:
    torch.manual_seed(7)
    model = Model(64)
    stepped = optimizer(model.parameters(), 1e-3)
    FLeRM.match(
        model,
        stepped,
        probe=probe(),
        family="f",
        registry=folder.as_uri(),
        dry_run=True,
        **settings,
    )
    step(model, stepped)
    raise AssertionError("training went on")


def spec_of(folder):
    with RegistryClient(folder.as_uri()) as client:
        (found,) = client.recordings("f")
        return found.spec


def test_model_optimiser_versions_and_world_size_are_recorded_by_themselves(tmp_path):
    record(tmp_path, config={"data": "ones"})
    spec = spec_of(tmp_path)
    own = {"width": 16, "ratio": "inf", "layer": str(nn.Linear)}
    assert spec.config == {
        "model": "Model",
        "parameters": 8 * 16 + 16 + 16 * 4 + 4,
        "config": own,
        "data": "ones",
    }
    assert (spec.optimizer, spec.optimizer_config["betas"], spec.world_size) == (
        "Adam",
        [0.9, 0.999],
        1,
    )
    assert spec.versions["python"] == platform.python_version() and "torch" in spec.versions


def test_the_git_commit_of_the_working_directory_is_recorded(tmp_path, monkeypatch):
    import subprocess

    repository = tmp_path / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    monkeypatch.chdir(repository)
    record(tmp_path / "runs")
    assert spec_of(tmp_path / "runs").versions["git"] == commit


def test_each_of_them_can_be_left_out(tmp_path):
    record(
        tmp_path, config={"data": "ones"}, omit=["config", "optimizer", "versions", "world_size"]
    )
    spec = spec_of(tmp_path)
    assert (spec.config, spec.optimizer, spec.optimizer_config, spec.versions) == (
        {"data": "ones"},
        "",
        {},
        {},
    )


def test_what_cannot_be_left_out_is_named(tmp_path):
    with pytest.raises(
        InvalidInput, match=r"omit: 'seed' .* config, optimizer, versions, git, world_size"
    ):
        record(tmp_path, omit=["seed"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tags": {"a": 1}}, r"tags\.a"),
        ({"config": {"a": object()}}, r"config\.a"),
        ({"role": "boss"}, "role"),
    ],
)
def test_what_no_registry_would_take_is_told_before_training(settings, says, tmp_path):
    with pytest.raises(InvalidInput, match=says):
        record(tmp_path, **settings)


def test_a_spool_that_cannot_be_made_is_told_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"spool folder .* cannot be made"):
        record(tmp_path / "file" / "spool")


def test_a_dry_run_reports_and_ends_the_program_well(tmp_path, capsys):
    for seed in (0, 1):
        record(tmp_path, seed)
    with pytest.raises(SystemExit) as ended:
        dry_run(tmp_path)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 tensors match f at lr 0.001 (2 seeds)"
    assert lines[-5].split() == [
        "tensor",
        "target",
        "FSLR",
        "measured",
        "multiplier",
        "spread",
        "(ln)",
    ]
    assert [line.split()[0] for line in lines[-4:]] == [
        "up.weight",
        "up.bias",
        "down.weight",
        "down.bias",
    ]
    with RegistryClient(tmp_path.as_uri()) as client:
        assert len(list(client.recordings())) == 2


def test_a_dry_run_says_what_would_be_clamped(tmp_path, capsys):
    record(tmp_path)
    with pytest.raises(SystemExit):
        dry_run(tmp_path, clamp=(0.999, 1.001))
    assert "clamped (their multiplier would be beyond the clamp): " in capsys.readouterr().out


def test_a_dry_run_says_where_the_optimiser_is_another(tmp_path, capsys):
    record(tmp_path)
    with pytest.raises(SystemExit) as ended:
        dry_run(tmp_path, torch.optim.SGD)
    assert ended.value.code == 0
    assert "mismatch: optimizer: the model's is SGD, the targets' Adam" in capsys.readouterr().out


def test_a_dry_run_says_where_the_estimator_is_another(tmp_path, capsys):
    record(tmp_path)
    with pytest.raises(SystemExit):
        dry_run(tmp_path, estimator="kronecker")
    assert (
        "mismatch: estimator: the model's is kronecker, the targets' example"
        in capsys.readouterr().out
    )


def test_a_dry_run_of_a_family_that_is_not_there_fails_as_the_run_would(tmp_path):
    tmp_path.joinpath("runs").mkdir()
    with pytest.raises(NotFound, match="family 'f'"):
        dry_run(tmp_path / "runs")


def test_versions_name_what_runs():
    found = versions()
    assert found["python"] == sys.version.split()[0]
    assert {"numpy", "torch"} <= set(found)
    assert "git" not in versions(git=False)
