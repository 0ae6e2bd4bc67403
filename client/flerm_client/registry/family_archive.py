"""A family as a folder of files, for keeping, for another registry, or for a notebook.

    FOLDER/family.json    Family of the wire contract, and `parts`: the names of its parts
    FOLDER/recordings/, FOLDER/rows/
                          the parts: see `flerm_client.registry.archive_files`

The archive holds what a registry shows: one trajectory for each recording, without the rows that
later attempts have replaced.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from flerm_client.registry.archive_files import (
    blocks,
    measurements,
    new_part,
    open_part,
    part_names,
    plain_file,
    remove_fragments,
    remove_part,
)
from flerm_client.registry.calls import APPEND_BYTES, APPEND_ROWS, APPEND_SECONDS, RegistryCalls
from flerm_core._files import atomic_write, make_private_folder
from flerm_core.errors import DataLoss, FlermError, InvalidInput, NotFound
from flerm_core.records.checks import check_uuid
from flerm_core.records.packing import FLOAT32
from flerm_core.records.recording import ENDING_STATUSES, Ending
from flerm_core.records.validation import MAX_PARTS, validate_family_name
from flerm_proto.recording_messages import ending_to_proto, recording_from_proto
from flerm_proto.v1 import registry_pb2 as pb

FAMILY_FILE = "family.json"
MAX_JSON_BYTES = 64 << 20
# What json, protobuf, pyarrow and numpy raise for files that hold something else. pyarrow's own
# errors are OSError, ValueError, TypeError, KeyError, NotImplementedError and MemoryError too.
_CAUSED_BY_CONTENT = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
    NotImplementedError, MemoryError, ParseError,
)  # fmt: skip

Fetched = tuple[pb.Recording, Iterable[pb.TrajectoryRows]]
"""A recording with its parameters, and its rows."""

Progress = Callable[[int, int], None]
"""Called with the number of recordings that are done, and of those to do in all."""


def export_family(
    calls: RegistryCalls, name: str, folder: Path, progress: Progress | None = None
) -> tuple[int, int]:
    """Writes the family `name` to `folder`; the number of recordings and of rows.

    `folder` must be new, empty, or what an export of this family left that was interrupted: its
    parts are kept whose recordings have not changed since.

    Raises `NotFound` for an unknown family, `InvalidInput` for a folder that holds something else.
    """
    validate_family_name(name)
    _refuse_other_content(folder)
    listed = calls.unary("ListFamilies", pb.ListFamiliesRequest(prefix=name, page_size=1))
    family = next((each for each in listed.families if each.name == name), None)
    if family is None:
        raise NotFound(f"family {name!r} is not in {calls.address.text}")
    pages = calls.pages("ListRecordings", pb.ListRecordingsRequest(family=name))
    found = {each.spec.id: each for page in pages for each in page.recordings}
    for recording_id in found:
        check_uuid("recording_id", recording_id)
    for kind in ("recordings", "rows"):
        make_private_folder(folder / kind)
    kept = _kept(folder, name, found)
    rows = sum(found[each].rows for each in kept)
    # The newest come first in a listing, and last here.
    missing = [found[each] for each in reversed(found) if each not in kept]
    rows += _write_parts(calls, folder, missing, len(kept), len(found), progress)
    # This file is written last: a folder without it was not written to its end.
    content = json.loads(MessageToJson(family)) | {"parts": part_names(folder)}
    atomic_write(folder / FAMILY_FILE, json.dumps(content, indent=1) + "\n")
    return len(found), rows


def _refuse_other_content(folder: Path) -> None:
    """Raises `InvalidInput` for a folder that an export may not write to."""
    if not folder.exists():
        return
    fragments = f".{FAMILY_FILE}.*.partial"  # of an export that was killed
    if not folder.is_dir() or any(
        each.name not in ("recordings", "rows") and not each.match(fragments)
        for each in folder.iterdir()
    ):
        raise InvalidInput(
            f"folder: {folder} is there and not empty; a new folder is allowed, or that of an "
            "export of this family that was interrupted"
        )
    for each in folder.glob(fragments):
        each.unlink()


def _kept(folder: Path, name: str, found: dict[str, pb.Recording]) -> set[str]:
    """The recordings of earlier parts that are as `found` has them. Other parts are removed."""
    kept: set[str] = set()
    remove_fragments(folder)
    for part in part_names(folder):
        with _readable(f"{folder / 'recordings' / part}.parquet cannot be read"):
            held = list(_recordings(folder, part))
        for each in held:
            each.spec.ClearField("parameters")
            if each.spec.family != name:
                raise InvalidInput(
                    f"folder: {folder} has a part of the family {each.spec.family[:80]!r}; "
                    "a new folder is allowed"
                )
        if any(found.get(each.spec.id) != each for each in held):
            remove_part(folder, part)
        else:
            kept |= {each.spec.id for each in held}
    return kept


def _write_parts(
    calls: RegistryCalls,
    folder: Path,
    missing: list[pb.Recording],
    done: int,
    total: int,
    progress: Progress | None,
) -> int:
    """Writes the recordings that are `missing` in new parts; the number of rows."""
    rows, left, taken = 0, _fetched_in_turn(calls, missing), set(part_names(folder))
    following = next(left, None)
    for number in itertools.count(1):
        name = f"{number:05}"
        if following is None:
            break
        if name in taken:
            continue
        with new_part(folder, name) as part:
            while following is not None and not part.full:
                rows += part.add(*following())
                done += 1
                if progress is not None:
                    progress(done, total)
                following = next(left, None)
    return rows


def _fetched_in_turn(
    calls: RegistryCalls, recordings: list[pb.Recording]
) -> Iterator[Callable[[], Fetched]]:
    """What gives each recording with its rows, and raises where it cannot be fetched.

    A short one is fetched while the caller writes the one before. A long one is not: a registry
    ends the connection of a caller that does not read.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="flerm-export")
    waiting: deque[Callable[[], Fetched]] = deque()
    try:
        for each in recordings:
            fetch = partial(_fetched, calls, each.spec.id)
            short = FLOAT32.itemsize * each.rows * each.parameter_count <= APPEND_BYTES
            waiting.append(pool.submit(_held, fetch).result if short else fetch)
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _held(fetch: Callable[[], Fetched]) -> Fetched:
    recording, rows = fetch()
    return recording, list(rows)


