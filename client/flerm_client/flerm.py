"""FLeRM: attached to an optimiser in one call, it measures function-space learning rates and trains at matched ones."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_client.training import checkpoint
from flerm_client.training.optimizer_info import initial_rates
from flerm_client.training.run_metadata import RunMetadata, check_settings
from flerm_client.training.session import TrainingSession
from flerm_client.training.target_clock import TargetClock
from flerm_client.training.target_schedule import TargetSchedule, TargetSource
from flerm_core._warnings import warn
from flerm_core.errors import InvalidInput
from flerm_core.measure.measured_model import Output
from flerm_core.measure.sharpness import Loss
from flerm_core.parameter_names import is_depth_group
from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import EstimatorSettings, same_lr
from flerm_core.trajectory import Trajectory


class FLeRM:
    """One training run under measurement. Made by `FLeRM.record` or `FLeRM.match`; the training loop stays as it is.

    Also a context manager: leaving it closes, an exception marks the recording as failed, Ctrl-C
    as interrupted. A run that nobody closes ends with its process, in the same way: completed where a script comes to its end,
    also when the run's objects are long gone. In a notebook or at a prompt it is interrupted.
    """

    @classmethod
    def record(
        cls,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        probe: Iterable[Any],
        family: str,
        lr: float | None = None,
        output: Output | None = None,
        registry: str | None = None,
        token: str | None = None,
        seed: int = 0,
        every: int = 100,
        warmup: int = 8,
        samples: int = 1,
        start: int = 1,
        estimator: str = "example",
        output_weight: str | None = None,
        output_bias: str | None = None,
        weight_decay: str = "coupled",
        sharpness: Loss | None = None,
        role: str = "base",
        variant: str = "plain",
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        omit: Sequence[str] = (),
        bands: Mapping[str, str] | None = None,
        blocks: str | Sequence[str] | None = None,
        process_group: Any = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> FLeRM:
        """Records the FSLRs of this run and changes nothing about it: its losses and weights are bit for bit those without.

        `probe`: fresh input batches, cycled. `lr`: the key within `family`, default the optimiser's initial rate. `output`: f =
        output(model, batch), default `model(batch)`; its dimension 0 counts examples. `registry`: grpc://, grpcs:// or
        file:///, default FLERM_REGISTRY; without one everything stays in `.trajectory`. Measured are the steps start, start
        + every, …, counted from 1, each as the mean of `samples` draws, the first of `warmup`; and the one after the first,
        where tensors had no update at it (LoRA's A while B is 0). `config` describes the model,
        beside what is recorded by itself: the model's own config, optimizer, versions, git commit, world size; `omit` names
        those that are not ("config", "optimizer", "versions", "git", "world_size"). `weight_decay`: "coupled" measures the step
        as the optimiser makes it, "independent" without its decay, for runs that are matched that way. `sharpness`: the loss
        of a probe batch, sharpness(model, batch); the top eigenvalue of its Hessian is recorded beside each measurement.
        `bands` maps name patterns to bands, `blocks` names block axes ("layers.*"); both are found from the names otherwise.
        `process_group`: the ranks that hold replicas, where no DDP wrapper says so.

        Raises `InvalidInput` for a wrong argument, `Unsupported` for a wrapper or optimiser that cannot be measured.
        """
        run = TrainingSession(
            model, optimizer, probe=probe, family=family, lr=lr, output=output, seed=seed,
            weight_decay=weight_decay, sharpness=sharpness, bands=bands, blocks=blocks, process_group=process_group,
        )  # fmt: skip
        about = RunMetadata.of(
            run.subject.module, registry=registry, token=token, spool=spool,
            role=role, variant=variant, tags=tags, config=config, omit=omit,
        )  # fmt: skip
        run.begin(
            about,
            EstimatorSettings(
                estimator, samples, warmup, every, start, output_weight or "", output_bias or ""
            ),
        )
        return cls(run)

    @classmethod
    def match(
        cls,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        probe: Iterable[Any],
        family: str,
        lr: float | str | None = None,
        output: Output | None = None,
        registry: str | None = None,
        token: str | None = None,
        targets: TargetSource | None = None,
        seed: int = 0,
        every: int | None = None,
        record_every: int | None = 100,
        warmup: int = 8,
        samples: int = 1,
        start: int | None = None,
        estimator: str | None = None,
        weight_decay: str = "coupled",
        sharpness: Loss | None = None,
        dry_run: bool = False,
        depth: str = "",
        policy: str = "interpolate",
        clock: str = "step",
        total_steps: int | None = None,
        clamp: tuple[float, float] = (1 / 4096, 4096.0),
        timeout: float = 60.0,
        source_tags: Mapping[str, str] | None = None,
        role: str = "scaled",
        variant: str = "matched",
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        omit: Sequence[str] = (),
        bands: Mapping[str, str] | None = None,
        blocks: str | Sequence[str] | None = None,
        process_group: Any = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> FLeRM:
        """Trains at η_ℓ(t) = η(t) · target_ℓ / measured_ℓ (Eq. 19): targets are the base's FSLRs at learning rate `lr`.

        Targets come from the registry before training starts (waiting at most `timeout` seconds), or from `targets`.
        `lr="best"` takes the family's best base rate. Multipliers are set at step `start`, which itself already runs at
        them (of tensors without an update there, at the next step), and again each `every` steps if given; by default it is
        the base recordings' own, 1 for targets of another origin. The run's own FSLRs are measured and recorded then and each
        `record_every` steps (None: only then). `weight_decay`: "coupled", what multiplies a rate multiplies its decay too;
        "independent", weights decay by η(t)·λ as without matching. `depth` names the rule for another number of blocks,
        `policy` that for a rate between recorded ones; `source_tags` choose among base recordings. `clock`: a step's targets
        are the base's at the same "step", at as many "tokens" (`log` them before each step, at least on rank 0), or at as large
        a "fraction" of its run, step / `total_steps` of this one (that of a Trajectory ends with its last row). After the
        base's last measurement its FSLRs hold. `dry_run`: at the first measurement print what is unmeasured, noisy or clamped,
        on what the base's seeds disagree, and where optimizer or estimator are not the targets', and end the program with exit
        code 0; nothing is recorded. The rest as in `record`.

        Raises on every rank alike: `NotFound` for a family, rate or parameter without base recording, `Ambiguous` where several
        kinds fit, `Unreachable` when the registry did not answer and nothing is cached. By tokens, `NotFound` where the base
        logged none; and a step to be matched raises `InvalidInput`, before it has begun, where this run logged none for it.
        """
        if isinstance(lr, str) and lr != "best":
            raise InvalidInput(f"lr={lr!r} is not allowed; a number above 0 or 'best' is")
        if lr == "best" and targets is not None:
            raise InvalidInput(
                "lr='best' asks the registry, but targets= were given; name the rate that they are of"
            )
        pace = TargetClock(clock, total_steps)
        known = 1.0 if isinstance(lr, str) else lr  # until the registry has said which is best
        run = TrainingSession(
            model, optimizer, probe=probe, family=family, lr=known, output=output, seed=seed,
            weight_decay=weight_decay, sharpness=sharpness, bands=bands, blocks=blocks, process_group=process_group,
        )  # fmt: skip
        about = RunMetadata.of(
            run.subject.module, registry=registry, token=token, spool=spool,
            role=role, variant=variant, tags=tags, config=config, omit=omit,
        )  # fmt: skip
        begins = 1 if start is None else start
        settings = EstimatorSettings(
            estimator or "example", samples, warmup, record_every or every or 0, begins
        )
        check_settings(settings)
        check_settings(replace(settings, every=every or 0))
        names = tuple(run.subject.parameters)
        if targets is not None:
            aim = TargetSchedule.given(targets, names, depth, blocks, clamp, pace)
        elif about.registry is None:
            raise InvalidInput(
                "registry= or targets= must be given, or FLERM_REGISTRY set: where are the targets?"
            )
        else:
            kind, kind_settings = run.described()
            query = TargetQuery(
                family=family,
                lr=math.nan if lr == "best" else run.lr,
                names=names,
                shapes=tuple(tuple(p.shape) for p in run.subject.parameters.values()),
                policy=policy,
                depth=depth,
                blocks=(blocks,) if isinstance(blocks, str) else tuple(blocks or ()),
                optimizer=kind,
                optimizer_config=kind_settings,
                estimator=None if estimator is None else settings,
                tags=source_tags or {},
            )
            aim = run.on_lead(
                partial(
                    TargetSchedule.fetched,
                    about.registry,
                    query,
                    token,
                    timeout,
                    clamp,
                    pace,
                    dry_run,
                )
            )
        if aim.found is not None:
            run.lr = aim.found.lr
            if lr == "best" and run.ranks.lead:
                _compare(run)
            theirs = aim.found.estimator
            settings = replace(
                settings,
                name=theirs.name,
                output_weight=theirs.output_weight,
                output_bias=theirs.output_bias,
            )
            settings = replace(settings, start=theirs.start if start is None else start)
        run.begin(about, settings, aim=aim, match_every=every or 0, dry_run=dry_run)
        return cls(run)

    def __init__(self, run: TrainingSession) -> None:
        """Not for users: `record` and `match` make one."""
        self._run = run

    # What users read

    @property
    def family(self) -> str:
        """The family's name."""
        return self._run.family

    @property
    def lr(self) -> float:
        """The key within the family: the base learning rate."""
        return self._run.lr

    @property
    def recording_id(self) -> str:
        """What the registry calls this run."""
        return self._run.recording_id

    @property
    def steps(self) -> int:
        """Optimiser steps made so far."""
        return self._run.steps

    @property
    def estimator(self) -> str:
        """The estimator in use: another than was asked for where that does not apply."""
        return self._run.meter.estimator.name

    @property
    def measuring(self) -> bool:
        """Whether the model runs for a measurement at this moment: for hooks on modules that keep books."""
        return self._run.meter.measuring

    @property
    def fslr(self) -> dict[str, float]:
        """The last measurement: tensor to FSLR in output units per unit learning rate; unmeasured tensors are absent."""
        return {name: value for name, value in self._run.fslr.items() if not is_depth_group(name)}

    @property
    def sharpness(self) -> float:
        """The top eigenvalue of the Hessian of the training loss at the last measurement; NaN where it was not asked for."""
        return self._run.meter.sharpness

    @property
    def matched_fslr(self) -> dict[str, float]:
        """The measurement that the present multipliers were made of, as `fslr`; empty until matched."""
        return {
            name: value
            for name, value in self._run.matched_fslr.items()
            if not is_depth_group(name)
        }

    @property
    def targets(self) -> dict[str, float]:
        """The FSLRs that the present multipliers aim for, by tensor (or role); empty for a recording run."""
        return dict(self._run.aimed)

    @property
    def multipliers(self) -> dict[str, float]:
        """m_ℓ by tensor; 1.0 everywhere until matched."""
        return {name: self._run.multipliers.get(name, 1.0) for name in self._run.subject.parameters}

    def learning_rates(self) -> dict[str, float]:
        """η(t) · m_ℓ by tensor, as the next step takes it; without those that no optimiser steps any more."""
        found: dict[str, float] = {}
        for rates in self._run.rates:
            found |= rates.current(self._run.multipliers)
        return {name: found[name] for name in self._run.subject.parameters if name in found}

    @property
    def start(self) -> int:
        """The first step that is measured, counted from 1."""
        return self._run.settings.start

    @property
    def measurements(self) -> int:
        """How many measurements this run holds, those before a resume included."""
        return len(self._run.journal.rows)

    @property
    def trajectory(self) -> Trajectory:
        """All that this run measured: raw FSLRs at learning rate 1, tensors and roles."""
        return self._run.journal.trajectory

    @property
    def extras(self) -> Auxiliary:
        """What this run's rows hold beside their FSLRs, as `RegistryClient.extras` has it: sharpness, multipliers."""
        return Auxiliary.of(self._run.journal.rows, len(self._run.journal.parameters))

    def log(self, loss: Any = None, tokens: int | None = None) -> None:
        """What hooks cannot see of the step that follows: its loss (a number or 0-dimensional tensor), tokens seen by its end
        (of the whole run, not of its batch alone).

        Raises `InvalidInput` for tokens that no count of them can be.
        """
        self._run.journal.log(loss, tokens)

    def close(self, status: str = "completed", timeout: float = 10.0) -> None:
        """Takes the measurement off the optimiser and ends the recording, waiting at most `timeout` seconds for its delivery.

        `status`: completed, interrupted, diverged or failed. Closing twice does nothing. Training may go on, at the user's own
        rates.
        """
        self._run.end(status, timeout)

    def __enter__(self) -> FLeRM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self.close(
            status="completed"
            if kind is None
            else "interrupted"
            if issubclass(kind, KeyboardInterrupt)
            else "failed"
        )

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on as if it had not stopped.

        One value, which may grow between saving and loading: torch.distributed.checkpoint, which loads in place, takes it. That
        keeps one rank's, so losses are to be logged on all, and the others' probes go on by fresh streams of randomness; saved
        rank by rank, each goes on with its own.
        """
        return checkpoint.save(self._run)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the run that wrote `state` was: the same recording in a new attempt, the same targets, multipliers,
        probe.

        Raises `InvalidInput` where this run was set up otherwise (recording against matching).
        """
        checkpoint.load(self._run, state)


def _compare(run: TrainingSession) -> None:
    """Warns where the optimisers do not run at the rate that the registry found best: only the user sets η(t)."""
    other = sorted(rate for rate in initial_rates(run.optimizers) if not same_lr(rate, run.lr))
    if other:
        warn(
            f"the best base rate of {run.family!r} is {run.lr:g}, but the optimizer begins with "
            f"{', '.join(f'{rate:g}' for rate in other)}: give it lr={run.lr:g}"
        )
