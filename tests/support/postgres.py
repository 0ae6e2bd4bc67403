"""A temporary PostgreSQL cluster for tests and benchmarks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass
class PostgresCluster:
    """A PostgreSQL server on a free port, in a folder that goes away."""

    port: int
    restart: Callable[[], None]
    folder: Path
    count: int = 0

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The cluster answers nothing while the block runs: SIGSTOP to all of its processes."""
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        stopped = [int(child) for child in children]
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in [*stopped, postmaster]:
                os.kill(process, signal.SIGCONT)

    def new_database(self) -> str:
        """The URL of an empty database of its own."""
        import psycopg

        self.count += 1
        name = f"flerm_{self.count}"
        with psycopg.connect(
            f"postgresql://postgres@127.0.0.1:{self.port}/postgres", autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@contextmanager
def throwaway_cluster() -> Iterator[PostgresCluster]:
    """A temporary cluster made by initdb.

    For root it runs as the user postgres: PostgreSQL does not run as root.
    """
    folder = Path(tempfile.mkdtemp(prefix="flerm-postgres-"))
    as_owner = []
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
        folder.chmod(0o755)
        # `subprocess` would fork to change the user itself, and gRPC's handlers of a fork have
        # ended such a child by SIGSEGV before it became the tool.
        as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data = folder / "data"
    run = partial(
        _run_tool,
        as_owner,
        cwd=folder,
        timeout=60,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        tools = {name: postgres_tool(name) for name in ("initdb", "pg_ctl")}
        run(
            [
                tools["initdb"],
                "-D",
                str(data),
                "-U",
                "postgres",
                "--auth=trust",
                "--no-sync",
                "--encoding=UTF8",
            ]
        )
        port, start = _start_on_a_free_port(run, tools["pg_ctl"], data)
        try:
            yield PostgresCluster(port, lambda: run([*start, "-m", "immediate", "restart"]), folder)
        finally:
            run([tools["pg_ctl"], "-D", str(data), "-m", "immediate", "-w", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_on_a_free_port(
    run: Callable[[list[str]], None], pg_ctl: str, data: Path
) -> tuple[int, list[str]]:
    """Starts the cluster in `data`; its port, and the command that starts it again.

    Another program may take the port before PostgreSQL does, so that another port is tried. Raises
    `CalledProcessError`, with what the cluster said, when the third start fails.
    """
    folder = data.parent
    for is_last in (False, False, True):
        port = free_port()
        options = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} "
            "-c max_connections=200"
        )
        start = [pg_ctl, "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w"]
        try:
            run([*start, "start"])
        except subprocess.CalledProcessError as error:
            if is_last:
                error.add_note((folder / "log").read_text())
                raise
        else:
            break
    return port, start


def _run_tool(as_owner: list[str], command: list[str], **options: Any) -> None:
    """Runs a tool of PostgreSQL's as the owner of the cluster's folder.

    Raises `CalledProcessError` where the tool fails.
    """
    subprocess.run([*as_owner, *command], check=True, **options)


def postgres_tool(name: str) -> str:
    """The path of a tool of PostgreSQL's; Debian keeps them outside PATH.

    Raises `FileNotFoundError` without it.
    """
    found = shutil.which(name) or next(
        (
            str(path)
            for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
        ),
        None,
    )
    if found is None:
        raise FileNotFoundError(
            f"{name}: PostgreSQL's server binaries are not installed "
            "(Debian: apt-get install postgresql)"
        )
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, and that no connection takes by itself.

    The kernel gives connections ports from 32768 on.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
