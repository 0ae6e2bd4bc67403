"""ΔW: what one optimiser step did to every tensor, at learning rate 1 (Section 3.3).

The optimiser moves the weights in place, so W_old is copied before the step. Afterwards the two are *exchanged* in place
for the time of a measurement: the model computes at W_old (Eq. 1 linearises there) while W_new waits in the copy, and both
return bit for bit. In place, because whatever else looks at a parameter's storage (flattened recurrent weights, sharded views,
captured graphs) must see the same values as the model. Of a sharded tensor all this concerns this rank's part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType

import torch
from torch import Tensor, nn

from flerm_core.measure.distributed.sharding import local
from flerm_core.measure.update.chunking import iter_chunks


class WeightUpdate:
    """The step of a set of parameters. Built before it (copies the weights: 1 × their memory), read after it.

    `rates[name]` is the learning rate that the step ran at, multiplier included; set it before reading `change`.
    `decays[name]` is the part of W_old that the step took off beside, whatever the multiplier: no part of ΔW.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.rates: dict[str, float] = {}
        self.decays: dict[str, float] = {}
        self._other = {name: local(parameter).clone() for name, parameter in parameters.items()}
        self._at_old = False

    def change(self, name: str, rows: slice | EllipsisType = ...) -> Tensor:
        """ΔW of `name` (this rank's part; `rows` of it) at learning rate 1, in at least float32, shaped like it. Zero where its
        rate is 0 or no optimiser steps it any more."""
        current, other = local(self.parameters[name])[rows], self._other[name][rows]
        new, old = (other, current) if self._at_old else (current, other)
        rate = self.rates.get(name, 0.0)
        if rate == 0.0:
            return torch.zeros_like(new, dtype=_wide(new.dtype))
        if new.dtype != _wide(new.dtype):
            new, old = new.to(_wide(new.dtype)), old.to(_wide(old.dtype))
        step = new - old
        if decay := self.decays.get(name):
            step.add_(old, alpha=decay)
        return step.div_(rate)

    def moved(self) -> dict[str, Tensor]:
        """For every tensor a 0-dimensional bool: did the step change it (this rank's part)? Not yet synchronised with the
        host."""
        return {
            name: _differ(local(parameter), self._other[name])
            for name, parameter in self.parameters.items()
        }

    @contextmanager
    def at_old_weights(self) -> Iterator[None]:
        """The model computes at W_old inside and at W_new, bit for bit, outside."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # Back in the reverse order: parameters may share their memory (tied by `a.data = b.data`).
        for name in reversed(self.parameters) if self._at_old else self.parameters:
            for current, other in iter_chunks(local(self.parameters[name]), self._other[name]):
                waiting = current.clone()
                current.copy_(other)
                other.copy_(waiting)
        self._at_old = not self._at_old

    @contextmanager
    def displaced(self, changes: Mapping[str, Tensor], factor: float) -> Iterator[None]:
        """Inside, the tensors of `changes` are at W_old + factor · their change; afterwards at W_old, bit for bit. To be used
        within `at_old_weights`."""
        kept = {name: local(self.parameters[name]).clone() for name in changes}
        with torch.no_grad():
            for name, change in changes.items():
                local(self.parameters[name]).add_(change, alpha=factor)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    local(self.parameters[name]).copy_(value)

    @torch.no_grad()
    def reapply(self, factors: Mapping[str, float]) -> None:
        """W ← W_old + factor · (W_new − W_old), as if the step had run at `factor` times its rate (design, method 4), its decay
        beside as it was."""
        for name, factor in factors.items():
            if factor != 1.0:
                current, old = local(self.parameters[name]), self._other[name]
                wide = _wide(current.dtype)
                before = old.to(wide)
                step = (current.to(wide) - before).mul_(factor)
                if decay := self.decays.get(name):
                    step.add_(before, alpha=(factor - 1.0) * decay)
                current.copy_(step.add_(before))


def _differ(a: Tensor, b: Tensor) -> Tensor:
    # Where there is no device to wait for, the first difference settles it.
    return torch.tensor(not torch.equal(a, b)) if a.device.type == "cpu" else (a != b).any()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: in bfloat16 half of ΔW/η would round to zero at η = 1e-4 (docs/estimators.md)."""
    return torch.float64 if dtype == torch.float64 else torch.float32
