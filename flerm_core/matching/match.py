"""From a base model's FSLRs to a target's: which base tensor each target tensor answers to, and the multipliers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import median

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import InvalidInput, NotFound, join_names
from flerm_core.matching.depth_rules import (
    DEFAULT_DEPTH,
    DEPTH_RULES,
    Array,
    Column,
    DepthRule,
    Role,
)
from flerm_core.parameter_names import (
    as_axes,
    canonical,
    expand,
    find_axes,
    is_depth_group,
    split_name,
    stands_for,
)
from flerm_core.trajectory import Trajectory

__all__ = [
    "DEFAULT_DEPTH",
    "DEPTH_RULES",
    "Multipliers",
    "depth_rule",
    "held_as",
    "match_rows",
    "match_targets",
    "multipliers",
    "whole_run",
]


def depth_rule(depth: str) -> DepthRule:
    """The rule called `depth`, the default for "". Raises `InvalidInput` for a name that `DEPTH_RULES` does not have."""
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
    """Target FSLRs for the parameters `names` of another model of the family, by the base's `trajectory` at `step`.

    Where both models have the same number of blocks, a tensor's target is its namesake's FSLR, exactly. Where they differ, the
    axes are those given as `blocks` ("layers.*"; several for several) or else found from the names, and `depth` names the rule
    of `DEPTH_RULES` by which the base's blocks answer for the target's. Under `joint` the answer holds the role's name
    (`layers.*.attn.q.weight`) in place of its tensors' names: it is the target of their joint change.

    `step` None is the first row. Names may carry wrappers' prefixes, and are answered as asked. NaN: the base had not measured
    that tensor at that step. Raises `NotFound` naming every name that cannot be matched and what there is, `InvalidInput` for a
    wrong axis, rule or step.
    """
    asked = list(names)
    row = trajectory.at(step)
    columns = {name: np.array([value]) for name, value in row.items()}
    bands = dict(zip(trajectory.names, trajectory.bands, strict=True))
    matched = match_rows(
        columns, asked, run=whole_run(trajectory), bands=bands, blocks=blocks, depth=depth
    )
    return {name: float(values[0]) for name, values in matched.items()}


def whole_run(trajectory: Trajectory) -> Mapping[str, NDArray[np.float32]]:
    """A base's columns over its whole run, for `match_rows`: of long runs 256 rows, evenly spread, enough for a mean."""
    rows = trajectory.thinned(256)
    return dict(zip(rows.names, rows.values.T, strict=True))


def match_rows(
    base: Mapping[str, Array],
    names: Iterable[str],
    *,
    run: Mapping[str, NDArray[np.floating]],
    bands: Mapping[str, str] | None = None,
    blocks: str | Iterable[str] | None = None,
    depth: str = DEFAULT_DEPTH,
) -> dict[str, Array]:
    """`match_targets` for whole columns at once: base name to float64 [T], target (or role) name to float64 [T].

    `run`: the base's columns over its whole run (`whole_run`), whichever steps are asked for.
    `bands`, of the base, guard axes that were found, not given: an axis along which one role mixes several bands counts layers
    of different kinds (a plain MLP in a `torch.nn.Sequential`) and is refused.
    """
    rule = depth_rule(depth)
    asked = _asked(names)
    given = as_axes(blocks)
    axes = given or find_axes(base, asked.values())
    base_roles, target_roles = _roles(base, axes), _roles(asked.values(), axes)
    origin = {short: name for name, short in asked.items()}
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
        elif template not in base_roles:
            unmatched.append(name)
        elif template not in done:
            done.add(template)
            held = held_as(template, base) if len(base_roles[template]) > 1 else template
            role = Role(
                template,
                base_roles[template],
                target_roles[template],
                held,
                tuple(expand(held, base)),
            )
            if not given:
                _refuse_mixture(role, bands or {})
            for target, values in _answer(rule, role, base, run).items():
                result[origin.get(target, target)] = values
    if unmatched:
        raise NotFound(_unmatched(unmatched, base, axes))
    return result


def _asked(names: Iterable[str]) -> dict[str, str]:
    """Name as asked to canonical name."""
    asked: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        short = canonical(name)
        if short in seen:
            raise InvalidInput(
                f"names: {name!r} and {seen[short]!r} are the same parameter {short!r}; each is allowed once"
            )
        asked[name], seen[short] = short, name
    return asked


def _roles(names: Iterable[str], axes: Sequence[str]) -> dict[str, dict[tuple[int, ...], str]]:
    """Template to its tensors by their block numbers, ascending."""
    roles: dict[str, dict[tuple[int, ...], str]] = {}
    for name in names:
        template, numbers = split_name(name, axes)
        if numbers and not is_depth_group(name):
            roles.setdefault(template, {})[numbers] = name
    return {template: dict(sorted(members.items())) for template, members in roles.items()}


def _answer(
    rule: DepthRule, role: Role, base: Mapping[str, Array], run: Mapping[str, NDArray[np.floating]]
) -> dict[str, Array]:
    if role.same_depth:
        pairs = zip(role.target.values(), role.base.values(), strict=True)
        return {target: np.asarray(base[source], np.float64) for target, source in pairs}
    return rule(role, _columns(base), _columns(run))


