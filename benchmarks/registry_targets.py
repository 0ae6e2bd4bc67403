"""Targets and best rate with 100,000 recordings stored against the same with 100: median and 99th
percentile.

    python benchmarks/registry_targets.py [--db URL|postgresql]

The family in question has 100 recordings (5 rates, 20 seeds) of 20 tensors x 10 measurements. All
other recordings belong to 999 other families or, in the last measurement, to the same family at
4,995 other rates.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import sqlalchemy as sa
from registry_bench import database, summary

from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.queries import BestQuery, TargetQuery
from flerm_core.records.recording import Ending, Measurement, ParameterList, RecordingSpec
from flerm_server.store import queries
from flerm_server.store.interface import Batch
from flerm_server.store.sql import schema
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine, transaction
from flerm_server.store.sql.store import SqlStore
from flerm_server.store.sql.tables import families, recordings

ASKED, ROUNDS, PATIENCE = "benchmark/asked", 100, 20.0


def main() -> None:
    """Prints one JSON object for each state of the database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="")
    options = parser.parse_args()
    with database(options.db) as (db, _):
        engine = open_engine(parse_url(db))
        schema.upgrade(engine)
        store = SqlStore(engine)
        fill(store)
        few = ask(store)
        others(engine, 999, 100)
        many = ask(store)
        gather(engine)
        gathered = ask(store)
        store.close()
    for question, seconds in few.items():
        base = summary(seconds)
        print(json.dumps({question: {"100 recordings": base}}))
        for name, found in (
            ("100,000 recordings", many),
            ("100,000 recordings of one family", gathered),
        ):
            its = summary(found[question])
            print(
                json.dumps(
                    {
                        question: {
                            name: its,
                            "ratio": {key: round(its[key] / base[key], 2) for key in base},
                        }
                    }
                )
            )


def fill(store: SqlStore) -> None:
    """Stores the family in question."""
    names = tuple(f"layers.{at}.weight" for at in range(20))
    parameters = ParameterList(names, ((4, 4),) * 20, ("feed-forward",) * 20)
    values = np.random.default_rng(0).random(20, np.float32)
    block = MeasurementBatch.of([Measurement(step=1 + 100 * at, values=values) for at in range(10)])
    template = RecordingSpec(family=ASKED, lr=1e-3, parameters=parameters, optimizer="Adam")
    for rate in range(5):
        for seed in range(20):
            spec = replace(template, id=str(uuid.uuid4()), lr=1e-4 * 2**rate, seed=seed)
            store.start(spec)
            store.append_many([Batch(spec.id, block)])
            store.finish(spec.id, 0, Ending(final_loss=1.0))


def others(engine: sa.Engine, count: int, each: int) -> None:
    """Stores further families, whose recordings are copies of one."""
    with transaction(engine, writes=True, unhurried=True) as connection:
        row = dict(connection.execute(sa.select(recordings).limit(1)).mappings().one())
        family = dict(connection.execute(sa.select(families).limit(1)).mappings().one())
        del row["key"], family["key"]
        for at in range(count):
            key = connection.execute(
                families.insert().values(family | {"name": f"other/{at}"})
            ).inserted_primary_key[0]
            copies = [
                row
                | {"id": str(uuid.uuid4()), "family_key": key, "created_at": row["created_at"] + at}
                for _ in range(each)
            ]
            connection.execute(recordings.insert(), copies)
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")


def gather(engine: sa.Engine) -> None:
    """Moves all recordings to the family in question, 20 at each of the rates above its own."""
    with transaction(engine, writes=True, unhurried=True) as connection:
        asked = connection.execute(
            sa.select(families.c.key).where(families.c.name == ASKED)
        ).scalar_one()
        keys = (
            connection.execute(sa.select(recordings.c.key).where(recordings.c.family_key != asked))
            .scalars()
            .all()
        )
        moved = [
            {"at": key, "lr": 2e-3 * 1.001 ** (at // 20), "own": at % 20}
            for at, key in enumerate(keys)
        ]
        change = recordings.update().where(recordings.c.key == sa.bindparam("at"))
        connection.execute(
            change.values(family_key=asked, lr=sa.bindparam("lr"), seed=sa.bindparam("own")), moved
        )
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")


def ask(store: SqlStore) -> dict[str, list[float]]:
    """Seconds of each query, by its name."""
    query, best = TargetQuery(family=ASKED, lr=3e-4), BestQuery(family=ASKED)
    return {
        "targets": timed(lambda: queries.targets(store, query)),
        "best": timed(lambda: queries.best(store, best)),
    }


def timed(act: Callable[[], object]) -> list[float]:
    """Seconds of each call after a first one."""
    act()
    seconds: list[float] = []
    began = time.monotonic()
    while len(seconds) < ROUNDS and (not seconds or time.monotonic() - began < PATIENCE):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
