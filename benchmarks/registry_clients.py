"""Many clients at once, beside readers of a family of 20,000 recordings: throughput, latency,
errors, memory, and whether every row is stored exactly once with its values.

python benchmarks/registry_clients.py [--db URL|postgresql] [--clients 64] [--readers 0]
    [--seconds 60]
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import registry_scale_fill as stock
from registry_bench import TENSORS, database, registry, request, resident, start, summary

from flerm_client import RegistryClient
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.store.sql import schema
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine
from flerm_server.store.sql.store import SqlStore

PATIENCE = 60.0  # seconds for one call or page


class Load:
    """What the clients and readers of one server did; all of them write to it."""

    def __init__(self, server: str, web: str, seconds: float) -> None:
        self._server, self._web = server, web
        self._end = time.monotonic() + seconds
        self.appends: list[float] = []
        self.pages: list[float] = []
        self.errors: list[str] = []
        self.sent: dict[str, tuple[int, int]] = {}  # by recording: its client and its rows

    def client(self, number: int) -> None:
        """Appends to one recording until the time is over."""
        # Each client has a channel of its own, as client processes do not share one.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._server, options=options) as channel:
            stub = rpc.RegistryStub(channel)
            recording, step = start(stub), 0
            while time.monotonic() < self._end:
                message = request(recording, step + 1, 1, values_of(number, step + 1))
                started = time.perf_counter()
                try:
                    stub.Append(message, timeout=PATIENCE)
                except grpc.RpcError as error:
                    self.errors.append(str(error.details()))
                    continue
                self.appends.append(time.perf_counter() - started)
                step += 1
            self.sent[recording] = number, step

    def reader(self, number: int) -> None:
        """Loads the family's page or figure, one after the other, until the time is over."""
        page, figure = f"/families/{stock.LARGE}", f"/api/v1/families/{stock.LARGE}/figure"
        address = page if number % 2 else figure
        with httpx.Client(base_url=self._web, timeout=PATIENCE) as web:
            while time.monotonic() < self._end:
                started = time.perf_counter()
                answer = web.get(address)
                self.pages.append(time.perf_counter() - started)
                if answer.status_code != httpx.codes.OK:
                    self.errors.append(answer.text)

    def wrong(self) -> list[str]:
        """The recordings in which a row is missing, doubled, or has other values than were sent."""
        found = []
        with RegistryClient(f"grpc://{self._server}") as reader:
            for recording, (number, rows) in self.sent.items():
                stored = reader.trajectory(recording)
                steps = list(range(1, rows + 1))
                sent = [values_of(number, step) for step in steps]
                if stored.steps.tolist() != steps or not np.array_equal(stored.values, sent):
                    found.append(recording)
        return found


def values_of(client: int, step: int) -> np.ndarray:
    """The FSLRs that a client sends at a step. No two steps or clients have the same."""
    values = np.arange(client, client + TENSORS, dtype=np.float32)
    values[0] = step
    return values


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--readers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with database(options.db) as (db, folder):
        if options.readers:
            _fill(db)
        with registry(db, folder) as server:
            load = Load(server.address, server.url, options.seconds)
            threads = [
                threading.Thread(target=act, args=(number,))
                for act, count in ((load.client, options.clients), (load.reader, options.readers))
                for number in range(count)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            peak = resident(server.pid, "VmHWM")
            wrong = load.wrong()
    rows = sum(count for _, count in load.sent.values())
    result = {
        "clients": options.clients,
        "readers": options.readers,
        "load_average": Path("/proc/loadavg").read_text().split()[0],
        "rows": rows,
        "rows_per_s": round(rows / options.seconds),
        "append": summary(load.appends),
        "pages": len(load.pages),
        "errors": len(load.errors),
        "first_error": load.errors[0] if load.errors else "",
        "recordings with lost, doubled or other rows": len(wrong),
        "rss_mib": round(peak),
    }
    if load.pages:
        result["page"] = summary(load.pages)
    print(json.dumps(result))


def _fill(db: str) -> None:
    """Stores the family that the readers ask about."""
    engine = open_engine(parse_url(db))
    schema.upgrade(engine)
    store = SqlStore(engine)
    template = stock.recorded_template(store, "lab/one", stock.TENSORS)
    stock.fill_family(store, template, stock.LARGE, list(stock.sweep(stock.RATES, 400, 100)), "")
    store.close()


if __name__ == "__main__":
    main()
