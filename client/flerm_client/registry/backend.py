"""What every registry promises to `RegistryClient`: a server, or a folder of spool files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flerm_core.errors import Unsupported
from flerm_core.matching.targets import Targets
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Family,
    Measurement,
    Recording,
    RecordingSpec,
)
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best


@dataclass(frozen=True, slots=True)
class RegistryInfo:
    """What a server reports of itself. `now` is the time of its database."""

    version: str
    schema_revision: str
    api_versions: tuple[str, ...]
    now: datetime | None
    max_parameters: int
    max_rows_per_append: int


class RegistryBackend(ABC):
    """A registry. Core values go in and come out, and errors are those of `flerm_core.errors`.

    A method with a body here is one that not every backend offers: its default raises
    `Unsupported` with one sentence.
    """

    limitation = "this kind of registry does not offer it"
    """Why the backend cannot do more: the end of the sentence of `Unsupported`."""

    @abstractmethod
    def register_family(self, name: str, description: str, blocks: Sequence[str]) -> Family:
        """Describes the family `name`, for the first time or again."""

    @abstractmethod
    def families(self, prefix: str = "") -> Iterator[Family]:
        """The families whose names begin with `prefix`, sorted by name."""

    @abstractmethod
    def start(self, spec: RecordingSpec, attempt: Attempt | None) -> None:
        """Opens the recording `spec`, or `attempt` of it.

        `attempt` None: the first attempt; starting the same recording again changes nothing.
        Raises `AlreadyExists` when the id has another specification.
        """

    @abstractmethod
    def append(self, recording_id: str, rows: Sequence[Measurement]) -> None:
        """Stores rows. A row that is stored with the same content is skipped.

        Raises `AlreadyExists` when a step is stored with other content.
        """

    @abstractmethod
    def finish(self, recording_id: str, ending: Ending) -> Recording:
        """Ends the latest attempt of the recording. Ending it again changes nothing."""

    @abstractmethod
    def recordings(self, filters: RecordingFilter) -> Iterator[Recording]:
        """The recordings that pass all `filters`, newest first, without their parameters."""

    @abstractmethod
    def recording(self, recording_id: str) -> Recording:
        """One recording with its parameters. Raises `NotFound`."""

    @abstractmethod
    def trajectory(
        self, query: TrajectoryQuery, progress: Callable[[int, int], None] | None = None
    ) -> Trajectory:
        """The rows of a recording that count, all attempts taken together.

        progress: called with the number of rows received so far and the number to come in all.
        """

    @abstractmethod
    def auxiliary(
        self, recording_id: str, first_step: int | None, last_step: int | None
    ) -> AuxiliaryColumns:
        """The auxiliary scalars and vectors of the rows between two steps, both included."""

    @abstractmethod
    def targets(self, query: TargetQuery) -> Targets:
        """The target FSLRs that answer `query`."""

    @abstractmethod
    def best(self, query: BestQuery) -> Best:
        """The best base learning rate of a family."""

    def info(self) -> RegistryInfo:
        """Versions, limits and clock of a server."""
        raise self._unsupported("report versions and limits")

    def rename_family(self, name: str, new_name: str) -> Family:
        """Renames a family together with its recordings."""
        raise self._unsupported("rename a family")

    def tag(self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str]) -> Recording:
        """Sets `tags` of a recording, and removes the tags with the keys `remove`."""
        raise self._unsupported("change tags")

    def delete(self, recording_id: str) -> int:
        """Removes a recording with all its attempts; the number of rows that are removed."""
        raise self._unsupported("delete a recording")

    @abstractmethod
    def close(self) -> None:
        """Releases connections and files. The next call would open them again."""

    def _unsupported(self, action: str) -> Unsupported:
        return Unsupported(f"registry: cannot {action}: {self.limitation}")
