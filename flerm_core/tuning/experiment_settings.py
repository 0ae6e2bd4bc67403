"""Sorts the recordings of a family into experiments, and those of one experiment into scales.

An experiment is a sweep with one optimiser, schedule, number of steps and so on. A scale is one
width, depth or rank. Both are found from the settings in the recordings. Where base recordings
differ in a setting, they belong to different experiments. Where a recording differs from the base
in a setting, the recording has another scale.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flerm_core.records.comparability import comparability_of
from flerm_core.records.recording import Recording
from flerm_core.tuning.best_lr import SIZE, SweepRun
from flerm_core.tuning.scale import UNLABELLED, Scale, Value, value_of

MOST_VALUES = 12
"""A setting with more values than this is one of single runs, not of experiments or scales."""
OPTIMIZER = "optimizer"

USUAL = (
    "width", "d_model", "hidden_size", "n_embd", "depth", "num_hidden_layers", "n_layer", "layers",
    "blocks", "rank", "init_scale", "batch_size", "batch", "steps", "schedule",
)  # fmt: skip
"""Where several settings make the same distinction, one with a name in this list is shown."""

Settings = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Kind:
    """One setting in which the experiments of a family differ.

    values: each value of the setting with the number of its recordings, the most frequent first.
    shown: the value of the experiment that is shown.
    """

    name: str
    values: tuple[tuple[str, int], ...]
    shown: str

    @property
    def labels(self) -> dict[str, str]:
        """What to call each value."""
        return short_texts(value for value, _ in self.values)


def settings_of(config: Mapping[str, Any], tags: Mapping[str, str], optimizer_key: str) -> Settings:
    """The settings of a recording: its tags, the plain values of its configuration, its optimiser.

    Where a tag and a configuration value have the same name, the configuration's value is taken.

    optimizer_key: the optimiser with its settings (`ComparabilityKey.optimizer_key`).
    """
    found: dict[str, Value] = {name: value_of(value) for name, value in tags.items()}
    for name, value in config.items():
        if isinstance(value, str | int | float):
            found[name] = value_of(value)
    found[OPTIMIZER] = optimizer_key
    return found


def plain_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str | int | float]]:
    """The texts and numbers in `settings`, nested or not, by their innermost names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from plain_settings(value)
        elif isinstance(value, str | int | float):
            yield name, value


@dataclass(frozen=True, slots=True)
class ExperimentRun:
    """What questions about losses need of one recording. settings: see `settings_of`."""

    id: str
    role: str
    variant: str
    settings: Settings
    run: SweepRun
    tags: Mapping[str, str]

    @classmethod
    def of(cls, recording: Recording) -> ExperimentRun:
        """The run that `recording` describes. Its list of parameters is not needed."""
        spec = recording.spec
        key = comparability_of(spec).optimizer_key
        settings = settings_of(spec.config, spec.tags, key)
        return cls(spec.id, spec.role, spec.variant, settings, SweepRun.of(recording), spec.tags)


def differing_settings(settings: Sequence[Settings]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the settings in which recordings differ, as columns of a table.

    Returns two tuples. The first has a few settings that tell the recordings apart. The second has
    all settings with several values, also those that differ for nearly every recording (a job's
    number).
    """
    values: dict[str, set[Value]] = defaultdict(set)
    distinct = _distinct(settings)
    for each in distinct:
        for name, value in each.items():
            values[name].add(value)
    varying = tuple(name for name, its in values.items() if len(its) > 1)
    few = [name for name in varying if len(values[name]) <= MOST_VALUES]
    return tuple(_telling(distinct, few)), varying


def short_texts(values: Iterable[str]) -> dict[str, str]:
    """A short text for each of `values`, without the arguments that all of them have.

    Where all have the same betas, `AdamW(betas=[0.9, 0.999], weight_decay=0.1)` becomes
    `AdamW(weight_decay=0.1)`.
    """
    parts = {}
    for value in dict.fromkeys(values):
        name, _, rest = value.partition("(")
        parts[value] = (name, re.split(r", (?=\w+=)", rest[:-1]) if rest.strip(")") else [])
    common = set.intersection(*(set(its) for _, its in parts.values())) if parts else set()
    return {
        value: f"{name}({', '.join(own)})" if own else name
        for value, (name, its) in parts.items()
        for own in [[each for each in its if each not in common]]
    }


def text_of(value: Value) -> str:
    """A setting's value as text, for addresses and pages."""
    if not isinstance(value, float):
        return value
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:g}"


