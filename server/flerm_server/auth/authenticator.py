"""Who is let in."""

from __future__ import annotations

import threading
import time

from flerm_core.errors import Unauthenticated
from flerm_server.auth.credentials import SESSION, TOKEN, Secret
from flerm_server.auth.principal import ANYBODY, Principal
from flerm_server.auth.sql_tokens import SqlTokenStore

# How often an open registry looks whether it got its first token, and a long stream whether its token still holds.
RECHECK_SECONDS = 1.0


class Authenticator:
    """Turns what was presented into an `Principal`.

    A registry in which a token was ever made lets in nobody without one, whatever its address; one without any lets in
    everybody (it does not start that way on an address that others can reach).
    """

    def __init__(self, tokens: SqlTokenStore) -> None:
        """Lets in who has one of `tokens`."""
        self.tokens = tokens
        self._locked = False
        self._looked = -RECHECK_SECONDS
        self._looking = threading.Lock()

    @property
    def locked(self) -> bool:
        """Whether a token is needed. A first token that another process made is seen within a second."""
        if not self._locked and time.monotonic() - self._looked >= RECHECK_SECONDS:
            with self._looking:
                self._locked = self._locked or self.tokens.any()
                self._looked = time.monotonic()
        return self._locked

    def by_header(self, authorization: str) -> Principal:
        """Who sends that Authorization header ("Bearer flerm_…"). Raises `Unauthenticated`."""
        if not authorization:
            return self._without()
        kind, _, text = authorization.partition(" ")
        if kind.lower() != "bearer":
            if not self.locked:
                return ANYBODY
            raise Unauthenticated("authorization: only Bearer and a token is allowed")
        return self._with(TOKEN, text.strip())

    def by_cookie(self, session: str) -> Principal:
        """Who sends that session cookie. Raises `Unauthenticated`."""
        return self._with(SESSION, session) if session else self._without()

    def _without(self) -> Principal:
        if self.locked:
            raise Unauthenticated(
                "this registry wants a token: set FLERM_TOKEN or FLERM_TOKEN_FILE, or send the header 'Authorization: Bearer …'"
            )
        return ANYBODY

    def _with(self, kind: str, text: str) -> Principal:
        secret = Secret.read(kind, text)
        found = (
            self.tokens.identify(secret) if secret is not None else "is unknown to this registry"
        )
        if isinstance(found, Principal):
            return found
        if not self.locked:
            return ANYBODY
        what = "token" if kind == TOKEN else "session"
        # The id is no secret; the rest of what was sent may be, and is not repeated.
        raise Unauthenticated(
            f"the {what} {secret.id + ' ' if secret else ''}{found}; ask for another"
        )
