"""One checkpoint of all ranks' runs, for frameworks that save one value on one rank."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist

from flerm_client.flerm import FLeRM
from flerm_client.training.checkpoint import pack, unpack

# What differs between ranks; the rest is the same, or rank 0's to keep.
_OWN = ("rank", "probe", "random")


def collect_state(flerm: FLeRM) -> bytes:
    """The state of this run with every rank's own part of it. A collective: every rank calls it, every rank gets it."""
    state = flerm.state_dict()["flerm"]
    if not _many():
        return bytes(state)
    whole = unpack(state)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, pack({name: whole[name] for name in _OWN}))
    return pack(whole | {"ranks": parts})


def restore(flerm: FLeRM, checkpoint: bytes) -> None:
    """Goes on where `collect_state` was; in a world of another size by rank 0's part (see `FLeRM.load_state_dict`)."""
    whole = unpack(checkpoint)
    parts = whole.pop("ranks", None)
    if parts is not None and _many() and len(parts) == dist.get_world_size():
        whole |= unpack(parts[dist.get_rank()])
    flerm.load_state_dict({"flerm": pack(whole)})


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
