"""Tokens and sessions in the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from typing_extensions import override

from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.checks import check, check_text
from flerm_core.records.validation import MAX_FAMILY_PART, validate_family_name
from flerm_server.auth.authenticator import TokenStore
from flerm_server.auth.credentials import (
    SESSION,
    SESSION_SECONDS,
    TOKEN,
    UNKNOWN,
    Secret,
    unauthenticated,
)
from flerm_server.auth.principal import Principal, Scope
from flerm_server.store.sql.compiled_statements import Prepared
from flerm_server.store.sql.engine import (
    clock_answer,
    clock_question,
    database_now,
    driver_transaction,
    timestamp_from_column,
    transaction,
)
from flerm_server.store.sql.tables import sessions, tokens

SESSIONS_PER_TOKEN = 100

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
_ANY_EXIST = Prepared(sa.select(sa.exists(sa.select(tokens.c.key))))


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the registry keeps it: everything but its secret."""

    id: str
    name: str
    scope: Scope
    family: str
    created_at: datetime
    revoked_at: datetime | None


class SqlTokenStore(TokenStore):
    """The tokens and sessions of one database.

    Every method asks the database: a token that another process revoked stops counting at once.
    """

    def __init__(self, engine: sa.Engine) -> None:
        """Takes an engine of `open_engine` whose schema was checked, such as `SqlStore.engine`."""
        self._engine = engine

    def create(self, name: str, scope: str, family: str = "") -> tuple[Token, Secret]:
        """Makes a token. Its secret is in the answer only. Raises `InvalidInput`."""
        check_text("name", name, MAX_FAMILY_PART, least=1)
        check(scope in (each.text for each in Scope), "scope", scope, "read, write or admin")
        if family:
            validate_family_name(family)
        secret = Secret.generate(TOKEN)
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
        created_at = timestamp_from_column(now)
        return Token(secret.id, name, Scope.of(scope), family, created_at, None), secret

    def list(self) -> list[Token]:
        """All tokens that were ever made, oldest first."""
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
        """Revokes a token, and with it its sessions. False when it was revoked before.

        Raises `NotFound`.
        """
        with transaction(self._engine, writes=True) as connection:
            row = connection.execute(
                sa.select(tokens.c.revoked_at).where(tokens.c.id == token_id)
            ).one_or_none()
            if row is None:
                raise NotFound(
                    f"token {token_id[:80]!r} is not in this registry; "
                    "`flerm token list` shows the ids"
                )
            if row.revoked_at is None:
                connection.execute(
                    tokens.update()
                    .where(tokens.c.id == token_id)
                    .values(revoked_at=database_now(connection))
                )
            return row.revoked_at is None

    @override
    def any_exist(self) -> bool:
        with driver_transaction(self._engine) as driver:
            return bool(_ANY_EXIST.all(driver, {})[0][0])

    @override
    def authenticate(self, secret: Secret) -> Principal:
        statement = _TOKEN if secret.kind == TOKEN else _SESSION
        dialect = self._engine.dialect
        asked = [statement.of(dialect, {"id": secret.id}), *clock_question(dialect)]
        with driver_transaction(self._engine, first=asked) as driver:
            found, now = driver.answers[0], clock_answer(driver)
        if not found:
            raise unauthenticated(secret.kind, UNKNOWN, secret.id)
        digest, name, scope, family, revoked_at, *session = found[0]
        if not secret.matches(digest):
            raise unauthenticated(secret.kind, UNKNOWN, secret.id)
        if revoked_at is not None:
            raise unauthenticated(secret.kind, "was revoked", secret.id)
        if not session:
            return Principal(Scope.of(scope), secret.id, name, family)
        token_id, expires_at = session
        if expires_at <= now:
            raise unauthenticated(secret.kind, "has expired", secret.id)
        return Principal(Scope.READ, token_id, name, family)

    @override
    def open_session(self, token_id: str) -> Secret:
        secret = Secret.generate(SESSION)
        with transaction(self._engine, writes=True) as connection:
            now = database_now(connection)
            # Locked, so that two logins do not delete the token's sessions at the same time.
            key = connection.execute(
                sa.select(tokens.c.key)
                .where(tokens.c.id == token_id)
                .with_for_update(key_share=True)
            ).scalar_one_or_none()
            if key is None:
                raise InvalidInput(f"token {token_id!r} is not in this registry")
            # Those that have expired go, and the oldest ones where there would be too many.
            newest = (
                sa.select(sessions.c.id)
                .where(sessions.c.token_key == key, sessions.c.expires_at > now)
                .order_by(sessions.c.expires_at.desc())
                .limit(SESSIONS_PER_TOKEN - 1)
            )
            connection.execute(
                sessions.delete().where(sessions.c.token_key == key, sessions.c.id.not_in(newest))
            )
            values = {
                "id": secret.id,
                "digest": secret.digest,
                "token_key": key,
                "expires_at": now + SESSION_SECONDS * 1_000_000,
            }
            connection.execute(sessions.insert().values(**values))
        return secret

    @override
    def close_session(self, secret: Secret) -> None:
        with transaction(self._engine, writes=True) as connection:
            connection.execute(
                sessions.delete().where(
                    sessions.c.id == secret.id, sessions.c.digest == secret.digest
                )
            )
