"""One trajectory as a Parquet file.

`trajectory_formats` imports this module only when a Parquet file is asked for: pyarrow takes 29 MiB
of memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flerm_core.records.recording import ParameterList
from flerm_server.http.api.schemas import RecordingOut
from flerm_server.store.interface import Rows, Selection

SPOOL_BYTES = 1 << 20  # a longer file is kept on disk, not in memory
READ_BYTES = 1 << 18  # bytes of the file in one piece of the answer
ROW_GROUP_BYTES = 12 << 20  # bytes of FSLRs in one row group of the file


def _row_groups(rows: Iterator[Rows], width: int) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns of each row group: steps, losses, learning rates, tokens, each [rows], then the
    FSLRs [width, rows].

    A column of a row group costs the same however few rows it has, so several chunks of `rows`
    share one row group.
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

    for chunk in rows:
        if filled + len(chunk.steps) > height:
            yield group()
            held, filled = [], 0
        values[:, filled : filled + len(chunk.steps)] = chunk.values.T
        held.append(replace(chunk, values=values[:0]))
        filled += len(chunk.steps)
    if held:
        yield group()


def _column(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    """An Arrow column on the memory of `values`, null where a value is NaN or a count negative.

    The column is made from buffers because `pa.array` imports pandas where that is installed, which
    takes half a second and 40 MiB.
    """
    known = values >= 0 if values.dtype.kind == "i" else ~np.isnan(values)
    missing = len(values) - int(np.count_nonzero(known))
    bitmap = pa.py_buffer(np.packbits(known, bitorder="little")) if missing else None
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)], missing)


def as_parquet(
    selection: Selection, parameters: ParameterList, rows: Iterator[Rows]
) -> Iterator[bytes]:
    """The file in pieces: the columns of CSV; FSLRs are float32, null where unmeasured.

    The file's metadata `flerm` has the recording as JSON. The file is complete when this function
    returns, so that an error on the way is answered as an error, not as half a file.
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
    file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - `_send` closes it
    try:
        # FSLRs hardly repeat: a dictionary of them takes ten times as long as all the rest, and
        # makes the file larger.
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
    return _send(file)


def _send(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while part := file.read(READ_BYTES):
            yield part
