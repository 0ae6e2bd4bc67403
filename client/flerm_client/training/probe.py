"""Probe batches: fresh inputs, cycled when they end, with random numbers of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flerm_client.training.forked_reader import ForkedReader
from flerm_core.errors import InvalidInput
from flerm_core.measure.state_guard import RandomState


class Probe:
    """An endless iterator over the user's probe.

    `position` counts the batches taken from the present pass over the probe. A DataLoader's own
    generators, from which the training may draw too, have after each batch the state they had
    before: the probe keeps states of its own for them.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if not isinstance(batches, Iterable):
            raise InvalidInput(
                f"probe is a {type(batches).__name__}; allowed is an iterable of input batches"
            )
        self._batches = batches
        self._pass: Iterator[Any] | None = None
        self._pass_began: RandomState | None = None
        self.position = 0
        self._generators = _generators_of(batches)
        self._states: list[Tensor] = []  # the probe's own, of each generator
        self._states_began: list[Tensor] = []
        self._peeked: list[Any] = []  # the batch that was looked at and not taken

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch; after the last one, the first again.

        Raises `InvalidInput` for a probe that has no batches, or ends and cannot begin anew.
        """
        if self._peeked:
            return self._peeked.pop()
        with self._own_states():
            return self._next()

    def peek(self) -> Any:
        """The next batch, which stays the next one. Raises as `__next__` does."""
        if not self._peeked:
            self._peeked.append(next(self))
        return self._peeked[0]

    def _next(self) -> Any:
        if self._pass is None:
            self._begin()
        assert self._pass is not None
        for batch in self._pass:
            self.position += 1
            return batch
        taken = self.position
        self._begin()
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
        self._states_began = [each.get_state() for each in self._generators]
        shared = (
            getattr(self._batches, "_iterator", None)
            if isinstance(self._batches, DataLoader)
            else None
        )
        if shared is not None and shared is not self._pass:
            raise InvalidInput(
                "probe is a DataLoader with persistent_workers=True that is in use elsewhere, "
                "which reading it would disturb; give a loader of its own"
            )
        self._pass = iter(self._batches)
        self.position = 0

    @contextmanager
    def _own_states(self) -> Iterator[None]:
        outside = [each.get_state() for each in self._generators]
        for at, each in enumerate(self._generators):
            if self._states:
                each.set_state(self._states[at])
            else:
                each.manual_seed(int(torch.randint(2**62, ())))
        try:
            yield
        finally:
            self._states = [each.get_state() for each in self._generators]
            for each, state in zip(self._generators, outside, strict=True):
                each.set_state(state)

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
            "generators_began": self._states_began,
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
        # The other probe may have been another kind of loader. Generators then start anew.
        began = state.get("generators_began", [])
        self._states = list(began) if len(began) == len(self._generators) else []
        with self._own_states():
            self._begin()
            for _ in range(state["position"] - given):
                self._next()
            # The random numbers of the checkpoint are those after the batch was looked at.
            self._peeked += [self._next() for _ in range(state["peeked"])]
            self.position = state["position"]


def _generators_of(batches: Any) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers draw from, each once."""
    if not isinstance(batches, DataLoader):
        return []
    holders = (
        batches,
        batches.sampler,
        batches.batch_sampler,
        getattr(batches.batch_sampler, "sampler", None),
    )
    found = [getattr(each, "generator", None) for each in holders]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())
