"""Pairs of a key and a value that are written as `key=value`, on a command line or in a query."""

from __future__ import annotations

from collections.abc import Iterable

from flerm_core.errors import InvalidInput
from flerm_core.records.checks import quote_value


def key_value_pairs(
    field: str, pairs: Iterable[str] | None, form: str = "key=value"
) -> dict[str, str]:
    """The values of `pairs` by key; empty for None.

    field, form: the name of the field and what is allowed, for the error message.

    Raises `InvalidInput` for a pair without a key or without an equals sign, and for two values of
    one key.
    """
    found: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InvalidInput(f"{field}: {quote_value(pair)} is not of the form {form}")
        if found.setdefault(key, value) != value:
            raise InvalidInput(
                f"{field}: {quote_value(pair)} beside {quote_value(f'{key}={found[key]}')}; only "
                "one value of a key is allowed"
            )
    return found
