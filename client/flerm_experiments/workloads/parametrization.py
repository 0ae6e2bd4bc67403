"""Parametrisations to compare with: how a wide model's weights begin, and which rate each takes, by width against the base's.

All three are the standard one at the base's own width, so that one base serves them all. With n = fan_in / the base's fan_in:

| | input weights, biases | hidden weights | readout weight |
|---|---|---|---|
| µP, Adam-like | η | η / n | η / n, initial variance 1/n smaller |
| µP, SGD | η · fan_out / base fan_out | η | η / n, initial variance 1/n smaller |
| neural-tangent, Adam-like | η | η / √n | η / √n |
| neural-tangent, SGD | η | η / n | η / n |

µP is Table 3 of Yang et al. 2022 (arXiv 2203.03466). The neural-tangent one writes a weight as w/√n and trains w at η
(Jacot et al. 2018): seen from the weight itself, that is a rate, and this is how it is done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from flerm_experiments.workloads.optimizers import NORMALISED, Groups


@dataclass(frozen=True, slots=True)
class Growth:
    """How a tensor's ends have grown against the base's: 1 for an end that is the data's."""

    fan_in: float
    fan_out: float

    @property
    def readout(self) -> bool:
        """Whether only the input grew: the outputs are the data's."""
        return self.fan_in > 1 and self.fan_out == 1


Rate = Callable[[Growth, bool], float]
"""`rate(growth, normalised)`: what η is multiplied by; `normalised` for Adam-like optimisers."""


def _mup(growth: Growth, normalised: bool) -> float:
    if normalised:
        return 1 / growth.fan_in
    return 1 / growth.fan_in if growth.readout else growth.fan_out / growth.fan_in


def _tangent(growth: Growth, normalised: bool) -> float:
    return 1 / (math.sqrt(growth.fan_in) if normalised else growth.fan_in)


PARAMETRIZATIONS: dict[str, Rate] = {"standard": lambda _, __: 1.0, "mup": _mup, "ntk": _tangent}


def apply(
    name: str,
    model: nn.Module,
    base: nn.Module,
    *,
    optimizer: str,
    lr: float,
    fixed: Callable[[str], float | None] = lambda _: None,
) -> Groups:
    """`model`'s parameter groups, one per rate, under parametrisation `name`; under µP its readout is made smaller, in place.

    `base` is the same architecture at the base's width (its values are not looked at). `fixed` gives tensors a rate of their
    own instead. Frozen parameters are in no group.
    """
    shapes = {_role(each): parameter.shape for each, parameter in base.named_parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for each, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = fixed(each)
        if own is not None:
            groups.setdefault(own, []).append(parameter)
            continue
        grown = _growth(parameter.shape, shapes[_role(each)], lookup=_is_lookup(model, each))
        if name == "mup" and grown.readout:
            with torch.no_grad():
                parameter.div_(math.sqrt(grown.fan_in))
        rate = PARAMETRIZATIONS[name](grown, optimizer in NORMALISED)
        groups.setdefault(lr * rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _growth(shape: torch.Size, base: torch.Size, *, lookup: bool) -> Growth:
    """[out, in] of a linear map, [in, out] of a lookup table, [out] of a bias."""
    ratios = [now / then for now, then in zip(shape, base, strict=True)]
    if len(ratios) == 1:
        return Growth(1.0, ratios[0])
    return Growth(ratios[0], ratios[1]) if lookup else Growth(ratios[1], ratios[0])


def _is_lookup(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)


def _role(name: str) -> str:
    """The name with every number starred: blocks beyond the base's have the shapes of its blocks."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))
