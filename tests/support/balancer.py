"""A TCP proxy before several servers: it takes them in turn and skips those that do not answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from itertools import count


class Balancer:
    """Listens on 127.0.0.1; `address` is host:port.

    `backends` may change at any time; `taken` counts connections to each.
    """

    def __init__(self, *backends: str) -> None:
        self.backends = list(backends)
        self.taken: Counter[str] = Counter()
        self._turn = count()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = self._connect()
        if server is None:
            client.close()
            return
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()
        client.close()
        server.close()

    def _connect(self) -> socket.socket | None:
        backends = list(self.backends)
        for _ in backends:
            address = backends[next(self._turn) % len(backends)]
            host, port = address.rsplit(":", 1)
            try:
                found = socket.create_connection((host, int(port)), timeout=5)
                found.settimeout(None)
                self.taken[address] += 1
                return found
            except OSError:
                continue
        return None


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
