"""One checkpoint of all ranks' runs, for frameworks that save one value on one rank."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist

from flerm_client.flerm import FLeRM
from flerm_client.training.checkpoint import pack, unpack

_OF_EACH_RANK = "measurer"
"""The part of a state that differs between ranks: it holds the probe and the random numbers."""


def collect_state(flerm: FLeRM) -> bytes:
    """The state of this run with every rank's own part.

    A collective: every rank calls this function, and every rank gets the state.
    """
    state = flerm.state_dict()["flerm"]
    if not _has_many_ranks():
        return bytes(state)
    content = unpack(state)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, pack(content[_OF_EACH_RANK]))
    return pack(content | {"ranks": parts})


def restore(flerm: FLeRM, checkpoint: bytes) -> None:
    """Goes on where `collect_state` was called.

    In a world of another size, every rank goes on by rank 0's part (`FLeRM.load_state_dict`).
    """
    content = unpack(checkpoint)
    parts = content.pop("ranks", None)
    if parts is not None and _has_many_ranks() and len(parts) == dist.get_world_size():
        content[_OF_EACH_RANK] = unpack(parts[dist.get_rank()])
    flerm.load_state_dict({"flerm": pack(content)})


def _has_many_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
