"""Trains a sharded decoder in several ways, plain and measured; every rank reports what it saw."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed import sharded
from distributed.rank import begin, report
from measured_runs import Trace, loss_of, same, trained
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from flerm_client import FLeRM

STEPS = 5
begin()
rank = dist.get_rank()
mesh = sharded.world(dist.get_world_size(), names=("dp",))
tensor_mesh = sharded.world(dist.get_world_size(), names=("tp",))
folder = os.environ["FLERM_TEST_FOLDER"]


def local(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.to_local().detach().clone()
    if isinstance(value, dict):
        return {key: local(item) for key, item in value.items()}
    return [local(item) for item in value] if isinstance(value, list) else value


class Noisy(sharded.Decoder):
    """With dropout, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.dropout(super().forward(tokens), 0.1)


def begin_run(
    kind: type = Noisy, wrap: Any = sharded.fsdp_blocks, on: Any = mesh
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = wrap(sharded.build(kind).float(), on)
    return model, torch.optim.AdamW(model.parameters(), 1e-2)


def probe(own: int = rank) -> list[Tensor]:
    return [sharded.batch_of(20 + 5 * own + i) for i in range(4)]


def steps(model: Any, optimizer: Any, first: int, last: int, own: int = rank) -> list[float]:
    return trained(
        model, optimizer, [sharded.batch_of(100 + 10 * step + own) for step in range(first, last)]
    )


def accumulating(model: Any) -> Any:
    """The model; before each training batch another one leaves unreduced gradients."""

    def call(tokens: Tensor) -> Tensor:
        model.set_requires_gradient_sync(False)
        loss_of(model(13 - tokens)).backward()
        model.set_requires_gradient_sync(True)
        return model(tokens)

    return call


def left(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> Trace:
    trace = Trace(losses)
    trace.state["model"] = local(dict(model.state_dict()))
    trace.state["grad"] = {name: local(p.grad) for name, p in model.named_parameters()}
    trace.state["optimizer"] = local(optimizer.state_dict())
    trace.state["random"] = torch.get_rng_state()
    return trace


def no_trace(estimator: str, **options: Any) -> bool:
    """Whether a recording run is bit for bit the plain one."""

    def run(record: bool) -> Trace:
        torch.manual_seed(rank)
        wrap = options.get("wrap", sharded.fsdp_blocks)
        model, optimizer = begin_run(options.get("kind", Noisy), wrap, options.get("on", mesh))
        heard: list[Tensor] = []
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(
                heard.append
            )  # an optimiser that steps in backward would hear so
        if record:
            flerm = FLeRM.record(
                model,
                optimizer,
                probe=probe(own),
                family="f",
                every=2,
                warmup=2,
                estimator=estimator,
            )
        losses = steps(options.get("called", lambda model: model)(model), optimizer, 0, STEPS, own)
        if record:
            assert flerm.trajectory.steps.tolist() == [1, 3, 5]
            assert flerm.estimator == estimator
        trace = left(model, optimizer, losses)
        trace.state["heard"] = len(heard)
        return trace

    own = options.get("own", rank)
    return same(run(False), run(True))


def matched(kind: type, wrap: Any, on: Any, own: int) -> dict[str, Any]:
    """A matched run, and a plain one at the rates that it found, from the first step on."""
    model, optimizer = begin_run(kind, wrap, on)
    targets = dict.fromkeys([name for name, _ in model.named_parameters()], 1.0)
    flerm = FLeRM.match(model, optimizer, probe=probe(own), family="f", targets=targets)
    steps(model, optimizer, 0, STEPS, own)
    twin, _ = begin_run(kind, wrap, on)
    groups = [
        {"params": [p], "lr": 1e-2 * flerm.multipliers[name]} for name, p in twin.named_parameters()
    ]
    plain = torch.optim.AdamW(groups, 1e-2)
    steps(twin, plain, 0, STEPS, own)
    weights = {
        name: p.full_tensor().detach() if isinstance(p, DTensor) else p.detach()
        for name, p in model.named_parameters()
    }
    others = {
        name: p.full_tensor().detach() if isinstance(p, DTensor) else p.detach()
        for name, p in twin.named_parameters()
    }
    return {
        "multipliers": flerm.multipliers,
        "fslr": flerm.fslr,
        "weights": weights,
        "plain": others,
    }


def resumed() -> dict[str, Any]:
    """A run that resumes at step 3 from a distributed checkpoint, and one that does not stop."""
    options: dict[str, Any] = {"family": "f", "every": 2, "warmup": 2}
    targets = dict.fromkeys([name for name, _ in sharded.build().named_parameters()], 1.0)

    def begin_matched() -> tuple[Any, Any, FLeRM]:
        model, optimizer = begin_run(sharded.Decoder)
        return (
            model,
            optimizer,
            FLeRM.match(model, optimizer, probe=probe(), targets=targets, **options),
        )

    model, optimizer, flerm = begin_matched()
    losses = steps(model, optimizer, 0, STEPS)
    first, first_optimizer, first_flerm = begin_matched()
    steps(first, first_optimizer, 0, 3)
    saved = {"model": first.state_dict(), "flerm": first_flerm}
    at_checkpoint = first_flerm.multipliers
    checkpoint.save(saved, checkpoint_id=f"{folder}/checkpoint")
    optimizer_state = first_optimizer.state_dict()
    second, second_optimizer, second_flerm = begin_matched()
    state = {"model": second.state_dict(), "flerm": second_flerm}
    checkpoint.load(state, checkpoint_id=f"{folder}/checkpoint")
    second.load_state_dict(state["model"])
    second_optimizer.load_state_dict(optimizer_state)
    again = steps(second, second_optimizer, 3, STEPS)
    return {
        "losses": (losses[3:], again),
        "multipliers": (flerm.multipliers, second_flerm.multipliers),
        "steps": second_flerm.trajectory.steps.tolist(),
        "at checkpoint": at_checkpoint,
        "id": (first_flerm.recording_id, second_flerm.recording_id),
    }


def checkpointed(model: Any, on: Any) -> nn.Module:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block, CheckpointImpl.NO_REENTRANT)
    return sharded.fsdp_blocks(model, on)


def mixed(model: Any, on: Any) -> nn.Module:
    return sharded.fsdp_blocks(
        model, on, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    )


results: dict[str, Any] = {
    f"no trace, {name}": no_trace(name) for name in ("example", "kronecker", "exact")
}
results["no trace, accumulating"] = no_trace("kronecker", called=accumulating)
results["no trace, mixed precision"] = no_trace("example", wrap=mixed)
results["no trace, checkpointed"] = no_trace("example", wrap=checkpointed) and no_trace(
    "kronecker", wrap=checkpointed
)
parallel: Any = {
    "kind": sharded.ParallelDecoder,
    "wrap": sharded.tensor_parallel,
    "on": tensor_mesh,
    "own": 0,
}
results["no trace, tensor parallel"] = no_trace("example", **parallel) and no_trace(
    "kronecker", **parallel
)
results["fsdp"] = matched(sharded.Decoder, sharded.fsdp_blocks, mesh, rank)
results["tp"] = matched(sharded.ParallelDecoder, sharded.tensor_parallel, tensor_mesh, 0)
results["resumed"] = resumed()
report(results)
dist.destroy_process_group()
