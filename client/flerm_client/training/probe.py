"""Probe batches: fresh inputs, cycled when they end, with random numbers of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from flerm_client.training.forked_reader import ForkedReader, NotReadable
from flerm_client.training.loader_copy import read_here, read_in_copy, shares_state
from flerm_core._warnings import warn
from flerm_core.errors import InvalidInput
from flerm_core.measure.state_guard import RandomState


class PreparedBatches:
    """The batches of a probe, and what a framework does to each before its model sees the batch.

    batches: the probe. prepare: gives the prepared batch.
    """

    def __init__(self, batches: Iterable[Any], prepare: Callable[[Any], Any]) -> None:
        self.batches, self.prepare = batches, prepare

    def __iter__(self) -> Iterator[Any]:
        return map(self.prepare, self.batches)


class Probe:
    """An endless iterator over the user's probe.

    `position` counts the batches taken from the present pass over the probe. A DataLoader may share
    its data set, samplers and generators with the training, and so is read in a copy of this
    process. Any other iterable is read as it is. `PreparedBatches` are prepared in this process.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._prepare: Callable[[Any], Any] | None = None
        if isinstance(batches, PreparedBatches):
            self._prepare, batches = batches.prepare, batches.batches
        if not isinstance(batches, Iterable):
            raise InvalidInput(
                f"probe is a {type(batches).__name__}; allowed is an iterable of input batches"
            )
        # The loader, until its first batch was read: then it is known where it can be read.
        self._loader = batches if isinstance(batches, DataLoader) else None
        self._batches = batches if self._loader is None else read_in_copy(self._loader)
        self._pass: Iterator[Any] | None = None
        self._pass_began: RandomState | None = None
        self.position = 0
        self._peeked: list[Any] = []  # the batch that was looked at and not taken

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch; after the last one, the first again.

        Raises `InvalidInput` for a probe that has no batches, or ends and cannot begin anew.
        """
        return self._prepared(self._peeked.pop() if self._peeked else self._take())

    def peek(self) -> Any:
        """The next batch, which stays the next one. Raises as `__next__` does."""
        if not self._peeked:
            self._peeked.append(self._take())
        return self._prepared(self._peeked[0])

    def _prepared(self, batch: Any) -> Any:
        if self._prepare is None:
            return batch
        with _modes_kept():
            return self._prepare(batch)

    def _next(self) -> Any:
        if self._pass is None:
            self._begin()
        assert self._pass is not None
        with _modes_kept():
            for batch in self._pass:
                self.position += 1
                return batch
        taken = self.position
        self._begin()
        with _modes_kept():
            for batch in self._pass:
                self.position = 1
                return batch
        if taken:
            raise InvalidInput(
                f"probe ended after {taken} batches and cannot begin anew; "
                "give a list, a DataLoader or an endless iterator"
            )
        raise InvalidInput("probe has no batches; at least one is needed")

    def _begin(self) -> None:
        # A shuffling loader draws its order here. The state before is kept, so that a resumed run
        # can draw the same order.
        self._pass_began = RandomState()
        self._pass = iter(self._batches)
        self.position = 0

    def _take(self) -> Any:
        """The next batch. A loader whose first batch a copy cannot read is read in this process."""
        try:
            batch = self._next()
        except NotReadable as error:
            if self._loader is None:
                raise
            if shares_state(self._loader):
                warn(
                    f"{error.what}. It is read in this process: what its data set draws and reads "
                    "is no longer drawn and read by the training, if that has the same data set; "
                    "a data set of its own for probe= avoids this"
                )
            self.close()
            self._batches = read_here(self._loader)
            batch = self._next()
        self._loader = None
        return batch

    def close(self) -> None:
        """Ends the present pass, and the processes that read it."""
        self._pass = None
        if isinstance(self._batches, ForkedReader):
            self._batches.close()

    def state_dict(self) -> dict[str, Any]:
        """The probe's position and random states, for a checkpoint."""
        began = None if self._pass_began is None else self._pass_began.state_dict()
        return {
            "position": self.position - len(self._peeked),
            "peeked": len(self._peeked),
            "pass_began": began,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position of another probe over the same batches.

        To be called inside the measurement's own randomness (`PrivateRandomness.active`).
        """
        if state["pass_began"] is None:
            return
        # An iterator that cannot begin anew has given the batch that was looked at.
        given = len(self._peeked) if iter(self._batches) is self._batches else 0
        if given and not state["position"]:
            return
        self._peeked.clear()
        RandomState.from_state_dict(state["pass_began"]).restore()
        self._begin()
        for _ in range(state["position"] - given):
            self._take()
        # The random numbers of the checkpoint are those after the batch was looked at.
        self._peeked += [self._take() for _ in range(state["peeked"])]
        self.position = state["position"]


@contextmanager
def _modes_kept() -> Iterator[None]:
    """Afterwards torch's modes and default dtype are as before.

    A generator function that yields inside `with torch.no_grad():` would leave its mode in force.
    """
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    try:
        with torch.inference_mode(torch.is_inference_mode_enabled()), torch.set_grad_enabled(grad):
            yield
    finally:
        torch.set_default_dtype(dtype)
