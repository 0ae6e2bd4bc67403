"""Who asks, and what that one may do."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from flerm_core.errors import PermissionDenied


class Scope(IntEnum):
    """What a token may do: each scope may what those before it may."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def text(self) -> str:
        """As it is written: read, write or admin."""
        return self.name.lower()

    @classmethod
    def of(cls, text: str) -> Scope:
        """The scope that `text` names. Raises `KeyError`."""
        return cls[text.upper()]


@dataclass(frozen=True, slots=True)
class Principal:
    """One who asks. `family` not empty: bound to that family, or to that team with all its families.

    `token_id` empty: anybody, on a registry that has no tokens.
    """

    scope: Scope
    token_id: str = ""
    name: str = ""
    family: str = ""

    @property
    def text(self) -> str:
        """As `created_by` keeps it; empty for anybody."""
        return f"{self.name} ({self.token_id})" if self.token_id else ""

    def covers(self, family: str) -> bool:
        """Whether its binding lets it at `family`."""
        return not self.family or family == self.family or family.startswith(f"{self.family}/")

    def must(self, needed: Scope, family: str | None = None) -> None:
        """The one decision: raises `PermissionDenied` unless the scope reaches `needed` and the binding covers `family`."""
        if self.scope < needed:
            raise PermissionDenied(
                f"token {self.text} has scope {self.scope.text}; this call needs {needed.text}"
            )
        if family is not None and not self.covers(family):
            raise PermissionDenied(
                f"token {self.text} is bound to family {self.family!r}; {family[:200]!r} is not of it"
            )

    def must_reach_all(self) -> None:
        """Raises `PermissionDenied` for one that is bound: what is asked is of the registry as a whole."""
        if self.family:
            raise PermissionDenied(
                f"token {self.text} is bound to family {self.family!r}; this call is of the whole registry"
            )


ANYBODY = Principal(Scope.ADMIN)

_present: ContextVar[Principal] = ContextVar("identity")


def current_principal() -> Principal:
    """Who asks in this context. Raises `LookupError` where nobody was let in: a call that nobody checked gets nothing."""
    return _present.get()


def enter(identity: Principal) -> None:
    """From here on `identity` asks, in this context and those copied from it. Every call has a context of its own."""
    _present.set(identity)
