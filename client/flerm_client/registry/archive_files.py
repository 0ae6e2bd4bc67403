"""The Parquet files of a family's archive, which are also a data set.

An archive has parts of up to `PART_RECORDINGS` recordings, each of two files of the same name:

    FOLDER/recordings/NAME.parquet   a row for each recording: what one asks for most as columns,
                                     and `message`, all that the registry says of it, as JSON
    FOLDER/rows/NAME.parquet         a row for each measured step: recording, lr, seed, role and
                                     variant, step, loss, learning_rate, tokens, fslr (in the order
                                     of `names`, NaN: not measured), scalars and vectors by name

All files of a folder have the same columns, so that DuckDB, Polars or pandas read the folder as one
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.json_format import MessageToJson
from numpy.typing import NDArray

from flerm_core._files import atomic_path
from flerm_core.errors import InvalidInput
from flerm_core.records.packing import FLOAT32
from flerm_proto.v1 import registry_pb2 as pb

PART_RECORDINGS, PART_BYTES = 1000, 256 << 20  # bytes of rows, before they are compressed
GROUP_BYTES = 8 << 20  # of rows in one row group
BLOCK_BYTES = 4 << 20  # of a file that is read, at once
BLOCK_ROWS = 1000

_VECTOR = pa.list_(pa.float32())
ROWS = pa.schema([
    ("recording", pa.string()), ("lr", pa.float64()), ("seed", pa.int64()), ("role", pa.string()),
    ("variant", pa.string()), ("step", pa.int64()), ("loss", pa.float64()),
    ("learning_rate", pa.float64()), ("tokens", pa.int64()), ("fslr", _VECTOR),
    ("scalars", pa.map_(pa.string(), pa.float64())), ("vectors", pa.map_(pa.string(), _VECTOR)),
])  # fmt: skip
RECORDINGS = pa.schema([
    ("recording", pa.string()), ("family", pa.string()), ("lr", pa.float64()),
    ("seed", pa.int64()), ("role", pa.string()), ("variant", pa.string()),
    ("optimizer", pa.string()), ("status", pa.string()), ("rows", pa.int64()),
    ("first_step", pa.int64()), ("last_step", pa.int64()), ("final_loss", pa.float64()),
    ("final_step", pa.int64()), ("tokens", pa.int64()),
    ("created_at", pa.timestamp("us", tz="UTC")), ("names", pa.list_(pa.string())),
    ("message", pa.string()),
])  # fmt: skip
# What an import sends of a row; the other columns repeat what its recording says.
_SENT = ("recording", "step", "loss", "learning_rate", "tokens", "fslr", "scalars", "vectors")
# FSLRs hardly repeat: a dictionary of them would take time and room.
_REPEATED = ["recording", "lr", "seed", "role", "variant", "learning_rate"]


class PartWriter:
    """Takes the recordings of one part; see `new_part`."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        """writer: of the file of the rows."""
        self.recordings: list[dict[str, Any]] = []
        self._writer = writer
        self._group: list[pa.Table] = []
        self._group_bytes = self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the next recording belongs into another part."""
        return len(self.recordings) >= PART_RECORDINGS or self._bytes >= PART_BYTES

    def add(self, recording: pb.Recording, chunks: Iterable[pb.TrajectoryRows]) -> int:
        """Adds a recording, which has its parameters, and its rows; the number of rows."""
        spec, count = recording.spec, 0
        for chunk in chunks:
            table = _table(spec, len(spec.parameters.names), chunk)
            count += len(table)
            self._group.append(table)
            self._group_bytes += table.nbytes
            if self._group_bytes >= GROUP_BYTES:
                self.flush()
        self.recordings.append({
            "recording": spec.id, "names": list(spec.parameters.names),
            "message": MessageToJson(recording, indent=None),
            "created_at": recording.created_at.ToMicroseconds(),
            **{name: getattr(spec, name) for name in ("family", "lr", "seed", "role", "variant",
                                                      "optimizer")},
            **{name: getattr(recording, name) for name in ("status", "rows", "first_step",
                                                           "last_step")},
            **{name: getattr(recording, name) if recording.HasField(name) else None
               for name in ("final_loss", "final_step", "tokens")},
        })  # fmt: skip
        return count

    def flush(self) -> None:
        """Writes the rows that wait for their row group to be full."""
        if self._group:
            self._writer.write_table(pa.concat_tables(self._group))
        self._bytes += self._group_bytes
        self._group, self._group_bytes = [], 0


