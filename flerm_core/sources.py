"""Which recordings a question about targets means: the rules by which one set of targets has one origin (design, method 8)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flerm_core.errors import Ambiguous, InvalidInput, NotFound, listed
from flerm_core.recording import EstimatorSettings, Recording, RecordingSpec, same_lr

POLICIES = ("exact", "nearest", "interpolate")
Sources = dict[float, tuple[Recording, ...]]
"""Learning rate to its recordings, one a seed, both ascending: one rate, or the two neighbours of the one asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetQuery:
    """A question for targets. Empty and None fields do not restrict the sources, but those must agree among themselves.

    names: the asker's parameters (empty: the base's own), shapes: theirs, or empty. policy: of `POLICIES`. depth: a rule of
    `DEPTH_RULES`, "" for the default. blocks: axes ("layers.*"), empty for the family's, else found from the names. optimizer:
    the class name; optimizer_config: all of it but the learning rate. estimator: compared by its `kind`. step: only the row at
    this step.
    """

    family: str
    lr: float
    names: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    policy: str = "interpolate"
    depth: str = ""
    blocks: tuple[str, ...] = ()
    optimizer: str = ""
    optimizer_config: Mapping[str, Any] | None = None
    estimator: EstimatorSettings | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None


def choose_sources(recordings: Iterable[Recording], query: TargetQuery) -> Sources:
    """Those of a family's `recordings` (listings do) that answer `query`, by learning rate.

    They have role base, variant plain, status completed, what the query asks for, and among themselves one optimiser (its
    betas, decay and such too) and one estimator. Where a seed was recorded more than once at a rate, the newest recording
    counts. Raises `NotFound` where nothing fits, with what there is; `Ambiguous` for several optimisers or estimators, with how
    to choose.
    """
    if query.policy not in POLICIES:
        raise InvalidInput(f"policy: {query.policy!r} is not one; allowed are {', '.join(POLICIES)}")
    if not (math.isfinite(query.lr) and query.lr > 0):
        raise InvalidInput(f"lr: {query.lr} is not a learning rate; allowed are finite numbers above 0")
    base = [each for each in recordings if _is_base(each, query.family)]
    if not base:
        raise NotFound(f"family: {query.family!r} has no base recording (role base, variant plain) to take targets from")
    fitting = _fitting(base, query)
    _refuse_several(fitting, optimizer_kind, "optimisers", "optimizer and optimizer_config (or tags)")
    _refuse_several(fitting, lambda spec: spec.estimator.kind, "estimators", "estimator (or tags)")
    rates = _by_rate(fitting)
    return {rate: rates[rate] for rate in _rates_for(query, rates, base)}


def optimizer_kind(spec: RecordingSpec) -> str:
    """The optimiser in one comparable line; numbers compare by value (0 and 0.0 are one), sequences by content."""
    return _kind(spec.optimizer, spec.optimizer_config)


