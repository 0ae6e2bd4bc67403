"""What a family's page says: the rate to use, which rates and seeds are covered, and the filter of its table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flerm_core.errors import FlermError, InvalidInput
from flerm_core.records.queries import BestQuery, RecordingFilter
from flerm_core.records.recording import STATUSES, Recording, same_lr
from flerm_core.tuning.best_lr import Best, best_of

MAX_SEEDS = 32  # columns of the coverage


@dataclass(frozen=True, slots=True)
class RateAdvice:
    """The rate to use and why, or (`best` None) why there is none."""

    best: Best | None
    sentence: str


def rate_advice(recordings: Iterable[Recording], family: str) -> RateAdvice:
    """Which rate to use, by the family's base recordings."""
    try:
        best = best_of(recordings, BestQuery(family=family))
    except FlermError as error:
        return RateAdvice(None, str(error))
    return RateAdvice(best, best.advice)


def role_variant_counts(recordings: Iterable[Recording]) -> dict[str, int]:
    """`role/variant` to the number of recordings, base first."""
    counts: dict[str, int] = {}
    for each in recordings:
        key = f"{each.spec.role}/{each.spec.variant}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class SeedCoverage:
    """Learning rates (rows) by seeds (columns): the newest recording of each, or None. `hidden`: seeds beyond the columns."""

    seeds: tuple[int, ...]
    rows: tuple[tuple[float, tuple[Recording | None, ...]], ...]
    hidden: int
    missing: int


def seed_coverage(recordings: Sequence[Recording], group: str) -> SeedCoverage:
    """Where the recordings of one `role/variant` are. Listings are newest first, and the newest counts."""
    found = [each for each in recordings if f"{each.spec.role}/{each.spec.variant}" == group]
    seeds = sorted({each.spec.seed for each in found})
    shown = tuple(seeds[:MAX_SEEDS])
    rates: dict[float, dict[int, Recording]] = {}
    last: float | None = None
    for each in sorted(found, key=lambda each: each.spec.lr):
        last = last if last is not None and same_lr(last, each.spec.lr) else each.spec.lr
        rates.setdefault(last, {}).setdefault(each.spec.seed, each)
    rows = tuple((rate, tuple(its.get(seed) for seed in shown)) for rate, its in rates.items())
    missing = sum(cell is None for _, cells in rows for cell in cells)
    return SeedCoverage(shown, rows, len(seeds) - len(shown), missing)


@dataclass(frozen=True, slots=True)
class Filters:
    """The filter above the table, as it stands in the address."""

    role: str
    variant: str
    status: str
    lr_min: str
    lr_max: str

    @property
    def active(self) -> bool:
        """Whether anything is filtered."""
        return any((self.role, self.variant, self.status, self.lr_min, self.lr_max))

    def of(self, family: str) -> RecordingFilter:
        """As the store takes it. Raises `InvalidInput` for a rate that is no number."""
        return RecordingFilter(
            family=family,
            role=self.role,
            variant=self.variant,
            status=self.status,
            lr_min=_rate("lr_min", self.lr_min),
            lr_max=_rate("lr_max", self.lr_max),
        )

    @staticmethod
    def choices(recordings: Iterable[Recording]) -> dict[str, list[str]]:
        """What there is to choose from."""
        found = list(recordings)
        there = {each.status for each in found}
        return {
            "role": sorted({each.spec.role for each in found}),
            "variant": sorted({each.spec.variant for each in found}),
            "status": [status for status in STATUSES if status in there],
        }


def _rate(field: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f"{field}: {text[:40]!r} is no number; a learning rate such as 4e-3 is allowed"
        ) from None
