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
    """Runs `script` (of jobs/, a path, or `-m module`) on `ranks` processes.

    Each rank may torch.save to its `rank{r}.pt` in `folder`. It works like `torchrun` in a tenth
    of the time: without its agent, and torch is imported once.
    """
    store, group = rendezvous(ranks)
    each = [own | _environment(folder) for own in group]
    outcome = _forked(
        ranks, _program(script), *arguments, each=each, folder=folder, seconds=seconds
    )
    del store
    return outcome


def under_an_agent(
    ranks: int,
    script: str | Path,
    *arguments: str,
    folder: Path,
    seconds: float = 90.0,
    restarts: int = 0,
) -> Outcome:
    """Runs `script` under torchrun's agent, which starts the ranks again when one fails.

    The agent's ranks are forked, so that torch is imported once.
    """
    command = (str(ranks), str(restarts), _program(script), *arguments)
    each = [_environment(folder)]
    return _forked(
        ranks, str(JOBS / "agent.py"), *command, each=each, folder=folder, seconds=seconds
    )


def _forked(
    ranks: int,
    program: str,
    *arguments: str,
    each: list[dict[str, str]],
    folder: Path,
    seconds: float,
) -> Outcome:
    output = folder / "output"
    codes = fork(program, *arguments, environments=each, output=output).wait(seconds)
    return _outcome(max(map(abs, codes)), output.read_text(), ranks, folder)


def _program(script: str | Path) -> str:
    return str(script) if str(script).startswith("-m ") else str(JOBS / script)


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
    program = _program(script)
    target = ["-m", program[3:]] if program.startswith("-m ") else [program]
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
