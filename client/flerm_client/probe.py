"""Probe batches: fresh inputs, cycled when they end, on a stream of randomness and a position of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from flerm_core.errors import InvalidInput
from flerm_core.measure.untouched import RandomState


class Probe:
    """An endless iterator over the user's probe. `position` counts the batches taken from its present pass."""

    def __init__(self, batches: Iterable[Any]) -> None:
        if not isinstance(batches, Iterable):
            raise InvalidInput(f"probe is a {type(batches).__name__}; allowed is an iterable of input batches")
        self._batches = batches
        self._pass: Iterator[Any] | None = None
        self._pass_began: RandomState | None = None
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch; begins anew at the end. Raises `InvalidInput` for a probe that has none or cannot begin anew."""
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
        self._pass = iter(self._batches)
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the probe is, for a checkpoint."""
        began = None if self._pass_began is None else self._pass_began.state_dict()
        return {"position": self.position, "pass_began": began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another probe over the same batches was. To be called inside the probe's own randomness."""
        if state["pass_began"] is None:
            return
        RandomState.from_state_dict(state["pass_began"]).restore()
        self._begin()
        for _ in range(state["position"]):
            next(self)
