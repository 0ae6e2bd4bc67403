"""What every store of recordings promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import FlermError, NotFound
from flerm_core.matching.base_selection import Sources
from flerm_core.matching.targets import Targets
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.queries import RecordingFilter, TargetQuery
from flerm_core.records.recording import Attempt, Ending, Family, Recording, RecordingSpec
from flerm_core.records.validation import MAX_PAGE_SIZE
from flerm_core.trajectory import Trajectory
from flerm_server.store.family_runs import FamilyRuns
from flerm_server.store.loading import trajectory_of
from flerm_server.store.quotas import UNLIMITED, Quotas
from flerm_server.store.recording_part import Imported, RecordingPart

Item = TypeVar("Item")

PAGE_SIZE = 100
CHUNK_BYTES = 1 << 20  # of one item of `Store.read`, which has one row at least


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Part of a listing. `next_token` asks for the next part; empty: this is the last part."""

    items: tuple[Item, ...]
    next_token: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt that `Store.start` opened, or found (`created` False)."""

    recording_id: str
    attempt: int
    created: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one attempt, which are stored whole or refused whole. `attempt` 0: the latest.

    acknowledged_step: the greatest step of the attempt that the sender knows to be stored; None:
        none. A store without it refuses the batch by `NotFound`.
    """

    recording_id: str
    rows: MeasurementBatch
    attempt: int = 0
    acknowledged_step: int | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch.

    committed: rows of the batch that are durable now.
    duplicates: how many of these had been stored before.
    """

    committed: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Visible rows of one attempt: steps from `first` to `last`, both included.

    `attempt_key` is the store's own name of the attempt; callers only hand it back.
    """

    attempt_key: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows `Store.read` gives. Rows that are stored after the selection do not change it.

    `steps` is int64 [T], ascending; `recording` has its full parameter list.
    """

    recording: Recording
    steps: NDArray[np.int64]
    segments: tuple[Segment, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows: T steps, L columns.

    `values` is float32 [T, L], NaN = unmeasured. The other arrays are [T]; NaN in `losses` and
    `learning_rates` and -1 in `tokens` mean not logged. `auxiliary` has the scalars and
    vectors of each row, as `store.auxiliary_codec` packs them; None: the row has none.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float32]
    losses: NDArray[np.float64]
    learning_rates: NDArray[np.float64]
    tokens: NDArray[np.int64]
    auxiliary: tuple[bytes | None, ...]

    def part(self, start: int, stop: int) -> Rows:
        """The rows from index `start` up to, but without, index `stop`."""
        return Rows(*(getattr(self, each.name)[start:stop] for each in fields(self)))


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The schema's revision and the database's time (UTC)."""

    schema_revision: str
    now: datetime


