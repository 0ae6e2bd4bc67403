"""How much one token may make, and how often one recording may be resumed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flerm_core.errors import LimitExceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """The most that there may be; 0: any number.

    recordings_per_token, families_per_token: by `created_by`. attempts_per_recording: of one
    recording, whoever makes them.
    """

    recordings_per_token: int = 0
    families_per_token: int = 0
    attempts_per_recording: int = 0

    def of_nobody(self) -> Quotas:
        """The quotas of a caller without a token: nothing is counted by token."""
        return replace(self, recordings_per_token=0, families_per_token=0)

    def check(self, name: str, count: int, whose: str, what: str, instead: str) -> None:
        """Raises `LimitExceeded` where one more than `count` is too many.

        name: the field of the quota. whose, what: for the sentence: "token x", "recordings".
        instead: what to do.
        """
        most: int = getattr(self, name)
        if most and count >= most:
            raise LimitExceeded(
                f"{name}: {whose} has {count} {what}, the most that it may; {instead}"
            )


UNLIMITED = Quotas()
