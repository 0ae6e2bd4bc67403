"""FLeRM: attached to an optimiser in one call, it measures function-space learning rates and trains at matched ones."""

from __future__ import annotations

import atexit
import math
import os
import sys
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flerm_client.about import About, check_settings, model_config, parameter_list
from flerm_client.aim import Aim, TargetSource, registry_of
from flerm_client.checkpoint import packed, unpacked
from flerm_client.journal import Journal, ending_status
from flerm_client.optimizers import bare_optimizer, describe, initial_rate
from flerm_client.probe import Probe
from flerm_client.rates import Rates
from flerm_client.reporting import check_reporting
from flerm_client.stepping import Attachment
from flerm_client.subject import find_ranks, make_subject
from flerm_core.errors import FlermError, InvalidInput
from flerm_core.limits import validate_family_name
from flerm_core.matching import Multipliers
from flerm_core.measure.estimator import Output, Subject
from flerm_core.measure.meter import Meter, make_estimator
from flerm_core.measure.projection import seed_from
from flerm_core.measure.untouched import AutocastContext, PrivateRandomness, RandomState
from flerm_core.measure.update import Update
from flerm_core.naming import is_role
from flerm_core.recording import Attempt, EstimatorSettings, RecordingSpec
from flerm_core.targets import TargetQuery
from flerm_core.trajectory import Trajectory

_NEVER = 2**63 - 1


