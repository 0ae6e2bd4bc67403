"""When not to trust the rate of a family, and what regret to expect of a match to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flerm_core.tuning.experiment_settings import plain_settings
from flerm_core.tuning.scale import Scale

if TYPE_CHECKING:
    from flerm_core.tuning.transfer_report import TransferReport

ONE_SEED = (
    "The base has one seed: optima of single seeds lie up to 0.4 octaves apart, so record two more."
)
"""What is said of a base with one seed. The figure is that of docs/results.md."""
AT_AN_END = "The best rate lies at an end of those that were tried, so the optimum may lie beyond."
UNKNOWN_REGRET = (
    "The runs of this family do not tell the regret of a match: docs/results.md has what was "
    "measured elsewhere for width, depth, rank, initialisation scale, batch and length."
)
_NORMS = "matching makes up for this only where a norm follows every weight (docs/results.md)"
# Losses at one scale, of any variant and rate; of fewer, the lowest says little.
_FEWEST_TRIED = 3
_OTHERS = ("lr", "rate", "loss", "seed", "step", "epoch")


def family_cautions(report: TransferReport) -> tuple[str, ...]:
    """When not to trust a match of this family, and what regret its matches had, in sentences."""
    base = report.base
    if base is None:
        return ()
    words = [ONE_SEED] if base.seeds == 1 else []
    matched = [row for row in report.rows if row.scale and row.variant.startswith("matched")]
    changed = {name for row in matched for name, _, _ in row.scale.differences}
    initial = sorted(filter(is_initial_scale, changed))
    if initial:
        words.append(f"Some models differ from the base in {', '.join(initial)}: {_NORMS}.")
    tried = Counter[Scale]()
    for row in report.rows:
        tried[row.scale] += len(row.points)
    known = [
        row.regret.value
        for row in matched
        if tried[row.scale] >= _FEWEST_TRIED and not math.isnan(row.regret.value)
    ]
    finite = [value for value in known if not math.isinf(value)]
    if finite:
        low, high = (f"{100 * end(finite):.1f} %" for end in (min, max))
        span = low if low == high else f"{low} to {high}"
        words.append(
            f"At the base's rate, the loss of {_counted(len(finite))} was {span} above the lowest "
            "that was tried with the same model."
        )
    if len(known) > len(finite):
        words.append(f"At the base's rate, {_counted(len(known) - len(finite))} diverged.")
    if not known:
        words.append(UNKNOWN_REGRET)
    return tuple(words)


def is_initial_scale(name: str) -> bool:
    """Whether a setting called `name` is the scale of a model's initialisation."""
    short = name.lower()
    return "init" in short and not any(other in short for other in _OTHERS)


def initial_scale_words(base: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each scale of initialisation that is not the base's.

    base, own: the configurations of the two models, nested or not. What one of them does not say is
    not compared.
    """
    theirs, ours = _numbers(base), _numbers(own)
    return tuple(
        f"{name} is {ours[name]:g} for this model and {theirs[name]:g} in the base: {_NORMS}."
        for name in ours
        if name in theirs and ours[name] != theirs[name] and is_initial_scale(name)
    )


def _numbers(config: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in plain_settings(config) if not isinstance(value, str | bool)
    }


def _counted(curves: int) -> str:
    return f"{curves} matched curve{'s' if curves > 1 else ''}"
