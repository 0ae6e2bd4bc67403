"""The secrets of tokens and sessions: how they are made, parsed and compared.

Only their digests are stored. A secret is 256 random bits, so nobody can find it by trying digests:
a plain SHA-256 is enough, without salt and without a slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from flerm_core.errors import Unauthenticated

TOKEN, SESSION = "flerm", "session"  # the kinds of secrets, as their texts begin
SESSION_SECONDS = 12 * 3600
_FORM = re.compile(r"(flerm|session)_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Secret:
    """What the holder of a token or of a session presents.

    `text` is `kind_id_secret`. The id is public: logs and error messages may contain it.
    """

    kind: str
    id: str
    text: str

    def __repr__(self) -> str:
        return f"Secret({self.kind} {self.id})"  # never the text

    @property
    def digest(self) -> str:
        """SHA-256 of the text (hex): what the registry stores."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def matches(self, digest: str) -> bool:
        """Whether `digest` is this secret's. The time it takes does not depend on the answer."""
        return hmac.compare_digest(self.digest, digest)

    @classmethod
    def generate(cls, kind: str) -> Secret:
        """A new random secret."""
        identifier = secrets.token_hex(6)
        return cls(kind, identifier, f"{kind}_{identifier}_{secrets.token_urlsafe(32)}")

    @classmethod
    def parse(cls, kind: str, text: str) -> Secret:
        """The secret of this `kind` that `text` is. Raises `Unauthenticated` for other texts."""
        found = _FORM.fullmatch(text)
        if found is None or found[1] != kind:
            raise unauthenticated(kind, UNKNOWN)
        return cls(kind, found[2], text)


UNKNOWN = "is unknown to this registry"


def unauthenticated(kind: str, reason: str, identifier: str = "") -> Unauthenticated:
    """The error for a token or session that does not count, for a `reason` such as `UNKNOWN`.

    It names the public id only, where that is known: the rest of what was sent may be a secret.
    """
    what = "token" if kind == TOKEN else "session"
    return Unauthenticated(
        f"the {' '.join(filter(None, (what, identifier, reason)))}; ask for another"
    )
