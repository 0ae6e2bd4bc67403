"""When not to trust a match, by what is known of the base, of the run and of their family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flerm_core.errors import FlermError
from flerm_core.matching.batch_change import unfollowed
from flerm_core.matching.targets import Targets
from flerm_core.records.comparability import optimizer_key
from flerm_core.records.queries import BestQuery
from flerm_core.records.recording import Recording
from flerm_core.tuning.best_lr import Best
from flerm_core.tuning.cautions import ONE_SEED, initial_scale_words
from flerm_core.tuning.experiment_settings import OPTIMIZER

_HALF_OCTAVE = 0.5
_LONGER = 2.0  # times the base's steps


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of a run that is to be matched.

    batch_size: the examples of one of its optimiser steps; None: not known.
    steps: its optimiser steps in all; None: not known.
    follows: whether its rates follow batch size and steps (`BatchChange`).
    config: its configuration, as a recording has it.
    tags: of the base recordings that it takes targets from.
    """

    batch_size: int | None = None
    steps: int | None = None
    follows: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def match_cautions(
    targets: Targets,
    run: RunFacts,
    *,
    best: Callable[[BestQuery], Best],
    recording: Callable[[str], Recording],
) -> tuple[str, ...]:
    """When not to trust a match of `run` to `targets`, and what regret to expect, in sentences.

    best: answers a query for the best rate of the family.
    recording: gives the recording with an id.

    What the registry cannot answer is said in a sentence too, and raises nothing.
    """
    if not targets.sources:  # the user's own FSLRs, of which nothing is known
        return ()
    words = [ONE_SEED] if targets.seeds == 1 else []
    config: Mapping[str, Any] = {}
    found: Best | None = None
    try:
        config = recording(targets.sources[0]).spec.config
        found = best(_question(targets, run))
    except FlermError as error:
        words.append(f"How far to trust the base's rate is not known: {error}.")
    if found is not None:
        words += _rate_words(targets.lr, found)
    words += initial_scale_words(config, run.config)
    if not run.follows:
        words += [*_batch_words(targets, run), *_length_words(targets, run)]
    words += [] if found is None else found.cautions
    return tuple(dict.fromkeys(words))


def _question(targets: Targets, run: RunFacts) -> BestQuery:
    settings = optimizer_key(targets.optimizer, targets.optimizer_config)
    return BestQuery(
        family=targets.family,
        optimizer=targets.optimizer,
        tags=run.tags,
        pick={OPTIMIZER: settings} if targets.optimizer else {},
        cautions=True,
    )


def _rate_words(lr: float, best: Best) -> list[str]:
    words = [best.advice] if best.at_an_end else []
    octaves = math.log2(lr / best.optimum)
    if abs(octaves) > _HALF_OCTAVE:
        words.append(
            f"The learning rate {lr:.3g} lies {abs(octaves):.2f} octaves "
            f"{'above' if octaves > 0 else 'below'} the base's optimum {best.optimum:.3g}: a match "
            "carries over how the base trains, and at this rate the base trains worse."
        )
    return words


def _batch_words(targets: Targets, run: RunFacts) -> list[str]:
    if sentence := unfollowed(targets, run.batch_size):
        return [f"{sentence[0].upper()}{sentence[1:]}."]
    if targets.batch_size is None:
        return [
            "The base's recordings do not all say one batch size, so nobody can tell whether this "
            "run's is another: record the base with batch_size=, or set that tag (flerm tag)."
        ]
    if run.batch_size is None:
        return [
            f"A step of the base has {targets.batch_size} examples, and of this run the number is "
            "not known: give batch_size= where it is another."
        ]
    return []


def _length_words(targets: Targets, run: RunFacts) -> list[str]:
    if run.steps is None or run.steps < _LONGER * targets.final_step:
        return []
    return [
        f"The base was trained for {targets.final_step} steps and this run is for {run.steps}: the "
        "best rate of a longer run is lower (docs/decisions.md, 58), and rates follow the length "
        "where batch_size= and total_steps= are given."
    ]
