"""A folder of spool files as a registry (`file:///folder`).

It serves notebooks, and clusters without a network.

The folder's answers are computed by the same functions of the core as a server's. Only one process
at a time writes a recording.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from flerm_client.registry.backend import RegistryBackend
from flerm_client.registry.stored_recording import StoredRecording
from flerm_client.spool.paths import spool_files
from flerm_client.spool.reader import SpoolContent, read
from flerm_client.spool.writer import SpoolWriter
from flerm_core._files import atomic_write, make_private_folder
from flerm_core.errors import AlreadyExists, DataLoss, NotFound, Refused
from flerm_core.matching.targets import Targets, build_targets, choose_sources
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.checks import check_timestamp
from flerm_core.records.comparability import refuse_other_recording
from flerm_core.records.measurement_validation import validate_measurements
from flerm_core.records.packing import pack
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Family,
    Measurement,
    Recording,
    RecordingSpec,
    now,
)
from flerm_core.records.validation import (
    validate_best_query,
    validate_family,
    validate_filter,
    validate_query,
    validate_spec,
    validate_trajectory_query,
)
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.family_best import best_of

log = logging.getLogger("flerm.spool")

FAMILIES = "families"
"""The subfolder with a JSON file for each registered family."""

_LR_TOLERANCE = 1e-9  # relative; learning rates that differ by less are the same key


@dataclass(slots=True)
class _OpenRecording:
    """A recording that this process is writing.

    stored: the packed row of each step.
    """

    writer: SpoolWriter
    columns: int
    stored: dict[int, bytes] = field(default_factory=dict)


class FolderBackend(RegistryBackend):
    """The registry in a folder of spool files. `RegistryBackend` documents the methods."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.limitation = (
            f"{folder} is a folder, whose files are not changed once written; "
            "flerm sync takes them to a server"
        )
        self._open: dict[str, _OpenRecording] = {}

    def close(self) -> None:
        """Closes the files that this process writes.

        Recordings that are not finished are `interrupted` once this process has ended.
        """
        for each in self._open.values():
            each.writer.close()
        self._open.clear()

    def register_family(self, name: str, description: str, blocks: Sequence[str]) -> Family:
        """Writes a file in `families/`."""
        validate_family(name, description, blocks)
        path = self._family_file(name)
        created = self._registered(name).get("created_at") or now().isoformat()
        content = {
            "description": description,
            "blocks": list(blocks),
            "created_at": created,
            "updated_at": now().isoformat(),
        }
        make_private_folder(path.parent)
        atomic_write(path, json.dumps(content))
        return next(family for family in self.families(name) if family.name == name)

    def families(self, prefix: str = "") -> Iterator[Family]:
        """The registered families, and those that recordings name."""
        recordings = [stored.recording() for stored in self._read_all(rows=False).values()]
        files = {unquote(path.stem) for path in (self.folder / FAMILIES).glob("*.json")}
        registered = {name: content for name in files if (content := self._registered(name))}
        names = {*registered, *(recording.spec.family for recording in recordings)}
        for name in sorted(each for each in names if each.startswith(prefix)):
            members = [recording for recording in recordings if recording.spec.family == name]
            content = registered.get(name, {})
            created = [recording.created_at for recording in members]
            created += [datetime.fromisoformat(content["created_at"])] if content else []
            base = {recording.spec.lr for recording in members if recording.spec.role == "base"}
            yield Family(
                name=name,
                description=content.get("description", ""),
                blocks=tuple(content.get("blocks", ())),
                created_at=min(created),
                updated_at=max([*(recording.updated_at for recording in members), *created]),
                recordings=len(members),
                learning_rates=tuple(sorted(base)),
            )

    def start(self, spec: RecordingSpec, attempt: Attempt | None) -> None:
        """Creates the attempt's spool file."""
        validate_spec(spec)
        stored = self._read_all().get(spec.id) if self.folder.is_dir() else None
        if stored is not None:
            refuse_other_recording(stored.spec, spec)
            if attempt is None:
                return
        self._start_attempt(spec, attempt or Attempt(), stored)

    def append(self, recording_id: str, rows: Sequence[Measurement]) -> None:
        """Writes rows to the spool file."""
        opened = self._opened(recording_id)
        validate_measurements(rows, opened.columns)
        packed = {row.step: pack(row.values) for row in rows}
        for step, values in packed.items():
            if opened.stored.get(step, values) != values:
                raise AlreadyExists(
                    f"step {step} of recording {recording_id} is there already with other values"
                )
        for row in rows:
            if row.step in opened.stored:
                continue
            if not opened.writer.append(row):
                raise DataLoss(
                    f"step {row.step} of recording {recording_id} "
                    f"could not be written to {self.folder}"
                )
            opened.stored[row.step] = packed[row.step]

    def finish(self, recording_id: str, ending: Ending) -> Recording:
        """Writes the end of the latest attempt."""
        stored = self._stored(recording_id)
        if stored.last.ending is None:
            opened = self._opened(recording_id)
            if not opened.writer.finish(ending):
                raise DataLoss(
                    f"the end of recording {recording_id} could not be written to {self.folder}"
                )
            opened.writer.close()
            del self._open[recording_id]
        return self.recording(recording_id)

    def recordings(self, filters: RecordingFilter) -> Iterator[Recording]:
        """The recordings of all spool files that pass `filters`."""
        validate_filter(filters)
        found = [stored.recording() for stored in self._read_all(rows=False).values()]
        for recording in sorted(found, key=lambda each: each.created_at, reverse=True):
            if _passes(recording, filters):
                yield recording.without_parameters()

    def recording(self, recording_id: str) -> Recording:
        """The recording, from the files of its attempts."""
        return self._stored(recording_id).recording()

    def trajectory(
        self, query: TrajectoryQuery, progress: Callable[[int, int], None] | None = None
    ) -> Trajectory:
        """The rows that count, from the files of all attempts."""
        validate_trajectory_query(query)
        whole = self._stored(query.recording_id).trajectory()
        found = whole.between(query.first_step, query.last_step)
        found = (found.select(query.pattern) if query.pattern else found).thinned(query.max_points)
        if progress is not None:
            progress(len(found), len(found))
        return found

    def auxiliary(
        self, recording_id: str, first_step: int | None, last_step: int | None
    ) -> AuxiliaryColumns:
        """The auxiliary columns of the rows that count."""
        validate_trajectory_query(
            TrajectoryQuery(recording_id=recording_id, first_step=first_step, last_step=last_step)
        )
        stored = self._stored(recording_id)
        first, last = first_step or 0, float("inf") if last_step is None else last_step
        rows = [row for row in stored.rows() if first <= row.step <= last]
        steps, auxiliary = [row.step for row in rows], [row.auxiliary for row in rows]
        return AuxiliaryColumns.of(steps, auxiliary, len(stored.spec.parameters))

    def targets(self, query: TargetQuery) -> Targets:
        """The answer of `flerm_core.matching.targets`."""
        validate_query(query)
        stored = self._of_family(query.family)
        return build_targets(
            query,
            choose_sources([each.recording() for each in stored.values()], query),
            lambda recording: stored[recording.spec.id].trajectory(),
            blocks=tuple(self._registered(query.family).get("blocks", ())),
        )

    def best(self, query: BestQuery) -> Best:
        """The answer of `flerm_core.tuning.family_best`."""
        validate_best_query(query)
        found = self._of_family(query.family).values()
        return best_of((ExperimentRun.of(each.recording()) for each in found), query)

    def _of_family(self, family: str) -> dict[str, StoredRecording]:
        stored = self._read_all()
        members = {key: each for key, each in stored.items() if each.spec.family == family}
        if not members and not self._registered(family):
            names = ", ".join(sorted({each.spec.family for each in stored.values()})) or "none yet"
            raise NotFound(f"family {family!r} is not in {self.folder}; there are: {names}")
        return members

    def _start_attempt(
        self, spec: RecordingSpec, attempt: Attempt, stored: StoredRecording | None
    ) -> None:
        previous = self._open.pop(spec.id, None)
        if previous is not None:
            previous.writer.close()
        writer = SpoolWriter(self.folder.absolute(), self.folder.absolute().as_uri())
        writer.start(spec, attempt)
        rows = stored.rows() if stored is not None else []
        self._open[spec.id] = _OpenRecording(
            writer,
            len(spec.parameters),
            {row.step: pack(row.values) for row in rows if row.step < attempt.resume_at},
        )

    def _opened(self, recording_id: str) -> _OpenRecording:
        """The recording, opened for writing; one that another process left gets a new attempt.

        Raises `Refused` when the recording has ended or another process writes it.
        """
        if recording_id not in self._open:
            stored = self._stored(recording_id)
            last = stored.last
            if last.ending is not None:
                raise Refused(
                    f"recording {recording_id} has ended ({last.ending.status}): "
                    "resume it to add to it"
                )
            if last.origin.owner.alive:
                raise Refused(f"recording {recording_id} is being written by {last.origin.owner}")
            rows = stored.rows()
            resume_at = rows[-1].step + 1 if rows else 0
            self._start_attempt(stored.spec, Attempt(resume_at=resume_at), stored)
        return self._open[recording_id]

    def _stored(self, recording_id: str) -> StoredRecording:
        try:
            return self._read_all()[recording_id]
        except KeyError:
            raise NotFound(f"recording {recording_id!r} is not in {self.folder}") from None

    def _read_all(self, *, rows: bool = True) -> dict[str, StoredRecording]:
        """Every recording by its id. `rows=False`: without the vectors of its measurements."""
        if not self.folder.is_dir():
            raise NotFound(f"there is no folder {self.folder}")
        contents: dict[str, list[SpoolContent]] = {}
        for path in spool_files(self.folder):
            try:
                content = read(path, rows=rows)
            except FileNotFoundError:  # delivered and removed meanwhile
                continue
            except (DataLoss, Refused) as error:
                log.warning("%s", error)
                continue
            except PermissionError as error:
                log.warning("%s is left out: %s", path, error.strerror)
                continue
            contents.setdefault(content.spec.id, []).append(content)
        return {key: StoredRecording.of(found) for key, found in contents.items()}

    def _family_file(self, name: str) -> Path:
        return self.folder / FAMILIES / f"{quote(name, safe='')}.json"

    def _registered(self, name: str) -> dict[str, Any]:
        """What `register_family` wrote; empty when the family was not registered.

        A file with other content, such as one that a crash of the host emptied, is left out.
        """
        path = self._family_file(name)
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            validate_family(name, content["description"], content["blocks"])
            check_timestamp("created_at", datetime.fromisoformat(content["created_at"]))
        except FileNotFoundError:
            return {}
        except (PermissionError, ValueError, LookupError, TypeError, RecursionError) as error:
            log.warning("%s is left out: %s", path, error)
            return {}
        return content


def _passes(recording: Recording, filters: RecordingFilter) -> bool:
    spec = recording.spec
    wanted_and_found = (
        (filters.family, spec.family),
        (filters.role, spec.role),
        (filters.variant, spec.variant),
        (filters.optimizer, spec.optimizer),
        (filters.status, recording.status),
    )
    return (
        all(not wanted or wanted == found for wanted, found in wanted_and_found)
        and (filters.lr_min is None or spec.lr >= filters.lr_min * (1 - _LR_TOLERANCE))
        and (filters.lr_max is None or spec.lr <= filters.lr_max * (1 + _LR_TOLERANCE))
        and all(spec.tags.get(key) == value for key, value in filters.tags.items())
        and (filters.created_after is None or recording.created_at >= filters.created_after)
        and (filters.created_before is None or recording.created_at < filters.created_before)
    )
