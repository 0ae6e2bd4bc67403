"""Whatever dies in a server, the process ends with a sentence and a code, and never hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest

from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.rpc.handler_threads import HandlerThreads
from flerm_server.stop_request import StopRequest
from tests.conftest import RegistryProcess, launch_registry

REFUSED = 5
OVER = "def over(*_):\n    raise OverflowError('timestamp too large')\n"
# The clock passes the year 2262, which Python's clock cannot count to: uvicorn and gRPC ask for the
# time again and again.
CLOCK = f"import time\n{OVER}time.time = over\n"
HTTP = f"import uvicorn\n{OVER}uvicorn.Server.on_tick = over\n"
# A handler that no end of its call reaches.
STUCK = (
    "import threading\nfrom flerm_server.store.sql.store import SqlStore\n"
    "SqlStore.info = lambda _: threading.Event().wait()\nprint('stuck', flush=True)\n"
)
IN_FLIGHT = 'flerm_calls_in_flight{protocol="grpc"} 1.0'

Broken = Callable[[str], RegistryProcess]


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    """Starts a registry that runs the given lines when SIGUSR1 comes."""

    def start(lines: str) -> RegistryProcess:
        script = tmp_path / "serve.py"
        script.write_text(
            "import signal, sys\nimport flerm_server.server as server\n"
            "from flerm_server.cli import app\n"
            "server.STOP_SECONDS = 0.5\n"
            f"signal.signal(signal.SIGUSR1, lambda *_: exec({lines!r}, {{}}))\n"
            "app(sys.argv[1:], prog_name='flerm')\n"
        )
        options = ("--drain", "1")
        return launch_registry(
            f"sqlite:///{tmp_path}/registry.db",
            tmp_path / "announce.json",
            options=options,
            script=script,
        )

    return start


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (CLOCK, "ended by OverflowError, which is a bug; the log has the traceback"),
        pytest.param(HTTP, "'http' of the server ended by Over", marks=pytest.mark.slow),
    ],
    ids=["clock", "http"],
)
def test_a_server_one_of_whose_threads_dies_ends_with_a_sentence(
    broken: Broken, lines: str, says: str
):
    registry = broken(lines)
    os.kill(registry.process.pid, signal.SIGUSR1)
    assert registry.process.wait(60) == REFUSED
    output = "".join(registry.output)
    assert says in output
    assert output.splitlines()[-1].startswith("Error: the thread ")


@pytest.mark.slow
def test_a_call_that_never_ends_does_not_hold_the_process(broken: Broken):
    """SIGTERM comes twice, as from `timeout`, which signals the process and then its group."""
    registry = broken(STUCK)
    os.kill(registry.process.pid, signal.SIGUSR1)
    while "stuck\n" not in registry.output:
        assert registry.process.poll() is None
    with grpc.insecure_channel(registry.grpc) as channel:
        asked = rpc.RegistryStub(channel).ServerInfo.future(pb.ServerInfoRequest(), timeout=60)
        while IN_FLIGHT not in httpx.get(f"{registry.http}/metrics").text:
            assert not asked.done()
        os.kill(registry.process.pid, signal.SIGTERM)
        assert registry.stop(signal.SIGTERM) == REFUSED, "".join(registry.output)
        assert asked.exception() is not None
    assert "threads of the registry did not end, and were ended by force: grpc_" in "".join(
        registry.output
    )


# Two signals come at the nth and a later step of the wait, or of the handler itself.
AT_EACH_STEP = """
import signal, sys
from flerm_server.stop_request import StopRequest

def stop_at(steps):
    def trace(frame, event, argument):
        nonlocal passed
        frame.f_trace_opcodes = True
        passed += 1
        if passed in steps:
            signal.raise_signal(signal.SIGTERM)
        return trace

    passed, request = 0, StopRequest()
    with request.made_by_signals():
        sys.settrace(trace)
        while not request.wait(0.001):
            pass
        sys.settrace(None)

for first in range(1, 80):
    for later in (1, 30):
        stop_at((first, first + later))
print("stopped each time")
"""


def test_signals_end_the_wait_wherever_they_come():
    """SIGTERM comes twice, as from `timeout`, which signals the process and then its group."""
    done = subprocess.run(
        [sys.executable, "-c", AT_EACH_STEP], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("stopped each time\n"), done.stderr


def refuse_thread(_: threading.Thread) -> None:
    """As the system does at a container's limit of processes."""
    raise RuntimeError("can't start new thread")


def test_calls_are_answered_by_the_threads_that_are_there(monkeypatch: pytest.MonkeyPatch):
    """gRPC's one thread that hands out calls would die of the error, and the port with it."""
    begun, go_on = threading.Event(), threading.Event()
    with HandlerThreads(8) as threads:

        def work() -> str:
            begun.set()
            go_on.wait()
            return "first"

        first = threads.submit(work)
        begun.wait()
        monkeypatch.setattr(threading.Thread, "start", refuse_thread)
        second = threads.submit(lambda: "second")
        go_on.set()
        assert (first.result(), second.result()) == ("first", "second")


def test_a_terminal_that_closes_ends_a_server_cleanly_but_not_after_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        stop_request = StopRequest()
        with stop_request.made_by_signals():
            signal.raise_signal(signal.SIGHUP)
        assert stop_request.wait(0)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop_request = StopRequest()
        with stop_request.made_by_signals():
            signal.raise_signal(signal.SIGHUP)
        assert not stop_request.wait(0)
    finally:
        signal.signal(signal.SIGHUP, before)
