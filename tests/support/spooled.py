"""Small recordings for the tests of client, CLI and faults."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from flerm_client.spool import SpoolWriter
from flerm_core.records.recording import (
    Attempt,
    Ending,
    EstimatorSettings,
    Measurement,
    ParameterList,
    RecordingSpec,
    now,
)

NAMES = ("0.weight", "0.bias", "2.weight")
SHAPES = ((8, 4), (8,), (3, 8))
BANDS = ("input", "bias", "readout")


def spec_of(family: str, lr: float = 1e-2, **fields) -> RecordingSpec:
    """A base recording of three tensors."""
    parameters = ParameterList(NAMES, SHAPES, BANDS)
    given = {
        "optimizer": "Adam",
        "optimizer_config": {"betas": [0.9, 0.999]},
        "estimator": EstimatorSettings(),
        **fields,
    }
    return RecordingSpec(family=family, lr=lr, parameters=parameters, **given)


def row_of(step: int, scale: float = 1.0) -> Measurement:
    """FSLRs [step, 2 step, unmeasured] times `scale`."""
    values = np.array([step, 2 * step, np.nan], np.float32) * np.float32(scale)
    return Measurement(
        step=step,
        values=values,
        loss=1.0 / step,
        learning_rate=1e-2,
        tokens=64 * step,
        measured_at=now(),
    )


def write_run(
    folder,
    spec: RecordingSpec,
    steps,
    *,
    registry: str = "",
    attempt: Attempt | None = None,
    ending: Ending | None = None,
):
    """Writes a spool file with the rows of `steps`; its path. `ending` None: completed."""
    writer = SpoolWriter(folder, registry)
    path = writer.start(spec, attempt or Attempt())
    for step in steps:
        assert writer.append(row_of(step))
    assert writer.finish(
        ending or Ending(status="completed", final_loss=0.5, final_step=max(steps, default=0))
    )
    writer.close()
    return path


def child_environment(**settings: str) -> dict[str, str]:
    """The environment for a Python child that imports this module too."""
    paths = [
        str(Path(__file__).parent),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **settings}
