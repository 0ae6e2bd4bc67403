"""Slurm scripts: one for the base, then an array with a task per cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from flerm_client.cli import main


def test_slurm_scripts_are_one_for_the_base_and_an_array_for_the_cells(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("submitit")
    arguments = ["sweep", "decoder-width", "--on", "slurm", "--registry", "grpc://head:50051"]
    assert main([*arguments, "--cell", "base", "--jobs", "4"]) == 0
    base = capsys.readouterr().out
    assert base.startswith("#!/bin/bash\n")
    assert "#SBATCH --cpus-per-task=4" in base
    assert (
        "flerm sweep decoder-width --registry grpc://head:50051 --seeds 3 --jobs 4 --cell base"
        in base
    )
    assert main(arguments) == 0
    array = capsys.readouterr().out
    assert "#SBATCH --array=0-2%3" in array
    assert '--cell "$SLURM_ARRAY_TASK_ID"' in array


def test_a_task_has_the_processors_and_gpus_of_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    path = tmp_path / "mine.toml"
    path.write_text(
        'command = "train {lr} {seed} {n}"\ninitial_lr = 0.1\n[base]\nn = 1\n[target]\nn = 2\n'
        "[run]\ncpus = 4\ngpus = 2\n"
    )
    arguments = ["sweep", str(path), "--on", "slurm", "--registry", "grpc://head:50051"]
    assert main([*arguments, "--cell", "base", "--jobs", "2"]) == 0
    base = capsys.readouterr().out
    assert "#SBATCH --cpus-per-task=8" in base
    assert "#SBATCH --gpus-per-node=4" in base
    assert f"flerm sweep {path} --registry grpc://head:50051 --seeds 1 --jobs 2" in base
    assert main(arguments) == 0
    assert "#SBATCH --array=0-1%2" in capsys.readouterr().out
