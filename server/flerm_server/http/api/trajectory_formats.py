"""One trajectory as JSON or CSV, block by block, so that memory does not grow with the recording; which format is asked for."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator

from flerm_core.records.recording import ParameterList
from flerm_server.http.api.schemas import RecordingOut
from flerm_server.http.problems import NotAcceptable
from flerm_server.store.interface import Rows, Selection
from flerm_server.store.sql.auxiliary_codec import decode

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMATS = {"json": JSON, "csv": CSV, "parquet": PARQUET}
COLUMNS = ("step", "loss", "learning_rate", "tokens")


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
        stated = next(
            (parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1"
        )
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
    """`{"recording", "names", "shapes", "bands", "rows": [{"step", "loss", "learning_rate", "tokens", "values"}]}`.

    A row that holds further scalars (sharpness) has them as `"scalars": {name: number}`.
    """
    recording = RecordingOut.of(selection.recording.without_parameters()).model_dump_json()
    names, shapes, bands = (
        json.dumps(each) for each in (parameters.names, parameters.shapes, parameters.bands)
    )
    yield f'{{"recording": {recording}, "names": {names}, "shapes": {shapes}, "bands": {bands}, "rows": ['
    comma = ""
    for block in rows:
        lines = []
        for (step, loss, rate, tokens, values), extra in zip(
            _lines(block), block.extras, strict=True
        ):
            scalars = decode(extra)[0]
            further = f', "scalars": {json.dumps(scalars)}' if scalars else ""
            lines.append(
                f'{comma}\n{{"step": {step}, "loss": {loss or "null"}, "learning_rate": {rate or "null"}, '
                f'"tokens": {tokens or "null"}, "values": [{", ".join(value or "null" for value in values)}]{further}}}'
            )
            comma = ","
        yield "".join(lines)
    yield "\n]}\n"


def as_csv(parameters: ParameterList, rows: Iterator[Rows]) -> Iterator[str]:
    """One line a step: step, loss, learning_rate, tokens, then the FSLRs by name; empty where there is none."""
    yield _csv_lines([(*COLUMNS, *parameters.names)])
    for block in rows:
        yield _csv_lines(
            (str(step), loss, rate, tokens, *values)
            for step, loss, rate, tokens, values in _lines(block)
        )


def _csv_lines(lines: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _lines(block: Rows) -> Iterator[tuple[int, str, str, str, list[str]]]:
    """Each row as text, "" for what is not there. Nine digits are a float32 exactly, seventeen a float64."""
    for at, step in enumerate(block.steps.tolist()):
        values = ["" if value != value else f"{value:.9g}" for value in block.values[at].tolist()]
        loss, rate, tokens = (
            float(block.losses[at]),
            float(block.learning_rates[at]),
            int(block.tokens[at]),
        )
        yield step, _text(loss), _text(rate), str(tokens) if tokens >= 0 else "", values


def _text(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""
