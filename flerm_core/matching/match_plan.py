"""Which tensors of a base give the targets of which tensors of another model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice

import numpy as np

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
from flerm_core.matching.tied_embeddings import carry_over_tied, tied_by_one, tied_remark
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

MAX_COMPARED = 500
_COHERENCE = (
    "the base does not say how far its blocks move the outputs together, because it has one block "
    "or its estimator does not measure it: targets of another depth are those of the rule split, "
    "as if they did so wholly; record a base of two blocks or more, by the estimator example or "
    "exact"
)


def depth_rule(depth: str) -> DepthRule:
    """The rule called `depth`; "" is the default rule.

    Raises `InvalidInput` for a name that is not in `DEPTH_RULES`.
    """
    rule = DEPTH_RULES.get(depth or DEFAULT_DEPTH)
    if rule is None:
        raise InvalidInput(f"depth: {depth!r} is not a rule; allowed are {', '.join(DEPTH_RULES)}")
    return rule


@dataclass(frozen=True, slots=True)
class MatchPlan:
    """Where the targets of one model's tensors come from, for any base with the same names.

    rule: the depth rule.
    tied: what `tied_by_one` says of the two models.
    parts: in the order of the targets, a depth group, or the name of a tensor outside of blocks and
        that of the base's tensor.
    name_of: the names of the model's tensors by their canonical names.
    """

    rule: DepthRule
    tied: tuple[Sequence[str], Sequence[str]]
    parts: tuple[DepthGroup | tuple[str, str], ...]
    name_of: Mapping[str, str]

    @classmethod
    def of(
        cls,
        base: Collection[str],
        names: Iterable[str],
        *,
        bands: Mapping[str, str] | None = None,
        blocks: str | Iterable[str] | None = None,
        depth: str = DEFAULT_DEPTH,
    ) -> MatchPlan:
        """The plan for the tensors `names` of a model.

        base: the base's names.
        bands: the base's bands by name. They serve to check block axes that were found from names
            and not given. An axis along which a depth group has several bands counts layers of
            different kinds (a plain MLP in a `torch.nn.Sequential`), and is refused.
        blocks, depth: as in `match_targets`.

        Raises as `match_targets` does.
        """
        rule = depth_rule(depth)
        asked = canonical_by_name(names)
        given = as_axes(blocks)
        axes = given or find_axes(base, asked.values())
        tied = tied_by_one(base, asked.values(), bands or {}, axes)
        known = dict.fromkeys([*base, *tied[1]])
        base_groups, target_groups = _depth_groups(known, axes), _depth_groups(asked.values(), axes)
        joint_of = _joint_names(
            [each for each in target_groups if each in base_groups], known, base_groups
        )
        members = expand_all(set(joint_of.values()), known)
        parts: list[DepthGroup | tuple[str, str]] = []
        done: set[str] = set()
        unmatched: list[str] = []
        for name, short in asked.items():
            template, numbers = split_name(short, axes)
            if is_depth_group(short) or not numbers:
                if short in known:
                    parts.append((name, short))
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
                parts.append(group)
        if unmatched:
            raise NotFound(_unmatched(unmatched, known, axes))
        name_of = {short: name for name, short in asked.items()}
        return cls(rule, tied, tuple(parts), name_of)

    def sources(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each name of the model, with the names of the base's tensors that may give its target."""
        for part in self.parts:
            if not isinstance(part, DepthGroup):
                yield part[0], (part[1],)
                continue
            base, same_depth = tuple(part.base.values()), part.same_depth
            for at, short in enumerate(part.target.values()):
                yield self.name_of[short], (base[at],) if same_depth else base

    def remarks(self, base: Collection[str]) -> tuple[str, ...]:
        """Sentences on how targets are found where the base does not say all that they need.

        base: the base's names, those of its depth groups included.
        """
        lacks_coherence = self.rule is DEPTH_RULES["coherent"] and any(
            isinstance(part, DepthGroup)
            and not part.same_depth
            and (len(part.joint_members) < 2 or part.joint_name not in base)
            for part in self.parts
        )
        said = tied_remark(*self.tied), _COHERENCE if lacks_coherence else ""
        return tuple(filter(None, said))

    def targets(self, base: Mapping[str, Array], whole_run: Columns) -> dict[str, Array]:
        """The targets, float64 [T], by name; `base` and `whole_run` as in `match_rows`."""
        base = carry_over_tied(base, *self.tied)
        found: dict[str, Array] = {}
        for part in self.parts:
            if isinstance(part, DepthGroup):
                matched = _apply_rule(self.rule, part, base, whole_run)
                found |= {self.name_of[target]: values for target, values in matched.items()}
            else:
                name, source = part
                found[name] = np.asarray(base[source], np.float64)
        return found


def canonical_by_name(names: Iterable[str]) -> dict[str, str]:
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


def _unmatched(names: Sequence[str], base: Iterable[str], axes: Sequence[str]) -> str:
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
