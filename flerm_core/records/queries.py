"""The questions that a registry answers, as plain values.

`flerm_core.records.validation` has their rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flerm_core.records.recording import EstimatorSettings

POLICIES = ("exact", "nearest", "interpolate")
"""How a learning rate between two recorded ones is answered; see `TargetQuery.policy`."""

DEPTH_RULE_NAMES = ("split", "coherent", "root")
"""The names of `flerm_core.matching.depth_rules.DEPTH_RULES`, for code that checks a name but runs
no rule.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFilter:
    """Which recordings a listing holds. A field that is empty or None does not filter.

    `lr_min` and `lr_max` are inclusive; the other fields must be equal. `created_after` and
    `created_before` bound `Recording.created_at`.
    """

    family: str = ""
    lr_min: float | None = None
    lr_max: float | None = None
    role: str = ""
    variant: str = ""
    optimizer: str = ""
    status: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryQuery:
    """Which part of a recording's trajectory to read.

    recording_id: the recording.
    first_step, last_step: the range of steps, both included; None: no bound.
    pattern: a shell-style pattern of parameter names; empty: every parameter.
    max_points: at most so many rows, evenly spread; 0: every row.
    """

    recording_id: str
    first_step: int | None = None
    last_step: int | None = None
    pattern: str = ""
    max_points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetQuery:
    """A question for targets.

    A field that is empty or None does not restrict the source recordings, but the sources must then
    agree among themselves.

    family: the family to search.
    lr: the base learning rate of the asking run.
    names: the asking model's parameters; empty: the base's own.
    shapes: their shapes, one for each name, or empty.
    policy: one of `POLICIES`.
    depth: one of `DEPTH_RULE_NAMES`; empty: the default rule.
    blocks: block axes ("layers.*"); empty: the family's, else those found from the names.
    optimizer: the optimiser's class name.
    optimizer_config: all settings of the optimiser but the learning rate.
    estimator: compared by `EstimatorSettings.comparability`.
    tags: every one of these must be set on a source recording.
    step: only the targets at this step; None: at every measured step.
    """

    family: str
    lr: float
    names: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    policy: str = "interpolate"
    depth: str = ""
    blocks: tuple[str, ...] = ()
    optimizer: str = ""
    optimizer_config: Mapping[str, Any] | None = None
    estimator: EstimatorSettings | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BestQuery:
    """A question for the best learning rate of a family.

    role, variant: of the recordings that count; an empty variant: plain.
    optimizer: class name; empty: any.
    tags: every one of these must be set on a recording that counts.
    pick: setting to value (`steps` to `300`): which experiment, where the family has several. Of a
        setting that is not named, the value with most recordings counts.
    cautions: whether to say when not to trust a match to this family, which takes as long as its
        transfer report.
    """

    family: str
    role: str = "base"
    variant: str = "plain"
    optimizer: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    pick: Mapping[str, str] = field(default_factory=dict)
    cautions: bool = False
