"""The runs of families, read from the database when they change.

The database counts the changes of each family's runs (`families.revision`, see `change_counts`),
whichever server makes them. While the count is the same, what was read before is right.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa

from flerm_core.records.comparability import optimizer_key
from flerm_core.tuning.best_lr import SweepRun, model_size
from flerm_server.store.family_runs import Answers, FamilyRun, FamilyRuns
from flerm_server.store.sql.compiled_statements import Driver, Prepared, PreparedIn
from flerm_server.store.sql.engine import (
    driver_database_now,
    driver_transaction,
    timestamp_from_column,
    transaction,
)
from flerm_server.store.sql.listings import family_record
from flerm_server.store.sql.mappers import family_from_row
from flerm_server.store.sql.tables import families, recording_tags, recordings

MAX_RUNS = 100_000  # in memory, of all families together; a run takes about 400 bytes
KEYS_AT_ONCE = 500

MOST_CHANGES = 2000  # more of one family are read by reading all of it

_COLUMNS = (
    "key", "updated_at", "id", "role", "variant", "optimizer", "lr", "seed", "final_loss", "status",
)  # fmt: skip
_EVERY_RUN = sa.select(
    *(recordings.c[name] for name in _COLUMNS),
    *(sa.cast(recordings.c[name], sa.Text) for name in ("optimizer_config", "config")),
)
_EVERY_TAG = sa.select(
    recording_tags.c.recording_key, recording_tags.c.name, recording_tags.c.value
)
_OF_FAMILY = recordings.c.family_key == sa.bindparam("family")
_STAMPS = Prepared(
    sa.select(recordings.c.key, recordings.c.updated_at)
    .where(_OF_FAMILY)
    .order_by(recordings.c.created_at.desc(), recordings.c.key.desc())
)
_RUNS = Prepared(_EVERY_RUN.where(_OF_FAMILY))
_FAMILY = Prepared(sa.select(families).where(families.c.name == sa.bindparam("name")))
_LENGTHS = Prepared(
    sa.select(
        recordings.c.id, recordings.c.final_step, recordings.c.last_step, recordings.c.rows
    ).where(_OF_FAMILY)
)
_RUNS_OF = PreparedIn(_EVERY_RUN, recordings.c.key)
_TAGS = Prepared(_EVERY_TAG.join_from(recording_tags, recordings).where(_OF_FAMILY))
_TAGS_OF = PreparedIn(_EVERY_TAG, recording_tags.c.recording_key)

_LEASES = PreparedIn(
    sa.select(recordings.c.key, recordings.c.updated_at, recordings.c.lease_until).order_by(
        recordings.c.key
    ),
    recordings.c.key,
)

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Shared:
    """What runs of a sweep share: names, the keys of optimisers by (name, settings), and
    configurations with the size of their model, by the digest of their text.
    """

    words: dict[str, str]
    optimizers: dict[tuple[str, str], str]
    configs: dict[bytes, tuple[Mapping[str, Any], float | None]]


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a family at one count of its changes.

    stamps: when each recording was last written to, by its key, in the order of `runs`.
    running: the ids of its running recordings, by their keys.
    rates: of its base recordings.
    """

    revision: int
    stamps: Mapping[int, int]
    runs: tuple[FamilyRun, ...]
    running: Mapping[int, str]
    rates: tuple[float, ...]
    shared: _Shared
    answers: Answers


