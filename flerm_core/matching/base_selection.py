"""Which recordings a question about targets means: the rules by which one set of targets has one origin (design, method 8)."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from flerm_core.errors import Ambiguous, InvalidInput, NotFound, join_names
from flerm_core.records.comparability import ComparabilityKey, comparability_of, settings_line
from flerm_core.records.queries import POLICIES, TargetQuery
from flerm_core.records.recording import Recording, same_lr

Sources = dict[float, tuple[Recording, ...]]
"""Learning rate to its recordings, one a seed, both ascending: one rate, or the two neighbours of the one asked."""


class BaseRecordingIndex(Protocol):
    """The base recordings of one family (role base, variant plain), as the rules ask for them.

    But for `statuses`, all speak of the completed ones that have all of `tags`.
    """

    def statuses(self, lr: float | None = None) -> Counter[str]:
        """How many there are of each status, at one learning rate only where it is given."""

    def tag_values(self, key: str, tags: Mapping[str, str]) -> set[str]:
        """What the tag `key` is set to."""

    def kinds(self, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        """Their kinds."""

    def count(self, kind: ComparabilityKey, tags: Mapping[str, str]) -> int:
        """How many are of one kind."""

    def rates(
        self,
        kinds: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        start: float,
        *,
        down: bool = False,
    ) -> Iterator[float]:
        """The distinct learning rates of `kinds`: those from `start` on, ascending, or those below it, descending."""

    def newest(
        self,
        kinds: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        first: float,
        last: float,
    ) -> list[Recording]:
        """Of `kinds` and of learning rates from `first` to `last`: of each seed the newest, older ones need not be there."""


def choose_sources(recordings: Iterable[Recording], query: TargetQuery) -> Sources:
    """Those of a family's `recordings` (listings do) that answer `query`, by learning rate: see `select_sources`."""
    return select_sources(
        _InMemoryIndex([each for each in recordings if _is_base(each, query.family)]), query
    )


def select_sources(shelf: BaseRecordingIndex, query: TargetQuery) -> Sources:
    """The recordings of `shelf` that answer `query`, by learning rate.

    They have role base, variant plain, status completed, what the query asks for, and among themselves one optimiser (its
    betas, decay and such too) and one estimator. Where a seed was recorded more than once at a rate, the newest recording
    counts. Raises `NotFound` where nothing fits, with what there is; `Ambiguous` for several optimisers or estimators, with how
    to choose.
    """
    if query.policy not in POLICIES:
        raise InvalidInput(
            f"policy: {query.policy!r} is not one; allowed are {', '.join(POLICIES)}"
        )
    if not (math.isfinite(query.lr) and query.lr > 0):
        raise InvalidInput(
            f"lr: {query.lr} is not a learning rate; allowed are finite numbers above 0"
        )
    kinds = _fitting(shelf, query)
    optimizers, estimators = "optimizer and optimizer_config (or tags)", "estimator (or tags)"
    _refuse_several(shelf, query, kinds, lambda kind: kind.optimizer_key, "optimisers", optimizers)
    _refuse_several(shelf, query, kinds, lambda kind: kind.estimator, "estimators", estimators)
    around = _grouped(_around(shelf, kinds, query))
    rates = _rates_for(query, shelf, kinds, list(around))
    return {rate: _by_seed(shelf.newest(kinds, query.tags, rate, around[rate])) for rate in rates}


def _is_base(recording: Recording, family: str) -> bool:
    spec = recording.spec
    return spec.family == family and spec.role == "base" and spec.variant == "plain"


def _fitting(shelf: BaseRecordingIndex, query: TargetQuery) -> set[ComparabilityKey]:
    """The kinds with what the query asks for; each condition that leaves none says what there is."""
    left = shelf.kinds({})
    if not left:
        statuses = shelf.statuses()
        if not statuses:
            raise NotFound(
                f"family: {query.family!r} has no base recording (role base, variant plain) to take targets from"
            )
        raise NotFound(
            f"family: {query.family!r} has no completed base recording; there are {_counted(statuses)}"
        )
    tags: dict[str, str] = {}
    for key, value in query.tags.items():
        left = shelf.kinds(tags | {key: value})
        if not left:
            raise _nothing(f"tags: {key}={value!r}", sorted(shelf.tag_values(key, tags)), query)
        tags[key] = value
    if query.optimizer:
        names = sorted({kind.optimizer for kind in left})
        left = _kept(
            left,
            lambda kind: kind.optimizer == query.optimizer,
            f"optimizer: {query.optimizer!r}",
            names,
            query,
        )
    if query.optimizer_config is not None:
        wanted = settings_line(query.optimizer_config)
        lines = sorted({kind.optimizer_key for kind in left})
        field_ = f"optimizer_config: {wanted[1:-1] or 'an empty one'}"
        left = _kept(left, lambda kind: kind.settings == wanted, field_, lines, query)
    if query.estimator is not None:
        estimator = query.estimator.kind
        lines = sorted({kind.estimator for kind in left})
        left = _kept(
            left,
            lambda kind: kind.estimator == estimator,
            f"estimator: {estimator!r}",
            lines,
            query,
        )
    return left


def _kept(
    kinds: set[ComparabilityKey],
    test: Callable[[ComparabilityKey], bool],
    wish: str,
    there: Sequence[str],
    query: TargetQuery,
) -> set[ComparabilityKey]:
    kept = set(filter(test, kinds))
    if not kept:
        raise _nothing(wish, there, query)
    return kept


