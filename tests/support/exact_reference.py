"""The exact FSLR, computed independently: forward-mode J·ΔW in float64 (Eq. 1 and 2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from flerm_core.measure.update.weight_update import WeightUpdate


def exact_fslr(
    model: nn.Module, changes: Mapping[str, Tensor], batches: Iterable[Any]
) -> dict[str, float]:
    """√(mean over n, k of (Δ_ℓ f_nk)²) for every ΔW in `changes` [alone], over all `batches`."""
    model = copy.deepcopy(model)
    batches = list(batches)
    result = {}
    for name, change in changes.items():
        squares, count = 0.0, 0
        for batch in batches:
            point = {name: model.get_parameter(name).detach()}

            def function(parameters: dict[str, Tensor], batch: Any = batch) -> Tensor:
                buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
                return functional_call(model, parameters | buffers, (batch,))

            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                moved = jvp(function, (point,), ({name: change},))[1]
            squares += moved.double().square().sum().item()
            count += moved.numel()
        result[name] = (squares / count) ** 0.5
    return result


def squares_by_differences(
    old: nn.Module,
    changes: Mapping[str, Tensor],
    batch: Tensor,
    output: Callable[[Any], Tensor] = lambda found: found,
) -> dict[str, tuple[float, float]]:
    """FSLR² of each tensor over `batch`, and the standard error of one draw of `example` on it.

    By central differences of whole forwards in float64, for models without forward mode. With
    c_n = Σ_k ω_nk δ_nk, Σ c_n² has the variance 2 Σ |δ_n|⁴. The model, at the weights before the
    step, is made float64 and put in eval mode, where power iterations stand still.
    """
    model = old.double().eval()
    inputs = batch.double() if batch.is_floating_point() else batch
    found = {}
    for name, change in changes.items():
        parameter = model.get_parameter(name)
        start, sides = parameter.detach().clone(), []
        norm = change.double().norm().item() or 1.0
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter.copy_(start + change.double() * (step / norm))
                sides.append(output(model(inputs)).double())
                parameter.copy_(start)
        moved = (sides[0] - sides[1]).flatten(1) * (norm / 2e-4)
        squares = moved.square().sum(1)
        error = math.sqrt(2 * squares.square().sum().item())
        found[name] = (squares.sum().item() / moved.numel(), error / moved.numel())
    return found


def random_update(
    model: nn.Module, *, rate: float = 1e-3, seed: int = 7
) -> tuple[WeightUpdate, dict[str, Tensor]]:
    """Takes a random step. Returns its WeightUpdate, and ΔW at learning rate 1 by name."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    update = WeightUpdate(parameters)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for parameter in parameters.values():
            step = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
            parameter.add_(step, alpha=-rate)
    update.rates = dict.fromkeys(parameters, rate)
    return update, {name: (p.detach() - before[name]) / rate for name, p in parameters.items()}


def at_old(model: nn.Module, changes: Mapping[str, Tensor], rate: float = 1e-3) -> nn.Module:
    """A copy of the model before the step of `random_update`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.sub_(changes[name], alpha=rate)
    return model
