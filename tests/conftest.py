"""What tests share: a real registry in its own process, and a real PostgreSQL cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forked import ServerProcess, start_server
from hypothesis import settings
from postgres import PostgresCluster, free_port, postgres_tool, throwaway_cluster

__all__ = [
    "PostgresCluster",
    "RegistryProcess",
    "StartRegistry",
    "free_port",
    "launch_registry",
    "postgres_tool",
    "throwaway_cluster",
]

START_SECONDS = 30
STOP_SECONDS = 30

# A shell without job control ignores Ctrl-C in what it starts in the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Two tests at a time share two cores: how long one example takes says nothing about the code.
settings.register_profile(
    "unhurried", settings.get_profile(settings.get_current_profile_name()), deadline=None
)
settings.load_profile("unhurried")


@dataclass
class RegistryProcess:
    """A `flerm serve` that answers.

    grpc: host:port. http: a URL. output: the lines that the process has printed so far.
    """

    process: ServerProcess | subprocess.Popen[bytes]
    grpc: str
    http: str
    db: str
    output: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """As users write it."""
        return f"grpc://{self.grpc}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal, waits for the end; the exit code.

        A registry that does not end is aborted, and its output then holds the stack of each thread.
        """
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            return self.process.wait(STOP_SECONDS)


StartRegistry = Callable[..., RegistryProcess]


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """Starts registries: `start_registry(db=..., grpc="127.0.0.1:0", options=(...))`.

    All of them are stopped after the test.
    """
    started: list[RegistryProcess] = []

    def start(
        db: str | None = None,
        grpc: str = "127.0.0.1:0",
        http: str = "127.0.0.1:0",
        options: tuple[str, ...] = (),
    ):
        url = db or f"sqlite:///{tmp_path}/registry.db"
        registry = launch_registry(
            url, tmp_path / f"announce-{len(started)}.json", grpc, http, options
        )
        started.append(registry)
        return registry

    yield start
    for registry in started:
        if registry.stop() != 0 and registry.process.returncode != -signal.SIGKILL:
            pytest.fail("".join(registry.output))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """One registry on SQLite for the whole run: tests that share it use families of their own."""
    folder = tmp_path_factory.mktemp("registry")
    process = launch_registry(f"sqlite:///{folder}/registry.db", folder / "announce.json")
    yield process
    assert process.stop() == 0, "".join(process.output)


def launch_registry(
    db: str,
    announce: Path,
    grpc: str = "127.0.0.1:0",
    http: str = "127.0.0.1:0",
    options: tuple[str, ...] = (),
    script: Path | None = None,
) -> RegistryProcess:
    """Starts a registry and waits until it answers on both ports.

    script: what a new interpreter runs in place of `flerm_server.cli`. The test fails with the
    output of a registry that does not start.
    """
    arguments = ("--db", db, "--grpc", grpc, "--http", http, "--announce", str(announce), *options)
    read_end, write_end = os.pipe()
    try:
        process = _start(script, ("serve", *arguments), write_end)
    finally:
        os.close(write_end)
    output: list[str] = []
    ready = threading.Event()

    def follow() -> None:
        with os.fdopen(read_end) as printed:
            for line in printed:
                output.append(line)
                if line.startswith("registry: "):
                    ready.set()
        ready.set()

    threading.Thread(target=follow, daemon=True).start()
    if not ready.wait(START_SECONDS) or not announce.exists():
        process.kill()
        process.wait()
        pytest.fail(f"the registry did not start: {''.join(output)}")
    addresses = json.loads(announce.read_text())
    announce.unlink()
    return RegistryProcess(process, addresses["grpc"], f"http://{addresses['http']}", db, output)


def _start(
    script: Path | None, arguments: tuple[str, ...], output: int
) -> ServerProcess | subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    if script is None:
        return start_server(*arguments, environment=environment, output=output)
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], env=environment, stdout=output, stderr=output
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """A throw-away cluster. Fails, not skips, without PostgreSQL."""
    with throwaway_cluster() as cluster:
        yield cluster
