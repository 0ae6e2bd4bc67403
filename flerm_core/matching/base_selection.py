"""Chooses the base recordings that answer a query for targets.

They all have the same optimiser, settings included, and the same estimator.
"""

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
"""The recordings at one learning rate, or at each of the two rates around the query's.

Rates ascend; at each rate there is one recording for each seed, and seeds ascend.
"""


class BaseRecordingIndex(Protocol):
    """What `select_sources` asks about the base recordings of a family (role base, variant plain).

    `statuses` counts all of them. The other methods see only completed recordings that have all of
    `tags`.
    """

    def statuses(self, lr: float | None = None) -> Counter[str]:
        """How many recordings there are of each status.

        lr: counts only the recordings at this learning rate.
        """

    def tag_values(self, key: str, tags: Mapping[str, str]) -> set[str]:
        """The values of the tag `key`."""

    def keys(self, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        """The comparability keys of the recordings."""

    def count(self, key: ComparabilityKey, tags: Mapping[str, str]) -> int:
        """How many recordings have this comparability key."""

    def rates(
        self,
        keys: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        start: float,
        *,
        down: bool = False,
    ) -> Iterator[float]:
        """The distinct learning rates of recordings with one of `keys`, from `start` upwards.

        down: gives the rates below `start` instead, from the highest downwards.
        """

    def newest_per_seed(
        self,
        keys: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        lr_min: float,
        lr_max: float,
    ) -> list[Recording]:
        """Recordings with one of `keys` and a learning rate from `lr_min` to `lr_max`.

        The newest recording of each seed must be among them; older ones may be.
        """


def choose_sources(recordings: Iterable[Recording], query: TargetQuery) -> Sources:
    """The recordings of a family that answer `query`, by learning rate. See `select_sources`.

    Recordings without their parameters (`Recording.without_parameters`) are enough.
    """
    return select_sources(
        _InMemoryIndex([each for each in recordings if _is_base(each, query.family)]), query
    )


def select_sources(index: BaseRecordingIndex, query: TargetQuery) -> Sources:
    """The recordings of `index` that answer `query`, by learning rate.

    They have role base, variant plain, status completed, and whatever else the query asks for. All
    have the same optimiser, settings included, and the same estimator. Where a seed was recorded
    more than once at a rate, only the newest recording is taken.

    Raises `NotFound` where no recording fits; the message lists what was recorded. Raises
    `Ambiguous` where recordings of several optimisers or estimators fit; the message says how to
    choose. Raises `InvalidInput` for an unknown policy, and for a learning rate that is not finite
    and above 0.
    """
    if query.policy not in POLICIES:
        raise InvalidInput(
            f"policy: {query.policy!r} is not one; allowed are {', '.join(POLICIES)}"
        )
    if not (math.isfinite(query.lr) and query.lr > 0):
        raise InvalidInput(
            f"lr: {query.lr} is not a learning rate; allowed are finite numbers above 0"
        )
    keys = _keys_that_fit(index, query)
    optimizers, estimators = "optimizer and optimizer_config (or tags)", "estimator (or tags)"
    _refuse_several(index, query, keys, lambda key: key.optimizer_key, "optimisers", optimizers)
    _refuse_several(index, query, keys, lambda key: key.estimator, "estimators", estimators)
    around = _grouped(_neighbouring_rates(index, keys, query))
    rates = _answering_rates(query, index, keys, list(around))
    return {
        rate: _one_per_seed(index.newest_per_seed(keys, query.tags, rate, around[rate]))
        for rate in rates
    }


def _is_base(recording: Recording, family: str) -> bool:
    spec = recording.spec
    return spec.family == family and spec.role == "base" and spec.variant == "plain"


def _keys_that_fit(index: BaseRecordingIndex, query: TargetQuery) -> set[ComparabilityKey]:
    """The comparability keys of the recordings that meet all conditions of the query but the rate.

    Raises `NotFound` at the first condition that no recording meets.
    """
    left = index.keys({})
    if not left:
        statuses = index.statuses()
        if not statuses:
            raise NotFound(
                f"family: {query.family!r} has no base recording (role base, variant plain) to "
                "take targets from"
            )
        raise NotFound(
            f"family: {query.family!r} has no completed base recording; there are "
            f"{_counted(statuses)}"
        )
    tags: dict[str, str] = {}
    for tag, value in query.tags.items():
        left = index.keys(tags | {tag: value})
        if not left:
            raise _not_found(f"tags: {tag}={value!r}", sorted(index.tag_values(tag, tags)), query)
        tags[tag] = value
    if query.optimizer:
        names = sorted({key.optimizer for key in left})
        left = _filter_or_raise(
            left,
            lambda key: key.optimizer == query.optimizer,
            f"optimizer: {query.optimizer!r}",
            names,
            query,
        )
    if query.optimizer_config is not None:
        wanted = settings_line(query.optimizer_config)
        lines = sorted({key.optimizer_key for key in left})
        field_ = f"optimizer_config: {wanted[1:-1] or 'an empty one'}"
        left = _filter_or_raise(left, lambda key: key.settings == wanted, field_, lines, query)
    if query.estimator is not None:
        estimator = query.estimator.comparability
        lines = sorted({key.estimator for key in left})
        left = _filter_or_raise(
            left,
            lambda key: key.estimator == estimator,
            f"estimator: {estimator!r}",
            lines,
            query,
        )
    return left


def _filter_or_raise(
    keys: set[ComparabilityKey],
    test: Callable[[ComparabilityKey], bool],
    wish: str,
    there: Sequence[str],
    query: TargetQuery,
) -> set[ComparabilityKey]:
    kept = set(filter(test, keys))
    if not kept:
        raise _not_found(wish, there, query)
    return kept


def _not_found(wish: str, there: Sequence[str], query: TargetQuery) -> NotFound:
    return NotFound(
        f"{wish} fits no completed base recording of {query.family!r}; there is {join_names(there)}"
    )


def _refuse_several(
    index: BaseRecordingIndex,
    query: TargetQuery,
    keys: set[ComparabilityKey],
    part: Callable[[ComparabilityKey], str],
    what: str,
    how: str,
) -> None:
    parts = {part(key) for key in keys}
    if len(parts) > 1:
        counts: Counter[str] = Counter()
        for key in keys:
            counts[part(key)] += index.count(key, query.tags)
        there = join_names(f"{each} ({count} recordings)" for each, count in sorted(counts.items()))
        raise Ambiguous(
            f"family: {query.family!r} has base recordings of {len(parts)} {what}: {there}; name "
            f"one by {how}"
        )


def _counted(statuses: Counter[str]) -> str:
    return join_names(f"{count} {status}" for status, count in sorted(statuses.items()))


def _neighbouring_rates(
    index: BaseRecordingIndex, keys: Collection[ComparabilityKey], query: TargetQuery
) -> list[float]:
    """The nearest rate below the query's, and the nearest rate at or above the query's, ascending.

    Rates that count as the same (`same_lr`) are all listed. No policy needs more rates than these.
    """
    below = _leading_run(index.rates(keys, query.tags, query.lr, down=True))
    return [*reversed(below), *_leading_run(index.rates(keys, query.tags, query.lr))]


def _leading_run(rates: Iterable[float]) -> list[float]:
    """The start of `rates`, up to the first rate that differs (`same_lr`) from the rate before."""
    found: list[float] = []
    for rate in rates:
        if found and not same_lr(found[-1], rate):
            break
        found.append(rate)
    return found


def _grouped(rates: Iterable[float]) -> dict[float, float]:
    """Ascending rates, grouped by `same_lr`: the first rate of each group to its last."""
    groups: dict[float, float] = {}
    first: float | None = None
    for rate in rates:
        if first is None or not same_lr(first, rate):
            first = rate
        groups[first] = rate
    return groups


def _one_per_seed(recordings: Iterable[Recording]) -> tuple[Recording, ...]:
    """The newest recording of each seed, sorted by seed."""
    newest = {
        each.spec.seed: each
        for each in sorted(recordings, key=lambda each: (each.created_at, each.spec.id))
    }
    return tuple(found for _, found in sorted(newest.items()))


def _answering_rates(
    query: TargetQuery,
    index: BaseRecordingIndex,
    keys: Collection[ComparabilityKey],
    near: Sequence[float],
) -> list[float]:
    """The rates that answer the query: one rate, or the two that the query's rate lies between.

    near: the recorded rates nearest to the query's, ascending, at least one.

    Raises `NotFound` where the policy allows none of them.
    """
    same = next((rate for rate in near if same_lr(rate, query.lr)), None)
    if same is not None:
        return [same]
    if query.policy == "nearest":
        # The ratio may underflow to 0, which has no logarithm.
        return [
            min(near, key=lambda rate: (abs(math.log(rate / query.lr or sys.float_info.min)), rate))
        ]
    below, above = (
        [rate for rate in near if rate < query.lr],
        [rate for rate in near if rate > query.lr],
    )
    if query.policy == "interpolate" and below and above:
        return [below[-1], above[0]]
    known = list(_grouped(index.rates(keys, query.tags, 0.0)))
    there = join_names(f"{rate:g}" for rate in known)
    unfinished = index.statuses(query.lr)
    del unfinished["completed"]
    rest = f"; at {query.lr:g} itself there are {_counted(unfinished)}" if unfinished else ""
    if query.policy == "exact":
        raise NotFound(
            f"lr: no completed base recording of {query.family!r} has {query.lr:g}; recorded are "
            f"{there}{rest}"
        )
    raise NotFound(
        f"lr: {query.lr:g} lies outside the recorded range {known[0]:g} to {known[-1]:g} of "
        f"{query.family!r} "
        f"(recorded are {there}); record it, or ask for policy 'nearest'{rest}"
    )


class _InMemoryIndex:
    """An index over recordings in memory."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._all = recordings
        self._completed = [
            (comparability_of(each.spec), each) for each in recordings if each.status == "completed"
        ]

    def statuses(self, lr: float | None = None) -> Counter[str]:
        return Counter(each.status for each in self._all if lr is None or same_lr(each.spec.lr, lr))

    def tag_values(self, key: str, tags: Mapping[str, str]) -> set[str]:
        return {each.spec.tags[key] for _, each in self._tagged(tags) if key in each.spec.tags}

    def keys(self, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        return {key for key, _ in self._tagged(tags)}

    def count(self, key: ComparabilityKey, tags: Mapping[str, str]) -> int:
        return sum(each == key for each, _ in self._tagged(tags))

    def rates(
        self,
        keys: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        start: float,
        *,
        down: bool = False,
    ) -> Iterator[float]:
        rates = {each.spec.lr for key, each in self._tagged(tags) if key in keys}
        return iter(sorted((rate for rate in rates if (rate < start) is down), reverse=down))

    def newest_per_seed(
        self,
        keys: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        lr_min: float,
        lr_max: float,
    ) -> list[Recording]:
        return [
            each
            for key, each in self._tagged(tags)
            if key in keys and lr_min <= each.spec.lr <= lr_max
        ]

    def _tagged(self, tags: Mapping[str, str]) -> Iterator[tuple[ComparabilityKey, Recording]]:
        return (
            (key, each) for key, each in self._completed if tags.items() <= each.spec.tags.items()
        )
