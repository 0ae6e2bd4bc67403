"""ΔW: what one optimiser step did to every tensor, at learning rate 1 (Section 3.3).

1. Before the step, W_old is copied, because optimisers change weights in place.
2. For a measurement the weights and the copy are swapped in place. The model then computes at
   W_old, where Eq. 1 linearises, while the copy holds W_new.
3. After the measurement they are swapped back, bit for bit.

The swap is in place, because other objects hold the storage of a parameter (flattened recurrent
weights, sharded views, captured graphs) and must see the values that the model sees. Of a sharded
tensor everything here concerns this rank's part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from types import EllipsisType

import torch
from torch import Tensor, nn

from flerm_core.measure.distributed.sharding import to_local
from flerm_core.measure.tensor_versions import versions_kept
from flerm_core.measure.update.chunking import iter_chunks


class WeightUpdate:
    """One optimiser step of a set of parameters. Made before the step, read after it.

    It holds a copy of the weights, which takes as much memory as they do.

    `rates[name]` is the learning rate of the step, multiplier included; set it before `change` is
    read. `decays[name]` is the fraction of W_old that decoupled weight decay took off whatever the
    multiplier. That is no part of ΔW.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.rates: dict[str, float] = {}
        self.decays: dict[str, float] = {}
        # A step may run under inference_mode, outside of which its tensors cannot be changed.
        with torch.inference_mode(False):
            self._copies = {name: to_local(p).clone() for name, p in parameters.items()}
        self._swapped = False  # whether the parameters hold W_old and the copies W_new
        self._kept_old: dict[str, Tensor] = {}  # W_old of what a forward writes into

    def change(self, name: str, rows: slice | EllipsisType = ...) -> Tensor:
        """ΔW of tensor `name` at learning rate 1, at least float32, shaped like `rows` of it.

        Zero where its rate is 0, or where no optimiser steps it any more.
        """
        parameter, copy = to_local(self.parameters[name])[rows], self._copies[name][rows]
        new, old = (copy, parameter) if self._swapped else (parameter, copy)
        if name in self._kept_old:
            old = self._kept_old[name][rows]
        rate = self.rates.get(name, 0.0)
        wide = _wide(new.dtype)
        if rate == 0.0:
            return torch.zeros_like(new, dtype=wide)
        if new.dtype != wide:
            new, old = new.to(wide), old.to(wide)
        step = new - old
        if decay := self.decays.get(name):
            step.add_(old, alpha=decay)
        return step.div_(rate)

    def new_weights(self) -> dict[str, Tensor]:
        """The tensors as the step left them (this rank's part)."""
        if self._swapped:
            return dict(self._copies)
        return {name: to_local(parameter) for name, parameter in self.parameters.items()}

    def changed_tensors(self) -> dict[str, Tensor]:
        """For every tensor whether the step changed it (this rank's part): bool [].

        On an accelerator the values are not yet synchronised with the host.
        """
        return {
            name: _differ(to_local(parameter), self._copies[name])
            for name, parameter in self.parameters.items()
        }

    @contextmanager
    def at_old_weights(self, written: Collection[nn.Parameter] = ()) -> Iterator[None]:
        """Inside, the model computes at W_old; afterwards at W_new, bit for bit.

        written: the parameters that a forward inside writes into. ΔW is of their values before.

        Where memory does not suffice for the way back, W_old is given up, and the error raised.
        """
        with versions_kept(map(to_local, self.parameters.values())):
            self._swap()
            try:
                self._kept_old = {
                    name: to_local(parameter).clone()
                    for name, parameter in self.parameters.items()
                    if any(parameter is each for each in written)
                }
                yield
            finally:
                self._kept_old.clear()
                try:
                    self._swap()
                except BaseException:
                    with torch.no_grad():
                        for name in reversed(self.parameters):
                            to_local(self.parameters[name]).copy_(self._copies[name])
                    raise

    def keep_old(self, parameter: nn.Parameter, value: Tensor) -> None:
        """ΔW of `parameter` is of W_old = `value`, whatever a forward writes into it.

        For use inside `at_old_weights`. Of other parameters than those measured nothing is kept.
        """
        for name, each in self.parameters.items():
            if each is parameter:
                self._kept_old[name] = value

    @torch.no_grad()
    def _swap(self) -> None:
        # Back in the reverse order: parameters may share memory (tied by `a.data = b.data`).
        names = reversed(self.parameters) if self._swapped else self.parameters
        pairs = [(to_local(self.parameters[name]), self._copies[name]) for name in names]
        at = part = 0  # tensors, and chunks of the next tensor, that are exchanged
        try:
            for pair in pairs:
                for weight, copy in iter_chunks(*pair):
                    _exchange(weight, copy)
                    part += 1
                at, part = at + 1, 0
        except BaseException:  # out of memory: all of W_old or all of W_new, never parts of both
            begun = [islice(iter_chunks(*pair), part) for pair in pairs[at : at + 1]]
            whole = [iter_chunks(*pair) for pair in reversed(pairs[:at])]
            for weight, copy in chain(*begun, *whole):
                _exchange(weight, copy)
            raise
        self._swapped = not self._swapped

    @contextmanager
    def displaced(self, changes: Mapping[str, Tensor], factor: float) -> Iterator[None]:
        """Inside, the tensors of `changes` are at W_old + factor · change.

        Afterwards they are at W_old, bit for bit. For use inside `at_old_weights`.
        """
        saved = {name: to_local(self.parameters[name]).clone() for name in changes}
        try:
            with torch.no_grad():
                for name, change in changes.items():
                    to_local(self.parameters[name]).add_(change, alpha=factor)
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    to_local(self.parameters[name]).copy_(value)

    @torch.no_grad()
    def reapply(self, factors: Mapping[str, float]) -> None:
        """W ← W_old + factor · (W_new − W_old): as if the step had run at `factor` times its rate.

        Decoupled weight decay stays as it was.
        """
        for name, factor in factors.items():
            if factor != 1.0:
                weight = to_local(self.parameters[name])
                wide = _wide(weight.dtype)
                old = self._copies[name].to(wide)
                step = (weight.to(wide) - old).mul_(factor)
                if decay := self.decays.get(name):
                    step.add_(old, alpha=(factor - 1.0) * decay)
                weight.copy_(step.add_(old))


def _exchange(a: Tensor, b: Tensor) -> None:
    """Exchanges the values of two tensors, or raises with both as they were."""
    saved = a.clone()
    a.copy_(b)
    try:
        b.copy_(saved)
    except BaseException:
        a.copy_(saved)
        raise


def _differ(a: Tensor, b: Tensor) -> Tensor:
    # On the CPU `equal` stops at the first difference. Elsewhere it would wait for the device.
    return torch.tensor(not torch.equal(a, b)) if a.device.type == "cpu" else (a != b).any()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: in bfloat16, half of ΔW/η is 0 at η = 1e-4 (docs/estimators.md)."""
    return torch.float64 if dtype == torch.float64 else torch.float32
