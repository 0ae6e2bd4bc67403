"""Refuses tensors that correspond by name and are not of one kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flerm_core.errors import InvalidInput
from flerm_core.matching.match_plan import MatchPlan

Shape = tuple[int, ...]


def shapes_by_name(names: Sequence[str], shapes: Sequence[Shape]) -> dict[str, Shape]:
    """The shape of each of `names`; empty where there are no shapes.

    Raises `InvalidInput` where there are not as many shapes as names.
    """
    if shapes and len(shapes) != len(names):
        raise InvalidInput(
            f"shapes: {len(shapes)} given for {len(names)} names; one each is allowed, or none at "
            "all"
        )
    return dict(zip(names, shapes, strict=True)) if any(shapes) else {}


def refuse_other_dimensions(
    plan: MatchPlan, own: Mapping[str, Shape], base: Mapping[str, Shape], family: str
) -> None:
    """Raises `InvalidInput` where a tensor has another number of dimensions than the base's.

    In a family, corresponding tensors have the same number of dimensions at every width. Another
    number means another architecture: `0.weight` of a `torch.nn.Sequential` is a matrix where a
    linear map comes first, and a vector where a norm does.

    plan: which tensors of the base correspond to which of the model.
    own, base: the shapes of the model's and of the base's tensors by name. A tensor without a shape
        is not compared (imported recordings have none).
    family: the base's, for the message.
    """
    if not own or not base:
        return
    for name, sources in plan.sources():
        known = sorted({len(base[each]) for each in sources if each in base})
        if known and name in own and len(own[name]) not in known:
            raise InvalidInput(
                f"shapes: {name!r} has {len(own[name])} dimensions ({list(own[name])}); {known} "
                f"allowed, as in the base of {family!r}"
            )
