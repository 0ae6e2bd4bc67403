"""One trajectory read back: speed against a bare gRPC stream of the same bytes, and the memory of both sides for a long one.

python benchmarks/registry_read.py [--db URL]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from registry_bench import TENSORS, Running, registry, request, resident, start, summary
from registry_floors import bare_grpc

from flerm_client import RegistryClient

ROUNDS = 7


def fill(server: Running, tensors: int, steps: int) -> str:
    """A recording with so many rows; its id."""
    values = np.random.default_rng(0).random(tensors, np.float32)
    recording = start(server.stub, tensors)
    requests = (request(recording, first, 50, values) for first in range(1, steps + 1, 50))
    assert sum(each.committed for each in server.stub.AppendStream(requests, timeout=600)) == steps
    return recording


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        db = options.db or f"sqlite:///{folder}/registry.db"
        with bare_grpc() as bare, registry(db, folder) as server, RegistryClient(f"grpc://{server.address}") as client:
            short = fill(server, TENSORS, 1000)
            ours, floor = [], []
            for _ in range(ROUNDS):
                floor.append(bare.down(2, TENSORS * 1000 * 2))
                started = time.perf_counter()
                assert client.trajectory(short).values.shape == (1000, TENSORS)
                ours.append(time.perf_counter() - started)
        with registry(db, folder) as server, RegistryClient(f"grpc://{server.address}") as client:
            long = fill(server, 1000, 10_000)
        with registry(db, folder) as server, RegistryClient(f"grpc://{server.address}") as client:
            client.recording(long)
            idle, before = resident(server.pid), resident(os.getpid())
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
            values = client.trajectory(long).values
            result = {
                "500 x 1,000": {
                    "of_floor": round(median(floor) / median(ours), 2),
                    "values_per_s": round(1000 * TENSORS / median(ours)),
                    "grpc": summary(floor),
                    "ours": summary(ours),
                },
                "1,000 x 10,000": {
                    "server MiB above idle": round(resident(server.pid, "VmHWM") - idle, 1),
                    "client MiB above the array": round(resident(os.getpid(), "VmHWM") - before - values.nbytes / 2**20, 1),
                },
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
