"""The learning rate of one tensor of a matched run, with what it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRate:
    """One tensor at one step, or the medians over the tensors of one band. NaN: not known.

    target: the FSLR to reach.
    fslr: the measured FSLR.
    rate: the tensor's learning rate, η(t) · multiplier.
    ratio: fslr · multiplier / target, without the factor of a batch change in the multiplier. 1
        where the target is reached.
    note: a key of `NOTES`.
    count: how many tensors the medians are over; 1 for a single tensor.
    """

    name: str
    band: str
    shape: tuple[int, ...]
    target: float
    fslr: float
    multiplier: float
    rate: float
    ratio: float
    note: str = ""
    count: int = 1


def medians(rates: Sequence[TensorRate]) -> list[TensorRate]:
    """The medians of each band over its tensors, in the order of the bands' first tensors."""
    by_band: dict[str, list[TensorRate]] = {}
    for each in rates:
        by_band.setdefault(each.band, []).append(each)
    return [
        TensorRate(
            name=band,
            band=band,
            shape=(),
            target=_median([each.target for each in its]),
            fslr=_median([each.fslr for each in its]),
            multiplier=_median([each.multiplier for each in its]),
            rate=_median([each.rate for each in its]),
            ratio=_median([each.ratio for each in its]),
            count=len(its),
        )
        for band, its in by_band.items()
    ]


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan
