"""What `flerm serve` is told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from flerm_core.errors import InvalidInput, Refused
from flerm_core.records.checks import check

LOOPBACK_NAMES = ("localhost",)
MAX_SECONDS = 31_536_000  # a year


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """HOST:PORT. `text` is how it is written, IPv6 in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, field: str, text: str) -> ListenAddress:
        """Reads HOST:PORT or [IPV6]:PORT. Raises `InvalidInput` naming `field`."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if (
            not colon
            or not host
            or not port.isdecimal()
            or int(port) > 65535
            or (":" in host and not text.startswith("["))
        ):
            raise InvalidInput(
                f"{field} {text!r}: HOST:PORT is allowed, such as 127.0.0.1:50051; port 0 takes a free one"
            )
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

    `tls_cert`, `tls_key`: PEM files for both ports. `insecure`: listen beyond this host without tokens and TLS.
    `tls_terminated_upstream`: a proxy in front speaks TLS, and what arrives comes from it. `drain_seconds`: how long calls in
    flight may take after SIGTERM. `lease_seconds`: after how long a silent recording reads as interrupted. `announce`: a file
    that gets the real addresses. `keepalive_seconds`: after how long a silent peer is asked whether it is there.
    `connection_seconds`: how old a gRPC connection grows before its client is asked to connect anew, so that replicas share
    load. `allowed_origins`: other sites whose pages may read REST (CORS), such as https://dash.example.
    `recordings_per_token`: how many recordings one token may start.
    """

    db: str = "sqlite:///flerm.db"
    grpc: ListenAddress = ListenAddress("127.0.0.1", 50051)
    http: ListenAddress = ListenAddress("127.0.0.1", 8080)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    tls_terminated_upstream: bool = False
    drain_seconds: float = 10.0
    lease_seconds: float = 120.0
    announce: Path | None = None
    keepalive_seconds: float = 60.0
    connection_seconds: float = 300.0
    allowed_origins: tuple[str, ...] = ()
    recordings_per_token: int = 100_000

    @property
    def secure(self) -> bool:
        """Whether clients reach it by TLS."""
        return self.tls_cert is not None or self.tls_terminated_upstream

    @property
    def local_only(self) -> bool:
        """Whether every request for another host than this one must be forged."""
        return self.http.loopback and not self.tls_terminated_upstream

    def __post_init__(self) -> None:
        """Raises `InvalidInput` for a duration that is none."""
        for field in ("drain_seconds", "lease_seconds", "keepalive_seconds", "connection_seconds"):
            seconds = getattr(self, field)
            check(
                0 <= seconds <= MAX_SECONDS,
                field,
                seconds,
                f"a number of seconds from 0 to {MAX_SECONDS}",
            )

    def check(self, *, has_tokens: bool) -> None:
        """Raises `Refused` for a registry that others could reach without a token, or without TLS, unless `insecure`."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidInput(
                "tls_cert, tls_key: one is given without the other; give both or none"
            )
        if self.insecure:
            return
        for field, address in (("grpc", self.grpc), ("http", self.http)):
            if address.loopback and not self.tls_terminated_upstream:
                continue
            if not has_tokens:
                raise Refused(
                    f"{field} {address.text}: others could reach the registry there, and it has no tokens; make the first with "
                    f"`flerm token create NAME --scope admin`, stay on 127.0.0.1, or add --insecure in a network that you trust"
                )
            if not self.secure:
                raise Refused(
                    f"{field} {address.text}: tokens would be read on their way there; give --tls-cert and --tls-key, add "
                    "--tls-terminated-upstream behind a proxy that speaks TLS or, in a network that you trust, --insecure"
                )
