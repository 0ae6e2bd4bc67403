"""Which rows of an activation belong to which example: measured, not guessed.

∂φ/∂y of a module's output y is formed once for an ω that is zero outside a random half S of the examples. Rows of examples
outside S are then exactly zero, all others not, if and only if (a) no example's output depends on another's rows and (b) the
rows are laid out as assumed. So one backward pass tells the layout of every activation, or that examples couple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where example n is in a tensor: `axis`: along a dimension of its own; `major`: rows n·k … n·k+k−1 of dimension 0;
    `minor`: rows n, n+N, …"""

    kind: Literal["axis", "major", "minor"]
    axis: int = 0

    def by_example(self, values: Tensor, examples: int) -> Tensor:
        """`values` [...] summed over all but the examples: [examples]. Only leading dimensions up to `axis` need be those of
        the activation."""
        if examples == 0:
            return values.new_zeros(0)
        axis = self.axis
        if self.kind == "major":
            values, axis = values.reshape(examples, -1), 0
        elif self.kind == "minor":
            values, axis = values.reshape(-1, examples, *values.shape[1:]), 1
        others = [dim for dim in range(values.ndim) if dim != axis]
        return values.sum(others) if others else values


def candidates(shape: torch.Size, examples: int) -> list[Layout]:
    """The layouts that a tensor of `shape` may have, the most usual first."""
    found = [Layout("axis", axis) for axis, size in enumerate(shape) if size == examples]
    if shape and shape[0] > examples and shape[0] % examples == 0:
        found += [Layout("major"), Layout("minor")]
    return found


def half_of(examples: int, generator: torch.Generator) -> Tensor:
    """S as a bool mask [examples]: about half of them, at least one, not all, and no regular pattern by chance only."""
    order = torch.randperm(examples, generator=generator, device=generator.device)
    chosen = torch.zeros(examples, dtype=torch.bool, device=generator.device)
    chosen[order[: max(1, examples // 2)]] = True
    return chosen


def find_layout(gradient: Tensor, chosen: Tensor) -> Layout | None:
    """The layout under which `gradient`, of an ω that is zero outside `chosen`, is zero outside it too; None if there is none.

    A gradient that is zero throughout says nothing; any layout does for it.
    """
    examples = len(chosen)
    nonzero = (gradient != 0).to(torch.float32)
    for layout in candidates(gradient.shape, examples):
        if not layout.by_example(nonzero, examples)[~chosen].any():
            return layout
    return None
