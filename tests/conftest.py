"""What tests share: a real registry in a process of its own, and a real PostgreSQL cluster, thrown away afterwards."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_SECONDS = 30


@dataclass
class RegistryProcess:
    """A `flerm serve` that answers. `grpc` is host:port, `http` a URL, `output` what it has printed so far."""

    process: subprocess.Popen[str]
    grpc: str
    http: str
    db: str
    output: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """As users write it."""
        return f"grpc://{self.grpc}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal, waits for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(START_SECONDS)


StartRegistry = Callable[..., RegistryProcess]


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """Starts registries: `start_registry(db=..., grpc="127.0.0.1:0", options=(...))`; all are stopped after the test."""
    started: list[RegistryProcess] = []

    def start(db: str | None = None, grpc: str = "127.0.0.1:0", http: str = "127.0.0.1:0", options: tuple[str, ...] = ()):
        url = db or f"sqlite:///{tmp_path}/registry.db"
        registry = launch_registry(url, tmp_path / f"announce-{len(started)}.json", grpc, http, options)
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
    program: tuple[str, ...] = ("-m", "flerm_server.cli"),
) -> RegistryProcess:
    """A registry that answers on both ports. Fails with its output when it does not come up. `program`: what Python runs."""
    command = [sys.executable, *program, "serve", "--db", db, "--grpc", grpc, "--http", http]
    process = subprocess.Popen(
        [*command, "--announce", str(announce), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output: list[str] = []
    ready = threading.Event()

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
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


@dataclass
class PostgresCluster:
    """A PostgreSQL server on a free port, in a folder that goes away."""

    port: int
    restart: Callable[[], None]
    count: int = 0

    def new_database(self) -> str:
        """The URL of an empty database of its own."""
        import psycopg

        self.count += 1
        name = f"flerm_{self.count}"
        with psycopg.connect(f"postgresql://postgres@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """A throw-away cluster made by initdb (as the user postgres when root: PostgreSQL does not run as root)."""
    folder = Path(tempfile.mkdtemp(prefix="flerm-postgres-"))
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
        folder.chmod(0o755)
    data, port = folder / "data", free_port()
    run = {"user": user, "group": pwd.getpwnam(user).pw_gid if user else None, "cwd": folder, "check": True, "timeout": 60}
    try:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        tools = {name: postgres_tool(name) for name in ("initdb", "pg_ctl")}
        subprocess.run(
            [tools["initdb"], "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"], **run, **quiet
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c max_connections=200"
        log = str(folder / "log")
        start = [tools["pg_ctl"], "-D", str(data), "-l", log, "-o", options, "-w"]
        subprocess.run([*start, "start"], **run, **quiet)
        try:
            yield PostgresCluster(port, lambda: subprocess.run([*start, "-m", "immediate", "restart"], **run, **quiet))
        finally:
            subprocess.run([tools["pg_ctl"], "-D", str(data), "-m", "immediate", "-w", "stop"], **run, **quiet)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def postgres_tool(name: str) -> str:
    """The path of a tool of PostgreSQL's; Debian keeps them outside PATH. Fails, not skips, without it."""
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        pytest.fail(
            f"{name} is not installed: the tests need PostgreSQL's server binaries (Debian: apt-get install postgresql)"
        )
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
