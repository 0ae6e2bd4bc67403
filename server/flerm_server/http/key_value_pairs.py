"""Query parameters that may be repeated, each with a key and a value."""

from __future__ import annotations

from collections.abc import Iterable

from flerm_core.errors import InvalidInput


def key_value_pairs(parameter: str, form: str, pairs: Iterable[str]) -> dict[str, str]:
    """The values by key of a query's `pairs`.

    parameter, form: the parameter's name and what is allowed, for the error message.

    Raises `InvalidInput` for a pair without a key or without an equals sign, and for two values of
    one key.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InvalidInput(f"{parameter} {pair[:80]!r}: {form} is allowed")
        if found.setdefault(key, value) != value:
            raise InvalidInput(
                f"{parameter} {pair[:80]!r}: {key[:80]}={found[key][:80]!r} is given too; only one "
                "value of a key is allowed"
            )
    return found