def bigger_than_base(runs: Sequence[ExperimentRun]) -> frozenset[str]:
    """The ids of the runs with role base whose model is bigger than the smallest with role base."""
    sizes = {each.id: each.settings.get(SIZE) for each in runs if each.role == "base"}
    known = {at: size for at, size in sizes.items() if isinstance(size, float)}
    least = min(known.values(), default=math.inf)
    return frozenset(at for at, size in known.items() if size > least)


def kinds_of(
    runs: Sequence[ExperimentRun], bigger: Collection[str], chosen: Mapping[str, str]
) -> tuple[tuple[Kind, ...], list[ExperimentRun]]:
    """The settings in which experiments differ, and the runs of the experiment that is shown.

    runs: all runs of the family.
    bigger: the ids of runs with role base that count as scaled (`bigger_than_base`).
    chosen: the value to show of some settings, by name. Of the others the value with most
        recordings is shown.
    """
    bases = [each for each in runs if is_base(each, bigger)]
    names = _kind_names(bases)
    asked = [name for name in chosen if name not in names]
    kinds, kept = [], list(runs)
    for name in [*names, *asked]:
        there = {text_of(each.settings[name]) for each in bases if name in each.settings}
        counts: dict[str, int] = defaultdict(int)
        for each in kept:
            if name in each.settings:
                counts[text_of(each.settings[name])] += 1
        if not counts:
            continue
        wanted = _named(chosen.get(name, ""), counts)
        offered = {value for value in counts if value in there or name in asked}
        usual = max(offered or counts, key=lambda value: counts[value])
        shown = wanted if wanted in counts else usual
        kinds.append(Kind(name, tuple(sorted(counts.items(), key=lambda each: -each[1])), shown))
        kept = [each for each in kept if _belongs(each, name, shown, there, bigger, wanted)]
    return tuple(kinds), kept


def _named(wanted: str, values: Iterable[str]) -> str:
    """The one of `values` that equals `wanted`, or whose short text does; empty where none does."""
    return next(
        (full for full, short in short_texts(values).items() if wanted in (full, short)), ""
    )


def _belongs(
    run: ExperimentRun,
    name: str,
    shown: str,
    there: Collection[str],
    bigger: Collection[str],
    wanted: str,
) -> bool:
    """Whether a run belongs to the experiment whose setting `name` is `shown`.

    A run without the setting belongs. So does a scaled run whose value no base has, because it is
    then of another scale. Where no base has the value `shown`, every base belongs.

    run: the run in question.
    name, shown: the setting, and its value in the experiment.
    there: the values of this setting that bases have.
    bigger: as in `kinds_of`.
    wanted: the value that the user chose; empty where the user chose none.
    """
    own = run.settings.get(name)
    if own is None or text_of(own) == shown:
        return True
    if is_base(run, bigger):
        return shown not in there
    return not wanted and name != OPTIMIZER and text_of(own) not in there


def scales_of(runs: Sequence[ExperimentRun], bigger: Collection[str]) -> dict[str, Scale]:
    """The scale of each run, by its id."""
    bases = [each for each in runs if is_base(each, bigger)]
    names = _scale_names(runs)
    usual = {name: _usual(each.settings.get(name) for each in bases) for name in names}
    known = {
        id(settings): Scale(
            tuple(
                (name, text_of(settings[name]), _ratio(settings[name], usual[name]))
                for name in names
                if name in settings and settings[name] != usual[name]
            )
        )
        for settings in _distinct(each.settings for each in runs)
    }
    own = Scale()
    # A scaled run must not count as the base, even where no setting differs from the base's.
    unlabelled = {"base": own, "scaled": UNLABELLED}
    return {
        each.id: own if is_base(each, bigger) else known[id(each.settings)] or unlabelled[each.role]
        for each in runs
    }


def is_base(run: ExperimentRun, bigger: Collection[str]) -> bool:
    """Whether a run is one of the base's sweep."""
    return (run.role, run.variant) == ("base", "plain") and run.id not in bigger