def _fetched(calls: RegistryCalls, recording_id: str) -> Fetched:
    """A recording with its parameters, and its rows.

    Raises `DataLoss` where the registry sends others than it announced.
    """
    answers = calls.trajectory(pb.GetTrajectoryRequest(recording_id=recording_id, auxiliary=True))
    header = next(answers).header
    recording = header.recording
    recording.spec.parameters.CopyFrom(header.parameters)
    width = len(header.parameters.names)
    if recording.spec.id != recording_id or width != recording.parameter_count:
        raise DataLoss(f"recording {recording_id}: the registry sent another recording")

    def chunks() -> Iterator[pb.TrajectoryRows]:
        count = 0
        for chunk in answers:
            count += len(chunk.rows.steps)
            if len(chunk.rows.values) != 4 * width * len(chunk.rows.steps):
                raise DataLoss(f"recording {recording_id}: the registry sent rows of another width")
            yield chunk.rows
        if count != recording.rows:
            raise DataLoss(
                f"recording {recording_id}: the registry sent {count} rows of {recording.rows}"
            )

    return recording, chunks()


def import_family(
    calls: RegistryCalls, folder: Path, progress: Progress | None = None
) -> tuple[str, int, int]:
    """Sends the family in `folder` to a registry; its name, and the number of recordings and rows.

    An import that was interrupted can be repeated. Raises `InvalidInput` for a folder that
    `export_family` did not write to its end, `AlreadyExists` where the registry has other content
    under the same id.
    """
    with _readable(f"{folder} does not hold an exported family"):
        content = json.loads(_text(folder / FAMILY_FILE))
        names = list(content.pop("parts"))
        if any(not (isinstance(each, str) and each.isdecimal()) for each in names):
            raise InvalidInput(f"folder: parts of {folder}/family.json: only numbers are allowed")
        family = Parse(json.dumps(content), pb.Family(), ignore_unknown_fields=True)
        total = sum(open_part(folder, "recordings", each).metadata.num_rows for each in names)
    described = pb.RegisterFamilyRequest(
        name=family.name, description=family.description, blocks=family.blocks
    )
    calls.unary("RegisterFamily", described)
    done = rows = 0
    for request in _requests(part for each in names for part in _parts(folder, each)):
        calls.unary("ImportRecordings", request, seconds=APPEND_SECONDS)
        done += sum(part.HasField("finish") for part in request.parts)
        rows += sum(len(part.measurements) for part in request.parts)
        if progress is not None:
            progress(done, total)
    return family.name, done, rows