def _nothing(wish: str, there: Sequence[str], query: TargetQuery) -> NotFound:
    return NotFound(
        f"{wish} fits no completed base recording of {query.family!r}; there is {join_names(there)}"
    )


def _refuse_several(
    shelf: BaseRecordingIndex,
    query: TargetQuery,
    kinds: set[ComparabilityKey],
    part: Callable[[ComparabilityKey], str],
    what: str,
    how: str,
) -> None:
    parts = {part(kind) for kind in kinds}
    if len(parts) > 1:
        counts: Counter[str] = Counter()
        for kind in kinds:
            counts[part(kind)] += shelf.count(kind, query.tags)
        there = join_names(f"{each} ({count} recordings)" for each, count in sorted(counts.items()))
        raise Ambiguous(
            f"family: {query.family!r} has base recordings of {len(parts)} {what}: {there}; name one by {how}"
        )


def _counted(statuses: Counter[str]) -> str:
    return join_names(f"{count} {status}" for status, count in sorted(statuses.items()))


def _around(
    shelf: BaseRecordingIndex, kinds: Collection[ComparabilityKey], query: TargetQuery
) -> list[float]:
    """The learning rates on both sides of the query's, each with all that are one key with it: no policy needs others."""
    below = _run(shelf.rates(kinds, query.tags, query.lr, down=True))
    return [*reversed(below), *_run(shelf.rates(kinds, query.tags, query.lr))]


def _run(rates: Iterable[float]) -> list[float]:
    """The first of `rates` and those after it up to a gap that no two equal rates have between them."""
    found: list[float] = []
    for rate in rates:
        if found and not same_lr(found[-1], rate):
            break
        found.append(rate)
    return found


def _grouped(rates: Iterable[float]) -> dict[float, float]:
    """Ascending rates by key: the first of those that are the same to the last of them."""
    groups: dict[float, float] = {}
    key: float | None = None
    for rate in rates:
        if key is None or not same_lr(key, rate):
            key = rate
        groups[key] = rate
    return groups


def _by_seed(recordings: Iterable[Recording]) -> tuple[Recording, ...]:
    """The newest of each seed, in an order that does not depend on that of the listing."""
    newest = {
        each.spec.seed: each
        for each in sorted(recordings, key=lambda each: (each.created_at, each.spec.id))
    }
    return tuple(found for _, found in sorted(newest.items()))


def _rates_for(
    query: TargetQuery,
    shelf: BaseRecordingIndex,
    kinds: Collection[ComparabilityKey],
    near: Sequence[float],
) -> list[float]:
    """Which of the rates `near` the query's, ascending and there is at least one, answer it."""
    same = next((rate for rate in near if same_lr(rate, query.lr)), None)
    if same is not None:
        return [same]
    if query.policy == "nearest":
        # A ratio may be too small for a float.
        return [
            min(near, key=lambda rate: (abs(math.log(rate / query.lr or sys.float_info.min)), rate))
        ]
    below, above = (
        [rate for rate in near if rate < query.lr],
        [rate for rate in near if rate > query.lr],
    )
    if query.policy == "interpolate" and below and above:
        return [below[-1], above[0]]
    known = list(_grouped(shelf.rates(kinds, query.tags, 0.0)))
    there = join_names(f"{rate:g}" for rate in known)
    unfinished = shelf.statuses(query.lr)
    del unfinished["completed"]
    rest = f"; at {query.lr:g} itself there are {_counted(unfinished)}" if unfinished else ""
    if query.policy == "exact":
        raise NotFound(
            f"lr: no completed base recording of {query.family!r} has {query.lr:g}; recorded are {there}{rest}"
        )
    raise NotFound(
        f"lr: {query.lr:g} lies outside the recorded range {known[0]:g} to {known[-1]:g} of {query.family!r} "
        f"(recorded are {there}); record it, or ask for policy 'nearest'{rest}"
    )


class _InMemoryIndex:
    """The shelf of base recordings that are at hand."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._all = recordings
        self._completed = [
            (comparability_of(each.spec), each) for each in recordings if each.status == "completed"
        ]

    def statuses(self, lr: float | None = None) -> Counter[str]:
        return Counter(each.status for each in self._all if lr is None or same_lr(each.spec.lr, lr))

    def tag_values(self, key: str, tags: Mapping[str, str]) -> set[str]:
        return {each.spec.tags[key] for _, each in self._tagged(tags) if key in each.spec.tags}

    def kinds(self, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        return {kind for kind, _ in self._tagged(tags)}

    def count(self, kind: ComparabilityKey, tags: Mapping[str, str]) -> int:
        return sum(its == kind for its, _ in self._tagged(tags))

    def rates(
        self,
        kinds: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        start: float,
        *,
        down: bool = False,
    ) -> Iterator[float]:
        rates = {each.spec.lr for kind, each in self._tagged(tags) if kind in kinds}
        return iter(sorted((rate for rate in rates if (rate < start) is down), reverse=down))

    def newest(
        self,
        kinds: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        first: float,
        last: float,
    ) -> list[Recording]:
        return [
            each
            for kind, each in self._tagged(tags)
            if kind in kinds and first <= each.spec.lr <= last
        ]

    def _tagged(self, tags: Mapping[str, str]) -> Iterator[tuple[ComparabilityKey, Recording]]:
        return (
            (kind, each) for kind, each in self._completed if tags.items() <= each.spec.tags.items()
        )
