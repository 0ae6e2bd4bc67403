"""Whether an optimiser's update is proportional to its rate, and which settings shape it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from flerm_client.training.proportional_step import ALLOWED, disproportion, group_rate
from flerm_core.errors import InvalidInput, Unsupported

# By class name, looked for in the whole ancestry: most of these classes are in packages that need
# not be installed. What holds for a whole class is refused by its name.
_REFUSED = {
    "ZeroRedundancyOptimizer": "each rank steps only its own part of the parameters; "
    "use FSDP2 (fully_shard) instead",
    "DeepSpeedOptimizer": "it keeps the parameters in flat partitions of its own; "
    "use FSDP2 (fully_shard)",
}

# Why a step is not proportional to its rate, where the trial finds that, or cannot be made.
_REASONS = {
    "LBFGS": "it chooses its step lengths by itself and has one rate for all tensors",
    "Rprop": "its step sizes adapt by themselves and ignore the learning rate after the first step",
    "ASGD": "its step is not proportional to its learning rate",
    "Adafactor": "it scales its step by a schedule of its own; transformers' Adafactor with "
    "relative_step=False and a rate can be",
    "AdamWScheduleFree": "its weights are an average that moves between steps; use the plain AdamW",
    "SGDScheduleFree": "its weights are an average that moves between steps; use the plain SGD",
    "RAdamScheduleFree": "its weights are an average that moves between steps; use the plain RAdam",
    "DAdaptAdam": "it sets its own learning rate",
    "DAdaptSGD": "it sets its own learning rate",
    "DAdaptAdaGrad": "it sets its own learning rate",
    "DAdaptLion": "it sets its own learning rate",
    "Prodigy": "it sets its own learning rate",
}

BASE_BETAS = "base_betas"
"""The key of a parameter group under which `batch_moments` keeps the base's betas.

An optimiser's checkpoint holds them too, so a resumed run does not change betas a second time.
"""

# Settings that do not change the update at learning rate 1: they say how fast or where a step is
# computed, or set the learning rate itself.
_IMPLEMENTATION = {
    "params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable",
    "max_lr", "min_lr", "max_momentum", "base_momentum", BASE_BETAS,
}  # fmt: skip


def bare_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimiser inside wrappers that pass `step` on to it.

    Such wrappers are accelerate's, and sharpness-aware minimisers. Raises `Unsupported` for an
    optimiser that cannot be measured, `InvalidInput` for anything that is no optimiser.
    """
    _refuse(optimizer)
    while not type(optimizer).__module__.startswith("torch.optim"):
        # Found by its type: accelerate calls the attribute `optimizer`, sharpness-aware minimisers
        # `base_optimizer`.
        inner = {
            id(each): each
            for each in getattr(optimizer, "__dict__", {}).values()
            if isinstance(each, Optimizer)
        }
        if len(inner) != 1:
            break
        optimizer = next(iter(inner.values()))
        _refuse(optimizer)
    if not isinstance(optimizer, Optimizer):
        raise InvalidInput(
            f"optimizer is a {type(optimizer).__name__}; "
            "allowed is a torch.optim.Optimizer or a sequence of them"
        )
    if (
        any(group.get("capturable") for group in optimizer.param_groups)
        and torch.cuda.is_available()
    ):
        raise Unsupported(
            "an optimiser with capturable=True may run inside a CUDA graph, "
            "where its rates cannot be set; turn it off"
        )
    _refuse_disproportionate(optimizer)
    return optimizer


def _refuse(optimizer: object) -> None:
    reason = _reason(optimizer, _REFUSED)
    if reason:
        raise Unsupported(f"{type(optimizer).__name__} cannot be measured or matched: {reason}")


def _refuse_disproportionate(optimizer: Optimizer) -> None:
    """Raises `Unsupported` where a step does not scale with the rate of its own tensor.

    A class that cannot be tried is refused where its name is known, else taken.
    """
    apart = disproportion(optimizer)
    known = _reason(optimizer, _REASONS)
    if (apart is None and known) or (apart is not None and apart > ALLOWED):
        reason = known or (
            "its step is not proportional to its learning rate, tensor by tensor "
            "(tried at 1/64 of the rate)"
        )
        raise Unsupported(
            f"{type(optimizer).__name__} cannot be measured or matched: {reason}; "
            "use an optimizer such as AdamW"
        )


def _reason(optimizer: object, reasons: Mapping[str, str]) -> str:
    names = (kind.__name__ for kind in type(optimizer).__mro__)
    return next((reasons[name] for name in names if name in reasons), "")


def initial_rate(optimizers: list[Optimizer]) -> float:
    """The one learning rate that all parameter groups began with.

    Raises `InvalidInput` when there are several.
    """
    rates = initial_rates(optimizers)
    if len(rates) != 1:
        listed = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise InvalidInput(
            "lr= must be given: the parameter groups begin with different learning rates "
            f"({listed})"
        )
    return rates.pop()


def initial_rates(optimizers: list[Optimizer]) -> set[float]:
    """The learning rates that the parameter groups began with."""
    return {group_rate(group) for each in optimizers for group in each.param_groups}


def initial_rates_by_tensor(
    optimizers: list[Optimizer], names: Mapping[int, str]
) -> dict[str, float]:
    """The learning rate that each tensor's group began with. names: by the id of the parameter."""
    return {
        names[id(parameter)]: group_rate(group)
        for each in optimizers
        for group in each.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }


def describe(
    optimizers: list[Optimizer], *, independent_decay: bool = False
) -> tuple[str, dict[str, Any]]:
    """The optimisers' class name(s), and every setting that shapes the update at learning rate 1.

    A setting that differs between groups is a list of its values. What a group holds besides its
    class's arguments (the class's own state, a user's label) is no setting.

    independent_decay: the decay is no part of the measured update, as the setting
        `weight_decay_mode` then says.
    """
    name = "+".join(type(each).__name__ for each in optimizers)
    values: dict[str, list[Any]] = {}
    for each in optimizers:
        arguments = inspect.signature(type(each)).parameters
        anything = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
        for group in each.param_groups:
            settings = group.keys() if anything else group.keys() & arguments.keys()
            for key in settings - _IMPLEMENTATION:
                plain = _plain(group[key])
                if plain not in values.setdefault(key, []):
                    values[key].append(plain)
    if independent_decay:
        values["weight_decay_mode"] = ["independent"]
    return name, {
        key: found[0] if len(found) == 1 else found for key, found in sorted(values.items())
    }


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
