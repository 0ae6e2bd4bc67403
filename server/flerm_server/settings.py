"""The settings of one server, and their defaults."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from flerm_core.errors import InvalidInput, Refused
from flerm_core.records.checks import check

DEFAULT_DB = "sqlite:///flerm.db"
LOOPBACK_NAMES = ("localhost",)
MAX_SECONDS = 31_536_000  # a year

# The first parts of our own paths. Under a root path of the same name they would be ambiguous.
PATHS = (
    "api", "compare", "docs", "families", "glossary", "healthz", "login", "logout", "match",
    "metrics", "openapi.json", "readyz", "recordings", "static",
)  # fmt: skip
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """HOST:PORT.

    port: 0 takes a free one.
    """

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
                f"{field} {text!r}: HOST:PORT is allowed, such as 127.0.0.1:50051; "
                "port 0 takes a free one"
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
        """HOST:PORT, as a URL has it: an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One server. All but the last two are options of `flerm serve`.

    db: the database's URL.
    grpc, http: where to listen for gRPC, and for REST, pages and metrics.
    tls_cert, tls_key: certificate chain and its private key, PEM files, for both ports.
    tls_terminated_upstream: a proxy in front speaks TLS, and only the proxy can reach the ports.
    insecure: listen on an address that others can reach, without tokens and TLS.
    announce: a file that the real addresses are written to.
    drain_seconds: how long calls in flight may take after SIGTERM.
    lease_seconds: how long a running recording may send nothing before it becomes interrupted.
    root_path: the path under which a proxy has the registry, such as /flerm; empty: none.
    trusted_proxies: addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto
        count, such as 10.0.0.0/8.
    allowed_origins: other sites whose pages may read REST (CORS), such as https://dash.example.
    recordings_per_token, families_per_token: how many recordings one token may start, and how many
        families it may make.
    attempts_per_recording: how often one recording may be opened.
    keepalive_seconds: how long a gRPC peer may be silent before it is asked whether it is there.
    connection_seconds: how old a gRPC connection grows before its client is asked to connect again,
        so that the load spreads over servers that were added.
    """

    db: str = DEFAULT_DB
    grpc: ListenAddress = ListenAddress("127.0.0.1", 50051)
    http: ListenAddress = ListenAddress("127.0.0.1", 8080)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_terminated_upstream: bool = False
    insecure: bool = False
    announce: Path | None = None
    drain_seconds: float = 10.0
    lease_seconds: float = 120.0
    root_path: str = ""
    trusted_proxies: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    recordings_per_token: int = 100_000
    families_per_token: int = 10_000
    attempts_per_recording: int = 1_000
    keepalive_seconds: float = 60.0
    connection_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Raises `InvalidInput` for wrong values.

        These are numbers of seconds out of range, and texts that are no path or no network.
        """
        for name in ("drain_seconds", "lease_seconds", "keepalive_seconds", "connection_seconds"):
            seconds = getattr(self, name)
            allowed = f"a number of seconds from 0 to {MAX_SECONDS}"
            check(0 <= seconds <= MAX_SECONDS, name, seconds, allowed)
        taken = self.root_path.split("/")[1:2]
        check(
            not self.root_path
            or (_ROOT_PATH.fullmatch(self.root_path) is not None and taken[0] not in PATHS),
            "root_path",
            self.root_path,
            "a path such as /flerm, without a slash at its end, whose first part is none of "
            f"{', '.join(PATHS)}",
        )
        for each in self.trusted_proxies:
            check(_is_network(each), "trusted_proxies", each, "an address or a network, 10.0.0.0/8")

    @property
    def secure(self) -> bool:
        """Whether clients reach the server by TLS."""
        return self.tls_cert is not None or self.tls_terminated_upstream

    @property
    def local_only(self) -> bool:
        """Whether only this host can reach the HTTP port: a request for another host is forged."""
        return self.http.loopback and not self.tls_terminated_upstream

    def opened(self, *, has_tokens: bool) -> list[str]:
        """What `insecure` opens, in sentences; none where nothing is."""
        if not self.insecure:
            return []
        where = [
            f"{name} {address.text}"
            for name, address in (("grpc", self.grpc), ("http", self.http))
            if not address.loopback or self.tls_terminated_upstream
        ]
        ports = " and ".join(where)
        found = []
        if where and not has_tokens:
            found.append(
                f"--insecure: whoever reaches {ports} may read, change and delete everything, "
                "because the registry has no tokens"
            )
        if where and not self.secure:
            found.append(
                f"--insecure: whoever is on the way to {ports} can read and change what is sent, "
                "tokens too, because there is no TLS"
            )
        return found

    def check(self, *, has_tokens: bool) -> None:
        """Raises `Refused` where others could reach the registry without a token, or without TLS.

        `insecure` allows both. Raises `InvalidInput` for a certificate without its key.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidInput(
                "tls_cert, tls_key: one is given without the other; give both or none"
            )
        if self.insecure:
            return
        for name, address in (("grpc", self.grpc), ("http", self.http)):
            if address.loopback and not self.tls_terminated_upstream:
                continue
            if not has_tokens:
                raise Refused(
                    f"{name} {address.text}: others could reach the registry there, and it has no "
                    "tokens; make the first with `flerm token create NAME --scope admin`, stay on "
                    "127.0.0.1, or add --insecure in a network that you trust"
                )
            if not self.secure:
                raise Refused(
                    f"{name} {address.text}: tokens would be read on their way there; give "
                    "--tls-cert and --tls-key, add --tls-terminated-upstream behind a proxy that "
                    "speaks TLS or, in a network that you trust, --insecure"
                )


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
