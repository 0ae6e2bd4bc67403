"""The URL of a database: which are allowed, and how one is shown without what is secret in it."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from flerm_core.errors import InvalidInput, Refused

ALLOWED = "sqlite:///FILE or postgresql://USER@HOST/DATABASE is allowed"


def parse_url(text: str) -> sa.URL:
    """The URL of a database that a server can use. Raises `InvalidInput` for any other.

    A PostgreSQL URL may have what libpq allows: several hosts (`h1:5432,h2:5432`), and libpq's
    options after a question mark. Several hosts become the options `host` and `port` of the query.
    """
    try:
        url = _make_url(text)
    except (exc.ArgumentError, ValueError):
        raise InvalidInput(f"db {without_secrets(text)!r}: {ALLOWED}") from None
    kind = url.get_backend_name()
    if kind == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
        _check_options(url)
        return url
    if kind != "sqlite":
        raise InvalidInput(f"db {without_secrets(text)!r}: {ALLOWED}")
    if url.database in (None, "", ":memory:") or "mode=memory" in text:
        raise InvalidInput(
            f"db {without_secrets(text)!r}: a registry needs a file; "
            "a database in memory would lose what was acknowledged"
        )
    if url.query or str(url.database).startswith("file:"):
        raise InvalidInput(f"db {without_secrets(text)!r}: sqlite:///FILE takes no options")
    return url


def _make_url(text: str) -> sa.URL:
    scheme, separator, rest = text.partition("://")
    authority, slash, tail = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if not scheme.startswith("postgres") or "," not in hosts:
        return sa.make_url(text.replace("postgres://", "postgresql://", 1))
    names, ports = [], []
    for each in hosts.split(","):
        found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d+))?", each)
        if found is None:
            raise ValueError(each)
        names.append(found[1] or found[2])
        ports.append(found[3] or "")
    url = sa.make_url(f"{scheme}{separator}{user}{at}{slash}{tail}")
    several = {"host": ",".join(names), "port": ",".join(ports)}
    # Of several hosts the one that can write is meant, wherever the URL does not say otherwise.
    return url.set(query={"target_session_attrs": "read-write", **url.query, **several})


def _check_options(url: sa.URL) -> None:
    """Raises `InvalidInput` for an option that libpq does not have, `Refused` without psycopg."""
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import make_conninfo
    except ImportError as error:
        raise Refused(
            f"db {public_name(url)}: PostgreSQL needs psycopg: pip install 'flerm[postgres]'"
        ) from error
    try:
        make_conninfo("", **libpq_options(url))
    except ProgrammingError as error:
        reason = str(error).strip()
        raise InvalidInput(f"db {public_name(url)}: {reason}; use options of libpq only") from None


def libpq_options(url: sa.URL) -> dict[str, str]:
    """The options of libpq that a PostgreSQL URL stands for."""
    named = {"user": url.username, "password": url.password, "host": url.host}
    named |= {"port": None if url.port is None else str(url.port), "dbname": url.database}
    query = {name: value if isinstance(value, str) else ",".join(value)
             for name, value in url.query.items()}  # fmt: skip
    return {name: str(value) for name, value in named.items() if value is not None} | query


def public_name(url: sa.URL) -> str:
    """The database in messages: without user, password and options."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database}"
    options = libpq_options(url)
    hosts = options.get("host", "").split(",")
    ports = options.get("port", "").split(",")
    ports = ports if len(ports) == len(hosts) else ports * len(hosts)
    where = ",".join(
        host + (f":{port}" if port else "") for host, port in zip(hosts, ports, strict=False)
    )
    return f"postgresql://{where}/{options.get('dbname', '')}"


def places(url: sa.URL) -> tuple[str, ...]:
    """How sentences name the database, what is longest first: a name may have blanks."""
    if url.get_backend_name() != "sqlite":
        return (public_name(url),)
    named, file = Path(url.database or ""), database_file(url)
    found = {each for path in (named, file) for each in (path, path.absolute())}
    found |= {each.parent for each in found if each.is_absolute() and each.parent.name}
    texts = {f"{scheme}{each}" for each in found for scheme in ("", "sqlite:///")}
    return tuple(sorted(texts, key=len, reverse=True))


def without_secrets(text: str) -> str:
    """A text that should have been a URL, without what may be a password in it."""
    of_libpq = re.sub(r"password\s*=.*", "password=…", text, flags=re.DOTALL)
    return re.sub(r"\?.*", "", re.sub(r"//.*@", "//", of_libpq, flags=re.DOTALL), flags=re.DOTALL)


def database_file(url: sa.URL) -> Path:
    """The file of a SQLite database, as it is now."""
    return real_file(Path(url.database or ""))


def real_file(named: Path) -> Path:
    """Where a file lies: the end of a symbolic link.

    SQLite has the log beside the file itself, so what else belongs to the file is there too.
    """
    return named.resolve() if named.is_symlink() else named
