"""Multipliers act inside `step` and nowhere else: the user's parameter groups look as without us before and after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

Group = dict[str, Any]


class Rates:
    """The learning rates of one optimiser's tensors: η(t), as the user's groups and schedulers have it, times m_ℓ.

    Tensors of one group and one multiplier share a group inside the step, so that fused and foreach kernels stay few. An
    optimiser that keeps state in its groups finds it: what a step changes there is carried back. `independent_decay`: the
    weights decay by η(t)·λ, whatever the multiplier.
    """

    def __init__(self, optimizer: Optimizer, names: Mapping[int, str], *, independent_decay: bool = False) -> None:
        self._optimizer = optimizer
        self._names = names  # id(parameter) to tensor name
        self._independent_decay = independent_decay
        self._split: list[tuple[Group, float, list[nn.Parameter]]] = []
        self._split_of: object = None

    def current(self, multipliers: Mapping[str, float]) -> dict[str, float]:
        """η(t) · m_ℓ by tensor name, as the next step would take it."""
        return {name: float(group["lr"]) * multipliers.get(name, 1.0) for name, group in self._named()}

    def decays(self) -> dict[str, float]:
        """η(t) · λ by tensor name, for those whose decay is independent: the part of the weights that the next step takes."""
        if not self._independent_decay:
            return {}
        return {
            name: float(group["lr"]) * float(group["weight_decay"]) for name, group in self._named() if group["weight_decay"]
        }

    def _named(self) -> Iterator[tuple[str, Group]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if (name := self._names.get(id(parameter))) is not None:
                    yield name, group

    @contextmanager
    def applied(self, multipliers: Mapping[str, float]) -> Iterator[None]:
        """Inside, `optimizer.param_groups` has a group for each multiplier; outside, also after an exception, it is the
        user's own."""
        theirs = self._optimizer.param_groups
        split = self._split_groups(theirs, multipliers)
        ours = [{**group, "params": parameters, **self._set(group, m)} for group, m, parameters in split]
        given = [dict(group) for group in ours]
        self._optimizer.param_groups = ours
        try:
            yield
        finally:
            self._optimizer.param_groups = theirs
            for after, before, (group, _, _) in zip(ours, given, split, strict=True):
                for key, value in after.items():
                    if key not in ("params", "lr", "weight_decay") and (key not in before or before[key] is not value):
                        group[key] = value

    def _set(self, group: Group, m: float) -> Group:
        if self._independent_decay and group["weight_decay"]:
            return {"lr": group["lr"] * m, "weight_decay": group["weight_decay"] / m}
        return {"lr": group["lr"] * m}

    def _split_groups(
        self, groups: list[Group], multipliers: Mapping[str, float]
    ) -> list[tuple[Group, float, list[nn.Parameter]]]:
        # `multipliers` is replaced, never changed, when new ones are matched.
        key = (id(multipliers), [(id(group), len(group["params"])) for group in groups])
        if key != self._split_of:
            self._split = []
            for group in groups:
                members: dict[float, list[nn.Parameter]] = {}
                for parameter in group["params"]:
                    m = multipliers.get(self._names.get(id(parameter), ""), 1.0)
                    members.setdefault(m, []).append(parameter)
                self._split += [(group, m, parameters) for m, parameters in members.items()]
            self._split_of = key
        return self._split
