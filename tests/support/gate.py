"""A proxy before a registry that can delay calls, refuse them, and ask for a token.

Run as `python gate.py TARGET`: one JSON line on standard output names its address. Each JSON line
on standard input sets what it does from then on, `{"delay": seconds, "code": status name or "",
"token": wanted or ""}`, and is answered by a line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc

STREAMS = ("GetTargets", "GetTrajectory")


class Front(grpc.GenericRpcHandler):
    """Every method of the registry at `target`, as bytes."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)])
        self.behaviour: dict[str, Any] = {"delay": 0.0, "code": "", "token": ""}
        self.closing = threading.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        if method.rpartition("/")[2] in STREAMS:
            return grpc.unary_stream_rpc_method_handler(partial(self._stream, method))
        return grpc.unary_unary_rpc_method_handler(partial(self._unary, method))

    def _unary(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        self._misbehave(context)
        try:
            return self.channel.unary_unary(method)(request, timeout=10.0)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
            raise

    def _stream(
        self, method: str, request: bytes, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        self._misbehave(context)
        try:
            yield from self.channel.unary_stream(method)(request, timeout=10.0)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())

    def _misbehave(self, context: grpc.ServicerContext) -> None:
        self.closing.wait(self.behaviour["delay"])
        given = dict(context.invocation_metadata()).get("authorization", "")
        if self.behaviour["token"] and given != f"Bearer {self.behaviour['token']}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token has expired")
        if self.behaviour["code"]:
            context.abort(grpc.StatusCode[self.behaviour["code"]], "refused by the test")


class Gate:
    """The proxy in a process of its own; clients use its `address`."""

    def __init__(self, target: str) -> None:
        command = [sys.executable, str(Path(__file__)), target]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address: str = json.loads(self._line())["address"]

    def behave(self, *, delay: float = 0.0, code: str = "", token: str = "") -> None:
        """From now on: wait `delay` seconds before each reply, refuse with status `code`, ask for
        `token`.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"delay": delay, "code": code, "token": token}) + "\n")
        self.process.stdin.flush()
        assert self._line() == "ok\n"

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10.0)
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def main(target: str) -> None:
    """Serves until standard input ends."""
    front = Front(target)
    server = grpc.server(ThreadPoolExecutor(16), handlers=[front])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"address": f"grpc://127.0.0.1:{port}"}), flush=True)
    for line in sys.stdin:
        front.behaviour = json.loads(line)
        print("ok", flush=True)
    front.closing.set()
    server.stop(0.0).wait()


if __name__ == "__main__":
    main(sys.argv[1])
