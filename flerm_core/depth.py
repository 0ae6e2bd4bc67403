"""Depth rules: how the B blocks of a base model answer for the B' blocks of a target, role by role (design, "Depth").

A rule is a function of a `Role` and of the base's columns; registering another in `DEPTH_RULES` makes it available everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numbers = tuple[int, ...]
Column = Callable[[str], Array]


@dataclass(frozen=True, slots=True)
class Role:
    """One role in both models: `template`, and in each model its tensors by their block numbers (one per axis), ascending."""

    template: str
    base: Mapping[Numbers, str]
    target: Mapping[Numbers, str]

    @property
    def same_depth(self) -> bool:
        """Whether both have equally many blocks everywhere, so that the n-th tensor of one is the n-th of the other."""
        return _tree(list(self.base)) == _tree(list(self.target))


DepthRule = Callable[[Role, Column], dict[str, Array]]
"""`rule(role, column)`: target name, or the role's template, to FSLRs [T]; `column(name)` gives a base column [T]."""


def split(role: Role, column: Column) -> dict[str, Array]:
    """The paper's rule: target block j of B' takes the base mass of the interval [j/B', (j+1)/B').

    Each base block's FSLR is spread evenly over its own interval, so B' = kB shares each out over k blocks, and any other
    ratio, shallower too, keeps the total. Along several axes it is applied axis by axis. NaN where a block that counts is
    unmeasured.
    """
    masses = _split(list(role.base), list(role.target))
    return {
        role.target[target]: np.sum([share * column(role.base[base]) for base, share in sorted(shares.items())], axis=0)
        for target, shares in masses.items()
    }


def joint(role: Role, column: Column) -> dict[str, Array]:
    """The change of all blocks of the role at once keeps its size: the base's role column is the target's."""
    source = role.template if len(role.base) > 1 else next(iter(role.base.values()))
    return {role.template if len(role.target) > 1 else next(iter(role.target.values())): column(source)}


DEPTH_RULES: dict[str, DepthRule] = {"split": split, "joint": joint}
DEFAULT_DEPTH = "split"


def _split(base: list[Numbers], target: list[Numbers]) -> dict[Numbers, dict[Numbers, float]]:
    """For each target block the shares of base blocks that it takes. Both lists ascend and are not empty."""
    if base == [()]:
        return {target[0]: {(): 1.0}}
    rows, columns = _grouped(base), _grouped(target)
    result: dict[Numbers, dict[Numbers, float]] = {}
    for at, (number, below) in enumerate(columns):
        for source, (base_number, base_below) in enumerate(rows):
            # In units of 1/(B·B') base block i covers [i·B', (i+1)·B') and target block j [j·B, (j+1)·B).
            start, end = max(at * len(rows), source * len(columns)), min((at + 1) * len(rows), (source + 1) * len(columns))
            if end <= start:
                continue
            for tail, shares in _split(base_below, below).items():
                taken = result.setdefault((number, *tail), {})
                for base_tail, share in shares.items():
                    taken[(base_number, *base_tail)] = share * (end - start) / len(columns)
    return result


def _grouped(numbers: list[Numbers]) -> list[tuple[int, list[Numbers]]]:
    return [(first, [each[1:] for each in group]) for first, group in groupby(numbers, key=lambda each: each[0])]


Tree = tuple["Tree", ...]


def _tree(numbers: list[Numbers]) -> Tree:
    """How many blocks there are at each level, numbers themselves left out."""
    return tuple(_tree(below) for _, below in _grouped(numbers)) if numbers and numbers[0] else ()
