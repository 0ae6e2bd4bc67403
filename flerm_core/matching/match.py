"""From a base's FSLRs to the targets of another model, and from targets to multipliers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from statistics import median

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import InvalidInput, NotFound, join_names
from flerm_core.matching.depth_rules import (
    DEFAULT_DEPTH,
    DEPTH_RULES,
    Array,
    BlockNumbers,
    Columns,
    DepthGroup,
    DepthRule,
)
from flerm_core.matching.tied_embeddings import carry_over_tied, tied_remark
from flerm_core.parameter_names import (
    as_axes,
    canonical,
    expand_all,
    find_axes,
    is_depth_group,
    split_name,
    stands_for,
    widest_template,
)
from flerm_core.trajectory import Trajectory

__all__ = [
    "DEFAULT_DEPTH",
    "DEPTH_RULES",
    "Multipliers",
    "depth_rule",
    "match_remarks",
    "match_rows",
    "match_targets",
    "multipliers",
    "thinned_columns",
]

NOISE = 1e-4
"""An FSLR below this fraction of the median over tensors is noise."""
ROUNDING = 1 / 16
"""Multipliers are rounded to multiples of this many octaves."""
MAX_COMPARED = 500
MAX_ROWS = 256  # rows of a run that depth rules read, enough for a mean over the run


def depth_rule(depth: str) -> DepthRule:
    """The rule called `depth`; "" is the default rule.

    Raises `InvalidInput` for a name that is not in `DEPTH_RULES`.
    """
    rule = DEPTH_RULES.get(depth or DEFAULT_DEPTH)
    if rule is None:
        raise InvalidInput(f"depth: {depth!r} is not a rule; allowed are {', '.join(DEPTH_RULES)}")
    return rule


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
    rows = trajectory.thinned(MAX_ROWS)
    return dict(zip(rows.names, rows.values.T, strict=True))


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
    bands: the base's bands by name. They serve to check block axes that were found from names and
        not given. An axis along which a depth group has several bands counts layers of different
        kinds (a plain MLP in a `torch.nn.Sequential`), and is refused.
    names, blocks, depth: as in `match_targets`.

    Raises as `match_targets` does.
    """
    rule = depth_rule(depth)
    asked = _canonical_by_name(names)
    given = as_axes(blocks)
    axes = given or find_axes(base, asked.values())
    base = carry_over_tied(base, asked.values(), bands or {}, axes)
    base_groups, target_groups = _depth_groups(base, axes), _depth_groups(asked.values(), axes)
    name_of = {short: name for name, short in asked.items()}
    joint_of = _joint_names(
        [each for each in target_groups if each in base_groups], base, base_groups
    )
    members = expand_all(set(joint_of.values()), base)
    result: dict[str, Array] = {}
    unmatched: list[str] = []
    done: set[str] = set()
    for name, short in asked.items():
        template, numbers = split_name(short, axes)
        if is_depth_group(short) or not numbers:
            if short in base:
                result[name] = np.asarray(base[short], np.float64)
            else:
                unmatched.append(name)
        elif template not in base_groups:
            unmatched.append(name)
        elif template not in done:
            done.add(template)
            joint = joint_of[template]
            group = DepthGroup(
                template,
                base_groups[template],
                target_groups[template],
                joint,
                tuple(members[joint]),
            )
            if not given:
                _refuse_mixture(group, bands or {})
            matched = _apply_rule(rule, group, base, whole_run)
            result |= {name_of[target]: values for target, values in matched.items()}
    if unmatched:
        raise NotFound(_unmatched(unmatched, base, axes))
    return result


def match_remarks(
    base: Collection[str],
    names: Iterable[str],
    *,
    bands: Mapping[str, str] | None = None,
    blocks: str | Iterable[str] | None = None,
) -> tuple[str, ...]:
    """Sentences on how `match_rows` finds targets for tensors that the base does not have.

    base: the base's tensor names.
    names, bands, blocks: as in `match_rows`.
    """
    asked = _canonical_by_name(names).values()
    axes = as_axes(blocks) or find_axes(base, asked)
    said = tied_remark(base, asked, bands or {}, axes)
    return (said,) if said else ()


def _canonical_by_name(names: Iterable[str]) -> dict[str, str]:
    """The canonical name of each name. Raises `InvalidInput` where two names are one parameter."""
    asked: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        short = canonical(name)
        if short in seen:
            raise InvalidInput(
                f"names: {name!r} and {seen[short]!r} are the same parameter {short!r}; each is "
                "allowed once"
            )
        asked[name], seen[short] = short, name
    return asked