def _columns(base: Mapping[str, NDArray[np.floating]]) -> Column:
    def column(name: str) -> Array:
        if name in base:
            values = np.asarray(base[name], np.float64)
            if (
                is_depth_group(name)
                and np.isnan(values).all()
                and any(not np.isnan(base[each]).all() for each in expand(name, base))
            ):
                raise NotFound(
                    f"depth: the base recording did not measure the joint change of {name!r}, only its tensors; "
                    "the estimators 'example' and 'exact' do"
                )
            return values
        raise NotFound(
            f"depth: the base recording has no joint change of {name!r}, which the rule 'joint' needs; "
            f"its roles are {join_names(other for other in base if is_depth_group(other))}"
        )

    return column


def _refuse_mixture(role: Role, bands: Mapping[str, str]) -> None:
    kinds = {bands[name]: name for name in role.base.values() if name in bands}
    if not role.same_depth and len(kinds) > 1:
        examples = ", ".join(f"{name!r} ({band})" for band, name in kinds.items())
        raise InvalidInput(
            f"blocks: {role.template!r} counts {len(role.base)} layers in the base and {len(role.target)} in the target, "
            f"but they differ in kind: {examples}; give the axis that counts blocks, such as 'layers.*'"
        )


def _unmatched(names: Sequence[str], base: Mapping[str, Array], axes: Sequence[str]) -> str:
    tensors = [name for name in base if not is_depth_group(name)]
    near = [
        close
        for name in names[:5]
        for close in get_close_matches(canonical(name), tensors, n=1, cutoff=0.8)
    ]
    hint = f" (close: {', '.join(dict.fromkeys(near))})" if near else ""
    along = f"; block axes: {', '.join(axes)}" if axes else ""
    return f"names: {join_names(names, 50)} not matched by the base, which has {join_names(tensors)}{hint}{along}"


@dataclass(frozen=True, slots=True)
class Multipliers:
    """What the learning rate of each tensor is multiplied by, and what was left alone or bounded on the way (sorted names)."""

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
    noise: float = 1e-4,
    only: Collection[str] = (),
) -> Multipliers:
    """m = target / measured (Eq. 19), rounded to 1/16 octave, for every tensor of `measured` and of `targets`.

    A role in `targets` decides for all its tensors: m = targets[role] / measured[role]. Left alone, at their `previous`
    multiplier or 1, are tensors that are unmeasured (absent, NaN, infinite or zero, here or in the base) and those whose
    measurement is noise: below `noise` of the median over tensors. `only`: where there are any, all but these tensors (and
    those of their roles in `targets`) are left alone, too. m is held within `clamp`. All is finite and positive, and the same
    on every machine. Raises `NotFound` for a measured tensor without target, `InvalidInput` for a negative number or a
    clamp that does not hold 1.
    """
    low, high = clamp
    if not 0 < low <= 1 <= high < np.inf:
        raise InvalidInput(
            f"clamp: {clamp} is not allowed; it is a pair of finite numbers above 0 with 1 between them"
        )
    for field, values in (("targets", targets), ("measured", measured)):
        wrong = next((name for name, value in values.items() if value < 0), None)
        if wrong is not None:
            raise InvalidInput(
                f"{field}: {values[wrong]} for {wrong!r}; allowed are numbers from 0, and NaN for unmeasured"
            )
    source = _sources(targets, measured)
    tensors = [
        value for name, value in measured.items() if not is_depth_group(name) and _usable(value)
    ]
    floor = noise * median(tensors) if tensors else 0.0
    result: dict[str, float] = {}
    unmeasured, noisy, clamped = [], [], []
    chosen = {source[name] for name in only}
    for name, key in source.items():
        kept = (previous or {}).get(name, 1.0)
        if chosen and key not in chosen:
            result[name] = kept
            continue
        have, want = measured.get(held_as(key, measured), np.nan), targets[key]
        if not (_usable(have) and _usable(want)):
            result[name] = kept
            unmeasured.append(name)
        elif have < floor:
            result[name] = kept
            noisy.append(name)
        else:
            octaves = np.log2(want) - np.log2(have)
            result[name] = float(np.clip(2.0 ** (np.round(16 * octaves) / 16), low, high))
            if not np.log2(low) <= octaves <= np.log2(high):
                clamped.append(name)
    return Multipliers(
        result, tuple(sorted(unmeasured)), tuple(sorted(noisy)), tuple(sorted(clamped))
    )


def _usable(value: float) -> bool:
    return bool(np.isfinite(value)) and value > 0


def held_as(key: str, measured: Mapping[str, object]) -> str:
    """Under which name `measured` holds a tensor or role. A role may be there along more axes only (experts within layers)."""
    if key in measured or not is_depth_group(key):
        return key
    wider = [other for other in measured if is_depth_group(other) and stands_for(other, key)]
    return wider[0] if len(wider) == 1 else key


def _sources(targets: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, str]:
    """Tensor to the key, its own name or its role's, under which its target stands."""
    roles = [name for name in targets if is_depth_group(name)]
    source = {name: name for name in targets if not is_depth_group(name)}
    lost = []
    for name in measured:
        if is_depth_group(name) or name in source:
            continue
        role = next((role for role in roles if stands_for(role, name)), None)
        if role is None:
            lost.append(name)
        else:
            source[name] = role
    if lost:
        raise NotFound(
            f"targets: none for {join_names(lost, 50)}; there are targets for {join_names(targets)}"
        )
    return source
