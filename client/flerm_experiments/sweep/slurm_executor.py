"""A sweep as SLURM job scripts, written by submitit: one for the base, then an array with a task per cell."""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import Any

from flerm_core.errors import InvalidInput, Unsupported
from flerm_experiments.sweep.spec import Sweep

_MINUTES = 24 * 60
"""A bound that `sbatch --time` overrides: a task that hits it goes on where it was when it is submitted again."""


def script(
    sweep: Sweep, what: str, registry: str | None, *, cell: str | None, jobs: int | None
) -> str:
    """The script for `sbatch`: of the base for `cell` base, of one cell for its number, of all cells as an array for None.

    `what` is the sweep as the command line names it, `jobs` the processors of a task. All nodes must reach the registry. Raises
    `Unsupported` without submitit, `InvalidInput` without a registry or for a cell that is not there.
    """
    try:
        slurm: Any = import_module("submitit.slurm.slurm")
    except ImportError as error:
        raise Unsupported(
            "submitit is not installed, which --on slurm needs: pip install 'flerm[slurm]'"
        ) from error
    if registry is None:
        raise InvalidInput(
            "registry must be given with --on slurm, or FLERM_REGISTRY set: the nodes meet in it"
        )
    if cell is not None:
        sweep.part(cell)
    processors = jobs or 1
    options = [
        "--registry",
        registry,
        "--seeds",
        str(sweep.seeds),
        "--jobs",
        str(processors),
        "--cell",
    ]
    # The number of an array's task is the shell's to fill in.
    number = '"$SLURM_ARRAY_TASK_ID"' if cell is None else cell
    array = (
        {"map_count": len(sweep.cells), "array_parallelism": len(sweep.cells)}
        if cell is None
        else {}
    )
    text: str = slurm._make_sbatch_string(
        f"{shlex.join(['flerm', 'sweep', what, *options])} {number}",
        folder=".",
        job_name=f"flerm-{sweep.name}",
        time=_MINUTES,
        cpus_per_task=processors,
        use_srun=False,
        **array,
    )
    return text
