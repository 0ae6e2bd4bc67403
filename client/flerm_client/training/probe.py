"""Probe batches: fresh inputs, cycled when they end, on a stream of randomness and a position of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flerm_core.errors import InvalidInput
from flerm_core.measure.state_guard import RandomState


class Probe:
    """An endless iterator over the user's probe. `position` counts the batches taken from its present pass.

    A DataLoader's own generators, which the training may draw from too, are after each batch what they were: the probe has
    states of its own for them.
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

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch; begins anew at the end. Raises `InvalidInput` for a probe that has none or cannot begin anew."""
        with self._own_states():
            return self._next()

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
                f"probe ended after {taken} batches and cannot begin anew; give a list, a DataLoader or an endless iterator"
            )
        raise InvalidInput("probe has no batches; at least one is needed")

    def _begin(self) -> None:
        # A shuffling loader draws its order here: the state is kept so that a resumed run can draw the same.
        self._pass_began = RandomState()
        self._states_began = [each.get_state() for each in self._generators]
        shared = (
            getattr(self._batches, "_iterator", None)
            if isinstance(self._batches, DataLoader)
            else None
        )
        if shared is not None and shared is not self._pass:
            raise InvalidInput(
                "probe is a DataLoader with persistent_workers=True that is in use elsewhere, which reading it would disturb; "
                "give a loader of its own"
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

    def state_dict(self) -> dict[str, Any]:
        """Where the probe is, for a checkpoint."""
        began = None if self._pass_began is None else self._pass_began.state_dict()
        return {
            "position": self.position,
            "pass_began": began,
            "generators_began": self._states_began,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another probe over the same batches was. To be called inside the probe's own randomness."""
        if state["pass_began"] is None:
            return
        RandomState.from_state_dict(state["pass_began"]).restore()
        began = state.get(
            "generators_began", []
        )  # of another kind of loader: the probe's own start anew
        self._states = list(began) if len(began) == len(self._generators) else []
        with self._own_states():
            self._begin()
            for _ in range(state["position"]):
                self._next()


def _generators_of(batches: Any) -> list[torch.Generator]:
    """Those that a DataLoader and its samplers draw from."""
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
