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


def save(run: TrainingSession) -> dict[str, Any]:
    """`{"flerm": bytes}`: plain values and tensors, as torch.save writes them."""
    return {"flerm": packed(_state(run))}


def load(run: TrainingSession, state: Mapping[str, Any]) -> None:
    """Sets `run` to where the one was that `save` was given.

    Raises `InvalidInput` for anything else than what `save` made, and where the two runs are set up otherwise (recording,
    matching).
    """
    content = unpacked(state["flerm"])
    if (content["aim"] is None) != (run.aim is None):
        kinds = ("record", "match") if content["aim"] is None else ("match", "record")
        raise InvalidInput(
            f"the checkpoint is of a run by FLeRM.{kinds[0]}, this one is by FLeRM.{kinds[1]}"
        )
    run.meter.take(content["estimator"])
    run.journal.hand_over()
    run.steps = content["steps"]
    for clock, pending in zip((run.measuring, run.matching), content["next"], strict=True):
        clock.resume(run.steps, pending)
    run.meter.measurements, run.meter.sharpness = content["measurements"], content["sharpness"]
    run.multipliers, run.fslr = dict(content["multipliers"]), dict(content["fslr"])
    run.aimed, run.matched_fslr, run.late = (
        dict(content["aimed"]),
        dict(content["matched_fslr"]),
        frozenset(content["late"]),
    )
    run.lr, run.recording_id = content["lr"], content["recording_id"]
    _load_randomness(run, content)
    run.journal.load_state_dict(content["journal"])
    if run.aim is not None:
        asked = run.aim.pace
        run.aim.load_state_dict(content["aim"])
        if run.aim.pace != asked and run.ranks.lead:
            warn(
                f"this run goes on by {run.aim.pace}, as its checkpoint has it, and not by {asked}"
            )
    before = content.get("attempt", "")
    own = str(
        uuid.uuid5(uuid.UUID(run.attempt.id), before)
    )  # another one each time, the same on every rank
    run.attempt = replace(run.attempt, id=own, resume_at=run.steps + 1, after=before)


def _state(run: TrainingSession) -> dict[str, Any]:
    random = run.meter.randomness.state
    return {
        "rank": run.ranks.rank,
        "steps": run.steps,
        "next": (run.measuring.next, run.matching.next),
        "measurements": run.meter.measurements,
        "sharpness": run.meter.sharpness,
        "estimator": run.meter.estimator.name,
        "multipliers": dict(run.multipliers),
        "aimed": dict(run.aimed),
        "matched_fslr": dict(run.matched_fslr),
        "late": sorted(run.late),
        "fslr": dict(run.fslr),
        "lr": run.lr,
        "recording_id": run.recording_id,
        "attempt": run.attempt.id,
        "probe": run.probe.state_dict(),
        "random": None if random is None else random.state_dict(),
        "journal": run.journal.state_dict(),
        "aim": None if run.aim is None else run.aim.state_dict(),
    }


def packed(state: Mapping[str, Any]) -> bytes:
    """Plain values and tensors, as torch.save writes them."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def unpacked(content: Any) -> dict[str, Any]:
    """What `packed` was given. Reads plain values and tensors only, never code."""
    if not isinstance(content, bytes):
        raise InvalidInput(
            f"the checkpoint's 'flerm' is a {type(content).__name__}; it must be what FLeRM.state_dict() made"
        )
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return state


def _load_randomness(run: TrainingSession, content: Mapping[str, Any]) -> None:
    if content["rank"] != run.ranks.rank:
        # Of another rank or world: this one goes on at the same place by a stream of its own.
        run.meter.randomness = PrivateRandomness(
            seed_from(run.seed, run.ranks.rank, run.meter.measurements)
        )
        with run.meter.randomness.active():
            run.probe.load_state_dict(
                {**content["probe"], "pass_began": RandomState().state_dict()}
            )
    elif content["random"] is not None:
        with run.meter.randomness.active():
            run.probe.load_state_dict(content["probe"])
        run.meter.randomness.state = RandomState.from_state_dict(content["random"])
