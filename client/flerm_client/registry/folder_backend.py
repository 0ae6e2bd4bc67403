"""A folder of spool files as a registry (`file:///folder`): for notebooks, and clusters without a network.

It answers what a server answers, by the same functions of the core. Each recording is written by one process at a time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from flerm_client.spool.paths import spool_files
from flerm_client.spool.reader import SpoolContent, read
from flerm_client.spool.writer import SpoolWriter
from flerm_core.errors import AlreadyExists, DataLoss, NotFound, Refused, Unsupported
from flerm_core.matching.targets import Targets, build_targets, choose_sources
from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.comparability import refuse_other_recording
from flerm_core.records.packing import pack
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Family,
    Measurement,
    Recording,
    RecordingSpec,
    in_order,
    now,
)
from flerm_core.records.validation import validate_family, validate_measurements, validate_spec
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best, best_of

log = logging.getLogger("flerm.spool")

FAMILIES = "families"


@dataclass(slots=True)
class _Stored:
    """A recording put together from the files of its attempts."""

    attempts: list[SpoolContent]

    @property
    def last(self) -> SpoolContent:
        return self.attempts[-1]

    @property
    def spec(self) -> RecordingSpec:
        return self.attempts[0].spec

    def rows(self) -> list[Measurement]:
        """One clean series: a row counts unless a later attempt has begun at or before its step."""
        visible: dict[int, Measurement] = {}
        for at, content in enumerate(self.attempts):
            later = [other.attempt.resume_at for other in self.attempts[at + 1 :]]
            visible.update(
                {
                    row.step: row
                    for row in content.rows
                    if not any(begin <= row.step for begin in later)
                }
            )
        return [visible[step] for step in sorted(visible)]

    def recording(self) -> Recording:
        """As a registry tells it."""
        rows = self.rows()
        ending = self.last.ending
        touched = datetime.fromtimestamp(self.last.path.stat().st_mtime, UTC)
        logged = [row.tokens for row in rows if row.tokens is not None]
        tokens = (
            ending.tokens
            if ending is not None and ending.tokens is not None
            else (logged[-1] if logged else None)
        )
        return Recording(
            spec=self.spec,
            status=self.last.status,
            attempt=len(self.attempts),
            rows=len(rows),
            first_step=rows[0].step if rows else 0,
            last_step=rows[-1].step if rows else 0,
            final_loss=ending.final_loss if ending is not None else None,
            tokens=tokens,
            created_at=self.attempts[0].attempt.started_at,
            updated_at=touched,
            finished_at=touched if ending is not None else None,
            parameter_count=len(self.spec.parameters),
            final_step=ending.final_step if ending is not None else None,
        )


@dataclass(slots=True)
class _Open:
    """A recording that this process is writing."""

    writer: SpoolWriter
    columns: int
    stored: dict[int, bytes] = field(default_factory=dict)  # step to packed row


class FolderBackend:
    """The registry that a folder of spool files is. `RegistryClient` says what the methods do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, _Open] = {}

    def close(self) -> None:
        """Closes what it writes. Unfinished recordings read as interrupted once this process has ended."""
        for each in self._open.values():
            each.writer.close()
        self._open.clear()

    def register_family(self, name: str, description: str, blocks: Sequence[str]) -> Family:
        """Writes the family down in `families/`."""
        validate_family(name, description, blocks)
        path = self._family_file(name)
        created = self._described(name).get("created_at") or now().isoformat()
        content = {
            "description": description,
            "blocks": list(blocks),
            "created_at": created,
            "updated_at": now().isoformat(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        fresh.replace(path)
        return next(family for family in self.families(name) if family.name == name)

    def families(self, prefix: str = "") -> Iterator[Family]:
        """By name: those registered, and those that recordings name."""
        recordings = [stored.recording() for stored in self._all(rows=False).values()]
        named = {json_path.stem for json_path in (self.folder / FAMILIES).glob("*.json")}
        names = {unquote(name) for name in named} | {
            recording.spec.family for recording in recordings
        }
        for name in sorted(each for each in names if each.startswith(prefix)):
            mine = [recording for recording in recordings if recording.spec.family == name]
            known = self._described(name)
            moments = [recording.created_at for recording in mine]
            moments += [datetime.fromisoformat(known["created_at"])] if known else []
            base = {recording.spec.lr for recording in mine if recording.spec.role == "base"}
            yield Family(
                name=name,
                description=known.get("description", ""),
                blocks=tuple(known.get("blocks", ())),
                created_at=min(moments),
                updated_at=max([*(recording.updated_at for recording in mine), *moments]),
                recordings=len(mine),
                learning_rates=tuple(sorted(base)),
            )

    def rename_family(self, name: str, new_name: str) -> Family:
        """Refused."""
        raise self._unchangeable()

    def tag(self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str]) -> Recording:
        """Refused."""
        raise self._unchangeable()

    def delete(self, recording_id: str) -> int:
        """Refused."""
        raise self._unchangeable()

    def _unchangeable(self) -> Unsupported:
        return Unsupported(
            f"registry: {self.folder} is a folder, whose files are not changed once written; flerm sync takes them to a server"
        )

    def start(self, spec: RecordingSpec, attempt: Attempt | None) -> None:
        """Opens the recording (`attempt` None: its first attempt, idempotent) or a new attempt of it."""
        validate_spec(spec)
        stored = self._all().get(spec.id) if self.folder.is_dir() else None
        if stored is not None:
            refuse_other_recording(stored.spec, spec)
            if attempt is None:
                return
        self._begin(spec, attempt or Attempt(), stored)

    def append(self, recording_id: str, rows: Sequence[Measurement]) -> None:
        """Writes rows; those that are there with the same content are passed over."""
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
                    f"step {row.step} of recording {recording_id} could not be written to {self.folder}"
                )
            opened.stored[row.step] = packed[row.step]

    def finish(self, recording_id: str, ending: Ending) -> Recording:
        """Ends the recording's latest attempt."""
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
        """Newest first."""
        found = [stored.recording() for stored in self._all(rows=False).values()]
        for recording in sorted(found, key=lambda each: each.created_at, reverse=True):
            if _passes(recording, filters):
                yield recording.without_parameters()

    def recording(self, recording_id: str) -> Recording:
        """One recording, its parameters too."""
        return self._stored(recording_id).recording()

    def trajectory(
        self,
        recording_id: str,
        *,
        first_step: int | None,
        last_step: int | None,
        pattern: str,
        max_points: int,
        progress: Callable[[int, int], None],
    ) -> Trajectory:
        """Rows of all attempts that count."""
        stored = self._stored(recording_id)
        whole = Trajectory.from_measurements(stored.spec.parameters, stored.rows()).between(
            first_step, last_step
        )
        found = (whole.select(pattern) if pattern else whole).thinned(max_points)
        progress(len(found), len(found))
        return found

    def extras(self, recording_id: str, first_step: int | None, last_step: int | None) -> Auxiliary:
        """Of the rows that count."""
        stored = self._stored(recording_id)
        first, last = first_step or 0, float("inf") if last_step is None else last_step
        return Auxiliary.of(
            [row for row in stored.rows() if first <= row.step <= last], len(stored.spec.parameters)
        )

    def targets(self, query: TargetQuery) -> Targets:
        """By `flerm_core.matching.targets`."""
        stored = self._of_family(query.family)
        sources = choose_sources([each.recording() for each in stored.values()], query)
        blocks = tuple(self._described(query.family).get("blocks", ()))
        return build_targets(
            query, sources, lambda recording: self._load(stored[recording.spec.id]), blocks=blocks
        )

    def best(self, query: BestQuery) -> Best:
        """By `flerm_core.tuning.best_lr`."""
        return best_of([each.recording() for each in self._of_family(query.family).values()], query)

    def _of_family(self, family: str) -> dict[str, _Stored]:
        stored = self._all()
        mine = {key: each for key, each in stored.items() if each.spec.family == family}
        if not mine and not self._described(family):
            names = ", ".join(sorted({each.spec.family for each in stored.values()})) or "none yet"
            raise NotFound(f"family {family!r} is not in {self.folder}; there are: {names}")
        return mine

    @staticmethod
    def _load(stored: _Stored) -> Trajectory:
        return Trajectory.from_measurements(stored.spec.parameters, stored.rows())

    def _begin(self, spec: RecordingSpec, attempt: Attempt, stored: _Stored | None) -> None:
        previous = self._open.pop(spec.id, None)
        if previous is not None:
            previous.writer.close()
        writer = SpoolWriter(self.folder.absolute(), self.folder.absolute().as_uri())
        writer.start(spec, attempt)
        kept = (
            [row for row in stored.rows() if row.step < attempt.resume_at]
            if stored is not None
            else []
        )
        self._open[spec.id] = _Open(
            writer, len(spec.parameters), {row.step: pack(row.values) for row in kept}
        )

    def _opened(self, recording_id: str) -> _Open:
        """What this process writes; a recording that another one left is taken up in a new attempt."""
        if recording_id not in self._open:
            stored = self._stored(recording_id)
            last = stored.last
            if last.ending is not None:
                raise Refused(
                    f"recording {recording_id} has ended ({last.ending.status}): resume it to add to it"
                )
            if last.origin.owner.alive:
                raise Refused(f"recording {recording_id} is being written by {last.origin.owner}")
            rows = stored.rows()
            self._begin(stored.spec, Attempt(resume_at=rows[-1].step + 1 if rows else 0), stored)
        return self._open[recording_id]

    def _stored(self, recording_id: str) -> _Stored:
        try:
            return self._all()[recording_id]
        except KeyError:
            raise NotFound(f"recording {recording_id!r} is not in {self.folder}") from None

    def _all(self, *, rows: bool = True) -> dict[str, _Stored]:
        if not self.folder.is_dir():
            raise NotFound(f"there is no folder {self.folder}")
        found: dict[str, list[SpoolContent]] = {}
        for path in spool_files(self.folder):
            try:
                content = read(path, rows=rows)
            except FileNotFoundError:  # delivered and removed meanwhile
                continue
            except (DataLoss, Refused) as error:
                log.warning("%s", error)
                continue
            found.setdefault(content.spec.id, []).append(content)
        stored = {}
        for recording_id, attempts in found.items():
            attempts.sort(key=lambda each: each.attempt.id)
            by_id = {each.attempt.id: each for each in attempts}
            attempts = [
                by_id[each.id] for each in in_order([each.attempt for each in by_id.values()])
            ]
            same = [
                each for each in attempts if each.spec.parameters == attempts[0].spec.parameters
            ]
            if len(same) < len(attempts):
                log.warning(
                    "recording %s: attempts with other parameters than the first are left out",
                    recording_id,
                )
            stored[recording_id] = _Stored(same)
        return stored

    def _family_file(self, name: str) -> Path:
        return self.folder / FAMILIES / f"{quote(name, safe='')}.json"

    def _described(self, name: str) -> dict[str, Any]:
        path = self._family_file(name)
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return content


def _passes(recording: Recording, wanted: RecordingFilter) -> bool:
    spec = recording.spec
    plain = (
        (wanted.family, spec.family),
        (wanted.role, spec.role),
        (wanted.variant, spec.variant),
        (wanted.optimizer, spec.optimizer),
        (wanted.status, recording.status),
    )
    slack = 1e-9  # learning rates are keys to within this
    return (
        all(not want or want == have for want, have in plain)
        and (wanted.lr_min is None or spec.lr >= wanted.lr_min * (1 - slack))
        and (wanted.lr_max is None or spec.lr <= wanted.lr_max * (1 + slack))
        and all(spec.tags.get(key) == value for key, value in wanted.tags.items())
        and (wanted.created_after is None or recording.created_at >= wanted.created_after)
        and (wanted.created_before is None or recording.created_at < wanted.created_before)
    )
