"""Ingest by two servers on one PostgreSQL against one server, in alternating rounds of one run.

python benchmarks/registry_replicas.py --db postgresql://...
    [--clients 8] [--rows 50] [--seconds 10] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
from registry_bench import TENSORS, registry, request, start

from flerm_proto.v1 import registry_pb2_grpc as rpc


def values_per_second(addresses: list[str], clients: int, rows: int, seconds: float) -> float:
    """The acknowledged values of `clients` channels that are shared out over the servers."""
    values = np.random.default_rng(0).random(TENSORS, np.float32)
    counts: list[int] = []
    end = time.monotonic() + seconds

    def client(address: str) -> None:
        with grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stub = rpc.RegistryStub(channel)
            recording = start(stub)
            step = 0
            while time.monotonic() < end:
                stub.Append(request(recording, step + 1, rows, values), timeout=60)
                step += rows
            counts.append(step)

    threads = [
        threading.Thread(target=client, args=(addresses[at % len(addresses)],))
        for at in range(clients)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * TENSORS / (time.perf_counter() - began)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        servers = []
        for at in range(2):
            folder = Path(name) / str(at)
            folder.mkdir()
            servers.append(stack.enter_context(registry(options.db, folder)).address)
        for _ in range(options.rounds):
            for count, rates in found.items():
                rates.append(
                    values_per_second(
                        servers[:count], options.clients, options.rows, options.seconds
                    )
                )
    one, two = (statistics.median(found[count]) for count in (1, 2))
    rounds = {str(count): [round(rate) for rate in rates] for count, rates in found.items()}
    print(
        json.dumps(
            {
                "values_per_second": rounds,
                "one": round(one),
                "two": round(two),
                "ratio": round(two / one, 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
