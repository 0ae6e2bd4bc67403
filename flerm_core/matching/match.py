"""From a base's FSLRs to the targets of another model, and from targets to multipliers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from flerm_core._arrays import thin
from flerm_core.errors import InvalidInput, NotFound, join_names
from flerm_core.matching.depth_rules import (
    DEFAULT_DEPTH,
    DEPTH_RULES,
    Array,
    Columns,
)
from flerm_core.matching.match_plan import MatchPlan, depth_rule
from flerm_core.parameter_names import is_depth_group
from flerm_core.trajectory import Trajectory

__all__ = [
    "DEFAULT_DEPTH",
    "DEPTH_RULES",
    "Multipliers",
    "depth_rule",
    "match_rows",
    "match_targets",
    "multipliers",
    "thinned_columns",
]

NOISE = 1e-4
"""An FSLR below this fraction of the median over tensors is noise."""
ROUNDING = 1 / 16
"""Multipliers are rounded to multiples of this many octaves."""
MAX_ROWS = 256  # rows of a run that depth rules read, enough for a mean over the run


def match_targets(
    trajectory: Trajectory,
    names: Iterable[str],
    *,
    step: float | None = None,
    blocks: str | Iterable[str] | None = None,
    depth: str = DEFAULT_DEPTH,
) -> dict[str, float]:
    """Target FSLRs for another model of the family, from one recording of the base.

    Where both models have equally many blocks, the target of a tensor is exactly the FSLR of the
    base's tensor at the same place. Elsewhere the depth rule says how the FSLRs of the base's
    blocks become those of the other model's. Where only one of the models ties its token embedding
    and readout, `carry_over_tied` gives their targets.

    trajectory: the base's FSLRs.
    names: the other model's parameter names. They may have the prefixes of wrappers, and the result
        has the names as they were given.
    step: the step of the base's run; None: its first row.
    blocks: the axes that count blocks ("layers.*"), one or several; None: the axes along which the
        names of the two models differ.
    depth: the name of a rule in `DEPTH_RULES`.

    A target is NaN where the base had not measured that tensor by that step. Raises `NotFound` for
    names that the base cannot match; the message lists these names and the base's. Raises
    `InvalidInput` for a wrong axis, rule or step.
    """
    columns = {name: np.array([value]) for name, value in trajectory.at(step).items()}
    matched = match_rows(
        columns,
        names,
        whole_run=thinned_columns(trajectory),
        bands=dict(zip(trajectory.names, trajectory.bands, strict=True)),
        blocks=blocks,
        depth=depth,
    )
    return {name: float(values[0]) for name, values in matched.items()}


def thinned_columns(trajectory: Trajectory) -> Mapping[str, NDArray[np.float32]]:
    """A base's FSLRs over its whole run by name, as `match_rows` needs them.

    A long run is thinned to 256 rows, evenly spread.
    """
    rows = trajectory.values[thin(len(trajectory), MAX_ROWS)]
    return dict(zip(trajectory.names, rows.T, strict=True))


def match_rows(
    base: Mapping[str, Array],
    names: Iterable[str],
    *,
    whole_run: Columns,
    bands: Mapping[str, str] | None = None,
    blocks: str | Iterable[str] | None = None,
    depth: str = DEFAULT_DEPTH,
) -> dict[str, Array]:
    """`match_targets` for T steps at once: the targets, float64 [T], by name.

    base: the base's FSLRs at these steps by name, float64 [T] each.
    whole_run: the base's FSLRs over its whole run (`thinned_columns`), whatever the T steps are.
    names, bands, blocks, depth: as in `MatchPlan.of`, which serves several bases of equal names.

    Raises as `match_targets` does.
    """
    plan = MatchPlan.of(base, names, bands=bands, blocks=blocks, depth=depth)
    return plan.targets(base, whole_run)


@dataclass(frozen=True, slots=True)
class Multipliers:
    """What the learning rate of each tensor is multiplied by.

    values: the multiplier of each tensor.
    unmeasured, noisy: the tensors that kept their multiplier for this reason, sorted.
    clamped: the tensors whose multiplier was limited to an end of the clamp, sorted.
    """

    values: dict[str, float]
    unmeasured: tuple[str, ...] = ()
    noisy: tuple[str, ...] = ()
    clamped: tuple[str, ...] = ()


def multipliers(
    targets: Mapping[str, float],
    measured: Mapping[str, float],
    *,
    previous: Mapping[str, float] | None = None,
    clamp: tuple[float, float] = (1 / 4096, 4096.0),
    only: Collection[str] = (),
    times: float = 1.0,
) -> Multipliers:
    """m = target / measured (Eq. 19), rounded to 1/16 octave, for every tensor of either mapping.

    targets, measured: FSLRs by tensor. Depth groups among them are ignored.
    previous: the multipliers in force, by tensor.
    clamp: the least and the greatest multiplier.
    only: the tensors that may get a new multiplier; empty: all tensors may.
    times: multiplies every new multiplier, after the clamp (`BatchChange.rate`).

    Other tensors keep their multiplier of `previous`, or `times`. So do noisy tensors, whose
    measured FSLR is below `NOISE` times the median of the measured FSLRs, or whose target is
    below `NOISE` times the median of the targets. So do unmeasured tensors, whose measured FSLR
    or target is absent, NaN, infinite or zero.

    All new multipliers are finite and positive, and the same on every machine. Raises `NotFound`
    for a measured tensor without a target, and `InvalidInput` for a negative number and for a clamp
    that does not contain 1.
    """
    low, high = clamp
    _check_input(targets, measured, clamp)
    wanted, have = _tensors(targets), _tensors(measured)
    lost = [name for name in have if name not in wanted]
    if lost:
        raise NotFound(
            f"targets: none for {join_names(lost, 50)}; there are targets for {join_names(targets)}"
        )
    floor, target_floor = noise_floor(have.values()), noise_floor(wanted.values())
    result = {name: (previous or {}).get(name, times) for name in wanted}
    unmeasured, noisy, clamped = [], [], []
    for name in wanted if not only else set(only):
        value, target = have.get(name, np.nan), wanted[name]
        if not (_usable(value) and _usable(target)):
            unmeasured.append(name)
        elif value < floor or target < target_floor:
            noisy.append(name)
        else:
            octaves = np.log2(target) - np.log2(value)
            rounded = 2.0 ** (np.round(octaves / ROUNDING) * ROUNDING)
            result[name] = times * float(np.clip(rounded, low, high))
            if not np.log2(low) <= octaves <= np.log2(high):
                clamped.append(name)
    return Multipliers(
        result, tuple(sorted(unmeasured)), tuple(sorted(noisy)), tuple(sorted(clamped))
    )


def _check_input(
    targets: Mapping[str, float], measured: Mapping[str, float], clamp: tuple[float, float]
) -> None:
    if not 0 < clamp[0] <= 1 <= clamp[1] < np.inf:
        raise InvalidInput(
            f"clamp: {clamp} is not allowed; it is a pair of finite numbers above 0 with 1 "
            "between them"
        )
    for field, values in (("targets", targets), ("measured", measured)):
        wrong = next((name for name, value in values.items() if value < 0), None)
        if wrong is not None:
            raise InvalidInput(
                f"{field}: {values[wrong]} for {wrong!r}; allowed are numbers from 0, and NaN for "
                "unmeasured"
            )


def _tensors(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not is_depth_group(name)}


def noise_floor(fslrs: Iterable[float]) -> float:
    """The value below which an FSLR is noise, given those of all tensors; 0 where none is known."""
    usable = [value for value in fslrs if _usable(value)]
    return NOISE * median(usable) if usable else 0.0


def _usable(value: float) -> bool:
    return bool(np.isfinite(value)) and value > 0
