"""Who makes a call, and what that principal may do."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from flerm_core.errors import PermissionDenied


class Scope(IntEnum):
    """What a token allows. Each scope includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def text(self) -> str:
        """The scope as it is written: read, write or admin."""
        return self.name.lower()

    @classmethod
    def of(cls, text: str) -> Scope:
        """The scope that `text` names. Raises `KeyError`."""
        return cls[text.upper()]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a call.

    token_id: the token that was presented; empty for anybody, on a registry without tokens.
    name: the token's name.
    family: the family, or the team with all its families, that the token is bound to; empty for a
        token that is bound to none.
    """

    scope: Scope
    token_id: str = ""
    name: str = ""
    family: str = ""

    @property
    def text(self) -> str:
        """The principal as `created_by` stores it: name and token id; empty for anybody."""
        return f"{self.name} ({self.token_id})" if self.token_id else ""

    def covers(self, family: str) -> bool:
        """Whether the token's binding includes `family`."""
        return not self.family or family == self.family or family.startswith(f"{self.family}/")

    def require(self, needed: Scope, family: str | None = None) -> None:
        """Raises `PermissionDenied` unless the token has the scope `needed` and covers `family`.

        Every decision about permissions is made here. `family` None: the call is of no one family.
        """
        if self.scope < needed:
            raise PermissionDenied(
                f"token {self.text} has scope {self.scope.text}; this call needs {needed.text}"
            )
        if family is not None and not self.covers(family):
            raise PermissionDenied(
                f"token {self.text} is bound to family {self.family!r}; "
                f"{family[:200]!r} is not of it"
            )

    def require_unbound(self) -> None:
        """Raises `PermissionDenied` for a token bound to a family: the call is of the registry."""
        if self.family:
            raise PermissionDenied(
                f"token {self.text} is bound to family {self.family!r}; "
                "this call is of the whole registry"
            )


ANYBODY = Principal(Scope.ADMIN)

_current: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """Who makes the call in this context.

    Raises `LookupError` in a context without a principal: a call that nobody authenticated gets
    nothing.
    """
    return _current.get()


def act_as(principal: Principal) -> None:
    """Makes `principal` the caller in this context and in those copied from it from now on.

    Every call has a context of its own, so nothing needs to be reset.
    """
    _current.set(principal)
