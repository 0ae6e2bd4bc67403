"""Trajectories and recordings of a small model with three blocks."""

from __future__ import annotations

from flerm_core.records.recording import ParameterList, Recording, RecordingSpec
from flerm_core.trajectory import Trajectory

NAMES = [
    "layers.0.attn.q.weight",
    "layers.1.attn.q.weight",
    "layers.2.attn.q.weight",
    "readout.weight",
]
SHAPES = [(4, 4)] * 3 + [(2, 4)]
BANDS = ["query/key"] * 3 + ["readout"]


def trajectory(values, steps=None, **more) -> Trajectory:
    return Trajectory(
        NAMES,
        SHAPES,
        [1, 101][: len(values)] if steps is None else steps,
        values,
        bands=BANDS,
        **more,
    )


def by_name(figure, name: str):
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def run(
    lr: float, loss: float | None, seed: int = 0, status: str = "completed", **spec
) -> Recording:
    listed = ParameterList((), (), ())
    return Recording(
        spec=RecordingSpec(family="f", lr=lr, seed=seed, parameters=listed, **spec),
        status=status,
        final_loss=loss,
    )
