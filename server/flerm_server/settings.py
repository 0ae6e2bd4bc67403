"""What `flerm serve` is told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from flerm_core.errors import InvalidInput, Refused

LOOPBACK_NAMES = ("localhost",)


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT. `text` is how it is written, IPv6 in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, field: str, text: str) -> Address:
        """Reads HOST:PORT or [IPV6]:PORT. Raises `InvalidInput` naming `field`."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if not colon or not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not text.startswith("[")):
            raise InvalidInput(f"{field} {text!r}: HOST:PORT is allowed, such as 127.0.0.1:50051; port 0 takes a free one")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this host can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host in LOOPBACK_NAMES

    @property
    def text(self) -> str:
        """As it is written in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One server.

    `drain_seconds`: how long calls in flight may take after SIGTERM. `lease_seconds`: after how long a silent recording reads
    as interrupted. `announce`: a file that gets the real addresses. `allowed_origins`: other sites
    whose pages may read REST (CORS), such as https://dash.example.
    """

    db: str = "sqlite:///flerm.db"
    grpc: Address = Address("127.0.0.1", 50051)
    http: Address = Address("127.0.0.1", 8080)
    insecure: bool = False
    drain_seconds: float = 10.0
    lease_seconds: float = 120.0
    announce: Path | None = None
    keepalive_seconds: float = 60.0
    allowed_origins: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises `Refused` for an address that others can reach, unless `insecure`."""
        for field, address in (("grpc", self.grpc), ("http", self.http)):
            if not address.loopback and not self.insecure:
                raise Refused(
                    f"{field} {address.text}: others could reach the registry there, and this version has no tokens yet; "
                    "stay on 127.0.0.1 or, in a network that you trust, add --insecure"
                )
