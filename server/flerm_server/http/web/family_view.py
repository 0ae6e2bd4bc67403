"""The filter above the table of recordings on a family's page."""

from __future__ import annotations

from dataclasses import dataclass

from flerm_core.errors import InvalidInput
from flerm_core.records.queries import RecordingFilter
from flerm_server.store.queries import FamilyOverview


@dataclass(frozen=True, slots=True)
class Filters:
    """The filter as text, as the page's address has it; an empty field does not filter."""

    role: str = ""
    variant: str = ""
    status: str = ""
    lr_min: str = ""
    lr_max: str = ""

    @property
    def active(self) -> bool:
        """Whether any field filters."""
        return any((self.role, self.variant, self.status, self.lr_min, self.lr_max))

    def parse(self, family: str) -> RecordingFilter:
        """The filter as the store takes it.

        Raises `InvalidInput` for a learning rate that is no number.
        """
        return RecordingFilter(
            family=family,
            role=self.role,
            variant=self.variant,
            status=self.status,
            lr_min=_learning_rate("lr_min", self.lr_min),
            lr_max=_learning_rate("lr_max", self.lr_max),
        )


def filter_choices(overview: FamilyOverview) -> dict[str, list[str]]:
    """What each field of the filter can be set to, in the order in which the page offers it."""
    return {
        "role": sorted({role for role, _ in overview.counts}),
        "variant": sorted({variant for _, variant in overview.counts}),
        "status": list(overview.statuses),
    }


def _learning_rate(field: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f"{field}: {text[:40]!r} is no number; a learning rate such as 4e-3 is allowed"
        ) from None
