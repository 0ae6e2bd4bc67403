"""Runs Python programs in processes that start in milliseconds.

They are forked from a parent process that has imported what they import: torch for training, the
server for a registry. This file, run as a script, is such a parent. It reads JSON lines,
`{"fork": ...}`, `{"wait": ...}` or `{"poll": ...}`, and answers each with a line. A forked process
behaves as a new interpreter: it gets its own environment, arguments, folder and output, its main
module is the program, and it ends as an interpreter does. It is killed when its parent ends.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import distributed as dist

# What a parent imports, by its kind.
IMPORTS = {
    # The first optimiser imports torch._dynamo, which takes as long as torch itself.
    "training": (
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.pipelining",
        "flerm_client.flerm",
    ),
    "server": (
        "flerm_server.cli.serve",
        "flerm_server.server",
        "flerm_server.store.sql.schema",
        "sqlalchemy.dialects.sqlite",
        "sqlalchemy.dialects.postgresql.psycopg",
        "uvicorn.protocols.http.auto",
    ),
}


@dataclass(frozen=True)
class Forked:
    """Processes that run one script."""

    pids: list[int]

    def wait(self, seconds: float) -> list[int]:
        """Their exit codes. All are killed when one fails, or when the time is over."""
        codes: list[int] = _request("training", {"wait": self.pids, "seconds": seconds})
        return codes


@dataclass
class ServerProcess:
    """A process of the server's. It has the methods of `subprocess.Popen` that tests use."""

    pid: int
    returncode: int | None = field(default=None, init=False)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        if self.returncode is None:
            self.returncode = _request("server", {"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            ended = os.pidfd_open(self.pid)
            try:
                readable, _, _ = select.select([ended], [], [], timeout)
            finally:
                os.close(ended)
            if not readable:
                raise subprocess.TimeoutExpired("the server", timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Does nothing to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process at once."""
        self.send_signal(signal.SIGKILL)


def start_server(*arguments: str, environment: dict[str, str], output: int) -> ServerProcess:
    """Starts `python -m flerm_server.cli` with these arguments.

    output: a descriptor of this process, to which the server writes what it prints.
    """
    order = {
        "script": "-m flerm_server.cli",
        "arguments": arguments,
        "environments": [environment],
        "output": f"/proc/{os.getpid()}/fd/{output}",
        "folder": str(Path.cwd()),
    }
    (pid,) = _request("server", {"fork": order})
    return ServerProcess(pid)


def fork(
    script: Path | str,
    *arguments: str,
    environments: Sequence[dict[str, str]],
    output: Path | None = None,
) -> Forked:
    """Starts `script`, a path or `-m module`, once for each of `environments`.

    These are added to this process's own. `output`: the file for what they print; None: this
    process's standard error.
    """
    added = [os.environ | environment for environment in environments]
    order = {
        "script": str(script),
        "arguments": arguments,
        "environments": added,
        "output": str(output or ""),
        "folder": str(Path(__file__).parents[2]),
    }
    return Forked(_request("training", {"fork": order}))


def rendezvous(ranks: int) -> tuple[dist.TCPStore, list[dict[str, str]]]:
    """Environments in which `ranks` processes find each other, as torchrun's do.

    The store must live until they have met.
    """
    from torch import distributed as dist  # where only servers are started, torch is not needed

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


_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def _request(kind: str, question: dict[str, Any]) -> Any:
    with _locks[kind]:
        parent = _parents(kind)
        try:
            parent.stdin.write(json.dumps(question) + "\n")
            parent.stdin.flush()
            return json.loads(parent.stdout.readline())
        except BaseException:
            # For one, a test's time limit. The late answer must not be read as that of the next.
            parent.kill()
            parent.wait()
            _parents.cache_clear()
            raise


@cache
def _parents(kind: str) -> Any:
    """The parent process. It ends with this process, which holds its standard input."""
    return subprocess.Popen(
        [sys.executable, __file__, kind],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# In the process that is forked

PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent ends
_names: dict[str, Any] = {}  # the script's globals, kept until the interpreter ends


def _prepare(kind: str) -> None:
    """Imports what programs of this kind import.

    No thread may run here: forked processes would lack the thread, and its locks would stay held.
    """
    for name in IMPORTS[kind]:
        import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    # Without this, the garbage collections of each forked process would touch, and so copy, all
    # imported objects.
    gc.freeze()


def _fork(order: dict[str, Any], environment: dict[str, str]) -> int:
    """The process that is forked, as its parent knows it; 0 in the process itself.

    The output is opened before: an answer says that the process has it.
    """
    output = os.dup(2)
    if order["output"]:
        os.close(output)
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pid = os.fork()
    if pid == 0:
        _become(order, environment, output)
    else:
        os.close(output)
    return pid


def _become(order: dict[str, Any], environment: dict[str, str], output: int) -> None:
    """Makes the forked process look like a new one."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for given, own in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(given, own)
    os.close(nothing)
    os.close(output)
    if environment.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()


def _run(order: dict[str, Any]) -> None:
    """Runs the program as `python PROGRAM` does."""
    name = order["script"]
    sys.argv = [name, *order["arguments"]]
    if name.startswith("-m "):
        _names.update(runpy.run_module(name[3:], run_name="__main__", alter_sys=True))
    else:
        _names.update(runpy.run_path(name, run_name="__main__"))


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


def _poll(pid: int) -> int | None:
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # the child of a parent that was killed, and was killed with it
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    _prepare(sys.argv[1])
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any
        if "wait" in question:
            answer = _wait(question["wait"], question["seconds"])
        elif "poll" in question:
            answer = _poll(question["poll"])
        else:
            order = question["fork"]
            answer = []
            for environment in order["environments"]:
                answer.append(_fork(order, environment))
                if answer[-1] == 0:
                    _run(order)
                    return
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