class FLeRM:
    """One training run under measurement. Made by `FLeRM.record` or `FLeRM.match`; the training loop stays as it is.

    Also a context manager: leaving it closes, an exception marks the recording as failed.
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
        + every, …, counted from 1, each as the mean of `samples` draws, the first of `warmup`. `config` describes the model,
        beside what is recorded by itself: the model's own config, optimizer, versions, git commit, world size; `omit` names
        those that are not ("config", "optimizer", "versions", "git", "world_size").
        `bands` maps name patterns to bands, `blocks` names block axes ("layers.*"); both are found from the names otherwise.
        `process_group`: the ranks that hold replicas, where no DDP wrapper says so.

        Raises `InvalidInput` for a wrong argument, `Unsupported` for a wrapper or optimiser that cannot be measured.
        """
        self = cls(model, optimizer, probe, family, lr, output, seed, bands, blocks, process_group)
        self._about = About(
            registry=registry_of(registry), token=token, spool=spool,
            role=role, variant=variant, tags=tags or {}, omit=omit,
            config=config or {}, found=model_config(self._subject.model),
        )  # fmt: skip
        settings = EstimatorSettings(estimator, samples, warmup, every, start, output_weight or "", output_bias or "")
        self._begin(settings, may_fall_back=True)
        return self

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
        warmup: int = 8,
        samples: int = 1,
        start: int = 1,
        estimator: str | None = None,
        dry_run: bool = False,
        depth: str = "",
        policy: str = "interpolate",
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
        them, and again each `every` steps if given. `depth` names the rule for another number of blocks, `policy` that for a
        rate between recorded ones; `source_tags` choose among base recordings. `dry_run`: at the first measurement print
        what is unmeasured, noisy or clamped, on what the base's seeds disagree, and where optimizer or estimator are not the
        targets', and end the program with exit code 0; nothing is recorded. The rest as in `record`.

        Raises on every rank alike: `NotFound` for a family, rate or parameter without base recording, `Ambiguous` where several
        kinds fit, `Unreachable` when the registry did not answer and nothing is cached.
        """
        if isinstance(lr, str) and lr != "best":
            raise InvalidInput(f"lr={lr!r} is not allowed; a number above 0 or 'best' is")
        number = None if isinstance(lr, str) else lr
        self = cls(model, optimizer, probe, family, number, output, seed, bands, blocks, process_group)
        self._about = About(
            registry=registry_of(registry), token=token, spool=spool,
            role=role, variant=variant, tags=tags or {}, omit=omit,
            config=config or {}, found=model_config(self._subject.model),
        )  # fmt: skip
        settings = EstimatorSettings(estimator or "example", samples, warmup, every or 0, start)
        check_settings(settings)
        names = tuple(self._subject.parameters)
        if targets is not None:
            self._aim = Aim.given(targets, names, depth, blocks, clamp)
        elif self._about.registry is None:
            raise InvalidInput("registry= or targets= must be given, or FLERM_REGISTRY set: where are the targets?")
        else:
            kind, kind_settings = describe(self._optimizers)
            query = TargetQuery(
                family=family,
                lr=math.nan if lr == "best" else self.lr,
                names=names,
                shapes=tuple(tuple(p.shape) for p in self._subject.parameters.values()),
                policy=policy,
                depth=depth,
                blocks=(blocks,) if isinstance(blocks, str) else tuple(blocks or ()),
                optimizer=kind,
                optimizer_config=kind_settings,
                estimator=None if estimator is None else settings,
                tags=source_tags or {},
            )
            self._aim = self._on_lead(partial(Aim.fetched, self._about.registry, query, token, timeout, clamp, dry_run))
        found = self._aim.found
        if found is not None:
            self.lr = found.lr
            theirs = found.estimator
            settings = replace(settings, name=theirs.name, output_weight=theirs.output_weight, output_bias=theirs.output_bias)
        self._dry_run = dry_run
        self._begin(settings, may_fall_back=False)
        return self

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        probe: Iterable[Any],
        family: str,
        lr: float | None,
        output: Output | None,
        seed: int,
        bands: Mapping[str, str] | None,
        blocks: str | Sequence[str] | None,
        process_group: Any,
    ) -> None:
        """Not for users: `record` and `match` make one."""
        validate_family_name(family)
        given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        if not given:
            raise InvalidInput("optimizer is an empty sequence; at least one is needed")
        self._optimizers = [bare_optimizer(each) for each in given]
        self.family = family
        self.lr = initial_rate(self._optimizers) if lr is None else float(lr)
        if not 0.0 < self.lr < math.inf:
            raise InvalidInput(f"lr={self.lr} is not allowed; a finite number above 0 is")
        self.seed = seed
        self._model = model
        self._ranks = find_ranks(model, process_group)
        self._subject = make_subject(model, self._optimizers, output, blocks, self._ranks)
        self._probe = Probe(probe)
        names = {id(p): name for name, p in self._subject.parameters.items()}
        self._rates = [Rates(each, names) for each in self._optimizers]
        self._journal = Journal(parameter_list(self._subject, bands))
        self._about = About()
        self._aim: Aim | None = None
        self._dry_run = False
        self._multipliers: dict[str, float] = {}
        self._matched_at = 1
        self._fslr: dict[str, float] = {}
        self.steps = 0
        self._update: Update | None = None
        self._stepped: set[int] = set()
        self.recording_id = str(uuid.uuid4())
        self._resume_at = 0
        self._closed = False

    def _begin(self, settings: EstimatorSettings, *, may_fall_back: bool) -> None:
        check_settings(settings)
        self._settings = settings
        self._next = self._matched_at = settings.start
        outer = {"output_weight": settings.output_weight, "output_bias": settings.output_bias}
        fallback = make_estimator("kronecker", self._subject, **outer) if may_fall_back else None
        estimator = make_estimator(settings.name, self._subject, **outer)
        self._meter = Meter(self._subject, estimator, self._ranks, seed=self.seed, fallback=fallback)
        self.recording_id = self._ranks.share(self.recording_id)  # whichever rank's state a checkpoint holds: it names one run
        if self._about.registry is not None and not self._dry_run:
            if self._ranks.lead:
                self._about = self._about.looked_up()
            # A wrong tag, a spool that cannot be written: told now, on every rank, and not by rank 0 in mid-training.
            self._on_lead(lambda: check_reporting(self._about.registry, self._spec(), self._about.spool))
        self._attachments = [Attachment(each, partial(self._around, index)) for index, each in enumerate(self._optimizers)]
        self._forward_hooks = [
            each.register_forward_pre_hook(self._see_forward) for each in _listeners(self._model, self._subject)
        ]
        self._at_exit = partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)

    # What users read

    @property
    def fslr(self) -> dict[str, float]:
        """The last measurement: tensor to FSLR in output units per unit learning rate; unmeasured tensors are absent."""
        return {name: value for name, value in self._fslr.items() if not is_role(name)}

    @property
    def targets(self) -> dict[str, float]:
        """The FSLRs that the present multipliers aim for, by tensor (or role); empty for a recording run."""
        return {} if self._aim is None else self._aim.at(self._matched_at)

    @property
    def multipliers(self) -> dict[str, float]:
        """m_ℓ by tensor; 1.0 everywhere until matched."""
        return {name: self._multipliers.get(name, 1.0) for name in self._subject.parameters}

    def learning_rates(self) -> dict[str, float]:
        """η(t) · m_ℓ by tensor, as the next step takes it."""
        found: dict[str, float] = {}
        for rates in self._rates:
            found |= rates.current(self._multipliers)
        return {name: found[name] for name in self._subject.parameters}

    @property
    def start(self) -> int:
        """The first step that is measured, counted from 1."""
        return self._settings.start

    @property
    def measurements(self) -> int:
        """How many measurements this run holds, those before a resume included."""
        return len(self._journal.rows)

    @property
    def trajectory(self) -> Trajectory:
        """All that this run measured: raw FSLRs at learning rate 1, tensors and roles."""
        return self._journal.trajectory

    def log(self, loss: Any = None, tokens: int | None = None) -> None:
        """What hooks cannot see of the step that follows: its loss (a number or 0-dimensional tensor), tokens seen so far."""
        self._journal.log(loss, tokens)

    def close(self, status: str = "completed", timeout: float = 10.0) -> None:
        """Takes the measurement off the optimiser and ends the recording, waiting at most `timeout` seconds for its delivery.

        `status`: completed, interrupted, diverged or failed. Closing twice does nothing. Training may go on, at the user's own
        rates.
        """
        if self._closed:
            return
        self._closed = True
        for attachment in self._attachments:
            attachment.detach()
        for hook in self._forward_hooks:
            hook.remove()
        atexit.unregister(self._at_exit)
        self._update = None
        self._journal.finish(status, self.steps, timeout)

    def __enter__(self) -> FLeRM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(status="completed" if kind is None else "failed")

    # Around a step

    @contextmanager
    def _around(self, index: int) -> Iterator[None]:
        """One optimiser's step. A step of the model is over when every optimiser has made its part of it."""
        if not self._stepped and self.steps + 1 >= self._next:
            self._update = Update(self._subject.parameters)
        if self._update is not None:
            self._update.rates |= self._rates[index].current(self._multipliers)
        try:
            if self._multipliers:
                with self._rates[index].applied(self._multipliers):
                    yield
            else:
                yield
        except BaseException:
            self._update = None
            self._stepped.clear()
            raise
        self._stepped.add(index)
        if len(self._stepped) == len(self._optimizers):
            self._stepped.clear()
            self.steps += 1
            update, self._update = self._update, None
            if update is not None:
                self._measure(update)
            self._journal.step_over()

    def _measure(self, update: Update) -> None:
        # A skipped step (GradScaler) or a rate of 0 (warm-up) moves nothing: tried again at the next.
        if not any(update.rates.values()):
            return
        moved = bool(torch.stack(list(update.moved().values())).any())
        draws = self._settings.warmup if self._meter.measurements == 0 else self._settings.samples
        if not moved and not self._ranks.locked:
            return
        measured = self._meter.measure(update, self._probe, draws, moved=moved)
        if not measured:
            return
        self._next = self.steps + self._settings.every if self._settings.every else _NEVER
        # NaN: diverged, the last finite measurement stands. Zero: the tensor has no update yet.
        if any(not math.isfinite(value) for value in measured.values()):
            self._journal.diverged = True
        self._fslr = {name: value for name, value in measured.items() if value > 0.0 and math.isfinite(value)} or self._fslr
        if self._about.registry is not None and self._ranks.lead and not self._journal.reporting and not self._dry_run:
            self._journal.report_to(self._about, self._spec(), Attempt(resume_at=self._resume_at))
        if self._aim is not None:
            self._match(self._aim, update)
        rate = float(self._optimizers[0].param_groups[0]["lr"])
        self._journal.add(self.steps, measured, rate, None if self._aim is None else self.multipliers)

    def _match(self, aim: Aim, update: Update) -> None:
        """Sets the multipliers, and makes the step just taken one that ran at them (design, method 4)."""
        everything = [*self._subject.parameters, *self._subject.roles]
        measured = {name: self._fslr.get(name, math.nan) for name in everything}
        outcome = aim.multipliers(self.steps, measured, self._multipliers)
        if self._dry_run:
            if self._ranks.lead:
                sys.stdout.write(f"{aim.comparison(self.family, self.lr, self.steps, measured).text()}\n")
            self.close(status="interrupted")
            raise SystemExit(0)
        if self._ranks.lead:
            _tell(outcome)
        self._matched_at = self.steps
        before = self.multipliers
        names = list(before)
        exact = torch.tensor([outcome.values.get(n, 1.0) for n in names], dtype=torch.float64, device=self._subject.device)
        self._multipliers = dict(zip(names, self._ranks.spread(exact).tolist(), strict=True))
        update.reapply({name: m / before[name] for name, m in self._multipliers.items()})

    def _see_forward(self, module: nn.Module, args: Any) -> None:
        # The step runs outside the user's autocast region: what is open in the training's forward is opened for the probe's.
        if self.steps + 1 >= self._next and not self._meter.measuring:
            self._meter.autocast = AutocastContext.current(self._subject.device.type)

    def _on_lead(self, ask: Callable[[], Any]) -> Any:
        """What `ask` answers on rank 0, on every rank; what it raises, likewise."""
        answer: Any = None
        if self._ranks.lead:
            try:
                answer = ask()
            except FlermError as error:
                answer = error
        answer = self._ranks.share(answer)
        if isinstance(answer, FlermError):
            raise answer
        return answer

    def _spec(self) -> RecordingSpec:
        kind, kind_settings = describe(self._optimizers)
        found = None if self._aim is None else self._aim.found
        spec = RecordingSpec(
            id=self.recording_id,
            family=self.family,
            lr=self.lr,
            parameters=self._journal.parameters,
            seed=self.seed,
            role=self._about.role,
            variant=self._about.variant,
            optimizer=kind,
            optimizer_config=kind_settings,
            estimator=replace(self._settings, name=self._meter.estimator.name),
            tags=self._about.tags,
            world_size=self._ranks.size,
            targets_digest="" if found is None else found.digest,
            targets_sources=() if found is None else found.sources,
        )
        return self._about.complete(spec)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on as if it had not stopped.

        One value, which may grow between saving and loading: torch.distributed.checkpoint, which loads in place, takes it. That
        keeps one rank's, so losses are to be logged on all, and the others' probes go on by fresh streams of randomness; saved
        rank by rank, each goes on with its own.
        """
        return {"flerm": packed(self._state())}

    def _state(self) -> dict[str, Any]:
        random = self._meter.randomness.state
        return {
            "rank": self._ranks.rank,
            "steps": self.steps,
            "next": self._next,
            "measurements": self._meter.measurements,
            "estimator": self._meter.estimator.name,
            "multipliers": dict(self._multipliers),
            "matched_at": self._matched_at,
            "fslr": dict(self._fslr),
            "lr": self.lr,
            "recording_id": self.recording_id,
            "probe": self._probe.state_dict(),
            "random": None if random is None else random.state_dict(),
            "journal": self._journal.state_dict(),
            "aim": None if self._aim is None else self._aim.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the run that wrote `state` was: the same recording in a new attempt, the same targets, multipliers,
        probe.

        Raises `InvalidInput` where this run was set up otherwise (recording against matching).
        """
        state = unpacked(state["flerm"])
        if (state["aim"] is None) != (self._aim is None):
            kinds = ("record", "match") if state["aim"] is None else ("match", "record")
            raise InvalidInput(f"the checkpoint is of a run by FLeRM.{kinds[0]}, this one is by FLeRM.{kinds[1]}")
        self.steps, self._next = state["steps"], state["next"]
        self._meter.measurements = state["measurements"]
        if state["estimator"] != self._meter.estimator.name:
            self._meter.take_fallback()
        self._multipliers, self._fslr = dict(state["multipliers"]), dict(state["fslr"])
        self._matched_at = state["matched_at"]
        self.lr, self.recording_id = state["lr"], state["recording_id"]
        if (
            state["rank"] != self._ranks.rank
        ):  # of another rank or world: this one goes on at the same place by a stream of its own
            self._meter.randomness = PrivateRandomness(seed_from(self.seed, self._ranks.rank, self._meter.measurements))
            with self._meter.randomness.active():
                self._probe.load_state_dict({**state["probe"], "pass_began": RandomState().state_dict()})
        elif state["random"] is not None:
            with self._meter.randomness.active():
                self._probe.load_state_dict(state["probe"])
            self._meter.randomness.state = RandomState.from_state_dict(state["random"])
        self._journal.load_state_dict(state["journal"])
        if self._aim is not None:
            self._aim.load_state_dict(state["aim"])
        self._resume_at = self.steps + 1


def _listeners(model: nn.Module, subject: Subject) -> list[nn.Module]:
    """The modules whose calls show in what autocast region the training's forward runs.

    The model, and the first of its layers that is measured: a framework may open the region inside the model's forward
    (accelerate), or not call the model as a whole (Lightning's training_step).
    """
    own = {id(parameter) for parameter in subject.parameters.values()}
    layers = (m for m in subject.model.modules() if any(id(p) in own for p in m.parameters(recurse=False)))
    first = next(layers, model)
    return [model] if first is model else [model, first]


def _tell(outcome: Multipliers) -> None:
    """Warns of what was left alone as noise or bounded; tensors without an update yet (LoRA's A at first) are no news."""
    told = [
        (outcome.noisy, "have too small an FSLR to be matched and keep their multiplier"),
        (outcome.clamped, "were clamped"),
    ]
    for names, what in told:
        if names:
            warnings.warn(f"{len(names)} tensors {what}: {', '.join(names)}", stacklevel=2)


def _close_at_exit(reference: weakref.ref[FLeRM]) -> None:
    live = reference()
    if live is not None:
        live.close(status=ending_status())
