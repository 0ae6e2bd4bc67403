"""What a recording is, for client, spool, store and pages alike.

Plain values. `flerm_core.records.validation` has the rules for what may be stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flerm_core.records.auxiliary import Auxiliary

ROLES = ("base", "scaled")
FINAL_STATUSES = ("completed", "diverged", "failed")
"""The statuses of attempts and recordings that take no more rows."""
ENDING_STATUSES = ("interrupted", *FINAL_STATUSES)
"""The statuses that a run can end with.

After "interrupted" late rows and another end are still taken.
"""
STATUSES = ("running", *ENDING_STATUSES)
ESTIMATORS = ("example", "kronecker", "iid", "full", "exact")


def now() -> datetime:
    """The current time in UTC, with its time zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ParameterList:
    """The parameters of a recording: canonical names, shapes and bands, all of one length.

    Entry l of each of the recording's vectors belongs to parameter l. A name with `*` in place of
    block numbers is a depth group: the joint change of its tensors. Its shape is ().
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bands: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content. Equal lists have equal digests on every machine."""
        return content_digest([self.names, self.shapes, self.bands])

    def select(self, indices: Sequence[int]) -> ParameterList:
        """The sub-list at `indices`, in their order."""
        return ParameterList(
            tuple(self.names[i] for i in indices),
            tuple(self.shapes[i] for i in indices),
            tuple(self.bands[i] for i in indices),
        )


def content_digest(content: object) -> str:
    """SHA-256 (hex) of JSON-like content, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """How FSLRs were estimated.

    name: one of `ESTIMATORS`.
    samples: draws per measurement.
    warmup: draws of the first measurement.
    every: steps between measurements; 0: one measurement, at step `start`.
    output_weight, output_bias: the parameters of the output layer, which `kronecker` needs.

    Recordings compare only when `comparability` is equal.
    """

    name: str = "example"
    samples: int = 1
    warmup: int = 8
    every: int = 100
    start: int = 1
    output_weight: str = ""
    output_bias: str = ""

    @property
    def comparability(self) -> str:
        """What must agree between two recordings, because estimators differ in bias."""
        outputs = [name for name in (self.output_weight, self.output_bias) if name]
        return (
            f"{self.name}({', '.join(outputs)})"
            if outputs and self.name == "kronecker"
            else self.name
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingSpec:
    """What a client tells of a recording when it starts.

    family: "name" or "team/name".
    lr: the base learning rate, by which the recording is found within its family.
    parameters: what the values of its measurements belong to.
    id: a UUID.
    seed: of the run's randomness; recordings that differ in it alone are averaged.
    role: one of `ROLES`.
    variant: how the run was trained ("plain", "matched", ...).
    optimizer: the class name.
    optimizer_config: the optimiser's settings without the learning rate.
    config: settings of the model.
    estimator: how FSLRs were estimated.
    tags: text by name, to filter by.
    world_size: the number of ranks.
    versions: of Python and packages, by name.
    targets_digest, targets_sources: the targets that a matched run used, and the ids of their
        recordings.
    """

    family: str
    lr: float
    parameters: ParameterList
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    seed: int = 0
    role: str = "base"
    variant: str = "plain"
    optimizer: str = ""
    optimizer_config: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    tags: Mapping[str, str] = field(default_factory=dict)
    world_size: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    targets_digest: str = ""
    targets_sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of a training process that wrote a recording.

    A resume at step k opens a new attempt, which owns the steps from k on.

    resume_at: k; 0 for the first attempt.
    started_at: by the clock of the process's host.
    sent_at: when the start was sent, by the same clock; None: that clock is right.
    after: the id of the attempt whose checkpoint this one resumed from, where it is known.
    """

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    resume_at: int = 0
    started_at: datetime = field(default_factory=now)
    sent_at: datetime | None = None
    after: str = ""


