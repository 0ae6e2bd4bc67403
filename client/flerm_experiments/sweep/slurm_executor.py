"""Job scripts for SLURM that run a sweep, written by submitit.

One script trains the base. The other is an array of jobs with one for each cell.
"""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import Any

from flerm_core.errors import InvalidInput, Unsupported
from flerm_experiments.sweep.spec import Sweep

_TIME_LIMIT_MINUTES = 24 * 60
"""The default time limit of a job, which `sbatch --time` overrides. A job that its time limit ended
can be submitted again, and then trains only what is missing."""


def job_script(
    sweep: Sweep, what: str, registry: str | None, *, cell: str | None, jobs: int | None
) -> str:
    """The script for `sbatch`.

    sweep: the sweep.
    what: the sweep's preset or file, as given on the command line.
    registry: the registry's address, which all nodes must reach.
    cell: `base`, the number of one cell, or None for an array of all cells.
    jobs: trainings at a time in a job; None for 1. Each has one processor, or the processors and
        GPUs that a sweep file with a command asks for.

    Raises `Unsupported` where submitit is not installed, and `InvalidInput` without a registry and
    for a cell that the sweep does not have.
    """
    try:
        slurm: Any = import_module("submitit.slurm.slurm")
    except ImportError as error:
        raise Unsupported(
            "--on slurm needs the package submitit: pip install 'flerm[slurm]'"
        ) from error
    if registry is None:
        raise InvalidInput(
            "registry: --on slurm needs a registry that all nodes reach; give --registry or set "
            "FLERM_REGISTRY"
        )
    if cell is not None:
        sweep.part(cell)
    processors, gpus = jobs or 1, 0
    if sweep.command is not None:
        limits = sweep.command.limits
        processors, gpus = processors * limits.cpus, processors * limits.gpus
    options = [
        "--registry",
        registry,
        "--seeds",
        str(sweep.seeds),
        "--jobs",
        str(jobs or 1),
        "--cell",
    ]
    # The shell fills in the number of an array's task.
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
        time=_TIME_LIMIT_MINUTES,
        cpus_per_task=processors,
        use_srun=False,
        **array,
        **({"gpus_per_node": gpus} if gpus else {}),
    )
    return text
