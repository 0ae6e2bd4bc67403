"""FLeRM: records or matches function-space learning rates, attached to an optimiser in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flerm_client.training import checkpoint
from flerm_client.training.run_options import (
    MatchOptions,
    RecordOptions,
    TargetSource,
    instructed,
    own_keywords,
)
from flerm_client.training.session import TrainingSession
from flerm_client.training.start_session import follow, start_matching, start_recording
from flerm_core.measure.measured_model import Output
from flerm_core.measure.sharpness import Loss
from flerm_core.parameter_names import is_depth_group
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.trajectory import Trajectory


class FLeRM:
    """One training run under measurement. `FLeRM.record` or `FLeRM.match` makes it.

    The training loop stays as it is. FLeRM is also a context manager: leaving the block closes the
    run; an exception marks the recording as failed, Ctrl-C as interrupted. A run that nobody closes
    ends with its process, and is completed where the script came to its end, even when the run's
    objects are long gone. In a notebook or at a prompt such a run is interrupted.
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
        batch_size: int | None = None,
        omit: Sequence[str] = (),
        bands: Mapping[str, str] | None = None,
        blocks: str | Sequence[str] | None = None,
        process_group: Any = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> FLeRM:
        """Records the FSLRs of this run, and changes nothing about the run.

        Losses and weights are bit for bit those of a run without FLeRM.

        What is trained:
            model: the module, also in DDP, FSDP2 or torch.compile.
            optimizer: the optimiser that steps it, or a sequence of several.
            probe: fresh input batches; begun anew when they end.
            output: the outputs f = output(model, batch), [N, ...] for N examples. Default:
                `model(batch)`, or `model(**batch)` for a mapping.

        What is measured, and when:
            every: optimiser steps between measurements; 0: once. 100 costs a long run
                about 1 % of its time.
            start: the first step that is measured, counted from 1. A tensor without an update there
                (LoRA's A while B is 0, a layer left out) is measured at the first that moves it.
            warmup: draws of the first measurement. 8, because matched runs begin with it.
            samples: draws of every other measurement, each on a probe batch. 1: an `example` draw
                of 64 examples has a relative error of about 0.1.
            seed: of the random projections, and the recording's seed.
            estimator: a name of docs/estimators.md. Default: "example", the most exact for its
                cost. Where examples couple it is noisier; sharded, "kronecker" takes its place.
            output_weight, output_bias: names of the output layer's tensors, for kronecker.
            weight_decay: "coupled" measures the step as the optimiser makes it, "independent"
                without its decay, for runs that are matched in that way.
            sharpness: the loss of a probe batch, sharpness(model, batch). The top eigenvalue of its
                Hessian is then recorded beside each measurement. Default: not measured.

        Where it is recorded:
            family: the models whose parameter names correspond; "name" or "team/name".
            lr: the key within the family. Default: the optimiser's initial rate.
            registry: grpc://host:port, grpcs://host:port or file:///folder. Default:
                FLERM_REGISTRY; without either everything stays in `.trajectory`.
            token: for the registry. Default: FLERM_TOKEN, or the file FLERM_TOKEN_FILE.
            spool: folder for what is not yet delivered. Default: FLERM_SPOOL.

        Labels:
            role: "base", from which others take their targets, or "scaled".
            variant: "plain", "matched", "mup", … Targets come from plain runs only.
            tags: text by name, to filter by.
            config: JSON-like values. The model's own config is recorded without being asked for.
            batch_size: examples of one step, over all ranks and accumulated batches. With it in the
                base's recordings, runs of another batch size can be matched.
            omit: of "config", "optimizer", "versions", "git", "world_size": what is not recorded.
            bands: name pattern to band. Default: found from the names.
            blocks: the axes that count blocks, such as "layers.*". Default: found from the names.

        Distributed:
            process_group: the ranks that hold replicas, where no DDP wrapper says so.

        Raises `InvalidInput` for a wrong argument, `Unsupported` for a wrapper or optimiser that
        cannot be measured.

        Example:
            flerm = FLeRM.record(model, optimizer, probe=batches, family="team/decoder")
        """
        return cls(start_recording(RecordOptions.of(locals())))

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
        batch_size: int | None = None,
        omit: Sequence[str] = (),
        bands: Mapping[str, str] | None = None,
        blocks: str | Sequence[str] | None = None,
        process_group: Any = None,
        spool: str | os.PathLike[str] | None = None,
    ) -> FLeRM:
        """Trains at the matched rates η_ℓ(t) = η(t) · target_ℓ / measured_ℓ (Eq. 19).

        The targets are the FSLRs of base recordings at learning rate `lr`, found before training
        starts. The run's own FSLRs are recorded. Other arguments are as in `record`.

        What it is matched to:
            lr: the base rate, or "best": the family's. Default: the optimiser's initial rate.
            targets: what `RegistryClient.targets` says of this model, optimizer and rate, a base's
                `Trajectory`, or FSLRs by name (output units at rate 1). Default: the registry's.
            source_tags: tags of the base recordings to take. Default: all.
            depth: the rule for another number of blocks. Default: the registry's.
            policy: "interpolate", "nearest" or "exact", for a rate between recorded ones.
            clock: a step's targets are the base's at the same "step", at as many "tokens" (`log`
                them before each step, at least on rank 0), or at the same "fraction" of its run.
                After the base's last measurement its FSLRs hold.
            total_steps: this run's optimiser steps, for clock "fraction" and `batch_size`.
            batch_size: where it is not the base's, Adam's betas and all rates follow the batch, and
                rates also `total_steps` (default: the base's). The optimiser gets the base's
                settings, and is matched at step 1 alone. Default: betas and rates stay.
            clamp: the least and greatest multiplier. The default bounds faults only.
            timeout: seconds to wait for the registry, before a cached answer is taken.

        What is measured, and when:
            start: the first step that is measured and matched; it already runs at the multipliers.
                A tensor without an update there is matched at the next step. Default: the base
                recordings' own start, 1 for targets of another origin.
            every: steps between matches. Default: matched once, at `start`.
            record_every: steps between measurements that are only recorded; None: none.
            estimator: which base recordings to take. Default: theirs, as estimators differ in bias.
            weight_decay: "coupled", a multiplier scales the decay too; "independent", weights decay
                by η(t)·λ as without matching.
            dry_run: at the first measurement, print what would be matched, what would not, and why.
                Then end the program with exit code 0; nothing is recorded.

        Raises, on every rank alike: `InvalidInput` for a wrong argument, and before a step that is
        matched by tokens where none were logged; `NotFound` for a family, rate or parameter without
        base recording, and by tokens where the base logged none; `Ambiguous` where base recordings
        of several kinds fit; `Unreachable` when the registry did not answer and nothing is cached;
        `MeasurementError` where a probe batch, of which one forward and backward is made, fails.

        Example:
            flerm = FLeRM.match(model, optimizer, probe=batches, family="team/decoder", lr="best")
        """
        return cls(start_matching(MatchOptions.of(locals())))

    @classmethod
    def auto(
        cls,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        probe: Iterable[Any],
        **keywords: Any,
    ) -> FLeRM:
        """Records, matches, or does nothing, as the environment of the process says.

        FLERM_MODE is record, match or dry-run; unset, nothing is done, and the methods of the
        returned object do nothing. FLERM_REGISTRY, FLERM_FAMILY, FLERM_ROLE, FLERM_VARIANT,
        FLERM_LR, FLERM_SEED, FLERM_TAGS, FLERM_SOURCE_TAGS and FLERM_CONFIG (JSON) stand for the
        arguments of these names. `flerm sweep` and `flerm tune` set them for the scripts they run.

        probe: as in `record`.
        keywords: of `record` and `match`; each mode takes those that it knows. A variable takes
            precedence over a keyword. every: steps between measurements, in both modes.

        Raises `InvalidInput` for a keyword that neither takes and for a variable of another form,
        and else as `record` and `match` do.

        Example:
            flerm = FLeRM.auto(model, optimizer, probe=batches)
        """
        instructions = instructed(keywords)
        if instructions is None:
            from flerm_client.idle_flerm import IdleFLeRM

            return IdleFLeRM()
        given = own_keywords(instructions, {"probe": probe, **keywords})
        flerm: FLeRM = getattr(cls, instructions.method)(model, optimizer, **given)
        follow(flerm._session, instructions)
        return flerm

    def __init__(self, session: TrainingSession) -> None:
        """Not for users: `record`, `match` and `auto` make one."""
        self._session = session

    def __repr__(self) -> str:
        does = "records" if self._session.matcher is None else "matches"
        return (
            f"<FLeRM {does} {self.family!r} at learning rate {self.lr:g}; "
            f"steps: {self.steps}, measurements: {self.measurements}>"
        )

    @property
    def family(self) -> str:
        """The family's name."""
        return self._session.family

    @property
    def lr(self) -> float:
        """The base learning rate: the key within the family."""
        return self._session.lr

    @property
    def recording_id(self) -> str:
        """The id of this run's recording in the registry."""
        return self._session.recording_id

    @property
    def steps(self) -> int:
        """The optimiser steps made so far."""
        return self._session.steps

    @property
    def start(self) -> int:
        """The first step that is measured, counted from 1."""
        return self._session.measurer.settings.start

    @property
    def estimator(self) -> str:
        """The estimator in use; it differs from the one asked for where that does not apply."""
        return self._session.measurer.meter.estimator.name

    @property
    def measuring(self) -> bool:
        """Whether the model is running for a measurement; for hooks that keep counts."""
        return self._session.measurer.meter.measuring

    @property
    def measurements(self) -> int:
        """The measurements of this run, those before a resume included."""
        return len(self._session.run_log.rows)

    @property
    def fslr(self) -> dict[str, float]:
        """The last measurement: FSLR by tensor, in output units per unit learning rate.

        Unmeasured tensors are absent.
        """
        found = self._session.measurer.fslr
        return {name: value for name, value in found.items() if not is_depth_group(name)}

    @property
    def sharpness(self) -> float:
        """The top eigenvalue of the Hessian of the training loss at the last measurement.

        NaN where `sharpness=` was not given.
        """
        return self._session.measurer.meter.sharpness

    @property
    def matched_fslr(self) -> dict[str, float]:
        """The measurement behind the multipliers, as `fslr`; empty until matched."""
        matcher = self._session.matcher
        return {} if matcher is None else dict(matcher.fslr)

    @property
    def targets(self) -> dict[str, float]:
        """The FSLRs that the multipliers aim for, by tensor; empty for a recording run."""
        matcher = self._session.matcher
        return {} if matcher is None else dict(matcher.targets)

    @property
    def multipliers(self) -> dict[str, float]:
        """The multiplier m_ℓ of each tensor's learning rate; 1.0 for all until matched."""
        return self._session.multipliers_by_tensor()

    def learning_rates(self) -> dict[str, float]:
        """The learning rate η(t) · m_ℓ of each tensor, as the next step takes it.

        Tensors that no optimiser steps any more are absent.
        """
        session = self._session
        found: dict[str, float] = {}
        for groups in session.param_groups:
            found |= groups.current(session.multipliers)
        return {name: found[name] for name in session.measured_model.parameters if name in found}

    @property
    def trajectory(self) -> Trajectory:
        """All measurements of this run: raw FSLRs of tensors and depth groups."""
        return self._session.run_log.trajectory

    @property
    def auxiliary(self) -> AuxiliaryColumns:
        """What the rows hold besides FSLRs, as `RegistryClient.auxiliary` has it.

        These are sharpness and multipliers, where there are any.
        """
        return self._session.run_log.auxiliary

    def log(self, loss: Any = None, tokens: int | None = None) -> None:
        """What hooks cannot see of the step that follows. Optional.

        loss: the step's loss, a number or a 0-dimensional tensor.
        tokens: the tokens that the whole run, not the batch alone, has seen by the step's end.

        Raises `InvalidInput` for a count of tokens that is negative or too large.
        """
        self._session.run_log.log(loss, tokens)

    def close(self, status: str = "completed", timeout: float = 10.0) -> None:
        """Takes the measurement off the optimiser and ends the recording.

        status: "completed", "interrupted", "diverged" or "failed".
        timeout: the seconds to wait for the delivery.

        A second call does nothing. Training may go on, at the user's own rates.
        """
        self._session.end(status, timeout)

    def __enter__(self) -> FLeRM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on as if it had not stopped.

        The state is one value whose size may differ between saving and loading, so that
        torch.distributed.checkpoint, which loads in place, takes it. That library keeps one rank's
        state: log losses on all ranks; the other ranks' probes go on with new random numbers. Saved
        rank by rank, each rank goes on with its own.
        """
        return checkpoint.save(self._session)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the run that wrote `state` was.

        The recording is the same, in a new attempt; targets, multipliers and probe are the same.
        Raises `InvalidInput` where one of the two runs records and the other matches.
        """
        checkpoint.load(self._session, state)