@contextmanager
def new_part(folder: Path, name: str) -> Iterator[PartWriter]:
    """A part of the archive in `folder`, whose files are there when the block has ended well."""
    path = folder / "rows" / f"{name}.parquet"
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(partial, ROWS, compression="zstd", use_dictionary=_REPEATED) as file,
    ):
        part = PartWriter(file)
        yield part
        part.flush()
    # Written last: a part whose recordings are there is whole.
    with atomic_path(folder / "recordings" / f"{name}.parquet") as partial:
        table = pa.Table.from_pylist(part.recordings, RECORDINGS)
        pq.write_table(table, partial, compression="zstd")


def remove_part(folder: Path, name: str) -> None:
    """Removes a part, its recordings first: without them it does not count."""
    for kind in ("recordings", "rows"):
        (folder / kind / f"{name}.parquet").unlink()


def remove_fragments(folder: Path) -> None:
    """Removes what an export that was interrupted left of its last part."""
    whole = set(part_names(folder))
    for kind in ("recordings", "rows"):
        for each in (folder / kind).iterdir():
            if each.name.startswith(".") or each.stem not in whole:
                each.unlink()


def _table(spec: pb.RecordingSpec, width: int, chunk: pb.TrajectoryRows) -> pa.Table:
    count = len(chunk.steps)
    losses, rates = np.array(chunk.losses), np.array(chunk.learning_rates)
    tokens = np.array(chunk.tokens, np.int64)
    columns = [
        *(pa.repeat(getattr(spec, name), count) for name in ("id", "lr")),
        pa.repeat(pa.scalar(spec.seed, pa.int64()), count),
        *(pa.repeat(getattr(spec, name), count) for name in ("role", "variant")),
        pa.array(np.array(chunk.steps, np.int64)),
        pa.array(losses, pa.float64(), mask=np.isnan(losses)),
        pa.array(rates, pa.float64(), mask=np.isnan(rates)),
        pa.array(tokens, pa.int64(), mask=tokens < 0),
        _vectors(np.frombuffer(chunk.values, FLOAT32).reshape(count, width)),
        _scalars_by_name(chunk, count),
        _vectors_by_name(chunk, count, width),
    ]
    return pa.Table.from_arrays(columns, schema=ROWS)


def _vectors(table: NDArray[np.float32]) -> pa.Array:
    offsets = np.arange(len(table) + 1, dtype=np.int32) * table.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(table.ravel(), pa.float32()))


def _scalars_by_name(chunk: pb.TrajectoryRows, count: int) -> pa.Array:
    names = sorted(chunk.scalars)
    table = np.array([chunk.scalars[name].values for name in names]).reshape(-1, count).T
    return _by_name(names, ~np.isnan(table), lambda known: pa.array(table[known], pa.float64()))


def _vectors_by_name(chunk: pb.TrajectoryRows, count: int, width: int) -> pa.Array:
    names = sorted(chunk.vectors)
    parts = [np.frombuffer(chunk.vectors[name], FLOAT32).reshape(count, 1, width) for name in names]
    table = np.concatenate([np.empty((count, 0, width), np.float32), *parts], axis=1)
    return _by_name(names, ~np.isnan(table).all(axis=2), lambda known: _vectors(table[known]))


