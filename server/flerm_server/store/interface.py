"""What every store of recordings promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import FlermError
from flerm_core.matching.base_selection import Sources
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.queries import RecordingFilter, TargetQuery
from flerm_core.records.recording import Attempt, Ending, Family, Recording, RecordingSpec
from flerm_core.records.validation import MAX_PAGE_SIZE
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import SweepRun

Item = TypeVar("Item")

PAGE_SIZE = 100
CHUNK_BYTES = 1 << 20  # of one item of `Store.read`, which has one row at least


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Part of a listing. `next_token` asks for the next part; empty: this was the last."""

    items: tuple[Item, ...]
    next_token: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt that a start opened, or found (`created` False)."""

    recording_id: str
    attempt: int
    created: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one attempt, stored whole or refused whole. `attempt` 0: the latest."""

    recording_id: str
    rows: MeasurementBatch
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Appended:
    """`committed`: rows of the batch that are durable now; `duplicates`: those of them that were there before."""

    committed: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one attempt that readers see: steps from `first` up to `last`, both included."""

    attempt_key: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows a read will give: chosen once, so that rows which arrive meanwhile change nothing.

    `steps` is int64 [T], ascending; `recording` has its full parameter list.
    """

    recording: Recording
    steps: NDArray[np.int64]
    segments: tuple[Segment, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows: `values` float32 [T, L]; NaN in losses and learning_rates and -1 in tokens: not logged.

    `auxiliary`: the auxiliary values of each row, as `store.sql.auxiliary_codec` packs them.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float32]
    losses: NDArray[np.float64]
    learning_rates: NDArray[np.float64]
    tokens: NDArray[np.int64]
    auxiliary: tuple[bytes | None, ...]

    def part(self, start: int, stop: int) -> Rows:
        """The rows from place `start` up to `stop`, that one not included."""
        return Rows(*(getattr(self, each.name)[start:stop] for each in fields(self)))


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The schema's revision and the database's clock (UTC)."""

    schema_revision: str
    now: datetime


Runs = dict[tuple[str, str, str], list[SweepRun]]
"""Runs by role, variant and optimiser (`ComparabilityKey.optimizer_key`)."""


class Store(ABC):
    """Families, recordings, attempts and measurements, kept durably.

    *Atomicity.* Every method is one transaction: it happens whole or not at all, and when it returns, what it did survives
    a crash of the process and of the host. `append_many` is one transaction for all its batches, yet each batch is
    stored or refused on its own.

    *Idempotency.* Everything that writes may be sent again: `start` by (recording id, attempt id), `append_many` by
    (recording, attempt, step), `finish` by (recording, attempt, status). The same again changes nothing and is no error;
    the same key with other content is `AlreadyExists` naming what differs. A row's content is all but its `measured_at`.

    *Attempts.* Ordered by `flerm_core.records.recording.in_order`: by when they began, then by number, each behind the one it resumed
    from. A row of attempt a at step s is visible unless a later
    attempt b has `resume_at` ≤ s; an attempt takes no step before its own `resume_at`. Readers see visible rows only, one
    at each step, ascending. Only `delete` deletes. The latest attempt's state is the recording's. An attempt takes rows until
    it ended as completed, diverged or failed; `interrupted` can still be followed by late rows or another end.

    *Leases.* A running recording whose lease (on the database's clock) ended reads as `interrupted`, everywhere. `start`,
    `append_many` and `renew` of the latest attempt renew it.

    *Ordering.* Families by name; recordings newest first, by (created_at, internal key); pages are cut by those immutable
    keys, so every recording there at page one appears exactly once.

    *Threads.* All methods may be called from any thread at once, also of several processes on one database. Of two concurrent
    writers of one key one wins, and the other gets what a later call would get.

    *Errors.* `InvalidInput`, `NotFound`, `AlreadyExists` and `Refused` as said; `Unreachable` when the database does not answer
    (nothing was acknowledged: send again).
    """

    @abstractmethod
    def info(self) -> StoreInfo:
        """Revision and clock. Raises `Unreachable`: this is the readiness check."""

    @abstractmethod
    def register_family(
        self, name: str, *, description: str = "", blocks: Sequence[str] = (), created_by: str = ""
    ) -> Family:
        """Creates the family, or gives an existing one the description and the block axes that are not empty."""

    @abstractmethod
    def family(self, name: str, *, within: str = "") -> Family:
        """The family called `name`. Raises `NotFound` naming those that come near, of those `within` (see `families`)."""

    @abstractmethod
    def families(
        self, *, prefix: str = "", page_size: int = 0, page_token: str = "", within: str = ""
    ) -> Page[Family]:
        """Families whose names begin with `prefix`, by name. `page_size` 0: 100; at most 1,000.

        `within` not empty: only the family of that name, or those of that team.
        """

    @abstractmethod
    def rename_family(self, name: str, new_name: str) -> Family:
        """Gives a family another name. Renamed already (`name` is gone, `new_name` there) is no error.

        Raises `NotFound`, and `AlreadyExists` when both are there.
        """

    @abstractmethod
    def start(
        self,
        spec: RecordingSpec,
        attempt: Attempt | None = None,
        *,
        created_by: str = "",
        most_recordings: int = 0,
    ) -> Started:
        """Opens a recording (and its family), or a further attempt of one.

        `attempt` None, or one whose id is the recording's own, means the first attempt, whatever id that was opened with. A
        recording that is there may be named by a family's name of before a rename, as long as no other family has that.
        Raises `LimitExceeded` for a new recording when `created_by` has `most_recordings` (0: any number) already.
        """

    @abstractmethod
    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        """Stores the rows of many batches in one transaction. The answer at i, a result or the refusal, is that of batch i."""

    @abstractmethod
    def finish(self, recording_id: str, attempt: int, ending: Ending) -> Recording:
        """Ends an attempt (0: the latest); the end of an older one changes nothing that readers see."""

    @abstractmethod
    def renew(self, recording_id: str, attempt: int = 0) -> float:
        """Renews the lease; the seconds until it ends. An older attempt renews nothing and gets 0."""

    @abstractmethod
    def recording(self, recording_id: str) -> Recording:
        """One recording with its parameter list. Raises `NotFound`."""

    @abstractmethod
    def family_of(self, recording_id: str) -> str:
        """The name of the family that a recording is of. Raises `NotFound`."""

    @abstractmethod
    def recordings(
        self,
        filters: RecordingFilter,
        *,
        page_size: int = 0,
        page_token: str = "",
        within: str = "",
    ) -> Page[Recording]:
        """Recordings without their parameter lists, newest first. A family that is not there has none.

        `within` as in `families`.
        """

    @abstractmethod
    def tag(
        self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str] = ()
    ) -> Recording:
        """Sets `tags` on a recording and removes those of the keys `remove`; the recording. Raises `NotFound`, and
        `InvalidInput` when it would have too many."""

    @abstractmethod
    def delete(self, recording_id: str) -> int:
        """Removes a recording, its attempts and rows; how many rows. 0 when it is not there."""

    @abstractmethod
    def select(
        self,
        recording_id: str,
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        max_points: int = 0,
    ) -> Selection:
        """Chooses visible rows from `first_step` to `last_step`, thinned evenly to `max_points` (0: all), both ends kept."""

    @abstractmethod
    def read(self, selection: Selection, columns: Sequence[int] | None = None) -> Iterator[Rows]:
        """The chosen rows in blocks of at most `CHUNK_BYTES`, `columns` of them (None: all).

        Holds no transaction between blocks: a reader that stalls stalls nobody.
        """

    @abstractmethod
    def sources(self, query: TargetQuery, *, within: str = "") -> tuple[Sources, tuple[str, ...]]:
        """The recordings that answer `query` by the core's rules (`choose_sources`, which says what it raises), and the block
        axes of its family. Raises `NotFound` for an unknown family, as `family` does."""

    @abstractmethod
    def runs(self, filters: RecordingFilter) -> Runs:
        """What a loss curve needs of the recordings of a family that fit `filters`."""

    @abstractmethod
    def close(self) -> None:
        """Gives all connections back. The store is unusable afterwards."""

    def all_recordings(self, filters: RecordingFilter) -> Iterator[Recording]:
        """All pages of `recordings`, one after the other."""
        token = ""
        while True:
            page = self.recordings(filters, page_size=MAX_PAGE_SIZE, page_token=token)
            yield from page.items
            token = page.next_token
            if not token:
                return

    def trajectory(self, recording_id: str) -> Trajectory:
        """The whole visible trajectory in memory. Raises as `select` and `read` do."""
        return self.load(self.select(recording_id))

    def load(self, selection: Selection, columns: Sequence[int] | None = None) -> Trajectory:
        """The chosen rows in memory, `columns` of them (None: all). Raises as `read` does."""
        parameters = selection.recording.spec.parameters
        if columns is not None:
            parameters = parameters.select(columns)
        count = len(selection.steps)
        values = np.empty((count, len(parameters)), np.float32)
        losses, rates = np.empty(count), np.empty(count)
        tokens = np.empty(count, np.int64)
        filled = 0
        for rows in self.read(selection, columns):
            part = slice(filled, filled + len(rows.steps))
            values[part], losses[part], rates[part], tokens[part] = (
                rows.values,
                rows.losses,
                rows.learning_rates,
                rows.tokens,
            )
            filled = part.stop
        return Trajectory(
            parameters.names,
            parameters.shapes,
            selection.steps,
            values,
            bands=parameters.bands,
            losses=losses,
            learning_rates=rates,
            tokens=tokens,
        )
