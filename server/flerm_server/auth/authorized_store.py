"""A store in which each principal sees and changes only what it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress

from typing_extensions import override

from flerm_core.errors import FlermError, NotFound, PermissionDenied
from flerm_core.matching.base_selection import Sources
from flerm_core.matching.targets import Targets
from flerm_core.records.queries import RecordingFilter, TargetQuery
from flerm_core.records.recording import Attempt, Ending, Family, Recording, RecordingSpec
from flerm_core.trajectory import Trajectory
from flerm_server.auth.principal import Scope, current_principal
from flerm_server.shared_limit import SharedLimit
from flerm_server.store.family_runs import FamilyRuns
from flerm_server.store.group_commit import GroupCommit
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
from flerm_server.store.recording_part import Imported, RecordingPart
from flerm_server.store.unknown_recording import unknown_recording

COMPUTATIONS = 4  # of targets, at once
COMPUTING_SECONDS = 60.0  # for how long a call waits for its turn


class AuthorizedStore(Store):
    """`store`, restricted to what the principal of the current context may use.

    Reads and writes stay within the family or team that the principal is bound to, and what is
    made is signed with the principal's name. Raises `PermissionDenied` for anything else, and
    `LookupError` in a context without a principal (see `current_principal`). `permissions` says
    which scope a call needs, and the transports check that; this class checks the scope again for
    whatever writes, so that a call which no transport checked writes nothing.

    Transports get no other store than this one. `info` and `ready` alone need no principal:
    readiness probes have none.
    """

    def __init__(self, store: Store, *, quotas: Quotas = UNLIMITED) -> None:
        """quotas: of every caller with a token; one without has those of recordings only."""
        self._store = store
        self._quotas = quotas
        self._group_commit = GroupCommit(store)
        self._computing = SharedLimit(
            "computations", COMPUTATIONS, "computations of targets are going on", share=0.5
        )

    @override
    def info(self) -> StoreInfo:
        return self._store.info()

    @override
    def ready(self) -> StoreInfo:
        return self._store.ready()

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
        current_principal().require(Scope.WRITE, name)
        return self._store.register_family(
            name,
            description=description,
            blocks=blocks,
            created_by=current_principal().text,
            quotas=self._its_quotas(),
        )

    @override
    def family(self, name: str, *, within: str = "") -> Family:
        current_principal().require(Scope.READ, name)
        return self._store.family(name, within=current_principal().family)

    @override
    def families(
        self, *, prefix: str = "", page_size: int = 0, page_token: str = "", within: str = ""
    ) -> Page[Family]:
        return self._store.families(
            prefix=prefix,
            page_size=page_size,
            page_token=page_token,
            within=current_principal().family,
        )

    @override
    def family_names(self, *, page_size: int = 0, within: str = "") -> list[str]:
        return self._store.family_names(page_size=page_size, within=current_principal().family)

    @override
    def rename_family(self, name: str, new_name: str) -> Family:
        current_principal().require(Scope.ADMIN, name)
        current_principal().require(Scope.ADMIN, new_name)
        try:
            return self._store.rename_family(name, new_name)
        except NotFound:
            self.family(name)  # raises `NotFound` that names only families of the principal
            raise

    @override
    def start(
        self,
        spec: RecordingSpec,
        attempt: Attempt | None = None,
        *,
        created_by: str = "",
        quotas: Quotas = UNLIMITED,
    ) -> Started:
        return self.start_as_read(spec.family, spec.id, lambda: (spec, attempt))

    def start_as_read(
        self,
        family: str,
        recording_id: str,
        read: Callable[[], tuple[RecordingSpec, Attempt | None]],
    ) -> Started:
        """`start`, where a request says the family and the recording's id.

        read: gives the specification, with that family and id, and the attempt; it is called once
            the principal may write them.
        """
        self._require_to_start(family, recording_id)
        spec, attempt = read()
        return self._store.start(
            spec, attempt, created_by=current_principal().text, quotas=self._its_quotas()
        )

    def _require_to_start(self, family: str, recording_id: str) -> None:
        principal = current_principal()
        principal.require(Scope.WRITE, family)
        if principal.family:
            # The id may be of a recording in another family than the specification says.
            with suppress(NotFound):
                if not principal.covers(self._store.family_of(recording_id)):
                    raise PermissionDenied(
                        f"recording {recording_id}: the id is taken; use a new one"
                    )

    @override
    def import_parts(
        self, parts: Sequence[RecordingPart], *, created_by: str = "", quotas: Quotas = UNLIMITED
    ) -> Imported:
        started = [
            (each.recording_id, None if each.spec is None else each.spec.family) for each in parts
        ]
        return self.import_as_read(started, lambda: parts)

    def import_as_read(
        self,
        started: Sequence[tuple[str, str | None]],
        read: Callable[[], Sequence[RecordingPart]],
    ) -> Imported:
        """`import_parts`, where a request says the id of each part's recording and the family in
        which the part starts it, if it does.

        read: gives the parts, with these ids and families; it is called once the principal may
            write them.
        """
        for recording_id, family in started:
            if family is None:
                self._require(Scope.WRITE, recording_id)
            else:
                self._require_to_start(family, recording_id)
        return self._store.import_parts(
            read(), created_by=current_principal().text, quotas=self._its_quotas()
        )

    @override
    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        for batch in batches:
            self._require(Scope.WRITE, batch.recording_id)
        return self._store.append_many(batches)

    def append(self, recording_id: str, read: Callable[[], Batch]) -> Appended:
        """Stores a batch in a transaction that it shares with the batches of other callers.

        read: gives the batch; it is called once the principal may write to the recording.

        Raises the store's refusal, `PermissionDenied`, and `NotFound` where a bound principal names
        no recording of its family.
        """
        self._require(Scope.WRITE, recording_id)
        return self._group_commit.append(read())

    @override
    def finish(
        self,
        recording_id: str,
        attempt: int,
        ending: Ending,
        *,
        acknowledged_step: int | None = None,
    ) -> Recording:
        self._require(Scope.WRITE, recording_id)
        return self._store.finish(
            recording_id, attempt, ending, acknowledged_step=acknowledged_step
        )

    @override
    def renew(self, recording_id: str, attempt: int = 0) -> float:
        self._require(Scope.WRITE, recording_id)
        return self._store.renew(recording_id, attempt)

    @override
    def family_of(self, recording_id: str) -> str:
        current_principal().require(Scope.READ)
        found = self._store.family_of(recording_id)
        if not current_principal().covers(found):
            raise unknown_recording(recording_id)
        return found

    @override
    def recording(self, recording_id: str) -> Recording:
        self._require(Scope.READ, recording_id)
        return self._store.recording(recording_id)

    @override
    def recordings_by_id(self, ids: Sequence[str]) -> list[Recording]:
        current_principal().require(Scope.READ)
        found = self._store.recordings_by_id(ids)
        return [each for each in found if current_principal().covers(each.spec.family)]

    @override
    def recordings(
        self,
        filters: RecordingFilter,
        *,
        page_size: int = 0,
        page_token: str = "",
        within: str = "",
    ) -> Page[Recording]:
        current_principal().require(Scope.READ, filters.family or None)
        return self._store.recordings(
            filters, page_size=page_size, page_token=page_token, within=current_principal().family
        )

    @override
    def tag(
        self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str] = ()
    ) -> Recording:
        self._require(Scope.WRITE, recording_id)
        return self._store.tag(recording_id, tags, remove)

    @override
    def delete(self, recording_id: str) -> int:
        self._require(Scope.ADMIN, recording_id)
        return self._store.delete(recording_id)

    @override
    def select(
        self,
        recording_id: str,
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        max_points: int = 0,
    ) -> Selection:
        self._require(Scope.READ, recording_id)
        return self._store.select(
            recording_id, first_step=first_step, last_step=last_step, max_points=max_points
        )

    @override
    def read(self, selection: Selection, columns: Sequence[int] | None = None) -> Iterator[Rows]:
        current_principal().require(Scope.READ, selection.recording.spec.family)
        return self._store.read(selection, columns)

    @override
    def sources(self, query: TargetQuery, *, within: str = "") -> tuple[Sources, tuple[str, ...]]:
        current_principal().require(Scope.READ, query.family)
        return self._store.sources(query, within=current_principal().family)

    @override
    def family_runs(self, name: str, *, within: str = "") -> FamilyRuns:
        current_principal().require(Scope.READ, name)
        return self._store.family_runs(name, within=current_principal().family)

    @override
    def trajectories(self, recordings: Sequence[Recording]) -> list[Trajectory]:
        for each in recordings:
            current_principal().require(Scope.READ, each.spec.family)
        return self._store.trajectories(recordings)

    @override
    def kept(self, family: str, asked: str, compute: Callable[[], Targets]) -> Targets:
        current_principal().require(Scope.READ, family)
        return self._store.kept(family, asked, compute)

    @override
    def computing(self) -> AbstractContextManager[None]:
        return self._computing.held(current_principal().token_id, wait=COMPUTING_SECONDS)

    @override
    def close(self) -> None:
        self._store.close()

    def _its_quotas(self) -> Quotas:
        return self._quotas if current_principal().text else self._quotas.of_nobody()

    def _require(self, needed: Scope, recording_id: str) -> None:
        """Raises `PermissionDenied` without the scope `needed`.

        Raises `NotFound` for a recording of a family that the token is not bound to. Whether such a
        recording exists is not told, in words or by the time of an answer: both take one question
        for the recording's family.
        """
        current_principal().require(needed)
        # For a principal that is bound to no family, one question to the database less.
        if current_principal().family:
            self.family_of(recording_id)
