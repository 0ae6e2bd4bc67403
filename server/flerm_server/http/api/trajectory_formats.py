"""The formats of a trajectory.

JSON and CSV are written chunk by chunk, so that the memory does not grow with the recording.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator

from flerm_core.csv_cells import text_cell
from flerm_core.records.recording import ParameterList
from flerm_server.http.api.schemas import RecordingOut
from flerm_server.http.problems import NotAcceptable
from flerm_server.store.auxiliary_codec import decode
from flerm_server.store.interface import Rows, Selection

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
MEDIA_TYPES = {"json": JSON, "csv": CSV, "parquet": PARQUET}  # by the word that `format=` takes
SUFFIXES = {media_type: word for word, media_type in MEDIA_TYPES.items()}
COLUMNS = ("step", "loss", "learning_rate", "tokens")

# One media range of an Accept header and its quality: "text/csv;q=0.5".
_MEDIA_RANGE = re.compile(r"([^\s;,]+)(?:[^,]*?;\s*q=(\d(?:\.\d*)?))?[^,]*")
_WILDCARDS = {"*/*": JSON, "application/*": JSON, "text/*": CSV}


def choose(word: str | None, accept: str) -> str:
    """The media type of the answer: that of `format=word`, else the one that the client prefers.

    accept: the Accept header; empty: JSON.

    Raises `NotAcceptable` where no format fits.
    """
    if word is not None:
        if word not in MEDIA_TYPES:
            raise NotAcceptable(f"format {word[:40]!r}: one of {', '.join(MEDIA_TYPES)} is allowed")
        return MEDIA_TYPES[word]
    ranges: list[tuple[str, str]] = _MEDIA_RANGE.findall(accept.lower()) or [("*/*", "")]
    for media_range, quality in sorted(ranges, key=lambda each: -float(each[1] or 1)):
        media_type = _WILDCARDS.get(media_range, media_range)
        if media_type in SUFFIXES and float(quality or 1) > 0:
            return media_type
    raise NotAcceptable(f"Accept {accept[:200]!r}: {', '.join(SUFFIXES)} are there")


def write(
    media_type: str, selection: Selection, parameters: ParameterList, rows: Iterator[Rows]
) -> Iterator[str] | Iterator[bytes]:
    """The trajectory in one of the `MEDIA_TYPES`, in pieces.

    parameters: those that `rows` has the FSLRs of, in their order.
    """
    if media_type == JSON:
        return as_json(selection, parameters, rows)
    if media_type == CSV:
        return as_csv(parameters, rows)
    # Here, not above: pyarrow takes 29 MiB, which a server that writes no Parquet does without.
    from flerm_server.http.api.parquet import as_parquet

    return as_parquet(selection, parameters, rows)


def as_json(selection: Selection, parameters: ParameterList, rows: Iterator[Rows]) -> Iterator[str]:
    """`{"recording", "names", "shapes", "bands", "rows"}`, each row `{"step", "loss",
    "learning_rate", "tokens", "values"}`.

    A row that holds auxiliary scalars, such as sharpness, has them as `"scalars": {name: number}`.
    """
    recording = RecordingOut.of(selection.recording.without_parameters()).model_dump_json()
    names, shapes, bands = (
        json.dumps(each) for each in (parameters.names, parameters.shapes, parameters.bands)
    )
    yield (
        f'{{"recording": {recording}, "names": {names}, "shapes": {shapes}, '
        f'"bands": {bands}, "rows": ['
    )
    comma = ""
    for chunk in rows:
        lines = []
        for (step, loss, rate, tokens, values), packed in zip(
            _lines(chunk), chunk.auxiliary, strict=True
        ):
            auxiliary = decode(packed)
            scalars = dict(auxiliary.scalars) if auxiliary else {}
            suffix = f', "scalars": {json.dumps(scalars)}' if scalars else ""
            fslrs = ", ".join(value or "null" for value in values)
            lines.append(
                f'{comma}\n{{"step": {step}, "loss": {loss or "null"}, '
                f'"learning_rate": {rate or "null"}, "tokens": {tokens or "null"}, '
                f'"values": [{fslrs}]{suffix}}}'
            )
            comma = ","
        yield "".join(lines)
    yield "\n]}\n"


def as_csv(parameters: ParameterList, rows: Iterator[Rows]) -> Iterator[str]:
    """One line for each step: step, loss, learning_rate, tokens, then the FSLRs by name.

    A number that is not there is an empty field. Names are `text_cell`s.
    """
    yield _csv_lines([(*COLUMNS, *map(text_cell, parameters.names))])
    for chunk in rows:
        yield _csv_lines(
            (str(step), loss, rate, tokens, *values)
            for step, loss, rate, tokens, values in _lines(chunk)
        )


def _csv_lines(lines: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _lines(chunk: Rows) -> Iterator[tuple[int, str, str, str, list[str]]]:
    """Step, loss, learning rate, tokens and FSLRs of each row, as text; "" where there is none.

    Nine digits give a float32 back exactly.
    """
    for at, step in enumerate(chunk.steps.tolist()):
        values = ["" if value != value else f"{value:.9g}" for value in chunk.values[at].tolist()]
        loss, rate = float(chunk.losses[at]), float(chunk.learning_rates[at])
        tokens = int(chunk.tokens[at])
        yield step, _text(loss), _text(rate), str(tokens) if tokens >= 0 else "", values


def _text(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""
