"""Targets where one of two models ties its token embedding and its readout, and the other not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flerm_core.parameter_bands import band_of
from flerm_core.parameter_names import is_depth_group, split_name

Array = NDArray[np.float64]

_NO_TOKENS = re.compile(r"pos|wpe|token_type|segment|cls_token|class_token|mask_token")


def carry_over_tied(
    base: Mapping[str, Array], in_base: Sequence[str], in_other: Sequence[str]
) -> Mapping[str, Array]:
    """`base`, with FSLRs for a token embedding and a readout that only one of two models ties.

    base: the base's FSLRs [T] by name.
    in_base, in_other: what `tied_by_one` says.

    The FSLR of a tied tensor is the joint FSLR of its two uses. The uses move the outputs almost
    independently (docs/method.md), so their squares add up. Where only the base is tied, the other
    model's embedding and readout each get 1/√2 of the tied tensor's FSLR. Where only the other
    model is tied, its tensor gets √(e² + r²), from the base's embedding e and readout r.
    """
    if len(in_base) == 1:
        part = np.asarray(base[in_base[0]], np.float64) / np.sqrt(2.0)
        return {**base, **dict.fromkeys(in_other, part)}
    if in_base:
        return {**base, in_other[0]: np.hypot(*(base[name] for name in in_base))}
    return base


def tied_remark(in_base: Sequence[str], in_other: Sequence[str]) -> str:
    """What `carry_over_tied` does with these names, in one sentence; empty where it does nothing.

    in_base, in_other: what `tied_by_one` says.
    """
    if len(in_base) == 1:
        return (
            f"the base's {in_base[0]} is token embedding and readout in one, and this model has "
            f"{' and '.join(in_other)}: the target of each is 1/√2 of that tensor's FSLR"
        )
    if in_base:
        return (
            f"{in_other[0]} is token embedding and readout in one, and the base has "
            f"{' and '.join(in_base)}: its target is the root of the sum of their squared FSLRs"
        )
    return ""


def tied_by_one(
    base: Collection[str], asked: Collection[str], bands: Mapping[str, str], axes: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The names of embedding and readout in the base, and those in the other model.

    base: the base's names.
    asked: the canonical names of the other model's tensors.
    bands: the base's bands by name, where they are known.
    axes: the block axes.

    The tied model has one name, the other two. Both lists are empty where not exactly one of the
    models is tied. That the other model is the tied one counts only where `asked` has counterparts
    of all other tensors of the base, because names of some tensors do not show whether the model is
    tied.
    """
    pair = [name for name in _only_two(base, asked, bands) if name]
    in_base, in_other = ([name for name in pair if name in names] for names in (base, asked))
    sizes = len(in_base), len(in_other)
    if sizes == (1, 2) or (sizes == (2, 1) and _asks_for_all_else(base, asked, axes, set(pair))):
        return in_base, in_other
    return [], []


def _only_two(
    base: Collection[str], asked: Collection[str], bands: Mapping[str, str]
) -> tuple[str, str]:
    """The token embedding and the readout matrix of both models; empty where there is not one."""
    found: dict[str, list[str]] = {"embedding": [], "readout": []}
    for name in dict.fromkeys([*base, *asked]):
        path = name.split(".")
        if is_depth_group(name) or any(part.isdecimal() for part in path):
            continue
        band = bands.get(name) or band_of(name, (2, 2))
        if band in found and not _NO_TOKENS.search(name.lower()) and "bias" not in path[-1]:
            found[band].append(name)
    embedding, readout = (names[0] if len(names) == 1 else "" for names in found.values())
    return embedding, readout


def _asks_for_all_else(
    base: Collection[str], asked: Collection[str], axes: Sequence[str], pair: Collection[str]
) -> bool:
    wanted = {split_name(name, axes)[0] for name in asked}
    return all(
        split_name(name, axes)[0] in wanted
        for name in base
        if name not in pair and not is_depth_group(name)
    )
