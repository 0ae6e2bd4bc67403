"""What a job does in a rank: it joins the others, reports to the test, counts what is sent."""

from __future__ import annotations

import faulthandler
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from flerm_core.measure.distributed.gloo_lifetime import retain_group


def begin() -> None:
    """Joins the other ranks. After 80 seconds a rank ends and prints where it hangs."""
    faulthandler.dump_traceback_later(80.0, exit=True)
    warnings.filterwarnings(
        "ignore", message="FSDP2-wrapped module"
    )  # of the root, which returns a view as all do
    # Restarted ranks share torchrun's store with the earlier ones, and must not read their
    # addresses there.
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
    )
    attempt = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group(
        "gloo",
        store=attempt,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    retain_group()


def report(value: Any) -> None:
    """Saves what the test gets of this rank."""
    torch.save(value, Path(os.environ["FLERM_TEST_FOLDER"]) / f"rank{os.environ['RANK']}.pt")


@contextmanager
def sent(*names: str) -> Iterator[list[int]]:
    """Lists the bytes that this rank gives to each collective of `names`.

    Only calls by the public name count, and not those of FSDP2 and DTensor.
    """
    found: list[int] = []
    names = names or ("all_reduce", "broadcast")
    collectives = {name: getattr(dist, name) for name in names}

    def counting(inner: Any) -> Any:
        def call(values: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(
                sum(
                    each.nbytes
                    for each in ([values] if isinstance(values, torch.Tensor) else values)
                )
            )
            return inner(values, *args, **kwargs)

        return call

    for name, inner in collectives.items():
        setattr(dist, name, counting(inner))
    try:
        yield found
    finally:
        for name, inner in collectives.items():
            setattr(dist, name, inner)
