"""A family as a folder of files, for keeping or for another registry.

    FOLDER/family.json             Family of the wire contract, and `order`: the recordings' ids in
                                   the order in which they began
    FOLDER/recordings/ID.json      Recording of the wire contract, with all parameters
    FOLDER/recordings/ID.parquet   a row for each measured step: step, loss, learning_rate, tokens,
                                   fslr (a list of float32, NaN: not measured), and a column
                                   `scalar:NAME` or `vector:NAME` for each auxiliary value

The archive holds what a registry shows: one trajectory for each recording, without the rows that
later attempts have replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from numpy.typing import NDArray

from flerm_client.registry.calls import APPEND_BYTES, APPEND_ROWS, APPEND_SECONDS, RegistryCalls
from flerm_core._files import make_private_folder, open_private
from flerm_core.errors import DataLoss, FlermError, InvalidInput, NotFound, join_names
from flerm_core.records.checks import check_uuid
from flerm_core.records.packing import FLOAT32, pack
from flerm_core.records.recording import ENDING_STATUSES, Ending
from flerm_core.records.validation import MAX_PARTS
from flerm_proto.recording_messages import ending_to_proto, recording_from_proto
from flerm_proto.v1 import registry_pb2 as pb

SCALAR, VECTOR = "scalar:", "vector:"
MAX_JSON_BYTES = 64 << 20
_PLAIN_COLUMNS = ("step", "loss", "learning_rate", "tokens", "fslr")
# What json, protobuf, pyarrow and numpy raise for files that hold something else. pyarrow's own
# errors are OSError, ValueError, TypeError, KeyError, NotImplementedError and MemoryError too.
_CAUSED_BY_CONTENT = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
    NotImplementedError, MemoryError, ParseError,
)  # fmt: skip

OnRecording = Callable[[str, int], None]
"""Called for each recording that is done, with its id and its number of rows."""


def export_family(calls: RegistryCalls, name: str, folder: Path, on_recording: OnRecording) -> int:
    """Writes the family `name` to `folder`, which must be new or empty; the number of recordings.

    Raises `NotFound` for an unknown family, `InvalidInput` for a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"folder: {folder} is there and not empty; a new folder is allowed")
    listed = calls.unary("ListFamilies", pb.ListFamiliesRequest(prefix=name, page_size=1))
    family = next((each for each in listed.families if each.name == name), None)
    if family is None:
        raise NotFound(f"family {name!r} is not in {calls.address.text}")
    make_private_folder(folder / "recordings")
    listing = calls.pages("ListRecordings", pb.ListRecordingsRequest(family=name))
    ids = [each.spec.id for page in listing for each in page.recordings][::-1]  # newest come first
    for recording_id in ids:
        check_uuid("recording_id", recording_id)  # the registry's word chooses no path
        on_recording(recording_id, _write(calls, recording_id, folder / "recordings"))
    # This file is written last: a folder without it was not written to its end.
    content = json.loads(MessageToJson(family)) | {"order": ids}
    _write_text(folder / "family.json", json.dumps(content, indent=1))
    return len(ids)


def import_family(calls: RegistryCalls, folder: Path, on_recording: OnRecording) -> tuple[str, int]:
    """Sends the family in `folder` to a registry; its name and the number of recordings.

    An import that was interrupted can be repeated. Raises `InvalidInput` for a folder that
    `export_family` did not write to its end, `AlreadyExists` where the registry has other content
    under the same id.
    """
    with _readable(f"{folder} does not hold an exported family"):
        content = json.loads(_text(folder / "family.json"))
        order = list(content.pop("order"))
        family = Parse(json.dumps(content), pb.Family(), ignore_unknown_fields=True)
    for recording_id in order:
        check_uuid("order", recording_id)
    described = pb.RegisterFamilyRequest(
        name=family.name, description=family.description, blocks=family.blocks
    )
    calls.unary("RegisterFamily", described)
    parts = (part for each in order for part in _parts(each, folder / "recordings"))
    sent: dict[str, int] = {}
    for request in _requests(parts):
        calls.unary("ImportRecordings", request, seconds=APPEND_SECONDS)
        for part in request.parts:
            rows = sent.pop(part.recording_id, 0) + len(part.measurements)
            if part.HasField("finish"):
                on_recording(part.recording_id, rows)
            else:
                sent[part.recording_id] = rows
    return family.name, len(order)


def _write(calls: RegistryCalls, recording_id: str, folder: Path) -> int:
    import pyarrow.parquet as pq

    recording = calls.unary("GetRecording", pb.GetRecordingRequest(recording_id=recording_id))
    _write_text(folder / f"{recording_id}.json", MessageToJson(recording))
    # The auxiliary columns are known only at the end, so a recording is held in memory as a whole.
    answers = calls.trajectory(pb.GetTrajectoryRequest(recording_id=recording_id, auxiliary=True))
    chunks = [chunk.rows for chunk in answers if chunk.HasField("rows")]
    width = recording.parameter_count
    if any(len(chunk.values) != 4 * width * len(chunk.steps) for chunk in chunks):
        raise DataLoss(f"recording {recording_id}: the registry sent rows of another width")
    with open_private(folder / f"{recording_id}.parquet", "wb") as file:
        pq.write_table(_table(chunks, width), file, compression="zstd")
    return sum(len(chunk.steps) for chunk in chunks)


def _write_text(file: Path, text: str) -> None:
    with open_private(file, "w") as opened:
        opened.write(text + "\n")


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
    size = _plain_file(path).stat().st_size
    if size > MAX_JSON_BYTES:
        raise InvalidInput(f"folder: {path} has {size} bytes; at most {MAX_JSON_BYTES} are allowed")
    return path.read_text()


