"""A DataLoader that is given as the probe, read beside the training and apart from it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data._utils import worker

from flerm_client.training.forked_reader import ForkedReader

_PLAIN_DATA = (TensorDataset, list, tuple)
_WITHOUT_WORKERS = {
    "num_workers": 0,
    "timeout": 0,
    "pin_memory": False,
    "persistent_workers": False,
    "_iterator": None,
}


def read_in_copy(loader: DataLoader[Any]) -> ForkedReader:
    """The loader's batches in its own order, read in a copy of this process, without workers.

    Data set, sampler, collate function, generators and open files are the copy's own.
    """
    name = f"probe, a {type(loader).__name__} of {type(loader.dataset).__name__},"
    return ForkedReader(lambda: _pass_in_copy(loader), name)


def read_here(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same data set without workers, with samplers and generators of its own."""
    generators = {id(each): each.clone_state() for each in generators_of(loader)}
    memo: dict[int, Any] = {id(loader.dataset): loader.dataset, **generators}
    own = copy.copy(loader)
    parts = {
        name: copy.deepcopy(getattr(loader, name), memo)
        for name in ("sampler", "batch_sampler", "generator")
    }
    vars(own).update(_WITHOUT_WORKERS, **parts)
    return own


def shares_state(loader: DataLoader[Any]) -> bool:
    """Whether reading the loader's data set may change anything but the generators of torch."""
    return type(loader.dataset) not in _PLAIN_DATA


def begin_as_worker(loader: Any, dataset: Any) -> None:
    """What a worker of `loader` does first. A loader without workers has nothing to do.

    For the process that reads in a worker's place.
    """
    if not getattr(loader, "num_workers", 0):
        return
    worker._worker_info = worker.WorkerInfo(
        id=0, num_workers=1, seed=torch.initial_seed(), dataset=dataset
    )
    if loader.worker_init_fn is not None:
        loader.worker_init_fn(0)


def generators_of(loader: DataLoader[Any]) -> list[torch.Generator]:
    """The generators that a loader and its samplers draw from, each once."""
    holders = (
        loader,
        loader.sampler,
        loader.batch_sampler,
        getattr(loader.batch_sampler, "sampler", None),
    )
    found = [getattr(each, "generator", None) for each in holders]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _pass_in_copy(loader: DataLoader[Any]) -> Iterator[Any]:
    """One pass. The loader is this process's own, and changed at will."""
    for each in generators_of(loader):
        # Else every pass would begin at the state of the moment when the copy was made.
        each.manual_seed(int(torch.randint(2**62, ())))
    begin_as_worker(loader, loader.dataset)
    vars(loader).update(_WITHOUT_WORKERS)
    # Accelerate's loaders exchange random states with other ranks, which a copy cannot.
    plain = type(loader).__iter__.__module__.partition(".")[0] == "accelerate"
    return DataLoader.__iter__(loader) if plain else iter(loader)
