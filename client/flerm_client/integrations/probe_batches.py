"""Makes a probe of the training data, without taking batches from the training's own loader."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from flerm_client.training.forked_reader import ForkedReader
from flerm_client.training.loader_copy import begin_as_worker
from flerm_core.errors import InvalidInput

_WINDOW = 1000  # batches of a sampler that are shuffled together


def probe_of(loader: Iterable[Any], batch_size: int | None = None) -> Iterable[Any]:
    """Batches like `loader`'s: of its data set, by its collate function, in an order of their own.

    loader: a DataLoader (any framework's), or an iterable that can begin anew.
    batch_size: None: the loader's.

    Batches are read in a process of their own, in a copy of the loader (`ForkedReader`): data set,
    collate function, sampler, their generators and files. So nothing that the training draws or
    reads changes, whatever these hold. A list or tuple of batches is its own probe. A sampler's
    batches come in another order, which the probe's own random numbers decide;
    they differ between ranks.

    Raises `InvalidInput` for data that cannot be read twice: then `probe=` must be given. Iterating
    raises `InvalidInput` for data that a copy of the process cannot read, such as tensors on a GPU.
    """
    several = _count_loaders(loader)
    if several:
        raise InvalidInput(
            f"the training data is a {type(loader).__name__} of {several} loaders: give probe=, "
            "for instance probe_of(loader) of the one whose batches the model is called with"
        )
    if isinstance(loader, list | tuple):
        return loader
    dataset = getattr(loader, "dataset", None)
    if dataset is None and not (isinstance(loader, Iterable) and iter(loader) is not loader):
        raise InvalidInput(
            f"the training data is a {type(loader).__name__}, which cannot be read beside "
            "training: give probe=, fresh input batches"
        )
    of = type(loader if dataset is None else dataset).__name__
    return ForkedReader(lambda: _batches(loader, batch_size), f"the training data's {of}")


def _count_loaders(loader: Any) -> int:
    """How many loaders a mapping or sequence of them holds."""
    parts: Iterable[Any] = loader if isinstance(loader, list | tuple) else ()
    if isinstance(loader, Mapping):
        parts = loader.values()
    return sum(isinstance(each, DataLoader) for each in parts)


# What follows runs in the reading process.


def _batches(loader: Any, batch_size: int | None) -> Iterable[Any]:
    """One pass over a loader's data, in an order of its own."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        return loader  # type: ignore[no-any-return]
    sampler = getattr(loader, "batch_sampler", None)
    size = batch_size or getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
    is_stream = isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    )
    order = {"batch_size": size} if is_stream else _order(loader, dataset, size, batch_size)
    begin_as_worker(loader, dataset)
    return DataLoader(dataset, collate_fn=getattr(loader, "collate_fn", None), **order)


def _order(loader: Any, dataset: Any, size: int | None, wished: int | None) -> dict[str, Any]:
    """The keywords of a DataLoader that say in which batches and order the data set is read."""
    batches = getattr(loader, "batch_sampler", None)
    examples: Any = getattr(batches, "sampler", None) or getattr(loader, "sampler", None)
    whole = size is not None and len(dataset) >= size
    if examples is None or _reads_everything(batches, examples, dataset):
        return {"batch_size": size, "shuffle": True, "drop_last": whole}
    if batches is None:  # the data set's items are batches already
        return {"batch_size": size, "sampler": _Reordered(examples)}
    if type(batches) is BatchSampler and size is not None:
        batches = BatchSampler(examples, size, whole)
    elif wished is not None:
        batches = BatchSampler((at for batch in batches for at in batch), wished, False)
    return {"batch_sampler": _Reordered(batches)}


def _reads_everything(batches: Any, examples: Any, dataset: Any) -> bool:
    """Whether each example of `dataset` is read once a pass, in fixed or random order."""
    if type(batches) not in (BatchSampler, type(None)):
        return False
    if isinstance(examples, RandomSampler):
        return not examples.replacement and examples.num_samples == len(dataset)
    return type(examples) is SequentialSampler


class _Reordered:
    """What a sampler gives, in another order. Torch's DataLoader takes it for a sampler."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        rest = iter(self._sampler)
        while window := list(islice(rest, _WINDOW)):
            random.shuffle(window)
            yield from window
