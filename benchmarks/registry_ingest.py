"""Durable ingest of 500-tensor measurements: values per second against the floors and peers, all in
one run.

    python benchmarks/registry_ingest.py [--db URL|postgresql] [--rounds 5]
        [--peers .cache/peers/bin/python]

The floor is the slower of two: the same rows in the same commits straight into the database, and
the same bytes over a gRPC method that does nothing. A single client waits for both, one after the
other, so `of_both` compares with their sum. Peers need an environment of their own:

    python -m venv .cache/peers
    .cache/peers/bin/pip install mlflow optuna grpcio protobuf
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from registry_bench import TENSORS, database, registry, request, start, summary
from registry_floors import bare_grpc, bare_postgres, bare_sqlite

MESSAGES = {1: 300, 50: 40}  # rows a message: messages


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="")
    options = parser.parse_args()
    with database(options.db) as (db, folder):
        results: dict[str, Any] = measured_ingest(db, folder, options.rounds)
    if options.peers:
        peers = subprocess.run(
            [options.peers, str(Path(__file__).with_name("registry_peers.py"))],
            check=True,
            capture_output=True,
            text=True,
        )
        theirs = json.loads(peers.stdout.splitlines()[-1])
        results["peers, values/s"] = theirs
        for rows in MESSAGES:
            mine = results[f"{rows} rows a message"]["values_per_s"]
            results[f"{rows} rows a message"]["times mlflow"] = round(mine / theirs["mlflow"])
            results[f"{rows} rows a message"]["times optuna"] = round(mine / theirs["optuna"])
    print(json.dumps(results, indent=2))


def measured_ingest(db: str, folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """What ingest by calls reaches on `db`, by the size of a message.

    folder: where a bare SQLite file is written.
    """
    values = np.random.default_rng(0).random(TENSORS, np.float32)
    found: dict[int, list[dict[str, Any]]] = {rows: [] for rows in MESSAGES}
    with bare_grpc() as bare, registry(db, folder) as server:
        for _ in range(rounds):
            for rows, count in MESSAGES.items():
                recording = start(server.stub)
                messages = [request(recording, 1 + at * rows, rows, values) for at in range(count)]
                raw = [message.SerializeToString() for message in messages]
                bare_database = bare_sqlite if db.startswith("sqlite") else bare_postgres
                place: Any = folder if db.startswith("sqlite") else db
                stored = bare_database(place, values.tobytes(), count, rows)
                called = bare.unary(raw)
                ours = []
                for message in messages:
                    started = time.perf_counter()
                    server.stub.Append(message, timeout=60)
                    ours.append(time.perf_counter() - started)
                found[rows].append({"database": stored, "grpc": called, "ours": ours})
    return {f"{rows} rows a message": _result(rows, its) for rows, its in found.items()}


def _result(rows: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    medians = [{name: median(seconds) for name, seconds in each.items()} for each in rounds]
    of_floor = [max(each["database"], each["grpc"]) / each["ours"] for each in medians]
    of_both = [(each["database"] + each["grpc"]) / each["ours"] for each in medians]
    times = {
        name: summary([one for each in rounds for one in each[name]])
        for name in ("database", "grpc", "ours")
    }
    seconds = median(each["ours"] for each in medians)
    return {
        "of_floor": round(median(of_floor), 2),
        "of_both": round(median(of_both), 2),
        "values_per_s": round(rows * TENSORS / seconds),
        **times,
    }


if __name__ == "__main__":
    main()
