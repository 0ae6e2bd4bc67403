"""The tensors that the first measured step did not move, and the step that moves each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flerm_client.training.param_groups import ScaledParamGroups
from flerm_client.training.step_wrapper import with_closure
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.distributed.sharding import to_local
from flerm_core.measure.measured_model import MeasuredModel

_EVERY_STEP = 100


class DelayedTensors:
    """The tensors that had no FSLR at the first measurement, until a step moves them.

    Examples are LoRA's A while B is 0, a layer that the first step leaves out, an expert without
    tokens, and weights that are frozen for a while.

    names: these tensors.
    moving: those of them that the step at hand moves. They are measured, and matched, at this step.
    waited: the steps since a tensor was last found to move.

    Several ranks must agree, which takes an all-reduce and waits for the device. They look at every
    step 100 times, and from then on after each hundredth of the steps that they have waited.

    A tensor moves where it has a gradient that is not 0, and a rate above 0. Weight decay alone
    does not count, because it says nothing of the steps that follow.
    """

    def __init__(self, model: MeasuredModel, ranks: MeasurementRanks) -> None:
        self.names: frozenset[str] = frozenset()
        self.moving: frozenset[str] = frozenset()
        self.waited = 0
        self._parameters = model.parameters
        self._device = model.device
        self._ranks = ranks

    def look(self, groups: ScaledParamGroups, *, anew: bool = False) -> bool:
        """Whether a step of the optimiser of `groups` would now move further tensors of `names`.

        These are then `moving`, the same on every rank. All ranks call this at the same point. One
        all-reduce where several ranks look, none for one process.

        anew: whether a step of the model begins, so that none is `moving` yet.
        """
        if anew:
            self.moving = frozenset()
            self.waited += bool(self.names)
        if not self._ranks.single_process and self.waited % (1 + self.waited // _EVERY_STEP):
            return False
        names = self.names - self.moving
        # A tensor that never has a gradient costs nothing but this.
        mine = [each for each in names if self._parameters[each].grad is not None]
        if mine:
            mine = self._with_gradient(mine)
        rates = groups.current({}) if mine else {}
        begun = {name for name in mine if rates.get(name)}
        if not names or (self._ranks.single_process and not begun):
            return False
        begun = self._on_any_rank(begun, sorted(names))
        self.moving |= begun
        self.waited = 0 if begun else self.waited
        return bool(begun)

    def _with_gradient(self, names: list[str]) -> list[str]:
        """Those of `names` of which this rank's part of the gradient is not all zeros.

        One call for all tensors of a kind, because a model may have hundreds without a gradient.
        """
        kinds: dict[Any, list[tuple[str, Tensor]]] = {}
        for name in names:
            values = _gradient(self._parameters[name])
            kinds.setdefault((values.device, values.dtype), []).append((name, values))
        found = []
        for each in kinds.values():
            norms = torch.stack(torch._foreach_norm([values for _, values in each], 1))
            flags = (norms != 0).tolist()  # NaN counts as a gradient
            found += [name for (name, _), flag in zip(each, flags, strict=True) if flag]
        return found

    def _on_any_rank(self, begun: set[str], names: list[str]) -> set[str]:
        """Those of `names` that are in `begun` on any rank."""
        if self._ranks.single_process:
            return begun
        flags = torch.tensor([name in begun for name in names], dtype=torch.float64)
        sums = self._ranks.sum(flags.to(self._device)).tolist()
        return {name for name, flag in zip(names, sums, strict=True) if flag}

    def with_look(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        groups: ScaledParamGroups,
        begun: Callable[[], None],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a step of the optimiser of `groups`, of which a closure is replaced.

        Its first call is followed by `look`, and `begun` is called where that is true: gradients
        may be computed inside the step, as under Lightning. Where the weights have changed by then
        (SAM), W_old is gone, and nothing is looked for.
        """
        if not self.names:
            return args, kwargs
        versions: list[int] | None = self._versions()

        def looking(closure: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> Any:
                nonlocal versions
                result = closure()
                if versions == self._versions() and self.look(groups):
                    begun()
                versions = None
                return result

            return call

        return with_closure(args, kwargs, looking)

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self._parameters.values()]

    def follow(self, measured: Mapping[str, float], *, first: bool) -> None:
        """The step at hand was measured: `measured` FSLRs, by tensor and depth group.

        first: whether the run had no measurement before.
        """
        if first:
            self.names = frozenset(name for name in self._parameters if measured.get(name) == 0.0)
        else:
            self.forget_moving()

    def forget_moving(self) -> None:
        """The tensors that move were tried, and are no longer waited for."""
        self.names -= self.moving


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The values of this rank's part of the gradient."""
    gradient = parameter.grad
    assert gradient is not None
    # `to_local` would detach each plain tensor, which takes longer than the norms of all.
    gradient = to_local(gradient) if isinstance(gradient, DTensor) else gradient
    return gradient.coalesce().values() if gradient.is_sparse else gradient