def _depth_groups(names: Iterable[str], axes: Sequence[str]) -> dict[str, dict[BlockNumbers, str]]:
    """For each template, the group's tensors by their block numbers, ascending."""
    groups: dict[str, dict[BlockNumbers, str]] = {}
    for name in names:
        template, numbers = split_name(name, axes)
        if numbers and not is_depth_group(name):
            groups.setdefault(template, {})[numbers] = name
    return {template: dict(sorted(members.items())) for template, members in groups.items()}


def _joint_names(
    templates: Iterable[str],
    base: Iterable[str],
    base_groups: Mapping[str, Mapping[BlockNumbers, str]],
) -> dict[str, str]:
    """For each template, the name under which the base recorded the group's joint FSLR.

    It is the template itself, or the name of a wider group where exactly one was recorded.
    """
    # Grouped by widest template, so that each template is compared with few names.
    recorded: dict[str, list[str]] = {}
    for name in base:
        if is_depth_group(name):
            recorded.setdefault(widest_template(name), []).append(name)
    found: dict[str, str] = {}
    for template in templates:
        alike = recorded.get(widest_template(template), [])
        # A single block has no coherence, and that of a wider group says nothing about the block.
        if template not in alike and len(base_groups[template]) > 1:
            alike = [name for name in alike if stands_for(name, template)]
            found[template] = alike[0] if len(alike) == 1 else template
        else:
            found[template] = template
    return found


def _apply_rule(
    rule: DepthRule, group: DepthGroup, base: Mapping[str, Array], whole_run: Columns
) -> dict[str, Array]:
    if not group.same_depth:
        return rule(group, base, whole_run)
    pairs = zip(group.target.values(), group.base.values(), strict=True)
    return {target: np.asarray(base[source], np.float64) for target, source in pairs}


def _refuse_mixture(group: DepthGroup, bands: Mapping[str, str]) -> None:
    by_band = {bands[name]: name for name in group.base.values() if name in bands}
    if not group.same_depth and len(by_band) > 1:
        examples = ", ".join(f"{name!r} ({band})" for band, name in by_band.items())
        raise InvalidInput(
            f"blocks: {group.template!r} counts {len(group.base)} layers in the base and "
            f"{len(group.target)} in the target, but they differ in kind: {examples}; "
            "give the axis that counts blocks, such as 'layers.*'"
        )


def _unmatched(names: Sequence[str], base: Mapping[str, Array], axes: Sequence[str]) -> str:
    tensors = [name for name in base if not is_depth_group(name)]
    near = {name: _close_names(canonical(name), tensors) for name in names[:5]}
    pairs = [f"{name} to {close}" for name, its in near.items() for close in its]
    hint = f" (close: {', '.join(pairs)})" if pairs else ""
    along = f"; block axes: {', '.join(axes)}" if axes else ""
    return (
        f"names: {join_names(names, 50)} not matched by the base, which has "
        f"{join_names(tensors)}{hint}{along}; record a base that has them, or give targets= by "
        "name, in which NaN leaves a tensor at the optimizer's own rate"
    )


def _close_names(name: str, tensors: Sequence[str]) -> list[str]:
    """The one name of `tensors` that is closest to `name`; empty where none is close.

    A comparison takes long, so only names of about the same length are compared, and of these only
    the first `MAX_COMPARED`.
    """
    length = len(name)
    alike = (each for each in tensors if 2 * abs(len(each) - length) <= length)
    return get_close_matches(name, list(islice(alike, MAX_COMPARED)), n=1, cutoff=0.7)


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
) -> Multipliers:
    """m = target / measured (Eq. 19), rounded to 1/16 octave, for every tensor of either mapping.

    targets, measured: FSLRs by tensor. Depth groups among them are ignored.
    previous: the multipliers in force, by tensor.
    clamp: the least and the greatest multiplier.
    only: the tensors that may get a new multiplier; empty: all tensors may.

    Other tensors keep their multiplier of `previous`, or 1. So do noisy tensors, whose measured
    FSLR is below `NOISE` times the median of the measured FSLRs, or whose target is below `NOISE`
    times the median of the targets. So do unmeasured tensors, whose measured FSLR or target is
    absent, NaN, infinite or zero.

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
    result = {name: (previous or {}).get(name, 1.0) for name in wanted}
    unmeasured, noisy, clamped = [], [], []
    for name in wanted if not only else set(only):
        value, target = have.get(name, np.nan), wanted[name]
        if not (_usable(value) and _usable(target)):
            unmeasured.append(name)
        elif value < floor or target < target_floor:
            noisy.append(name)
        else:
            octaves = np.log2(target) - np.log2(value)
            result[name] = float(
                np.clip(2.0 ** (np.round(octaves / ROUNDING) * ROUNDING), low, high)
            )
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
