"""The training loop of all workloads: plain, recording or matching, in one process or under DDP."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from flerm_client.flerm import FLeRM
from flerm_client.training.run_log import final_loss
from flerm_client.training.weight_decay import DECAYS
from flerm_core._warnings import register_caller_package
from flerm_core.errors import FlermError, InvalidInput
from flerm_core.run_clock import CLOCKS
from flerm_core.trajectory import Trajectory
from flerm_experiments.workloads import Scale, Workload, workload_named
from flerm_experiments.workloads.batch_rules import BATCH_RULES, FOLLOWED
from flerm_experiments.workloads.held_norms import HeldNorms
from flerm_experiments.workloads.optimizers import OPTIMIZERS, SCHEDULES
from flerm_experiments.workloads.parametrization import PARAMETRIZATIONS, parameter_groups
from flerm_experiments.workloads.process_group import TrainingProcessGroup, process_group

register_caller_package("flerm_experiments")

MODES = ("plain", "record", "match")

TARGETS = ("base", "equal", "equal-throughout")
_ALLOWED: dict[str, Collection[str]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "mode": MODES,
    "clock": CLOCKS,
    "parametrization": PARAMETRIZATIONS,
    "targets": TARGETS,
    "weight_decay": DECAYS,
    "batch_rule": BATCH_RULES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one training run is to do.

    workload: a name of `WORKLOADS`.
    lr: the learning rate, under which the run is also recorded or finds its targets.
    scale: the sizes of model and batch, as multiples of the base's.
    steps: the number of optimiser steps.
    seed: the seed of initialisation, data order and probes.
    optimizer: a name of `OPTIMIZERS`.
    schedule: a name of `SCHEDULES`.
    mode: "record" keeps the run's FSLRs in the registry. "match" fetches targets, trains at matched
        rates, and records the run's own FSLRs. "plain" does neither.
    family: the recording's family; None for the workload's name.
    registry: the registry's address; None for the address in FLERM_REGISTRY.
    every: of a recording run, optimiser steps between measurements, None for 100. Of a matching
        run, optimiser steps between matchings, None for one matching at the start.
    clock: the target clock, as in `FLeRM.match`.
    parametrization: a name of `PARAMETRIZATIONS`.
    targets: where a matching run has its targets from. "base": the family's base recordings.
        "equal" and "equal-throughout" are ablations of the paper (Appendix C.3 and C.4). "equal":
        all tensors of the base have the same FSLR, and these add up to 1. "equal-throughout": the
        same for all tensors of the model that is trained.
    depth_rule: as `depth` in `FLeRM.match`; empty for the default.
    estimator: as in `FLeRM.match`; empty for the default.
    weight_decay: as in `FLeRM.match`.
    batch_rule: a name of `BATCH_RULES`, which sets the rate of a bigger batch. `lr` stays the rate
        of the base's batch.
    hold_norms: whether each matrix of the repeated blocks is scaled back, after every step, to the
        Frobenius norm that it was initialised with.
    role: the recording's role; empty for "scaled" when matching, else "base".
    variant: the recording's variant; empty for "matched" when matching, else "plain".
    tags: the recording's tags.
    source_tags: tags that base recordings must have to be sources of targets.

    Raises `InvalidInput` for a field out of its range, and `NotFound` for an unknown workload.
    """

    workload: str
    lr: float
    scale: Scale = field(default_factory=Scale)
    steps: int = 300
    seed: int = 0
    optimizer: str = "adam"
    schedule: str = "constant"
    mode: str = "plain"
    family: str | None = None
    registry: str | None = None
    every: int | None = None
    clock: str = "step"
    parametrization: str = "standard"
    targets: str = "base"
    depth_rule: str = ""
    estimator: str = ""
    weight_decay: str = "coupled"
    batch_rule: str = ""
    hold_norms: bool = False
    role: str = ""
    variant: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    source_tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        workload = workload_named(self.workload)
        workload.check(self.scale)
        available = workload.steps_available if self.steps > 0 else None
        if available is not None:
            available //= self.scale.batch
        if not 0 < self.lr < math.inf:
            raise InvalidInput(f"lr is {self.lr}, but it must be positive and finite")
        if self.steps < 1 or (available is not None and self.steps > available):
            limit = (
                "at least 1"
                if available is None
                else f"from 1 to {available}, where {self.workload}'s data ends"
            )
            raise InvalidInput(f"steps is {self.steps}, but it must be {limit}")
        if self.every is not None and self.every < 1:
            raise InvalidInput(f"every is {self.every}, but it must be at least 1")
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)!r}, but it must be one of {', '.join(allowed)}"
                )
        if self.batch_rule == FOLLOWED and self.mode != "match":
            raise InvalidInput(
                f"batch_rule is {FOLLOWED!r}, but only a run that matches follows the base's "
                f"batch; its mode is {self.mode}"
            )
        if self.clock != "step" and self.mode != "match":
            raise InvalidInput(
                f"clock is {self.clock!r}, but only a run that matches reads targets; its mode is "
                f"{self.mode}"
            )
        if self.clock == "tokens" and workload.tokens_per_step is None:
            raise InvalidInput(
                f"clock is 'tokens', but {self.workload}'s data has none; allowed are step and "
                "fraction"
            )

    @property
    def family_name(self) -> str:
        """The recording's family; by default the workload's name."""
        return self.family or self.workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a job. Every rank has the same, but for `seconds`.

    job: the job.
    world: the number of ranks.
    status: "completed", or "diverged" where a loss was not finite. Such a loss ends the run.
    final_loss: the mean loss of the last 200 steps; of a run of fewer than 1,000 steps, the mean of
        the last fifth.
    losses: the loss of each step, averaged over ranks.
    seconds: the loop's wall time.
    targets: a matched run's targets, in output units per unit of learning rate.
    fslr: measured FSLRs, in output units per unit of learning rate: a recording run's last ones,
        and those from which a matched run's `multipliers` were computed.
    multipliers: the multipliers at the end of the run.
    learning_rates: the learning rates at the last step.
    matched: the names of the tensors that have a target and a measured FSLR.

    The mappings go from tensor names to numbers. A plain run's mappings are empty, and so are the
    `targets` of a recording run.
    """

    job: Job
    world: int
    status: str
    final_loss: float
    losses: list[float]
    seconds: float
    targets: dict[str, float] = field(default_factory=dict)
    fslr: dict[str, float] = field(default_factory=dict)
    multipliers: dict[str, float] = field(default_factory=dict)
    learning_rates: dict[str, float] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-like values."""
        return asdict(self)


