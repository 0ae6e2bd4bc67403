"""Checks of single values.

Each raises `InvalidInput` in one sentence with the field, the value and what is allowed.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping, Sequence, Sized
from datetime import datetime

import numpy as np

from flerm_core.errors import InvalidInput

MAX_INTEGER = (
    2**53 - 1
)  # steps, tokens, ...: exact as a double, and so in JSON and in every browser


def quote_value(value: object) -> str:
    """`value` as an error message shows it, at most 80 characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check(holds: bool, field: str, value: object, allowed: str) -> None:
    """Raises `InvalidInput` unless `holds`."""
    if not holds:
        raise InvalidInput(f"{field}: {quote_value(value)} is not allowed; it must be {allowed}")


def check_integer(field: str, value: object, low: int = 0, high: int = MAX_INTEGER) -> None:
    """An integer (not a bool) from `low` to `high`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    check(whole and low <= value <= high, field, value, f"an integer from {low} to {high}")  # type: ignore[operator]


def check_number(
    field: str, value: object, *, above: float | None = None, low: float | None = None
) -> None:
    """A finite number, above `above`, not below `low`."""
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(
        value, bool
    )
    finite = number and math.isfinite(value)  # type: ignore[arg-type]
    bound = (
        f" above {above:g}"
        if above is not None
        else f" not below {low:g}"
        if low is not None
        else ""
    )
    holds = finite and (above is None or value > above) and (low is None or value >= low)  # type: ignore[operator]
    check(bool(holds), field, value, f"a finite number{bound}")


def check_text(field: str, value: object, most: int, *, least: int = 0) -> None:
    """Printable text (no line breaks, control characters or lone surrogates) of `least` to `most`
    characters.
    """
    holds = isinstance(value, str) and least <= len(value) <= most and value.isprintable()
    check(holds, field, value, f"printable text of {least} to {most} characters")


def check_prose(field: str, value: object, most: int) -> None:
    """Text that may have lines, of at most `most` characters."""
    holds = (
        isinstance(value, str)
        and len(value) <= most
        and all(line.isprintable() for line in re.split("[\n\t]", value))
    )
    check(holds, field, value, f"printable text of at most {most} characters, line breaks allowed")


def check_uuid(field: str, value: object) -> None:
    """A UUID in its canonical spelling."""
    try:
        holds = isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        holds = False
    check(
        holds, field, value, "a UUID such as '123e4567-e89b-42d3-a456-426614174000', in lower case"
    )


def check_timestamp(field: str, value: object) -> None:
    """A date and time with a time zone."""
    check(
        isinstance(value, datetime) and value.tzinfo is not None,
        field,
        value,
        "a date and time with a time zone",
    )


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """One of `choices`."""
    check(value in choices, field, value, f"one of {', '.join(choices)}")


def check_count(field: str, values: Sized, most: int) -> None:
    """At most `most` entries."""
    if len(values) > most:
        raise InvalidInput(
            f"{field}: {len(values)} entries are not allowed; it must be at most {most}"
        )


def check_json(field: str, value: object, depth: int = 0) -> None:
    """A value that JSON can hold: text keys, finite numbers that are exact as a double, at most 16
    levels deep.
    """
    check(depth <= 16, field, value, "nested at most 16 levels deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_text(f"a key of {field}", key, 256, least=1)
            check_json(f"{field}.{key}", item, depth + 1)
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            check_json(f"{field}[{at}]", item, depth + 1)
    elif isinstance(value, str):
        check_prose(field, value, 65_536)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        check_number(field, value)
        check(
            isinstance(value, float) or abs(value) <= MAX_INTEGER,
            field,
            value,
            f"at most {MAX_INTEGER} in size, or text",
        )
    else:
        check(
            value is None or isinstance(value, bool),
            field,
            value,
            "JSON: null, a boolean, a number, text, a list or a mapping",
        )
