"""Tokens and sessions in the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.checks import check, check_text
from flerm_core.records.validation import MAX_FAMILY_PART, validate_family_name
from flerm_server.auth.credentials import SESSION, TOKEN, Secret
from flerm_server.auth.principal import Principal, Scope
from flerm_server.store.sql.compiled_statements import Prepared
from flerm_server.store.sql.engine import (
    database_now,
    driver_database_now,
    driver_transaction,
    timestamp_from_column,
    transaction,
)
from flerm_server.store.sql.tables import sessions, tokens

SESSION_SECONDS = 12 * 3600

_TOKEN = Prepared(
    sa.select(
        tokens.c.digest, tokens.c.name, tokens.c.scope, tokens.c.family, tokens.c.revoked_at
    ).where(tokens.c.id == sa.bindparam("id"))
)
_SESSION = Prepared(
    sa.select(
        sessions.c.digest,
        tokens.c.name,
        tokens.c.scope,
        tokens.c.family,
        tokens.c.revoked_at,
        tokens.c.id,
        sessions.c.expires_at,
    )
    .join_from(sessions, tokens)
    .where(sessions.c.id == sa.bindparam("id"))
)
_ANY = Prepared(sa.select(sa.exists(sa.select(tokens.c.key))))


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the registry knows it: everything but its secret."""

    id: str
    name: str
    scope: Scope
    family: str
    created_at: datetime
    revoked_at: datetime | None


class SqlTokenStore:
    """The tokens of one database. Every question asks the database: what another process revoked counts at once."""

    def __init__(self, engine: sa.Engine) -> None:
        """Takes an engine of `open_engine` whose schema was checked."""
        self._engine = engine

    def create(self, name: str, scope: str, family: str = "") -> tuple[Token, Secret]:
        """Makes a token; its secret is nowhere but in the answer. Raises `InvalidInput`."""
        check_text("name", name, MAX_FAMILY_PART, least=1)
        check(scope in (each.text for each in Scope), "scope", scope, "read, write or admin")
        if family:
            validate_family_name(family)
        secret = Secret.make(TOKEN)
        with transaction(self._engine, writes=True) as connection:
            now = database_now(connection)
            values = {
                "id": secret.id,
                "name": name,
                "scope": scope,
                "family": family,
                "created_at": now,
            }
            connection.execute(tokens.insert().values(**values, digest=secret.digest))
        return Token(
            secret.id, name, Scope.of(scope), family, timestamp_from_column(now), None
        ), secret

    def list(self) -> list[Token]:
        """All that were ever made, oldest first."""
        with transaction(self._engine) as connection:
            rows = connection.execute(sa.select(tokens).order_by(tokens.c.key)).all()
        return [
            Token(
                row.id,
                row.name,
                Scope.of(row.scope),
                row.family,
                timestamp_from_column(row.created_at),
                None if row.revoked_at is None else timestamp_from_column(row.revoked_at),
            )
            for row in rows
        ]

    def revoke(self, token_id: str) -> bool:
        """Revokes the token with that id, and so its sessions; False when it was already. Raises `NotFound`."""
        with transaction(self._engine, writes=True) as connection:
            row = connection.execute(
                sa.select(tokens.c.revoked_at).where(tokens.c.id == token_id)
            ).one_or_none()
            if row is None:
                raise NotFound(
                    f"token {token_id[:80]!r} is not in this registry; `flerm token list` shows the ids"
                )
            if row.revoked_at is None:
                connection.execute(
                    tokens.update()
                    .where(tokens.c.id == token_id)
                    .values(revoked_at=database_now(connection))
                )
            return row.revoked_at is None

    def any(self) -> bool:
        """Whether any token was ever made, revoked ones too: then nobody gets in without one."""
        with driver_transaction(self._engine) as driver:
            return bool(_ANY.all(driver, {})[0][0])

    def identify(self, secret: Secret) -> Principal | str:
        """Whose secret it is; else what to say of it."""
        with driver_transaction(self._engine) as driver:
            found = (_TOKEN if secret.kind == TOKEN else _SESSION).all(driver, {"id": secret.id})
            now = driver_database_now(driver) if secret.kind == SESSION else 0
        if not found:
            return "is unknown to this registry"
        digest, name, scope, family, revoked_at, *session = found[0]
        if not secret.fits(digest):
            return "is unknown to this registry"
        if revoked_at is not None:
            return "was revoked"
        if session and session[1] <= now:
            return "has expired"
        token_id, level = (session[0], Scope.READ) if session else (secret.id, Scope.of(scope))
        return Principal(level, token_id, name, family)

    def open_session(self, token_id: str) -> Secret:
        """A session of that token, which may read what the token may; those that have expired are swept away."""
        secret = Secret.make(SESSION)
        with transaction(self._engine, writes=True) as connection:
            now = database_now(connection)
            connection.execute(sessions.delete().where(sessions.c.expires_at <= now))
            key = connection.execute(
                sa.select(tokens.c.key).where(tokens.c.id == token_id)
            ).scalar_one_or_none()
            if key is None:
                raise InvalidInput(f"token {token_id!r} is not in this registry")
            values = {
                "id": secret.id,
                "digest": secret.digest,
                "token_key": key,
                "expires_at": now + SESSION_SECONDS * 1_000_000,
            }
            connection.execute(sessions.insert().values(**values))
        return secret

    def close_session(self, secret: Secret) -> None:
        """Ends a session, if it is one."""
        with transaction(self._engine, writes=True) as connection:
            connection.execute(
                sessions.delete().where(
                    sessions.c.id == secret.id, sessions.c.digest == secret.digest
                )
            )