def _kind_names(bases: Sequence[ExperimentRun]) -> list[str]:
    """The settings in which the base's experiments differ, the optimiser first.

    Every value of such a setting was run at several learning rates. A setting that changes with the
    seed is none.
    """
    rates: dict[str, dict[Value, set[float]]] = defaultdict(lambda: defaultdict(set))
    seeds: dict[str, dict[Value, set[int]]] = defaultdict(lambda: defaultdict(set))
    for settings, its_rates, its_seeds in _tried(bases):
        for name, value in settings.items():
            rates[name][value] |= its_rates
            seeds[name][value] |= its_seeds
    several = len({each.run.seed for each in bases}) > 1
    names = [
        name
        for name, its in rates.items()
        if 1 < len(its) <= MOST_VALUES
        and (name == OPTIMIZER or all(len(found) > 1 for found in its.values()))
        and not (several and all(len(found) == 1 for found in seeds[name].values()))
    ]
    return _telling([each.settings for each in bases], names, first=OPTIMIZER)


def _scale_names(runs: Sequence[ExperimentRun]) -> list[str]:
    """The settings in which scales differ.

    All values of such a setting are numbers, or each value was run at several learning rates.
    """
    values: dict[str, set[Value]] = defaultdict(set)
    rates: dict[tuple[str, Value], set[float]] = defaultdict(set)
    for settings, its_rates, _ in _tried(runs):
        for name, value in settings.items():
            values[name].add(value)
            rates[name, value] |= its_rates
    names = [
        name
        for name, its in values.items()
        if 1 < len(its) <= MOST_VALUES
        and name != OPTIMIZER
        and (
            all(isinstance(value, float) for value in its)
            or all(len(rates[name, value]) > 1 for value in its)
        )
    ]
    return _telling([each.settings for each in runs], names)


def _telling(settings: Sequence[Settings], names: Iterable[str], first: str = "") -> list[str]:
    """The `names` that are needed to tell `settings` apart: `first`, then those that are `USUAL` in
    their order, then the others by letter. Settings that came over the wire have no order.

    Names are tried one by one, and one is kept where it tells apart what the names kept before do
    not. `first` is tried first, then `USUAL` names, then names with short values. So the number of
    weights is left out where the width is kept.
    """
    listed = list(names)
    chosen: list[str] = []

    distinct = {
        tuple(each.get(name) for name in listed): each for each in _distinct(settings)
    }.values()

    def groups(keys: Sequence[str]) -> int:
        return len({tuple(each.get(key) for key in keys) for each in distinct})

    def length(name: str) -> tuple[bool, bool, int]:
        values = {text_of(each[name]) for each in distinct if name in each}
        return name != first, name not in USUAL, sum(map(len, values))

    for name in sorted(listed, key=length):
        if groups([*chosen, name]) > groups(chosen):
            chosen.append(name)

    def place(name: str) -> tuple[bool, int, str]:
        return name != first, USUAL.index(name) if name in USUAL else len(USUAL), name

    return sorted(chosen, key=place)


def _distinct(settings: Iterable[Settings]) -> list[Settings]:
    """The distinct objects among `settings`, in order.

    Recordings of a sweep share their settings object, so there are few for thousands of recordings.
    """
    return list({id(each): each for each in settings}.values())


def _tried(runs: Iterable[ExperimentRun]) -> list[tuple[Settings, set[float], set[int]]]:
    """Each distinct settings object, with the learning rates and the seeds of its runs."""
    found: dict[int, tuple[Settings, set[float], set[int]]] = {}
    for each in runs:
        its = found.get(id(each.settings))
        if its is None:
            its = found[id(each.settings)] = (each.settings, set(), set())
        its[1].add(each.run.lr)
        its[2].add(each.run.seed)
    return list(found.values())


def _usual(values: Iterable[Value | None]) -> Value | None:
    counts: dict[Value, int] = defaultdict(int)
    for value in values:
        if value is not None:
            counts[value] += 1
    return max(counts, key=lambda value: counts[value], default=None)


def _ratio(value: Value, base: Value | None) -> float:
    if not (isinstance(value, float) and isinstance(base, float)) or base == 0:
        return math.nan
    return value / base
