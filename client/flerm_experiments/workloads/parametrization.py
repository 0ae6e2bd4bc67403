"""Parametrisations to compare matching with.

Each gives initial weights and learning rates as functions of width.

All three equal the standard one at the base's own width, so that one base serves them all. With
n = fan_in / the base's fan_in:

| | input weights, biases | hidden weights | readout weight |
|---|---|---|---|
| µP, Adam-like | η | η / n | η / n, initial variance 1/n smaller |
| µP, SGD | η · fan_out / base fan_out | η | η / n, initial variance 1/n smaller |
| neural-tangent, Adam-like | η | η / √n | η / √n |
| neural-tangent, SGD | η | η / n | η / n |

µP is Table 3 of Yang et al. 2022 (arXiv 2203.03466). The neural-tangent parametrisation writes a
weight as w/√n and trains w at η (Jacot et al. 2018). For the weight itself this is another learning
rate, which is what is set here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from flerm_core.parameter_names import starred
from flerm_experiments.workloads.optimizers import GRADIENT_NORMALISED, ParamGroups


@dataclass(frozen=True, slots=True)
class FanGrowth:
    """A tensor's fan-in and fan-out divided by the base's; 1 for an end that is the data's."""

    fan_in: float
    fan_out: float

    @property
    def readout(self) -> bool:
        """Whether only the fan-in grew, because the outputs are the data's."""
        return self.fan_in > 1 and self.fan_out == 1


RateMultiplier = Callable[[FanGrowth, bool], float]
"""`rate(growth, normalised)`: the factor on η. `normalised` is true for Adam-like optimisers."""


def _mup(growth: FanGrowth, normalised: bool) -> float:
    if normalised:
        return 1 / growth.fan_in
    return 1 / growth.fan_in if growth.readout else growth.fan_out / growth.fan_in


def _neural_tangent(growth: FanGrowth, normalised: bool) -> float:
    return 1 / (math.sqrt(growth.fan_in) if normalised else growth.fan_in)


PARAMETRIZATIONS: dict[str, RateMultiplier] = {
    "standard": lambda _, __: 1.0,
    "mup": _mup,
    "ntk": _neural_tangent,
}


def parameter_groups(
    name: str,
    model: nn.Module,
    base: nn.Module,
    *,
    optimizer: str,
    lr: float,
    fixed: Callable[[str], float | None] = lambda _: None,
) -> ParamGroups:
    """The parameter groups of `model` under parametrisation `name`, one for each learning rate.

    Under µP the readout's weights are made smaller in place. Frozen parameters are in no group.

    name: of `PARAMETRIZATIONS`.
    base: the same architecture at the base's width; only its shapes are read.
    optimizer: of `OPTIMIZERS`.
    lr: η.
    fixed: tensor name to a learning rate of its own, or None.
    """
    # Blocks beyond the base's number have the shapes of the base's blocks.
    shapes = {starred(each): parameter.shape for each, parameter in base.named_parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for each, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = fixed(each)
        if own is not None:
            groups.setdefault(own, []).append(parameter)
            continue
        grown = _fan_growth(
            parameter.shape, shapes[starred(each)], lookup=_is_embedding(model, each)
        )
        if name == "mup" and grown.readout:
            with torch.no_grad():
                parameter.div_(math.sqrt(grown.fan_in))
        rate = PARAMETRIZATIONS[name](grown, optimizer in GRADIENT_NORMALISED)
        groups.setdefault(lr * rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _fan_growth(shape: torch.Size, base: torch.Size, *, lookup: bool) -> FanGrowth:
    """Shapes are [out, in] of a linear map, [in, out] of an embedding, [out] of a bias."""
    ratios = [now / then for now, then in zip(shape, base, strict=True)]
    if len(ratios) == 1:
        return FanGrowth(1.0, ratios[0])
    return FanGrowth(ratios[0], ratios[1]) if lookup else FanGrowth(ratios[1], ratios[0])


def _is_embedding(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
