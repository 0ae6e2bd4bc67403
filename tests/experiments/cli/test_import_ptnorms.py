"""`flerm import-ptnorms`: the paper's files become base recordings that a run can be matched to."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from flerm_client import FLeRM, RegistryClient
from flerm_client.cli import main
from tests.experiments.sweeps import PAPER_NAMES


@pytest.fixture
def folder(tmp_path):
    return f"file://{tmp_path / 'registry'}"


def test_runs_are_matched_to_imported_files_averaged_over_seeds(paper_files, folder, capsys):
    assert main(["import-ptnorms", "mlp", *paper_files, "--registry", folder, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(result["lr"], result["seed"], result["rows"]) for result in results] == [
        (0.01, 0, 3),
        (0.01, 1, 3),
    ]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with FLeRM.match(
        model, optimizer, probe=[torch.randn(16, 4)], family="mlp", registry=folder
    ) as flerm:
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        assert flerm.targets == dict.fromkeys(PAPER_NAMES, 8.0)  # the geometric mean of 4 and 16
        wanted = {name: 8.0 / value for name, value in flerm.fslr.items()}
        assert flerm.multipliers == pytest.approx(wanted, rel=2 ** (1 / 32) - 1)


def test_importing_twice_is_one_recording(paper_files, folder, capsys):
    for _ in range(2):
        assert main(["import-ptnorms", "mlp", paper_files[0], "--registry", folder]) == 0
    with RegistryClient(folder) as registry:
        [recording] = registry.recordings(family="mlp")
    assert recording.spec.estimator.name == "kronecker"
    assert recording.spec.tags == {"source": "ptnorms"}


def test_rate_and_seed_must_be_given_where_the_file_name_has_none(tmp_path, folder, capsys):
    path = tmp_path / "masses.ptnorms"
    torch.save({"0.weight": [1.0]}, path)
    assert main(["import-ptnorms", "mlp", str(path), "--registry", folder]) == 2
    assert "masses.ptnorms: --lr and --seed must be given" in capsys.readouterr().err
    assert (
        main(
            ["import-ptnorms", "mlp", str(path), "--registry", folder, "--lr", "0.1", "--seed", "3"]
        )
        == 0
    )
