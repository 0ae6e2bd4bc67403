"""How a model differs from the base: the scale of a recording."""

from __future__ import annotations

import math
from dataclasses import dataclass

Value = str | float


@dataclass(frozen=True, slots=True)
class Scale:
    """How a model differs from the base.

    differences: (setting, value, value over the base's value) for each setting that differs. The
        ratio is NaN where the values are no numbers. Empty for the base's own scale.
    """

    differences: tuple[tuple[str, str, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.differences)

    @property
    def label(self) -> str:
        """`width ×4, depth ×4`; "base" for the base's scale."""
        return ", ".join(_words(*each) for each in self.differences) or "base"

    def short(self, dimension: str) -> str:
        """The label without the names in `dimension`, for a figure that has them: `×4`."""
        named = dimension.split(", ")
        return ", ".join(
            _words("" if name in named else name, value, ratio)
            for name, value, ratio in self.differences
        )

    @property
    def known(self) -> bool:
        """Whether settings say in what the model differs."""
        return bool(self) and self != UNLABELLED

    @property
    def size(self) -> float:
        """The product of the ratios."""
        return math.prod(ratio for _, _, ratio in self.differences if not math.isnan(ratio))

    @property
    def order(self) -> tuple[object, ...]:
        """The key to sort scales by: the base first, then by the number and size of differences."""
        names = tuple(name for name, _, _ in self.differences)
        return len(names), names, tuple(_place(value) for _, value, _ in self.differences)


UNLABELLED = Scale((("role", "scaled", math.nan),))
"""The scale of a scaled run whose settings are those of the base."""


def _place(value: str) -> tuple[bool, float, str]:
    """The key to sort values by: numbers by size, then words in alphabetical order."""
    number = value_of(value)
    return (False, number, value) if isinstance(number, float) else (True, 0.0, value)


def _words(name: str, value: str, ratio: float) -> str:
    return f"{name} {value if math.isnan(ratio) else f'×{ratio:.3g}'}".lstrip()


def dimension_of(scale: Scale) -> str:
    """The settings in which a scale differs, such as `width` or `width, depth`."""
    return ", ".join(name for name, _, _ in scale.differences)


def value_of(value: str | float) -> Value:
    """`value` as a number where it is one, so that a tag's "4" equals a configuration's 4."""
    if isinstance(value, bool):
        return str(value)
    try:
        number = float(value)
    except ValueError:
        return str(value)
    return number if math.isfinite(number) else str(value)
