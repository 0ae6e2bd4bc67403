"""Finds out who makes a call, from what the caller presents."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from flerm_core.errors import Unauthenticated
from flerm_server.auth.credentials import SESSION, TOKEN, Secret
from flerm_server.auth.principal import ANYBODY, Principal

# How often an open registry checks whether it got its first token, and a long stream whether its
# token still counts.
RECHECK_SECONDS = 1.0


class TokenStore(Protocol):
    """Where tokens and sessions are kept. All methods may be called from any thread."""

    def any_exist(self) -> bool:
        """Whether any token was ever made, revoked ones included."""

    def authenticate(self, secret: Secret) -> Principal:
        """Whose secret `secret` is.

        Raises `Unauthenticated` for one that is unknown, revoked or has expired.
        """

    def open_session(self, token_id: str) -> Secret:
        """A new session of that token, which may read what the token may."""

    def close_session(self, secret: Secret) -> None:
        """Ends the session that `secret` is of, if there is one."""


class Authenticator:
    """Turns what a caller presents into a `Principal`.

    Once a token was ever made, the registry needs one from every caller, whatever its address.
    A registry without any token accepts everybody (the server does not start that way on an
    address that other hosts can reach).
    """

    def __init__(self, tokens: TokenStore) -> None:
        """Accepts those who have one of `tokens`."""
        self.tokens = tokens
        self._tokens_required = False
        self._last_check = -RECHECK_SECONDS
        self._checking = threading.Lock()

    @property
    def tokens_required(self) -> bool:
        """Whether callers need a token.

        A first token that another process made is noticed within `RECHECK_SECONDS`.
        """
        if not self._tokens_required and time.monotonic() - self._last_check >= RECHECK_SECONDS:
            with self._checking:
                self._tokens_required = self._tokens_required or self.tokens.any_exist()
                self._last_check = time.monotonic()
        return self._tokens_required

    def from_header(self, authorization: str) -> Principal:
        """Who sends the header `Authorization: Bearer flerm_…`. Raises `Unauthenticated`."""
        if not authorization:
            return self._anonymous()
        return self._verify(lambda: _secret(authorization))

    def from_cookie(self, session: str) -> Principal:
        """Who sends that session cookie; empty for none. Raises `Unauthenticated`."""
        if not session:
            return self._anonymous()
        return self._verify(lambda: Secret.parse(SESSION, session))

    def _anonymous(self) -> Principal:
        if self.tokens_required:
            raise Unauthenticated(
                "this registry wants a token: set FLERM_TOKEN or FLERM_TOKEN_FILE, "
                "or send the header 'Authorization: Bearer …'"
            )
        return ANYBODY

    def _verify(self, secret: Callable[[], Secret]) -> Principal:
        try:
            return self.tokens.authenticate(secret())
        except Unauthenticated:
            if not self.tokens_required:
                return ANYBODY
            raise


def _secret(authorization: str) -> Secret:
    """The token in the header. Raises `Unauthenticated` where it has none."""
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("authorization: only Bearer and a token is allowed")
    return Secret.parse(TOKEN, text.strip())
