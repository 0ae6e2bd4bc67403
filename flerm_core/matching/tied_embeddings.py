"""Targets between a model whose readout is its token embedding and one where the two are apart."""

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
    base: Mapping[str, Array],
    asked: Collection[str],
    bands: Mapping[str, str],
    axes: Sequence[str],
) -> Mapping[str, Array]:
    """`base` with columns for a token embedding and a readout that only one of two models ties.

    base: name to FSLRs [T] of the base.
    asked: the canonical names of the other model.
    bands: the base's bands by name, where they are known.
    axes: the block axes.

    A tied tensor's FSLR is that of the joint change of its two uses. The two move the outputs
    almost independently (docs/method.md), so squares add up. Where the base alone is tied, the
    embedding and the readout get 1/√2 of the tied tensor's FSLR each. Where the other model alone
    is tied, its tensor gets √(e² + r²) of the base's two. This
    holds only if all else of the base is asked for too: a question for some tensors does not tell
    whether the model is tied.
    """
    in_base, in_other = _tied_by_one(base, asked, bands, axes)
    if len(in_base) == 1:
        part = np.asarray(base[in_base[0]], np.float64) / np.sqrt(2.0)
        return {**base, **dict.fromkeys(in_other, part)}
    if in_base:
        return {**base, in_other[0]: np.hypot(*(base[name] for name in in_base))}
    return base


def tied_remark(
    base: Collection[str], asked: Collection[str], bands: Mapping[str, str], axes: Sequence[str]
) -> str:
    """What `carry_over_tied` does with these names, in one sentence; empty where it does nothing.

    base: the base's names. The other arguments are those of `carry_over_tied`.
    """
    in_base, in_other = _tied_by_one(base, asked, bands, axes)
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


def _tied_by_one(
    base: Collection[str], asked: Collection[str], bands: Mapping[str, str], axes: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Embedding and readout as the base has them, and as the other model has them.

    One of the two lists holds one name, the other both; both are empty where not one model alone is
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
    """The one token embedding and the one readout matrix of both models; empty where not one."""
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
