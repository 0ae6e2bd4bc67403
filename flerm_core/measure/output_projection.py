"""φ = Σ ω_nk f_nk / √(NK) (Eq. 3): the random projection of the outputs, and the randomness behind it.

Only ∂φ/∂f = ω / √(NK) is ever needed, so φ itself is not formed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from flerm_core.errors import MeasurementError


def seed_from(*coordinates: int) -> int:
    """A 63-bit seed for a place in a run: (seed, measurement, draw, data-parallel rank). Neighbouring places share nothing."""
    text = ",".join(map(str, coordinates)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator_for(device: torch.device, *coordinates: int) -> torch.Generator:
    """A generator of its own for a place in a run: never the global one."""
    return torch.Generator(device=device).manual_seed(seed_from(*coordinates))


def draw_projection(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """∂φ/∂f, shaped like `outputs` [N, ...]: ω = ±1, times `projection_scale(outputs)`.

    Of ω the estimators need independent elements of mean 0 and variance 1. Signs have the smallest fourth moment:
    Var c_n² = 2 (Σ_k Δ_k²)² − 2 Σ_k Δ_k⁴, against 2 (Σ_k Δ_k²)² for normal ω (docs/estimators.md has what that gave).
    Outputs sharded over ranks take their slices of one draw, which is the same on these ranks.
    """
    unit = projection_scale(outputs)
    direction = _bits(outputs.shape, generator).to(outputs.dtype).mul_(2.0 * unit).sub_(unit)
    if isinstance(outputs, DTensor):
        whole = [
            Replicate() if placement.is_partial() else placement for placement in outputs.placements
        ]
        return distribute_tensor(direction, outputs.device_mesh, whole, src_data_rank=None)
    return direction


def _bits(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """0 or 1 with equal chance, int32: 31 of them from each random number, a tenth of the time of one each."""
    count = shape.numel()
    words = torch.empty(-(-count // 31), dtype=torch.int32, device=generator.device).random_(
        generator=generator
    )
    places = torch.arange(31, dtype=torch.int32, device=generator.device)
    return (words.unsqueeze(1) >> places).bitwise_and_(1).reshape(-1)[:count].reshape(shape)


def projection_scale(outputs: Tensor) -> float:
    """What stands for 1/√(NK) in this process: a power of two next to it, so that nothing is rounded. Estimators divide by it.

    In float16 it is next to the root of that: 1/√(NK) itself would be lost among the subnormal numbers on the way back through
    the model, and 1 would overflow in the sums over examples.
    """
    share = 4 if outputs.dtype == torch.float16 else 2
    return 2.0 ** -round(math.log2(max(outputs.numel(), 1)) / share)


def as_output(value: Any) -> Tensor:
    """The tensor f in what a model returns: itself, the attribute or key `logits`, or the only floating-point tensor there.

    Raises `MeasurementError` when there is none or more than one, or when it is a scalar (dimension 0 counts examples).
    """
    if isinstance(value, Tensor):
        found = value
    else:
        logits = (
            value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)
        )
        candidates = [logits] if isinstance(logits, Tensor) else floating_tensors(value)
        if len(candidates) != 1:
            raise MeasurementError(
                f"the model returns a {type(value).__name__} with {len(candidates)} floating-point tensors: "
                "say which one is the output with output=lambda model, batch: ..."
            )
        found = candidates[0]
    if not found.is_floating_point():
        raise MeasurementError(f"the output has dtype {found.dtype}: it must be floating point")
    if found.ndim == 0:
        raise MeasurementError("the output has no dimensions: dimension 0 must count examples")
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def floating_tensors(value: Any) -> list[Tensor]:
    """Those of `tensors_in` that can move continuously."""
    return [t for t in tensors_in(value) if t.is_floating_point()]
