"""A sweep as SLURM job scripts, written by submitit.

One script is for the base, the other for an array with one task per cell.
"""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import Any

from flerm_core.errors import InvalidInput, Unsupported
from flerm_experiments.sweep.spec import Sweep

_TIME_LIMIT_MINUTES = 24 * 60
"""The default limit, which `sbatch --time` overrides. A task that is stopped by the limit goes on
where it was when it is submitted again."""


def job_script(
    sweep: Sweep, what: str, registry: str | None, *, cell: str | None, jobs: int | None
) -> str:
    """The script for `sbatch`.

    what: the sweep as the command line names it.
    registry: its address, which all nodes must reach.
    cell: `base`, the number of one cell, or None for an array of all cells.
    jobs: trainings at a time in a task, 1 for None; each has one processor, or what its command
        asks for.

    Raises `Unsupported` without submitit, `InvalidInput` without a registry or for a cell that is
    not there.
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
