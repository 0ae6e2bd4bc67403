"""`python -m tests.server.store.dump_schema` writes schemas/NNNN.sql of the newest revision.

Run it once, with the migration that makes the revision. Later versions then upgrade a database as
servers of this revision wrote it, and not one that their own code made up.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Ending, Measurement, ParameterList, RecordingSpec
from flerm_server.store.interface import Batch
from flerm_server.store.sql import schema
from flerm_server.store.sql.store import open_store

SCHEMAS = Path(__file__).parent / "schemas"
SPEC = RecordingSpec(
    id="5f0b6b1e-6f3a-4f64-9d0e-0c1a2b3c4d5e",
    family="team/resmlp",
    lr=3e-4,
    parameters=ParameterList(
        ("layers.0.weight", "layers.1.weight", "readout.weight"),
        ((4, 4), (4, 4), (2, 4)),
        ("feed-forward", "feed-forward", "readout"),
    ),
    optimizer="Adam",
    optimizer_config={"betas": [0.9, 0.999], "amsgrad": False},
    tags={"a": "b"},
)
STEPS = (1, 101)


def dump() -> str:
    """A database of the newest revision with one recording, as SQL."""
    with tempfile.TemporaryDirectory() as folder:
        with closing(open_store(f"sqlite:///{folder}/registry.db")) as store:
            store.start(SPEC)
            rows = [
                Measurement(step=step, values=np.array([step, step / 2, np.nan], np.float32))
                for step in STEPS
            ]
            store.append_many([Batch(SPEC.id, MeasurementBatch.of(rows), 0)])
            store.finish(SPEC.id, 0, Ending(final_loss=0.5))
        with closing(sqlite3.connect(f"{folder}/registry.db")) as file:
            return "\n".join(file.iterdump()) + "\n"


if __name__ == "__main__":
    (SCHEMAS / f"{schema.head()}.sql").write_text(dump())