class Store(ABC):
    """Families, recordings, attempts and measurements, kept durably.

    *Atomicity.* Every method is one transaction: all of its changes happen, or none. When the
    method returns, its changes survive a crash of the process and of the host. `append_many` is one
    transaction for all its batches, yet each batch is stored or refused on its own.

    *Idempotency.* Every write may be sent again: `start` is identified by (recording id, attempt
    id), each row of `append_many` by (recording, attempt, step), `finish` by (recording, attempt,
    status). The same content again changes nothing and is no error. The same key with other content
    raises `AlreadyExists`, which names what differs. A row's content is all but its `measured_at`.

    *Attempts.* `flerm_core.records.recording.in_order` orders the attempts of a recording: by when
    they began, then by number, each after the attempt that it resumed from. A row of an attempt at
    step s is visible unless a later attempt has `resume_at` <= s. An attempt takes no step before
    its own `resume_at`. Readers see visible rows only, one at each step, ascending. Hidden rows
    stay stored: only `delete` deletes. The latest attempt's state is the recording's. An attempt
    takes rows until it has ended as completed, diverged or failed. After `interrupted`, late rows
    and another end may still follow.

    *Leases.* A running recording whose lease has ended, by the database's clock, reads as
    `interrupted` everywhere. `start`, `append_many` and `renew` of the latest attempt renew it.

    *Ordering.* Families are listed by name, recordings newest first, by (created_at, internal key).
    `created_at` is when the first attempt began, so that a late spool or an import is not new.
    These keys never change, and pages are cut by them: a recording that exists when the first page
    is read appears on the pages exactly once.

    *Threads.* Every method may be called from any number of threads at once, and from several
    processes on one database. Of two concurrent writers of one key one succeeds, and the other gets
    the result of a later call.

    *Errors.* `InvalidInput`, `NotFound`, `AlreadyExists` and `Refused` as documented at each
    method. `Unreachable` when the database does not answer: nothing was stored, and the caller may
    send the same again.
    """

    @abstractmethod
    def info(self) -> StoreInfo:
        """Revision and time of the database. Raises `Unreachable`."""

    @abstractmethod
    def ready(self) -> StoreInfo:
        """`info` of a store that has just committed something to its disk.

        Many callers share one trial, at most one a second. Raises `Unreachable`, also while a trial
        takes long.
        """

    @abstractmethod
    def register_family(
        self,
        name: str,
        *,
        description: str = "",
        blocks: Sequence[str] = (),
        created_by: str = "",
        quotas: Quotas = UNLIMITED,
    ) -> Family:
        """Creates a family, or completes an existing one.

        An existing family gets `description` and the block axes `blocks` where these are not empty.
        Raises `LimitExceeded` for a new one beyond `quotas`.
        """

    @abstractmethod
    def family(self, name: str, *, within: str = "") -> Family:
        """The family called `name`.

        Raises `NotFound`, which suggests similar names of families that `within` allows (see
        `families`).
        """

    @abstractmethod
    def families(
        self, *, prefix: str = "", page_size: int = 0, page_token: str = "", within: str = ""
    ) -> Page[Family]:
        """Families whose names begin with `prefix`, by name.

        page_size: at most 1,000; 0: 100.
        page_token: `Page.next_token` of the page before.
        within: only the family of this name, or the families of the team of this name; empty: all.
        """

    @abstractmethod
    def rename_family(self, name: str, new_name: str) -> Family:
        """Gives a family another name.

        That `name` is gone and `new_name` exists is no error: the family was renamed before. Raises
        `NotFound`, and `AlreadyExists` when both exist.
        """

    @abstractmethod
    def start(
        self,
        spec: RecordingSpec,
        attempt: Attempt | None = None,
        *,
        created_by: str = "",
        quotas: Quotas = UNLIMITED,
    ) -> Started:
        """Opens a recording (and its family), or a further attempt of one.

        attempt: None, or one whose id is the recording's own: the first attempt, whatever its id
            was when it was opened.
        created_by: who starts it.

        A recording that exists may be named by the former name of its family, as long as no other
        family has that name. Raises `AlreadyExists` when the id is of another recording, and
        `LimitExceeded` for a recording, family or attempt beyond `quotas`.
        """

    @abstractmethod
    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        """Stores the rows of many batches in one transaction.

        The answer at index i is that of batch i: what was stored, or the error that refused it.
        """

    @abstractmethod
    def finish(
        self,
        recording_id: str,
        attempt: int,
        ending: Ending,
        *,
        acknowledged_step: int | None = None,
    ) -> Recording:
        """Ends an attempt (0: the latest); the recording. Readers see no end of an older attempt.
        `finished_at` is kept as a moment from the recording's start to now.

        acknowledged_step: as in `Batch`.

        Raises `AlreadyExists` for an attempt that has ended in another way.
        """

    @abstractmethod
    def import_parts(
        self, parts: Sequence[RecordingPart], *, created_by: str = "", quotas: Quotas = UNLIMITED
    ) -> Imported:
        """Stores parts of at most `MAX_PARTS` different recordings. Raises what `start`,
        `append_many` and `finish` raise; the sentence names the recording.
        """

    @abstractmethod
    def renew(self, recording_id: str, attempt: int = 0) -> float:
        """Renews the lease of a running recording; the seconds until the lease ends.

        `attempt` 0: the latest. An older attempt, or one that has ended, renews nothing: 0.
        """

    @abstractmethod
    def recording(self, recording_id: str) -> Recording:
        """One recording with its parameter list. Raises `NotFound`."""

    @abstractmethod
    def family_of(self, recording_id: str) -> str:
        """The name of a recording's family. Raises `NotFound`."""

    @abstractmethod
    def recordings(
        self,
        filters: RecordingFilter,
        *,
        page_size: int = 0,
        page_token: str = "",
        within: str = "",
    ) -> Page[Recording]:
        """Recordings without their parameter lists, newest first. An unknown family has none.

        `page_size`, `page_token` and `within` as in `families`.
        """

    @abstractmethod
    def tag(
        self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str] = ()
    ) -> Recording:
        """Sets `tags` of a recording and removes its tags with the keys `remove`; the recording.

        Raises `NotFound`, and `InvalidInput` when the recording would have too many tags.
        """

    @abstractmethod
    def delete(self, recording_id: str) -> int:
        """Removes a recording, its attempts and its rows. Returns how many rows there were."""

    @abstractmethod
    def select(
        self,
        recording_id: str,
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        max_points: int = 0,
    ) -> Selection:
        """Selects the visible rows of a recording.

        first_step, last_step: the range, both included; None: no limit.
        max_points: at most as many rows, thinned evenly, the first and last kept; 0: all.

        Raises `NotFound`.
        """

    @abstractmethod
    def read(self, selection: Selection, columns: Sequence[int] | None = None) -> Iterator[Rows]:
        """The selected rows in chunks of at most `CHUNK_BYTES`, with `columns` only (None: all).

        No transaction is open between two chunks, so that a slow reader delays no writer. Raises
        `NotFound` when the recording was deleted meanwhile, and `DataLoss`.
        """

    @abstractmethod
    def sources(self, query: TargetQuery, *, within: str = "") -> tuple[Sources, tuple[str, ...]]:
        """The recordings that answer `query`, and the block axes of its family.

        The core's rules select them, and raise what `select_sources` documents. Raises `NotFound`
        for an unknown family, as `family` does (`within` as there).
        """

    @abstractmethod
    def family_runs(self, name: str, *, within: str = "") -> FamilyRuns:
        """All runs of a family, newest first, with the answers that were computed of them before.

        Raises `NotFound` as `family` does (`within` as there).
        """

    @abstractmethod
    def close(self) -> None:
        """Closes all connections. The store cannot be used afterwards."""

    def computing(self) -> AbstractContextManager[None]:
        """Around a computation that takes much memory.

        A store that callers share waits until there are few of these. Raises `LimitExceeded`.
        """
        return nullcontext()

    def all_recordings(self, filters: RecordingFilter) -> Iterator[Recording]:
        """All pages of `recordings`, one after the other."""
        token = ""
        while True:
            page = self.recordings(filters, page_size=MAX_PAGE_SIZE, page_token=token)
            yield from page.items
            if not (token := page.next_token):
                return

    def family_names(self, *, page_size: int = 0, within: str = "") -> list[str]:
        """The names of the first page of `families`, whose recordings need not be counted."""
        return [each.name for each in self.families(page_size=page_size, within=within).items]

    def trajectories(self, recordings: Sequence[Recording]) -> list[Trajectory]:
        """The whole visible trajectories of several recordings in memory, in their order.

        Raises as `trajectory` does.
        """
        return [self.trajectory(each.spec.id) for each in recordings]

    def kept(self, family: str, asked: str, compute: Callable[[], Targets]) -> Targets:
        """`compute()`, or what it gave before for `asked` while no run of `family` changed."""
        return compute()

    def recordings_by_id(self, ids: Sequence[str]) -> list[Recording]:
        """The recordings with these ids, in their order, without their parameter lists.

        Those that are not there, or that the caller may not read, are left out.
        """
        found = []
        for each in ids:
            with suppress(NotFound):
                found.append(self.recording(each).without_parameters())
        return found

    def trajectory(self, recording_id: str) -> Trajectory:
        """The whole visible trajectory in memory. Raises as `select` and `read` do."""
        return self.load(self.select(recording_id))

    def load(self, selection: Selection, columns: Sequence[int] | None = None) -> Trajectory:
        """The selected rows in memory, with `columns` only (None: all). Raises as `read` does."""
        parameters = selection.recording.spec.parameters
        if columns is not None:
            parameters = parameters.select(columns)
        return trajectory_of(parameters, len(selection.steps), self.read(selection, columns))