def train(job: Job, *, on_step: Callable[[int, float], None] | None = None) -> Result:
    """Trains as `job` says. Under torchrun every rank calls this function.

    Errors of the registry and of measurements are raised on every rank. Raises `FlermError` where
    the ranks end with different multipliers or weights.

    job: what to train.
    on_step: called on rank 0 with (step, loss) after every step. Steps count from 1.
    """
    workload = workload_named(job.workload)
    with process_group() as ranks:
        bare = workload.build(job.scale, seed=job.seed)
        model = ranks.wrap(bare)
        same_depth = workload.build(replace(job.scale, width=1), seed=job.seed)
        groups = parameter_groups(
            job.parametrization,
            bare,
            same_depth,
            optimizer=job.optimizer,
            lr=job.lr,
            fixed=workload.fixed_rate,
        )
        optimizers = OPTIMIZERS[job.optimizer](groups, job.lr)
        for optimizer in optimizers:
            BATCH_RULES[job.batch_rule](optimizer, job.scale.batch)
        flerm = _attach_flerm(job, workload, model, optimizers, ranks)
        try:
            result = _run_steps(job, workload, model, optimizers, flerm, ranks, on_step)
        except BaseException:
            if flerm is not None:
                flerm.close(status="failed")
            raise
        if flerm is not None:
            flerm.close(status=result.status)
        _check_ranks_agree(result, model, ranks)
        return result


