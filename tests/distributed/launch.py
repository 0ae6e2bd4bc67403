"""Runs a script on several real ranks, within a time limit, and returns what each wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from forked import fork, rendezvous

JOBS = Path(__file__).parent / "jobs"


@dataclass
class Outcome:
    """`code` is 0 where every rank ended well."""

    code: int
    output: str
    ranks: list[Any]


def on_ranks(
    ranks: int, script: str | Path, *arguments: str, folder: Path, seconds: float = 90.0
) -> Outcome:
    """Runs `script` (of jobs/, or a path) on `ranks` processes.

    Each rank may torch.save to its `rank{r}.pt` in `folder`. It works like `torchrun` in a tenth
    of the time: without its agent, and torch is imported once.
    """
    store, group = rendezvous(ranks)
    each = [own | _environment(folder) for own in group]
    output = folder / "output"
    codes = fork(JOBS / script, *arguments, environments=each, output=output).wait(seconds)
    del store
    return _outcome(max(map(abs, codes)), output.read_text(), ranks, folder)


def torchrun(
    ranks: int,
    script: str | Path,
    *arguments: str,
    folder: Path,
    seconds: float = 90.0,
    restarts: int = 0,
    **environment: str,
) -> Outcome:
    """`script` (of jobs/, a path, or `-m module`) as a user launches it."""
    target = ["-m", str(script)[3:]] if str(script).startswith("-m ") else [str(JOBS / script)]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    launcher.append(f"--max-restarts={restarts}")
    command = [*launcher, *target, *arguments]
    env = os.environ | _environment(folder) | environment
    with tempfile.TemporaryFile("w+") as output:
        job = subprocess.Popen(
            command,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            code = job.wait(seconds)
        finally:
            if (
                job.poll() is None
            ):  # its ranks are sessions of their own: torchrun ends them when it is told to end
                job.terminate()
                job.wait(30)
            output.seek(0)
            told = output.read()
    return _outcome(code, told, ranks, folder)


def _environment(folder: Path) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": "1",
        "FLERM_TEST_FOLDER": str(folder),
        "FLERM_SPOOL": str(folder / "spool"),
    }


def _outcome(code: int, output: str, ranks: int, folder: Path) -> Outcome:
    files = [folder / f"rank{rank}.pt" for rank in range(ranks)]
    return Outcome(code, output, [torch.load(f, weights_only=False) for f in files if f.exists()])
