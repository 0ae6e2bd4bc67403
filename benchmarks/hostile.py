"""What hostile clients cost the others: p99 and the server's memory, against a quiet server.

python benchmarks/hostile.py [--seconds 8] [--connections 4 40 400]

Half of the hostile connections hold gRPC calls whose message never comes, and open a further one
each second. The other half ask over HTTP for long answers and do not read them. They have no token,
or one read token. A call of an honest client that gets no answer counts as 5 s.

The hostile process takes processor time from everybody, whomever it attacks. The same attack on
another registry of this machine is therefore the floor ("elsewhere").
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from registry_bench import resident

from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc

METHOD = "/flerm.registry.v1.Registry/GetTargets"
CALLS = 8  # half-open ones on a connection, at once


def hostile(announced: dict[str, Any], token: str, connections: int, seconds: float) -> None:
    """Holds `connections` open for `seconds`."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(announced["grpc"], options) for _ in range(connections // 2)]
    calls = [
        channel.stream_stream(METHOD, lambda each: each, lambda each: each) for channel in channels
    ]
    path = "/api/v1/families" if token else "/static/plotly.min.js"
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    readers: list[socket.socket] = []
    held: list[Any] = []
    end = time.monotonic() + seconds
    opened = -1
    while time.monotonic() < end:
        held = [each for each in held if not each.done()]
        if opened != int(time.monotonic()):
            opened = int(time.monotonic())
            more = calls * CALLS if not held else calls
            held += [call(nothing(), metadata=metadata) for call in more]
        if len(readers) < connections - len(channels):
            host, port = announced["http"].rsplit(":", 1)
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((host, int(port)))
            # Pipelined: with each answer that it would read there is one more to make.
            reader.sendall((head + "\r\n").encode() * 4)
            readers.append(reader)
        time.sleep(0.01)
    over.set()
    for each in held:
        each.cancel()


def others(announced: dict[str, Any], token: str, seconds: float) -> dict[str, float]:
    """The p99 of an honest client's calls, in milliseconds, by port; and the most memory (MiB)."""
    took: dict[str, list[float]] = {"grpc": [], "http": []}
    memory = 0.0
    end = time.monotonic() + seconds
    with (
        grpc.insecure_channel(announced["grpc"]) as channel,
        httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=5) as http,
    ):
        stub = rpc.RegistryStub(channel)
        metadata = [("authorization", f"Bearer {token}")]
        url = f"http://{announced['http']}/api/v1/families"
        while time.monotonic() < end:
            started = time.perf_counter()
            with suppress(grpc.RpcError):
                stub.ServerInfo(pb.ServerInfoRequest(), metadata=metadata, timeout=5)
            took["grpc"].append(time.perf_counter() - started)
            started = time.perf_counter()
            with suppress(httpx.TimeoutException):
                http.get(url).raise_for_status()
            took["http"].append(time.perf_counter() - started)
            memory = max(memory, resident(announced["pid"]))
            time.sleep(0.005)
    p99 = {port: 1e3 * float(np.quantile(each, 0.99)) for port, each in took.items()}
    return {port: round(value, 1) for port, value in p99.items()} | {"rss": round(memory, 1)}


def main() -> None:
    """Prints a JSON object for the quiet server and for each attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--connections", type=int, nargs="+", default=[4, 40, 400])
    options = parser.parse_args()
    with registry() as (attacked, honest, reader), registry() as (elsewhere, _, reader_elsewhere):
        others(attacked, honest, 2)  # the first calls are slower
        print(json.dumps({"quiet": others(attacked, honest, options.seconds)}), flush=True)
        for who, tokens in (("no token", ("", "")), ("read token", (reader_elsewhere, reader))):
            for count in options.connections:
                for where, target, token in zip(
                    ("elsewhere", "here"), (elsewhere, attacked), tokens, strict=True
                ):
                    attack = multiprocessing.get_context("spawn").Process(
                        target=hostile, args=(target, token, count, options.seconds + 4)
                    )
                    attack.start()
                    time.sleep(2)
                    found = others(attacked, honest, options.seconds)
                    attack.join()
                    print(json.dumps({f"{who}, {count} connections, {where}": found}), flush=True)


@contextmanager
def registry() -> Iterator[tuple[dict[str, Any], str, str]]:
    """A registry: what it announces, a token of scope write, and one of scope read."""
    flerm = [sys.executable, "-m", "flerm_client.cli"]
    with tempfile.TemporaryDirectory() as folder:
        url, announce = f"sqlite:///{folder}/registry.db", Path(folder) / "announce.json"
        made = [*flerm, "token", "create", "--db", url, "--scope"]
        honest, reader = (
            subprocess.run([*made, scope, scope], check=True, capture_output=True, text=True)
            .stdout.strip()
            .splitlines()[-1]
            for scope in ("write", "read")
        )
        serve = [*flerm, "serve", "--db", url, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        server = subprocess.Popen(
            [*serve, "--announce", str(announce), "--log-level", "error"], stdout=subprocess.DEVNULL
        )
        try:
            while not announce.exists():
                time.sleep(0.1)
            yield json.loads(announce.read_text()), honest, reader
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
