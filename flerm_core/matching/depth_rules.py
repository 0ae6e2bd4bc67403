"""Depth rules: how the FSLRs of a base's B blocks become targets for another model's B' blocks.

docs/method.md, "Depth", has the mathematics.

A rule works on one depth group at a time. A new rule needs its function, an entry in `DEPTH_RULES`,
and its name in `flerm_core.records.queries.DEPTH_RULE_NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BlockNumbers = tuple[int, ...]
Columns = Mapping[str, NDArray[np.floating]]
"""The FSLRs [T] of each tensor and depth group of the base, by name."""


@dataclass(frozen=True, slots=True)
class DepthGroup:
    """One depth group in two models: the tensors that stand at the same place in every block.

    template: the group's name (`layers.*.attn.q.weight`).
    base, target: the group's tensors in each model by their block numbers (one number per axis),
        ascending.
    joint_name: the name under which the base's recording may hold a joint FSLR of the group.
    joint_members: the base's tensors that this joint FSLR is measured over. Usually they are the
        tensors of `base`. Where only a wider group was recorded (all experts of all layers), they
        are all tensors of that group.
    """

    template: str
    base: Mapping[BlockNumbers, str]
    target: Mapping[BlockNumbers, str]
    joint_name: str
    joint_members: tuple[str, ...]

    @property
    def same_depth(self) -> bool:
        """Whether both models have equally many blocks everywhere.

        The n-th tensors of both then correspond.
        """
        return _block_counts(list(self.base)) == _block_counts(list(self.target))


DepthRule = Callable[[DepthGroup, Columns, Columns], dict[str, Array]]
"""`rule(group, columns, whole_run)` gives the targets [T] of the tensors of `group.target` by name.

`columns` are the base's FSLRs at the T steps of the query, `whole_run` those over its whole run.
"""


def split(group: DepthGroup, columns: Columns, whole_run: Columns) -> dict[str, Array]:
    """The paper's rule: target block j takes the base's FSLR on the interval [j/B', (j+1)/B').

    The FSLR of each base block is spread evenly over the block's own interval. So with B' = kB each
    of the k blocks in place of one gets FSLR/k. With any other ratio, and in shallower models, the
    sum over blocks stays the same. Several axes are split one after the other. A target is NaN
    where a base block that contributes to the target is unmeasured.
    """
    shares = _shares(list(group.base), list(group.target))
    return {
        group.target[target]: np.sum(
            [share * _column(columns, group.base[base]) for base, share in sorted(taken.items())],
            axis=0,
        )
        for target, taken in shares.items()
    }


def coherent(group: DepthGroup, columns: Columns, whole_run: Columns) -> dict[str, Array]:
    """`split`, corrected for blocks whose changes of the output add up only in part.

    All targets of `split` are multiplied by one factor. With it, the targets f have the same joint
    change as the base's FSLRs F, if the blocks of both models have the base's coherence ρ
    (`_coherence`): (1 − ρ) Σf² + ρ (Σf)² = (1 − ρ) ΣF² + ρ (ΣF)². With ρ = 1 the targets are those
    of `split`. With ρ = 0 and B' = kB they are F/√k.
    """
    return _rescaled(group, columns, _coherence(group, whole_run))


def root(group: DepthGroup, columns: Columns, whole_run: Columns) -> dict[str, Array]:
    """`coherent` with ρ = 0: blocks change the output independently of each other.

    B' = kB gives F/√k to each block.
    """
    return _rescaled(group, columns, 0.0)


DEPTH_RULES: dict[str, DepthRule] = {"split": split, "coherent": coherent, "root": root}
DEFAULT_DEPTH = "coherent"


def _column(columns: Columns, name: str) -> Array:
    return np.asarray(columns[name], np.float64)


def _sums(names: Iterable[str], columns: Columns) -> tuple[Array, Array]:
    """ΣF² and (ΣF)² over the tensors `names`."""
    stack = np.stack([_column(columns, name) for name in names])
    return np.sum(stack**2, axis=0), np.sum(stack, axis=0) ** 2


def _coherence(group: DepthGroup, whole_run: Columns) -> float:
    """How far the changes of two base blocks add up in the outputs: ρ in [0, 1].

    With the FSLRs F of the tensors and their joint FSLR J, ρ = (J² − ΣF²) / ((ΣF)² − ΣF²). The mean
    over the whole run is taken, because coherence is highest at the first step and falls later,
    while the learning rates are set for the whole run. ρ is 1 where J was not recorded (only the
    estimators `example` and `exact` measure it), and where there is only one block.
    """
    squares, whole = _sums(group.joint_members, whole_run)
    crossed = whole - squares
    if len(group.joint_members) < 2 or group.joint_name not in whole_run:
        return 1.0
    joint = _column(whole_run, group.joint_name)
    known = (crossed > 0) & ~np.isnan(joint)
    if not known.any():
        return 1.0
    return float(np.clip(np.mean((joint[known] ** 2 - squares[known]) / crossed[known]), 0.0, 1.0))


def _rescaled(group: DepthGroup, columns: Columns, coherence: float) -> dict[str, Array]:
    """The targets of `split` times the factor of `coherent`, for blocks of this coherence."""
    targets = split(group, columns, {})
    squares, whole = _sums(group.base.values(), columns)
    wanted = (1 - coherence) * squares + coherence * whole
    values = np.stack(list(targets.values()))
    have = (1 - coherence) * np.sum(values**2, axis=0) + coherence * np.sum(values, axis=0) ** 2
    factor = np.sqrt(np.divide(wanted, have, out=np.ones_like(have), where=have > 0))
    return {name: value * factor for name, value in targets.items()}


def _shares(
    base: list[BlockNumbers], target: list[BlockNumbers]
) -> dict[BlockNumbers, dict[BlockNumbers, float]]:
    """For each target block, the share that the block takes of each base block's FSLR.

    Both lists are sorted and not empty.
    """
    if base == [()]:
        return {target[0]: {(): 1.0}}
    base_blocks, target_blocks = _by_first(base), _by_first(target)
    result: dict[BlockNumbers, dict[BlockNumbers, float]] = {}
    depth, target_depth = len(base_blocks), len(target_blocks)
    for j, (number, below) in enumerate(target_blocks):
        # In units of 1/(B·B') target block j covers [j·B, (j+1)·B), and base block i covers
        # [i·B', (i+1)·B'). The loop runs over the base blocks that overlap target block j.
        for i in range(j * depth // target_depth, -(-(j + 1) * depth // target_depth)):
            base_number, base_below = base_blocks[i]
            start = max(j * depth, i * target_depth)
            end = min((j + 1) * depth, (i + 1) * target_depth)
            for tail, taken in _shares(base_below, below).items():
                shares = result.setdefault((number, *tail), {})
                for base_tail, share in taken.items():
                    part = share * (end - start) / target_depth
                    shares[(base_number, *base_tail)] = part
    return result


def _by_first(numbers: list[BlockNumbers]) -> list[tuple[int, list[BlockNumbers]]]:
    """Block numbers grouped by the first axis. The groups hold the numbers along the other axes."""
    return [
        (first, [each[1:] for each in group])
        for first, group in groupby(numbers, key=lambda each: each[0])
    ]


Tree = tuple["Tree", ...]


def _block_counts(numbers: list[BlockNumbers]) -> Tree:
    """The tree of blocks without their numbers: a tuple with one entry per block, and so on."""
    return (
        tuple(_block_counts(below) for _, below in _by_first(numbers))
        if numbers and numbers[0]
        else ()
    )