def settings_in_force(config: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's settings without those that are off (None, False, 0, empty): to another version of it they may be unknown,
    and mean the same there."""
    plain = {key: _plain(value) for key, value in sorted(config.items())}
    return {key: value for key, value in plain.items() if value}


def _kind(name: str, config: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={json.dumps(value, sort_keys=True)}" for key, value in settings_in_force(config).items())
    return f"{name}({arguments})"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _is_base(recording: Recording, family: str) -> bool:
    spec = recording.spec
    return spec.family == family and spec.role == "base" and spec.variant == "plain"


def _fitting(base: Sequence[Recording], query: TargetQuery) -> list[Recording]:
    """The completed ones with what the query asks for; each condition that leaves none says what there is."""
    left = [each for each in base if each.status == "completed"]
    if not left:
        raise NotFound(f"family: {query.family!r} has no completed base recording; there are {_statuses(base)}")
    for key, value in query.tags.items():
        there = {each.spec.tags[key] for each in left if key in each.spec.tags}
        left = _kept(left, _has_tag(key, value), f"tags: {key}={value!r}", sorted(there), query)
    if query.optimizer:
        names = sorted({each.spec.optimizer for each in left})
        left = _kept(left, lambda spec: spec.optimizer == query.optimizer, f"optimizer: {query.optimizer!r}", names, query)
    if query.optimizer_config is not None:
        wanted = _kind("", query.optimizer_config)
        kinds = sorted({optimizer_kind(each.spec) for each in left})
        field_ = f"optimizer_config: {wanted[1:-1] or 'an empty one'}"
        left = _kept(left, lambda spec: _kind("", spec.optimizer_config) == wanted, field_, kinds, query)
    if query.estimator is not None:
        kind = query.estimator.kind
        kinds = sorted({each.spec.estimator.kind for each in left})
        left = _kept(left, lambda spec: spec.estimator.kind == kind, f"estimator: {kind!r}", kinds, query)
    return left


def _kept(
    recordings: list[Recording], test: Callable[[RecordingSpec], bool], wish: str, there: Sequence[str], query: TargetQuery
) -> list[Recording]:
    kept = [each for each in recordings if test(each.spec)]
    if not kept:
        raise NotFound(f"{wish} fits no completed base recording of {query.family!r}; there is {listed(there)}")
    return kept


def _has_tag(key: str, value: str) -> Callable[[RecordingSpec], bool]:
    return lambda spec: spec.tags.get(key) == value


def _refuse_several(recordings: Sequence[Recording], kind: Callable[[RecordingSpec], str], what: str, how: str) -> None:
    counts = Counter(kind(each.spec) for each in recordings)
    if len(counts) > 1:
        there = listed(f"{each} ({count} recordings)" for each, count in sorted(counts.items()))
        raise Ambiguous(
            f"family: {recordings[0].spec.family!r} has base recordings of {len(counts)} {what}: {there}; name one by {how}"
        )


def _statuses(recordings: Iterable[Recording]) -> str:
    return listed(f"{count} {status}" for status, count in sorted(Counter(each.status for each in recordings).items()))


def _by_rate(recordings: Iterable[Recording]) -> Sources:
    """Grouped by learning rate, the newest of each seed, all in an order that does not depend on that of the listing."""
    newest: dict[float, dict[int, Recording]] = {}
    for each in sorted(recordings, key=lambda each: (each.spec.lr, each.created_at, each.spec.id)):
        last = next(reversed(newest), None)
        rate = last if last is not None and same_lr(last, each.spec.lr) else each.spec.lr
        seeds = newest.setdefault(rate, {})
        held = seeds.get(each.spec.seed)
        if held is None or (held.created_at, held.spec.id) < (each.created_at, each.spec.id):
            seeds[each.spec.seed] = each
    return {rate: tuple(found for _, found in sorted(seeds.items())) for rate, seeds in newest.items()}


def _rates_for(query: TargetQuery, rates: Mapping[float, object], base: Sequence[Recording]) -> list[float]:
    known = list(rates)
    same = next((rate for rate in known if same_lr(rate, query.lr)), None)
    if same is not None:
        return [same]
    if query.policy == "nearest":
        return [min(known, key=lambda rate: (abs(math.log(rate / query.lr)), rate))]
    below, above = [rate for rate in known if rate < query.lr], [rate for rate in known if rate > query.lr]
    if query.policy == "interpolate" and below and above:
        return [below[-1], above[0]]
    there = listed(f"{rate:g}" for rate in known)
    unfinished = [each for each in base if each.status != "completed" and same_lr(each.spec.lr, query.lr)]
    rest = f"; at {query.lr:g} itself there are {_statuses(unfinished)}" if unfinished else ""
    if query.policy == "exact":
        raise NotFound(f"lr: no completed base recording of {query.family!r} has {query.lr:g}; recorded are {there}{rest}")
    raise NotFound(
        f"lr: {query.lr:g} lies outside the recorded range {known[0]:g} to {known[-1]:g} of {query.family!r} "
        f"(recorded are {there}); record it, or ask for policy 'nearest'{rest}"
    )
