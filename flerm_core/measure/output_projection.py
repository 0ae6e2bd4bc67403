"""φ = 1/√(NK) Σ ω_nk f_nk (Eq. 3): the random projection of the outputs, and its random numbers.

Only ∂φ/∂f = ω/√(NK) is needed, so φ itself is never formed.
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

_FEW = 1 << 20  # outputs, up to which normal numbers take little time
_BITS = 31  # in an int32 that is not negative


def seed_from(*coordinates: int) -> int:
    """A 63-bit seed for a point of a run: (seed, measurement, draw, data-parallel rank).

    It is a hash, so the streams of neighbouring points are unrelated.
    """
    text = ",".join(map(str, coordinates)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator_for(device: torch.device, *coordinates: int) -> torch.Generator:
    """A generator of its own for a point of a run, so that the global ones are not used."""
    return torch.Generator(device=device).manual_seed(seed_from(*coordinates))


def draw_projection(
    outputs: Tensor, generator: torch.Generator, *, sums_examples: bool = False
) -> Tensor:
    """∂φ/∂f, shaped like `outputs` [N, ...]: ω, ±1 or normal, times `projection_scale(outputs)`.

    The estimators need elements of ω that are independent, of mean 0 and variance 1. Signs have the
    smallest fourth moment of all such: Var c_n² = 2 (Σ_k Δ_k²)² − 2 Σ_k Δ_k⁴, where normal ω (Eq.
    3) have 2 (Σ_k Δ_k²)². docs/estimators.md has the measured gain.

    sums_examples: whether samples are sums over examples. Equal examples with signs may cancel in
        them: of 8 ones in 27 % of all draws, and the bias of a single output would count as
        unmeasured. So ω is then normal, unless outputs are so many that this hardly happens.

    Ranks that share sharded outputs take their slices of one draw, from equal generators.
    """
    scale = projection_scale(outputs)
    if sums_examples and outputs.numel() <= _FEW:
        normal = torch.randn(
            outputs.shape, generator=generator, device=generator.device, dtype=torch.float32
        )
        direction = normal.to(outputs.dtype).mul_(scale)
    else:
        direction = _random_bits(outputs.shape, generator).to(outputs.dtype)
        direction = direction.mul_(2.0 * scale).sub_(scale)
    if isinstance(outputs, DTensor):
        placements = [Replicate() if p.is_partial() else p for p in outputs.placements]
        return distribute_tensor(direction, outputs.device_mesh, placements, src_data_rank=None)
    return direction


def _random_bits(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """0 or 1 with equal chance, int32.

    Each random number gives 31 of them, which takes a tenth of the time of one number each.
    """
    count = shape.numel()
    numbers = torch.empty(-(-count // _BITS), dtype=torch.int32, device=generator.device)
    numbers.random_(generator=generator)
    shifts = torch.arange(_BITS, dtype=torch.int32, device=generator.device)
    bits = (numbers.unsqueeze(1) >> shifts).bitwise_and_(1)
    return bits.reshape(-1)[:count].reshape(shape)


def projection_scale(outputs: Tensor) -> float:
    """What stands for 1/√(NK) in a backward pass; estimators divide it out again.

    It is the power of two next to 1/√(NK), so that no multiplication by it rounds. In float16 it is
    next to (NK)^(-1/4): 1/√(NK) would be lost among the subnormal numbers on the way back through
    the model, and 1 would overflow in the sums over examples.
    """
    root = 4 if outputs.dtype == torch.float16 else 2
    return 2.0 ** -round(math.log2(max(outputs.numel(), 1)) / root)


def as_output(value: Any) -> Tensor:
    """The output tensor f in what a model returns.

    That is the value itself, its attribute or key `logits`, or its only floating-point tensor.
    Raises `MeasurementError` where there is none or more than one, where it is not floating point,
    or where it has no dimension 0 to count examples.
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
                f"the model returns a {type(value).__name__} with {len(candidates)} floating-point "
                "tensors: say which one is the output with output=lambda model, batch: ..."
            )
        found = candidates[0]
    if not found.is_floating_point():
        raise MeasurementError(f"the output has dtype {found.dtype}: it must be floating point")
    if found.ndim == 0:
        raise MeasurementError("the output has no dimensions: dimension 0 must count examples")
    return found


def holds_tensors(value: Any) -> bool:
    """Whether `tensors_in` looks into `value`, an object."""
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return is_dataclass or isinstance(value, Mapping | list | tuple)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif not holds_tensors(value):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    else:
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def floating_tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors among `tensors_in(value)`, through which gradients can flow."""
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]
