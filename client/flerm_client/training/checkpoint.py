"""A run's state as one value of a checkpoint."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from flerm_client.training.session import TrainingSession
from flerm_core.errors import InvalidInput


def save(session: TrainingSession) -> dict[str, Any]:
    """`{"flerm": bytes}`, the session's state as `pack` writes it."""
    return {"flerm": pack(_state(session))}


def load(session: TrainingSession, state: Mapping[str, Any]) -> None:
    """Sets `session` to the state of the one that `save` was given.

    Raises `InvalidInput` for anything that `save` did not make, and where one of the two runs
    records and the other matches.
    """
    content = unpack(state["flerm"])
    matcher = session.matcher
    if (content["matcher"] is None) != (matcher is None):
        modes = ("match", "record") if matcher is None else ("record", "match")
        raise InvalidInput(
            f"the checkpoint is of a run by FLeRM.{modes[0]}, this one is by FLeRM.{modes[1]}"
        )
    session.run_log.detach_reporter()
    session.steps = content["steps"]
    session.lr, session.recording_id = content["lr"], content["recording_id"]
    session.measurer.load_state_dict(content["measurer"], session.steps)
    session.run_log.load_state_dict(content["run_log"])
    session.run_log.end_step(session.steps)
    if matcher is not None:
        matcher.load_state_dict(content["matcher"], session.steps)
    _begin_attempt(session, content["attempt"])
    session.begin_report()


def _begin_attempt(session: TrainingSession, previous: str) -> None:
    """The recording goes on in a new attempt after the attempt `previous`."""
    # A new id at each resume, and the same on every rank.
    own = str(uuid.uuid5(uuid.UUID(session.attempt.id), previous))
    session.attempt = replace(session.attempt, id=own, resume_at=session.steps + 1, after=previous)


def _state(session: TrainingSession) -> dict[str, Any]:
    return {
        "steps": session.steps,
        "lr": session.lr,
        "recording_id": session.recording_id,
        "attempt": session.attempt.id,
        "measurer": session.measurer.state_dict(),
        "matcher": None if session.matcher is None else session.matcher.state_dict(),
        "run_log": session.run_log.state_dict(),
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