def _plain_file(path: Path) -> Path:
    """`path`, if it is a plain file.

    Raises `InvalidInput` for a link or a device: an archive comes from somebody else, and must name
    no file outside of itself.
    """
    for each in (path.parent, path):
        kind = each.lstat().st_mode
        if not (S_ISREG(kind) if each == path else S_ISDIR(kind)):
            raise InvalidInput(f"folder: {each} is a link or no plain file; only these are allowed")
    return path


def _table(chunks: list[Any], width: int) -> Any:
    import pyarrow as pa

    def concatenated(values: list[NDArray[Any]], kind: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, kind), *values])

    def vectors(parts: list[NDArray[np.float32]]) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(concatenated(parts, np.float32)), width)

    counts = [len(chunk.steps) for chunk in chunks]
    columns = {
        "step": pa.array(
            concatenated([np.array(chunk.steps, np.int64) for chunk in chunks], np.int64)
        ),
        "loss": pa.array(concatenated([np.array(chunk.losses) for chunk in chunks], np.float64)),
        "learning_rate": pa.array(
            concatenated([np.array(chunk.learning_rates) for chunk in chunks], np.float64)
        ),
        "tokens": pa.array(
            concatenated([np.array(chunk.tokens, np.int64) for chunk in chunks], np.int64)
        ),
        "fslr": vectors([np.frombuffer(chunk.values, FLOAT32) for chunk in chunks]),
    }
    for name in sorted({name for chunk in chunks for name in chunk.scalars}):
        parts = [
            np.array(chunk.scalars[name].values)
            if name in chunk.scalars
            else np.full(count, np.nan)
            for chunk, count in zip(chunks, counts, strict=True)
        ]
        columns[SCALAR + name] = pa.array(concatenated(parts, np.float64))
    for name in sorted({name for chunk in chunks for name in chunk.vectors}):
        parts = [
            np.frombuffer(chunk.vectors[name], FLOAT32)
            if name in chunk.vectors
            else np.full(count * width, np.nan, np.float32)
            for chunk, count in zip(chunks, counts, strict=True)
        ]
        columns[VECTOR + name] = vectors(parts)
    return pa.table(columns)


def _parts(recording_id: str, folder: Path) -> Iterator[pb.RecordingPart]:
    """A recording of the archive: the first part starts it, the last one ends it."""
    import pyarrow.parquet as pq

    unreadable = f"recording {recording_id} in {folder} cannot be read"
    with _readable(unreadable):
        text = _text(folder / f"{recording_id}.json")
        path = _plain_file(folder / f"{recording_id}.parquet")
        recording = Parse(text, pb.Recording(), ignore_unknown_fields=True)
        if recording.spec.id != recording_id:
            raise InvalidInput(f"folder: {recording_id}.json is of {recording.spec.id[:80]!r}")
        ending = Ending.of(recording_from_proto(recording))
        file = pq.ParquetFile(path)
        if missing := set(_PLAIN_COLUMNS) - set(file.schema_arrow.names):
            raise InvalidInput(f"folder: {path.name} has no column {join_names(sorted(missing))}")
        blocks = _blocks(file, max(recording.parameter_count, 1))
    part = pb.RecordingPart(
        recording_id=recording_id,
        start=pb.StartRecordingRequest(
            spec=recording.spec, attempt=pb.Attempt(started_at=recording.created_at)
        ),
    )
    while True:
        with _readable(unreadable):
            measurements = next(blocks, None)
        if measurements is None:
            break
        if part.measurements:
            yield part
            part = pb.RecordingPart(recording_id=recording_id)
        part.measurements.extend(measurements)
    if ending.status not in ENDING_STATUSES:
        ending = replace(ending, status="interrupted")
    part.finish.CopyFrom(ending_to_proto(ending))
    yield part


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


def _blocks(file: Any, width: int) -> Iterator[list[pb.Measurement]]:
    """The rows of a Parquet file, in blocks that a request may hold.

    width: the recording's parameters.
    """
    row_bytes = 4 * width * (1 + len(file.schema_arrow.names) - len(_PLAIN_COLUMNS))
    block_rows = max(1, min(APPEND_ROWS, APPEND_BYTES // row_bytes))
    for block in file.iter_batches(batch_size=block_rows):
        yield list(_measurements(block, width))


def _measurements(batch: Any, width: int) -> Iterator[pb.Measurement]:
    def column(name: str) -> NDArray[Any]:
        found: NDArray[Any] = batch.column(name).to_numpy(zero_copy_only=False)
        return found

    def table(name: str) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (
            batch.column(name).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        )
        return found

    names = batch.schema.names
    scalars = {name.removeprefix(SCALAR): column(name) for name in names if name.startswith(SCALAR)}
    vectors = {name.removeprefix(VECTOR): table(name) for name in names if name.startswith(VECTOR)}
    losses, rates, tokens, fslr = (
        column("loss"),
        column("learning_rate"),
        column("tokens"),
        table("fslr"),
    )
    for at, step in enumerate(column("step").tolist()):
        yield pb.Measurement(
            step=step,
            fslr=pack(fslr[at]),
            loss=None if np.isnan(losses[at]) else losses[at],
            learning_rate=None if np.isnan(rates[at]) else rates[at],
            tokens=None if tokens[at] < 0 else tokens[at],
            scalars={
                name: values[at] for name, values in scalars.items() if not np.isnan(values[at])
            },
            vectors={
                name: pack(values[at])
                for name, values in vectors.items()
                if not np.isnan(values[at]).all()
            },
        )
