"""A run's state as one value of a checkpoint."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from flerm_client.training.session import TrainingSession
from flerm_core._warnings import warn
from flerm_core.errors import InvalidInput
from flerm_core.measure.output_projection import seed_from
from flerm_core.measure.state_guard import PrivateRandomness, RandomState

_BY_NAME = ("multipliers", "current_targets", "fslr", "matched_fslr")  # of a session: dictionaries


def save(session: TrainingSession) -> dict[str, Any]:
    """`{"flerm": bytes}`, the session's state as `pack` writes it."""
    return {"flerm": pack(_state(session))}


def load(session: TrainingSession, state: Mapping[str, Any]) -> None:
    """Sets `session` to the state of the one that `save` was given.

    Raises `InvalidInput` for anything that `save` did not make, and where one of the two runs
    records and the other matches.
    """
    content = unpack(state["flerm"])
    schedule = session.target_schedule
    if (content["target_schedule"] is None) != (schedule is None):
        modes = ("match", "record") if schedule is None else ("record", "match")
        raise InvalidInput(
            f"the checkpoint is of a run by FLeRM.{modes[0]}, this one is by FLeRM.{modes[1]}"
        )
    session.meter.use_estimator(content["estimator"])
    session.run_log.detach_reporter()
    session.steps = content["steps"]
    schedules = (session.measure_schedule, session.match_schedule)
    for step_schedule, pending in zip(schedules, content["next_due"], strict=True):
        step_schedule.resume(session.steps, pending)
    session.meter.measurements = content["measurements"]
    session.meter.sharpness = content["sharpness"]
    for name in _BY_NAME:
        setattr(session, name, dict(content[name]))
    session.delayed = frozenset(content["delayed"])
    session.lr, session.recording_id = content["lr"], content["recording_id"]
    _load_randomness(session, content)
    session.run_log.load_state_dict(content["run_log"])
    if schedule is not None:
        asked = schedule.clock
        schedule.load_state_dict(content["target_schedule"])
        if schedule.clock != asked and session.ranks.is_rank0:
            warn(
                f"this run goes on by {schedule.clock}, as its checkpoint has it, "
                f"and not by {asked}"
            )
    _begin_attempt(session, content["attempt"])


def _begin_attempt(session: TrainingSession, previous: str) -> None:
    """The recording goes on in a new attempt after the attempt `previous`."""
    # A new id at each resume, and the same on every rank.
    own = str(uuid.uuid5(uuid.UUID(session.attempt.id), previous))
    session.attempt = replace(session.attempt, id=own, resume_at=session.steps + 1, after=previous)


def _state(session: TrainingSession) -> dict[str, Any]:
    random = session.meter.randomness.state
    schedule = session.target_schedule
    return {
        "rank": session.ranks.data_parallel_rank,
        "steps": session.steps,
        "next_due": (session.measure_schedule.next, session.match_schedule.next),
        "measurements": session.meter.measurements,
        "sharpness": session.meter.sharpness,
        "estimator": session.meter.estimator.name,
        **{name: dict(getattr(session, name)) for name in _BY_NAME},
        "delayed": sorted(session.delayed),
        "lr": session.lr,
        "recording_id": session.recording_id,
        "attempt": session.attempt.id,
        "probe": session.probe.state_dict(),
        "random": None if random is None else random.state_dict(),
        "run_log": session.run_log.state_dict(),
        "target_schedule": None if schedule is None else schedule.state_dict(),
    }


def pack(state: Mapping[str, Any]) -> bytes:
    """Plain values and tensors, as torch.save writes them."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def unpack(content: Any) -> dict[str, Any]:
    """What `pack` was given. Reads plain values and tensors only, and never runs code."""
    if not isinstance(content, bytes):
        raise InvalidInput(
            f"the checkpoint's 'flerm' is a {type(content).__name__}; "
            "it must be what FLeRM.state_dict() made"
        )
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return state


def _load_randomness(session: TrainingSession, content: Mapping[str, Any]) -> None:
    """Puts the probe and the measurement's random numbers where they were."""
    meter, probe = session.meter, session.probe
    if content["rank"] != session.ranks.data_parallel_rank:
        # The state of another rank, or of another world: the probe goes on at the same batch, and
        # random numbers come from a stream of this rank's own.
        meter.randomness = PrivateRandomness(
            seed_from(session.options.seed, session.ranks.data_parallel_rank, meter.measurements)
        )
        with meter.randomness.active():
            own_pass = {"pass_began": RandomState().state_dict()}
            probe.load_state_dict(content["probe"] | own_pass)
    elif content["random"] is not None:
        with meter.randomness.active():
            probe.load_state_dict(content["probe"])
        meter.randomness.state = RandomState.from_state_dict(content["random"])
