"""The runs of families, read from the database when they change.

The database counts the changes of each family's runs (`families.revision`, see `change_counts`),
whichever server makes them. While the count is the same, what was read before is right.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from flerm_core.records.comparability import optimizer_key
from flerm_core.tuning.best_lr import SweepRun, model_size
from flerm_server.store.family_runs import Answers, FamilyRun, FamilyRuns
from flerm_server.store.sql.engine import database_now, transaction
from flerm_server.store.sql.listings import family_record
from flerm_server.store.sql.mappers import family_from_row
from flerm_server.store.sql.tables import recording_tags, recordings

MAX_RUNS = 100_000  # in memory, of all families together; a run takes about 400 bytes
KEYS_AT_ONCE = 500

_COLUMNS = ("key", "id", "role", "variant", "optimizer", "lr", "seed", "final_loss", "status")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a family at one count of its changes.

    running: the ids of its running recordings, by their keys.
    rates: of its base recordings.
    """

    revision: int
    runs: tuple[FamilyRun, ...]
    running: Mapping[int, str]
    rates: tuple[float, ...]
    answers: Answers = field(default_factory=Answers)


class FamilyRunsCache:
    """The runs of the families that were asked for last. Callers may be on any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        """Reads nothing yet."""
        self._engine = engine
        self._known: OrderedDict[int, _Known] = OrderedDict()  # by the family's key
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}  # by the family's name

    def get(self, name: str, within: str) -> FamilyRuns:
        """The runs of the family `name`. Raises `NotFound` as `Store.family` does."""
        # One caller reads, and those that ask meanwhile find what it read.
        with self._lock:
            reading = self._reading.setdefault(name, threading.Lock())
        try:
            with reading:
                return self._read(name, within)
        finally:
            with self._lock:
                self._reading.pop(name, None)

    def _read(self, name: str, within: str) -> FamilyRuns:
        with transaction(self._engine, snapshot=True) as connection:
            row = family_record(connection, name, within)
            with self._lock:
                known = self._known.get(row.key)
            if known is None or known.revision != row.revision:
                known = _load(connection, row.key, row.revision)
            lapsed = _lapsed(connection, known.running)
        self._keep(row.key, known)
        family = family_from_row(row, len(known.runs), known.rates)
        return FamilyRuns(family, known.runs, lapsed, known.answers)

    def _keep(self, key: int, known: _Known) -> None:
        with self._lock:
            self._known[key] = known
            self._known.move_to_end(key)
            kept = sum(len(each.runs) for each in self._known.values())
            while kept > MAX_RUNS and len(self._known) > 1:
                _, oldest = self._known.popitem(last=False)
                kept -= len(oldest.runs)


def _load(connection: sa.Connection, family_key: int, revision: int) -> _Known:
    texts = (sa.cast(recordings.c[name], sa.Text) for name in ("optimizer_config", "config"))
    query = (
        sa.select(*(recordings.c[name] for name in _COLUMNS), *texts)
        .where(recordings.c.family_key == family_key)
        .order_by(recordings.c.created_at.desc(), recordings.c.key.desc())
    )
    # Recordings of a sweep share their settings, which are read and kept once.
    tags = _tags(connection, family_key)
    keys: dict[tuple[str, str], str] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    words: dict[str, str] = {}
    runs: list[FamilyRun] = []
    running: dict[int, str] = {}
    rates: set[float] = set()
    for row in connection.execute(query):
        key, identity, role, variant, optimizer, lr, seed, loss, status, settings, text = row
        role, variant, optimizer, status = (
            words.setdefault(word, word) for word in (role, variant, optimizer, status)
        )
        if (optimizer, settings) not in keys:
            keys[optimizer, settings] = optimizer_key(optimizer, json.loads(settings))
        if text not in configs:
            configs[text] = json.loads(text)
        its_key, config = keys[optimizer, settings], configs[text]
        run = SweepRun(lr=lr, seed=seed, loss=loss, status=status, size=model_size(config))
        its_tags = tags.get(key, {})
        runs.append(FamilyRun(identity, role, variant, optimizer, its_key, config, its_tags, run))
        if status == "running":
            running[key] = identity
        if role == "base":
            rates.add(lr)
    return _Known(revision, tuple(runs), running, tuple(sorted(rates)))


def _tags(connection: sa.Connection, family_key: int) -> dict[int, dict[str, str]]:
    """The tags of a family's recordings, by the recordings' keys."""
    words: dict[str, str] = {}
    found: dict[int, dict[str, str]] = {}
    query = (
        sa.select(recording_tags.c.recording_key, recording_tags.c.name, recording_tags.c.value)
        .join_from(recording_tags, recordings)
        .where(recordings.c.family_key == family_key)
    )
    for key, name, value in connection.execute(query):
        found.setdefault(key, {})[words.setdefault(name, name)] = words.setdefault(value, value)
    return found


def _lapsed(connection: sa.Connection, running: Mapping[int, str]) -> frozenset[str]:
    """The ids of running recordings whose lease has ended."""
    keys: Sequence[int] = list(running)
    found: list[str] = []
    now = database_now(connection) if keys else 0
    for start in range(0, len(keys), KEYS_AT_ONCE):
        query = sa.select(recordings.c.key).where(
            recordings.c.key.in_(keys[start : start + KEYS_AT_ONCE]), recordings.c.lease_until < now
        )
        found += [running[key] for key in connection.execute(query).scalars()]
    return frozenset(found)
