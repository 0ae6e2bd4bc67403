"""Parameter groups scaled by multipliers, in place of the user's inside `step` only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import is_
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_client.training.run_remarks import RunRemarks
from flerm_client.training.signal_deferral import SignalDeferral
from flerm_client.training.step_wrapper import between_user_hooks, with_closure

Group = dict[str, Any]


class ScaledParamGroups:
    """The learning rates of one optimiser's tensors: η(t) of the user's groups, times m_ℓ.

    Inside the step, tensors of one user group and one multiplier share a group, so that fused and
    foreach kernels stay few. What a step changes in a group is copied to the user's group, because
    some optimisers keep state there.

    names: id(parameter) to tensor name.
    independent_decay: weights decay by η(t)·λ, whatever the multiplier.
    """

    def __init__(
        self, optimizer: Optimizer, names: Mapping[int, str], *, independent_decay: bool = False
    ) -> None:
        self.optimizer = optimizer
        self._names = names
        self._independent_decay = independent_decay
        self._split: list[_GroupSplit] = []
        self._multipliers: Mapping[str, float] | None = None
        self._split_for: list[tuple[int, ...]] = []
        self._known = self._parameters()

    def current(self, multipliers: Mapping[str, float]) -> dict[str, float]:
        """η(t) · m_ℓ by tensor name, as the next step would take it."""
        return {
            name: float(group["lr"]) * multipliers.get(name, 1.0) for name, group in self._named()
        }

    def decays(self) -> dict[str, float]:
        """η(t) · λ by tensor name: the part of the weights that the next step takes off.

        Holds the tensors whose decay is independent of their multiplier.
        """
        if not self._independent_decay:
            return {}
        return {
            name: float(group["lr"]) * float(group["weight_decay"])
            for name, group in self._named()
            if group["weight_decay"]
        }

    def _parameters(self) -> dict[int, nn.Parameter]:
        return {id(p): p for group in self.optimizer.param_groups for p in group["params"]}

    def tell_of_added(self, remarks: RunRemarks, *, thoroughly: bool) -> None:
        """Says where the user has given the optimiser further tensors since the run began.

        thoroughly: also looks where there are no more tensors than before, because others may have
            been taken away.
        """
        count = sum(len(group["params"]) for group in self.optimizer.param_groups)
        if count <= len(self._known) and not thoroughly:
            return
        now = self._parameters()
        if added := len(now.keys() - self._known.keys()):
            remarks.say(
                f"the optimizer has got {added} further tensors since FLeRM was "
                "attached: they are trained at their own rate, and neither measured nor matched; "
                "close FLeRM and attach it again to have them measured"
            )
        self._known |= now

    def tell_of_outside(self, remarks: RunRemarks) -> None:
        """Says where the optimiser steps tensors that the model does not hold, as a loss may."""
        if outside := len(self._known.keys() - self._names.keys()):
            remarks.say(
                f"the optimizer steps {outside} tensors that are not in the model: they are "
                "trained at their own rate, and neither measured nor matched; give a module that "
                "holds them too to have them measured, if the outputs depend on them"
            )

    def _named(self) -> Iterator[tuple[str, Group]]:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if (name := self._names.get(id(parameter))) is not None:
                    yield name, group

    def run_step(
        self,
        step: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        multipliers: Mapping[str, float],
        on_rates_ready: Callable[[], None],
        signals: SignalDeferral,
    ) -> Any:
        """`step(*args, **kwargs)`, with a group for each multiplier in `optimizer.param_groups`.

        The user's closure and hooks see the user's own groups, and so does everyone afterwards,
        also after an exception. `on_rates_ready` is called when `current` gives the rates of the
        step: at the beginning, and again after a closure or hooks, which may have set others.
        """
        swap = _Swap(self, multipliers, on_rates_ready)

        def wrap(closure: Callable[[], Any]) -> Callable[[], Any]:
            def on_users_groups() -> Any:
                signals.run_closed(swap.out)
                result = closure()
                signals.run_closed(swap.into)
                return result

            return on_users_groups

        args, kwargs = with_closure(args, kwargs, wrap)
        closed = (partial(signals.run_closed, each) for each in (swap.out, swap.into, swap.back))
        try:
            swap.into()
            with between_user_hooks(self.optimizer, *closed):
                return signals.run_open(partial(step, *args, **kwargs))
        finally:
            swap.out()

    def split_for(self, multipliers: Mapping[str, float]) -> list[_GroupSplit]:
        """The user's groups, each with its groups for `multipliers`, in step with the user's."""
        split = self._split_groups(self.optimizer.param_groups, multipliers)
        for each in split:
            each.sync_from_user()
        return split

    def _split_groups(
        self, groups: list[Group], multipliers: Mapping[str, float]
    ) -> list[_GroupSplit]:
        # New multipliers come as a new mapping: `multipliers` itself is never changed.
        key = [(id(group), len(group), *map(id, group["params"])) for group in groups]
        if multipliers is not self._multipliers or key != self._split_for:
            self._split = []
            for group in groups:
                members: dict[float, list[nn.Parameter]] = {}
                for parameter in group["params"]:
                    m = multipliers.get(self._names.get(id(parameter), ""), 1.0)
                    members.setdefault(m, []).append(parameter)
                self._split.append(_GroupSplit(group, members, self._independent_decay))
            self._multipliers, self._split_for = multipliers, key
        return self._split


class _Swap:
    """Scaled groups in place of the user's during one step of `groups`."""

    def __init__(
        self,
        groups: ScaledParamGroups,
        multipliers: Mapping[str, float],
        on_rates_ready: Callable[[], None],
    ) -> None:
        self._groups, self._multipliers = groups, multipliers
        self._on_rates_ready = on_rates_ready
        self._users: list[Group] | None = None
        self._split: list[_GroupSplit] = []

    def into(self) -> None:
        """Puts the scaled groups in place, and reports that the rates of the step are known."""
        if self._users is None:
            self._on_rates_ready()
        self.back()

    def back(self) -> None:
        """Puts the scaled groups in place, without a report."""
        optimizer = self._groups.optimizer
        if self._multipliers and self._users is None:
            self._split = self._groups.split_for(self._multipliers)
            self._users = optimizer.param_groups
            optimizer.param_groups = [ours for each in self._split for ours in each.ours]

    def out(self) -> None:
        """Puts the user's groups back, with what the step has changed in them."""
        if self._users is not None:
            self._groups.optimizer.param_groups, self._users = self._users, None
            for each in self._split:
                each.sync_to_user()


