"""The store in SQL: SQLite for one server, PostgreSQL for several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from typing_extensions import override

from flerm_core.errors import FlermError
from flerm_core.matching.base_selection import Sources, select_sources
from flerm_core.matching.targets import Targets
from flerm_core.records import validation
from flerm_core.records.queries import RecordingFilter, TargetQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Family,
    Recording,
    RecordingSpec,
)
from flerm_core.trajectory import Trajectory
from flerm_server.store.family_runs import FamilyRuns
from flerm_server.store.interface import (
    Appended,
    Batch,
    Page,
    Rows,
    Selection,
    Started,
    Store,
    StoreInfo,
)
from flerm_server.store.quotas import UNLIMITED, Quotas
from flerm_server.store.readiness import Readiness
from flerm_server.store.recording_part import Imported, RecordingPart
from flerm_server.store.sql import (
    append_rows,
    comparability,
    leases,
    listings,
    maintenance,
    read_rows,
    schema,
)
from flerm_server.store.sql.base_index import SqlBaseIndex
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import (
    clock_answer,
    clock_question,
    database_now,
    driver_transaction,
    open_engine,
    timestamp_from_column,
    transaction,
)
from flerm_server.store.sql.family_runs import FamilyRunsCache
from flerm_server.store.sql.finish_attempt import finish_attempt
from flerm_server.store.sql.import_parts import import_parts
from flerm_server.store.sql.kept_targets import KeptTargets
from flerm_server.store.sql.locks import lock_families
from flerm_server.store.sql.mappers import family_from_row
from flerm_server.store.sql.read_trajectories import is_short, read_trajectories
from flerm_server.store.sql.start_recording import StartRecording, ensure_family
from flerm_server.store.sql.tables import families

LEASE_SECONDS = 120.0  # how long a recording whose client is silent still counts as running


class SqlStore(Store):
    """A store over a SQLAlchemy engine; see `Store` for what it promises."""

    def __init__(self, engine: sa.Engine, *, lease_seconds: float = LEASE_SECONDS) -> None:
        """Takes an engine of `open_engine` whose schema was checked; `open_store` does both."""
        self.engine = engine
        self._lease = round(lease_seconds * 1e6)
        self._readiness = Readiness(self._write_something)
        self._family_runs = FamilyRunsCache(engine)
        self._kept_targets = KeptTargets(engine)

    @override
    def info(self) -> StoreInfo:
        state = schema.check(self.engine)
        with transaction(self.engine) as connection:
            return StoreInfo(state.current, timestamp_from_column(database_now(connection)))

    @override
    def ready(self) -> StoreInfo:
        return self._readiness.check()

    def _write_something(self) -> StoreInfo:
        state = schema.check_writable(self.engine)
        with transaction(self.engine) as connection:
            return StoreInfo(state.current, timestamp_from_column(database_now(connection)))

    @override
    def register_family(
        self,
        name: str,
        *,
        description: str = "",
        blocks: Sequence[str] = (),
        created_by: str = "",
        quotas: Quotas = UNLIMITED,
    ) -> Family:
        validation.validate_family(name, description, blocks)
        with transaction(self.engine, writes=True) as connection:
            now = database_now(connection)
            lock_families(connection, names=[name])
            key = ensure_family(connection, name, now, created_by, quotas)
            changes: dict[str, Any] = {}
            if description:
                changes["description"] = description
            if blocks:
                changes["blocks"] = list(blocks)
            if changes:
                connection.execute(
                    families.update()
                    .where(families.c.key == key)
                    .values(changes | {"updated_at": now})
                )
            return listings.one_family(connection, name)

    @override
    def family(self, name: str, *, within: str = "") -> Family:
        with transaction(self.engine) as connection:
            return listings.one_family(connection, name, within)

    @override
    def families(
        self, *, prefix: str = "", page_size: int = 0, page_token: str = "", within: str = ""
    ) -> Page[Family]:
        validation.validate_page_size(page_size)
        with transaction(self.engine) as connection:
            return listings.list_families(connection, prefix, page_size, page_token, within)

    @override
    def family_names(self, *, page_size: int = 0, within: str = "") -> list[str]:
        validation.validate_page_size(page_size)
        with transaction(self.engine) as connection:
            return listings.family_names(connection, page_size, within)

    @override
    def rename_family(self, name: str, new_name: str) -> Family:
        validation.validate_family_name(name)
        validation.validate_new_family_name(new_name)
        with transaction(self.engine, writes=True) as connection:
            return maintenance.rename_family(connection, name, new_name, database_now(connection))

    @override
    def tag(
        self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str] = ()
    ) -> Recording:
        validation.validate_tagging(recording_id, tags, remove)
        with transaction(self.engine, writes=True) as connection:
            now = database_now(connection)
            lock_families(connection, recording_ids=[recording_id])
            maintenance.tag(connection, recording_id, tags, remove, now)
            return listings.one_recording(connection, recording_id, now)[1]

    @override
    def delete(self, recording_id: str) -> int:
        with transaction(self.engine, writes=True) as connection:
            lock_families(connection, recording_ids=[recording_id])
            return maintenance.delete(connection, recording_id)

    @override
    def start(
        self,
        spec: RecordingSpec,
        attempt: Attempt | None = None,
        *,
        created_by: str = "",
        quotas: Quotas = UNLIMITED,
    ) -> Started:
        validation.validate_spec(spec)
        if attempt is not None:
            validation.validate_attempt(attempt)
        with transaction(self.engine, writes=True) as connection:
            now = database_now(connection)
            lock_families(connection, names=[spec.family], recording_ids=[spec.id])
            return StartRecording(
                connection, spec, attempt, created_by, now, now + self._lease, quotas
            ).execute()

    @override
    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        if not batches:
            return []
        dialect = self.engine.dialect
        asked = [*append_rows.state_of(dialect, batches), *clock_question(dialect)]
        with driver_transaction(self.engine, writes=True, first=asked) as driver:
            now = clock_answer(driver)
            return append_rows.append(driver, batches, now, now + self._lease)

    @override
    def finish(
        self,
        recording_id: str,
        attempt: int,
        ending: Ending,
        *,
        acknowledged_step: int | None = None,
    ) -> Recording:
        validation.validate_ending(ending)
        with transaction(self.engine, writes=True) as connection:
            now = database_now(connection)
            lock_families(connection, recording_ids=[recording_id])
            finish_attempt(connection, recording_id, attempt, ending, now, acknowledged_step)
            return listings.one_recording(connection, recording_id, now)[1]

    @override
    def import_parts(
        self, parts: Sequence[RecordingPart], *, created_by: str = "", quotas: Quotas = UNLIMITED
    ) -> Imported:
        with transaction(self.engine, writes=True) as connection:
            now = database_now(connection)
            return import_parts(connection, parts, created_by, now, now + self._lease, quotas)

    @override
    def renew(self, recording_id: str, attempt: int = 0) -> float:
        dialect = self.engine.dialect
        asked = [*leases.state_of(dialect, recording_id, attempt), *clock_question(dialect)]
        with driver_transaction(self.engine, writes=True, first=asked) as driver:
            until = clock_answer(driver) + self._lease
            renewed = leases.renew_lease(driver, recording_id, attempt, until)
        return self._lease / 1e6 if renewed else 0.0

    @override
    def recording(self, recording_id: str) -> Recording:
        with transaction(self.engine) as connection:
            return listings.one_recording(connection, recording_id, database_now(connection))[1]

    @override
    def family_of(self, recording_id: str) -> str:
        with driver_transaction(self.engine) as driver:
            return listings.family_of(driver, recording_id)

    @override
    def recordings(
        self,
        filters: RecordingFilter,
        *,
        page_size: int = 0,
        page_token: str = "",
        within: str = "",
    ) -> Page[Recording]:
        validation.validate_filter(filters)
        validation.validate_page_size(page_size)
        with transaction(self.engine) as connection:
            return listings.list_recordings(
                connection, filters, page_size, page_token, database_now(connection), within
            )

    @override
    def recordings_by_id(self, ids: Sequence[str]) -> list[Recording]:
        with transaction(self.engine) as connection:
            return listings.recordings_by_id(connection, ids, database_now(connection))

    @override
    def select(
        self,
        recording_id: str,
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        max_points: int = 0,
    ) -> Selection:
        with transaction(self.engine) as connection:
            return read_rows.select(
                connection,
                recording_id,
                first_step,
                last_step,
                max_points,
                database_now(connection),
            )

    @override
    def read(self, selection: Selection, columns: Sequence[int] | None = None) -> Iterator[Rows]:
        for segment, steps in read_rows.chunks(selection, columns):
            with driver_transaction(self.engine) as driver:
                rows = read_rows.read_chunk(driver, selection, segment, steps, columns)
            yield rows

    @override
    def sources(self, query: TargetQuery, *, within: str = "") -> tuple[Sources, tuple[str, ...]]:
        validation.validate_query(query)
        while True:
            with transaction(self.engine, snapshot=True) as connection:
                family = listings.family_record(connection, query.family, within)
                if not comparability.has_unkeyed(connection, family.key):
                    return select_sources(
                        SqlBaseIndex(connection, family.key, database_now(connection)), query
                    ), family_from_row(family, 0, ()).blocks
            with transaction(self.engine, writes=True) as connection:
                comparability.backfill(connection, family.key)

    @override
    def family_runs(self, name: str, *, within: str = "") -> FamilyRuns:
        return self._family_runs.get(name, within)

    @override
    def trajectories(self, recordings: Sequence[Recording]) -> list[Trajectory]:
        short = [each for each in recordings if is_short(each)]
        with driver_transaction(self.engine) as driver:
            found = iter(read_trajectories(driver, short))
        # The driver of PostgreSQL keeps all that a statement finds, so a long one is read in parts.
        return [
            next(found) if is_short(each) else self.trajectory(each.spec.id) for each in recordings
        ]

    @override
    def kept(self, family: str, asked: str, compute: Callable[[], Targets]) -> Targets:
        validation.validate_family_name(family)
        return self._kept_targets.get(family, asked, compute)

    @override
    def close(self) -> None:
        self.engine.dispose()


def open_store(url: str, *, lease_seconds: float = LEASE_SECONDS) -> SqlStore:
    """The store at `url`.

    A SQLite file is made, or copied and upgraded, first. A PostgreSQL database must have this
    version's schema already. Raises `InvalidInput` for a URL of another database, `Unreachable`,
    and `Refused` for a schema that this version cannot serve.
    """
    engine = open_engine(parse_url(url))
    try:
        if engine.dialect.name == "sqlite":
            schema.upgrade(engine)
        schema.check(engine)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine, lease_seconds=lease_seconds)
