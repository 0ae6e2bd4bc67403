"""Probe batches out of the training data, without reading the loader that trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from flerm_core.errors import InvalidInput


def probe_of(loader: Iterable[Any], batch_size: int | None = None) -> Iterable[Any]:
    """Batches like `loader`'s: of its data set, by its collate function, in an order of their own.

    loader: a DataLoader (any framework's), or an iterable that can begin anew.
    batch_size: None: the loader's.

    The loader itself is never iterated: its workers, position and sampler stay as they are. Batches
    are read in this process. Shuffling draws from the probe's own random numbers (design, method
    5), which differ between ranks. Raises `InvalidInput` for data that cannot be read twice: then
    `probe=` must be given.
    """
    several = _count_loaders(loader)
    if several:
        raise InvalidInput(
            f"the training data is a {type(loader).__name__} of {several} loaders: give probe=, "
            "for instance probe_of(loader) of the one whose batches the model is called with"
        )
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        if isinstance(loader, Iterable) and iter(loader) is not loader:
            return loader
        raise InvalidInput(
            f"the training data is a {type(loader).__name__}, which cannot be read beside "
            "training: give probe=, fresh input batches"
        )
    sampler = getattr(loader, "batch_sampler", None)
    size = batch_size or getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
    collate = getattr(loader, "collate_fn", None)
    if (
        not isinstance(dataset, IterableDataset)
        and hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
    ):
        whole = size is not None and len(dataset) >= size
        return DataLoader(
            dataset, batch_size=size, shuffle=True, drop_last=whole, collate_fn=collate
        )
    try:
        own = copy.deepcopy(dataset)  # the original's position is the training's
    except Exception as error:
        raise InvalidInput(
            f"the training data's {type(dataset).__name__} is a stream that cannot be read twice "
            f"({error}): give probe=, fresh input batches"
        ) from error
    return DataLoader(own, batch_size=size, collate_fn=collate)


def _count_loaders(loader: Any) -> int:
    """How many loaders a mapping or sequence of them holds."""
    parts: Iterable[Any] = loader if isinstance(loader, list | tuple) else ()
    if isinstance(loader, Mapping):
        parts = loader.values()
    return sum(isinstance(each, DataLoader) for each in parts)
