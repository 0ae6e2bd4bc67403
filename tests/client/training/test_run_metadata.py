"""What a recording says about its run is recorded without being asked for, and can be left out."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from folder_runs import record
from torch import nn

from flerm_client import RegistryClient
from flerm_client.training.run_metadata import versions
from flerm_core.errors import InvalidInput


def spec_of(folder):
    with RegistryClient(folder.as_uri()) as client:
        (found,) = client.recordings("f")
        return found.spec


def test_model_optimiser_versions_and_world_size_are_recorded_without_being_asked_for(tmp_path):
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
def test_what_no_registry_would_take_is_refused_before_training(settings, says, tmp_path):
    with pytest.raises(InvalidInput, match=says):
        record(tmp_path, **settings)


def test_a_spool_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"spool folder .* cannot be made"):
        record(tmp_path / "file" / "spool")


def test_versions_name_what_runs():
    found = versions()
    assert found["python"] == sys.version.split()[0]
    assert {"numpy", "torch"} <= set(found)
    assert "git" not in versions(git=False)