def in_order(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts of one recording, given in the order of arrival, in the order in which they ran.

    They are ordered by `started_at`, because the spool of an attempt that died may arrive after its
    successor has begun. But no attempt comes before the one that it resumed from, even if the clock
    of its host stepped back. Ties keep the order of arrival.
    """
    known = {each.id: each for each in attempts}
    moments: dict[
        str, tuple[datetime, int]
    ] = {}  # and how many had to be put behind another at that moment
    for each in attempts:
        chain: list[Attempt] = []
        link: Attempt | None = each
        while link is not None and link.id not in moments and link not in chain:
            chain.append(link)
            link = known.get(link.after)
        floor = moments.get(link.id) if link is not None else None
        for link in reversed(chain):
            began = (link.started_at, 0)
            floor = began if floor is None else max(began, (floor[0], floor[1] + 1))
            moments[link.id] = floor
    return sorted(attempts, key=lambda each: moments[each.id])


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording as a registry knows it.

    In listings `spec.parameters` is empty, and `parameter_count` is its length.

    status: one of `STATUSES`.
    attempt: the number of the latest attempt.
    rows: measurements that count.
    first_step, last_step: of these measurements.
    final_step: the step at which the run ended, where the run told it.
    tokens: seen by the end, or by the last row that logged them.
    remarks: as in `Ending`.
    created_by: the name of the token.
    """

    spec: RecordingSpec
    status: str = "running"
    attempt: int = 1
    rows: int = 0
    first_step: int = 0
    last_step: int = 0
    final_loss: float | None = None
    tokens: int | None = None
    created_at: datetime = field(default_factory=now)
    updated_at: datetime = field(default_factory=now)
    finished_at: datetime | None = None
    created_by: str = ""
    parameter_count: int = 0
    final_step: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """The optimiser steps that were run; while their number is not known, the last measured."""
        return self.last_step if self.final_step is None else self.final_step

    def without_parameters(self) -> Recording:
        """The recording as a listing holds it."""
        return replace(self, spec=replace(self.spec, parameters=ParameterList((), (), ())))


def flat_fields(recording: Recording) -> dict[str, Any]:
    """The fields of a recording and of its specification by name, on one level, for JSON."""
    content = {each.name: getattr(recording, each.name) for each in fields(recording)}
    spec = content.pop("spec")
    return {each.name: getattr(spec, each.name) for each in fields(spec)} | content


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row: all FSLRs at one optimiser step.

    values: float32 [L] in output units per unit learning rate; NaN: unmeasured.
    tokens: seen by the end of the step.
    scalars, vectors: auxiliary values (`flerm_core.records.auxiliary`).
    """

    step: int
    values: NDArray[np.float32]
    loss: float | None = None
    learning_rate: float | None = None
    tokens: int | None = None
    measured_at: datetime | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def auxiliary(self) -> Auxiliary | None:
        """Scalars and vectors as one value; None when there is neither."""
        return Auxiliary(self.scalars, self.vectors) if self.scalars or self.vectors else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended.

    status: one of `ENDING_STATUSES`.
    final_loss: the mean of the last 200 logged losses, or of the last fifth where fewer than 1,000
        were logged.
    final_step: the last optimiser step.
    tokens: seen by the end.
    remarks: sentences that say what of the run was not measured or matched, and why.
    finished_at: when, by the clock of the process's host; None: when the registry hears of it.
    sent_at: when the end was sent, by the same clock; None: that clock is right.
    """

    status: str = "completed"
    final_loss: float | None = None
    final_step: int | None = None
    tokens: int | None = None
    remarks: tuple[str, ...] = ()
    finished_at: datetime | None = None
    sent_at: datetime | None = None

    @classmethod
    def of(cls, recording: Recording) -> Ending:
        """The ending of `recording`: its fields of the same names, `status` as it is."""
        return cls(**{name: getattr(recording, name) for name in cls._kept()})

    def as_dict(self) -> dict[str, Any]:
        """The fields by name that a `Recording` and its table have too."""
        return {name: getattr(self, name) for name in self._kept()}

    @classmethod
    def _kept(cls) -> list[str]:
        return [each.name for each in fields(cls) if each.name != "sent_at"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models whose parameters correspond at any width, depth, initialisation scale or LoRA rank."""

    name: str
    description: str = ""
    blocks: tuple[str, ...] = ()
    created_at: datetime = field(default_factory=now)
    updated_at: datetime = field(default_factory=now)
    created_by: str = ""
    recordings: int = 0
    learning_rates: tuple[float, ...] = ()


def same_lr(a: float, b: float) -> bool:
    """Whether two learning rates are the same: equal to a relative 1e-9.

    A rate thus stays the same when it is printed and read back.
    """
    return math.isclose(a, b, rel_tol=1e-9)