class _GroupSplit:
    """One of the user's groups, and `ours`: a group for each multiplier in it.

    These are kept between steps: making some fifty dictionaries costs a twentieth of a fused step.
    """

    def __init__(
        self, group: Group, members: Mapping[float, list[nn.Parameter]], independent_decay: bool
    ) -> None:
        self._group = group
        self._multipliers = list(members)
        self._decays = independent_decay and "weight_decay" in group
        own = {"params", "lr", *(["weight_decay"] if self._decays else [])}
        self._shared = [key for key in group if key not in own]
        self._values: Callable[[Group], tuple[Any, ...]] = lambda group: tuple(
            map(group.__getitem__, self._shared)
        )
        self._before = self._values(group)
        self.ours: list[Group] = [
            {**group, "params": parameters} for parameters in members.values()
        ]

    def sync_from_user(self) -> None:
        """Takes over what the user or a scheduler has set since the last step."""
        group, now = self._group, self._values(self._group)
        if not all(map(is_, now, self._before)):
            for ours in self.ours:
                ours.update(zip(self._shared, now, strict=True))
            self._before = now
        rate = group["lr"]
        for ours, m in zip(self.ours, self._multipliers, strict=True):
            ours["lr"] = rate * m
            if self._decays:
                ours["weight_decay"] = group["weight_decay"] / m

    def sync_to_user(self) -> None:
        """Copies to the user's group the settings that the step changed in the groups `ours`."""
        before, size = self._before, len(self._group)
        for ours in self.ours:
            if len(ours) != size:
                self._group.update(
                    {key: value for key, value in ours.items() if key not in self._group}
                )
            after = self._values(ours)
            if not all(map(is_, after, before)):
                changes = zip(self._shared, after, before, strict=True)
                self._group.update({key: new for key, new, old in changes if new is not old})
