"""The FLeRM of a script that is told nothing: it has no session, and its methods do nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flerm_client.flerm import FLeRM
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.trajectory import Trajectory


class IdleFLeRM(FLeRM):
    """Measures nothing, wraps nothing, and answers as a run that has not begun.

    `FLeRM.auto` returns one where the environment says nothing. A test holds that no member of
    `FLeRM` is left that would look for a session.
    """

    family = ""
    lr = math.nan
    recording_id = ""
    steps = 0
    start = 1
    estimator = ""
    measuring = False
    measurements = 0
    sharpness = math.nan

    def __init__(self) -> None:
        pass

    def __repr__(self) -> str:
        return "<FLeRM without a session: FLERM_MODE is not set>"

    @property
    def fslr(self) -> dict[str, float]:
        """Empty."""
        return {}

    @property
    def matched_fslr(self) -> dict[str, float]:
        """Empty."""
        return {}

    @property
    def targets(self) -> dict[str, float]:
        """Empty."""
        return {}

    @property
    def multipliers(self) -> dict[str, float]:
        """Empty."""
        return {}

    def learning_rates(self) -> dict[str, float]:
        """Empty."""
        return {}

    @property
    def trajectory(self) -> Trajectory:
        """Without tensors and rows."""
        return Trajectory([], [], [], np.zeros((0, 0)))

    @property
    def auxiliary(self) -> AuxiliaryColumns:
        """Without columns."""
        return AuxiliaryColumns.of([], [], 0)

    def log(self, loss: Any = None, tokens: int | None = None) -> None:
        """Does nothing."""

    def close(self, status: str = "completed", timeout: float = 10.0) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: a checkpoint of an unmeasured run holds nothing of FLeRM."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing."""
