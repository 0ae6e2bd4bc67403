"""In a rank: joining the others, telling the test what was found, counting what is sent."""

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
    """Joins the others. A hang ends the rank and says where."""
    faulthandler.dump_traceback_later(80.0, exit=True)
    warnings.filterwarnings(
        "ignore", message="FSDP2-wrapped module"
    )  # of the root, which returns a view as all do
    # Restarted ranks share torchrun's store with those before them, and must not read the addresses of the dead there.
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
    """What the test is handed back."""
    torch.save(value, Path(os.environ["FLERM_TEST_FOLDER"]) / f"rank{os.environ['RANK']}.pt")


@contextmanager
def sent(*names: str) -> Iterator[list[int]]:
    """The bytes of what each collective of `names` is given first that is called inside by its public name; FSDP2's own and
    DTensor's are not."""
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
