"""The errors that FLeRM raises on purpose.

One hierarchy, mapped to gRPC status codes in `flerm_proto.status_codes` and to HTTP problems in the
server's REST view. A message is one sentence that names the field, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable


class FlermError(Exception):
    """The base of all errors of FLeRM. `exit_code`: that of the `flerm` command."""

    exit_code = 1


class InvalidInput(FlermError, ValueError):
    """A value has the wrong type, range, length or spelling."""

    exit_code = 2


class NotFound(FlermError, LookupError):
    """There is no such family, recording, learning rate or parameter.

    The message says what there is.
    """

    exit_code = 3


class Unreachable(FlermError, ConnectionError):
    """The registry did not answer in time, or cannot answer now. A later try may succeed.

    places: parts of the sentence that say where its database is, which strangers are not told.
    """

    exit_code = 4
    places: tuple[str, ...] = ()


class Refused(FlermError):
    """The registry's state or rules forbid a request that is valid in itself.

    Another try changes nothing.
    """

    exit_code = 5


class AlreadyExists(Refused):
    """The same key is stored already with other content."""


class Ambiguous(Refused):
    """Several answers would fit (optimisers, estimators, ...). The message says how to choose."""


class Unauthenticated(Refused):
    """No token, or one that is unknown, expired or revoked."""


class PermissionDenied(Refused):
    """The token's scope or family prefix does not cover the call."""


class LimitExceeded(Refused):
    """A limit of the registry (sizes, rates, quotas) was reached. The message names it."""


class DataLoss(FlermError):
    """Stored or spooled bytes are damaged. The message says where."""


class MeasurementError(FlermError):
    """An FSLR could not be measured. Every rank raises the same error."""


class NotFinite(MeasurementError):
    """The training itself has come to weights or buffers that are not finite. It names them."""


class EstimatorNotApplicable(MeasurementError):
    """An estimator cannot measure this model, whatever the batch. The message says why."""


class Unsupported(FlermError, TypeError):
    """A wrapper, optimiser or module with which FLeRM would measure wrongly.

    The message says what to do instead.
    """

    exit_code = 2


def printable(text: str, *, kept: str = "") -> str:
    """`text` with a blank in the place of each character that is not printable, but for `kept`.

    What comes from elsewhere could otherwise move the cursor of a terminal, or hide its text.
    """
    return "".join(each if each.isprintable() or each in kept else " " for each in text)


def join_names(items: Iterable[object], most: int = 20) -> str:
    """The items as a phrase, at most `most` of them by name."""
    found = [str(item) for item in items]
    rest = len(found) - most
    return ", ".join(found[:most]) + (f" and {rest} more" if rest > 0 else "") if found else "none"
