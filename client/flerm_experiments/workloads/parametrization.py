"""Parametrisations to compare matching with: standard, µP and neural-tangent.

A parametrisation gives each tensor's learning rate and initial variance as functions of width. At
the base's width all three are the same, so one base model serves all of them. With n = fan_in / the
base's fan_in, and η the learning rate of the run:

| | input weights, biases | hidden weights | readout weight |
|---|---|---|---|
| standard | η | η | η |
| µP, Adam-like | η | η / n | η / n, initial variance divided by n |
| µP, SGD | η · fan_out / base fan_out | η | η / n, initial variance divided by n |
| neural-tangent, Adam-like | η | η / √n | η / √n |
| neural-tangent, SGD | η | η / n | η / n |

µP is Table 3 of Yang et al. 2022 (arXiv 2203.03466). The neural-tangent parametrisation writes a
weight as w/√n and trains w at η (Jacot et al. 2018). The models here hold the whole weight w/√n.
The table has the learning rates at which this weight moves as it would by training w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from flerm_core.parameter_names import starred
from flerm_experiments.workloads.optimizers import (
    BLOCK_MATRICES,
    BLOCKWISE,
    GRADIENT_NORMALISED,
    ParamGroups,
)


@dataclass(frozen=True, slots=True)
class FanGrowth:
    """A tensor's fan-in and fan-out, each divided by that of the base's tensor.

    The fan-in of input weights and the fan-out of the readout are sizes of the data. Their ratio
    is 1, and so is the fan-in ratio of a bias.
    """

    fan_in: float
    fan_out: float

    @property
    def readout(self) -> bool:
        """Whether the tensor is the readout's weight: its fan-in grew and its fan-out did not."""
        return self.fan_in > 1 and self.fan_out == 1


RateMultiplier = Callable[[FanGrowth, bool], float]
"""A function (growth, normalised) that gives the factor on η of a tensor.

`normalised` is true for the optimisers in `GRADIENT_NORMALISED`."""


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

    Under µP, the readout's weight is divided by √n in place. Frozen parameters are in no group.
    For an optimiser in `BLOCKWISE`, the matrices of the repeated blocks have groups of their own.

    name: a key of `PARAMETRIZATIONS`.
    model: the model that is trained.
    base: a model of the same architecture at the base's width. Only its shapes are read.
    optimizer: a key of `OPTIMIZERS`.
    lr: η.
    fixed: gives the fixed learning rate of a tensor by name; None for a tensor without one.
    """
    # Blocks beyond the base's number have the shapes of the base's blocks.
    shapes = {starred(each): parameter.shape for each, parameter in base.named_parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for each, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = fixed(each)
        if own is not None:
            groups.setdefault((own, False), []).append(parameter)
            continue
        grown = _fan_growth(
            parameter.shape, shapes[starred(each)], lookup=_is_embedding(model, each)
        )
        if name == "mup" and grown.readout:
            with torch.no_grad():
                parameter.div_(math.sqrt(grown.fan_in))
        rate = PARAMETRIZATIONS[name](grown, optimizer in GRADIENT_NORMALISED)
        apart = optimizer in BLOCKWISE and is_block_matrix(each, parameter)
        groups.setdefault((lr * rate, apart), []).append(parameter)
    return [
        {"params": parameters, "lr": rate}
        | ({BLOCK_MATRICES: apart} if optimizer in BLOCKWISE else {})
        for (rate, apart), parameters in groups.items()
    ]


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether the tensor called `name` is a matrix of one of a model's repeated blocks."""
    return parameter.ndim == 2 and starred(name) != name


def _fan_growth(shape: torch.Size, base: torch.Size, *, lookup: bool) -> FanGrowth:
    """The growth from shape `base` to `shape`.

    A linear map has shape [out, in], an embedding [in, out], a bias or a norm's gain [out].

    lookup: whether the tensor is an embedding.
    """
    ratios = [now / then for now, then in zip(shape, base, strict=True)]
    if len(ratios) == 1:
        return FanGrowth(1.0, ratios[0])
    return FanGrowth(ratios[0], ratios[1]) if lookup else FanGrowth(ratios[1], ratios[0])


def _is_embedding(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
