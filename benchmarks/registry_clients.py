"""Many clients at once: throughput, latency, errors, and whether every row is stored exactly once.

python benchmarks/registry_clients.py [--db URL|postgresql] [--clients 64] [--seconds 60]
"""

from __future__ import annotations

import argparse
import json
import threading
import time

import grpc
import numpy as np
from registry_bench import TENSORS, database, registry, request, start, summary

from flerm_client import RegistryClient
from flerm_proto.v1 import registry_pb2_grpc as rpc


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    values = np.random.default_rng(0).random(TENSORS, np.float32)
    seconds: list[float] = []
    errors: list[str] = []
    sent: dict[str, int] = {}
    with database(options.db) as (db, folder), registry(db, folder) as server:
        end = time.monotonic() + options.seconds

        def client() -> None:
            # Each client has a channel of its own, as client processes do not share one.
            with grpc.insecure_channel(
                server.address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                stub = rpc.RegistryStub(channel)
                recording = start(stub)
                step = 0
                while time.monotonic() < end:
                    started = time.perf_counter()
                    try:
                        stub.Append(request(recording, step + 1, 1, values), timeout=60)
                    except grpc.RpcError as error:
                        errors.append(str(error.details()))
                        continue
                    seconds.append(time.perf_counter() - started)
                    step += 1
                sent[recording] = step

        threads = [threading.Thread(target=client) for _ in range(options.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with RegistryClient(f"grpc://{server.address}") as reader:
            wrong = [
                each
                for each, rows in sent.items()
                if reader.trajectory(each).steps.tolist() != list(range(1, rows + 1))
            ]
    rows = sum(sent.values())
    print(
        json.dumps(
            {
                "clients": options.clients,
                "rows_per_s": round(rows / options.seconds),
                "rows": rows,
                "errors": len(errors),
                "first_error": errors[0] if errors else "",
                "recordings with lost or doubled rows": len(wrong),
                **summary(seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
