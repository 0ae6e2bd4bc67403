"""The common part of the registry benchmarks: a server in a process of its own, messages of the
usual size, percentiles.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from flerm_core.records.recording import Measurement, ParameterList, RecordingSpec, now
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc

TENSORS = 500


@dataclass(frozen=True)
class Running:
    """A running registry."""

    address: str
    url: str
    pid: int
    stub: rpc.RegistryStub


@contextmanager
def database(asked: str) -> Iterator[tuple[str, Path]]:
    """The URL of the database to measure on, and a folder.

    wish: empty for a SQLite file in the folder, "postgresql" for a temporary cluster, or a URL.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        url = asked or f"sqlite:///{folder}/registry.db"
        if asked == "postgresql":
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
            from postgres import throwaway_cluster

            url = stack.enter_context(throwaway_cluster()).new_database()
        yield url, folder


@contextmanager
def registry(db: str, folder: Path) -> Iterator[Running]:
    """`flerm serve` on `db` in a process of its own."""
    if db.startswith("postgresql"):
        subprocess.run(
            [sys.executable, "-m", "flerm_server.cli", "db", "upgrade", "--db", db],
            check=True,
            capture_output=True,
        )
    announce = folder / "announce.json"
    command = [
        sys.executable,
        "-m",
        "flerm_server.cli",
        "serve",
        "--db",
        db,
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ]
    process = subprocess.Popen(
        [*command, "--announce", str(announce), "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("registry: ")
        announced = json.loads(announce.read_text())
        with grpc.insecure_channel(announced["grpc"]) as channel:
            yield Running(
                announced["grpc"],
                f"http://{announced['http']}",
                process.pid,
                rpc.RegistryStub(channel),
            )
    finally:
        process.terminate()
        process.wait()


def start(stub: rpc.RegistryStub, tensors: int = TENSORS) -> str:
    """Starts a recording of `tensors` tensors and returns its id."""
    names = tuple(f"layers.{at}.weight" for at in range(tensors))
    parameters = ParameterList(names, ((4, 4),) * tensors, ("feed-forward",) * tensors)
    spec = RecordingSpec(family="benchmark", lr=1e-3, parameters=parameters, optimizer="Adam")
    stub.StartRecording(
        pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(spec)), timeout=60
    )
    return spec.id


def request(recording_id: str, first: int, rows: int, values: np.ndarray) -> pb.AppendRequest:
    """An append request of `rows` rows, the first of them at step `first`."""
    return pb.AppendRequest(
        recording_id=recording_id,
        measurements=[
            recording_messages.measurement_to_proto(
                Measurement(
                    step=step,
                    values=values,
                    loss=1.0,
                    learning_rate=1e-3,
                    tokens=step,
                    measured_at=now(),
                )
            )
            for step in range(first, first + rows)
        ],
    )


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    found = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50_ms": round(float(found[0]), 3), "p99_ms": round(float(found[1]), 3)}


def resident(pid: int, field: str = "VmRSS") -> float:
    """Memory of a process in MiB; `VmHWM` is its peak."""
    line = next(
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) / 1024
