"""The version counters of tensors, by which autograd knows what has changed since it was saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter


@contextmanager
def versions_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards the versions of `tensors` are as before. Their values must be so too, by then.

    The training may hold a graph that has saved them, of a loss whose backward comes later.
    """
    counted = tuple(each for each in tensors if not each.is_inference())
    with _unsafe_preserve_version_counter(counted):
        yield
