"""What a figure shows: which parameters of a recording, which recordings beside each other, and
which experiment of a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from fastapi import Depends, Query

from flerm_core.errors import InvalidInput
from flerm_core.figures.trajectory_figure import MAX_TENSORS
from flerm_core.records.key_value_pairs import key_value_pairs

MAX_COMPARED = 8  # recordings on one page of comparisons


def matching_names(names: Sequence[str], pattern: str) -> list[str]:
    """The parameters to draw one by one, at most `MAX_TENSORS`, the most that a figure shows.

    pattern: the name of a parameter, or a shell-style pattern of names; empty: no parameter.
    """
    if pattern in names:
        return [pattern]
    return [name for name in names if fnmatchcase(name, pattern)][:MAX_TENSORS]


def recording_ids(texts: Sequence[str]) -> list[str]:
    """The ids in `texts`, each of which may hold several, separated by commas; each id once.

    Raises `InvalidInput` for more than `MAX_COMPARED`.
    """
    ids = list(
        dict.fromkeys(each.strip() for text in texts for each in text.split(",") if each.strip())
    )
    if len(ids) > MAX_COMPARED:
        raise InvalidInput(
            f"ids: {len(ids)} recordings given; at most {MAX_COMPARED} are compared at once"
        )
    return ids


async def _picks(
    pick: Annotated[
        list[str],
        Query(
            description="`setting=value` (steps=300): which experiment, where the family has "
            "several; without, the one with most recordings"
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
) -> dict[str, str]:
    return key_value_pairs("pick", pick, "setting=value")


Picks = Annotated[dict[str, str], Depends(_picks)]