@contextmanager
def _readable(sentence: str) -> Iterator[None]:
    """Inside, errors that the content of an archive's files causes become `InvalidInput`.

    Somebody else may have written the files, so their content may be anything.
    """
    try:
        yield
    except FlermError:
        raise
    except _CAUSED_BY_CONTENT as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InvalidInput(f"folder: {sentence} ({reason[:300]})") from error


def _text(path: Path) -> str:
    size = plain_file(path).stat().st_size
    if size > MAX_JSON_BYTES:
        raise InvalidInput(f"folder: {path} has {size} bytes; at most {MAX_JSON_BYTES} are allowed")
    return path.read_text("utf-8")


def _recordings(folder: Path, part: str) -> Iterator[pb.Recording]:
    for block in blocks(open_part(folder, "recordings", part), ["message"]):
        for text in block.column("message").to_pylist():
            yield Parse(text, pb.Recording(), ignore_unknown_fields=True)


def _parts(folder: Path, name: str) -> Iterator[pb.RecordingPart]:
    """What to send of one part of the archive: each recording's start, rows and end."""
    unreadable = f"part {name} of {folder} cannot be read"
    with _readable(unreadable):
        recordings = _recordings(folder, name)
        rows = measurements(open_part(folder, "rows", name))
        row = next(rows, None)
    while True:
        with _readable(unreadable):
            recording = next(recordings, None)
            if recording is None:
                break
            recording_id = recording.spec.id
            check_uuid("recording_id", recording_id)
            ending = Ending.of(recording_from_proto(recording))
        part = pb.RecordingPart(
            recording_id=recording_id,
            start=pb.StartRecordingRequest(
                spec=recording.spec, attempt=pb.Attempt(started_at=recording.created_at)
            ),
        )
        count = size = 0
        while row is not None and row[0] == recording_id:
            size += row[1].ByteSize()
            if part.measurements and (size > APPEND_BYTES or len(part.measurements) == APPEND_ROWS):
                yield part
                part, size = pb.RecordingPart(recording_id=recording_id), row[1].ByteSize()
            part.measurements.append(row[1])
            count += 1
            with _readable(unreadable):
                row = next(rows, None)
        if count != recording.rows:
            raise InvalidInput(
                f"folder: part {name} has {count} rows of recording {recording_id}, not "
                f"{recording.rows}"
            )
        if ending.status not in ENDING_STATUSES:
            ending = replace(ending, status="interrupted")
        part.finish.CopyFrom(ending_to_proto(ending))
        yield part
    if row is not None:
        raise InvalidInput(f"folder: part {name} has rows of {row[0][:80]!r} out of their order")


def _requests(parts: Iterator[pb.RecordingPart]) -> Iterator[pb.ImportRecordingsRequest]:
    """Requests of bounded size, in each at most one part of a recording."""
    request, rows, size, last = pb.ImportRecordingsRequest(), 0, 0, ""
    for part in parts:
        rows, size = rows + len(part.measurements), size + part.ByteSize()
        full = len(request.parts) == MAX_PARTS or rows > APPEND_ROWS or size > APPEND_BYTES
        if request.parts and (full or part.recording_id == last):
            yield request
            request, rows, size = (
                pb.ImportRecordingsRequest(), len(part.measurements), part.ByteSize()
            )  # fmt: skip
        request.parts.append(part)
        last = part.recording_id
    if request.parts:
        yield request
