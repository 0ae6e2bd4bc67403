"""A small decoder, the ways to shard it, and the FSLRs that must be measured.

These are computed in one process on the union of the ranks' batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measured_models import build as build_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import draw_projection, generator_for, projection_scale
from flerm_core.measure.update.weight_update import WeightUpdate
from flerm_core.parameter_names import block_axes, depth_groups

RATE = 1e-3
SEED = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Decoder(nn.Module):
    """Its positions are the same for all examples. Its last bias has one element, on one rank."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(14, 8)
        self.places = nn.Embedding(6, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.RMSNorm(8)
        self.readout = nn.Linear(8, 14, bias=False)
        self.gain = nn.Linear(8, 1)
        if tied:
            self.readout.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.readout(x * torch.sigmoid(self.gain(x)))


class ParallelDecoder(Decoder):
    """Without positions and the last bias: its logits may stay sharded over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        del self.gain, self.places

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


def build(kind: type[Decoder] = Decoder, **options: Any) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).double()


def batch_of(rank: int, uneven: bool = False) -> Tensor:
    """[examples, 6] tokens of a data-parallel rank."""
    examples = 5 + (2 * rank if uneven else 0)
    return torch.randint(0, 14, (examples, 6), generator=torch.Generator().manual_seed(rank))


def model_and_batches(name: str, ranks: int) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """The model of a scenario, not sharded yet, and the batch of each data-parallel rank."""
    if name.startswith("gallery-"):
        case = build_model(name.removeprefix("gallery-"))
        return case.model, case.batch
    kind, options, _, _ = scenarios(ranks)[name]
    return build(kind, **options), lambda rank: batch_of(rank, "uneven" in name)


def steps_of(model: nn.Module) -> dict[str, Tensor]:
    """-ΔW of every tensor of a model that is not sharded yet, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(p.shape, dtype=p.dtype, generator=generator)
        for name, p in model.named_parameters()
    }