def _attach_flerm(
    job: Job,
    workload: Workload,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    ranks: TrainingProcessGroup,
) -> FLeRM | None:
    if job.mode == "plain":
        return None
    probe = (
        batch.to(ranks.device)
        for batch in workload.probe(seed=job.seed, rank=ranks.rank, world=ranks.world)
    )
    matching = job.mode == "match"
    common: dict[str, Any] = {
        "probe": probe,
        "family": job.family_name,
        "lr": job.lr,
        "registry": job.registry,
        "seed": job.seed,
        "output": workload.output,
        "weight_decay": job.weight_decay,
        "config": {
            **workload.config(job.scale),
            "steps": job.steps,
            **{each: getattr(job.scale, each) for each in sorted(workload.scales)},
            "batch_size": workload.batch * job.scale.batch,
        },
        "role": job.role or ("scaled" if matching else "base"),
        "variant": job.variant or ("matched" if matching else "plain"),
        "tags": job.tags,
    }
    if job.mode == "record":
        return FLeRM.record(
            model,
            optimizers,
            every=job.every or 100,
            estimator=job.estimator or "example",
            **common,
        )
    follows = job.batch_rule == FOLLOWED
    return FLeRM.match(
        model,
        optimizers,
        every=job.every,
        clock=job.clock,
        batch_size=common["config"]["batch_size"] if follows else None,
        total_steps=job.steps if follows or job.clock == "fraction" else None,
        estimator=job.estimator or None,
        depth=job.depth_rule,
        source_tags=job.source_tags,
        targets=_ablation_targets(job, workload),
        **common,
    )


def _ablation_targets(job: Job, workload: Workload) -> Trajectory | None:
    """The targets of the paper's ablations; None where targets come from the registry."""
    if job.targets == "base":
        return None
    model = workload.build(Scale() if job.targets == "equal" else job.scale, seed=job.seed)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return Trajectory(
        list(shapes), list(shapes.values()), [1], np.full((1, len(shapes)), 1 / len(shapes))
    )


def _run_steps(
    job: Job,
    workload: Workload,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    flerm: FLeRM | None,
    ranks: TrainingProcessGroup,
    on_step: Callable[[int, float], None] | None,
) -> Result:
    schedulers = [SCHEDULES[job.schedule](each, job.steps) for each in optimizers]
    held = HeldNorms(model) if job.hold_norms else None
    batches = workload.step_batches(job.scale, seed=job.seed, rank=ranks.rank, world=ranks.world)
    tokens = (
        None if workload.tokens_per_step is None else workload.tokens_per_step * job.scale.batch
    )
    losses: list[float] = []
    started = time.perf_counter()
    for step, (inputs, labels) in zip(range(1, job.steps + 1), batches, strict=False):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = workload.loss(
            workload.output(model, inputs.to(ranks.device)), labels.to(ranks.device)
        )
        loss.backward()
        losses.append(ranks.mean(loss.detach().clone()).item())
        if not math.isfinite(losses[-1]):
            break
        if flerm is not None:
            flerm.log(loss=losses[-1], tokens=None if tokens is None else step * tokens)
        for optimizer in optimizers:
            optimizer.step()
        if held is not None:
            held.restore()
        for scheduler in schedulers if step < job.steps else ():
            scheduler.step()
        if on_step is not None and ranks.rank == 0:
            on_step(step, losses[-1])
    completed = math.isfinite(losses[-1])
    targets = {} if flerm is None or job.mode == "record" else dict(flerm.targets)
    measured = {} if flerm is None else flerm.fslr if job.mode == "record" else flerm.matched_fslr
    return Result(
        job=job,
        world=ranks.world,
        status="completed" if completed else "diverged",
        final_loss=final_loss(losses, len(losses)),
        losses=losses,
        seconds=time.perf_counter() - started,
        targets=targets,
        fslr=measured,
        multipliers={} if flerm is None else dict(flerm.multipliers),
        learning_rates={} if flerm is None else dict(flerm.learning_rates()),
        matched=[name for name in targets if name in measured],
    )


def _check_ranks_agree(result: Result, model: nn.Module, ranks: TrainingProcessGroup) -> None:
    # DDP and FLeRM promise that every rank ends with the same multipliers and weights, bit for bit.
    digest = hashlib.sha256(json.dumps(result.multipliers, sort_keys=True).encode())
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digests = ranks.gather(digest.hexdigest())
    if len(set(digests)) > 1:
        raise FlermError(
            f"the {ranks.world} ranks ended with different multipliers or weights: digests "
            f"{', '.join(digests)}"
        )
