"""Fills a registry as a lab's is after two years, by rows of the tables: minutes, not days.

Every recording but one has ten rows of twenty tensors.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.packing import pack
from flerm_core.records.recording import Ending, Measurement, ParameterList, RecordingSpec
from flerm_server.store.interface import Batch
from flerm_server.store.sql.append_rows import COLUMNS
from flerm_server.store.sql.compiled_statements import InsertMany
from flerm_server.store.sql.engine import driver_transaction, transaction
from flerm_server.store.sql.store import SqlStore
from flerm_server.store.sql.tables import NEVER, attempts, families, measurements, recordings

LARGE, SMALL, SEARCH, OLD = "lab/large", "lab/small", "lab/search", "lab/old"
RATES = tuple(1e-4 * 2 ** (at / 2) for at in range(20))
FEW_RATES = RATES[4:12]
STEPS, TENSORS = 10, 20
LONG_STEPS, LONG_TENSORS = 5_000, 2_000
LARGE_SIZE, SEARCH_SIZE, SMALL_SIZE = 20_000, 5_000, 80
AGE = 2 * 365 * 86_400 * 1_000_000  # of the oldest recording, in microseconds
ROWS_AT_ONCE = 5_000


@dataclass(frozen=True)
class Run:
    """What tells one recording of a family from the others."""

    role: str
    variant: str
    lr: float
    seed: int
    width: int


def sweep(rates: tuple[float, ...], base: int, scaled: int) -> Iterator[Run]:
    """The base with `base` seeds at each rate; three widths, plain and matched, with `scaled`."""
    for lr in rates:
        for seed in range(base):
            yield Run("base", "plain", lr, seed, 128)
        for variant in ("plain", "matched"):
            for width in (256, 512, 1024):
                for seed in range(scaled):
                    yield Run("scaled", variant, lr, seed, width)


def fill(store: SqlStore, recordings_wanted: int, created_by: str) -> None:
    """Fills an empty registry with so many recordings: one family of a fifth of them, one random
    search of a twentieth, one recording of 2,000 tensors x 5,000 steps, and families of about 80.

    created_by: who started them.
    """
    share = recordings_wanted / 100_000
    template = recorded_template(store, "lab/one", TENSORS)
    seeds = max(1, round(400 * share))
    large = list(sweep(RATES, seeds, max(1, round(100 * share))))
    fill_family(store, template, LARGE, large, created_by)
    random.seed(0)
    search = [
        Run("base", "plain", 2.0 ** random.uniform(-14, -2), at, 128)
        for at in range(round(SEARCH_SIZE * share))
    ]
    fill_family(store, template, SEARCH, search, created_by)
    small = list(sweep(FEW_RATES, 4, 1))
    fill_family(store, template, SMALL, small, created_by)
    left = recordings_wanted - len(large) - len(search) - len(small)
    each = list(sweep(FEW_RATES[:7], 5, 1))
    for at in range(max(0, left // len(each))):
        fill_family(store, template, f"team{at % 7}/study-{at:04}", each, created_by)
    _long(store)
    with transaction(store.engine, writes=True, unhurried=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")


def fill_family(
    store: SqlStore, template: dict[str, Any], family: str, runs: list[Run], created_by: str
) -> None:
    """Stores `runs` as completed recordings of `family`, spread over the last two years."""
    pick = random.Random(family)
    with transaction(store.engine, writes=True, unhurried=True) as connection:
        newest = template["created_at"]
        family_key = connection.execute(
            families.insert().values(
                name=family, description="", blocks=[], created_at=newest - AGE,
                updated_at=newest - AGE, created_by=created_by,
            )
        ).inserted_primary_key[0]  # fmt: skip
        first, first_attempt = (_next_key(connection, each) for each in (recordings, attempts))
        rows, its_attempts = [], []
        for at, run in enumerate(runs):
            moment = newest - AGE + round(AGE * pick.random())
            distance = np.log2(run.lr / 2e-3)
            loss = 2 + 0.05 * distance**2 + 0.01 * pick.random() + 64 / run.width
            identity = str(uuid.UUID(int=pick.getrandbits(128), version=4))
            diverged = run.role == "scaled" and run.lr > 0.05
            status = "diverged" if diverged else "completed"
            rows.append(
                template
                | {
                    "key": first + at, "id": identity, "family_key": family_key,
                    "role": run.role, "variant": run.variant, "lr": run.lr, "seed": run.seed,
                    "config": template["config"] | {"width": run.width},
                    "created_at": moment, "updated_at": moment, "finished_at": moment,
                    "created_by": created_by, "final_loss": float(loss), "status": status,
                }
            )  # fmt: skip
            its_attempts.append({
                "key": first_attempt + at, "recording_key": first + at, "id": identity, "number": 1,
                "resume_at": 0, "started_at": moment, "status": status, "world_size": 1,
                "versions": {}, "visible_below": NEVER, "last_step": template["last_step"],
                "finished_at": moment,
            })  # fmt: skip
        for table, its_rows in ((recordings, rows), (attempts, its_attempts)):
            for start in range(0, len(its_rows), ROWS_AT_ONCE):
                connection.execute(table.insert(), its_rows[start : start + ROWS_AT_ONCE])
            _set_sequence(connection, table)
    values = np.random.default_rng(len(family)).random((len(runs), STEPS, TENSORS), np.float32)
    stored = [
        (first_attempt + at, 1 + 100 * step, pack(values[at, step]), 3.0, run.lr, step, None, 0, 0)
        for at, run in enumerate(runs)
        for step in range(STEPS)
    ]
    with driver_transaction(store.engine, writes=True) as driver:
        InsertMany(measurements, COLUMNS).run(driver, stored)


def template_of(store: SqlStore) -> dict[str, Any]:
    """The row of a recording of twenty tensors, without its key."""
    with transaction(store.engine) as connection:
        query = sa.select(recordings).where(recordings.c.parameter_count == TENSORS).limit(1)
        row = dict(connection.execute(query).mappings().one())
    del row["key"]
    return row


def recorded_template(store: SqlStore, family: str, tensors: int) -> dict[str, Any]:
    """Records one run of ten rows, as a job does, and gives its row."""
    names = tuple(f"layers.{at}.weight" for at in range(tensors))
    parameters = ParameterList(names, ((64, 64),) * tensors, ("feed-forward",) * tensors)
    spec = RecordingSpec(
        family=family, lr=1e-3, parameters=parameters, optimizer="AdamW",
        optimizer_config={"betas": [0.9, 0.95], "weight_decay": 0.1},
        config={"width": 128, "depth": 4, "steps": 1000, "schedule": "cosine"},
    )  # fmt: skip
    values = np.random.default_rng(0).random((STEPS, tensors), np.float32)
    rows = [
        Measurement(step=1 + 100 * at, values=values[at], loss=3.0, learning_rate=1e-3, tokens=at)
        for at in range(STEPS)
    ]
    _record(store, spec, [rows])
    return template_of(store)


def _long(store: SqlStore) -> None:
    """The recording of 2,000 tensors x 5,000 steps, of the family lab/long."""
    names = tuple(f"layers.{at}.weight" for at in range(LONG_TENSORS))
    shapes = ((64, 64),) * LONG_TENSORS
    parameters = ParameterList(names, shapes, ("feed-forward",) * LONG_TENSORS)
    spec = RecordingSpec(family="lab/long", lr=1e-3, parameters=parameters, optimizer="AdamW")
    values = np.random.default_rng(1).random(LONG_TENSORS, np.float32)
    blocks = (
        [Measurement(step=step, values=values, loss=3.0) for step in range(start, start + 500)]
        for start in range(1, LONG_STEPS, 500)
    )
    _record(store, spec, blocks)


def _record(store: SqlStore, spec: RecordingSpec, blocks: Any) -> None:
    store.start(spec)
    for rows in blocks:
        store.append_many([Batch(spec.id, MeasurementBatch.of(rows))])
    store.finish(spec.id, 0, Ending(final_loss=2.5, final_step=1000))


def _next_key(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.max(table.c.key))).scalar() or 0) + 1


def _set_sequence(connection: sa.Connection, table: sa.Table) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            f"SELECT setval(pg_get_serial_sequence('{table.name}', 'key'), "
            f"(SELECT max(key) FROM {table.name}))"
        )