def take_step(parameters: dict[str, Any], steps: dict[str, Tensor]) -> WeightUpdate:
    """Moves sharded or whole `parameters` by their steps."""
    update = WeightUpdate(parameters)
    for name, parameter in parameters.items():
        step = steps[name]
        if hasattr(parameter, "device_mesh"):
            step = distribute_tensor(
                step, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        with torch.no_grad():
            parameter.add_(step, alpha=-RATE)
    update.rates = dict.fromkeys(parameters, RATE)
    return update


# How models are wrapped: name -> (model class options, wrap)


def world(*shape: int, names: tuple[str, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def fsdp_blocks(model: Any, mesh: DeviceMesh, **options: Any) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def fsdp_whole(model: Any, mesh: DeviceMesh) -> nn.Module:
    return fully_shard(model, mesh=mesh)


def fsdp_every_module(model: Any, mesh: DeviceMesh) -> nn.Module:
    for module in [m for m in model.modules() if not list(m.children())]:
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp_some(model: Any, mesh: DeviceMesh) -> nn.Module:
    """One block only: all else each rank holds whole, with gradients of its own."""
    fully_shard(model.blocks[0], mesh=mesh)
    return model


def fsdp_columns(model: Any, mesh: DeviceMesh) -> nn.Module:
    """Matrices are cut along their columns."""
    return fsdp_blocks(model, mesh, shard_placement_fn=lambda p: Shard(1) if p.ndim == 2 else None)


def fsdp_summed(model: Any, mesh: DeviceMesh) -> nn.Module:
    model = fsdp_blocks(model, mesh)
    for module in [model, *model.blocks]:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


def fsdp_accumulating(model: Any, mesh: DeviceMesh) -> nn.Module:
    model = fsdp_blocks(model, mesh)
    model.set_requires_gradient_sync(False)
    model.set_is_last_backward(False)
    model.set_reshard_after_backward(False)
    return model


def fsdp_frozen(model: Any, mesh: DeviceMesh) -> nn.Module:
    _freeze(model)
    return fsdp_blocks(model, mesh)


def _freeze(model: Any) -> None:
    model.embed.requires_grad_(False)
    model.blocks[1].up.bias.requires_grad_(False)


def tensor_parallel(
    model: Any, mesh: DeviceMesh, *, sequence: bool = False, vocabulary: bool = False
) -> nn.Module:
    along = Shard(1) if sequence else Replicate()
    plan: dict[str, Any] = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=along),
        "readout": ColwiseParallel(
            input_layouts=along,
            output_layouts=Shard(-1) if vocabulary else Replicate(),
            use_local_output=not vocabulary,
        ),
    }
    for i in range(len(model.blocks)):
        plan[f"blocks.{i}.up"] = ColwiseParallel(input_layouts=along)
        plan[f"blocks.{i}.down"] = RowwiseParallel(output_layouts=along)
        if sequence:
            plan[f"blocks.{i}.norm"] = SequenceParallel()
    if sequence:
        plan["norm"] = SequenceParallel()
        for i in range(len(model.blocks)):
            plan[f"blocks.{i}.up"] = ColwiseParallel(input_layouts=Shard(1))
    return parallelize_module(model, mesh, plan)


def tp_fsdp(model: Any, mesh: DeviceMesh, **options: Any) -> nn.Module:
    return fsdp_blocks(tensor_parallel(model, mesh["tp"], **options), mesh["dp"])


Wrap = Callable[[Any, DeviceMesh], nn.Module]
Scenario = tuple[type[Decoder], dict[str, Any], tuple[tuple[str, int], ...], Wrap]


def _dp(size: int) -> tuple[tuple[str, int], ...]:
    return (("dp", size),)


def scenarios(ranks: int) -> dict[str, Scenario]:
    """By name, those that run on that many ranks."""
    found = _fully_sharded(ranks) | _tensor_parallel(ranks)
    return found | _on_a_grid() if ranks == 4 else found


def _fully_sharded(ranks: int) -> dict[str, Scenario]:
    mesh = _dp(ranks)
    shardings: dict[str, Callable[[Any, Any], Any]] = {
        "blocks": fsdp_blocks,
        "kept": partial(fsdp_blocks, reshard_after_forward=False),
        "resharded": partial(fsdp_blocks, reshard_after_forward=True),
        "offloaded": partial(fsdp_blocks, offload_policy=CPUOffloadPolicy(pin_memory=False)),
        "every": fsdp_every_module,
        "columns": fsdp_columns,
        "some": fsdp_some,
        "summed": fsdp_summed,
        "accumulating": fsdp_accumulating,
        "frozen": fsdp_frozen,
        "uneven": fsdp_blocks,
    }
    found: dict[str, Scenario] = {
        name: (Decoder, {}, mesh, sharded) for name, sharded in shardings.items()
    }
    found["tied"] = (Decoder, {"tied": True}, mesh, fsdp_whole)
    for name in ("behind", "positions", "convolution"):
        found[f"gallery-{name}"] = (
            build_model(name).model.__class__,
            {},
            mesh,
            lambda m, mesh: fully_shard(m, mesh=mesh),
        )
    return found


def _tensor_parallel(ranks: int) -> dict[str, Scenario]:
    ways = {"tp": {}, "sequence": {"sequence": True}}
    ways["vocabulary"] = {"sequence": True, "vocabulary": True}
    return {
        name: (ParallelDecoder, {}, (("tp", ranks),), partial(tensor_parallel, **options))
        for name, options in ways.items()
    }


def _on_a_grid() -> dict[str, Scenario]:
    """Those of two by two ranks."""
    hybrid, grid = (("replicate", 2), ("shard", 2)), (("dp", 2), ("tp", 2))
    sequence = partial(tp_fsdp, sequence=True, vocabulary=True)
    return {
        "hsdp": (Decoder, {}, hybrid, fsdp_blocks),
        "hsdp-uneven": (Decoder, {}, hybrid, fsdp_blocks),
        "fsdp-tp": (ParallelDecoder, {}, grid, tp_fsdp),
        "fsdp-sequence": (ParallelDecoder, {}, grid, sequence),
    }


# What must come out


def together(name: str, estimator: str, ranks: int, measurements: int = 1) -> dict[str, float]:
    """What the ranks of a scenario must measure in one draw.

    measurements: which measurement it is; of the estimators on Z the first only.
    """
    model, batch = model_and_batches(name, ranks)
    if name == "frozen":
        _freeze(model)
    replicas = math.prod(size for axis, size in scenarios(ranks)[name][2] if axis != "tp")
    batches = [batch(rank) for rank in range(replicas)]
    if estimator in ("kronecker", "iid", "full"):
        whole = {other for other, _ in model.named_parameters() if not other.startswith("blocks.0")}
        return _of_z(model, estimator, batches, whole if name == "some" else set())
    return _of_ranks(model, estimator, batches, measurements)


def _of_ranks(
    model: nn.Module, estimator: str, batches: list[Tensor], measurements: int
) -> dict[str, float]:
    """Estimators whose squares add up over examples: one process measures for each rank in turn."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    update = take_step(parameters, steps_of(model))
    names, shapes = list(parameters), [tuple(p.shape) for p in parameters.values()]
    groups = {
        group: tuple(members)
        for group, members in depth_groups(names, block_axes(names, shapes)).items()
    }
    measured_model = MeasuredModel(model, parameters, lambda model, batch: model(batch), groups)
    squares: dict[str, float] = {}
    for rank, batch in enumerate(batches):
        meter = FSLRMeter(
            measured_model,
            make_estimator(estimator, measured_model),
            single_process_as(rank),
            seed=SEED,
        )
        for _ in range(measurements):
            found = meter.measure(update, iter([batch]), 1)
        for tensor, value in found.items():
            squares[tensor] = squares.get(tensor, 0.0) + value**2 * len(batch)
    return {
        tensor: math.sqrt(square / sum(map(len, batches))) for tensor, square in squares.items()
    }


def _of_z(
    model: nn.Module, estimator: str, batches: list[Tensor], apart: set[str]
) -> dict[str, float]:
    """Estimators on Z: one φ over the union of the batches.

    apart: tensors whose gradients are never reduced. Each rank has a φ of its own for them.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    changes = {name: -step for name, step in steps_of(model).items()}
    gradients: dict[str, list[Tensor]] = {name: [] for name in parameters}
    count = 0
    for rank, batch in enumerate(batches):
        outputs = model(batch)
        generator = generator_for(torch.device("cpu"), SEED, 0, 0, rank)
        omega = draw_projection(outputs, generator, sums_examples=True)
        omega = omega / projection_scale(outputs)
        for name, g in zip(
            parameters, torch.autograd.grad(outputs, list(parameters.values()), omega), strict=True
        ):
            gradients[name].append(g)
        count += outputs.numel()
    result = {}
    for name, found in gradients.items():
        zs = [changes[name] * g for g in found] if name in apart else [changes[name] * sum(found)]
        result[name] = _fslr(estimator, zs, count)
    return result


def _fslr(estimator: str, zs: list[Tensor], count: int) -> float:
    if estimator == "full":
        return math.sqrt(sum(z.sum().square().item() for z in zs) / count)
    total = sum(z.square().sum().item() for z in zs) / count
    if estimator == "iid":
        return math.sqrt(total)
    by_dimension = [
        sum(z.sum(d).square().sum().item() for z in zs) / count for d in range(zs[0].ndim)
    ]
    return math.sqrt(math.prod(by_dimension) / total ** (len(by_dimension) - 1))


def single_process_as(rank: int) -> MeasurementRanks:
    """One process that draws what data-parallel rank `rank` of many would draw."""
    return MeasurementRanks(single_process=True, data_parallel_rank=rank)
