"""Runs Python scripts in processes that start in milliseconds.

They are forked from one parent process that has imported torch. This file, run as a script, is that
parent. It reads JSON lines, `{"fork": ...}` or `{"wait": ...}`, and answers each with a line. A
forked process behaves as a new interpreter: it gets its own environment, arguments and output, its
main module is the script, and it ends as an interpreter does.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import distributed as dist


@dataclass(frozen=True)
class Forked:
    """Processes that run one script."""

    pids: list[int]

    def wait(self, seconds: float) -> list[int]:
        """Their exit codes. All are killed when one fails, or when the time is over."""
        codes: list[int] = _request({"wait": self.pids, "seconds": seconds})
        return codes


def fork(
    script: Path,
    *arguments: str,
    environments: Sequence[dict[str, str]],
    output: Path | None = None,
) -> Forked:
    """Starts `script` once for each of `environments`, which are added to this process's own.

    `output`: the file for what they print; None: this process's standard error.
    """
    added = [os.environ | environment for environment in environments]
    order = {
        "script": str(script),
        "arguments": arguments,
        "environments": added,
        "output": str(output or ""),
    }
    return Forked(_request({"fork": order}))


def rendezvous(ranks: int) -> tuple[dist.TCPStore, list[dict[str, str]]]:
    """Environments in which `ranks` processes find each other, as torchrun's do.

    The store must live until they have met.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
    }
    group |= {
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "OMP_NUM_THREADS": 1,
    }
    own = [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
    return store, [{name: str(value) for name, value in each.items()} for each in own]


def _request(question: dict[str, Any]) -> Any:
    parent = _parent()
    try:
        parent.stdin.write(json.dumps(question) + "\n")
        parent.stdin.flush()
        return json.loads(parent.stdout.readline())
    except BaseException:
        # For one, a test's time limit. The late answer must not be read as that of the next one.
        parent.kill()
        parent.wait()
        _parent.cache_clear()
        raise


@cache
def _parent() -> Any:
    """The parent process. It ends with this process, which holds its standard input."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# In the process that is forked

_names: dict[str, Any] = {}  # the script's globals, kept until the interpreter ends


def _prepare() -> None:
    """Imports what scripts import.

    No thread may run here: forked processes would lack the thread, and its locks would stay held.
    """
    # The first optimiser imports torch._dynamo, which takes as long as torch itself.
    for name in (
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.pipelining",
        "flerm_client.flerm",
    ):
        import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    # Without this, the garbage collections of each forked process would touch, and so copy, all
    # imported objects.
    gc.freeze()


def _run_script(order: dict[str, Any], environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    output = (
        os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if order["output"] else 2
    )
    nothing = os.open(os.devnull, os.O_RDONLY)
    for given, own in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(given, own)
    sys.argv = [order["script"], *order["arguments"]]
    _names.update(runpy.run_path(order["script"], run_name="__main__"))


def _wait(pids: list[int], seconds: float) -> list[int]:
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while running := [pid for pid in pids if pid not in codes]:
        if any(codes.values()) or time.monotonic() > end:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        for pid in running:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def main() -> None:
    _prepare()
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = _wait(question["wait"], question["seconds"])
        else:
            answer = []
            for environment in question["fork"]["environments"]:
                answer.append(os.fork())
                if answer[-1] == 0:
                    _run_script(question["fork"], environment)
                    return
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
