"""One trajectory as a Parquet file. Imported where one is asked for: pyarrow is 29 MiB that a server at rest does without."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flerm_core.records.recording import ParameterList
from flerm_server.http.api.schemas import RecordingOut
from flerm_server.store.interface import Rows, Selection

SPOOL_BYTES = 1 << 20  # of a Parquet file that stay in memory
READ_BYTES = 1 << 18
ROW_GROUP_BYTES = 12 << 20  # of FSLRs in one row group of Parquet


def _row_groups(rows: Iterator[Rows], width: int) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns of larger pieces: each column of each row group costs the same, however few its rows.

    Steps, losses, learning rates and tokens, each [rows], then the FSLRs [width, rows].
    """
    height = max(1, ROW_GROUP_BYTES // (4 * max(width, 1)))
    values = np.empty((width, height), np.float32)
    held: list[Rows] = []
    filled = 0

    def group() -> tuple[np.ndarray, ...]:
        columns = ((each.steps, each.losses, each.learning_rates, each.tokens) for each in held)
        return (
            *(np.concatenate(parts) for parts in zip(*columns, strict=True)),
            *values[:, :filled],
        )

    for block in rows:
        if filled + len(block.steps) > height:
            yield group()
            held, filled = [], 0
        values[:, filled : filled + len(block.steps)] = block.values.T
        held.append(replace(block, values=values[:0]))
        filled += len(block.steps)
    if held:
        yield group()


def _column(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    """An Arrow column on the memory of `values`, null where there is none: NaN, or a negative count.

    From buffers, since `pa.array` imports pandas where that is installed: half a second and 40 MiB of a server.
    """
    known = values >= 0 if values.dtype.kind == "i" else ~np.isnan(values)
    missing = len(values) - int(np.count_nonzero(known))
    bitmap = pa.py_buffer(np.packbits(known, bitorder="little")) if missing else None
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)], missing)


def as_parquet(
    selection: Selection, parameters: ParameterList, rows: Iterator[Rows]
) -> Callable[[], Iterator[bytes]]:
    """The same columns as CSV; FSLRs are float32, null where unmeasured; the recording is in the file's metadata `flerm`.

    The file is complete when this returns: what goes wrong on the way is still an error, not half an answer.
    """
    recording = RecordingOut.of(selection.recording.without_parameters()).model_dump_json()
    fields = [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("loss", pa.float64()),
        pa.field("learning_rate", pa.float64()),
        pa.field("tokens", pa.int64()),
        *(pa.field(name, pa.float32()) for name in parameters.names),
    ]
    schema = pa.schema(fields, metadata={"flerm": recording})
    file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - closed when it has been sent
    try:
        # FSLRs hardly repeat: a dictionary of them costs ten times the rest, and makes the file larger.
        with pq.ParquetWriter(
            file, schema, compression="snappy", use_dictionary=False, write_statistics=False
        ) as writer:
            for columns in _row_groups(rows, len(parameters)):
                arrays = [
                    _column(field.type, column)
                    for field, column in zip(fields, columns, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    except BaseException:
        file.close()
        raise

    def send() -> Iterator[bytes]:
        with file:
            file.seek(0)
            while part := file.read(READ_BYTES):
                yield part

    return send
