"""Base recordings with their trajectories, and the targets that they give."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from flerm_core import Trajectory
from flerm_core.matching.targets import Targets, build_targets, choose_sources
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import ParameterList, Recording, RecordingSpec

NAMES = ["embed.weight", "layers.0.q.weight", "layers.1.q.weight", "layers.*.q.weight"]


SHAPES = [(8, 4), (4, 4), (4, 4), ()]


START = datetime(2025, 1, 1, tzinfo=UTC)


def recording(
    lr: float, seed: int = 0, *, status: str = "completed", minute: int = 0, **spec: object
) -> Recording:
    """A base recording by Adam, as listings give it."""
    fields = {"optimizer": "Adam", "optimizer_config": {"betas": [0.9, 0.999]}} | spec
    return Recording(
        spec=RecordingSpec(
            family="demo", lr=lr, seed=seed, parameters=ParameterList((), (), ()), **fields
        ),  # type: ignore[arg-type]
        status=status,
        created_at=START + timedelta(minutes=minute),
    )


def trajectory(
    scale: float, *, steps: tuple[int, ...] = (1, 101), tokens: tuple[int, ...] | None = (10, 1010)
) -> Trajectory:
    """FSLRs of 1 (embedding), 2 and 4 (blocks) and 5 (their depth group) at the first step, times
    `scale`, and half as much at each further step.
    """
    rows = [[scale * value * 0.5**at for value in (1, 2, 4, 5)] for at in range(len(steps))]
    return Trajectory(NAMES, SHAPES, steps, rows, tokens=tokens)


def answer(
    query: TargetQuery,
    trajectories: dict[str, Trajectory],
    recordings: list[Recording],
    **more: Any,
) -> Targets:
    sources = choose_sources(recordings, query)
    return build_targets(query, sources, lambda found: trajectories[found.spec.id], **more)


def grid(scales: dict[tuple[float, int], float]) -> tuple[dict[str, Trajectory], list[Recording]]:
    """Recordings and their trajectories: (lr, seed) to scale."""
    recordings = [recording(lr, seed) for lr, seed in scales]
    return {
        each.spec.id: trajectory(scale)
        for each, scale in zip(recordings, scales.values(), strict=True)
    }, recordings
