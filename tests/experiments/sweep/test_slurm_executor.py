"""Slurm scripts: one for the base, then an array with a task per cell."""

from __future__ import annotations

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
