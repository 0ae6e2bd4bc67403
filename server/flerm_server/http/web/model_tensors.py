"""The tensors of the model to match: pasted into the matcher's page, or those of a recording."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass

from flerm_core.errors import InvalidInput
from flerm_core.parameter_names import is_depth_group
from flerm_core.records.checks import quote_value
from flerm_core.records.queries import TrajectoryQuery
from flerm_server.store import queries
from flerm_server.store.interface import Store


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """The tensors of a big model, as pasted or as recorded.

    measured: FSLRs by name, NaN where unmeasured; empty: none was given.
    shapes: one for each name; empty: not every tensor has one.
    """

    names: tuple[str, ...]
    measured: dict[str, float]
    shapes: tuple[tuple[int, ...], ...]


def parse_tensors(text: str) -> ModelTensors:
    """Reads lines of `name`, `name FSLR` or `name [8, 8]`, or JSON: an object of names to either,
    or a list of names.

    Raises `InvalidInput` naming the line.
    """
    entries = _json_entries(text) if text.lstrip()[:1] in ("{", "[") else _line_entries(text)
    measured: dict[str, float] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    names = [name for _, name, _ in entries]
    for where, name, value in entries:
        if isinstance(value, list) and all(isinstance(size, int) for size in value):
            shapes[name] = tuple(value)
        elif (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        ):
            measured[name] = float(value)
        elif value is not None:
            raise InvalidInput(
                f"{where} has {quote_value(value)}; "
                "a measured FSLR, a shape such as [64, 32] or nothing is allowed"
            )
    if measured:
        measured = {name: measured.get(name, math.nan) for name in names}
    complete = len(shapes) == len(names)
    return ModelTensors(
        tuple(names), measured, tuple(shapes[name] for name in names) if complete else ()
    )


Entry = tuple[str, str, object]  # where it stands (for errors), name, value


def _json_entries(text: str) -> list[Entry]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        begin = text.lstrip()[0]
        raise InvalidInput(
            f"tensors: the text begins with {begin} but is no JSON ({error})"
        ) from None
    if isinstance(content, list):
        return [(f"tensors: entry {at}", str(name), None) for at, name in enumerate(content, 1)]
    return [(f"tensors: {quote_value(name)}", str(name), value) for name, value in content.items()]


def _line_entries(text: str) -> list[Entry]:
    return [_line(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]


def _line(at: int, text: str) -> Entry:
    """Line number `at`. A name may be quoted and end with a colon; a shape may be torch's."""
    text = text.strip()
    name, _, rest = text.partition(" " if " " in text else "\t")
    name, rest = name.rstrip(":,=").strip("\"'"), rest.strip().lstrip(":=").strip().rstrip(",")
    where = f"tensors: line {at}, {quote_value(name)},"
    if not rest:
        return where, name, None
    value = rest.replace("(", "[").replace(",)", "]").replace(")", "]").removeprefix("torch.Size")
    try:
        return where, name, json.loads(value)
    except (ValueError, RecursionError):
        return where, name, None if rest.lower() == "nan" else rest


def recorded_tensors(store: Store, recording_id: str) -> tuple[ModelTensors, int]:
    """The tensors of a recording with what it measured first, and the step of that measurement.

    Raises `NotFound` for an unknown recording, `InvalidInput` for one without a measurement.
    """
    found = queries.trajectory(store, TrajectoryQuery(recording_id=recording_id, max_points=2))
    if not len(found):
        raise InvalidInput(
            f"recording: {quote_value(recording_id)} has no measurement yet; choose one that has"
        )
    shapes = dict(zip(found.names, found.shapes, strict=True))
    measured = {name: value for name, value in found.at().items() if not is_depth_group(name)}
    names = tuple(measured)
    step = int(found.steps[0])
    return ModelTensors(names, measured, tuple(shapes[name] for name in names)), step
