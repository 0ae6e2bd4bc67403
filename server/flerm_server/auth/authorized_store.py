"""A store that gives each asker what is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from typing_extensions import override

from flerm_core.errors import FlermError, NotFound
from flerm_core.matching.base_selection import Sources
from flerm_core.records.queries import RecordingFilter, TargetQuery
from flerm_core.records.recording import Attempt, Ending, Family, Recording, RecordingSpec
from flerm_server.auth.principal import Scope, current_principal
from flerm_server.store.interface import (
    Appended,
    Batch,
    Page,
    Rows,
    Runs,
    Selection,
    Started,
    Store,
    StoreInfo,
)


class AuthorizedStore(Store):
    """`store`, as the one who asks in this context may use it (`identity.present`): within its family, signed with its name.

    Raises `PermissionDenied` for what is not of its family. Which scope a call needs is `rules`'; that a writer has at least
    the scope to write is seen here once more, so that a call nobody checked writes nothing.
    """

    def __init__(self, store: Store, *, recordings_per_token: int = 0) -> None:
        """`recordings_per_token`: as many as one token may start; 0: any number."""
        self._store = store
        self._quota = recordings_per_token

    @override
    def info(self) -> StoreInfo:
        return self._store.info()

    @override
    def register_family(
        self, name: str, *, description: str = "", blocks: Sequence[str] = (), created_by: str = ""
    ) -> Family:
        current_principal().must(Scope.WRITE, name)
        return self._store.register_family(
            name, description=description, blocks=blocks, created_by=current_principal().text
        )

    @override
    def family(self, name: str, *, within: str = "") -> Family:
        current_principal().must(Scope.READ, name)
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
    def rename_family(self, name: str, new_name: str) -> Family:
        current_principal().must(Scope.ADMIN, name)
        current_principal().must(Scope.ADMIN, new_name)
        try:
            return self._store.rename_family(name, new_name)
        except NotFound:
            self.family(name)  # says so itself, and names none but the asker's own
            raise

    @override
    def start(
        self,
        spec: RecordingSpec,
        attempt: Attempt | None = None,
        *,
        created_by: str = "",
        most_recordings: int = 0,
    ) -> Started:
        current_principal().must(Scope.WRITE, spec.family)
        if current_principal().family:
            with suppress(
                NotFound
            ):  # one that is there may be of another family than its sender thinks
                self._may(Scope.WRITE, spec.id)
        by = current_principal().text
        return self._store.start(
            spec, attempt, created_by=by, most_recordings=self._quota if by else 0
        )

    @override
    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        for batch in batches:
            self.may_write(batch.recording_id)
        return self._store.append_many(batches)

    def may_write(self, recording_id: str) -> None:
        """Raises `PermissionDenied` unless who asks may write to that recording, `NotFound` where a bound one asks for none."""
        self._may(Scope.WRITE, recording_id)

    @override
    def finish(self, recording_id: str, attempt: int, ending: Ending) -> Recording:
        self._may(Scope.WRITE, recording_id)
        return self._store.finish(recording_id, attempt, ending)

    @override
    def renew(self, recording_id: str, attempt: int = 0) -> float:
        self._may(Scope.WRITE, recording_id)
        return self._store.renew(recording_id, attempt)

    @override
    def family_of(self, recording_id: str) -> str:
        return self._store.family_of(recording_id)

    @override
    def recording(self, recording_id: str) -> Recording:
        found = self._store.recording(recording_id)
        current_principal().must(Scope.READ, found.spec.family)
        return found

    @override
    def recordings(
        self,
        filters: RecordingFilter,
        *,
        page_size: int = 0,
        page_token: str = "",
        within: str = "",
    ) -> Page[Recording]:
        current_principal().must(Scope.READ, filters.family or None)
        return self._store.recordings(
            filters, page_size=page_size, page_token=page_token, within=current_principal().family
        )

    @override
    def tag(
        self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str] = ()
    ) -> Recording:
        self._may(Scope.WRITE, recording_id)
        return self._store.tag(recording_id, tags, remove)

    @override
    def delete(self, recording_id: str) -> int:
        self._may(Scope.ADMIN, recording_id)
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
        found = self._store.select(
            recording_id, first_step=first_step, last_step=last_step, max_points=max_points
        )
        current_principal().must(Scope.READ, found.recording.spec.family)
        return found

    @override
    def read(self, selection: Selection, columns: Sequence[int] | None = None) -> Iterator[Rows]:
        current_principal().must(Scope.READ, selection.recording.spec.family)
        return self._store.read(selection, columns)

    @override
    def sources(self, query: TargetQuery, *, within: str = "") -> tuple[Sources, tuple[str, ...]]:
        current_principal().must(Scope.READ, query.family)
        return self._store.sources(query, within=current_principal().family)

    @override
    def runs(self, filters: RecordingFilter) -> Runs:
        current_principal().must(Scope.READ, filters.family)
        return self._store.runs(filters)

    @override
    def close(self) -> None:
        self._store.close()

    def _may(self, needed: Scope, recording_id: str) -> None:
        asker = current_principal()
        # Who is bound to nothing need not be told whose recording it is: one question to the database less.
        asker.must(needed, self._store.family_of(recording_id) if asker.family else None)