class FamilyRunsCache:
    """The runs of the families that were asked for last. Callers may be on any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        """Reads nothing yet."""
        self._engine = engine
        self._known: OrderedDict[int, _Known] = OrderedDict()  # by the family's key
        # What was found last of a family none of whose runs are running, and the family's row.
        self._found: dict[int, tuple[Row, FamilyRuns]] = {}
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}  # by the family's name

    def get(self, name: str, within: str) -> FamilyRuns:
        """The runs of the family `name`. Raises `NotFound` as `Store.family` does."""
        if (same := self._unchanged(name)) is not None:
            return same
        # One caller reads, and those that ask meanwhile find what it read.
        with self._lock:
            reading = self._reading.setdefault(name, threading.Lock())
        try:
            with reading:
                return self._read(name, within)
        finally:
            with self._lock:
                self._reading.pop(name, None)

    def _unchanged(self, name: str) -> FamilyRuns | None:
        """What was found last; None where the family has changed since, or has a running run."""
        with driver_transaction(self._engine) as driver:
            rows = _FAMILY.all(driver, {"name": name})
        if rows:
            with self._lock:
                row, found = self._found.get(rows[0][0], (None, None))
                if row == rows[0]:
                    self._known.move_to_end(rows[0][0])
                    return found
        return None

    def _read(self, name: str, within: str) -> FamilyRuns:
        with transaction(self._engine, snapshot=True) as connection:
            row = family_record(connection, name, within)
            stored = _FAMILY.all(Driver.of(connection), {"name": name})[0]
            with self._lock:
                known = self._known.get(row.key)
            if known is None or known.revision != row.revision:
                known = _load(connection, row.key, row.revision, known)
            lapsed, written = _live(connection, known.running)
        family = family_from_row(row, len(known.runs), known.rates)
        # Rows change no run but when it was written to, so those of running ones were asked for.
        latest = max([*written, *known.stamps.values()], default=row.updated_at)
        active_at = timestamp_from_column(latest)
        found = FamilyRuns(
            family, known.runs, active_at, row.revision, lapsed, written, known.answers,
            partial(self._lengths, row.key),
        )  # fmt: skip
        self._keep(row.key, known, None if known.running else (stored, found))
        return found

    def _lengths(self, key: int) -> dict[str, tuple[int, int]]:
        """See `FamilyRuns.read_lengths`."""
        with driver_transaction(self._engine) as driver:
            return {
                identity: (last if final is None else final, rows)
                for identity, final, last, rows in _LENGTHS.each(driver, {"family": key})
            }

    def _keep(self, key: int, known: _Known, found: tuple[Row, FamilyRuns] | None) -> None:
        with self._lock:
            self._known[key] = known
            self._known.move_to_end(key)
            self._found.pop(key, None)
            if found is not None:
                self._found[key] = found
            kept = sum(len(each.runs) for each in self._known.values())
            while kept > MAX_RUNS and len(self._known) > 1:
                forgotten, oldest = self._known.popitem(last=False)
                self._found.pop(forgotten, None)
                kept -= len(oldest.runs)


class _Reader:
    """Reads runs from rows of `_RUNS`. Runs of a sweep share their settings, which are kept once.

    `shared` holds them for the next reader, by the digest of their text.
    """

    def __init__(self, before: _Shared | None = None) -> None:
        self.shared: _Shared = before or _Shared({}, {}, {})

    def run(self, row: Row, tags: Mapping[str, str]) -> FamilyRun:
        """The run of a row."""
        _, _, identity, role, variant, optimizer, lr, seed, loss, status, settings, text = row
        word = self.shared.words.setdefault
        optimizer, status = word(optimizer, optimizer), word(status, status)
        its_key = self.shared.optimizers.get((optimizer, settings))
        if its_key is None:
            its_key = optimizer_key(optimizer, json.loads(settings))
            self.shared.optimizers[optimizer, settings] = its_key
        digest = blake2b(text.encode(), digest_size=16).digest()
        config = self.shared.configs.get(digest)
        if config is None:
            content = json.loads(text)
            config = self.shared.configs[digest] = content, model_size(content)
        run = SweepRun(lr=lr, seed=seed, loss=loss, status=status, size=config[1])
        return FamilyRun(
            identity, word(role, role), word(variant, variant), optimizer, its_key, config[0],
            tags, run,
        )  # fmt: skip


def _load(
    connection: sa.Connection, family_key: int, revision: int, before: _Known | None
) -> _Known:
    """The runs of a family. Those that are in `before`, unchanged since, are taken from there."""
    driver = Driver.of(connection)
    stamps = dict(_STAMPS.each(driver, {"family": family_key}))
    if before is not None:
        old = before.stamps
        changed = [key for key, stamp in stamps.items() if old.get(key) != stamp]
    if before is None or len(changed) > MOST_CHANGES:
        reader, same = _Reader(), {}
        rows = _RUNS.each(driver, {"family": family_key})
        tags = _tags(_TAGS.each(driver, {"family": family_key}))
    else:
        reader = _Reader(before.shared)
        same = dict(zip(before.stamps, before.runs, strict=True))
        parts = [changed[at : at + KEYS_AT_ONCE] for at in range(0, len(changed), KEYS_AT_ONCE)]
        rows = (row for part in parts for row in _RUNS_OF.all(driver, part))
        tags = _tags(row for part in parts for row in _TAGS_OF.all(driver, part))
    untagged: dict[str, str] = {}
    found = {row[0]: reader.run(row, tags.get(row[0], untagged)) for row in rows}
    runs = tuple(found.get(key) or same[key] for key in stamps)
    return _Known(
        revision,
        stamps,
        runs,
        {key: run.id for key, run in zip(stamps, runs, strict=True) if run.status == "running"},
        tuple(sorted({run.run.lr for run in runs if run.role == "base"})),
        reader.shared,
        Answers(before.answers if before is not None else None),
    )


def _tags(rows: Iterable[tuple[Any, ...]]) -> dict[int, dict[str, str]]:
    """Tags from rows of `_TAGS`, by the recordings' keys."""
    words: dict[str, str] = {}
    found: dict[int, dict[str, str]] = {}
    for key, name, value in rows:
        found.setdefault(key, {})[words.setdefault(name, name)] = words.setdefault(value, value)
    return found


def _live(
    connection: sa.Connection, running: Mapping[int, str]
) -> tuple[frozenset[str], tuple[int, ...]]:
    """Of running recordings: the ids of those whose lease has ended, and when each was last written
    to.
    """
    driver = Driver.of(connection)
    keys: Sequence[int] = list(running)
    now = driver_database_now(driver) if keys else 0
    lapsed: list[str] = []
    written: list[int] = []
    for start in range(0, len(keys), KEYS_AT_ONCE):
        for key, stamp, lease in _LEASES.all(driver, keys[start : start + KEYS_AT_ONCE]):
            written.append(stamp)
            if lease is not None and lease < now:
                lapsed.append(running[key])
    return frozenset(lapsed), tuple(written)
