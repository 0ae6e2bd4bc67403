"""What to install where a package is missing that comes with an extra of `flerm`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def missing_words(what: str, missing: ModuleNotFoundError, extra: str) -> str:
    """The sentence on a missing package, with the extra that brings it.

    Raises `missing` where it is about one of `flerm`'s own modules.
    """
    if (missing.name or "").split(".")[0].startswith("flerm"):
        raise missing
    return f"{what} needs the package {missing.name}: pip install 'flerm[{extra}]'"


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Lets imports in the `with` block that fail raise `ModuleNotFoundError` with that sentence."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.__cause__ is not None:  # it has its sentence
            raise
        words = missing_words(what, missing, extra)
        raise ModuleNotFoundError(words, name=missing.name) from missing
