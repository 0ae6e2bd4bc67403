"""A dry run reports what would be matched, and ends the program."""

from __future__ import annotations

import pytest
import torch
from folder_runs import dry_run, record

from flerm_client import RegistryClient
from flerm_core.errors import NotFound


def test_a_dry_run_reports_and_ends_the_program_well(tmp_path, capsys):
    for seed in (0, 1):
        record(tmp_path, seed)
    with pytest.raises(SystemExit) as ended:
        dry_run(tmp_path)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 tensors match f at lr 0.001 (2 seeds)"
    said = [line.removeprefix("caution: ") for line in lines if line.startswith("caution: ")]
    assert said == [
        "How far to trust the base's rate is not known: family: 'f' has no completed run with a "
        "final loss; 2 runs in all.",
        "The base's recordings do not all say one batch size, so nobody can tell whether this "
        "run's is another: record the base with batch_size=, or set that tag (flerm tag).",
    ]
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
