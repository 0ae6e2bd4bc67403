"""Depth rules: how the B blocks of a base model answer for the B' blocks of a target, role by role (design, "Depth").

A rule is a function of a `Role` and of the base's columns; registering another in `DEPTH_RULES` makes it available everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import NotFound

Array = NDArray[np.float64]
Numbers = tuple[int, ...]
Column = Callable[[str], Array]


@dataclass(frozen=True, slots=True)
class Role:
    """One role in both models: `template`, and in each model its tensors by their block numbers (one per axis), ascending.

    `joined`: the tensors whose joint change the base's recording holds under the name `joined_as`. These are the role's own,
    or, where there are several and it holds that of more axes only (experts within layers), more.
    """

    template: str
    base: Mapping[Numbers, str]
    target: Mapping[Numbers, str]
    joined_as: str
    joined: tuple[str, ...]

    @property
    def same_depth(self) -> bool:
        """Whether both have equally many blocks everywhere, so that the n-th tensor of one is the n-th of the other."""
        return _tree(list(self.base)) == _tree(list(self.target))


DepthRule = Callable[[Role, Column, Column], dict[str, Array]]
"""`rule(role, column, run)`: target name, or the role's template, to FSLRs [T]. `column(name)` gives a base column at the T
steps asked for, `run(name)` one over the whole of the base's run."""


def split(role: Role, column: Column, run: Column) -> dict[str, Array]:
    """The paper's rule: target block j of B' takes the base mass of the interval [j/B', (j+1)/B').

    Each base block's FSLR is spread evenly over its own interval, so B' = kB shares each out over k blocks, and any other
    ratio, shallower too, keeps the total. Along several axes it is applied axis by axis. NaN where a block that counts is
    unmeasured.
    """
    masses = _split(list(role.base), list(role.target))
    return {
        role.target[target]: np.sum(
            [share * column(role.base[base]) for base, share in sorted(shares.items())], axis=0
        )
        for target, shares in masses.items()
    }


def joint(role: Role, column: Column, run: Column) -> dict[str, Array]:
    """The change of all blocks of the role at once keeps its size: the base's role column is the target's, under the name of
    what it is the change of, where that is a wider role's too."""
    source = role.joined_as if len(role.base) > 1 else next(iter(role.base.values()))
    own = role.template if len(role.target) > 1 else next(iter(role.target.values()))
    return {own if role.joined_as == role.template else role.joined_as: column(source)}


def coherent(role: Role, column: Column, run: Column) -> dict[str, Array]:
    """`split`, corrected for blocks that move the output together only in part.

    The targets f are `split`'s times one factor, so that blocks of the base's coherence ρ (`_coherence`) have the base's joint
    change: (1 − ρ) Σf² + ρ (Σf)² = (1 − ρ) ΣF² + ρ (ΣF)². At ρ = 1 that is `split` itself, at ρ = 0 for B' = kB each block's
    F/√k.
    """
    parts, whole = _sums(role.base.values(), column)
    return _rescaled(
        split(role, column, run), np.full_like(parts, _coherence(role, run)), parts, whole
    )


def root(role: Role, column: Column, run: Column) -> dict[str, Array]:
    """`split`, for blocks that move the output independently: Σf² is the base's, so that B' = kB gives each block F/√k."""
    parts, whole = _sums(role.base.values(), column)
    return _rescaled(split(role, column, run), np.zeros_like(parts), parts, whole)


def _sums(names: Iterable[str], column: Column) -> tuple[Array, Array]:
    """ΣF² and (ΣF)²."""
    columns = np.stack([column(name) for name in names])
    return np.sum(columns**2, axis=0), np.sum(columns, axis=0) ** 2


def _coherence(role: Role, run: Column) -> float:
    """How far two of the base's blocks move the outputs together, in [0, 1].

    With FSLRs F_j of the blocks and J of their joint change, ρ = (J² − ΣF²) / ((ΣF)² − ΣF²). Its mean over the run: at the
    first step an optimiser moves all blocks down one slope, later each goes a way of its own, and rates are set for the run.
    Where J was never recorded (only `example` and `exact` have it) or there is one block, 1; where only that of a wider role
    was, of that role's tensors.
    """
    parts, whole = _sums(role.joined, run)
    crossed = whole - parts
    try:
        joined = run(role.joined_as) if len(role.joined) > 1 else np.sqrt(whole)
    except NotFound:
        return 1.0
    known = (crossed > 0) & ~np.isnan(joined)
    if not known.any():
        return 1.0
    return float(np.clip(np.mean((joined[known] ** 2 - parts[known]) / crossed[known]), 0.0, 1.0))


def _rescaled(
    targets: dict[str, Array], coherence: Array, parts: Array, whole: Array
) -> dict[str, Array]:
    """`targets` times what makes their joint change, of blocks with this coherence, that of the base's.

    `parts` and `whole` are ΣF² and (ΣF)² of the base's blocks.
    """
    values = np.stack(list(targets.values()))
    wanted = (1 - coherence) * parts + coherence * whole
    have = (1 - coherence) * np.sum(values**2, axis=0) + coherence * np.sum(values, axis=0) ** 2
    factor = np.sqrt(np.divide(wanted, have, out=np.ones_like(have), where=have > 0))
    return {name: value * factor for name, value in targets.items()}


DEPTH_RULES: dict[str, DepthRule] = {
    "split": split,
    "joint": joint,
    "coherent": coherent,
    "root": root,
}
DEFAULT_DEPTH = "coherent"


def _split(base: list[Numbers], target: list[Numbers]) -> dict[Numbers, dict[Numbers, float]]:
    """For each target block the shares of base blocks that it takes. Both lists ascend and are not empty."""
    if base == [()]:
        return {target[0]: {(): 1.0}}
    rows, columns = _grouped(base), _grouped(target)
    result: dict[Numbers, dict[Numbers, float]] = {}
    for at, (number, below) in enumerate(columns):
        for source, (base_number, base_below) in enumerate(rows):
            # In units of 1/(B·B') base block i covers [i·B', (i+1)·B') and target block j [j·B, (j+1)·B).
            start, end = (
                max(at * len(rows), source * len(columns)),
                min((at + 1) * len(rows), (source + 1) * len(columns)),
            )
            if end <= start:
                continue
            for tail, shares in _split(base_below, below).items():
                taken = result.setdefault((number, *tail), {})
                for base_tail, share in shares.items():
                    taken[(base_number, *base_tail)] = share * (end - start) / len(columns)
    return result


def _grouped(numbers: list[Numbers]) -> list[tuple[int, list[Numbers]]]:
    return [
        (first, [each[1:] for each in group])
        for first, group in groupby(numbers, key=lambda each: each[0])
    ]


Tree = tuple["Tree", ...]


def _tree(numbers: list[Numbers]) -> Tree:
    """How many blocks there are at each level, numbers themselves left out."""
    return tuple(_tree(below) for _, below in _grouped(numbers)) if numbers and numbers[0] else ()
