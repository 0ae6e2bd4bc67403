"""Measures which rows of an activation belong to which example.

1. Choose a random half S of the examples, and set ω to zero for all others.
2. Form ∂φ/∂y for the output y of every module, by one backward pass.
3. The rows of examples outside S are exactly zero, and no others, if and only if (a) no example's
   output depends on the rows of another and (b) the rows are laid out as assumed.

So one backward pass gives the layout of every activation, or shows that examples are coupled (one
example's output depends on another's input).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the rows of example n are in a tensor of N examples.

    "axis": along dimension `axis`, which counts the examples. "major": rows n·k … n·k+k−1 of
    dimension 0, k for each example. "minor": rows n, n+N, n+2N, … of dimension 0. "single": the
    batch has one example, which all rows belong to; a batch of several examples needs a layout of
    its own. "unused": φ does not depend on the tensor, so its shape does not matter.
    """

    kind: Literal["axis", "major", "minor", "single", "unused"]
    axis: int = 0

    def fits(self, shape: torch.Size, n_examples: int) -> bool:
        """Whether a tensor of `shape` can hold the rows of N examples in this way."""
        if self.kind == "unused":
            return True
        if self.kind == "single" or n_examples == 1:
            return n_examples == 1
        if self.kind == "axis":
            return self.axis < len(shape) and shape[self.axis] == n_examples
        return len(shape) > 0 and shape[0] % n_examples == 0

    def sum_by_example(self, values: Tensor, n_examples: int) -> Tensor:
        """The sum of `values` over the rows of each example: [n_examples].

        values: shaped like the activation up to dimension `axis`; further dimensions may differ.
        """
        if n_examples == 0 or self.kind == "unused":
            return values.new_zeros(n_examples)
        axis = self.axis
        if n_examples == 1:
            return values.sum().reshape(1)
        if self.kind == "major":
            values, axis = values.reshape(n_examples, -1), 0
        elif self.kind == "minor":
            values, axis = values.reshape(-1, n_examples, *values.shape[1:]), 1
        others = [dim for dim in range(values.ndim) if dim != axis]
        return values.sum(others) if others else values


def possible_layouts(shape: torch.Size, n_examples: int) -> list[Layout]:
    """The layouts that a tensor of `shape` may have, the most usual first."""
    found = [Layout("axis", axis) for axis, size in enumerate(shape) if size == n_examples]
    if shape and shape[0] > n_examples and shape[0] % n_examples == 0:
        found += [Layout("major"), Layout("minor")]
    return found


def random_half(n_examples: int, generator: torch.Generator) -> Tensor:
    """A random half of the examples, at least one, as a bool mask [n_examples].

    A regular pattern could hide which rows belong together.
    """
    order = torch.randperm(n_examples, generator=generator, device=generator.device)
    chosen = torch.zeros(n_examples, dtype=torch.bool, device=generator.device)
    chosen[order[: max(1, n_examples // 2)]] = True
    return chosen


def find_layout(gradient: Tensor, chosen: Tensor) -> Layout | None:
    """The layout of an activation, from its gradient under an ω that is zero outside `chosen`.

    gradient: ∂φ/∂y of the activation y.
    chosen: the examples whose ω is not zero, bool [N].

    Returns None where no layout explains the zeros. Where several layouts do, returns the one in
    which most of the chosen examples have a gradient. A wrong layout can explain the zeros by
    chance, but then it gives a gradient to fewer examples: take an axis of N positions of which
    only the last one has a gradient, and that position's number is among the chosen. Every layout
    explains a gradient that is zero throughout. NaN counts as zero.
    """
    n_examples = len(chosen)
    if n_examples == 1:
        return Layout("single")
    nonzero = has_gradient(gradient).to(torch.float32)
    found, most = None, -1
    for layout in possible_layouts(gradient.shape, n_examples):
        of_examples = layout.sum_by_example(nonzero, n_examples) > 0
        reached = int(of_examples.sum())
        if reached > most and not of_examples[~chosen].any():
            found, most = layout, reached
    return found


def has_gradient(gradient: Tensor) -> Tensor:
    """Which elements of a gradient are neither zero nor NaN: bool, shaped like `gradient`."""
    return (gradient != 0) & ~gradient.isnan()
