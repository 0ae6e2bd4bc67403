"""How a run begins: its settings are checked and, for a matched run, its targets found."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from flerm_client.registry.query_process import fetch_best, fetch_recording
from flerm_client.training.batch_moments import (
    batch_change_of,
    betas_kept_on_error,
    follow_batch,
    put_back_betas,
)
from flerm_client.training.optimizer_info import initial_rates
from flerm_client.training.run_instructions import RunInstructions
from flerm_client.training.run_metadata import RunMetadata
from flerm_client.training.run_options import MatchOptions, RecordOptions
from flerm_client.training.session import TrainingSession
from flerm_client.training.step_schedule import check_settings
from flerm_client.training.target_clock import TargetClock
from flerm_client.training.target_schedule import TargetSchedule
from flerm_core._warnings import warn
from flerm_core.errors import InvalidInput
from flerm_core.matching.batch_change import BatchChange, unfollowed
from flerm_core.matching.match_cautions import RunFacts, match_cautions
from flerm_core.matching.rate_ratios import rate_words
from flerm_core.matching.targets import Targets
from flerm_core.records.batch_size import said_batch_size
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import EstimatorSettings, same_lr


def start_recording(options: RecordOptions) -> TrainingSession:
    """The session of a run that is measured and not changed. Raises as `FLeRM.record` does."""
    session = TrainingSession(options)
    settings = EstimatorSettings(
        options.estimator,
        options.samples,
        options.warmup,
        options.every,
        options.start,
        options.output_weight or "",
        options.output_bias or "",
    )
    session.begin(RunMetadata.of(options, session.measured_model), settings)
    return session


def start_matching(options: MatchOptions) -> TrainingSession:
    """The session of a run that trains at matched rates. Raises as `FLeRM.match` does."""
    wants_best = isinstance(options.lr, str)
    if wants_best and options.lr != "best":
        raise InvalidInput(f"lr={options.lr!r} is not allowed; a number above 0 or 'best' is")
    if wants_best and options.targets is not None:
        raise InvalidInput(
            "lr='best' asks the registry, but targets= were given; name the rate that they are of"
        )
    # Without a clock of fractions, the run's length serves to find the rate of its batch.
    follows_length = options.batch_size is not None and options.clock != "fraction"
    clock = TargetClock(options.clock, None if follows_length else options.total_steps)
    # Until the registry has said which rate is best, any rate stands for the best one.
    session = TrainingSession(replace(options, lr=1.0) if wants_best else options)
    metadata = RunMetadata.of(options, session.measured_model)
    settings = EstimatorSettings(
        options.estimator or "example",
        options.samples,
        options.warmup,
        options.record_every or options.every or 0,
        1 if options.start is None else options.start,
    )
    check_settings(settings)
    check_settings(replace(settings, every=options.every or 0))
    session.refuse_other_sessions(matches=True)  # before their betas are put back
    with betas_kept_on_error(session.optimizers):
        _begin_matching(options, session, metadata, clock, settings)
    return session


def _begin_matching(
    options: MatchOptions,
    session: TrainingSession,
    metadata: RunMetadata,
    clock: TargetClock,
    settings: EstimatorSettings,
) -> None:
    """Finds the targets, lets betas follow the batch where they are to, and begins the session."""
    if options.batch_size is not None:  # a checkpoint's betas may follow the batch already
        put_back_betas(session.optimizers)
    schedule = _target_schedule(options, session, metadata.registry, clock, settings)
    answer = schedule.registry_answer
    if answer is not None:
        session.lr = answer.lr
        # Estimators differ in bias: the run measures as the recordings behind its targets did.
        settings = replace(
            settings,
            name=answer.estimator.name,
            output_weight=answer.estimator.output_weight,
            output_bias=answer.estimator.output_bias,
            start=answer.estimator.start if options.start is None else options.start,
        )
    if options.batch_size is not None:
        _follow_batch(batch_change_of(options, answer, settings.start), session, schedule)
    if answer is not None:
        _say_of_base(answer, options, metadata, session, schedule)
    session.begin(
        metadata, settings, schedule, match_every=options.every or 0, dry_run=options.dry_run
    )


def follow(session: TrainingSession, instructions: RunInstructions) -> None:
    """What `instructions` say of a session besides its arguments.

    Warns where no optimiser begins with the rate that the run is told to have.
    """
    session.run_log.judged_later = instructions.judged_later
    asked, rates = instructions.lr, initial_rates(session.optimizers)
    told = isinstance(asked, float) and session.ranks.is_rank0
    if told and not any(same_lr(rate, float(asked or 0)) for rate in rates):
        warn(
            f"FLERM_LR is {asked:g}, but the optimizer begins with "
            f"{', '.join(f'{rate:g}' for rate in sorted(rates))}: does the script use the learning "
            "rate that it is given?"
        )


def _target_schedule(
    options: MatchOptions,
    session: TrainingSession,
    registry: str | None,
    clock: TargetClock,
    settings: EstimatorSettings,
) -> TargetSchedule:
    """Targets as the user gave them, else from the registry; rank 0 alone asks."""
    parameters = session.measured_model.parameters
    optimizer, optimizer_config = session.optimizer_signature()
    query = TargetQuery(
        family=options.family,
        lr=math.nan if options.lr == "best" else session.lr,
        names=tuple(parameters),
        shapes=tuple(tuple(p.shape) for p in parameters.values()),
        policy=options.policy,
        depth=options.depth,
        blocks=options.block_axes,
        optimizer=optimizer,
        optimizer_config=optimizer_config,
        estimator=None if options.estimator is None else settings,
        tags=options.source_tags or {},
    )
    if options.targets is not None:
        return TargetSchedule.from_user(options, query, clock)
    if registry is None:
        raise InvalidInput(
            "registry= or targets= must be given, or FLERM_REGISTRY set: where are the targets?"
        )
    ask = partial(TargetSchedule.from_registry, registry, query, options, clock)
    schedule: TargetSchedule = session.ranks.on_rank0(ask)
    return schedule


def _say_of_base(
    answer: Targets,
    options: MatchOptions,
    metadata: RunMetadata,
    session: TrainingSession,
    schedule: TargetSchedule,
) -> None:
    """Lets the run say of the base what its user should know; a dry run says all that is known."""
    if answer.optimizer:  # else nothing is known of the base's groups
        _, own = session.optimizer_signature()
        names = session.measured_model.parameters
        for sentence in rate_words(names, own, answer.optimizer_config, session.lr):
            schedule.say(sentence)
    config = {**metadata.model_config, **(options.config or {})}
    run = RunFacts(
        batch_size=said_batch_size(config, options.tags or {}),
        steps=options.total_steps,
        follows=options.batch_size is not None,
        config=config,
        tags=options.source_tags or {},
    )
    if not options.dry_run:
        schedule.say("" if run.follows else unfollowed(answer, run.batch_size))
        return
    asked, token, seconds = metadata.registry, options.token, options.timeout
    ask = partial(
        match_cautions,
        answer,
        run,
        best=lambda query: fetch_best(asked, query, token=token, timeout=seconds),
        recording=lambda each: fetch_recording(asked, each, token=token, timeout=seconds),
    )
    schedule.cautions = session.ranks.on_rank0(ask)


def _follow_batch(change: BatchChange, session: TrainingSession, schedule: TargetSchedule) -> None:
    """Changes betas and multipliers as `change` says."""
    schedule.follow(change)
    follow_batch(session.optimizers, change)
    session.on_end.append(partial(put_back_betas, session.optimizers))
