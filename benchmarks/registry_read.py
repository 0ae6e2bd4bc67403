"""One trajectory read back.

    python benchmarks/registry_read.py [--db URL|postgresql]

It compares gRPC with a bare stream of the same bytes, and Parquet over HTTP with gRPC, and prints
the memory of both sides for a long trajectory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from registry_bench import TENSORS, Running, database, registry, request, resident, start, summary
from registry_floors import bare_grpc

from flerm_client import RegistryClient

ROUNDS = 7


def fill(server: Running, tensors: int, steps: int) -> str:
    """Stores a recording of `steps` rows and returns its id."""
    values = np.random.default_rng(0).random(tensors, np.float32)
    recording = start(server.stub, tensors)
    for first in range(1, steps + 1, 50):
        answer = server.stub.Append(request(recording, first, 50, values), timeout=60)
        assert answer.committed == 50
    return recording


def parquet(server: Running, recording: str) -> None:
    """Downloads a recording as Parquet."""
    url = f"{server.url}/api/v1/recordings/{recording}/trajectory?format=parquet"
    subprocess.run(["curl", "--fail", "--silent", "--output", "/dev/null", url], check=True)


def seconds(call: Callable[[], object]) -> float:
    """The seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="")
    options = parser.parse_args()
    with database(options.db) as (db, folder):
        with (
            bare_grpc() as bare,
            registry(db, folder) as server,
            RegistryClient(f"grpc://{server.address}") as client,
        ):
            short = fill(server, TENSORS, 1000)
            ours, floor, http = [], [], []
            for _ in range(ROUNDS):
                floor.append(bare.down(2, TENSORS * 1000 * 2))
                ours.append(seconds(lambda: client.trajectory(short)))
                http.append(seconds(lambda: parquet(server, short)))
        with registry(db, folder) as server, RegistryClient(f"grpc://{server.address}") as client:
            long = fill(server, 1000, 10_000)
        with registry(db, folder) as server, RegistryClient(f"grpc://{server.address}") as client:
            client.recording(long)
            idle, before = resident(server.pid), resident(os.getpid())
            Path("/proc/self/clear_refs").write_text("5")  # the peak is reset here
            values = client.trajectory(long).values
            peak, own = (
                resident(server.pid, "VmHWM") - idle,
                resident(os.getpid(), "VmHWM") - before,
            )
            long_ours = [seconds(lambda: client.trajectory(long)) for _ in range(3)]
        with registry(db, folder) as server:
            httpx.get(f"{server.url}/readyz")
            idle_http = resident(server.pid)
            long_http = [seconds(lambda: parquet(server, long)) for _ in range(3)]
            peak_http = resident(server.pid, "VmHWM") - idle_http
            result = {
                "500 x 1,000": {
                    "of_floor": round(median(floor) / median(ours), 2),
                    "values_per_s": round(1000 * TENSORS / median(ours)),
                    "grpc": summary(floor),
                    "ours": summary(ours),
                    "parquet": summary(http),
                    "parquet_of_ours": round(median(http) / median(ours), 2),
                },
                "1,000 x 10,000": {
                    "server MiB above idle": round(peak, 1),
                    "server MiB above idle, parquet": round(peak_http, 1),
                    "client MiB above the array": round(own - values.nbytes / 2**20, 1),
                    "ours": summary(long_ours),
                    "parquet": summary(long_http),
                    "parquet_of_ours": round(median(long_http) / median(long_ours), 2),
                },
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
