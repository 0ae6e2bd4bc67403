"""A family as files, to be kept or carried to another registry: JSON for what it is, Parquet for what was measured.

    FOLDER/family.json                 the wire contract's Family
    FOLDER/recordings/ID.json          its Recording with all parameters, in the order of their beginning
    FOLDER/recordings/ID.parquet       a row for each measured step: step, loss, learning_rate, tokens, fslr (a list of float32,
                                       NaN = unmeasured), and a column `scalar:NAME` or `vector:NAME` for whatever else there is

What a registry shows is moved: one clean trajectory for each recording, without the hidden rows of earlier attempts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from numpy.typing import NDArray

from flerm_client.registry.connection import Connection
from flerm_client.upload.spool_delivery import BATCH_BYTES, BATCH_ROWS
from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.packing import FLOAT32, pack
from flerm_core.records.recording import ENDING_STATUSES
from flerm_proto.v1 import registry_pb2 as pb

SCALAR, VECTOR = "scalar:", "vector:"
_PAGE = 200

Told = Callable[[str, int], None]
"""Hears of each recording that is done: its id and its rows."""


def export_family(connection: Connection, name: str, folder: Path, told: Told) -> int:
    """Writes the family `name` into `folder`, which must be new or empty; how many recordings it has.

    Raises `NotFound` for an unknown family, `InvalidInput` for a folder with something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"folder: {folder} is there and not empty; a new folder is allowed")
    listed = connection.unary("ListFamilies", pb.ListFamiliesRequest(prefix=name, page_size=1))
    family = next((each for each in listed.families if each.name == name), None)
    if family is None:
        raise NotFound(f"family {name!r} is not in {connection.address.text}")
    (folder / "recordings").mkdir(parents=True)
    ids = list(_ids(connection, name))
    for recording_id in reversed(ids):  # listed newest first
        rows = _write(connection, recording_id, folder / "recordings")
        told(recording_id, rows)
    # Last, so that a folder without it is known to be half written.
    content = json.loads(MessageToJson(family)) | {"order": ids[::-1]}
    (folder / "family.json").write_text(json.dumps(content, indent=1) + "\n")
    return len(ids)


def import_family(connection: Connection, folder: Path, told: Told) -> tuple[str, int]:
    """Brings the family in `folder` to a registry; its name and how many recordings. Again does no harm, and goes on.

    Raises `InvalidInput` for a folder that `export_family` did not write to its end, `AlreadyExists` where the registry has
    other content under the same id.
    """
    try:
        content = json.loads((folder / "family.json").read_text())
        order = content.pop("order")
        family = Parse(json.dumps(content), pb.Family(), ignore_unknown_fields=True)
    except (OSError, ValueError, KeyError, ParseError) as error:
        raise InvalidInput(
            f"folder: {folder} does not hold an exported family ({error})"
        ) from error
    request = pb.RegisterFamilyRequest(
        name=family.name, description=family.description, blocks=family.blocks
    )
    connection.unary("RegisterFamily", request)
    for recording_id in order:
        told(recording_id, _read(connection, recording_id, folder / "recordings"))
    return family.name, len(order)


def _ids(connection: Connection, family: str) -> Iterator[str]:
    token = ""
    while True:
        request = pb.ListRecordingsRequest(family=family, page_size=_PAGE, page_token=token)
        page = connection.unary("ListRecordings", request)
        yield from (each.spec.id for each in page.recordings)
        token = page.next_page_token
        if not token:
            return


def _write(connection: Connection, recording_id: str, folder: Path) -> int:
    import pyarrow.parquet as pq

    recording = connection.unary("GetRecording", pb.GetRecordingRequest(recording_id=recording_id))
    (folder / f"{recording_id}.json").write_text(MessageToJson(recording) + "\n")
    # Which further columns there are is known at the end only; a recording has few enough rows of each to be put together.
    chunks = connection.stream(
        "GetTrajectory", pb.GetTrajectoryRequest(recording_id=recording_id, extras=True)
    )
    blocks = [chunk.rows for chunk in chunks if chunk.HasField("rows")]
    pq.write_table(
        _table(blocks, recording.parameter_count),
        folder / f"{recording_id}.parquet",
        compression="zstd",
    )
    return sum(len(block.steps) for block in blocks)


def _table(blocks: list[Any], width: int) -> Any:
    import pyarrow as pa

    def joined(values: list[NDArray[Any]], kind: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, kind), *values])

    def vectors(parts: list[NDArray[np.float32]]) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(joined(parts, np.float32)), width)

    counts = [len(block.steps) for block in blocks]
    columns = {
        "step": pa.array(joined([np.array(block.steps, np.int64) for block in blocks], np.int64)),
        "loss": pa.array(joined([np.array(block.losses) for block in blocks], np.float64)),
        "learning_rate": pa.array(
            joined([np.array(block.learning_rates) for block in blocks], np.float64)
        ),
        "tokens": pa.array(
            joined([np.array(block.tokens, np.int64) for block in blocks], np.int64)
        ),
        "fslr": vectors([np.frombuffer(block.values, FLOAT32) for block in blocks]),
    }
    for name in sorted({name for block in blocks for name in block.scalars}):
        parts = [
            np.array(block.scalars[name].values)
            if name in block.scalars
            else np.full(count, np.nan)
            for block, count in zip(blocks, counts, strict=True)
        ]
        columns[SCALAR + name] = pa.array(joined(parts, np.float64))
    for name in sorted({name for block in blocks for name in block.vectors}):
        parts = [
            np.frombuffer(block.vectors[name], FLOAT32)
            if name in block.vectors
            else np.full(count * width, np.nan, np.float32)
            for block, count in zip(blocks, counts, strict=True)
        ]
        columns[VECTOR + name] = vectors(parts)
    return pa.table(columns)


def _read(connection: Connection, recording_id: str, folder: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        text = (folder / f"{recording_id}.json").read_text()
        recording = Parse(text, pb.Recording(), ignore_unknown_fields=True)
        file = pq.ParquetFile(folder / f"{recording_id}.parquet")
    except (OSError, ParseError, pa.ArrowInvalid) as error:
        raise InvalidInput(
            f"folder: recording {recording_id} in {folder} cannot be read ({error})"
        ) from error
    start = pb.StartRecordingRequest(spec=recording.spec, started_at=recording.created_at)
    connection.unary("StartRecording", start)
    rows = 0
    width = max(recording.parameter_count, 1)
    height = max(
        1, min(BATCH_ROWS, BATCH_BYTES // (4 * width * (1 + len(file.schema_arrow.names) - 5)))
    )
    for batch in file.iter_batches(batch_size=height):
        request = pb.AppendRequest(
            recording_id=recording_id, measurements=_measurements(batch, width)
        )
        connection.unary("Append", request, seconds=30.0)
        rows += batch.num_rows
    status = recording.status if recording.status in ENDING_STATUSES else "interrupted"
    ending = pb.FinishRecordingRequest(recording_id=recording_id, status=status)
    for field in ("final_loss", "final_step", "tokens"):
        if recording.HasField(field):
            setattr(ending, field, getattr(recording, field))
    connection.unary("FinishRecording", ending)
    return rows


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
