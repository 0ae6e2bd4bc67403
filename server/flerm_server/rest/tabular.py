"""One trajectory as JSON, CSV or Parquet, block by block: memory does not grow with the recording."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flerm_core.recording import ParameterList
from flerm_server.rest.problems import NotAcceptable
from flerm_server.rest.schemas import RecordingOut
from flerm_server.store.base import Rows, Selection

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMATS = {"json": JSON, "csv": CSV, "parquet": PARQUET}
COLUMNS = ("step", "loss", "learning_rate", "tokens")
SPOOL_BYTES = 8 << 20  # of a Parquet file that stay in memory
READ_BYTES = 1 << 18
ROW_GROUP_BYTES = 1 << 24  # of FSLRs in one row group of Parquet


def choose(wanted: str | None, accept: str) -> str:
    """The media type to answer with: `format=` first, then the Accept header, JSON where both leave it open.

    Raises `NotAcceptable` for a format or media types that there are not.
    """
    if wanted is not None:
        if wanted not in FORMATS:
            raise NotAcceptable(f"format {wanted[:40]!r}: one of {', '.join(FORMATS)} is allowed")
        return FORMATS[wanted]
    ranges: list[tuple[float, str]] = []
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        stated = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        ranges.append((_quality(stated), kind))
    for quality, kind in sorted(ranges, key=lambda each: -each[0]):
        found = {"*/*": JSON, "application/*": JSON, "text/*": CSV, "": JSON}.get(kind, kind)
        if quality > 0 and found in FORMATS.values():
            return found
    raise NotAcceptable(f"Accept {accept[:200]!r}: {', '.join(FORMATS.values())} are there")


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def as_json(selection: Selection, parameters: ParameterList, rows: Iterator[Rows]) -> Iterator[str]:
    """`{"recording", "names", "shapes", "bands", "rows": [{"step", "loss", "learning_rate", "tokens", "values"}]}`."""
    recording = RecordingOut.of(selection.recording.without_parameters()).model_dump_json()
    names, shapes, bands = (json.dumps(each) for each in (parameters.names, parameters.shapes, parameters.bands))
    yield f'{{"recording": {recording}, "names": {names}, "shapes": {shapes}, "bands": {bands}, "rows": ['
    comma = ""
    for block in rows:
        lines = []
        for step, loss, rate, tokens, values in _lines(block):
            lines.append(
                f'{comma}\n{{"step": {step}, "loss": {loss or "null"}, "learning_rate": {rate or "null"}, '
                f'"tokens": {tokens or "null"}, "values": [{", ".join(value or "null" for value in values)}]}}'
            )
            comma = ","
        yield "".join(lines)
    yield "\n]}\n"


def as_csv(parameters: ParameterList, rows: Iterator[Rows]) -> Iterator[str]:
    """One line a step: step, loss, learning_rate, tokens, then the FSLRs by name; empty where there is none."""
    yield _csv_lines([(*COLUMNS, *parameters.names)])
    for block in rows:
        yield _csv_lines((str(step), loss, rate, tokens, *values) for step, loss, rate, tokens, values in _lines(block))


def _csv_lines(lines: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _lines(block: Rows) -> Iterator[tuple[int, str, str, str, list[str]]]:
    """Each row as text, "" for what is not there. Nine digits are a float32 exactly, seventeen a float64."""
    for at, step in enumerate(block.steps.tolist()):
        values = ["" if value != value else f"{value:.9g}" for value in block.values[at].tolist()]
        loss, rate, tokens = float(block.losses[at]), float(block.learning_rates[at]), int(block.tokens[at])
        yield step, _text(loss), _text(rate), str(tokens) if tokens >= 0 else "", values


def _text(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


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
        return (*(np.concatenate(parts) for parts in zip(*columns, strict=True)), *values[:, :filled])

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


def as_parquet(selection: Selection, parameters: ParameterList, rows: Iterator[Rows]) -> Callable[[], Iterator[bytes]]:
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
        with pq.ParquetWriter(file, schema, compression="snappy", use_dictionary=False, write_statistics=False) as writer:
            for columns in _row_groups(rows, len(parameters)):
                arrays = [_column(field.type, column) for field, column in zip(fields, columns, strict=True)]
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
