"""A registry's address and the token that it asks for."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flerm_core.errors import InvalidInput, Unauthenticated

DEFAULT_PORT = 50051
INSECURE = "FLERM_INSECURE"
"""The environment variable that, set to 1, lets tokens be sent without TLS."""

_FORMS = "grpc://host:port, grpcs://host:port (TLS) or file:///folder"

Token = Callable[[], str]
"""Returns the current token, or an empty string for none.

It is called for every request, so that a token file that was rotated is noticed.
"""


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """The parts of a registry's address: `folder` for file://, else `target` ("host:port")."""

    text: str
    scheme: str
    target: str = ""
    folder: Path | None = None

    @property
    def local(self) -> bool:
        """Whether the address is on the loopback interface, to which no proxy leads."""
        host = self.target.rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:  # a name; one such as 127.example.org may lead anywhere
            return host == "localhost"

    @property
    def is_open(self) -> bool:
        """Whether others could read a token on its way, and nobody has allowed that."""
        allowed = os.environ.get(INSECURE) == "1"
        return self.scheme == "grpc" and not self.local and not allowed

    def refuse_open_token(self, token: str | None) -> None:
        """Raises `Unauthenticated` where a token is to be sent that others could read on its way.

        token: the token that was given; None: the environment may have one.
        """
        given = token or os.environ.get("FLERM_TOKEN") or os.environ.get("FLERM_TOKEN_FILE")
        if self.is_open and given:
            raise Unauthenticated(
                f"the token is not sent to {self.text}, because others could read it on its way: "
                f"use grpcs:// or, in a network that you trust, set {INSECURE}=1"
            )


def address_of(registry: str | os.PathLike[str] | None = None) -> RegistryAddress:
    """The address that `registry` names, or FLERM_REGISTRY where `registry` is None.

    Raises `InvalidInput` when neither is given, or when the address has another form.
    """
    text = str(registry) if registry is not None else os.environ.get("FLERM_REGISTRY", "")
    if not text:
        raise InvalidInput(
            f"no registry is named: give an address ({_FORMS}) or set FLERM_REGISTRY"
        )
    shown = re.sub(r"//.*@", "//", text)  # what stands there may be a password
    wrong = InvalidInput(f"registry: {shown!r} is no address; allowed are {_FORMS}")
    parts = urlsplit(text)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise wrong
        return RegistryAddress(text, "file", folder=Path(unquote(parts.path)))
    if (
        parts.scheme not in ("grpc", "grpcs")
        or parts.path not in ("", "/")
        or parts.query
        or "@" in parts.netloc
    ):
        raise wrong
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if not host or not re.fullmatch(r"[\w.:%-]+", host):
        raise wrong
    host = f"[{host}]" if ":" in host else host
    return RegistryAddress(text, parts.scheme, target=f"{host}:{port or DEFAULT_PORT}")


def token_of(token: str | None = None) -> Token:
    """A function that returns `token`, else FLERM_TOKEN, else what the file FLERM_TOKEN_FILE holds.

    The function reads the file at each call. It raises `Unauthenticated` when the file cannot be
    read; a later call may find the file again.
    """

    def current_token() -> str:
        if token is not None:
            return token
        if given := os.environ.get("FLERM_TOKEN"):
            return given.strip()
        if named := os.environ.get("FLERM_TOKEN_FILE"):
            try:
                return Path(named).expanduser().read_text("utf-8", "replace").strip()
            except OSError as error:
                raise Unauthenticated(
                    f"FLERM_TOKEN_FILE: {named} cannot be read ({error.strerror})"
                ) from error
        return ""

    return current_token
