"""The secrets of tokens and sessions: how they are made, read and compared. Only their digests are kept.

A secret is 256 random bits, so a plain SHA-256 of it cannot be searched for, and needs no salt and no slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

TOKEN, SESSION = "flerm", "session"
_FORM = re.compile(r"(flerm|session)_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Secret:
    """What its holder has: `text` is `kind_id_secret`. The id may be seen by everybody."""

    kind: str
    id: str
    text: str

    def __repr__(self) -> str:
        return f"Secret({self.kind} {self.id})"  # never the text

    @property
    def digest(self) -> str:
        """What is kept of it."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fits(self, digest: str) -> bool:
        """Whether `digest` is of it; takes as long whatever the answer."""
        return hmac.compare_digest(self.digest, digest)

    @classmethod
    def make(cls, kind: str) -> Secret:
        """A new one."""
        identifier = secrets.token_hex(6)
        return cls(kind, identifier, f"{kind}_{identifier}_{secrets.token_urlsafe(32)}")

    @classmethod
    def read(cls, kind: str, text: str) -> Secret | None:
        """What was presented; None where it has not even the form."""
        found = _FORM.fullmatch(text)
        return cls(kind, found[2], text) if found and found[1] == kind else None
