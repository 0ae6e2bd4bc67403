"""Parameter groups that begin at other learning rates than the one that their run is filed under.

An FSLR is that of an update at learning rate 1. Where a base trained its readout at ten times its
rate, a matched run reaches the base's updates only if its readout has ten times its rate too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from flerm_core.errors import join_names
from flerm_core.parameter_names import starred
from flerm_core.records.comparability import RATE_RATIOS

_MAX_BYTES = 16_384  # as JSON; of an optimiser's settings a recording holds four times as many
_SAME = 1e-6
_MOST = 4  # sentences: one for each pair of ratios, and the layers of a fine-tuned model have many
_UNLISTED = "*"  # in place of names, where there are too many to list

Ratios = Mapping[str, float]
"""The rate over the run's, by template of names (`layers.*.weight`) or, where the tensors of a
template have several, by name. What is at the run's own rate is left out."""


def rate_ratios(rates: Mapping[str, float], lr: float) -> dict[str, Ratios]:
    """What an optimiser's settings hold of the groups' rates. Where all have the rate `lr`, the
    ratios are empty: settings without any are of a recording that does not say its groups' rates.

    rates: the rate that each tensor begins with, by name.
    lr: the learning rate that the run is filed under.
    """
    by_template: dict[str, dict[str, float]] = {}
    for name, rate in rates.items():
        ratio = float(f"{rate / lr:.7g}")
        if math.isfinite(ratio):
            by_template.setdefault(starred(name), {})[name] = ratio
    found: dict[str, float] = {}
    for template, its in by_template.items():
        several = len(set(its.values())) > 1
        found |= its if several else {template: next(iter(its.values()))}
    if all(ratio == 1.0 for ratio in found.values()):
        return {RATE_RATIOS: {}}
    mixed = {name for name in found if starred(name) != name}
    ratios = {name: each for name, each in found.items() if each != 1.0 or name in mixed}
    if len(json.dumps(ratios)) > _MAX_BYTES:
        ratios = {_UNLISTED: max(ratios.values())}
    return {RATE_RATIOS: ratios}


def rate_words(
    names: Iterable[str],
    own_config: Mapping[str, Any],
    base_config: Mapping[str, Any],
    lr: float,
) -> tuple[str, ...]:
    """Sentences on tensors that do not begin at the base's rates, those farthest off first.

    Empty where all begin at the base's rates. Where one of the two does not say its rates, and the
    other has several, a sentence says so.

    names: the run's tensors.
    own_config, base_config: the settings of the two optimisers, as recordings have them.
    lr: the learning rate that the run is filed under.
    """
    said_by = [config.get(RATE_RATIOS) for config in (own_config, base_config)]
    own, base = (ratios or {} for ratios in said_by)
    if own == base or _UNLISTED in own or _UNLISTED in base:
        return ()
    if None in said_by:
        return _unknown_words(_listed(own), _listed(base), lr)
    mixed = {starred(name) for each in (own, base) for name in each if starred(name) != name}
    listed = list(names)
    pairs: dict[tuple[float, float], list[str]] = {}
    for name in listed:
        mine, theirs = _ratio(own, name), _ratio(base, name)
        if mine and theirs and not math.isclose(mine, theirs, rel_tol=_SAME):
            template = starred(name)
            shown = name if template in mixed else template
            pairs.setdefault((mine, theirs), []).append(shown)
    farthest = sorted(pairs.items(), key=lambda each: -abs(math.log(each[0][0] / each[0][1])))
    said = tuple(
        "tensors of this run begin at other rates than the base's: "
        f"{'all' if len(its) == len(listed) else join_names(dict.fromkeys(its))} at {mine:.4g} "
        f"times the rate {lr:.4g}, and in the base at {theirs:.4g} times its rate, so that their "
        f"updates are {mine / theirs:.4g} times those that match; give the optimizer's parameter "
        "groups the base's rates"
        for (mine, theirs), its in farthest[:_MOST]
    )
    if rest := sum(len(its) for _, its in farthest[_MOST:]):
        said += (f"{rest} more tensors of this run begin at other rates than the base's",)
    return said


def _unknown_words(own: str, base: str, lr: float) -> tuple[str, ...]:
    """`rate_words` where one of the two does not say its rates. own, base: `_listed`."""
    if own:
        return (
            f"tensors of this run begin at other rates than the run's {lr:.4g} ({own} this rate), "
            "and the base does not say at which rates its tensors began: their updates match only "
            "where the base's had the same factors",
        )
    if base:
        return (
            f"tensors of the base began at other rates than its own ({base} its rate), and this "
            "run does not say at which rates its tensors began: their updates match only where "
            "they had the same factors",
        )
    return ()


def _listed(ratios: Ratios) -> str:
    """`embed.weight at 10 times, head.weight at 0.5 times`, the farthest from 1 first."""
    by_ratio: dict[float, list[str]] = {}
    for name, ratio in ratios.items():
        if ratio and ratio != 1:  # at a rate of 0 nothing is trained, and nothing matched
            by_ratio.setdefault(ratio, []).append(name)
    farthest = sorted(by_ratio.items(), key=lambda each: -abs(math.log(each[0])))
    words = [f"{join_names(its)} at {ratio:.4g} times" for ratio, its in farthest[:_MOST]]
    return ", ".join([*words, "…"] if len(farthest) > _MOST else words)


def _ratio(ratios: Ratios, name: str) -> float | None:
    """The ratio of one tensor; None where it is not known, as of a block that the model lacks."""
    template = starred(name)
    if name in ratios or template in ratios:
        return float(ratios.get(name, ratios.get(template, 1.0)))
    return None if any(starred(each) == template for each in ratios) else 1.0