def _by_name(names: list[str], known: NDArray[np.bool_], values: Any) -> pa.Array:
    """A map for each row of `known` [rows, names]: what is known, by name.

    values: gives the items, row after row.
    """
    offsets = np.concatenate([[0], np.cumsum(known.sum(axis=1))]).astype(np.int32)
    keys = [names[at] for at in np.nonzero(known)[1]]
    return pa.MapArray.from_arrays(pa.array(offsets), pa.array(keys, pa.string()), values(known))


def part_names(folder: Path) -> list[str]:
    """The names of the parts that are whole, in their order."""
    return sorted(each.stem for each in (folder / "recordings").glob("[!.]*.parquet"))


def open_part(folder: Path, kind: str, name: str) -> pq.ParquetFile:
    """The file of a part; kind: "recordings" or "rows".

    Raises `InvalidInput` for a link, a device or other columns: an archive comes from somebody
    else, and must name no file outside of itself.
    """
    path = plain_file(folder / kind / f"{name}.parquet")
    file = pq.ParquetFile(path)
    wanted = ROWS if kind == "rows" else RECORDINGS
    for field in wanted:
        at = file.schema_arrow.get_field_index(field.name)
        found = file.schema_arrow.field(at).type if at >= 0 else None
        if found is None or not found.equals(field.type):
            raise InvalidInput(
                f"folder: {path} has for the column {field.name} the type {found}; "
                f"{field.type} is allowed"
            )
    return file


def plain_file(path: Path) -> Path:
    """`path`, if it is a plain file in a plain folder. Raises `InvalidInput` for others."""
    for each in (path.parent, path):
        kind = each.lstat().st_mode
        if not (S_ISREG(kind) if each == path else S_ISDIR(kind)):
            raise InvalidInput(f"folder: {each} is a link or no plain file; only these are allowed")
    return path


def blocks(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in blocks of about `BLOCK_BYTES`."""
    found = file.metadata
    size = sum(found.row_group(at).total_byte_size for at in range(found.num_row_groups))
    rows = BLOCK_BYTES * found.num_rows // max(size, 1)
    yield from file.iter_batches(batch_size=min(max(rows, 1), BLOCK_ROWS), columns=columns)


def measurements(file: pq.ParquetFile) -> Iterator[tuple[str, pb.Measurement]]:
    """The rows of a part, each with the id of its recording.

    Raises `InvalidInput` for rows without a step, a recording or FSLRs.
    """
    for block in blocks(file, list(_SENT)):
        column = block.column
        for name in ("recording", "step", "fslr"):
            if column(name).null_count:
                raise InvalidInput(f"folder: a row has no {name}")
        vectors = _packed(column("fslr"))
        scalars = _by_row(column("scalars"), lambda items: items.to_pylist().__getitem__)
        named_vectors = _by_row(column("vectors"), _packed)
        plain = zip(*(column(name).to_pylist() for name in _SENT[:5]), strict=True)
        for at, (recording, step, loss, rate, tokens) in enumerate(plain):
            yield (
                recording,
                pb.Measurement(
                    step=step,
                    fslr=vectors(at),
                    loss=loss,
                    learning_rate=rate,
                    tokens=tokens,
                    scalars=scalars(at),
                    vectors=named_vectors(at),
                ),
            )


def _packed(lists: pa.ListArray) -> Callable[[int], bytes]:
    """A function that gives the packed vector at an index."""
    offsets = lists.offsets.to_numpy()
    flat = lists.values.to_numpy(zero_copy_only=False).astype(FLOAT32, copy=False)
    return lambda at: flat[offsets[at] : offsets[at + 1]].tobytes()


def _by_row(
    maps: pa.MapArray, read: Callable[[Any], Callable[[int], Any]]
) -> Callable[[int], dict[str, Any]]:
    """A function that gives the entries at an index.

    read: gives a function that reads the item at an index.
    """
    offsets = maps.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    if first == last:
        return lambda at: {}
    keys = maps.keys.slice(first, last - first).to_pylist()
    item = read(maps.items.slice(first, last - first))
    return lambda at: {
        keys[to]: item(to) for to in range(offsets[at] - first, offsets[at + 1] - first)
    }
