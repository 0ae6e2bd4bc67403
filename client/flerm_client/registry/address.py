"""What surrounds a client: the registry's address, the token, a child process's environment."""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flerm_core.errors import InvalidInput, Unauthenticated

DEFAULT_PORT = 50051
_FORMS = "grpc://host:port, grpcs://host:port (TLS) or file:///folder"

Token = Callable[[], str]
"""Gives the present token, empty for none. Asked at every connection, so that a rotated token file is seen."""


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """A registry's address, taken apart. `folder` for file://, else `target` ("host:port")."""

    text: str
    scheme: str
    target: str = ""
    folder: Path | None = None

    @property
    def local(self) -> bool:
        """Whether it is a loopback address, where no proxy belongs."""
        host = self.target.rpartition(":")[0].strip("[]")
        return host in ("localhost", "::1") or host.startswith("127.")


def address_of(registry: str | os.PathLike[str] | None = None) -> RegistryAddress:
    """The address that `registry`, or else FLERM_REGISTRY, names. Raises `InvalidInput` for none or another form."""
    text = str(registry) if registry is not None else os.environ.get("FLERM_REGISTRY", "")
    if not text:
        raise InvalidInput(
            f"no registry is named: give an address ({_FORMS}) or set FLERM_REGISTRY"
        )
    wrong = InvalidInput(f"registry: {text!r} is no address; allowed are {_FORMS}")
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
    """Where the token comes from: `token`, else FLERM_TOKEN, else the file that FLERM_TOKEN_FILE names, read anew each time.

    A file that cannot be read is told when the token is asked for: `Unauthenticated` (it may be there again in a moment).
    """

    def present() -> str:
        if token is not None:
            return token
        if given := os.environ.get("FLERM_TOKEN"):
            return given.strip()
        if named := os.environ.get("FLERM_TOKEN_FILE"):
            try:
                return Path(named).expanduser().read_text().strip()
            except OSError as error:
                raise Unauthenticated(
                    f"FLERM_TOKEN_FILE: {named} cannot be read ({error.strerror})"
                ) from error
        return ""

    return present


def _package_roots() -> list[str]:
    """The folders our packages were imported from, where an interpreter started afresh would not look by itself."""
    known = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
        *site.getsitepackages(),
    }
    roots = []
    for package in ("flerm_client", "flerm_proto", "flerm_core"):
        spec = util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            root = str(Path(place).resolve().parent)
            if root not in known and root not in roots:
                roots.append(root)
    return roots


def child_environment(token: str | None = None) -> dict[str, str]:
    """The environment for a `python -m flerm_client...` child: ours, our packages found, the token handed on unseen by `ps`."""
    environment = dict(os.environ)
    inherited = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [*inherited, *(root for root in _package_roots() if root not in inherited)]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    if token is not None:
        environment["FLERM_TOKEN"] = token
    return environment


def child_command(module: str, *arguments: str) -> list[str]:
    """The command line for a child. `-P`: a file called `grpc.py` in the working directory is not grpc."""
    return [sys.executable, "-P", "-m", module, *arguments]
