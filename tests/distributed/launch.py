"""Runs a script on several real ranks by torchrun, with a time limit, and hands back what each rank wrote."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from flerm_core.measure.ranks import keep

JOBS = Path(__file__).parent / "jobs"


@dataclass
class Outcome:
    code: int
    output: str
    ranks: list[Any]


def torchrun(
    ranks: int, script: str | Path, *arguments: str, folder: Path, seconds: float = 90.0, restarts: int = 0, **environment: str
) -> Outcome:
    """`script` (of jobs/, a path, or `-m module`) on `ranks` processes; each may torch.save to its `rank{r}.pt` in `folder`."""
    target = ["-m", str(script)[3:]] if str(script).startswith("-m ") else [str(JOBS / script)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    launcher.append(f"--max-restarts={restarts}")
    command = [*launcher, *target, *arguments]
    env = (
        os.environ
        | {"OMP_NUM_THREADS": "1", "FLERM_TEST_FOLDER": str(folder), "FLERM_SPOOL": str(folder / "spool")}
        | environment
    )
    with tempfile.TemporaryFile("w+") as output:
        job = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            code = job.wait(seconds)
        finally:
            if job.poll() is None:  # its ranks are sessions of their own: torchrun ends them when it is told to end
                job.terminate()
                job.wait(30)
            output.seek(0)
            told = output.read()
    files = [folder / f"rank{rank}.pt" for rank in range(ranks)]
    return Outcome(code, told, [torch.load(f, weights_only=False) for f in files if f.exists()])


def begin() -> None:
    """In a rank: joins the others. A hang ends the rank and says where."""
    faulthandler.dump_traceback_later(80.0, exit=True)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of the root, which returns a view as all do
    # Restarted ranks share torchrun's store with those before them, and must not read the addresses of the dead there.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    attempt = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group("gloo", store=attempt, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    keep()


def report(value: Any) -> None:
    """From a rank: what `torchrun` hands back."""
    torch.save(value, Path(os.environ["FLERM_TEST_FOLDER"]) / f"rank{os.environ['RANK']}.pt")


@contextmanager
def sent() -> Iterator[list[int]]:
    """In a rank: the bytes of each collective that is called inside by its public name; FSDP2's own and DTensor's are not."""
    found: list[int] = []
    names = ("all_reduce", "broadcast")
    collectives = {name: getattr(dist, name) for name in names}

    def counting(inner: Any) -> Any:
        def call(values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(values.nbytes)
            return inner(values, *args, **kwargs)

        return call

    for name, inner in collectives.items():
        setattr(dist, name, counting(inner))
    try:
        yield found
    finally:
        for name, inner in collectives.items():
            setattr(dist, name, inner)
